//! Catching up, staying in step, and going on after a restart.

use std::time::Duration;

use chacha20::ChaCha20Rng;
use peerage_proto::node::SuperState;
use peerage_wire::id::{PlaceKey, PlacementKey, RecordKey, Segment};
use peerage_wire::message::{Part, Reconciled, Reply, Request};
use peerage_wire::record::{SetSummary, Table, UnverifiedRecord};
use rand_core::Rng as _;

use crate::world::{LENDER, LENDERS, RED, World, holder_at, operator_address};

const SECOND: Duration = Duration::from_secs(1);
const TRANSFER: u8 = 7;
const RECONCILE: u8 = 27;

fn served(world: &World, number: u8) -> usize {
    world.operator.served.get(&number).copied().unwrap_or(0)
}

/// Rule 6.54: silent until it has everything, and then complete.
#[test]
fn a_newcomer_answers_only_once_it_has_everything() {
    let mut world = World::new(40);
    world.register(RED, 0..200);
    let member = world.member("192.0.2.7:7400", RED);
    let holder = world.lend(holder_at(1), LENDERS[0]);
    let record = world.assign(holder, Segment::ALL);
    world.run(15 * SECOND);
    // What it asks for does not come through yet.
    world.operator.is_mute = true;
    world.operator.served.clear();
    world.push(holder, &[record]);
    world.run(5 * SECOND);
    assert!(matches!(world.status(holder).state, SuperState::Serving { .. }));
    assert_eq!(world.devices_told(member, holder), None);
    assert_eq!(world.ask(member, holder, &Request::GetRevocations { after: None }), None);
    world.operator.is_mute = false;
    world.run(30 * SECOND);
    assert_eq!(world.devices_told(member, holder), Some(200));
    assert_eq!(world.on_disk(holder, Table::EndDevice, RED), 200);
    assert!(served(&world, TRANSFER) <= 80, "{} pages", served(&world, TRANSFER));
}

/// Rule 6.54: nobody to catch up with, nothing to say.
#[test]
fn a_newcomer_without_anybody_to_ask_is_silent_and_tries_again() {
    let mut world = World::new(41);
    world.register(RED, 0..20);
    let member = world.member("192.0.2.7:7400", RED);
    let holder = world.lend(holder_at(1), LENDERS[0]);
    let record = world.assign(holder, Segment::ALL);
    world.run(15 * SECOND);
    world.push(holder, &[record]);
    world.restart_without_disk(holder);
    world.operator.is_up = false;
    world.run(60 * SECOND);
    assert_eq!(world.devices_told(member, holder), None);
    world.operator.is_up = true;
    world.run(30 * SECOND);
    let again = world.assign(holder, Segment::ALL);
    world.push(holder, &[again]);
    world.run(5 * SECOND);
    assert_eq!(world.devices_told(member, holder), Some(20));
}

/// Rule 6.54: the bulk comes from another holder, announcements too; the operator is asked whether that was all.
#[test]
fn a_second_holder_takes_the_bulk_from_the_first() {
    let mut world = World::new(42);
    world.register(RED, 0..300);
    let first = world.holder(1, LENDERS[0], Segment::ALL);
    let member = world.member("192.0.2.7:7400", RED);
    let node = world.actors[&member].record.clone();
    world.push(first, &[node]);
    let info = world.info(member, &[]);
    world.ask(member, first, &Request::Store(info.bytes().clone())).unwrap();
    let before = served(&world, TRANSFER);
    let second = world.holder(2, LENDERS[1], Segment::ALL);
    let pages = served(&world, TRANSFER) - before;
    assert!(pages <= 6, "{pages} pages from the operator");
    assert_eq!(world.devices_told(member, second), Some(300));
    let id = world.actors[&member].id;
    let asked = world.ask(member, second, &Request::GetNodeInfo(id));
    assert_eq!(asked, Some(Reply::NodeInfo(Some(info.bytes().clone()))));
}

/// Rule 6.54: who was appointed a moment ago has nothing to give yet, so that those of a new network need not wait for each other.
#[test]
fn newcomers_that_are_appointed_together_do_not_wait_for_each_other() {
    let mut world = World::new(48);
    world.register(RED, 0..20);
    let member = world.member("192.0.2.7:7400", RED);
    let holders = [1, 2, 3].map(|n| world.lend(holder_at(n), LENDERS[usize::from(n) - 1]));
    world.run(15 * SECOND);
    let records = holders.map(|holder| world.assign(holder, Segment::ALL));
    for holder in holders {
        world.push(holder, &records);
    }
    world.run(SECOND);
    for holder in holders {
        assert_eq!(world.devices_told(member, holder), Some(20));
    }
}

/// Rules 4.8 and 6.54: the cost is that of the difference.
#[test]
fn two_holders_with_ten_different_records_of_many_settle_in_tens_of_messages() {
    let mut world = World::new(43);
    world.register(RED, 0..1_000);
    let first = world.holder(1, LENDERS[0], Segment::ALL);
    let second = world.holder(2, LENDERS[1], Segment::ALL);
    let newer = world.register(RED, 500..505);
    let added = world.register(RED, 1_000..1_005);
    // The operator reaches one of them only.
    world.push(first, &newer);
    world.push(first, &added);
    world.cut.insert(operator_address());
    let version = newer[0].header().version;
    let is_settled = |world: &World| {
        let held = world.holders[&second].disk.get(&newer[0].header().id()).unwrap().header().version;
        held == version && world.on_disk(second, Table::EndDevice, RED) == 1_005
    };
    // Within two of the regular comparisons.
    let messages = (0..150).find_map(|_| {
        world.carried.clear();
        world.run(10 * SECOND);
        let between = |a, b| world.carried.get(&(a, b)).copied().unwrap_or(0);
        is_settled(&world).then(|| between(first, second) + between(second, first))
    });
    assert!(messages.is_some_and(|messages| messages <= 80), "{messages:?} datagrams");
    assert_eq!(world.on_disk(first, Table::EndDevice, RED), 1_005);
}

/// Rules 6.52 and 6.59: what operators signed is on disk, and answered at once after a restart, without anybody's help.
#[test]
fn a_holder_that_is_started_again_goes_on_from_its_disk() {
    let mut world = World::new(44);
    world.register(RED, 0..50);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let member = world.member("192.0.2.7:7400", RED);
    world.operator.is_up = false;
    world.run(5 * SECOND);
    let records = world.status(holder).records;
    world.restart(holder);
    assert!(world.status(holder).records + 3 >= records);
    assert_eq!(world.devices_told(member, holder), Some(50));
    let tag = peerage_wire::id::LookupTag([3; 16]);
    let request = Request::GetTunnelNodes { tags: vec![tag], after: None };
    assert_eq!(world.ask(member, holder, &request), None, "what was announced it does not know any more");
    world.run(60 * SECOND);
    let info = world.info(member, &[tag]);
    world.ask(member, holder, &Request::Store(info.bytes().clone())).unwrap();
    let Some(Reply::TunnelNodes(page)) = world.ask(member, holder, &request) else {
        panic!("silent for ever")
    };
    assert_eq!(page.records.len(), 1);
}

/// A node whose owner has changed his mind while it was off has nothing left of others.
#[test]
fn a_node_that_is_started_without_the_role_clears_its_disk() {
    let mut world = World::new(45);
    world.register(RED, 0..20);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    assert_eq!(world.on_disk(holder, Table::EndDevice, RED), 20);
    world.restart_with(holder, |config| config.super_role.on = false);
    assert_eq!(world.on_disk(holder, Table::EndDevice, RED), 0);
    assert_eq!(world.on_disk(holder, Table::Node, LENDERS[0]), 1, "its own stays");
}

/// Rule 6.54: what another holder keeps back, an operator has.
#[test]
fn a_holder_that_keeps_something_back_does_not_spoil_a_newcomer() {
    let mut world = World::new(46);
    world.register(RED, 0..50);
    let liar = lying_fellow(&mut world, |request, _| match request {
        // It says that it holds nothing at all.
        Request::Reconcile { .. } => Some(Reply::Reconciled(Reconciled::Entries(Vec::new()))),
        Request::TransferPartition { .. } => Some(Reply::Partition(peerage_wire::message::Page::default())),
        _ => None,
    });
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let member = world.member("192.0.2.7:7400", RED);
    assert_eq!(world.devices_told(member, holder), Some(50));
    assert!(world.actors[&liar].asked > 0, "it was asked");
}

/// Rule 6.54: what could not be checked in the end is checked as soon as an operator answers.
#[test]
fn a_check_that_failed_is_made_up_for_soon() {
    let mut world = World::new(49);
    world.register(RED, 0..50);
    lying_fellow(&mut world, |request, _| match request {
        Request::Reconcile { .. } => Some(Reply::Reconciled(Reconciled::Entries(Vec::new()))),
        Request::TransferPartition { .. } => Some(Reply::Partition(peerage_wire::message::Page::default())),
        _ => None,
    });
    let holder = world.lend(holder_at(1), LENDERS[0]);
    let liar = world.operator.ledger.super_nodes(Segment::ALL, world.now.unix).next().unwrap().0.clone();
    world.run(25 * SECOND);
    let record = world.assign(holder, Segment::ALL);
    world.operator.is_mute = true;
    world.push(holder, &[record, liar]);
    world.run(30 * SECOND);
    let member = world.member("192.0.2.7:7400", RED);
    assert_eq!(world.devices_told(member, holder), Some(0), "it knows no better");
    world.operator.is_mute = false;
    world.run(90 * SECOND);
    assert_eq!(world.devices_told(member, holder), Some(50));
}

/// Rule 6.54: whoever invents differences costs a bounded number of requests.
#[test]
fn a_holder_that_lies_without_end_costs_little() {
    let mut world = World::new(47);
    world.register(RED, 0..20);
    let liar = lying_fellow(&mut world, |request, rng| match request {
        Request::Reconcile { from, to, .. } => Some(Reply::Reconciled(invented(*from, *to, rng))),
        Request::TransferPartition { .. } => {
            Some(Reply::Partition(peerage_wire::message::Page { records: Vec::new(), more: true }))
        }
        _ => None,
    });
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let member = world.member("192.0.2.7:7400", RED);
    world.run(60 * SECOND);
    assert_eq!(world.devices_told(member, holder), Some(20));
    let asked = world.actors[&liar].asked;
    assert!((1..=700).contains(&asked), "{asked} requests");
    world.run(3_000 * SECOND);
    let later = world.actors[&liar].asked - asked;
    assert!(later <= 5 * 700, "{later} requests in fifty minutes");
}

/// Rule 6.54: whoever lacks everything for ever, and thanks for all that it is given, does not draw the table again and again.
#[test]
fn a_holder_that_lacks_everything_for_ever_is_given_a_bounded_part_of_it_an_hour() {
    static GIVEN: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let given = || GIVEN.load(std::sync::atomic::Ordering::Relaxed);
    let mut world = World::new(50);
    world.register(RED, 0..1_500);
    lying_fellow(&mut world, |request, _| match request {
        Request::Reconcile { .. } => Some(Reply::Reconciled(Reconciled::Entries(Vec::new()))),
        Request::Store(bytes) => {
            let header = *UnverifiedRecord::parse(bytes).ok()?.header();
            if header.table == Table::EndDevice {
                GIVEN.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
            Some(Reply::Stored { table: header.table, key: header.key, version: header.version })
        }
        _ => None,
    });
    world.holder(1, LENDERS[0], Segment::ALL);
    world.run(3_500 * SECOND);
    assert!((1..=256).contains(&given()), "{} records in an hour", given());
    world.run(7_200 * SECOND);
    assert!((257..=3 * 256 + 256).contains(&given()), "{} records in three hours", given());
}

/// Rules 2.7 and 6.55: the clocks were an hour ahead, that of the operator first, until somebody set it right.
#[test]
fn what_was_announced_while_the_clocks_were_ahead_gives_way_when_they_are_right() {
    let mut world = World::new(51);
    let hour = Duration::from_secs(3_600);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let member = world.member("192.0.2.7:7400", RED);
    let node = world.actors[&member].record.clone();
    world.push(holder, &[node]);
    world.run(30 * SECOND);
    world.now.unix = world.now.unix.after(hour);
    world.run(60 * SECOND);
    let ahead = world.info(member, &[]);
    assert!(world.ask(member, holder, &Request::Store(ahead.bytes().clone())).is_some());
    world.run(330 * SECOND);
    world.now.unix = world.now.unix.before(hour);
    world.run(60 * SECOND);
    let info = world.info(member, &[]);
    assert!(info.header().version < ahead.header().version);
    let stored = world.ask(member, holder, &Request::Store(info.bytes().clone()));
    assert!(matches!(stored, Some(Reply::Stored { version, .. }) if version == info.header().version));
    // And what it holds about itself, at its next announcement.
    world.run(400 * SECOND);
    let (id, latest) = (world.holders[&holder].id, world.now.unix.after(Duration::from_secs(120)));
    let own = world.holders[&holder].node.held_record(Table::NodeInfo, id.domain, id.record_key());
    let made = own.map(|record| record.header().made_at());
    assert!(made.is_some_and(|made| made <= latest), "its own is of {made:?} at {:?}", world.now.unix);
}

/// Cuts every stretch into parts that are full of records that nobody has.
fn invented(from: PlaceKey, to: PlaceKey, rng: &mut ChaCha20Rng) -> Reconciled {
    let (low, high) = (from.place.0, to.place.0);
    let middle = PlaceKey { place: PlacementKey(low + (high - low) / 2), key: RecordKey([0xff; 32]) };
    let mut part = |to| {
        let mut sum = [0; 32];
        rng.fill_bytes(&mut sum);
        Part { to, summary: SetSummary { count: 1_000_000, sum } }
    };
    let parts = if middle < to && middle > from { vec![part(middle), part(to)] } else { vec![part(to)] };
    Reconciled::Parts(parts)
}

/// Adds a holder of everything that is no honest one.
fn lying_fellow(
    world: &mut World,
    answers: fn(&Request, &mut ChaCha20Rng) -> Option<Reply>,
) -> std::net::SocketAddr {
    let (identity, _, [node, _]) = world.admit(LENDERS[2], LENDER);
    let (id, key) = (identity.node_id(LENDERS[2]), identity.public());
    let liar = world.actor("192.0.2.66:7400", identity, node);
    world.actors.get_mut(&liar).unwrap().answers = Some(answers);
    world.assign_node(id, key, liar, Segment::ALL);
    liar
}

/// A regular comparison of equals costs a handful of messages.
#[test]
fn two_equal_holders_compare_in_a_few_messages() {
    let mut world = World::new(48);
    world.register(RED, 0..500);
    let first = world.holder(1, LENDERS[0], Segment::ALL);
    let second = world.holder(2, LENDERS[1], Segment::ALL);
    world.run(60 * SECOND);
    world.carried.clear();
    world.operator.served.clear();
    world.run(3_600 * SECOND);
    let between = |a, b| world.carried.get(&(a, b)).copied().unwrap_or(0);
    let messages = between(first, second) + between(second, first);
    // Two holders, some four comparisons each with the other in an hour, six questions and answers in each; besides what each
    // announces every five minutes, and the Heads of its own domain.
    assert!(messages <= 260, "{messages} datagrams");
    assert!(served(&world, RECONCILE) <= 60, "{}", served(&world, RECONCILE));
    assert_eq!(served(&world, TRANSFER), 0);
}

/// Rules 6.54 and 6.76: of the map a holder has what concerns the domains of its range, and nothing about others is fetched.
#[test]
fn a_newcomer_fetches_the_part_of_the_map_that_concerns_it() {
    let mut world = World::new(49);
    let domain = |n: u32| Segment::of_domain(peerage_wire::id::Domain(n));
    let (own, elsewhere) = (domain(1_000), domain(2_000));
    let near = world.lend(holder_at(2), LENDERS[1]);
    let far = world.lend(holder_at(3), LENDERS[2]);
    world.assign(near, own);
    world.assign(far, elsewhere);
    let holder = world.holder(1, LENDERS[0], own);
    world.run(60 * SECOND);
    assert_eq!(world.on_disk(holder, Table::SuperNode, LENDERS[1]), 1);
    assert_eq!(world.on_disk(holder, Table::SuperNode, LENDERS[2]), 0);
}

/// Rules 4.8 and 6.54: what an operator has said of a change of the map may be lost; it is asked at every third comparison, and whom it does
/// not list is forgotten.
#[test]
fn a_super_node_whose_end_was_not_heard_of_is_forgotten_at_the_next_comparison_with_an_operator() {
    let mut world = World::new(50);
    let member = world.member("192.0.2.7:7400", RED);
    let holders = [1, 2, 3].map(|n| world.holder(n, LENDERS[usize::from(n) - 1], Segment::ALL));
    world.run(1_800 * SECOND);
    let told = |world: &mut World, holder| {
        let asked = world.ask(member, holder, &Request::GetSuperNodes { key: None, after: None });
        if let Some(Reply::SuperNodes(page)) = asked { page.records.len() } else { 0 }
    };
    assert_eq!(holders.map(|holder| told(&mut world, holder)), [3; 3]);
    world.dismiss(holders[2]);
    world.run(2_400 * SECOND);
    assert_eq!([0, 1].map(|n| told(&mut world, holders[n])), [2; 2]);
    assert_eq!(world.on_disk(holders[0], Table::SuperNode, LENDERS[2]), 0);
}

/// Rule 4.5: members who have not heard of a change of the map ask who held their places before.
#[test]
fn a_holder_that_has_moved_says_who_holds_what_it_had() {
    let mut world = World::new(51);
    let member = world.member("192.0.2.7:7400", RED);
    let moved = world.holder(1, LENDERS[0], Segment::ALL);
    let new = world.holder(2, LENDERS[1], Segment::ALL);
    let own = Segment::of_domain(RED);
    let above = Segment { from: PlacementKey(own.to.0 + 1), to: PlacementKey::MAX };
    let record = world.assign(moved, above);
    world.push(moved, &[record]);
    // Until it has dropped what it had.
    world.run(120 * SECOND);
    assert_eq!(world.ask(member, moved, &Request::GetRevocations { after: None }), None);
    let asked = world.ask(member, moved, &Request::GetSuperNodes { key: None, after: None });
    let Some(Reply::SuperNodes(page)) = asked else { panic!("{asked:?}") };
    let keys = page.records.iter().map(|bytes| UnverifiedRecord::parse(bytes).unwrap().header().key);
    assert_eq!(keys.collect::<Vec<_>>(), [world.holders[&new].id.record_key()]);
}
