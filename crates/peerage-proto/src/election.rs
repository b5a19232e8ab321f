//! The election of tunnel-nodes: of all that could serve the devices at a location, a few do, and the rest are silent
//! (Rules 6.24 to 6.27).
//!
//! There is no coordinator and no vote. Who holds a seat says so by a beacon every 10 s; who hears fewer than there are seats takes
//! one, in an order that everybody computes from ids alone, so that as a rule a single node moves. [`Election`] is one
//! election as one node sees it: beacons that its owner has opened go in, beacons to be sent come out, with the wish to
//! look up who has announced itself, and the news whether this node is elected.
//!
//! Invariants: a seat that is held is never taken by a newcomer; a node that hears nobody is elected within a bound; what a
//! beacon claims can make this node wait, but never for longer than [`MAX_POSTPONED`] checks of those who are
//! elected. Deliberately absent: agreement. For some seconds more nodes may be elected than there are seats, which costs a few
//! datagrams, but never for long fewer.

mod chance;
mod heard;
mod io;
mod look;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use peerage_wire::beacon::{Beacon, Kind};
use peerage_wire::id::NodeId;
use peerage_wire::time::Instant;

use heard::Heard;

pub use io::{Config, Happening, Order};

/// How many tunnel-nodes a location has unless its owner sets another number: one may sleep, and its tunnels go on by the other.
pub const DEFAULT_SEATS: usize = 2;

/// How often who is elected says so, ± 10 %. Shorter finds the dead sooner; longer lets radios sleep.
pub const BEACON_INTERVAL: Duration = Duration::from_secs(10);

/// How long after its last beacon somebody counts as gone: one beacon may be lost. Wireless networks lose some percent
/// of all multicast, which they do not repeat.
pub const GONE_AFTER: Duration = Duration::from_secs(25);

/// Over how long those who could take a free seat are spread, by rank.
pub const SPREAD: Duration = Duration::from_secs(3);

/// How long a node stands for a seat before it holds it, so that two who moved at once, or somebody who missed beacons, find out
/// before servers hear of it.
pub const STANDING: Duration = Duration::from_secs(1);

/// How long a node that has just come waits for answers to its question who is elected.
pub const LISTENING: Duration = Duration::from_secs(1);

/// How long more may be elected than there are seats, as after a split healed, before the last in rank yield.
pub const SURPLUS: Duration = Duration::from_secs(60);

/// How long somebody elected may be without attachment before it gives way to others: its own line may be what is broken.
pub const DETACHED: Duration = Duration::from_secs(60);

/// For how long it then lets others go first, and by how much.
const ABSTAINING: Duration = Duration::from_secs(600);
const ABSTAINING_DELAY: Duration = Duration::from_secs(15);

/// How often the announcements of a location are looked up where nobody can be heard, ± 50 %.
pub const LOOK_UP_INTERVAL: Duration = Duration::from_secs(300);

/// How often one of those who are not elected finds out whether the elected serve, ± 20 %.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(600);

/// How soon a check that has failed is repeated, before anything follows from it: an announcement may be under way.
pub const CHECK_AGAIN: Duration = Duration::from_secs(30);

/// How many checks in a row a node leaves to others who say that they have done it. More is quieter; fewer shortens the
/// time for which two hostile nodes, one elected and one that vouches for it, can keep a site from being served: this times
/// [`CHECK_INTERVAL`], divided by the number of honest nodes.
pub const MAX_POSTPONED: u32 = 17;

/// How long after one such word another counts as the same check, which several may have begun at once. Longer than the shortest
/// [`CHECK_INTERVAL`] would make every second one count; shorter than the spread of those intervals would use up in one of them
/// what is believed in hours, after which hundreds ask for themselves.
const SAME_CHECK: Duration = Duration::from_secs(300);

/// How soon a look-up that nobody has answered is repeated; doubled each time.
const RETRY: Duration = Duration::from_secs(10);
const MAX_RETRY: Duration = Duration::from_secs(120);

/// How long a look-up may take before it counts as unanswered.
const MAX_LOOK_UP: Duration = Duration::from_secs(60);

/// The shortest time between two beacons of one that is asked; less than [`STANDING`], so that who asks gets an answer.
const ANSWER_PAUSE: Duration = Duration::from_millis(400);

/// A node that is this late has slept, and what it knows is old.
const MAX_LATE: Duration = Duration::from_secs(5);

/// Look-ups in a row that have to find enough others before a node that hears nobody gives its seat back: what
/// was announced outlives whoever announced it by minutes.
const CROWDED: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Others serve.
    Watching,
    /// Wants a seat; may have it at that time, once the look-up that it waits for has ended.
    Standing { until: Instant, looks: bool },
    /// Serves, since then.
    Seated { since: Instant, additional: bool },
}

/// Why a look-up was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// Nobody was ever heard: perhaps because nothing can be heard here.
    First,
    /// Whether others serve who cannot be heard.
    Others,
    /// Whether the elected serve.
    Check,
}

/// One election, as one node sees it.
#[derive(Clone, Debug)]
pub struct Election {
    config: Config,
    rank: u64,
    chance: u64,
    state: State,
    heard: Heard,
    /// Nobody can be heard, so that announcements take the place of beacons.
    is_deaf: bool,
    has_heard: bool,
    is_stopped: bool,
    listens_until: Instant,
    asks_at: Option<Instant>,
    vacant_since: Option<Instant>,
    abstains_until: Instant,
    surplus_since: Option<Instant>,
    detached_since: Option<Instant>,
    beacon_at: Instant,
    sent_at: Option<Instant>,
    look_up_at: Option<Instant>,
    check_at: Instant,
    looking: Option<(Purpose, Instant)>,
    retry: Duration,
    postponed: u32,
    /// When somebody else said last that the elected serve, believed or not.
    vouched_at: Option<Instant>,
    failed_checks: u32,
    crowded: u32,
    orders: VecDeque<Order>,
}

impl Election {
    /// Begins to take part in an election. `seed` decides what is drawn.
    pub fn new(config: Config, seed: u64, now: Instant) -> Self {
        let mut election = Self {
            config,
            rank: config.ballot.rank(&config.node),
            chance: seed,
            state: State::Watching,
            heard: Heard::default(),
            is_deaf: !config.multicast,
            has_heard: false,
            is_stopped: false,
            listens_until: now,
            asks_at: None,
            vacant_since: None,
            abstains_until: Instant::default(),
            surplus_since: None,
            detached_since: None,
            beacon_at: now,
            sent_at: None,
            look_up_at: None,
            check_at: now,
            looking: None,
            retry: RETRY,
            postponed: 0,
            vouched_at: None,
            failed_checks: 0,
            crowded: 0,
            orders: VecDeque::new(),
        };
        election.begin(now);
        election.review(now);
        election
    }

    /// Takes in what happened.
    pub fn handle(&mut self, happening: Happening<'_>, now: Instant) {
        if self.is_stopped {
            return;
        }
        if self.poll_timeout().is_some_and(|due| now - due > MAX_LATE) {
            self.begin(now);
        }
        match happening {
            Happening::Timeout => {}
            Happening::Heard(beacon) => self.on_beacon(beacon, now),
            Happening::MulticastFailed => self.on_multicast_failed(now),
            Happening::Attached(is_attached) => self.on_attached(is_attached, now),
            Happening::LookedUp(found) => self.on_looked_up(found, now),
            Happening::Stop => return self.stop(),
        }
        self.review(now);
    }

    /// Returns the next thing to do, oldest first.
    pub fn poll_order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }

    /// Returns when [`Happening::Timeout`] is due at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.is_stopped {
            return None;
        }
        let free = self.looking.is_none();
        let looking = self.looking.map(|(_, deadline)| deadline);
        let look_up = self.look_up_at.filter(|_| free);
        let own = match self.state {
            State::Watching if self.is_deaf => [None; 4],
            State::Watching if self.is_full() => [self.asks_at, free.then_some(self.check_at), None, None],
            State::Watching => {
                let vacant = self.vacant_since.map(|since| since.after(self.delay(since)));
                [self.asks_at, Some(vacant.unwrap_or(self.listens_until)), None, None]
            }
            State::Standing { until, looks } => [(!looks).then_some(until), self.next_beacon(), None, None],
            State::Seated { additional, .. } => [
                self.next_beacon(),
                // Whoever serves beside others does so because they do not: it is in excess, and yields, only when they do.
                self.surplus_since.filter(|_| !additional).map(|since| since.after(SURPLUS)),
                self.detached_since
                    .filter(|_| !additional && self.may_yield())
                    .map(|since| since.after(DETACHED)),
                (additional && free).then_some(self.check_at),
            ],
        };
        own.into_iter().chain([looking, look_up, self.heard.next_gone()]).flatten().min()
    }

    // ---- beginning and end ------------------------------------------------------------------

    /// Begins anew, after the start and after a sleep: others may have taken the seat meanwhile.
    fn begin(&mut self, now: Instant) {
        self.leave_seat();
        self.heard.forget_seats();
        self.is_deaf = !self.config.multicast;
        (self.looking, self.surplus_since, self.vacant_since) = (None, None, None);
        (self.failed_checks, self.crowded, self.retry) = (0, 0, RETRY);
        // Those who hear the same do not all stop to believe it at the same time.
        self.postponed = self.below(MAX_POSTPONED);
        self.vouched_at = None;
        self.check_at = now.after(self.drawn(CHECK_INTERVAL, 20));
        if self.is_deaf {
            self.look_up_at = Some(now.after(self.delay(now)));
            return;
        }
        self.look_up_at = None;
        self.listens_until = now.after(LISTENING);
        self.asks_at = Some(now.after(LISTENING / 2));
        self.send(Kind::Who, now);
    }

    fn stop(&mut self) {
        let says = !matches!(self.state, State::Watching);
        self.leave_seat();
        if says {
            self.order_beacon(Kind::Goodbye, Duration::ZERO);
        }
        self.is_stopped = true;
    }

    fn leave_seat(&mut self) {
        if self.is_elected() {
            self.orders.push_back(Order::Elected(false));
        }
        self.state = State::Watching;
        (self.surplus_since, self.detached_since, self.vacant_since) = (None, None, None);
        self.crowded = 0;
    }

    // ---- what happens -----------------------------------------------------------------------

    fn on_beacon(&mut self, beacon: &Beacon, now: Instant) {
        let is_other = beacon.ballot == self.config.ballot && beacon.node != self.config.node;
        if !is_other || !self.heard.take(beacon, now) {
            return;
        }
        self.has_heard = true;
        if std::mem::replace(&mut self.is_deaf, !self.config.multicast) && !self.is_deaf {
            // There may be more who have not spoken yet.
            self.listens_until = now.after(BEACON_INTERVAL.saturating_mul(6) / 5);
            (self.look_up_at, self.vacant_since) = (None, None);
        }
        match beacon.kind {
            Kind::Who | Kind::Standing => self.answer(now),
            Kind::Checked if !self.heard.is_seated(&beacon.node) && !self.is_same_check(now) => {
                self.vouched_at = Some(now);
                self.postpone_check(now);
            }
            Kind::Checked | Kind::Elected | Kind::Additional | Kind::Goodbye => {}
        }
    }

    /// Returns whether what is said now of a check has been said a moment ago.
    fn is_same_check(&self, now: Instant) -> bool {
        self.vouched_at.is_some_and(|at| now - at < SAME_CHECK)
    }

    /// Leaves a check to another, but not for ever.
    fn postpone_check(&mut self, now: Instant) {
        if self.state == State::Watching && self.postponed < MAX_POSTPONED {
            self.postponed = self.postponed.saturating_add(1);
            self.failed_checks = 0;
            self.check_at = self.check_at.max(now.after(self.drawn(CHECK_INTERVAL, 20)));
        }
    }

    /// Tells somebody who has just come, or has missed beacons, that this seat is taken.
    fn answer(&mut self, now: Instant) {
        if self.is_elected() {
            let soon = self.sent_at.map_or(now, |at| at.after(ANSWER_PAUSE));
            self.beacon_at = self.beacon_at.min(soon);
        }
    }

    fn on_multicast_failed(&mut self, now: Instant) {
        if std::mem::replace(&mut self.is_deaf, true) {
            return;
        }
        self.asks_at = None;
        if self.is_elected() {
            let later = now.after(self.drawn(LOOK_UP_INTERVAL, 50));
            self.look_up_at.get_or_insert(later);
        } else {
            self.leave_seat();
            self.looking = None;
            self.look_up_at = Some(now.after(self.delay(now)));
        }
    }

    fn on_attached(&mut self, is_attached: bool, now: Instant) {
        if !self.is_elected() || is_attached {
            self.detached_since = None;
        } else {
            self.detached_since.get_or_insert(now);
        }
    }

    fn on_looked_up(&mut self, found: Option<&[NodeId]>, now: Instant) {
        let Some((purpose, _)) = self.looking.take() else { return };
        let Some(found) = found else {
            return self.on_silence(purpose, now);
        };
        self.retry = RETRY;
        let others = found.iter().filter(|node| **node != self.config.node);
        match purpose {
            Purpose::Check => self.on_checked(others.count() >= self.config.seats, now),
            Purpose::First => self.on_first_look(others.count(), now),
            Purpose::Others => {
                let before = others.clone().filter(|node| self.config.ballot.rank(node) < self.rank).count();
                self.on_others(others.count(), before, now);
            }
        }
    }

    /// No server can be reached, so that nothing follows from the look-up and nobody could be served either.
    fn on_silence(&mut self, purpose: Purpose, now: Instant) {
        let again = now.after(self.drawn(self.retry, 50));
        match (purpose, self.state) {
            (Purpose::First, State::Standing { .. }) => {
                self.withdraw(now);
                self.listens_until = again;
            }
            (Purpose::Check, _) => self.check_at = self.check_at.max(again),
            (Purpose::First | Purpose::Others, _) => self.look_up_at = self.look_up_at.map(|_| again),
        }
        self.retry = self.retry.saturating_mul(2).min(MAX_RETRY);
    }

    fn on_first_look(&mut self, others: usize, now: Instant) {
        let State::Standing { until, .. } = self.state else { return };
        if others >= self.config.seats && !self.has_heard {
            self.withdraw(now);
            self.go_deaf(now);
        } else {
            self.state = State::Standing { until, looks: false };
        }
    }

    /// So many others have announced themselves, of whom so many come before this node.
    fn on_others(&mut self, others: usize, before: usize, now: Instant) {
        if !self.is_elected() {
            if self.is_deaf && others < self.config.seats {
                self.take_seat(false, now);
            }
            return;
        }
        self.crowded = if before >= self.config.seats { self.crowded.saturating_add(1) } else { 0 };
        if self.crowded >= CROWDED && self.heard.seated().next().is_none() {
            self.withdraw(now);
            self.go_deaf(now);
        }
    }

    fn on_checked(&mut self, enough: bool, now: Instant) {
        match self.state {
            State::Watching if enough => {
                (self.failed_checks, self.postponed) = (0, 0);
                if !self.is_same_check(now) {
                    self.send(Kind::Checked, now);
                }
            }
            State::Watching if self.failed_checks == 0 => {
                self.failed_checks = 1;
                self.check_at = now.after(self.drawn(CHECK_AGAIN, 20));
            }
            State::Watching => {
                self.failed_checks = 0;
                self.take_seat(true, now);
            }
            State::Seated { additional: true, .. } if enough => self.withdraw(now),
            State::Seated { .. } | State::Standing { .. } => {}
        }
    }

    // ---- what follows -----------------------------------------------------------------------

    fn review(&mut self, now: Instant) {
        self.heard.sweep(now);
        if self.looking.is_some_and(|(_, deadline)| deadline <= now) {
            self.on_looked_up(None, now);
        }
        // Each step may make another one due: a seat given back is a free one.
        for _step in 0..3 {
            let before = self.state;
            match before {
                State::Watching if self.is_deaf => {}
                State::Watching => self.watch(now),
                State::Standing { until, looks } => self.stand((until, looks), now),
                State::Seated { since, additional } => self.serve((since, additional), now),
            }
            if self.state == before {
                break;
            }
        }
        if self.look_up_at.is_some_and(|at| at <= now) && self.looking.is_none() {
            self.look_up_at = Some(now.after(self.drawn(LOOK_UP_INTERVAL, 50)));
            self.look_up(Purpose::Others, now);
        }
    }

    fn watch(&mut self, now: Instant) {
        let is_full = self.is_full();
        if self.asks_at.is_some_and(|at| at <= now) {
            self.asks_at = None;
            if !is_full {
                self.send(Kind::Who, now);
            }
        }
        if is_full {
            self.vacant_since = None;
            if self.check_at <= now && self.looking.is_none() {
                self.check_at = now.after(self.drawn(CHECK_INTERVAL, 20));
                self.look_up(Purpose::Check, now);
            }
            return;
        }
        if now < self.listens_until {
            return;
        }
        let since = *self.vacant_since.get_or_insert(now);
        if since.after(self.delay(since)) <= now {
            self.vacant_since = None;
            let looks = !self.has_heard;
            self.state = State::Standing { until: now.after(STANDING), looks };
            self.send(Kind::Standing, now);
            if looks {
                self.looking = None;
                self.look_up(Purpose::First, now);
            }
        }
    }

    fn stand(&mut self, (until, looks): (Instant, bool), now: Instant) {
        if self.heard.before(self.rank, true).count() >= self.config.seats {
            return self.withdraw(now);
        }
        if !looks && until <= now {
            return self.take_seat(false, now);
        }
        if self.next_beacon().is_some_and(|at| at <= now) {
            self.send(Kind::Standing, now);
        }
    }

    fn serve(&mut self, (since, additional): (Instant, bool), now: Instant) {
        if additional {
            return self.serve_additionally(since, now);
        }
        if self.heard.before(self.rank, false).count() >= self.config.seats {
            let since = *self.surplus_since.get_or_insert(now);
            if since.after(SURPLUS) <= now {
                return self.withdraw(now);
            }
        } else {
            self.surplus_since = None;
        }
        let detached = self.detached_since.filter(|_| self.may_yield());
        if detached.is_some_and(|since| since.after(DETACHED) <= now) {
            self.abstains_until = now.after(ABSTAINING);
            return self.withdraw(now);
        }
        if !self.is_deaf {
            let is_alone = self.heard.seated().next().is_none();
            let soon = now.after(self.drawn(LOOK_UP_INTERVAL / 5, 50));
            self.look_up_at = is_alone.then(|| self.look_up_at.unwrap_or(soon));
        }
        self.renew_beacon(Kind::Elected, now);
    }

    fn serve_additionally(&mut self, since: Instant, now: Instant) {
        if self.check_at <= now && self.looking.is_none() {
            self.check_at = now.after(self.drawn(CHECK_INTERVAL, 20));
            self.look_up(Purpose::Check, now);
        }
        if !self.is_full() {
            // It serves already, so that nobody else need begin.
            self.state = State::Seated { since, additional: false };
            self.beacon_at = now;
        }
        let kind = if matches!(self.state, State::Seated { additional: true, .. }) {
            Kind::Additional
        } else {
            Kind::Elected
        };
        self.renew_beacon(kind, now);
    }

    fn renew_beacon(&mut self, kind: Kind, now: Instant) {
        if self.next_beacon().is_some_and(|at| at <= now) {
            self.send(kind, now);
        }
    }

    fn take_seat(&mut self, additional: bool, now: Instant) {
        self.state = State::Seated { since: now, additional };
        self.detached_since = Some(now);
        self.check_at = now.after(self.drawn(CHECK_INTERVAL, 20));
        self.orders.push_back(Order::Elected(true));
        let kind = if additional { Kind::Additional } else { Kind::Elected };
        self.send(kind, now);
    }

    /// Gives the seat back, or stops to stand for one.
    fn withdraw(&mut self, now: Instant) {
        self.leave_seat();
        self.look_up_at = None;
        self.send(Kind::Goodbye, now);
        self.check_at = now.after(self.drawn(CHECK_INTERVAL, 20));
    }

    fn go_deaf(&mut self, now: Instant) {
        self.is_deaf = true;
        self.look_up_at = Some(now.after(self.drawn(LOOK_UP_INTERVAL, 50)));
    }

    fn look_up(&mut self, purpose: Purpose, now: Instant) {
        self.looking = Some((purpose, now.after(MAX_LOOK_UP)));
        self.orders.push_back(Order::LookUp { answering: purpose == Purpose::Check });
    }

    fn send(&mut self, kind: Kind, now: Instant) {
        self.sent_at = Some(now);
        self.beacon_at = now.after(self.drawn(BEACON_INTERVAL, 10));
        let seated = match self.state {
            State::Seated { since, .. } => now - since,
            State::Watching | State::Standing { .. } => Duration::ZERO,
        };
        self.order_beacon(kind, seated);
    }

    fn order_beacon(&mut self, kind: Kind, seated: Duration) {
        if self.config.multicast {
            self.orders.push_back(Order::Send { kind, seated });
        }
    }

    /// Returns whether others hold all seats.
    fn is_full(&self) -> bool {
        self.heard.seated().count() >= self.config.seats
    }

    fn next_beacon(&self) -> Option<Instant> {
        self.config.multicast.then_some(self.beacon_at)
    }

    /// Returns whether giving way could help: somebody else has been heard, and can hear that the seat is free.
    const fn may_yield(&self) -> bool {
        self.has_heard && !self.is_deaf
    }
}
