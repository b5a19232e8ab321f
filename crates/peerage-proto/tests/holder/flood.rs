//! What a holder bears: domains and members that want more than their share.

use std::time::Duration;

use peerage_proto::node::{Input, SuperConfig};
use peerage_wire::id::{LookupTag, Segment};
use peerage_wire::message::{RefusedReason, Reply, Request};
use peerage_wire::record::Table;

use crate::world::{BLUE, LENDERS, RED, World, holder_at};

const SECOND: Duration = Duration::from_secs(1);
const TRANSFER: u8 = 7;
const RECONCILE: u8 = 27;

/// Rule 6.55: the memory that the owner gave is not exceeded, and one domain that floods does not displace another's records.
#[test]
fn a_domain_that_floods_finds_its_own_way_barred() {
    let mut world = World::new(70);
    let holder = world.lend_with(holder_at(1), LENDERS[0], |config| config.super_role.max_bytes = 60_000);
    world.make_holder(holder, Segment::ALL);
    let quiet = world.member("192.0.3.1:7400", BLUE);
    let info = world.info(quiet, &[LookupTag([1; 16])]);
    world.ask(quiet, holder, &Request::Store(info.bytes().clone())).unwrap();
    let flooding: Vec<_> = (1..=60).map(|n| world.member(&format!("192.0.2.{n}:7400"), RED)).collect();
    let mut refused = 0;
    for member in flooding {
        let tags: Vec<_> = (0..8).map(|n| LookupTag([n; 16])).collect();
        let info = world.info(member, &tags);
        refused += u32::from(world.ask(member, holder, &Request::Store(info.bytes().clone())).is_none());
        assert!(world.status(holder).bytes <= 60_000, "{}", world.status(holder).bytes);
    }
    assert!(refused > 20, "{refused}");
    let request = Request::GetTunnelNodes { tags: vec![LookupTag([1; 16])], after: None };
    let Some(Reply::TunnelNodes(page)) = world.ask(quiet, holder, &request) else { panic!("silent") };
    assert_eq!(page.records, [info.bytes().clone()], "the quiet domain's is still there");
    // Rule 6.58: the operator hears who was refused what.
    world.run(400 * SECOND);
    let quota = world.operator.refused.iter().find(|(_, refused)| refused.reason == RefusedReason::Quota);
    assert!(quota.is_some_and(|(_, told)| told.domain == RED && told.count >= refused), "{quota:?}");
}

/// Rule 6.55: a part that exceeds the memory is not fetched again and again, and nobody is told half a set for the whole one.
#[test]
fn a_holder_without_memory_for_a_domain_is_silent_about_its_sets_and_asks_seldom() {
    let mut world = World::new(73);
    world.register(RED, 0..300);
    world.register(BLUE, 0..5);
    let holder = world.lend_with(holder_at(1), LENDERS[0], |config| config.super_role.max_bytes = 60_000);
    world.make_holder(holder, Segment::ALL);
    let (red, blue) = (world.member("192.0.2.7:7400", RED), world.member("192.0.3.1:7400", BLUE));
    world.run(60 * SECOND);
    assert_eq!(world.devices_told(red, holder), None);
    assert_eq!(world.devices_told(blue, holder), Some(5));
    assert_eq!(world.status(holder).lacking, 1);
    world.operator.served.clear();
    for _ in 0..72 {
        world.ask(red, holder, &Request::Attach);
        world.run(25 * SECOND);
    }
    let asked = world.operator.served.get(&RECONCILE).copied().unwrap_or(0);
    let pages = world.operator.served.get(&TRANSFER).copied().unwrap_or(0);
    assert!(asked + pages <= 600, "{asked} questions and {pages} pages in half an hour");
    // The owner lends more.
    let more = SuperConfig { on: true, max_bytes: 10_000_000, ..SuperConfig::default() };
    world.input(holder, Input::SuperRole(more));
    for _ in 0..60 {
        world.ask(red, holder, &Request::Attach);
        world.run(25 * SECOND);
    }
    assert_eq!((world.devices_told(red, holder), world.status(holder).lacking), (Some(300), 0));
}

/// Rule 6.55: a member that asks without end is not answered beyond its rate; others are.
#[test]
fn a_member_that_asks_without_end_does_not_slow_others() {
    let mut world = World::new(71);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let (greedy, other) = (world.member("192.0.2.7:7400", RED), world.member("192.0.2.8:7400", RED));
    let id = world.holders[&holder].id;
    world.ask(greedy, holder, &Request::Ping).unwrap();
    let before = world.status(holder).served;
    for _ in 0..1_000 {
        let now = world.now;
        world.actors.get_mut(&greedy).unwrap().endpoint.request(id, holder, &Request::Ping, now);
    }
    world.pump();
    let served = world.status(holder).served - before;
    assert!((300..=400).contains(&served), "{served} of 1000 at once");
    assert!(world.ask(other, holder, &Request::Ping).is_some());
    world.run(400 * SECOND);
    let rate = world.operator.refused.iter().find(|(_, refused)| refused.reason == RefusedReason::Rate);
    assert!(
        rate.is_some_and(|(from, told)| *from == id && told.domain == RED && told.count > 500),
        "{rate:?}"
    );
}

/// Rule 6.58: a report that no operator has noted is made again, once one answers.
#[test]
fn refusals_are_not_lost_with_a_report() {
    let mut world = World::new(72);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let member = world.member("192.0.2.7:7400", RED);
    world.ask(member, holder, &Request::Store(vec![0; 20].into()));
    world.run(5 * SECOND);
    let counted = world.status(holder).refusals;
    assert!(counted >= 1);
    world.operator.is_up = false;
    world.run(700 * SECOND);
    world.operator.is_up = true;
    world.run(400 * SECOND);
    let told: Vec<_> = world.operator.refused.iter().map(|(_, refused)| *refused).collect();
    assert_eq!(told.iter().map(|refused| u64::from(refused.count)).sum::<u64>(), counted, "{told:?}");
    world.run(1_000 * SECOND);
    assert_eq!(world.operator.refused.len(), told.len(), "nothing to tell, nothing told");
}

/// Rule 6.55: an owner who gives less gets it back at once, in memory and on disk.
#[test]
fn a_smaller_limit_takes_effect_at_once() {
    let mut world = World::new(73);
    world.register(RED, 0..100);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    assert_eq!(world.on_disk(holder, Table::EndDevice, RED), 100);
    let config = SuperConfig { on: true, max_bytes: 40_000, ..SuperConfig::default() };
    world.input(holder, Input::SuperRole(config));
    assert!(world.status(holder).bytes <= 40_000);
    assert!(world.on_disk(holder, Table::EndDevice, RED) < 60);
}

/// Rule 2.7: what has expired is gone from memory and disk, without anybody's doing.
#[test]
fn what_has_expired_is_dropped() {
    let mut world = World::new(74);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let member = world.member("192.0.2.7:7400", RED);
    let info = world.info(member, &[]);
    world.ask(member, holder, &Request::Store(info.bytes().clone())).unwrap();
    let short = world.commit(Table::EndDevice, (RED, peerage_wire::id::RecordKey([5; 32])), |mut draft| {
        draft.header.expires = draft.header.made_at().after(300 * SECOND);
        draft
    });
    world.push(holder, &[short]);
    let id = world.actors[&member].id;
    assert!(matches!(world.ask(member, holder, &Request::GetNodeInfo(id)), Some(Reply::NodeInfo(Some(_)))));
    assert_eq!(world.on_disk(holder, Table::EndDevice, RED), 1);
    world.run(300 * SECOND);
    world.run(70 * SECOND);
    assert_eq!(world.on_disk(holder, Table::EndDevice, RED), 0);
    world.run(350 * SECOND);
    assert_eq!(world.ask(member, holder, &Request::GetNodeInfo(id)), Some(Reply::NodeInfo(None)));
}
