//! One look-up: whom to ask, when to ask more, when it is done (Rule 6.4).
//!
//! A pure plan. It does not send, read or verify anything: it is told what came of each question.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use peerage_wire::id::NodeId;
use peerage_wire::time::Instant;

use crate::endpoint::RequestId;

/// How many are asked at first. One more costs half as much traffic again; one less would believe whoever answers.
pub const REDUNDANCY: usize = 2;

/// How long the second answer may take after the first.
pub const SECOND_ANSWER_TIMEOUT: Duration = Duration::from_millis(100);

/// Somebody who can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// Who.
    pub node: NodeId,
    /// Where.
    pub address: SocketAddr,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask this one, and tell [`Lookup::asked`].
    Ask(Server),
    /// Wait for an answer, or until then.
    Wait(Option<Instant>),
    /// It is over.
    Done,
}

/// What a look-up came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Somebody had what was looked for.
    Found,
    /// Some answered, but none had it.
    NotFound,
    /// Nobody answered.
    Silence,
}

/// The plan of one look-up.
#[derive(Clone, Debug)]
pub(super) struct Lookup {
    servers: Vec<Server>,
    next: usize,
    /// How many of the list may have been asked so far: 2, then 2 + 4, then all of 2 + 4 + 8 …
    allowed: usize,
    step: usize,
    open: BTreeMap<RequestId, Server>,
    usable: usize,
    empty: usize,
    first_usable_at: Option<Instant>,
}

impl Lookup {
    /// Makes a plan for a list that was shuffled by the caller.
    pub(super) const fn new(servers: Vec<Server>) -> Self {
        Self {
            servers,
            next: 0,
            allowed: REDUNDANCY,
            step: REDUNDANCY,
            open: BTreeMap::new(),
            usable: 0,
            empty: 0,
            first_usable_at: None,
        }
    }

    /// Returns what to do next; to be called until it is no longer [`Step::Ask`].
    pub(super) fn poll(&mut self, now: Instant) -> Step {
        if let Some(first) = self.first_usable_at {
            let deadline = first.after(SECOND_ANSWER_TIMEOUT);
            let enough = self.usable >= REDUNDANCY || self.open.is_empty();
            return if enough || deadline <= now { Step::Done } else { Step::Wait(Some(deadline)) };
        }
        if self.open.is_empty() && self.next >= self.allowed {
            self.step = self.step.saturating_mul(2);
            self.allowed = self.allowed.saturating_add(self.step);
        }
        match self.servers.get(self.next) {
            Some(server) if self.next < self.allowed => Step::Ask(*server),
            Some(_) => Step::Wait(None),
            None if self.open.is_empty() => Step::Done,
            None => Step::Wait(None),
        }
    }

    /// Returns until when the second answer is waited for.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.first_usable_at.map(|first| first.after(SECOND_ANSWER_TIMEOUT))
    }

    /// The server of the last [`Step::Ask`] was asked.
    pub(super) fn asked(&mut self, request: RequestId) {
        if let Some(server) = self.servers.get(self.next) {
            self.open.insert(request, *server);
            self.next = self.next.saturating_add(1);
        }
    }

    /// The same server is asked for the next page.
    pub(super) fn asked_more(&mut self, before: RequestId, request: RequestId) {
        if let Some(server) = self.open.remove(&before) {
            self.open.insert(request, server);
        }
    }

    /// Returns whom a request went to.
    pub(super) fn server_of(&self, request: RequestId) -> Option<Server> {
        self.open.get(&request).copied()
    }

    /// A server has answered all it has; `usable` if that can be believed and is what was looked for.
    pub(super) fn answered(&mut self, request: RequestId, usable: bool, now: Instant) {
        if self.open.remove(&request).is_none() {
            return;
        }
        if usable {
            self.usable = self.usable.saturating_add(1);
            self.first_usable_at.get_or_insert(now);
        } else {
            self.empty = self.empty.saturating_add(1);
        }
    }

    /// A server has not answered in time.
    pub(super) fn failed(&mut self, request: RequestId) {
        self.open.remove(&request);
    }

    /// Returns what it came to, once [`Step::Done`] was reached.
    pub(super) const fn verdict(&self) -> Verdict {
        match (self.usable, self.empty) {
            (0, 0) => Verdict::Silence,
            (0, _) => Verdict::NotFound,
            _ => Verdict::Found,
        }
    }
}

#[cfg(test)]
mod tests {
    use peerage_wire::id::Domain;

    use super::*;

    fn servers(n: u16) -> Vec<Server> {
        let one = |n| Server {
            node: NodeId { domain: Domain(0), hash: [u8::try_from(n).unwrap(); 32] },
            address: SocketAddr::from(([192, 0, 2, 1], n)),
        };
        (1..=n).map(one).collect()
    }

    struct Run {
        lookup: Lookup,
        now: Instant,
        asked: u64,
    }

    impl Run {
        fn new(n: u16) -> Self {
            Self { lookup: Lookup::new(servers(n)), now: Instant::default(), asked: 0 }
        }

        /// Asks as long as the plan says so and returns how many were asked.
        fn ask(&mut self) -> u64 {
            let before = self.asked;
            while let Step::Ask(_) = self.lookup.poll(self.now) {
                self.asked += 1;
                self.lookup.asked(RequestId(self.asked));
            }
            self.asked - before
        }

        fn fail_all(&mut self, ids: std::ops::RangeInclusive<u64>) {
            ids.for_each(|id| self.lookup.failed(RequestId(id)));
        }
    }

    /// Rule 6.4, and the example of Ynddal 2016, section 4.3.3: of ten servers nine are silent, and the truth is
    /// found in three rounds of 2, 4 and 4 requests.
    #[test]
    fn nine_silent_servers_of_ten_cost_three_rounds() {
        let mut run = Run::new(10);
        assert_eq!(run.ask(), 2);
        run.fail_all(1..=2);
        assert_eq!(run.ask(), 4);
        run.fail_all(3..=6);
        assert_eq!(run.ask(), 4);
        run.fail_all(7..=9);
        run.lookup.answered(RequestId(10), true, run.now);
        assert_eq!(run.lookup.poll(run.now), Step::Done);
        assert_eq!(run.lookup.verdict(), Verdict::Found);
    }

    /// Rule 6.4: the second answer is waited for, but not for long.
    #[test]
    fn the_second_answer_has_a_tenth_of_a_second() {
        let mut run = Run::new(4);
        assert_eq!(run.ask(), 2);
        run.lookup.answered(RequestId(1), true, run.now);
        let deadline = run.now.after(SECOND_ANSWER_TIMEOUT);
        assert_eq!(run.lookup.poll(run.now), Step::Wait(Some(deadline)));
        assert_eq!(run.lookup.poll(deadline), Step::Done);
        run.lookup.answered(RequestId(2), true, run.now);
        assert_eq!(run.lookup.poll(run.now), Step::Done);
    }

    #[test]
    fn a_server_that_has_nothing_is_not_the_last_word() {
        let mut run = Run::new(3);
        run.ask();
        run.lookup.answered(RequestId(1), false, run.now);
        assert_eq!(run.ask(), 0, "the second of the round is still open");
        run.lookup.answered(RequestId(2), false, run.now);
        assert_eq!(run.ask(), 1);
        run.lookup.answered(RequestId(3), false, run.now);
        assert_eq!(run.lookup.poll(run.now), Step::Done);
        assert_eq!(run.lookup.verdict(), Verdict::NotFound);
    }

    #[test]
    fn silence_is_told_from_absence() {
        let mut run = Run::new(1);
        run.ask();
        run.fail_all(1..=1);
        assert_eq!(run.lookup.poll(run.now), Step::Done);
        assert_eq!(run.lookup.verdict(), Verdict::Silence);
        assert_eq!(Lookup::new(Vec::new()).poll(Instant::default()), Step::Done);
    }
}
