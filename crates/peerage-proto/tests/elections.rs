//! Scenarios of elected tunnel-nodes: whole nodes on one LAN, with an operator and a user elsewhere (Rules 6.24 to 6.27).

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in its helpers too"
)]
#![expect(clippy::print_stdout, reason = "the figures are what one wants to read")]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use peerage_proto::discard::Discard;
use peerage_proto::node::{Answer, Elections, Failure, Input, Way};
use peerage_wire::beacon::{Ballot, Beacon, Kind};
use peerage_wire::crypto::Real;
use peerage_wire::id::{LocationId, NodeId};
use peerage_wire::keys::{DomainKeys, SecretKey};
use peerage_wire::record::{HeadBody, UnverifiedRecord};
use support::{DOMAIN, PRINTER, World, found, lan, printer};

const USER: &str = "45.20.0.1:7400";

fn at(n: usize) -> SocketAddr {
    SocketAddr::from(([45, 10, u8::try_from(n / 250).unwrap(), u8::try_from(n % 250).unwrap() + 1], 7_400))
}

/// A LAN with this many nodes and a printer, which its first node was named to find, and a user elsewhere.
fn site(seed: u64, count: usize) -> (World, SocketAddr) {
    let mut world = World::new(seed);
    for n in 0..count {
        let own = format!("192.168.{}.{}", 1 + n / 200, 10 + n % 200);
        let mut interfaces = lan(&own, 1);
        // One LAN, however many addresses it needs.
        interfaces[0].addresses[0].prefix = "192.168.0.0/22".parse().unwrap();
        world.join_with(&at(n).to_string(), interfaces, 0, |config| {
            config.elections = Elections::default();
            config.advertise.clear();
            config.advertise.push(at(n));
        });
        world.host(at(n)).lan.insert(PRINTER, found("192.168.1.7"));
    }
    let user = world.join(USER, lan("192.168.1.20", 2));
    world.run(Duration::from_secs(1));
    let via = world.host(at(0)).id;
    world.put_device(printer(via));
    world.run(Duration::from_secs(2));
    (world, user)
}

fn location(world: &mut World) -> LocationId {
    let now = world.now;
    world.host(at(1)).node.status(now).locations[0].0
}

/// Those who serve the printer, which also means that they are attached.
fn serving(world: &mut World) -> Vec<SocketAddr> {
    let now = world.now;
    let serves = |address: &SocketAddr| {
        let status = world.hosts[address].node.status(now);
        let serves = status.devices.iter().any(|device| device.served);
        assert!(serves || status.attachments.is_empty(), "{address} is attached for nothing");
        serves
    };
    world.hosts.keys().copied().filter(serves).collect()
}

fn way(world: &mut World, user: SocketAddr) -> Option<NodeId> {
    match world.route(user, "hp", None) {
        Answer::Route(route) => match route.way {
            Way::Tunnel { peer, .. } => Some(peer),
            Way::Local(_) => None,
        },
        Answer::Failed(_) | Answer::Refreshed | Answer::Left { .. } | Answer::SuperOff { .. } => None,
    }
}

/// Rules 6.24 and 6.25.
#[test]
fn of_the_nodes_on_a_lan_two_serve_and_the_others_are_silent() {
    let (mut world, user) = site(1, 6);
    world.run(Duration::from_secs(30));
    let elected = serving(&mut world);
    assert_eq!(elected.len(), 2);
    let peer = way(&mut world, user).unwrap();
    assert!(elected.iter().any(|address| world.hosts[address].id == peer));
    world.run(Duration::from_secs(1_800));
    assert_eq!(serving(&mut world), elected);
}

/// Rule 6.26: a computer that is gone without a word is missed after 25 s, and users find another a second after that is elected.
#[test]
fn when_both_elected_nodes_vanish_users_are_served_by_others_within_half_a_minute() {
    let (mut world, user) = site(2, 5);
    world.run(Duration::from_secs(60));
    let before = serving(&mut world);
    for address in &before {
        world.hosts.remove(address);
    }
    world.run(Duration::from_secs(30));
    let after = serving(&mut world);
    assert_eq!(after.len(), 2);
    // What those that vanished have announced is still in the table; a user passes over them.
    let mut reached = false;
    for _attempt in 0..4 {
        let answer = world.route(user, "hp", None);
        let Answer::Route(route) = answer else {
            assert_eq!(answer, Answer::Failed(Failure::TunnelNodesSilent));
            continue;
        };
        let Way::Tunnel { peer, .. } = route.way else { panic!("not on the LAN") };
        reached = after.iter().any(|address| world.hosts[address].id == peer);
        if reached {
            break;
        }
        world.input(user, Input::RouteFailed { device: route.device, peer, code: None });
    }
    assert!(reached);
}

/// Rule 6.26: a node that stops in order says so.
#[test]
fn a_node_that_stops_is_replaced_within_seconds() {
    let (mut world, _) = site(3, 4);
    world.run(Duration::from_secs(60));
    let before = serving(&mut world);
    for address in &before {
        world.input(*address, Input::Stopping);
        world.hosts.remove(address);
    }
    world.run(Duration::from_secs(6));
    assert_eq!(serving(&mut world).len(), 2);
}

/// Rule 6.24: whom the administrator has named serves, whoever else is elected.
#[test]
fn a_node_that_is_named_to_serve_a_device_serves_it() {
    let (mut world, _) = site(4, 5);
    world.run(Duration::from_secs(60));
    let elected = serving(&mut world);
    let named = (0..5).map(at).find(|address| !elected.contains(address)).unwrap();
    let mut device = world.devices.values().next().unwrap().clone();
    device.servers = vec![world.hosts[&named].id];
    world.put_device(device);
    // The silent hear of it when they ask next.
    world.run(Duration::from_secs(400));
    assert_eq!(serving(&mut world), [named]);
}

/// Rule 6.27: beacons of nodes that serve nobody keep others back for a quarter of an hour at most.
#[test]
fn forged_beacons_of_nodes_that_do_not_serve_do_not_black_out_a_site() {
    let (mut world, user) = site(5, 1);
    let network = world.network;
    let ghosts = [7, 8].map(|n| NodeId { domain: DOMAIN, hash: [n; 32] });
    let keys = world.keys.clone();
    let location = {
        let now = world.now;
        world.host(at(0)).node.status(now).locations[0].0
    };
    let mut nonce = 0;
    let mut haunt = |world: &mut World| {
        for node in ghosts {
            nonce += 1;
            let (ballot, time) = (Ballot::new(&location, &[]), world.now.unix);
            let beacon = Beacon { kind: Kind::Elected, node, ballot, time, seated_secs: 9, head: None };
            let sealed = beacon.seal(&network, &keys.epoch_key, &Real, &[nonce; 12]);
            let from = "192.168.1.99:7466".parse().unwrap();
            world.input(at(0), Input::Multicast { interface: 2, from, payload: sealed.into() });
        }
    };
    // They were there before it came.
    world.restart(at(0));
    for _second in 0..6 {
        haunt(&mut world);
        world.run(Duration::from_millis(500));
    }
    let mut waited = 0;
    while serving(&mut world).is_empty() {
        haunt(&mut world);
        world.run(Duration::from_secs(10));
        waited += 10;
        assert!(waited <= 780, "still dark after {waited} s");
    }
    assert!(waited >= 60, "they were believed for a while");
    world.run(Duration::from_secs(5));
    assert!(way(&mut world, user).is_some());
}

/// Rule 6.27: members that win both seats, answer Pings and refuse every tunnel keep others back for a quarter of an hour at most.
#[test]
fn winners_that_refuse_every_tunnel_do_not_black_out_a_site() {
    let (mut world, user) = site(6, 4);
    world.run(Duration::from_secs(60));
    let winners = serving(&mut world);
    assert_eq!(winners.len(), 2);
    world.sulking.extend(&winners);
    let mut waited = 0;
    while serving(&mut world).len() < 3 {
        world.run(Duration::from_secs(10));
        waited += 10;
        assert!(waited <= 780, "still dark after {waited} s");
    }
    world.run(Duration::from_secs(5));
    let other = way(&mut world, user);
    assert!(other.is_some_and(|node| winners.iter().all(|at| world.hosts[at].id != node)), "{other:?}");
}

/// Rule 6.25: what cannot be opened, is old, or comes from elsewhere has no effect but to be counted.
#[test]
fn foreign_old_and_distant_beacons_are_dropped_and_counted() {
    let (mut world, _) = site(6, 3);
    world.run(Duration::from_secs(60));
    let location = location(&mut world);
    let (network, keys) = (world.network, world.keys.clone());
    let foreign = DomainKeys { epoch_key: SecretKey([1; 32]), previous: None, ..keys.clone() };
    let near: SocketAddr = "192.168.1.99:7466".parse().unwrap();
    let far: SocketAddr = "203.0.113.5:7466".parse().unwrap();
    let old = Duration::from_secs(61);
    let now = world.now.unix;
    for (from, keys, time, reason) in [
        (near, &foreign, now, Discard::UnknownKey),
        (near, &keys, now.before(old), Discard::StaleTime),
        (near, &keys, now.after(old), Discard::StaleTime),
        (far, &keys, now, Discard::Forbidden),
    ] {
        let node = NodeId { domain: DOMAIN, hash: [9; 32] };
        let ballot = Ballot::new(&location, &[]);
        let beacon = Beacon { kind: Kind::Elected, node, ballot, time, seated_secs: 0, head: None };
        let sealed = beacon.seal(&network, &keys.epoch_key, &Real, &[3; 12]);
        let clock = world.now;
        let before = world.host(at(1)).node.status(clock).discards.of(reason);
        world.input(at(1), Input::Multicast { interface: 2, from, payload: sealed.into() });
        let after = world.host(at(1)).node.status(clock).discards.of(reason);
        assert_eq!(after, before + 1, "{reason:?}");
    }
}

/// Rule 6.27: what 300 computers send on their LAN in an hour, and to servers, when nobody uses them.
#[test]
fn three_hundred_idle_computers_stay_within_the_quietness_budget() {
    let (mut world, _) = site(7, 300);
    world.run(Duration::from_secs(60));
    assert_eq!(serving(&mut world).len(), 2);
    let operator: SocketAddr = support::OPERATOR_ADDRESS.parse().unwrap();
    world.beacons.clear();
    world.log.clear();
    // So long that everybody asks for the Head once, whatever its neighbours say.
    world.run(Duration::from_secs(2_400));
    let an_hour = |count: usize| count * 3 / 2;
    let beacons = an_hour(world.beacons.len());
    let bytes = an_hour(world.beacons.iter().map(|beacon| beacon.len()).sum::<usize>());
    let to_servers: Vec<_> = world.log.iter().filter(|flight| flight.to == operator).collect();
    let datagrams = an_hour(to_servers.len());
    let sent = an_hour(to_servers.iter().map(|flight| flight.payload.len()).sum::<usize>());
    println!("an hour: {beacons} beacons of {bytes} bytes; {datagrams} datagrams of {sent} bytes to servers");
    assert!((700..=800).contains(&beacons), "{beacons} beacons an hour");
    assert!(bytes <= 100_000, "{bytes} bytes of beacons an hour");
    assert!(datagrams <= 300 * 3 + 1_000, "{datagrams} datagrams to servers an hour");
    assert!(sent <= 1_200_000, "{sent} bytes to servers an hour");
}

/// Returns how many of these know of a device.
fn knowing(world: &World, nodes: std::ops::Range<usize>, name: &str) -> usize {
    nodes.filter(|n| world.hosts[&at(*n)].node.device_named(name).is_some()).count()
}

/// Rule 6.24: everybody there can say who serves, and since when.
#[test]
fn the_status_names_who_serves_at_a_location_and_since_when() {
    let (mut world, _) = site(23, 4);
    world.run(Duration::from_secs(120));
    let elected = serving(&mut world);
    let now = world.now;
    let ids: Vec<_> = elected.iter().map(|at| world.hosts[at].id).collect();
    for n in 0..4 {
        let [election] = &world.host(at(n)).node.status(now).elections[..] else { panic!("one election") };
        let others: Vec<_> = election.others.iter().map(|other| other.node).collect();
        let here = elected.contains(&at(n));
        assert_eq!(election.elected_for.is_some(), here);
        assert_eq!(others.len(), if here { 1 } else { 2 });
        assert!(others.iter().all(|node| ids.contains(node)));
        let times = election.others.iter().map(|other| other.elected_for).chain(election.elected_for);
        for time in times {
            assert!((100..=125).contains(&time.as_secs()), "elected for {time:?}");
        }
        assert!(election.hears && !election.is_additional && election.servers.is_empty());
    }
}

/// Rules 6.8 and 6.25: who is silent asks seldom, and learns of a change from the beacons of those who are elected.
#[test]
fn the_silent_hear_of_a_new_head_from_the_elected_within_a_minute() {
    let (mut world, _) = site(20, 12);
    world.run(Duration::from_secs(1_000));
    let mut second = printer(world.host(at(0)).id);
    second.name = "canon".to_owned();
    second.device = peerage_wire::id::DeviceId([3; 32]);
    world.put_device(second);
    world.run(Duration::from_secs(60));
    assert_eq!(knowing(&world, 0..12, "canon"), 12);
}

/// Has a member say to a node that it is elected and has a Head with this digest.
fn vouch(world: &mut World, to: SocketAddr, member: u8, digest: [u8; 8]) {
    let now = world.now;
    let ballot = Ballot::new(&world.host(to).node.status(now).locations[0].0, &[]);
    let (network, key, time) = (world.network, world.keys.epoch_key.clone(), world.now.unix);
    let node = NodeId { domain: DOMAIN, hash: [member; 32] };
    let beacon = Beacon { kind: Kind::Elected, node, ballot, time, seated_secs: 9, head: Some(digest) };
    let mut nonce = [member; 12];
    nonce[..8].copy_from_slice(&time.as_millis().to_be_bytes());
    let payload = beacon.seal(&network, &key, &Real, &nonce).into();
    let from = "192.168.1.99:7466".parse().unwrap();
    world.input(to, Input::Multicast { interface: 2, from, payload });
}

fn silent_one(world: &mut World) -> SocketAddr {
    let serving = serving(world);
    (0..3).map(at).find(|node| !serving.contains(node)).unwrap()
}

/// Rule 6.8: a member that claims news without end makes nobody ask more often than where nobody can be heard.
#[test]
fn who_claims_news_without_end_makes_nobody_ask_more_often() {
    let (mut world, _) = site(21, 3);
    world.run(Duration::from_secs(400));
    let silent = silent_one(&mut world);
    let operator: SocketAddr = support::OPERATOR_ADDRESS.parse().unwrap();
    world.log.clear();
    for n in 0..1_200_u64 {
        vouch(&mut world, silent, 9, n.to_be_bytes());
        world.run(Duration::from_secs(1));
    }
    let sent = world.log.iter().filter(|flight| flight.from == silent && flight.to == operator).count();
    // Every five minutes, and the checks of those who are not elected (Rule 6.27).
    assert!((3..=12).contains(&sent), "{sent} datagrams in twenty minutes");
}

/// Rule 6.8: members that hold all seats and deny what is new are believed for half an hour, not for ever.
#[test]
fn who_denies_news_keeps_them_back_for_half_an_hour_at_most() {
    let (mut world, _) = site(22, 3);
    world.run(Duration::from_secs(400));
    let silent = silent_one(&mut world);
    for elected in serving(&mut world) {
        world.hosts.remove(&elected);
    }
    let old = UnverifiedRecord::parse(&world.head()).unwrap().trust_own_store();
    let digest = HeadBody::read(&old).unwrap().digest();
    let mut second = printer(world.host(silent).id);
    second.name = "canon".to_owned();
    second.device = peerage_wire::id::DeviceId([3; 32]);
    world.put_device(second);
    let knows = (0..190).find(|_| {
        (8..10).for_each(|member| vouch(&mut world, silent, member, digest));
        world.run(Duration::from_secs(10));
        world.host(silent).node.device_named("canon").is_some()
    });
    // They were believed for some minutes, until they were found not to serve, or half an hour had passed.
    assert!(knows.is_some_and(|after| after > 12), "{knows:?}");
}

/// Rule 6.27: where beacons cannot be sent, announcements decide; a change of the networks is a reason to try again.
#[test]
fn nodes_whose_beacons_fail_go_by_announcements_until_the_networks_change() {
    let (mut world, user) = site(8, 3);
    for n in 0..3 {
        world.input(at(n), Input::MulticastFailed { interface: 2 });
    }
    world.run(Duration::from_secs(1_800));
    assert_eq!(serving(&mut world).len(), 2);
    assert!(way(&mut world, user).is_some());
    for n in 0..3 {
        let interfaces = world.host(at(n)).interfaces().to_vec();
        world.input(at(n), Input::Networks(interfaces));
    }
    world.beacons.clear();
    world.run(Duration::from_secs(30));
    assert_eq!(serving(&mut world).len(), 2);
    assert!(world.beacons.len() >= 6, "they talk again");
}

/// Returns who serves the second printer.
fn serving_second(world: &mut World) -> Vec<SocketAddr> {
    let now = world.now;
    let serves = |address: &SocketAddr| {
        let devices = world.hosts[address].node.status(now).devices;
        devices.iter().any(|device| device.served && device.device.name == "canon")
    };
    world.hosts.keys().copied().filter(serves).collect()
}

/// Rule 6.26: of three nodes each is attached already when it wins a seat in the second election, or comes to be.
#[test]
fn a_node_that_is_attached_already_keeps_the_seat_that_it_wins_in_another_election() {
    let (mut world, _) = site(9, 3);
    world.run(Duration::from_secs(60));
    let first = serving(&mut world);
    assert_eq!(first.len(), 2);
    let mut second = printer(world.host(at(0)).id);
    second.name = "canon".to_owned();
    second.device = peerage_wire::id::DeviceId([3; 32]);
    // More are named than there are seats, so that they elect, and not in the order of the other election.
    second.servers = (0..3).map(|n| world.hosts[&at(n)].id).collect();
    second.servers.sort_unstable();
    world.put_device(second);
    // The silent hear of it when they ask next.
    world.run(Duration::from_secs(400));
    let elected = serving_second(&mut world);
    assert_eq!(elected.len(), 2);
    for _ten_seconds in 0..60 {
        world.run(Duration::from_secs(10));
        assert_eq!(serving_second(&mut world), elected);
    }
}
