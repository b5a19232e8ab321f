//! Random lives of a network, of which the map must always be a good one, and in the end the best there is.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Random histories a property: seconds without optimisation. Two thousand of each were run once.
const CASES: u32 = 32;

#[derive(Clone, Debug)]
enum Event {
    Join { domain: u32, prefix: u8, small: bool },
    Lose(usize),
    Return(usize),
    Leave(usize),
    Remove(usize),
    Quarantine(usize),
    LoseSegment(usize),
    LoseHalf,
    LoseAll,
    ReturnAll,
    Wait(u64),
    CatchUp,
    Records { domain: u32, count: u64 },
}

/// Few domains and prefixes, so that many conflict.
fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        20 => (0..24_u32, 0..30_u8, 0..8_u8).prop_map(|(domain, prefix, small)| {
            Event::Join { domain: domain << 27, prefix, small: small == 0 }
        }),
        4 => any::<usize>().prop_map(Event::Lose),
        4 => any::<usize>().prop_map(Event::Return),
        3 => any::<usize>().prop_map(Event::Leave),
        1 => any::<usize>().prop_map(Event::Remove),
        1 => any::<usize>().prop_map(Event::Quarantine),
        1 => any::<usize>().prop_map(Event::LoseSegment),
        1 => Just(Event::LoseHalf),
        1 => Just(Event::LoseAll),
        2 => Just(Event::ReturnAll),
        6 => (1..900_u64).prop_map(Event::Wait),
        6 => Just(Event::CatchUp),
        1 => (0..24_u32, 0..20_000_u64)
            .prop_map(|(domain, count)| Event::Records { domain: domain << 27, count }),
    ]
}

impl Net {
    fn meet(&mut self, event: &Event) {
        match *event {
            Event::Join { domain, prefix, small } => {
                let id = self.join_at(domain, &format!("10.0.{prefix}.1:1"));
                let node = self.nodes.get_mut(&id).unwrap();
                // Two of the organisations are the vendor's.
                node.vendor = domain % (12 << 27) == 0;
                node.capacity = if small { 5_000 } else { u64::MAX };
            }
            Event::Lose(n) => self.change_standing(n, Standing::Lost { since: self.now }),
            Event::Return(n) => self.change_standing(n, Standing::Live),
            Event::Leave(n) => self.change_standing(n, Standing::Leaving { since: self.now }),
            Event::Quarantine(n) => self.change_standing(n, Standing::Quarantined),
            Event::Remove(n) => {
                let id = self.nodes.keys().nth(n % self.nodes.len().max(1)).copied();
                id.map(|id| self.nodes.remove(&id));
            }
            Event::LoseSegment(n) => {
                let segments = self.segments();
                let lost = segments.get(n % segments.len().max(1)).map(|segment| self.holders(*segment));
                for id in
                    lost.into_iter().flatten().filter(|id| self.nodes.contains_key(id)).collect::<Vec<_>>()
                {
                    self.lose(&id);
                }
            }
            Event::LoseHalf => self.every(2, Standing::Lost { since: self.now }),
            Event::LoseAll => self.every(1, Standing::Lost { since: self.now }),
            Event::ReturnAll => self.every(1, Standing::Live),
            Event::Wait(seconds) => self.wait(Duration::from_secs(seconds)),
            Event::CatchUp => self.catch_up(),
            Event::Records { domain, count } => {
                self.load.insert(Domain(domain), count);
            }
        }
    }

    fn change_standing(&mut self, n: usize, standing: Standing) {
        let count = self.nodes.len().max(1);
        if let Some(node) = self.nodes.values_mut().nth(n % count) {
            node.standing = standing;
        }
    }

    fn every(&mut self, nth: usize, standing: Standing) {
        for node in self.nodes.values_mut().step_by(nth) {
            if matches!(node.standing, Standing::Live | Standing::Lost { .. }) {
                node.standing = standing;
            }
        }
    }

    /// Plans, signs, and checks every change by itself.
    fn step_checked(&mut self) -> Plan {
        let before = self.held.clone();
        let twin = self.plan();
        let plan = self.step();
        assert_eq!(plan, twin, "the same seed, the same plan");
        assert!(plan.changes.len() <= MAX_CHANGES, "{} changes", plan.changes.len());
        for change in &plan.changes {
            let Change { node, segment, reason } = *change;
            let standing = self.nodes.get(&node).map(|known| known.standing);
            match reason {
                Reason::Assigned => {
                    assert_eq!(standing, Some(Standing::Live));
                    assert_eq!(before.get(&node), None);
                }
                Reason::Moved | Reason::VendorFloor => assert_eq!(standing, Some(Standing::Live)),
                Reason::Split => {
                    let (old, new) = (before[&node], segment.unwrap());
                    assert!(old.covers(&new), "a split gives nobody a place that it did not hold");
                }
                Reason::Joined => assert!(segment.unwrap().covers(&before[&node])),
                Reason::Gone => assert_eq!((standing, segment), (None, None)),
                Reason::Quarantined => assert_eq!((standing, segment), (Some(Standing::Quarantined), None)),
                Reason::Lost | Reason::HandedOver | Reason::Surplus => assert_eq!(segment, None),
                // Who stays after all holds part of what its neighbours were given while it was leaving.
                Reason::Healed => assert!(segment.unwrap().covers(&before[&node])),
            }
        }
        self.check_map();
        plan
    }

    /// No place is in two segments; who leaves may hold part of one.
    fn check_map(&self) {
        let staying = |id: &NodeId| {
            !matches!(self.nodes.get(id).map(|node| node.standing), Some(Standing::Leaving { .. }))
        };
        let segments: BTreeSet<_> =
            self.held.iter().filter(|(id, _)| staying(id)).map(|(_, segment)| *segment).collect();
        let segments: Vec<_> = segments.into_iter().collect();
        assert!(segments.windows(2).all(|pair| pair[0].to < pair[1].from), "{segments:?}");
        for (id, segment) in self.held.iter().filter(|(id, _)| !staying(id)) {
            let covered = segments.iter().all(|other| other.covers(segment) || !other.overlaps(segment));
            assert!(covered, "{id:?} {segment}");
        }
    }

    /// Plans until nothing changes any more, checking every step.
    fn settle_checked(&mut self) -> BTreeSet<NodeId> {
        let mut changed = BTreeSet::new();
        for _ in 0..300 {
            self.catch_up();
            let plan = self.step_checked();
            if plan.changes.is_empty() {
                assert_eq!(self.plan().changes, []);
                return changed;
            }
            changed.extend(plan.changes.iter().map(|change| change.node));
        }
        panic!("the map does not settle");
    }

    /// What holds of every settled map in which nobody is lost or leaving.
    fn check_settled(&self) {
        assert!(self.held.keys().all(|id| self.nodes[id].standing == Standing::Live));
        let coverage = self.coverage();
        for segment in self.segments() {
            let holders = self.holders(segment);
            assert!(holders.len() <= MAX_JOINED);
            if self.strength(segment) < REPLICAS {
                continue;
            }
            // Nobody counts twice: of each organisation one, and of the vendor a few.
            for id in &holders {
                let same = holders.iter().filter(|other| other.domain == id.domain).count();
                let allowed = if self.nodes[id].vendor { MAX_VENDOR } else { 1 };
                assert!(same <= allowed, "{segment}: {holders:?}");
            }
            for domain in holders.iter().map(|id| id.domain).filter(|domain| segment.touches(*domain)) {
                let place = segment.from.max(Segment::of_domain(domain).from);
                assert!(!coverage.operator_stands_in(place, domain), "{segment} {domain}");
            }
        }
        // Nobody who would make a segment stronger stands by.
        let standing_by = self
            .nodes
            .iter()
            .filter(|(id, node)| node.standing == Standing::Live && !self.held.contains_key(*id));
        for (id, node) in standing_by {
            for segment in self.segments() {
                let mut members = self.members(segment);
                let before = crate::segments::diversity::replicas(&members);
                members.push(diversity::Member { id: *id, node });
                let open = members.len() <= MAX_HOLDERS && node.capacity == u64::MAX;
                assert!(
                    !open || crate::segments::diversity::replicas(&members) == before,
                    "{id:?} is of use in {segment}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    /// Whatever happens, every map is in order; and when it stops, plans come to an end.
    #[test]
    fn every_history_ends_in_a_settled_map(events in vec(event(), 1..120)) {
        let mut net = Net::new();
        for event in &events {
            net.meet(event);
            net.step_checked();
        }
        net.settle_checked();
        net.wait(REPLACE_AFTER);
        net.settle_checked();
        net.check_settled();
    }

    /// With super-nodes of as many organisations and prefixes everybody has three replicas besides its own, and
    /// there are about as many segments as that allows.
    #[test]
    fn the_number_of_segments_grows_with_the_super_nodes(
        domains in proptest::collection::btree_set(any::<u32>(), 4..150),
    ) {
        let mut net = Net::new();
        for domain in &domains {
            net.join(*domain);
        }
        net.settle_checked();
        net.check_settled();
        prop_assert_eq!(net.held.len(), domains.len(), "everybody is of use");
        prop_assert!(net.segments().into_iter().all(|segment| net.strength(segment) >= REPLICAS));
        let (count, segments) = (domains.len(), net.segments().len());
        prop_assert!(segments <= count / REPLICAS, "{segments} of {count}");
        prop_assert!(segments >= count / (3 * REPLICAS), "{segments} of {count}");
    }

    /// What one loss changes does not depend on how large the network is.
    #[test]
    fn losing_one_changes_few_records(
        domains in proptest::collection::btree_set(any::<u32>(), 30..150),
        lost in any::<prop::sample::Index>(),
    ) {
        let mut net = Net::new();
        for domain in &domains {
            net.join(*domain);
        }
        net.settle_checked();
        let id = *lost.get(&net.held.keys().copied().collect::<Vec<_>>());
        net.lose(&id);
        net.wait(REPLACE_AFTER);
        let changed = net.settle_checked();
        prop_assert!(changed.len() <= MAX_JOINED + 1, "{} of {}", changed.len(), domains.len());
        prop_assert!(net.segments().into_iter().all(|segment| net.strength(segment) >= REPLICAS));
    }

    /// Half of all are lost at once, and do not come back: the others have everything before long.
    #[test]
    fn half_of_all_may_be_lost_at_once(
        domains in proptest::collection::btree_set(any::<u32>(), 12..120),
        seed in any::<u64>(),
    ) {
        let mut net = Net::new();
        for domain in &domains {
            net.join(*domain);
        }
        net.settle_checked();
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let lost: Vec<_> = net.held.keys().copied().filter(|_| rng.next_u64() % 2 == 0).collect();
        prop_assume!(domains.len() - lost.len() > REPLICAS);
        for id in &lost {
            net.lose(id);
        }
        net.wait(SETTLE_TIME);
        net.settle_checked();
        let live = |place: PlacementKey| {
            let coverage = net.coverage();
            coverage.holders_of(place).iter().any(|id| net.nodes[id].standing == Standing::Live)
        };
        for domain in &domains {
            prop_assert!(live(Segment::of_domain(Domain(*domain)).from), "somebody live has every place at once");
        }
        net.wait(REPLACE_AFTER);
        net.settle_checked();
        net.check_settled();
        for segment in net.segments() {
            prop_assert!(crate::segments::diversity::replicas(&net.members(segment)) >= REPLICAS, "{segment}");
        }
        // Where the domains of the holders themselves have only two others, there is nobody to spare anywhere.
        let strengths: Vec<_> = net.segments().into_iter().map(|segment| net.strength(segment)).collect();
        let thin = strengths.iter().any(|strength| *strength < REPLICAS);
        prop_assert!(!thin || strengths.iter().all(|strength| *strength <= REPLICAS), "{strengths:?}");
    }

    /// Where the vendor has a super-node for every segment, every segment has one.
    #[test]
    fn the_vendors_floor_holds(
        domains in proptest::collection::btree_set(any::<u32>(), 4..100),
        vendors in 1..30_usize,
        first in any::<bool>(),
    ) {
        let mut net = Net::new();
        let join_vendors = |net: &mut Net| (0..vendors).for_each(|_| { net.join_vendor(); });
        if first {
            join_vendors(&mut net);
            net.settle_checked();
        }
        for domain in &domains {
            net.join(*domain);
        }
        net.settle_checked();
        if !first {
            join_vendors(&mut net);
            net.settle_checked();
        }
        net.check_settled();
        let with = net.segments().into_iter().filter(|segment| net.vendors(*segment) > 0).count();
        prop_assert_eq!(with, vendors.min(net.segments().len()));
    }

    /// A map out of any records, as after a restored backup: put in order without delay, and as good as any other.
    #[test]
    fn any_records_are_put_in_order(
        ranges in vec((any::<u32>(), any::<u64>(), any::<u64>(), any::<bool>()), 1..60),
    ) {
        let mut net = Net::new();
        for (domain, a, b, whole) in &ranges {
            let id = net.join(*domain);
            let some = Segment { from: PlacementKey(*a.min(b)), to: PlacementKey(*a.max(b)) };
            net.held.insert(id, if *whole { Segment::ALL } else { some });
        }
        net.catch_up();
        let mut plans = 0;
        while plans < 60 && net.step().changes.iter().any(|change| change.reason == Reason::Healed) {
            plans += 1;
        }
        prop_assert!(plans <= 2, "{plans} plans for {} records", ranges.len());
        net.check_map();
        net.settle_checked();
        net.check_settled();
        let domains: BTreeSet<_> = ranges.iter().map(|(domain, ..)| *domain).collect();
        if domains.len() > REPLICAS && domains.len() == ranges.len() {
            prop_assert!(net.segments().into_iter().all(|segment| net.strength(segment) >= REPLICAS));
        }
    }
}
