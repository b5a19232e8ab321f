//! The node as a machine: what a member does on its own, for its local applications, and for other members.
//!
//! [`Node`] routes each [`Input`] to one of its parts and collects their outputs. The parts are files of this folder, each an
//! `impl Node` about one subject: `sync` keeps the Head and the sets it states, `serve` is the tunnel-node and `openings` its
//! decisions, `route` the user-node, `watch` looks after open tunnels. They share the message layer, the records and the look-ups.

mod announce;
mod attach;
mod carriers;
mod config;
mod elect;
mod hold;
mod io;
mod judge;
mod leave;
mod legs;
mod lookup;
mod mapped;
mod openings;
mod own;
mod paths;
mod places;
mod purpose;
mod queries;
mod reach;
mod route;
mod serve;
mod servers;
mod status;
mod sync;
mod watch;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use peerage_wire::id::{DeviceId, NodeId};
use peerage_wire::keys::{AgreementKey, DomainKeys};
use peerage_wire::message::{Reply, Request};
use peerage_wire::record::{EndDevice, Record, Roles, Table, subject};
use peerage_wire::time::{Instant, Now, UnixTime};

use crate::carrier::Carriers;
use crate::discard::Discard;
use crate::endpoint::{Endpoint, Incoming, Outcome, RequestId};
use crate::lan::Interface;
use crate::path::WIDE_STEP;
use crate::table::Records;
use crate::trust::{Member, Trust};

pub use carriers::{KnownCarriers, MAX_REMEMBERED};
pub use config::{Config, SuperConfig};
pub use elect::Elections;
pub use io::{
    Answer, Begun, Change, Command, Event, Failure, Found, Input, Output, PinProof, Route, SuperState,
    TaskId, TunnelId, Watched, Way,
};
pub use legs::{LegNews, LegOrder, OwnLeg};
pub use lookup::{EAGER_INTERVAL, REDUNDANCY, SECOND_ANSWER_TIMEOUT, Server};
pub use openings::{MAX_SERVED, MAX_SERVED_PER_PEER};
pub use status::{
    AttachmentStatus, DeviceStatus, ElectedStatus, ElectionStatus, HeadStatus, ServerStatus, Status,
    SuperStatus,
};

use elect::Electing;
use hold::{Errand, Hold};
use legs::Legs;
use mapped::PortMapping;
use openings::{Handshakes, Opening};
use paths::{Came, Finding};
use places::Places;
pub(crate) use places::is_private;
use purpose::Purpose;
use queries::{QueryId, Running};
use reach::Reach;
use route::Routing;
use serve::Serving;
use servers::Servers;
use sync::Freshness;

/// How often expired records are swept out.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// How long before its end a membership is warned about.
const EXPIRY_WARNING: Duration = Duration::from_secs(7 * 86_400);

/// How long after a failed renewal the next is tried, jittered.
const RENEWAL_RETRY: Duration = Duration::from_secs(3_600);

/// The same once the membership has expired, when nobody answers the node any more. Longer keeps people waiting when operators are
/// back after weeks; shorter has all members of a network ask them within less time.
const EXPIRED_RENEWAL_RETRY: Duration = Duration::from_secs(300);

/// A running node.
#[derive(Debug)]
pub struct Node {
    endpoint: Endpoint,
    trust: Trust,
    me: Member,
    serves: bool,
    receiving: AgreementKey,
    keys: DomainKeys,
    epoch_began: UnixTime,
    port: u16,
    advertise: Vec<SocketAddr>,
    place: Option<String>,
    one_machine: bool,
    bound: Option<std::net::IpAddr>,

    interfaces: Vec<Interface>,
    mapping: PortMapping,
    places: Places,
    records: Records,
    devices: BTreeMap<DeviceId, (peerage_wire::id::RecordKey, EndDevice)>,

    purposes: BTreeMap<RequestId, Purpose>,
    queries: BTreeMap<QueryId, Running>,
    servers: Servers,
    eager: bool,
    told_revoked: bool,
    is_expelled: bool,

    freshness: Freshness,
    serving: Serving,
    electing: Electing,
    openings: BTreeMap<TunnelId, Opening>,
    handshakes: Handshakes,
    routing: Routing,
    reach: Reach,
    watched: BTreeMap<TunnelId, Watched>,
    links: BTreeSet<NodeId>,
    hold: Hold,
    legs: Legs,
    finding: Finding,
    carriers: Carriers,
    known_carriers: KnownCarriers,

    sweep_at: Instant,
    renew_at: Option<Instant>,
    /// The version of the Node record whose renewal is planned.
    renewal_of: Option<u64>,
    next_task: u64,
    outputs: VecDeque<Output>,
}

impl Node {
    /// Makes a node from what it remembered. Its first input should be [`Input::Networks`].
    pub fn new(config: Config, seed: [u8; 32], now: Now) -> Self {
        let trust = Trust::new(config.endpoint.network, config.root);
        let me = Member {
            id: config.endpoint.id,
            identity: config.endpoint.identity.public(),
            roles: Roles::default(),
            is_operator: false,
            expires: UnixTime::default(),
        };
        let mut node = Self {
            endpoint: Endpoint::new(config.endpoint, seed, now),
            trust,
            me,
            serves: config.serves,
            receiving: config.receiving,
            keys: config.keys,
            epoch_began: UnixTime::default(),
            port: config.port,
            advertise: config.advertise,
            place: config.place,
            one_machine: config.one_machine,
            bound: config.bound,
            interfaces: Vec::new(),
            mapping: PortMapping::default(),
            places: Places::default(),
            records: Records::default(),
            devices: BTreeMap::new(),
            purposes: BTreeMap::new(),
            queries: BTreeMap::new(),
            servers: Servers::default(),
            eager: config.eager,
            told_revoked: false,
            is_expelled: false,
            freshness: Freshness::new(now.mono),
            serving: Serving::default(),
            electing: Electing::new(config.elections),
            openings: BTreeMap::new(),
            handshakes: Handshakes::default(),
            routing: Routing::default(),
            reach: Reach::default(),
            watched: BTreeMap::new(),
            links: BTreeSet::new(),
            hold: Hold::new(config.super_role, now.mono),
            legs: Legs::default(),
            finding: Finding::new(config.port, config.wide_checks),
            carriers: Carriers::new(config.carriers),
            known_carriers: config.known_carriers,
            sweep_at: now.mono.after(SWEEP_INTERVAL),
            renew_at: None,
            renewal_of: None,
            next_task: 0,
            outputs: VecDeque::new(),
        };
        node.remember(config.records, &config.statements, now);
        node
    }

    /// Takes in the own store.
    fn remember(&mut self, records: Vec<Record>, statements: &[peerage_wire::intro::KeyStatement], now: Now) {
        // The newest of each is what counts, whatever the order on disk.
        for record in &records {
            self.trust.learn(record);
        }
        self.restore_own(&records, now);
        self.restore(&records, now);
        for statement in statements {
            let record = self.trust.operator_records().find(|r| subject(r.header()) == statement.node);
            if let Some(member) = record.and_then(Trust::member) {
                self.endpoint.learn_peer(member, *statement, now);
            }
        }
        self.reread_devices();
    }

    /// Takes in what the node keeps for itself; what it holds as a super-node lies in the same store.
    fn restore_own(&mut self, records: &[Record], now: Now) {
        for record in records.iter().filter(|record| self.is_own(record)).cloned().collect::<Vec<_>>() {
            match record.header().table {
                Table::SuperNode => {
                    self.learn_super_node(&record);
                }
                Table::Head => self.remember_head(record, now),
                Table::Node
                | Table::NodeInfo
                | Table::OperatorNode
                | Table::EndDevice
                | Table::DomainKey
                | Table::Revocation => {
                    self.records.insert(record);
                }
            }
        }
        self.read_own_records(now);
        self.note_differences(now);
    }

    /// Takes an input; never fails, whatever came from outside.
    pub fn handle(&mut self, input: Input, now: Now) {
        match input {
            Input::Timeout => self.handle_timeout(now),
            Input::Datagram { remote, payload } => {
                self.endpoint.handle_datagram(remote, &payload, &self.trust, now);
            }
            Input::Multicast { interface, from, payload } => {
                self.multicast_received(interface, from, &payload, now);
            }
            Input::MulticastFailed { interface } => self.multicast_failed(interface, now),
            Input::Stopping => self.stop_standing(now),
            Input::Watched => self.watched_by_people(now),
            Input::Networks(interfaces) => self.networks_changed(interfaces, now),
            Input::Mapped(mappings) => self.mapped(mappings, now),
            Input::Stored { task, ok } => self.stored(task, ok, now),
            Input::DeviceFound { task, found } => self.device_found(task, found, now),
            Input::PinProven { task, proof } => self.pin_proven(task, proof, now),
            Input::OpenAsked { tunnel, peer, open } => self.open_asked(tunnel, peer, open, now),
            Input::TunnelOpened { tunnel, peer, device, service } => {
                self.watch(tunnel, Watched { peer, device, service, serving: false }, now);
            }
            Input::TunnelEnded(tunnel) => self.tunnel_ended(tunnel),
            Input::LinkUp(peer) => {
                self.links.insert(peer);
            }
            Input::LinkDown(peer) => {
                self.links.remove(&peer);
            }
            Input::HandshakeBegun { attempt, hello } => self.handshake_begun(attempt, hello, now),
            Input::HandshakeAnswered { task, flight } => self.handshake_answered(task, flight),
            Input::OwnLeg { leg, news } => self.own_leg(leg, news, now),
            Input::PathUsed { peer, remote } => self.path_used(&peer, remote),
            Input::PathUnused { peer, remote } => self.path_unused(&peer, remote),
            Input::RelayLost(relay) => self.relay_lost(relay, now),
            Input::HeadSeen(record) => self.head_seen(&record, now),
            Input::RouteFailed { device, peer, code: _ } => self.route_failed(device, peer, now),
            Input::Renewed { records, time } => self.renewed(&records, time, now),
            Input::Expelled => self.expelled(),
            Input::Leg(input) => self.leg(input, now),
            Input::Stream(news) => self.stream_news(news, now),
            Input::Relayed { bytes } => self.relayed(bytes),
            Input::SuperRole(config) => self.super_role(config, now),
            Input::Fitness { ok, why } => self.fitness(ok, why),
            Input::Command { task, command } => self.command(task, command, now),
        }
        self.settle(now);
    }

    /// Returns the next thing to do, oldest first.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns when [`Input::Timeout`] is due at the latest, and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let timers = [
            (self.endpoint.poll_timeout(), "requests"),
            (self.next_query_at(), "look-up"),
            (self.freshness_at(), "head"),
            (self.time_due_at(), "time"),
            (self.serving_at(), "attachment"),
            (self.electing.next_at(), "election"),
            (self.routing.next_at(), "route"),
            (self.openings.values().map(|opening| opening.deadline).min(), "opening"),
            (Some(self.sweep_at), "sweep"),
            (self.renew_at, "renewal"),
            (self.hold_at(), "super-node"),
            (self.finding.next_at(), "paths"),
            (self.mapping.next_at(), "port mapping"),
            (self.carriers.next_at(), "carriers"),
        ];
        timers.into_iter().filter_map(|(at, why)| Some((at?, why))).min()
    }

    fn handle_timeout(&mut self, now: Now) {
        self.endpoint.handle_timeout(&self.trust, now);
        if self.sweep_at <= now.mono {
            self.sweep(now);
        }
        if self.renew_at.is_some_and(|at| at <= now.mono) {
            self.renew_at = Some(now.mono.after(self.renewal_pause(now)));
            self.outputs.push_back(Output::Renew);
        }
        self.serving_timeout(now);
        self.elections_timeout(now);
        self.routing_timeout(now);
        self.openings_timeout(now);
        self.hold_timeout(now);
        self.paths_timeout(now);
        self.mapping_timeout(now);
    }

    /// Works off what the message layer has to say, until nothing is left to be said.
    fn settle(&mut self, now: Now) {
        let mut looked_again = false;
        loop {
            while let Some(outcome) = self.endpoint.poll_outcome() {
                self.handle_outcome(outcome, now);
            }
            self.settle_hold(now);
            self.review_mapping();
            self.advance_openings(now);
            self.advance_routes(now);
            self.advance_elections(now);
            self.settle_paths(now);
            self.settle_carriers(now);
            // After all that may make the time or the Head needed: they are due at once then.
            self.seek_time(now);
            self.keep_fresh(now);
            // What a look-up ends with may let an opening or a route go on, which may begin another look-up.
            let moved = self.drive_queries(now);
            if !moved && self.endpoint.has_no_outcome() {
                // A request that cannot be made has failed already, and is not waited for.
                let is_due = self.endpoint.poll_timeout().is_some_and(|at| at <= now.mono);
                if !is_due || std::mem::replace(&mut looked_again, true) {
                    break;
                }
                self.endpoint.handle_timeout(&self.trust, now);
            }
        }
        self.settle_carriers(now);
        self.send_on_legs();
        self.send_on_streams();
        while let Some((remote, payload)) = self.endpoint.poll_transmit() {
            self.note_sent(remote, now);
            self.outputs.push_back(Output::Transmit { remote, payload });
        }
        while let Some((remote, payload)) = self.endpoint.poll_wide() {
            self.outputs.push_back(Output::TransmitWidely { remote, payload, ports: WIDE_STEP });
        }
    }

    fn handle_outcome(&mut self, outcome: Outcome, now: Now) {
        match outcome {
            Outcome::Request(incoming) => self.handle_request(*incoming, now),
            Outcome::Answered { request, from, reply, rtt, straight, stream } => {
                self.heard_from(from, rtt, now);
                let purpose = self.purposes.remove(&request);
                if straight.is_some() || stream.is_some() {
                    self.carriers.heard(from, stream, now.mono);
                }
                if let Some(remote) = straight.filter(|_| !matches!(purpose, Some(Purpose::Elsewhere))) {
                    self.note_observed(remote, &from, &reply, now);
                    if self.is_server(&from) {
                        self.servers.heard_at(&remote);
                    }
                }
                match purpose {
                    Some(Purpose::Elsewhere) => self.elsewhere_ended(&from, straight),
                    Some(Purpose::Check) => self.check_answered(from, straight, now),
                    Some(Purpose::Meet(task)) => self.neighbour_met(task, request, straight, now),
                    Some(Purpose::Carrier) if straight.is_some() => self.carriers.returned(from, now.mono),
                    // A connection has an address of its own, which says nothing about UDP (Rule 6.105).
                    Some(Purpose::Hold(errand @ Errand::Observe)) if stream.is_some() => {
                        self.hold_unanswered(errand, from, now);
                    }
                    Some(purpose) => {
                        if let (Purpose::Path(_), Reply::TunnelOpened { candidates, .. }) = (&purpose, &reply)
                        {
                            self.path_offered(from, candidates, straight, now);
                        }
                        self.answered(purpose, request, from, reply, now);
                    }
                    None => self.pass_back(from, reply, now),
                }
            }
            Outcome::Forwarded { by, stream } => self.carriers.heard(by, stream, now.mono),
            Outcome::Failed { request, to } => {
                let purpose = self.purposes.remove(&request);
                if !purpose.as_ref().is_some_and(Purpose::says_nothing_by_silence) {
                    self.silent(to, now);
                    self.carriers.lost(to, now.mono);
                }
                if let Some(purpose) = purpose {
                    self.unanswered(purpose, request, to, now);
                }
            }
            Outcome::ClockLearned(offset) => {
                self.outputs.push_back(Output::Event(Event::ClockLearned(offset)));
                self.time_found();
                self.clock_learned(now);
            }
            Outcome::ClockDoubted => self.clock_doubted(now),
        }
    }

    /// Answers what other nodes ask of this one: as a super-node if it is one and they ask that, otherwise signs of life, paths and
    /// what an operator tells it.
    fn handle_request(&mut self, incoming: Incoming, now: Now) {
        let came = Came { from: incoming.remote, is_straight: incoming.reply_to.is_straight() };
        if came.is_straight {
            self.note_let_in(came.from, now);
        }
        if matches!(incoming.request, Request::Ping) {
            self.path_heard(incoming.from.id, came, now);
        }
        let Some(incoming) = self.hold_request(incoming, now) else { return };
        let Incoming { from, remote, request, reply_to } = incoming;
        let reply = match request {
            Request::Ping if from.id.domain == self.me.id.domain || self.is_served_by(&from) => {
                Ok(Reply::Reping { observed: remote })
            }
            Request::Ping => Err(Discard::Forbidden),
            Request::Notify { id, head } if self.is_served_by(&from) => {
                self.take_head(&head, now);
                Ok(Reply::Notified(id))
            }
            Request::TunnelRequest(request) => {
                return self.tunnel_requested((&from, came), request, reply_to, now);
            }
            // Only those to whom this node is attached may hand something on to it (Rule 6.28).
            Request::Forward(forward) if self.serving.attachments.contains_key(&from.id) => {
                return self.endpoint.handle_forwarded(&forward, reply_to, &self.trust, now);
            }
            Request::Forward(_) => Err(Discard::Forbidden),
            Request::Notify { .. } => Err(Discard::Forbidden),
            // Only operators have a second port.
            Request::PingElsewhere
            | Request::GetOperatorNodes { .. }
            | Request::GetSuperNodes { .. }
            | Request::GetNode(_)
            | Request::GetNodeInfo(_)
            | Request::GetTunnelNodes { .. }
            | Request::GetDevices { .. }
            | Request::GetHead { .. }
            | Request::GetHeads(_)
            | Request::SubmitSuperNode(_)
            | Request::TransferPartition { .. }
            | Request::Store(_)
            | Request::Reconcile { .. }
            | Request::DeviceSeen { .. }
            | Request::Refusals { .. }
            | Request::Leave(_)
            | Request::Attach
            | Request::GetRevocations { .. }
            | Request::GetDomainKey
            | Request::ForwardedTunnelRequest { .. }
            | Request::RelayJoin { .. } => Err(Discard::UnknownCommand),
        };
        match reply {
            Ok(reply) => self.endpoint.reply(&reply_to, &reply),
            Err(reason) => self.endpoint.discard(reason),
        }
    }

    fn command(&mut self, task: TaskId, command: Command, now: Now) {
        match command {
            Command::RefreshDevices => self.refresh_devices(task),
            Command::Route { device, service } => self.route(task, device, service, now),
            Command::Path { peer, device, service } => self.path(task, (peer, device), service, now),
            Command::Leave => self.leave(task, now),
            Command::SuperOff => self.super_off(task, now),
        }
    }

    fn answer(&mut self, task: TaskId, answer: Answer) {
        self.outputs.push_back(Output::Answer { task, answer });
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    fn new_task(&mut self) -> TaskId {
        self.next_task = self.next_task.saturating_add(1);
        TaskId(self.next_task)
    }

    /// Sends a request and remembers what for.
    fn ask(&mut self, server: Server, request: &Request, purpose: Purpose, now: Now) -> RequestId {
        self.acquaint(server.node, now);
        let id = self.endpoint.request(server.node, server.address, request, now);
        self.purposes.insert(id, purpose);
        self.note_asked(server.node, now);
        id
    }

    fn command_id(&mut self) -> peerage_wire::id::CommandId {
        use rand_core::Rng as _;
        let mut id = [0; peerage_wire::id::CommandId::SIZE];
        self.endpoint.rng().fill_bytes(&mut id);
        peerage_wire::id::CommandId(id)
    }

    /// Draws an interval within ± 20 % of its nominal length, so that nodes which started together part.
    fn jittered(&mut self, interval: Duration) -> Duration {
        let fifth = u64::try_from(interval.as_millis() / 5).unwrap_or(0);
        let drawn = self.endpoint.below(fifth.saturating_mul(2).saturating_add(1));
        interval.saturating_sub(Duration::from_millis(fifth)) + Duration::from_millis(drawn)
    }

    /// Writes to disk what nobody waits for.
    fn write(&mut self, mut changes: Vec<Change>) {
        changes.retain(|change| self.changes_disk(change));
        if changes.is_empty() {
            return;
        }
        let task = self.new_task();
        self.outputs.push_back(Output::Store { task, changes });
    }

    fn networks_changed(&mut self, interfaces: Vec<Interface>, now: Now) {
        self.review_carriers(&interfaces, now);
        self.interfaces = interfaces;
        self.servers.forget_families();
        self.stand_again();
        self.attach_anew();
        self.freshness.forget_silence();
        self.relocate(now);
        self.readdress_role(now);
        self.forget_paths();
        self.forget_searches_here();
    }

    /// Finds the locations anew: the networks have changed, or the keys.
    fn relocate(&mut self, now: Now) {
        let places = Places::find(&self.interfaces, &self.keys, self.place.as_deref());
        if places != self.places {
            self.event(Event::Locations(places.all().collect()));
            self.places = places;
        }
        self.review_serving(now);
        self.announce_soon(now);
    }

    fn clock_learned(&mut self, now: Now) {
        // It was planned by another time.
        self.renewal_of = None;
        // Whoever would have given a fresh Head may not have taken what was said with another time.
        self.freshness.forget_silence();
        self.own_records_changed(now);
        self.announce_soon(now);
    }
}

#[cfg(test)]
mod tests;
