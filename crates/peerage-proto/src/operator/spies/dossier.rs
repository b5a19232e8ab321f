//! What is known against a super-node, and when that is enough (Rule 6.61).
//!
//! An honest super-node must never be convicted. What it does wrong by accident (a lost datagram, a change that has not reached it, a
//! start) passes; so one observation proves nothing, and each kind of fault has its own number.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::time::Duration;

use peerage_wire::id::NodeId;
use peerage_wire::time::{Instant, UnixTime};

/// How long an observation counts. Longer finds who lies more seldom; shorter forgets what happened to an honest one sooner.
const WINDOW: Duration = Duration::from_secs(24 * 3_600);

/// Most visits to one super-node that are remembered; at a visit each quarter of an hour a day has 96.
const MAX_VISITS: usize = 256;

/// Most evidence that is kept of one super-node, some 200 bytes each, the newest.
const MAX_EVIDENCE: usize = 8;

/// In how many visits a record must have been forged. A seal says who has sent it, and whoever keeps records verifies them first: no
/// path, start or delay makes a forgery. One could still be a broken disk or memory.
const FORGERIES: usize = 2;

/// In how many of the last visits something must have been out of date or withheld. An honest one may fail now and then while it cannot
/// reach an operator, but not as a rule: where 40 % of all datagrams are lost one visit in 14 finds an old Head. More finds liars
/// later; fewer convicts by bad luck.
const LIES: usize = 5;

/// How many are the last visits. With more, who was honest for long lies for long before it is found out; with fewer, who lies now and
/// then is not.
const LAST_VISITS: usize = 8;

/// How often in a row one kind of question must have stayed without an answer, each time asked six times while others answered. Where
/// half of all datagrams are lost that happens in one of 4,000 attempts; then calling back fails long before.
const SILENCES: u32 = 5;

/// What a super-node was seen to do that an honest one does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// It handed out a record that nobody signed who may.
    Forged,
    /// It handed out a Head that is far too old, or none.
    OldHead,
    /// It handed out a record of which there has long been a newer one.
    Stale,
    /// It said that there is nothing, where there has long been something.
    Withheld,
    /// It did not answer, although it was present and answered the operator.
    Silent,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forged => "forged",
            Self::OldHead => "old Head",
            Self::Stale => "stale",
            Self::Withheld => "withheld",
            Self::Silent => "silent",
        })
    }
}

/// One observation of a spy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// When.
    pub at: UnixTime,
    /// What kind of fault.
    pub fault: Fault,
    /// Who has seen it.
    pub spy: NodeId,
    /// What was asked, and what is wrong with the answer.
    pub about: String,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (asked by {})", self.fault, self.about, self.spy)
    }
}

/// What one visit has found about one super-node.
#[derive(Clone, Debug, Default)]
pub(super) struct Finding {
    /// The kinds of questions that were answered, rightly or not.
    pub(super) answered: BTreeSet<&'static str>,
    /// Those that were not, though they should have been.
    pub(super) unanswered: BTreeSet<&'static str>,
    pub(super) evidence: Vec<Evidence>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    Lied,
    Forged,
}

/// All that spies have found about one super-node since the operator started.
#[derive(Clone, Debug, Default)]
pub(super) struct Dossier {
    visits: VecDeque<(Instant, Verdict)>,
    /// How often in a row each kind of question was not answered.
    silences: BTreeMap<&'static str, u32>,
    evidence: VecDeque<Evidence>,
}

impl Dossier {
    /// Adds what a visit has found. Returns whether that is enough now.
    pub(super) fn note(&mut self, finding: Finding, now: Instant) -> bool {
        let forged = finding.evidence.iter().any(|evidence| evidence.fault == Fault::Forged);
        let lied = finding.evidence.iter().any(|evidence| evidence.fault != Fault::Silent);
        let verdict = match (forged, lied) {
            (true, _) => Verdict::Forged,
            (false, true) => Verdict::Lied,
            (false, false) => Verdict::Good,
        };
        self.visits.retain(|(at, _)| now - *at <= WINDOW);
        if self.visits.len() >= MAX_VISITS {
            self.visits.pop_front();
        }
        self.visits.push_back((now, verdict));
        self.silences.retain(|kind, _| !finding.answered.contains(kind));
        for kind in finding.unanswered {
            *self.silences.entry(kind).or_default() += 1;
        }
        self.evidence.extend(finding.evidence);
        let surplus = self.evidence.len().saturating_sub(MAX_EVIDENCE);
        self.evidence.drain(..surplus);
        self.is_enough()
    }

    fn is_enough(&self) -> bool {
        let verdicts = || self.visits.iter().rev().map(|(_, verdict)| *verdict);
        let forgeries = verdicts().filter(|verdict| *verdict == Verdict::Forged).count();
        let lies = verdicts().take(LAST_VISITS).filter(|verdict| *verdict != Verdict::Good).count();
        forgeries >= FORGERIES || lies >= LIES || self.silences.values().any(|silences| *silences >= SILENCES)
    }

    /// Returns how often it was visited in the last day, as far as is remembered.
    pub(super) fn visits(&self) -> usize {
        self.visits.len()
    }

    /// Returns what was seen, oldest first.
    pub(super) fn evidence(&self) -> Vec<Evidence> {
        self.evidence.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use peerage_wire::id::Domain;

    use super::*;

    const QUARTER: Duration = Duration::from_secs(900);

    fn spy() -> NodeId {
        NodeId { domain: Domain(1), hash: [1; 32] }
    }

    fn caught(fault: Fault) -> Finding {
        let evidence = Evidence { at: UnixTime::from_secs(1), fault, spy: spy(), about: "test".to_owned() };
        Finding { evidence: vec![evidence], ..good() }
    }

    fn good() -> Finding {
        Finding { answered: ["Ping", "GetHead"].into(), ..Finding::default() }
    }

    fn silent() -> Finding {
        Finding { unanswered: ["GetHead"].into(), answered: ["Ping"].into(), evidence: Vec::new() }
    }

    /// Feeds findings, one each quarter of an hour. Returns after how many it was enough.
    fn enough_after(findings: impl IntoIterator<Item = Finding>) -> Option<usize> {
        let (mut dossier, mut now) = (Dossier::default(), Instant::from_micros(0));
        let mut enough = findings.into_iter().map(|finding| {
            now = now.after(QUARTER);
            dossier.note(finding, now)
        });
        enough.position(|is_enough| is_enough).map(|n| n + 1)
    }

    /// Rule 6.61: two forgeries, five lies, five silences in a row.
    #[test]
    fn each_kind_of_fault_has_its_number() {
        let always = |finding: Finding| enough_after(std::iter::repeat_n(finding, 10));
        assert_eq!(always(good()), None);
        assert_eq!(always(caught(Fault::Forged)), Some(2));
        for fault in [Fault::OldHead, Fault::Stale, Fault::Withheld] {
            assert_eq!(always(caught(fault)), Some(5), "{fault}");
        }
        assert_eq!(always(silent()), Some(5));
    }

    /// Rule 6.61: bad luck now and then convicts nobody, and it is forgotten after a day.
    #[test]
    fn who_fails_now_and_then_is_not_convicted() {
        let one_in = |n: usize, bad: fn() -> Finding| {
            enough_after((0..1_000).map(|visit| if visit % n == n - 1 { bad() } else { good() }))
        };
        assert_eq!(one_in(2, || caught(Fault::OldHead)), None);
        assert_eq!(one_in(2, silent), None);
        assert_eq!(one_in(100, || caught(Fault::Forged)), None, "one a day is a broken disk");
        assert_eq!(one_in(50, || caught(Fault::Forged)), Some(100));
    }

    /// Rule 6.61: silence about one kind of question counts, whatever else is answered meanwhile.
    #[test]
    fn silence_is_counted_by_the_kind_of_question() {
        let about = |kind: &'static str| Finding { unanswered: [kind].into(), ..good() };
        let turns = (0..20).map(|n| about(if n % 2 == 0 { "GetNode" } else { "GetDevices" }));
        assert_eq!(enough_after(turns), Some(9));
    }

    /// Rule 6.61: however long it was honest before.
    #[test]
    fn who_begins_to_lie_is_found_out_soon() {
        let honest = std::iter::repeat_n(good(), 90);
        assert_eq!(enough_after(honest.chain(std::iter::repeat_n(caught(Fault::Withheld), 9))), Some(95));
    }

    #[test]
    fn evidence_and_visits_are_limited() {
        let (mut dossier, mut now) = (Dossier::default(), Instant::from_micros(0));
        for _ in 0..2 * MAX_VISITS {
            now = now.after(Duration::from_secs(1));
            dossier.note(caught(Fault::Stale), now);
        }
        assert_eq!((dossier.visits(), dossier.evidence().len()), (MAX_VISITS, MAX_EVIDENCE));
    }
}
