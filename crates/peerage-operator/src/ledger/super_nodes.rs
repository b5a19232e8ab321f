//! Super-nodes: who holds which part of the table, and who is kept away from everybody.

use peerage_proto::operator::Assignment;
use peerage_wire::id::{Domain, NodeId};
use peerage_wire::limits::MAX_ADDRESSES;
use peerage_wire::record::{Roles, SuperNodeBody, Table};
use peerage_wire::time::UnixTime;
use rusqlite::{OptionalExtension as _, params};

use super::records::NewRecord;
use super::upkeep::{MAX_BATCH, half_life};
use super::{Actor, LedgerError, NodeError, NodeRow, Tx, millis, time, unsigned};

/// The counter of segment maps, in the table of settings.
const MAP_VERSION: &str = "segment_map";

/// Longest evidence that is kept about one super-node. More would tell an administrator no more, and a super-node that
/// is caught again and again must not fill the ledger.
const MAX_EVIDENCE_BYTES: usize = 4_096;

/// A super-node as the ledger knows it: what it is assigned, and whether it is kept away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SuperNodeRow {
    pub(crate) node: NodeRow,
    pub(crate) domain_name: String,
    /// What its SuperNode record says, if it has one.
    pub(crate) assigned: Option<SuperNodeBody>,
    pub(crate) quarantine: Option<Quarantine>,
}

/// Since when a super-node is kept away, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Quarantine {
    pub(crate) began_at: UnixTime,
    /// What was seen, one line each.
    pub(crate) evidence: String,
}

impl Tx<'_> {
    /// Signs what changes in the segment map. Who may not hold anything gets a tombstone instead, whatever was planned:
    /// membership is known best here.
    pub(crate) fn assign_segments(
        &mut self,
        map_version: u64,
        changes: &[Assignment],
    ) -> Result<(), LedgerError> {
        // A machine that has just started may count from a map that has ended.
        let version = map_version.max(self.map_version()?.saturating_add(1));
        let before = self.change.records.len();
        for change in changes {
            let row = self
                .node(change.node)?
                .map_or(Ok(None), |row| self.may_hold(&row).map(|ok| ok.then_some(row)))?;
            match (change.range, row) {
                (Some(segment), Some(row)) => {
                    let addresses = change.addresses.iter().take(MAX_ADDRESSES).copied().collect();
                    let body =
                        SuperNodeBody { segment, map_version: version, identity: row.identity, addresses };
                    self.make_super_node(change.node, &body)?;
                }
                (None, _) | (_, None) => self.bury_super_node(change.node)?,
            }
        }
        let signed = self.change.records.len().saturating_sub(before);
        if signed == 0 {
            // A plan that fits nobody may come again and again.
            return Ok(());
        }
        self.set_map_version(version)?;
        self.audit(Actor::Operator, "segment assign", &format!("map {version}: {signed} records"))
    }

    fn make_super_node(&mut self, node: NodeId, body: &SuperNodeBody) -> Result<(), LedgerError> {
        self.make(NewRecord::new(Table::SuperNode, node.domain, node.record_key(), body.write()))?;
        Ok(())
    }

    /// Takes a super-node out of the segment map.
    pub(super) fn bury_super_node(&mut self, node: NodeId) -> Result<(), LedgerError> {
        self.bury(Table::SuperNode, node.domain, node.record_key())
    }

    /// Returns the version of the newest segment map, 0 before the first.
    pub(crate) fn map_version(&self) -> Result<u64, LedgerError> {
        let mut select = self.sql.prepare_cached("SELECT value FROM meta WHERE name = ?1")?;
        select.query_row([MAP_VERSION], |row| row.get(0)).optional()?.map_or(Ok(0), unsigned)
    }

    fn set_map_version(&mut self, version: u64) -> Result<(), LedgerError> {
        let mut update = self.sql.prepare_cached("INSERT OR REPLACE INTO meta VALUES (?1, ?2)")?;
        update.execute(params![MAP_VERSION, super::signed(version)])?;
        Ok(())
    }

    /// Whether a node may hold a part of the table.
    fn may_hold(&self, row: &NodeRow) -> Result<bool, LedgerError> {
        Ok(row.roles.super_node
            && row.is_valid_at(self.now)
            && !self.is_domain_revoked(row.id.domain)?
            && self.quarantine_of(row.id)?.is_none())
    }

    /// Does one batch of what is due: signs records at half of their life anew, and takes those out whose node may
    /// hold nothing any more. Returns how many there were.
    pub(super) fn renew_super_nodes(&mut self) -> Result<usize, LedgerError> {
        let ended = self.super_nodes_that_ended()?;
        for node in &ended {
            self.bury_super_node(*node)?;
        }
        let due = self.aged(Table::SuperNode, half_life(Table::SuperNode), MAX_BATCH)?;
        for (domain, key) in &due {
            let node = NodeId { domain: *domain, hash: key.0 };
            let permitted = match self.node(node)? {
                Some(row) => self.may_hold(&row)?,
                None => false,
            };
            match self.record(Table::SuperNode, *domain, *key)? {
                Some(record) if permitted => self.make_super_node(node, &SuperNodeBody::read(&record)?)?,
                Some(_) | None => self.bury_super_node(node)?,
            }
        }
        Ok(ended.len().max(due.len()))
    }

    /// Returns those in the segment map whose membership has ended.
    fn super_nodes_that_ended(&self) -> Result<Vec<NodeId>, LedgerError> {
        let mut select = self.sql.prepare_cached(
            "SELECT r.domain, r.key FROM record r LEFT JOIN node n ON n.domain = r.domain AND n.hash = r.key
             WHERE r.kind = ?1 AND r.removed = 0 AND r.expires_at > ?2
               AND (n.hash IS NULL OR n.state <> 1 OR n.expires_at <= ?2) LIMIT ?3",
        )?;
        let bounds = params![Table::SuperNode.number(), millis(self.now), MAX_BATCH];
        let rows = select.query_map(bounds, node_id)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Takes all super-nodes of a domain out of the segment map.
    pub(super) fn bury_super_nodes_of(&mut self, domain: Domain) -> Result<(), LedgerError> {
        let mut select = self.sql.prepare_cached(
            "SELECT domain, key FROM record WHERE kind = ?1 AND domain = ?2 AND removed = 0",
        )?;
        let nodes: Vec<NodeId> = select
            .query_map(params![Table::SuperNode.number(), domain.0], node_id)?
            .collect::<Result<_, _>>()?;
        drop(select);
        nodes.into_iter().try_for_each(|node| self.bury_super_node(node))
    }

    /// Returns all that is known about the super-nodes: those in the segment map, those that ask to be, and those that
    /// are kept away, by domain and id.
    pub(crate) fn super_nodes(&self, asking: &[NodeId]) -> Result<Vec<SuperNodeRow>, LedgerError> {
        let mut ids: std::collections::BTreeSet<NodeId> = asking.iter().copied().collect();
        let mut select = self.sql.prepare_cached(
            "SELECT domain, key FROM record WHERE kind = ?1 AND removed = 0 AND expires_at > ?2",
        )?;
        let rows = select.query_map(params![Table::SuperNode.number(), millis(self.now)], node_id)?;
        for id in rows {
            ids.insert(id?);
        }
        ids.extend(self.quarantined()?);
        let mut all = Vec::with_capacity(ids.len());
        for id in ids {
            if let Some(node) = self.node(id)? {
                all.push(self.super_node_row(node)?);
            }
        }
        Ok(all)
    }

    fn super_node_row(&self, node: NodeRow) -> Result<SuperNodeRow, LedgerError> {
        let id = node.id;
        let mut select = self.sql.prepare_cached("SELECT name FROM domain WHERE id = ?1")?;
        let domain_name = select.query_row([id.domain.0], |row| row.get(0))?;
        let record = self.record(Table::SuperNode, id.domain, id.record_key())?;
        let valid = record.filter(|record| !record.header().removed && record.is_valid_at(self.now));
        let assigned = valid.as_ref().map(SuperNodeBody::read).transpose()?;
        Ok(SuperNodeRow { node, domain_name, assigned, quarantine: self.quarantine_of(id)? })
    }

    /// Returns the node, of whatever domain, that a text names: the id of a node that may be a super-node or is kept
    /// away, the beginning of one, or a name that only one has.
    fn find_super_node(&self, text: &str) -> Result<NodeId, NodeError> {
        let lower = text.to_ascii_lowercase();
        let role = super::signed(Roles { super_node: true, ..Roles::default() }.bits());
        let mut select = self.sql.prepare_cached(
            "SELECT n.domain, n.hash, n.name FROM node n
             LEFT JOIN quarantine q ON q.domain = n.domain AND q.node = n.hash
             WHERE (n.state = 1 AND n.roles & ?1 <> 0) OR (q.node IS NOT NULL AND q.ended_at IS NULL)",
        )?;
        let mut rows = select.query([role])?;
        let mut found = None;
        while let Some(row) = rows.next()? {
            let (id, name) = (node_id(row)?, row.get::<_, String>(2)?);
            let fits = name == text || (!lower.is_empty() && id.to_string().starts_with(&lower));
            if fits && found.replace(id).is_some() {
                return Err(NodeError::Ambiguous(text.to_owned()));
            }
        }
        found.ok_or_else(|| NodeError::UnknownSuperNode(text.to_owned()))
    }

    /// Keeps a super-node away from everybody, as an administrator has decided.
    pub(crate) fn quarantine(
        &mut self,
        text: &str,
        why: &str,
        actor: Actor,
    ) -> Result<SuperNodeRow, NodeError> {
        let id = self.find_super_node(text)?;
        self.begin_quarantine(id, why, actor)?;
        self.named_super_node(id, text)
    }

    /// Lets a super-node serve again that was kept away.
    pub(crate) fn release(&mut self, text: &str, actor: Actor) -> Result<SuperNodeRow, NodeError> {
        let id = self.find_super_node(text)?;
        let mut update = self.sql.prepare_cached(
            "UPDATE quarantine SET ended_at = ?3 WHERE domain = ?1 AND node = ?2 AND ended_at IS NULL",
        )?;
        if update.execute(params![id.domain.0, id.hash, millis(self.now)])? == 0 {
            return Err(NodeError::NotQuarantined);
        }
        drop(update);
        self.change.quarantine.push((id, false));
        self.audit(actor, "super release", &id.to_string())?;
        self.named_super_node(id, text)
    }

    fn named_super_node(&self, id: NodeId, text: &str) -> Result<SuperNodeRow, NodeError> {
        let node = self.node(id)?.ok_or_else(|| NodeError::UnknownSuperNode(text.to_owned()))?;
        Ok(self.super_node_row(node)?)
    }

    /// Keeps a super-node away from everybody from now on. What is seen of one that already is adds to the evidence.
    pub(crate) fn begin_quarantine(
        &mut self,
        node: NodeId,
        evidence: &str,
        actor: Actor,
    ) -> Result<(), LedgerError> {
        let known = self.quarantine_of(node)?;
        let began_at = known.as_ref().map_or(self.now, |known| known.began_at);
        let lines = known.iter().flat_map(|known| known.evidence.lines()).chain(evidence.lines());
        let mut kept = String::new();
        for line in lines.filter(|line| !line.trim().is_empty()) {
            if kept.lines().any(|known| known == line) || kept.len() + line.len() >= MAX_EVIDENCE_BYTES {
                continue;
            }
            kept.extend((!kept.is_empty()).then_some("\n").into_iter().chain([line]));
        }
        if known.as_ref().is_some_and(|known| known.evidence == kept) {
            return Ok(());
        }
        self.sql.execute(
            "INSERT OR REPLACE INTO quarantine (domain, node, began_at, evidence) VALUES (?1, ?2, ?3, ?4)",
            params![node.domain.0, node.hash, millis(began_at), kept],
        )?;
        // Its SuperNode record stays until somebody else is signed in its place; the machine keeps it back.
        self.change.quarantine.push((node, true));
        self.audit(actor, "super quarantine", &format!("{node} {evidence}"))
    }

    fn quarantine_of(&self, node: NodeId) -> Result<Option<Quarantine>, LedgerError> {
        let mut select = self.sql.prepare_cached(
            "SELECT began_at, evidence FROM quarantine WHERE domain = ?1 AND node = ?2 AND ended_at IS NULL",
        )?;
        let read = select.query_row(params![node.domain.0, node.hash], |row| {
            Ok(Quarantine { began_at: time(row.get(0)?), evidence: row.get(1)? })
        });
        Ok(read.optional()?)
    }

    /// Returns the super-nodes that are kept away.
    pub(crate) fn quarantined(&self) -> Result<Vec<NodeId>, LedgerError> {
        let mut select =
            self.sql.prepare_cached("SELECT domain, node FROM quarantine WHERE ended_at IS NULL")?;
        let rows = select.query_map([], node_id)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

fn node_id(row: &rusqlite::Row<'_>) -> rusqlite::Result<NodeId> {
    Ok(NodeId { domain: Domain(row.get(0)?), hash: row.get(1)? })
}
