//! Who can be believed: the root, the operators it admits, the members they admit, and who was revoked.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use peerage_wire::crypto::Crypto;
use peerage_wire::id::{Domain, NetworkId, NodeId};
use peerage_wire::intro::Introduction;
use peerage_wire::record::{
    NodeBody, OperatorBody, OperatorState, Record, RecordError, RevocationBody, RevocationKind, Roles,
    SuperNodeBody, Table, UnverifiedRecord, subject,
};
use peerage_wire::time::UnixTime;

use crate::discard::Discard;

/// Most operators of one network.
pub const MAX_OPERATORS: usize = 64;

/// Somebody whose record was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: NodeId,
    /// Its identity key.
    pub identity: [u8; 32],
    /// What the operator permits; nothing for operators, who need no permission.
    pub roles: Roles,
    /// Whether it is an operator.
    pub is_operator: bool,
    /// When its record expires.
    pub expires: UnixTime,
}

#[derive(Clone, Debug)]
struct Operator {
    record: Record,
    body: OperatorBody,
}

/// The chain of trust of one network.
#[derive(Clone, Debug)]
pub struct Trust {
    network: NetworkId,
    root: [u8; 32],
    operators: BTreeMap<NodeId, Operator>,
    revoked_nodes: BTreeSet<NodeId>,
    revoked_domains: BTreeSet<Domain>,
}

impl Trust {
    /// Makes a chain that begins at a root key and knows no operator yet.
    pub const fn new(network: NetworkId, root: [u8; 32]) -> Self {
        Self {
            network,
            root,
            operators: BTreeMap::new(),
            revoked_nodes: BTreeSet::new(),
            revoked_domains: BTreeSet::new(),
        }
    }

    /// Returns the network.
    pub const fn network(&self) -> &NetworkId {
        &self.network
    }

    /// Takes a verified OperatorNode or Revocation record into account; others change nothing.
    pub fn learn(&mut self, record: &Record) {
        match record.header().table {
            Table::OperatorNode => self.learn_operator(record),
            Table::Revocation => self.learn_revocation(record),
            Table::Node
            | Table::NodeInfo
            | Table::SuperNode
            | Table::EndDevice
            | Table::DomainKey
            | Table::Head => {}
        }
    }

    fn learn_operator(&mut self, record: &Record) {
        let id = subject(record.header());
        let newer = self.operators.get(&id).is_none_or(|known| record.supersedes(&known.record));
        let room = self.operators.len() < MAX_OPERATORS || self.operators.contains_key(&id);
        if let Ok(body) = OperatorBody::read(record)
            && newer
            && room
        {
            self.operators.insert(id, Operator { record: record.clone(), body });
        }
    }

    fn learn_revocation(&mut self, record: &Record) {
        let domain = record.header().domain;
        match RevocationBody::read(record).map(|body| body.kind) {
            // An operator speaks for the domain that the record stands in, and only for that.
            Ok(RevocationKind::Node(node)) if node.domain == domain => {
                self.revoked_nodes.insert(node);
            }
            Ok(RevocationKind::Domain(revoked)) if revoked == domain => {
                self.revoked_domains.insert(revoked);
            }
            Ok(RevocationKind::Node(_) | RevocationKind::Domain(_)) | Err(_) => {}
        }
    }

    /// Returns whether a node, or its whole domain, was revoked.
    pub fn is_revoked(&self, node: &NodeId) -> bool {
        self.revoked_nodes.contains(node) || self.revoked_domains.contains(&node.domain)
    }

    /// Returns whether a whole domain was revoked.
    pub fn is_domain_revoked(&self, domain: Domain) -> bool {
        self.revoked_domains.contains(&domain)
    }

    /// Returns whether a node was revoked by itself, or with its domain by somebody who does not tell it why: nobody hears it then.
    /// Those of a revoked domain may still learn that from super-nodes and operators (Rule 6.60).
    pub fn is_unheard(&self, node: &NodeId, tells: bool) -> bool {
        self.is_revoked(node) && (!tells || self.revoked_nodes.contains(node))
    }

    /// Returns whether a node is an operator that still signs.
    pub fn is_operator(&self, node: &NodeId) -> bool {
        self.operators.get(node).is_some_and(|operator| operator.body.state == OperatorState::Active)
    }

    /// Returns the operators that still sign, with what their records say.
    pub fn operators(&self) -> impl Iterator<Item = (NodeId, &OperatorBody)> {
        let active = self.operators.iter().filter(|(_, o)| o.body.state == OperatorState::Active);
        active.map(|(id, operator)| (*id, &operator.body))
    }

    /// Returns an operator that still signs, as a member.
    pub fn operator(&self, node: &NodeId) -> Option<Member> {
        self.operators.get(node).and_then(|operator| Self::member(&operator.record))
    }

    /// Returns all OperatorNode records.
    pub fn operator_records(&self) -> impl Iterator<Item = &Record> {
        self.operators.values().map(|operator| &operator.record)
    }

    /// Returns the key that may have signed a record of this header, if its signer may sign that table
    /// (Rule 2.9): the root for operators, an operator whose own record is valid for everything but NodeInfo.
    fn signer_key(&self, record: &UnverifiedRecord, time: Option<UnixTime>) -> Option<[u8; 32]> {
        let header = record.header();
        if header.table == Table::OperatorNode {
            let root = NodeId::new(Domain::OPERATORS, &self.root);
            return (header.signer == root).then_some(self.root);
        }
        if !header.table.is_operator_signed() {
            return None;
        }
        let operator = self.operators.get(&header.signer)?;
        let signs = match operator.body.state {
            OperatorState::Active => true,
            // What it signs after its retirement is not the network's any more (Rule 2.15).
            OperatorState::Retired => header.version <= operator.record.header().version,
            OperatorState::Compromised => false,
        };
        let valid = time.is_none_or(|time| operator.record.is_valid_at(time));
        (signs && valid).then_some(operator.body.identity)
    }

    /// Verifies a record that the root or an operator signed. Without a `time` neither version nor expiry is judged.
    ///
    /// # Errors
    /// If it is malformed, outside its time, or not signed by somebody who may.
    pub fn verify(
        &self,
        bytes: &Bytes,
        time: Option<UnixTime>,
        crypto: &dyn Crypto,
    ) -> Result<Record, RecordError> {
        let record = UnverifiedRecord::parse(bytes)?;
        if let Some(time) = time {
            record.check_time(time)?;
        }
        let key = self.signer_key(&record, time).ok_or(RecordError::Signature)?;
        record.verify(&self.network, &key, crypto)
    }

    /// Verifies a NodeInfo record, which its node signs itself.
    ///
    /// # Errors
    /// If it is malformed, outside its time, about somebody else, or not signed by `member`.
    pub fn verify_node_info(
        &self,
        bytes: &Bytes,
        member: &Member,
        time: Option<UnixTime>,
        crypto: &dyn Crypto,
    ) -> Result<Record, RecordError> {
        let record = UnverifiedRecord::parse(bytes)?;
        if let Some(time) = time {
            record.check_time(time)?;
        }
        let header = record.header();
        let own =
            header.table == Table::NodeInfo && header.signer == member.id && subject(header) == member.id;
        if !own {
            return Err(RecordError::Signature);
        }
        record.verify(&self.network, &member.identity, crypto)
    }

    /// Reads a verified Node or OperatorNode record as a member.
    pub fn member(record: &Record) -> Option<Member> {
        let header = record.header();
        let (id, expires) = (subject(header), header.expires);
        match header.table {
            Table::Node if !header.removed => {
                let body = NodeBody::read(record).ok()?;
                Some(Member { id, identity: body.identity, roles: body.roles, is_operator: false, expires })
            }
            Table::OperatorNode => {
                let body = OperatorBody::read(record).ok()?;
                let active = body.state == OperatorState::Active;
                active.then_some(Member {
                    id,
                    identity: body.identity,
                    roles: Roles::default(),
                    is_operator: true,
                    expires,
                })
            }
            Table::Node
            | Table::NodeInfo
            | Table::SuperNode
            | Table::EndDevice
            | Table::DomainKey
            | Table::Revocation
            | Table::Head => None,
        }
    }

    /// Reads a verified SuperNode record: who it is, and what it holds. It says where a super-node is and by which key it is
    /// known; it is no membership, and nobody introduces himself with it.
    pub fn super_node(record: &Record) -> Option<(Member, SuperNodeBody)> {
        let header = record.header();
        let body = SuperNodeBody::read(record).ok().filter(|_| !header.removed)?;
        let (id, roles) = (subject(header), Roles { super_node: true, ..Roles::default() });
        let member =
            Member { id, identity: body.identity, roles, is_operator: false, expires: header.expires };
        Some((member, body))
    }

    /// Verifies an introduction: the record, then the statement by the key in it (Rule 3.7). Whether the statement is
    /// valid at this time is for the caller, who may have to correct the sender's clock first.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn verify_introduction(
        &self,
        introduction: &Introduction,
        time: Option<UnixTime>,
        crypto: &dyn Crypto,
    ) -> Result<Member, Discard> {
        let bytes = Bytes::copy_from_slice(&introduction.record);
        let record = self.verify(&bytes, time, crypto).map_err(|error| match error {
            RecordError::Expired => Discard::Expired,
            RecordError::TooLong
            | RecordError::Malformed(_)
            | RecordError::Signature
            | RecordError::Future
            | RecordError::Lifetime => Discard::BadMembership,
        })?;
        let member = Self::member(&record).ok_or(Discard::BadMembership)?;
        let statement = &introduction.statement;
        if statement.node != member.id || !statement.verify(&member.identity, &self.network, crypto) {
            return Err(Discard::BadStatement);
        }
        Ok(member)
    }
}
