//! What a message costs, without sockets: `cargo bench -p peerage-proto --bench messages`.
//!
//! Prints medians of several rounds, each round measuring every row once, so that a busy machine disturbs all rows alike; the last
//! column compares with the first row. It reports and judges nothing.

#![expect(clippy::print_stdout, reason = "a bench reports on standard output")]
#![expect(clippy::disallowed_methods, reason = "a bench reads the clock; the code under it does not")]
#![expect(clippy::unwrap_used, reason = "a bench that cannot be set up may end at once")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use peerage_proto::endpoint::{Config, Endpoint, Outcome};
use peerage_proto::trust::{Member, Trust};
use peerage_wire::crypto::Real;
use peerage_wire::id::{Domain, NodeId};
use peerage_wire::keys::{AgreementKey, IdentityKey, network_id};
use peerage_wire::message::{Reply, Request};
use peerage_wire::record::{Draft, Header, NodeBody, OperatorBody, OperatorState, Record, Roles, Table};
use peerage_wire::time::{Instant, Now, UnixTime};

const ROUNDS: usize = 7;
const MESSAGES: u32 = 2_000;
const CONTACTS: u32 = 200;

/// Two endpoints that know each other through an operator's signature, and no wire between them.
struct Pair {
    trust: Trust,
    client: Endpoint,
    server: Endpoint,
    now: Now,
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], port))
}

fn record(signer: &IdentityKey, table: Table, id: NodeId, body: peerage_wire::cbor::MapWriter) -> Record {
    let root = IdentityKey::from_seed(&[1; 32]);
    let header = Header {
        table,
        domain: id.domain,
        key: id.record_key(),
        version: 1_800_000_000_000,
        expires: UnixTime::from_secs(1_800_000_000).after(Duration::from_secs(20 * 86_400)),
        signer: signer.node_id(Domain::OPERATORS),
        removed: false,
    };
    let draft = Draft { header, public: body, private: None };
    draft.sign(signer, &network_id(&root.public()), &Real).unwrap()
}

fn endpoint(seed: u8, trust_root: &IdentityKey, operator: &IdentityKey, now: Now) -> (Endpoint, Record) {
    let identity = IdentityKey::from_seed(&[seed; 32]);
    let id = identity.node_id(Domain(7));
    let receiving = AgreementKey::from_secret([seed; 32]);
    let roles = Roles { tunnel: true, super_node: false };
    let body = NodeBody { identity: identity.public(), receiving: *receiving.public(), roles };
    let record = record(operator, Table::Node, id, body.write());
    let config = Config {
        network: network_id(&trust_root.public()),
        crypto: Arc::new(Real),
        identity,
        id,
        record: record.bytes().clone(),
        asks_introduction: true,
    };
    (Endpoint::new(config, [seed; 32], now), record)
}

impl Pair {
    fn new(client_seed: u8) -> Self {
        let now = Now { mono: Instant::from_micros(1), unix: UnixTime::from_secs(1_800_000_100) };
        let (root, operator) = (IdentityKey::from_seed(&[1; 32]), IdentityKey::from_seed(&[2; 32]));
        let mut trust = Trust::new(network_id(&root.public()), root.public());
        let enrolment = AgreementKey::from_secret([3; 32]);
        let body = OperatorBody {
            identity: operator.public(),
            enrolment: *enrolment.public(),
            addresses: vec![],
            state: OperatorState::Active,
        };
        trust.learn(&record(&root, Table::OperatorNode, operator.node_id(Domain::OPERATORS), body.write()));
        let (mut client, _) = endpoint(client_seed, &root, &operator, now);
        let (mut server, server_record) = endpoint(200, &root, &operator, now);
        client.trust_own_clock();
        server.trust_own_clock();
        let member: Member = Trust::member(&server_record).unwrap();
        client.learn_peer(member, *server.statement(), now);
        Self { trust, client, server, now }
    }

    /// One request and its answer.
    fn ping(&mut self) {
        self.now = self.now.after(Duration::from_millis(1));
        let (client_at, server_at) = (address(1), address(2));
        self.client.request(self.server.id(), server_at, &Request::Ping, self.now);
        while let Some((_, datagram)) = self.client.poll_transmit() {
            self.server.handle_datagram(client_at, &datagram, &self.trust, self.now);
        }
        while let Some(outcome) = self.server.poll_outcome() {
            if let Outcome::Request(incoming) = outcome {
                self.server.reply(&incoming.reply_to, &Reply::Reping { observed: client_at });
            }
        }
        while let Some((_, datagram)) = self.server.poll_transmit() {
            self.client.handle_datagram(server_at, &datagram, &self.trust, self.now);
        }
        let answered = matches!(self.client.poll_outcome(), Some(Outcome::Answered { .. }));
        assert!(answered, "a Ping was not answered: {:?}", self.server.discards());
    }
}

fn micros_each(count: u32, mut work: impl FnMut(u32)) -> f64 {
    let start = std::time::Instant::now();
    (0..count).for_each(&mut work);
    start.elapsed().as_secs_f64() * 1e6 / f64::from(count)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() {
    let rows = [
        "Ping and Reping in a known context, both ends",
        "first contact (HPKE, three signatures), both ends",
        "Ed25519 strict verification of one record",
    ];
    let mut measured: Vec<Vec<f64>> = vec![Vec::new(); rows.len()];
    let (root, operator) = (IdentityKey::from_seed(&[1; 32]), IdentityKey::from_seed(&[2; 32]));
    for _ in 0..ROUNDS {
        let mut pair = Pair::new(100);
        pair.ping();
        let known = micros_each(MESSAGES, |_| pair.ping());
        let mut strangers: Vec<_> =
            (0..CONTACTS).map(|n| Pair::new(u8::try_from(n % 100).unwrap())).collect();
        let first = micros_each(CONTACTS, |n| strangers.get_mut(n as usize).unwrap().ping());
        let (_, sample) = endpoint(100, &root, &operator, pair.now);
        let verify = micros_each(CONTACTS, |_| {
            pair.trust.verify(sample.bytes(), None, &Real).unwrap();
        });
        for (row, value) in measured.iter_mut().zip([known, first, verify]) {
            row.push(value);
        }
    }
    let medians: Vec<_> = measured.into_iter().map(median).collect();
    let reference = medians.first().copied().unwrap_or(f64::NAN);
    println!("{:<52} {:>10} {:>10} {:>8}", "one thread, medians of rounds", "µs", "per s", "ratio");
    for (row, value) in rows.iter().zip(medians) {
        println!("{row:<52} {value:>10.2} {:>10.0} {:>8.1}", 1e6 / value, value / reference);
    }
}
