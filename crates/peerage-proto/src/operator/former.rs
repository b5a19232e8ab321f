//! Which super-nodes have held other places until lately (Rule 6.76).
//!
//! Members who have not heard of a change of the map ask those who held their places before. These can say who holds them now only if they
//! are told as well.

use std::collections::VecDeque;
use std::time::Duration;

use peerage_wire::id::{NodeId, Segment};
use peerage_wire::time::Instant;

use crate::sizes::TableSize;

/// For how long a super-node is told who holds the places that it had. An idle member looks at the map twice in that time; a longer one has
/// the operator tell more super-nodes of each change, a shorter one has it asked by more members.
const FORMER_TIME: Duration = Duration::from_secs(3_600);

/// Most places that are remembered, 40 bytes each: two moves of each super-node. Of more, those of the longest ago are forgotten; a larger
/// number takes longer to look through at each change of the map.
const MAX_FORMER: usize = 20_000;

/// The places that super-nodes had, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Former {
    places: VecDeque<(Instant, NodeId, Segment)>,
}

impl Former {
    pub(super) fn size(&self) -> TableSize {
        TableSize::new("former places", self.places.len(), MAX_FORMER)
    }

    /// Takes note that a super-node has held a range until now.
    pub(super) fn note(&mut self, node: NodeId, range: Segment, now: Instant) {
        let is_over = |(since, ..): &(Instant, NodeId, Segment)| now - *since > FORMER_TIME;
        while self.places.len() >= MAX_FORMER || self.places.front().is_some_and(is_over) {
            self.places.pop_front();
        }
        self.places.push_back((now, node, range));
    }

    /// Returns who has held any place of a range until lately, some perhaps twice.
    pub(super) fn holders_within(&self, range: Segment, now: Instant) -> impl Iterator<Item = NodeId> {
        let lately = self.places.iter().filter(move |(since, ..)| now - *since <= FORMER_TIME);
        lately.filter(move |(_, _, held)| held.overlaps(&range)).map(|(_, node, _)| *node)
    }
}

#[cfg(test)]
mod tests {
    use peerage_wire::id::{Domain, PlacementKey};

    use super::*;

    /// Rule 6.76: an hour, and not more than there is room for.
    #[test]
    fn former_places_are_forgotten_after_an_hour_and_when_there_are_too_many() {
        let range = |n: u64| Segment { from: PlacementKey(n * 10), to: PlacementKey(n * 10 + 9) };
        let node = |n: u8| NodeId { domain: Domain(n.into()), hash: [n; 32] };
        let start = Instant::default();
        let mut former = Former::default();
        former.note(node(1), range(1), start);
        former.note(node(2), range(2), start.after(FORMER_TIME));
        let found = |former: &Former, range, at| former.holders_within(range, at).collect::<Vec<_>>();
        let both = Segment { from: PlacementKey(19), to: PlacementKey(20) };
        assert_eq!(found(&former, both, start.after(FORMER_TIME)), [node(1), node(2)]);
        let later = start.after(FORMER_TIME + Duration::from_secs(1));
        assert_eq!(found(&former, both, later), [node(2)]);
        assert_eq!(found(&former, range(3), later), []);
        former.note(node(3), range(3), later);
        assert_eq!(former.places.len(), 2, "the first was over");
        for _ in 0..MAX_FORMER {
            former.note(node(4), range(4), later);
        }
        assert_eq!((former.places.len(), found(&former, range(3), later)), (MAX_FORMER, Vec::new()));
    }
}
