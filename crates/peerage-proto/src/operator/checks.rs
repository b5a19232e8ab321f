//! Calling back: whether a node can really be reached at the addresses that it declares (Rule 6.71).
//!
//! First a sealed Ping from a port of which nobody knows; only where that node itself has answered it, a connection as well, so that
//! nobody can have the operator knock at somebody else's door. At further ports of a computer that has answered a connection will do: they
//! are for those who can make nothing but connections.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use peerage_wire::id::NodeId;
use peerage_wire::message::Request;
use peerage_wire::time::{Instant, Now};

use super::{CheckId, Operator, Output};
use crate::endpoint::RequestId;

/// How often a super-node is called back. Longer leaves members longer with one that nobody reaches; shorter costs a datagram and a
/// connection for each address more often.
const CHECK_INTERVAL: Duration = Duration::from_secs(300);

/// How soon it is called back again when it was not reached the first time.
const SECOND_TRY: Duration = Duration::from_secs(30);

/// How often a node is called back at the most, whatever it declares.
const CHECK_PAUSE: Duration = Duration::from_secs(30);

/// Within how long the super-nodes of an operator that was restarted are called back, in milliseconds.
const SPREAD_MILLIS: u64 = 60_000;

/// How long a check may take: the Ping's three sendings, and the connection's time-out.
const CHECK_TIMEOUT: Duration = Duration::from_secs(15);

/// Most nodes that are called back at once; the others wait for the next second.
const MAX_CHECKING: usize = 128;

/// How often in a row a node may not be reached before its role ends.
const MAX_MISSES: u32 = 2;

/// What is being found out about one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tried {
    Pinged,
    /// What was asked there was not answered.
    Unanswered,
    Dialled {
        has_answered: bool,
    },
    /// The connection stood, and perhaps what was asked was answered before.
    Reached {
        has_answered: bool,
    },
    Missed,
}

impl Tried {
    const FULLY: Self = Self::Reached { has_answered: true };

    const fn is_done(self) -> bool {
        matches!(self, Self::Unanswered | Self::Reached { .. } | Self::Missed)
    }
}

#[derive(Clone, Debug)]
struct Running {
    ends_at: Instant,
    addresses: BTreeMap<SocketAddr, Tried>,
}

/// What is known about where a node can be reached.
#[derive(Clone, Debug)]
pub(super) struct Check {
    /// Where it says that it can be.
    pub(super) declared: Vec<SocketAddr>,
    /// Where it was reached; of several a first miss changes nothing.
    pub(super) good: Vec<SocketAddr>,
    missed: BTreeSet<SocketAddr>,
    due_at: Instant,
    ended_at: Option<Instant>,
    running: Option<Running>,
    misses: u32,
    pub(super) unreachable_since: Option<Instant>,
}

impl Check {
    pub(super) const fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Takes what the node declares now. Another address is called back before long.
    pub(super) fn declare(&mut self, declared: Vec<SocketAddr>, now: Instant) {
        if declared.iter().any(|address| !self.declared.contains(address)) {
            let at = self.ended_at.map_or(now, |at| at.after(CHECK_PAUSE)).max(now);
            self.due_at = self.due_at.min(at);
        }
        self.good.retain(|address| declared.contains(address));
        self.declared = declared;
    }

    fn answered(&mut self, address: SocketAddr, tried: Tried) {
        if let Some(state) = self.running.as_mut().and_then(|running| running.addresses.get_mut(&address)) {
            *state = tried;
        }
    }

    /// Takes what came of a connection.
    fn dialled(&mut self, address: SocketAddr, ok: bool) {
        let running = self.running.as_mut();
        if let Some(state) = running.and_then(|running| running.addresses.get_mut(&address))
            && let Tried::Dialled { has_answered } = *state
        {
            *state = if ok { Tried::Reached { has_answered } } else { Tried::Missed };
        }
    }

    /// Returns the ports that have not answered of computers that have at another, which are dialled from now on.
    fn dial_others(&mut self) -> Vec<SocketAddr> {
        let Some(running) = &mut self.running else { return Vec::new() };
        let has_answered = |tried: &Tried| {
            matches!(tried, Tried::Dialled { has_answered: true } | Tried::Reached { has_answered: true })
        };
        let answering = running.addresses.iter().filter(|(_, tried)| has_answered(tried));
        let answering: BTreeSet<_> = answering.map(|(address, _)| address.ip()).collect();
        let unanswered = running
            .addresses
            .iter_mut()
            .filter(|(address, tried)| **tried == Tried::Unanswered && answering.contains(&address.ip()));
        unanswered
            .map(|(address, tried)| {
                *tried = Tried::Dialled { has_answered: false };
                *address
            })
            .collect()
    }

    fn is_over(&self, now: Instant) -> bool {
        self.running.as_ref().is_some_and(|running| {
            running.ends_at <= now || running.addresses.values().all(|tried| tried.is_done())
        })
    }

    /// Draws the conclusion. Returns whether anything has changed.
    fn conclude(&mut self, again: Duration, now: Instant) -> bool {
        let Some(running) = self.running.take() else { return false };
        self.ended_at = Some(now);
        let of = |address: &SocketAddr| running.addresses.get(address).copied();
        let reached = |address: &SocketAddr| matches!(of(address), Some(Tried::Reached { .. }));
        let before = (self.good.clone(), self.unreachable_since);
        if self.declared.iter().any(|address| of(address) == Some(Tried::FULLY)) {
            (self.misses, self.unreachable_since) = (0, None);
            let (good, missed) = (std::mem::take(&mut self.good), std::mem::take(&mut self.missed));
            for address in &self.declared {
                let is_first_miss = good.contains(address) && !missed.contains(address) && !reached(address);
                if is_first_miss {
                    self.missed.insert(*address);
                }
                if reached(address) || is_first_miss {
                    self.good.push(*address);
                }
            }
            // Messages go to the first one first.
            self.good.sort_by_key(|address| of(address) == Some(Tried::Reached { has_answered: false }));
            self.due_at = now.after(again);
        } else {
            self.misses = self.misses.saturating_add(1);
            if self.good.is_empty() || self.misses >= MAX_MISSES {
                self.good.clear();
                self.unreachable_since.get_or_insert(now);
            }
            self.due_at = now.after(SECOND_TRY);
        }
        before != (self.good.clone(), self.unreachable_since)
    }
}

/// The questions under way.
#[derive(Clone, Debug, Default)]
pub(super) struct Checks {
    pings: BTreeMap<RequestId, (NodeId, SocketAddr)>,
    dials: BTreeMap<CheckId, (NodeId, SocketAddr)>,
    next_dial: u64,
}

impl Operator {
    /// Begins to know a node. What its record says was found out by whoever had it signed.
    pub(super) fn new_check(&mut self, declared: &[SocketAddr], recorded: &[SocketAddr], now: Now) -> Check {
        let good: Vec<_> = declared.iter().filter(|address| recorded.contains(address)).copied().collect();
        let wait = if good.is_empty() { 0 } else { self.endpoint.below(SPREAD_MILLIS) };
        Check {
            declared: declared.to_vec(),
            good,
            missed: BTreeSet::new(),
            due_at: now.mono.after(Duration::from_millis(wait)),
            ended_at: None,
            running: None,
            misses: 0,
            unreachable_since: None,
        }
    }

    /// Calls a node back if it is time to.
    pub(super) fn begin_check_if_due(&mut self, node: NodeId, now: Now) {
        let is_due = |check: &Check| !check.is_running() && check.due_at <= now.mono;
        if !self.supers.leases.get(&node).is_some_and(|lease| is_due(&lease.check)) {
            return;
        }
        let checking = self.supers.leases.values().filter(|lease| lease.check.is_running()).count();
        let Some(lease) = self.supers.leases.get_mut(&node).filter(|_| checking < MAX_CHECKING) else {
            return;
        };
        let check = &mut lease.check;
        let identity = self.endpoint.peer(&node).map(|member| member.identity);
        let tried = if identity.is_some() { Tried::Pinged } else { Tried::Missed };
        let addresses: BTreeMap<_, _> = check.declared.iter().map(|address| (*address, tried)).collect();
        let targets: Vec<_> = addresses.keys().copied().collect();
        check.running = Some(Running { ends_at: now.mono.after(CHECK_TIMEOUT), addresses });
        if identity.is_some() {
            for address in targets {
                let id = self.endpoint.request_as_stranger(node, address, &Request::Ping, now);
                self.supers.checks.pings.insert(id, (node, address));
            }
        }
        self.end_check_if_over(node, now);
    }

    /// Takes the end of a Ping. Returns whether it was one of a check.
    pub(super) fn check_pinged(&mut self, request: RequestId, ok: bool, now: Now) -> bool {
        let Some((node, address)) = self.supers.checks.pings.remove(&request) else { return false };
        let Some(lease) = self.supers.leases.get_mut(&node) else { return true };
        let identity = self.endpoint.peer(&node).map(|member| member.identity);
        let tried = if ok { Tried::Dialled { has_answered: true } } else { Tried::Unanswered };
        lease.check.answered(address, tried);
        let Some(identity) = identity.filter(|_| lease.check.is_running()) else {
            self.end_check_if_over(node, now);
            return true;
        };
        let others = lease.check.dial_others();
        for address in others.into_iter().chain(ok.then_some(address)) {
            let task = CheckId(self.supers.checks.next_dial);
            self.supers.checks.next_dial = task.0.wrapping_add(1);
            self.supers.checks.dials.insert(task, (node, address));
            self.outputs.push_back(Output::CheckTcp { task, identity, address });
        }
        self.end_check_if_over(node, now);
        true
    }

    pub(super) fn tcp_checked(&mut self, task: CheckId, ok: bool, now: Now) {
        let Some((node, address)) = self.supers.checks.dials.remove(&task) else { return };
        if let Some(lease) = self.supers.leases.get_mut(&node) {
            lease.check.dialled(address, ok);
        }
        self.end_check_if_over(node, now);
    }

    fn end_check_if_over(&mut self, node: NodeId, now: Now) {
        let again = CHECK_INTERVAL + Duration::from_millis(self.endpoint.below(SPREAD_MILLIS));
        let Some(lease) = self.supers.leases.get_mut(&node) else { return };
        if lease.check.is_over(now.mono) {
            let has_changed = lease.check.conclude(again, now.mono);
            self.supers.checks.dials.retain(|_, (of, _)| *of != node);
            if has_changed {
                self.plan_soon(now);
            }
        }
    }

    /// Ends checks that took too long, and begins those that are due.
    pub(super) fn review_checks(&mut self, now: Now) {
        let is_due = |check: &Check| {
            // Who cannot be reached is called back when it asks again.
            !check.is_running() && check.due_at <= now.mono && check.unreachable_since.is_none()
        };
        let leases = self.supers.leases.iter();
        let wanted = leases.filter(|(_, lease)| lease.check.is_over(now.mono) || is_due(&lease.check));
        for node in wanted.map(|(node, _)| *node).collect::<Vec<_>>() {
            self.end_check_if_over(node, now);
            if self.supers.is_live(&node) && self.supers.leases.get(&node).is_some_and(|l| is_due(&l.check)) {
                self.begin_check_if_due(node, now);
            }
        }
    }
}
