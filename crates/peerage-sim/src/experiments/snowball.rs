//! Figure 15 and section 4.3.4: super-nodes die at the worst moment, and their users go to the others.

use std::time::Duration;

use peerage_wire::record::DraftError;
use peerage_wire::time::Instant;

use super::fit::{count, sum};
use super::town::{Town, fortune};
use super::{Outcome, Scale, Table, Terms};
use crate::chance::Chance;
use crate::chart::{Chart, Curve, Scale as Along, Style};
use crate::operations::Operation;
use crate::world::{Capacity, Overload, World};

/// When the rush begins.
const RUSH: Duration = Duration::from_secs(1_800);
/// How long it lasts.
const RUSHED: Duration = Duration::from_secs(300);
/// When super-nodes die.
const KILLED: Duration = Duration::from_secs(1_860);
/// How much more than at its busiest second of a rush without losses a super-node can take, in percent.
const RESERVE: u64 = 125;

/// What is different.
#[derive(Clone, Copy, Debug)]
struct Defence {
    name: &'static str,
    overload: Overload,
    vendor: usize,
}

const DEFENCES: [Defence; 4] = [
    Defence { name: "overloaded ones crash, no floor", overload: Overload::Crashes, vendor: 0 },
    Defence {
        name: "overloaded ones crash, 3 super-nodes of the vendor",
        overload: Overload::Crashes,
        vendor: 3,
    },
    Defence { name: "overloaded ones shed load, no floor", overload: Overload::Sheds, vendor: 0 },
    Defence {
        name: "overloaded ones shed load, 3 super-nodes of the vendor",
        overload: Overload::Sheds,
        vendor: 3,
    },
];

pub(super) fn run(terms: Terms) -> Result<Outcome, DraftError> {
    let (shares, every): (&[usize], usize) = match terms.scale {
        // Both kinds of overload, without a floor, and no more than the reserve makes up for.
        Scale::Small => (&[20], 2),
        Scale::Full => (&[0, 10, 20, 30, 40, 50, 60], 1),
    };
    let mut table = Table::new(
        "Measured: so many super-nodes die in the first minute of a rush; lists are shuffled and times jittered",
        &[
            "died %",
            "defence",
            "others that were overloaded",
            "crashes",
            "tunnels opened %",
            "99 of 100 within ms",
        ],
    );
    let mut curves = Vec::new();
    let (mut lowest, mut fell) = (1.0_f64, 0.0_f64);
    for defence in DEFENCES.into_iter().step_by(every) {
        let capacity = busiest(defence, terms)? * RESERVE / 100;
        let mut points = Vec::new();
        for share in shares {
            let [overloaded, crashes, reached, slow] = measure(defence, (*share, capacity), terms)?;
            let numbers = [overloaded, crashes, reached * 100.0, slow].map(crate::chart::number);
            table
                .rows
                .push([share.to_string(), defence.name.to_owned()].into_iter().chain(numbers).collect());
            points.push((count(*share), reached * 100.0));
            lowest = lowest.min(reached);
            fell = fell.max(crashes);
        }
        curves.push(Curve::new(defence.name, Style::Measured, points));
    }
    Ok(Outcome {
        tables: vec![calculated_table(), table],
        findings: vec![("opened_lowest", lowest), ("crashes_most", fell)],
        charts: vec![
            calculated_chart(),
            Chart {
                file: "snowball-measured".to_owned(),
                title: "Tunnels that are opened although super-nodes die in a rush, measured".to_owned(),
                x: ("super-nodes that die at once, percent".to_owned(), Along::Even),
                y: ("tunnels opened within three tries, percent".to_owned(), Along::Even),
                curves,
            },
        ],
    })
}

fn town(defence: Defence, terms: Terms) -> Town {
    let is_full = terms.scale == Scale::Full;
    Town {
        domains: if is_full { 12 } else { 6 },
        users: if is_full { 40 } else { 8 },
        offices: 2,
        printers: 2,
        servers: 3,
        lent: 2,
        vendor: defence.vendor,
        large: 0,
        start_within: Duration::from_secs(60),
    }
}

fn rush(defence: Defence, terms: Terms) -> Result<(Town, World), DraftError> {
    let town = town(defence, terms);
    let mut world = town.found(town.setup(terms.seed))?;
    let mut chance = Chance::new(terms.seed, "rush");
    town.work(&mut world, &mut chance, 3, (RUSH, RUSH + RUSHED));
    Ok((town, world))
}

/// Returns how many datagrams the busiest super-node hears in its busiest second if none dies.
fn busiest(defence: Defence, terms: Terms) -> Result<u64, DraftError> {
    let (town, mut world) = rush(defence, terms)?;
    world.run_until(Instant::default().after(RUSH));
    world.limit(town.lenders(), Capacity { per_second: u64::MAX, overload: Overload::Sheds });
    world.run_until(Instant::default().after(RUSH + RUSHED));
    Ok(world.strain().busiest.max(1))
}

/// Returns how many of those that were not killed had too much to do, how often one crashed, and how users fared.
fn measure(
    defence: Defence,
    (share, per_second): (usize, u64),
    terms: Terms,
) -> Result<[f64; 4], DraftError> {
    let (town, mut world) = rush(defence, terms)?;
    let mut lenders: Vec<_> = town.lenders().collect();
    let mut chance = Chance::new(terms.seed, "killed");
    for _ in 0..(lenders.len() * share + 50) / 100 {
        let host = lenders.swap_remove(chance.index(lenders.len()));
        world.plan(KILLED, Operation::Crash { host, survivors: 8 });
    }
    world.run_until(Instant::default().after(RUSH));
    world.limit(town.lenders(), Capacity { per_second, overload: defence.overload });
    world.run_until(Instant::default().after(RUSH + RUSHED + Duration::from_secs(120)));
    let span = (Instant::default().after(KILLED), Instant::default().after(RUSH + RUSHED));
    let fared = fortune(&world, span, true);
    let strain = world.strain();
    Ok([count(strain.overloaded), sum(strain.crashes), fared.reached, fared.slow_millis])
}

/// Which share of the super-nodes is down in the end, if each carries one load and could carry `capacity`.
fn fallen(killed: usize, capacity: f64, is_shuffled: bool) -> f64 {
    const ALL: usize = 100;
    // Those that die are spread evenly over the list.
    let mut is_up: Vec<bool> = (0..ALL).map(|n| (n * killed) / ALL == ((n + 1) * killed) / ALL).collect();
    loop {
        let up = is_up.iter().filter(|up| **up).count();
        let loads: Vec<f64> =
            if is_shuffled { vec![count(ALL) / count(up).max(1.0); ALL] } else { by_list(&is_up) };
        let falls = |(up, load): (&bool, &f64)| *up && *load > capacity;
        let after: Vec<bool> = is_up.iter().zip(&loads).map(|pair| *pair.0 && !falls(pair)).collect();
        if after == is_up {
            return 1.0 - count(up) / count(ALL);
        }
        is_up = after;
    }
}

/// What each carries if the users of one that is down go to the next in a list that all have in the same order.
fn by_list(is_up: &[bool]) -> Vec<f64> {
    let mut loads = vec![0.0; is_up.len()];
    let mut waiting = 0.0;
    // Twice around: those at the end go to the beginning.
    for (turn, n) in (0..2).flat_map(|turn| (0..is_up.len()).map(move |n| (turn, n))) {
        let arrives = if turn == 0 { 1.0 } else { 0.0 };
        waiting += arrives;
        if let (Some(true), Some(load)) = (is_up.get(n), loads.get_mut(n)) {
            *load += waiting;
            waiting = 0.0;
        }
    }
    loads
}

fn calculated_table() -> Table {
    let mut table = Table::new(
        "Calculated: super-nodes that are down in the end, percent, if each carries 1 and can carry 1.5 or 2.5",
        &["died %", "sorted list, 1.5", "sorted list, 2.5", "shuffled lists, 1.5", "shuffled lists, 2.5"],
    );
    for killed in (0..=60).step_by(10) {
        let down = |capacity, is_shuffled| fallen(killed, capacity, is_shuffled) * 100.0;
        table.row(&[count(killed), down(1.5, false), down(2.5, false), down(1.5, true), down(2.5, true)]);
    }
    table
}

fn calculated_chart() -> Chart {
    let curve = |capacity, is_shuffled| -> Vec<(f64, f64)> {
        (0..=60).map(|killed| (count(killed), fallen(killed, capacity, is_shuffled) * 100.0)).collect()
    };
    Chart {
        file: "snowball-calculated".to_owned(),
        title: "Figure 15 of the thesis, calculated: the snowball".to_owned(),
        x: ("super-nodes that die at once, percent".to_owned(), Along::Even),
        y: ("super-nodes that are down in the end, percent".to_owned(), Along::Even),
        curves: vec![
            Curve::new(
                "all users have the same list; each super-node can carry 1.5 of its load",
                Style::Line,
                curve(1.5, false),
            ),
            Curve::new("all users have the same list; 2.5 of its load", Style::Line, curve(2.5, false)),
            Curve::new("every user's list is shuffled; 1.5 of its load", Style::Line, curve(1.5, true)),
            Curve::new("every user's list is shuffled; 2.5 of its load", Style::Dashed, curve(2.5, true)),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_list_for_all_lets_a_single_loss_bring_everything_down() {
        assert_eq!(fallen(0, 1.5, false), 0.0);
        assert_eq!(fallen(1, 1.5, false), 1.0);
    }

    #[test]
    fn shuffled_lists_lose_no_more_than_died_as_long_as_the_others_can_carry_all() {
        assert!((fallen(30, 1.5, true) - 0.3).abs() < 1e-9);
        assert!((fallen(40, 1.5, true) - 1.0).abs() < 1e-9);
        assert!((fallen(55, 2.5, true) - 0.55).abs() < 1e-9);
    }
}
