//! One ledger, its actions and refusals, at times of the test's choosing.

mod crash;
mod devices;
mod nodes;
mod spies;
mod super_nodes;
mod tokens;

use std::net::IpAddr;
use std::time::Duration;

use peerage_wire::enrol::{Credential, EnrolRequest, Refusal};
use peerage_wire::id::{Domain, NodeId, TokenId};
use peerage_wire::keys::{AgreementKey, DomainKeys, IdentityKey, network_id};
use peerage_wire::record::{DomainKeyBody, Record, Roles, Table, UnverifiedRecord};
use peerage_wire::time::UnixTime;

use super::admit::Admitted;
use super::{
    Actor, CRYPTO, Change, DeviceRow, Enrolment, Ledger, LedgerError, NewDevice, NewDomain, NewToken,
    OperatorDraft, Signer, Tx,
};

const START: UnixTime = UnixTime::from_secs(1_700_000_000);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// A computer that wants to join.
pub(super) struct Computer {
    identity: IdentityKey,
    receiving: AgreementKey,
}

impl Computer {
    pub(super) fn new(seed: u8) -> Self {
        Self::numbered(u32::from(seed))
    }

    pub(super) fn numbered(n: u32) -> Self {
        let mut seed = [7; 32];
        seed[..4].copy_from_slice(&n.to_be_bytes());
        Self { identity: IdentityKey::from_seed(&seed), receiving: AgreementKey::from_secret(seed) }
    }

    pub(super) fn id(&self, domain: Domain) -> NodeId {
        self.identity.node_id(domain)
    }

    fn request(&self, credential: Credential) -> EnrolRequest {
        EnrolRequest {
            credential,
            identity: self.identity.public(),
            receiving: *self.receiving.public(),
            time: START,
            name: "front desk".to_owned(),
        }
    }
}

/// A token with its secret.
#[derive(Clone, Copy)]
pub(super) struct Token {
    id: TokenId,
    secret: [u8; 16],
}

/// A ledger in a directory of its own, with one domain.
pub(super) struct Bench {
    dir: tempfile::TempDir,
    ledger: Ledger,
    now: UnixTime,
    domain: Domain,
    /// All that was committed since it was last taken.
    changes: Vec<Change>,
}

impl Bench {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ledger.db"), b"").unwrap();
        let ledger = open(&dir.path().join("ledger.db"));
        let mut bench = Self { dir, ledger, now: START, domain: Domain(0), changes: Vec::new() };
        let draft = OperatorDraft { enrolment: [3; 32], addresses: vec!["192.0.2.1:7400".parse().unwrap()] };
        bench.act(|tx| tx.make_operator_record(&draft)).unwrap();
        bench.domain = bench.add_domain("acme");
        bench
    }

    fn act<T, E: From<LedgerError>>(
        &mut self,
        action: impl FnOnce(&mut Tx<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let (value, change) = self.ledger.act(self.now, action)?;
        self.changes.push(change);
        Ok(value)
    }

    fn read<T>(&mut self, read: impl FnOnce(&mut Tx<'_>) -> Result<T, LedgerError>) -> T {
        self.ledger.act(self.now, read).unwrap().0
    }

    fn wait(&mut self, by: Duration) {
        self.now = self.now.after(by);
    }

    fn add_domain(&mut self, name: &str) -> Domain {
        let new = NewDomain { name: name.to_owned(), offline_hours: None, vendor: false };
        self.act(|tx| tx.add_domain(&new, Actor::Admin)).unwrap().id
    }

    pub(super) fn token(&mut self, uses: u32) -> Token {
        self.token_with(uses, 7 * DAY, false)
    }

    fn token_with(&mut self, uses: u32, life: Duration, approval: bool) -> Token {
        let roles = Roles { tunnel: true, super_node: false };
        let new = NewToken { domain: self.domain, uses, life, roles, approval };
        let (row, secret) = self.act(|tx| tx.add_token(&new, Actor::Admin)).unwrap();
        Token { id: row.id, secret }
    }

    fn ask(&mut self, request: EnrolRequest) -> Enrolment {
        let remote: IpAddr = "198.51.100.7".parse().unwrap();
        self.act(|tx| tx.enrol(&request, remote)).unwrap()
    }

    fn join(&mut self, token: Token, computer: &Computer) -> Enrolment {
        self.ask(computer.request(Credential::Token { id: token.id, secret: token.secret }))
    }

    fn renew(&mut self, computer: &Computer) -> Enrolment {
        let id = computer.id(self.domain);
        self.ask(computer.request(Credential::Possession(id)))
    }

    pub(super) fn member(&mut self, seed: u8) -> Computer {
        let (token, computer) = (self.token(1), Computer::new(seed));
        admitted(self.join(token, &computer));
        computer
    }

    /// A member that may be a super-node.
    fn super_node(&mut self, seed: u8) -> Computer {
        let roles = Roles { tunnel: true, super_node: true };
        let new = NewToken { domain: self.domain, uses: 1, life: DAY, roles, approval: false };
        let (row, secret) = self.act(|tx| tx.add_token(&new, Actor::Admin)).unwrap();
        let computer = Computer::new(seed);
        admitted(self.join(Token { id: row.id, secret }, &computer));
        computer
    }

    fn add_device(&mut self, name: &str, last: u8) -> DeviceRow {
        let (domain, new) = (self.domain, device(name, last));
        self.act(|tx| tx.add_device(domain, new, Actor::Admin)).unwrap()
    }

    fn records(&mut self) -> Vec<Record> {
        self.read(|tx| tx.records())
    }

    fn records_of(&mut self, table: Table) -> Vec<Record> {
        self.records().into_iter().filter(|record| record.header().table == table).collect()
    }

    /// What a member can open now.
    fn keys_of(&mut self, computer: &Computer) -> Option<DomainKeys> {
        let id = computer.id(self.domain);
        let record = self
            .records_of(Table::DomainKey)
            .into_iter()
            .find(|r| r.header().key == id.record_key() && r.header().domain == id.domain)?;
        let body = DomainKeyBody::read(&record).ok()?;
        body.open(&signer().network, id, &computer.receiving).ok()
    }

    fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    fn audit(&mut self) -> Vec<(String, String, String)> {
        self.read(|tx| tx.audit_entries())
    }
}

pub(super) fn signer() -> Signer {
    let root = IdentityKey::from_seed(&[1; 32]);
    Signer::new(network_id(&root.public()), IdentityKey::from_seed(&[2; 32]), Some(root))
}

fn open(path: &std::path::Path) -> Ledger {
    Ledger::open(path, signer()).unwrap()
}

pub(super) fn device(name: &str, last: u8) -> NewDevice {
    use peerage_wire::codec::{Protocol, Service};
    NewDevice {
        name: name.to_owned(),
        kind: "printer".to_owned(),
        mac: peerage_wire::id::Mac([2, 0, 0, 0, 0, last]),
        via: None,
        services: vec![Service { name: "ipp".to_owned(), port: 631, protocol: Protocol::Tcp, tls: false }],
        pins: Vec::new(),
        users: None,
    }
}

fn admitted(enrolment: Enrolment) -> Admitted {
    let Enrolment::Admitted(admitted) = enrolment else { panic!("not admitted: {enrolment:?}") };
    *admitted
}

fn refused(enrolment: Enrolment) -> Refusal {
    let Enrolment::Refused(refusal) = enrolment else { panic!("not refused: {enrolment:?}") };
    refusal
}

/// Checks a record as a node would.
fn check(record: &Record, now: UnixTime) {
    let signer = signer();
    let by_root = record.header().table == Table::OperatorNode;
    let key = if by_root { signer.root.as_ref().unwrap().public() } else { signer.identity.public() };
    let unverified = UnverifiedRecord::parse(record.bytes()).unwrap();
    unverified.check_time(now).unwrap();
    unverified.verify(&signer.network, &key, &CRYPTO).unwrap();
}

#[test]
fn every_record_that_the_ledger_makes_is_taken_by_a_node() {
    let mut bench = Bench::new();
    let member = bench.member(1);
    bench.member(2);
    bench.add_device("hp", 1);
    bench.add_device("kyocera", 2);
    let domain = bench.domain;
    bench.act(|tx| tx.remove_device(domain, "hp", Actor::Admin)).unwrap();
    bench.act(|tx| tx.leave(member.id(domain))).unwrap();
    let records = bench.records();
    assert_eq!(records.len(), 1 + 2 + 2 + 2);
    let now = bench.now;
    records.iter().for_each(|record| check(record, now));
}

#[test]
fn versions_rise_even_if_the_clock_goes_back() {
    let mut bench = Bench::new();
    let computer = bench.member(1);
    let first = bench.records_of(Table::Node)[0].header().version;
    bench.now = START.before(365 * DAY);
    let domain = bench.domain;
    bench.act(|tx| tx.reseal(domain)).unwrap();
    let keys = bench.records_of(Table::DomainKey);
    assert!(keys[0].header().version > first);
    assert_eq!(bench.keys_of(&computer).unwrap().epoch, 2);
}

#[test]
fn a_change_holds_exactly_what_was_committed() {
    let mut bench = Bench::new();
    bench.take_changes();
    let token = bench.token(1);
    assert!(bench.take_changes().iter().all(Change::is_empty));
    let joined = admitted(bench.join(token, &Computer::new(1)));
    let changes = bench.take_changes();
    assert_eq!(changes[0].records, [joined.node, joined.domain_key]);
    assert!(changes[0].facts.is_empty());
    bench.add_domain("other");
    assert_eq!(bench.take_changes()[0].facts[0].epoch, 1);
}

#[test]
fn a_ledger_opened_again_has_everything() {
    let mut bench = Bench::new();
    bench.member(1);
    bench.add_device("hp", 1);
    let (before, domain) = (bench.records(), bench.domain);
    bench.ledger = open(&bench.dir.path().join("ledger.db"));
    assert_eq!(bench.records(), before);
    assert_eq!(bench.read(|tx| tx.facts())[0].domain, domain);
    assert_eq!(bench.read(|tx| tx.devices(domain)).len(), 1);
}

#[test]
fn domains_are_found_by_name_and_by_number_and_a_name_is_taken_once() {
    let mut bench = Bench::new();
    let domain = bench.domain;
    for text in ["acme".to_owned(), domain.0.to_string()] {
        let found = bench.ledger.act(START, |tx| tx.find_domain(&text)).unwrap().0;
        assert_eq!((found.id, found.epoch, found.nodes), (domain, 1, 0));
    }
    for text in ["", "0", "none", "99999999999"] {
        assert!(
            matches!(bench.act(|tx| tx.find_domain(text)), Err(super::DomainError::Unknown(_))),
            "{text}"
        );
    }
    let again = NewDomain { name: "acme".to_owned(), offline_hours: Some(24), vendor: false };
    assert!(matches!(
        bench.act(|tx| tx.add_domain(&again, Actor::Admin)),
        Err(super::DomainError::NameTaken)
    ));
}

/// Rules 6.21 and 6.22: a month, and half of a life.
#[test]
fn records_are_signed_anew_at_half_of_their_life_and_epochs_change_each_month() {
    let mut bench = Bench::new();
    let computer = bench.member(1);
    bench.add_device("hp", 1);
    let upkeep = |bench: &mut Bench| {
        while bench.act(|tx| tx.upkeep()).unwrap() == super::Upkeep::More {}
    };
    let device = |bench: &mut Bench| bench.records_of(Table::EndDevice)[0].header().version;
    let first = device(&mut bench);
    bench.wait(14 * DAY);
    upkeep(&mut bench);
    assert_eq!(device(&mut bench), first);
    bench.wait(2 * DAY);
    upkeep(&mut bench);
    assert!(device(&mut bench) > first);
    assert_eq!(bench.keys_of(&computer).unwrap().epoch, 1);
    admitted(bench.renew(&computer));
    bench.wait(15 * DAY);
    upkeep(&mut bench);
    let keys = bench.keys_of(&computer).unwrap();
    assert_eq!(keys.epoch, 2);
    assert_eq!(bench.records_of(Table::EndDevice)[0].epoch(), Some(2));
    bench.wait(16 * DAY);
    upkeep(&mut bench);
    let operator = bench.records_of(Table::OperatorNode);
    assert_eq!(operator.len(), 1);
    assert!(operator[0].header().made_at() > START.after(40 * DAY), "the root was there to sign");
}

#[test]
fn what_has_ended_is_forgotten_but_never_a_version() {
    let mut bench = Bench::new();
    bench.member(1);
    let last = bench.records().iter().map(|record| record.header().version).max().unwrap();
    bench.wait(400 * DAY);
    while bench.act(|tx| tx.upkeep()).unwrap() == super::Upkeep::More {}
    assert!(bench.records().is_empty());
    bench.now = START;
    let again = bench.member(2);
    let node = bench.records_of(Table::Node)[0].header().version;
    assert!(node > last);
    assert!(bench.keys_of(&again).is_some());
}
