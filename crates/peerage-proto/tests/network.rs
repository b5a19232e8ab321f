//! Scenarios of a small network: an operator, a tunnel-node at the device's site, a user elsewhere.

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use peerage_proto::discard::Discard;
use peerage_proto::mapping::{Mapping, MappingProtocol, Ports, RouterMapping};
use peerage_proto::node::{Answer, Command, Event, Failure, Input, PinProof, Way};
use peerage_proto::operator;
use peerage_wire::codec::Transport;
use peerage_wire::frame::Code;
use peerage_wire::id::DeviceId;
use peerage_wire::record::LocalPolicy;
use support::{Decision, PRINTER, SITE, USER, World, device, found, lan, office, printer};

#[test]
fn a_registered_device_is_found_reported_and_announced_by_the_named_node() {
    let (mut world, site, _) = office(1);
    let events = &world.host(site).events;
    assert!(events.contains(&Event::DeviceReported(device())), "{events:?}");
    assert!(events.contains(&Event::Serving(vec![device()])), "{events:?}");
    assert!(events.contains(&Event::Announced(vec![device()])), "{events:?}");
}

#[test]
fn a_user_elsewhere_finds_the_way_to_the_device_by_its_name() {
    let (mut world, site, user) = office(2);
    let site_id = world.host(site).id;
    let Answer::Route(route) = world.route(user, "hp", None) else { panic!("no route") };
    let Way::Tunnel { peer, identity, candidates, .. } = route.way else { panic!("not through a tunnel") };
    assert_eq!(peer, site_id);
    assert!(peer.is_of(&identity));
    let first = candidates.first().map(|candidate| (candidate.transport, candidate.address));
    let advertised = SITE.parse().unwrap();
    assert_eq!(first, Some((Transport::Tcp, advertised)), "the advertised address comes first");
    let udp = candidates.iter().find(|candidate| candidate.transport == Transport::Udp);
    assert_eq!(udp.map(|candidate| candidate.address), Some(advertised), "QUIC comes beside TCP");
    assert_eq!(route.service.port, 631);
}

#[test]
fn the_tunnel_node_serves_a_member_and_dials_the_device_alone() {
    let (mut world, site, user) = office(3);
    let user_id = world.host(user).id;
    let decision = world.open(site, 1, user_id, device(), "ipp");
    assert_eq!(decision, Decision::Served("192.168.1.77:631".parse().unwrap()));
    assert_eq!(world.open(site, 2, user_id, device(), "ssh"), Decision::Refused(Code::UnknownService));
    let other = DeviceId([9; 32]);
    assert_eq!(world.open(site, 3, user_id, other, "ipp"), Decision::Refused(Code::UnknownDevice));
}

#[test]
fn a_node_of_another_domain_is_refused() {
    let (mut world, site, user) = office(4);
    let mut stranger = world.host(user).id;
    stranger.domain = peerage_wire::id::Domain(1);
    assert_eq!(world.open(site, 1, stranger, device(), "ipp"), Decision::Refused(Code::ForeignDomain));
}

#[test]
fn a_node_that_the_operator_does_not_know_is_refused() {
    let (mut world, site, _) = office(5);
    let unknown = peerage_wire::id::NodeId { domain: support::DOMAIN, hash: [4; 32] };
    assert_eq!(world.open(site, 1, unknown, device(), "ipp"), Decision::Refused(Code::NotMember));
}

/// Rule 6.9: new tunnels and open ones end within a minute of the revocation; here at once, by a Notify.
#[test]
fn a_revoked_node_loses_its_tunnels_and_gets_no_new_ones() {
    let (mut world, site, user) = office(6);
    let user_id = world.host(user).id;
    assert!(matches!(world.open(site, 1, user_id, device(), "ipp"), Decision::Served(_)));
    world.revoke(user_id);
    world.run(Duration::from_secs(2));
    assert_eq!(world.host(site).closed, [(peerage_proto::node::TunnelId(1), Code::Revoked)]);
    assert_eq!(world.open(site, 2, user_id, device(), "ipp"), Decision::Refused(Code::Revoked));
}

/// Rule 6.9: without a Notify the next Head within the minute does it.
#[test]
fn a_revocation_is_in_force_within_a_minute_even_if_the_notification_is_lost() {
    let (mut world, site, user) = office(7);
    let user_id = world.host(user).id;
    assert!(matches!(world.open(site, 1, user_id, device(), "ipp"), Decision::Served(_)));
    world.cut.insert(site);
    world.revoke(user_id);
    world.run(Duration::from_secs(8));
    world.cut.clear();
    world.run(Duration::from_secs(52));
    assert_eq!(world.host(site).closed.first().map(|(_, code)| *code), Some(Code::Revoked));
}

#[test]
fn after_a_revocation_the_others_go_on_with_the_keys_of_the_new_epoch() {
    let (mut world, site, user) = office(8);
    let third = world.join("45.30.0.1:7400", lan("10.1.1.5", 3));
    let third_id = world.host(third).id;
    world.run(Duration::from_secs(2));
    world.revoke(third_id);
    world.run(Duration::from_secs(20));
    let Answer::Route(route) = world.route(user, "hp", Some("ipp")) else { panic!("no route") };
    assert!(matches!(route.way, Way::Tunnel { .. }));
    let user_id = world.host(user).id;
    assert!(matches!(world.open(site, 9, user_id, device(), "ipp"), Decision::Served(_)));
    // Nobody talks to the revoked node any more, not even to tell it why.
    assert_eq!(world.route(third, "hp", None), Answer::Failed(Failure::Offline));
}

/// Rule 3.11: clocks hours off, in both directions, are corrected by the operator's StaleTime.
#[test]
fn clocks_that_are_hours_off_do_not_matter() {
    for error in [-3 * 3_600_000, 7 * 3_600_000] {
        let mut world = World::new(9);
        let site = world.join_with(SITE, lan("192.168.1.10", 1), error, |_| {});
        let user = world.join_with(USER, lan("192.168.1.20", 2), -error, |_| {});
        world.host(site).lan.insert(PRINTER, found("192.168.1.77"));
        world.run(Duration::from_secs(1));
        let via = world.host(site).id;
        world.put_device(printer(via));
        world.run(Duration::from_secs(3));
        assert!(world.host(site).events.contains(&Event::ClockLearned(-error)), "{error}");
        let answer = world.route(user, "hp", None);
        assert!(matches!(answer, Answer::Route(_)), "{error}: {answer:?}");
        let user_id = world.host(user).id;
        assert!(matches!(world.open(site, 1, user_id, device(), "ipp"), Decision::Served(_)));
    }
}

/// Rule 6.9: with every operator down, members go on opening tunnels.
#[test]
fn without_an_operator_tunnels_are_still_opened() {
    let (mut world, site, user) = office(10);
    let user_id = world.host(user).id;
    assert!(matches!(world.route(user, "hp", None), Answer::Route(_)));
    assert!(matches!(world.open(site, 1, user_id, device(), "ipp"), Decision::Served(_)));
    world.operator_up = false;
    world.run(Duration::from_secs(600));
    assert!(matches!(world.open(site, 2, user_id, device(), "ipp"), Decision::Served(_)));
    assert!(world.host(site).events.contains(&Event::Offline));
    assert_eq!(world.host(site).closed, []);
}

#[test]
fn a_removed_device_is_reached_no_more_and_its_tunnels_end() {
    let (mut world, site, user) = office(11);
    let user_id = world.host(user).id;
    assert!(matches!(world.open(site, 1, user_id, device(), "ipp"), Decision::Served(_)));
    world.remove_device(&device());
    world.run(Duration::from_secs(5));
    assert_eq!(world.host(site).closed.first().map(|(_, code)| *code), Some(Code::UnknownDevice));
    assert_eq!(world.route(user, "hp", None), Answer::Failed(Failure::UnknownDevice));
}

/// Rule 6.12: the device is found by its hardware address, wherever DHCP has put it.
#[test]
fn a_device_that_changed_its_address_is_dialled_at_the_new_one() {
    let (mut world, site, user) = office(12);
    let user_id = world.host(user).id;
    world.open(site, 1, user_id, device(), "ipp");
    world.host(site).lan.insert(PRINTER, found("192.168.1.99"));
    let decision = world.open(site, 2, user_id, device(), "ipp");
    assert_eq!(decision, Decision::Served("192.168.1.99:631".parse().unwrap()));
    world.host(site).lan.clear();
    assert_eq!(world.open(site, 3, user_id, device(), "ipp"), Decision::Refused(Code::DeviceUnreachable));
}

/// Rule 6.13: whatever answers to the device's hardware address, some addresses are never dialled.
#[test]
fn a_device_that_answers_at_a_forbidden_address_is_not_dialled() {
    let (mut world, site, user) = office(13);
    let user_id = world.host(user).id;
    let forbidden = ["127.0.0.1", "192.168.1.10", "192.168.1.1", "169.254.169.254", "10.0.0.5", "224.0.0.1"];
    for (n, address) in forbidden.into_iter().enumerate() {
        world.host(site).lan.insert(PRINTER, found(address));
        let decision = world.open(site, n as u64, user_id, device(), "ipp");
        assert_eq!(decision, Decision::Refused(Code::DeviceUnreachable), "{address}");
    }
}

#[test]
fn a_device_with_another_certificate_is_not_served() {
    let (mut world, site, user) = office(14);
    let (via, user_id) = (world.host(site).id, world.host(user).id);
    let mut pinned = printer(via);
    pinned.pins = vec![[5; 32]];
    pinned.services[0].tls = true;
    pinned.site = world.devices.values().next().unwrap().site.clone();
    world.put_device(pinned);
    world.run(Duration::from_secs(5));
    world.host(site).shown_pin = Some([6; 32]);
    assert_eq!(world.open(site, 1, user_id, device(), "ipp"), Decision::Refused(Code::PinMismatch));
    world.host(site).shown_pin = Some([5; 32]);
    assert!(matches!(world.open(site, 2, user_id, device(), "ipp"), Decision::Served(_)));
}

/// Rule 6.19: on the device's own LAN, with the certificate as proof, no tunnel is needed.
#[test]
fn a_node_on_the_devices_lan_uses_it_without_a_tunnel_if_the_certificate_proves_it() {
    let (mut world, neighbour) = beside_a_printer_with_a_certificate(15);
    world.host(neighbour).shown_pin = Some([5; 32]);
    let Answer::Route(route) = world.route(neighbour, "hp", None) else { panic!("no route") };
    assert_eq!(route.way, Way::Local("192.168.1.77:631".parse().unwrap()));
    world.host(neighbour).shown_pin = Some([6; 32]);
    let Answer::Route(route) = world.route(neighbour, "hp", None) else { panic!("no route") };
    assert!(matches!(route.way, Way::Tunnel { .. }), "an evil twin is not believed");
}

/// A printer that has a certificate, and another computer beside it.
fn beside_a_printer_with_a_certificate(seed: u64) -> (World, SocketAddr) {
    let (mut world, site, _) = office(seed);
    let via = world.host(site).id;
    let neighbour = world.join("45.10.0.2:7400", lan("192.168.1.11", 1));
    world.host(neighbour).lan.insert(PRINTER, found("192.168.1.77"));
    let mut pinned = printer(via);
    pinned.pins = vec![[5; 32]];
    pinned.services.iter_mut().for_each(|service| service.tls = true);
    pinned.site = world.devices.values().flat_map(|device| device.site.clone()).collect();
    world.put_device(pinned);
    world.run(Duration::from_secs(20));
    (world, neighbour)
}

/// A printer that shows no certificate, the tunnel-node beside it, and another computer at a place with the same gateway.
fn beside_a_printer_without_tls(seed: u64) -> (World, SocketAddr, SocketAddr) {
    let (mut world, site, _) = office(seed);
    let neighbour = world.join("45.10.0.2:7400", lan("192.168.1.11", 1));
    world.host(neighbour).lan.insert(PRINTER, found("192.168.1.77"));
    world.run(Duration::from_secs(20));
    (world, site, neighbour)
}

/// Rule 6.19: where the device can prove nothing, a tunnel-node of its site that answers on this LAN does.
#[test]
fn a_device_without_tls_is_used_without_a_tunnel_where_its_tunnel_node_is_met_on_the_lan() {
    let (mut world, _, neighbour) = beside_a_printer_without_tls(24);
    world.has_lans = true;
    let Answer::Route(route) = world.route(neighbour, "hp", None) else { panic!("no route") };
    assert_eq!(route.way, Way::Local("192.168.1.77:631".parse().unwrap()));
    world.host(neighbour).lan.clear();
    let Answer::Route(route) = world.route(neighbour, "hp", None) else { panic!("no route") };
    assert!(matches!(route.way, Way::Tunnel { .. }), "the tunnel-node is here, and the device is not");
}

/// How long the own LAN alone is asked, and a step of this world.
const A_MOMENT: Duration = Duration::from_millis(100);

/// Rule 6.19: a sweep of the LAN takes seconds, and the neighbour knows where the device is.
#[test]
fn while_the_device_is_looked_for_on_the_own_lan_a_tunnel_is_used() {
    let (mut world, site, neighbour) = beside_a_printer_without_tls(26);
    world.has_lans = true;
    world.host(neighbour).held.searches = Some(Vec::new());
    let began_at = world.now.mono;
    let Answer::Route(route) = world.route(neighbour, "hp", None) else { panic!("no route") };
    assert!(matches!(route.way, Way::Tunnel { .. }), "{:?}", route.way);
    assert!(world.now.mono - began_at <= A_MOMENT);
    // What comes of the search is of no use any more, and does no harm.
    let [search] = world.host(neighbour).held.searches.take().unwrap()[..] else { panic!("not one search") };
    world.input(neighbour, Input::DeviceFound { task: search, found: Some(found("192.168.1.77")) });
    assert!(matches!(world.route(neighbour, "hp", None), Answer::Route(_)));

    // Where no tunnel-node answers, the search decides.
    world.host(neighbour).held.searches = Some(Vec::new());
    let mut always = printer(world.host(site).id);
    always.local = LocalPolicy::Always;
    always.site = world.devices.values().next().unwrap().site.clone();
    world.put_device(always);
    world.run(Duration::from_secs(20));
    world.cut.insert(site);
    world.operator_up = false;
    let route = Command::Route { device: "hp".to_owned(), service: None };
    let task = world.command(neighbour, route);
    world.run(Duration::from_secs(5));
    assert!(!world.host(neighbour).answers.contains_key(&task));
    let search = *world.host(neighbour).held.searches.take().unwrap().last().unwrap();
    world.input(neighbour, Input::DeviceFound { task: search, found: Some(found("192.168.1.77")) });
    let Answer::Route(route) = world.await_answer(neighbour, task) else { panic!("no route") };
    assert_eq!(route.way, Way::Local("192.168.1.77:631".parse().unwrap()));
}

/// Rule 6.19: what comes first is used, and what comes after it does not disturb.
#[test]
fn a_device_that_is_found_before_a_tunnel_node_has_answered_is_used_without_a_tunnel() {
    let (mut world, site, neighbour) = beside_a_printer_without_tls(27);
    world.has_lans = true;
    world.host(neighbour).held.searches = Some(Vec::new());
    let route = || Command::Route { device: "hp".to_owned(), service: None };
    let task = world.command(neighbour, route());
    world.cut.insert(site);
    world.run(Duration::from_millis(200));
    assert!(!world.host(neighbour).begun.is_empty(), "no tunnel-node was asked beside it");
    assert!(!world.host(neighbour).answers.contains_key(&task));
    let search = *world.host(neighbour).held.searches.take().unwrap().last().unwrap();
    let legs = world.legs.dialled.len();
    world.input(neighbour, Input::DeviceFound { task: search, found: Some(found("192.168.1.77")) });
    let Answer::Route(route) = world.await_answer(neighbour, task) else { panic!("no route") };
    assert_eq!(route.way, Way::Local("192.168.1.77:631".parse().unwrap()));
    world.cut.clear();
    world.run(Duration::from_secs(5));
    assert_eq!(world.legs.dialled.len(), legs, "the path is asked for although nobody needs it");
}

/// Rule 6.19: a sweep asks every address, so that of many connections only the first makes one.
#[test]
fn all_who_look_for_a_device_on_the_own_lan_share_one_search() {
    let (mut world, _, neighbour) = beside_a_printer_without_tls(30);
    world.has_lans = true;
    world.host(neighbour).held.searches = Some(Vec::new());
    let route = || Command::Route { device: "hp".to_owned(), service: None };
    // One that goes another way meanwhile, and two that wait.
    assert!(matches!(world.route(neighbour, "hp", None), Answer::Route(_)));
    let tasks = [world.command(neighbour, route()), world.command(neighbour, route())];
    let [search] = world.host(neighbour).held.searches.take().unwrap()[..] else { panic!("not one search") };
    world.input(neighbour, Input::DeviceFound { task: search, found: Some(found("192.168.1.77")) });
    for task in tasks {
        let Answer::Route(route) = world.await_answer(neighbour, task) else { panic!("no route") };
        assert_eq!(route.way, Way::Local("192.168.1.77:631".parse().unwrap()));
    }
    // The next wish is a new search.
    world.host(neighbour).held.searches = Some(Vec::new());
    world.command(neighbour, route());
    assert_eq!(world.host(neighbour).held.searches.as_ref().unwrap().len(), 1);
}

/// Rule 6.19: a certificate takes a printer a while, and one that hangs is not waited for.
#[test]
fn a_device_that_is_here_has_some_time_to_show_its_certificate() {
    let (mut world, neighbour) = beside_a_printer_with_a_certificate(28);
    let route = || Command::Route { device: "hp".to_owned(), service: None };
    world.host(neighbour).held.proofs = Some(Vec::new());
    let task = world.command(neighbour, route());
    world.run(Duration::from_millis(350));
    assert!(!world.host(neighbour).answers.contains_key(&task));
    let [proof] = world.host(neighbour).held.proofs.take().unwrap()[..] else { panic!("not one proof") };
    world.input(neighbour, Input::PinProven { task: proof, proof: PinProof::Matches });
    let Answer::Route(found) = world.await_answer(neighbour, task) else { panic!("no route") };
    assert_eq!(found.way, Way::Local("192.168.1.77:631".parse().unwrap()));

    world.host(neighbour).held.proofs = Some(Vec::new());
    let began_at = world.now.mono;
    let Answer::Route(found) = world.route(neighbour, "hp", None) else { panic!("no route") };
    assert!(matches!(found.way, Way::Tunnel { .. }), "{:?}", found.way);
    assert!(world.now.mono - began_at < Duration::from_millis(600));
}

/// Rule 6.19: a tunnel-node that is on the same LAN has a link as well, which is there when the device is not found.
#[test]
fn a_device_without_tls_that_is_here_is_used_without_the_link_that_stands() {
    let (mut world, site, neighbour) = beside_a_printer_without_tls(29);
    world.has_lans = true;
    world.host(neighbour).held.searches = Some(Vec::new());
    let Answer::Route(route) = world.route(neighbour, "hp", None) else { panic!("no route") };
    assert!(matches!(route.way, Way::Tunnel { .. }), "{:?}", route.way);
    let peer = world.host(site).id;
    world.input(neighbour, Input::LinkUp(peer));
    let Answer::Route(route) = world.route(neighbour, "hp", None) else { panic!("no route") };
    assert!(matches!(route.way, Way::Tunnel { begun: None, .. }), "{:?}", route.way);
    let [search] = world.host(neighbour).held.searches.take().unwrap()[..] else { panic!("not one search") };
    world.input(neighbour, Input::DeviceFound { task: search, found: None });
    let Answer::Route(route) = world.route(neighbour, "hp", None) else { panic!("no route") };
    assert_eq!(route.way, Way::Local("192.168.1.77:631".parse().unwrap()));
    // Nobody is looked up for that: where it would have to be, the link is used.
    world.run(Duration::from_secs(400));
    world.operator_up = false;
    let Answer::Route(route) = world.route(neighbour, "hp", None) else { panic!("no route") };
    assert!(matches!(route.way, Way::Tunnel { begun: None, .. }), "{:?}", route.way);
}

/// Rule 6.19: gateways share hardware addresses and everybody has 192.168.1.0/24, and somebody may copy both.
#[test]
fn at_a_twin_of_the_devices_place_nobody_is_met_and_a_tunnel_is_used() {
    let (mut world, site, neighbour) = beside_a_printer_without_tls(25);
    // The second time nobody is asked any more.
    for longest in [A_MOMENT, Duration::ZERO] {
        let began_at = world.now.mono;
        let Answer::Route(route) = world.route(neighbour, "hp", None) else { panic!("no route") };
        let Way::Tunnel { peer, .. } = route.way else { panic!("a twin is believed: {:?}", route.way) };
        assert_eq!(peer, world.host(site).id);
        assert!(world.now.mono - began_at <= longest, "{:?}", world.now.mono - began_at);
    }
}

#[test]
fn who_is_not_among_the_devices_users_is_refused_at_both_ends() {
    let (mut world, site, user) = office(16);
    let (via, user_id) = (world.host(site).id, world.host(user).id);
    let mut closed = printer(via);
    closed.users = vec![via];
    closed.site = world.devices.values().next().unwrap().site.clone();
    world.put_device(closed);
    world.run(Duration::from_secs(5));
    assert_eq!(world.route(user, "hp", None), Answer::Failed(Failure::NotAllowed));
    assert_eq!(world.open(site, 1, user_id, device(), "ipp"), Decision::Refused(Code::NotAllowed));
}

#[test]
fn an_application_can_ask_for_the_devices_now() {
    let (mut world, _, user) = office(17);
    let task = world.command(user, Command::RefreshDevices);
    assert_eq!(world.await_answer(user, task), Answer::Refreshed);
    let now = world.now;
    assert_eq!(world.host(user).node.status(now).devices.len(), 1);
    world.operator_up = false;
    let task = world.command(user, Command::RefreshDevices);
    assert_eq!(world.await_answer(user, task), Answer::Failed(Failure::Offline));
}

/// Rule 3.5: an operator that restarts has forgotten every context, and members notice within one request.
#[test]
fn a_member_that_is_silent_for_a_day_is_understood_again() {
    let (mut world, site, user) = office(18);
    world.run(Duration::from_secs(26 * 3_600));
    assert!(matches!(world.route(user, "hp", None), Answer::Route(_)));
    let user_id = world.host(user).id;
    assert!(matches!(world.open(site, 1, user_id, device(), "ipp"), Decision::Served(_)));
}

#[test]
fn a_membership_is_renewed_at_half_of_its_life() {
    let mut world = World::new(19);
    // A node that only uses devices is silent meanwhile, so that weeks pass in a moment.
    let user = world.join_with(USER, lan("192.168.1.20", 2), 0, |config| config.serves = false);
    world.run(Duration::from_secs(11 * 86_400));
    assert_eq!(world.host(user).renewals, 0);
    world.run(Duration::from_secs(8 * 86_400));
    assert!(world.host(user).renewals > 0);
}

/// Rule 5.6: who was cut off until its membership had ended is let in again within minutes, not within the hour.
#[test]
fn an_expired_member_asks_for_its_renewal_every_five_minutes() {
    let mut world = World::new(29);
    let user = world.join_with(USER, lan("192.168.1.20", 2), 0, |config| config.serves = false);
    world.run(Duration::from_secs(29 * 86_400));
    let before = world.host(user).renewals;
    world.run(Duration::from_secs(6 * 3_600));
    let tried = world.host(user).renewals - before;
    assert!((5..=8).contains(&tried), "{tried} times in six hours of the last day");
    world.run(Duration::from_secs(2 * 86_400));
    let before = world.host(user).renewals;
    world.run(Duration::from_secs(3_600));
    let tried = world.host(user).renewals - before;
    assert!((9..=16).contains(&tried), "{tried} times in an hour after the end");
}

/// Rule 5.6: the pause of an hour that began before the end went on after it, and kept out a third of all for up to an hour after an
/// outage of a month.
#[test]
fn a_member_asks_for_its_renewal_within_six_minutes_of_its_end() {
    let mut world = World::new(30);
    let users: Vec<_> = (20..26)
        .map(|n| world.join_with(USER, lan(&format!("192.168.1.{n}"), 2), 0, |config| config.serves = false))
        .collect();
    world.run(Duration::from_secs(30 * 86_400));
    let tried = |world: &mut World| users.iter().map(|user| world.host(*user).renewals).collect::<Vec<_>>();
    let before = tried(&mut world);
    world.run(Duration::from_secs(360));
    let after = tried(&mut world);
    assert!(before.iter().zip(&after).all(|(before, after)| before < after), "{before:?}, then {after:?}");
}

/// The renewal was due at the very moment of the time-out that brought the new key, and was asked for again and again.
#[test]
fn a_new_domain_key_does_not_make_a_renewal_due_that_was_just_tried() {
    let mut world = World::new(28);
    let user = world.join_with(USER, lan("192.168.1.20", 2), 0, |config| config.serves = false);
    world.run(Duration::from_secs(18 * 86_400));
    let tried = world.host(user).renewals;
    assert!(tried > 0, "in vain");
    let other = world.join(SITE, lan("192.168.1.10", 1));
    let other = world.host(other).id;
    world.revoke(other);
    world.route(user, "hp", None);
    world.run(Duration::from_secs(20));
    let now = world.now;
    assert_eq!(world.host(user).node.status(now).head.map(|head| head.epoch), Some(2));
    assert_eq!(world.host(user).renewals, tried);
}

#[test]
fn the_same_seed_makes_the_same_run() {
    let run = || {
        let (mut world, _, user) = office(20);
        world.route(user, "hp", None);
        world.log.iter().map(|flight| flight.payload.clone()).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

/// Rule 5.6: nobody talks to the revoked any more, so a node that finds itself alone asks over HTTPS, and is told.
#[test]
fn a_revoked_node_learns_why_nobody_answers_when_it_asks_for_its_renewal() {
    let (mut world, _, user) = office(21);
    let user_id = world.host(user).id;
    world.revoke(user_id);
    assert_eq!(world.route(user, "hp", None), Answer::Failed(Failure::Offline));
    assert_eq!(world.host(user).renewals, 1);
    world.input(user, Input::Expelled);
    assert_eq!(world.route(user, "hp", None), Answer::Failed(Failure::Revoked));
    assert_eq!(world.host(user).events.iter().filter(|event| **event == Event::Revoked).count(), 1);
    let now = world.now;
    assert!(world.host(user).node.status(now).revoked);
}

/// Rules 5.4 and 6.1: its clock has run slow for weeks, by more than a record may be ahead, and whoever it asks is silent to the expired.
/// The time in the operator's answer comes first.
#[test]
fn a_member_whose_clock_has_drifted_while_it_was_cut_off_takes_its_renewal() {
    let (mut world, site, user) = office(31);
    world.run(Duration::from_secs(10));
    world.operator_up = false;
    for _second in 0..400 {
        // Not so much at a time that it would be a step.
        world.step_clock(user, -400);
        world.input(user, Input::Timeout);
        world.run(Duration::from_secs(1));
    }
    let bad_records = |world: &mut World| {
        let now = world.now;
        world.host(user).node.status(now).discards.of(Discard::BadRecord)
    };
    let via = world.host(site).id;
    world.put_device(printer(via));
    let newest = world.ledger.values().max_by_key(|record| record.header().version).unwrap();
    let records = vec![newest.bytes().clone()];
    let before = bad_records(&mut world);
    world.input(user, Input::Renewed { records: records.clone(), time: None });
    assert_eq!(bad_records(&mut world), before + 1, "it is from the future");
    let time = Some(world.now.unix);
    world.input(user, Input::Renewed { records, time });
    assert_eq!(bad_records(&mut world), before + 1);
    let learned = world.host(user).events.iter().any(|event| matches!(event, Event::ClockLearned(160_000)));
    assert!(learned, "{:?}", world.host(user).events);
}

/// Rules 3.11 and 3.12: a node whose clock is an hour ahead leaves; whoever has recorded that cannot have it leave again an hour
/// later, when it may have joined anew.
#[test]
fn a_farewell_by_a_clock_that_is_ahead_cannot_be_repeated_when_its_time_has_come() {
    let (mut world, _, _) = office(30);
    let hour = Duration::from_secs(3_600);
    world.operator_up = false;
    let node = world.join_with("45.10.0.9:7400", lan("192.168.9.10", 9), 3_600_000, |_| {});
    world.run(Duration::from_secs(30));
    world.operator_up = true;
    let before = world.log.len();
    let task = world.command(node, Command::Leave);
    assert_eq!(world.await_answer(node, task), Answer::Left { confirmed: true });
    let left = |world: &World| {
        world.told.iter().filter(|output| matches!(output, operator::Output::Left { .. })).count()
    };
    assert_eq!(left(&world), 1);
    let recorded: Vec<_> = world.log[before..].iter().filter(|flight| flight.from == node).cloned().collect();
    world.hosts.remove(&node);
    world.run(hour);
    for flight in recorded {
        world.inject(flight.from, flight.to, &flight.payload);
    }
    world.run(Duration::from_secs(5));
    assert_eq!(left(&world), 1, "it was executed once more");
}

/// What the router at 192.168.1.1 gives: this address for both transports.
fn mapped(external: &str) -> Input {
    let external = external.parse().ok();
    let mapping = Mapping::Held { protocol: MappingProtocol::Pcp, udp: external, tcp: external };
    Input::Mapped(vec![RouterMapping { router: [192, 168, 1, 1].into(), mapping }])
}

fn candidates(world: &mut World, user: SocketAddr) -> Vec<SocketAddr> {
    let Answer::Route(route) = world.route(user, "hp", None) else { panic!("no route") };
    let Way::Tunnel { candidates, .. } = route.way else { panic!("not through a tunnel") };
    let tcp = candidates.iter().filter(|candidate| candidate.transport == Transport::Tcp);
    tcp.map(|candidate| candidate.address).collect()
}

/// Rules 6.80 and 6.82: who serves wants its port forwarded, and others dial what the router has given.
#[test]
fn a_mapped_port_is_where_others_dial_a_tunnel_node() {
    let (mut world, site, user) = office(22);
    assert_eq!(world.host(site).wanted_ports, Ports::All);
    assert_eq!(world.host(user).wanted_ports, Ports::None, "nobody dials a user");
    let external = "45.10.0.9:17400";
    world.input(site, mapped(external));
    world.run(Duration::from_secs(15));
    assert!(candidates(&mut world, user).contains(&external.parse().unwrap()));
}

/// Rule 6.17: who stands on the same LAN dials there first. From inside, hardly any router leads back to a port that it forwards.
#[test]
fn beside_the_device_a_tunnel_node_is_dialled_on_the_lan_before_its_mapped_port() {
    let (mut world, site, neighbour) = beside_a_printer_without_tls(31);
    world.has_lans = true;
    world.input(site, mapped("45.10.0.9:17400"));
    world.run(Duration::from_secs(15));
    world.host(neighbour).lan.clear();
    let found = candidates(&mut world, neighbour);
    let [lan, outer] = ["192.168.1.10:7400", "45.10.0.9:17400"].map(|address| address.parse().unwrap());
    let at = |place: SocketAddr| found.iter().position(|address| *address == place);
    assert!(at(lan) == Some(0) && at(outer).is_some(), "{found:?}");
}

/// Rule 6.82: a router that is itself behind another one gives what nobody outside reaches.
#[test]
fn what_a_router_behind_another_gives_is_not_offered() {
    let (mut world, site, user) = office(23);
    world.input(site, mapped("100.64.0.9:17400"));
    world.run(Duration::from_secs(15));
    assert!(!candidates(&mut world, user).contains(&"100.64.0.9:17400".parse().unwrap()));
    let now = world.now;
    assert!(world.host(site).node.status(now).mappings[0].mapping.is_double_nat());
}

/// Rule 6.80: a door that nobody needs is closed.
#[test]
fn a_node_without_devices_wants_no_port() {
    let (mut world, site, _) = office(24);
    world.remove_device(&device());
    world.run(Duration::from_secs(10));
    assert_eq!(world.host(site).wanted_ports, Ports::None);
}
