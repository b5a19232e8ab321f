//! Direct paths over UDP between two nodes, of which one or both stand behind routers (chapter 6, Rules 6.90 to 6.99).
//!
//! Both have told each other their candidates, through somebody who reaches both. From then on each sends *checks*, sealed
//! Pings, to the other's candidates: the first ones open the routers on the way, the later ones pass. What is sealed proves who
//! sent it, so an answer proves the path. The user-node takes the first that answers, and dials it with QUIC; the tunnel-node
//! expects it wherever a check of that user-node has come from.
//!
//! ```text
//! user-node ── TunnelRequest{candidates} ─▶ forwarder ── Forward{observed} ─▶ tunnel-node
//!     ▲ ◀───────────────────────── TunnelOpened{candidates} ────────────────────┘ │
//!     └── checks ──────────────▶ ╳ router ▶◀ router ╳ ◀────────────── checks ────┘
//! ```
//!
//! [`Paths`] decides what is sent where and when, and what was found. It sends nothing itself: the node asks it for the next
//! check and tells it what was heard. [`Nat`] knows what the own routers do to addresses.
//!
//! A candidate may be a lie that aims a node at somebody else. So nothing goes to a place that may not be dialled, and little to
//! any place from which nothing sealed has come: see [`budget`](self).

mod attempt;
mod budget;
mod candidates;
mod nat;
mod wide;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use peerage_wire::id::{NodeId, SessionId};
use peerage_wire::time::Instant;

use crate::sizes::TableSize;
use crate::trust::Member;

use attempt::Attempt;
use budget::Budget;
pub(crate) use candidates::{Target, kind_of, targets};
pub(crate) use nat::Nat;
pub use nat::{Filtering, Mapping, NatBehaviour, PortChoice};
pub use wide::WIDE_LIFETIME;
use wide::Wide;
pub(crate) use wide::{Part, WIDE_STEP, WideCheck};

/// Most attempts at once, each for a few seconds. More let members make this node send more to where nobody answers; fewer send
/// those who come together, as in the morning, through a relay.
const MAX_ATTEMPTS: usize = 128;

/// Most paths that are remembered: one link each, and some that are dialled.
const MAX_PATHS: usize = 4_096;

/// Most places of one peer from which this node expects to be dialled at once.
const MAX_AWAITED: usize = 4;

/// How long a path that was found may take to be used: a handshake, repeated when packets are lost.
const UNUSED_TIMEOUT: Duration = Duration::from_secs(15);

/// Most checks that wait for an answer. Each is forgotten after two seconds.
const MAX_WAITING: usize = 1_024;

/// What this node does with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathRole {
    /// It dials: it is the user-node.
    Dial,
    /// It expects to be dialled: it is the tunnel-node.
    Await,
}

/// How a path came about, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathKind {
    /// Without anybody's help.
    Direct,
    /// By a port that a router forwards, because it was asked to.
    Mapped,
    /// By checks of both ends that opened the routers on the way.
    Punched,
}

/// A path over UDP to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// To whom.
    pub peer: NodeId,
    /// Its identity key, to be pinned in TLS.
    pub identity: [u8; 32],
    /// Where it is, as seen from here.
    pub remote: SocketAddr,
    /// What this node does with it.
    pub role: PathRole,
    /// How it came about.
    pub kind: PathKind,
}

/// What became known about paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    Found(Path),
    Lost(Path),
    /// An attempt of this node as user-node has found nobody for a while.
    Vain,
}

#[derive(Clone, Copy, Debug)]
struct Found {
    path: Path,
    /// Until when it may be used first; none while a link uses it.
    unused_until: Option<Instant>,
}

/// All attempts, and what came of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Paths {
    attempts: BTreeMap<(NodeId, PathRole), Attempt>,
    found: BTreeMap<(NodeId, SocketAddr), Found>,
    budget: Budget,
    wide: Wide,
    waiting: usize,
    news: VecDeque<News>,
}

impl Paths {
    pub(crate) fn sizes(&self) -> Vec<TableSize> {
        let own = [
            TableSize::new("path attempts", self.attempts.len(), MAX_ATTEMPTS),
            TableSize::new("paths", self.found.len(), MAX_PATHS),
            TableSize::new("path checks", self.waiting, MAX_WAITING),
            self.wide.sizes(),
        ];
        own.into_iter().chain(self.budget.sizes()).collect()
    }

    /// Begins an attempt, or goes on with it if it is the same: a request that comes twice, or through two forwarders, adds what
    /// it knows. Returns false if there are too many.
    /// `stated` is what this node tells of its own next port.
    pub(crate) fn begin(
        &mut self,
        peer: &Member,
        (id, role): (SessionId, PathRole),
        stated: Option<SocketAddr>,
        now: Instant,
    ) -> bool {
        let key = (peer.id, role);
        if self.attempts.get(&key).is_some_and(|attempt| attempt.id == id) {
            return true;
        }
        self.attempts.retain(|_, attempt| !attempt.is_over(now));
        if self.attempts.len() >= MAX_ATTEMPTS && !self.attempts.contains_key(&key) {
            return false;
        }
        self.attempts.insert(key, Attempt::new((id, role), stated, peer.identity, now));
        self.prolong(key);
        true
    }

    /// Gives the attempt with a peer places to check, the best first.
    pub(crate) fn add(&mut self, peer: NodeId, role: PathRole, targets: &[Target], now: Instant) {
        if let Some(attempt) = self.attempts.get_mut(&(peer, role)) {
            attempt.add(targets, now);
            self.prolong((peer, role));
        }
    }

    /// Returns whether this node can do its part of wide checks with a peer (Rule 6.99).
    pub(crate) fn may_widen(&self, peer: &NodeId, now: Instant) -> bool {
        self.wide.may_begin(peer, now)
    }

    /// Does its part of wide checks with a peer, with which there is an attempt.
    pub(crate) fn widen(&mut self, peer: NodeId, role: PathRole, part: Part, now: Instant) {
        if let Some(attempt) = self.attempts.get(&(peer, role)) {
            self.wide.begin((peer, role), part, attempt.id, now);
            self.prolong((peer, role));
        }
    }

    /// An attempt lasts as long as the wide checks with its peer, for the places that they may find.
    fn prolong(&mut self, key: (NodeId, PathRole)) {
        if let (Some(attempt), Some(ends_at)) = (self.attempts.get_mut(&key), self.wide.ends_at(key)) {
            attempt.last_until(ends_at);
        }
    }

    /// Returns the next wide check that is due, and counts it as sent.
    pub(crate) fn poll_wide(&mut self, now: Instant) -> Option<WideCheck> {
        let check = if self.waiting < MAX_WAITING { self.wide.poll(now) } else { None };
        self.waiting += usize::from(check.is_some());
        check
    }

    /// Returns whether this node uses a path that it has dialled.
    pub(crate) fn uses_any(&self) -> bool {
        let is_used = |found: &Found| found.path.role == PathRole::Dial && found.unused_until.is_none();
        self.found.values().any(is_used)
    }

    /// Returns what was stated of the own next port in an attempt that a peer has asked for.
    pub(crate) fn stated(&self, (peer, id): (NodeId, SessionId)) -> Option<Option<SocketAddr>> {
        let attempt = self.attempts.get(&(peer, PathRole::Await)).filter(|attempt| attempt.id == id)?;
        Some(attempt.stated)
    }

    /// Takes note of a sealed request of a peer that came straight from a place (Rule 6.94).
    pub(crate) fn heard(&mut self, peer: NodeId, remote: SocketAddr, now: Instant) {
        for role in [PathRole::Dial, PathRole::Await] {
            let attempt = self.attempts.get_mut(&(peer, role));
            let Some(attempt) = attempt.filter(|attempt| !attempt.is_over(now)) else { continue };
            self.budget.proven(remote, now);
            let kind = attempt.heard(remote, now);
            if role == PathRole::Await {
                self.wide.end(&peer);
                let path = attempt.path(peer, remote, kind);
                self.expect(path, now);
            }
        }
    }

    /// Lets the peer dial from a place, unless it may from too many.
    fn expect(&mut self, path: Path, now: Instant) {
        let is_awaited = |found: &&Found| found.path.role == PathRole::Await && found.unused_until.is_some();
        let of_peer = self.found.values().filter(|found| found.path.peer == path.peer).filter(is_awaited);
        if of_peer.filter(|found| found.path.remote != path.remote).count() < MAX_AWAITED {
            self.find(path, now);
        }
    }

    /// Takes note of a sealed answer of a peer that came straight from where it was asked (Rule 6.95). `kind` is what the peer says
    /// of the place, if there was no check of it.
    pub(crate) fn answered(
        &mut self,
        peer: NodeId,
        remote: SocketAddr,
        kind: Option<PathKind>,
        now: Instant,
    ) {
        for role in [PathRole::Dial, PathRole::Await] {
            let Some(attempt) = self.attempts.get_mut(&(peer, role)) else { continue };
            self.budget.proven(remote, now);
            let is_first = attempt.answered(remote);
            let kind = attempt.kind_of(remote).or(kind).unwrap_or(PathKind::Punched);
            if role == PathRole::Dial && is_first {
                self.wide.end(&peer);
                let path = attempt.path(peer, remote, kind);
                self.find(path, now);
            }
        }
    }

    fn find(&mut self, path: Path, now: Instant) {
        let key = (path.peer, path.remote);
        let unused_until = Some(now.after(UNUSED_TIMEOUT));
        if let Some(known) = self.found.get_mut(&key) {
            // The link that stood there may be dead without this end knowing: the peer dials again.
            known.path = path;
            if known.unused_until.is_some() {
                known.unused_until = unused_until;
            }
        } else if self.found.len() < MAX_PATHS {
            self.found.insert(key, Found { path, unused_until });
        } else {
            return;
        }
        self.news.push_back(News::Found(path));
    }

    /// A link stands on a path: its own probes keep it (Rule 6.97), and the attempt is over.
    pub(crate) fn used(&mut self, peer: &NodeId, remote: SocketAddr) {
        if let Some(found) = self.found.get_mut(&(*peer, remote)) {
            found.unused_until = None;
            self.attempts.remove(&(*peer, found.path.role));
        }
    }

    /// A path did not work, or the link on it is gone.
    pub(crate) fn unused(&mut self, peer: &NodeId, remote: SocketAddr) {
        if let Some(found) = self.found.remove(&(*peer, remote)) {
            self.news.push_back(News::Lost(found.path));
        }
    }

    /// The networks have changed: what was under way led from addresses that may be gone.
    pub(crate) fn clear_attempts(&mut self) {
        self.attempts.clear();
        self.wide.forget();
    }

    /// Returns the next check that is due, and counts it as sent.
    pub(crate) fn poll_check(&mut self, now: Instant) -> Option<(NodeId, SocketAddr)> {
        if self.waiting >= MAX_WAITING {
            return None;
        }
        for ((peer, _), attempt) in &mut self.attempts {
            while let Some(target) = attempt.poll(now) {
                if self.budget.take(peer, target, now) {
                    self.waiting += 1;
                    return Some((*peer, target.address));
                }
                attempt.give_up(target.address);
            }
        }
        None
    }

    /// A check was answered, or is not waited for any more.
    pub(crate) fn check_ended(&mut self) {
        self.waiting = self.waiting.saturating_sub(1);
    }

    /// Forgets what is over.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        for attempt in self.attempts.values_mut() {
            if attempt.take_vain(now) {
                self.news.push_back(News::Vain);
            }
        }
        self.attempts.retain(|_, attempt| !attempt.is_over(now));
        let late = |found: &Found| found.unused_until.is_some_and(|until| until <= now);
        let late = self.found.iter().filter(|(_, found)| late(found)).map(|(key, _)| *key);
        for (peer, remote) in late.collect::<Vec<_>>() {
            self.unused(&peer, remote);
        }
    }

    /// Returns when [`poll_check`](Self::poll_check) or [`handle_timeout`](Self::handle_timeout) has something to do.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        let is_full = self.waiting >= MAX_WAITING;
        let attempts = self.attempts.values().map(|attempt| attempt.next_at(is_full));
        let wide = self.wide.next_at().filter(|_| !is_full);
        attempts.chain(self.found.values().filter_map(|found| found.unused_until)).chain(wide).min()
    }

    pub(crate) fn poll_news(&mut self) -> Option<News> {
        self.news.pop_front()
    }
}

#[cfg(test)]
mod tests;
