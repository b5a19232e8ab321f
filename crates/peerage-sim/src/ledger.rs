//! What the vendor decides, in a few honest lines: who is a member, which devices there are, what is revoked.
//!
//! It never forgets anything and is never down, so it is also the truth that invariants compare with. It signs as the operators do.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use peerage_proto::operator::{Assignment, DomainFacts};
use peerage_wire::crypto::{Crypto, CryptoError};
use peerage_wire::id::{DeviceId, Domain, LocationId, NetworkId, NodeId, PlacementKey, RecordKey, Segment};
use peerage_wire::keys::{AgreementKey, DomainKeys, IdentityKey, SecretKey, network_id};
use peerage_wire::limits::MAX_SITE_LOCATIONS;
use peerage_wire::record::{
    DomainKeyBody, Draft, DraftError, EndDevice, Header, NodeBody, OperatorBody, OperatorState, Record,
    RevocationBody, RevocationKind, Roles, SuperNodeBody, Table, subject,
};
use peerage_wire::time::{Instant, Now, UnixTime};

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
            map_version: 0,
        };
        for address in addresses {
            ledger.admit_operator(*address, now)?;
        }
        Ok(ledger)
    }

    fn admit_operator(&mut self, address: SocketAddr, now: Now) -> Result<(), DraftError> {
        let key = IdentityKey::generate(self.chance.rng());
        let id = key.node_id(Domain::OPERATORS);
        let enrolment = *AgreementKey::generate(self.chance.rng()).public();
        let state = OperatorState::Active;
        let record = self.sign_operator((&key, enrolment, address, state), now)?;
        self.operators.push(OperatorIdentity { key, id, address, record, enrolment, state });
        Ok(())
    }

    fn sign_operator(
        &mut self,
        (key, enrolment, address, state): (&IdentityKey, [u8; 32], SocketAddr, OperatorState),
        now: Now,
    ) -> Result<Record, DraftError> {
        let body = OperatorBody { identity: key.public(), enrolment, addresses: vec![address], state };
        let signer = self.root.node_id(Domain::OPERATORS);
        let id = key.node_id(Domain::OPERATORS);
        let header = self.header((Table::OperatorNode, Domain::OPERATORS, id.record_key()), signer, now);
        let draft = Draft { header, public: body.write(), private: None };
        let record = draft.sign(&self.root, &self.network, &*self.crypto)?;
        self.write(&record);
        Ok(record)
    }

    /// Signs the record of an operator anew.
    fn restate_operator(&mut self, index: usize, state: OperatorState, now: Now) -> Written {
        let Some(operator) = self.operators.get(index).cloned() else { return Ok(Vec::new()) };
        let record = self.sign_operator((&operator.key, operator.enrolment, operator.address, state), now)?;
        if let Some(operator) = self.operators.get_mut(index) {
            operator.record = record.clone();
            operator.state = state;
        }
        Ok(vec![record])
    }

    /// Retires an operator; nothing for the last one.
    ///
    /// # Errors
    /// If the record cannot be made.
    pub fn retire(&mut self, index: usize, now: Now) -> Written {
        let active = self.operators.iter().filter(|operator| operator.state == OperatorState::Active).count();
        let is_active = self.operators.get(index).is_some_and(|o| o.state == OperatorState::Active);
        if active < 2 || !is_active {
            return Ok(Vec::new());
        }
        self.restate_operator(index, OperatorState::Retired, now)
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

    /// Makes a domain.
    pub fn add_domain(&mut self, domain: Domain) {
        let keys = DomainKeys {
            epoch: 1,
            epoch_key: SecretKey::generate(self.chance.rng()),
            previous: None,
            location_key: SecretKey::generate(self.chance.rng()),
        };
        let (members, devices) = (BTreeMap::new(), BTreeMap::new());
        let organisation = Organisation { keys, epoch_began: Instant::default(), members, devices };
        self.organisations.insert(domain, organisation);
    }

    /// Admits a member: its Node and DomainKey records.
    ///
    /// # Errors
    /// If a record cannot be made.
    pub fn admit(&mut self, id: NodeId, identity: [u8; 32], receiving: [u8; 32], now: Now) -> Written {
        let membership = Membership { identity, receiving, revoked_at: None, has_left: false };
        if let Some(organisation) = self.organisations.get_mut(&id.domain) {
            organisation.members.insert(id, membership);
        }
        self.renew(id, now)
    }

    /// Signs a member's records anew; nothing for whom it does not know or has revoked.
    ///
    /// # Errors
    /// If a record cannot be made.
    pub fn renew(&mut self, id: NodeId, now: Now) -> Written {
        let Some(member) = self.member(&id).filter(|member| member.is_valid()).cloned() else {
            return Ok(Vec::new());
        };
        let roles = Roles { tunnel: true, super_node: true };
        let body = NodeBody { identity: member.identity, receiving: member.receiving, roles };
        let node = self.sign((Table::Node, id.domain, id.record_key()), now, |draft| Draft {
            public: body.write(),
            ..draft
        })?;
        Ok(vec![node, self.domain_key(id, &member, now)?])
    }

    fn domain_key(&mut self, id: NodeId, member: &Membership, now: Now) -> Result<Record, DraftError> {
        let Some(keys) = self.keys(id.domain).cloned() else { return Err(DraftError::Crypto(CryptoError)) };
        let to = (&self.network, id, &member.receiving);
        let sealed = DomainKeyBody::seal(&keys, to, self.chance.rng()).map_err(DraftError::Crypto)?;
        self.sign((Table::DomainKey, id.domain, id.record_key()), now, |draft| Draft {
            public: sealed.write(),
            ..draft
        })
    }

    /// Revokes a member: a new epoch for the others, as one transaction (Rule 6.21).
    ///
    /// # Errors
    /// If a record cannot be made.
    pub fn revoke(&mut self, id: NodeId, now: Now) -> Written {
        let Some(organisation) = self.organisations.get_mut(&id.domain) else { return Ok(Vec::new()) };
        match organisation.members.get_mut(&id) {
            Some(member) if member.is_valid() => member.revoked_at = Some(now.mono),
            Some(_) | None => return Ok(Vec::new()),
        }
        let body = RevocationBody { kind: RevocationKind::Node(id), at: now.unix, reason: 1 };
        let revocation = self.sign((Table::Revocation, id.domain, body.record_key()), now, |draft| {
            Draft { public: body.write(), ..draft }
        })?;
        self.records.remove(&(Table::DomainKey, id.domain, id.record_key()));
        let mut written = vec![revocation];
        written.extend(self.bury_super_node(id, now)?);
        written.extend(self.begin_epoch(id.domain, now)?);
        Ok(written)
    }

    /// Gives a domain new keys, and signs with them what is sealed with the old ones.
    fn begin_epoch(&mut self, domain: Domain, now: Now) -> Written {
        let Some(organisation) = self.organisations.get_mut(&domain) else { return Ok(Vec::new()) };
        organisation.epoch_began = now.mono;
        organisation.keys = DomainKeys {
            epoch: organisation.keys.epoch.saturating_add(1),
            previous: Some(organisation.keys.epoch_key.clone()),
            epoch_key: SecretKey::generate(self.chance.rng()),
            location_key: organisation.keys.location_key.clone(),
        };
        let remaining = organisation.members.iter().filter(|(_, member)| member.is_valid());
        let remaining: Vec<_> = remaining.map(|(id, member)| (*id, member.clone())).collect();
        let devices: Vec<_> =
            organisation.devices.values().filter_map(|states| states.last()?.1.clone()).collect();
        let mut written = Vec::new();
        for (id, member) in remaining {
            written.push(self.domain_key(id, &member, now)?);
        }
        for device in devices {
            written.push(self.sign_device(domain, &device, now)?);
        }
        Ok(written)
    }

    /// A member has left: its records are buried.
    ///
    /// # Errors
    /// If a record cannot be made.
    pub fn leave(&mut self, id: NodeId, now: Now) -> Written {
        let member = self.organisations.get_mut(&id.domain).and_then(|o| o.members.get_mut(&id));
        let Some(member) = member.filter(|member| member.is_valid()) else { return Ok(Vec::new()) };
        member.has_left = true;
        let mut written = self.bury_super_node(id, now)?;
        for table in [Table::Node, Table::DomainKey] {
            written.push(self.sign((table, id.domain, id.record_key()), now, |mut draft| {
                draft.header.removed = true;
                draft
            })?);
        }
        Ok(written)
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

    // ---- super-nodes --------------------------------------------------------------------------

    /// Signs what changes in the segment map. Who is no member gets a tombstone, whatever was planned.
    ///
    /// # Errors
    /// If a record cannot be made.
    pub fn assign(&mut self, map_version: u64, changes: &[Assignment], now: Now) -> Written {
        self.map_version = map_version.max(self.map_version.saturating_add(1));
        let mut written = Vec::new();
        for Assignment { node, identity, addresses, range } in changes {
            match range.filter(|_| self.member(node).is_some_and(Membership::is_valid)) {
                Some(segment) => {
                    let (identity, addresses) = (*identity, addresses.clone());
                    let body = SuperNodeBody { segment, map_version: self.map_version, identity, addresses };
                    written.push(self.sign_super_node(*node, &body, now)?);
                }
                None => written.extend(self.bury_super_node(*node, now)?),
            }
        }
        Ok(written)
    }

    fn sign_super_node(
        &mut self,
        node: NodeId,
        body: &SuperNodeBody,
        now: Now,
    ) -> Result<Record, DraftError> {
        let id = (Table::SuperNode, node.domain, node.record_key());
        self.sign(id, now, |draft| Draft { public: body.write(), ..draft })
    }

    fn bury_super_node(&mut self, node: NodeId, now: Now) -> Written {
        let id = (Table::SuperNode, node.domain, node.record_key());
        if self.records.get(&id).is_none_or(|record| record.header().removed) {
            return Ok(Vec::new());
        }
        let tombstone = self.sign(id, now, |mut draft| {
            draft.header.removed = true;
            draft
        })?;
        Ok(vec![tombstone])
    }

    /// Takes all super-nodes out of the segment map.
    ///
    /// # Errors
    /// If a record cannot be made.
    pub fn forget_super_nodes(&mut self, now: Now) -> Written {
        let all: Vec<_> = self.super_nodes(now.unix).map(|(node, _)| node).collect();
        let mut written = Vec::new();
        for node in all {
            written.extend(self.bury_super_node(node, now)?);
        }
        Ok(written)
    }

    /// Returns which part of the table a node is to hold, if any.
    pub fn segment(&self, node: &NodeId, time: UnixTime) -> Option<Segment> {
        let record = self.records.get(&(Table::SuperNode, node.domain, node.record_key()))?;
        let is_valid = !record.header().removed && record.header().expires > time;
        is_valid.then(|| SuperNodeBody::read(record).ok().map(|body| body.segment)).flatten()
    }

    /// Returns whether a node is to hold a place, or was before its part changed last.
    pub fn was_assigned(&self, node: &NodeId, place: PlacementKey) -> bool {
        let id = (Table::SuperNode, node.domain, node.record_key());
        let both = self.records.get(&id).into_iter().chain(self.superseded.get(&id));
        both.filter_map(|record| SuperNodeBody::read(record).ok()).any(|body| body.segment.contains(place))
    }

    /// Returns the super-nodes, with what they hold.
    pub fn super_nodes(&self, time: UnixTime) -> impl Iterator<Item = (NodeId, Segment)> {
        let all = self.records.values().filter(|record| record.header().table == Table::SuperNode);
        all.filter_map(move |record| {
            let node = subject(record.header());
            Some((node, self.segment(&node, time)?))
        })
    }

    // ---- devices ------------------------------------------------------------------------------

    /// Registers a device, or changes one.
    ///
    /// # Errors
    /// If the record cannot be made.
    pub fn put_device(&mut self, domain: Domain, device: EndDevice, now: Now) -> Written {
        let record = self.sign_device(domain, &device, now)?;
        if let Some(organisation) = self.organisations.get_mut(&domain) {
            organisation.devices.entry(device.device).or_default().push((now.mono, Some(device)));
        }
        Ok(vec![record])
    }

    fn sign_device(&mut self, domain: Domain, device: &EndDevice, now: Now) -> Result<Record, DraftError> {
        let Some(keys) = self.keys(domain).cloned() else { return Err(DraftError::Crypto(CryptoError)) };
        let key = keys.device_record_key(&device.device);
        let (salt, body) = (self.chance.bytes(), device.write());
        self.sign((Table::EndDevice, domain, key), now, |draft| draft.with_private(&keys, salt, body))
    }

    /// Takes a device out.
    ///
    /// # Errors
    /// If the record cannot be made.
    pub fn remove_device(&mut self, domain: Domain, device: DeviceId, now: Now) -> Written {
        let Some(organisation) = self.organisations.get_mut(&domain) else { return Ok(Vec::new()) };
        let Some(states) = organisation.devices.get_mut(&device) else { return Ok(Vec::new()) };
        if states.last().is_none_or(|(_, state)| state.is_none()) {
            return Ok(Vec::new());
        }
        states.push((now.mono, None));
        let key = organisation.keys.device_record_key(&device);
        let tombstone = self.sign((Table::EndDevice, domain, key), now, |mut draft| {
            draft.header.removed = true;
            draft
        })?;
        Ok(vec![tombstone])
    }

    /// A member says where it sees a device: believed of the node that was named to look for it.
    ///
    /// # Errors
    /// If the record cannot be made.
    pub fn device_seen(
        &mut self,
        node: NodeId,
        key: RecordKey,
        location: LocationId,
        now: Now,
    ) -> Result<(bool, Vec<Record>), DraftError> {
        let Some(organisation) = self.organisations.get(&node.domain) else { return Ok((false, Vec::new())) };
        let current = organisation.devices.values().filter_map(|states| states.last()?.1.as_ref());
        let found = current.into_iter().find(|device| {
            organisation.keys.device_record_key(&device.device) == key && device.via == Some(node)
        });
        let Some(mut device) = found.cloned() else { return Ok((false, Vec::new())) };
        if device.site.contains(&location) {
            return Ok((true, Vec::new()));
        }
        if device.site.len() >= MAX_SITE_LOCATIONS {
            return Ok((false, Vec::new()));
        }
        device.site.push(location);
        Ok((true, self.put_device(node.domain, device, now)?))
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
        let facts = |(domain, organisation): (&Domain, &Organisation)| DomainFacts {
            domain: *domain,
            epoch: organisation.keys.epoch,
            offline_hours: None,
            vendor: false,
        };
        self.organisations.iter().map(facts).collect()
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

    /// Returns the registered devices of a domain.
    pub fn devices(&self, domain: Domain) -> impl Iterator<Item = &EndDevice> {
        let states = self.organisations.get(&domain).into_iter().flat_map(|o| o.devices.values());
        states.filter_map(|states| states.last()?.1.as_ref())
    }

    /// Returns what a device was at any time since `since`, removed states left out.
    pub fn device_since(
        &self,
        domain: Domain,
        device: &DeviceId,
        since: Instant,
    ) -> impl Iterator<Item = &EndDevice> {
        let states = self.organisations.get(&domain).and_then(|o| o.devices.get(device));
        let states = states.map_or(&[][..], Vec::as_slice);
        // The state that held at `since` is the last one that began before.
        let first = states.iter().rposition(|(at, _)| *at <= since).unwrap_or(0);
        states.iter().skip(first).filter_map(|(_, state)| state.as_ref())
    }
}
