//! Who holds which places, as the SuperNode records say.

use std::collections::{BTreeMap, BTreeSet};

use peerage_wire::id::{NodeId, PlacementKey, RecordKey, Segment};

/// The super-nodes by node and by segment. There are a few nodes for each segment, so that looking through all segments costs a
/// fraction of looking through all nodes.
#[derive(Clone, Debug, Default)]
pub(super) struct Holders {
    by_node: BTreeMap<NodeId, Segment>,
    by_segment: BTreeMap<Segment, BTreeSet<NodeId>>,
}

impl Holders {
    pub(super) fn insert(&mut self, node: NodeId, segment: Segment) {
        self.remove(&node);
        self.by_node.insert(node, segment);
        self.by_segment.entry(segment).or_default().insert(node);
    }

    pub(super) fn remove(&mut self, node: &NodeId) {
        let Some(segment) = self.by_node.remove(node) else { return };
        let Some(nodes) = self.by_segment.get_mut(&segment) else { return };
        nodes.remove(node);
        if nodes.is_empty() {
            self.by_segment.remove(&segment);
        }
    }

    pub(super) fn segment(&self, node: &NodeId) -> Option<Segment> {
        self.by_node.get(node).copied()
    }

    /// Returns the nodes whose segment has places in `range`, in ascending order of their record keys.
    pub(super) fn in_range(&self, range: Segment) -> Vec<(NodeId, Segment)> {
        let last = Segment { from: range.to, to: PlacementKey::MAX };
        let segments = self.by_segment.range(..=last).filter(|(segment, _)| segment.overlaps(&range));
        let mut nodes: Vec<_> =
            segments.flat_map(|(segment, nodes)| nodes.iter().map(|node| (*node, *segment))).collect();
        nodes.sort_unstable_by_key(|(node, _)| (RecordKey(node.hash), node.domain));
        nodes
    }
}
