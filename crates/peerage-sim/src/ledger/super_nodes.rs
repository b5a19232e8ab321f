//! The segment map: which super-node holds what.

use peerage_proto::operator::Assignment;
use peerage_wire::id::{NodeId, PlacementKey, Segment};
use peerage_wire::record::{Draft, DraftError, Record, SuperNodeBody, Table, subject};
use peerage_wire::time::{Now, UnixTime};

use super::{Ledger, Membership, Written};

impl Ledger {
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

    pub(super) fn sign_super_node(
        &mut self,
        node: NodeId,
        body: &SuperNodeBody,
        now: Now,
    ) -> Result<Record, DraftError> {
        let id = (Table::SuperNode, node.domain, node.record_key());
        self.sign(id, now, |draft| Draft { public: body.write(), ..draft })
    }

    pub(super) fn bury_super_node(&mut self, node: NodeId, now: Now) -> Written {
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
}
