//! The segment map: planned here, signed by the ledger, and what follows from each change of it (Rules 6.73 to 6.75).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use peerage_wire::id::{Domain, NodeId, PlacementKey, Segment};
use peerage_wire::record::{Record, SuperNodeBody, Table, subject};
use peerage_wire::time::Now;

use super::segments::{self, Situation, SuperNode};
use super::supers::Lease;
use super::{Assignment, Operator, Output};
use crate::segments::diversity::Prefix;
use crate::segments::{Coverage, Holder};
use crate::table::Inserted;

/// How long changes are collected before the map is planned. Ten machines that are switched on together make one plan.
const PLAN_DELAY: Duration = Duration::from_millis(500);

/// When the map is planned anew if the ledger has not signed what was asked of it.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// What a member's announcement is counted as: one record by its id, one by its tags.
const ANNOUNCED_PER_NODE: u64 = 2;

impl Operator {
    pub(super) fn plan_soon(&mut self, now: Now) {
        self.supers.plan_by(now.mono.after(PLAN_DELAY));
    }

    /// Returns the segments that the records give, in quarantine or not.
    pub(super) fn held_segments(&self, now: Now) -> BTreeMap<NodeId, Segment> {
        let time = self.endpoint.time(now);
        let held = self.records.super_nodes(Segment::ALL, time);
        let withheld = self.supers.withheld.values().filter_map(|record| {
            let body = SuperNodeBody::read(record).ok()?;
            record.is_valid_at(time).then_some((subject(record.header()), body.segment))
        });
        held.map(|(record, segment)| (subject(record.header()), segment)).chain(withheld).collect()
    }

    /// Returns everybody on whom the map may count, or has.
    fn candidates(&self, held: &BTreeMap<NodeId, Segment>, now: Now) -> BTreeMap<NodeId, SuperNode> {
        let known = held.keys().chain(self.supers.leases.keys()).copied();
        // Counted once for each range, which a dozen hold.
        let ranges: BTreeSet<_> = held.values().copied().collect();
        let signed: BTreeMap<_, _> = ranges.into_iter().map(|range| (range, self.signed_in(range))).collect();
        let signed_for = |node: &NodeId| held.get(node).and_then(|range| signed.get(range)).copied();
        let candidate = |node: NodeId| {
            self.permitted(&node, now)?;
            let standing = self.supers.standing(&node, now.mono)?;
            let reached = self.supers.leases.get(&node).map(|lease| lease.check.good.clone());
            let addresses = reached.filter(|good| !good.is_empty());
            // Nobody is given a part before it was reached.
            let addresses = addresses.or_else(|| self.assignment(&node).map(|body| body.addresses))?;
            let super_node = SuperNode {
                prefixes: Prefix::of_all(&addresses),
                vendor: self.is_vendor(node.domain),
                standing,
                ready: signed_for(&node).is_some_and(|signed| self.is_ready(&node, signed)),
                capacity: self.supers.leases.get(&node).map_or(u64::MAX, Lease::capacity),
            };
            Some((node, super_node))
        };
        known.filter_map(candidate).collect()
    }

    fn load(&self) -> BTreeMap<Domain, u64> {
        let count = |table, domain| self.records.count(table, domain) as u64;
        let of = |domain: Domain| {
            let signed = [Table::Node, Table::EndDevice, Table::DomainKey, Table::Revocation];
            let signed: u64 = signed.into_iter().map(|table| count(table, domain)).sum();
            signed + ANNOUNCED_PER_NODE * count(Table::Node, domain)
        };
        self.facts.keys().map(|domain| (*domain, of(*domain))).collect()
    }

    /// Plans the map, and has the ledger sign what is to change.
    pub(super) fn plan_map(&mut self, now: Now) {
        self.supers.plan_at = None;
        if !self.keeps_map_now(now) {
            return;
        }
        if let Some(until) = self.supers.signing_until.take().filter(|until| *until > now.mono) {
            self.supers.signing_until = Some(until);
            self.supers.plan_at = Some(until);
            return;
        }
        let held = self.held_segments(now);
        let nodes = self.candidates(&held, now);
        let load = self.load();
        let situation = Situation { nodes: &nodes, held: &held, load: &load };
        let plan = segments::plan(situation, self.endpoint.rng(), now.mono);
        for (node, candidate) in &nodes {
            let is_given = held.contains_key(node) || plan.changes.iter().any(|change| change.node == *node);
            if let Some(lease) = self.supers.leases.get_mut(node) {
                lease.is_spare = !is_given && candidate.standing == segments::Standing::Live;
            }
        }
        let mut changes: BTreeMap<NodeId, Assignment> = BTreeMap::new();
        for change in plan.changes {
            changes
                .extend(self.assignment_for(change.node, change.segment, now).map(|new| (change.node, new)));
        }
        for (node, segment) in &held {
            if nodes.contains_key(node) && !changes.contains_key(node) && self.has_moved(node) {
                changes.extend(self.assignment_for(*node, Some(*segment), now).map(|new| (*node, new)));
            }
        }
        let next_at = plan.next_at.map(|at| at.max(now.mono.after(PLAN_DELAY)));
        if changes.is_empty() {
            self.supers.plan_at = next_at;
            return;
        }
        let retry_at = now.mono.after(RETRY_INTERVAL);
        (self.supers.plan_at, self.supers.signing_until) = (Some(retry_at), Some(retry_at));
        self.supers.map_version = self.supers.map_version.saturating_add(1);
        let (map_version, changes) = (self.supers.map_version, changes.into_values().collect());
        self.outputs.push_back(Output::AssignSegments { map_version, changes });
    }

    fn assignment_for(&self, node: NodeId, range: Option<Segment>, now: Now) -> Option<Assignment> {
        let assignment = self.assignment(&node);
        let reached = self.supers.leases.get(&node).map(|lease| lease.check.good.clone());
        let addresses = reached.filter(|good| !good.is_empty());
        let addresses = addresses.or_else(|| assignment.as_ref().map(|body| body.addresses.clone()))?;
        let identity = self.permitted(&node, now).or_else(|| assignment.map(|body| body.identity))?;
        Some(Assignment { node, identity, addresses, range })
    }

    /// Returns whether a super-node was reached elsewhere than its record says.
    fn has_moved(&self, node: &NodeId) -> bool {
        let good =
            self.supers.leases.get(node).map(|lease| &lease.check.good).filter(|good| !good.is_empty());
        let set = |addresses: &[SocketAddr]| addresses.iter().copied().collect::<BTreeSet<_>>();
        good.zip(self.assignment(node)).is_some_and(|(good, body)| set(good) != set(&body.addresses))
    }

    /// Takes a SuperNode record that was committed, of a node that held a range before, if any. Returns it if it is news, and adds the
    /// places that it concerns.
    pub(super) fn take_assignment(
        &mut self,
        record: Record,
        before: Option<Segment>,
        places: &mut BTreeSet<Segment>,
        now: Now,
    ) -> Option<Record> {
        let node = subject(record.header());
        let after = SuperNodeBody::read(&record).ok().filter(|_| !record.header().removed);
        let version = after.as_ref().map_or(0, |body| body.map_version);
        self.supers.map_version = self.supers.map_version.max(version);
        // The ledger has answered.
        (self.supers.plan_at, self.supers.signing_until) = (None, None);
        self.plan_soon(now);
        if after.is_some() && self.supers.is_quarantined(&node) {
            let held = self.supers.withheld.get(&node);
            if held.is_none_or(|held| record.supersedes(held)) {
                self.supers.withheld.insert(node, record);
            }
            return None;
        }
        if after.is_none() {
            self.supers.withheld.remove(&node);
        }
        let is_new = self.records.insert(record.clone()) == Inserted::New;
        let after = after.map(|body| body.segment);
        if let (Some(held), true) = (before.filter(|_| after.is_some() && after != before), is_new) {
            self.supers.former.note(node, held, now.mono);
        }
        places.extend(before.into_iter().chain(after).filter(|_| is_new));
        is_new.then_some(record)
    }

    /// Draws the consequences of changes of the map at these places.
    pub(super) fn map_changed(&mut self, places: &BTreeSet<Segment>, now: Now) {
        if places.is_empty() {
            return;
        }
        self.renew_coverage(now);
        for range in places {
            let (first, last) = (range.from.domain(), range.to.domain());
            let domains: Vec<_> = self.facts.range(first..=last).map(|(domain, _)| *domain).collect();
            for domain in domains {
                self.touch(domain, now);
            }
        }
    }

    fn renew_coverage(&mut self, now: Now) {
        let time = self.endpoint.time(now);
        let held = self.records.super_nodes(Segment::ALL, time);
        let holders = held.filter_map(|(record, segment)| {
            let body = SuperNodeBody::read(record).ok()?;
            Some((Holder::new(subject(record.header()), &body), segment))
        });
        self.supers.coverage = Coverage::new(holders);
    }

    /// Returns where the operator answers for announcements towards a domain's members; for operators always.
    pub(super) fn stands_in(&self, asker: Domain) -> Vec<Segment> {
        let coverage = &self.supers.coverage;
        let own = coverage.segments_of(asker).map(|(piece, _)| piece);
        let own = own.filter(|piece| coverage.operator_stands_in(piece.from, asker));
        own.chain([Segment::of_domain(Domain::OPERATORS)]).collect()
    }

    /// Returns whether the operator takes an announcement at one of these places.
    pub(super) fn takes_announcements(
        &self,
        asker: Domain,
        places: impl IntoIterator<Item = PlacementKey>,
    ) -> bool {
        places.into_iter().any(|place| self.supers.coverage.operator_stands_in(place, asker))
    }
}
