//! The relay's rules: which two legs belong together, and how much a borrowed machine gives (Rules 6.30 to 6.32).
//!
//! A *leg* is a TCP connection that a member made to the relay. [`Relay`] decides which two are joined: those that name
//! each other with the same link id, in one domain, within the quotas. It never asks for a connection to be made, so it
//! can neither be aimed at anybody nor be made to relay to itself. [`Allowance`] meters the bytes.
//!
//! Whoever hosts it (a super-node, an operator that stands in) authenticates the request of each leg, tells it here, and
//! does what [`Relay::poll_action`] says.

mod allowance;
mod desk;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use peerage_wire::id::{Domain, LinkId, NodeId};
use peerage_wire::message::RelayRefusal;
use peerage_wire::time::Instant;

pub use allowance::{Allowance, MIN_GRANT_BYTES};
pub use desk::{Desk, Input, Load, Output};

/// How long a leg waits for the other one. Longer keeps descriptors for peers that will not come; shorter loses those
/// whose request travels over a bad mobile network.
pub const PAIRING_TIMEOUT: Duration = Duration::from_secs(10);

/// How many legs may wait at a relay that gives less than as many tunnels. A node tries several ways to a device at once, and uses one:
/// if those that come to nothing took the place of a tunnel, a small relay would refuse for 10 s what it has room for.
const MIN_WAITING: usize = 16;

/// Most domains whose refusals are counted between two reports.
const MAX_REFUSING_DOMAINS: usize = 4_096;

/// Names one leg at its relay, and one leg of its own at a node; given by the shell, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LegId(pub u64);

/// How many legs a relay takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tunnels in all, each of two descriptors. As many legs may wait besides, and 16 at least.
    pub tunnels: usize,
    /// Legs of one node: 64 links carry some sixteen thousand sessions.
    pub per_node: u32,
    /// Tunnels of one domain; a fraction of all, so that no domain pushes out the others.
    pub per_domain: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { tunnels: 2_048, per_node: 64, per_domain: 256 }
    }
}

/// What a leg's request says, after its sender was authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Join {
    /// Who made the leg.
    pub from: NodeId,
    /// Whom it wants to be joined with.
    pub peer: NodeId,
    /// The attempt that both know of.
    pub link: LinkId,
}

/// What the host must do. `T` is what it needs to answer a leg's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<T> {
    /// Answer both that they are joined, then pass bytes between them.
    Join([(LegId, T); 2]),
    /// Answer why not, then close the leg.
    Refuse(LegId, T, RelayRefusal),
    /// Close a leg that was joined, at once.
    Close(LegId),
}

/// Which legs belong together: link id and both ends, the lower first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    link: LinkId,
    nodes: [NodeId; 2],
}

#[derive(Clone, Debug)]
enum Tunnel<T> {
    /// One leg waits for the other.
    Waiting {
        leg: LegId,
        from: NodeId,
        ticket: T,
    },
    Joined([LegId; 2]),
}

/// The legs of one relay.
#[derive(Clone, Debug)]
pub struct Relay<T> {
    limits: Limits,
    tunnels: BTreeMap<Key, Tunnel<T>>,
    legs: BTreeMap<LegId, (Key, NodeId)>,
    per_node: BTreeMap<NodeId, u32>,
    per_domain: BTreeMap<Domain, u32>,
    /// When waiting legs are given up, the earliest first; legs that are gone meanwhile are skipped.
    deadlines: VecDeque<(Instant, LegId)>,
    refusals: BTreeMap<Domain, u64>,
    joined: usize,
    actions: VecDeque<Action<T>>,
}

impl<T> Relay<T> {
    /// Makes a relay without legs.
    pub const fn new(limits: Limits) -> Self {
        Self {
            limits,
            tunnels: BTreeMap::new(),
            legs: BTreeMap::new(),
            per_node: BTreeMap::new(),
            per_domain: BTreeMap::new(),
            deadlines: VecDeque::new(),
            refusals: BTreeMap::new(),
            joined: 0,
            actions: VecDeque::new(),
        }
    }

    /// Takes the request of a leg. The host has verified that `from` is a valid member and not revoked.
    pub fn join(&mut self, leg: LegId, join: Join, ticket: T, now: Instant) {
        let Join { from, peer, link } = join;
        if from == peer || from.domain != peer.domain {
            return self.refuse(leg, from, ticket, RelayRefusal::Names);
        }
        if self.legs.contains_key(&leg) {
            // The leg has said already what it wants. Its first request is answered by this too.
            self.closed(leg);
            return self.refuse(leg, from, ticket, RelayRefusal::Duplicate);
        }
        let key = Key { link, nodes: [from.min(peer), from.max(peer)] };
        match self.tunnels.get(&key) {
            Some(Tunnel::Joined(_)) => self.refuse(leg, from, ticket, RelayRefusal::Duplicate),
            // It dials again before it was joined: its earlier leg has died without this relay noticing.
            Some(Tunnel::Waiting { from: waiting, leg: earlier, .. }) if *waiting == from => {
                self.give_up(*earlier, key, from, RelayRefusal::Duplicate);
                self.wait(key, leg, from, ticket, now);
            }
            Some(Tunnel::Waiting { .. }) => self.pair(key, leg, from, ticket),
            None => self.wait(key, leg, from, ticket, now),
        }
    }

    /// A leg is gone, whoever has closed it. Its partner is closed too.
    pub fn closed(&mut self, leg: LegId) {
        let Some((key, from)) = self.legs.remove(&leg) else { return };
        lower(&mut self.per_node, from);
        // Gone already if this is the second leg of a tunnel that ends.
        let Some(tunnel) = self.tunnels.remove(&key) else { return };
        lower(&mut self.per_domain, from.domain);
        if let Tunnel::Joined(legs) = tunnel {
            self.joined = self.joined.saturating_sub(1);
            for other in legs.into_iter().filter(|other| *other != leg) {
                self.closed(other);
                self.actions.push_back(Action::Close(other));
            }
        }
    }

    /// Ends the legs of all that may not be here any more: at each news of revoked and expired members.
    pub fn review(&mut self, may_stay: impl Fn(&NodeId) -> bool) {
        let ended: Vec<_> = self.legs.iter().filter(|(_, (_, from))| !may_stay(from)).collect();
        for leg in ended.into_iter().map(|(leg, _)| *leg).collect::<Vec<_>>() {
            // A partner may have gone with the one before.
            if let Some((key, from)) = self.legs.get(&leg).copied() {
                self.give_up(leg, key, from, RelayRefusal::Membership);
            }
        }
    }

    /// Gives up legs that have waited for too long.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((_, leg)) = self.deadlines.pop_front_if(|(at, _)| *at <= now) {
            if let Some((key, from)) = self.waiting(leg) {
                self.give_up(leg, key, from, RelayRefusal::NoPeer);
            }
        }
        while self.deadlines.front().is_some_and(|(_, leg)| self.waiting(*leg).is_none()) {
            self.deadlines.pop_front();
        }
    }

    /// Returns when [`handle_timeout`](Self::handle_timeout) is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.front().map(|(at, _)| *at)
    }

    /// Returns the next thing to do, oldest first.
    pub fn poll_action(&mut self) -> Option<Action<T>> {
        self.actions.pop_front()
    }

    /// Returns how many tunnels are joined.
    pub const fn tunnels(&self) -> usize {
        self.joined
    }

    /// Returns how many legs there are, the waiting ones included.
    pub fn legs(&self) -> usize {
        self.legs.len()
    }

    /// Hands over how often each domain was refused for its quota since the last time, to be reported.
    pub fn take_refusals(&mut self) -> BTreeMap<Domain, u64> {
        std::mem::take(&mut self.refusals)
    }

    fn wait(&mut self, key: Key, leg: LegId, from: NodeId, ticket: T, now: Instant) {
        let of = |counts: Option<&u32>| counts.copied().unwrap_or(0);
        if of(self.per_node.get(&from)) >= self.limits.per_node {
            return self.refuse(leg, from, ticket, RelayRefusal::NodeQuota);
        }
        if of(self.per_domain.get(&from.domain)) >= self.limits.per_domain {
            return self.refuse(leg, from, ticket, RelayRefusal::DomainQuota);
        }
        let waiting = self.tunnels.len().saturating_sub(self.joined);
        if self.is_full() || waiting >= self.limits.tunnels.max(MIN_WAITING) {
            return self.refuse(leg, from, ticket, RelayRefusal::Full);
        }
        *self.per_domain.entry(from.domain).or_default() += 1;
        self.take_in(leg, key, from);
        self.deadlines.push_back((now.after(PAIRING_TIMEOUT), leg));
        self.tunnels.insert(key, Tunnel::Waiting { leg, from, ticket });
    }

    fn pair(&mut self, key: Key, leg: LegId, from: NodeId, ticket: T) {
        if self.per_node.get(&from).is_some_and(|count| *count >= self.limits.per_node) {
            return self.refuse(leg, from, ticket, RelayRefusal::NodeQuota);
        }
        if self.is_full() {
            if let Some(Tunnel::Waiting { leg: first, from: other, .. }) = self.tunnels.get(&key) {
                self.give_up(*first, key, *other, RelayRefusal::Full);
            }
            return self.refuse(leg, from, ticket, RelayRefusal::Full);
        }
        let first = self.tunnels.remove(&key);
        let Some(Tunnel::Waiting { leg: other, ticket: others, .. }) = first else { return };
        self.take_in(leg, key, from);
        self.tunnels.insert(key, Tunnel::Joined([other, leg]));
        self.joined += 1;
        self.actions.push_back(Action::Join([(other, others), (leg, ticket)]));
    }

    const fn is_full(&self) -> bool {
        self.joined >= self.limits.tunnels
    }

    fn take_in(&mut self, leg: LegId, key: Key, from: NodeId) {
        *self.per_node.entry(from).or_default() += 1;
        self.legs.insert(leg, (key, from));
    }

    /// Returns whose leg waits, and for what; `None` if it is joined or gone.
    fn waiting(&self, leg: LegId) -> Option<(Key, NodeId)> {
        let (key, from) = *self.legs.get(&leg)?;
        matches!(self.tunnels.get(&key), Some(Tunnel::Waiting { .. })).then_some((key, from))
    }

    /// Ends a leg from this side: a waiting one is told why, a joined one is closed with its partner.
    fn give_up(&mut self, leg: LegId, key: Key, from: NodeId, why: RelayRefusal) {
        if self.waiting(leg).is_none() {
            self.closed(leg);
            return self.actions.push_back(Action::Close(leg));
        }
        let Some(Tunnel::Waiting { ticket, .. }) = self.tunnels.remove(&key) else { return };
        self.legs.remove(&leg);
        lower(&mut self.per_node, from);
        lower(&mut self.per_domain, from.domain);
        self.actions.push_back(Action::Refuse(leg, ticket, why));
    }

    fn refuse(&mut self, leg: LegId, from: NodeId, ticket: T, why: RelayRefusal) {
        let is_quota = matches!(why, RelayRefusal::NodeQuota | RelayRefusal::DomainQuota);
        let has_room = self.refusals.len() < MAX_REFUSING_DOMAINS;
        if is_quota && (has_room || self.refusals.contains_key(&from.domain)) {
            *self.refusals.entry(from.domain).or_default() += 1;
        }
        self.actions.push_back(Action::Refuse(leg, ticket, why));
    }
}

fn lower<K: Ord>(counts: &mut BTreeMap<K, u32>, key: K) {
    if let std::collections::btree_map::Entry::Occupied(mut entry) = counts.entry(key) {
        let left = entry.get().saturating_sub(1);
        if left == 0 {
            entry.remove();
        } else {
            entry.insert(left);
        }
    }
}

#[cfg(test)]
mod tests;
