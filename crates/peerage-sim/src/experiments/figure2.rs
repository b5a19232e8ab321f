//! Figure 2: what the centre needs as the number of users grows, calculated as in the thesis and measured.

use std::time::Duration;

use peerage_wire::record::DraftError;
use peerage_wire::time::Instant;

use super::fit::{Fit, count, sum};
use super::town::{Fortune, Town, fortune};
use super::{Outcome, Scale, Table, Terms};
use crate::chance::Chance;
use crate::chart::{Chart, Curve, Scale as Along, Style, number};

/// Users for whom a centre is enlarged at a time.
const BUMP: usize = 5_000;
/// Users for whom the centre is enough that has helpers.
const CENTRE: usize = 2_500;
/// One helper among so many users, and for how many users it is enough.
const HELPERS: (usize, usize) = (50, 75);

/// What is measured, and for how long.
struct Plan {
    /// Users of one organisation.
    users: usize,
    /// Organisations, where each lends two computers.
    with: &'static [usize],
    /// Organisations, where nobody lends one.
    without: &'static [usize],
    /// How long everybody has to find a place; half of it where there are very many organisations.
    settling: Duration,
    /// For how long it is counted.
    counted: Duration,
}

/// One in fifty computers is lent.
const FULL: Plan = Plan {
    users: 98,
    with: &[2, 4, 8, 10, 30, 100, 300, 1_000],
    without: &[2, 4, 8, 10, 30],
    settling: Duration::from_secs(3_600),
    counted: Duration::from_secs(3_600),
};

/// From how many organisations on there is half the time to find a place: a computer is simulated for that much longer.
const VERY_MANY: usize = 1_000;

const SMALL: Plan = Plan {
    users: 18,
    with: &[2, 6],
    without: &[2, 6],
    settling: Duration::from_secs(900),
    counted: Duration::from_secs(900),
};

/// One size, measured.
#[derive(Clone, Copy, Debug)]
struct Measured {
    nodes: f64,
    super_nodes: f64,
    /// Per second.
    messages: f64,
    heard: f64,
    bytes: f64,
    /// Microseconds of the operator's processor per node and hour.
    busy_micros: f64,
    peak: f64,
    fortune: Fortune,
}

impl Measured {
    fn per_node_and_hour(&self, per_second: f64) -> f64 {
        per_second * 3_600.0 / self.nodes
    }

    fn row(&self) -> [f64; 10] {
        [
            self.nodes,
            self.super_nodes,
            self.messages,
            self.heard,
            self.peak,
            self.per_node_and_hour(self.messages),
            self.per_node_and_hour(self.bytes),
            self.busy_micros,
            self.fortune.reached * 100.0,
            self.fortune.median_millis,
        ]
    }
}

pub(super) fn run(terms: Terms) -> Result<Outcome, DraftError> {
    let plan = match terms.scale {
        Scale::Small => SMALL,
        Scale::Full => FULL,
    };
    let all = |domains: &[usize], lent| -> Result<Vec<_>, DraftError> {
        let wanted = domains.iter().filter(|domains| terms.wants(**domains * (plan.users + lent)));
        wanted.map(|domains| measure(&plan, (*domains, lent), terms)).collect()
    };
    let (with, without) = (all(plan.with, 2)?, all(plan.without, 0)?);
    let points = |of: fn(&Measured) -> f64, all: &[Measured]| -> Vec<(f64, f64)> {
        all.iter().map(|one| (one.nodes, of(one))).collect()
    };
    let (messages, requests) = (points(|one| one.messages, &with), points(|one| one.heard, &with));
    let (fit, heard) = (Fit::of(&messages), Fit::of(&requests));
    let fit_alone = Fit::of(&points(|one| one.messages, &without));
    let bytes = Fit::of(&points(|one| one.bytes, &with));
    let lowest = with.iter().chain(&without).map(|one| one.fortune.reached).fold(1.0, f64::min);
    let lent = "each organisation lends 2 computers as super-nodes (1 in 50)";
    let curves = vec![
        Curve::new(
            "the operator alone: nobody lends a computer",
            Style::Measured,
            points(|one| one.heard, &without),
        ),
        Curve::new(lent, Style::Measured, requests.clone()),
        Curve::new("the same, with its answers counted too", Style::Measured, messages),
        Curve::new("the goal: 0.002 per computer and second", Style::Dashed, goal(&requests)),
    ];
    let chart = Chart {
        file: "figure2-measured".to_owned(),
        title: "What the operator handles, measured in the simulator".to_owned(),
        x: ("computers in the network".to_owned(), Along::Powers),
        y: ("requests per second".to_owned(), Along::Powers),
        // Where one size is tried alone, some have no points.
        curves: curves.into_iter().filter(|curve| !curve.points.is_empty()).collect(),
    };
    Ok(Outcome {
        tables: vec![
            calculated_table(),
            table("With super-nodes: each organisation lends 2 computers", &with),
            table("Without", &without),
        ],
        findings: vec![
            ("slope", fit.slope),
            ("base", fit.base),
            ("slope_heard", heard.slope),
            ("slope_bytes", bytes.slope),
            ("slope_without_super_nodes", fit_alone.slope),
            ("share_of_the_centre", fit.slope / fit_alone.slope),
            ("reached_lowest", lowest),
        ],
        charts: vec![calculated_chart(), chart],
    })
}

fn goal(measured: &[(f64, f64)]) -> Vec<(f64, f64)> {
    measured.iter().map(|(nodes, _)| (*nodes, nodes * 0.002)).collect()
}

/// Lets a town work, everybody using a printer once an hour, and counts at the operator.
fn measure(plan: &Plan, (domains, lent): (usize, usize), terms: Terms) -> Result<Measured, DraftError> {
    let settling = plan.settling / if domains >= VERY_MANY { 2 } else { 1 };
    let town = Town {
        domains,
        users: plan.users,
        offices: 4,
        printers: 2,
        servers: 3,
        lent,
        vendor: 0,
        large: 0,
        start_within: settling / 2,
    };
    let mut world = town.found(town.setup(terms.seed))?;
    if let Some(stopwatch) = terms.stopwatch {
        world.set_stopwatch(stopwatch);
    }
    let mut chance = Chance::new(terms.seed, "work");
    town.work(&mut world, &mut chance, 1, (settling, settling + Duration::from_secs(3_600)));
    let began = Instant::default().after(settling);
    let what = format!("{} computers, {} of them lent", town.nodes(), town.lenders().len());
    terms.run_until(&mut world, &what, began);
    world.count_from_here();
    terms.run_until(&mut world, &what, began.after(plan.counted));
    let counts = world.operator_counts(0);
    let peak = world.operator_peak(0);
    world.run(Duration::from_secs(60));
    let seconds = plan.counted.as_secs_f64();
    let nodes = count(town.nodes());
    let now = crate::host::true_time(world.now()).unix;
    let measured = Measured {
        nodes,
        super_nodes: count(world.ledger.super_nodes(now).count()),
        messages: sum(counts.messages()) / seconds,
        heard: sum(counts.heard) / seconds,
        bytes: sum(counts.bytes()) / seconds,
        busy_micros: counts.busy.as_secs_f64() * 1e6 / nodes * 3_600.0 / seconds,
        peak: sum(peak),
        fortune: fortune(&world, (began, began.after(plan.counted)), true),
    };
    terms.tell(&format!("{what}: {}", measured.row().map(number).join(" | ")));
    Ok(measured)
}

fn table(title: &str, all: &[Measured]) -> Table {
    let columns = [
        "computers",
        "super-nodes",
        "messages/s",
        "of them heard",
        "heard in the worst second",
        "messages/node/h",
        "bytes/node/h",
        "CPU µs/node/h",
        "tunnels opened %",
        "median ms",
    ];
    let mut table = Table::new(title, &columns);
    all.iter().for_each(|one| table.row(&one.row()));
    table
}

/// What the figure shows: the need, a centre that grows in bumps, and a small centre with helpers.
fn calculated(users: usize) -> [usize; 3] {
    let centre = users.div_ceil(BUMP).max(1) * BUMP;
    [users, centre, CENTRE + users / HELPERS.0 * HELPERS.1]
}

fn calculated_table() -> Table {
    let mut table = Table::new(
        "Calculated: users that can be served",
        &["users", "needed", "centre upgraded by 5,000", "centre of 2,500 and helpers", "of it the centre's"],
    );
    for users in (0..=30_000).step_by(2_500) {
        let [need, centre, helped] = calculated(users).map(count);
        table.row(&[count(users), need, centre, helped, count(CENTRE)]);
    }
    table
}

fn calculated_chart() -> Chart {
    let curve = |which: usize| -> Vec<(f64, f64)> {
        let value = |users: usize| calculated(users).get(which).copied().unwrap_or(0);
        (0..=300).map(|n| n * 100).map(|users| (count(users), count(value(users)))).collect()
    };
    Chart {
        file: "figure2-calculated".to_owned(),
        title: "Figure 2 of the thesis, calculated: users that can be served".to_owned(),
        x: ("users".to_owned(), Along::Even),
        y: ("users that can be served".to_owned(), Along::Even),
        curves: vec![
            Curve::new("what is needed", Style::Line, curve(0)),
            Curve::new("a centre that is upgraded by 5,000 users at a time", Style::Line, curve(1)),
            Curve::new("a centre for 2,500 users, and 1 user in 50 helps 75 others", Style::Line, curve(2)),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helpers_carry_any_number_of_users_and_the_centre_does_not_grow() {
        for users in 0..100_000 {
            let [need, centre, helped] = calculated(users);
            assert!(need <= centre && need <= helped);
        }
    }
}
