//! Sessions and links by themselves: two or three computers, connections that are cut at any byte, and no network around.
//!
//! What takes a whole network an hour takes a few milliseconds here, so that ten thousand sessions are a matter of seconds. The shells,
//! links, sessions and applications are those of the large simulation. A [`Life`] is drawn from a seed: tunnels, and what happens
//! to their connections. In some lives a third computer lies: see [`tamper`].

pub mod life;
pub mod tamper;
pub mod town;

use peerage_wire::time::Instant;

pub use self::life::{Bug, Life, Step};
pub use self::town::{Report, run};

use crate::invariants::Violation;

/// What many lives came to.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// How many lives.
    pub lives: u64,
    /// Sessions that were begun.
    pub sessions: u64,
    /// Sessions between honest computers of which every byte arrived in both directions.
    pub complete: u64,
    /// Bytes that applications read.
    pub bytes: u64,
    /// Connections that were cut, reset, stalled or lost without a word.
    pub cuts: u64,
    /// Times that a session went on on another connection.
    pub moves: u64,
    /// Frames that a liar altered, left out or made up.
    pub lies: u64,
    /// The failures, with their seeds.
    pub violations: Vec<(u64, Violation)>,
}

impl Tally {
    fn add(&mut self, seed: u64, report: Report) {
        self.lives += 1;
        self.sessions += report.sessions;
        self.complete += report.complete;
        self.bytes += report.bytes;
        self.cuts += report.cuts;
        self.moves += report.moves;
        self.lies += report.lies;
        self.violations.extend(report.violation.map(|violation| (seed, violation)));
    }
}

/// Runs lives, seed after seed from `first` on, until there were so many sessions, or until an invariant is broken.
pub fn swarm(first: u64, sessions: u64, goes_on: bool) -> Tally {
    let mut tally = Tally::default();
    let mut seed = first;
    while tally.sessions < sessions && (goes_on || tally.violations.is_empty()) {
        tally.add(seed, run(&Life::draw(seed)));
        seed = seed.wrapping_add(1);
    }
    tally
}

/// Returns the shortest list of steps found that still breaks the invariant.
pub fn shrink(life: &Life, invariant: &str) -> Life {
    let steps = crate::shrink::shrink_list(life.steps.clone(), |steps| {
        let report = run(&Life { steps: steps.to_vec(), ..life.clone() });
        report.violation.is_some_and(|violation| violation.invariant == invariant)
    });
    Life { steps, ..life.clone() }
}

const fn start() -> Instant {
    Instant::from_micros(1_000_000)
}
