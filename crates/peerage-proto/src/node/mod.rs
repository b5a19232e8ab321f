//! The node as a machine: what a member does on its own, for its local applications, and for other members.
//!
//! [`Node`] routes each [`Input`] to one of its parts and collects their outputs. The parts are files of this folder, each an
//! `impl Node` about one subject: `sync` keeps the Head and the sets it states, `serve` is the tunnel-node and `openings` its
//! decisions, `route` the user-node, `watch` looks after open tunnels. They share the message layer, the records and the look-ups.

mod config;
mod io;
mod lookup;
mod openings;
mod places;
mod queries;
mod reach;
mod route;
mod serve;
mod status;
mod sync;
mod watch;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use peerage_wire::id::{DeviceId, NodeId};
use peerage_wire::keys::{AgreementKey, DomainKeys};
use peerage_wire::message::{Reply, Request};
use peerage_wire::record::{DomainKeyBody, EndDevice, Record, Roles, Table, subject};
use peerage_wire::time::{Instant, Now, UnixTime};

use crate::discard::Discard;
use crate::endpoint::{Endpoint, Incoming, Outcome, RequestId};
use crate::lan::Interface;
use crate::table::{Inserted, Records};
use crate::trust::{Member, Trust};

pub use config::Config;
pub use io::{
    Answer, Change, Command, Event, Failure, Found, Input, Output, PinProof, Route, TaskId, TunnelId,
    Watched, Way,
};
pub use lookup::{REDUNDANCY, SECOND_ANSWER_TIMEOUT, Server};
pub use openings::{MAX_SERVED, MAX_SERVED_PER_PEER};
pub use status::{AttachmentStatus, DeviceStatus, HeadStatus, ServerStatus, Status};

use openings::Opening;
use places::Places;
use queries::{QueryId, Running};
use reach::Reach;
use route::Routing;
use serve::Serving;
use sync::Freshness;

/// How often expired records are swept out.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// How long before its end a membership is warned about.
const EXPIRY_WARNING: Duration = Duration::from_secs(7 * 86_400);

/// How long after a failed renewal the next is tried.
const RENEWAL_RETRY: Duration = Duration::from_secs(3_600);

/// What an own request was for.
#[derive(Clone, Debug)]
enum Purpose {
    /// A page of a look-up.
    Query(QueryId),
    /// Keeping in contact.
    Attach(NodeId),
    /// Storing the own NodeInfo.
    Announce,
    /// Telling where a device was seen.
    Report(DeviceId),
    /// Arranging a path to a tunnel-node.
    Path(TaskId),
    /// Leaving.
    Leave(TaskId),
}

/// What is remembered of an operator or super-node that can be asked.
#[derive(Clone, Copy, Debug, Default)]
struct Health {
    answered_at: Option<Instant>,
    rtt: Option<Duration>,
    failures: u32,
}

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
    places: Places,
    records: Records,
    devices: BTreeMap<DeviceId, (peerage_wire::id::RecordKey, EndDevice)>,

    purposes: BTreeMap<RequestId, Purpose>,
    queries: BTreeMap<QueryId, Running>,
    health: BTreeMap<NodeId, Health>,
    online: bool,
    told_revoked: bool,
    is_expelled: bool,

    freshness: Freshness,
    serving: Serving,
    openings: BTreeMap<TunnelId, Opening>,
    routing: Routing,
    reach: Reach,
    watched: BTreeMap<TunnelId, Watched>,
    links: BTreeSet<NodeId>,

    sweep_at: Instant,
    renew_at: Option<Instant>,
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
            places: Places::default(),
            records: Records::default(),
            devices: BTreeMap::new(),
            purposes: BTreeMap::new(),
            queries: BTreeMap::new(),
            health: BTreeMap::new(),
            online: false,
            told_revoked: false,
            is_expelled: false,
            freshness: Freshness::new(now.mono),
            serving: Serving::new(now.mono),
            openings: BTreeMap::new(),
            routing: Routing::default(),
            reach: Reach::default(),
            watched: BTreeMap::new(),
            links: BTreeSet::new(),
            sweep_at: now.mono.after(SWEEP_INTERVAL),
            renew_at: None,
            next_task: 0,
            outputs: VecDeque::new(),
        };
        node.remember(config.records, &config.statements, now);
        node
    }

    /// Takes in the own store.
    fn remember(&mut self, records: Vec<Record>, statements: &[peerage_wire::intro::KeyStatement], now: Now) {
        // The newest of each is what counts, whatever the order on disk.
        for record in records {
            self.trust.learn(&record);
            self.records.insert(record);
        }
        self.read_own_records(now);
        for statement in statements {
            let record = self.trust.operator_records().find(|r| subject(r.header()) == statement.node);
            if let Some(member) = record.and_then(Trust::member) {
                self.endpoint.learn_peer(member, *statement, now);
            }
        }
        self.reread_devices();
    }

    /// Takes an input; never fails, whatever came from outside.
    pub fn handle(&mut self, input: Input, now: Now) {
        match input {
            Input::Timeout => self.handle_timeout(now),
            Input::Datagram { remote, payload } => {
                self.endpoint.handle_datagram(remote, &payload, &self.trust, now);
            }
            Input::Networks(interfaces) => self.networks_changed(interfaces, now),
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
            Input::RouteFailed { device, peer, code: _ } => self.route_failed(device, peer, now),
            Input::Renewed(records) => self.renewed(&records, now),
            Input::Expelled => self.expelled(),
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
            (self.serving_at(), "attachment"),
            (self.routing.next_at(), "route"),
            (self.openings.values().map(|opening| opening.deadline).min(), "opening"),
            (Some(self.sweep_at), "sweep"),
            (self.renew_at, "renewal"),
        ];
        timers.into_iter().filter_map(|(at, why)| Some((at?, why))).min()
    }

    fn handle_timeout(&mut self, now: Now) {
        self.endpoint.handle_timeout(&self.trust, now);
        if self.sweep_at <= now.mono {
            self.sweep(now);
        }
        if self.renew_at.is_some_and(|at| at <= now.mono) {
            self.renew_at = Some(now.mono.after(RENEWAL_RETRY));
            self.outputs.push_back(Output::Renew);
        }
        self.serving_timeout(now);
        self.routing_timeout(now);
        self.openings_timeout(now);
    }

    /// Works off what the message layer has to say, until nothing is left to be said.
    fn settle(&mut self, now: Now) {
        loop {
            while let Some(outcome) = self.endpoint.poll_outcome() {
                self.handle_outcome(outcome, now);
            }
            self.keep_fresh(now);
            self.advance_openings(now);
            self.advance_routes(now);
            // What a look-up ends with may let an opening or a route go on, which may begin another look-up.
            let moved = self.drive_queries(now);
            if !moved && self.endpoint.has_no_outcome() {
                break;
            }
        }
        while let Some((remote, payload)) = self.endpoint.poll_transmit() {
            self.outputs.push_back(Output::Transmit { remote, payload });
        }
    }

    fn handle_outcome(&mut self, outcome: Outcome, now: Now) {
        match outcome {
            Outcome::Request(incoming) => self.handle_request(*incoming, now),
            Outcome::Answered { request, from, reply, rtt } => {
                self.heard_from(from, rtt, now);
                if let Some(purpose) = self.purposes.remove(&request) {
                    self.answered(purpose, request, from, reply, now);
                }
            }
            Outcome::Failed { request, to } => {
                self.silent(to);
                if let Some(purpose) = self.purposes.remove(&request) {
                    self.unanswered(purpose, request, now);
                }
            }
            Outcome::ClockLearned(offset) => {
                self.outputs.push_back(Output::Event(Event::ClockLearned(offset)));
                self.clock_learned(now);
            }
        }
    }

    fn answered(&mut self, purpose: Purpose, request: RequestId, from: NodeId, reply: Reply, now: Now) {
        match purpose {
            Purpose::Query(id) => self.query_answered(id, request, reply, now),
            Purpose::Attach(_) => self.attached(from, reply, now),
            Purpose::Announce => self.announced(reply, now),
            Purpose::Report(device) => self.reported(device, now),
            Purpose::Path(task) => self.path_answered(task, from, reply, now),
            Purpose::Leave(task) => self.answer(task, Answer::Left { confirmed: true }),
        }
    }

    fn unanswered(&mut self, purpose: Purpose, request: RequestId, now: Now) {
        match purpose {
            Purpose::Query(id) => self.query_failed(id, request),
            Purpose::Attach(server) => self.attachment_failed(server, now),
            Purpose::Announce => self.announcement_failed(now),
            Purpose::Report(device) => self.report_failed(device, now),
            Purpose::Path(task) => self.path_failed(task, request, now),
            Purpose::Leave(task) => self.answer(task, Answer::Left { confirmed: false }),
        }
    }

    /// Answers what other nodes ask of this one. It holds no part of the table, so it answers signs of life, paths and
    /// what an operator tells it.
    fn handle_request(&mut self, incoming: Incoming, now: Now) {
        let Incoming { from, remote, request, reply_to } = incoming;
        let reply = match request {
            Request::Ping if from.is_operator || from.id.domain == self.me.id.domain => {
                Ok(Reply::Reping { observed: remote })
            }
            Request::Ping => Err(Discard::Forbidden),
            Request::Notify { id, head } if from.is_operator => {
                self.take_head(&head, now);
                Ok(Reply::Notified(id))
            }
            Request::TunnelRequest(request) => self.tunnel_requested(&from, &request),
            Request::Notify { .. } => Err(Discard::Forbidden),
            Request::GetOperatorNodes { .. }
            | Request::GetSuperNodes { .. }
            | Request::GetNode(_)
            | Request::GetNodeInfo(_)
            | Request::GetTunnelNodes { .. }
            | Request::GetDevices { .. }
            | Request::GetHead
            | Request::Store(_)
            | Request::DeviceSeen { .. }
            | Request::Leave(_)
            | Request::Attach
            | Request::GetRevocations { .. }
            | Request::GetDomainKey => Err(Discard::UnknownCommand),
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
            Command::Leave => self.leave(task, now),
        }
    }

    fn leave(&mut self, task: TaskId, now: Now) {
        let Some(server) = self.servers().into_iter().next() else {
            return self.answer(task, Answer::Left { confirmed: false });
        };
        let request = Request::Leave(self.command_id());
        self.ask(server, &request, Purpose::Leave(task), now);
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
        let id = self.endpoint.request(server.node, server.address, request, now);
        self.purposes.insert(id, purpose);
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

    /// Returns the operators, which stand in for super-nodes, in random order; those that did not answer
    /// lately come last.
    fn servers(&mut self) -> Vec<Server> {
        let mut all: Vec<_> = self
            .trust
            .operators()
            .filter(|(id, _)| self.endpoint.peer(id).is_some())
            .filter_map(|(node, body)| Some(Server { node, address: *body.addresses.first()? }))
            .collect();
        for at in (1..all.len()).rev() {
            let other = usize::try_from(self.endpoint.below(at as u64 + 1)).unwrap_or(0);
            all.swap(at, other);
        }
        all.sort_by_key(|server| self.health.get(&server.node).map_or(0, |health| health.failures));
        all
    }

    fn heard_from(&mut self, node: NodeId, rtt: Duration, now: Now) {
        if !self.trust.is_operator(&node) {
            return;
        }
        let health = Health { answered_at: Some(now.mono), rtt: Some(rtt), failures: 0 };
        self.health.insert(node, health);
        if !std::mem::replace(&mut self.online, true) {
            self.event(Event::Online);
        }
    }

    fn silent(&mut self, node: NodeId) {
        if !self.trust.is_operator(&node) {
            return;
        }
        let health = self.health.entry(node).or_default();
        health.failures = health.failures.saturating_add(1);
        let all_silent = self
            .trust
            .operators()
            .all(|(id, _)| self.health.get(&id).is_some_and(|health| health.failures > 0));
        if all_silent && std::mem::replace(&mut self.online, false) {
            self.event(Event::Offline);
            // Operators are silent towards the revoked as well; over HTTPS they say so.
            self.outputs.push_back(Output::Renew);
        }
    }

    /// Keeps a verified record, in memory and on disk. Returns whether it is news.
    fn keep(&mut self, record: Record) -> bool {
        let news = self.records.insert(record.clone()) == Inserted::New;
        if news {
            self.trust.learn(&record);
            let task = self.new_task();
            self.outputs.push_back(Output::Store { task, changes: vec![Change::Put(record)] });
        }
        news
    }

    fn sweep(&mut self, now: Now) {
        self.sweep_at = now.mono.after(SWEEP_INTERVAL);
        let Some(time) = self.endpoint.judging_time(now) else { return };
        let gone = self.records.expire(time);
        // Memberships end also while nobody can be asked for a Head.
        self.review_watched(now);
        if gone.is_empty() {
            return;
        }
        self.note_differences();
        let changes = gone.iter().map(|record| {
            let (table, domain, key) = record.header().id();
            Change::Delete { table, domain, key }
        });
        let changes = changes.collect();
        let task = self.new_task();
        self.outputs.push_back(Output::Store { task, changes });
        if gone.iter().any(|record| record.header().table == Table::EndDevice) {
            self.devices_changed(now);
        }
    }

    /// Reads the own Node and DomainKey records, and plans the renewal at half of the life, jittered.
    fn read_own_records(&mut self, now: Now) {
        let (domain, key) = (self.me.id.domain, self.me.id.record_key());
        if let Some(record) = self.records.get(Table::Node, domain, key).cloned()
            && let Some(member) = Trust::member(&record)
        {
            self.me = member;
            self.endpoint.set_record(record.bytes().clone());
            let life = member.expires.since(record.header().made_at());
            let half = self.jittered(life / 2);
            let due = record.header().made_at().after(half);
            self.renew_at = Some(now.mono.after(due.since(self.endpoint.time(now))));
        }
        if let Some(record) = self.records.get(Table::DomainKey, domain, key)
            && let Ok(body) = DomainKeyBody::read(record)
            && let Ok(keys) = body.open(self.trust.network(), self.me.id, &self.receiving)
            && keys.epoch >= self.keys.epoch
        {
            self.keys = keys;
            self.epoch_began = record.header().made_at();
        }
    }

    fn renewed(&mut self, records: &[Bytes], now: Now) {
        let time = self.endpoint.judging_time(now);
        for bytes in records {
            match self.trust.verify(bytes, time, self.endpoint.crypto()) {
                Ok(record) => {
                    self.keep(record);
                }
                Err(_) => self.endpoint.discard(Discard::BadRecord),
            }
        }
        self.own_records_changed(now);
        self.note_differences();
    }

    /// An operator has told this node, in an answer sealed to it, that it was revoked.
    fn expelled(&mut self) {
        self.is_expelled = true;
        if !std::mem::replace(&mut self.told_revoked, true) {
            self.event(Event::Revoked);
        }
    }

    /// Returns whether this node was revoked, as far as it knows.
    fn is_revoked(&self) -> bool {
        self.is_expelled || self.trust.is_revoked(&self.me.id)
    }

    /// Returns whether this node's own record has expired, as far as it can judge.
    fn is_expired(&self, now: Now) -> bool {
        self.endpoint.judging_time(now).is_some_and(|time| self.me.expires <= time)
    }

    /// Returns whether the end of the membership is near.
    fn expires_soon(&self, now: Now) -> bool {
        let time = self.endpoint.judging_time(now);
        time.is_some_and(|time| self.me.expires <= time.after(EXPIRY_WARNING))
    }

    /// Opens the EndDevice records anew: after a change of the set, or of the keys.
    fn reread_devices(&mut self) {
        let domain = self.me.id.domain;
        let mut devices = BTreeMap::new();
        let live = self.records.list(Table::EndDevice, domain, None).filter(|r| !r.header().removed);
        for record in live {
            if EndDevice::check_public(record).is_err() {
                continue;
            }
            let body = record.read_private(&self.keys, self.endpoint.crypto(), EndDevice::read);
            if let Ok(device) = body
                && record.header().key == self.keys.device_record_key(&device.device)
            {
                devices.insert(device.device, (record.header().key, device));
            }
        }
        self.devices = devices;
    }

    /// Draws the consequences of another set of devices.
    fn devices_changed(&mut self, now: Now) {
        self.reread_devices();
        self.event(Event::DevicesChanged);
        self.review_serving(now);
        self.review_watched(now);
    }

    fn networks_changed(&mut self, interfaces: Vec<Interface>, now: Now) {
        self.interfaces = interfaces;
        self.relocate(now);
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
        self.own_records_changed(now);
        self.announce_soon(now);
    }
}

#[cfg(test)]
mod tests;
