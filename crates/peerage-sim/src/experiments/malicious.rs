//! Appendix A and section 4.3.3: how often a look-up meets a super-node that lies, and how long it takes to the truth all the same.

use std::time::Duration;

use peerage_wire::record::DraftError;
use peerage_wire::time::Instant;

use super::fit::count;
use super::town::{Fortune, Town, fortune};
use super::{Outcome, Scale, Table, Terms};
use crate::app::Script;
use crate::chart::{Chart, Curve, Scale as Along, Style};
use crate::liar::Manner;
use crate::operations::Operation;
use crate::world::HostSetup;

/// Super-nodes in all, as in the example of the thesis.
const SUPER_NODES: usize = 10;

/// How the liars came to be super-nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attack {
    /// Each belongs to another organisation and provider: the rule about diversity has no hold on them.
    Spread,
    /// All belong to one organisation and one address prefix: the rule counts them as one.
    Together,
    /// As spread, and the vendor runs three super-nodes of its own beside the ten.
    SpreadWithVendor,
}

impl Attack {
    const ALL: [Self; 3] = [Self::Spread, Self::Together, Self::SpreadWithVendor];

    const fn name(self) -> &'static str {
        match self {
            Self::Spread => "liars of many organisations (no diversity to be had)",
            Self::Together => "liars of one organisation (the diversity rule works)",
            Self::SpreadWithVendor => "liars of many organisations, and 3 super-nodes of the vendor",
        }
    }
}

pub(super) fn run(terms: Terms) -> Result<Outcome, DraftError> {
    let (shares, seeds): (&[usize], u64) = match terms.scale {
        Scale::Small => (&[9], 1),
        Scale::Full => (&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 4),
    };
    let mut measured = Table::new(
        "Measured: everybody is switched on anew and uses a printer; 10 super-nodes",
        &["liars of 10", "attack", "wishes", "reached %", "median ms", "99 of 100 within ms"],
    );
    let mut curves = Vec::new();
    let (mut lowest, mut slowest) = ([1.0_f64; 3], 0.0_f64);
    for (attack, lowest) in Attack::ALL.into_iter().zip(&mut lowest) {
        let mut points = Vec::new();
        for liars in shares {
            let found: Result<Vec<_>, _> =
                (0..seeds).map(|n| measure(attack, *liars, terms.seed + n)).collect();
            let all = together(&found?);
            *lowest = lowest.min(all.reached);
            slowest = slowest.max(all.slow_millis);
            points.push((count(*liars) * 100.0 / count(SUPER_NODES), all.reached * 100.0));
            measured.rows.push(row(*liars, attack, &all));
        }
        curves.push(Curve::new(attack.name(), Style::Measured, points));
    }
    let [without, with, vendor] = lowest;
    Ok(Outcome {
        tables: vec![calculated_table(), measured],
        findings: vec![
            ("reached_lowest_without_diversity", without),
            ("reached_lowest_with_diversity", with),
            ("reached_lowest_with_the_vendor", vendor),
            ("slowest_millis", slowest),
            ("one_liar_of_ten_with_two_requests", calculated(1, 2)),
            ("nine_liars_of_ten_with_two_requests", calculated(9, 2)),
        ],
        charts: vec![
            calculated_chart(),
            Chart {
                file: "malicious-measured".to_owned(),
                title: "Who finds the truth while super-nodes lie, measured".to_owned(),
                x: ("super-nodes that lie, percent".to_owned(), Along::Even),
                y: ("tunnels opened, percent".to_owned(), Along::Even),
                curves,
            },
        ],
    })
}

fn row(liars: usize, attack: Attack, all: &Fortune) -> Vec<String> {
    let numbers = [count(all.wishes), all.reached * 100.0, all.median_millis, all.slow_millis];
    let numbers = numbers.map(crate::chart::number);
    [liars.to_string(), attack.name().to_owned()].into_iter().chain(numbers).collect()
}

/// Puts runs of the same kind together: the mean of shares and medians, the worst of the slow.
fn together(runs: &[Fortune]) -> Fortune {
    // Nobody's median counts where nobody got anywhere.
    let mean = |of: fn(&Fortune) -> f64| {
        let values: Vec<_> = runs.iter().map(of).filter(|value| value.is_finite()).collect();
        values.iter().sum::<f64>() / count(values.len()).max(1.0)
    };
    Fortune {
        wishes: runs.iter().map(|run| run.wishes).sum(),
        reached: mean(|run| run.reached),
        median_millis: mean(|run| run.median_millis),
        slow_millis: runs.iter().map(|run| run.slow_millis).fold(0.0, f64::max),
    }
}

/// Lets a town settle, so many super-nodes begin to lie, and everybody start anew and use a printer.
fn measure(attack: Attack, liars: usize, seed: u64) -> Result<Fortune, DraftError> {
    const SETTLED: Duration = Duration::from_secs(1_200);
    const LIED: Duration = Duration::from_secs(1_260);
    let town = Town {
        domains: 1,
        users: 24,
        offices: 4,
        printers: 2,
        servers: 2,
        lent: 0,
        vendor: if attack == Attack::SpreadWithVendor { 3 } else { 0 },
        large: 0,
        start_within: Duration::from_secs(10),
    };
    let mut setup = town.setup(seed);
    let first = setup.hosts.len();
    for n in 0..SUPER_NODES {
        // Those of one attacker share a site, which is one prefix, and a domain.
        let is_shared = attack == Attack::Together && n < liars;
        if n == 0 || !is_shared {
            setup.sites.push(super::town::public_site());
            setup.domains += 1;
        }
        let (domain, site) = (setup.domains - 1, setup.sites.len() - 1);
        setup.hosts.push(HostSetup {
            domain,
            site,
            serves: false,
            lends: true,
            error_millis: 0,
            drift_ppm: 20,
        });
    }
    let mut world = town.found(setup)?;
    // What was true once and is so no more, for those who roll back.
    for device in 0..town.printers {
        world.plan(Duration::from_secs(600), Operation::Register { device });
    }
    for n in 0..liars {
        let manner = if n % 2 == 0 { Manner::Withhold } else { Manner::RollBack };
        world.plan(SETTLED, Operation::Lie { host: first + n, manner });
    }
    // Nobody remembers who told the truth before.
    for host in town.people() {
        world.plan(LIED, Operation::Crash { host, survivors: 8 });
        world.plan(LIED + Duration::from_secs(1), Operation::Start { host });
        let at = LIED + Duration::from_secs(30) + Duration::from_millis(count_millis(host));
        world.plan(at, Operation::Open { host, device: host, script: Script::PROBE });
    }
    world.run_until(Instant::default().after(LIED + Duration::from_secs(180)));
    let began = Instant::default().after(LIED);
    Ok(fortune(&world, (began, world.now()), true))
}

/// People come one after the other.
const fn count_millis(host: usize) -> u64 {
    host as u64 * 200
}

/// The chance that all of so many requests, each to another of the ten, go to liars.
fn calculated(liars: usize, requests: usize) -> f64 {
    (0..requests).map(|asked| count(liars.saturating_sub(asked)) / count(SUPER_NODES - asked)).product()
}

/// How many rounds it takes at most to a super-node that does not lie, with two requests at first and twice as many each time.
fn rounds(liars: usize) -> u32 {
    let (mut asked, mut next, mut rounds) = (0, 2, 0);
    while asked <= liars {
        asked += next;
        next *= 2;
        rounds += 1;
    }
    rounds
}

fn calculated_table() -> Table {
    let mut table = Table::new(
        "Calculated: the chance that nobody who is asked first tells the truth, of 10 super-nodes",
        &["liars of 10", "K = 1 % (figure 25)", "K = 2 %", "K = 3 %", "rounds to the truth at most"],
    );
    for liars in 0..SUPER_NODES {
        let chances = [1, 2, 3].map(|requests| calculated(liars, requests) * 100.0);
        let [one, two, three] = chances;
        table.row(&[count(liars), one, two, three, f64::from(rounds(liars))]);
    }
    table
}

fn calculated_chart() -> Chart {
    let curve = |requests: usize| -> Vec<(f64, f64)> {
        (0..=SUPER_NODES).map(|liars| (count(liars) * 10.0, calculated(liars, requests) * 100.0)).collect()
    };
    Chart {
        file: "malicious-calculated".to_owned(),
        title: "Figure 25 of the thesis and beyond: nobody asked first tells the truth".to_owned(),
        x: ("super-nodes that lie, percent (of 10)".to_owned(), Along::Even),
        y: ("chance, percent".to_owned(), Along::Even),
        curves: vec![
            Curve::new("1 request (K = 1, figure 25)", Style::Measured, curve(1)),
            Curve::new("2 requests at once (K = 2, as Peerage asks)", Style::Measured, curve(2)),
            Curve::new("3 requests at once (K = 3)", Style::Measured, curve(3)),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Appendix A: with fewer liars than requests, one of them is answered truly.
    #[test]
    fn with_fewer_liars_than_requests_the_truth_is_always_found_at_once() {
        for requests in 1..=3 {
            for liars in 0..requests {
                assert_eq!(calculated(liars, requests), 0.0);
            }
            assert!(calculated(requests, requests) > 0.0);
        }
    }

    /// Section 4.3.3: ten super-nodes, one of them truthful, three time-outs.
    #[test]
    fn with_nine_liars_of_ten_the_truth_is_found_in_three_rounds() {
        assert_eq!(rounds(9), 3);
        assert_eq!(rounds(0), 1);
    }
}
