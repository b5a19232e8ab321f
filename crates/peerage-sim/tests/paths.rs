//! Direct paths between routers of all kinds, held to what theory says is possible.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::time::Duration;

use peerage_proto::path::{Filtering, NatBehaviour, Path, PathRole};
use peerage_sim::app::Script;
use peerage_sim::nat::{Behaviour, NatConfig, Ports};
use peerage_sim::network::{Lan, Multicast, Quality};
use peerage_sim::world::{DeviceSetup, HostSetup, Setup, SiteSetup, World};
use peerage_wire::time::Instant;

/// How long a line to the middle of the Internet is; an operator's is as long, and up to 2 ms longer at times.
const DELAY: Duration = Duration::from_millis(10);

/// R, between the two.
const ROUND_TRIP: Duration = Duration::from_millis(40);

/// L, through an operator: four times there and back to the middle.
const FORWARDED_TRIP: Duration = Duration::from_millis(88);

const QUALITY: Quality = Quality { delay: DELAY, jitter: Duration::ZERO, loss: 0, duplicated: 0 };

/// When the user asks for the printer.
const ASKED_AT: Duration = Duration::from_secs(15);

/// A class of router, as people call it.
#[derive(Clone, Copy, Debug)]
struct Class {
    name: &'static str,
    nat: Option<NatConfig>,
}

const fn class(name: &'static str, mapping: Behaviour, filtering: Behaviour, ports: Ports) -> Class {
    let lifetime = Duration::from_secs(120);
    Class { name, nat: Some(NatConfig { mapping, filtering, lifetime, hairpinning: false, ports }) }
}

const CLASSES: [Class; 13] = {
    use Behaviour::{
        AddressAndPortDependent as Port, AddressDependent as Address, EndpointIndependent as Free,
    };
    use Ports::{Preserved, Scattered, Sequential};
    [
        Class { name: "none", nat: None },
        class("EIM EIF", Free, Free, Scattered),
        class("EIM ADF", Free, Address, Scattered),
        class("EIM APDF", Free, Port, Scattered),
        class("preserving EIM EIF", Free, Free, Preserved),
        class("preserving EIM ADF", Free, Address, Preserved),
        class("preserving EIM APDF", Free, Port, Preserved),
        class("ADM APDF random", Address, Port, Scattered),
        class("ADM APDF sequential", Address, Port, Sequential),
        class("symmetric random", Port, Port, Scattered),
        class("symmetric sequential", Port, Port, Sequential),
        class("symmetric random ADF", Port, Address, Scattered),
        class("symmetric sequential ADF", Port, Address, Sequential),
    ]
};

impl Class {
    /// Returns whether others can know from which port it writes to a place that it has not written to.
    fn is_predictable(self) -> bool {
        self.nat
            .is_none_or(|nat| nat.mapping == Behaviour::EndpointIndependent || nat.ports == Ports::Sequential)
    }

    /// Returns whether it lets in only what comes from a port that was written to.
    fn filters_by_port(self) -> bool {
        self.nat.is_some_and(|nat| nat.filtering == Behaviour::AddressAndPortDependent)
    }
}

/// The oracle: whether a pair of ports exists that both ends can come to use. Where both can be predicted, each sends to the other's.
/// Where one cannot, the other has to let in what comes from an unknown port; and its answer, which some routers send from yet
/// another port, has to be let in too.
fn is_possible(one: Class, other: Class) -> bool {
    let by_port =
        |class: Class| class.nat.is_some_and(|nat| nat.mapping == Behaviour::AddressAndPortDependent);
    let suffers = |known: Class, unknown: Class| {
        let answer_arrives = !by_port(known) || !unknown.filters_by_port() || !by_port(unknown);
        known.is_predictable() && !known.filters_by_port() && answer_arrives
    };
    let both = one.is_predictable() && other.is_predictable();
    both || suffers(one, other) || suffers(other, one)
}

fn setup(seed: u64, user: Class, tunnel_node: Class, operators: usize) -> Setup {
    let site = |class: Class| SiteSetup {
        nat: class.nat,
        quality: QUALITY,
        lan: Lan { multicast: Multicast::Works, loss: 0 },
    };
    let host =
        |site, serves| HostSetup { domain: 0, site, serves, lends: false, error_millis: 0, drift_ppm: 0 };
    Setup {
        seed,
        real_crypto: false,
        operators,
        domains: 1,
        sites: vec![site(tunnel_node), site(user)],
        hosts: vec![host(0, true), host(1, false)],
        devices: vec![DeviceSetup { domain: 0, site: 0, via: 0, has_tls: false }],
        sample_interval: Duration::from_secs(5),
        start_within: Duration::from_secs(1),
        planted: None,
        eager: false,
        is_told: false,
    }
}

fn seconds(at: Duration) -> Instant {
    Instant::default().after(at)
}

/// What came of one pair.
struct Outcome {
    dialled: Option<(Duration, Path)>,
    awaited: Vec<(Duration, Path)>,
}

/// A tunnel-node and a user behind routers that forward no port: that is what this is about.
fn world(seed: u64, user: Class, tunnel_node: Class, operators: usize) -> World {
    let mut world = World::new(setup(seed, user, tunnel_node, operators), Vec::new()).unwrap();
    for nat in world.network.sites.iter_mut().filter_map(|site| site.nat.as_mut()) {
        nat.is_closed = true;
    }
    world.hosts.iter_mut().for_each(|host| host.advertise.clear());
    world
}

fn meet(seed: u64, user: Class, tunnel_node: Class, operators: usize) -> Outcome {
    let mut world = world(seed, user, tunnel_node, operators);
    world.run_until(seconds(ASKED_AT));
    let began = world.now();
    world.begin_errand(1, 0, Script::PROBE, 1);
    world.run(Duration::from_secs(2));
    let of = |role, host| {
        let paths = world.paths().iter().filter(move |(_, by, path)| *by == host && path.role == role);
        paths.map(|(at, _, path)| (*at - began, *path))
    };
    Outcome { dialled: of(PathRole::Dial, 1).next(), awaited: of(PathRole::Await, 0).collect() }
}

/// Returns how long after the request the user-node has to have its path: a check that comes before the other router is open is lost
/// and repeated.
fn patience(user: Class, tunnel_node: Class) -> Duration {
    let is_plain = |class: Class| class.nat.is_none_or(|nat| nat.mapping == Behaviour::EndpointIndependent);
    let repeated = if is_plain(user) && is_plain(tunnel_node) { 0 } else { 55 };
    FORWARDED_TRIP + ROUND_TRIP + Duration::from_millis(repeated)
}

/// Rules 6.93 to 6.96: direct exactly where theory lets it be. A link on the path needs one more R for its handshake, so its first
/// byte comes within L + 2 R of the request.
#[test]
fn every_pair_of_routers_is_crossed_where_theory_lets_it_and_as_fast() {
    let straight = meet(1, CLASSES[0], CLASSES[0], 2).dialled.unwrap().0;
    let asked = straight.saturating_sub(ROUND_TRIP);
    let mut against = Vec::new();
    for (user, tunnel_node) in CLASSES.iter().flat_map(|user| CLASSES.map(|other| (*user, other))) {
        let possible = is_possible(user, tunnel_node);
        let Outcome { dialled, awaited } = meet(1, user, tunnel_node, 2);
        let mut complain =
            |what: String| against.push(format!("{} -> {}: {what}", user.name, tunnel_node.name));
        let Some((took, path)) = dialled else {
            if possible {
                complain("not found".to_owned());
            }
            continue;
        };
        if !possible {
            complain(format!("found {path:?}, which cannot be"));
        }
        if !awaited.iter().any(|(at, _)| *at <= took) {
            complain("nobody waits at the other end".to_owned());
        }
        if took.saturating_sub(asked) > patience(user, tunnel_node) {
            complain(format!("found {:?} after the request", took.saturating_sub(asked)));
        }
    }
    assert!(against.is_empty(), "{} against theory:\n{}", against.len(), against.join("\n"));
}

/// Rule 6.93: checks are repeated, so that a lossy line only makes it later.
#[test]
fn lost_checks_are_repeated() {
    let home = CLASSES.iter().copied().find(|class| class.name == "EIM APDF").unwrap();
    for seed in 0..20 {
        let mut world = world(seed, home, home, 2);
        world.run_until(seconds(ASKED_AT));
        for site in &mut world.network.sites {
            site.quality.loss = 100;
        }
        world.begin_errand(1, 0, Script::PROBE, 3);
        world.run(Duration::from_secs(15));
        assert!(world.paths().iter().any(|(_, host, _)| *host == 1), "seed {seed}");
    }
}

/// Rule 6.80: a user-node whose router is no help by itself asks it for a port; then the tunnel-node's checks pass, from whatever port.
#[test]
fn a_user_behind_a_symmetric_router_that_can_be_asked_meets_a_symmetric_tunnel_node() {
    let symmetric = CLASSES.iter().copied().find(|class| class.name == "symmetric random").unwrap();
    assert!(!is_possible(symmetric, symmetric));
    let mut world = world(1, symmetric, symmetric, 2);
    let router = world.network.sites[1].nat.as_mut().unwrap();
    (router.is_closed, router.can_be_asked) = (false, true);
    world.run_until(seconds(ASKED_AT));
    for _ in 0..2 {
        world.begin_errand(1, 0, Script::PROBE, 1);
        world.run(Duration::from_secs(3));
    }
    let router = world.network.sites[1].nat.as_ref().unwrap();
    let asker = world.hosts[1].inner;
    let mapped = |path: &Path| {
        path.remote.ip() == router.public && router.forwarded(path.remote.port()) == Some(asker)
    };
    let awaited = world.paths().iter().filter(|(_, host, path)| *host == 0 && path.role == PathRole::Await);
    assert!(awaited.clone().any(|(_, _, path)| mapped(path)));
    assert!(world.paths().iter().any(|(_, host, path)| *host == 1 && path.role == PathRole::Dial));
}

/// Rule 6.99: only where both owners permit it, and without more mappings than it says.
#[test]
fn a_port_that_nobody_can_know_is_found_where_both_ends_may_use_many() {
    let of = |name| CLASSES.iter().copied().find(|class| class.name == name).unwrap();
    for (user, tunnel_node) in [("symmetric random", "EIM APDF"), ("ADM APDF random", "preserving EIM APDF")]
    {
        let (user, tunnel_node) = (of(user), of(tunnel_node));
        assert!(!is_possible(user, tunnel_node));
        let found = |may: [bool; 2]| {
            let mut world = world(1, user, tunnel_node, 2);
            for (host, may) in world.hosts.iter_mut().zip(may) {
                host.wide_checks = may;
            }
            world.run_until(seconds(ASKED_AT));
            world.begin_errand(1, 0, Script::PROBE, 1);
            world.run(Duration::from_secs(20));
            let mappings = world.network.sites[1].nat.as_ref().unwrap().mappings();
            assert!(mappings < 256 + 16, "{mappings}");
            let mut paths = world.paths().iter().map(|(_, host, path)| (*host, path.role));
            let dialled = paths.clone().any(|path| path == (1, PathRole::Dial));
            dialled && paths.any(|path| path == (0, PathRole::Await))
        };
        assert!(found([true, true]), "{} -> {}", user.name, tunnel_node.name);
        for may in [[true, false], [false, true], [false, false]] {
            assert!(!found(may), "{} -> {}: {may:?}", user.name, tunnel_node.name);
        }
    }
}

/// What a user-node behind such a router has found out about it.
fn learned(class: Class) -> NatBehaviour {
    let mut world = world(1, class, CLASSES[0], 2);
    world.run_until(seconds(ASKED_AT));
    world.begin_errand(1, 0, Script::PROBE, 1);
    world.run(Duration::from_secs(1));
    world.look_at(1);
    // Some 5 s later it asks, and an answer that never comes is waited for.
    world.run(Duration::from_secs(15));
    let user = world.hosts.get(1).unwrap();
    user.node.as_ref().unwrap().status(user.now(world.now())).nat
}

/// Rule 6.98.
#[test]
fn a_node_learns_whom_its_router_lets_in_and_whether_it_turns_packets_round() {
    for class in CLASSES {
        let expected = if class.filters_by_port() {
            Filtering::AddressAndPortDependent
        } else {
            Filtering::AddressDependent
        };
        let found = learned(class);
        assert_eq!(found.filtering, Some(expected), "{}", class.name);
        assert_eq!(found.hairpinning, class.nat.map(|_| false), "{}", class.name);
    }
    let turning = NatConfig { hairpinning: true, ..CLASSES[1].nat.unwrap() };
    assert_eq!(learned(Class { name: "hairpinning", nat: Some(turning) }).hairpinning, Some(true));
}

/// Rule 6.98: operators are not asked what nobody reads.
#[test]
fn a_node_whose_status_nobody_looks_at_asks_no_operator_whom_its_router_lets_in() {
    let home = CLASSES.iter().copied().find(|class| class.name == "EIM APDF").unwrap();
    let mut world = world(1, home, home, 2);
    world.run_until(seconds(ASKED_AT));
    world.begin_errand(1, 0, Script::PROBE, 1);
    world.run(Duration::from_secs(60));
    let known = |world: &World| {
        let user = world.hosts.get(1).unwrap();
        user.node.as_ref().unwrap().status(user.now(world.now())).nat.filtering
    };
    assert_eq!(known(&world), None);
    world.look_at(1);
    world.run(Duration::from_secs(15));
    assert_eq!(known(&world), Some(Filtering::AddressAndPortDependent));
}

/// Rule 6.97: a path that nobody uses is given up at both ends.
#[test]
fn nothing_is_sent_for_a_path_that_is_not_used() {
    let home = CLASSES.iter().copied().find(|class| class.name == "EIM APDF").unwrap();
    let mut world = world(1, home, home, 2);
    world.run_until(seconds(ASKED_AT));
    world.begin_errand(1, 0, Script::PROBE, 1);
    world.run(Duration::from_secs(60));
    assert!(!world.paths().is_empty());
    for host in &world.hosts {
        let sizes = host.node.as_ref().unwrap().table_sizes();
        let of = |name| sizes.iter().find(|size| size.name == name).unwrap().len;
        assert_eq!((of("path attempts"), of("paths"), of("path checks")), (0, 0, 0));
    }
}
