//! What a look-up in a large table costs an operator, without sockets: `cargo bench -p peerage-proto --bench lookups [RECORDS]`.
//!
//! One member asks for the Node records of others, a different one each time, beside Pings of the same member. Prints medians of several
//! rounds, each round measuring both, so that a busy machine disturbs both alike. It reports and judges nothing.

#![expect(clippy::print_stdout, reason = "a bench reports on standard output")]
#![expect(clippy::disallowed_methods, reason = "a bench reads the clock; the code under it does not")]
#![expect(clippy::unwrap_used, reason = "a bench that cannot be set up may end at once")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use peerage_proto::endpoint::{self, Endpoint, Outcome};
use peerage_proto::operator::{Config, DomainFacts, Input, Operator, Output};
use peerage_proto::relay;
use peerage_proto::trust::Trust;
use peerage_wire::cbor::MapWriter;
use peerage_wire::crypto::Real;
use peerage_wire::id::{Domain, NetworkId, NodeId, sha256};
use peerage_wire::keys::{AgreementKey, IdentityKey, network_id};
use peerage_wire::message::{Reply, Request};
use peerage_wire::record::{
    Draft, Header, NodeBody, OperatorBody, OperatorState, Record, Roles, Table, UnverifiedRecord,
};
use peerage_wire::time::{Instant, Now, UnixTime};

const SIZES: [u32; 3] = [1_000, 100_000, 1_000_000];
const ROUNDS: usize = 7;
const MESSAGES: u32 = 20_000;

/// Records that the ledger commits at a time.
const COMMITTED: usize = 1_000;

const DOMAIN: Domain = Domain(7);
const VERSION: u64 = 1_800_000_000_000;

fn expires() -> UnixTime {
    UnixTime::from_secs(1_800_000_000).after(Duration::from_secs(20 * 86_400))
}

/// The member of this number, which exists as a record alone.
fn member_id(number: u32) -> NodeId {
    NodeId { domain: DOMAIN, hash: sha256(&[&number.to_be_bytes()]) }
}

/// Its record, as long as any, but signed by nobody.
fn member_record(number: u32, signer: NodeId) -> Record {
    let roles = Roles { tunnel: true, super_node: false };
    let body = NodeBody { identity: [1; 32], receiving: [2; 32], roles };
    let mut map = MapWriter::new();
    map.uint(1, Table::Node.number())
        .uint(2, DOMAIN.0)
        .bytes(3, &member_id(number).record_key().0)
        .uint(4, VERSION)
        .uint(5, expires().as_millis())
        .bytes(6, &signer.to_bytes())
        .map(8, &body.write());
    let mut bytes = map.finish();
    bytes.extend_from_slice(&[0; 64]);
    UnverifiedRecord::parse(&bytes.into()).unwrap().trust_own_store()
}

fn signed(signer: &IdentityKey, network: &NetworkId, table: Table, id: NodeId, public: MapWriter) -> Record {
    let signer_id = signer.node_id(Domain::OPERATORS);
    let (key, domain) = (id.record_key(), id.domain);
    let header = Header {
        table,
        domain,
        key,
        version: VERSION,
        expires: expires(),
        signer: signer_id,
        removed: false,
    };
    Draft { header, public, private: None }.sign(signer, network, &Real).unwrap()
}

/// An operator with a table, one member, and no wire between them.
struct Scene {
    operator: Operator,
    operator_id: NodeId,
    member: Endpoint,
    trust: Trust,
    now: Now,
    records: u32,
    next: u32,
}

impl Scene {
    fn new(records: u32) -> Self {
        let now = Now { mono: Instant::from_micros(1), unix: UnixTime::from_secs(1_800_000_100) };
        let [root, identity, own] = [1, 2, 3].map(|seed| IdentityKey::from_seed(&[seed; 32]));
        let network = network_id(&root.public());
        let operator_id = identity.node_id(Domain::OPERATORS);
        let enrolment = *AgreementKey::from_secret([3; 32]).public();
        let state = OperatorState::Active;
        let body = OperatorBody { identity: identity.public(), enrolment, addresses: vec![], state };
        let operator_record = signed(&root, &network, Table::OperatorNode, operator_id, body.write());
        let roles = Roles { tunnel: true, super_node: false };
        let receiving = *AgreementKey::from_secret([4; 32]).public();
        let body = NodeBody { identity: own.public(), receiving, roles };
        let own_record = signed(&identity, &network, Table::Node, own.node_id(DOMAIN), body.write());
        let mut trust = Trust::new(network, root.public());
        trust.learn(&operator_record);
        let config = |identity: &IdentityKey, id, record: &Record, asks_introduction| endpoint::Config {
            network,
            crypto: Arc::new(Real),
            identity: identity.clone(),
            id,
            record: record.bytes().clone(),
            asks_introduction,
        };
        let operator_config = Config {
            endpoint: config(&identity, operator_id, &operator_record, true),
            root: root.public(),
            addresses: vec![address(2)],
            relay: relay::Limits::default(),
            spy_interval: None,
        };
        let mut operator = Operator::new(operator_config, [2; 32], now);
        let facts = DomainFacts { domain: DOMAIN, epoch: 1, offline_hours: None, vendor: false };
        operator.handle(Input::Domain(facts), now);
        operator.handle(Input::Committed(vec![operator_record.clone()]), now);
        let all: Vec<_> = (0..records).map(|number| member_record(number, operator_id)).collect();
        for some in all.chunks(COMMITTED) {
            operator.handle(Input::Committed(some.to_vec()), now);
        }
        let mut member = Endpoint::new(config(&own, own.node_id(DOMAIN), &own_record, false), [3; 32], now);
        member.trust_own_clock();
        member.learn_peer(Trust::member(&operator_record).unwrap(), *operator.statement(), now);
        Self { operator, operator_id, member, trust, now, records, next: 0 }
    }

    /// Another member each time, from everywhere in the table.
    fn next_look_up(&mut self) -> Request {
        self.next = self.next.wrapping_add(7_919);
        Request::GetNode(member_id(self.next % self.records))
    }

    /// Asks, and returns how long the operator was at work on it.
    fn ask(&mut self, request: &Request) -> Duration {
        self.now = self.now.after(Duration::from_millis(1));
        let (here, there) = (address(1), address(2));
        self.member.request(self.operator_id, there, request, self.now);
        let mut took = Duration::ZERO;
        while let Some((_, payload)) = self.member.poll_transmit() {
            let began_at = std::time::Instant::now();
            self.operator.handle(Input::Datagram { remote: here, payload }, self.now);
            let outputs: Vec<_> = std::iter::from_fn(|| self.operator.poll_output()).collect();
            took += began_at.elapsed();
            for output in outputs {
                if let Output::Transmit { payload, .. } = output {
                    self.member.handle_datagram(there, &payload, &self.trust, self.now);
                }
            }
        }
        let answer = self.member.poll_outcome();
        let is_answered = match answer {
            Some(Outcome::Answered { reply: Reply::Node(found), .. }) => found.is_some(),
            Some(Outcome::Answered { reply: Reply::Reping { .. }, .. }) => true,
            _ => false,
        };
        assert!(is_answered, "{request:?} was not answered: {:?}", self.operator.discards());
        took
    }

    fn micros_each(&mut self, mut request: impl FnMut(&mut Self) -> Request) -> f64 {
        let mut took = Duration::ZERO;
        for _ in 0..MESSAGES {
            let request = request(self);
            took += self.ask(&request);
        }
        took.as_secs_f64() * 1e6 / f64::from(MESSAGES)
    }
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], port))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() {
    // Whatever else cargo passes begins with a dash.
    let wanted: Vec<u32> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let sizes = if wanted.is_empty() { &SIZES[..] } else { &wanted };
    println!("{:>9} {:>12} {:>12} {:>22}", "records", "Ping", "GetNode", "GetNodes for one Ping");
    for size in sizes {
        let mut scene = Scene::new(*size);
        scene.ask(&Request::Ping);
        let (mut pings, mut reads, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let ping = scene.micros_each(|_| Request::Ping);
            let read = scene.micros_each(Scene::next_look_up);
            pings.push(ping);
            reads.push(read);
            ratios.push(ping / read);
        }
        let (ping, read, ratio) = (median(pings), median(reads), median(ratios));
        println!("{size:>9} {ping:>9.2} µs {read:>9.2} µs {ratio:>22.2}");
    }
}
