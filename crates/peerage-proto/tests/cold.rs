//! Scenarios of a tunnel to a node to which no link stands: what a user-node begins before it is answered, and what it is answered.

mod support;

use std::time::Duration;

use bytes::Bytes;
use peerage_proto::node::{self, Answer, Begun, Command, Way};
use peerage_wire::limits::MAX_FLIGHT;
use support::{FLIGHT_SIZE, Faults, PRINTER, SITE, USER, World, flight_of, found, lan, office, printer};

fn way(answer: Answer) -> Way {
    let Answer::Route(route) = answer else { panic!("{answer:?}") };
    route.way
}

fn begun(answer: Answer) -> Option<Begun> {
    let Way::Tunnel { begun, .. } = way(answer) else { panic!("not through a tunnel") };
    begun
}

/// How many datagrams the operator has been sent by somebody.
fn sent_to_operator(world: &World, from: std::net::SocketAddr) -> usize {
    let is_meant =
        |flight: &&support::Flight| flight.from == from && flight.to.to_string() == support::OPERATOR_ADDRESS;
    world.log.iter().filter(is_meant).count()
}

/// Rules 6.17 and 7.29: the connection and the handshake are under way before the request; its answer has the other flight.
#[test]
fn a_request_for_a_path_carries_the_beginning_of_a_handshake() {
    let (mut world, site, user) = office(1);
    let answer = world.route(user, "hp", None);
    let (site_id, user_id) = (world.host(site).id, world.host(user).id);
    let [(attempt, places)] = &world.host(user).begun[..] else { panic!("not begun once") };
    let (attempt, first) = (*attempt, places.first().map(|place| place.address));
    assert_eq!(first, Some(site));
    let hello: Bytes = attempt.0.into_iter().cycle().take(218).collect();
    assert_eq!(begun(answer.clone()), Some(Begun { attempt, flight: Some(flight_of(&hello, FLIGHT_SIZE)) }));
    let Way::Tunnel { peer, relayed, .. } = way(answer) else { panic!() };
    assert_eq!((peer, relayed), (site_id, Some(attempt)));
    // It came directly and through a forwarder, and was the same both times.
    let prepared = &world.host(site).prepared;
    assert!(!prepared.is_empty() && prepared.iter().all(|one| *one == (user_id, hello.clone())));
}

/// Rule 7.29: nothing depends on it.
#[test]
fn a_node_that_begins_or_prepares_no_handshake_is_told_the_way_all_the_same() {
    let (mut world, site, user) = office(2);
    world.host(site).prepares = false;
    let first = begun(world.route(user, "hp", None)).expect("it was begun");
    assert_eq!(first.flight, None);
    world.host(user).hello_size = None;
    assert!(matches!(begun(world.route(user, "hp", None)), Some(Begun { flight: None, .. })));
    // One that is too long for a request is not sent.
    world.host(site).prepares = true;
    world.host(user).hello_size = Some(257);
    let before = world.host(site).prepared.len();
    assert!(matches!(begun(world.route(user, "hp", None)), Some(Begun { flight: None, .. })));
    assert_eq!(world.host(site).prepared.len(), before);
}

/// Rule 4.6: a flight that would not fit is left out, whatever the shell has made.
#[test]
fn a_flight_that_is_too_long_is_not_sent() {
    let (mut world, site, user) = office(3);
    world.host(site).flight_size = MAX_FLIGHT + 1;
    assert!(matches!(begun(world.route(user, "hp", None)), Some(Begun { flight: None, .. })));
}

/// Rule 6.2: what is lost is said again, and prepares nothing else.
#[test]
fn a_request_that_is_repeated_asks_for_the_same_handshake() {
    for seed in 10..20 {
        let (mut world, site, user) = office(seed);
        world.faults = Faults { lost: 40, doubled: 30, delay_millis: 50 };
        let task = world.command(user, Command::Route { device: "hp".to_owned(), service: None });
        world.await_answer(user, task);
        world.run(Duration::from_secs(4));
        let mut hellos: Vec<_> = world.host(site).prepared.iter().map(|(_, hello)| hello.clone()).collect();
        hellos.dedup();
        assert!(hellos.len() <= world.host(user).begun.len(), "seed {seed}");
    }
}

/// Rules 6.4 and 6.7: who was found a moment ago is asked at once, and nobody else.
#[test]
fn the_next_tunnel_on_a_cold_link_needs_no_look_up() {
    let (mut world, site, user) = office(4);
    world.route(user, "hp", None);
    let before = world.log.len();
    let began_at = world.now.mono;
    assert!(begun(world.route(user, "hp", None)).is_some_and(|begun| begun.flight.is_some()));
    let look_ups = world.log[before..].iter().filter(|flight| flight.from == user && flight.to != site);
    // What goes to the operator is passed on to the tunnel-node, and asks it to relay.
    assert!(look_ups.count() <= 2, "{:?}", &world.log[before..]);
    assert!(world.now.mono - began_at < Duration::from_millis(500));
}

/// Rule 6.4: whoever has listed the devices opens a tunnel to one of them next.
#[test]
fn a_device_that_was_listed_needs_no_look_up() {
    let (mut world, _site, user) = office(7);
    let task = world.command(user, Command::RefreshDevices);
    assert_eq!(world.await_answer(user, task), Answer::Refreshed);
    let before = sent_to_operator(&world, user);
    assert!(begun(world.route(user, "hp", None)).is_some_and(|begun| begun.flight.is_some()));
    // The operator is asked how it sees this node, and passes on what the tunnel-node is asked.
    assert_eq!(sent_to_operator(&world, user), before + 2);
}

/// Rule 6.4: nobody dials for ten seconds whoever was known, and is gone, while another has come to serve the device.
#[test]
fn when_all_who_were_known_are_gone_the_one_who_has_come_since_is_found() {
    let (mut world, site, user) = office(12);
    world.route(user, "hp", None);
    let other = world.join("45.10.0.2:7400", lan("192.168.1.11", 1));
    world.host(other).lan.insert(PRINTER, found("192.168.1.77"));
    world.run(Duration::from_secs(200));
    world.cut.insert(site);
    let began_at = world.now.mono;
    let Answer::Route(route) = world.route(user, "hp", None) else { panic!("no way") };
    let other = world.host(other).id;
    assert!(matches!(route.way, Way::Tunnel { peer, .. } if peer == other), "{:?}", route.way);
    assert!(world.now.mono - began_at < Duration::from_secs(3));
}

/// Rule 6.4: what was listed a while ago may be elsewhere by now.
#[test]
fn a_tunnel_node_that_was_known_and_is_silent_is_looked_up_before_the_wish_fails() {
    let mut world = World::new(8);
    let site = world.join_with(SITE, lan("192.168.7.10", 1), 0, |config| config.advertise.clear());
    let user = world.join(USER, lan("192.168.1.20", 2));
    world.host(site).lan.insert(PRINTER, found("192.168.7.77"));
    world.run(Duration::from_secs(1));
    let via = world.host(site).id;
    world.put_device(printer(via));
    world.run(Duration::from_secs(2));
    world.route(user, "hp", None);
    world.legs.refuse = true;
    world.cut.insert(site);
    let before = sent_to_operator(&world, user);
    let began_at = world.now.mono;
    let task = world.command(user, Command::Route { device: "hp".to_owned(), service: None });
    world.run(Duration::from_millis(900));
    assert!(world.host(user).answers.is_empty());
    world.cut.clear();
    assert!(matches!(world.await_answer(user, task), Answer::Route(_)));
    assert!(sent_to_operator(&world, user) > before + 2, "nobody was looked up");
    assert!(world.now.mono - began_at < Duration::from_secs(3));
}

/// Rules 6.4 and 6.91: a Head that is too old is fetched at the same time as those who serve the device, and how others see this node.
#[test]
fn who_serves_a_device_is_looked_up_while_the_head_is_awaited() {
    let (mut world, _site, user) = office(9);
    world.run(Duration::from_secs(120));
    world.faults.delay_millis = 40;
    let before = sent_to_operator(&world, user);
    world.command(user, Command::Route { device: "hp".to_owned(), service: None });
    // Nothing of what was asked for is answered before all of it is on its way.
    assert_eq!(sent_to_operator(&world, user), before + 3);
}

/// Rule 4.4: the Node records of those who serve a device come with their announcements.
#[test]
fn no_tunnel_node_s_own_record_is_looked_up() {
    let (mut world, _site, user) = office(10);
    let before = sent_to_operator(&world, user);
    world.route(user, "hp", None);
    let first = sent_to_operator(&world, user) - before;
    let before = sent_to_operator(&world, user);
    world.route(user, "hp", None);
    let second = sent_to_operator(&world, user) - before;
    // How the operator sees this node, and the announcements.
    assert_eq!((first, second), (3, 1));
}

/// Rule 6.14: whether the asker is a member is found out while its link is on its way.
#[test]
fn an_opening_that_follows_a_request_for_a_path_waits_for_no_look_up() {
    let (mut world, site, user) = office(11);
    world.route(user, "hp", None);
    let user_id = world.host(user).id;
    let before = sent_to_operator(&world, site);
    let decision = world.open(site, 1, user_id, support::device(), "ipp");
    assert!(matches!(decision, support::Decision::Served(_)), "{decision:?}");
    assert_eq!(sent_to_operator(&world, site), before);
}

/// Rule 6.4: when using what is known fails, the network is asked.
#[test]
fn a_tunnel_node_that_has_failed_is_looked_for_anew() {
    let (mut world, site, user) = office(5);
    let Answer::Route(route) = world.route(user, "hp", None) else { panic!() };
    let peer = world.host(site).id;
    world.input(user, node::Input::RouteFailed { device: route.device, peer, code: None });
    let before = sent_to_operator(&world, user);
    world.route(user, "hp", None);
    // A look-up, the request that is passed on, and perhaps a signed Head.
    assert!(sent_to_operator(&world, user) >= before + 2);

    // It is silent, so it may be elsewhere; what is asked next is the network.
    world.cut.insert(site);
    world.route(user, "hp", None);
    world.cut.clear();
    let before = sent_to_operator(&world, user);
    world.route(user, "hp", None);
    assert!(sent_to_operator(&world, user) >= before + 2);
}

/// Rule 6.15: where answers take longer than the pause between two questions, or relays refuse, both tunnel-nodes are asked, and either may
/// be the first to answer.
#[test]
fn a_tunnel_node_that_has_failed_does_not_win_by_answering_sooner() {
    let (mut world, site, user) = office(13);
    let other = world.join("45.10.0.2:7400", lan("192.168.1.11", 1));
    world.host(other).lan.insert(PRINTER, found("192.168.1.77"));
    world.run(Duration::from_secs(200));
    world.faults.delay_millis = 600;
    let (failed, other) = (world.host(site).id, world.host(other).id);
    for n in 0..8 {
        world.legs.refuse = n % 2 == 1;
        world.input(user, node::Input::RouteFailed { device: support::device(), peer: failed, code: None });
        let Answer::Route(route) = world.route(user, "hp", None) else { panic!("no way") };
        assert!(matches!(route.way, Way::Tunnel { peer, .. } if peer == other), "{:?}", route.way);
    }
}

/// Rule 7.29: an answer for nobody prepares nothing and is not kept.
#[test]
fn a_shell_that_answers_what_nobody_has_asked_is_ignored() {
    let (mut world, site, user) = office(6);
    let task = node::TaskId(1 << 40);
    world.input(site, node::Input::HandshakeAnswered { task, flight: Some(Bytes::from_static(b"?")) });
    let attempt = peerage_wire::id::LinkId([9; 16]);
    world.input(user, node::Input::HandshakeBegun { attempt, hello: Some(Bytes::from_static(b"?")) });
    assert!(begun(world.route(user, "hp", None)).is_some());
}
