//! What the records of each table say (Rule 2.12 and following).

use std::net::SocketAddr;

use super::{Header, Record, Table};
use crate::cbor::{Element, Malformed, Map, MapWriter};
use crate::codec::{
    Candidate, Service, read_addresses, read_candidates, read_segment, write_addresses, write_segment,
};
use crate::crypto::{CryptoError, open_sealed, seal_to};
use crate::id::{
    DeviceId, Domain, LocationId, LookupTag, Mac, NetworkId, NodeId, PlacementKey, RecordKey, Segment, sha256,
};
use crate::intro::KeyStatement;
use crate::keys::{AgreementKey, DomainKeys, LABEL_DOMAIN_KEY, SecretKey};
use crate::limits::{
    MAX_ADDRESSES, MAX_LIST, MAX_NAME, MAX_PINS, MAX_SERVICES, MAX_SITE_LOCATIONS, MAX_TAGS,
};
use crate::time::UnixTime;

/// The field of a record that holds its public body.
pub(super) const PUBLIC: u64 = 8;

impl Record {
    /// Hands the public body to `read`, having checked that no part of the record is of a newer version (Rule 2.3)
    /// and that it is no tombstone, whose body means nothing (Rule 2.20).
    pub(super) fn read_public<T>(
        &self,
        table: Table,
        read: impl FnOnce(&mut Map<'_>) -> Result<T, Malformed>,
    ) -> Result<T, Malformed> {
        if self.header().table != table {
            return Err(Malformed::Type(1));
        }
        if self.header().removed {
            return Err(Malformed::Type(7));
        }
        let mut fields = self.fields()?;
        let mut public = fields.map(PUBLIC)?;
        for key in PUBLIC + 1..=PUBLIC + 3 {
            fields.raw(key)?;
        }
        fields.finish()?;
        let body = read(&mut public)?;
        public.finish()?;
        Ok(body)
    }
}

/// What a node may do besides using devices; the operator permits, the node chooses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    /// May serve as tunnel-node.
    pub tunnel: bool,
    /// May become a super-node.
    pub super_node: bool,
}

impl Roles {
    /// Returns the roles as a set of bits: 1 tunnel, 2 super-node.
    pub fn bits(self) -> u64 {
        u64::from(self.tunnel) | (u64::from(self.super_node) << 1)
    }

    /// Reads a set of bits; unknown bits are roles that this version does not have.
    pub const fn from_bits(bits: u64) -> Self {
        Self { tunnel: bits & 1 != 0, super_node: bits & 2 != 0 }
    }
}

/// Table Node: who is a member (Rule 2.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeBody {
    /// The Ed25519 identity key.
    pub identity: [u8; 32],
    /// The long-lived X25519 key to which domain keys are sealed, and nothing else.
    pub receiving: [u8; 32],
    /// What the operator permits.
    pub roles: Roles,
}

impl NodeBody {
    /// Writes the public body.
    pub fn write(&self) -> MapWriter {
        let mut map = MapWriter::new();
        map.bytes(1, &self.identity).bytes(2, &self.receiving).uint(3, self.roles.bits());
        map
    }

    /// Reads the public body and checks that the record is about the node whose key it holds.
    ///
    /// # Errors
    /// If the record is of another table, malformed, or about another node.
    pub fn read(record: &Record) -> Result<Self, Malformed> {
        let body = record.read_public(Table::Node, |map| {
            let (identity, receiving) = (map.id(1)?, map.id(2)?);
            Ok(Self { identity, receiving, roles: Roles::from_bits(map.uint(3)?) })
        })?;
        let genuine = RecordKey(sha256(&[&body.identity])) == record.header().key;
        if genuine { Ok(body) } else { Err(Malformed::Type(3)) }
    }
}

/// Returns the id of the node that a Node, NodeInfo, SuperNode, OperatorNode or DomainKey record is about.
pub const fn subject(header: &Header) -> NodeId {
    NodeId { domain: header.domain, hash: header.key.0 }
}

/// Table NodeInfo, public part: how to seal to a node and, for super-nodes and operators, where it is (Rule 2.13).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfoPublic {
    /// The sealing key of the day.
    pub statement: KeyStatement,
    /// The look-up tags under which it wants to be found.
    pub tags: Vec<LookupTag>,
    /// Where a super-node or operator can be reached by anybody.
    pub addresses: Vec<SocketAddr>,
}

impl NodeInfoPublic {
    /// Writes the public body.
    pub fn write(&self) -> MapWriter {
        let mut map = MapWriter::new();
        map.bytes(1, &self.statement.to_bytes());
        let tags: Vec<_> = self.tags.iter().map(|tag| tag.0).collect();
        map.list_of_bytes(2, &tags);
        write_addresses(&mut map, 3, &self.addresses);
        map
    }

    /// Reads the public body. The statement's signature is not checked here.
    ///
    /// # Errors
    /// If the record is of another table or malformed, or the statement is about another node.
    pub fn read(record: &Record) -> Result<Self, Malformed> {
        let body = record.read_public(Table::NodeInfo, |map| {
            let statement = KeyStatement::from_bytes(map.bytes(1)?).ok_or(Malformed::Type(1))?;
            let tags = map.list(2, MAX_TAGS, Element::id)?;
            Ok(Self { statement, tags, addresses: read_addresses(map, 3, MAX_ADDRESSES)? })
        })?;
        if body.statement.node == subject(record.header()) { Ok(body) } else { Err(Malformed::Type(1)) }
    }

    /// Returns every place at which the record is kept: its node's, and one for each tag (Rule 1.8).
    pub fn placements(&self, domain: Domain) -> Vec<PlacementKey> {
        let own = PlacementKey::new(domain, &self.statement.node.hash);
        std::iter::once(own).chain(self.tags.iter().map(|tag| PlacementKey::new(domain, &tag.0))).collect()
    }
}

/// Table NodeInfo, private part: where a tunnel-node is, for members only (Rule 2.13).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeInfoPrivate {
    /// Where it may be reached, best first.
    pub candidates: Vec<Candidate>,
    /// The locations of its interfaces.
    pub locations: Vec<LocationId>,
    /// The super-nodes and operators that can reach it.
    pub attachments: Vec<NodeId>,
}

impl NodeInfoPrivate {
    /// Writes the private body.
    pub fn write(&self) -> MapWriter {
        let mut map = MapWriter::new();
        map.list_of_maps(1, &self.candidates, Candidate::write);
        let locations: Vec<_> = self.locations.iter().map(|location| location.0).collect();
        map.list_of_bytes(2, &locations);
        let attachments: Vec<_> = self.attachments.iter().map(|node| node.to_bytes()).collect();
        map.list_of_bytes(3, &attachments);
        map
    }

    /// Reads the private body.
    ///
    /// # Errors
    /// If it is malformed.
    pub fn read(mut map: Map<'_>) -> Result<Self, Malformed> {
        let candidates = read_candidates(&mut map, 1)?;
        let locations = map.list(2, MAX_SITE_LOCATIONS, Element::id)?;
        let attachments = map.list(3, MAX_LIST, Element::id)?;
        map.finish()?;
        Ok(Self { candidates, locations, attachments })
    }
}

/// Table SuperNode: the part of the table that a super-node holds, and how it is reached (Rule 2.14).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuperNodeBody {
    /// The places that it serves.
    pub segment: Segment,
    /// The version of the segment map that assigned it.
    pub map_version: u64,
    /// The Ed25519 identity key, by which whoever knows this record alone can verify its key statement.
    pub identity: [u8; 32],
    /// Where anybody reaches it: messages over UDP, links and relays over TCP on the same port.
    pub addresses: Vec<SocketAddr>,
}

impl SuperNodeBody {
    /// Writes the public body.
    pub fn write(&self) -> MapWriter {
        let mut map = MapWriter::new();
        write_segment(&mut map, 1, &self.segment);
        map.uint(3, self.map_version).bytes(4, &self.identity);
        write_addresses(&mut map, 5, &self.addresses);
        map
    }

    /// Reads the public body and checks that the record is about the node whose key it holds.
    ///
    /// # Errors
    /// If the record is of another table, malformed, or about another node.
    pub fn read(record: &Record) -> Result<Self, Malformed> {
        let body = record.read_public(Table::SuperNode, |map| {
            Ok(Self {
                segment: read_segment(map, 1)?,
                map_version: map.uint(3)?,
                identity: map.id(4)?,
                addresses: read_addresses(map, 5, MAX_ADDRESSES)?,
            })
        })?;
        if subject(record.header()).is_of(&body.identity) { Ok(body) } else { Err(Malformed::Type(3)) }
    }
}

/// What has become of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperatorState {
    /// Signs records.
    Active,
    /// Signs no more; what it signed stays valid.
    Retired,
    /// Its key is in other hands: what it signed is void.
    Compromised,
}

/// Table OperatorNode: who is an operator (Rule 2.15).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorBody {
    /// The Ed25519 identity key.
    pub identity: [u8; 32],
    /// The X25519 key to which enrolments are sealed.
    pub enrolment: [u8; 32],
    /// Where it is reached: messages over UDP and enrolment over HTTPS, on the same port.
    pub addresses: Vec<SocketAddr>,
    /// What has become of it.
    pub state: OperatorState,
}

impl OperatorBody {
    /// Writes the public body.
    pub fn write(&self) -> MapWriter {
        let state = match self.state {
            OperatorState::Active => 0_u64,
            OperatorState::Retired => 1,
            OperatorState::Compromised => 2,
        };
        let mut map = MapWriter::new();
        map.bytes(1, &self.identity).bytes(2, &self.enrolment);
        write_addresses(&mut map, 3, &self.addresses);
        map.uint(4, state);
        map
    }

    /// Reads the public body and checks that the record is about the operator whose key it holds.
    ///
    /// # Errors
    /// If the record is of another table, malformed, or about another operator.
    pub fn read(record: &Record) -> Result<Self, Malformed> {
        let body = record.read_public(Table::OperatorNode, |map| {
            let (identity, enrolment) = (map.id(1)?, map.id(2)?);
            let addresses = read_addresses(map, 3, MAX_ADDRESSES)?;
            let state = match map.uint::<u64>(4)? {
                0 => OperatorState::Active,
                1 => OperatorState::Retired,
                2 => OperatorState::Compromised,
                _ => return Err(Malformed::Type(4)),
            };
            Ok(Self { identity, enrolment, addresses, state })
        })?;
        let header = record.header();
        let genuine = header.domain == Domain::OPERATORS && subject(header).is_of(&body.identity);
        if genuine { Ok(body) } else { Err(Malformed::Type(3)) }
    }
}

/// When a node on the device's own LAN may use it without a tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LocalPolicy {
    /// Only if the device's registered certificate proves that it is the one or, where it has none, a tunnel-node of its site is on the
    /// same LAN.
    #[default]
    WithProof,
    /// Also without proof.
    Always,
    /// Never: always through a tunnel-node.
    Never,
}

/// Table EndDevice: a device that tunnels may lead to; all of it private (Rule 2.16).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndDevice {
    /// Its id, fixed at registration.
    pub device: DeviceId,
    /// How users name it; unique in its domain.
    pub name: String,
    /// What it is, as `printer`; for people only.
    pub kind: String,
    /// Its hardware address, by which tunnel-nodes find it.
    pub mac: Mac,
    /// SHA-256 of the certificates that it may show; empty if it has no TLS.
    pub pins: Vec<[u8; 32]>,
    /// The ports that may be reached.
    pub services: Vec<Service>,
    /// The locations at which it may be reached; empty until a node has seen it.
    pub site: Vec<LocationId>,
    /// The node that is asked to look for it at its own locations.
    pub via: Option<NodeId>,
    /// Who may use it; empty for every member of the domain.
    pub users: Vec<NodeId>,
    /// Who may serve it; empty for every node at the site that is permitted to.
    pub servers: Vec<NodeId>,
    /// Whether it may be used without a tunnel on its own LAN.
    pub local: LocalPolicy,
}

impl EndDevice {
    /// Writes the private body.
    pub fn write(&self) -> MapWriter {
        let local = match self.local {
            LocalPolicy::WithProof => None,
            LocalPolicy::Always => Some(1_u64),
            LocalPolicy::Never => Some(2),
        };
        let nodes = |nodes: &[NodeId]| nodes.iter().map(|node| node.to_bytes()).collect::<Vec<_>>();
        let site: Vec<_> = self.site.iter().map(|location| location.0).collect();
        let mut map = MapWriter::new();
        map.bytes(1, &self.device.0)
            .text(2, &self.name)
            .text(3, &self.kind)
            .bytes(4, &self.mac.0)
            .list_of_bytes(5, &self.pins)
            .list_of_maps(6, &self.services, Service::write)
            .list_of_bytes(7, &site)
            .optional_bytes(8, self.via.map(NodeId::to_bytes).as_ref().map(<[u8; 36]>::as_slice))
            .list_of_bytes(9, &nodes(&self.users))
            .list_of_bytes(10, &nodes(&self.servers))
            .optional_uint(11, local);
        map
    }

    /// Reads the private body. A restriction that this version does not know makes the device unusable.
    ///
    /// # Errors
    /// If it is malformed or newer than this version.
    pub fn read(mut map: Map<'_>) -> Result<Self, Malformed> {
        let device = Self {
            device: map.id(1)?,
            name: map.text(2, MAX_NAME)?,
            kind: map.text(3, MAX_NAME)?,
            mac: Mac(map.id(4)?),
            pins: map.list(5, MAX_PINS, Element::id)?,
            services: map.list(6, MAX_SERVICES, Service::read)?,
            site: map.list(7, MAX_SITE_LOCATIONS, Element::id)?,
            via: map.optional_id(8)?,
            users: map.list(9, MAX_LIST, Element::id)?,
            servers: map.list(10, MAX_LIST, Element::id)?,
            local: match map.optional_uint::<u64>(11)? {
                None => LocalPolicy::WithProof,
                Some(1) => LocalPolicy::Always,
                Some(2) => LocalPolicy::Never,
                Some(_) => return Err(Malformed::Type(11)),
            },
        };
        map.finish()?;
        Ok(device)
    }

    /// Returns the public body, which is empty.
    pub fn public() -> MapWriter {
        MapWriter::new()
    }

    /// Checks the public body.
    ///
    /// # Errors
    /// If the record is of another table or newer than this version.
    pub fn check_public(record: &Record) -> Result<(), Malformed> {
        record.read_public(Table::EndDevice, |_| Ok(()))
    }

    /// Returns a service by its name, or by its port written in digits.
    pub fn service(&self, name: &str) -> Option<&Service> {
        let named = self.services.iter().find(|service| service.name == name);
        named.or_else(|| self.services.iter().find(|service| service.port.to_string() == name))
    }
}

/// Table DomainKey: a domain's keys, sealed to one member's receiving key (Rule 2.10).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainKeyBody {
    /// Encapsulated key, ciphertext, tag.
    pub sealed: Vec<u8>,
}

impl DomainKeyBody {
    /// Seals a domain's keys to a member.
    ///
    /// # Errors
    /// If the receiving key is not a usable X25519 key.
    pub fn seal(
        keys: &DomainKeys,
        (network, node, receiving): (&NetworkId, NodeId, &[u8; 32]),
        rng: &mut dyn rand_core::CryptoRng,
    ) -> Result<Self, CryptoError> {
        let mut map = MapWriter::new();
        map.uint(1, keys.epoch)
            .bytes(2, &keys.epoch_key.0)
            .optional_bytes(3, keys.previous.as_ref().map(|key| &key.0[..]))
            .bytes(4, &keys.location_key.0);
        let aad = [&network.0[..], &node.to_bytes()].concat();
        seal_to(receiving, LABEL_DOMAIN_KEY, &aad, |_| map.finish(), rng).map(|sealed| Self { sealed })
    }

    /// Opens the keys with the member's receiving key.
    ///
    /// # Errors
    /// If they are sealed to somebody else, altered, or malformed.
    pub fn open(
        &self,
        network: &NetworkId,
        node: NodeId,
        receiving: &AgreementKey,
    ) -> Result<DomainKeys, super::PrivateError> {
        let aad = [&network.0[..], &node.to_bytes()].concat();
        let bytes = open_sealed(receiving, LABEL_DOMAIN_KEY, &aad, &self.sealed)?;
        let mut map = Map::parse(&bytes)?;
        let keys = DomainKeys {
            epoch: map.uint(1)?,
            epoch_key: SecretKey(map.id(2)?),
            previous: map.optional_id(3)?.map(SecretKey),
            location_key: SecretKey(map.id(4)?),
        };
        map.finish()?;
        Ok(keys)
    }

    /// Writes the public body.
    pub fn write(&self) -> MapWriter {
        let mut map = MapWriter::new();
        map.bytes(1, &self.sealed);
        map
    }

    /// Reads the public body.
    ///
    /// # Errors
    /// If the record is of another table or malformed.
    pub fn read(record: &Record) -> Result<Self, Malformed> {
        record.read_public(Table::DomainKey, |map| Ok(Self { sealed: map.bytes(1)?.to_vec() }))
    }
}

/// What a revocation is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevocationKind {
    /// One node.
    Node(NodeId),
    /// A whole domain.
    Domain(Domain),
}

/// Table Revocation: what is no longer valid before its time (Rule 2.17).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RevocationBody {
    /// What is revoked.
    pub kind: RevocationKind,
    /// When it was.
    pub at: UnixTime,
    /// Why, as a number that only the operator's own software gives a meaning to.
    pub reason: u16,
}

impl RevocationBody {
    fn subject(&self) -> (u64, Vec<u8>) {
        match self.kind {
            RevocationKind::Node(node) => (1, node.to_bytes().to_vec()),
            RevocationKind::Domain(domain) => (2, domain.to_bytes().to_vec()),
        }
    }

    /// Returns the record key: the hash of kind and subject.
    pub fn record_key(&self) -> RecordKey {
        let (kind, subject) = self.subject();
        RecordKey(sha256(&[&kind.to_be_bytes(), &subject]))
    }

    /// Writes the public body.
    pub fn write(&self) -> MapWriter {
        let (kind, subject) = self.subject();
        let mut map = MapWriter::new();
        map.uint(1, kind).bytes(2, &subject).uint(3, self.at.as_millis()).uint(4, self.reason);
        map
    }

    /// Returns the domain that its record belongs to: that of what is revoked.
    pub const fn domain(&self) -> Domain {
        match self.kind {
            RevocationKind::Node(node) => node.domain,
            RevocationKind::Domain(domain) => domain,
        }
    }

    /// Reads the public body and checks that key and domain of the record are those of what it revokes.
    ///
    /// # Errors
    /// If the record is of another table, malformed, or of a kind that this version does not know.
    pub fn read(record: &Record) -> Result<Self, Malformed> {
        let body = record.read_public(Table::Revocation, |map| {
            let kind = match map.uint::<u64>(1)? {
                1 => RevocationKind::Node(map.id(2)?),
                2 => RevocationKind::Domain(Domain(u32::from_be_bytes(map.id(2)?))),
                _ => return Err(Malformed::Type(1)),
            };
            Ok(Self { kind, at: UnixTime::from_millis(map.uint(3)?), reason: map.uint(4)? })
        })?;
        let header = record.header();
        let genuine = body.record_key() == header.key && body.domain() == header.domain;
        if genuine { Ok(body) } else { Err(Malformed::Type(3)) }
    }
}
