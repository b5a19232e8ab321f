//! Networks whose table is held by borrowed machines: scenarios of what befalls them.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail by panicking")]

use std::collections::BTreeSet;
use std::time::Duration;

use peerage_proto::node::SuperState;
use peerage_proto::session::State;
use peerage_sim::app::{Pace, Script};
use peerage_sim::host::ErrandId;
use peerage_sim::invariants;
use peerage_sim::liar::Manner;
use peerage_sim::nat::{Behaviour, NatConfig, Ports};
use peerage_sim::network::{Lan, Multicast, Quality};
use peerage_sim::operations::Operation;
use peerage_sim::plan::Plan;
use peerage_sim::run::run;
use peerage_sim::world::{DeviceSetup, HostSetup, Setup, SiteSetup, World};
use peerage_wire::id::Segment;

const OPEN_SITE: SiteSetup =
    SiteSetup { nat: None, quality: Quality::GOOD, lan: Lan { multicast: Multicast::Works, loss: 0 } };

const HOME: SiteSetup = SiteSetup {
    nat: Some(NatConfig {
        mapping: Behaviour::EndpointIndependent,
        filtering: Behaviour::AddressDependent,
        lifetime: Duration::from_secs(120),
        hairpinning: false,
        ports: Ports::Preserved,
    }),
    quality: Quality::GOOD,
    lan: Lan { multicast: Multicast::Works, loss: 0 },
};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

/// When a request that nobody answers has failed.
const TIMEOUT: Duration = Duration::from_millis(3_500);

/// The first computer that is lent; before it come a tunnel-node with a printer, and users.
fn first_lent(users: usize) -> usize {
    1 + users
}

/// A tunnel-node at the site of a printer, users elsewhere, and computers that are lent, each of an organisation of its own and at
/// a site of its own.
fn network(users: usize, lent: usize) -> Setup {
    let host = |domain, site, serves, lends| HostSetup {
        domain,
        site,
        serves,
        lends,
        error_millis: 0,
        drift_ppm: 0,
    };
    let mut hosts = vec![host(0, 0, true, false)];
    hosts.extend((0..users).map(|_| host(0, 1, false, false)));
    hosts.extend((0..lent).map(|n| host(1 + n, 2 + n, false, true)));
    Setup {
        seed: 1,
        real_crypto: false,
        operators: 1,
        domains: 1 + lent,
        sites: vec![OPEN_SITE; 2 + lent],
        hosts,
        devices: vec![DeviceSetup { domain: 0, site: 0, via: 0, has_tls: false }],
        sample_interval: Duration::from_secs(5),
        start_within: Duration::from_secs(1),
        planted: None,
        eager: false,
        is_told: false,
    }
}

fn world_of(setup: Setup) -> World {
    // Nobody counts here how quiet the idle are.
    let judged = invariants::all().into_iter().filter(|one| one.name() != "quiet within the budget");
    World::new(setup, judged.collect()).unwrap()
}

fn state(world: &World, host: usize) -> Option<SuperState> {
    let host = &world.hosts[host];
    Some(host.node.as_ref()?.status(host.now(world.now())).super_role.state)
}

fn serving(world: &World) -> Vec<usize> {
    assert_eq!(world.violation(), None);
    let serves = |host: &usize| matches!(state(world, *host), Some(SuperState::Serving { .. }));
    (0..world.hosts.len()).filter(serves).collect()
}

fn do_now(world: &mut World, operation: Operation) {
    let now = world.now() - peerage_wire::time::Instant::default();
    world.plan(now, operation);
    world.run(Duration::from_millis(1));
}

fn is_done(world: &World, errand: ErrandId) -> bool {
    let found = world.errands().find(|(id, _)| *id == errand).and_then(|(_, errand)| errand.session);
    let tunnel = found.and_then(|session| world.model.tunnel(&session));
    tunnel.is_some_and(peerage_sim::model::Tunnel::is_complete)
}

/// Whether a user reaches the printer at the first try, and how long that took.
fn reach(world: &mut World, user: usize) -> Option<Duration> {
    let began = world.now();
    let errand = world.begin_errand(user, 0, Script::PROBE, 1);
    for _ in 0..300 {
        world.run(Duration::from_millis(100));
        if is_done(world, errand) {
            return Some(world.now() - began);
        }
    }
    None
}

fn check(world: &mut World) {
    world.run(MINUTE);
    if world.violation().is_none() {
        world.conclude();
    }
    assert_eq!(world.violation(), None);
}

/// Rule 6.73: an organisation whose part of the table fits into nobody's memory is cut across segments, and its printer is found by
/// whoever's own records lie in any of them.
#[test]
fn an_organisation_that_fits_no_super_node_is_cut_and_its_printer_is_found() {
    let (users, lent) = (40, 40);
    let mut world = world_of(network(users, lent));
    for host in first_lent(users)..first_lent(users) + lent {
        // For a hundred records; the organisation has 165.
        world.hosts[host].lent_bytes = 128_000;
    }
    world.run(15 * MINUTE);
    let domain = Segment::of_domain(world.hosts[0].domain);
    let now = peerage_sim::host::true_time(world.now()).unix;
    let held = world.ledger.super_nodes(now).map(|(_, segment)| segment);
    let pieces: BTreeSet<_> = held.filter(|segment| segment.overlaps(&domain)).collect();
    assert!(pieces.len() >= 2, "{pieces:?}");
    assert!(pieces.iter().any(|piece| domain.from < piece.from && piece.from <= domain.to), "{pieces:?}");
    for user in 1..=8 {
        assert!(reach(&mut world, user).is_some(), "user {user}");
    }
    assert_eq!(world.violation(), None);
}

#[test]
fn willing_computers_that_can_be_reached_become_super_nodes_and_others_do_not() {
    let mut setup = network(1, 4);
    setup.sites[5] = HOME;
    let mut world = world_of(setup);
    world.run(2 * MINUTE);
    assert_eq!(serving(&world), [2, 3, 4]);
    assert_eq!(state(&world, 5), Some(SuperState::Unreachable));
    assert!(reach(&mut world, 1).is_some());
    check(&mut world);
}

#[test]
fn a_super_node_whose_port_is_forwarded_no_longer_ends_its_role_by_itself() {
    let mut setup = network(1, 4);
    setup.sites[5] = HOME;
    setup.hosts[5].serves = true;
    let mut world = world_of(setup);
    world.run(2 * MINUTE);
    assert_eq!(serving(&world), [2, 3, 4, 5]);
    do_now(&mut world, Operation::CloseRouter { site: 5, is_closed: true });
    world.run(15 * MINUTE);
    assert_eq!(serving(&world), [2, 3, 4]);
    // Now and then it is looked at once more.
    let is_told = (0..60).any(|_| {
        world.run(MINUTE / 60);
        state(&world, 5) == Some(SuperState::Unreachable)
    });
    assert!(is_told);
    check(&mut world);
}

/// Rules 6.4 and 6.76: of all super-nodes that a user knows none holds its places any more, and none of those who do has told it.
#[test]
fn a_user_that_slept_through_every_change_of_the_map_finds_its_printer() {
    let mut world = world_of(Setup { eager: true, ..network(1, 8) });
    let lent = first_lent(1);
    for host in lent + 4..lent + 8 {
        do_now(&mut world, Operation::Lend { host, on: false });
    }
    world.run(15 * MINUTE);
    assert!(reach(&mut world, 1).is_some());
    do_now(&mut world, Operation::Crash { host: 1, survivors: usize::MAX });
    for host in lent + 4..lent + 8 {
        do_now(&mut world, Operation::Lend { host, on: true });
    }
    world.run(5 * MINUTE);
    for host in lent..lent + 4 {
        do_now(&mut world, Operation::Lend { host, on: false });
    }
    world.run(120 * MINUTE);
    assert_eq!(serving(&world), (lent + 4..lent + 8).collect::<Vec<_>>());
    do_now(&mut world, Operation::Start { host: 1 });
    let took = reach(&mut world, 1);
    assert!(took.is_some_and(|took| took < 5 * MINUTE / 60), "{took:?}");
    check(&mut world);
}

/// Ynddal 2016, section 3.9.2: the network does not need its operators to go on.
#[test]
fn every_operator_is_down_for_a_week_and_members_still_find_devices_and_open_tunnels() {
    /// For how long computers are on every day but the first, on which all are on throughout.
    const AWAKE: Duration = Duration::from_secs(2 * 3_600);
    let mut setup = network(2, 4);
    setup.sample_interval = Duration::from_secs(3_600);
    let mut world = world_of(setup);
    world.run(3 * MINUTE);
    assert_eq!(serving(&world).len(), 4);
    do_now(&mut world, Operation::StopOperator { operator: 0 });
    for day in 0..7 {
        if day > 0 {
            for host in 0..world.hosts.len() {
                do_now(&mut world, Operation::Sleep { host, span: DAY - AWAKE, counts: day % 2 == 0 });
            }
        }
        world.run(DAY);
        assert!(reach(&mut world, 1).is_some(), "day {day}");
        // A computer that was switched off meanwhile, a tunnel-node and a super-node alike.
        for host in [2, 0, first_lent(2) + day % 4] {
            do_now(&mut world, Operation::Crash { host, survivors: 0 });
            do_now(&mut world, Operation::Start { host });
        }
        world.run(3 * MINUTE);
        assert!(reach(&mut world, 2).is_some(), "day {day}, after a restart");
    }
    do_now(&mut world, Operation::StartOperator { operator: 0 });
    world.run(20 * MINUTE);
    check(&mut world);
}

/// Ynddal 2016, section 3.9.2: an operator that has forgotten all super-nodes builds the map anew, and is not overrun.
#[test]
fn an_operator_that_knows_no_super_nodes_any_more_gets_them_back_without_a_herd() {
    /// Most datagrams in a second, with three hundred members: none has more than two to say when the map is there again.
    const HERD: u64 = 600;
    let mut setup = network(300, 9);
    setup.sites.push(OPEN_SITE);
    for (n, host) in setup.hosts.iter_mut().enumerate().filter(|(n, _)| (1..=300).contains(n)) {
        host.site = if n % 2 == 0 { 1 } else { 11 };
    }
    setup.start_within = MINUTE;
    let mut world = world_of(setup);
    world.run(5 * MINUTE);
    assert_eq!(serving(&world).len(), 9);
    do_now(&mut world, Operation::StopOperator { operator: 0 });
    world.run(10 * MINUTE);
    do_now(&mut world, Operation::ForgetHolders);
    world.count_from_here();
    do_now(&mut world, Operation::StartOperator { operator: 0 });
    world.run(5 * MINUTE);
    assert_eq!(serving(&world).len(), 9);
    let peak = world.operator_peak(0);
    assert!(peak <= HERD, "{peak} in a second");
    assert!(reach(&mut world, 1).is_some());
    assert_eq!(world.violation(), None);
}

/// A network with three super-nodes of which two are killed, with its operator or without; the look-ups of a member take so long.
fn with_one_of_three(survivor: usize, stops_operator: bool) -> (World, Vec<Option<Duration>>) {
    let mut world = world_of(network(1, 3));
    world.run(3 * MINUTE);
    assert_eq!(serving(&world).len(), 3);
    // What the member learns once and keeps: its devices, and the tunnel-node.
    assert!(reach(&mut world, 1).is_some());
    if stops_operator {
        do_now(&mut world, Operation::StopOperator { operator: 0 });
    }
    do_now(&mut world, Operation::LoseHolders { which: !(1 << survivor) });
    assert_eq!(serving(&world), [first_lent(1) + survivor]);
    let mut took = Vec::new();
    for _ in 0..20 {
        took.push(reach(&mut world, 1));
        world.run(Duration::from_secs(7));
    }
    do_now(&mut world, Operation::StartOperator { operator: 0 });
    for host in 0..3 {
        do_now(&mut world, Operation::Start { host: first_lent(1) + host });
    }
    world.run(15 * MINUTE);
    assert_eq!(serving(&world).len(), 3);
    check(&mut world);
    (world, took)
}

/// What two of three have acknowledged survives the loss of any two of three.
#[test]
fn all_holders_of_a_segment_but_one_are_killed_and_every_device_is_reached() {
    for survivor in 0..3 {
        let (_, took) = with_one_of_three(survivor, false);
        // The member and then the tunnel-node find out who is gone.
        let most = TIMEOUT * 2 + Duration::from_secs(1);
        assert!(took.iter().all(|took| took.is_some_and(|took| took <= most)), "{took:?}");
    }
}

/// With nobody left who could confirm that nobody was revoked, both ends wait for the confirmation that does not come.
#[test]
fn all_holders_but_one_are_killed_while_the_operator_is_down_and_every_device_is_reached() {
    for survivor in 0..3 {
        let (_, took) = with_one_of_three(survivor, true);
        assert!(took.iter().all(Option::is_some), "{took:?}");
    }
}

#[test]
fn a_revoked_member_is_shut_out_within_a_minute_although_super_nodes_stand_between() {
    let script = Script {
        up: 3_000_000,
        down: 3_000_000,
        answers_last: true,
        user: Pace::Slow(1),
        device: Pace::Slow(1),
        breaks: None,
    };
    let mut world = world_of(network(2, 4));
    world.run(3 * MINUTE);
    assert_eq!(serving(&world).len(), 4);
    world.begin_errand(1, 0, script, 1);
    world.run(Duration::from_secs(5));
    let open = |world: &World| {
        let tunnels = world.hosts[0].shell.tunnels();
        tunnels.filter(|(_, tunnel)| matches!(tunnel.state, State::Open)).count()
    };
    assert_eq!(open(&world), 1);
    do_now(&mut world, Operation::Revoke { host: 1 });
    world.run(MINUTE);
    assert_eq!(open(&world), 0);
    assert_eq!(reach(&mut world, 1), None);
    assert!(reach(&mut world, 2).is_some());
    check(&mut world);
}

#[test]
fn a_lying_super_node_keeps_nobody_from_anything() {
    for manner in Manner::ALL {
        let setup = network(2, 3);
        let operations = vec![
            (3 * MINUTE, Operation::Lie { host: first_lent(2), manner }),
            (5 * MINUTE, Operation::Open { host: 1, device: 0, script: Script::PROBE }),
            (6 * MINUTE, Operation::Crash { host: 0, survivors: 0 }),
            (7 * MINUTE, Operation::Start { host: 0 }),
            (9 * MINUTE, Operation::Open { host: 2, device: 0, script: Script::PROBE }),
        ];
        let report = run(&Plan { setup, operations, calm_at: 10 * MINUTE }).unwrap();
        assert_eq!(report.violation, None, "{manner:?}");
        assert!(report.complete >= 2, "{manner:?}");
    }
}

/// A disk that is older than what the computer held: it goes on from there, and gets the rest from the others.
#[test]
fn a_super_node_restored_from_a_backup_is_brought_up_to_date() {
    let mut world = world_of(network(1, 3));
    world.run(3 * MINUTE);
    let lent = first_lent(1);
    do_now(&mut world, Operation::Backup { host: lent });
    do_now(&mut world, Operation::Unregister { device: 0 });
    do_now(&mut world, Operation::Register { device: 0 });
    world.run(MINUTE);
    do_now(&mut world, Operation::Restore { host: lent });
    world.run(15 * MINUTE);
    assert_eq!(serving(&world).len(), 3);
    check(&mut world);
}

#[test]
fn an_owner_that_takes_a_computer_back_ends_its_part_after_a_handover() {
    let mut world = world_of(network(1, 4));
    world.run(3 * MINUTE);
    let lent = first_lent(1);
    do_now(&mut world, Operation::Lend { host: lent, on: false });
    world.run(3 * MINUTE);
    assert_eq!(state(&world, lent), Some(SuperState::Off));
    assert_eq!(serving(&world), [lent + 1, lent + 2, lent + 3]);
    assert!(reach(&mut world, 1).is_some());
    check(&mut world);
}

/// Found by the swarm: only who had been answered since its start asked over HTTPS why nobody answers any more; a computer that was
/// revoked while it was off tried for ever to catch up with those who are silent to it.
#[test]
fn a_super_node_that_was_revoked_while_it_was_off_hears_of_it_when_it_is_started() {
    let mut world = world_of(network(1, 4));
    world.run(3 * MINUTE);
    let lent = first_lent(1);
    do_now(&mut world, Operation::Crash { host: lent, survivors: 0 });
    do_now(&mut world, Operation::Revoke { host: lent });
    world.run(MINUTE);
    do_now(&mut world, Operation::Start { host: lent });
    world.run(2 * MINUTE);
    let host = &world.hosts[lent];
    assert!(host.node.as_ref().unwrap().status(host.now(world.now())).revoked);
    world.count_from_here();
    world.run(10 * MINUTE);
    let sent = world.counts(lent).datagrams;
    assert!(sent <= 60, "{sent} datagrams");
}

/// Found by the swarm, Rule 5.6: the operator could not be reached when they asked it why nobody answers, and then they answered each
/// other.
#[test]
fn super_nodes_that_were_revoked_while_they_were_off_hear_of_it_although_they_answer_each_other() {
    let mut world = world_of(network(1, 5));
    world.run(3 * MINUTE);
    let revoked = [0, 1, 2].map(|number| first_lent(1) + number);
    for host in revoked {
        do_now(&mut world, Operation::Crash { host, survivors: 0 });
        do_now(&mut world, Operation::Revoke { host });
    }
    world.run(MINUTE);
    do_now(&mut world, Operation::StopOperator { operator: 0 });
    for host in revoked {
        do_now(&mut world, Operation::Start { host });
    }
    world.run(2 * MINUTE);
    do_now(&mut world, Operation::StartOperator { operator: 0 });
    world.run(15 * MINUTE);
    for host in revoked.map(|host| &world.hosts[host]) {
        assert!(host.node.as_ref().unwrap().status(host.now(world.now())).revoked);
    }
}

/// Found by the swarm, Rule 6.54: it tried every ten seconds, with some thirty datagrams each time.
#[test]
fn a_super_node_that_can_catch_up_with_nobody_tries_ever_more_rarely_until_somebody_answers() {
    let mut world = world_of(network(1, 4));
    world.run(3 * MINUTE);
    let lent = first_lent(1);
    do_now(&mut world, Operation::Crash { host: lent, survivors: 0 });
    let site = world.hosts[lent].site;
    do_now(&mut world, Operation::Cut { site });
    do_now(&mut world, Operation::Start { host: lent });
    world.run(10 * MINUTE);
    world.count_from_here();
    world.run(10 * MINUTE);
    let sent = world.counts(lent).datagrams;
    assert!(sent <= 400, "{sent} datagrams");
    do_now(&mut world, Operation::Join);
    world.run(2 * MINUTE);
    assert!(world.hosts[lent].node.as_ref().unwrap().is_caught_up());
    check(&mut world);
}

#[test]
fn an_organisation_that_floods_the_super_nodes_keeps_no_other_from_anything() {
    let mut setup = network(2, 3);
    let domain = setup.domains;
    let user = setup.hosts[1];
    setup.domains += 1;
    setup.hosts.extend([HostSetup { domain, ..user }; 3]);
    let flooding = setup.hosts.len() - 3..setup.hosts.len();
    let mut world = world_of(setup);
    world.run(3 * MINUTE);
    for host in flooding {
        do_now(&mut world, Operation::Lie { host, manner: Manner::Flood });
    }
    for turn in 0..10 {
        let took = reach(&mut world, 1 + turn % 2);
        assert!(took.is_some_and(|took| took <= TIMEOUT), "{took:?}");
        world.run(MINUTE / 2);
    }
    // And nothing that a super-node has acknowledged is lost.
    assert_eq!(serving(&world).len(), 3);
}
