//! What a domain lives through: lost operators, stepped clocks, two tunnel-nodes, many devices.

use std::net::SocketAddr;
use std::time::Duration;

use peerage_proto::node::{
    Answer, Event, Failure, Input, MAX_SERVED_PER_PEER, Route, TunnelId, Watched, Way,
};
use peerage_proto::operator::DomainFacts;
use peerage_wire::frame::Code;
use peerage_wire::id::{DeviceId, Mac, NodeId, SessionId};
use peerage_wire::open::Open;
use peerage_wire::record::{Draft, EndDevice, NodeBody, Table};

use crate::actor::USER_ONLY;
use crate::support::{
    DOMAIN, Decision, Faults, OPERATOR_ADDRESS, PRINTER, SITE, USER, World, device, found, lan, office,
    printer,
};

fn routed(world: &mut World, user: SocketAddr) -> Route {
    match world.route(user, "hp", None) {
        Answer::Route(route) => *route,
        other => panic!("no route: {other:?}"),
    }
}

fn tunnel_node(route: &Route) -> NodeId {
    let Way::Tunnel { peer, .. } = route.way else { panic!("not through a tunnel") };
    peer
}

/// Rule 6.9: an organisation may forbid to go on without an operator; until then members do.
#[test]
fn offline_hours_are_counted_from_the_last_head() {
    let (mut world, site, user) = office(70);
    let user_id = world.host(user).id;
    let facts = DomainFacts { offline_hours: Some(2), ..world.facts };
    world.set_facts(facts);
    world.run(Duration::from_secs(5));
    routed(&mut world, user);
    assert!(matches!(world.open(site, 1, user_id, device(), "ipp"), Decision::Served(_)));
    world.operator_up = false;
    world.run(Duration::from_secs(110 * 60));
    assert!(matches!(world.open(site, 2, user_id, device(), "ipp"), Decision::Served(_)));
    world.run(Duration::from_secs(12 * 60));
    assert_eq!(world.open(site, 3, user_id, device(), "ipp"), Decision::Refused(Code::StaleHead));
    assert_eq!(world.route(user, "hp", None), Answer::Failed(Failure::Stale));
    assert_eq!(world.host(site).closed.len(), 1, "open tunnels stay");
    assert!(world.host(site).events.contains(&Event::Stale(true)));
    world.operator_up = true;
    world.run(Duration::from_secs(60));
    assert!(matches!(world.open(site, 4, user_id, device(), "ipp"), Decision::Served(_)));
    assert!(world.host(site).events.contains(&Event::Stale(false)));
}

/// Rule 6.9: a membership ends when it ends, also while no operator can say so.
#[test]
fn a_tunnel_ends_with_the_membership_of_its_peer_though_no_operator_answers() {
    let (mut world, site, user) = office(71);
    let (user_id, identity) = (world.host(user).id, world.host(user).identity.public());
    let body = NodeBody { identity, receiving: [1; 32], roles: USER_ONLY };
    let soon = world.now.unix.after(Duration::from_secs(3_600));
    let key = user_id.record_key();
    let short = world.sign(Table::Node, DOMAIN, key, |mut draft| {
        draft.header.expires = soon;
        Draft { public: body.write(), ..draft }
    });
    world.commit(vec![short]);
    assert!(matches!(world.open(site, 1, user_id, device(), "ipp"), Decision::Served(_)));
    world.operator_up = false;
    world.run(Duration::from_secs(3_500));
    assert_eq!(world.host(site).closed, []);
    world.run(Duration::from_secs(200));
    assert_eq!(world.host(site).closed, [(TunnelId(1), Code::NotMember)]);
}

/// Rule 6.15: the tunnel-node that served last comes first; one that failed is passed over for a minute.
#[test]
fn of_two_tunnel_nodes_one_is_kept_until_it_fails() {
    let (mut world, _, user) = office(72);
    let second = world.join("45.10.0.2:7400", lan("192.168.1.11", 1));
    world.host(second).lan.insert(PRINTER, found("192.168.1.77"));
    world.run(Duration::from_secs(30));
    let first = tunnel_node(&routed(&mut world, user));
    for _ in 0..5 {
        assert_eq!(tunnel_node(&routed(&mut world, user)), first);
    }
    let fail = |world: &mut World, peer| {
        world.input(user, Input::RouteFailed { device: device(), peer, code: None });
    };
    fail(&mut world, first);
    let other = tunnel_node(&routed(&mut world, user));
    assert_ne!(other, first);
    world.run(Duration::from_secs(50));
    assert_eq!(tunnel_node(&routed(&mut world, user)), other);
    world.run(Duration::from_secs(15));
    fail(&mut world, other);
    assert_eq!(tunnel_node(&routed(&mut world, user)), first, "back after a minute");
}

/// Rule 6.15
#[test]
fn of_two_tunnel_nodes_one_that_others_can_reach_comes_before_one_that_is_hidden() {
    for seed in 80..88 {
        let mut world = World::new(seed);
        let hidden = world.join_with(SITE, lan("192.168.1.10", 1), 0, |config| config.advertise.clear());
        let open = world.join("45.10.0.2:7400", lan("192.168.1.11", 1));
        let user = world.join(USER, lan("192.168.2.20", 2));
        for node in [hidden, open] {
            world.host(node).lan.insert(PRINTER, found("192.168.1.77"));
        }
        world.run(Duration::from_secs(1));
        let via = world.host(hidden).id;
        world.put_device(printer(via));
        world.run(Duration::from_secs(30));
        assert_eq!(tunnel_node(&routed(&mut world, user)), world.host(open).id, "seed {seed}");
    }
}

/// Rule 6.15: one tunnel-node that failed a moment ago is better than none.
#[test]
fn the_only_tunnel_node_is_tried_again() {
    let (mut world, site, user) = office(73);
    let peer = world.host(site).id;
    world.input(user, Input::RouteFailed { device: device(), peer, code: None });
    assert_eq!(tunnel_node(&routed(&mut world, user)), peer);
}

/// Rule 6.17: while a link stands, a tunnel on it needs no question; unless the device has got other servers since.
#[test]
fn a_standing_link_is_used_while_its_tunnel_node_is_permitted() {
    let (mut world, site, user) = office(74);
    let peer = world.host(site).id;
    routed(&mut world, user);
    world.input(user, Input::LinkUp(peer));
    let before = world.log.len();
    let Way::Tunnel { candidates, .. } = routed(&mut world, user).way else { panic!("a tunnel") };
    assert!(candidates.is_empty());
    assert_eq!(world.log.len(), before, "nothing was asked");
    let mut elsewhere = world.devices.values().next().unwrap().clone();
    elsewhere.servers = vec![NodeId { domain: DOMAIN, hash: [9; 32] }];
    world.put_device(elsewhere);
    world.run(Duration::from_secs(5));
    assert_eq!(world.route(user, "hp", None), Answer::Failed(Failure::NoTunnelNode));
}

/// Rule 6.15: a device of two sites is reached at both, and one without a site nowhere.
#[test]
fn a_device_of_two_sites_is_reached_at_either_and_one_without_a_site_nowhere() {
    let (mut world, site, user) = office(75);
    let second = world.join("45.40.0.1:7400", lan("10.7.0.5", 7));
    world.host(second).lan.insert(PRINTER, found("10.7.0.77"));
    let now = world.now;
    let there = world.host(second).node.status(now).locations[0].0;
    let mut both = world.devices.values().next().unwrap().clone();
    both.site.push(there);
    world.put_device(both);
    world.run(Duration::from_secs(30));
    let (site_id, second_id) = (world.host(site).id, world.host(second).id);
    let first = tunnel_node(&routed(&mut world, user));
    world.input(user, Input::RouteFailed { device: device(), peer: first, code: None });
    let other = tunnel_node(&routed(&mut world, user));
    let mut reached = [first, other];
    let mut expected = [site_id, second_id];
    reached.sort_unstable();
    expected.sort_unstable();
    assert_eq!(reached, expected);
    let mut nowhere = printer(site_id);
    (nowhere.via, nowhere.mac, nowhere.name) = (None, Mac([1; 6]), "lost".to_owned());
    nowhere.device = DeviceId::new(Mac([1; 6]), None);
    world.put_device(nowhere);
    world.run(Duration::from_secs(5));
    assert_eq!(world.route(user, "lost", None), Answer::Failed(Failure::NoTunnelNode));
}

/// Rule 6.14: one member cannot take all the tunnels that a node serves.
#[test]
fn one_peer_has_a_bounded_number_of_tunnels() {
    let (mut world, site, user) = office(76);
    let user_id = world.host(user).id;

    let limit = MAX_SERVED_PER_PEER as u64;
    for n in 0..limit + 3 {
        let open = Open { session: SessionId([1; 16]), device: device(), service: "ipp".to_owned() };
        let (tunnel, peer) = (TunnelId(n), user_id);
        let now = world.now;
        world.host(site).node.handle(Input::OpenAsked { tunnel, peer, open }, now);
    }
    world.pump();
    world.run(Duration::from_secs(1));
    assert_eq!(world.host(site).served.len(), MAX_SERVED_PER_PEER);
    let refused: Vec<_> = world.host(site).closed.iter().map(|(_, code)| *code).collect();
    assert_eq!(refused, [Code::Limit; 3]);
    let other = world.join("45.30.0.1:7400", lan("10.1.1.5", 3));
    let other_id = world.host(other).id;
    assert!(matches!(world.open(site, 9_999, other_id, device(), "ipp"), Decision::Served(_)));
}

/// Rules 3.5 and 6.1: a computer that slept for hours wakes up into a working network.
#[test]
fn a_network_that_slept_for_hours_goes_on() {
    let (mut world, site, user) = office(77);
    let user_id = world.host(user).id;
    routed(&mut world, user);
    world.now = world.now.after(Duration::from_secs(5 * 3_600));
    world.run(Duration::from_secs(120));
    routed(&mut world, user);
    assert!(matches!(world.open(site, 1, user_id, device(), "ipp"), Decision::Served(_)));
}

/// Rules 3.5 and 6.1: after a step of the date no context is continued and the time is learned anew.
#[test]
fn a_date_that_jumps_is_learned_anew() {
    for step in [-7_200_000, -30_000, 2_000, 30_000, 86_400_000] {
        let (mut world, site, user) = office(78);
        let user_id = world.host(user).id;
        routed(&mut world, user);
        let events = world.host(site).events.len();
        for at in [site, user] {
            world.step_clock(at, step);
        }
        let before = world.log.len();
        world.run(Duration::from_secs(60));
        let first = world.log[before..].iter().find(|flight| flight.from == site).unwrap();
        assert!(first.payload[0] >= 6, "{step}: a new context, in the long form");
        let learned = world.host(site).events[events..].iter().any(|e| matches!(e, Event::ClockLearned(_)));
        assert!(learned, "{step}");
        routed(&mut world, user);
        assert!(matches!(world.open(site, 1, user_id, device(), "ipp"), Decision::Served(_)), "{step}");
    }
}

/// Rule 6.6: who finds a newer record of its own at a holder goes above its version.
#[test]
fn a_node_that_lost_its_store_and_its_time_goes_above_the_version_that_is_held() {
    let (mut world, site, user) = office(79);
    let version = |world: &mut World| {
        let stored = &world.host(site).stored;
        let own = stored.iter().filter(|r| r.header().table == Table::NodeInfo);
        own.map(|record| record.header().version).max().unwrap_or(0)
    };
    // Within the window, so that nobody tells it the time; the operator has run for long enough to listen to it.
    world.run(Duration::from_secs(60));
    let before = version(&mut world);
    world.host(site).stored.clear();
    world.step_clock(site, -50_000);
    world.restart(site);
    world.run(Duration::from_secs(40));
    assert!(version(&mut world) > before);
    let host = world.host(site).id;
    assert_eq!(tunnel_node(&routed(&mut world, user)), host);
}

/// Rule 6.10: three unanswered Attaches end an attachment, and another follows.
#[test]
fn an_attachment_that_is_lost_is_made_again() {
    let (mut world, site, _) = office(80);
    let attached = |world: &mut World| {
        let now = world.now;
        world.host(site).node.status(now).attachments.iter().any(|attachment| attachment.observed.is_some())
    };
    assert!(attached(&mut world));
    world.operator_up = false;
    world.run(Duration::from_secs(120));
    assert!(!attached(&mut world));
    world.operator_up = true;
    world.run(Duration::from_secs(60));
    assert!(attached(&mut world));
}

/// Rule 6.22: a device that was added reaches the attached nodes within five seconds.
#[test]
fn a_new_device_is_known_at_its_site_within_five_seconds() {
    let (mut world, site, _) = office(81);
    let mut second = world.devices.values().next().unwrap().clone();
    (second.name, second.mac) = ("two".to_owned(), Mac([4; 6]));
    second.device = DeviceId::new(Mac([4; 6]), None);
    world.put_device(second);
    world.run(Duration::from_secs(5));
    let now = world.now;
    assert_eq!(world.host(site).node.status(now).devices.len(), 2);
}

/// Rules 4.4 and 6.8: sixty devices come in pages, and three hundred members change nothing for one of them.
#[test]
fn sixty_devices_and_three_hundred_members_are_known_where_they_have_to_be() {
    let (mut world, _, user) = office(82);
    let template = world.devices.values().next().unwrap().clone();
    for n in 0..60_u8 {
        let mac = Mac([9, 9, 9, 9, 9, n]);
        let name = format!("device {n}");
        world.put_device(EndDevice { device: DeviceId::new(mac, None), mac, name, ..template.clone() });
    }
    for _ in 0..300 {
        world.admit(DOMAIN, USER_ONLY);
    }
    world.run(Duration::from_secs(30));
    let Answer::Route(route) = world.route(user, "device 59", None) else { panic!("no route") };
    assert_eq!(route.name, "device 59");
    let now = world.now;
    assert_eq!(world.host(user).node.status(now).devices.len(), 61);
}

/// Rule 6.2: what is lost is sent again, and with a fifth of everything lost a person notices nothing.
#[test]
fn lost_doubled_and_overtaking_datagrams_do_not_keep_a_user_from_the_device() {
    let (mut all_routes, mut all_tunnels) = (0, 0);
    for seed in 0..10 {
        let (mut world, site, user) = office(1_000 + seed);
        world.faults = Faults { lost: 20, doubled: 20, delay_millis: 200 };
        world.run(Duration::from_secs(90));
        let user_id = world.host(user).id;
        for n in 0..10 {
            all_routes += u32::from(matches!(world.route(user, "hp", None), Answer::Route(_)));
            all_tunnels +=
                u32::from(matches!(world.open(site, n, user_id, device(), "ipp"), Decision::Served(_)));
        }
        world.faults = Faults::default();
        world.run(Duration::from_secs(60));
        routed(&mut world, user);
    }
    // Each question is lost for good in about one of twenty cases, and a way takes one or two.
    assert!(all_routes >= 85 && all_tunnels >= 85, "{all_routes} and {all_tunnels} of 100");
}

/// Rule 6.2: half a second, a second and a half, three and a half, and it has failed.
#[test]
fn a_request_is_sent_three_times() {
    let (mut world, _, user) = office(83);
    world.operator_up = false;
    let before = world.log.len();
    let began = world.now;
    let task = world.command(user, peerage_proto::node::Command::RefreshDevices);
    let answer = world.await_answer(user, task);
    assert_eq!(answer, Answer::Failed(Failure::Offline));
    let operator: SocketAddr = OPERATOR_ADDRESS.parse().unwrap();
    let sent = world.log[before..].iter().filter(|flight| flight.from == user && flight.to == operator);
    assert_eq!(sent.count(), 3);
    let took = world.now.mono - began.mono;
    assert!(took >= Duration::from_millis(3_500) && took < Duration::from_millis(3_600), "{took:?}");
}

/// Rule 6.18: the user-node is told the pins, so that it can prove the device itself, or say that it cannot.
#[test]
fn a_route_names_the_certificates_that_the_device_may_show() {
    let (mut world, _, user) = office(84);
    assert!(routed(&mut world, user).pins.is_empty());
    let mut pinned = world.devices.values().next().unwrap().clone();
    pinned.pins = vec![[5; 32]];
    pinned.services[0].tls = true;
    world.put_device(pinned);
    world.run(Duration::from_secs(2));
    let task = world.command(user, peerage_proto::node::Command::RefreshDevices);
    world.await_answer(user, task);
    let route = routed(&mut world, user);
    assert_eq!(route.pins, [[5; 32]]);
    assert!(route.service.tls);
}

/// Rule 6.23: an operator that stands in keeps what nodes announce in memory, and gets it again as soon as they notice
/// that it has started anew.
#[test]
fn an_operator_that_restarts_learns_again_where_the_tunnel_nodes_are() {
    let (mut world, site, user) = office(85);
    world.restart_operator();
    let peer = world.host(site).id;
    world.run(Duration::from_secs(60));
    assert_eq!(tunnel_node(&routed(&mut world, user)), peer);
}

/// Rule 6.9: a tunnel of the own side is watched like one that is served.
#[test]
fn a_user_closes_its_tunnel_when_the_tunnel_node_is_revoked() {
    let (mut world, site, user) = office(86);
    let peer = world.host(site).id;
    routed(&mut world, user);
    let opened =
        Input::TunnelOpened { tunnel: TunnelId(5), peer, device: device(), service: "ipp".to_owned() };
    world.input(user, opened);
    let watched = Watched { peer, device: device(), service: "ipp".to_owned(), serving: false };
    let now = world.now;
    assert_eq!(world.host(user).node.status(now).tunnels, [watched]);
    world.revoke(peer);
    world.run(Duration::from_secs(60));
    assert_eq!(world.host(user).closed, [(TunnelId(5), Code::Revoked)]);
}

/// Rule 6.15: the user-node has heard of the device, and not yet of where it was seen.
#[test]
fn a_device_that_was_seen_a_moment_ago_is_reached_at_the_first_asking() {
    let (mut world, site, user) = office(76);
    let seen = world.devices.values().next().unwrap().clone();
    world.put_device(EndDevice { site: Vec::new(), ..seen.clone() });
    world.run(Duration::from_secs(5));
    assert_eq!(world.route(user, "hp", None), Answer::Failed(Failure::NoTunnelNode), "seen nowhere");
    world.put_device(seen);
    assert_eq!(tunnel_node(&routed(&mut world, user)), world.host(site).id);
}
