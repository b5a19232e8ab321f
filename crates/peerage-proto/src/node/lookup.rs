//! One look-up: whom to ask, when to ask more, when it is done (Rule 6.4).
//!
//! A pure plan. It does not send, read or verify anything: it is told what came of each question, and whether what was
//! found holds.

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

/// How long an eager look-up waits for those it has asked before it asks more, unless they are known to be farther away; a
/// patient one waits until their requests have failed. Shorter would ask twice as many as needed wherever a round trip takes
/// a quarter of a second; longer makes people wait for dead super-nodes.
pub const EAGER_INTERVAL: Duration = Duration::from_millis(250);

/// How long it waits at most for those that are far away.
const MAX_EAGER_INTERVAL: Duration = Duration::from_secs(1);

/// How long an eager look-up that was answered by some, but not with what it looks for, waits for the others once it has asked
/// everybody: until a request that was lost has been sent again (Rule 6.2), and then as long as for the first. Shorter believes
/// nine liars when the request to the tenth is lost; longer makes people wait for the dead whenever there is nothing to be found.
const LAST_ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

/// Most servers of one list: rounds of 2, 4 and 8. A longer list would let a domain that is cut over hundreds of super-nodes,
/// all of which are gone, be asked about for minutes.
pub(super) const MAX_LISTED: usize = REDUNDANCY * 7;

/// Somebody who can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// Who.
    pub node: NodeId,
    /// Where.
    pub address: SocketAddr,
}

/// Returns how long a look-up waits, if it is eager, for servers whose round trips are known, or not.
pub(super) fn patience(round_trips: impl Iterator<Item = Duration>) -> Duration {
    let longest = round_trips.max().unwrap_or_default();
    longest.saturating_mul(2).clamp(EAGER_INTERVAL, MAX_EAGER_INTERVAL)
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask this one, and tell [`Lookup::asked`].
    Ask(Server),
    /// Wait for an answer, or until then.
    Wait(Option<Instant>),
    /// Everybody was asked and nothing was found: call [`Lookup::extend`] or [`Lookup::give_up`].
    Exhausted,
    /// It is over, or what was found is to be judged.
    Done,
}

/// What a look-up came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    /// Nobody answered.
    Silence,
    /// Some answered, but none had it.
    NotFound,
    /// Somebody had what was looked for.
    Found,
}

/// The plan of one look-up.
#[derive(Clone, Debug)]
pub(super) struct Lookup {
    servers: Vec<Server>,
    next: usize,
    /// How many of the list may have been asked so far: 2, then 2 + 4, then all of 2 + 4 + 8 …
    allowed: usize,
    step_size: usize,
    /// How long a step may take before the next begins although answers are missing; `None` until they have failed.
    patience: Option<Duration>,
    /// When the last step began.
    stepped_at: Option<Instant>,
    /// Who has not answered yet, and when it was first asked.
    open: BTreeMap<RequestId, (Server, Instant)>,
    usable: usize,
    useless: usize,
    first_usable_at: Option<Instant>,
    is_at_end: bool,
    /// Whether the last step was [`Step::Done`].
    is_done: bool,
}

impl Lookup {
    /// Makes a plan for a list that was shuffled by the caller. With `patience` it is eager: it waits no longer than that for
    /// those whom it has asked, and not until requests have failed.
    pub(super) fn new(mut servers: Vec<Server>, patience: Option<Duration>) -> Self {
        servers.truncate(MAX_LISTED);
        Self {
            servers,
            next: 0,
            allowed: REDUNDANCY,
            step_size: REDUNDANCY,
            patience,
            stepped_at: None,
            open: BTreeMap::new(),
            usable: 0,
            useless: 0,
            first_usable_at: None,
            is_at_end: false,
            is_done: false,
        }
    }

    /// Returns what to do next; to be called until it is neither [`Step::Ask`] nor [`Step::Exhausted`].
    pub(super) fn poll(&mut self, now: Instant) -> Step {
        let step = self.step(now);
        self.is_done = step == Step::Done;
        step
    }

    fn step(&mut self, now: Instant) -> Step {
        if let Some(first) = self.first_usable_at {
            let deadline = first.after(SECOND_ANSWER_TIMEOUT);
            let enough = self.usable >= REDUNDANCY || self.open.is_empty();
            return if enough || deadline <= now { Step::Done } else { Step::Wait(Some(deadline)) };
        }
        let began = *self.stepped_at.get_or_insert(now);
        let is_over =
            self.open.is_empty() || self.patience.is_some_and(|patience| began.after(patience) <= now);
        if is_over && self.next >= self.allowed && self.next < self.servers.len() {
            self.step_size = self.step_size.saturating_mul(2);
            self.allowed = self.allowed.saturating_add(self.step_size);
            self.stepped_at = Some(now);
        }
        match self.servers.get(self.next) {
            Some(server) if self.next < self.allowed => Step::Ask(*server),
            Some(_) => Step::Wait(self.deadline()),
            None if self.is_at_end && self.has_waited(now) => Step::Done,
            None if self.is_at_end || !is_over => Step::Wait(self.deadline()),
            None => Step::Exhausted,
        }
    }

    /// Returns when [`poll`](Self::poll) says something else although nothing has happened.
    pub(super) fn deadline(&self) -> Option<Instant> {
        if self.is_done {
            return None;
        }
        if let Some(first) = self.first_usable_at {
            return Some(first.after(SECOND_ANSWER_TIMEOUT));
        }
        let began = self.stepped_at.filter(|_| !self.open.is_empty())?;
        if self.is_at_end {
            return self.last_wait().map(|timeout| began.after(timeout));
        }
        self.patience.map(|patience| began.after(patience))
    }

    /// Returns how long after the last step those are waited for who have not answered; `None` until they have failed.
    fn last_wait(&self) -> Option<Duration> {
        let patience = self.patience.filter(|_| self.useless > 0)?;
        Some(patience.saturating_add(LAST_ANSWER_TIMEOUT))
    }

    fn has_waited(&self, now: Instant) -> bool {
        let until = self.stepped_at.zip(self.last_wait()).map(|(at, timeout)| at.after(timeout));
        self.open.is_empty() || until.is_some_and(|until| until <= now)
    }

    /// Returns those of an eager look-up who have not answered for so long that others were asked.
    pub(super) fn late(&self, now: Instant) -> impl Iterator<Item = NodeId> + '_ {
        let is_late = move |at: &Instant| self.patience.is_some_and(|patience| at.after(patience) <= now);
        self.open.values().filter(move |(_, at)| is_late(at)).map(|(server, _)| server.node)
    }

    /// Goes on with those of another list who were not asked yet, from [`REDUNDANCY`] on again.
    pub(super) fn extend(&mut self, servers: impl IntoIterator<Item = Server>) {
        for server in servers {
            let is_known = self.servers.iter().any(|known| known.node == server.node);
            if !is_known && self.servers.len() < 2 * MAX_LISTED {
                self.servers.push(server);
            }
        }
        self.step_size = REDUNDANCY;
        self.allowed = self.next.saturating_add(REDUNDANCY);
        self.stepped_at = None;
    }

    /// Returns whether any of these is not on the list.
    pub(super) fn lacks_any(&self, servers: &[Server]) -> bool {
        servers.iter().any(|server| self.servers.iter().all(|known| known.node != server.node))
    }

    /// Asks nobody else: what is still open is waited for.
    pub(super) const fn give_up(&mut self) {
        self.is_at_end = true;
    }

    /// What was found until now does not hold, so others are asked.
    pub(super) const fn reject(&mut self) {
        self.useless = self.useless.saturating_add(self.usable);
        self.usable = 0;
        self.first_usable_at = None;
    }

    /// The server of the last [`Step::Ask`] was asked.
    pub(super) fn asked(&mut self, request: RequestId, now: Instant) {
        if let Some(server) = self.servers.get(self.next) {
            self.open.insert(request, (*server, now));
            self.next = self.next.saturating_add(1);
        }
    }

    /// The same server is asked for the next page.
    pub(super) fn asked_more(&mut self, before: RequestId, request: RequestId, now: Instant) {
        if let Some((server, _)) = self.open.remove(&before) {
            self.open.insert(request, (server, now));
        }
    }

    /// Returns whom a request went to.
    pub(super) fn server_of(&self, request: RequestId) -> Option<Server> {
        self.open.get(&request).map(|(server, _)| *server)
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
            self.useless = self.useless.saturating_add(1);
        }
    }

    /// A server has not answered in time.
    pub(super) fn failed(&mut self, request: RequestId) {
        self.open.remove(&request);
    }

    /// Returns what it came to, once [`Step::Done`] was reached.
    pub(super) const fn verdict(&self) -> Verdict {
        match (self.usable, self.useless) {
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
            Self { lookup: Lookup::new(servers(n), None), now: Instant::default(), asked: 0 }
        }

        fn eager(n: u16) -> Self {
            Self { lookup: Lookup::new(servers(n), Some(EAGER_INTERVAL)), ..Self::new(0) }
        }

        /// Asks as long as the plan says so and returns how many were asked.
        fn ask(&mut self) -> u64 {
            let before = self.asked;
            while let Step::Ask(_) = self.lookup.poll(self.now) {
                self.asked += 1;
                self.lookup.asked(RequestId(self.asked), self.now);
            }
            self.asked - before
        }

        fn fail_all(&mut self, ids: std::ops::RangeInclusive<u64>) {
            ids.for_each(|id| self.lookup.failed(RequestId(id)));
        }

        fn answer(&mut self, id: u64, usable: bool) {
            self.lookup.answered(RequestId(id), usable, self.now);
        }

        fn poll(&mut self) -> Step {
            self.lookup.poll(self.now)
        }

        /// Ends a look-up that has asked everybody.
        fn give_up(&mut self) {
            assert_eq!(self.poll(), Step::Exhausted);
            self.lookup.give_up();
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
        run.answer(10, true);
        assert_eq!(run.poll(), Step::Done);
        assert_eq!(run.lookup.verdict(), Verdict::Found);
    }

    /// Rule 6.4: an eager look-up begins each step after a quarter of a second, whatever is still open.
    #[test]
    fn an_eager_look_up_does_not_wait_for_the_dead() {
        let mut run = Run::eager(10);
        for round in [2, 4, 4] {
            assert_eq!(run.ask(), round);
            assert_eq!(run.poll(), Step::Wait(Some(run.now.after(EAGER_INTERVAL))));
            run.now = run.now.after(EAGER_INTERVAL);
        }
        assert_eq!(run.poll(), Step::Exhausted);
        run.lookup.give_up();
        assert_eq!(run.poll(), Step::Wait(None));
        run.answer(3, true);
        run.now = run.now.after(SECOND_ANSWER_TIMEOUT);
        assert_eq!(run.poll(), Step::Done);
    }

    /// Rule 6.4: nothing is to be found, and one of those who could say so is dead.
    #[test]
    fn an_eager_look_up_does_not_wait_for_the_dead_when_the_others_have_nothing() {
        let mut run = Run::eager(3);
        assert_eq!(run.ask(), 2);
        run.answer(1, false);
        run.now = run.now.after(EAGER_INTERVAL);
        assert_eq!(run.ask(), 1);
        let last_step = run.now;
        assert_eq!(run.lookup.late(run.now).collect::<Vec<_>>(), [servers(2)[1].node]);
        run.answer(3, false);
        run.now = run.now.after(EAGER_INTERVAL);
        run.give_up();
        let end = last_step.after(EAGER_INTERVAL + LAST_ANSWER_TIMEOUT);
        assert_eq!(run.poll(), Step::Wait(Some(end)));
        run.now = end;
        assert_eq!(run.poll(), Step::Done);
        assert_eq!(run.lookup.verdict(), Verdict::NotFound);
    }

    /// Rule 6.4: silence is no answer, so that nobody is waited for less long.
    #[test]
    fn an_eager_look_up_that_nobody_answers_lasts_until_all_have_failed() {
        let mut run = Run::eager(2);
        assert_eq!(run.ask(), 2);
        run.now = run.now.after(EAGER_INTERVAL);
        run.give_up();
        run.now = run.now.after(10 * LAST_ANSWER_TIMEOUT);
        assert_eq!((run.poll(), run.lookup.deadline()), (Step::Wait(None), None));
        run.fail_all(1..=2);
        assert_eq!(run.poll(), Step::Done);
        assert_eq!(run.lookup.verdict(), Verdict::Silence);
    }

    /// Rule 6.4: on the far side of a satellite nobody is asked twice for being far away.
    #[test]
    fn an_eager_look_up_waits_longer_for_those_who_are_far_away() {
        let ms = Duration::from_millis;
        assert_eq!(patience([].into_iter()), EAGER_INTERVAL);
        assert_eq!(patience([ms(20), ms(40)].into_iter()), EAGER_INTERVAL);
        assert_eq!(patience([ms(40), ms(300)].into_iter()), ms(600));
        assert_eq!(patience([ms(3_000)].into_iter()), ms(1_000));
    }

    /// Rule 6.4: the second answer is waited for, but not for long.
    #[test]
    fn the_second_answer_has_a_tenth_of_a_second() {
        let mut run = Run::new(4);
        assert_eq!(run.ask(), 2);
        run.answer(1, true);
        let deadline = run.now.after(SECOND_ANSWER_TIMEOUT);
        assert_eq!(run.poll(), Step::Wait(Some(deadline)));
        assert_eq!(run.lookup.poll(deadline), Step::Done);
        run.answer(2, true);
        assert_eq!(run.poll(), Step::Done);
    }

    #[test]
    fn a_server_that_has_nothing_is_not_the_last_word() {
        let mut run = Run::new(3);
        run.ask();
        run.answer(1, false);
        assert_eq!(run.ask(), 0, "the second of the round is still open");
        run.answer(2, false);
        assert_eq!(run.ask(), 1);
        run.answer(3, false);
        run.give_up();
        assert_eq!(run.poll(), Step::Done);
        assert_eq!(run.lookup.verdict(), Verdict::NotFound);
    }

    /// Rule 6.4: what turns out to be incomplete is no answer, and twice as many are asked.
    #[test]
    fn what_does_not_hold_is_looked_for_elsewhere() {
        let mut run = Run::new(6);
        run.ask();
        run.answer(1, true);
        run.answer(2, true);
        assert_eq!(run.poll(), Step::Done);
        run.lookup.reject();
        assert_eq!(run.ask(), 4);
        (3..=6).for_each(|id| run.answer(id, true));
        assert_eq!(run.poll(), Step::Done);
        run.lookup.reject();
        run.give_up();
        assert_eq!(run.poll(), Step::Done);
        assert_eq!(run.lookup.verdict(), Verdict::NotFound);
    }

    /// Rule 6.4: after the end of the list comes a new one, of whom only those are asked who were not in the first.
    #[test]
    fn a_new_list_is_asked_from_two_on() {
        let mut run = Run::new(2);
        run.ask();
        run.fail_all(1..=2);
        assert_eq!(run.poll(), Step::Exhausted);
        run.lookup.extend(servers(7));
        assert_eq!(run.ask(), 2);
        run.fail_all(3..=4);
        assert_eq!(run.ask(), 3);
        run.fail_all(5..=7);
        run.lookup.extend(servers(7));
        run.give_up();
        assert_eq!(run.poll(), Step::Done);
    }

    #[test]
    fn silence_is_told_from_absence() {
        let mut run = Run::new(1);
        run.ask();
        run.fail_all(1..=1);
        run.give_up();
        assert_eq!(run.poll(), Step::Done);
        assert_eq!(run.lookup.verdict(), Verdict::Silence);
        assert_eq!(Run::new(0).poll(), Step::Exhausted);
    }

    #[test]
    fn a_long_list_is_cut() {
        assert_eq!(Lookup::new(servers(200), None).servers.len(), MAX_LISTED);
    }
}
