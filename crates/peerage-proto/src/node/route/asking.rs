//! Asking tunnel-nodes for a path, in several attempts that overlap: one node may be gone, or one of those through whom it is asked
//! (Rules 6.15, 6.17 and 6.32).
//!
//! An *attempt* is one TunnelRequest: to one tunnel-node, through at most one forwarder, who is the relay at which both are to meet.
//! The first that is answered decides, and the others are given up.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use peerage_wire::codec::{Candidate, Transport};
use peerage_wire::id::{DeviceId, LinkId, NodeId, SessionId};
use peerage_wire::limits::{MAX_HELLO, MAX_STRANGERS_REQUEST};
use peerage_wire::message::{Reply, Request, TunnelRequest};
use peerage_wire::record::EndDevice;
use peerage_wire::time::{Instant, Now};
use rand_core::Rng as _;

use super::{Failure, Target, chosen_service};
use crate::link::Side;
use crate::node::{Begun, Node, Output, Purpose, RequestId, Server, TaskId};

/// How long after an attempt without an answer the next are made as well (RFC 8305, section 5, recommends 250 ms). Shorter asks twice
/// wherever a round trip is long; longer makes people wait for those who are gone.
const STAGGER: Duration = Duration::from_millis(250);

/// How long after the last attempt a tunnel-node is dialled where it has announced itself, although it has not answered.
const PATH_TIMEOUT: Duration = Duration::from_millis(700);

/// Most tunnel-nodes that are asked for one path.
const MAX_ASKED: usize = 3;

/// Through how many of those to whom a tunnel-node is attached it is asked.
const MAX_FORWARDERS: usize = 2;

/// Most addresses to which one TunnelRequest goes.
const MAX_PATH_ADDRESSES: usize = 4;

/// The attempts of one search.
#[derive(Clone, Debug)]
pub(super) struct Asking {
    device: DeviceId,
    service: String,
    /// Best first.
    targets: Vec<Target>,
    /// What is left to be tried: all of one turn at the same time.
    turns: VecDeque<Vec<Try>>,
    /// How many of these, the last ones, ask those who failed lately.
    last_resorts: usize,
    next_at: Option<Instant>,
    attempts: Vec<Attempt>,
    /// What was answered to an attempt without a relay, while the same tunnel-node is asked to come to another one.
    kept: Option<(Attempt, Said)>,
    /// When nobody is waited for any more.
    deadline: Instant,
}

/// A tunnel-node, by its place among the targets, and who passes the request on.
#[derive(Clone, Copy, Debug)]
struct Try {
    target: usize,
    forwarder: Option<Server>,
    /// Whether it is asked at its own addresses too.
    is_straight: bool,
}

/// What a tunnel-node has answered.
#[derive(Clone, Debug)]
struct Said {
    candidates: Vec<Candidate>,
    flight: Option<Bytes>,
}

#[derive(Clone, Debug)]
struct Attempt {
    target: usize,
    forwarder: Option<NodeId>,
    /// For which a leg was dialled, if one was.
    leg: Option<LinkId>,
    /// The same, once the relay has refused it; the shell knows why.
    refused: Option<LinkId>,
    /// The datagrams that were not answered yet.
    requests: BTreeSet<RequestId>,
    /// For which a handshake was begun, if one was (Rule 7.29).
    begun: Option<LinkId>,
    /// What is asked as soon as that has begun.
    unsent: Option<(Try, TunnelRequest)>,
}

impl Attempt {
    fn is_over(&self) -> bool {
        self.requests.is_empty() && self.unsent.is_none()
    }
}

impl Asking {
    /// Returns when something is due: the next attempts, or the end.
    pub(super) fn due_at(&self) -> Instant {
        self.next_at.map_or(self.deadline, |at| at.min(self.deadline))
    }

    /// Whether a tunnel-node was asked to come to a relay that has not refused.
    fn awaits_at_relay(&self, target: usize) -> bool {
        self.attempts.iter().any(|attempt| attempt.target == target && attempt.leg.is_some())
    }

    fn attempt_with(&mut self, request: RequestId) -> Option<usize> {
        self.attempts.iter().position(|attempt| attempt.requests.contains(&request))
    }
}

impl Node {
    /// Asks the best of these tunnel-nodes, and soon the others; while tunnels wait, whoever can be asked at once.
    pub(super) fn ask_for_path(
        &mut self,
        task: TaskId,
        device: &EndDevice,
        mut targets: Vec<Target>,
        now: Now,
    ) {
        targets.truncate(MAX_ASKED);
        let Some(search) = self.routing.searches.get(&task) else { return };
        let is_lost = search.peer.is_some();
        let service = chosen_service(device, search.service.as_deref()).map(|service| service.name.clone());
        // Those who failed lately come last.
        let has_failed = |target: &Target| self.failed_lately(device.device, target.member.id, now);
        let (good, failed) = targets.split_at(targets.partition_point(|target| !has_failed(target)));
        let (mut turns, rest) = (self.turns(0, good, now), self.turns(good.len(), failed, now));
        let last_resorts = if turns.is_empty() { 0 } else { rest.len() };
        turns.extend(rest);
        if is_lost {
            turns = VecDeque::from([turns.into_iter().flatten().collect()]);
        }
        let asking = Asking {
            device: device.device,
            service: service.unwrap_or_default(),
            targets,
            turns,
            last_resorts,
            next_at: None,
            attempts: Vec::new(),
            kept: None,
            deadline: now.mono.after(PATH_TIMEOUT),
        };
        self.ask_next(task, asking, now);
    }

    /// Returns the ways of asking tunnel-nodes, each a turn after the one before it, and those of each node, too. `first` is the place of the
    /// first among the targets.
    fn turns(&self, first: usize, targets: &[Target], now: Now) -> VecDeque<Vec<Try>> {
        let mut turns = VecDeque::<Vec<Try>>::new();
        for (index, target) in targets.iter().enumerate() {
            for (n, one) in self.tries(first + index, target, now).into_iter().enumerate() {
                turns.resize(turns.len().max(index + n + 1), Vec::new());
                turns.get_mut(index + n).into_iter().for_each(|tries| tries.push(one));
            }
        }
        turns
    }

    /// Returns the ways of asking one tunnel-node, the nearest forwarder first.
    fn tries(&self, target: usize, of: &Target, now: Now) -> Vec<Try> {
        let known = of.attached_to.iter().filter(|node| !self.trust.is_revoked(node));
        let mut all: Vec<_> = known.filter_map(|node| self.server(*node)).collect();
        let rtt = |server: &Server| self.servers.health(&server.node).and_then(|health| health.rtt);
        all.sort_by_key(|server| {
            let rtt = rtt(server);
            let is_full = self.legs.is_full(&server.node, now.mono);
            (is_full, self.servers.penalty(&server.node, now.mono), rtt.is_none(), rtt)
        });
        all.truncate(MAX_FORWARDERS);
        let mut forwarders = all.into_iter().map(Some);
        let first = Try { target, forwarder: forwarders.next().flatten(), is_straight: true };
        let others = forwarders.map(|forwarder| Try { target, forwarder, is_straight: false });
        std::iter::once(first).chain(others).collect()
    }

    /// Makes the attempts of the next turn, and plans the one after; unless somebody has answered already.
    fn ask_next(&mut self, task: TaskId, mut asking: Asking, now: Now) {
        if let Some(kept) = asking.kept.take() {
            return self.use_answer(task, asking, kept);
        }
        for one in asking.turns.pop_front().unwrap_or_default() {
            if let Some(attempt) = self.attempt(task, &asking, one, now) {
                asking.attempts.push(attempt);
            }
        }
        asking.deadline = now.mono.after(PATH_TIMEOUT);
        // Who failed lately would often be the faster one, and fail again.
        let pause = if asking.turns.len() == asking.last_resorts { PATH_TIMEOUT } else { STAGGER };
        asking.next_at = (!asking.turns.is_empty()).then(|| now.mono.after(pause));
        self.set_stage(task, super::Stage::Asking(Box::new(asking)));
    }

    fn attempt(&mut self, task: TaskId, asking: &Asking, one: Try, now: Now) -> Option<Attempt> {
        let target = asking.targets.get(one.target)?;
        let mut id = SessionId([0; SessionId::SIZE]);
        self.endpoint.rng().fill_bytes(&mut id.0);
        let candidates = self.offered_candidates(one.forwarder.as_slice(), now);
        let (device, service) = (asking.device, asking.service.clone());
        let relay = one.forwarder.map(|server| server.node);
        let request = TunnelRequest { id, device, service, candidates, relay, hello: None };
        let leg = one.forwarder.map(|_| request.link());
        // At once: the tunnel-node dials the same relay as soon as it is asked (Rule 6.32).
        if let Some(server) = one.forwarder {
            self.dial_leg(server, request.link(), (&target.member, Side::Client), now);
        }
        self.seek_path(&target.member, &request, now);
        // Tunnels that are open already are carried on by links that are dialled elsewhere. And where the relay has no room, most likely,
        // its word is waited for before anything is said on the leg.
        let is_lost = self.routing.searches.get(&task).is_none_or(|search| search.peer.is_some());
        let is_full = one.forwarder.is_some_and(|server| self.legs.is_full(&server.node, now.mono));
        if is_lost || is_full {
            let requests = self.send_request(task, target, (one, request), now);
            let (begun, unsent) = (None, None);
            let (target, refused) = (one.target, None);
            return Some(Attempt { target, forwarder: relay, leg, refused, requests, begun, unsent });
        }
        let (attempt, identity) = (request.link(), target.member.identity);
        let places = target.announced.iter().copied().filter(|c| c.transport == Transport::Tcp).collect();
        self.outputs.push_back(Output::BeginHandshake { attempt, identity, places });
        let (begun, unsent) = (Some(attempt), Some((one, request)));
        let (target, refused, requests) = (one.target, None, BTreeSet::new());
        Some(Attempt { target, forwarder: relay, leg, refused, requests, begun, unsent })
    }

    /// The handshake for an attempt was begun, or could not be: the tunnel-node is asked.
    pub(in crate::node) fn handshake_begun(&mut self, link: LinkId, hello: Option<Bytes>, now: Now) {
        for task in self.routing.searches.keys().copied().collect::<Vec<_>>() {
            let Some(mut asking) = self.asking(task) else { continue };
            let is_meant = |attempt: &&mut Attempt| attempt.begun == Some(link);
            let Some(attempt) = asking.attempts.iter_mut().find(is_meant) else { continue };
            let Some((one, mut request)) = attempt.unsent.take() else { return };
            let Some(target) = asking.targets.get(one.target) else { return };
            request.hello = hello.filter(|hello| hello.len() <= MAX_HELLO);
            attempt.requests = self.send_request(task, target, (one, request), now);
            return self.set_stage(task, super::Stage::Asking(Box::new(asking)));
        }
    }

    fn send_request(
        &mut self,
        task: TaskId,
        target: &Target,
        (one, mut request): (Try, TunnelRequest),
        now: Now,
    ) -> BTreeSet<RequestId> {
        if !self.endpoint.is_known_to(&target.member.id, now) {
            request = fitting(request);
        }
        let request = Request::TunnelRequest(request);
        let mut requests = BTreeSet::new();
        if let Some(forwarder) = one.forwarder {
            self.acquaint(forwarder.node, now);
            let through = (forwarder.node, forwarder.address);
            let id = self.endpoint.request_through(through, target.member.id, &request, now);
            self.note_asked(forwarder.node, now);
            self.purposes.insert(id, Purpose::Path(task));
            requests.insert(id);
        }
        let udp = target.announced.iter().filter(|candidate| candidate.transport == Transport::Udp);
        let straight = if one.is_straight { MAX_PATH_ADDRESSES } else { 0 };
        for address in udp.map(|candidate| candidate.address).take(straight) {
            let server = Server { node: target.member.id, address };
            requests.insert(self.ask(server, &request, Purpose::Path(task), now));
        }
        requests
    }

    /// Takes the stage of a search that asks; whoever takes it sets another, or ends the search.
    fn asking(&mut self, task: TaskId) -> Option<Asking> {
        match &self.routing.searches.get(&task)?.stage {
            super::Stage::Asking(asking) => Some((**asking).clone()),
            super::Stage::Resolving
            | super::Stage::AwaitingHere(_)
            | super::Stage::Observing(_)
            | super::Stage::FindingNodes
            | super::Stage::CheckingNodes(_) => None,
        }
    }

    pub(in crate::node) fn path_answered(
        &mut self,
        task: TaskId,
        request: RequestId,
        reply: &Reply,
        now: Now,
    ) {
        let (Reply::TunnelOpened { candidates, flight }, Some(mut asking)) = (reply, self.asking(task))
        else {
            return;
        };
        let Some(answered) = asking.attempt_with(request) else { return };
        let attempt = asking.attempts.remove(answered);
        self.forget_requests(&attempt);
        // Others through whom the same node was asked, and earlier, may have died.
        let passed_over =
            asking.attempts.iter().take(answered).filter(|other| other.target == attempt.target);
        passed_over.filter_map(|other| other.forwarder).for_each(|node| self.servers.doubt(node, now.mono));
        let said = Said { candidates: candidates.clone(), flight: flight.clone() };
        if attempt.refused.is_some() && asking.awaits_at_relay(attempt.target) {
            // It comes to another relay as well, where there may be room: what it says there comes first, and nobody else is asked.
            asking.kept = Some((attempt, said));
            asking.next_at = None;
            return self.set_stage(task, super::Stage::Asking(Box::new(asking)));
        }
        self.use_answer(task, asking, (attempt, said));
    }

    /// Ends the search with what a tunnel-node has said.
    fn use_answer(&mut self, task: TaskId, asking: Asking, (attempt, said): (Attempt, Said)) {
        let Some(target) = asking.targets.get(attempt.target).cloned() else { return };
        self.give_up(asking.attempts);
        // What it says now comes before what it announced minutes ago. UDP asks nobody whether it wants to be sent to, so there only
        // what the node has signed counts.
        let device = self.devices.get(&asking.device).map(|(_, device)| device);
        let mut places = device.map_or_else(Vec::new, |device| self.dialable(said.candidates, device));
        places.retain(|candidate| candidate.transport == Transport::Tcp);
        let named: BTreeSet<_> = places.iter().map(|c| (c.transport, c.address)).collect();
        places.extend(target.announced.iter().filter(|c| !named.contains(&(c.transport, c.address))));
        let begun = attempt.begun.map(|attempt| Begun { attempt, flight: said.flight });
        self.path_found(task, target, (places, attempt.leg.or(attempt.refused), begun));
    }

    pub(in crate::node) fn path_failed(&mut self, task: TaskId, request: RequestId, now: Now) {
        let Some(mut asking) = self.asking(task) else { return };
        let Some(attempt) = asking.attempt_with(request) else { return };
        let Some(failed) = asking.attempts.get_mut(attempt) else { return };
        failed.requests.remove(&request);
        if !failed.requests.is_empty() {
            return self.set_stage(task, super::Stage::Asking(Box::new(asking)));
        }
        // Nobody comes to the relay; the tunnel-node may still be dialled where it has announced itself.
        if let Some(link) = failed.leg.take() {
            self.abandon_leg(link);
        }
        if !asking.turns.is_empty() {
            return self.ask_next(task, asking, now);
        }
        let is_over = asking.attempts.iter().all(Attempt::is_over);
        self.set_stage(task, super::Stage::Asking(Box::new(asking)));
        if is_over {
            self.dial_as_announced(task, now);
        }
    }

    /// A relay takes no connection, or gives no more: what was to lead through it is tried elsewhere at once.
    pub(in crate::node) fn relay_refused(&mut self, link: LinkId, now: Now) {
        let tasks = self.routing.searches.keys().copied().collect::<Vec<_>>();
        for task in tasks {
            let Some(mut asking) = self.asking(task) else { continue };
            let Some(attempt) = asking.attempts.iter_mut().find(|attempt| attempt.leg == Some(link)) else {
                continue;
            };
            attempt.refused = attempt.leg.take();
            let target = attempt.target;
            let is_awaited = asking.awaits_at_relay(target);
            if let Some(kept) = asking.kept.take_if(|_| !is_awaited) {
                return self.use_answer(task, asking, kept);
            }
            // A relay without room says nothing against the tunnel-node: those who failed lately still wait for its answer.
            if asking.turns.len() <= asking.last_resorts {
                self.set_stage(task, super::Stage::Asking(Box::new(asking)));
            } else {
                self.ask_next(task, asking, now);
            }
        }
    }

    pub(super) fn asking_timeout(&mut self, task: TaskId, now: Now) {
        let Some(asking) = self.asking(task) else { return };
        if asking.next_at.is_some_and(|at| at <= now.mono) && !self.is_over(task, now) {
            self.ask_next(task, asking, now);
        } else {
            self.dial_as_announced(task, now);
        }
    }

    /// Nobody answered the TunnelRequest. Those who were known before are looked up anew; a tunnel-node that was just found may still be dialled
    /// where it has announced itself, as where UDP is blocked.
    fn dial_as_announced(&mut self, task: TaskId, now: Now) {
        let Some(mut asking) = self.asking(task) else { return };
        if let Some(kept) = asking.kept.take() {
            return self.use_answer(task, asking, kept);
        }
        let is_over = self.is_over(task, now);
        if self.goes_on_here(task) {
            return self.give_up(asking.attempts);
        }
        let was_known = self.routing.searches.get(&task).is_some_and(|search| search.from_known);
        if let Some((_, device)) = self.devices.get(&asking.device).cloned().filter(|_| was_known && !is_over)
        {
            // They may have moved, and others may have come: dialling one that is gone takes far longer than asking who is there.
            self.give_up(asking.attempts);
            return self.find_anew(task, &device, now);
        }
        let leg_to = |index: usize| {
            let attempts = asking.attempts.iter().filter(move |attempt| attempt.target == index);
            attempts.filter_map(|attempt| attempt.leg).next()
        };
        // Where UDP is silent, QUIC is not tried.
        let tcp = |target: &Target| {
            let places = target.announced.iter().filter(|candidate| candidate.transport == Transport::Tcp);
            places.copied().collect::<Vec<_>>()
        };
        let usable = |(index, target): &(usize, &Target)| !tcp(target).is_empty() || leg_to(*index).is_some();
        let Some((index, _)) = asking.targets.iter().enumerate().find(usable) else {
            self.give_up(std::mem::take(&mut asking.attempts));
            // The next search should not ask the same again if there is another.
            for target in asking.targets {
                self.route_failed(asking.device, target.member.id, now);
            }
            return self.route_failed_with(task, Failure::TunnelNodesSilent);
        };
        let leg = leg_to(index);
        let begun = asking.attempts.iter().find(|attempt| attempt.target == index);
        let begun = begun.and_then(|attempt| attempt.begun).map(|attempt| Begun { attempt, flight: None });
        // Perhaps it is elsewhere by now.
        self.routing.found.remove(&asking.device);
        let (kept, given_up) =
            asking.attempts.into_iter().partition(|attempt| leg.is_some() && attempt.leg == leg);
        self.give_up(given_up);
        let kept: Vec<Attempt> = kept;
        kept.iter().for_each(|attempt| self.forget_requests(attempt));
        let target = asking.targets.swap_remove(index);
        let places = tcp(&target);
        self.path_found(task, target, (places, leg, begun));
    }

    /// Gives up all attempts of a search, for which another way was found.
    pub(super) fn stop_asking(&mut self, task: TaskId) {
        let Some(asking) = self.asking(task) else { return };
        let kept = asking.kept.map(|(attempt, _)| attempt);
        self.give_up(asking.attempts.into_iter().chain(kept).collect());
    }

    fn give_up(&mut self, attempts: Vec<Attempt>) {
        for attempt in attempts {
            self.forget_requests(&attempt);
            if let Some(link) = attempt.leg {
                self.abandon_leg(link);
            }
        }
    }

    fn forget_requests(&mut self, attempt: &Attempt) {
        for request in &attempt.requests {
            self.endpoint.forget_request(*request);
            self.purposes.remove(request);
        }
    }
}

/// Leaves out candidates, the last first, until a request fits through a forwarder together with an introduction; otherwise the
/// introduction would have to go first, which costs a round trip.
fn fitting(mut request: TunnelRequest) -> TunnelRequest {
    while !request.candidates.is_empty()
        && Request::TunnelRequest(request.clone()).encode().len() > MAX_STRANGERS_REQUEST
    {
        request.candidates.pop();
    }
    request
}
