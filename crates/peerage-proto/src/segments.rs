//! Who holds which places of the table, as anybody can tell from the SuperNode records that it has.
//!
//! Operators, super-nodes and members compute this from the same records, so nobody has to be told whom to ask, or
//! when the operator itself answers for a place (Rule 6.23). Normally the ranges of two super-nodes are equal or
//! disjoint; while records spread they may overlap in part, and every place then has those holders whose range
//! covers it.

pub(crate) mod diversity;

use std::collections::{BTreeMap, BTreeSet};

use peerage_wire::id::{Domain, NodeId, PlacementKey, Segment};
use peerage_wire::record::SuperNodeBody;

use self::diversity::{Prefix, Replica, replicas};

/// Holders of each place, of distinct organisations and address prefixes, before the operator steps back: with three, two may fail at
/// once and an acknowledged record (two of three have it) still survives the loss of either. More would cost a
/// Store each for every announcement; with fewer, one loss leaves a single copy.
pub const REPLICAS: usize = 3;

/// Most holders of one place that are remembered, the first in the order of their ids: the operator assigns no more
/// than 24. It bounds what a map with many overlapping ranges costs, which only a faulty operator could sign.
pub const MAX_HOLDERS_OF_PLACE: usize = 64;

/// A super-node, as far as it matters to who may count on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Which.
    pub node: NodeId,
    /// The prefixes of its addresses.
    pub(crate) prefixes: Vec<Prefix>,
}

impl Holder {
    /// Takes from a SuperNode record what counts.
    pub fn new(node: NodeId, body: &SuperNodeBody) -> Self {
        Self { node, prefixes: Prefix::of_all(&body.addresses) }
    }
}

impl Replica for Holder {
    fn organisation(&self) -> Domain {
        self.node.domain
    }

    fn prefixes(&self) -> &[Prefix] {
        &self.prefixes
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Stretch {
    to: PlacementKey,
    holders: Vec<NodeId>,
    /// Whether two of the holders are of one address prefix. Hardly ever, and then it takes some search to count them.
    is_crowded: bool,
}

/// The holders of every place, made from a set of SuperNode records.
///
/// Looking up a place costs the logarithm of the number of super-nodes; a change of the set means making it anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coverage {
    /// By first place; together they cover every place once.
    stretches: BTreeMap<PlacementKey, Stretch>,
    /// Everybody who holds any place.
    holders: BTreeMap<NodeId, Holder>,
}

impl Default for Coverage {
    fn default() -> Self {
        Self::new([])
    }
}

impl Coverage {
    /// Makes the coverage of these super-nodes: of the valid records of the table, without tombstones.
    pub fn new(super_nodes: impl IntoIterator<Item = (Holder, Segment)>) -> Self {
        let mut all = BTreeMap::new();
        let mut begin: BTreeMap<PlacementKey, Vec<NodeId>> = BTreeMap::new();
        let mut end: BTreeMap<PlacementKey, Vec<NodeId>> = BTreeMap::new();
        for (holder, Segment { from, to }) in super_nodes {
            if from > to {
                continue;
            }
            let node = holder.node;
            all.insert(node, holder);
            begin.entry(from).or_default().push(node);
            // Who holds the last place of all never ends.
            if let Some(next) = to.0.checked_add(1) {
                end.entry(PlacementKey(next)).or_default().push(node);
            }
        }
        let mut starts: BTreeSet<PlacementKey> = begin.keys().chain(end.keys()).copied().collect();
        starts.insert(PlacementKey::MIN);
        let tos = starts.iter().skip(1).map(|next| PlacementKey(next.0.saturating_sub(1)));
        let tos: Vec<_> = tos.chain([PlacementKey::MAX]).collect();
        let mut holding = BTreeSet::new();
        let mut stretches = BTreeMap::new();
        for (from, to) in starts.into_iter().zip(tos) {
            for node in end.get(&from).into_iter().flatten() {
                holding.remove(node);
            }
            holding.extend(begin.get(&from).into_iter().flatten().copied());
            let holders: Vec<_> = holding.iter().take(MAX_HOLDERS_OF_PLACE).copied().collect();
            let prefixes =
                holders.iter().filter_map(|node| all.get(node)).flat_map(|holder| &holder.prefixes);
            let (count, distinct) = (prefixes.clone().count(), prefixes.collect::<BTreeSet<_>>().len());
            stretches.insert(from, Stretch { to, holders, is_crowded: distinct < count });
        }
        Self { stretches, holders: all }
    }

    /// Returns the super-nodes that hold a place, in the order of their ids. Empty where only the operator does.
    pub fn holders_of(&self, place: PlacementKey) -> &[NodeId] {
        let found = self.stretches.range(..=place).next_back();
        found.map_or(&[], |(_, stretch)| stretch.holders.as_slice())
    }

    /// Returns the places of a domain, in ascending order and without gaps, cut wherever the holders change, each
    /// piece with its holders. Most domains lie in one piece; a huge one may be cut over several segments.
    pub fn segments_of(&self, domain: Domain) -> impl Iterator<Item = (Segment, &[NodeId])> {
        let all = Segment::of_domain(domain);
        let first = self.stretches.range(..=all.from).next_back().map_or(all.from, |(from, _)| *from);
        self.stretches.range(first..=all.to).map(move |(from, stretch)| {
            let piece = Segment { from: all.from.max(*from), to: all.to.min(stretch.to) };
            (piece, stretch.holders.as_slice())
        })
    }

    /// Returns all places, in ascending order and without gaps, cut wherever the holders change, each piece with its holders.
    pub fn segments(&self) -> impl Iterator<Item = (Segment, &[NodeId])> {
        let all = self.stretches.iter();
        all.map(|(from, stretch)| (Segment { from: *from, to: stretch.to }, stretch.holders.as_slice()))
    }

    /// Returns whether a node holds any place.
    pub fn is_holder(&self, node: &NodeId) -> bool {
        self.holders.contains_key(node)
    }

    /// Returns the super-nodes that hold any place of a domain.
    pub fn holders_in(&self, domain: Domain) -> BTreeSet<NodeId> {
        self.holders_within(Segment::of_domain(domain))
    }

    /// Returns the super-nodes that hold any place of a range.
    pub fn holders_within(&self, range: Segment) -> BTreeSet<NodeId> {
        let first = self.stretches.range(..=range.from).next_back().map_or(range.from, |(from, _)| *from);
        let stretches = self.stretches.range(first..=range.to);
        stretches.flat_map(|(_, stretch)| stretch.holders.iter().copied()).collect()
    }

    /// Returns whether the operator answers for a place as a holder, towards members of the asker's domain (Rule
    /// 6.23): while fewer than [`REPLICAS`] super-nodes of distinct organisations and address prefixes, other than
    /// the asker's own, hold it. An organisation's own super-node is an extra for it.
    pub fn operator_stands_in(&self, place: PlacementKey, asker: Domain) -> bool {
        let found = self.stretches.range(..=place).next_back();
        found.is_none_or(|(_, stretch)| self.is_thin(stretch, asker))
    }

    /// Returns whether the operator stands in for any place of a domain, towards its own members.
    pub fn operator_stands_in_for(&self, domain: Domain) -> bool {
        self.segments_of(domain).any(|(piece, _)| self.operator_stands_in(piece.from, domain))
    }

    fn is_thin(&self, stretch: &Stretch, asker: Domain) -> bool {
        let others = stretch.holders.iter().filter(|node| node.domain != asker);
        let organisations = others.clone().map(|node| node.domain).collect::<BTreeSet<_>>().len();
        if organisations < REPLICAS || !stretch.is_crowded {
            return organisations < REPLICAS;
        }
        let others: Vec<_> = others.filter_map(|node| self.holders.get(node)).collect();
        replicas(&others) < REPLICAS
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Rule 6.23: nobody holds anything, so the operator does.
    #[test]
    fn without_super_nodes_the_operator_stands_in_everywhere() {
        let coverage = Coverage::new([]);
        assert!(coverage.holders_of(PlacementKey(77)).is_empty());
        assert!(coverage.operator_stands_in(PlacementKey(77), Domain(1)));
        assert!(coverage.operator_stands_in_for(Domain(u32::MAX)));
        assert_eq!(coverage, Coverage::default());
    }

    /// Rule 6.23: three other organisations are enough; the own one and a second of the same are extras.
    #[test]
    fn the_operator_steps_back_when_three_other_organisations_hold_the_place() {
        let place = PlacementKey::new(Domain(1), b"key");
        let mut holders = vec![(holder(node(2, 0)), Segment::ALL), (holder(node(3, 0)), Segment::ALL)];
        holders.push((holder(node(1, 0)), Segment::ALL));
        assert!(Coverage::new(holders.clone()).operator_stands_in(place, Domain(1)), "its own is an extra");
        holders.push((holder(node(3, 1)), Segment::ALL));
        assert!(
            Coverage::new(holders.clone()).operator_stands_in(place, Domain(1)),
            "one organisation, once"
        );
        assert!(
            !Coverage::new(holders.clone()).operator_stands_in(place, Domain(9)),
            "1, 2 and 3 for another"
        );
        holders.push((holder(node(4, 0)), Segment::ALL));
        assert!(!Coverage::new(holders).operator_stands_in(place, Domain(1)));
    }

    /// Rule 6.23: what falls together counts once.
    #[test]
    fn the_operator_does_not_step_back_for_three_organisations_in_one_address_prefix() {
        let at = |domain: u32, prefix: u8| {
            let holder = Holder { prefixes: vec![Prefix::V4([10, 0, prefix])], ..holder(node(domain, 0)) };
            (holder, Segment::ALL)
        };
        let place = PlacementKey::new(Domain(1), b"key");
        assert!(Coverage::new([at(2, 1), at(3, 1), at(4, 2)]).operator_stands_in(place, Domain(1)));
        assert!(!Coverage::new([at(2, 1), at(3, 3), at(4, 2)]).operator_stands_in(place, Domain(1)));
        let four = Coverage::new([at(2, 1), at(3, 1), at(4, 2), at(5, 3)]);
        assert!(!four.operator_stands_in(place, Domain(1)));
        assert!(four.operator_stands_in(place, Domain(5)), "one of the three is its own");
    }

    #[test]
    fn a_domain_cut_over_two_segments_has_different_holders_in_each() {
        let whole = Segment::of_domain(Domain(5));
        let cut = PlacementKey(whole.from.0 + 1_000);
        let low = Segment { from: PlacementKey::MIN, to: PlacementKey(cut.0 - 1) };
        let high = Segment { from: cut, to: PlacementKey::MAX };
        let coverage = Coverage::new([(holder(node(1, 0)), low), (holder(node(2, 0)), high)]);
        let pieces: Vec<_> = coverage.segments_of(Domain(5)).collect();
        assert_eq!(
            pieces,
            [
                (Segment { from: whole.from, to: low.to }, [node(1, 0)].as_slice()),
                (Segment { from: cut, to: whole.to }, [node(2, 0)].as_slice()),
            ]
        );
        assert_eq!(coverage.holders_in(Domain(5)), BTreeSet::from([node(1, 0), node(2, 0)]));
        assert_eq!(coverage.holders_in(Domain(4)), BTreeSet::from([node(1, 0)]));
    }

    #[test]
    fn no_place_has_more_holders_than_the_limit() {
        let many = (0..200).map(|n| (holder(node(n, 0)), Segment::ALL));
        assert_eq!(Coverage::new(many).holders_of(PlacementKey::MAX).len(), MAX_HOLDERS_OF_PLACE);
    }

    proptest! {
        /// Whatever ranges there are: a place has exactly those holders whose range contains it, and the pieces of
        /// a domain are its places, each once.
        #[test]
        fn coverage_agrees_with_the_ranges(
            ranges in proptest::collection::vec((0..8_u32, edge(), edge()), 0..20),
            places in proptest::collection::vec(edge(), 1..10),
        ) {
            let held: Vec<_> = ranges.iter().enumerate().map(|(n, (domain, a, b))| {
                let segment = Segment { from: PlacementKey(*a.min(b)), to: PlacementKey(*a.max(b)) };
                (node(*domain, u8::try_from(n).unwrap()), segment)
            }).collect();
            let coverage = Coverage::new(held.iter().map(|(node, segment)| (holder(*node), *segment)));
            for place in places.into_iter().map(PlacementKey) {
                let holding = held.iter().filter(|(_, segment)| segment.contains(place)).map(|(node, _)| *node);
                let expected: BTreeSet<_> = holding.collect();
                let found: BTreeSet<_> = coverage.holders_of(place).iter().copied().collect();
                prop_assert_eq!(found, expected);
                let pieces: Vec<_> = coverage.segments_of(place.domain()).map(|(piece, _)| piece).collect();
                let whole = Segment::of_domain(place.domain());
                prop_assert_eq!(pieces.first().unwrap().from, whole.from);
                prop_assert_eq!(pieces.last().unwrap().to, whole.to);
                prop_assert!(pieces.windows(2).all(|pair| pair[0].to.0 + 1 == pair[1].from.0));
                for (piece, holders) in coverage.segments_of(place.domain()) {
                    prop_assert_eq!(holders, coverage.holders_of(piece.from));
                    prop_assert_eq!(holders, coverage.holders_of(piece.to));
                }
            }
        }
    }

    /// Few different places, so that ranges often touch, and both ends of the key-space.
    fn edge() -> impl Strategy<Value = u64> {
        prop_oneof![
            8 => (0..6_u64, 0..3_u64).prop_map(|(domain, low)| (domain << 32) | (low * 0x7fff_ffff)),
            1 => Just(0),
            1 => Just(u64::MAX),
        ]
    }

    fn node(domain: u32, n: u8) -> NodeId {
        NodeId { domain: Domain(domain), hash: [n; 32] }
    }

    fn holder(node: NodeId) -> Holder {
        Holder { node, prefixes: Vec::new() }
    }
}
