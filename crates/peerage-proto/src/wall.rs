//! What time it is: the computer's clock, corrected by what trustworthy nodes say (Rules 3.11 and 6.1).
//!
//! Clocks at customers' sites run hours off. The offset is learned from an operator, or from
//! [`AGREEING_SUPER_NODES`] super-nodes of different domains; the computer's own clock is never touched.

use std::collections::BTreeMap;
use std::time::Duration;

use peerage_wire::id::{Domain, NodeId};
use peerage_wire::time::{Instant, Now, UnixTime};

/// How many super-nodes of different domains must agree before they are believed.
pub const AGREEING_SUPER_NODES: usize = 3;

/// How close their offsets must be, in milliseconds.
pub const AGREEMENT_MILLIS: u64 = 10_000;

/// Most domains whose opinion is remembered.
const MAX_OPINIONS: usize = 16;

/// How far the two clocks may drift apart between two readings before it counts as a step: a suspend that the
/// monotonic clock slept through, a snapshot that was restored, or a date that was set.
pub const MAX_DRIFT: Duration = Duration::from_secs(1);

/// How long an operator that gave or accepted the time stands by it: a different time of another operator is not taken meanwhile. Shorter,
/// and a node that seldom asks the one goes to and fro between two that disagree; longer, and one that is left with the other
/// alone, because the one has failed, cannot ask it for that long. A node asks for a Head every minute.
pub const OPERATOR_STANDS: Duration = Duration::from_secs(300);

/// The corrected clock.
#[derive(Clone, Debug, Default)]
pub struct WallClock {
    offset_millis: i64,
    learned: bool,
    opinions: BTreeMap<Domain, i64>,
    /// When which operators gave or accepted this time. As many as there are operators, of whom the table has a limit.
    standing: BTreeMap<NodeId, Instant>,
    last: Option<Now>,
}

impl WallClock {
    /// Makes a clock that has learned nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the corrected time.
    pub fn time(&self, now: Now) -> UnixTime {
        now.unix.shifted(self.offset_millis)
    }

    /// Returns whether the offset was learned; before that nothing is published or judged expired.
    pub const fn is_learned(&self) -> bool {
        self.learned
    }

    /// Returns the offset in milliseconds that is added to the computer's clock.
    pub const fn offset_millis(&self) -> i64 {
        self.offset_millis
    }

    /// Takes the time of an operator. Returns whether the offset changed by more than a second.
    pub fn learn(&mut self, theirs: UnixTime, now: Now) -> bool {
        let offset = offset(theirs, now);
        let changed = offset.abs_diff(self.offset_millis) > 1_000;
        if changed || !self.learned {
            self.offset_millis = offset;
        }
        self.learned = true;
        self.opinions.clear();
        if changed {
            self.standing.clear();
        }
        changed
    }

    /// Notes that an operator gave or accepted our time as it is.
    pub fn stands(&mut self, operator: NodeId, now: Instant) {
        self.standing.retain(|_, at| now - *at < OPERATOR_STANDS);
        self.standing.insert(operator, now);
    }

    /// Returns the operators that gave or accepted our time within [`OPERATOR_STANDS`].
    pub fn standing(&self, now: Instant) -> impl Iterator<Item = &NodeId> {
        self.standing.iter().filter(move |(_, at)| now - **at < OPERATOR_STANDS).map(|(operator, _)| operator)
    }

    /// Notes that a trustworthy node accepted our time as it is.
    pub const fn confirm(&mut self) {
        self.learned = true;
    }

    /// Hears the time of a super-node. Returns whether enough domains agree now for it to be believed; it is for the
    /// caller to learn it.
    pub fn hear(&mut self, domain: Domain, theirs: UnixTime, now: Now) -> bool {
        let heard = offset(theirs, now);
        if self.opinions.len() < MAX_OPINIONS || self.opinions.contains_key(&domain) {
            self.opinions.insert(domain, heard);
        }
        let close = |other: &&i64| other.abs_diff(heard) <= AGREEMENT_MILLIS;
        self.opinions.values().filter(close).count() >= AGREEING_SUPER_NODES
    }

    /// Notes that a super-node accepted our time as it is. Returns whether enough domains have for it to be believed.
    pub fn agree(&mut self, domain: Domain) -> bool {
        let here = self.offset_millis;
        if self.opinions.len() < MAX_OPINIONS || self.opinions.contains_key(&domain) {
            self.opinions.insert(domain, here);
        }
        let close = |other: &&i64| other.abs_diff(here) <= AGREEMENT_MILLIS;
        self.opinions.values().filter(close).count() >= AGREEING_SUPER_NODES
    }

    /// Compares both clocks with the last reading. Returns whether one of them stepped; what was learned is then
    /// in doubt, and is learned again.
    pub fn observe(&mut self, now: Now) -> bool {
        let stepped = self.last.is_some_and(|last| {
            let expected = last.unix.after(now.mono - last.mono);
            expected.distance(now.unix) > MAX_DRIFT
        });
        self.last = Some(now);
        if stepped {
            self.learned = false;
            self.opinions.clear();
            self.standing.clear();
        }
        stepped
    }
}

fn offset(theirs: UnixTime, now: Now) -> i64 {
    let difference = i128::from(theirs.as_millis()) - i128::from(now.unix.as_millis());
    i64::try_from(difference).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(mono_secs: u64, unix_secs: u64) -> Now {
        Now { mono: Instant::from_micros(mono_secs * 1_000_000), unix: UnixTime::from_secs(unix_secs) }
    }

    /// Rule 3.11: an operator alone is believed.
    #[test]
    fn an_operator_corrects_a_clock_that_is_hours_off() {
        let mut clock = WallClock::new();
        assert!(!clock.is_learned());
        assert!(clock.learn(UnixTime::from_secs(20_000), at(1, 9_200)));
        assert_eq!(clock.time(at(11, 9_210)), UnixTime::from_secs(20_010));
        assert!(clock.is_learned());
        assert!(!clock.learn(UnixTime::from_secs(20_010), at(11, 9_210)));
    }

    /// Rule 3.11: one domain can say what it likes, however many super-nodes it has.
    #[test]
    fn super_nodes_are_believed_when_three_domains_agree() {
        let mut clock = WallClock::new();
        let now = at(1, 1_000);
        for _ in 0..9 {
            assert!(!clock.hear(Domain(1), UnixTime::from_secs(5_000), now));
        }
        assert!(!clock.hear(Domain(2), UnixTime::from_secs(9_000), now));
        assert!(!clock.hear(Domain(3), UnixTime::from_secs(9_005), now));
        assert!(!clock.is_learned());
        assert!(clock.hear(Domain(4), UnixTime::from_secs(9_001), now));
    }

    /// Rule 6.1: who answers has accepted the time of the request; of super-nodes three domains have to.
    #[test]
    fn three_domains_that_accept_the_time_confirm_it() {
        let mut clock = WallClock::new();
        assert!(!clock.hear(Domain(7), UnixTime::from_secs(90_000), at(1, 1_000)));
        assert!(!clock.agree(Domain(1)));
        assert!(!clock.agree(Domain(1)));
        assert!(!clock.agree(Domain(2)));
        assert!(clock.agree(Domain(3)));
    }

    #[test]
    fn a_step_of_either_clock_is_noticed_and_slow_drift_is_not() {
        let mut clock = WallClock::new();
        clock.confirm();
        assert!(!clock.observe(at(1, 1_000)));
        assert!(!clock.observe(at(61, 1_061)));
        assert!(clock.is_learned());
        assert!(clock.observe(at(62, 4_662)));
        assert!(!clock.is_learned());
        assert!(clock.observe(at(63, 1_000)));
    }
}
