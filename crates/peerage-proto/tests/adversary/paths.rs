//! Attempts to aim nodes at somebody else, or to find out about them, by what is said of places (Rules 6.92 to 6.94).

use std::net::SocketAddr;
use std::time::Duration;

use peerage_proto::node::Event;
use peerage_wire::codec::{Candidate, CandidateKind, Transport};
use peerage_wire::id::{Domain, SessionId};
use peerage_wire::message::{Request, TunnelRequest};

use crate::actor::{Actor, TUNNEL, USER_ONLY};
use crate::support::{DOMAIN, Flight, SITE, World, device, office};

const HERE: &str = "45.66.6.6:1";
const OTHER: Domain = Domain(0x0bad_cafe);

fn request(n: u8, places: &[SocketAddr]) -> Request {
    let transport = Transport::Udp;
    let of =
        |address: &SocketAddr| Candidate { kind: CandidateKind::Reflexive, transport, address: *address };
    Request::TunnelRequest(TunnelRequest {
        id: SessionId([n; 16]),
        device: device(),
        service: "ipp".to_owned(),
        candidates: places.iter().map(of).collect(),
        relay: None,
        hello: None,
    })
}

/// Lets a member ask the tunnel-node through the operator.
fn ask_through(world: &mut World, actor: &mut Actor, request: &Request) {
    let site: SocketAddr = SITE.parse().unwrap();
    let inner = actor.seal_for_host(world, site, request);
    let to = world.host(site).id;
    actor.ask(world, &Request::ForwardedTunnelRequest { to, inner });
}

/// Returns what the tunnel-node has sent elsewhere than to the operator and to the member itself.
fn sent_elsewhere(world: &World, since: usize) -> Vec<Flight> {
    let (site, here): (SocketAddr, SocketAddr) = (SITE.parse().unwrap(), HERE.parse().unwrap());
    let operator: SocketAddr = crate::support::OPERATOR_ADDRESS.parse().unwrap();
    let all = world.log[since..].iter();
    all.filter(|flight| flight.from == site && flight.to != operator && flight.to != here).cloned().collect()
}

/// Rule 6.92: five packets to a place, some dozens to a site, however often and under whatever name it is asked.
#[test]
fn a_member_cannot_aim_a_tunnel_node_at_a_victim() {
    let (mut world, _, _) = office(90);
    let mut actor = Actor::admitted(&mut world, HERE, DOMAIN, USER_ONLY);
    let since = world.log.len();
    for n in 1..=30 {
        let victims: Vec<_> =
            (0..8).map(|port| SocketAddr::from(([45, 99, 0, 1], u16::from(n) * 10 + port))).collect();
        ask_through(&mut world, &mut actor, &request(n, &victims));
        world.run(Duration::from_secs(1));
    }
    let sent = sent_elsewhere(&world, since);
    assert!(!sent.is_empty(), "nothing was checked");
    assert!(sent.len() <= 60 + 5 * 30, "{} packets", sent.len());
    for flight in &sent {
        assert!(sent.iter().filter(|other| other.to == flight.to).count() <= 5, "{}", flight.to);
    }
    // The member itself was heard, and nobody else.
    let (site, here) = (SITE.parse().unwrap(), HERE.parse().unwrap());
    let elsewhere = |event: &Event| matches!(event, Event::PathFound(path) if path.remote != here);
    assert!(!world.host(site).events.iter().any(elsewhere));
}

/// Rule 6.92: what may not be dialled is not checked either.
#[test]
fn nothing_goes_to_places_that_may_not_be_dialled() {
    let (mut world, _, _) = office(91);
    let mut actor = Actor::admitted(&mut world, HERE, DOMAIN, USER_ONLY);
    let since = world.log.len();
    let places = ["127.0.0.1:22", "10.0.0.1:53", "192.168.1.1:80", "192.168.1.255:7", "169.254.169.254:80"];
    ask_through(&mut world, &mut actor, &request(1, &places.map(|place| place.parse().unwrap())));
    let more = [
        "224.0.0.251:5353",
        "255.255.255.255:9",
        "[::1]:1",
        "[2001:db9::1]:1",
        "45.99.0.1:0",
        "100.64.0.9:9",
    ];
    ask_through(&mut world, &mut actor, &request(2, &more.map(|place| place.parse().unwrap())));
    world.run(Duration::from_secs(6));
    assert_eq!(sent_elsewhere(&world, since).iter().map(|flight| flight.to).collect::<Vec<_>>(), []);
}

/// Rule 6.93: whom a tunnel-node does not serve it does not check.
#[test]
fn nobody_else_starts_checks() {
    let (mut world, site, _) = office(92);
    let mut foreign = Actor::admitted(&mut world, HERE, OTHER, TUNNEL);
    let since = world.log.len();
    let asked = request(1, &["45.99.0.1:9".parse().unwrap()]);
    ask_through(&mut world, &mut foreign, &asked);
    foreign.ask_host(&mut world, site, &asked);
    world.run(Duration::from_secs(6));
    assert!(sent_elsewhere(&world, since).is_empty());
}

/// Rule 6.94: a Ping out of the blue is answered, and makes nothing happen; within an attempt it is answered with one check.
#[test]
fn pings_do_not_go_round() {
    let (mut world, site, _) = office(93);
    let mut actor = Actor::admitted(&mut world, HERE, DOMAIN, USER_ONLY);
    let here: SocketAddr = HERE.parse().unwrap();
    let to_actor = |world: &World, since: usize| {
        let sent = world.log[since..].iter().filter(|flight| flight.from == site && flight.to == here);
        // Everything but replies and hints.
        sent.filter(|flight| !matches!(flight.payload[0], 9 | 0x0b)).count()
    };
    let since = world.log.len();
    for _ in 0..5 {
        actor.ask_host(&mut world, site, &Request::Ping);
    }
    world.run(Duration::from_secs(6));
    assert_eq!(to_actor(&world, since), 0);
    ask_through(&mut world, &mut actor, &request(1, &[]));
    for _ in 0..50 {
        actor.ask_host(&mut world, site, &Request::Ping);
    }
    world.run(Duration::from_secs(6));
    let checks = to_actor(&world, since);
    assert!((1..=8).contains(&checks), "{checks}");
}
