//! A small network in virtual time: one operator, some nodes, a ledger of a few lines, wires that deliver at once or not at all.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in its helpers too"
)]

pub mod holder;
mod legs;
pub mod lenders;
pub mod spies;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chacha20::ChaCha20Rng;
use peerage_proto::endpoint;
use peerage_proto::lan::{Gateway, Interface, InterfaceAddress, InterfaceKind};
use peerage_proto::mapping::Ports;
use peerage_proto::node::{self, Answer, Command, Elections, Event, Found, Node, PinProof, TaskId, TunnelId};
use peerage_proto::operator::{self, DomainFacts, Operator};
use peerage_wire::codec::{Candidate, Protocol, Service};
use peerage_wire::crypto::{Crypto, Real};
use peerage_wire::id::{DeviceId, Domain, LinkId, Mac, NetworkId, NodeId, RecordKey, SessionId};
use peerage_wire::keys::{AgreementKey, DomainKeys, IdentityKey, SecretKey, network_id};
use peerage_wire::open::Open;
use peerage_wire::record::{
    DomainKeyBody, Draft, EndDevice, Header, LocalPolicy, NodeBody, OperatorBody, OperatorState, Record,
    RevocationBody, RevocationKind, Roles, Table,
};
use peerage_wire::time::{Instant, Now, UnixTime};
use rand_core::{Rng as _, SeedableRng as _};

pub use legs::Legs;

pub const START: u64 = 1_800_000_000;
pub const OPERATOR_ADDRESS: &str = "198.51.101.1:7400";
/// The operator's second port, from which it calls back.
pub const PROBE_ADDRESS: &str = "198.51.101.1:7401";
pub const DOMAIN: Domain = Domain(0xdfe4_7365);
pub const SITE: &str = "45.10.0.1:7400";
pub const USER: &str = "45.20.0.1:7400";
pub const PRINTER: Mac = Mac([0xaa, 0xbb, 0xcc, 0, 0, 1]);

/// Tasks of a host's LAN that wait for the test; none while they are answered at once.
#[derive(Default)]
pub struct Held {
    pub searches: Option<Vec<TaskId>>,
    pub proofs: Option<Vec<TaskId>>,
}

/// One node with what surrounds it.
pub struct Host {
    pub node: Node,
    pub address: SocketAddr,
    /// What its clock shows beyond the true time, in milliseconds.
    pub clock_error: i64,
    pub identity: IdentityKey,
    pub id: NodeId,
    pub events: Vec<Event>,
    pub answers: BTreeMap<TaskId, Answer>,
    /// Where devices answer on its LAN.
    pub lan: BTreeMap<Mac, Found>,
    /// What a device's TLS shows.
    pub shown_pin: Option<[u8; 32]>,
    pub served: Vec<(TunnelId, SocketAddr)>,
    pub closed: Vec<(TunnelId, peerage_wire::frame::Code)>,
    pub stored: Vec<Record>,
    /// What it has deleted from its disk.
    pub deleted: BTreeSet<(Table, Domain, RecordKey)>,
    pub renewals: usize,
    /// Whether the routers are to forward its port.
    pub wanted_ports: Ports,
    /// How long the first flight of its handshakes is; none if it begins none.
    pub hello_size: Option<usize>,
    /// What its LAN answers only when the test says so.
    pub held: Held,
    /// Whether it prepares the handshakes of others, and how long its own flight is.
    pub prepares: bool,
    pub flight_size: usize,
    /// The handshakes that it has begun, and where it connects for them.
    pub begun: Vec<(LinkId, Vec<Candidate>)>,
    /// The handshakes that it was asked to prepare, by whom.
    pub prepared: Vec<(NodeId, Bytes)>,
    /// What it was started with, for a restart.
    pub config: node::Config,
    interfaces: Vec<Interface>,
    next_task: u64,
}

impl Host {
    /// Returns what the device on its LAN proves.
    fn proof(&self, pins: &[[u8; 32]]) -> PinProof {
        match self.shown_pin {
            Some(pin) if pins.contains(&pin) => PinProof::Matches,
            Some(pin) => PinProof::Differs(pin),
            None => PinProof::NoAnswer,
        }
    }

    /// The networks on which it stands.
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }
}

/// About as long as the first flights of TLS with raw public keys are.
const HELLO_SIZE: usize = 218;
pub const FLIGHT_SIZE: usize = 383;

/// What stands for the first flight of the TLS server, which answers one of the client.
pub fn flight_of(hello: &Bytes, size: usize) -> Bytes {
    peerage_wire::id::sha256(&[hello]).into_iter().cycle().take(size).collect()
}

/// A datagram under way.
#[derive(Clone, Debug)]
pub struct Flight {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub payload: Bytes,
}

/// What the wires do to datagrams besides carrying them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// How many of 100 are lost.
    pub lost: u32,
    /// How many of 100 arrive twice.
    pub doubled: u32,
    /// For how many milliseconds at most one is under way; each draws its own time, so that they overtake each other.
    pub delay_millis: u64,
}

/// Whoever answers at the operator's address in its place.
pub type StandIn = Box<dyn FnMut(&Flight, Now) -> Vec<Bytes>>;

pub struct World {
    pub now: Now,
    pub rng: ChaCha20Rng,
    pub network: NetworkId,
    pub root: IdentityKey,
    pub operator_identity: IdentityKey,
    pub operator_id: NodeId,
    pub operator: Operator,
    pub operator_record: Record,
    pub operator_up: bool,
    pub keys: DomainKeys,
    pub hosts: BTreeMap<SocketAddr, Host>,
    pub devices: BTreeMap<RecordKey, EndDevice>,
    pub members: BTreeMap<NodeId, [u8; 32]>,
    pub flights: VecDeque<Flight>,
    /// Every datagram that was sent, for those who replay.
    pub log: Vec<Flight>,
    /// Addresses from and to which nothing is delivered.
    pub cut: BTreeSet<SocketAddr>,
    /// Whether nodes with the same gateway reach each other at their addresses there.
    pub has_lans: bool,
    /// Members that answer Pings and no TunnelRequest, straight or forwarded.
    pub sulking: BTreeSet<SocketAddr>,
    /// Pairs that reach others, but not each other: each behind a router of its own.
    pub apart: BTreeSet<[SocketAddr; 2]>,
    pub legs: Legs,
    pub faults: Faults,
    /// Everything that the operator has committed, the newest of each.
    pub ledger: BTreeMap<(Table, Domain, RecordKey), Record>,
    pub facts: DomainFacts,
    pub stand_in: Option<StandIn>,
    /// What members told the operator's ledger.
    pub told: Vec<operator::Output>,
    pub operator_config: operator::Config,
    /// Every beacon that was sent.
    pub beacons: Vec<Bytes>,
    pub lending: lenders::Lending,
    pub spies: spies::Spies,
    /// Super-nodes.
    pub holders: BTreeMap<SocketAddr, holder::Holder>,
    /// Whether the last super-node that hears anything is honest, whatever the others are.
    pub last_is_honest: bool,
    reached: BTreeSet<SocketAddr>,
    /// The Head that super-nodes hand out, and when it was made.
    head: Option<(Instant, Bytes)>,
    /// Datagrams that arrive later, in the order of arrival.
    under_way: BTreeMap<(Instant, u64), Flight>,
    /// The size of each request by the nonce and the tag by which it is answered, and who sent it.
    asked: BTreeMap<(SocketAddr, Vec<u8>), usize>,
    sent: u64,
    version: u64,
}

fn drawn(rng: &mut ChaCha20Rng) -> [u8; 32] {
    let mut seed = [0; 32];
    rng.fill_bytes(&mut seed);
    seed
}

fn crypto() -> Arc<dyn Crypto> {
    Arc::new(Real)
}

pub fn lan(address: &str, gateway: u8) -> Vec<Interface> {
    let address: IpAddr = address.parse().unwrap();
    let prefix = peerage_proto::lan::Prefix::new(address, 24).unwrap();
    let IpAddr::V4(network) = prefix.network() else { panic!("IPv4 only") };
    let router = IpAddr::V4(std::net::Ipv4Addr::from_bits(network.to_bits() + 1));
    vec![Interface {
        index: 2,
        name: "eth0".to_owned(),
        kind: InterfaceKind::Ethernet,
        up: true,
        mac: Some(Mac([2, 0, 0, 0, 0, gateway])),
        addresses: vec![InterfaceAddress { address, prefix }],
        gateways: vec![Gateway { metric: 0, address: router, mac: Some(Mac([2, 0, 0, 0, 1, gateway])) }],
    }]
}

pub fn printer(via: NodeId) -> EndDevice {
    EndDevice {
        device: DeviceId::new(PRINTER, None),
        name: "hp".to_owned(),
        kind: "printer".to_owned(),
        mac: PRINTER,
        pins: vec![],
        services: vec![Service { name: "ipp".to_owned(), port: 631, protocol: Protocol::Tcp, tls: false }],
        site: vec![],
        via: Some(via),
        users: vec![],
        servers: vec![],
        local: LocalPolicy::WithProof,
    }
}

/// Signs the operator's record as the root does.
fn operator_record(root: &IdentityKey, identity: &IdentityKey, enrolment: &AgreementKey, now: Now) -> Record {
    let operator_id = identity.node_id(Domain::OPERATORS);
    let body = OperatorBody {
        identity: identity.public(),
        enrolment: *enrolment.public(),
        addresses: vec![OPERATOR_ADDRESS.parse().unwrap()],
        state: OperatorState::Active,
    };
    let header = Header {
        table: Table::OperatorNode,
        domain: Domain::OPERATORS,
        key: operator_id.record_key(),
        version: now.unix.as_millis(),
        expires: now.unix.after(Duration::from_secs(80 * 86_400)),
        signer: root.node_id(Domain::OPERATORS),
        removed: false,
    };
    let draft = Draft { header, public: body.write(), private: None };
    draft.sign(root, &network_id(&root.public()), &Real).unwrap()
}

fn operator_config(root: &IdentityKey, identity: &IdentityKey, record: &Record) -> operator::Config {
    operator::Config {
        endpoint: endpoint::Config {
            network: network_id(&root.public()),
            crypto: crypto(),
            identity: identity.clone(),
            id: identity.node_id(Domain::OPERATORS),
            record: record.bytes().clone(),
            asks_introduction: true,
        },
        root: root.public(),
        relay: peerage_proto::relay::Limits::default(),
        addresses: vec![OPERATOR_ADDRESS.parse().unwrap()],
        spy_interval: None,
    }
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let root = IdentityKey::generate(&mut rng);
        let operator_identity = IdentityKey::generate(&mut rng);
        let network = network_id(&root.public());
        let operator_id = operator_identity.node_id(Domain::OPERATORS);
        let now = Now { mono: Instant::from_micros(1_000_000), unix: UnixTime::from_secs(START) };
        let enrolment = AgreementKey::generate(&mut rng);
        let record = operator_record(&root, &operator_identity, &enrolment, now);
        let config = operator_config(&root, &operator_identity, &record);
        let operator = Operator::new(config.clone(), drawn(&mut rng), now);
        let keys = DomainKeys {
            epoch: 1,
            epoch_key: SecretKey::generate(&mut rng),
            previous: None,
            location_key: SecretKey::generate(&mut rng),
        };
        let facts = DomainFacts { domain: DOMAIN, epoch: 1, offline_hours: None, vendor: false };
        let mut world = Self {
            now,
            rng,
            network,
            root,
            operator_identity,
            operator_id,
            operator,
            operator_record: record.clone(),
            operator_up: true,
            keys,
            hosts: BTreeMap::new(),
            devices: BTreeMap::new(),
            members: BTreeMap::new(),
            flights: VecDeque::new(),
            log: Vec::new(),
            cut: BTreeSet::new(),
            has_lans: false,
            sulking: BTreeSet::new(),
            apart: BTreeSet::new(),
            legs: Legs::default(),
            faults: Faults::default(),
            ledger: BTreeMap::new(),
            facts,
            stand_in: None,
            told: Vec::new(),
            operator_config: config,
            beacons: Vec::new(),
            lending: lenders::Lending::default(),
            spies: spies::Spies::default(),
            holders: BTreeMap::new(),
            last_is_honest: false,
            reached: BTreeSet::new(),
            head: None,
            under_way: BTreeMap::new(),
            asked: BTreeMap::new(),
            sent: 0,
            version: 0,
        };
        world.operator.handle(operator::Input::Domain(facts), now);
        world.commit(vec![record]);
        world.run(Duration::from_millis(100));
        world
    }

    /// Signs a record as the operator's ledger would.
    pub fn sign(
        &mut self,
        table: Table,
        domain: Domain,
        key: RecordKey,
        draft: impl FnOnce(Draft) -> Draft,
    ) -> Record {
        self.version = self.now.unix.as_millis().max(self.version + 1);
        let header = Header {
            table,
            domain,
            key,
            version: self.version,
            expires: self.now.unix.after(table.max_life()),
            signer: self.operator_id,
            removed: false,
        };
        let empty = Draft { header, public: EndDevice::public(), private: None };
        draft(empty).sign(&self.operator_identity, &self.network, &Real).unwrap()
    }

    pub fn commit(&mut self, records: Vec<Record>) {
        self.ledger.extend(records.iter().map(|record| (record.header().id(), record.clone())));
        for record in &records {
            self.holders.values_mut().for_each(|holder| holder.push(record));
        }
        self.head = None;
        self.operator.handle(operator::Input::Committed(records), self.now);
        self.pump();
    }

    /// Makes an operator anew from what it has committed, as after a crash: all that was in memory is gone.
    pub fn restart_operator(&mut self) {
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        self.operator = Operator::new(self.operator_config.clone(), seed, self.now);
        self.tell_facts();
        let records = self.ledger.values().cloned().collect();
        self.operator.handle(operator::Input::Committed(records), self.now);
        self.operator_up = true;
        self.pump();
    }

    /// Makes a node anew from what it has stored.
    pub fn restart(&mut self, address: SocketAddr) {
        let (mut seed, now) = ([0; 32], self.now);
        self.rng.fill_bytes(&mut seed);
        let host = self.host(address);
        let mut config = host.config.clone();
        config.records.extend(host.stored.iter().cloned());
        host.node = Node::new(config, seed, shifted(now, host.clock_error));
        let interfaces = host.interfaces.clone();
        self.input(address, node::Input::Networks(interfaces));
    }

    /// Changes what the operator says of the domain besides its records.
    pub fn set_facts(&mut self, facts: DomainFacts) {
        self.facts = facts;
        self.operator.handle(operator::Input::Domain(facts), self.now);
        self.pump();
    }

    /// Changes a computer's clock without time passing.
    pub fn step_clock(&mut self, address: SocketAddr, millis: i64) {
        self.host(address).clock_error += millis;
    }

    /// Writes a member into the ledger that runs nowhere.
    pub fn admit(&mut self, domain: Domain, roles: Roles) -> (IdentityKey, AgreementKey, [Record; 2]) {
        let identity = IdentityKey::generate(&mut self.rng);
        let receiving = AgreementKey::generate(&mut self.rng);
        let id = identity.node_id(domain);
        let records = self.member_records(id, identity.public(), *receiving.public(), roles);
        self.commit(records.to_vec());
        (identity, receiving, records)
    }

    fn member_records(
        &mut self,
        id: NodeId,
        identity: [u8; 32],
        receiving: [u8; 32],
        roles: Roles,
    ) -> [Record; 2] {
        let body = NodeBody { identity, receiving, roles };
        let node =
            self.sign(Table::Node, id.domain, id.record_key(), |d| Draft { public: body.write(), ..d });
        let keys = self.keys.clone();
        let to = (&self.network.clone(), id, &receiving);
        let sealed = DomainKeyBody::seal(&keys, to, &mut self.rng).unwrap();
        let key = self
            .sign(Table::DomainKey, id.domain, id.record_key(), |d| Draft { public: sealed.write(), ..d });
        [node, key]
    }

    /// Adds a member in [`DOMAIN`] that listens at `address` and stands on these networks.
    pub fn join(&mut self, address: &str, interfaces: Vec<Interface>) -> SocketAddr {
        self.join_with(address, interfaces, 0, |_| {})
    }

    pub fn join_with(
        &mut self,
        address: &str,
        interfaces: Vec<Interface>,
        clock_error: i64,
        change: impl FnOnce(&mut node::Config),
    ) -> SocketAddr {
        self.join_in(DOMAIN, address, interfaces, clock_error, change)
    }

    /// Adds a member of any domain.
    pub fn join_in(
        &mut self,
        domain: Domain,
        address: &str,
        interfaces: Vec<Interface>,
        clock_error: i64,
        change: impl FnOnce(&mut node::Config),
    ) -> SocketAddr {
        let address: SocketAddr = address.parse().unwrap();
        let (identity, receiving, records) = self.admit(domain, Roles { tunnel: true, super_node: true });
        let id = identity.node_id(domain);
        if domain == DOMAIN {
            self.members.insert(id, *receiving.public());
        }
        let mut config = node::Config {
            endpoint: endpoint::Config {
                network: self.network,
                crypto: crypto(),
                identity: identity.clone(),
                id,
                record: records[0].bytes().clone(),
                asks_introduction: false,
            },
            root: self.root.public(),
            receiving,
            keys: self.keys.clone(),
            statements: vec![*self.operator.statement()],
            records: vec![self.operator_record.clone(), records[0].clone(), records[1].clone()]
                .into_iter()
                .chain(self.ledger.values().filter(|r| r.header().table == Table::SuperNode).cloned())
                .collect(),
            port: address.port(),
            advertise: vec![address],
            serves: true,
            // Where a test does not say otherwise, nobody has to wait for an election.
            elections: Elections { multicast: false, spread: Duration::ZERO, ..Elections::default() },
            eager: false,
            place: None,
            one_machine: false,
            bound: None,
            carriers: vec![peerage_proto::carrier::Carrier::Udp],
            wide_checks: false,
            known_carriers: Default::default(),
            super_role: node::SuperConfig::default(),
        };
        change(&mut config);
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let now = shifted(self.now, clock_error);
        let node = Node::new(config.clone(), seed, now);
        let host = Host {
            node,
            address,
            clock_error,
            identity,
            id,
            events: vec![],
            answers: BTreeMap::new(),
            lan: BTreeMap::new(),
            shown_pin: None,
            served: vec![],
            hello_size: Some(HELLO_SIZE),
            held: Held::default(),
            prepares: true,
            flight_size: FLIGHT_SIZE,
            begun: vec![],
            prepared: vec![],
            closed: vec![],
            stored: vec![],
            deleted: BTreeSet::new(),
            renewals: 0,
            wanted_ports: Ports::None,
            config,
            interfaces: interfaces.clone(),
            next_task: 1 << 32,
        };
        self.hosts.insert(address, host);
        self.input(address, node::Input::Networks(interfaces));
        address
    }

    /// Registers a device, or changes one.
    pub fn put_device(&mut self, device: EndDevice) {
        let key = self.keys.device_record_key(&device.device);
        let (keys, mut salt) = (self.keys.clone(), [0; 16]);
        self.rng.fill_bytes(&mut salt);
        let body = device.write();
        let record = self.sign(Table::EndDevice, DOMAIN, key, |d| d.with_private(&keys, salt, body));
        self.devices.insert(key, device);
        self.commit(vec![record]);
    }

    pub fn remove_device(&mut self, device: &DeviceId) {
        let key = self.keys.device_record_key(device);
        let record = self.sign(Table::EndDevice, DOMAIN, key, |mut d| {
            d.header.removed = true;
            d
        });
        self.devices.remove(&key);
        self.commit(vec![record]);
    }

    /// Revokes a node: a new epoch for the others, as one transaction.
    pub fn revoke(&mut self, node: NodeId) {
        let body = RevocationBody { kind: RevocationKind::Node(node), at: self.now.unix, reason: 1 };
        let revocation = self
            .sign(Table::Revocation, node.domain, body.record_key(), |d| Draft { public: body.write(), ..d });
        self.members.remove(&node);
        let mut records = vec![revocation];
        self.keys = DomainKeys {
            epoch: self.keys.epoch + 1,
            previous: Some(self.keys.epoch_key.clone()),
            epoch_key: SecretKey::generate(&mut self.rng),
            location_key: self.keys.location_key.clone(),
        };
        for (id, receiving) in self.members.clone() {
            let (keys, network) = (self.keys.clone(), self.network);
            let sealed = DomainKeyBody::seal(&keys, (&network, id, &receiving), &mut self.rng).unwrap();
            records.push(self.sign(Table::DomainKey, id.domain, id.record_key(), |d| Draft {
                public: sealed.write(),
                ..d
            }));
        }
        self.facts.epoch = self.keys.epoch;
        self.operator.handle(operator::Input::Domain(self.facts), self.now);
        for (_, device) in self.devices.clone() {
            let key = self.keys.device_record_key(&device.device);
            let (keys, body) = (self.keys.clone(), device.write());
            records.push(self.sign(Table::EndDevice, DOMAIN, key, |d| d.with_private(&keys, [9; 16], body)));
        }
        self.commit(records);
    }

    pub fn host(&mut self, address: SocketAddr) -> &mut Host {
        self.hosts.get_mut(&address).expect("a host of this world")
    }

    pub fn input(&mut self, address: SocketAddr, input: node::Input) {
        let now = self.now;
        let host = self.host(address);
        host.node.handle(input, shifted(now, host.clock_error));
        self.pump();
    }

    pub fn command(&mut self, address: SocketAddr, command: Command) -> TaskId {
        let host = self.host(address);
        host.next_task += 1;
        let task = TaskId(host.next_task);
        self.input(address, node::Input::Command { task, command });
        task
    }

    /// Asks for a way and runs until there is an answer.
    pub fn route(&mut self, address: SocketAddr, device: &str, service: Option<&str>) -> Answer {
        let command = Command::Route { device: device.to_owned(), service: service.map(str::to_owned) };
        let task = self.command(address, command);
        self.await_answer(address, task)
    }

    pub fn await_answer(&mut self, address: SocketAddr, task: TaskId) -> Answer {
        for _ in 0..400 {
            if let Some(answer) = self.host(address).answers.remove(&task) {
                return answer;
            }
            self.run(Duration::from_millis(50));
        }
        panic!("no answer within 20 s");
    }

    /// Asks a tunnel-node for a tunnel, as a link of `peer` would, and runs until it has decided.
    pub fn open(
        &mut self,
        at: SocketAddr,
        tunnel: u64,
        peer: NodeId,
        device: DeviceId,
        service: &str,
    ) -> Decision {
        let open = Open { session: SessionId([1; 16]), device, service: service.to_owned() };
        let tunnel = TunnelId(tunnel);
        self.input(at, node::Input::OpenAsked { tunnel, peer, open });
        for _ in 0..400 {
            let host = self.host(at);
            if let Some((_, address)) = host.served.iter().find(|(id, _)| *id == tunnel) {
                return Decision::Served(*address);
            }
            if let Some((_, code)) = host.closed.iter().find(|(id, _)| *id == tunnel) {
                return Decision::Refused(*code);
            }
            self.run(Duration::from_millis(50));
        }
        panic!("no decision within 20 s");
    }

    /// Lets time pass: timers fire and datagrams arrive at once.
    pub fn run(&mut self, span: Duration) {
        let end = self.now.mono.after(span);
        self.pump();
        loop {
            let due = self.next_due().filter(|at| *at <= end);
            let at = due.unwrap_or(end).max(self.now.mono);
            self.now = self.now.after(at - self.now.mono);
            if due.is_none() {
                break;
            }
            self.fire();
            self.pump();
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let operator = self.operator_up.then(|| self.operator.poll_timeout()).flatten().map(|(at, _)| at);
        let hosts = self.hosts.values().filter_map(|host| host.node.poll_timeout()).map(|(at, _)| at);
        let arrival = self.under_way.first_key_value().map(|((at, _), _)| *at);
        hosts.chain(operator).chain(arrival).chain(self.holders_due()).min()
    }

    fn fire(&mut self) {
        let now = self.now;
        self.fire_holders();
        if self.operator_up && self.operator.poll_timeout().is_some_and(|(at, _)| at <= now.mono) {
            self.operator.handle(operator::Input::Timeout, now);
            let after = self.operator.poll_timeout().map(|(at, why)| (at > now.mono, why));
            assert!(after.is_none_or(|(later, _)| later), "the operator's timer stands still: {after:?}");
        }
        for host in self.hosts.values_mut() {
            if host.node.poll_timeout().is_some_and(|(at, _)| at <= now.mono) {
                host.node.handle(node::Input::Timeout, shifted(now, host.clock_error));
                let after = host.node.poll_timeout().map(|(at, why)| (at > now.mono, why));
                assert!(after.is_none_or(|(later, _)| later), "a node's timer stands still: {after:?}");
            }
        }
    }

    /// Carries outputs to where they belong until nothing moves.
    pub fn pump(&mut self) {
        for _ in 0..10_000 {
            let moved = self.pump_operator() | self.pump_hosts() | self.deliver();
            if !moved {
                return;
            }
        }
        panic!("datagrams go round for ever");
    }

    fn pump_operator(&mut self) -> bool {
        let from: SocketAddr = OPERATOR_ADDRESS.parse().unwrap();
        let mut moved = false;
        while let Some(output) = self.operator.poll_output() {
            moved = true;
            if !matches!(output, operator::Output::Transmit { .. } | operator::Output::Contact { .. }) {
                self.told.push(output.clone());
            }
            match output {
                operator::Output::Transmit { remote, payload, port: operator::Port::Main } => {
                    self.send(from, remote, payload);
                }
                operator::Output::Transmit { remote, payload, port: operator::Port::Probe } => {
                    self.send(PROBE_ADDRESS.parse().unwrap(), remote, payload);
                }
                operator::Output::Transmit { remote, payload, port: operator::Port::Spy(visit) } => {
                    let from = self.spy_port(visit);
                    self.send(from, remote, payload);
                }
                operator::Output::Stream(_) => {}
                operator::Output::VisitEnded(visit) => self.visit_ended(visit),
                operator::Output::Quarantined { node, evidence } => self.convicted(node, evidence),
                operator::Output::DeviceSeen { id, key, location, .. } => {
                    if let Some(mut device) = self.devices.get(&key).cloned()
                        && !device.site.contains(&location)
                    {
                        device.site.push(location);
                        self.put_device(device);
                    }
                    self.operator.handle(operator::Input::Noted { id, ok: true }, self.now);
                }
                operator::Output::Left { id, .. } => {
                    self.operator.handle(operator::Input::Noted { id, ok: true }, self.now);
                }
                operator::Output::Leg(output) => self.relay_ordered(output),
                operator::Output::CheckTcp { task, identity, address } => {
                    let ok = self.takes_connection(address, &identity);
                    self.operator.handle(operator::Input::TcpChecked { task, ok }, self.now);
                }
                operator::Output::AssignSegments { map_version, changes } => {
                    self.sign_map(map_version, changes);
                }
                operator::Output::Contact { .. } => {}
            }
        }
        moved
    }

    fn pump_hosts(&mut self) -> bool {
        let mut outputs = Vec::new();
        for (address, host) in &mut self.hosts {
            while let Some(output) = host.node.poll_output() {
                outputs.push((*address, output));
            }
        }
        let moved = !outputs.is_empty();
        for (address, output) in outputs {
            self.host_output(address, output);
        }
        moved
    }

    fn host_output(&mut self, address: SocketAddr, output: node::Output) {
        let host = self.hosts.get_mut(&address).expect("it has just spoken");
        let back = match output {
            // Nobody translates here.
            node::Output::Transmit { remote, payload }
            | node::Output::TransmitWidely { remote, payload, .. } => {
                self.send(address, remote, payload);
                return;
            }
            node::Output::Multicast { payload, .. } => return self.multicast(address, &payload),
            node::Output::Store { task, changes } => {
                for change in changes {
                    match change {
                        node::Change::Put(record) => {
                            host.deleted.remove(&record.header().id());
                            host.stored.push(record);
                        }
                        node::Change::Delete { table, domain, key } => {
                            host.stored.retain(|record| record.header().id() != (table, domain, key));
                            host.deleted.insert((table, domain, key));
                        }
                    }
                }
                node::Input::Stored { task, ok: true }
            }
            node::Output::FindDevice { task, mac, .. } => {
                if let Some(searches) = &mut host.held.searches {
                    return searches.push(task);
                }
                node::Input::DeviceFound { task, found: host.lan.get(&mac).copied() }
            }
            node::Output::ProvePin { task, pins, .. } => {
                if let Some(proofs) = &mut host.held.proofs {
                    return proofs.push(task);
                }
                node::Input::PinProven { task, proof: host.proof(&pins) }
            }
            node::Output::ServeTunnel { tunnel, address, .. } => return host.served.push((tunnel, address)),
            node::Output::CloseTunnel { tunnel, code } => return host.closed.push((tunnel, code)),
            node::Output::Answer { task, answer } => {
                host.answers.insert(task, answer);
                return;
            }
            node::Output::Renew => {
                host.renewals += 1;
                return;
            }
            node::Output::MapPorts(wanted) => {
                host.wanted_ports = wanted;
                return;
            }
            node::Output::BeginHandshake { attempt, places, .. } => {
                let hello = host.hello_size.map(|size| attempt.0.into_iter().cycle().take(size).collect());
                host.begun.push((attempt, places));
                node::Input::HandshakeBegun { attempt, hello }
            }
            node::Output::AnswerHandshake { task, peer, hello, .. } => {
                let flight = host.prepares.then(|| flight_of(&hello, host.flight_size));
                host.prepared.push((peer, hello));
                node::Input::HandshakeAnswered { task, flight }
            }
            // Nobody in these tests is dialled by legs of others.
            node::Output::Leg(_) => return,
            // The machines of these tests speak over UDP alone.
            node::Output::Stream(_) | node::Output::KeepCarriers(_) => return,
            node::Output::OwnLeg { leg, order } => return self.leg_ordered(address, leg, order),
            // There are no links here.
            node::Output::HeadChanged(_) => return,
            node::Output::Event(event) => return host.events.push(event),
        };
        host.node.handle(back, shifted(self.now, host.clock_error));
    }

    /// Delivers a beacon to everybody else on the LAN, as if at once.
    pub fn multicast(&mut self, sender: SocketAddr, payload: &Bytes) {
        let gateway = |host: &Host| host.interfaces.first()?.gateways.first()?.mac;
        let Some(at) = self.hosts.get(&sender) else { return };
        let (lan, own) = (gateway(at), at.interfaces.first().map(|i| i.addresses[0].address));
        self.beacons.push(payload.clone());
        let from = SocketAddr::new(own.expect("a host has an address"), peerage_wire::beacon::PORT);
        let others =
            self.hosts.iter_mut().filter(|(address, host)| **address != sender && gateway(host) == lan);
        for (_, host) in others {
            let input = node::Input::Multicast { interface: 2, from, payload: payload.clone() };
            host.node.handle(input, shifted(self.now, host.clock_error));
        }
    }

    /// Puts a datagram on the wire, which loses, doubles and delays it as [`Faults`] say.
    pub fn send(&mut self, from: SocketAddr, to: SocketAddr, payload: Bytes) {
        assert!(payload.len() <= peerage_wire::limits::MAX_DATAGRAM, "a datagram is too long");
        let flight = Flight { from, to, payload };
        self.check_size(&flight);
        self.log.push(flight.clone());
        if self.percent(self.faults.lost) {
            return;
        }
        let copies = if self.percent(self.faults.doubled) { 2 } else { 1 };
        for _ in 0..copies {
            if self.faults.delay_millis == 0 {
                self.flights.push_back(flight.clone());
                continue;
            }
            let delay = Duration::from_micros(self.rng.next_u64() % (self.faults.delay_millis * 1_000));
            self.sent += 1;
            self.under_way.insert((self.now.mono.after(delay), self.sent), flight.clone());
        }
    }

    /// Puts a datagram on a long wire.
    fn send_after(&mut self, from: SocketAddr, to: SocketAddr, payload: Bytes, delay: Duration) {
        if delay.is_zero() {
            return self.send(from, to, payload);
        }
        let flight = Flight { from, to, payload };
        self.check_size(&flight);
        self.log.push(flight.clone());
        self.sent += 1;
        self.under_way.insert((self.now.mono.after(delay), self.sent), flight);
    }

    /// Delivers a datagram of an attacker, as it is, and whatever follows from it. Returns what was sent because of it.
    pub fn inject(&mut self, from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<Flight> {
        let flight = Flight { from, to, payload: Bytes::copy_from_slice(payload) };
        self.remember_size(&flight);
        let before = self.log.len();
        self.flights.push_back(flight);
        self.pump();
        self.log[before..].to_vec()
    }

    fn percent(&mut self, chance: u32) -> bool {
        chance > 0 && self.rng.next_u32() % 100 < chance
    }

    /// Rules 3.9 and 4.6: nothing unsealed or answered is longer than what asked for it, or goes elsewhere.
    fn check_size(&mut self, flight: &Flight) {
        let Flight { from, to, payload } = flight;
        if !self.is_honest(from) {
            return self.remember_size(flight);
        }
        let asker = self.on_lan(*from, *to).map_or(*to, |(_, receiver)| receiver);
        match payload.first() {
            Some(9) => self.check_answer(asker, &payload[1..13], payload.len()),
            Some(0x0b) => self.check_answer(asker, &payload[2..18], payload.len()),
            _ => self.remember_size(flight),
        }
    }

    fn remember_size(&mut self, Flight { from, payload, .. }: &Flight) {
        let nonce = match payload.first() {
            Some(4 | 5) => payload.get(9..21),
            Some(6 | 7) => payload.get(94..106),
            _ => None,
        };
        if let Some(nonce) = nonce {
            let tag = &payload[payload.len().saturating_sub(16)..];
            self.asked.insert((*from, nonce.to_vec()), payload.len());
            self.asked.insert((*from, tag.to_vec()), payload.len());
        }
    }

    fn check_answer(&self, to: SocketAddr, about: &[u8], size: usize) {
        let most = self.asked.get(&(to, about.to_vec()));
        assert!(most.is_some_and(|most| size <= *most), "an answer of {size} bytes to {most:?}");
    }

    /// Returns whether a machine under test speaks from this address, rather than the test itself.
    fn is_honest(&self, from: &SocketAddr) -> bool {
        self.hosts.contains_key(from) || (self.stand_in.is_none() && from.to_string() == OPERATOR_ADDRESS)
    }

    fn arrive(&mut self) {
        while let Some(entry) = self.under_way.first_entry() {
            if entry.key().0 > self.now.mono {
                return;
            }
            self.flights.push_back(entry.remove());
        }
    }

    fn deliver(&mut self) -> bool {
        self.arrive();
        let Some(Flight { from, to, payload }) = self.flights.pop_front() else { return false };
        let apart = self.apart.contains(&[from.min(to), from.max(to)]);
        if apart || self.cut.contains(&from) || self.cut.contains(&to) {
            return true;
        }
        // A TunnelRequest is padded to the length of its answer; Pings, Heads and what attaches are much shorter.
        if payload.len() > 900 && self.sulking.contains(&to) {
            return true;
        }
        let now = self.now;
        if to == OPERATOR_ADDRESS.parse().unwrap() || to == PROBE_ADDRESS.parse().unwrap() {
            if let Some(stand_in) = &mut self.stand_in {
                for answer in stand_in(&Flight { from, to, payload }, now) {
                    self.send(to, from, answer);
                }
            } else if self.operator_up {
                self.operator.handle(operator::Input::Datagram { remote: from, payload }, now);
            }
            return true;
        }
        if self.deliver_to_spy(from, to, &payload) || self.deliver_to_holder(from, to, &payload) {
            return true;
        }
        let (from, to) = self.on_lan(from, to).unwrap_or((from, to));
        if let Some(host) = self.hosts.get_mut(&to) {
            let input = node::Input::Datagram { remote: from, payload };
            host.node.handle(input, shifted(now, host.clock_error));
        }
        true
    }

    /// Returns as whom a host appears to another on its LAN, and who that is, if the place is one there.
    fn on_lan(&self, from: SocketAddr, to: SocketAddr) -> Option<(SocketAddr, SocketAddr)> {
        let gateway = |host: &Host| host.interfaces.first()?.gateways.first()?.mac;
        let own = |host: &Host| host.interfaces.first().map(|interface| interface.addresses[0].address);
        let sender = self.hosts.get(&from).filter(|_| self.has_lans)?;
        let is_meant = |host: &&Host| gateway(host) == gateway(sender) && own(host) == Some(to.ip());
        let receiver = self.hosts.values().find(is_meant)?;
        Some((SocketAddr::new(own(sender)?, from.port()), receiver.address))
    }
}

/// What a tunnel-node decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Served(SocketAddr),
    Refused(peerage_wire::frame::Code),
}

pub fn shifted(now: Now, millis: i64) -> Now {
    Now { unix: now.unix.shifted(millis), ..now }
}

pub fn found(address: &str) -> Found {
    Found { address: address.parse().unwrap(), interface: 2 }
}

/// A site with a printer at 192.168.1.77 and a user behind another router with the same prefix.
pub fn office(seed: u64) -> (World, SocketAddr, SocketAddr) {
    let mut world = World::new(seed);
    let site = world.join(SITE, lan("192.168.1.10", 1));
    let user = world.join(USER, lan("192.168.1.20", 2));
    world.host(site).lan.insert(PRINTER, found("192.168.1.77"));
    world.run(Duration::from_secs(1));
    let via = world.host(site).id;
    world.put_device(printer(via));
    world.run(Duration::from_secs(2));
    (world, site, user)
}

pub fn device() -> DeviceId {
    DeviceId::new(PRINTER, None)
}
