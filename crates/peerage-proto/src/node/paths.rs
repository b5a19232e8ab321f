//! Direct paths over UDP: what this node tells of itself, and checks of what others tell (Rules 6.90 to 6.97).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use peerage_wire::codec::{Candidate, CandidateKind, Transport};
use peerage_wire::id::{NodeId, Segment};
use peerage_wire::message::{Reply, Request, TunnelRequest};
use peerage_wire::time::{Instant, Now};

use super::places::may_dial;
use super::{Discard, Event, Node, Purpose, Server};
use crate::path::{
    Mapping, Nat, NatBehaviour, News, Part, PathRole, Paths, Target, WideCheck, kind_of, targets,
};
use crate::sizes::TableSize;
use crate::trust::Member;

/// Most candidates in a TunnelRequest: with more it does not go through a forwarder beside the introduction.
const MAX_OFFERED: usize = 8;

/// Most candidates in a TunnelOpened, which is no longer than the request.
const MAX_OPENED: usize = 10;

/// Most addresses of this node as others see it in one list: two servers may see different ones.
const MAX_REFLEXIVE: usize = 2;

/// How many servers are asked how they see this node: two show how the router maps, and one may be down.
const OBSERVERS: usize = 3;

/// For how long they are not asked again when a way is looked for: shorter than most routers keep a mapping.
const OBSERVE_INTERVAL: Duration = Duration::from_secs(60);

/// How long a path is asked for later, until they have said so. Behind a router that numbers its ports the other end has to know the next
/// one; longer makes people wait for a server that is down, shorter has those relayed whose servers are far.
const OBSERVED_WITHIN: Duration = Duration::from_millis(150);

/// After how long whoever has not shown how its routers filter is asked to again; and for how long after somebody has looked at the
/// status that is worth asking. Four requests to an operator are too much for what nobody reads.
const PROBE_INTERVAL: Duration = Duration::from_secs(600);

/// How long after a node was first seen from outside it asks how its routers filter: nobody waits for that, and somebody may be waiting
/// for what made it ask a server.
const PROBE_DELAY: Duration = Duration::from_secs(5);

/// How a request came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Came {
    /// Whence, as seen here or by a forwarder.
    pub(super) from: SocketAddr,
    /// Whether it came from there as a datagram, rather than through somebody.
    pub(super) is_straight: bool,
}

/// What a node does about direct paths.
#[derive(Clone, Debug)]
pub(super) struct Finding {
    paths: Paths,
    nat: Nat,
    /// Whether the owner lets this node do its part of wide checks (Rule 6.99).
    is_wide: bool,
    observed_at: Option<Instant>,
    /// Whether the routers gave all places the same port when that was seen last on these networks.
    is_plain: bool,
    /// When it was last asked for an answer from elsewhere.
    probed_at: Option<Instant>,
    /// When that is due.
    probe_at: Option<Instant>,
    /// When somebody looked at the status last.
    watched_at: Option<Instant>,
}

impl Finding {
    pub(super) fn new(port: u16, is_wide: bool) -> Self {
        let (observed_at, probed_at, probe_at, watched_at) = (None, None, None, None);
        let (paths, nat, is_plain) = (Paths::default(), Nat::new(port), false);
        Self { paths, nat, is_wide, observed_at, is_plain, probed_at, probe_at, watched_at }
    }

    pub(super) fn next_at(&self) -> Option<Instant> {
        [self.paths.next_at(), self.probe_at].into_iter().flatten().min()
    }

    pub(super) fn sizes(&self) -> Vec<TableSize> {
        self.paths.sizes()
    }
}

impl Node {
    // ---- what this node is behind -------------------------------------------------------------

    fn is_own_address(&self, address: IpAddr) -> bool {
        self.interfaces.iter().any(|interface| interface.has_address(address))
    }

    fn is_near(&self, address: IpAddr) -> bool {
        (self.one_machine && address.is_loopback())
            || self.interfaces.iter().any(|interface| interface.is_on_link(address))
    }

    /// Notes to whom something is sent, for routers number their mappings in that order.
    pub(super) fn note_sent(&mut self, remote: SocketAddr, now: Now) {
        if !self.is_near(remote.ip()) {
            self.finding.nat.note_sent(remote, now.mono);
        }
    }

    /// Notes how an operator or super-node sees this node (Rule 6.90).
    pub(super) fn note_observed(&mut self, by: SocketAddr, from: &NodeId, reply: &Reply, now: Now) {
        let (Reply::Reping { observed } | Reply::Attached { observed, .. }) = reply else { return };
        if self.is_server(from) && !self.is_near(by.ip()) {
            self.finding.nat.observe(by, *observed, now.mono);
            let mapping = self.nat_mapping(now);
            self.finding.is_plain = matches!(mapping, Some(Mapping::None | Mapping::EndpointIndependent))
                || (mapping.is_none() && self.finding.is_plain);
            let due_at = now.mono.after(self.jittered(PROBE_DELAY));
            if self.wants_probe(now) {
                self.finding.probe_at.get_or_insert(due_at);
            }
        }
    }

    fn wants_probe(&self, now: Now) -> bool {
        let is_lately = |at: Option<Instant>| at.is_some_and(|at| now.mono - at < PROBE_INTERVAL);
        let finding = &self.finding;
        is_lately(finding.watched_at) && finding.nat.filtering().is_none() && !is_lately(finding.probed_at)
    }

    /// Somebody looks: what is not known yet is found out from now on.
    pub(super) fn watched_by_people(&mut self, now: Now) {
        self.finding.watched_at = Some(now.mono);
        if self.wants_probe(now) {
            self.look_from_outside(now);
            // Also if servers have told a moment ago.
            self.finding.probe_at.get_or_insert(now.mono.after(PROBE_DELAY));
        }
    }

    /// Finds out, once on the same networks, whom the routers let in and whether they turn packets round (Rule 6.98).
    fn probe_routers(&mut self, now: Now) {
        if !self.wants_probe(now) {
            return;
        }
        let all = self.shuffled_operators(now);
        let is_fit = |server: &&Server| server.address.is_ipv4() && !self.is_near(server.address.ip());
        let Some(server) = all.iter().find(is_fit).copied() else { return };
        self.finding.probed_at = Some(now.mono);
        // The one shows that the operator is there, the other what the routers do.
        self.ask(server, &Request::Ping, Purpose::Observe, now);
        self.ask(server, &Request::PingElsewhere, Purpose::Elsewhere, now);
        let own = |address| self.is_own_address(address);
        let outer = self.finding.nat.reflexive(&own, now.mono).into_iter().find(SocketAddr::is_ipv4);
        if let Some(outer) = outer.filter(|outer| self.may_check(outer.ip())) {
            self.endpoint.learn_peer(self.me, *self.endpoint.statement(), now);
            let id = self.endpoint.request_as_check(self.me.id, outer, &Request::Ping, now);
            self.purposes.insert(id, Purpose::Hairpin);
        }
    }

    /// An operator has answered from elsewhere, or has not.
    pub(super) fn elsewhere_ended(&mut self, server: &NodeId, came_from: Option<SocketAddr>) {
        let asked_at = self.finding.probed_at;
        let is_there = self.servers.health(server).is_some_and(|health| health.answered_at >= asked_at);
        if asked_at.is_some() && (came_from.is_some() || is_there) {
            self.finding.nat.note_elsewhere(came_from);
        }
    }

    pub(super) const fn hairpin_ended(&mut self, came: bool) {
        // The networks may have changed meanwhile.
        if self.finding.probed_at.is_some() {
            self.finding.nat.note_hairpin(came);
        }
    }

    /// A sealed request came straight: perhaps from somebody to whom nothing was sent, which shows whom the routers let in. Where a
    /// port is forwarded, it shows nothing.
    pub(super) fn note_let_in(&mut self, remote: SocketAddr, now: Now) {
        let is_forwarded = self
            .own_candidates()
            .iter()
            .any(|c| matches!(c.kind, CandidateKind::Mapped | CandidateKind::Configured));
        if !is_forwarded && !self.is_near(remote.ip()) {
            self.finding.nat.note_let_in(remote, now.mono);
        }
    }

    /// The networks have changed: what was observed holds no more.
    pub(super) fn forget_paths(&mut self) {
        self.finding.nat.forget();
        self.finding.paths.clear_attempts();
        (self.finding.observed_at, self.finding.probed_at, self.finding.probe_at) = (None, None, None);
        self.finding.is_plain = false;
    }

    /// Asks some servers how they see this node, while tunnel-nodes are looked for and before candidates are needed.
    pub(super) fn look_from_outside(&mut self, now: Now) {
        let is_lately = |at: Instant| now.mono - at < OBSERVE_INTERVAL;
        if self.finding.observed_at.is_some_and(is_lately) {
            return;
        }
        self.finding.observed_at = Some(now.mono);
        let own = Segment::of_domain(self.me.id.domain);
        let mut observers = Vec::<Server>::new();
        let all = self.holders(&own, now).into_iter().chain(self.shuffled_operators(now));
        for server in all {
            // Two at one address show less.
            if observers.iter().all(|known| known.address.ip() != server.address.ip()) {
                observers.push(server);
            }
        }
        for server in observers.into_iter().take(OBSERVERS) {
            self.ask(server, &Request::Ping, Purpose::Observe, now);
        }
    }

    /// Returns until when a path is not asked for because what servers say of the routers is on its way, and may matter.
    pub(super) fn awaits_observers(&self, now: Now) -> Option<Instant> {
        let until = self.finding.observed_at?.after(OBSERVED_WITHIN);
        let is_asked = || self.purposes.values().any(|purpose| matches!(purpose, Purpose::Observe));
        (!self.finding.is_plain && now.mono < until && is_asked()).then_some(until)
    }

    /// Returns what the routers on the way do, as far as it is known.
    pub(super) fn nat_behaviour(&self, now: Now) -> NatBehaviour {
        self.finding.nat.behaviour(&|address| self.is_own_address(address), now.mono)
    }

    fn nat_mapping(&self, now: Now) -> Option<Mapping> {
        self.finding.nat.mapping(&|address| self.is_own_address(address), now.mono)
    }

    // ---- what this node tells of itself ---------------------------------------------------------

    /// Returns how others see this node; `stated` is the last port that its router gave, if that is known and matters.
    fn seen_candidates(&self, stated: Option<SocketAddr>, now: Now) -> Vec<Candidate> {
        let mut seen = self.finding.nat.reflexive(&|address| self.is_own_address(address), now.mono);
        // What the owner or a router has given is offered as that.
        let own = self.own_candidates();
        seen.retain(|seen| own.iter().all(|own| own.transport != Transport::Udp || own.address != *seen));
        seen.truncate(MAX_REFLEXIVE);
        let stated = stated.map(|address| (CandidateKind::Sequential, address));
        let seen = seen.into_iter().map(|address| (CandidateKind::Reflexive, address));
        let all = stated.into_iter().chain(seen);
        all.map(|(kind, address)| Candidate { kind, transport: Transport::Udp, address }).collect()
    }

    fn base(&self, now: Now) -> Option<SocketAddr> {
        self.finding.nat.base(&|address| self.is_own_address(address), now.mono)
    }

    fn is_dependent(&self, now: Now) -> bool {
        self.finding.nat.is_dependent(&|address| self.is_own_address(address), now.mono)
    }

    /// Returns whether others see this node elsewhere than where it is.
    fn is_translated(&self, now: Now) -> bool {
        !self.finding.nat.reflexive(&|address| self.is_own_address(address), now.mono).is_empty()
    }

    /// Returns what a user-node offers in a TunnelRequest that goes through these forwarders: it is never dialled over TCP.
    pub(super) fn offered_candidates(&mut self, forwarders: &[Server], now: Now) -> Vec<Candidate> {
        // What they see comes before what the checks will be seen as.
        for forwarder in forwarders {
            self.note_sent(forwarder.address, now);
        }
        let mut all = self.seen_candidates(self.base(now), now);
        all.extend(self.scattered(now));
        all.extend(self.own_candidates().into_iter().filter(|own| own.transport == Transport::Udp));
        all.truncate(MAX_OFFERED);
        all
    }

    /// Returns what a tunnel-node announces: how it is seen only if others are likely to see the same.
    pub(super) fn announced_candidates(&self, most: usize, now: Now) -> Vec<Candidate> {
        let mut seen = if self.is_dependent(now) { Vec::new() } else { self.seen_candidates(None, now) };
        seen.truncate(most / 2);
        let mut all = self.own_candidates();
        all.truncate(most.saturating_sub(seen.len()));
        all.extend(seen);
        all
    }

    /// Returns what a tunnel-node answers to a TunnelRequest; the same each time that it comes.
    pub(super) fn opened_candidates(
        &self,
        (from, came): (NodeId, Came),
        request: &TunnelRequest,
        now: Now,
    ) -> Vec<Candidate> {
        let attempt = (from, request.id);
        let stated = self.finding.paths.stated(attempt).unwrap_or_else(|| self.base(now));
        let mut seen = self.seen_candidates(stated, now);
        if self.tries_ports_of(&from, came, request, now).is_some() {
            seen.extend(self.outer(now).map(scattered));
        }
        let mut all = self.own_candidates();
        all.truncate(MAX_OPENED.saturating_sub(seen.len()));
        all.extend(seen);
        all
    }

    // ---- where one end's ports cannot be known (Rule 6.99) ----------------------------------------

    /// Returns whether the owner lets this node do its part.
    pub(super) const fn is_wide(&self) -> bool {
        self.finding.is_wide
    }

    /// Returns the place over IPv4 at which others see this node.
    fn outer(&self, now: Now) -> Option<SocketAddr> {
        let own = |address| self.is_own_address(address);
        self.finding.nat.reflexive(&own, now.mono).into_iter().find(SocketAddr::is_ipv4)
    }

    /// Returns what tells that nobody can know the own ports, if so, and this node may open many.
    fn scattered(&self, now: Now) -> Option<Candidate> {
        let is_random = self.finding.is_wide && self.is_dependent(now) && self.base(now).is_none();
        let outer = self.outer(now).filter(|_| is_random)?;
        Some(scattered(SocketAddr::new(outer.ip(), 0)))
    }

    /// Returns the address of which this node tries ports for an asker: one at which a forwarder has seen it, so that nobody else can be meant.
    fn tries_ports_of(&self, from: &NodeId, came: Came, request: &TunnelRequest, now: Now) -> Option<IpAddr> {
        let is_meant = |candidate: &&Candidate| {
            let Candidate { kind, address, .. } = candidate;
            (*kind, address.port(), address.ip()) == (CandidateKind::Scattered, 0, came.from.ip())
        };
        let address = request.candidates.iter().find(is_meant)?.address.ip();
        // As far as is known: whoever serves has perhaps been seen by one server only.
        let mapping = self.nat_mapping(now);
        let has_one_port =
            matches!(mapping, None | Some(Mapping::EndpointIndependent)) && self.outer(now).is_some();
        let is_fit = !came.is_straight && address.is_ipv4() && self.may_check(address) && has_one_port;
        (self.finding.is_wide && is_fit && self.finding.paths.may_widen(from, now.mono)).then_some(address)
    }

    // ---- attempts -------------------------------------------------------------------------------

    fn targets(&self, candidates: &[Candidate], observed: Option<SocketAddr>, now: Now) -> Vec<Target> {
        let is_near = |address: IpAddr| self.is_near(address);
        targets(candidates, observed, self.is_dependent(now), &is_near, &|address| self.may_check(address))
    }

    /// Returns whether an address may be dialled, and this node has one of the same family.
    fn may_check(&self, address: IpAddr) -> bool {
        let own = self.interfaces.iter().filter(|interface| interface.up).flat_map(|i| &i.addresses);
        let has_family = own.map(|own| own.address).any(|own| own.is_ipv4() == address.is_ipv4());
        has_family && may_dial(address, &self.interfaces, self.one_machine)
    }

    /// The user-node asks a tunnel-node for a path: from now on what comes straight from there counts.
    pub(super) fn seek_path(&mut self, peer: &Member, request: &TunnelRequest, now: Now) {
        if !self.finding.paths.begin(peer, (request.id, PathRole::Dial), None, now.mono) {
            self.endpoint.discard(Discard::Full);
        }
        if self.is_dependent(now) {
            self.need_mapping(now);
        }
    }

    pub(super) fn uses_paths(&self) -> bool {
        self.finding.paths.uses_any()
    }

    /// The tunnel-node has said where it may be: its places are checked, unless its answer has come straight from one.
    pub(super) fn path_offered(
        &mut self,
        from: NodeId,
        candidates: &[Candidate],
        straight: Option<SocketAddr>,
        now: Now,
    ) {
        if let Some(remote) = straight.filter(|remote| self.may_check(remote.ip())) {
            let said = candidates.iter().find(|candidate| candidate.address == remote);
            let kind = said.map(|candidate| kind_of(candidate.kind));
            return self.finding.paths.answered(from, remote, kind, now.mono);
        }
        let targets = self.targets(candidates, None, now);
        self.finding.paths.add(from, PathRole::Dial, &targets, now.mono);
        // Only whoever has offered it is answered so.
        let tries =
            candidates.iter().find(|one| one.kind == CandidateKind::Scattered && one.address.port() != 0);
        if let Some(place) = tries.map(|one| one.address).filter(|place| self.may_check(place.ip()))
            && place.is_ipv4()
            && self.scattered(now).is_some()
        {
            self.finding.paths.widen(from, PathRole::Dial, Part::Open(place), now.mono);
        }
    }

    /// The tunnel-node is asked for a path: the asker's places are checked, unless it reaches this node already.
    pub(super) fn path_asked(&mut self, from: &Member, came: Came, request: &TunnelRequest, now: Now) {
        let stated = self.base(now);
        if !self.finding.paths.begin(from, (request.id, PathRole::Await), stated, now.mono) {
            return self.endpoint.discard(Discard::Full);
        }
        if came.is_straight {
            return self.path_heard(from.id, came, now);
        }
        let targets = self.targets(&request.candidates, Some(came.from), now);
        self.finding.paths.add(from.id, PathRole::Await, &targets, now.mono);
        if let Some(address) = self.tries_ports_of(&from.id, came, request, now) {
            self.finding.paths.widen(from.id, PathRole::Await, Part::Try(address), now.mono);
        }
    }

    /// A node with which a path is sought has asked something straight from there (Rule 6.94).
    pub(super) fn path_heard(&mut self, peer: NodeId, came: Came, now: Now) {
        if came.is_straight && self.may_check(came.from.ip()) {
            self.finding.paths.heard(peer, came.from, now.mono);
        }
    }

    pub(super) fn check_answered(&mut self, from: NodeId, straight: Option<SocketAddr>, now: Now) {
        self.finding.paths.check_ended();
        if let Some(remote) = straight.filter(|remote| self.may_check(remote.ip())) {
            self.finding.paths.answered(from, remote, None, now.mono);
        }
    }

    pub(super) fn check_unanswered(&mut self) {
        self.finding.paths.check_ended();
    }

    pub(super) fn path_used(&mut self, peer: &NodeId, remote: SocketAddr) {
        self.finding.paths.used(peer, remote);
    }

    pub(super) fn path_unused(&mut self, peer: &NodeId, remote: SocketAddr) {
        self.finding.paths.unused(peer, remote);
    }

    /// Sends the checks that are due and tells what was found.
    pub(super) fn settle_paths(&mut self, now: Now) {
        while let Some((peer, address)) = self.finding.paths.poll_check(now.mono) {
            let id = self.endpoint.request_as_check(peer, address, &Request::Ping, now);
            self.purposes.insert(id, Purpose::Check);
        }
        while let Some(WideCheck { peer, remote, is_from_many }) = self.finding.paths.poll_wide(now.mono) {
            let id = if is_from_many {
                self.endpoint.request_widely(peer, remote, &Request::Ping, now)
            } else {
                self.endpoint.request_as_check(peer, remote, &Request::Ping, now)
            };
            self.purposes.insert(id, Purpose::Check);
        }
        while let Some(news) = self.finding.paths.poll_news() {
            match news {
                News::Found(path) => self.event(Event::PathFound(path)),
                News::Lost(path) => self.event(Event::PathLost(path)),
                News::Vain if self.is_translated(now) => self.need_mapping(now),
                News::Vain => {}
            }
        }
    }

    pub(super) fn paths_timeout(&mut self, now: Now) {
        self.finding.paths.handle_timeout(now.mono);
        if self.finding.probe_at.is_some_and(|at| at <= now.mono) {
            self.finding.probe_at = None;
            self.probe_routers(now);
        }
    }
}

const fn scattered(address: SocketAddr) -> Candidate {
    Candidate { kind: CandidateKind::Scattered, transport: Transport::Udp, address }
}
