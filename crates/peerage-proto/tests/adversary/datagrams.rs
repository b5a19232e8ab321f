//! Datagrams that are broken, repeated, late, early or meant for somebody else.

use std::net::SocketAddr;
use std::time::Duration;

use peerage_proto::discard::{Discard, Discards};
use peerage_wire::id::{CommandId, LocationId, RecordKey};
use peerage_wire::message::{Reply, Request};
use peerage_wire::packet::Packet;
use rand_core::Rng as _;

use crate::actor::{Actor, TUNNEL, node_state, operator_state};
use crate::support::{DOMAIN, Flight, OPERATOR_ADDRESS, SITE, USER, World, device, lan, office};

const STRANGER: &str = "45.66.6.6:6666";

fn stranger() -> SocketAddr {
    STRANGER.parse().unwrap()
}

fn operator_address() -> SocketAddr {
    OPERATOR_ADDRESS.parse().unwrap()
}

/// A host or the operator as one thing that gets datagrams.
fn state(world: &mut World, at: SocketAddr) -> String {
    if at == operator_address() { operator_state(world) } else { node_state(world, at) }
}

fn discards(world: &mut World, at: SocketAddr) -> Discards {
    let now = world.now;
    if at == operator_address() {
        *world.operator.discards()
    } else {
        world.host(at).node.status(now).discards
    }
}

fn is_hint(flight: &Flight) -> bool {
    matches!(Packet::parse(&flight.payload), Ok(Packet::Hint(_)))
}

/// Hands a datagram to a receiver, which must drop it, count it once, and answer with a hint at most.
fn must_drop(world: &mut World, from: SocketAddr, to: SocketAddr, payload: &[u8], what: &str) -> Discards {
    let (before, counted) = (state(world, to), discards(world, to));
    let answers = world.inject(from, to, payload);
    assert!(answers.iter().all(is_hint) && answers.len() <= 1, "{what}: {answers:?}");
    assert_eq!(state(world, to), before, "{what}");
    let after = discards(world, to);
    assert_eq!(after.total(), counted.total() + 1, "{what}");
    after
}

/// Rule 3.8: whatever bytes arrive, nothing happens and nothing but a shorter hint leaves.
#[test]
fn ten_thousand_random_datagrams_have_no_effect() {
    let (mut world, site, _) = office(1);
    for n in 0..10_000_u64 {
        let to = if n % 2 == 0 { operator_address() } else { site };
        let mut bytes = vec![0; usize::try_from(world.rng.next_u64() % 1_300).unwrap()];
        world.rng.fill_bytes(&mut bytes);
        if let Some(first) = bytes.first_mut() {
            *first = [4, 5, 6, 7, 9, 11, 0, *first][usize::try_from(n / 2 % 8).unwrap()];
        }
        // The right receiver leads a long form further inside.
        let receiver = if to == site { world.host(site).id } else { world.operator_id };
        if n % 3 == 0 && bytes.len() > 54 {
            bytes[1] &= 3;
            bytes[18..54].copy_from_slice(&receiver.to_bytes());
        }
        world.now = world.now.after(Duration::from_millis(1));
        must_drop(&mut world, stranger(), to, &bytes, "random");
    }
    assert!(discards(&mut world, site).of(Discard::TooLong) > 0);
}

/// Every datagram of a real run, one of each form and direction.
fn one_of_each(world: &World) -> Vec<Flight> {
    let mut seen = std::collections::BTreeSet::new();
    let kind = |flight: &Flight| (flight.payload.first().copied(), flight.to == operator_address());
    let to_hosts = world.log.iter().filter(|f| f.to == operator_address() || world.hosts.contains_key(&f.to));
    to_hosts.rev().filter(|flight| seen.insert(kind(flight))).cloned().collect()
}

/// Rules 3.1 to 3.3: a part of a datagram is no datagram.
#[test]
fn every_form_truncated_at_every_length_is_dropped() {
    let (mut world, _, user) = office(2);
    world.route(user, "hp", None);
    world.restart_operator();
    world.route(user, "hp", None);
    // What the nodes have still to say themselves must not be taken for an answer.
    world.run(Duration::from_secs(10));
    let flights = one_of_each(&world);
    let kinds: std::collections::BTreeSet<_> = flights.iter().map(|flight| flight.payload[0]).collect();
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), [4, 5, 6, 7, 9, 11], "all forms are tried");
    for flight in flights {
        for length in 0..flight.payload.len() {
            world.now = world.now.after(Duration::from_millis(1));
            let what = format!("form {} cut to {length}", flight.payload[0]);
            must_drop(&mut world, flight.from, flight.to, &flight.payload[..length], &what);
        }
    }
}

/// Flips each bit of a datagram that was never delivered; afterwards the datagram itself must still do its work.
fn flip_every_bit(world: &mut World, flight: &Flight) {
    for bit in 0..flight.payload.len() * 8 {
        // Another place and some milliseconds for each, so that no limiter hides what comes behind it.
        world.now = world.now.after(Duration::from_millis(5));
        let from = SocketAddr::from(([46, 0, (bit >> 8) as u8, bit as u8], 7400));
        let from = if flight.payload[0] == 9 { flight.from } else { from };
        let mut altered = flight.payload.to_vec();
        altered[bit / 8] ^= 1 << (bit % 8);
        must_drop(world, from, flight.to, &altered, &format!("form {} bit {bit}", flight.payload[0]));
    }
}

/// Rules 3.2 and 3.7: header, introduction, ciphertext and tag of the long form.
#[test]
fn a_long_form_with_any_bit_flipped_is_dropped_and_the_true_one_is_served_after_it() {
    let mut world = World::new(3);
    let mut actor = Actor::admitted(&mut world, STRANGER, DOMAIN, TUNNEL);
    let payload = actor.seal(&world, &Request::Ping);
    assert_eq!(payload[0], 6);
    assert_eq!(payload[1], 2, "with introduction");
    let flight = Flight { from: stranger(), to: operator_address(), payload };
    flip_every_bit(&mut world, &flight);
    let answers = world.inject(flight.from, flight.to, &flight.payload);
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].payload[0], 9);
}

/// Rule 3.3: the short form, of a command with an effect.
#[test]
fn a_short_form_with_any_bit_flipped_is_dropped_and_the_true_one_is_served_after_it() {
    let mut world = World::new(4);
    let mut actor = Actor::admitted(&mut world, STRANGER, DOMAIN, TUNNEL);
    assert!(actor.ask(&mut world, &Request::Ping).is_some());
    let payload = actor.seal(&world, &seen([1; 16]));
    assert_eq!(payload[0], 5);
    let flight = Flight { from: stranger(), to: operator_address(), payload };
    flip_every_bit(&mut world, &flight);
    assert!(world.told.is_empty());
    let answers = world.inject(flight.from, flight.to, &flight.payload);
    assert_eq!(answers.len(), 1);
    assert_eq!(world.told.len(), 1);
}

fn seen(id: [u8; 16]) -> Request {
    Request::DeviceSeen { id: CommandId(id), key: RecordKey([2; 32]), location: LocationId([3; 32]) }
}

/// Rule 3.6: a reply, held back until every altered one was tried.
#[test]
fn a_reply_with_any_bit_flipped_is_dropped_and_the_true_one_is_taken_after_it() {
    let (mut world, _, user) = office(5);
    world.cut.insert(user);
    let task = world.command(user, peerage_proto::node::Command::RefreshDevices);
    world.cut.clear();
    let asked = world.log.iter().rev().find(|flight| flight.from == user).cloned().unwrap();
    // The operator answers to another port of the same computer, where the answer is caught.
    let caught_at = SocketAddr::from((user.ip(), 1));
    let answers = world.inject(caught_at, operator_address(), &asked.payload);
    let mut reply = answers.last().cloned().unwrap();
    assert_eq!(reply.payload[0], 9);
    reply.to = user;
    let started = world.now;
    for bit in 0..reply.payload.len() * 8 {
        let mut altered = reply.payload.to_vec();
        altered[bit / 8] ^= 1 << (bit % 8);
        must_drop(&mut world, reply.from, user, &altered, &format!("reply, bit {bit}"));
        assert!(!world.host(user).answers.contains_key(&task), "bit {bit}");
    }
    assert_eq!(world.now, started);
    world.inject(reply.from, user, &reply.payload);
    assert!(world.host(user).answers.contains_key(&task));
}

/// Rule 3.12: nothing that was on the wire once does anything a second time, from wherever it comes.
#[test]
fn every_datagram_of_a_run_is_dropped_when_it_comes_again() {
    let (mut world, site, user) = office(6);
    world.route(user, "hp", None);
    let user_id = world.host(user).id;
    world.open(site, 1, user_id, device(), "ipp");
    let mut flights = world.log.clone();
    flights.retain(|flight| [operator_address(), site, user].contains(&flight.to));
    // Until no path is sought any more: a check that is due leaves with whatever comes next.
    world.run(Duration::from_secs(20));
    for from_elsewhere in [false, true] {
        for (n, flight) in flights.iter().enumerate() {
            world.now = world.now.after(Duration::from_millis(1));
            let from = if from_elsewhere { stranger() } else { flight.from };
            let what = format!("datagram {n}, form {}", flight.payload[0]);
            must_drop(&mut world, from, flight.to, &flight.payload, &what);
        }
    }
}

/// Rule 3.8: what was sealed for one node is nothing to another.
#[test]
fn what_is_addressed_to_somebody_else_is_dropped() {
    let (mut world, site, user) = office(7);
    world.route(user, "hp", None);
    let mut flights = world.log.clone();
    flights.retain(|flight| [operator_address(), site, user].contains(&flight.to));
    let mut misaddressed = 0;
    for flight in flights {
        for other in [operator_address(), site, user] {
            if other == flight.to || other == flight.from {
                continue;
            }
            let before = discards(&mut world, other).of(Discard::Misaddressed);
            let after = must_drop(&mut world, flight.from, other, &flight.payload, "misaddressed");
            misaddressed += after.of(Discard::Misaddressed) - before;
        }
    }
    assert!(misaddressed > 0);
}

/// Rule 3.11: a process cannot know what the one before it has executed, so it executes nothing older than itself.
#[test]
fn what_was_sent_before_a_restart_is_not_executed_after_it() {
    let (mut world, site, user) = office(8);
    world.route(user, "hp", None);
    let flights = world.log.clone();
    world.run(Duration::from_millis(10));
    world.restart_operator();
    let mut before_start = 0;
    for flight in flights.iter().filter(|flight| flight.to == operator_address()) {
        let after = must_drop(&mut world, flight.from, flight.to, &flight.payload, "restarted operator");
        before_start = after.of(Discard::BeforeStart);
    }
    assert!(before_start > 0);
    world.restart(site);
    for flight in flights.iter().filter(|flight| flight.to == site) {
        must_drop(&mut world, flight.from, flight.to, &flight.payload, "restarted node");
    }
}

/// Rules 3.5 and 3.12: a step of the clock ends every context; what was seen in them must not become new by that.
#[test]
fn what_was_executed_before_a_step_of_the_clock_is_not_executed_after_it() {
    for step in [-5_000, 2_000, 30_000] {
        let (mut world, site, user) = office(9);
        world.route(user, "hp", None);
        world.run(Duration::from_secs(1));
        let requests: Vec<_> =
            world.log.iter().filter(|f| f.to == site && f.payload[0] < 9).cloned().collect();
        assert!(!requests.is_empty());
        world.step_clock(site, step);
        world.input(site, peerage_proto::node::Input::Timeout);
        for flight in &requests {
            let answers = world.inject(flight.from, flight.to, &flight.payload);
            assert!(answers.iter().all(is_hint), "step {step}: {answers:?}");
        }
    }
}

/// Rule 3.12: old datagrams open, but must not push the memory of what is current out of the table.
#[test]
fn old_datagrams_cannot_make_a_receiver_forget_what_it_has_executed() {
    let mut world = World::new(10);
    let mut actor = Actor::admitted(&mut world, STRANGER, DOMAIN, TUNNEL);
    let mut old = Vec::new();
    for _ in 0..4 {
        old.push(actor.seal(&world, &Request::Ping));
        world.run(Duration::from_secs(3_700));
    }
    let attach = actor.seal(&world, &Request::Attach);
    world.inject(actor.address, operator_address(), &attach);
    let before = operator_state(&world);
    assert!(before.contains(STRANGER));
    let elsewhere: SocketAddr = "45.99.9.9:9".parse().unwrap();
    for payload in &old {
        let answers = world.inject(elsewhere, operator_address(), payload);
        assert_eq!(answers.len(), 1, "told the time");
    }
    assert!(world.inject(elsewhere, operator_address(), &attach).is_empty());
    assert_eq!(operator_state(&world), before);
    assert_eq!(world.operator.discards().of(Discard::Replayed), 1);
}

/// Rule 3.11: a request from the future or the past is told the time, and nothing else.
#[test]
fn what_is_stamped_outside_the_window_is_told_the_time_and_not_executed() {
    for error in [-3_600_000, -61_000, 61_000, 3_600_000, 86_400_000] {
        let mut world = World::new(11);
        let mut actor = Actor::admitted(&mut world, STRANGER, DOMAIN, TUNNEL);
        world.run(Duration::from_secs(120));
        actor.clock_error = error;
        let payload = actor.seal(&world, &seen([4; 16]));
        let before = operator_state(&world);
        let answers = world.inject(stranger(), operator_address(), &payload);
        assert_eq!(answers.len(), 1, "{error}");
        assert_eq!(operator_state(&world), before, "{error}");
        assert_eq!(world.operator.discards().of(Discard::StaleTime), 1, "{error}");
        // The sender believes the operator and is then understood.
        let now = actor.now(&world);
        actor.endpoint.handle_datagram(operator_address(), &answers[0].payload, &actor.trust, now);
        let again = actor.endpoint.poll_transmit().expect("sent once more").1;
        world.inject(stranger(), operator_address(), &again);
        assert_eq!(world.told.len(), 1, "{error}");
    }
}

/// Rule 3.12: a command that arrives in three datagrams is one command, and each of them is answered.
#[test]
fn a_command_with_an_effect_is_executed_once_and_answered_each_time() {
    let mut world = World::new(12);
    let mut actor = Actor::admitted(&mut world, STRANGER, DOMAIN, TUNNEL);
    for _ in 0..3 {
        let reply = actor.ask(&mut world, &seen([5; 16]));
        assert_eq!(reply, Some(Reply::DeviceNoted(CommandId([5; 16]))));
        world.run(Duration::from_secs(20));
    }
    assert_eq!(world.told.len(), 1);
}

/// Rule 3.9: hints are rationed, whoever asks for them.
#[test]
fn hints_to_one_place_are_rationed() {
    let (mut world, site, _) = office(13);
    let mut short = vec![4; 64];
    let mut hints = 0;
    for n in 0..1_000_u32 {
        short[1..5].copy_from_slice(&n.to_be_bytes());
        short[60..].copy_from_slice(&n.to_be_bytes());
        let from = SocketAddr::from(([45, 66, 6, 6], 1_000 + (n % 500) as u16));
        hints += world.inject(from, site, &short).len();
    }
    assert_eq!(hints, 100);
    assert_eq!(discards(&mut world, site).of(Discard::RateLimited), 900);
}

/// Rule 6.1: an answer of an operator within the window confirms a clock; before that nothing is published.
#[test]
fn a_node_publishes_nothing_before_an_operator_has_confirmed_its_time() {
    let mut world = World::new(14);
    world.operator_up = false;
    let site = world.join(SITE, lan("192.168.1.10", 1));
    world.run(Duration::from_secs(60));
    let now = world.now;
    assert_eq!(world.host(site).node.status(now).clock_offset_millis, None);
    assert!(world.host(site).stored.is_empty());
    world.operator_up = true;
    let user = world.join(USER, lan("192.168.1.20", 2));
    world.run(Duration::from_secs(60));
    let now = world.now;
    assert_eq!(world.host(site).node.status(now).clock_offset_millis, Some(0));
    assert_eq!(world.host(user).node.status(now).clock_offset_millis, Some(0));
}
