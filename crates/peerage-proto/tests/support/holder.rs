//! Super-nodes that do as a test says: a message layer of their own, and answers from what the test lets them know.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use peerage_proto::endpoint::{self, Endpoint, Incoming, Outcome};
use peerage_proto::responder::{self, Asked, View};
use peerage_proto::table::{DEFAULT_MAX_BYTES, Records};
use peerage_proto::trust::{Member, Trust};
use peerage_wire::crypto::Real;
use peerage_wire::id::{CommandId, Domain, NodeId, PlacementKey, Segment};
use peerage_wire::message::{Load, Page, Reply, Request, Submission, SuperNodeState};
use peerage_wire::record::{
    Draft, HeadBody, NodeInfoPublic, Record, Roles, SetSummary, SuperNodeBody, Table, UnverifiedRecord,
};
use peerage_wire::time::{Instant, Now};
use rand_core::Rng as _;

use super::World;

/// What a super-node does with what it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Answers as it should.
    Honest,
    /// Does not answer.
    Silent,
    /// Answers with what was true when it was told to be so.
    Stale,
    /// Has the newest Head, and says that there is nothing else.
    Withholding,
    /// Alters everything that it hands out.
    Forging,
    /// Claims to hold a version from the end of time of whatever is stored.
    Poisoning,
}

pub struct Holder {
    pub id: NodeId,
    pub address: SocketAddr,
    pub segment: Segment,
    pub manner: Manner,
    /// How long its answers are under way.
    pub delay: Duration,
    /// What it was asked, each request as often as it arrived.
    pub asked: Vec<(Instant, Request)>,
    pub attached: BTreeSet<NodeId>,
    endpoint: Endpoint,
    trust: Trust,
    pub records: Records,
    /// What it holds on to, if it is out of date.
    pub old: Option<(Records, Bytes)>,
    /// When it next tells the operator that it is there, if it does.
    pub submits_at: Option<Instant>,
    /// What the operator says to that.
    pub states: Vec<SuperNodeState>,
}

/// How often a super-node tells the operator that it is there: seldom, but within its lease of 75 s.
const SUBMIT_INTERVAL: Duration = Duration::from_secs(25);

impl Holder {
    pub(super) fn has_key(&self, identity: &[u8; 32]) -> bool {
        self.endpoint.identity().public() == *identity
    }

    /// Tells the operator that it is there and holds what it should.
    fn submit(&mut self, operator: Member, now: Now) {
        self.submits_at = Some(now.mono.after(SUBMIT_INTERVAL));
        let own = self.records.get(Table::SuperNode, self.id.domain, self.id.record_key());
        let count = |table| self.records.in_range(table, self.segment, None).count();
        let records: usize = [Table::Node, Table::EndDevice, Table::DomainKey].into_iter().map(count).sum();
        let mut id = CommandId([0; 16]);
        self.endpoint.rng().fill_bytes(&mut id.0);
        let request = Request::SubmitSuperNode(Submission {
            id,
            addresses: vec![self.address],
            version: own.map_or(0, |record| record.header().version),
            leaving: false,
            load: Load {
                records: u32::try_from(records).unwrap(),
                max_bytes: DEFAULT_MAX_BYTES as u64,
                ..Load::default()
            },
        });
        self.endpoint.learn_identity(operator, now);
        let to = super::OPERATOR_ADDRESS.parse().unwrap();
        self.endpoint.request(operator.id, to, &request, now);
    }

    fn take(&mut self, reply: &Reply) {
        if let Reply::SuperNodeSubmitted { state, .. } = reply {
            self.states.push(*state);
        }
    }

    /// Returns how many requests of a kind it got, each counted as often as it arrived.
    pub fn count(&self, is: impl Fn(&Request) -> bool) -> usize {
        self.asked.iter().filter(|(_, request)| is(request)).count()
    }

    fn takes(&self, record: &Record) -> bool {
        let header = record.header();
        match header.table {
            Table::SuperNode | Table::OperatorNode => true,
            Table::Revocation => self.segment.touches(header.domain),
            Table::NodeInfo => places(record).iter().any(|place| self.segment.contains(*place)),
            Table::Node | Table::EndDevice | Table::DomainKey => self.segment.contains(header.placement()),
            Table::Head => false,
        }
    }

    /// Takes what the operator pushes.
    pub fn push(&mut self, record: &Record) {
        self.trust.learn(record);
        if self.takes(record) {
            self.records.insert(record.clone());
        }
    }

    /// Takes a datagram and returns what it answers.
    fn receive(
        &mut self,
        remote: SocketAddr,
        payload: &[u8],
        head: &Bytes,
        now: Now,
    ) -> Vec<(SocketAddr, Bytes)> {
        self.endpoint.handle_datagram(remote, payload, &self.trust, now);
        while let Some(outcome) = self.endpoint.poll_outcome() {
            if let Outcome::Answered { reply, .. } = &outcome {
                self.take(reply);
            }
            let Outcome::Request(incoming) = outcome else { continue };
            self.asked.push((now.mono, incoming.request.clone()));
            if let Some(reply) = self.answer(&incoming, head, now) {
                self.endpoint.reply(&incoming.reply_to, &reply);
            }
        }
        std::iter::from_fn(|| self.endpoint.poll_transmit()).collect()
    }

    fn answer(&mut self, incoming: &Incoming, head: &Bytes, now: Now) -> Option<Reply> {
        let Incoming { from, remote, request, reply_to } = incoming;
        let (records, head) = match (&self.old, self.manner) {
            (Some((records, head)), Manner::Stale) => (records, head),
            _ => (&self.records, head),
        };
        let asked = Asked { from, remote: *remote, room: reply_to.room(), time: now.unix };
        let reply = if let Request::GetHead { .. } = request {
            Reply::Head(Some(head.clone()))
        } else if let Request::Attach = request {
            self.attached.insert(from.id);
            Reply::Attached { observed: *remote, head: Some(head.clone()) }
        } else if let Request::Store(bytes) = request {
            let record = self.trust.verify_node_info(bytes, from, Some(now.unix), &Real).ok()?;
            let header = *record.header();
            self.records.insert(record);
            Reply::Stored { table: header.table, key: header.key, version: header.version }
        } else {
            responder::answer(request, asked, View::holder(records, &[self.segment])).ok()?
        };
        match self.manner {
            // Whoever wants to stay a super-node answers those who decide that.
            Manner::Silent => from.is_operator.then_some(reply),
            Manner::Honest | Manner::Stale => Some(reply),
            Manner::Withholding => Some(withheld(reply)),
            Manner::Forging => Some(forged(reply)),
            Manner::Poisoning => Some(poisoned(reply)),
        }
    }
}

fn places(record: &Record) -> Vec<PlacementKey> {
    let domain = record.header().domain;
    NodeInfoPublic::read(record).map(|body| body.placements(domain)).unwrap_or_default()
}

/// The domains of the super-nodes' organisations.
pub const FIRST_DOMAIN: u32 = 0x1000_0000;

#[expect(clippy::wildcard_enum_match_arm, reason = "nothing else names a version")]
fn poisoned(reply: Reply) -> Reply {
    match reply {
        Reply::Stored { table, key, .. } => Reply::Stored { table, key, version: u64::MAX },
        other => other,
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "whatever has no records stays as it is")]
fn withheld(reply: Reply) -> Reply {
    let nothing = Page::default;
    match reply {
        Reply::OperatorNodes(_) => Reply::OperatorNodes(nothing()),
        Reply::SuperNodes(_) => Reply::SuperNodes(nothing()),
        Reply::TunnelNodes(_) => Reply::TunnelNodes(nothing()),
        Reply::Devices(_) => Reply::Devices(nothing()),
        Reply::Revocations(_) => Reply::Revocations(nothing()),
        Reply::Node(_) => Reply::Node(None),
        Reply::NodeInfo(_) => Reply::NodeInfo(None),
        Reply::DomainKey(_) => Reply::DomainKey(None),
        other => other,
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "whatever has no records stays as it is")]
fn forged(reply: Reply) -> Reply {
    let forge = |bytes: &Bytes| {
        let mut bytes = bytes.to_vec();
        if let Some(last) = bytes.last_mut() {
            *last ^= 1;
        }
        Bytes::from(bytes)
    };
    let page = |page: Page| Page { records: page.records.iter().map(forge).collect(), ..page };
    let one = |record: Option<Bytes>| record.as_ref().map(forge);
    match reply {
        Reply::OperatorNodes(all) => Reply::OperatorNodes(page(all)),
        Reply::SuperNodes(all) => Reply::SuperNodes(page(all)),
        Reply::TunnelNodes(all) => Reply::TunnelNodes(page(all)),
        Reply::Devices(all) => Reply::Devices(page(all)),
        Reply::Revocations(all) => Reply::Revocations(page(all)),
        Reply::Node(record) => Reply::Node(one(record)),
        Reply::NodeInfo(record) => Reply::NodeInfo(one(record)),
        Reply::DomainKey(record) => Reply::DomainKey(one(record)),
        Reply::Head(record) => Reply::Head(one(record)),
        Reply::Attached { observed, head } => Reply::Attached { observed, head: one(head) },
        other => other,
    }
}

impl World {
    /// Adds a super-node of the organisation `n` that holds a part of the table, with the address 60.0.`n`.1.
    pub fn add_super_node(&mut self, n: u8, segment: Segment) -> SocketAddr {
        self.add_super_node_of(Domain(FIRST_DOMAIN + u32::from(n)), n, segment)
    }

    pub fn add_super_node_of(&mut self, domain: Domain, n: u8, segment: Segment) -> SocketAddr {
        let address = SocketAddr::from(([60, 0, n, 1], 7400));
        let (identity, _, [node, _]) = self.admit(domain, Roles { tunnel: false, super_node: true });
        let id = identity.node_id(domain);
        let config = endpoint::Config {
            network: self.network,
            crypto: Arc::new(Real),
            identity: identity.clone(),
            id,
            record: node.bytes().clone(),
            asks_introduction: true,
        };
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let mut endpoint = Endpoint::new(config, seed, self.now);
        endpoint.trust_own_clock();
        let mut holder = Holder {
            id,
            address,
            segment,
            manner: Manner::Honest,
            delay: Duration::ZERO,
            asked: Vec::new(),
            attached: BTreeSet::new(),
            endpoint,
            trust: Trust::new(self.network, self.root.public()),
            records: Records::default(),
            old: None,
            submits_at: None,
            states: Vec::new(),
        };
        self.ledger.values().for_each(|record| holder.push(record));
        self.holders.insert(address, holder);
        let record = self.super_node_record(id, identity.public(), segment, address);
        self.commit(vec![record]);
        address
    }

    fn super_node_record(
        &mut self,
        id: NodeId,
        identity: [u8; 32],
        segment: Segment,
        address: SocketAddr,
    ) -> Record {
        let body = SuperNodeBody { segment, map_version: 1, identity, addresses: vec![address] };
        let key = id.record_key();
        self.sign(Table::SuperNode, id.domain, key, |d| Draft { public: body.write(), ..d })
    }

    /// Ends the role of a super-node: it no longer counts among those that the Head states.
    pub fn drop_super_node(&mut self, address: SocketAddr) {
        let id = self.holders[&address].id;
        self.ledger.remove(&(Table::SuperNode, id.domain, id.record_key()));
        for holder in self.holders.values_mut() {
            let mut records = Records::default();
            for record in self.ledger.values().filter(|record| holder.takes(record)) {
                records.insert(record.clone());
            }
            holder.records = records;
        }
        self.head = None;
    }

    pub fn holder(&mut self, address: SocketAddr) -> &mut Holder {
        self.holders.get_mut(&address).expect("a super-node of this world")
    }

    /// Lets all super-nodes behave in the same way.
    pub fn behave(&mut self, manner: Manner) {
        self.holders.values_mut().for_each(|holder| holder.manner = manner);
    }

    /// Lets all super-nodes tell the operator that they are there, from now on.
    pub fn lease_holders(&mut self) {
        let now = self.now.mono;
        self.holders.values_mut().for_each(|holder| holder.submits_at = Some(now));
    }

    /// Lets every super-node remember what is true now, for those that will be out of date.
    pub fn remember(&mut self) {
        let head = self.head();
        self.holders
            .values_mut()
            .for_each(|holder| holder.old = Some((holder.records.clone(), head.clone())));
    }

    /// Returns the Head that super-nodes have of the operator: at most 15 s old while it is up.
    pub fn head(&mut self) -> Bytes {
        let now = self.now;
        if let Some((at, head)) = &self.head
            && (!self.operator_up || now.mono - *at < Duration::from_secs(15))
        {
            return head.clone();
        }
        let made = now.unix;
        let set = |table, domain| {
            let all = self.ledger.values().filter(|record| record.header().table == table);
            SetSummary::of(all.filter(|r| r.header().domain == domain && r.is_valid_at(made)))
        };
        let super_nodes = self.ledger.values().filter(|record| {
            SuperNodeBody::read(record).is_ok_and(|body| body.segment.touches(super::DOMAIN))
        });
        let body = HeadBody {
            operators: set(Table::OperatorNode, Domain::OPERATORS),
            revocations: set(Table::Revocation, super::DOMAIN),
            devices: set(Table::EndDevice, super::DOMAIN),
            epoch: self.keys.epoch,
            map_version: 0,
            offline_hours: self.facts.offline_hours,
            super_nodes: Some(SetSummary::of(super_nodes)),
        };
        let key = HeadBody::record_key(super::DOMAIN);
        let head = self.sign(Table::Head, super::DOMAIN, key, |d| Draft { public: body.write(), ..d });
        self.head = Some((now.mono, head.bytes().clone()));
        head.bytes().clone()
    }

    /// Lets a super-node tell a member that there is a newer Head, as it does when an operator has told it so.
    pub fn notify_from(&mut self, address: SocketAddr, member: SocketAddr) {
        let (head, now) = (self.head(), self.now);
        let host = &self.hosts[&member];
        let to = Member {
            id: host.id,
            identity: host.identity.public(),
            roles: Roles { tunnel: true, super_node: true },
            is_operator: false,
            expires: now.unix.after(Duration::from_secs(86_400)),
        };
        let id = CommandId([7; 16]);
        let holder = self.holders.get_mut(&address).expect("a super-node of this world");
        holder.endpoint.learn_identity(to, now);
        holder.endpoint.request(to.id, member, &Request::Notify { id, head }, now);
        let out: Vec<_> = std::iter::from_fn(|| holder.endpoint.poll_transmit()).collect();
        for (to, payload) in out {
            self.send(address, to, payload);
        }
        self.pump();
    }

    /// Hands a datagram to the super-node at an address. Returns false if there is none.
    pub(super) fn deliver_to_holder(&mut self, from: SocketAddr, to: SocketAddr, payload: &Bytes) -> bool {
        if !self.holders.contains_key(&to) {
            return false;
        }
        let (now, head) = (self.now, self.head());
        let last = self.last_is_honest && {
            self.reached.insert(to);
            self.reached.len() == self.holders.len()
        };
        let holder = self.holders.get_mut(&to).expect("it is there");
        if last {
            holder.manner = Manner::Honest;
            self.last_is_honest = false;
        }
        let (delay, answers) = (holder.delay, holder.receive(from, payload, &head, now));
        for (remote, answer) in answers {
            self.send_after(to, remote, answer, delay);
        }
        true
    }

    /// Timers of super-nodes: what they ask again, and new keys.
    pub(super) fn fire_holders(&mut self) {
        let now = self.now;
        let operator = Trust::member(&self.operator_record).unwrap();
        for holder in self.holders.values_mut() {
            if holder.submits_at.is_some_and(|at| at <= now.mono) {
                holder.submit(operator, now);
            }
            if holder.endpoint.poll_timeout().is_some_and(|at| at <= now.mono) {
                holder.endpoint.handle_timeout(&holder.trust, now);
                while holder.endpoint.poll_outcome().is_some() {}
            }
        }
        let sent = self.holders.iter_mut().flat_map(|(address, holder)| {
            std::iter::from_fn(|| holder.endpoint.poll_transmit())
                .map(|out| (*address, out))
                .collect::<Vec<_>>()
        });
        for (from, (to, payload)) in sent.collect::<Vec<_>>() {
            self.send(from, to, payload);
        }
    }

    pub(super) fn holders_due(&self) -> Option<Instant> {
        let submits = self.holders.values().filter_map(|holder| holder.submits_at);
        self.holders.values().filter_map(|holder| holder.endpoint.poll_timeout()).chain(submits).min()
    }
}

/// Returns a NodeInfo's node, for those who look into what was stored.
pub fn stored_for(records: &Records, domain: Domain) -> Vec<NodeId> {
    let all = records.list(Table::NodeInfo, domain, None);
    all.filter_map(|record| UnverifiedRecord::parse(record.bytes()).ok())
        .map(|record| peerage_wire::record::subject(record.header()))
        .collect()
}
