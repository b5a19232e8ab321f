//! Scenarios of the operator's spies among super-nodes, of which some are honest.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in its helpers too"
)]

mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use peerage_proto::operator::{self, Fault, SuperState};
use peerage_wire::id::{NodeId, Segment};
use peerage_wire::message::{Request, SuperNodeState};
use peerage_wire::record::Roles;
use support::holder::Manner;
use support::lenders::lender_address;
use support::{DOMAIN, Faults, PRINTER, SITE, World, found, lan, printer};

const MINUTE: Duration = Duration::from_secs(60);
/// Super-nodes that hold everything and tell the operator that they are there, a printer, and two spies that visit each of them every
/// four minutes.
fn watched(seed: u64, holders: u8) -> (World, Vec<SocketAddr>) {
    let mut world = World::new(seed);
    let (.., [node, _]) = world.admit(DOMAIN, Roles::default());
    let holders: Vec<_> = (1..=holders).map(|n| world.add_super_node(n, Segment::ALL)).collect();
    world.put_device(printer(peerage_wire::record::subject(node.header())));
    world.lease_holders();
    world.send_spies(DOMAIN, 2, 4 * MINUTE);
    (world, holders)
}

/// Lets hours pass without remembering every datagram.
fn pass(world: &mut World, hours: u32) {
    for _ in 0..hours * 6 {
        world.run(10 * MINUTE);
        world.log.clear();
    }
}

fn id(world: &World, holder: SocketAddr) -> NodeId {
    world.holders[&holder].id
}

fn convicted(world: &World) -> BTreeSet<NodeId> {
    world.spies.convicted.keys().copied().collect()
}

/// Rule 6.61: whoever lies or withholds is found out, and nobody else.
#[test]
fn whoever_forges_withholds_is_stale_or_silent_is_found_out_among_the_honest() {
    let (mut world, holders) = watched(1, 9);
    world.remember();
    pass(&mut world, 1);
    // What the stale do not know.
    let via = world.members.keys().next().copied();
    let mut changed = printer(via.unwrap_or(world.operator_id));
    changed.name = "renamed".to_owned();
    world.put_device(changed);
    pass(&mut world, 1);
    assert_eq!(convicted(&world), BTreeSet::new());
    let manners = [Manner::Forging, Manner::Withholding, Manner::Stale, Manner::Silent];
    for (holder, manner) in holders.iter().zip(manners) {
        world.holder(*holder).manner = manner;
    }
    pass(&mut world, 3);
    let bad: BTreeSet<_> = holders[..4].iter().map(|holder| id(&world, *holder)).collect();
    assert_eq!(convicted(&world), bad);
    let faults = |n: usize| -> BTreeSet<Fault> {
        world.spies.convicted[&id(&world, holders[n])].iter().map(|evidence| evidence.fault).collect()
    };
    assert_eq!(faults(0), [Fault::Forged].into());
    assert_eq!(faults(1), [Fault::Withheld].into());
    assert!(faults(2).is_subset(&[Fault::OldHead, Fault::Stale, Fault::Withheld].into()), "{:?}", faults(2));
    assert_eq!(faults(3), [Fault::Silent].into());
    let shown = world.operator.super_nodes(world.now);
    let in_quarantine = shown.iter().filter(|status| status.state == SuperState::Quarantined);
    assert_eq!(in_quarantine.map(|status| status.node).collect::<BTreeSet<_>>(), bad);
    assert!(shown.iter().any(|status| status.spied.visits > 10), "{shown:?}");
}

/// Rule 6.78: it is not told, and nobody comes any more.
#[test]
fn who_is_found_out_keeps_its_lease_and_its_friendly_answers() {
    let (mut world, holders) = watched(2, 5);
    pass(&mut world, 1);
    world.holder(holders[0]).manner = Manner::Forging;
    pass(&mut world, 1);
    assert_eq!(convicted(&world), [id(&world, holders[0])].into());
    let holder = world.holder(holders[0]);
    holder.states.clear();
    holder.asked.clear();
    world.run(10 * MINUTE);
    let holder = world.holder(holders[0]);
    assert!(holder.states.len() > 20 && holder.states.iter().all(|state| *state == SuperNodeState::Assigned));
    assert_eq!(holder.count(|request| matches!(request, Request::GetHead { .. })), 0, "no spy either");
    let good = holders[1..].iter().all(|holder| world.holders[holder].manner == Manner::Honest);
    assert!(good && world.operator.segment_map()[0].holders.len() == 4);
}

/// Rule 6.61: an administrator's word counts; afterwards it takes new evidence.
#[test]
fn who_is_released_begins_anew() {
    let (mut world, holders) = watched(3, 5);
    pass(&mut world, 1);
    world.holder(holders[0]).manner = Manner::Withholding;
    pass(&mut world, 2);
    let node = id(&world, holders[0]);
    assert_eq!(convicted(&world), [node].into());
    world.holder(holders[0]).manner = Manner::Honest;
    world.spies.convicted.clear();
    world.operator.handle(operator::Input::Quarantine { node, on: false }, world.now);
    pass(&mut world, 2);
    assert_eq!(convicted(&world), BTreeSet::new());
    world.holder(holders[0]).manner = Manner::Withholding;
    pass(&mut world, 2);
    assert_eq!(convicted(&world), [node].into());
}

/// Rule 6.61: where nobody answers, it is the spy's own line.
#[test]
fn a_spy_that_nothing_reaches_convicts_nobody() {
    let (mut world, _) = watched(4, 4);
    world.spies.is_cut = true;
    pass(&mut world, 4);
    assert!(world.spies.used.len() > 50, "{}", world.spies.used.len());
    assert_eq!(convicted(&world), BTreeSet::new());
}

/// Rule 6.61: if nearly all seem to lie, half stay until somebody has looked; what was seen is shown.
#[test]
fn more_than_half_are_not_put_away_without_a_person() {
    let (mut world, _) = watched(5, 6);
    pass(&mut world, 1);
    world.behave(Manner::Forging);
    pass(&mut world, 3);
    assert_eq!(convicted(&world).len(), 3);
    let suspected = world.operator.super_nodes(world.now).into_iter();
    let suspected = suspected.filter(|status| status.state != SuperState::Quarantined);
    assert!(suspected.filter(|status| !status.spied.evidence.is_empty()).count() == 3);
}

/// Rule 6.79: to a super-node a spy is a member that asks what members ask, each time from elsewhere.
#[test]
fn a_visit_looks_like_a_member_that_was_just_switched_on() {
    let (mut world, holders) = watched(6, 5);
    pass(&mut world, 4);
    let usual = |request: &Request| {
        matches!(
            request,
            Request::Ping
                | Request::GetHead { domain: None }
                | Request::GetNode(_)
                | Request::GetDomainKey
                | Request::GetDevices { .. }
                | Request::GetRevocations { .. }
                | Request::GetSuperNodes { key: None, .. }
        )
    };
    let spies: BTreeSet<_> = world.spies.all.iter().map(|spy| spy.node).collect();
    for holder in &holders {
        let asked: Vec<_> = world.holders[holder].asked.iter().map(|(_, request)| request).collect();
        let operator = |request: &Request| matches!(request, Request::Store(_) | Request::Notify { .. });
        assert!(asked.iter().all(|request| usual(request) || operator(request)), "{asked:?}");
        let heads = asked.iter().filter(|request| matches!(request, Request::GetHead { .. })).count();
        assert!((30..=120).contains(&heads), "once in four minutes on average: {heads}");
        let about_spies =
            |request: &&&Request| matches!(request, Request::GetNode(node) if spies.contains(node));
        assert!(asked.iter().filter(about_spies).count() < asked.len() / 4, "they do not ask for each other");
    }
    let ports: BTreeSet<_> = world.spies.used.iter().collect();
    assert_eq!(ports.len(), world.spies.used.len());
    let operator: SocketAddr = support::OPERATOR_ADDRESS.parse().unwrap();
    assert!(!world.log.iter().any(|flight| ports.contains(&flight.from) && flight.to == operator));
}

/// Rule 6.79: without spies, or without a pace for them, nobody is visited.
#[test]
fn without_spies_nobody_is_visited() {
    let (mut world, _) = watched(7, 3);
    world.spies.all.clear();
    world.restart_operator();
    world.tell_spies();
    pass(&mut world, 1);
    assert!(world.spies.used.is_empty());
    world.send_spies(DOMAIN, 1, MINUTE);
    pass(&mut world, 1);
    assert!(!world.spies.used.is_empty());
    let used = world.spies.used.len();
    world.operator_config.spy_interval = None;
    world.restart_operator();
    world.tell_spies();
    pass(&mut world, 1);
    assert_eq!(world.spies.used.len(), used);
}

/// Rules 6.79 and 6.61: the real super-nodes, with lost datagrams, changes, starts, one that comes later, and an operator that is started
/// anew. They are visited once a minute, and none of them is ever suspected of more than bad luck.
#[test]
fn honest_super_nodes_are_not_convicted_whatever_happens_to_them() {
    for (seed, lost) in [(8, 0), (9, 25)] {
        let mut world = World::new(seed);
        let site = world.join(SITE, lan("192.168.1.10", 1));
        world.host(site).lan.insert(PRINTER, found("192.168.1.77"));
        world.run(Duration::from_secs(1));
        let via = world.host(site).id;
        world.put_device(printer(via));
        for n in 1..=4 {
            world.add_lender(n);
        }
        world.run(5 * MINUTE);
        world.send_spies(DOMAIN, 2, MINUTE);
        world.faults = Faults { lost, doubled: lost, delay_millis: 200 };
        for part in 0..4_u8 {
            world.run(20 * MINUTE);
            world.log.clear();
            let mut device = printer(via);
            device.name = format!("hp-{part}");
            world.put_device(device);
            world.admit(DOMAIN, Roles::default());
            match part {
                1 => world.restart(lender_address(1)),
                2 => {
                    world.add_lender(5);
                }
                3 => {
                    world.spies.ports.clear();
                    world.spies.used.clear();
                    world.restart_operator();
                    world.tell_spies();
                }
                _ => {}
            }
        }
        world.run(40 * MINUTE);
        let now = world.now;
        let statuses = world.operator.super_nodes(now);
        let visits: usize = statuses.iter().map(|status| status.spied.visits).sum();
        // An operator that was restarted begins to count anew.
        assert!(visits > 20, "{visits}");
        assert_eq!(convicted(&world), BTreeSet::new(), "{:?}", world.spies.convicted);
        let evidence: Vec<_> = statuses.iter().flat_map(|status| &status.spied.evidence).collect();
        assert!(lost > 0 || evidence.is_empty(), "{evidence:?}");
    }
}
