//! How long the network goes on while no operator answers, and how soon it is right again.

use std::time::Duration;

use peerage_wire::record::DraftError;
use peerage_wire::time::Instant;

use super::fit::count;
use super::town::{Fortune, Town, fortune};
use super::{Outcome, Scale, Table, Terms};
use crate::chance::Chance;
use crate::chart::{Chart, Curve, Scale as Along, Style};
use crate::operations::Operation;

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

/// When the operators go.
const GONE_AT: Duration = Duration::from_secs(1_800);

pub(super) fn run(terms: Terms) -> Result<Outcome, DraftError> {
    let spans: &[(&str, Duration)] = match terms.scale {
        Scale::Small => &[("2 hours", Duration::from_secs(2 * 3_600))],
        Scale::Full => &[
            ("a day", DAY),
            ("a week", Duration::from_secs(7 * 86_400)),
            ("a month", Duration::from_secs(30 * 86_400)),
        ],
    };
    let mut table = Table::new(
        "No operator answers",
        &[
            "outage",
            "in its first hour %",
            "in its last quarter %",
            "median ms",
            "99 of 100 within ms",
            "in the hour after %",
            "in the day after %",
        ],
    );
    let (mut curves, mut findings, mut slowest) = (Vec::new(), (1.0_f64, 1.0_f64), 0.0_f64);
    for (name, span) in spans {
        let [first, last, after, later, days] = measure(*span, terms)?;
        let (first, last, after, later) = (whole(&first), whole(&last), whole(&after), whole(&later));
        findings = (findings.0.min(first.reached), findings.1.min(later.reached));
        slowest = slowest.max(last.median_millis);
        table.named(
            name,
            &[
                first.reached * 100.0,
                last.reached * 100.0,
                last.median_millis,
                last.slow_millis,
                after.reached * 100.0,
                later.reached * 100.0,
            ],
        );
        let points = days.iter().zip(0_u32..).filter(|(day, _)| day.wishes > 0);
        let points = points.map(|(day, n)| {
            (f64::from(n) * span.as_secs_f64() / 86_400.0 / count(days.len()), day.reached * 100.0)
        });
        curves.push(Curve::new(&format!("an outage of {name}"), Style::Measured, points.collect()));
    }
    Ok(Outcome {
        tables: vec![table],
        findings: vec![
            ("reached_in_the_first_hour", findings.0),
            ("reached_later", findings.1),
            ("slowest_median_millis", slowest),
        ],
        charts: vec![Chart {
            file: "operator-off".to_owned(),
            title: "Tunnels that are opened while no operator answers".to_owned(),
            x: ("days since the operators stopped".to_owned(), Along::Even),
            y: ("tunnels opened, percent".to_owned(), Along::Even),
            curves,
        }],
    })
}

/// Puts parts of a time together.
fn whole(parts: &[Fortune]) -> Fortune {
    let wishes: usize = parts.iter().map(|part| part.wishes).sum();
    let filled = || parts.iter().filter(|part| part.wishes > 0);
    let mean = |of: fn(&Fortune) -> f64| {
        filled().map(|part| of(part) * count(part.wishes)).sum::<f64>() / count(wishes).max(1.0)
    };
    Fortune {
        wishes,
        reached: mean(|part| part.reached),
        median_millis: mean(|part| part.median_millis),
        slow_millis: filled()
            .map(|part| part.slow_millis)
            .filter(|slow| slow.is_finite())
            .fold(0.0, f64::max),
    }
}

/// Returns how users fare in the first hour, the last quarter, the hour after and later, and in each part of the outage.
fn measure(span: Duration, terms: Terms) -> Result<[Vec<Fortune>; 5], DraftError> {
    /// Parts of an outage.
    const PARTS: u32 = 30;
    // For how long they are watched once operators are back.
    let watched = if terms.scale == Scale::Full { DAY } else { 2 * HOUR };
    let town = Town {
        domains: 3,
        users: 8,
        offices: 2,
        printers: 1,
        servers: 2,
        lent: 2,
        vendor: 0,
        large: 0,
        start_within: Duration::from_secs(60),
    };
    let mut world = town.found(town.setup(terms.seed))?;
    let mut chance = Chance::new(terms.seed, "work");
    let back_at = GONE_AT + span;
    let part = span / PARTS;
    town.work(&mut world, &mut chance, 1, (GONE_AT, GONE_AT + HOUR.min(part)));
    let every = if terms.scale == Scale::Full { 1 } else { 5 };
    for n in (0..PARTS).step_by(every) {
        town.work(&mut world, &mut chance, 2, (GONE_AT + part * n, GONE_AT + part * (n + 1)));
    }
    town.work(&mut world, &mut chance, 2, (back_at, back_at + HOUR));
    town.work(&mut world, &mut chance, 2, (back_at + HOUR, back_at + watched));
    world.plan(GONE_AT, Operation::Outage { span });
    world.run_until(Instant::default().after(back_at + watched + Duration::from_secs(600)));
    let between = |from: Duration, to: Duration| {
        fortune(&world, (Instant::default().after(from), Instant::default().after(to)), true)
    };
    let parts: Vec<_> = (0..PARTS).map(|n| between(GONE_AT + part * n, GONE_AT + part * (n + 1))).collect();
    let last = parts.iter().skip(22).copied().collect();
    Ok([
        vec![between(GONE_AT, GONE_AT + HOUR)],
        last,
        vec![between(back_at, back_at + HOUR)],
        vec![between(back_at + HOUR, back_at + watched)],
        parts,
    ])
}
