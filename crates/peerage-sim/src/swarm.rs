//! Many runs, each with a configuration of its own, for a given time.

use std::time::Duration;

use peerage_wire::record::DraftError;

use crate::invariants::Violation;
use crate::plan::Plan;
use crate::run::{Report, run};

/// What a swarm came to.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// How many runs.
    pub runs: u64,
    /// The failures, with their seeds.
    pub violations: Vec<(u64, Violation)>,
    /// The most computers in one run.
    pub nodes_max: usize,
    /// Time in all worlds together.
    pub virtual_time: Duration,
    /// Tunnels that were complete.
    pub complete: usize,
    /// Events in all.
    pub events: u64,
}

impl Tally {
    fn add(&mut self, seed: u64, report: Report) {
        self.runs += 1;
        self.nodes_max = self.nodes_max.max(report.nodes);
        self.virtual_time += report.virtual_time;
        self.complete += report.complete;
        self.events += report.events;
        self.violations.extend(report.violation.map(|violation| (seed, violation)));
    }
}

/// Runs one seed after the other, from `first` on, while `goes_on` says so.
///
/// # Errors
/// If a record of a setup would be too long.
pub fn swarm(
    first: u64,
    real_crypto: bool,
    mut goes_on: impl FnMut(&Tally) -> bool,
) -> Result<Tally, DraftError> {
    let mut tally = Tally::default();
    let mut seed = first;
    while goes_on(&tally) {
        let mut plan = Plan::draw(seed);
        plan.setup.real_crypto = real_crypto;
        let report = run(&plan)?;
        tally.add(seed, report);
        seed = seed.wrapping_add(1);
    }
    Ok(tally)
}
