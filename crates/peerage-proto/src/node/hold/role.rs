//! Becoming a super-node, staying one, and stopping in order (Rules 4.9, 6.50 and 6.51).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use peerage_wire::codec::{Candidate, Transport};
use peerage_wire::id::{NodeId, Segment};
use peerage_wire::limits::MAX_ADDRESSES;
use peerage_wire::message::{Load, Reply, Request, Submission, SuperNodeState};
use peerage_wire::time::{Instant, Now};

use super::{Errand, Server};
use crate::node::places::is_private;
use crate::node::{Answer, Node, SuperConfig, SuperState, TaskId};
use crate::table::Limits;

/// How often a willing node offers itself while it waits for a part of the table, or has just changed (Rule 4.9).
const SUBMIT_INTERVAL: Duration = Duration::from_secs(10);

/// The same once it holds one: three times in a lease. More often costs every operator a request of every super-node; more seldom
/// lets it find out later that one is lost.
const HELD_INTERVAL: Duration = Duration::from_secs(25);

/// The same when no operator has answered for a while. An operator that comes back waits a minute for its super-nodes before it
/// gives their places to others.
const SILENT_INTERVAL: Duration = Duration::from_secs(40);

/// The same while it hands over, so that its owner does not wait for long.
const LEAVING_INTERVAL: Duration = Duration::from_secs(3);

/// How often a node asks again that is not needed. A network may have thousands of them, and replaces somebody within ten
/// minutes.
const SPARE_INTERVAL: Duration = Duration::from_secs(60);

/// How often a node asks again that was refused; an administrator has to change something first.
const REFUSED_INTERVAL: Duration = Duration::from_secs(600);

/// How soon a node asks again that was not reached; twice as late each time, up to [`REFUSED_INTERVAL`]. Each costs the operator
/// a datagram and a connection for each address.
const UNREACHABLE_PAUSE: Duration = Duration::from_secs(60);

/// Within how long nodes offer themselves that have reason to at the same moment, in milliseconds.
const BEGIN_WITHIN_MILLIS: u64 = 3_000;

/// How long handing over may take; whoever stops then loses nothing for good, for other holders have it too.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(60);

/// Who waits for the end of a handover.
#[derive(Clone, Copy, Debug)]
enum Waiting {
    Off(TaskId),
    Leave(TaskId),
}

/// The willingness of the owner, and what the operator makes of it.
#[derive(Debug)]
pub(super) struct Role {
    config: SuperConfig,
    unfit: Option<String>,
    /// Stopped by command, until the owner says something else.
    is_stopped: bool,
    /// The operator's last word.
    answer: Option<SuperNodeState>,
    /// Who answered last.
    operator: Option<NodeId>,
    /// Operators that were silent since one answered.
    silent: BTreeSet<NodeId>,
    /// How long to wait when all were.
    silent_pause: Duration,
    /// When to offer itself next, unless that is under way.
    submit_at: Option<Instant>,
    is_submitting: bool,
    unreachable_pause: Duration,
    /// How an operator sees this node; `None` until it was asked.
    observed: Option<Option<SocketAddr>>,
    is_observing: bool,
    /// Until when the handover may go on.
    leaving_until: Option<Instant>,
    waiting: Vec<Waiting>,
}

impl Role {
    pub(super) const fn new(config: SuperConfig) -> Self {
        Self {
            config,
            unfit: None,
            is_stopped: false,
            answer: None,
            operator: None,
            silent: BTreeSet::new(),
            silent_pause: SUBMIT_INTERVAL,
            submit_at: None,
            is_submitting: false,
            unreachable_pause: UNREACHABLE_PAUSE,
            observed: None,
            is_observing: false,
            leaving_until: None,
            waiting: Vec::new(),
        }
    }

    pub(super) fn unfit(&self) -> Option<&str> {
        self.unfit.as_deref()
    }

    /// Takes note that an operator has not answered, so that it is not the first choice any more.
    pub(super) fn was_silent(&mut self, operator: &NodeId) {
        if self.operator.as_ref() == Some(operator) {
            self.operator = None;
        }
    }

    pub(super) fn next_at(&self) -> Option<Instant> {
        [self.submit_at, self.leaving_until].into_iter().flatten().min()
    }

    /// Returns whether the owner and the circumstances let the node be a super-node.
    pub(super) const fn is_lent(&self) -> bool {
        self.config.on && !self.is_stopped && self.unfit.is_none()
    }

    pub(super) fn limits(&self) -> Limits {
        let bytes = usize::try_from(self.config.max_bytes).unwrap_or(usize::MAX);
        Limits::new(bytes, crate::table::MAX_PER_DOMAIN)
    }

    pub(super) fn max_tunnels(&self) -> usize {
        usize::try_from(self.config.max_tunnels).unwrap_or(usize::MAX)
    }

    pub(super) const fn state(&self, holds: Option<Segment>, is_permitted: bool) -> SuperState {
        if holds.is_some() && self.leaving_until.is_some() {
            return SuperState::HandingOver;
        }
        if !self.config.on || self.is_stopped {
            return SuperState::Off;
        }
        if !is_permitted {
            return SuperState::NotPermitted;
        }
        if self.unfit.is_some() {
            return SuperState::Unfit;
        }
        match (holds, self.answer) {
            (Some(Segment { from, to }), _) => SuperState::Serving { from, to },
            (None, Some(SuperNodeState::Refused)) => SuperState::NotPermitted,
            (None, Some(SuperNodeState::Unreachable)) => SuperState::Unreachable,
            (None, Some(SuperNodeState::Checking)) => SuperState::Checking,
            (None, _) => SuperState::Asking,
        }
    }
}

impl Node {
    /// The owner lends more, less, or nothing.
    pub(in crate::node) fn super_role(&mut self, config: SuperConfig, now: Now) {
        let role = &mut self.hold.role;
        role.config = config;
        role.answer = None;
        // Whoever leaves its domain does so whatever it lends meanwhile.
        role.is_stopped = role.waiting.iter().any(|waiting| matches!(waiting, Waiting::Leave(_)));
        if role.is_lent() {
            self.handover_revoked();
        }
        self.limit_part(now);
    }

    /// The computer's circumstances have changed.
    pub(in crate::node) fn fitness(&mut self, ok: bool, why: String) {
        self.hold.role.unfit = (!ok).then_some(why);
    }

    /// Hands over and stops, and answers when that is done.
    pub(in crate::node) fn super_off(&mut self, task: TaskId, now: Now) {
        self.hold.role.is_stopped = true;
        self.stop_for(Waiting::Off(task), now);
    }

    /// Hands over before the node leaves its domain. Returns whether there is anything to hand over.
    pub(in crate::node) fn hands_over_first(&mut self, task: TaskId, now: Now) -> bool {
        if self.hold.part.is_none() {
            return false;
        }
        self.hold.role.is_stopped = true;
        self.stop_for(Waiting::Leave(task), now);
        true
    }

    fn stop_for(&mut self, waiting: Waiting, now: Now) {
        self.hold.role.waiting.push(waiting);
        if self.hold.part.is_none() {
            self.handover_ended(true, now);
        }
    }

    /// The networks are others now, and so may be the addresses.
    /// Returns whether the owner lends this computer to the network, and nothing stands against it.
    pub(in crate::node) const fn is_lent(&self) -> bool {
        self.hold.role.is_lent()
    }

    pub(in crate::node) fn readdress_role(&mut self, now: Now) {
        let role = &mut self.hold.role;
        role.observed = None;
        role.unreachable_pause = UNREACHABLE_PAUSE;
        if role.submit_at.is_some() {
            self.submit_soon(now);
        }
    }

    fn submit_soon(&mut self, now: Now) {
        let wait = Duration::from_millis(self.endpoint.below(BEGIN_WITHIN_MILLIS));
        self.hold.role.submit_at = Some(now.mono.after(wait));
    }

    /// Draws the consequences of what the owner, the administrator and the computer's circumstances say.
    pub(super) fn review_role(&mut self, now: Now) {
        let is_member = self.me.roles.super_node && !self.is_revoked() && !self.is_expired(now);
        let (is_lent, holds) = (self.hold.role.is_lent(), self.hold.part.is_some());
        if !holds && !self.hold.role.waiting.is_empty() {
            self.handover_ended(false, now);
        }
        let role = &mut self.hold.role;
        if !is_member {
            role.submit_at = None;
            if holds {
                self.give_up_part(now);
            }
        } else if is_lent && role.leaving_until.take().is_some() {
            // The reason to stop has gone.
            self.submit_soon(now);
        } else if !is_lent && holds && role.leaving_until.is_none() {
            role.leaving_until = Some(now.mono.after(HANDOVER_TIMEOUT));
            role.submit_at = Some(now.mono);
        } else if !is_lent && !holds {
            role.submit_at = None;
        } else if is_lent && role.submit_at.is_none() && !role.is_submitting && !role.is_observing {
            self.submit_soon(now);
        }
    }

    pub(super) fn role_timeout(&mut self, now: Now) {
        if self.hold.role.leaving_until.is_some_and(|at| at <= now.mono) {
            self.end_handover(false, now);
        }
        if self.hold.role.submit_at.is_some_and(|at| at <= now.mono) {
            self.hold.role.submit_at = None;
            self.submit(now);
        }
    }

    // ---- offering itself --------------------------------------------------------------------

    /// Returns the operator that answered last, or else one that was not silent.
    pub(super) fn next_operator(&mut self, silent: &BTreeSet<NodeId>, now: Now) -> Option<Server> {
        let all = self.shuffled_operators(now);
        let last = self.hold.role.operator;
        let good = |server: &&Server| !silent.contains(&server.node);
        let same = all.iter().filter(good).find(|server| Some(server.node) == last);
        same.or_else(|| all.iter().find(good)).copied()
    }

    /// Returns an operator that was not silent since it answered last.
    pub(super) fn answering_operator(&mut self, now: Now) -> Option<Server> {
        let all = self.shuffled_operators(now);
        all.into_iter().find(|server| self.servers.penalty(&server.node, now.mono) == (0, 0))
    }

    fn submit(&mut self, now: Now) {
        let silent = self.hold.role.silent.clone();
        let Some(server) = self.next_operator(&silent, now) else {
            self.hold.role.silent.clear();
            self.submit_after(SUBMIT_INTERVAL, now);
            return;
        };
        if self.hold.role.observed.is_none() && self.advertise.is_empty() {
            self.hold.role.is_observing = true;
            return self.send_on(server, &Request::Ping, Errand::Observe, now);
        }
        let part = self.hold.part.as_ref();
        let load = Load {
            relayed_bytes: self.hold.relayed_bytes,
            relayed_tunnels: part
                .map_or(0, |part| u32::try_from(part.desk.load().tunnels).unwrap_or(u32::MAX)),
            records: part.map_or(0, |part| u32::try_from(part.records.len()).unwrap_or(u32::MAX)),
            held_bytes: part.map_or(0, |part| part.records.bytes_held() as u64),
            max_bytes: self.hold.role.limits().max_bytes() as u64,
            lacking: part.map_or(0, |part| u32::try_from(part.lacking.len()).unwrap_or(u32::MAX)),
        };
        let submission = Submission {
            id: self.command_id(),
            addresses: self.public_addresses(server.address),
            version: self.assignment_version(),
            leaving: self.hold.role.leaving_until.is_some(),
            load,
        };
        self.hold.role.is_submitting = true;
        self.send_on(server, &Request::SubmitSuperNode(submission), Errand::Submit, now);
    }

    fn submit_after(&mut self, interval: Duration, now: Now) {
        self.hold.role.submit_at = Some(now.mono.after(self.jittered(interval)));
    }

    /// Returns where anybody may reach this node: where the owner says, at addresses that are no private ones (unless the
    /// operator's is), and where an operator sees it, if its port is forwarded or its provider translates one to one.
    pub(in crate::node) fn public_addresses(&self, operator: SocketAddr) -> Vec<SocketAddr> {
        let is_local = |ip: IpAddr| is_private(ip) || ip.is_loopback();
        let near = is_local(operator.ip());
        let own = self.own_candidates();
        // A super-node has one port for both.
        let both = |c: &&Candidate| own.contains(&Candidate { transport: Transport::Tcp, ..**c });
        let hosts = own.iter().filter(|candidate| candidate.transport == Transport::Udp).filter(both);
        let hosts = hosts.map(|candidate| candidate.address).filter(|own| near || !is_local(own.ip()));
        let seen = self.hold.role.observed.flatten();
        let seen = seen.map(|seen| SocketAddr::new(seen.ip().to_canonical(), self.port));
        let mut addresses = Vec::new();
        for address in self.advertise.iter().copied().chain(hosts).chain(seen) {
            if !addresses.contains(&address) && addresses.len() < MAX_ADDRESSES {
                addresses.push(address);
            }
        }
        addresses
    }

    pub(super) fn observed(&mut self, reply: &Reply, now: Now) {
        self.hold.role.is_observing = false;
        let seen = if let Reply::Reping { observed } = reply { Some(*observed) } else { None };
        self.hold.role.observed = Some(seen);
        self.hold.role.submit_at = Some(now.mono);
    }

    pub(super) fn unobserved(&mut self, now: Now) {
        self.hold.role.is_observing = false;
        self.submit_after(SILENT_INTERVAL, now);
    }

    pub(super) fn submitted(&mut self, from: NodeId, reply: &Reply, now: Now) {
        let Reply::SuperNodeSubmitted { state, .. } = *reply else { return };
        let role = &mut self.hold.role;
        role.is_submitting = false;
        role.operator = Some(from);
        role.silent.clear();
        role.silent_pause = SUBMIT_INTERVAL;
        role.answer = Some(state);
        let pause = role.unreachable_pause;
        if state == SuperNodeState::Unreachable {
            role.unreachable_pause = (pause * 2).min(REFUSED_INTERVAL);
        } else {
            role.unreachable_pause = UNREACHABLE_PAUSE;
        }
        let is_leaving = role.leaving_until.is_some();
        let interval = match state {
            SuperNodeState::Refused => REFUSED_INTERVAL,
            SuperNodeState::Unreachable => pause,
            _ if is_leaving => LEAVING_INTERVAL,
            SuperNodeState::NotNeeded if self.hold.part.is_none() => SPARE_INTERVAL,
            SuperNodeState::Assigned if self.hold.part.is_some() => HELD_INTERVAL,
            SuperNodeState::Checking
            | SuperNodeState::Assigned
            | SuperNodeState::HandedOver
            | SuperNodeState::NotNeeded => SUBMIT_INTERVAL,
        };
        self.submit_after(interval, now);
        match state {
            SuperNodeState::HandedOver if is_leaving => self.end_handover(true, now),
            // Nobody comes here, or nobody should: nothing is gained by holding on.
            SuperNodeState::Refused | SuperNodeState::Unreachable if self.hold.part.is_some() => {
                self.give_up_part(now);
            }
            SuperNodeState::Refused
            | SuperNodeState::Checking
            | SuperNodeState::Assigned
            | SuperNodeState::Unreachable
            | SuperNodeState::HandedOver
            | SuperNodeState::NotNeeded => {}
        }
    }

    pub(super) fn submission_failed(&mut self, to: NodeId, now: Now) {
        let role = &mut self.hold.role;
        role.is_submitting = false;
        role.silent.insert(to);
        let silent = role.silent.clone();
        // The lease should not end because one operator of several is down.
        if self.next_operator(&silent, now).is_some() {
            self.hold.role.submit_at = Some(now.mono);
            return;
        }
        let role = &mut self.hold.role;
        role.silent.clear();
        let pause = role.silent_pause;
        role.silent_pause = (pause * 2).min(SILENT_INTERVAL);
        self.submit_after(pause, now);
    }

    // ---- stopping ---------------------------------------------------------------------------

    /// Returns whether this node hands over what it holds.
    pub(super) const fn is_handing_over(&self) -> bool {
        self.hold.role.leaving_until.is_some()
    }

    pub(super) fn end_handover(&mut self, handed_over: bool, now: Now) {
        self.give_up_part(now);
        self.handover_ended(handed_over, now);
    }

    /// The owner lends the computer again: tells whoever waited for the end of the handover that there is none.
    fn handover_revoked(&mut self) {
        for waiting in std::mem::take(&mut self.hold.role.waiting) {
            match waiting {
                Waiting::Off(task) => self.answer(task, Answer::SuperOff { handed_over: false }),
                Waiting::Leave(_) => self.hold.role.waiting.push(waiting),
            }
        }
    }

    /// Nothing is held any more: tells whoever waited for that.
    pub(super) fn handover_ended(&mut self, handed_over: bool, now: Now) {
        self.hold.role.leaving_until = None;
        for waiting in std::mem::take(&mut self.hold.role.waiting) {
            match waiting {
                Waiting::Off(task) => self.answer(task, Answer::SuperOff { handed_over }),
                Waiting::Leave(task) => self.leave_now(task, now),
            }
        }
    }
}
