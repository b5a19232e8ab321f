//! Scenarios of members that lend their machines: the operator gives them the table, and takes it back.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in its helpers too"
)]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use peerage_proto::node::{Answer, Command, SuperConfig, SuperState, Way};
use peerage_proto::operator::{self, SuperState as Seen};
use peerage_wire::frame::Code;
use peerage_wire::id::Segment;
use peerage_wire::record::Table;
use support::lenders::lender_address;
use support::{DOMAIN, Decision, OPERATOR_ADDRESS, PRINTER, SITE, USER, World, device, found, lan, printer};

const SECOND: Duration = Duration::from_secs(1);

/// A printer and a tunnel-node at its site, in a network with so many lenders.
fn lending(seed: u64, lenders: u8) -> (World, SocketAddr) {
    let mut world = World::new(seed);
    let site = world.join(SITE, lan("192.168.1.10", 1));
    world.host(site).lan.insert(PRINTER, found("192.168.1.77"));
    world.run(SECOND);
    let via = world.host(site).id;
    world.put_device(printer(via));
    for n in 1..=lenders {
        world.add_lender(n);
    }
    world.run(60 * SECOND);
    (world, site)
}

fn state(world: &mut World, lender: SocketAddr) -> SuperState {
    let now = world.now;
    world.host(lender).node.status(now).super_role.state
}

fn seen(world: &World, lender: SocketAddr) -> Option<Seen> {
    let id = world.hosts[&lender].id;
    let all = world.operator.super_nodes(world.now);
    all.into_iter().find(|status| status.node == id).map(|status| status.state)
}

fn serves_all(world: &mut World, lender: SocketAddr) -> bool {
    let Segment { from, to } = Segment::ALL;
    state(world, lender) == SuperState::Serving { from, to }
}

/// Rules 6.71 and 6.73: called back over both, and then given a part.
#[test]
fn a_lent_node_that_can_be_reached_becomes_a_super_node() {
    let (mut world, _) = lending(1, 1);
    assert_eq!(world.map(), [(world.hosts[&lender_address(1)].id, Segment::ALL)]);
    assert!(serves_all(&mut world, lender_address(1)));
    assert_eq!(seen(&world, lender_address(1)), Some(Seen::Serving));
    let map = world.operator.segment_map();
    assert_eq!(map.len(), 1);
    assert!(map[0].stands_in, "one holder is not enough");
}

/// Rule 6.71: UDP alone is not enough; and when the owner opens the port, it becomes one.
#[test]
fn a_lent_node_that_no_connection_reaches_is_told_so() {
    let mut world = World::new(2);
    world.lending.closed.insert(lender_address(1));
    let lender = world.add_lender(1);
    world.run(60 * SECOND);
    assert_eq!(state(&mut world, lender), SuperState::Unreachable);
    assert_eq!(seen(&world, lender), Some(Seen::Unreachable));
    assert!(world.map().is_empty());
    world.lending.closed.clear();
    world.run(300 * SECOND);
    assert!(serves_all(&mut world, lender), "{:?}", state(&mut world, lender));
}

/// Rule 6.71: two misses in a row end the role.
#[test]
fn a_super_node_that_cannot_be_reached_any_more_ends_its_role() {
    let (mut world, _) = lending(3, 1);
    world.lending.closed.insert(lender_address(1));
    world.run(420 * SECOND);
    assert_eq!(seen(&world, lender_address(1)), Some(Seen::Unreachable));
    for _ in 0..200 {
        assert!(!serves_all(&mut world, lender_address(1)), "nobody gives it back what it could not serve");
        world.run(SECOND);
    }
    // When it can be reached again, it is.
    world.lending.closed.clear();
    world.run(700 * SECOND);
    assert!(serves_all(&mut world, lender_address(1)), "{:?}", state(&mut world, lender_address(1)));
}

/// Rules 6.23 and 6.75: with three the operator steps back, and look-ups do not reach it.
#[test]
fn with_three_lenders_the_operator_carries_no_look_ups() {
    let (mut world, _) = lending(4, 3);
    assert_eq!(world.map().len(), 3);
    assert!(!world.operator.segment_map()[0].stands_in);
    // Until everybody has the next Head, and the tunnel-node has announced itself to the super-nodes.
    world.run(400 * SECOND);
    let user = world.join(USER, lan("192.168.1.20", 2));
    world.run(60 * SECOND);
    let operator: SocketAddr = OPERATOR_ADDRESS.parse().unwrap();
    let before = world.log.len();
    let Answer::Route(route) = world.route(user, "hp", None) else { panic!("no route") };
    assert!(matches!(route.way, Way::Tunnel { .. }));
    let asked = world.log[before..].iter().filter(|flight| flight.from == user && flight.to == operator);
    assert_eq!(asked.count(), 0);
}

/// Rule 6.76: what is committed is with the holders within 5 s, without their asking.
#[test]
fn what_the_ledger_commits_is_pushed_to_the_holders() {
    let (mut world, site) = lending(5, 3);
    let via = world.host(site).id;
    let mut device = printer(via);
    device.name = "laser".to_owned();
    world.put_device(device);
    world.run(5 * SECOND);
    let newest = world.ledger.values().filter(|record| record.header().table == Table::EndDevice);
    let newest: Vec<_> = newest.cloned().collect();
    for n in 1..=3 {
        let stored = &world.hosts[&lender_address(n)].stored;
        assert!(newest.iter().all(|record| stored.contains(record)), "{n}");
    }
}

/// Rules 6.9 and 6.76: a revocation reaches members through super-nodes.
#[test]
fn a_revocation_reaches_members_through_super_nodes() {
    let (mut world, site) = lending(6, 3);
    let user = world.join(USER, lan("192.168.1.20", 2));
    world.run(400 * SECOND);
    let user_id = world.host(user).id;
    assert!(matches!(world.open(site, 1, user_id, device(), "ipp"), Decision::Served(_)));
    // The tunnel-node hears nothing from the operator itself.
    world.apart.insert({
        let operator: SocketAddr = OPERATOR_ADDRESS.parse().unwrap();
        [operator.min(site), operator.max(site)]
    });
    world.revoke(user_id);
    world.run(60 * SECOND);
    assert_eq!(world.host(site).closed.first().map(|(_, code)| *code), Some(Code::Revoked));
}

/// Rules 6.72 and 6.74: one that is lost is taken off the map after ten minutes, and another takes its place.
#[test]
fn a_super_node_that_dies_is_replaced() {
    let (mut world, _) = lending(7, 4);
    world.run(60 * SECOND);
    let before = world.map();
    let dead = lender_address(1);
    let dead_id = world.hosts[&dead].id;
    world.hosts.remove(&dead);
    world.run(90 * SECOND);
    let all = world.operator.super_nodes(world.now);
    let state = all.iter().find(|status| status.node == dead_id).map(|status| status.state);
    assert_eq!(state, Some(Seen::Lost));
    assert_eq!(world.map(), before, "most are back soon");
    world.run(700 * SECOND);
    world.add_lender(5);
    world.run(60 * SECOND);
    let after = world.map();
    assert!(after.iter().all(|(node, _)| *node != dead_id), "{after:?}");
    assert_eq!(after.len(), 4);
    assert!(!world.operator.segment_map()[0].stands_in);
    assert!(serves_all(&mut world, lender_address(5)));
}

/// Rules 6.51 and 6.74: whoever wants to stop is let go when others hold what it held.
#[test]
fn a_super_node_hands_over_and_stops() {
    let (mut world, _) = lending(8, 4);
    let leaver = lender_address(2);
    let task = world.command(leaver, Command::SuperOff);
    let answer = world.await_answer(leaver, task);
    assert_eq!(answer, Answer::SuperOff { handed_over: true });
    let id = world.hosts[&leaver].id;
    assert!(world.map().iter().all(|(node, _)| *node != id));
    assert_eq!(world.map().len(), 3);
}

/// Rule 6.78: a super-node in quarantine is in no list, and is not told.
#[test]
fn a_super_node_in_quarantine_is_left_out_and_hears_nothing_of_it() {
    let (mut world, _) = lending(9, 4);
    let bad = lender_address(3);
    let id = world.hosts[&bad].id;
    world.operator.handle(operator::Input::Quarantine { node: id, on: true }, world.now);
    world.run(10 * SECOND);
    assert_eq!(seen(&world, bad), Some(Seen::Quarantined));
    assert!(world.operator.segment_map()[0].holders.iter().all(|node| *node != id));
    assert!(world.map().iter().all(|(node, _)| *node != id));
    let others = [1, 2, 4].map(lender_address);
    for other in others {
        let tombstone = |record: &peerage_wire::record::Record| {
            record.header().table == Table::SuperNode
                && record.header().key == id.record_key()
                && record.header().removed
        };
        assert!(world.hosts[&other].stored.iter().any(tombstone), "{other} was told");
        assert!(!world.hosts[&bad].stored.iter().any(tombstone));
    }
    assert!(serves_all(&mut world, bad), "it goes on as if nothing had happened");
    world.operator.handle(operator::Input::Quarantine { node: id, on: false }, world.now);
    world.run(120 * SECOND);
    assert_eq!(seen(&world, bad), Some(Seen::Serving));
}

/// Rule 6.72: an operator that starts anew waits for its super-nodes, and goes on with the map as it is.
#[test]
fn an_operator_that_starts_anew_keeps_the_map() {
    let (mut world, _) = lending(10, 3);
    let before = world.map();
    world.restart_operator();
    world.run(900 * SECOND);
    assert_eq!(world.map(), before);
    for n in 1..=3 {
        assert_eq!(seen(&world, lender_address(n)), Some(Seen::Serving));
    }
}

/// Rule 6.70: whom the administrator does not permit the role, or revokes, loses it.
#[test]
fn a_revoked_super_node_is_taken_off_the_map() {
    let (mut world, _) = lending(11, 4);
    let bad = lender_address(1);
    let id = world.hosts[&bad].id;
    world.revoke(id);
    world.run(10 * SECOND);
    assert!(world.map().iter().all(|(node, _)| *node != id));
    assert_eq!(world.map().len(), 3);
}

/// An owner who lends his machine later than at the start.
#[test]
fn a_node_that_is_lent_later_is_given_a_part_too() {
    let (mut world, site) = lending(12, 0);
    world.lending.signs_maps = true;
    assert_eq!(state(&mut world, site), SuperState::Off);
    let on = SuperConfig { on: true, ..SuperConfig::default() };
    world.input(site, peerage_proto::node::Input::SuperRole(on));
    world.run(60 * SECOND);
    assert!(serves_all(&mut world, site), "{:?}", state(&mut world, site));
    assert_eq!(world.map().first().map(|(node, _)| node.domain), Some(DOMAIN));
}

/// Rule 6.73: whoever lends too little memory for any part is not needed until its owner lends more.
#[test]
fn a_lent_node_is_given_no_more_records_than_it_has_memory_for() {
    let (mut world, site) = lending(13, 0);
    world.lending.signs_maps = true;
    let little = SuperConfig { on: true, max_bytes: 2_560, ..SuperConfig::default() };
    world.input(site, peerage_proto::node::Input::SuperRole(little));
    world.run(120 * SECOND);
    assert_eq!((state(&mut world, site), seen(&world, site)), (SuperState::Asking, Some(Seen::Spare)));
    assert_eq!(world.map(), []);
    let enough = SuperConfig { max_bytes: 1 << 20, ..little };
    world.input(site, peerage_proto::node::Input::SuperRole(enough));
    world.run(120 * SECOND);
    assert!(serves_all(&mut world, site), "{:?}", state(&mut world, site));
    let status = world.operator.super_nodes(world.now).remove(0);
    assert_eq!((status.load.max_bytes, status.load.lacking), (1 << 20, 0));
}

/// Rule 6.6: whoever holds its own place needs one other holder, not two.
#[test]
fn a_super_node_is_one_of_the_two_holders_that_acknowledge_its_own_announcement() {
    let mut world = World::new(14);
    let site = world.join_with(SITE, lan("192.168.1.10", 1), 0, |config| {
        config.super_role = SuperConfig { on: true, ..SuperConfig::default() };
    });
    world.host(site).lan.insert(PRINTER, found("192.168.1.77"));
    world.run(SECOND);
    let via = world.host(site).id;
    world.put_device(printer(via));
    for n in 1..=3 {
        world.add_lender(n);
    }
    world.run(400 * SECOND);
    assert!(serves_all(&mut world, site));
    assert!(!world.operator.segment_map()[0].stands_in);
    for n in 1..=2 {
        world.hosts.remove(&lender_address(n));
    }
    world.restart(site);
    world.run(60 * SECOND);
    let now = world.now;
    assert!(world.host(site).node.status(now).announced, "two hold it");
    world.hosts.remove(&lender_address(3));
    world.restart(site);
    world.run(60 * SECOND);
    let now = world.now;
    assert!(!world.host(site).node.status(now).announced, "nobody but itself holds it");
}
