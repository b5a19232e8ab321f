//! A Monday morning: hundreds of organisations, everybody arrives within an hour and prints.

use std::collections::BTreeSet;
use std::time::Duration;

use peerage_wire::id::Domain;
use peerage_wire::record::DraftError;
use peerage_wire::time::Instant;

use super::fit::{count, sum};
use super::town::{Town, fortune};
use super::{Outcome, Scale, Table, Terms};
use crate::chance::Chance;
use crate::chart::{Chart, Curve, Scale as Along, Style};
use crate::operations::Operation;
use crate::world::World;

/// When the first people come; what serves is on by then.
const OPENS: Duration = Duration::from_secs(1_800);
const HOUR: Duration = Duration::from_secs(3_600);
/// How soon after having come somebody prints.
const FIRST_WISH: Duration = Duration::from_secs(600);
/// Into parts of which length the morning is cut.
const PART: Duration = Duration::from_secs(300);
/// Parts until everybody has come, and printed.
const WHOLE: u32 = 18;
/// Parts in the hour.
const IN_THE_HOUR: u32 = 12;
/// How long a wish may take that still counts in the end.
const LAST_WISH: Duration = Duration::from_secs(30);

/// The organisations of one morning.
#[derive(Clone, Copy)]
struct Size {
    domains: usize,
    /// People of each.
    users: usize,
    printers: usize,
    /// People of one more organisation.
    large: usize,
    /// How many parts of the morning are simulated: of the largest not all, which would take an hour of a processor.
    parts: u32,
}

impl Size {
    const fn people(&self) -> usize {
        self.domains * self.users + self.large
    }
}

const SMALL: &[Size] = &[Size { domains: 2, users: 24, printers: 2, large: 40, parts: WHOLE }];

const FULL: &[Size] = &[
    Size { domains: 100, users: 50, printers: 10, large: 0, parts: WHOLE },
    Size { domains: 100, users: 100, printers: 10, large: 0, parts: WHOLE },
    // Small ones, so that the large one alone does not fit into any segment.
    Size { domains: 1_000, users: 10, printers: 2, large: 50_000, parts: 4 },
];

pub(super) fn run(terms: Terms) -> Result<Outcome, DraftError> {
    let sizes = match terms.scale {
        Scale::Small => SMALL,
        Scale::Full => FULL,
    };
    let mut table = Table::new(
        "Everybody arrives within an hour, and prints within ten minutes of that",
        &[
            "organisations",
            "people",
            "printers",
            "super-nodes",
            "segments of the largest organisation",
            "minutes",
            "tunnels",
            "opened %",
            "median ms",
            "99 of 100 within ms",
            "operator: messages/s while they come",
            "heard in the worst second",
            "a super-node sends datagrams/s",
            "the busiest",
        ],
    );
    let (mut curves, mut worst, mut slowest, mut most_cut) = (Vec::new(), 1.0_f64, 0.0_f64, 0.0_f64);
    for size in sizes.iter().filter(|size| terms.wants(size.people())) {
        let (row, points, reached, slow) = measure(*size, terms)?;
        table.row(&row);
        worst = worst.min(reached);
        slowest = slowest.max(slow);
        most_cut = most_cut.max(row[SEGMENTS]);
        let people = crate::chart::number(count(size.people()));
        let organisations = size.domains + usize::from(size.large > 0);
        let name = format!("{people} people of {organisations} organisations");
        curves.push(Curve::new(&name, Style::Measured, points));
    }
    Ok(Outcome {
        tables: vec![table],
        findings: vec![
            ("opened_lowest", worst),
            ("slowest_millis", slowest),
            ("segments_of_one_organisation", most_cut),
        ],
        charts: vec![Chart {
            file: "morning".to_owned(),
            title: "A morning: what the operator hears and says while everybody arrives".to_owned(),
            x: ("minutes since the first came".to_owned(), Along::Even),
            y: ("messages per second at the operator".to_owned(), Along::Even),
            curves,
        }],
    })
}

/// The column that says over how many segments the records of the largest organisation lie.
const SEGMENTS: usize = 4;

type Morning = ([f64; 14], Vec<(f64, f64)>, f64, f64);

/// Returns over how many segments the records of an organisation lie.
fn segments(world: &World, domain: Domain) -> usize {
    let now = crate::host::true_time(world.now()).unix;
    let held = world.ledger.super_nodes(now).map(|(_, segment)| segment);
    held.filter(|segment| segment.touches(domain)).collect::<BTreeSet<_>>().len()
}

/// Returns how many datagrams some computers have sent on average, and the one that has sent the most.
fn sent_by(world: &World, hosts: std::ops::Range<usize>) -> (f64, f64) {
    let sent: Vec<_> = hosts.map(|host| sum(world.counts(host).datagrams)).collect();
    (sent.iter().sum::<f64>() / count(sent.len()), sent.iter().copied().fold(0.0, f64::max))
}

fn measure(size: Size, terms: Terms) -> Result<Morning, DraftError> {
    let Size { domains, users, printers, large, parts } = size;
    let town = Town {
        domains,
        users,
        offices: 4,
        printers,
        servers: 3,
        lent: 2,
        vendor: 0,
        large,
        start_within: Duration::from_secs(300),
    };
    let mut world = town.found(town.setup(terms.seed))?;
    let mut chance = Chance::new(terms.seed, "morning");
    let only_prints = |host: &usize| {
        let is_person = town.people().contains(host) || town.large_people().contains(host);
        is_person && !town.may_serve(*host)
    };
    world.keep_off(|host| only_prints(&host));
    for host in (0..world.hosts.len()).filter(only_prints) {
        let comes = OPENS + chance.duration(HOUR);
        world.plan(comes, Operation::Start { host });
        let device =
            chance.index(if town.large_people().contains(&host) { town.large_offices() } else { printers });
        let wish = comes + Duration::from_secs(5) + chance.duration(FIRST_WISH);
        world.plan(wish, Operation::Open { host, device, script: crate::app::Script::PROBE });
    }
    let began = Instant::default().after(OPENS);
    let what = format!("{} people", size.people());
    terms.run_until(&mut world, &what, began);
    world.count_from_here();
    let (mut points, mut before, mut while_they_come, mut lent) = (Vec::new(), 0, 0.0, (0.0, 0.0));
    for part in 1..=parts {
        let since = PART * part;
        terms.run_until(&mut world, &what, began.after(since));
        let heard = world.operator_counts(0).messages();
        points.push((since.as_secs_f64() / 60.0, sum(heard - before) / PART.as_secs_f64()));
        before = heard;
        if part == parts.min(IN_THE_HOUR) {
            let (mean, most) = sent_by(&world, town.lenders());
            lent = (mean / since.as_secs_f64(), most / since.as_secs_f64());
            while_they_come = sum(heard) / since.as_secs_f64();
        }
    }
    let peak = sum(world.operator_peak(0));
    let fared = fortune(&world, (began, began.after(PART * parts - LAST_WISH)), true);
    let now = crate::host::true_time(world.now()).unix;
    let largest = if large > 0 { town.large_people().start } else { 0 };
    let largest = world.hosts.get(largest).map_or(0, |host| segments(&world, host.domain));
    let organisations = domains + usize::from(large > 0);
    let row = [
        count(organisations),
        count(size.people()),
        count(domains * printers + town.large_offices()),
        count(world.ledger.super_nodes(now).count()),
        count(largest),
        f64::from(parts) * PART.as_secs_f64() / 60.0,
        count(fared.wishes),
        fared.reached * 100.0,
        fared.median_millis,
        fared.slow_millis,
        while_they_come,
        peak,
        lent.0,
        lent.1,
    ];
    Ok((row, points, fared.reached, fared.slow_millis))
}
