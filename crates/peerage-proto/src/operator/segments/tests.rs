//! What the planner does, rule by rule; random histories are in `histories`.

mod histories;

use chacha20::ChaCha20Rng;
use peerage_wire::id::PlacementKey;
use rand_core::SeedableRng as _;

use super::*;
use crate::segments::diversity::Prefix;
use crate::segments::{Coverage, Holder};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// Rule 6.23: before anybody has joined, everything is the operator's, and there is nothing to sign.
#[test]
fn without_super_nodes_there_is_nothing_to_do() {
    let net = Net::new();
    assert_eq!(net.plan(), Plan { changes: vec![], next_at: None });
}

#[test]
fn the_first_super_nodes_are_given_everything() {
    let mut net = Net::new();
    for domain in 1..=4 {
        let id = net.join(domain);
        net.settle();
        assert_eq!(net.held.get(&id), Some(&Segment::ALL));
    }
}

/// The own super-node is an extra for an organisation, so the operator steps back when each has three others.
#[test]
fn the_operator_steps_back_with_the_fourth_organisation() {
    let mut net = Net::new();
    for domain in 1..=3 {
        net.join(domain);
    }
    net.settle();
    assert!(net.coverage().operator_stands_in_for(Domain(1)), "two others");
    assert!(!net.coverage().operator_stands_in_for(Domain(9)), "three others");
    net.join(4);
    net.settle();
    assert!(!net.coverage().operator_stands_in_for(Domain(1)));
}

#[test]
fn a_company_alone_may_use_three_super_nodes_and_more_stand_by() {
    let mut net = Net::new();
    let company: Vec<_> = (0..5).map(|_| net.join(7)).collect();
    net.settle();
    assert_eq!(company.iter().filter(|id| net.held.contains_key(id)).count(), REPLICAS);
}

/// Whoever was taken for want of anybody better goes when there are others; one stays with its own domain.
#[test]
fn holders_of_one_company_give_way_to_those_of_others() {
    let mut net = Net::new();
    let company: Vec<_> = (0..3).map(|_| net.join(7)).collect();
    net.settle();
    for domain in [1, 2, 3] {
        net.join(domain);
    }
    let reasons = net.settle();
    assert_eq!(company.iter().filter(|id| net.held.contains_key(id)).count(), 1);
    assert_eq!(reasons.iter().filter(|change| change.reason == Reason::Surplus).count(), 2);
}

#[test]
fn two_of_the_same_prefix_do_not_serve_the_same_segment_when_there_are_others() {
    let mut net = Net::new();
    for domain in [1, 2, 3, 4] {
        net.join(domain);
    }
    net.settle();
    let twin = net.join_at(0x8000_0000, "10.0.1.77:1");
    net.settle();
    assert!(net.held.contains_key(&twin), "with its own domain it is an extra");
    let stranger = net.join_at(0x8000_0000, "10.0.2.77:1");
    net.settle();
    assert!(!net.held.contains_key(&stranger), "neither organisation nor prefix are new");
}

#[test]
fn eight_organisations_are_divided_and_each_stays_with_its_own_domain() {
    let mut net = Net::new();
    for n in 0..7 {
        net.join(n << 29);
    }
    net.settle();
    assert_eq!(
        net.segments().len(),
        1,
        "with seven one side would have three, of which one is no replica to its own"
    );
    net.join(7 << 29);
    let changes = net.settle();
    assert_eq!(net.segments().len(), 2);
    assert!(changes.iter().skip(1).all(|change| change.reason == Reason::Split), "{changes:?}");
    assert_eq!(net.held.values().filter(|segment| segment.contains(PlacementKey::MIN)).count(), 4);
    assert!(net.held.iter().all(|(id, segment)| segment.touches(id.domain)));
}

/// With twice three holders, none of a domain in the segment, three are on either side.
#[test]
fn a_segment_is_split_at_twice_the_replicas() {
    let mut net = Net::two_segments();
    let upper = net.segments()[1];
    for id in net.holders(upper) {
        net.leave_no_trace(&id);
    }
    // They are of domains in the other segment, so for this one each is a replica.
    net.assign_by_hand(upper, 5);
    assert_eq!(net.settle(), [], "five are not split");
    net.assign_by_hand(upper, 1);
    let changes = net.settle();
    assert_eq!(changes.iter().filter(|change| change.reason == Reason::Split).count(), 6, "{changes:?}");
    let halves: Vec<_> = net.segments().into_iter().filter(|segment| upper.covers(segment)).collect();
    assert_eq!(halves.len(), 2);
    for half in halves {
        assert_eq!(net.held.values().filter(|held| **held == half).count(), REPLICAS);
    }
}

#[test]
fn who_has_not_fetched_everything_is_not_counted_for_a_split() {
    let mut net = Net::new();
    for n in 0..8 {
        net.join(n << 29);
    }
    net.step();
    assert!(net.step().changes.is_empty(), "all are still fetching");
    assert_eq!(net.segments().len(), 1);
    net.catch_up();
    net.settle();
    assert_eq!(net.segments().len(), 2);
}

/// Rule 6.73: whoever belongs to a domain has to know all who hold any place of it, and of a large one these would be nearly everybody.
#[test]
fn a_domain_with_most_of_the_records_is_cut_for_room_alone() {
    let huge = Domain(0x4000_0000);
    let pieces_with = |capacity| {
        let mut net = Net::new();
        net.load = (1..=40).map(|n| (Domain(n << 25), 1_000)).chain([(huge, 1_000_000)]).collect();
        for n in 1..=200 {
            let id = net.join(n << 23);
            net.nodes.get_mut(&id).unwrap().capacity = capacity;
        }
        net.settle();
        assert!(net.segments().len() >= 30, "the others are divided as ever: {}", net.segments().len());
        assert!(net.segments().into_iter().all(|segment| net.strength(segment) >= REPLICAS));
        net.coverage().segments_of(huge).count()
    };
    assert_eq!(pieces_with(u64::MAX), 1);
    assert_eq!(pieces_with(1_400_000), 1);
    assert_eq!(pieces_with(400_000), 4);
}

#[test]
fn a_handful_of_records_does_not_cut_a_domain() {
    let mut net = Net::new();
    let small = Domain(0x4000_0000);
    net.load.insert(small, 100);
    for n in 0..40 {
        net.join(n << 26);
    }
    net.settle();
    assert!(net.segments().len() >= 4);
    assert_eq!(net.segments().iter().filter(|segment| segment.touches(small)).count(), 1);
}

#[test]
fn a_newcomer_serves_the_segment_of_its_own_domain_first() {
    let mut net = Net::two_segments();
    for n in 0..20 {
        let domain = 0x1234_5678_u32.wrapping_mul(2 * n + 1);
        let id = net.join(domain);
        net.step();
        assert!(net.held[&id].touches(Domain(domain)));
        net.leave_no_trace(&id);
    }
}

/// Its own domain has one of it already, so chance decides among three.
#[test]
fn other_newcomers_serve_one_of_the_three_poorest_by_chance() {
    let mut net = Net::new();
    for n in 0..60 {
        net.join(n << 26);
    }
    net.settle();
    let counts = net
        .segments()
        .into_iter()
        .map(|segment| (net.held.values().filter(|held| **held == segment).count(), segment));
    let mut poorest: Vec<_> = counts.collect();
    poorest.sort_unstable();
    let limit = poorest[2].0;
    let mut chosen = std::collections::BTreeSet::new();
    for seed in 0..60 {
        net.seed = seed;
        let id = net.join(0);
        net.step();
        chosen.insert(net.held[&id]);
        net.leave_no_trace(&id);
    }
    let home = *net.segments().first().unwrap();
    assert!(!chosen.contains(&home), "one of its organisation is there");
    assert!(chosen.len() >= 2, "{chosen:?}");
    assert!(chosen.len() <= POOREST, "{chosen:?}");
    assert!(poorest.iter().all(|(count, segment)| *count <= limit || !chosen.contains(segment)));
}

#[test]
fn a_lost_super_node_keeps_its_place_for_ten_minutes() {
    let (mut net, spare) = Net::with_spare();
    let lost = net.holder_of_first_segment();
    net.lose(&lost);
    net.wait(9 * MINUTE);
    assert_eq!(net.settle(), []);
    net.wait(MINUTE);
    let changes = net.settle();
    assert!(!net.held.contains_key(&lost));
    assert!(changes.contains(&Change { node: lost, segment: None, reason: Reason::Lost }));
    assert!(net.held.contains_key(&spare), "who stood by has taken over");
}

#[test]
fn a_super_node_that_comes_and_goes_changes_nothing() {
    let (mut net, _) = Net::with_spare();
    let flapping = net.holder_of_first_segment();
    for _ in 0..100 {
        net.lose(&flapping);
        net.wait(8 * MINUTE);
        assert_eq!(net.settle(), []);
        net.nodes.get_mut(&flapping).unwrap().standing = Standing::Live;
        net.wait(5 * SECOND);
        assert_eq!(net.settle(), []);
    }
}

#[test]
fn below_two_a_lost_super_node_is_replaced_at_once() {
    let mut net = Net::rich_and_poor();
    let poor = net.holders(net.segments()[0]);
    assert_eq!(poor.len(), 4);
    for id in &poor[1..] {
        net.lose(id);
    }
    net.wait(34 * SECOND);
    assert_eq!(net.settle(), [], "their reports may just be late");
    net.wait(SECOND);
    let changes = net.settle();
    let moved: Vec<_> = changes.iter().filter(|change| change.reason == Reason::Moved).collect();
    assert_eq!(moved.len(), 1, "to have two again; the rest after ten minutes: {changes:?}");
    assert!(poor.iter().all(|id| net.held.contains_key(id)), "the lost may still come back");
    net.wait(10 * MINUTE);
    net.settle();
    assert!(net.strength(net.segments()[0]) >= REPLICAS);
}

/// A move comes from a segment that can spare it, so nothing follows from it.
#[test]
fn a_replacement_leaves_no_other_segment_poor() {
    let mut net = Net::rich_and_poor();
    let lost = net.holders(net.segments()[0])[0];
    net.lose(&lost);
    net.wait(10 * MINUTE);
    let changes = net.settle();
    assert_eq!(changes.len(), 2, "one gone, one moved: {changes:?}");
    for segment in net.segments() {
        assert!(net.strength(segment) >= REPLICAS);
    }
}

/// When everybody falls silent at once, the operator's own network is the likelier reason.
#[test]
fn when_all_are_silent_nothing_changes_for_ten_minutes() {
    let mut net = Net::rich_and_poor();
    // Their leases run out over 30 s, as each has reported at another time.
    let all: Vec<_> = net.held.keys().copied().collect();
    for (n, id) in all.iter().enumerate() {
        let late = Duration::from_millis(u64::try_from(n).unwrap() * 30_000 / 16);
        net.nodes.get_mut(id).unwrap().standing = Standing::Lost { since: net.now.after(late) };
    }
    for _ in 0..590 {
        net.wait(SECOND);
        assert_eq!(net.settle(), []);
    }
    net.wait(MINUTE);
    net.settle();
    assert!(net.held.is_empty(), "the operator has everything again, and everybody can see it");
}

#[test]
fn a_segment_that_lost_all_holders_joins_its_neighbour_at_once() {
    let mut net = Net::two_segments();
    let [lower, upper] = [net.segments()[0], net.segments()[1]];
    let lost = net.holders(lower);
    for id in &lost {
        net.lose(id);
    }
    net.wait(SETTLE_TIME);
    net.settle();
    assert_eq!(net.segments(), [Segment::ALL]);
    assert!(lost.iter().all(|id| !net.held.contains_key(id)));
    let back = lost[0];
    net.nodes.get_mut(&back).unwrap().standing = Standing::Live;
    net.settle();
    assert!(net.held.contains_key(&back), "who comes back after all is a newcomer");
    assert_ne!(upper, Segment::ALL);
}

#[test]
fn a_segment_that_lost_all_holders_goes_to_those_who_stand_by() {
    let mut net = Net::two_segments();
    let lower = net.segments()[0];
    for id in net.holders(lower) {
        net.lose(&id);
    }
    // They come while the leases run out; in this plan they are newcomers, and it is in need.
    net.wait(SETTLE_TIME);
    let helpers: Vec<_> = (0..4).map(|n| net.join(0xf000_0000 + n)).collect();
    net.step();
    assert!(helpers.iter().any(|id| net.held[id] == lower));
    assert_eq!(net.segments().len(), 2, "no reason to join");
}

/// Who is gone is expected back for ten minutes; until then it keeps nobody of its own organisation from helping out.
#[test]
fn a_segment_with_one_holder_left_goes_to_others_of_the_same_organisations_as_well() {
    let mut net = Net::new();
    let first: Vec<_> = (1..=4).map(|domain| net.join(domain)).collect();
    net.settle();
    let spares = [net.join(1), net.join(2)];
    assert_eq!(net.settle(), []);
    for id in &first[..3] {
        net.lose(id);
    }
    net.wait(SETTLE_TIME);
    net.settle();
    assert!(spares.iter().any(|id| net.held.contains_key(id)), "one is enough to have two");
    assert!(first.iter().all(|id| net.held.contains_key(id)), "the lost may still come back");
    for id in &first {
        net.nodes.get_mut(id).unwrap().standing = Standing::Live;
    }
    net.settle();
    assert_eq!(net.held.len(), first.len(), "nobody is there twice any more");
}

#[test]
fn a_lost_segment_for_which_nobody_has_room_falls_to_the_operator() {
    let mut net = Net::two_segments();
    let [lower, upper] = [net.segments()[0], net.segments()[1]];
    net.load.insert(lower.from.domain(), 1_000);
    for id in net.holders(upper) {
        net.nodes.get_mut(&id).unwrap().capacity = 999;
    }
    for id in net.holders(lower) {
        net.lose(&id);
    }
    net.wait(SETTLE_TIME);
    net.settle();
    assert_eq!(net.segments(), [upper]);
    assert!(net.coverage().operator_stands_in(lower.from, lower.from.domain()));
    let helper = net.join(1);
    net.settle();
    assert_eq!(net.held[&helper], lower, "the next newcomer with room gets it");
}

#[test]
fn segments_are_joined_when_both_have_too_few() {
    let mut net = Net::two_segments();
    for segment in net.segments() {
        for id in &net.holders(segment)[2..] {
            net.lose(id);
        }
    }
    net.wait(10 * MINUTE);
    net.settle();
    assert_eq!(net.segments(), [Segment::ALL]);
    assert_eq!(net.strength(Segment::ALL), REPLICAS);
}

#[test]
fn who_leaves_goes_at_once_if_enough_stay() {
    let mut net = Net::new();
    let ids: Vec<_> = (1..=5).map(|domain| net.join(domain)).collect();
    net.settle();
    net.leave(&ids[0]);
    assert_eq!(net.settle(), [Change { node: ids[0], segment: None, reason: Reason::HandedOver }]);
}

#[test]
fn who_leaves_waits_until_the_newcomer_has_everything() {
    let (mut net, spare) = Net::with_spare();
    let leaving = net.holder_of_first_segment();
    net.leave(&leaving);
    let first = net.step().changes;
    assert_eq!(first.len(), 1);
    assert_eq!((first[0].node, first[0].reason), (spare, Reason::Assigned));
    net.wait(5 * MINUTE);
    assert!(net.step().changes.is_empty());
    net.catch_up();
    assert_eq!(net.step().changes, [Change { node: leaving, segment: None, reason: Reason::HandedOver }]);
}

#[test]
fn who_leaves_does_not_wait_for_ever() {
    let (mut net, _) = Net::with_spare();
    let leaving = net.holder_of_first_segment();
    net.leave(&leaving);
    net.step();
    net.wait(HANDOVER_TIMEOUT);
    assert_eq!(net.step().changes, [Change { node: leaving, segment: None, reason: Reason::HandedOver }]);
}

#[test]
fn the_last_super_node_may_leave() {
    let mut net = Net::new();
    let only = net.join(1);
    net.settle();
    net.leave(&only);
    net.settle();
    assert!(net.held.is_empty());
}

/// The neighbours fetch its records while it still answers for them.
#[test]
fn the_last_holder_of_a_segment_leaves_after_the_neighbours_have_everything() {
    let mut net = Net::two_segments();
    let lower = net.segments()[0];
    let holders = net.holders(lower);
    for id in &holders {
        net.leave(id);
    }
    net.step();
    assert!(holders.iter().all(|id| net.held.get(id) == Some(&lower)));
    assert!(net.held.iter().all(|(id, segment)| holders.contains(id) || *segment == Segment::ALL));
    assert!(net.step().changes.is_empty());
    net.catch_up();
    net.step();
    assert_eq!(net.segments(), [Segment::ALL]);
}

#[test]
fn who_is_in_quarantine_loses_its_record_and_gets_no_other() {
    let (mut net, spare) = Net::with_spare();
    let liar = net.holder_of_first_segment();
    net.nodes.get_mut(&liar).unwrap().standing = Standing::Quarantined;
    let changes = net.settle();
    assert!(changes.contains(&Change { node: liar, segment: None, reason: Reason::Quarantined }));
    assert!(net.held.contains_key(&spare));
    net.wait(60 * MINUTE);
    assert_eq!(net.settle(), []);
}

#[test]
fn who_is_no_member_any_more_loses_its_record() {
    let (mut net, _) = Net::with_spare();
    let revoked = net.holder_of_first_segment();
    net.nodes.remove(&revoked);
    let changes = net.settle();
    assert!(changes.contains(&Change { node: revoked, segment: None, reason: Reason::Gone }));
}

#[test]
fn an_operator_that_starts_anew_waits_for_the_super_nodes_of_its_map() {
    let mut net = Net::rich_and_poor();
    let started_at = net.now;
    for _ in 0..29 {
        for node in net.nodes.values_mut() {
            node.standing = Standing::by_lease(None, started_at, net.now);
            node.ready = false;
        }
        assert_eq!(net.plan().changes, []);
        net.wait(10 * SECOND);
    }
    for node in net.nodes.values_mut() {
        node.standing = Standing::by_lease(Some(net.now), started_at, net.now);
    }
    assert_eq!(net.plan().changes, []);
}

#[test]
fn a_lease_runs_out_after_three_offers_that_did_not_come() {
    let start = Instant::from_micros(0);
    let heard_at = start.after(MINUTE);
    let at = |seconds| Standing::by_lease(Some(heard_at), start, heard_at.after(seconds * SECOND));
    assert_eq!(at(75), Standing::Live);
    assert_eq!(at(76), Standing::Lost { since: heard_at.after(LEASE) });
    assert_eq!(Standing::by_lease(None, start, start), Standing::Lost { since: start.after(RETURN_TIME) });
}

#[test]
fn ranges_that_overlap_in_part_are_put_in_order() {
    let mut net = Net::two_segments();
    let [lower, upper] = [net.segments()[0], net.segments()[1]];
    let before = net.held.clone();
    let strays = [net.holders(lower)[0], net.holders(upper)[0]];
    // One from before the split, one from a map that nobody else knows.
    net.held.insert(strays[0], Segment::ALL);
    let shifted = PlacementKey(upper.from.0 - 1_000);
    net.held.insert(strays[1], Segment { from: shifted, to: upper.to });
    let changes = net.settle();
    assert_eq!(changes.len(), 2);
    assert!(changes.iter().all(|change| change.reason == Reason::Healed));
    assert_eq!(net.segments(), [lower, upper]);
    assert_eq!(net.held[&strays[1]], before[&strays[1]]);
}

#[test]
fn places_that_nobody_holds_are_given_to_somebody() {
    let mut net = Net::two_segments();
    let upper = net.segments()[1];
    let hole = Segment { from: PlacementKey(upper.from.0 + 5), to: upper.to };
    for id in net.holders(upper) {
        net.held.insert(id, hole);
    }
    net.settle();
    for place in [upper.from, PlacementKey(upper.from.0 + 4), PlacementKey::MIN, PlacementKey::MAX] {
        assert!(!net.coverage().operator_stands_in(place, place.domain()), "{place}");
    }
}

#[test]
fn a_split_needs_a_super_node_of_the_vendor_on_both_sides() {
    let mut net = Net::new();
    net.join_vendor();
    for n in [0, 1, 2, 4, 5, 6, 7] {
        net.join(n << 29);
    }
    net.settle();
    assert_eq!(net.segments().len(), 1);
    net.join_vendor();
    net.settle();
    assert_eq!(net.segments().len(), 2);
    for segment in net.segments() {
        assert_eq!(net.holders(segment).iter().filter(|id| net.nodes[id].vendor).count(), 1);
    }
}

/// A vendor with few super-nodes does not keep a large network in one piece.
#[test]
fn a_crowded_segment_is_split_even_if_the_vendor_has_too_few() {
    let mut net = Net::new();
    net.join_vendor();
    for n in 0..60 {
        net.join(n << 26);
    }
    net.settle();
    assert!(net.segments().len() >= 4, "{}", net.segments().len());
}

#[test]
fn the_vendors_super_nodes_are_spread_over_the_segments() {
    let mut net = Net::new();
    for n in 0..60 {
        net.join(n << 26);
    }
    net.settle();
    let segments = net.segments().len();
    assert!(segments >= 4);
    for _ in 0..segments {
        net.join_vendor();
    }
    net.settle();
    for segment in net.segments() {
        assert!(net.holders(segment).iter().any(|id| net.nodes[id].vendor), "{segment}");
    }
}

#[test]
fn a_segment_that_lost_its_vendor_is_given_one_that_is_second_elsewhere() {
    let mut net = Net::two_segments();
    for _ in 0..3 {
        net.join_vendor();
        net.settle();
    }
    let single = net.segments().into_iter().find(|segment| net.vendors(*segment) == 1).unwrap();
    let lost = net.holders(single).into_iter().find(|id| net.nodes[id].vendor).unwrap();
    net.lose(&lost);
    net.wait(10 * MINUTE);
    let changes = net.settle();
    assert_eq!(changes.iter().filter(|change| change.reason == Reason::VendorFloor).count(), 1);
    assert!(net.segments().into_iter().all(|segment| net.vendors(segment) == 1));
}

#[test]
fn a_small_super_node_is_not_given_a_large_segment() {
    let mut net = Net::two_segments();
    let [lower, upper] = [net.segments()[0], net.segments()[1]];
    net.load.insert(lower.from.domain(), 1_000);
    let small = net.join(lower.from.domain().0);
    net.nodes.get_mut(&small).unwrap().capacity = 500;
    net.settle();
    assert_eq!(net.held[&small], upper);
}

/// Rule 6.73: a network that grew while its operator was alone is cut into parts for which there is room, and never waits for
/// somebody who could hold it as a whole.
#[test]
fn a_table_that_fits_nobody_is_cut_among_those_who_wait() {
    let mut net = Net::new();
    net.load = (1..=40).map(|domain| (Domain(domain << 20), 100)).collect();
    let nodes: Vec<_> = (1..=40).map(|domain| net.join(domain << 20)).collect();
    for id in &nodes {
        net.nodes.get_mut(id).unwrap().capacity = 1_000;
    }
    net.settle();
    for segment in net.segments() {
        assert!(net.strength(segment) >= REPLICAS, "{segment:?}");
        let inside = net.load.keys().filter(|domain| segment.touches(**domain)).count();
        assert!(inside * 100 <= 1_000, "{inside} domains");
    }
    assert_eq!(net.segments().first().map(|segment| segment.from), Some(PlacementKey::MIN));
    assert_eq!(net.segments().last().map(|segment| segment.to), Some(PlacementKey::MAX));
}

/// Rule 6.73: those who come one by one do not all go where others are already.
#[test]
fn a_table_that_fits_nobody_is_held_in_the_end_by_those_who_come_one_by_one() {
    let mut net = Net::new();
    net.load = (1..=40).map(|domain| (Domain(domain << 20), 100)).collect();
    for domain in 1..=40 {
        let id = net.join(domain << 20);
        net.nodes.get_mut(&id).unwrap().capacity = 1_000;
        net.settle();
    }
    for domain in net.load.keys() {
        let place = Segment::of_domain(*domain).from;
        assert!(!net.coverage().operator_stands_in(place, *domain), "{domain:?}");
    }
}

/// Rule 6.73: those who are too few for all of it hold what they have room for; the rest stays the operator's.
#[test]
fn who_has_room_for_a_part_only_is_given_a_part() {
    let mut net = Net::new();
    net.load = (1..=40).map(|domain| (Domain(domain << 20), 100)).collect();
    let nodes: Vec<_> = (1..=4).map(|domain| net.join(domain << 20)).collect();
    for id in &nodes {
        net.nodes.get_mut(id).unwrap().capacity = 1_000;
    }
    net.settle();
    assert_eq!(net.segments().len(), 1);
    let segment = net.segments()[0];
    assert_ne!(segment, Segment::ALL);
    assert!(net.holders(segment).len() >= REPLICAS);
}

/// Rule 6.73: an organisation that fits nobody's memory is cut, and each of its places has holders.
#[test]
fn a_domain_that_fits_nobody_is_cut_across_segments() {
    let mut net = Net::new();
    let huge = Domain(7 << 20);
    net.load = (1..=10).map(|domain| (Domain(domain << 20), 100)).chain([(huge, 4_000)]).collect();
    let nodes: Vec<_> = (1..=40).map(|domain| net.join(domain << 20)).collect();
    for id in &nodes {
        net.nodes.get_mut(id).unwrap().capacity = 1_000;
    }
    net.settle();
    let coverage = net.coverage();
    let pieces: Vec<_> = coverage.segments_of(huge).collect();
    assert!(pieces.len() >= 4, "{}", pieces.len());
    assert!(pieces.iter().all(|(piece, _)| !coverage.operator_stands_in(piece.from, huge)));
}

#[test]
fn one_plan_changes_a_limited_number_of_records() {
    let mut net = Net::new();
    for n in 0..200_u32 {
        net.join(n << 24);
    }
    net.settle();
    let held = net.held.len();
    assert!(held > 150, "{held}");
    let lost: Vec<_> = net.held.keys().copied().collect();
    for id in lost.iter().step_by(2) {
        net.lose(id);
    }
    net.wait(10 * MINUTE);
    let mut plans = 0;
    loop {
        let plan = net.step();
        assert!(plan.changes.len() <= MAX_CHANGES, "{}", plan.changes.len());
        net.catch_up();
        plans += 1;
        if plan.changes.is_empty() {
            break;
        }
    }
    assert!(plans > 2);
    assert!(net.segments().into_iter().all(|segment| net.strength(segment) >= REPLICAS));
}

/// A tombstone for who is gone is not urgent; a segment without anybody is.
#[test]
fn tombstones_do_not_keep_a_lost_segment_waiting() {
    let mut net = Net::new();
    for n in 0..200_u32 {
        net.join(n << 24);
    }
    net.settle();
    let all = net.segments();
    for segment in &all {
        for id in net.holders(*segment).iter().skip(1).step_by(2) {
            net.lose(id);
        }
    }
    net.wait(REPLACE_AFTER - SETTLE_TIME);
    let empty = all[all.len() / 2];
    for id in net.holders(empty) {
        net.lose(&id);
    }
    net.wait(SETTLE_TIME);
    let changes = net.step().changes;
    let lost = changes.iter().filter(|change| change.reason == Reason::Lost).count();
    assert!(lost >= MAX_CHANGES / 2, "{lost}");
    let coverage = net.coverage();
    let holders = coverage.holders_of(empty.from).iter();
    assert!(holders.into_iter().any(|id| net.nodes[id].standing == Standing::Live));
}

#[test]
fn a_plan_says_when_time_alone_will_matter() {
    let mut net = Net::rich_and_poor();
    assert_eq!(net.plan().next_at, None);
    let lost = net.holder_of_first_segment();
    net.lose(&lost);
    let since = net.now;
    assert_eq!(net.plan().next_at, Some(since.after(SETTLE_TIME)));
    net.wait(SETTLE_TIME);
    assert_eq!(net.plan().next_at, Some(since.after(REPLACE_AFTER)));
}

#[test]
fn the_same_seed_makes_the_same_plan() {
    let plan = || {
        let mut net = Net::rich_and_poor();
        for _ in 0..9 {
            net.join(0);
        }
        net.plan()
    };
    assert_eq!(plan(), plan());
}

/// A network as the operator sees it.
struct Net {
    nodes: BTreeMap<NodeId, SuperNode>,
    held: BTreeMap<NodeId, Segment>,
    load: BTreeMap<Domain, u64>,
    now: Instant,
    seed: u64,
    made: u32,
}

impl Net {
    fn new() -> Self {
        Self {
            nodes: BTreeMap::new(),
            held: BTreeMap::new(),
            load: BTreeMap::new(),
            now: Instant::from_micros(1_000_000_000_000),
            seed: 0,
            made: 0,
        }
    }

    /// Two segments of four holders, each of whom is with its own domain.
    fn two_segments() -> Self {
        let mut net = Self::new();
        for n in 0..8 {
            net.join(n << 29);
        }
        net.settle();
        assert_eq!(net.segments().len(), 2);
        net
    }

    /// Two segments, the second of which has more than it needs but cannot be split: all are of domains on one
    /// side.
    fn rich_and_poor() -> Self {
        let mut net = Self::two_segments();
        for n in 1..=3 {
            net.join(u32::MAX - n);
        }
        net.settle();
        assert_eq!(net.segments().len(), 2);
        net
    }

    /// Four holders of everything, and a second of one organisation that stands by.
    fn with_spare() -> (Self, NodeId) {
        let mut net = Self::new();
        for domain in 1..=4 {
            net.join(domain);
        }
        net.settle();
        let spare = net.join(1);
        assert_eq!(net.settle(), []);
        (net, spare)
    }

    /// A new super-node at an address of its own prefix.
    fn join(&mut self, domain: u32) -> NodeId {
        let [_, high, middle, _] = (self.made + 1).to_be_bytes().map(u32::from);
        let address = format!("10.{}.{}.1:1", high * 256 + middle, (self.made + 1) % 256);
        self.join_at(domain, &address)
    }

    fn join_at(&mut self, domain: u32, address: &str) -> NodeId {
        self.made += 1;
        let id = NodeId::new(Domain(domain), &[u8::try_from(self.made).unwrap_or(0); 32]);
        let hash = peerage_wire::id::sha256(&[&id.hash, &self.made.to_be_bytes()]);
        let id = NodeId { hash, ..id };
        let prefixes = Prefix::of_all(&[address.parse().unwrap()]);
        let node =
            SuperNode { prefixes, vendor: false, standing: Standing::Live, ready: false, capacity: u64::MAX };
        self.nodes.insert(id, node);
        id
    }

    fn join_vendor(&mut self) -> NodeId {
        let id = self.join(0x7777_7777);
        self.nodes.get_mut(&id).unwrap().vendor = true;
        id
    }

    /// Super-nodes of domains outside of a segment that hold it, as after moves.
    fn assign_by_hand(&mut self, segment: Segment, count: u32) -> Vec<NodeId> {
        (0..count)
            .map(|_| {
                let id = self.join(self.made);
                assert!(!segment.touches(id.domain));
                self.held.insert(id, segment);
                self.nodes.get_mut(&id).unwrap().ready = true;
                id
            })
            .collect()
    }

    fn leave_no_trace(&mut self, id: &NodeId) {
        self.nodes.remove(id);
        self.held.remove(id);
    }

    fn lose(&mut self, id: &NodeId) {
        self.nodes.get_mut(id).unwrap().standing = Standing::Lost { since: self.now };
    }

    fn leave(&mut self, id: &NodeId) {
        self.nodes.get_mut(id).unwrap().standing = Standing::Leaving { since: self.now };
    }

    fn wait(&mut self, time: Duration) {
        self.now = self.now.after(time);
    }

    fn plan(&self) -> Plan {
        let situation = Situation { nodes: &self.nodes, held: &self.held, load: &self.load };
        plan(situation, &mut ChaCha20Rng::seed_from_u64(self.seed), self.now)
    }

    /// Plans, and signs the records.
    fn step(&mut self) -> Plan {
        let plan = self.plan();
        self.seed += 1;
        for change in &plan.changes {
            let before = match change.segment {
                Some(segment) => self.held.insert(change.node, segment),
                None => self.held.remove(&change.node),
            };
            if let (Some(node), Some(segment)) = (self.nodes.get_mut(&change.node), change.segment) {
                node.ready &= before.is_some_and(|before| before.covers(&segment));
            }
        }
        plan
    }

    /// Everybody fetches what is missing.
    fn catch_up(&mut self) {
        for (id, node) in &mut self.nodes {
            node.ready |= self.held.contains_key(id) && node.standing == Standing::Live;
        }
    }

    /// Plans until nothing changes any more.
    fn settle(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        for _ in 0..1_000 {
            self.catch_up();
            let plan = self.step();
            if plan.changes.is_empty() {
                return changes;
            }
            changes.extend(plan.changes);
        }
        panic!("the map does not settle: {:?}", &changes[changes.len() - 20..]);
    }

    fn segments(&self) -> Vec<Segment> {
        let all: std::collections::BTreeSet<_> = self.held.values().copied().collect();
        all.into_iter().collect()
    }

    fn holders(&self, segment: Segment) -> Vec<NodeId> {
        self.held.iter().filter(|(_, held)| **held == segment).map(|(id, _)| *id).collect()
    }

    fn holder_of_first_segment(&self) -> NodeId {
        self.holders(self.segments()[0])[0]
    }

    fn vendors(&self, segment: Segment) -> usize {
        self.holders(segment).iter().filter(|id| self.nodes[id].vendor).count()
    }

    fn members(&self, segment: Segment) -> Vec<diversity::Member<'_>> {
        let live = |id: &NodeId| self.nodes.get(id).filter(|node| node.standing == Standing::Live);
        let holders = self.holders(segment).into_iter();
        holders.filter_map(|id| Some(diversity::Member { id, node: live(&id)? })).collect()
    }

    /// Live replicas for the worst-off domain of a segment.
    fn strength(&self, segment: Segment) -> usize {
        diversity::strength(&self.members(segment), &segment)
    }

    fn coverage(&self) -> Coverage {
        let prefixes = |id: &NodeId| self.nodes.get(id).map(|node| node.prefixes.clone()).unwrap_or_default();
        let holder = |id: &NodeId| Holder { node: *id, prefixes: prefixes(id) };
        Coverage::new(self.held.iter().map(|(id, segment)| (holder(id), *segment)))
    }
}
