//! Who holds which places, as the SuperNode records say.

use std::collections::{BTreeMap, BTreeSet};

use peerage_wire::id::{NodeId, PlacementKey, RecordKey, Segment};

use super::look;

/// The super-nodes by node, and by segment so that those who hold a place are found without looking at all of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Holders {
    by_node: BTreeMap<NodeId, Segment>,
    /// By magnitude first. Which of the segments of one magnitude reach into a range follows from where they begin: before its end, and
    /// not further before its beginning than they can be long. Whoever holds much is thus not in the way of finding who holds little.
    by_segment: BTreeMap<u32, BTreeMap<Segment, BTreeSet<NodeId>>>,
}

impl Holders {
    pub(super) fn insert(&mut self, node: NodeId, segment: Segment) {
        self.remove(&node);
        self.by_node.insert(node, segment);
        let alike = self.by_segment.entry(magnitude(segment)).or_default();
        alike.entry(segment).or_default().insert(node);
    }

    pub(super) fn remove(&mut self, node: &NodeId) {
        let Some(segment) = self.by_node.remove(node) else { return };
        let magnitude = magnitude(segment);
        let Some(alike) = self.by_segment.get_mut(&magnitude) else { return };
        let Some(nodes) = alike.get_mut(&segment) else { return };
        nodes.remove(node);
        if nodes.is_empty() {
            alike.remove(&segment);
        }
        if alike.is_empty() {
            self.by_segment.remove(&magnitude);
        }
    }

    pub(super) fn segment(&self, node: &NodeId) -> Option<Segment> {
        self.by_node.get(node).copied()
    }

    /// Returns the nodes whose segment has places in `range`, in ascending order of their record keys.
    pub(super) fn in_range(&self, range: Segment) -> Vec<(NodeId, Segment)> {
        let last = Segment { from: range.to, to: PlacementKey::MAX };
        let near = self.by_segment.iter().flat_map(|(magnitude, alike)| {
            let from = PlacementKey(range.from.0.saturating_sub(longest(*magnitude)));
            alike.range(Segment { from, to: PlacementKey::MIN }..=last).map(look)
        });
        let segments = near.filter(|(segment, _)| segment.overlaps(&range));
        let mut nodes: Vec<_> =
            segments.flat_map(|(segment, nodes)| nodes.iter().map(|node| (*node, *segment))).collect();
        nodes.sort_unstable_by_key(|(node, _)| (RecordKey(node.hash), node.domain));
        nodes
    }
}

/// Returns how many binary digits the length of a segment has; 0 if it ends where it begins, or before.
const fn magnitude(segment: Segment) -> u32 {
    u64::BITS - segment.to.0.saturating_sub(segment.from.0).leading_zeros()
}

/// Returns how long segments of a magnitude are at the most.
const fn longest(magnitude: u32) -> u64 {
    match u64::MAX.checked_shr(u64::BITS - magnitude) {
        Some(longest) => longest,
        None => 0,
    }
}
