//! The operator as a machine: Heads, look-ups while it stands in for super-nodes, and what members tell it.
//!
//! The ledger is the shell's: it signs and commits, and what it has committed comes in as
//! [`Input::Committed`]. This machine signs two things itself, because they must be fresh: Heads and its own NodeInfo.
//! Nothing durable depends on either.

mod checks;
mod former;
mod heads;
mod io;
mod map;
mod notes;
mod passing;
mod pushes;
mod segments;
mod spies;
mod supers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use peerage_wire::id::{CommandId, Domain, NodeId, PlacementKey, RecordKey};
use peerage_wire::message::{Refused, Reply, Request};
use peerage_wire::record::{
    Draft, Header, NodeInfoPublic, Record, SuperNodeBody, Table, UnverifiedRecord, subject,
};
use peerage_wire::time::{Instant, Now};
use rand_core::Rng as _;

use crate::carrier::StreamOrder;
use crate::discard::{Discard, Discards};
use crate::endpoint::{self, Endpoint, Incoming, Outcome, ReplyTo};
use crate::indexed::Indexed;
use crate::relay::{self, Desk};
use crate::responder::{self, Asked, View};
use crate::sizes::TableSize;
use crate::table::{Inserted, Records};
use crate::trust::{Member, Trust};

use heads::Heads;
pub use io::{Assignment, CheckId, DomainFacts, Input, Output, Port};
use notes::{Note, Notes};
use pushes::Pushes;
use spies::Spies;
pub use spies::{Evidence, Fault, Spied, SpyIdentity, VisitId};
use supers::Supers;
pub use supers::{SegmentStatus, SuperNodeStatus, SuperState};

/// How long a member counts as in contact after it was last heard: three attachment intervals (Rule 6.10).
pub const CONTACT_LIFETIME: Duration = Duration::from_secs(75);

/// How often the shell hears of one member's contact at the most, so that the ledger is not written at each message.
const CONTACT_NOTED_INTERVAL: Duration = Duration::from_secs(60);

/// Most members in contact whose address is remembered, some 100 bytes each; the others still get what they ask for.
const MAX_CONTACTS: usize = 100_000;

/// How long changes are collected before members are notified: a revocation commits many records at once.
const NOTIFY_DELAY: Duration = Duration::from_millis(50);

/// How often the own NodeInfo is made anew; it lives for twice as long (Rule 6.7).
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(300);

/// How often expired records are swept out.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// What an operator is.
#[derive(Clone, Debug)]
pub struct Config {
    /// The message layer's part.
    pub endpoint: endpoint::Config,
    /// The root key of the network.
    pub root: [u8; 32],
    /// Where everybody reaches this operator.
    pub addresses: Vec<SocketAddr>,
    /// How many legs it relays while it stands in for super-nodes.
    pub relay: relay::Limits,
    /// The mean time between two visits of spies to one super-node; `None`: none is visited.
    pub spy_interval: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
struct Contact {
    remote: SocketAddr,
    heard_at: Instant,
    noted_at: Instant,
    /// When it attached last: then it may be reached here by others (Rule 6.28).
    attached_at: Option<Instant>,
}

/// A running operator.
#[derive(Debug)]
pub struct Operator {
    endpoint: Endpoint,
    trust: Trust,
    addresses: Vec<SocketAddr>,
    records: Records,
    facts: BTreeMap<Domain, DomainFacts>,
    heads: Heads,
    contacts: Indexed<NodeId, Contact>,
    notes: Notes,
    desk: Desk,
    supers: Supers,
    spies: Spies,
    pushes: Pushes,
    changed: BTreeSet<Domain>,
    notify_at: Option<Instant>,
    announce_at: Instant,
    sweep_at: Instant,
    own_version: u64,
    outputs: VecDeque<Output>,
}

impl Operator {
    /// Makes an operator that holds nothing yet; its records arrive as [`Input::Domain`] and [`Input::Committed`].
    pub fn new(config: Config, seed: [u8; 32], now: Now) -> Self {
        let trust = Trust::new(config.endpoint.network, config.root);
        let mut endpoint = Endpoint::new(config.endpoint, seed, now);
        endpoint.trust_own_clock();
        let desk = Desk::new(config.relay, endpoint.rng());
        Self {
            endpoint,
            trust,
            addresses: config.addresses,
            records: Records::default(),
            facts: BTreeMap::new(),
            heads: Heads::default(),
            contacts: Indexed::default(),
            notes: Notes::default(),
            desk,
            supers: Supers::new(now.mono),
            spies: Spies::new(config.spy_interval),
            pushes: Pushes::default(),
            changed: BTreeSet::new(),
            notify_at: None,
            announce_at: now.mono,
            sweep_at: now.mono.after(SWEEP_INTERVAL),
            own_version: 0,
            outputs: VecDeque::new(),
        }
    }

    /// Takes an input; never fails, whatever came from outside.
    pub fn handle(&mut self, input: Input, now: Now) {
        match input {
            Input::Timeout => self.handle_timeout(now),
            Input::Datagram { remote, payload } => {
                self.endpoint.handle_datagram(remote, &payload, &self.trust, now);
            }
            Input::Stream(news) => self.stream_news(news, now),
            Input::Leg(input) => self.desk.handle(input, &mut self.endpoint, &self.trust, now),
            Input::Committed(records) => self.committed(records, now),
            Input::Domain(facts) => {
                self.facts.insert(facts.domain, facts);
                self.touch(facts.domain, now);
                self.plan_soon(now);
            }
            Input::Push(domain) => self.push(domain, now),
            Input::Noted { id, ok } => self.noted(id, ok, now),
            Input::TcpChecked { task, ok } => self.tcp_checked(task, ok, now),
            Input::Quarantine { node, on } => self.quarantine(node, on, now),
            Input::Spies(spies) => self.take_spies(spies, now),
            Input::SpyDatagram { visit, remote, payload } => self.spy_datagram(visit, remote, &payload, now),
        }
        self.drain_endpoint(now);
    }

    /// Returns the next thing to do, oldest first.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Returns when [`Input::Timeout`] is due at the latest, and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let timers = [
            (self.endpoint.poll_timeout(), "requests"),
            (self.notify_at, "notify"),
            (self.desk.poll_timeout(), "relay"),
            (self.supers.next_at(), "super-nodes"),
            (self.spies.next_at(), "spies"),
            (Some(self.announce_at), "announce"),
            (Some(self.sweep_at), "sweep"),
        ];
        timers.into_iter().filter_map(|(at, why)| Some((at?, why))).min()
    }

    /// Returns why datagrams were dropped.
    pub const fn discards(&self) -> &Discards {
        self.endpoint.discards()
    }

    /// Returns the statement about the sealing key of the day, which admissions carry.
    pub const fn statement(&self) -> &peerage_wire::intro::KeyStatement {
        self.endpoint.statement()
    }

    /// Returns the members in contact, and from where.
    pub fn contacts(&self, now: Now) -> impl Iterator<Item = (NodeId, SocketAddr)> + '_ {
        let live = move |c: &Contact| now.mono - c.heard_at <= CONTACT_LIFETIME;
        self.contacts.iter().filter(move |(_, c)| live(c)).map(|(id, contact)| (*id, contact.remote))
    }

    /// Returns the record of a table, domain and key that is held.
    pub fn record(&self, table: Table, domain: Domain, key: RecordKey) -> Option<&Record> {
        self.records.get(table, domain, key)
    }

    /// Returns how full its tables are.
    pub fn table_sizes(&self) -> Vec<TableSize> {
        let own = [
            TableSize::new("contacts", self.contacts.len(), MAX_CONTACTS),
            TableSize::new("changed domains", self.changed.len(), self.facts.len()),
            self.notes.size(),
        ];
        let own = own.into_iter().chain(self.supers.sizes()).chain(self.spies.sizes());
        own.chain(self.pushes.sizes()).chain(self.endpoint.table_sizes()).collect()
    }

    /// Returns how many records are held.
    pub fn records_held(&self) -> usize {
        self.records.len()
    }

    fn handle_timeout(&mut self, now: Now) {
        self.endpoint.handle_timeout(&self.trust, now);
        self.desk.handle_timeout(now);
        self.supers_timeout(now);
        self.spies_timeout(now);
        if self.announce_at <= now.mono {
            self.announce(now);
        }
        if self.notify_at.is_some_and(|at| at <= now.mono) {
            self.notify(now);
        }
        if self.sweep_at <= now.mono {
            self.sweep(now);
        }
        // Last: a request that cannot be made fails at the next timeout, which may as well be this one.
        self.endpoint.handle_timeout(&self.trust, now);
    }

    fn sweep(&mut self, now: Now) {
        self.sweep_at = now.mono.after(SWEEP_INTERVAL);
        for gone in self.records.expire(self.endpoint.time(now)) {
            self.heads.forget(gone.header().domain);
            if let Ok(body) = SuperNodeBody::read(&gone) {
                self.map_changed(&[body.segment].into(), now);
                self.plan_soon(now);
            }
        }
        self.contacts.retain(|_, contact| now.mono - contact.heard_at <= CONTACT_LIFETIME);
        self.notes.expire(now.mono);
        self.review_legs(now);
    }

    fn committed(&mut self, records: Vec<Record>, now: Now) {
        let (mut fresh, mut places) = (Vec::new(), BTreeSet::new());
        for record in records {
            self.trust.learn(&record);
            // After a restart with a clock that went back, Heads must still be newer than what they speak of.
            self.heads.rise_above(record.header().version);
            let header = *record.header();
            if header.table == Table::Node && header.removed {
                // Who has left is no longer answered.
                self.endpoint.forget_peer(&subject(&header));
                self.contacts.remove(&subject(&header));
            }
            if header.table == Table::OperatorNode && subject(&header) == self.endpoint.id() {
                self.endpoint.set_record(record.bytes().clone());
            }
            if header.table == Table::SuperNode {
                let before = self.assignment(&subject(&header)).map(|body| body.segment);
                let record = self.take_assignment(record, before, &mut places, now);
                fresh.extend(record.map(|record| (record, before)));
                continue;
            }
            if matches!(header.table, Table::Node | Table::Revocation | Table::OperatorNode) {
                // Who keeps the map, or may hold a part of it, may be another now.
                self.plan_soon(now);
            }
            if self.records.insert(record.clone()) == Inserted::New {
                self.touch(header.domain, now);
                fresh.push((record, None));
            }
        }
        self.map_changed(&places, now);
        for (record, before) in &fresh {
            self.push_record(record, *before, now);
        }
        self.review_legs(now);
    }

    /// Notes that what a domain's Head states has changed. A change of the operators concerns every domain.
    fn touch(&mut self, domain: Domain, now: Now) {
        if domain == Domain::OPERATORS {
            self.heads.forget_all();
            self.changed.extend(self.facts.keys());
        } else {
            self.heads.forget(domain);
            self.changed.insert(domain);
        }
        self.notify_at.get_or_insert(now.mono.after(NOTIFY_DELAY));
    }

    fn push(&mut self, domain: Option<Domain>, now: Now) {
        match domain {
            Some(domain) => self.touch(domain, now),
            None => self.touch(Domain::OPERATORS, now),
        }
    }

    /// Tells every member in contact with a changed domain about the new Head (Rule 6.22).
    fn notify(&mut self, now: Now) {
        self.notify_at = None;
        let changed = std::mem::take(&mut self.changed);
        for domain in &changed {
            self.push_head(*domain);
        }
        let concerned: Vec<_> = self.contacts(now).filter(|(id, _)| changed.contains(&id.domain)).collect();
        for (node, remote) in concerned {
            let Some(head) = self.head(node.domain, now) else { continue };
            let id = self.command_id();
            self.endpoint.request(node, remote, &Request::Notify { id, head }, now);
        }
    }

    fn command_id(&mut self) -> CommandId {
        let mut id = CommandId([0; CommandId::SIZE]);
        self.endpoint.rng().fill_bytes(&mut id.0);
        id
    }

    /// Publishes the own sealing key and addresses.
    fn announce(&mut self, now: Now) {
        self.announce_at = now.mono.after(ANNOUNCE_INTERVAL);
        let time = self.endpoint.time(now);
        let version = time.as_millis().max(self.own_version.saturating_add(1));
        self.own_version = version;
        let id = self.endpoint.id();
        let header = Header {
            table: Table::NodeInfo,
            domain: id.domain,
            key: id.record_key(),
            version,
            expires: time.after(ANNOUNCE_INTERVAL * 2),
            signer: id,
            removed: false,
        };
        let statement = *self.endpoint.statement();
        let public = NodeInfoPublic { statement, tags: Vec::new(), addresses: self.addresses.clone() };
        let draft = Draft { header, public: public.write(), private: None };
        let signed = draft.sign(self.endpoint.identity(), self.trust.network(), self.endpoint.crypto());
        match signed {
            Ok(record) => {
                self.records.insert(record);
            }
            Err(_) => self.endpoint.discard(Discard::BadRecord),
        }
    }

    fn drain_endpoint(&mut self, now: Now) {
        loop {
            while let Some(outcome) = self.endpoint.poll_outcome() {
                match outcome {
                    Outcome::Request(incoming) => self.handle_request(*incoming, now),
                    // A member that does not answer a Notify asks by itself before long.
                    Outcome::Answered { request, from, reply, .. } => {
                        if !self.pushes.ended(request, true) && !self.check_pinged(request, true, now) {
                            self.desk.answered(from, reply, &mut self.endpoint, now);
                        }
                    }
                    Outcome::Failed { request, .. } => {
                        let _ = self.pushes.ended(request, false) || self.check_pinged(request, false, now);
                    }
                    Outcome::Forwarded { .. } | Outcome::ClockLearned(_) | Outcome::ClockDoubted => {}
                }
            }
            self.pump_pushes(now);
            // A push that cannot be made has failed already; others may go on.
            if self.endpoint.poll_timeout().is_none_or(|at| at > now.mono) {
                break;
            }
            self.endpoint.handle_timeout(&self.trust, now);
        }
        while let Some(output) = self.desk.poll_output(&mut self.endpoint) {
            self.outputs.push_back(Output::Leg(output));
        }
        while let Some((remote, payload)) = self.endpoint.poll_transmit() {
            self.outputs.push_back(Output::Transmit { remote, payload, port: Port::Main });
        }
        while let Some((stream, payload)) = self.endpoint.poll_stream_transmit() {
            self.outputs.push_back(Output::Stream(StreamOrder::Send { stream, payload }));
        }
        while let Some((remote, payload)) = self.endpoint.poll_probe() {
            self.outputs.push_back(Output::Transmit { remote, payload, port: Port::Probe });
        }
    }

    fn handle_request(&mut self, incoming: Incoming, now: Now) {
        if matches!(incoming.request, Request::ForwardedTunnelRequest { .. } | Request::RelayJoin { .. }) {
            return self.pass(incoming, now);
        }
        let Incoming { from, remote, request, reply_to } = incoming;
        // Who has left may ask once more whether that is done.
        let from = match self.current(from) {
            Some(current) => current,
            None if matches!(request, Request::Leave(_)) => from,
            None => return self.endpoint.discard(Discard::Expired),
        };
        let answered = match request {
            Request::GetHead { domain } => {
                let domain = domain.unwrap_or(from.id.domain);
                self.heads_for(&[domain], (&from, remote, reply_to.room()), now).map(Some)
            }
            Request::GetHeads(domains) => {
                self.heads_for(&domains, (&from, remote, reply_to.room()), now).map(Some)
            }
            Request::SubmitSuperNode(submission) => self.submitted(&from, remote, submission, now).map(Some),
            Request::Refusals { id, refused } => self.refused(&from, id, &refused, now).map(Some),
            Request::Attach if from.roles.tunnel => {
                let reply = self.attach(&from, remote, now);
                self.endpoint.reply(&reply_to, &reply);
                return;
            }
            Request::Attach => Err(Discard::Forbidden),
            Request::PingElsewhere => {
                self.endpoint.reply_elsewhere(&reply_to, &Reply::Reping { observed: remote });
                Ok(None)
            }
            Request::Store(record) => self.store(&from, &record, now).map(Some),
            Request::DeviceSeen { id, key, location } => {
                let node = from.id;
                let permitted = from.roles.tunnel;
                let output = Output::DeviceSeen { id, node, key, location };
                if permitted {
                    Ok(self.take_note(Note::DeviceSeen, (id, output), reply_to.clone(), now))
                } else {
                    Err(Discard::Forbidden)
                }
            }
            Request::Leave(id) => {
                let output = Output::Left { id, node: from.id };
                Ok(self.take_note(Note::Leave, (id, output), reply_to.clone(), now))
            }
            read @ (Request::GetOperatorNodes { .. }
            | Request::GetSuperNodes { .. }
            | Request::GetNode(_)
            | Request::GetNodeInfo(_)
            | Request::GetTunnelNodes { .. }
            | Request::Ping
            | Request::GetDevices { .. }
            | Request::GetRevocations { .. }
            | Request::TransferPartition { .. }
            | Request::Reconcile { .. }
            | Request::GetDomainKey) => self.read(&read, (&from, remote, reply_to.room()), now).map(Some),
            Request::TunnelRequest(_)
            | Request::ForwardedTunnelRequest { .. }
            | Request::Forward(_)
            | Request::RelayJoin { .. }
            | Request::Notify { .. } => Err(Discard::UnknownCommand),
        };
        match answered {
            Ok(Some(reply)) => self.endpoint.reply(&reply_to, &reply),
            Ok(None) => {}
            Err(reason) => self.endpoint.discard(reason),
        }
        self.note_contact(from.id, remote, now);
    }

    /// Answers a read as a holder of everything that operators sign, and of announcements where it stands in.
    fn read(
        &self,
        read: &Request,
        (from, remote, room): (&Member, SocketAddr, usize),
        now: Now,
    ) -> Result<Reply, Discard> {
        use Request::{GetNodeInfo, GetTunnelNodes, Reconcile};
        let asked = Asked { from, remote, room, time: self.endpoint.time(now) };
        let view = View::everywhere(&self.records);
        // Holders may have whatever announcements there still are (Rule 6.75).
        if !matches!(read, GetNodeInfo(_) | GetTunnelNodes { .. } | Reconcile { .. }) {
            return responder::answer(read, asked, view);
        }
        let announced = &self.stands_in(from.id.domain);
        responder::answer(read, asked, View { announced, ..view })
    }

    /// Returns a member as the ledger knows it; the record in its introduction may be older (Rule 2.21). `None` if the
    /// ledger has removed it.
    fn current(&self, from: Member) -> Option<Member> {
        let held = self.records.get(Table::Node, from.id.domain, from.id.record_key());
        held.map_or(Some(from), Trust::member)
    }

    /// Remembers where a member was last heard: a NAT's mapping may carry a Notify back for a while.
    fn note_contact(&mut self, node: NodeId, remote: SocketAddr, now: Now) {
        if let Some(known) = self.contacts.get_mut(&node) {
            (known.remote, known.heard_at) = (remote, now.mono);
            if now.mono - known.noted_at < CONTACT_NOTED_INTERVAL {
                return;
            }
            known.noted_at = now.mono;
        } else if self.contacts.len() < MAX_CONTACTS {
            let (heard_at, noted_at) = (now.mono, now.mono);
            self.contacts.insert(node, Contact { remote, heard_at, noted_at, attached_at: None });
        } else {
            return;
        }
        self.outputs.push_back(Output::Contact { node, remote });
    }

    /// Keeps a record while the operator stands in for super-nodes: a member's own NodeInfo (Rule 6.23).
    fn store(&mut self, from: &Member, bytes: &Bytes, now: Now) -> Result<Reply, Discard> {
        let time = Some(self.endpoint.time(now));
        let header = *UnverifiedRecord::parse(bytes).map_err(|_| Discard::BadRecord)?.header();
        if header.table.is_operator_signed() {
            return self.has_newer(from, &header, now);
        }
        if header.table != Table::NodeInfo || subject(&header) != from.id {
            return Err(Discard::Forbidden);
        }
        let record = self
            .trust
            .verify_node_info(bytes, from, time, self.endpoint.crypto())
            .map_err(|_| Discard::BadRecord)?;
        let body = NodeInfoPublic::read(&record).ok();
        if body.is_none() && !header.removed {
            return Err(Discard::BadRecord);
        }
        let tags = body.iter().flat_map(|body| &body.tags);
        let places = tags.map(|tag| PlacementKey::new(header.domain, &tag.0)).chain([header.placement()]);
        // What is removed here is removed wherever it still is.
        if !header.removed && !self.takes_announcements(header.domain, places) {
            return Err(Discard::OutOfRange);
        }
        let version = match self.records.insert(record) {
            Inserted::New | Inserted::Same => header.version,
            Inserted::Older(held) => held,
            Inserted::Full => return Err(Discard::Full),
        };
        Ok(Reply::Stored { table: header.table, key: header.key, version })
    }

    /// Answers a super-node that offers what operators sign: the ledger has all of that, in this version or a newer one.
    fn has_newer(&self, from: &Member, header: &Header, now: Now) -> Result<Reply, Discard> {
        let Header { table, domain, key, .. } = *header;
        let is_holder = self.records.segment(&from.id, self.endpoint.time(now)).is_some();
        let held = self.records.get(table, domain, key).map(|record| record.header().version);
        let held = held.filter(|held| is_holder && *held >= header.version);
        held.map(|version| Reply::Stored { table, key, version }).ok_or(Discard::Forbidden)
    }

    /// Hands something with an effect to the ledger, once; a repetition of what is done is answered at once.
    fn take_note(
        &mut self,
        note: Note,
        (id, output): (CommandId, Output),
        reply_to: ReplyTo,
        now: Now,
    ) -> Option<Reply> {
        if self.notes.is_done(note, &id) {
            return Some(note.reply(id));
        }
        if self.notes.begin(note, id, reply_to, now.mono) {
            self.outputs.push_back(output);
        }
        None
    }

    /// Takes a super-node's report, once (Rule 4.10).
    fn refused(
        &mut self,
        from: &Member,
        id: CommandId,
        refused: &[Refused],
        now: Now,
    ) -> Result<Reply, Discard> {
        if self.records.segment(&from.id, self.endpoint.time(now)).is_none() {
            return Err(Discard::Forbidden);
        }
        if self.notes.is_done(Note::Refusals, &id) {
            return Ok(Note::Refusals.reply(id));
        }
        if !self.notes.done(Note::Refusals, id, now.mono) {
            return Err(Discard::Full);
        }
        self.note_refusals(from.id, refused, now.mono);
        Ok(Note::Refusals.reply(id))
    }

    fn noted(&mut self, id: CommandId, ok: bool, now: Now) {
        if let Some((note, reply_to)) = self.notes.end(&id, ok, now.mono) {
            self.endpoint.reply(&reply_to, &note.reply(id));
        }
    }
}

#[cfg(test)]
mod tests;
