//! Each invariant is able to fail: a bug is planted, and seen to be caught.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panicking")]

use std::net::SocketAddr;
use std::time::Duration;

use peerage_sim::app::{End, Pace, Script};
use peerage_sim::invariants::{Authority, Fact, Holders, Invariant as _, Limits};
use peerage_sim::liar::Manner;
use peerage_sim::network::{Lan, Multicast, Quality};
use peerage_sim::operations::Operation;
use peerage_sim::plan::Plan;
use peerage_sim::run::{run, run_with};
use peerage_sim::sessions::life::Liar;
use peerage_sim::sessions::{self, Life, Step};
use peerage_sim::world::{Bug, DeviceSetup, HostSetup, Setup, SiteSetup, World};
use peerage_wire::id::{DeviceId, NodeId};

const LAN: Lan = Lan { multicast: Multicast::Works, loss: 0 };

const SCRIPT: Script = Script {
    up: 50_000,
    down: 50_000,
    answers_last: false,
    user: Pace::Eager,
    device: Pace::Eager,
    breaks: None,
};

/// A tunnel-node at the site of a printer, a user elsewhere, and a member of another domain.
fn office(planted: Option<Bug>, operations: &[(u64, Operation)]) -> Plan {
    let host = |domain, site, serves| HostSetup {
        domain,
        site,
        serves,
        lends: false,
        error_millis: 0,
        drift_ppm: 0,
    };
    let setup = Setup {
        seed: 1,
        real_crypto: false,
        operators: 1,
        domains: 2,
        sites: vec![SiteSetup { nat: None, quality: Quality::GOOD, lan: LAN }; 3],
        hosts: vec![host(0, 0, true), host(0, 1, false), host(1, 2, false)],
        devices: vec![DeviceSetup { domain: 0, site: 0, via: 0, has_tls: false }],
        sample_interval: Duration::from_secs(5),
        start_within: Duration::from_secs(1),
        planted,
        eager: false,
        is_told: false,
    };
    let operations = operations.iter().map(|(at, operation)| (Duration::from_secs(*at), *operation));
    Plan { setup, operations: operations.collect(), calm_at: Duration::from_secs(300) }
}

const OPEN: Operation = Operation::Open { host: 1, device: 0, script: SCRIPT };

fn broken(planted: Option<Bug>, operations: &[(u64, Operation)]) -> Option<&'static str> {
    run(&office(planted, operations)).ok()?.violation.map(|violation| violation.invariant)
}

#[test]
fn nothing_is_caught_where_nothing_is_planted() {
    let operations = [
        (20, OPEN),
        (30, Operation::Intrude { host: 2, target: 0, device: 0 }),
        (40, Operation::Crash { host: 0, survivors: 0 }),
        (50, Operation::Start { host: 0 }),
        (90, Operation::Revoke { host: 1 }),
    ];
    assert_eq!(run(&office(None, &operations)).unwrap().violation, None);
}

#[test]
fn bytes_given_twice_are_caught() {
    assert_eq!(broken(Some(Bug::DoublesBytes), &[(20, OPEN), (60, OPEN)]), Some("bytes once and in order"));
}

#[test]
fn a_tunnel_for_a_member_of_another_domain_is_caught() {
    let intrusion = [(30, Operation::Intrude { host: 2, target: 0, device: 0 })];
    assert_eq!(broken(None, &intrusion), None);
    assert_eq!(broken(Some(Bug::ServesAnybody), &intrusion), Some("no tunnel without authority"));
}

/// Of a tunnel that is in order, one thing at a time is not.
#[test]
fn each_thing_that_a_tunnel_needs_is_looked_at() {
    let mut world = World::new(office(None, &[]).setup, Vec::new()).unwrap();
    world.run(Duration::from_secs(60));
    let there = &world.devices[0];
    let (device, service) = (there.registered.device, &there.registered.services[0]);
    let (user, stranger) = (world.hosts[1].id, world.hosts[2].id);
    let (place, elsewhere) = (SocketAddr::new(there.address, service.port), "10.9.9.9:631".parse().unwrap());
    let other_port = SocketAddr::new(there.address, service.port + 1);
    let nobody = NodeId { hash: [9; 32], ..user };
    let objection = |fact: &Fact<'_>| Authority::default().observe(fact, &world);
    let served =
        |peer, device, service, address| objection(&Fact::Served { host: 0, peer, device, service, address });
    assert_eq!(served(user, device, &service.name, place), None);
    for (peer, device, service, address, what) in [
        (stranger, device, service.name.as_str(), place, "of another domain"),
        (nobody, device, &service.name, place, "is no member"),
        (user, DeviceId([9; 32]), &service.name, place, "is not registered"),
        (user, device, "telnet", place, "is not registered"),
        (user, device, &service.name, other_port, "is not registered"),
        (user, device, &service.name, elsewhere, "is not at"),
    ] {
        let said = served(peer, device, service, address);
        assert!(said.as_ref().is_some_and(|said| said.contains(what)), "{what}: {said:?}");
    }
    let used = |address| objection(&Fact::UsedHere { host: 0, device, address });
    assert_eq!(used(place), None);
    assert!(used(elsewhere).is_some());
}

#[test]
fn a_tunnel_that_outlives_its_revocation_is_caught() {
    let hanging = Script { up: 3_000_000, device: Pace::Slow(0), ..SCRIPT };
    let operations =
        [(20, Operation::Open { host: 1, device: 0, script: hanging }), (25, Operation::Revoke { host: 1 })];
    assert_eq!(broken(None, &operations), None);
    assert_eq!(broken(Some(Bug::KeepsTunnels), &operations), Some("revoked nodes are shut out"));
}

#[test]
fn a_disk_that_forgets_what_it_acknowledged_is_caught() {
    let operations = [(60, Operation::Crash { host: 0, survivors: 0 }), (61, Operation::Start { host: 0 })];
    assert_eq!(broken(None, &operations), None);
    assert_eq!(broken(Some(Bug::ForgetsWrites), &operations), Some("no acknowledged record is lost"));
}

#[test]
fn an_operator_that_forgets_what_was_committed_is_caught() {
    let operations = [(30, Operation::Register { device: 0 })];
    assert_eq!(broken(Some(Bug::ForgetsRecords), &operations), Some("no acknowledged record is lost"));
}

#[test]
fn a_reply_longer_than_its_request_is_caught() {
    assert_eq!(broken(Some(Bug::PadsReplies), &[]), Some("replies no longer than requests"));
}

#[test]
fn more_tunnels_of_one_peer_than_allowed_are_caught() {
    let hanging = Script { up: 3_000_000, device: Pace::Slow(0), ..SCRIPT };
    let open = Operation::Open { host: 1, device: 0, script: hanging };
    let plan = office(None, &[(20, open), (21, open), (22, open)]);
    let broken = |limit| {
        let report = run_with(&plan, vec![Box::new(Limits::of_peer(limit))]).unwrap();
        report.violation.map(|violation| violation.invariant)
    };
    assert_eq!(broken(3), None);
    assert_eq!(broken(2), Some("tables within their limits"));
}

#[test]
fn a_table_of_a_machine_beyond_its_limit_is_caught() {
    let hanging = Script { up: 3_000_000, device: Pace::Slow(0), ..SCRIPT };
    let plan = office(None, &[(20, Operation::Open { host: 1, device: 0, script: hanging })]);
    let broken = |name, limit| {
        let report = run_with(&plan, vec![Box::new(Limits::of_table(name, limit))]).unwrap();
        report.violation.map(|violation| violation.invariant)
    };
    // Three members and the operators' own introductions.
    for (table, enough) in [("contacts", 3), ("peers", 8), ("contexts", 8), ("served tunnels", 1)] {
        assert_eq!(broken(table, enough), None, "{table}");
        assert_eq!(broken(table, 0), Some("tables within their limits"), "{table}");
    }
}

#[test]
fn a_time_out_that_changes_nothing_is_caught() {
    assert_eq!(broken(Some(Bug::IgnoresTimeouts), &[]), Some("timers advance"));
    assert_eq!(broken(Some(Bug::OperatorIgnoresTimeouts), &[]), Some("timers advance"));
}

#[test]
fn a_decision_that_is_lost_is_caught() {
    let operations = [(60, Operation::Unregister { device: 0 })];
    assert_eq!(broken(None, &operations), None);
    assert_eq!(broken(Some(Bug::LosesDecisions), &operations), Some("everybody believes what was decided"));
}

#[test]
fn a_liar_that_is_told_what_belongs_to_others_is_caught() {
    let operations = [(60, Operation::Lie { host: 2, manner: Manner::Flood })];
    assert_eq!(broken(None, &operations), None);
    assert_eq!(broken(Some(Bug::Betrays), &operations), Some("no domain hears of another"));
}

/// A life in which every check of sessions by themselves has something to look at.
fn life(planted: Option<sessions::Bug>) -> Option<&'static str> {
    let open = Step::Open(Script { up: 300_000, down: 300_000, device: Pace::Slow(1), ..SCRIPT });
    let steps = [
        (10, open),
        (20, open),
        (25, Step::Open(Script { breaks: Some((End::Device, 20_000)), ..SCRIPT })),
        (30, Step::OpenWithLiar(SCRIPT)),
        (200, Step::OpenWithLiar(SCRIPT)),
        (400, Step::OpenWithLiar(SCRIPT)),
        (900, Step::Cut(0)),
        (950, Step::Reset(0)),
    ];
    // Which frame a liar alters is drawn.
    let lives = if planted.is_some() { 60 } else { 10 };
    (0..lives).find_map(|seed| {
        let steps = steps.iter().map(|(at, step)| (Duration::from_millis(*at), *step)).collect();
        let life = Life {
            seed,
            max_window: 1 << 20,
            budget: 1 << 17,
            delay: (Duration::from_millis(10), Duration::from_millis(30)),
            liar: Some(Liar::User),
            steps,
            calm_at: Duration::from_secs(3),
            planted,
        };
        sessions::run(&life).violation.map(|violation| violation.invariant)
    })
}

#[test]
fn what_is_planted_among_sessions_by_themselves_is_caught() {
    use sessions::Bug;
    assert_eq!(life(None), None);
    assert_eq!(life(Some(Bug::DoublesBytes)), Some("bytes once and in order"));
    assert_eq!(life(Some(Bug::KeepsSession)), Some("memory is given back"));
    assert_eq!(life(Some(Bug::NeverRedials)), Some("sessions come to their end"));
    assert_eq!(life(Some(Bug::PromisesMore)), Some("memory within its limit"));
    assert_eq!(life(Some(Bug::TrustsAnybody)), Some("a session is its peer's alone"));
    assert_eq!(life(Some(Bug::IgnoresTimeouts)), Some("timers advance"));
    assert_eq!(life(Some(Bug::MistakesReasons)), Some("both ends agree"));
}

#[test]
fn a_computer_that_talks_without_need_is_caught() {
    assert_eq!(broken(Some(Bug::Chatters), &[]), Some("quiet within the budget"));
}

/// What it may answer to somebody who was revoked is no leave to ask of its own accord.
#[test]
fn who_was_a_super_node_and_talks_without_need_is_caught() {
    let operations = [
        (120, Operation::Revoke { host: 0 }),
        (130, Operation::Crash { host: 0, survivors: 3 }),
        (140, Operation::Lend { host: 1, on: false }),
        (150, Operation::Crash { host: 1, survivors: 3 }),
    ];
    let sent = |planted| {
        let mut plan = office(planted, &operations);
        plan.setup.hosts.swap(1, 2);
        plan.setup.hosts[0].error_millis = 4 * 3_600_000;
        plan.setup.hosts[1].lends = true;
        run(&plan).unwrap().violation.map(|violation| violation.what)
    };
    assert_eq!(sent(None), None);
    let what = sent(Some(Bug::Chatters));
    assert!(what.as_ref().is_some_and(|what| what.starts_with("computer 1 sent")), "{what:?}");
}

#[test]
fn a_node_that_does_not_come_right_is_caught() {
    assert_eq!(broken(Some(Bug::GoesDeaf), &[]), Some("all comes right in the end"));
}

/// With a super-node of another organisation, and this invariant alone.
fn held_badly(planted: Bug) -> Option<String> {
    let mut plan = office(Some(planted), &[(70, Operation::Restrict { device: 0, host: 1 })]);
    plan.setup.hosts[2].lends = true;
    let report = run_with(&plan, vec![Box::new(Holders::default())]).unwrap();
    report.violation.map(|violation| violation.what)
}

#[test]
fn a_super_node_that_can_read_what_it_holds_is_caught() {
    assert!(held_badly(Bug::LeavesOpen).is_some_and(|what| what.contains("can read")));
}

#[test]
fn a_super_node_that_forgets_what_it_has_acknowledged_is_caught() {
    // What it has not been seen to hold, but has acknowledged.
    let told = held_badly(Bug::LosesMemory(Duration::ZERO));
    assert!(told.as_ref().is_some_and(|what| what.contains("was told it has")), "{told:?}");
    // What it has been seen to hold.
    let told = held_badly(Bug::LosesMemory(Duration::from_secs(120)));
    assert!(told.as_ref().is_some_and(|what| what.contains("has lost")), "{told:?}");
}
