//! Scenarios of two nodes that cannot reach each other: asked through a forwarder, met at a relay.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use peerage_proto::link::Side;
use peerage_proto::node::{Answer, Command, Event, Failure, Input, OwnLeg, Way};
use peerage_proto::path::PathRole;
use peerage_wire::id::NodeId;
use support::{Decision, Faults, PRINTER, SITE, USER, World, device, found, lan, office, printer};

/// An office whose tunnel-node only its contact reaches; with what both nodes are called.
fn behind_routers(seed: u64) -> (World, [std::net::SocketAddr; 2], [NodeId; 2]) {
    let (mut world, site, user) = office(seed);
    world.apart.insert([site.min(user), site.max(user)]);
    let ids = [world.host(site).id, world.host(user).id];
    (world, [site, user], ids)
}

fn way(answer: Answer) -> Way {
    let Answer::Route(route) = answer else { panic!("{answer:?}") };
    route.way
}

/// Rules 6.28 to 6.32: the whole way, without a lost datagram, in the time that one exchange takes.
#[test]
fn two_nodes_behind_routers_meet_at_the_relay_of_the_operator() {
    let (mut world, [site, user], [site_id, user_id]) = behind_routers(1);
    let began = world.now.mono;
    let Way::Tunnel { peer, relayed, candidates, .. } = way(world.route(user, "hp", None)) else {
        panic!("not through a tunnel")
    };
    assert_eq!((peer, candidates.is_empty()), (site_id, false));
    assert!(world.now.mono - began < Duration::from_millis(500), "something had to be sent twice");
    let [(first, at_site), (second, at_user)] = world.legs.joined[..] else {
        panic!("{:?}", world.legs.joined)
    };
    let (at_site, at_user) = if first == site { (at_site, at_user) } else { (at_user, at_site) };
    assert_eq!(([first, second].contains(&user), relayed), (true, Some(at_user.link)));
    let named = |leg: OwnLeg| (leg.relay, leg.link, leg.peer, leg.side, leg.peer.is_of(&leg.identity));
    let operator = world.operator_id;
    assert_eq!(named(at_site), (operator, at_user.link, user_id, Side::Server, true));
    assert_eq!(named(at_user), (operator, at_user.link, site_id, Side::Client, true));
    assert_eq!(world.operator.relayed().tunnels, 1);
}

/// Rule 6.32: the user-node dials its leg when it asks, not when it is answered.
#[test]
fn the_leg_is_dialled_with_the_request() {
    let (mut world, [site, user], _) = behind_routers(2);
    // What comes from the tunnel-node is lost, so it neither answers nor joins.
    world.cut.insert(site);
    let task = world.command(user, Command::Route { device: "hp".to_owned(), service: None });
    while world.legs.dialled.is_empty() && !world.host(user).answers.contains_key(&task) {
        world.run(Duration::from_millis(10));
    }
    assert!(!world.host(user).answers.contains_key(&task));
    assert!(world.legs.dialled.iter().any(|(address, _)| *address == user), "{:?}", world.legs.dialled);
    assert!(world.legs.joined.is_empty());
    let Way::Tunnel { relayed, .. } = way(world.await_answer(user, task)) else { panic!() };
    assert!(relayed.is_some());
}

/// Rule 6.2: a repetition is sealed anew, and makes no second leg; another attempt is no repetition.
#[test]
fn lost_and_doubled_datagrams_make_neither_none_nor_two_legs() {
    for seed in 10..30 {
        let (mut world, [site, user], _) = behind_routers(seed);
        world.faults = Faults { lost: 25, doubled: 30, delay_millis: 50 };
        let task = world.command(user, Command::Route { device: "hp".to_owned(), service: None });
        let answer = world.await_answer(user, task);
        world.run(Duration::from_secs(4));
        if let Answer::Route(_) = answer {
            for address in [site, user] {
                let of = |(dialler, _): &&(_, _)| *dialler == address;
                let links: Vec<_> = world.legs.dialled.iter().filter(of).map(|(_, leg)| leg.link).collect();
                let different: BTreeSet<_> = links.iter().collect();
                assert_eq!(different.len(), links.len(), "seed {seed}: {:?}", world.legs.dialled);
            }
        }
        assert_eq!(world.operator.relayed().tunnels, world.legs.joined.len() / 2, "seed {seed}");
    }
}

/// Rule 6.28: what a tunnel-node answers to an old key is a hint, and comes back through the forwarder like an answer.
#[test]
fn a_tunnel_node_that_has_started_anew_is_reached_all_the_same() {
    let (mut world, [site, user], _) = behind_routers(3);
    way(world.route(user, "hp", None));
    let before = world.legs.joined.len();
    world.restart(site);
    world.run(Duration::from_secs(12));
    way(world.route(user, "hp", None));
    assert_eq!(world.legs.joined.len(), before + 2);
}

/// Rule 6.31: revoked, a node loses what is relayed for it, and so does its partner.
#[test]
fn the_legs_of_a_revoked_node_are_closed() {
    let (mut world, [_, user], [_, user_id]) = behind_routers(4);
    way(world.route(user, "hp", None));
    assert_eq!(world.operator.relayed().tunnels, 1);
    world.revoke(user_id);
    world.run(Duration::from_secs(1));
    let load = world.operator.relayed();
    assert_eq!((load.tunnels, load.legs), (0, 0));
}

/// Rule 6.31: a leg whose partner does not come is given up after ten seconds, and the machine holds nothing.
#[test]
fn a_leg_without_a_partner_is_given_up() {
    let (mut world, [site, user], _) = behind_routers(5);
    world.cut.insert(site);
    let task = world.command(user, Command::Route { device: "hp".to_owned(), service: None });
    world.await_answer(user, task);
    assert_eq!(world.operator.relayed().legs, 1);
    world.run(Duration::from_secs(11));
    assert_eq!(world.operator.relayed().legs, 0);
}

/// Without a relay that takes connections, and without a direct way, the route still says where the node has announced itself.
#[test]
fn a_relay_that_refuses_connections_does_not_stop_the_search() {
    let (mut world, [_, user], _) = behind_routers(6);
    world.legs.refuse = true;
    let answer = world.route(user, "hp", None);
    assert!(matches!(answer, Answer::Route(_) | Answer::Failed(Failure::TunnelNodesSilent)), "{answer:?}");
    assert!(world.legs.joined.is_empty());
}

/// Where both reach each other, the answer of the shortest way counts, and the leg is there beside it.
#[test]
fn a_node_that_can_be_reached_answers_directly_and_meets_at_the_relay_too() {
    let (mut world, site, user) = office(7);
    let Way::Tunnel { candidates, relayed, .. } = way(world.route(user, "hp", None)) else { panic!() };
    assert_eq!((candidates.first().map(|c| c.address), relayed.is_some()), (Some(site), true));
}

/// Lets both nodes see that the link over the operator's relay has broken.
fn break_relayed_link(world: &mut World, nodes: [std::net::SocketAddr; 2]) {
    let relay = world.operator_id;
    for node in nodes {
        world.input(node, Input::RelayLost(relay));
    }
}

/// Lets the user-node look for the peer of its open tunnel, as its links do, until both have met at a relay again. Returns how long
/// that took.
fn until_they_meet(world: &mut World, user: std::net::SocketAddr, peer: NodeId) -> Duration {
    let (began, before) = (world.now.mono, world.legs.joined.len());
    loop {
        let (device, service) = (device(), "ipp".to_owned());
        let task = world.command(user, Command::Path { peer, device, service });
        world.await_answer(user, task);
        let took = world.now.mono - began;
        if world.legs.joined.len() >= before + 2 {
            return took;
        }
        assert!(took < Duration::from_secs(60), "they never meet");
        // Each attempt leaves a leg that waits for ten seconds, and a relay takes eight of one node.
        world.run(Duration::from_millis(700));
    }
}

/// Rule 6.33: the tunnel-node tells a relay that was started again at once that it is there, and the user-node asks it there.
#[test]
fn both_ends_of_a_tunnel_are_back_at_once_when_their_relay_was_started_again() {
    let (mut world, [site, user], [site_id, user_id]) = behind_routers(8);
    way(world.route(user, "hp", None));
    assert!(matches!(world.open(site, 1, user_id, device(), "ipp"), Decision::Served(_)));
    world.run(Duration::from_secs(30));
    world.restart_operator();
    break_relayed_link(&mut world, [site, user]);
    let pause = until_they_meet(&mut world, user, site_id);
    assert!(pause < Duration::from_millis(1_000), "{pause:?}");
}

/// Rule 6.33: as long as tunnels wait, a relay that is away is asked every second, and more rarely only after a longer outage.
#[test]
fn both_ends_of_a_tunnel_are_back_soon_after_a_relay_that_was_away() {
    for (away, within) in [(2, 2_000), (20, 3_000), (300, 20_000)] {
        let (mut world, [site, user], [site_id, user_id]) = behind_routers(9);
        way(world.route(user, "hp", None));
        assert!(matches!(world.open(site, 1, user_id, device(), "ipp"), Decision::Served(_)));
        world.run(Duration::from_secs(30));
        world.operator_up = false;
        break_relayed_link(&mut world, [site, user]);
        let (from, since) = (world.log.len(), world.now.mono);
        world.run(Duration::from_secs(away));
        let sent = world.log[from..].iter().filter(|flight| flight.from == site).count();
        assert!(sent <= 10 + 2 * usize::try_from(away).unwrap(), "{sent} datagrams in {away} s");
        world.restart_operator();
        assert_eq!(world.now.mono - since, Duration::from_secs(away));
        let pause = until_they_meet(&mut world, user, site_id);
        assert!(pause < Duration::from_millis(within), "{away} s: {pause:?}");
    }
}

/// Rule 6.33: a peer can break its links as often as it likes; the relay is asked no more for it than answers come.
#[test]
fn a_relay_that_answers_is_not_asked_again() {
    let (mut world, [site, user], _) = behind_routers(10);
    way(world.route(user, "hp", None));
    world.run(Duration::from_secs(30));
    let from = world.log.len();
    break_relayed_link(&mut world, [site, user]);
    world.run(Duration::from_secs(5));
    let sent = world.log[from..].iter().filter(|flight| [site, user].contains(&flight.from)).count();
    assert!(sent <= 4, "{sent}");
}

/// Rules 6.15 and 6.17: of two tunnel-nodes the one that served before is dead, and the other is asked a quarter of a second later.
#[test]
fn a_dead_tunnel_node_makes_nobody_wait_while_another_serves() {
    let (mut world, site, user) = office(11);
    let other = world.join("45.10.0.2:7400", lan("192.168.1.11", 1));
    world.host(other).lan.insert(PRINTER, found("192.168.1.77"));
    world.run(Duration::from_secs(320));
    let Way::Tunnel { peer: first, .. } = way(world.route(user, "hp", None)) else { panic!() };
    let dead = if first == world.host(site).id { site } else { other };
    world.cut.insert(dead);
    let began = world.now.mono;
    for _again in 0..2 {
        let Way::Tunnel { peer, candidates, relayed, .. } = way(world.route(user, "hp", None)) else {
            panic!()
        };
        assert_ne!(peer, first);
        assert_eq!((candidates.is_empty(), relayed.is_some()), (false, true));
    }
    assert!(world.now.mono - began < Duration::from_millis(600), "{:?}", world.now.mono - began);
    // Whom it has not waited for, it has forgotten.
    world.run(Duration::from_secs(1));
    let from = world.log.len();
    world.run(Duration::from_secs(5));
    let to_dead = world.log[from..].iter().filter(|flight| flight.from == user && flight.to == dead).count();
    assert_eq!(to_dead, 0);
}

/// Rule 6.4: all who were found when the devices were listed are known, also those whose own records came later.
#[test]
fn a_tunnel_node_that_was_listed_and_is_dead_makes_nobody_wait_while_another_serves() {
    for (seed, is_first) in (20..26).flat_map(|seed| [(seed, true), (seed, false)]) {
        let (mut world, site, user) = office(seed);
        let other = world.join("45.10.0.2:7400", lan("192.168.1.11", 1));
        world.host(other).lan.insert(PRINTER, found("192.168.1.77"));
        world.run(Duration::from_secs(320));
        world.faults.delay_millis = 40;
        let task = world.command(user, Command::RefreshDevices);
        assert_eq!(world.await_answer(user, task), Answer::Refreshed);
        let dead = if is_first { site } else { other };
        world.cut.insert(dead);
        let dead_id = world.host(dead).id;
        let began = world.now.mono;
        let Way::Tunnel { peer, .. } = way(world.route(user, "hp", None)) else { panic!() };
        assert_ne!(peer, dead_id, "seed {seed}");
        assert!(world.now.mono - began < Duration::from_millis(700), "{:?}", world.now.mono - began);
    }
}

/// Rules 6.91 and 6.95: how a router shows a node is announced, and where it answers both ends learn of the path.
#[test]
fn the_place_that_a_router_shows_is_a_path_when_it_has_answered() {
    let mut world = World::new(8);
    let site = world.join_with(SITE, lan("192.168.1.10", 1), 0, |config| config.advertise.clear());
    let user = world.join_with(USER, lan("192.168.2.20", 2), 0, |config| config.advertise.clear());
    world.host(site).lan.insert(PRINTER, found("192.168.1.77"));
    world.run(Duration::from_secs(1));
    let (site_id, user_id) = (world.host(site).id, world.host(user).id);
    world.put_device(printer(site_id));
    world.run(Duration::from_secs(2));
    let Way::Tunnel { candidates, .. } = way(world.route(user, "hp", None)) else { panic!() };
    assert!(candidates.iter().any(|candidate| candidate.address == site), "{candidates:?}");
    let learned = |world: &mut World, at| {
        let paths = world.host(at).events.iter().filter_map(|event| {
            let Event::PathFound(path) = event else { return None };
            Some((path.peer, path.remote, path.role))
        });
        let mut paths: Vec<_> = paths.collect();
        // It may be told again.
        paths.dedup();
        paths
    };
    assert_eq!(learned(&mut world, user), [(site_id, site, PathRole::Dial)]);
    assert_eq!(learned(&mut world, site), [(user_id, user, PathRole::Await)]);
}
