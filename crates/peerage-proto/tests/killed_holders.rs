//! Scenarios of members that look things up while those who hold the table die and come back.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in its helpers too"
)]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use peerage_proto::node::{Answer, Command};
use support::{PRINTER, SITE, USER, World, found, lan, printer};

const SECOND: Duration = Duration::from_secs(1);

/// A network of nine lenders, who hold two segments, with a printer, its tunnel-node and a user, who has the Head of
/// half a minute ago.
fn network(seed: u64) -> (World, SocketAddr, SocketAddr) {
    let mut world = World::new(seed);
    let site = world.join_with(SITE, lan("192.168.1.10", 1), 0, |config| config.eager = true);
    world.host(site).lan.insert(PRINTER, found("192.168.1.77"));
    world.run(SECOND);
    let via = world.host(site).id;
    world.put_device(printer(via));
    for n in 1..=9 {
        world.add_lender(n);
    }
    world.faults.delay_millis = 20;
    world.run(400 * SECOND);
    let user = world.join_with(USER, lan("192.168.1.20", 2), 0, |config| config.eager = true);
    world.run(30 * SECOND);
    let segments = world.operator.segment_map();
    assert!(segments.len() == 2 && segments.iter().all(|segment| segment.holders.len() >= 4));
    (world, site, user)
}

/// Kills this many holders of each segment.
fn kill(world: &mut World, count: usize) {
    for segment in world.operator.segment_map() {
        let victims: Vec<_> = world
            .hosts
            .iter()
            .filter(|(_, host)| segment.holders.contains(&host.id))
            .map(|(at, _)| *at)
            .collect();
        for at in victims.into_iter().take(count) {
            world.hosts.remove(&at);
        }
    }
}

/// Asks for the devices; returns how long that took, and how many datagrams the asker sent.
fn refresh(world: &mut World, user: SocketAddr) -> (Duration, usize) {
    let (began, sent) = (world.now.mono, world.log.len());
    let task = world.command(user, Command::RefreshDevices);
    for _ in 0..2_000 {
        if let Some(answer) = world.host(user).answers.remove(&task) {
            assert_eq!(answer, Answer::Refreshed);
            let sent = world.log[sent..].iter().filter(|flight| flight.from == user).count();
            return (world.now.mono - began, sent);
        }
        world.run(Duration::from_millis(10));
    }
    panic!("no answer within 20 s");
}

/// Returns how many devices a node knows, and whether somebody serves the first.
fn knows(world: &mut World, node: SocketAddr) -> (usize, bool) {
    let now = world.now;
    let devices = world.host(node).node.status(now).devices;
    (devices.len(), devices.iter().any(|device| device.announced.is_some_and(|nodes| nodes > 0)))
}

/// Rule 6.4: in quiet two holders are asked for each list of each segment, and after a change nobody is asked more because the
/// Head is not new enough to state it; the first look-up after a death waits once for the dead, and the next ones do not.
#[test]
fn nobody_waits_a_second_because_holders_were_killed() {
    for seed in 0..3 {
        let (mut world, site, user) = network(seed);
        let in_quiet = refresh(&mut world, user).1;
        assert!(in_quiet <= 6, "{in_quiet} datagrams");
        let mut second = printer(world.host(site).id);
        second.name = "canon".to_owned();
        second.device = peerage_wire::id::DeviceId([3; 32]);
        world.put_device(second);
        world.run(3 * SECOND);
        for killed in 1..=2 {
            kill(&mut world, 1);
            let mut all = 0;
            for _ in 0..20 {
                let (took, sent) = refresh(&mut world, user);
                assert!(took < SECOND / 2, "{killed} killed: {took:?}");
                assert_eq!(knows(&mut world, user), (2, true));
                all += sent;
                world.run(SECOND);
            }
            // Whoever died is asked once more, and another in its place.
            assert!(all <= 20 * in_quiet + 2, "{killed} killed: {all} datagrams");
        }
    }
}
