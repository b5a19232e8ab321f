//! Nodes: who is a member, since when, and who no longer is.

use std::net::SocketAddr;

use peerage_wire::id::{Domain, NodeId, TokenId};
use peerage_wire::keys::DomainKeys;
use peerage_wire::record::{DomainKeyBody, NodeBody, Record, RevocationBody, RevocationKind, Roles, Table};
use peerage_wire::time::UnixTime;
use rusqlite::{OptionalExtension as _, Row, params};

use super::records::NewRecord;
use super::{Actor, LedgerError, Tx, count, millis, rng, time};

/// What a node is to its domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Membership {
    /// Waits for approval.
    Pending,
    /// Belongs to it, as long as its record has not expired.
    Member,
    /// Was revoked; its key never comes back.
    Revoked,
    /// Has left by itself and may join again.
    Left,
}

impl Membership {
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Pending => 0,
            Self::Member => 1,
            Self::Revoked => 2,
            Self::Left => 3,
        }
    }

    const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Pending,
            1 => Self::Member,
            3 => Self::Left,
            _ => Self::Revoked,
        }
    }
}

/// Why a node was revoked, as it stands in the record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Reason {
    #[default]
    Unspecified,
    KeyCompromise,
    Retired,
    Misbehaviour,
}

impl Reason {
    pub(crate) const fn number(self) -> u16 {
        match self {
            Self::Unspecified => 0,
            Self::KeyCompromise => 1,
            Self::Retired => 2,
            Self::Misbehaviour => 3,
        }
    }

    const fn from_number(number: u16) -> Self {
        match number {
            1 => Self::KeyCompromise,
            2 => Self::Retired,
            3 => Self::Misbehaviour,
            _ => Self::Unspecified,
        }
    }
}

/// A node as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeRow {
    pub(crate) id: NodeId,
    pub(crate) identity: [u8; 32],
    pub(crate) receiving: [u8; 32],
    pub(crate) name: String,
    pub(crate) roles: Roles,
    pub(crate) token: TokenId,
    pub(crate) membership: Membership,
    pub(crate) joined_at: UnixTime,
    /// When its newest Node record ends; `None` if it never had one.
    pub(crate) expires_at: Option<UnixTime>,
    pub(crate) seen_at: Option<UnixTime>,
    pub(crate) revoked_at: Option<UnixTime>,
    pub(crate) reason: Option<Reason>,
    /// Whether it is one of the operator's own, for looking at super-nodes.
    pub(crate) is_spy: bool,
}

impl NodeRow {
    /// Whether it is a member whose record has not expired.
    pub(crate) fn is_valid_at(&self, now: UnixTime) -> bool {
        self.membership == Membership::Member && self.expires_at.is_some_and(|end| now < end)
    }
}

/// Why something about a node cannot be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    /// The domain has none of this id or name.
    #[error("the domain has no node {0:?}; `peerage node list` shows them")]
    Unknown(String),
    /// The text fits more than one.
    #[error("{0:?} fits several nodes; give more of the id")]
    Ambiguous(String),
    /// The node does not wait for approval.
    #[error("the node does not wait for approval")]
    NotPending,
    /// No node that may be a super-node has this id or name.
    #[error("there is no super-node {0:?}; `peerage super list` shows them")]
    UnknownSuperNode(String),
    /// The super-node is not kept away.
    #[error("the super-node is not in quarantine")]
    NotQuarantined,
    /// The ledger failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl From<rusqlite::Error> for NodeError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Ledger(error.into())
    }
}

const SELECT: &str = "SELECT domain, hash, identity, receiving, name, roles, token, state, joined_at, expires_at, seen_at, revoked_at, reason,
    EXISTS (SELECT 1 FROM spy s WHERE s.domain = node.domain AND s.hash = node.hash) FROM node";

fn row(row: &Row<'_>) -> rusqlite::Result<NodeRow> {
    let at = |column| row.get::<_, Option<i64>>(column).map(|at| at.map(time));
    Ok(NodeRow {
        id: NodeId { domain: Domain(row.get(0)?), hash: row.get(1)? },
        identity: row.get(2)?,
        receiving: row.get(3)?,
        name: row.get(4)?,
        roles: Roles::from_bits(count(row.get(5)?)),
        token: TokenId(row.get(6)?),
        membership: Membership::from_number(row.get(7)?),
        joined_at: time(row.get(8)?),
        expires_at: at(9)?,
        seen_at: at(10)?,
        revoked_at: at(11)?,
        reason: row.get::<_, Option<u16>>(12)?.map(Reason::from_number),
        is_spy: row.get(13)?,
    })
}

impl Tx<'_> {
    /// Returns the nodes of a domain, former ones included, by name.
    pub(crate) fn nodes(&self, domain: Domain) -> Result<Vec<NodeRow>, LedgerError> {
        let mut select =
            self.sql.prepare_cached(&format!("{SELECT} WHERE domain = ?1 ORDER BY name, hash"))?;
        let rows = select.query_map([domain.0], row)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Returns one node.
    pub(super) fn node(&self, id: NodeId) -> Result<Option<NodeRow>, LedgerError> {
        let mut select = self.sql.prepare_cached(&format!("{SELECT} WHERE domain = ?1 AND hash = ?2"))?;
        Ok(select.query_row(params![id.domain.0, id.hash], row).optional()?)
    }

    /// Returns the node of a domain that a text names: an id, the beginning of one, or a name that only one has.
    pub(crate) fn find_node(&self, domain: Domain, text: &str) -> Result<NodeRow, NodeError> {
        let lower = text.to_ascii_lowercase();
        let fits = |node: &NodeRow| {
            node.name == text || (!lower.is_empty() && node.id.to_string().starts_with(&lower))
        };
        let mut fitting = self.nodes(domain)?.into_iter().filter(fits);
        let first = fitting.next().ok_or_else(|| NodeError::Unknown(text.to_owned()))?;
        if fitting.next().is_some() { Err(NodeError::Ambiguous(text.to_owned())) } else { Ok(first) }
    }

    /// Returns the valid members of a domain with their receiving keys.
    pub(super) fn members(&self, domain: Domain) -> Result<Vec<(NodeId, [u8; 32])>, LedgerError> {
        let mut select = self.sql.prepare_cached(
            "SELECT hash, receiving FROM node WHERE domain = ?1 AND state = 1 AND expires_at > ?2",
        )?;
        let rows = select.query_map(params![domain.0, millis(self.now)], |row| {
            Ok((NodeId { domain, hash: row.get(0)? }, row.get(1)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    pub(super) fn nodes_of_token(&self, token: TokenId) -> Result<Vec<NodeId>, LedgerError> {
        let mut select = self.sql.prepare_cached(
            "SELECT domain, hash FROM node WHERE token = ?1 AND state <> 2 ORDER BY domain, hash",
        )?;
        let rows = select
            .query_map([token.0], |row| Ok(NodeId { domain: Domain(row.get(0)?), hash: row.get(1)? }))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Whether a key was revoked, in whatever domain: a stolen computer is not welcome next door either.
    pub(super) fn is_key_revoked(&self, hash: &[u8; 32]) -> Result<bool, LedgerError> {
        let mut select =
            self.sql.prepare_cached("SELECT EXISTS (SELECT 1 FROM node WHERE hash = ?1 AND state = 2)")?;
        Ok(select.query_row([hash], |row| row.get(0))?)
    }

    /// Signs a member's Node record and seals the domain's keys to it.
    pub(super) fn admit_node(&mut self, node: &NodeRow) -> Result<(Record, Record), LedgerError> {
        let id = node.id;
        let body = NodeBody { identity: node.identity, receiving: node.receiving, roles: node.roles };
        let record = self.make(NewRecord::new(Table::Node, id.domain, id.record_key(), body.write()))?;
        let keys = self.domain_keys(id.domain)?;
        let domain_key = self.give_keys(&keys, id, &node.receiving)?;
        let mut update = self.sql.prepare_cached(
            "UPDATE node SET state = 1, receiving = ?3, name = ?4, expires_at = ?5 WHERE domain = ?1 AND hash = ?2",
        )?;
        let expires = millis(record.header().expires);
        update.execute(params![id.domain.0, id.hash, node.receiving, node.name, expires])?;
        Ok((record, domain_key))
    }

    /// Seals a domain's keys to a member.
    pub(super) fn give_keys(
        &mut self,
        keys: &DomainKeys,
        node: NodeId,
        receiving: &[u8; 32],
    ) -> Result<Record, LedgerError> {
        let body = DomainKeyBody::seal(keys, (&self.signer.network, node, receiving), &mut rng())?;
        self.make(NewRecord::new(Table::DomainKey, node.domain, node.record_key(), body.write()))
    }

    /// Lets a node in that waits for approval.
    pub(crate) fn approve(&mut self, domain: Domain, text: &str, actor: Actor) -> Result<NodeRow, NodeError> {
        let node = self.find_node(domain, text)?;
        if node.membership != Membership::Pending {
            return Err(NodeError::NotPending);
        }
        self.admit_node(&node)?;
        self.audit(actor, "node approve", &node.id.to_string())?;
        self.node(node.id)?.ok_or_else(|| NodeError::Unknown(text.to_owned()))
    }

    /// Revokes a node, closes the token that it used, and begins a new epoch without it.
    pub(crate) fn revoke_node(
        &mut self,
        domain: Domain,
        text: &str,
        reason: Reason,
        actor: Actor,
    ) -> Result<NodeRow, NodeError> {
        let node = self.find_node(domain, text)?;
        self.revoke_nodes(domain, &[node.id], reason, actor)?;
        self.node(node.id)?.ok_or_else(|| NodeError::Unknown(text.to_owned()))
    }

    /// Revokes nodes of one domain, with one new epoch for all (Rule 6.21).
    pub(super) fn revoke_nodes(
        &mut self,
        domain: Domain,
        nodes: &[NodeId],
        reason: Reason,
        actor: Actor,
    ) -> Result<(), LedgerError> {
        let mut knew_keys = false;
        for id in nodes {
            let Some(node) = self.node(*id)?.filter(|node| node.membership != Membership::Revoked) else {
                continue;
            };
            self.mark_revoked(&node, reason)?;
            self.close_token(node.token)?;
            self.bury(Table::DomainKey, domain, id.record_key())?;
            self.bury_super_node(*id)?;
            if let Some(end) = node.expires_at {
                knew_keys = true;
                // What has ended is gone everywhere, without anybody being told.
                if self.now < end {
                    self.publish_revocation(*id, end, reason)?;
                }
            }
            self.audit(actor, "node revoke", &id.to_string())?;
        }
        if knew_keys { self.reseal(domain) } else { Ok(()) }
    }

    fn mark_revoked(&mut self, node: &NodeRow, reason: Reason) -> Result<(), LedgerError> {
        let mut update = self.sql.prepare_cached(
            "UPDATE node SET state = 2, revoked_at = ?3, reason = ?4 WHERE domain = ?1 AND hash = ?2",
        )?;
        update.execute(params![node.id.domain.0, node.id.hash, millis(self.now), reason.number()])?;
        Ok(())
    }

    fn publish_revocation(&mut self, node: NodeId, end: UnixTime, reason: Reason) -> Result<(), LedgerError> {
        let body = RevocationBody { kind: RevocationKind::Node(node), at: self.now, reason: reason.number() };
        let new = NewRecord::new(Table::Revocation, node.domain, body.record_key(), body.write());
        self.make(NewRecord { expires: Some(end), ..new })?;
        Ok(())
    }

    /// Notes that a member leaves of its own will: its records end now. What it has read it keeps, until the next
    /// epoch begins.
    pub(crate) fn leave(&mut self, id: NodeId) -> Result<(), LedgerError> {
        let member = self.node(id)?.filter(|node| node.membership == Membership::Member);
        if member.is_none() {
            return Ok(());
        }
        let left = Membership::Left.number();
        self.sql.execute(
            "UPDATE node SET state = ?3 WHERE domain = ?1 AND hash = ?2",
            params![id.domain.0, id.hash, left],
        )?;
        self.bury(Table::Node, id.domain, id.record_key())?;
        self.bury(Table::DomainKey, id.domain, id.record_key())?;
        self.bury_super_node(id)?;
        self.audit(Actor::Node(id), "node leave", &id.to_string())
    }

    /// Notes when and from where nodes were last heard of.
    pub(crate) fn seen(&mut self, contacts: &[(NodeId, SocketAddr, UnixTime)]) -> Result<(), LedgerError> {
        let mut update = self
            .sql
            .prepare_cached("UPDATE node SET seen_at = ?3, seen_from = ?4 WHERE domain = ?1 AND hash = ?2")?;
        for (id, remote, at) in contacts {
            update.execute(params![id.domain.0, id.hash, millis(*at), remote.to_string()])?;
        }
        Ok(())
    }
}
