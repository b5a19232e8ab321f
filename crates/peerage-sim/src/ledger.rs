//! What the vendor decides, in a few honest lines: who is a member, which devices there are, what is revoked.
//!
//! It never forgets anything and is never down, so it is also the truth that invariants compare with. It signs as the operators do.

mod devices;
mod members;
mod operators;
mod super_nodes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use peerage_proto::operator::DomainFacts;
use peerage_wire::crypto::Crypto;
use peerage_wire::id::{DeviceId, Domain, NetworkId, NodeId, RecordKey};
use peerage_wire::keys::{DomainKeys, IdentityKey, network_id};
use peerage_wire::record::{
    Draft, DraftError, EndDevice, Header, OperatorState, Record, SuperNodeBody, Table, subject,
};
use peerage_wire::time::{Instant, Now};

use crate::chance::Chance;

/// What the ledger knows of a member.
#[derive(Clone, Debug)]
pub struct Membership {
    /// Its identity key.
    pub identity: [u8; 32],
    /// Its receiving key.
    pub receiving: [u8; 32],
    /// When it was revoked, if it was.
    pub revoked_at: Option<Instant>,
    /// Whether it has left by itself.
    pub has_left: bool,
}

impl Membership {
    /// Returns whether it is a member still.
    pub const fn is_valid(&self) -> bool {
        self.revoked_at.is_none() && !self.has_left
    }
}

/// A domain's part of the ledger.
#[derive(Debug)]
struct Organisation {
    keys: DomainKeys,
    /// Whether its computers are the vendor's own.
    is_vendor: bool,
    /// When the epoch began.
    epoch_began: Instant,
    members: BTreeMap<NodeId, Membership>,
    /// What each device was since when; the last is what counts.
    devices: BTreeMap<DeviceId, Vec<(Instant, Option<EndDevice>)>>,
}

/// One operator's identity.
#[derive(Clone, Debug)]
pub struct OperatorIdentity {
    /// Its key.
    pub key: IdentityKey,
    /// Its id.
    pub id: NodeId,
    /// Where it is reached.
    pub address: SocketAddr,
    /// Its record, signed by the root.
    pub record: Record,
    enrolment: [u8; 32],
    state: OperatorState,
}

/// The ledger that all operators share.
#[derive(Debug)]
pub struct Ledger {
    crypto: Arc<dyn Crypto>,
    chance: Chance,
    root: IdentityKey,
    network: NetworkId,
    operators: Vec<OperatorIdentity>,
    organisations: BTreeMap<Domain, Organisation>,
    records: BTreeMap<(Table, Domain, RecordKey), Record>,
    /// What each record was before.
    superseded: BTreeMap<(Table, Domain, RecordKey), Record>,
    version: u64,
    map_version: u64,
    /// The domains of which Heads have to say something else than operators were told.
    news: BTreeSet<Domain>,
}

/// What a transaction wrote.
pub type Written = Result<Vec<Record>, DraftError>;

impl Ledger {
    /// Founds a network with operators at these addresses.
    ///
    /// # Errors
    /// If a record cannot be made.
    pub fn found(
        seed: u64,
        crypto: Arc<dyn Crypto>,
        addresses: &[SocketAddr],
        now: Now,
    ) -> Result<Self, DraftError> {
        let mut chance = Chance::new(seed, "ledger");
        let root = IdentityKey::generate(chance.rng());
        let network = network_id(&root.public());
        let mut ledger = Self {
            crypto,
            chance,
            root,
            network,
            operators: Vec::new(),
            organisations: BTreeMap::new(),
            records: BTreeMap::new(),
            superseded: BTreeMap::new(),
            version: 0,
            news: BTreeSet::new(),
            map_version: 0,
        };
        for address in addresses {
            ledger.admit_operator(*address, now)?;
        }
        Ok(ledger)
    }

    fn header(
        &mut self,
        (table, domain, key): (Table, Domain, RecordKey),
        signer: NodeId,
        now: Now,
    ) -> Header {
        self.version = now.unix.as_millis().max(self.version.saturating_add(1));
        let expires = now.unix.after(table.max_life());
        Header { table, domain, key, version: self.version, expires, signer, removed: false }
    }

    /// Signs as one of the operators and keeps the record.
    fn sign(
        &mut self,
        id: (Table, Domain, RecordKey),
        now: Now,
        draft: impl FnOnce(Draft) -> Draft,
    ) -> Result<Record, DraftError> {
        let active: Vec<_> =
            self.operators.iter().filter(|operator| operator.state == OperatorState::Active).collect();
        let signer = self.chance.pick(&active).map(|operator| (*operator).clone());
        let (key, signer) = signer.map_or_else(
            || (self.root.clone(), self.root.node_id(Domain::OPERATORS)),
            |operator| (operator.key, operator.id),
        );
        let header = self.header(id, signer, now);
        let empty = Draft { header, public: EndDevice::public(), private: None };
        let record = draft(empty).sign(&key, &self.network, &*self.crypto)?;
        self.write(&record);
        Ok(record)
    }

    fn write(&mut self, record: &Record) {
        let id = record.header().id();
        if let Some(before) = self.records.insert(id, record.clone()) {
            self.superseded.insert(id, before);
        }
    }

    /// Does what is due because time goes by: new epochs, and records at half of their lives.
    ///
    /// # Errors
    /// If a record cannot be made.
    pub fn upkeep(&mut self, now: Now) -> Written {
        /// Life of an epoch if nobody is revoked.
        const EPOCH_LIFE: Duration = Duration::from_secs(30 * 86_400);
        let mut written = Vec::new();
        let domains = self.organisations.iter();
        let old = domains.filter(|(_, organisation)| now.mono - organisation.epoch_began >= EPOCH_LIFE);
        for domain in old.map(|(domain, _)| *domain).collect::<Vec<_>>() {
            written.extend(self.begin_epoch(domain, now)?);
        }
        let is_due = |record: &Record| {
            let header = record.header();
            let half = header.table.max_life() / 2;
            header.table != Table::Node && header.made_at().after(half) <= now.unix
        };
        let due: Vec<_> = self.records.values().filter(|record| is_due(record)).cloned().collect();
        for record in due {
            written.extend(self.renew_record(&record, now)?);
        }
        Ok(written)
    }

    fn renew_record(&mut self, record: &Record, now: Now) -> Written {
        let (table, domain, key) = record.header().id();
        let organisation = self.organisations.get(&domain);
        match table {
            Table::EndDevice => {
                let keys = self.keys(domain).cloned();
                let current = self.devices(domain).find(|device| {
                    keys.as_ref().is_some_and(|keys| keys.device_record_key(&device.device) == key)
                });
                current.cloned().map(|device| self.sign_device(domain, &device, now)).into_iter().collect()
            }
            Table::DomainKey => {
                let member =
                    organisation.and_then(|o| o.members.iter().find(|(id, _)| id.record_key() == key));
                let member = member.filter(|(_, member)| member.is_valid()).map(|(id, m)| (*id, m.clone()));
                member.map(|(id, member)| self.domain_key(id, &member, now)).into_iter().collect()
            }
            Table::OperatorNode => {
                let index = self.operators.iter().position(|o| o.id.record_key() == key);
                let state = index.and_then(|index| self.operators.get(index)).map(|o| o.state);
                match (index, state) {
                    (Some(index), Some(state)) => self.restate_operator(index, state, now),
                    _ => Ok(Vec::new()),
                }
            }
            Table::SuperNode => {
                let (node, body) = (subject(record.header()), SuperNodeBody::read(record));
                let body = body.ok().filter(|_| self.member(&node).is_some_and(Membership::is_valid));
                match body {
                    Some(body) => Ok(vec![self.sign_super_node(node, &body, now)?]),
                    None => self.bury_super_node(node, now),
                }
            }
            Table::Node | Table::NodeInfo | Table::Revocation | Table::Head => Ok(Vec::new()),
        }
    }

    // ---- what it knows ------------------------------------------------------------------------

    /// Returns the network.
    pub const fn network(&self) -> NetworkId {
        self.network
    }

    /// Returns the root key.
    pub fn root(&self) -> [u8; 32] {
        self.root.public()
    }

    /// Returns the root's id, which is nobody's on the network.
    pub fn root_id(&self) -> NodeId {
        self.root.node_id(Domain::OPERATORS)
    }

    /// Returns the operators.
    pub fn operators(&self) -> &[OperatorIdentity] {
        &self.operators
    }

    /// Returns a domain's keys.
    pub fn keys(&self, domain: Domain) -> Option<&DomainKeys> {
        self.organisations.get(&domain).map(|organisation| &organisation.keys)
    }

    /// Returns what Heads say besides records.
    pub fn facts(&self) -> Vec<DomainFacts> {
        self.organisations.keys().filter_map(|domain| self.facts_of(*domain)).collect()
    }

    /// Returns the same of the domains where it has changed since this was asked last.
    pub fn take_news(&mut self) -> Vec<DomainFacts> {
        std::mem::take(&mut self.news).into_iter().filter_map(|domain| self.facts_of(domain)).collect()
    }

    fn facts_of(&self, domain: Domain) -> Option<DomainFacts> {
        let organisation = self.organisations.get(&domain)?;
        let (epoch, vendor) = (organisation.keys.epoch, organisation.is_vendor);
        Some(DomainFacts { domain, epoch, offline_hours: None, vendor })
    }

    /// Makes an organisation the vendor's own.
    pub fn make_vendor(&mut self, domain: Domain) {
        if let Some(organisation) = self.organisations.get_mut(&domain) {
            organisation.is_vendor = true;
            self.news.insert(domain);
        }
    }

    /// Returns all records, the newest of each.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// Returns what records were before they were what they are.
    pub fn superseded(&self) -> impl Iterator<Item = &Record> {
        self.superseded.values()
    }

    /// Returns what is known of a member.
    pub fn member(&self, id: &NodeId) -> Option<&Membership> {
        self.organisations.get(&id.domain)?.members.get(id)
    }
}
