//! What the ledger has committed, on its way to the super-nodes that hold it (Rule 6.76).
//!
//! Nothing depends on it: what is lost here, or never fitted in, the holders find out when they compare what they hold.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use peerage_wire::id::{Domain, NodeId, RecordKey, Segment};
use peerage_wire::message::Request;
use peerage_wire::record::{Record, SuperNodeBody, Table, subject};
use peerage_wire::time::Now;

use super::Operator;
use crate::endpoint::RequestId;
use crate::sizes::TableSize;

/// Most records and Heads that wait, some 60 bytes each. A domain of 10,000 devices in a new epoch, for three holders, and the
/// same again for others; what has no room waits for the holders' next comparison.
const MAX_QUEUED: usize = 100_000;

/// Most that are on their way to one holder. At 50 ms of round trip it is 1,300 in a second; more would overrun a holder behind
/// a slow line.
const MAX_RUNNING: usize = 64;

/// Most that are on their way at once: a quarter of what the message layer takes.
const MAX_RUNNING_IN_ALL: usize = 1_024;

/// One thing that a holder should have; in the order in which they are sent. Heads are last: whoever is told that there is something
/// new asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Item {
    Map(Domain, RecordKey),
    Operator(RecordKey),
    Revocation(Domain, RecordKey),
    Other(Table, Domain, RecordKey),
    Head(Domain),
}

impl Item {
    /// Returns what is pushed of a record; nothing of what holders do not get from operators.
    pub(super) const fn of(record: &Record) -> Option<Self> {
        let header = record.header();
        let (domain, key) = (header.domain, header.key);
        match header.table {
            Table::SuperNode => Some(Self::Map(domain, key)),
            Table::OperatorNode => Some(Self::Operator(key)),
            Table::Revocation => Some(Self::Revocation(domain, key)),
            Table::Node | Table::EndDevice | Table::DomainKey => Some(Self::Other(header.table, domain, key)),
            Table::NodeInfo | Table::Head => None,
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Pushes {
    waiting: BTreeMap<NodeId, BTreeSet<Item>>,
    queued: usize,
    running: BTreeMap<RequestId, NodeId>,
    counts: BTreeMap<NodeId, usize>,
}

impl Pushes {
    pub(super) fn sizes(&self) -> [TableSize; 2] {
        [
            TableSize::new("pushes waiting", self.queued, MAX_QUEUED),
            TableSize::new("pushes", self.running.len(), MAX_RUNNING_IN_ALL),
        ]
    }

    pub(super) fn add(&mut self, to: NodeId, item: Item) {
        if self.queued < MAX_QUEUED && self.waiting.entry(to).or_default().insert(item) {
            self.queued += 1;
        }
    }

    /// Forgets what waits for a holder that is gone.
    pub(super) fn forget(&mut self, node: &NodeId) {
        let gone = self.waiting.remove(node).map_or(0, |items| items.len());
        self.queued = self.queued.saturating_sub(gone);
    }

    /// Takes note that a push was answered, or was not. Returns whether it was one.
    pub(super) fn ended(&mut self, request: RequestId, ok: bool) -> bool {
        let Some(node) = self.running.remove(&request) else { return false };
        let left = self.counts.get(&node).map_or(0, |count| count.saturating_sub(1));
        if left == 0 {
            self.counts.remove(&node);
        } else {
            self.counts.insert(node, left);
        }
        if !ok {
            self.forget(&node);
        }
        true
    }

    /// Returns the holder that may be sent something now and comes next after this one; after the last comes the first. There may be
    /// thousands, and of those whose turn it is not yet nothing is looked at.
    fn open_after(&self, last: Option<NodeId>) -> Option<NodeId> {
        let is_open = |node: &&NodeId| self.counts.get(node).copied().unwrap_or(0) < MAX_RUNNING;
        let after = last.map_or(Bound::Unbounded, Bound::Excluded);
        let further = self.waiting.range((after, Bound::Unbounded)).map(|(node, _)| node);
        further.chain(self.waiting.keys()).find(is_open).copied()
    }

    fn next(&mut self, node: &NodeId) -> Option<Item> {
        let items = self.waiting.get_mut(node)?;
        let item = items.pop_first();
        if items.is_empty() {
            self.waiting.remove(node);
        }
        self.queued = self.queued.saturating_sub(usize::from(item.is_some()));
        item
    }

    fn begun(&mut self, request: RequestId, node: NodeId) {
        self.running.insert(request, node);
        *self.counts.entry(node).or_default() += 1;
    }
}

impl Operator {
    /// Plans to push a record to the super-nodes that are to hold it, as far as they are there. One about a super-node says that it
    /// holds something else than `before`.
    pub(super) fn push_record(&mut self, record: &Record, before: Option<Segment>, now: Now) {
        let Some(item) = Item::of(record) else { return };
        // At start there are a hundred thousand records, and nobody yet to push them to.
        if self.supers.leases.is_empty() {
            return;
        }
        let header = record.header();
        let holders: Vec<NodeId> = match header.table {
            Table::SuperNode => {
                let after = SuperNodeBody::read(record).ok().map(|body| body.segment);
                // Whose own record it is may not be a holder yet, or no longer.
                let concerned = self.concerned_by(before.into_iter().chain(after), now);
                concerned.into_iter().chain([subject(header)]).collect()
            }
            Table::OperatorNode => self.supers.holders().collect(),
            Table::Revocation => self.supers.coverage.holders_in(header.domain).into_iter().collect(),
            Table::Node | Table::EndDevice | Table::DomainKey => {
                self.supers.coverage.holders_of(header.placement()).to_vec()
            }
            Table::NodeInfo | Table::Head => Vec::new(),
        };
        for node in holders {
            self.push_to(node, item);
        }
    }

    /// Returns who has to know at once that the holders of these ranges have changed: all that hold, or held until lately, places of the
    /// same domains. Whoever else knows of them need not; so that what a change costs does not grow with the network.
    fn concerned_by(&self, ranges: impl Iterator<Item = Segment>, now: Now) -> BTreeSet<NodeId> {
        let mut concerned = BTreeSet::new();
        for range in ranges.map(|range| range.whole_domains()) {
            concerned.extend(self.supers.coverage.holders_within(range));
            let former = self.supers.former.holders_within(range, now.mono);
            concerned.extend(former.filter(|node| self.supers.coverage.is_holder(node)));
        }
        concerned
    }

    /// Plans to tell the holders of a domain about its new Head.
    pub(super) fn push_head(&mut self, domain: Domain) {
        for node in self.supers.coverage.holders_in(domain) {
            self.push_to(node, Item::Head(domain));
        }
    }

    pub(super) fn push_to(&mut self, node: NodeId, item: Item) {
        // Whoever is in quarantine goes on as before, and learns of nothing.
        if self.supers.is_live(&node) && !self.supers.is_quarantined(&node) {
            self.pushes.add(node, item);
        }
    }

    /// Sends what there is room for, one thing to each holder in turn.
    pub(super) fn pump_pushes(&mut self, now: Now) {
        let mut last = None;
        while self.pushes.running.len() < MAX_RUNNING_IN_ALL
            && let Some(node) = self.pushes.open_after(last)
        {
            last = Some(node);
            let Some(remote) = self.supers.remote(&node) else {
                self.pushes.forget(&node);
                continue;
            };
            let Some(request) = self.pushes.next(&node).and_then(|item| self.request_for(item, now)) else {
                continue;
            };
            let id = self.endpoint.request(node, remote, &request, now);
            self.pushes.begun(id, node);
        }
    }

    fn request_for(&mut self, item: Item, now: Now) -> Option<Request> {
        let (table, domain, key) = match item {
            Item::Head(domain) => {
                let head = self.head(domain, now)?;
                return Some(Request::Notify { id: self.command_id(), head });
            }
            Item::Map(domain, key) => (Table::SuperNode, domain, key),
            Item::Operator(key) => (Table::OperatorNode, Domain::OPERATORS, key),
            Item::Revocation(domain, key) => (Table::Revocation, domain, key),
            Item::Other(table, domain, key) => (table, domain, key),
        };
        Some(Request::Store(self.records.get(table, domain, key)?.bytes().clone()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use peerage_wire::id::PlacementKey;

    use super::super::tests::Network;
    use super::*;

    fn node(n: u8) -> NodeId {
        NodeId { domain: Domain(n.into()), hash: [n; 32] }
    }

    fn item(n: u32) -> Item {
        Item::Other(Table::Node, Domain(n), RecordKey([0; 32]))
    }

    /// Rule 6.76: the queue has a bound, and what is in it twice is sent once.
    #[test]
    fn the_queue_is_bounded_and_holds_nothing_twice() {
        let mut pushes = Pushes::default();
        for n in 0..u32::try_from(MAX_QUEUED).unwrap() + 10 {
            pushes.add(node(1), item(n));
            pushes.add(node(1), item(n));
        }
        assert_eq!(pushes.queued, MAX_QUEUED);
        pushes.forget(&node(1));
        assert_eq!((pushes.queued, pushes.open_after(None)), (0, None));
    }

    /// Rule 6.76: Heads come last; who does not answer gets nothing more of this batch, and others are not kept waiting.
    #[test]
    fn a_holder_that_does_not_answer_keeps_nobody_waiting() {
        let mut pushes = Pushes::default();
        pushes.add(node(1), Item::Head(Domain(7)));
        pushes.add(node(1), item(7));
        pushes.add(node(2), item(7));
        assert_eq!(pushes.next(&node(1)), Some(item(7)));
        pushes.begun(RequestId(1), node(1));
        for n in 2..=u64::try_from(MAX_RUNNING).unwrap() {
            pushes.begun(RequestId(n), node(1));
        }
        assert_eq!(pushes.open_after(None), Some(node(2)));
        assert!(pushes.ended(RequestId(1), false));
        assert!(!pushes.ended(RequestId(1), false), "once");
        assert_eq!((pushes.queued, pushes.open_after(None)), (1, Some(node(2))));
    }

    /// Rule 6.76: one thing to each in turn, and the first comes again after the last.
    #[test]
    fn holders_come_in_turn() {
        let mut pushes = Pushes::default();
        for n in [1, 2, 3] {
            pushes.add(node(n), item(7));
            pushes.add(node(n), item(8));
        }
        let (mut last, mut order) = (None, Vec::new());
        while let Some(next) = pushes.open_after(last) {
            order.extend(pushes.next(&next).map(|_| next));
            last = Some(next);
        }
        assert_eq!(order, [1, 2, 3, 1, 2, 3].map(node));
    }

    /// Who is told of what has just been committed, of changes of the map.
    fn told(network: &mut Network) -> BTreeSet<NodeId> {
        let waiting = std::mem::take(&mut network.operator.pushes).waiting.into_iter();
        let is_map = |items: &BTreeSet<Item>| items.iter().any(|item| matches!(item, Item::Map(..)));
        waiting.filter(|(_, items)| is_map(items)).map(|(node, _)| node).collect()
    }

    /// So many places in the first domains.
    const fn places(from: u64, to: u64) -> Segment {
        Segment { from: PlacementKey(from << 32), to: PlacementKey((to << 32) - 1) }
    }

    /// Rule 6.76: what a change of the map costs does not depend on how many super-nodes there are.
    #[test]
    fn a_change_of_the_map_is_told_to_the_holders_of_the_same_domains_alone() {
        for segments in [8_u64, 64] {
            let mut network = Network::new();
            let parts: Vec<_> = (0..segments).map(|n| places(n * 10, n * 10 + 10)).collect();
            let holders: Vec<Vec<NodeId>> =
                parts.iter().map(|part| (0..4).map(|_| network.super_node(*part)).collect()).collect();
            told(&mut network);
            network.assign(holders[3][0], Some(places(30, 35)));
            assert_eq!(told(&mut network), holders[3].iter().copied().collect(), "{segments}");
            // Cut inside of a domain, so that whoever serves its members has to know those of the other part as well.
            let (cut, end) = (PlacementKey((35 << 32) + 9), places(30, 40).to);
            network.assign(holders[3][1], Some(Segment { from: cut, to: end }));
            network.assign(holders[3][2], Some(Segment { to: PlacementKey(cut.0 - 1), ..places(30, 40) }));
            told(&mut network);
            network.bed.now = network.bed.now.after(Duration::from_secs(3_601));
            network.assign(holders[3][1], None);
            let others = [1, 2, 3].map(|n| holders[3][n]);
            assert_eq!(told(&mut network), BTreeSet::from(others), "{segments}");
        }
    }

    /// Rule 6.76: who has held a place is told for an hour who holds it now, because members ask it who do not know yet.
    #[test]
    fn a_super_node_that_has_moved_is_told_for_an_hour_who_holds_what_it_had() {
        let mut network = Network::new();
        let [left, right] = [places(0, 10), places(10, 20)];
        let [moved, stayed, there] = [left, left, right].map(|part| network.super_node(part));
        network.assign(moved, Some(right));
        told(&mut network);
        let new = network.super_node(left);
        assert_eq!(told(&mut network), BTreeSet::from([moved, stayed, new]));
        network.assign(there, Some(places(10, 15)));
        assert_eq!(told(&mut network), BTreeSet::from([moved, there]));
        network.bed.now = network.bed.now.after(Duration::from_secs(3_601));
        network.assign(new, Some(places(0, 5)));
        assert_eq!(told(&mut network), BTreeSet::from([stayed, new]));
    }
}
