//! Floods of strangers, and the cookies that keep the others served (Rule 3.10).

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use peerage_proto::discard::Discard;
use peerage_wire::message::{Reply, Request};
use peerage_wire::packet::{HintReason, Packet};
use rand_core::Rng as _;

use crate::actor::{Actor, TUNNEL};
use crate::support::{DOMAIN, Flight, OPERATOR_ADDRESS, World};

const NEWCOMER: &str = "45.50.0.1:7400";

fn operator_address() -> SocketAddr {
    OPERATOR_ADDRESS.parse().unwrap()
}

/// Sends first contacts from everywhere, each with another encapsulated key, until the operator wants cookies.
fn flood(world: &mut World, template: &Bytes, count: u32) {
    for n in 0..count {
        let mut payload = template.to_vec();
        world.rng.fill_bytes(&mut payload[106..138]);
        let from = SocketAddr::from((std::net::Ipv4Addr::from_bits(0x3000_0000 + n), 7400));
        world.inject(from, operator_address(), &payload);
    }
}

fn flooded(seed: u64) -> (World, Bytes, Actor) {
    let mut world = World::new(seed);
    let mut known = Actor::admitted(&mut world, "45.51.0.1:7400", DOMAIN, TUNNEL);
    assert!(known.ask(&mut world, &Request::Ping).is_some());
    let mut other = Actor::admitted(&mut world, "45.52.0.1:7400", DOMAIN, TUNNEL);
    let template = other.seal(&world, &Request::Ping);
    flood(&mut world, &template, 400);
    (world, template, known)
}

fn cookie_hint(answers: &[Flight]) -> bool {
    let hint = |flight: &Flight| matches!(Packet::parse(&flight.payload), Ok(Packet::Hint(hint)) if matches!(hint.reason, HintReason::Cookie(_)));
    answers.len() == 1 && hint(&answers[0])
}

/// Rule 3.10: who shows that it receives at its address is served, however many others do not.
#[test]
fn a_stranger_that_returns_the_cookie_is_served_during_a_flood() {
    let (mut world, _, _) = flooded(30);
    assert!(world.operator.discards().of(Discard::BadCookie) >= 100);
    let mut newcomer = Actor::admitted(&mut world, NEWCOMER, DOMAIN, TUNNEL);
    let before = world.log.len();
    let reply = newcomer.ask(&mut world, &Request::Ping);
    assert_eq!(reply, Some(Reply::Reping { observed: newcomer.address }));
    let answers: Vec<_> = world.log[before..].iter().filter(|f| f.to == newcomer.address).cloned().collect();
    assert!(cookie_hint(&answers[..1]), "a cookie came first");
}

/// Rule 3.10: known contexts need no cookie.
#[test]
fn known_members_are_served_as_ever_during_a_flood() {
    let (mut world, template, mut known) = flooded(31);
    for _ in 0..5 {
        flood(&mut world, &template, 50);
        let before = world.log.len();
        assert!(known.ask(&mut world, &Request::Ping).is_some());
        let to_known = world.log[before..].iter().filter(|f| f.to == known.address).count();
        assert_eq!(to_known, 1, "one request, one reply");
    }
}

/// Rule 3.10: a cookie is for one address, one port, one context and two minutes.
#[test]
fn a_cookie_of_another_address_context_or_minute_is_refused() {
    let (mut world, template, _) = flooded(32);
    let mut newcomer = Actor::admitted(&mut world, NEWCOMER, DOMAIN, TUNNEL);
    let first = newcomer.seal(&world, &Request::Ping);
    let hints = world.inject(newcomer.address, operator_address(), &first);
    assert!(cookie_hint(&hints));
    let now = world.now;
    newcomer.endpoint.handle_datagram(operator_address(), &hints[0].payload, &newcomer.trust, now);
    let with_cookie = newcomer.endpoint.poll_transmit().expect("sent again").1;
    assert_eq!(with_cookie[1], 3, "cookie and introduction");
    for elsewhere in ["45.50.0.2:7400", "45.50.0.1:7401"] {
        assert!(cookie_hint(&world.inject(elsewhere.parse().unwrap(), operator_address(), &with_cookie)));
    }
    let mut other_context = with_cookie.to_vec();
    other_context[106] ^= 1;
    assert!(cookie_hint(&world.inject(newcomer.address, operator_address(), &other_context)));
    let mut other_cookie = with_cookie.to_vec();
    other_cookie[138] ^= 1;
    assert!(cookie_hint(&world.inject(newcomer.address, operator_address(), &other_cookie)));
    // Two minutes later the cookie is no longer one, and what it came with is too old anyway.
    world.run(Duration::from_secs(121));
    flood(&mut world, &template, 400);
    assert!(cookie_hint(&world.inject(newcomer.address, operator_address(), &with_cookie)));
}

/// Rule 3.8: one place cannot make an operator compute without end, even when there is no load.
#[test]
fn one_place_has_a_budget_for_first_contacts() {
    let mut world = World::new(33);
    let mut other = Actor::admitted(&mut world, "45.52.0.1:7400", DOMAIN, TUNNEL);
    let template = other.seal(&world, &Request::Ping);
    for n in 0..1_000_u32 {
        let mut payload = template.to_vec();
        payload[106..110].copy_from_slice(&n.to_be_bytes());
        world.inject(other.address, operator_address(), &payload);
    }
    assert_eq!(world.operator.discards().of(Discard::BadSeal), 200);
    assert_eq!(world.operator.discards().of(Discard::RateLimited), 800);
}
