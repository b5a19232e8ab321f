//! How much a network says while nothing happens.

#![expect(clippy::print_stdout, reason = "the figures are what one wants to read")]

use std::net::SocketAddr;
use std::time::Duration;

use peerage_wire::id::DeviceId;

use crate::actor::USER_ONLY;
use crate::support::{DOMAIN, OPERATOR_ADDRESS, PRINTER, USER, World, found, lan, office, printer};

const HOUR: Duration = Duration::from_secs(3_600);

/// Datagrams in both directions at an address during an hour.
fn hourly(world: &mut World, at: SocketAddr) -> usize {
    let before = world.log.len();
    world.run(HOUR);
    world.log[before..].iter().filter(|flight| flight.from == at || flight.to == at).count()
}

/// Rule 6.7: a node that only uses devices is silent between its requests.
#[test]
fn an_idle_user_says_nothing() {
    let (mut world, _, _) = office(90);
    let user = world.join_with("45.21.0.1:7400", lan("10.3.0.5", 5), 0, |config| config.serves = false);
    world.run(Duration::from_secs(60));
    let datagrams = hourly(&mut world, user);
    println!("idle user: {datagrams} datagrams an hour");
    assert_eq!(datagrams, 0);
}

/// Rule 6.7: a node that may serve asks now and then whether a device has come to its site.
#[test]
fn a_node_that_may_serve_and_has_no_device_asks_every_five_minutes() {
    let (mut world, _, user) = office(91);
    world.run(Duration::from_secs(60));
    let datagrams = hourly(&mut world, user);
    println!("idle node that may serve: {datagrams} datagrams an hour");
    assert!((20..=30).contains(&datagrams), "a question and an answer, twelve times: {datagrams}");
}

/// Rule 6.10: one Attach every 25 s, which brings the Head too, and an announcement every five minutes.
#[test]
fn an_attached_tunnel_node_says_little() {
    let (mut world, site, _) = office(92);
    world.run(Duration::from_secs(60));
    let datagrams = hourly(&mut world, site);
    println!("attached tunnel-node: {datagrams} datagrams an hour");
    assert!((250..=400).contains(&datagrams), "{datagrams}");
}

/// Rules 6.10 and 6.20: fifty tunnel-nodes, each at a site of its own, of which each says what one says.
#[test]
fn an_operator_of_fifty_nodes_has_fifty_times_the_work_of_one() {
    let mut world = World::new(93);
    for n in 0..50 {
        let site = world.join(&format!("45.10.1.{n}:7400"), lan("192.168.1.11", n));
        let mut device = printer(world.host(site).id);
        device.device = DeviceId([n; 32]);
        device.name = format!("printer {n}");
        world.host(site).lan.insert(PRINTER, found("192.168.1.77"));
        world.put_device(device);
        world.admit(DOMAIN, USER_ONLY);
    }
    world.run(Duration::from_secs(60));
    let before = world.log.len();
    world.run(Duration::from_secs(600));
    let operator: SocketAddr = OPERATOR_ADDRESS.parse().unwrap();
    let all = world.log[before..].iter().filter(|f| f.from == operator || f.to == operator).count();
    println!("operator of 50 attached nodes: {} datagrams an hour", all * 6);
    assert!((50 * 40..=50 * 80).contains(&all), "{all} in ten minutes");
}

/// Rule 6.21: a revocation reaches all, with a bounded number of datagrams for each.
#[test]
fn a_revocation_among_fifty_nodes_costs_each_a_few_datagrams() {
    let mut world = World::new(94);
    let first = world.join(USER, lan("192.168.1.10", 1));
    world.host(first).lan.insert(PRINTER, found("192.168.1.77"));
    world.run(Duration::from_secs(1));
    let via = world.host(first).id;
    world.put_device(printer(via));
    for n in 0..49 {
        world.join(&format!("45.10.1.{n}:7400"), lan("192.168.1.11", 1));
    }
    world.run(Duration::from_secs(60));
    let victim = world.hosts.values().nth(7).unwrap().id;
    let before = world.log.len();
    world.revoke(victim);
    world.run(Duration::from_secs(5));
    let all = world.log.len() - before;
    println!("revocation among 50 attached nodes: {all} datagrams in 5 s");
    assert!(all <= 50 * 16, "{all}");
    let now = world.now;
    let others = world.hosts.values().filter(|host| host.id != victim);
    assert!(others.map(|host| host.node.status(now)).all(|status| status.head.unwrap().revocations == 1));
}
