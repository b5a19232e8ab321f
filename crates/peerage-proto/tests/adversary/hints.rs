//! Hints that nobody has a right to, and cookies.

use std::net::SocketAddr;
use std::time::Duration;

use peerage_proto::discard::Discard;
use peerage_proto::node::Command;
use peerage_wire::crypto::Real;
use peerage_wire::intro::KeyStatement;
use peerage_wire::keys::{AgreementKey, IdentityKey};
use peerage_wire::packet::{Hint, HintReason, Packet};

use crate::support::{Flight, OPERATOR_ADDRESS, World, office};

fn operator_address() -> SocketAddr {
    OPERATOR_ADDRESS.parse().unwrap()
}

/// A user whose request is on its way while nobody answers.
fn asking(seed: u64) -> (World, SocketAddr, Flight) {
    let (mut world, _, user) = office(seed);
    world.operator_up = false;
    world.command(user, Command::RefreshDevices);
    let flight = world.log.iter().rev().find(|flight| flight.from == user).cloned().unwrap();
    (world, user, flight)
}

fn hint(about: &Flight, reason: HintReason) -> Vec<u8> {
    let echo = about.payload[about.payload.len() - 16..].try_into().unwrap();
    Hint { echo, reason }.to_bytes()
}

fn reasons() -> [HintReason; 3] {
    [HintReason::NeedIntroduction, HintReason::NeedLong, HintReason::Cookie([7; 16])]
}

fn unsolicited(world: &mut World, user: SocketAddr) -> u64 {
    let now = world.now;
    world.host(user).node.status(now).discards.of(Discard::Unsolicited)
}

/// Rule 3.9: who does not know the datagram, or is not where it went, cannot hint about it.
#[test]
fn a_hint_with_a_wrong_echo_or_from_elsewhere_does_nothing() {
    for reason in reasons() {
        let (mut world, user, asked) = asking(20);
        let wrong = Hint { echo: [1; 16], reason: reason.clone() }.to_bytes();
        assert!(world.inject(operator_address(), user, &wrong).is_empty());
        let right = hint(&asked, reason);
        let elsewhere: SocketAddr = "198.51.101.1:7401".parse().unwrap();
        assert!(world.inject(elsewhere, user, &right).is_empty());
        assert_eq!(unsolicited(&mut world, user), 2);
    }
}

/// Rule 3.9: a hint is about something that was sent just now.
#[test]
fn a_hint_about_a_request_that_is_over_does_nothing() {
    let (mut world, user, asked) = asking(21);
    world.run(Duration::from_secs(6));
    assert!(world.inject(operator_address(), user, &hint(&asked, HintReason::NeedLong)).is_empty());
    assert_eq!(unsolicited(&mut world, user), 1);
}

/// Rules 3.9 and 6.3: true or forged, hints make a node send one request five times more and not oftener.
#[test]
fn a_flood_of_hints_makes_a_node_send_no_more_than_the_bound() {
    for reason in reasons() {
        let (mut world, user, asked) = asking(22);
        let before = world.log.len();
        for _ in 0..1_000 {
            world.inject(operator_address(), user, &hint(&asked, reason.clone()));
        }
        let sent = world.log[before..].iter().filter(|flight| flight.from == user).count();
        assert!((1..=5).contains(&sent), "{sent}");
        world.run(Duration::from_secs(10));
        world.operator_up = true;
        let task = world.command(user, Command::RefreshDevices);
        assert_eq!(world.await_answer(user, task), peerage_proto::node::Answer::Refreshed);
    }
}

/// Rule 3.9: a key statement counts if the node made it, and it is valid.
#[test]
fn a_key_statement_that_is_not_the_nodes_or_has_expired_is_not_taken() {
    let (mut world, user, asked) = asking(23);
    let stranger = IdentityKey::generate(&mut world.rng);
    let key = *AgreementKey::generate(&mut world.rng).public();
    let (id, network, time) = (world.operator_id, world.network, world.now.unix);
    let hour = Duration::from_secs(3_600);
    let sign = |identity: &IdentityKey, node, validity| {
        KeyStatement::sign(identity, &network, node, key, validity, &Real).to_bytes()
    };
    let of_stranger = stranger.node_id(peerage_wire::id::Domain::OPERATORS);
    let forged = [
        sign(&stranger, id, time.before(hour)..time.after(hour)),
        sign(&stranger, of_stranger, time.before(hour)..time.after(hour)),
        sign(&world.operator_identity, id, time.before(hour * 2)..time.before(hour)),
        sign(&world.operator_identity, id, time.after(hour)..time.after(hour * 2)),
        vec![0; KeyStatement::SIZE],
    ];
    for statement in forged {
        assert!(
            world.inject(operator_address(), user, &hint(&asked, HintReason::StaleKey(statement))).is_empty()
        );
    }
    let now = world.now;
    assert_eq!(world.host(user).node.status(now).discards.of(Discard::BadStatement), 5);
    world.operator_up = true;
    world.run(Duration::from_millis(600));
    let answers = &world.host(user).answers;
    assert_eq!(answers.len(), 1, "the request itself was not harmed");
}

/// Rule 3.9: a key of yesterday, shown again by somebody on the path, costs one round trip and no more.
#[test]
fn an_older_key_statement_does_not_lock_a_node_out() {
    let (mut world, user, _) = {
        let (world, site, user) = office(24);
        (world, user, site)
    };
    let old = world.operator.statement().to_bytes();
    world.run(Duration::from_secs(10));
    world.restart_operator();
    world.operator_up = false;
    world.command(user, Command::RefreshDevices);
    let asked = world.log.iter().rev().find(|flight| flight.from == user).cloned().unwrap();
    world.inject(operator_address(), user, &hint(&asked, HintReason::StaleKey(old)));
    world.operator_up = true;
    world.run(Duration::from_secs(1));
    assert_eq!(world.host(user).answers.len(), 1);
}

/// Rule 3.9: only a hint about a context that is not known, and as rarely as that, follows a restart of the operator.
#[test]
fn after_a_restart_of_the_operator_one_hint_is_enough() {
    let (mut world, _, user) = office(25);
    world.run(Duration::from_secs(30));
    world.restart_operator();
    let before = world.log.len();
    let task = world.command(user, Command::RefreshDevices);
    assert_eq!(world.await_answer(user, task), peerage_proto::node::Answer::Refreshed);
    let hints = world.log[before..].iter().filter(|flight| flight.to == user);
    let hints = hints.filter(|flight| matches!(Packet::parse(&flight.payload), Ok(Packet::Hint(_)))).count();
    assert!((1..=2).contains(&hints), "{hints}");
}
