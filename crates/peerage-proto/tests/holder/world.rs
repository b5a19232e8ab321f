//! The network: wires that deliver at once or not at all, an operator, holders with a disk, and members.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chacha20::ChaCha20Rng;
use peerage_proto::discard::Discard;
use peerage_proto::endpoint::{self, Endpoint, Incoming, Outcome, RequestId};
use peerage_proto::node::{self, Answer, Change, Command, Elections, Event, Node, SuperConfig, TaskId};
use peerage_proto::relay::{self, LegId};
use peerage_proto::responder::{self, Asked, View};
use peerage_proto::table::Records;
use peerage_proto::trust::{Member, Trust};
use peerage_wire::cbor::MapWriter;
use peerage_wire::crypto::{Crypto, Real};
use peerage_wire::id::{CommandId, Domain, LinkId, LookupTag, NetworkId, NodeId, RecordKey, Segment, sha256};
use peerage_wire::keys::{AgreementKey, DomainKeys, IdentityKey, SecretKey, network_id};
use peerage_wire::message::{Refused, Reply, Request, Submission, SuperNodeState};
use peerage_wire::record::{
    DomainKeyBody, Draft, EndDevice, HeadBody, Header, NodeBody, NodeInfoPublic, OperatorBody, OperatorState,
    Record, RevocationBody, RevocationKind, Roles, SuperNodeBody, Table,
};
use peerage_wire::time::{Instant, Now, UnixTime};
use rand_core::{Rng as _, SeedableRng as _};

pub(crate) const OPERATOR_ADDRESS: &str = "198.51.101.1:7400";
/// Organisations that have members, and some that lend a super-node each.
pub(crate) const RED: Domain = Domain(0x1000_0001);
pub(crate) const BLUE: Domain = Domain(0x9000_0002);
pub(crate) const GREEN: Domain = Domain(0xd000_0006);
pub(crate) const LENDERS: [Domain; 3] = [Domain(0x4000_0003), Domain(0x5000_0004), Domain(0x6000_0005)];
pub(crate) const MEMBER: Roles = Roles { tunnel: true, super_node: false };
pub(crate) const LENDER: Roles = Roles { tunnel: true, super_node: true };

type Key = (Table, Domain, RecordKey);

/// A holder with its disk.
pub(crate) struct Holder {
    pub(crate) node: Node,
    pub(crate) id: NodeId,
    pub(crate) identity: IdentityKey,
    pub(crate) disk: BTreeMap<Key, Record>,
    pub(crate) events: Vec<Event>,
    pub(crate) answers: BTreeMap<TaskId, Answer>,
    /// Everything that it ever wrote.
    pub(crate) written: Vec<Record>,
    config: node::Config,
    next_task: u64,
}

/// A message layer without a node behind it: a member, or somebody with a member's keys, or the operator.
pub(crate) struct Actor {
    pub(crate) endpoint: Endpoint,
    pub(crate) trust: Trust,
    pub(crate) id: NodeId,
    pub(crate) identity: IdentityKey,
    pub(crate) record: Record,
    /// Heads that it was told.
    pub(crate) told: Vec<Bytes>,
    pub(crate) answered: BTreeMap<RequestId, Reply>,
    /// What a super-node that is no honest one answers.
    pub(crate) answers: Option<fn(&Request, &mut ChaCha20Rng) -> Option<Reply>>,
    /// How many requests it got.
    pub(crate) asked: usize,
}

/// The operator: a ledger, and what super-nodes tell it.
pub(crate) struct Operator {
    pub(crate) layer: Actor,
    pub(crate) ledger: Records,
    pub(crate) is_up: bool,
    /// Answers offers of super-nodes.
    pub(crate) keeps_map: bool,
    /// Hands nothing over.
    pub(crate) is_mute: bool,
    /// Knows no questions for several Heads, and answers the first.
    pub(crate) is_old: bool,
    /// How many Heads it was asked for at once, each time that these were several.
    pub(crate) lists: Vec<usize>,
    pub(crate) epoch: u32,
    pub(crate) states: BTreeMap<NodeId, SuperNodeState>,
    pub(crate) submissions: Vec<(NodeId, Submission, Now)>,
    pub(crate) refused: Vec<(NodeId, Refused)>,
    /// Requests that it answered, by command number.
    pub(crate) served: BTreeMap<u8, usize>,
}

pub(crate) struct World {
    pub(crate) now: Now,
    pub(crate) rng: ChaCha20Rng,
    pub(crate) network: NetworkId,
    pub(crate) root: IdentityKey,
    pub(crate) operator: Operator,
    pub(crate) holders: BTreeMap<SocketAddr, Holder>,
    pub(crate) actors: BTreeMap<SocketAddr, Actor>,
    pub(crate) keys: BTreeMap<Domain, DomainKeys>,
    pub(crate) cut: BTreeSet<SocketAddr>,
    /// How many datagrams went from where to where.
    pub(crate) carried: BTreeMap<(SocketAddr, SocketAddr), usize>,
    flights: VecDeque<(SocketAddr, SocketAddr, Bytes)>,
    version: u64,
    legs: u64,
}

pub(crate) fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(crate) fn operator_address() -> SocketAddr {
    at(OPERATOR_ADDRESS)
}

/// The address of a holder by number.
pub(crate) fn holder_at(n: u8) -> SocketAddr {
    SocketAddr::from(([45, 10, n, 1], 7400))
}

fn member_of(record: &Record) -> Member {
    Trust::member(record).expect("an actor is a member")
}

fn seed(rng: &mut ChaCha20Rng) -> [u8; 32] {
    let mut seed = [0; 32];
    rng.fill_bytes(&mut seed);
    seed
}

fn header(table: Table, domain: Domain, key: RecordKey, signer: NodeId, now: Now) -> Header {
    let expires = now.unix.after(table.max_life());
    let version = now.unix.as_millis();
    Header { table, domain, key, version, expires, signer, removed: false }
}

impl Actor {
    fn new(
        rng: &mut ChaCha20Rng,
        trust: Trust,
        (identity, record): (IdentityKey, Record),
        asks_introduction: bool,
        now: Now,
    ) -> Self {
        let id = identity.node_id(record.header().domain);
        let config = endpoint::Config {
            network: *trust.network(),
            crypto: Arc::new(Real),
            identity: identity.clone(),
            id,
            record: record.bytes().clone(),
            asks_introduction,
        };
        let mut endpoint = Endpoint::new(config, seed(rng), now);
        endpoint.trust_own_clock();
        let (told, answered) = (Vec::new(), BTreeMap::new());
        Self { endpoint, trust, id, identity, record, told, answered, answers: None, asked: 0 }
    }

    fn work(&mut self, rng: &mut ChaCha20Rng, now: Now) {
        while let Some(outcome) = self.endpoint.poll_outcome() {
            match outcome {
                Outcome::Answered { request, reply, .. } => {
                    self.answered.insert(request, reply);
                }
                Outcome::Request(incoming) => {
                    self.asked += 1;
                    if let Request::Forward(forward) = &incoming.request {
                        self.endpoint.handle_forwarded(forward, incoming.reply_to, &self.trust, now);
                        continue;
                    }
                    let reply = match &incoming.request {
                        Request::Notify { id, head } => {
                            self.told.push(head.clone());
                            Some(Reply::Notified(*id))
                        }
                        Request::Ping => Some(Reply::Reping { observed: incoming.remote }),
                        other => self.answers.and_then(|answers| answers(other, rng)),
                    };
                    if let Some(reply) = reply {
                        self.endpoint.reply(&incoming.reply_to, &reply);
                    }
                }
                _ => {}
            }
        }
    }
}

impl Operator {
    fn work(&mut self, now: Now) {
        while let Some(outcome) = self.layer.endpoint.poll_outcome() {
            match outcome {
                Outcome::Request(incoming) => self.answer(*incoming, now),
                Outcome::Answered { request, reply, .. } => {
                    self.layer.answered.insert(request, reply);
                }
                _ => {}
            }
        }
    }

    fn answer(&mut self, incoming: Incoming, now: Now) {
        let Incoming { from, remote, request, reply_to } = incoming;
        *self.served.entry(request.number()).or_default() += 1;
        let time = self.layer.endpoint.time(now);
        let asked = Asked { from: &from, remote, room: reply_to.room(), time };
        let view = View::everywhere(&self.ledger);
        let reply = match &request {
            Request::SubmitSuperNode(_) if !self.keeps_map => Err(Discard::Forbidden),
            Request::SubmitSuperNode(submission) => {
                self.submissions.push((from.id, submission.clone(), now));
                let state = self.states.get(&from.id).copied().unwrap_or(SuperNodeState::NotNeeded);
                Ok(Reply::SuperNodeSubmitted { id: submission.id, state })
            }
            Request::Refusals { id, refused } => {
                self.refused.extend(refused.iter().map(|refused| (from.id, *refused)));
                Ok(Reply::RefusalsNoted(*id))
            }
            Request::GetHead { domain } => {
                let domain = domain.unwrap_or(from.id.domain);
                responder::may_have_head(domain, asked, view)
                    .map(|()| Reply::Head(Some(self.head(domain, now).bytes().clone())))
            }
            Request::GetHeads(domains) => {
                self.lists.push(domains.len());
                let known = domains.iter().take(if self.is_old { 1 } else { domains.len() });
                let may = known.filter(|domain| responder::may_have_head(**domain, asked, view).is_ok());
                Ok(Reply::heads(may.map(|domain| self.head(*domain, now).bytes().clone()).collect()))
            }
            Request::Leave(id) => Ok(Reply::Left(*id)),
            Request::Reconcile { .. } | Request::TransferPartition { .. } if self.is_mute => {
                Err(Discard::Forbidden)
            }
            Request::Store(bytes) => self.stand_in(&from, bytes, time),
            read => responder::answer(read, asked, view),
        };
        if let Ok(reply) = reply {
            self.layer.endpoint.reply(&reply_to, &reply);
        }
    }

    /// Keeps what a node announces, in place of super-nodes.
    fn stand_in(&mut self, from: &Member, bytes: &Bytes, time: UnixTime) -> Result<Reply, Discard> {
        let verified = self.layer.trust.verify_node_info(bytes, from, Some(time), &Real);
        let record = verified.map_err(|_| Discard::BadRecord)?;
        let header = *record.header();
        self.ledger.insert(record);
        Ok(Reply::Stored { table: header.table, key: header.key, version: header.version })
    }

    pub(crate) fn head(&self, domain: Domain, now: Now) -> Record {
        let made = now.unix;
        let body = HeadBody {
            operators: self.ledger.summary(Table::OperatorNode, Domain::OPERATORS, made),
            revocations: self.ledger.summary(Table::Revocation, domain, made),
            devices: self.ledger.summary(Table::EndDevice, domain, made),
            epoch: self.epoch,
            map_version: 1,
            super_nodes: Some(self.ledger.super_node_summary(domain, made)),
            offline_hours: None,
        };
        let header = header(Table::Head, domain, HeadBody::record_key(domain), self.layer.id, now);
        let draft = Draft { header, public: body.write(), private: None };
        draft.sign(&self.layer.identity, self.layer.trust.network(), &Real).unwrap()
    }
}

impl World {
    pub(crate) fn new(number: u64) -> Self {
        let mut rng = ChaCha20Rng::seed_from_u64(number);
        let (root, identity) = (IdentityKey::generate(&mut rng), IdentityKey::generate(&mut rng));
        let network = network_id(&root.public());
        let now = Now { mono: Instant::from_micros(1_000_000), unix: UnixTime::from_secs(1_800_000_000) };
        let body = OperatorBody {
            identity: identity.public(),
            enrolment: [1; 32],
            addresses: vec![operator_address()],
            state: OperatorState::Active,
        };
        let key = identity.node_id(Domain::OPERATORS).record_key();
        let signer = root.node_id(Domain::OPERATORS);
        let header = header(Table::OperatorNode, Domain::OPERATORS, key, signer, now);
        let record =
            Draft { header, public: body.write(), private: None }.sign(&root, &network, &Real).unwrap();
        let mut trust = Trust::new(network, root.public());
        trust.learn(&record);
        let mut ledger = Records::default();
        ledger.insert(record.clone());
        let layer = Actor::new(&mut rng, trust, (identity, record), true, now);
        let operator = Operator {
            layer,
            ledger,
            is_up: true,
            keeps_map: true,
            is_mute: false,
            is_old: false,
            lists: Vec::new(),
            epoch: 1,
            states: BTreeMap::new(),
            submissions: Vec::new(),
            refused: Vec::new(),
            served: BTreeMap::new(),
        };
        Self {
            now,
            rng,
            network,
            root,
            operator,
            holders: BTreeMap::new(),
            actors: BTreeMap::new(),
            keys: BTreeMap::new(),
            cut: BTreeSet::new(),
            carried: BTreeMap::new(),
            flights: VecDeque::new(),
            version: 0,
            legs: 0,
        }
    }

    // ---- the ledger -------------------------------------------------------------------------

    /// Adds a second operator, which does what the test says.
    pub(crate) fn second_operator(&mut self, address: &str) -> (SocketAddr, Record) {
        let identity = IdentityKey::generate(&mut self.rng);
        let body = OperatorBody {
            identity: identity.public(),
            enrolment: [2; 32],
            addresses: vec![at(address)],
            state: OperatorState::Active,
        };
        let key = identity.node_id(Domain::OPERATORS).record_key();
        let signer = self.root.node_id(Domain::OPERATORS);
        let header = header(Table::OperatorNode, Domain::OPERATORS, key, signer, self.now);
        let draft = Draft { header, public: body.write(), private: None };
        let record = draft.sign(&self.root, &self.network, &Real).unwrap();
        self.operator.ledger.insert(record.clone());
        self.operator.layer.trust.learn(&record);
        (self.actor(address, identity, record.clone()), record)
    }

    /// Signs a record and writes it into the ledger.
    pub(crate) fn commit(
        &mut self,
        table: Table,
        (domain, key): (Domain, RecordKey),
        draft: impl FnOnce(Draft) -> Draft,
    ) -> Record {
        self.version = self.now.unix.as_millis().max(self.version + 1);
        let header =
            Header { version: self.version, ..header(table, domain, key, self.operator.layer.id, self.now) };
        let empty = Draft { header, public: MapWriter::new(), private: None };
        let record = draft(empty).sign(&self.operator.layer.identity, &self.network, &Real).unwrap();
        self.operator.ledger.insert(record.clone());
        self.operator.layer.trust.learn(&record);
        record
    }

    pub(crate) fn keys_of(&mut self, domain: Domain) -> DomainKeys {
        let rng = &mut self.rng;
        let made = || DomainKeys {
            epoch: 1,
            epoch_key: SecretKey::generate(rng),
            previous: None,
            location_key: SecretKey::generate(rng),
        };
        self.keys.entry(domain).or_insert_with(made).clone()
    }

    /// Admits a member, with its Node and DomainKey records.
    pub(crate) fn admit(&mut self, domain: Domain, roles: Roles) -> (IdentityKey, AgreementKey, [Record; 2]) {
        let identity = IdentityKey::generate(&mut self.rng);
        let receiving = AgreementKey::generate(&mut self.rng);
        let id = identity.node_id(domain);
        let body = NodeBody { identity: identity.public(), receiving: *receiving.public(), roles };
        let at = (domain, id.record_key());
        let node = self.commit(Table::Node, at, |draft| Draft { public: body.write(), ..draft });
        let keys = self.keys_of(domain);
        let to = (&self.network.clone(), id, receiving.public());
        let sealed = DomainKeyBody::seal(&keys, to, &mut self.rng).unwrap();
        let key = self.commit(Table::DomainKey, at, |draft| Draft { public: sealed.write(), ..draft });
        (identity, receiving, [node, key])
    }

    /// Registers so many devices of a domain.
    pub(crate) fn register(&mut self, domain: Domain, names: std::ops::Range<u32>) -> Vec<Record> {
        let record = |world: &mut Self, name: u32| {
            let key = RecordKey(sha256(&[&name.to_be_bytes(), &domain.to_bytes()]));
            world.commit(Table::EndDevice, (domain, key), |draft| Draft {
                public: EndDevice::public(),
                ..draft
            })
        };
        names.map(|name| record(self, name)).collect()
    }

    pub(crate) fn revoke(&mut self, node: NodeId) -> Record {
        let body = RevocationBody { kind: RevocationKind::Node(node), at: self.now.unix, reason: 1 };
        self.commit(Table::Revocation, (node.domain, body.record_key()), |draft| Draft {
            public: body.write(),
            ..draft
        })
    }

    /// Signs the assignment of a holder, without telling it.
    pub(crate) fn assign(&mut self, holder: SocketAddr, segment: Segment) -> Record {
        let (id, identity) = (self.holders[&holder].id, self.holders[&holder].identity.public());
        self.assign_node(id, identity, holder, segment)
    }

    pub(crate) fn assign_node(
        &mut self,
        id: NodeId,
        identity: [u8; 32],
        address: SocketAddr,
        segment: Segment,
    ) -> Record {
        self.operator.states.insert(id, SuperNodeState::Assigned);
        let body = SuperNodeBody { segment, map_version: 1, identity, addresses: vec![address] };
        self.commit(Table::SuperNode, (id.domain, id.record_key()), |draft| Draft {
            public: body.write(),
            ..draft
        })
    }

    /// Takes the part of a holder away, without telling it.
    pub(crate) fn dismiss(&mut self, holder: SocketAddr) -> Record {
        let id = self.holders[&holder].id;
        self.operator.states.insert(id, SuperNodeState::NotNeeded);
        self.commit(Table::SuperNode, (id.domain, id.record_key()), |mut draft| {
            draft.header.removed = true;
            draft
        })
    }

    /// Stores records with a holder, as the operator does after a commit.
    pub(crate) fn push(&mut self, holder: SocketAddr, records: &[Record]) {
        let id = self.holders[&holder].id;
        self.introduce(operator_address(), id, holder);
        for record in records {
            let request = Request::Store(record.bytes().clone());
            self.operator.layer.endpoint.request(id, holder, &request, self.now);
        }
        self.pump();
    }

    /// Tells a holder of a domain's new Head, as the operator does after a commit.
    pub(crate) fn notify(&mut self, holder: SocketAddr, domain: Domain) {
        let id = self.holders[&holder].id;
        self.introduce(operator_address(), id, holder);
        let head = self.operator.head(domain, self.now).bytes().clone();
        let mut command = CommandId([0; CommandId::SIZE]);
        self.rng.fill_bytes(&mut command.0);
        let request = Request::Notify { id: command, head };
        self.operator.layer.endpoint.request(id, holder, &request, self.now);
        self.pump();
    }

    // ---- holders ----------------------------------------------------------------------------

    /// Adds a member whose owner lends it.
    pub(crate) fn lend(&mut self, address: SocketAddr, domain: Domain) -> SocketAddr {
        self.lend_with(address, domain, |_| {})
    }

    pub(crate) fn lend_with(
        &mut self,
        address: SocketAddr,
        domain: Domain,
        change: impl FnOnce(&mut node::Config),
    ) -> SocketAddr {
        let (identity, receiving, [node, key]) = self.admit(domain, LENDER);
        let id = identity.node_id(domain);
        let keys = self.keys_of(domain);
        let crypto: Arc<dyn Crypto> = Arc::new(Real);
        let records = vec![self.operator.layer.record.clone(), node.clone(), key];
        let mut config = node::Config {
            endpoint: endpoint::Config {
                network: self.network,
                crypto,
                identity: identity.clone(),
                id,
                record: node.bytes().clone(),
                asks_introduction: false,
            },
            root: self.root.public(),
            receiving,
            keys,
            statements: vec![*self.operator.layer.endpoint.statement()],
            records: Vec::new(),
            port: address.port(),
            advertise: vec![address],
            serves: true,
            elections: Elections { multicast: false, spread: Duration::ZERO, ..Elections::default() },
            eager: false,
            place: None,
            one_machine: false,
            bound: None,
            carriers: vec![peerage_proto::carrier::Carrier::Udp],
            wide_checks: false,
            known_carriers: Default::default(),
            super_role: SuperConfig { on: true, ..SuperConfig::default() },
        };
        change(&mut config);
        let disk: BTreeMap<_, _> = records.into_iter().map(|record| (record.header().id(), record)).collect();
        self.start(address, (identity, id), config, disk);
        address
    }

    fn start(
        &mut self,
        address: SocketAddr,
        (identity, id): (IdentityKey, NodeId),
        config: node::Config,
        disk: BTreeMap<Key, Record>,
    ) {
        let started = node::Config { records: disk.values().cloned().collect(), ..config.clone() };
        let node = Node::new(started, seed(&mut self.rng), self.now);
        let holder = Holder {
            node,
            id,
            identity,
            disk,
            events: Vec::new(),
            answers: BTreeMap::new(),
            written: Vec::new(),
            config,
            next_task: 1 << 32,
        };
        self.holders.insert(address, holder);
        self.input(address, node::Input::Networks(Vec::new()));
    }

    /// Stops a holder and starts it again from its disk.
    pub(crate) fn restart(&mut self, address: SocketAddr) {
        let Holder { id, identity, disk, config, .. } = self.holders.remove(&address).unwrap();
        self.start(address, (identity, id), config, disk);
    }

    /// Starts a holder again on an empty disk: it knows who it is, and nothing else.
    pub(crate) fn restart_without_disk(&mut self, address: SocketAddr) {
        let holder = self.holders.get_mut(&address).unwrap();
        let own = (holder.id.domain, holder.id.record_key());
        holder.disk.retain(|(table, domain, key), _| {
            (*domain, *key) == own && *table != Table::SuperNode || *table == Table::OperatorNode
        });
        self.restart(address);
    }

    /// Starts a holder again with another configuration.
    pub(crate) fn restart_with(&mut self, address: SocketAddr, change: impl FnOnce(&mut node::Config)) {
        change(&mut self.holders.get_mut(&address).unwrap().config);
        self.restart(address);
    }

    /// Makes a lent node a holder of a segment and lets it catch up.
    pub(crate) fn holder(&mut self, n: u8, domain: Domain, segment: Segment) -> SocketAddr {
        let address = self.lend(holder_at(n), domain);
        self.make_holder(address, segment);
        address
    }

    pub(crate) fn make_holder(&mut self, address: SocketAddr, segment: Segment) {
        let record = self.assign(address, segment);
        self.run(Duration::from_secs(15));
        self.push(address, &[record]);
        self.run(Duration::from_secs(2));
    }

    pub(crate) fn input(&mut self, address: SocketAddr, input: node::Input) {
        let now = self.now;
        self.node(address).handle(input, now);
        self.pump();
    }

    pub(crate) fn command(&mut self, address: SocketAddr, command: Command) -> TaskId {
        let holder = self.holders.get_mut(&address).unwrap();
        holder.next_task += 1;
        let task = TaskId(holder.next_task);
        self.input(address, node::Input::Command { task, command });
        task
    }

    pub(crate) fn node(&mut self, address: SocketAddr) -> &mut Node {
        &mut self.holders.get_mut(&address).unwrap().node
    }

    pub(crate) fn status(&self, address: SocketAddr) -> node::SuperStatus {
        self.holders[&address].node.status(self.now).super_role
    }

    /// Returns what a holder's disk has of a table and domain.
    pub(crate) fn on_disk(&self, address: SocketAddr, table: Table, domain: Domain) -> usize {
        let disk = &self.holders[&address].disk;
        disk.keys().filter(|(of, its, _)| (*of, *its) == (table, domain)).count()
    }

    // ---- members ----------------------------------------------------------------------------

    /// Adds a member that does what the test says.
    pub(crate) fn member(&mut self, address: &str, domain: Domain) -> SocketAddr {
        let (identity, _, [node, _]) = self.admit(domain, MEMBER);
        self.actor(address, identity, node)
    }

    pub(crate) fn actor(&mut self, address: &str, identity: IdentityKey, record: Record) -> SocketAddr {
        let mut trust = Trust::new(self.network, self.root.public());
        trust.learn(&self.operator.layer.record);
        let actor = Actor::new(&mut self.rng, trust, (identity, record), false, self.now);
        self.actors.insert(at(address), actor);
        at(address)
    }

    pub(crate) fn somebody(&mut self, address: SocketAddr) -> &mut Actor {
        self.actors.get_mut(&address).expect("somebody of this world")
    }

    /// Makes sure that somebody can ask a holder.
    fn introduce(&mut self, asker: SocketAddr, id: NodeId, holder: SocketAddr) {
        let identity = self.holders[&holder].identity.public();
        let expires = UnixTime::from_millis(u64::MAX);
        let member = Member { id, identity, roles: LENDER, is_operator: false, expires };
        let now = self.now;
        let layer = if asker == operator_address() {
            &mut self.operator.layer
        } else {
            self.actors.get_mut(&asker).unwrap()
        };
        layer.endpoint.learn_identity(member, now);
    }

    /// Asks a holder and returns what it answers within a second.
    pub(crate) fn ask(&mut self, asker: SocketAddr, holder: SocketAddr, request: &Request) -> Option<Reply> {
        let id = self.holders[&holder].id;
        self.introduce(asker, id, holder);
        let now = self.now;
        let actor = self.somebody(asker);
        let asked = actor.endpoint.request(id, holder, request, now);
        self.pump();
        for _ in 0..20 {
            let actor = self.somebody(asker);
            if let Some(reply) = actor.answered.remove(&asked) {
                return Some(reply);
            }
            self.run(Duration::from_millis(50));
        }
        None
    }

    /// Asks another member through a holder and returns what it answers within two seconds.
    pub(crate) fn ask_through(
        &mut self,
        asker: SocketAddr,
        holder: SocketAddr,
        to: SocketAddr,
    ) -> Option<Reply> {
        let id = self.holders[&holder].id;
        self.introduce(asker, id, holder);
        let now = self.now;
        let other = &self.actors[&to];
        let (other_id, statement) = (other.id, *other.endpoint.statement());
        let record = other.record.clone();
        let member = member_of(&record);
        let actor = self.somebody(asker);
        actor.endpoint.learn_peer(member, statement, now);
        let asked = actor.endpoint.request_through((id, holder), other_id, &Request::Ping, now);
        self.pump();
        for _ in 0..40 {
            let actor = self.somebody(asker);
            if let Some(reply) = actor.answered.remove(&asked) {
                return Some(reply);
            }
            self.run(Duration::from_millis(50));
        }
        None
    }

    /// Asks another member through a holder so many times at once.
    pub(crate) fn flood_through(
        &mut self,
        asker: SocketAddr,
        holder: SocketAddr,
        to: SocketAddr,
        times: usize,
    ) {
        let (id, other, now) = (self.holders[&holder].id, self.actors[&to].id, self.now);
        let actor = self.somebody(asker);
        for _ in 0..times {
            actor.endpoint.request_through((id, holder), other, &Request::Ping, now);
        }
        self.pump();
    }

    /// Asks a holder on a leg to be joined with another member.
    pub(crate) fn join(&mut self, asker: SocketAddr, holder: SocketAddr, peer: NodeId) {
        let id = self.holders[&holder].id;
        self.ask(asker, holder, &Request::Ping).expect("it knows the asker afterwards");
        self.legs += 1;
        let (leg, now) = (LegId(self.legs), self.now);
        let link = LinkId([1; 16]);
        let actor = self.somebody(asker);
        actor.endpoint.request_on((leg, holder), id, &Request::RelayJoin { link, peer }, now);
        let (_, payload) = actor.endpoint.poll_own_leg_transmit().expect("the request");
        let input = relay::Input::Datagram { leg, remote: asker, payload };
        self.input(holder, node::Input::Leg(input));
    }

    /// Makes the announcement of a member with these tags.
    pub(crate) fn info(&mut self, asker: SocketAddr, tags: &[LookupTag]) -> Record {
        let now = self.now;
        let actor = &self.actors[&asker];
        let expires = now.unix.after(Duration::from_secs(600));
        let id = actor.id;
        let header = Header { expires, ..header(Table::NodeInfo, id.domain, id.record_key(), id, now) };
        let statement = *actor.endpoint.statement();
        let public = NodeInfoPublic { statement, tags: tags.to_vec(), addresses: Vec::new() };
        let draft = Draft { header, public: public.write(), private: None };
        draft.sign(&actor.identity, &self.network, &Real).unwrap()
    }

    /// Returns how many devices of its domain a holder tells a member, or `None` if it says nothing.
    pub(crate) fn devices_told(&mut self, asker: SocketAddr, holder: SocketAddr) -> Option<usize> {
        let (mut after, mut told) = (None, 0);
        loop {
            let request = Request::GetDevices { after, range: Segment::ALL };
            let Reply::Devices(page) = self.ask(asker, holder, &request)? else { panic!("no devices") };
            told += page.records.len();
            let last = page.records.last();
            after =
                last.map(|bytes| peerage_wire::record::UnverifiedRecord::parse(bytes).unwrap().header().key);
            if !page.more {
                return Some(told);
            }
        }
    }

    // ---- time and wires ---------------------------------------------------------------------

    /// Lets time pass: timers fire, and datagrams arrive at once.
    pub(crate) fn run(&mut self, span: Duration) {
        let end = self.now.mono.after(span);
        self.pump();
        loop {
            let due = self.next_due().filter(|at| *at <= end);
            let at = due.unwrap_or(end).max(self.now.mono);
            self.now = self.now.after(at - self.now.mono);
            if due.is_none() {
                return;
            }
            self.fire();
            self.pump();
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let holders = self.holders.values().filter_map(|holder| holder.node.poll_timeout().map(|(at, _)| at));
        let actors = self.actors.values().filter_map(|actor| actor.endpoint.poll_timeout());
        holders.chain(actors).chain(self.operator.layer.endpoint.poll_timeout()).min()
    }

    fn fire(&mut self) {
        let now = self.now;
        for holder in self.holders.values_mut() {
            if holder.node.poll_timeout().is_some_and(|(at, _)| at <= now.mono) {
                holder.node.handle(node::Input::Timeout, now);
                let after = holder.node.poll_timeout().map(|(at, why)| (at > now.mono, why));
                assert!(after.is_none_or(|(later, _)| later), "a timer stands still: {after:?}");
            }
        }
        for actor in self.actors.values_mut().chain([&mut self.operator.layer]) {
            if actor.endpoint.poll_timeout().is_some_and(|at| at <= now.mono) {
                actor.endpoint.handle_timeout(&actor.trust, now);
            }
        }
    }

    pub(crate) fn pump(&mut self) {
        for _ in 0..200_000 {
            let moved = self.pump_holders() | self.pump_actors() | self.deliver();
            if !moved {
                return;
            }
        }
        panic!("datagrams go round for ever");
    }

    fn pump_actors(&mut self) -> bool {
        let mut sent = Vec::new();
        self.operator.work(self.now);
        while let Some((to, payload)) = self.operator.layer.endpoint.poll_transmit() {
            sent.push((operator_address(), to, payload));
        }
        for (from, actor) in &mut self.actors {
            actor.work(&mut self.rng, self.now);
            while let Some((to, payload)) = actor.endpoint.poll_transmit() {
                sent.push((*from, to, payload));
            }
        }
        let moved = !sent.is_empty();
        self.flights.extend(sent);
        moved
    }

    fn pump_holders(&mut self) -> bool {
        let now = self.now;
        let mut moved = false;
        for (address, holder) in &mut self.holders {
            while let Some(output) = holder.node.poll_output() {
                moved = true;
                match output {
                    node::Output::Transmit { remote, payload } => {
                        self.flights.push_back((*address, remote, payload));
                    }
                    node::Output::Store { task, changes } => {
                        holder.write(changes);
                        holder.node.handle(node::Input::Stored { task, ok: true }, now);
                    }
                    node::Output::Answer { task, answer } => {
                        holder.answers.insert(task, answer);
                    }
                    node::Output::Event(event) => holder.events.push(event),
                    _ => {}
                }
            }
        }
        moved
    }

    fn deliver(&mut self) -> bool {
        let Some((from, to, payload)) = self.flights.pop_front() else { return false };
        assert!(payload.len() <= peerage_wire::limits::MAX_DATAGRAM, "a datagram is too long");
        *self.carried.entry((from, to)).or_default() += 1;
        if self.cut.contains(&from) || self.cut.contains(&to) {
            return true;
        }
        let now = self.now;
        if to == operator_address() {
            if self.operator.is_up {
                let layer = &mut self.operator.layer;
                layer.endpoint.handle_datagram(from, &payload, &layer.trust, now);
            }
        } else if let Some(holder) = self.holders.get_mut(&to) {
            holder.node.handle(node::Input::Datagram { remote: from, payload }, now);
        } else if let Some(actor) = self.actors.get_mut(&to) {
            actor.endpoint.handle_datagram(from, &payload, &actor.trust, now);
        }
        true
    }
}

impl Holder {
    fn write(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Put(record) => {
                    self.written.push(record.clone());
                    self.disk.insert(record.header().id(), record);
                }
                Change::Delete { table, domain, key } => {
                    self.disk.remove(&(table, domain, key));
                }
            }
        }
    }
}
