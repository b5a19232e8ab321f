//! A Monday morning: hundreds of organisations, everybody arrives within an hour and prints.

use std::time::Duration;

use peerage_wire::record::DraftError;
use peerage_wire::time::Instant;

use super::fit::{count, sum};
use super::town::{Town, fortune};
use super::{Outcome, Scale, Table, Terms};
use crate::chance::Chance;
use crate::chart::{Chart, Curve, Scale as Along, Style};
use crate::operations::Operation;

/// When the first people come; what serves is on by then.
const OPENS: Duration = Duration::from_secs(1_800);
const HOUR: Duration = Duration::from_secs(3_600);
/// How soon after having come somebody prints.
const FIRST_WISH: Duration = Duration::from_secs(600);
/// Into how many parts the morning is cut.
const PARTS: u32 = 18;

pub(super) fn run(terms: Terms) -> Result<Outcome, DraftError> {
    let towns: &[(usize, usize, usize)] = match terms.scale {
        Scale::Small => &[(2, 24, 2)],
        Scale::Full => &[(100, 50, 10), (100, 100, 10)],
    };
    let mut table = Table::new(
        "Everybody arrives within an hour, and prints within ten minutes of that",
        &[
            "organisations",
            "people",
            "printers",
            "super-nodes",
            "tunnels opened %",
            "median ms",
            "99 of 100 within ms",
            "operator: messages/s in the hour",
            "heard in the worst second",
        ],
    );
    let (mut curves, mut worst, mut slowest) = (Vec::new(), 1.0_f64, 0.0_f64);
    for (domains, users, printers) in towns {
        let (row, points, reached, slow) = measure((*domains, *users, *printers), terms)?;
        table.row(&row);
        worst = worst.min(reached);
        slowest = slowest.max(slow);
        let people = crate::chart::number(count(domains * users));
        curves.push(Curve::new(
            &format!("{people} people of {domains} organisations"),
            Style::Measured,
            points,
        ));
    }
    Ok(Outcome {
        tables: vec![table],
        findings: vec![("opened_lowest", worst), ("slowest_millis", slowest)],
        charts: vec![Chart {
            file: "morning".to_owned(),
            title: "A morning: what the operator hears and says while everybody arrives".to_owned(),
            x: ("minutes since the first came".to_owned(), Along::Even),
            y: ("messages per second at the operator".to_owned(), Along::Even),
            curves,
        }],
    })
}

type Morning = ([f64; 9], Vec<(f64, f64)>, f64, f64);

fn measure((domains, users, printers): (usize, usize, usize), terms: Terms) -> Result<Morning, DraftError> {
    let town = Town {
        domains,
        users,
        offices: 4,
        printers,
        servers: 3,
        lent: 2,
        vendor: 0,
        start_within: Duration::from_secs(300),
    };
    let mut world = town.found(town.setup(terms.seed))?;
    let mut chance = Chance::new(terms.seed, "morning");
    // Those who only use printers go home in the evening.
    for host in town.people().filter(|host| !town.may_serve(*host)) {
        world.plan(OPENS - Duration::from_secs(600), Operation::Crash { host, survivors: 8 });
        let comes = OPENS + chance.duration(HOUR);
        world.plan(comes, Operation::Start { host });
        let device = chance.index(printers);
        let wish = comes + Duration::from_secs(5) + chance.duration(FIRST_WISH);
        world.plan(wish, Operation::Open { host, device, script: crate::app::Script::PROBE });
    }
    let began = Instant::default().after(OPENS);
    world.run_until(began);
    world.count_from_here();
    let (mut points, mut before, mut in_the_hour) = (Vec::new(), 0, 0.0);
    for part in 1..=PARTS {
        world.run_until(began.after(HOUR * part / 12));
        let heard = world.operator_counts(0).messages();
        points.push((f64::from(part) * 5.0, sum(heard - before) / 300.0));
        before = heard;
        if part == 12 {
            in_the_hour = sum(heard) / HOUR.as_secs_f64();
        }
    }
    let peak = sum(world.operator_peak(0));
    let fared = fortune(&world, (began, world.now()), true);
    let now = crate::host::true_time(world.now()).unix;
    let row = [
        count(domains),
        count(domains * users),
        count(domains * printers),
        count(world.ledger.super_nodes(now).count()),
        fared.reached * 100.0,
        fared.median_millis,
        fared.slow_millis,
        in_the_hour,
        peak,
    ];
    Ok((row, points, fared.reached, fared.slow_millis))
}
