//! Scenarios of members among super-nodes, of which some are honest.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in its helpers too"
)]

mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use peerage_proto::node::{Answer, Command, EAGER_INTERVAL, Event, Failure, Input, Way};
use peerage_wire::crypto::Real;
use peerage_wire::id::{PlacementKey, Segment};
use peerage_wire::message::Request;
use peerage_wire::record::{Draft, Header, NodeInfoPublic, Record, Roles, Table};
use support::holder::{Manner, stored_for};
use support::{DOMAIN, Decision, OPERATOR_ADDRESS, PRINTER, SITE, USER, World, device, found, lan, printer};

/// When a request that nobody answers has failed (Rule 6.2).
const TIMEOUT: Duration = Duration::from_millis(3_500);

/// A node that serves nothing asks every five minutes whether there is anything to serve (Rule 6.8).
const UNTIL_NOTICED: Duration = Duration::from_secs(400);

/// A world with super-nodes of different organisations, each of which holds everything.
fn world_of(seed: u64, holders: u8) -> (World, Vec<SocketAddr>) {
    let mut world = World::new(seed);
    let holders = (1..=holders).map(|n| world.add_super_node(n, Segment::ALL)).collect();
    (world, holders)
}

/// The same with a printer, and a tunnel-node at its site.
fn office_of(seed: u64, holders: u8) -> (World, Vec<SocketAddr>, SocketAddr) {
    let (mut world, holders) = world_of(seed, holders);
    let site = world.join(SITE, lan("192.168.1.10", 1));
    world.host(site).lan.insert(PRINTER, found("192.168.1.77"));
    world.run(Duration::from_secs(1));
    let via = world.host(site).id;
    world.put_device(printer(via));
    world.run(UNTIL_NOTICED);
    (world, holders, site)
}

/// A user that knows super-nodes and nothing else.
fn new_user(world: &mut World, eager: bool) -> SocketAddr {
    world.join_with(USER, lan("192.168.1.20", 2), 0, |config| {
        config.serves = false;
        config.eager = eager;
    })
}

fn operator_heard(world: &World, from: usize, of: SocketAddr) -> usize {
    let operator: SocketAddr = OPERATOR_ADDRESS.parse().unwrap();
    world.log[from..].iter().filter(|flight| flight.from == of && flight.to == operator).count()
}

#[test]
fn with_three_super_nodes_members_find_each_other_without_the_operator() {
    let (mut world, holders, site) = office_of(1, 3);
    let site_id = world.host(site).id;
    assert!(world.host(site).events.contains(&Event::Announced(vec![device()])));
    for holder in holders {
        assert_eq!(stored_for(&world.holder(holder).records, DOMAIN), [site_id]);
    }
    let before = world.log.len();
    let user = new_user(&mut world, false);
    let Answer::Route(route) = world.route(user, "hp", None) else { panic!("no route") };
    assert!(matches!(route.way, Way::Tunnel { peer, .. } if peer == site_id));
    assert_eq!(operator_heard(&world, before, user), 0);
    let user_id = world.host(user).id;
    assert!(matches!(world.open(site, 1, user_id, device(), "ipp"), Decision::Served(_)));
    assert_eq!(operator_heard(&world, before, site), 0);
}

/// Rule 6.23: two are too few, so that the operator is a holder like them.
#[test]
fn the_operator_stands_in_beside_two_super_nodes() {
    let (mut world, holders, site) = office_of(2, 2);
    let site_id = world.host(site).id;
    for holder in &holders {
        assert_eq!(stored_for(&world.holder(*holder).records, DOMAIN), [site_id]);
    }
    assert!(world.operator.record(Table::NodeInfo, DOMAIN, site_id.record_key()).is_some());
    world.behave(Manner::Silent);
    let user = new_user(&mut world, false);
    assert!(matches!(world.route(user, "hp", None), Answer::Route(_)));
}

// ---- Rule 6.4: nine of ten (Ynddal 2016, section 4.3.3) -----------------------------------------

/// Lets nine of ten behave like this towards a newcomer, the tenth to be asked being the honest one; returns for each super-node
/// how long after the beginning it first heard the request, and how long the answer took.
fn nine_of_ten(
    manners: &[Manner],
    eager: bool,
    asks: impl Fn(&Request) -> bool,
) -> (Vec<Duration>, Duration, bool) {
    let (mut world, holders, _) = office_of(10, 10);
    world.remember();
    world.run(Duration::from_secs(70));
    // What the stale do not know.
    let (.., [_, _]) = world.admit(DOMAIN, Roles::default());
    let mut second = printer(world.hosts.values().next().unwrap().id);
    second.name = "canon".to_owned();
    second.device = peerage_wire::id::DeviceId([3; 32]);
    world.put_device(second);
    world.run(Duration::from_secs(5));
    for (n, holder) in holders.iter().enumerate() {
        let holder = world.holder(*holder);
        holder.manner = manners[n % manners.len()];
        holder.asked.clear();
    }
    world.last_is_honest = true;
    let began = world.now.mono;
    let user = new_user(&mut world, eager);
    // Until the Head that every node asks for at its start has come, and the sets that it states.
    let known = |world: &mut World| {
        let now = world.now;
        world.host(user).node.status(now).devices.iter().any(|device| device.device.name == "canon")
    };
    for _ in 0..600 {
        if known(&mut world) {
            break;
        }
        world.run(Duration::from_millis(20));
    }
    let took = world.now.mono - began;
    let first = |holder: &support::holder::Holder| {
        holder.asked.iter().find(|(_, request)| asks(request)).map(|(at, _)| *at - began)
    };
    let mut heard: Vec<_> = world.holders.values().filter_map(first).collect();
    heard.sort_unstable();
    let found = known(&mut world);
    (heard, took, found)
}

fn rounds(heard: &[Duration]) -> Vec<usize> {
    let times: BTreeSet<_> = heard.iter().collect();
    times.into_iter().map(|time| heard.iter().filter(|at| *at == time).count()).collect()
}

#[test]
fn of_ten_super_nodes_nine_are_silent_and_the_truth_is_found_in_three_rounds() {
    let head = |request: &Request| matches!(request, Request::GetHead { .. });
    let (heard, took, found) = nine_of_ten(&[Manner::Silent], false, head);
    assert!(found && took <= TIMEOUT * 3, "{took:?}");
    assert_eq!(rounds(&heard), [2, 4, 4]);
    assert_eq!(heard.last().copied(), Some(TIMEOUT * 2));
}

/// The variant with requests at shorter intervals.
#[test]
fn an_eager_member_finds_the_truth_among_nine_silent_in_a_second() {
    let head = |request: &Request| matches!(request, Request::GetHead { .. });
    let (heard, took, found) = nine_of_ten(&[Manner::Silent], true, head);
    assert!(found && took <= Duration::from_millis(1_500), "{took:?}");
    assert_eq!(rounds(&heard), [2, 4, 4]);
    assert_eq!(heard.last().copied(), Some(EAGER_INTERVAL * 2));
}

/// A liar answers at once, so that the rounds follow each other without a pause.
#[test]
fn of_ten_super_nodes_nine_hand_out_an_old_head_and_the_new_one_is_found() {
    for manner in [Manner::Stale, Manner::Forging] {
        for eager in [false, true] {
            let head = |request: &Request| matches!(request, Request::GetHead { .. });
            let (heard, took, found) = nine_of_ten(&[manner], eager, head);
            assert!(found && took <= Duration::from_millis(500), "{manner:?}: {took:?}");
            assert_eq!(heard.len(), 10, "{manner:?}");
        }
    }
}

/// They have the newest Head, and what it states shows that they keep something back.
#[test]
fn of_ten_super_nodes_nine_keep_the_devices_back_and_they_are_found() {
    for eager in [false, true] {
        let devices = |request: &Request| matches!(request, Request::GetDevices { .. });
        let (heard, took, found) = nine_of_ten(&[Manner::Withholding], eager, devices);
        assert!(found && took <= Duration::from_millis(500), "{took:?}");
        assert_eq!(heard.len(), 10);
    }
}

#[test]
fn of_ten_super_nodes_nine_are_bad_in_every_way_and_the_truth_is_found_within_three_timeouts() {
    let manners = [Manner::Silent, Manner::Stale, Manner::Withholding, Manner::Forging];
    for (eager, limit) in [(false, TIMEOUT * 3), (true, Duration::from_millis(1_500))] {
        let (_, took, found) = nine_of_ten(&manners, eager, |_| true);
        assert!(found && took <= limit, "{took:?}");
    }
}

/// Rules 6.4 and 6.5: the whole way to a device, with one honest super-node of ten.
#[test]
fn a_tunnel_node_is_found_although_nine_of_ten_lie_about_it() {
    for manner in [Manner::Withholding, Manner::Forging] {
        let (mut world, holders, site) = office_of(11, 10);
        world.behave(manner);
        world.holder(holders[6]).manner = Manner::Honest;
        let user = new_user(&mut world, false);
        let site_id = world.host(site).id;
        let Answer::Route(route) = world.route(user, "hp", None) else { panic!("{manner:?}: no route") };
        assert!(matches!(route.way, Way::Tunnel { peer, .. } if peer == site_id), "{manner:?}");
    }
}

/// Rule 6.4: two answers are waited for, and the newer one counts.
#[test]
fn a_newer_head_wins_over_an_older_one_that_arrives_first() {
    let (mut world, holders, _) = office_of(12, 3);
    world.remember();
    world.run(Duration::from_secs(30));
    world.put_device(printer(world.hosts.values().next().unwrap().id));
    for holder in &holders {
        world.holder(*holder).manner = Manner::Stale;
    }
    // Whichever two are asked, the later answer is the newer.
    for holder in &holders[..2] {
        world.holder(*holder).manner = Manner::Honest;
        world.holder(*holder).delay = Duration::from_millis(30);
    }
    for _ in 0..20 {
        world.hosts.remove(&USER.parse().unwrap());
        let user = new_user(&mut world, false);
        world.run(Duration::from_secs(1));
        let now = world.now;
        let head = world.head();
        let newest = peerage_wire::record::UnverifiedRecord::parse(&head).unwrap().header().version;
        let status = world.host(user).node.status(now);
        assert_eq!(status.head.unwrap().version, newest);
        assert!(status.devices.iter().any(|device| device.device.name == "hp"));
    }
}

/// Rule 6.4: who kept something back, or handed out what is old, is asked last for a while.
#[test]
fn a_liar_is_noticed_and_passed_over() {
    for manner in [Manner::Withholding, Manner::Stale, Manner::Forging] {
        let (mut world, holders, site) = office_of(13, 3);
        world.remember();
        world.run(Duration::from_secs(70));
        let via = world.host(site).id;
        let mut other = printer(via);
        other.name = "renamed".to_owned();
        world.put_device(other);
        world.holder(holders[1]).manner = manner;
        let user = new_user(&mut world, false);
        let liar = world.holder(holders[1]).id;
        for _ in 0..12 {
            let task = world.command(user, Command::RefreshDevices);
            assert_eq!(world.await_answer(user, task), Answer::Refreshed, "{manner:?}");
            world.run(Duration::from_secs(30));
            world.route(user, "renamed", None);
        }
        let now = world.now;
        let status = world.host(user).node.status(now);
        let mistrusted: Vec<_> = status.servers.iter().filter(|s| s.is_mistrusted).map(|s| s.node).collect();
        assert_eq!(mistrusted, [liar], "{manner:?}");
        let asked = world.holder(holders[1]).asked.len();
        for _ in 0..5 {
            world.run(Duration::from_secs(30));
            world.route(user, "renamed", None);
        }
        let asked = world.holder(holders[1]).asked.iter().skip(asked);
        let by_user = asked.filter(|(_, request)| matches!(request, Request::GetHead { .. })).count();
        assert_eq!(by_user, 0, "{manner:?}");
    }
}

/// Rule 6.4: the operators are the last resort for what they signed, and not often.
#[test]
fn operators_are_asked_last_and_seldom() {
    let (mut world, _, site) = office_of(14, 3);
    let user = new_user(&mut world, true);
    world.run(Duration::from_secs(1));
    assert!(matches!(world.route(user, "hp", None), Answer::Route(_)));
    world.behave(Manner::Silent);
    let before = world.log.len();
    world.run(Duration::from_secs(61));
    let user_id = world.host(user).id;
    assert!(matches!(world.open(site, 1, user_id, device(), "ipp"), Decision::Served(_)));
    assert!(operator_heard(&world, before, site) > 0, "the Head comes from the operator");
    for n in 0..30 {
        world.host(user).answers.clear();
        let device = format!("device {n}");
        world.command(user, Command::Route { device, service: None });
    }
    world.run(Duration::from_secs(20));
    // Eight at once and one in five seconds, each with an introduction, a hint or a second page.
    let heard = operator_heard(&world, before, user);
    assert!((1..=40).contains(&heard), "{heard}");
}

// ---- Rule 6.8: the set of super-nodes -----------------------------------------------------------

#[test]
fn a_super_node_that_is_no_longer_stated_is_forgotten_and_its_record_deleted() {
    let (mut world, holders, site) = office_of(20, 4);
    let gone = world.holder(holders[0]).id;
    let knows = |world: &mut World| {
        let now = world.now;
        world.host(site).node.status(now).servers.iter().any(|server| server.node == gone)
    };
    assert!(knows(&mut world));
    world.drop_super_node(holders[0]);
    world.run(Duration::from_secs(90));
    assert!(!knows(&mut world));
    let id = (Table::SuperNode, gone.domain, gone.record_key());
    assert!(world.host(site).deleted.contains(&id));
}

/// A newcomer among the super-nodes gets the announcements of those whose places it holds.
#[test]
fn a_new_super_node_is_learned_from_the_head_and_told() {
    let (mut world, _, site) = office_of(21, 3);
    let newcomer = world.add_super_node(9, Segment::ALL);
    world.run(Duration::from_secs(120));
    let site_id = world.host(site).id;
    assert_eq!(stored_for(&world.holder(newcomer).records, DOMAIN), [site_id]);
    assert!(world.host(site).stored.iter().any(|record| record.header().table == Table::SuperNode));
}

/// Rules 6.4 and 1.8: a domain that is cut over two segments has its devices from both.
#[test]
fn the_devices_of_a_domain_that_is_cut_come_from_each_of_its_segments() {
    let mut world = World::new(22);
    let whole = Segment::of_domain(DOMAIN);
    let cut = PlacementKey(whole.from.0 + 0x7fff_ffff);
    let low = Segment { from: PlacementKey::MIN, to: cut };
    let high = Segment { from: PlacementKey(cut.0 + 1), to: PlacementKey::MAX };
    for n in 0..3 {
        world.add_super_node(1 + n, low);
        world.add_super_node(4 + n, high);
    }
    let site = world.join(SITE, lan("192.168.1.10", 1));
    let via = world.host(site).id;
    for n in 0..20 {
        let mut device = printer(via);
        device.device = peerage_wire::id::DeviceId([n; 32]);
        device.name = format!("printer {n}");
        world.put_device(device);
    }
    let held = |world: &mut World, n: u8| {
        let address = SocketAddr::from(([60, 0, n, 1], 7400));
        world.holder(address).records.list(Table::EndDevice, DOMAIN, None).count()
    };
    assert!(held(&mut world, 1) > 0 && held(&mut world, 4) > 0);
    assert_eq!(held(&mut world, 1) + held(&mut world, 4), 20);
    let before = world.log.len();
    let user = new_user(&mut world, false);
    world.run(Duration::from_secs(3));
    let now = world.now;
    assert_eq!(world.host(user).node.status(now).devices.len(), 20);
    assert_eq!(operator_heard(&world, before, user), 0);
}

// ---- Rule 6.6: announcements --------------------------------------------------------------------

/// Three holders of whom the tunnel-node of a device reaches the last alone.
fn announcing_to_one(seed: u64) -> (World, Vec<SocketAddr>, SocketAddr) {
    let (mut world, holders) = world_of(seed, 3);
    let site = world.join(SITE, lan("192.168.1.10", 1));
    world.host(site).lan.insert(PRINTER, found("192.168.1.77"));
    world.run(Duration::from_secs(1));
    world.cut.extend(holders.iter().take(2));
    let via = world.host(site).id;
    world.put_device(printer(via));
    (world, holders, site)
}

/// Rule 6.6: with two of three it is acknowledged, with one it is not; the others get the next.
#[test]
fn an_announcement_is_acknowledged_by_two_of_three() {
    let (mut world, holders, site) = announcing_to_one(30);
    let via = world.host(site).id;
    let announced = Event::Announced(vec![device()]);
    world.run(UNTIL_NOTICED);
    assert!(world.host(site).events.contains(&Event::Serving(vec![device()])));
    assert!(!world.host(site).events.contains(&announced));
    assert_eq!(stored_for(&world.holder(holders[2]).records, DOMAIN), [via]);
    world.cut.remove(&holders[0]);
    world.run(Duration::from_secs(200));
    assert!(world.host(site).events.contains(&announced));
    world.cut.clear();
    world.run(Duration::from_secs(400));
    assert_eq!(stored_for(&world.holder(holders[1]).records, DOMAIN), [via]);
    assert_eq!(world.host(site).events.iter().filter(|event| **event == announced).count(), 1);
}

/// Rule 6.6: two that share a router with the tunnel-node, and that it turns nothing round for, are never reached.
#[test]
fn an_announcement_that_only_the_same_one_takes_is_made_again_ever_more_seldom() {
    let (mut world, holders, site) = announcing_to_one(31);
    let via = world.host(site).id;
    world.run(Duration::from_secs(900));
    let own = |world: &World| {
        let records = &world.holders[&holders[2]].records;
        records.get(Table::NodeInfo, DOMAIN, via.record_key()).map(|r| r.header().version)
    };
    let (mut versions, ten_minutes) = (BTreeSet::new(), 600);
    for _ in 0..ten_minutes {
        versions.extend(own(&world));
        world.run(Duration::from_secs(1));
    }
    assert!((2..=4).contains(&versions.len()), "one every five minutes: {versions:?}");
    // Whoever comes back gets the next, and if that is lost the one after it, half a minute later.
    world.cut.clear();
    world.run(Duration::from_secs(400));
    assert!(world.host(site).events.contains(&Event::Announced(vec![device()])));
}

// ---- Rule 6.10: attachments ---------------------------------------------------------------------

fn attached_to(world: &World, site: SocketAddr) -> BTreeSet<SocketAddr> {
    let status = world.hosts[&site].node.status(world.now);
    let nodes: BTreeSet<_> = status.attachments.iter().map(|attachment| attachment.node).collect();
    world.holders.values().filter(|holder| nodes.contains(&holder.id)).map(|holder| holder.address).collect()
}

#[test]
fn a_tunnel_node_attaches_to_its_own_organisation_first_and_then_to_the_nearest() {
    let (mut world, holders) = world_of(40, 6);
    let own = world.add_super_node_of(DOMAIN, 7, Segment::ALL);
    for (n, holder) in holders.iter().enumerate() {
        world.holder(*holder).delay = Duration::from_millis(40 + 20 * n as u64);
    }
    world.holder(holders[3]).delay = Duration::from_millis(5);
    world.holder(own).delay = Duration::from_millis(150);
    let site = world.join(SITE, lan("192.168.1.10", 1));
    world.host(site).lan.insert(PRINTER, found("192.168.1.77"));
    world.run(Duration::from_secs(1));
    let via = world.host(site).id;
    world.put_device(printer(via));
    world.run(UNTIL_NOTICED);
    assert_eq!(attached_to(&world, site), BTreeSet::from([own, holders[3]]));
    // It stays where it is, although somebody nearer has come.
    let nearer = world.add_super_node(20, Segment::ALL);
    world.run(Duration::from_secs(300));
    assert!(!attached_to(&world, site).contains(&nearer));
}

/// A tunnel-node at a site of its own with a printer.
fn tunnel_node(world: &mut World, n: u8) -> SocketAddr {
    let site = world.join(&format!("45.10.{n}.1:7400"), lan("192.168.1.10", n));
    let mut device = printer(world.host(site).id);
    device.device = peerage_wire::id::DeviceId([n; 32]);
    device.name = format!("printer {n}");
    world.host(site).lan.insert(PRINTER, found("192.168.1.77"));
    world.put_device(device);
    site
}

/// Rule 6.10: so that few super-nodes have to know the newest Head of a domain.
#[test]
fn the_tunnel_nodes_of_a_domain_attach_to_the_same_of_those_that_are_about_equally_near() {
    let (mut world, holders) = world_of(49, 8);
    let mut chosen = BTreeSet::new();
    for n in 1..=6 {
        // Each is nearer to another one; two are far from all.
        for (m, holder) in holders.iter().enumerate() {
            let millis = if m < 6 { 5 + (m as u64 + u64::from(n)) % 6 } else { 30 };
            world.holder(*holder).delay = Duration::from_millis(millis);
        }
        let site = tunnel_node(&mut world, n);
        world.run(UNTIL_NOTICED);
        chosen.extend(attached_to(&world, site));
    }
    assert_eq!(chosen.len(), 2, "{chosen:?}");
    assert!(chosen.iter().all(|chosen| holders[..6].contains(chosen)), "{chosen:?}");
}

#[test]
fn a_dead_super_node_is_replaced_and_not_by_all_at_once() {
    let (mut world, _) = world_of(41, 4);
    let sites: Vec<_> = (1..=12).map(|n| tunnel_node(&mut world, n)).collect();
    world.run(UNTIL_NOTICED);
    assert!(sites.iter().all(|site| attached_to(&world, *site).len() == 2));
    let victim = *attached_to(&world, sites[0]).first().unwrap();
    world.cut.insert(victim);
    let died = world.now.mono;
    world.run(Duration::from_secs(100));
    for site in &sites {
        let attached = attached_to(&world, *site);
        assert!(attached.len() == 2 && !attached.contains(&victim), "{attached:?}");
    }
    // Those who moved came one after the other.
    let moved = world.holders.values().flat_map(|holder| &holder.asked);
    let moved = moved.filter(|(at, request)| *at > died && matches!(request, Request::Store(_)));
    let seconds: BTreeSet<_> = moved.map(|(at, _)| at.as_micros() / 1_000_000).collect();
    assert!(seconds.len() >= 4, "{seconds:?}");
}

/// Rule 6.33: who hears from a broken tunnel that a super-node may be dead does not wait for the next renewal.
#[test]
fn a_dead_relay_is_replaced_within_two_seconds_and_the_network_is_told() {
    let (mut world, _, site) = office_of(48, 4);
    let before = attached_to(&world, site);
    let victim = *before.first().unwrap();
    let relay = world.holder(victim).id;
    world.cut.insert(victim);
    let died = world.now.mono;
    world.input(site, Input::RelayLost(relay));
    world.run(Duration::from_secs(3));
    let attached = attached_to(&world, site);
    assert!(attached.len() == 2 && !attached.contains(&victim), "{attached:?}");
    let heard = world.holders.values().flat_map(|holder| &holder.asked);
    let told = heard.filter(|(at, request)| *at > died && matches!(request, Request::Store(_)));
    assert!(told.count() >= 2, "where it is attached now is in its NodeInfo");
}

/// Rule 6.23: when enough super-nodes have come, the operator is left, one by one.
#[test]
fn members_leave_the_operator_when_it_stands_in_no_more() {
    let mut world = World::new(42);
    let site = world.join(SITE, lan("192.168.1.10", 1));
    world.host(site).lan.insert(PRINTER, found("192.168.1.77"));
    world.run(Duration::from_secs(1));
    let via = world.host(site).id;
    world.put_device(printer(via));
    world.run(Duration::from_secs(30));
    assert_eq!(attached_to(&world, site), BTreeSet::new());
    let super_nodes: Vec<_> = (1..=3).map(|n| world.add_super_node(n, Segment::ALL)).collect();
    // The operator's own Head may not state them yet, so the node is told as at its renewal.
    let records = world.ledger.values().filter(|r| r.header().table == Table::SuperNode);
    let records = records.map(|record| record.bytes().clone()).collect();
    world.input(site, Input::Renewed { records, time: None });
    world.run(Duration::from_secs(120));
    let attached = attached_to(&world, site);
    assert!(attached.len() == 2 && attached.is_subset(&super_nodes.into_iter().collect()), "{attached:?}");
    let before = world.log.len();
    world.run(Duration::from_secs(300));
    assert_eq!(operator_heard(&world, before, site), 0);
}

/// Rule 6.10: who is attached is told of a revocation by the super-node, and believes the operator's signature.
#[test]
fn a_super_node_passes_on_the_news_to_those_attached_to_it_alone() {
    let (mut world, holders, site) = office_of(43, 4);
    let user = new_user(&mut world, false);
    let user_id = world.host(user).id;
    assert!(matches!(world.open(site, 1, user_id, device(), "ipp"), Decision::Served(_)));
    let attached = attached_to(&world, site);
    let stranger = *holders.iter().find(|holder| !attached.contains(holder)).unwrap();
    // The operator does not reach the site, so that super-nodes alone can tell it.
    world.cut.insert(OPERATOR_ADDRESS.parse().unwrap());
    world.revoke(user_id);
    world.notify_from(stranger, site);
    world.run(Duration::from_secs(1));
    assert_eq!(world.host(site).closed, []);
    world.notify_from(*attached.first().unwrap(), site);
    world.run(Duration::from_secs(1));
    assert_eq!(world.host(site).closed.len(), 1);
}

/// Rule 6.8: a super-node that keeps the newest Head back does not keep a revocation back for longer than a minute.
#[test]
fn a_revocation_is_in_force_within_a_minute_although_those_attached_to_keep_it_back() {
    let (mut world, _, site) = office_of(44, 4);
    let user = new_user(&mut world, false);
    let user_id = world.host(user).id;
    world.run(Duration::from_secs(60));
    assert!(matches!(world.open(site, 1, user_id, device(), "ipp"), Decision::Served(_)));
    world.remember();
    for holder in attached_to(&world, site) {
        world.holder(holder).manner = Manner::Stale;
    }
    world.cut.insert(OPERATOR_ADDRESS.parse().unwrap());
    world.revoke(user_id);
    world.run(Duration::from_secs(60));
    assert_eq!(world.host(site).closed.len(), 1);
    world.run(Duration::from_secs(120));
    let liars = world.holders.values().filter(|holder| holder.manner == Manner::Stale);
    let liars: BTreeSet<_> = liars.map(|holder| holder.address).collect();
    assert!(attached_to(&world, site).is_disjoint(&liars), "they are passed over");
}

/// Rule 6.15: of two relays one refuses and one is dead; the tunnel-node has answered by the way of the first.
#[test]
fn an_answer_is_used_although_the_other_relay_is_waited_for_in_vain() {
    let (mut world, _, site) = office_of(55, 3);
    let user = new_user(&mut world, true);
    world.route(user, "hp", None);
    for dead in attached_to(&world, site) {
        world.cut.insert(dead);
        world.legs.mute.insert(dead);
        let before = world.log.len();
        let Answer::Route(route) = world.route(user, "hp", None) else { panic!("no way") };
        let Way::Tunnel { begun: Some(begun), .. } = route.way else { panic!("no handshake") };
        assert!(begun.flight.is_some(), "what it said was dropped");
        assert!(world.log.len() - before <= 15, "it was looked up and asked again");
        world.cut.clear();
        world.legs.mute.clear();
    }
}

// ---- Rule 6.9: without an operator --------------------------------------------------------------

/// Super-nodes alone keep the network going; what they cannot give is a fresh Head, and that is said.
#[test]
fn for_a_day_without_an_operator_members_find_and_use_devices() {
    let (mut world, _, site) = office_of(50, 3);
    let user = new_user(&mut world, true);
    assert!(matches!(world.route(user, "hp", None), Answer::Route(_)));
    world.operator_up = false;
    world.run(Duration::from_secs(12 * 3_600));
    let user_id = world.host(user).id;
    assert!(matches!(world.route(user, "hp", None), Answer::Route(_)));
    assert!(matches!(world.open(site, 1, user_id, device(), "ipp"), Decision::Served(_)));
    let now = world.now;
    let status = world.host(site).node.status(now);
    assert!(status.online, "super-nodes answer");
    let head = status.head.unwrap();
    assert!(head.age >= Duration::from_secs(12 * 3_600 - 60));
    assert!(head.silent.is_some_and(|silent| silent > Duration::from_secs(11 * 3_600)));
    // Somebody who was switched off meanwhile goes on as well.
    world.restart(site);
    world.run(Duration::from_secs(30));
    assert!(matches!(world.open(site, 2, user_id, device(), "ipp"), Decision::Served(_)));
}

/// Rule 6.9: whoever had another time was not heard, and so had no fresh Head. Whoever learns the time asks again.
#[test]
fn a_node_that_has_learned_the_time_asks_for_a_head_before_it_goes_on_without() {
    let (mut world, _, site) = office_of(54, 3);
    let user = new_user(&mut world, true);
    let user_id = world.host(user).id;
    assert!(matches!(world.route(user, "hp", None), Answer::Route(_)));
    world.operator_up = false;
    world.run(Duration::from_secs(600));
    assert!(matches!(world.open(site, 1, user_id, device(), "ipp"), Decision::Served(_)));
    world.revoke(user_id);
    world.operator_up = true;
    world.step_clock(site, 90_000);
    world.host(site).events.clear();
    while !world.host(site).events.iter().any(|event| matches!(event, Event::ClockLearned(_))) {
        world.run(Duration::from_millis(10));
    }
    let decision = world.open(site, 2, user_id, device(), "ipp");
    assert_eq!(decision, Decision::Refused(peerage_wire::frame::Code::Revoked));
}

/// Rule 5.6: operators that are down are silent as well as to the revoked, and an outage is not to bring them more than a request an
/// hour from each node.
#[test]
fn while_operators_alone_are_silent_a_node_asks_once_an_hour_whether_it_was_revoked() {
    let (mut world, _, site) = office_of(53, 4);
    world.run(Duration::from_secs(600));
    world.operator_up = false;
    let before = world.host(site).renewals;
    world.run(Duration::from_secs(8 * 60));
    assert_eq!(world.host(site).renewals, before, "an operator may be started anew");
    world.run(Duration::from_secs(6 * 3_600));
    let asked = world.host(site).renewals - before;
    assert!((3..=8).contains(&asked), "{asked} times in six hours");
}

/// Rule 6.9: the last Head is on disk, so that a node which is restarted while nobody answers goes on.
#[test]
fn a_node_that_is_restarted_while_nobody_answers_goes_on_with_the_last_head() {
    let (mut world, site, user) = support::office(51);
    let user_id = world.host(user).id;
    assert!(matches!(world.open(site, 1, user_id, device(), "ipp"), Decision::Served(_)));
    world.operator_up = false;
    world.run(Duration::from_secs(3_600));
    world.restart(site);
    world.run(Duration::from_secs(30));
    assert!(matches!(world.open(site, 2, user_id, device(), "ipp"), Decision::Served(_)));
    let now = world.now;
    let head = world.host(site).node.status(now).head.unwrap();
    assert!(head.age >= Duration::from_secs(3_600), "{:?}", head.age);
}

/// … but not if what it had stored is not all that the Head states.
#[test]
fn a_node_that_lost_a_revocation_does_not_go_on_with_the_last_head() {
    let (mut world, site, user) = support::office(52);
    let user_id = world.host(user).id;
    let third = world.join("45.30.0.1:7400", lan("10.1.1.5", 3));
    let third_id = world.host(third).id;
    world.run(Duration::from_secs(2));
    world.revoke(third_id);
    world.run(Duration::from_secs(60));
    world.operator_up = false;
    world.host(site).stored.retain(|record| record.header().table != Table::Revocation);
    world.restart(site);
    world.run(Duration::from_secs(30));
    let stale = Decision::Refused(peerage_wire::frame::Code::StaleHead);
    assert_eq!(world.open(site, 2, user_id, device(), "ipp"), stale);
    assert_eq!(world.route(site, "hp", None), Answer::Failed(Failure::Stale));
}

/// The Head is not written at each renewal of an attachment.
#[test]
fn an_unchanged_head_is_written_to_disk_every_ten_minutes_at_most() {
    let (mut world, site, _) = support::office(53);
    let heads = |world: &mut World| {
        world.host(site).stored.iter().filter(|record| record.header().table == Table::Head).count()
    };
    world.run(Duration::from_secs(60));
    let before = heads(&mut world);
    assert!(before > 0);
    world.run(Duration::from_secs(3_600));
    assert!(heads(&mut world) <= before + 7);
}

// ---- Rule 6.6: versions from the future ---------------------------------------------------------

/// Returns who of the holders has a valid NodeInfo of a node.
fn holding_info(world: &mut World, holders: &[SocketAddr], of: SocketAddr) -> Vec<SocketAddr> {
    let (key, time) = (world.host(of).id.record_key(), world.now.unix);
    let is_held = |holder: &SocketAddr| {
        let info = world.holder(*holder).records.get(Table::NodeInfo, DOMAIN, key);
        info.is_some_and(|record| record.is_valid_at(time))
    };
    holders.iter().copied().filter(is_held).collect()
}

#[test]
fn a_holder_that_claims_a_version_from_the_end_of_time_does_not_make_a_tunnel_node_unfindable() {
    let (mut world, holders, site) = office_of(1, 3);
    world.holder(holders[0]).manner = Manner::Poisoning;
    world.run(Duration::from_secs(1_500));
    assert_eq!(holding_info(&mut world, &holders, site), holders);
    let user = new_user(&mut world, false);
    assert!(matches!(world.route(user, "hp", None), Answer::Route(_)));
    // Nor is what it remembers on disk from another time.
    world.restart(site);
    world.run(Duration::from_secs(700));
    assert_eq!(holding_info(&mut world, &holders, site), holders);
}

#[test]
fn a_node_that_announced_itself_while_its_clock_was_a_day_ahead_is_found_when_the_clock_is_right() {
    let (mut world, holders, site) = office_of(1, 3);
    let network = world.network;
    let host = world.host(site);
    // What it has on disk from then is valid for another day, and newer than what it may announce now.
    let is_info = |record: &&Record| record.header().table == Table::NodeInfo;
    let announced = host.stored.iter().rev().find(is_info).unwrap().clone();
    let header = *announced.header();
    let day = Duration::from_secs(86_400);
    let (version, expires) = (header.made_at().after(day).as_millis(), header.expires.after(day));
    let header = Header { version, expires, ..header };
    let public = NodeInfoPublic::read(&announced).unwrap().write();
    let draft = Draft { header, public, private: None };
    let ahead = draft.sign(&host.identity, &network, &Real).unwrap();
    host.stored.push(ahead);
    world.restart(site);
    world.run(Duration::from_secs(1_200));
    assert_eq!(holding_info(&mut world, &holders, site), holders);
    let user = new_user(&mut world, false);
    assert!(matches!(world.route(user, "hp", None), Answer::Route(_)));
    // What it writes now takes the place of that.
    let latest = world.now.unix.after(Duration::from_secs(120));
    let last = world.host(site).stored.iter().rev().find(is_info).map(|record| record.header().made_at());
    assert!(last.is_some_and(|made_at| made_at <= latest));
}
