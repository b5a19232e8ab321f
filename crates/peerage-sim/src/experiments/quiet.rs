//! How much a LAN hears of Peerage: 1 to 300 computers, printers, and nobody who uses them.

use std::time::Duration;

use peerage_wire::record::DraftError;
use peerage_wire::time::Instant;

use super::fit::{Fit, count, sum};
use super::town::Town;
use super::{Outcome, Scale, Table, Terms};
use crate::chart::{Chart, Curve, Scale as Along, Style};

/// How long everybody has to find a place.
const SETTLING: Duration = Duration::from_secs(1_800);
/// For how long it is counted.
const COUNTED: Duration = Duration::from_secs(3_600);

pub(super) fn run(terms: Terms) -> Result<Outcome, DraftError> {
    let sizes: &[usize] = match terms.scale {
        Scale::Small => &[1, 10, 40],
        Scale::Full => &[1, 2, 3, 10, 30, 100, 200, 300],
    };
    let mut table = Table::new(
        "One LAN, one printer, every computer may serve it; an idle hour",
        &[
            "computers",
            "to the group of the LAN, datagrams/h",
            "to the Internet, datagrams/h",
            "of it bytes/h",
            "per computer, datagrams/h",
            "the busiest computer, datagrams/h",
        ],
    );
    let (mut group, mut internet) = (Vec::new(), Vec::new());
    for size in sizes {
        let noise = measure(*size, terms.seed, (SETTLING, COUNTED))?;
        let (multicasts, datagrams) = (sum(noise.multicasts), sum(noise.datagrams));
        let (bytes, busiest) = (sum(noise.bytes), sum(noise.busiest));
        let nodes = count(*size);
        table.row(&[nodes, multicasts, datagrams, bytes, (multicasts + datagrams) / nodes, busiest]);
        group.push((nodes, multicasts));
        internet.push((nodes, datagrams));
    }
    let many: Vec<_> = internet.iter().copied().filter(|(nodes, _)| *nodes >= 2.0).collect();
    let last = |points: &[(f64, f64)]| points.last().map_or(f64::NAN, |(_, value)| *value);
    Ok(Outcome {
        findings: vec![
            ("group_datagrams_per_hour_of_the_largest", last(&group)),
            ("internet_datagrams_per_hour_of_the_largest", last(&internet)),
            ("internet_datagrams_per_further_computer_and_hour", Fit::of(&many).slope),
        ],
        tables: vec![table],
        charts: vec![Chart {
            file: "quiet".to_owned(),
            title: "What an idle LAN with one printer sends in an hour".to_owned(),
            x: ("computers with Peerage on the LAN".to_owned(), Along::Even),
            y: ("datagrams in an hour, all computers together".to_owned(), Along::Even),
            curves: vec![
                Curve::new("to the group of the LAN", Style::Measured, group),
                Curve::new("to the Internet", Style::Measured, internet),
            ],
        }],
    })
}

/// What the computers of a LAN send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noise {
    /// Datagrams to the group of the LAN.
    pub multicasts: u64,
    /// Datagrams to servers and, when tunnel-nodes are checked, to each other.
    pub datagrams: u64,
    /// Bytes of these.
    pub bytes: u64,
    /// Datagrams of both kinds of the one that sends most.
    pub busiest: u64,
}

/// Lets the computers of a LAN settle, and counts what they send while nobody uses a printer.
///
/// # Errors
/// If a record of the setup would be too long.
pub fn measure(
    computers: usize,
    seed: u64,
    (settling, counted): (Duration, Duration),
) -> Result<Noise, DraftError> {
    let town = Town {
        domains: 1,
        users: computers,
        offices: 1,
        printers: 1,
        servers: computers,
        lent: 0,
        vendor: 3,
        large: 0,
        start_within: Duration::from_secs(300),
    };
    let mut world = town.found(town.setup(seed))?;
    world.run_until(Instant::default().after(settling));
    world.count_from_here();
    world.run(counted);
    let all = || town.people().map(|host| world.counts(host));
    Ok(Noise {
        multicasts: all().map(|counts| counts.multicasts).sum(),
        datagrams: all().map(|counts| counts.datagrams).sum(),
        bytes: all().map(|counts| counts.bytes).sum(),
        busiest: all().map(|counts| counts.datagrams + counts.multicasts).max().unwrap_or(0),
    })
}
