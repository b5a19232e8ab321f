//! One attempt to find a path to a peer: which of its places are checked when (Rules 6.93 and 6.94).

use std::net::SocketAddr;
use std::time::Duration;

use peerage_wire::id::{NodeId, SessionId};
use peerage_wire::time::Instant;

use super::candidates::{MAX_TARGETS, Target};
use super::{Path, PathKind, PathRole};

/// How long an attempt lasts. By then a path has answered or the routers do not let one be; longer keeps sending to places where
/// nobody is, shorter gives up on long and lossy lines.
const ATTEMPT_LIFETIME: Duration = Duration::from_secs(5);

/// After how long without an answer the user-node looks for other means: longer than most round trips with a repetition.
const VAIN_AFTER: Duration = Duration::from_secs(1);

/// How far apart the first checks of the first [`QUICK_CHECKS`] places are: the smallest Ta of RFC 8445, section 14.2. Some routers
/// drop what comes faster.
const QUICK_PACE: Duration = Duration::from_millis(5);
const QUICK_CHECKS: usize = 10;

/// How far apart those after them are.
const SLOW_PACE: Duration = Duration::from_millis(20);

/// How long after a check the next to the same place follows. The other end begins half a round trip through the forwarder later or
/// earlier, so the first may come before its router is open.
const REPEATS: [Duration; 7] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1_600),
    Duration::from_millis(1_600),
];

/// Most packets to a place from which nothing sealed has come (Rule 6.92).
pub(super) const MAX_UNANSWERED: usize = 5;

#[derive(Clone, Copy, Debug)]
struct Check {
    target: Target,
    sent: usize,
    /// When the next is due; none if there is none, or if it waits for its first turn.
    next_at: Option<Instant>,
    /// Whether the peer was heard from there.
    is_heard: bool,
    is_answered: bool,
}

/// One attempt.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) id: SessionId,
    pub(super) role: PathRole,
    /// What this node tells of its own next port.
    pub(super) stated: Option<SocketAddr>,
    identity: [u8; 32],
    ends_at: Instant,
    /// When it will have been in vain for so long that its user-node asks a router for help; none once it has.
    vain_at: Option<Instant>,
    /// When the next place has its first turn.
    turn_at: Instant,
    started: usize,
    checks: Vec<Check>,
    has_answer: bool,
}

impl Attempt {
    pub(super) fn new(
        (id, role): (SessionId, PathRole),
        stated: Option<SocketAddr>,
        identity: [u8; 32],
        now: Instant,
    ) -> Self {
        Self {
            id,
            role,
            stated,
            identity,
            ends_at: now.after(ATTEMPT_LIFETIME),
            vain_at: matches!(role, PathRole::Dial).then(|| now.after(VAIN_AFTER)),
            turn_at: now,
            started: 0,
            checks: Vec::new(),
            has_answer: false,
        }
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.ends_at <= now
    }

    /// Returns whether nothing more is to be sent: the user-node has its path.
    const fn is_done(&self) -> bool {
        self.has_answer && matches!(self.role, PathRole::Dial)
    }

    /// Returns, once, whether nobody has answered for a while.
    pub(super) fn take_vain(&mut self, now: Instant) -> bool {
        !self.has_answer && self.vain_at.take_if(|at| *at <= now).is_some()
    }

    pub(super) fn add(&mut self, targets: &[Target], now: Instant) {
        if self.checks.is_empty() {
            // Counted from when there is something to check: the user-node learns it a round trip after it has asked.
            self.ends_at = now.after(ATTEMPT_LIFETIME);
        }
        self.turn_at = self.turn_at.max(now);
        for target in targets {
            self.insert(*target);
        }
    }

    /// Lasts at least until then.
    pub(super) fn last_until(&mut self, ends_at: Instant) {
        self.ends_at = self.ends_at.max(ends_at);
    }

    fn insert(&mut self, target: Target) -> Option<&mut Check> {
        let known = self.checks.iter().position(|check| check.target.address == target.address);
        if let Some(known) = known {
            return self.checks.get_mut(known);
        }
        if self.checks.len() >= MAX_TARGETS {
            return None;
        }
        self.checks.push(Check { target, sent: 0, next_at: None, is_heard: false, is_answered: false });
        self.checks.last_mut()
    }

    /// The peer was heard from a place: that place is checked at once, whether anybody has named it or not. Returns how the path
    /// came about.
    pub(super) fn heard(&mut self, remote: SocketAddr, now: Instant) -> PathKind {
        let sent_first = self.checks.iter().any(|check| check.sent > 0);
        let kind = if sent_first { PathKind::Punched } else { PathKind::Direct };
        let target = Target { address: remote, kind: PathKind::Punched, is_observed: true };
        if let Some(check) = self.insert(target)
            && !std::mem::replace(&mut check.is_heard, true)
        {
            check.next_at = Some(now);
        }
        kind
    }

    /// A place has answered. Returns whether it is the first.
    pub(super) fn answered(&mut self, remote: SocketAddr) -> bool {
        if let Some(check) = self.checks.iter_mut().find(|check| check.target.address == remote) {
            check.is_answered = true;
        }
        !std::mem::replace(&mut self.has_answer, true)
    }

    pub(super) fn kind_of(&self, remote: SocketAddr) -> Option<PathKind> {
        let mut of = self.checks.iter().filter(|check| check.target.address == remote);
        of.next().map(|check| check.target.kind)
    }

    pub(super) const fn path(&self, peer: NodeId, remote: SocketAddr, kind: PathKind) -> Path {
        Path { peer, identity: self.identity, remote, role: self.role, kind }
    }

    /// Returns the place to which the next check goes, if one is due, and counts it: repetitions first, then the next place.
    pub(super) fn poll(&mut self, now: Instant) -> Option<Target> {
        if self.is_done() || self.is_over(now) {
            return None;
        }
        let is_due = |check: &&mut Check| check.next_at.is_some_and(|at| at <= now);
        if let Some(check) = self.checks.iter_mut().find(is_due) {
            return Some(check.send(now));
        }
        if self.turn_at > now {
            return None;
        }
        let check = self.checks.iter_mut().find(|check| check.sent == 0)?;
        self.started += 1;
        let pace = if self.started < QUICK_CHECKS { QUICK_PACE } else { SLOW_PACE };
        self.turn_at = now.after(pace);
        Some(check.send(now))
    }

    /// Nothing more may be sent to a place.
    pub(super) fn give_up(&mut self, address: SocketAddr) {
        for check in self.checks.iter_mut().filter(|check| check.target.address == address) {
            check.next_at = None;
        }
    }

    /// Returns when there is something to do; only its end, if nothing may be sent for the time being.
    pub(super) fn next_at(&self, is_full: bool) -> Instant {
        if self.is_done() {
            return self.ends_at;
        }
        if is_full {
            return self.vain_at.map_or(self.ends_at, |at| at.min(self.ends_at));
        }
        let repeat = self.checks.iter().filter_map(|check| check.next_at).min();
        let turn = self.checks.iter().any(|check| check.sent == 0).then_some(self.turn_at);
        repeat
            .into_iter()
            .chain(turn)
            .chain(self.vain_at)
            .min()
            .map_or(self.ends_at, |at| at.min(self.ends_at))
    }
}

impl Check {
    fn send(&mut self, now: Instant) -> Target {
        let wait = REPEATS.get(self.sent).copied();
        self.sent += 1;
        let may_go_on = self.sent < MAX_UNANSWERED || self.is_heard;
        self.next_at = wait.filter(|_| may_go_on && !self.is_answered).map(|wait| now.after(wait));
        self.target
    }
}
