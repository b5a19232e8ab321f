//! Section 3.9.4: computers come and go, and the network goes on.

use std::time::Duration;

use peerage_wire::record::DraftError;
use peerage_wire::time::Instant;

use super::fit::count;
use super::town::{Fortune, Town, fortune_where};
use super::{Outcome, Scale, Table, Terms};
use crate::chance::Chance;
use crate::chart::{Chart, Curve, Scale as Along, Style};
use crate::operations::Operation;

/// When computers begin to come and go.
const BEGIN: Duration = Duration::from_secs(1_800);

/// How long a computer is off between two sessions, as a share of a session: on for four fifths of the time.
const OFF: u32 = 4;

pub(super) fn run(terms: Terms) -> Result<Outcome, DraftError> {
    let minutes: &[u64] = match terms.scale {
        Scale::Small => &[10, 1_440],
        Scale::Full => &[5, 15, 60, 240, 1_440],
    };
    let mut table = Table::new(
        "Super-nodes and tunnel-nodes come and go; they are on for four fifths of the time",
        &[
            "mean session, minutes",
            "wishes",
            "opened %",
            "median ms",
            "99 of 100 within ms",
            "opened % while a computer at the printer was on",
            "opened % where tunnel-nodes stay",
        ],
    );
    let mut points = [Vec::new(), Vec::new(), Vec::new()];
    for session in minutes {
        let session_time = Duration::from_secs(session * 60);
        let [all, served] = measure(session_time, true, terms)?;
        let [stay, _] = measure(session_time, false, terms)?;
        let length = super::fit::sum(*session);
        table.row(&[
            length,
            count(all.wishes),
            all.reached * 100.0,
            all.median_millis,
            all.slow_millis,
            served.reached * 100.0,
            stay.reached * 100.0,
        ]);
        let [with, of_served, without] = &mut points;
        with.push((length, all.reached * 100.0));
        of_served.push((length, served.reached * 100.0));
        without.push((length, stay.reached * 100.0));
    }
    let [all, served, stay] = points;
    let worst = |points: &[(f64, f64)]| points.iter().map(|(_, share)| share / 100.0).fold(1.0, f64::min);
    Ok(Outcome {
        findings: vec![
            ("opened_lowest", worst(&all)),
            ("opened_lowest_while_a_computer_at_the_printer_was_on", worst(&served)),
            ("opened_lowest_where_tunnel_nodes_stay", worst(&stay)),
            ("opened_with_the_longest", all.last().map_or(f64::NAN, |(_, share)| share / 100.0)),
        ],
        tables: vec![table],
        charts: vec![Chart {
            file: "churn".to_owned(),
            title: "Tunnels that are opened while computers come and go".to_owned(),
            x: ("mean time that a computer is on, minutes".to_owned(), Along::Powers),
            y: ("tunnels opened within three tries, percent".to_owned(), Along::Even),
            curves: vec![
                Curve::new("super-nodes and tunnel-nodes come and go", Style::Measured, all),
                Curve::new("the same, while a computer at the printer was on", Style::Dashed, served),
                Curve::new("only super-nodes come and go", Style::Measured, stay),
            ],
        }],
    })
}

/// Returns how users fared: all of them, and those who began while a computer was on that may serve their printer.
fn measure(session: Duration, servers_too: bool, terms: Terms) -> Result<[Fortune; 2], DraftError> {
    let span = Duration::from_secs(if terms.scale == Scale::Full { 4 * 3_600 } else { 1_800 });
    let town = Town {
        domains: if terms.scale == Scale::Full { 6 } else { 1 },
        users: 20,
        offices: 2,
        printers: 2,
        servers: 3,
        lent: if terms.scale == Scale::Full { 2 } else { 3 },
        vendor: 0,
        large: 0,
        start_within: Duration::from_secs(60),
    };
    let mut world = town.found(town.setup(terms.seed))?;
    let mut chance = Chance::new(terms.seed, "churn");
    let comes: Vec<_> =
        town.people().filter(|host| servers_too && town.may_serve(*host)).chain(town.lenders()).collect();
    let mut off = Vec::new();
    for host in comes {
        // Where in its session each is when it begins is another matter for each.
        let mut at = BEGIN + chance.duration(session);
        while at < BEGIN + span {
            world.plan(at, Operation::Crash { host, survivors: 8 });
            let since = at;
            at += chance.duration(session * 2 / OFF).max(Duration::from_secs(5));
            world.plan(at, Operation::Start { host });
            off.push((host, Instant::default().after(since), Instant::default().after(at)));
            at += chance.duration(session * 2).max(Duration::from_secs(5));
        }
    }
    // Users are others, so that what fails is the network's fault.
    for host in town.people().filter(|host| !town.may_serve(*host)) {
        for _ in 0..8 {
            let (at, device) = (BEGIN + chance.duration(span), chance.index(town.printers));
            world.plan(at, Operation::Open { host, device, script: crate::app::Script::PROBE });
        }
    }
    world.run_until(Instant::default().after(BEGIN + span + Duration::from_secs(60)));
    let is_on = |host: usize, at: Instant| {
        !off.iter().any(|(other, from, to)| *other == host && *from <= at && at < *to)
    };
    let span = (Instant::default().after(BEGIN), Instant::default().after(BEGIN + span));
    let all = fortune_where(&world, span, |errand| !errand.is_local);
    let served = fortune_where(&world, span, |errand| {
        !errand.is_local && town.servers_of(errand.device).any(|host| is_on(host, errand.begun_at))
    });
    Ok([all, served])
}
