use std::net::IpAddr;

use peerage_wire::codec::{Candidate, CandidateKind, Transport};
use peerage_wire::id::Domain;
use peerage_wire::record::Roles;
use peerage_wire::time::UnixTime;
use proptest::prelude::*;

use super::attempt::MAX_UNANSWERED;
use super::candidates::MAX_TARGETS;
use super::*;

const BEGIN: Instant = Instant::from_micros(1_000_000);

fn peer(n: u8) -> Member {
    let identity = [n; 32];
    let id = NodeId::new(Domain(1), &identity);
    Member { id, identity, roles: Roles::default(), is_operator: false, expires: UnixTime::default() }
}

fn id(n: u8) -> SessionId {
    SessionId([n; 16])
}

fn place(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn target(text: &str) -> Target {
    Target { address: place(text), kind: PathKind::Punched, is_observed: false }
}

fn candidate(kind: CandidateKind, text: &str) -> Candidate {
    Candidate { kind, transport: Transport::Udp, address: place(text) }
}

fn millis(n: u64) -> Instant {
    BEGIN.after(Duration::from_millis(n))
}

/// Runs an attempt to its end and returns what was sent when, in milliseconds.
fn sent(paths: &mut Paths, from: Instant) -> Vec<(u64, SocketAddr)> {
    let mut sent = Vec::new();
    let mut now = from;
    for _ in 0..10_000 {
        while let Some((_, address)) = paths.poll_check(now) {
            paths.check_ended();
            sent.push(((now - BEGIN).as_millis().try_into().unwrap(), address));
        }
        paths.handle_timeout(now);
        let Some(next) = paths.next_at() else { return sent };
        assert!(next > now, "the timer stands still at {now:?}");
        now = next;
    }
    panic!("it never ends")
}

fn begun(role: PathRole) -> Paths {
    let mut paths = Paths::default();
    assert!(paths.begin(&peer(1), (id(1), role), None, BEGIN));
    paths
}

/// Rules 6.92 and 6.93.
#[test]
fn a_place_that_does_not_answer_is_sent_five_checks_at_growing_intervals() {
    let mut paths = begun(PathRole::Await);
    paths.add(peer(1).id, PathRole::Await, &[target("45.0.0.1:7400")], BEGIN);
    let times: Vec<_> = sent(&mut paths, BEGIN).into_iter().map(|(at, _)| at).collect();
    assert_eq!(times, [0, 50, 150, 350, 750]);
}

/// Rule 6.93.
#[test]
fn the_first_ten_places_are_five_milliseconds_apart_and_the_others_twenty() {
    let mut paths = begun(PathRole::Await);
    let targets: Vec<_> = (1..=12).map(|n| target(&format!("45.0.0.{n}:7400"))).collect();
    paths.add(peer(1).id, PathRole::Await, &targets, BEGIN);
    let sent = sent(&mut paths, BEGIN);
    let first = |target: &Target| sent.iter().find(|(_, address)| *address == target.address).unwrap().0;
    let times: Vec<_> = targets.iter().map(first).collect();
    assert_eq!(times, [0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 65, 85]);
}

/// Rule 6.80: who looks for a path says after a second that nobody answers, and who is looked for never does.
#[test]
fn an_attempt_in_vain_is_told_of_once_by_the_user_node() {
    for (role, told) in [(PathRole::Dial, [None, Some(News::Vain), None]), (PathRole::Await, [None; 3])] {
        let mut paths = begun(role);
        let news = [999, 1_000, 1_001].map(|at| {
            paths.handle_timeout(millis(at));
            paths.poll_news()
        });
        assert_eq!(news, told);
    }
    let mut paths = begun(PathRole::Dial);
    paths.answered(peer(1).id, place("45.0.0.1:7400"), None, millis(999));
    paths.poll_news();
    paths.handle_timeout(millis(1_000));
    assert_eq!(paths.poll_news(), None);
}

/// Rule 6.95: the first answer decides, and ends the checks.
#[test]
fn the_user_node_takes_the_first_place_that_answers() {
    let mut paths = begun(PathRole::Dial);
    let places = ["45.0.0.1:7400", "45.0.0.2:7400"].map(target);
    paths.add(peer(1).id, PathRole::Dial, &places, BEGIN);
    while paths.poll_check(millis(20)).is_some() {}
    paths.answered(peer(1).id, places[1].address, None, millis(40));
    paths.answered(peer(1).id, places[0].address, None, millis(41));
    let Some(News::Found(path)) = paths.poll_news() else { panic!() };
    assert_eq!((path.remote, path.role, path.identity), (places[1].address, PathRole::Dial, [1; 32]));
    assert_eq!(paths.poll_news(), None);
    assert_eq!(sent(&mut paths, millis(42)), []);
}

/// Rule 6.94: a place that nobody has named is checked when the peer is heard from there, and awaited.
#[test]
fn the_tunnel_node_checks_and_expects_where_the_user_node_is_heard() {
    let mut paths = begun(PathRole::Await);
    paths.add(peer(1).id, PathRole::Await, &[target("45.0.0.1:7400")], BEGIN);
    while paths.poll_check(BEGIN).is_some() {}
    paths.heard(peer(1).id, place("45.0.0.1:9"), millis(7));
    assert_eq!(paths.poll_check(millis(7)), Some((peer(1).id, place("45.0.0.1:9"))));
    let Some(News::Found(path)) = paths.poll_news() else { panic!() };
    assert_eq!(
        (path.remote, path.role, path.kind),
        (place("45.0.0.1:9"), PathRole::Await, PathKind::Punched)
    );
    // Somebody with whom nothing is under way is answered, and no more.
    paths.heard(peer(2).id, place("45.0.0.2:9"), millis(8));
    assert_eq!((paths.poll_check(millis(8)), paths.poll_news()), (None, None));
}

/// Rule 6.94: a peer that moves about cannot make this node expect it everywhere.
#[test]
fn a_peer_is_expected_from_four_places_at_most() {
    let mut paths = begun(PathRole::Await);
    for n in 0..50 {
        paths.heard(peer(1).id, place(&format!("45.0.0.{n}:7400")), BEGIN);
    }
    let found = std::iter::from_fn(|| paths.poll_news()).count();
    assert_eq!(found, MAX_AWAITED);
}

/// Rule 6.97.
#[test]
fn a_path_that_is_not_used_is_lost_and_one_that_is_used_is_kept() {
    let mut paths = begun(PathRole::Dial);
    let remote = place("45.0.0.1:7400");
    paths.answered(peer(1).id, remote, None, BEGIN);
    let Some(News::Found(path)) = paths.poll_news() else { panic!() };
    paths.handle_timeout(millis(15_000));
    assert_eq!(paths.poll_news(), Some(News::Lost(path)));
    let mut paths = begun(PathRole::Dial);
    paths.answered(peer(1).id, remote, None, BEGIN);
    paths.poll_news();
    paths.used(&peer(1).id, remote);
    paths.handle_timeout(millis(600_000));
    assert_eq!((paths.poll_news(), paths.next_at()), (None, None));
    paths.unused(&peer(1).id, remote);
    assert_eq!(paths.poll_news(), Some(News::Lost(path)));
}

/// Rule 6.93: the same request in another copy adds what it knows, another one begins anew.
#[test]
fn a_request_that_comes_twice_makes_one_attempt() {
    let mut paths = begun(PathRole::Await);
    let place = [target("45.0.0.1:7400")];
    paths.add(peer(1).id, PathRole::Await, &place, BEGIN);
    while paths.poll_check(BEGIN).is_some() {}
    assert!(paths.begin(&peer(1), (id(1), PathRole::Await), None, millis(1)));
    paths.add(peer(1).id, PathRole::Await, &place, millis(1));
    assert_eq!(paths.poll_check(millis(2)), None);
    assert!(paths.begin(&peer(1), (id(2), PathRole::Await), None, millis(3)));
    paths.add(peer(1).id, PathRole::Await, &place, millis(3));
    assert_eq!(paths.poll_check(millis(3)), Some((peer(1).id, place[0].address)));
}

/// Rules 6.92 and 6.93: the order, and what is left out.
#[test]
fn near_places_come_first_and_forbidden_ones_never() {
    let said = [
        candidate(CandidateKind::Reflexive, "45.0.0.1:1"),
        candidate(CandidateKind::Ethernet, "192.168.1.9:7400"),
        candidate(CandidateKind::Ethernet, "[2001:db9::1]:7400"),
        candidate(CandidateKind::Mapped, "45.0.0.1:2"),
        candidate(CandidateKind::Ethernet, "127.0.0.1:7400"),
        candidate(CandidateKind::Configured, "45.0.0.1:0"),
        candidate(CandidateKind::Reflexive, "45.0.0.1:1"),
        Candidate { transport: Transport::Tcp, ..candidate(CandidateKind::Ethernet, "45.0.0.9:7400") },
    ];
    let near = |address: IpAddr| address == place("192.168.1.9:1").ip();
    let may = |address: IpAddr| !address.is_loopback();
    let observed = Some(place("45.0.0.1:3"));
    let order: Vec<_> = targets(&said, observed, false, &near, &may)
        .iter()
        .map(|target| target.address.to_string())
        .collect();
    assert_eq!(order, ["192.168.1.9:7400", "[2001:db9::1]:7400", "45.0.0.1:2", "45.0.0.1:1", "45.0.0.1:3"]);
}

/// Rule 6.96: the i-th check goes to the i-th port after the base, first of all where the own router numbers too.
#[test]
fn predicted_ports_are_checked_in_order_and_first_where_the_own_router_numbers_too() {
    let said = [
        candidate(CandidateKind::Sequential, "45.0.0.1:40000"),
        candidate(CandidateKind::Sequential, "45.0.0.2:1"),
        candidate(CandidateKind::Reflexive, "45.0.0.1:40000"),
    ];
    let ports = |is_dependent| {
        let all = targets(&said, None, is_dependent, &|_| false, &|_| true);
        all.iter().map(|target| target.address.port()).collect::<Vec<_>>()
    };
    let ladder: Vec<u16> = (40_001..=40_008).collect();
    assert_eq!(ports(true), [&ladder[..], &[40_000]].concat());
    assert_eq!(ports(false), [&[40_000], &ladder[..]].concat());
    let highest = [candidate(CandidateKind::Sequential, "45.0.0.1:65534")];
    assert_eq!(targets(&highest, None, true, &|_| false, &|_| true).len(), 1);
}

#[derive(Clone, Debug)]
enum Step {
    Begin { peer: u8, id: u8, role: PathRole },
    Add { peer: u8, role: PathRole, places: Vec<(u8, u16)> },
    Heard { peer: u8, place: (u8, u16) },
    Wait { millis: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let role = || prop_oneof![Just(PathRole::Dial), Just(PathRole::Await)];
    let place = || (0..3_u8, 1..30_u16);
    prop_oneof![
        (0..4_u8, any::<u8>(), role()).prop_map(|(peer, id, role)| Step::Begin { peer, id, role }),
        (0..4_u8, role(), prop::collection::vec(place(), 0..40)).prop_map(|(peer, role, places)| Step::Add {
            peer,
            role,
            places
        }),
        (0..4_u8, place()).prop_map(|(peer, place)| Step::Heard { peer, place }),
        (0..3_000_u64).prop_map(|millis| Step::Wait { millis }),
    ]
}

proptest! {
    /// Rule 6.92: whatever members say, no place from which nothing came is sent more than five checks in a minute, no site more
    /// than its share, and no table grows beyond its limit.
    #[test]
    fn nobody_can_aim_this_node_at_others(steps in prop::collection::vec(step(), 1..120)) {
        let mut paths = Paths::default();
        let mut now = BEGIN;
        let mut log: Vec<(Instant, SocketAddr)> = Vec::new();
        let mut proven = std::collections::BTreeSet::new();
        let address = |(host, port): (u8, u16)| SocketAddr::from(([45, 0, 0, host], port));
        for step in steps {
            match step {
                Step::Begin { peer: n, id: number, role } => {
                    paths.begin(&peer(n), (id(number), role), None, now);
                }
                Step::Add { peer: n, role, places } => {
                    let of = |place| Target { address: address(place), kind: PathKind::Punched, is_observed: false };
                    let targets: Vec<_> = places.into_iter().map(of).collect();
                    paths.add(peer(n).id, role, &targets, now);
                }
                Step::Heard { peer: n, place } => {
                    paths.heard(peer(n).id, address(place), now);
                    proven.insert(address(place));
                }
                Step::Wait { millis } => now = now.after(Duration::from_millis(millis)),
            }
            while let Some((_, to)) = paths.poll_check(now) {
                paths.check_ended();
                log.push((now, to));
            }
            paths.handle_timeout(now);
            for size in paths.sizes() {
                prop_assert!(!size.is_exceeded(), "{size:?}");
            }
        }
        let unproven: Vec<_> = log.iter().filter(|(_, to)| !proven.contains(to)).collect();
        for (at, to) in &unproven {
            let within = unproven.iter().filter(|(other, _)| other >= at && *other - *at < Duration::from_secs(59));
            let here = within.clone().filter(|(_, other)| other == to).count();
            prop_assert!(here <= MAX_UNANSWERED, "{here} to {to}");
            let at_site = within.filter(|(_, other)| other.ip() == to.ip()).count();
            prop_assert!(at_site <= 60 + 59 * 5 + 1, "{at_site} to the site of {to}");
        }
    }

    /// Rule 6.92: twenty places of one attempt, whatever is named.
    #[test]
    fn an_attempt_has_twenty_places_at_most(ports in prop::collection::vec(1..u16::MAX, 0..100)) {
        let mut paths = begun(PathRole::Await);
        let all: Vec<_> = ports.iter().map(|port| target(&format!("45.0.0.1:{port}"))).collect();
        paths.add(peer(1).id, PathRole::Await, &all, BEGIN);
        let places: std::collections::BTreeSet<_> = sent(&mut paths, BEGIN).into_iter().map(|(_, to)| to).collect();
        prop_assert!(places.len() <= MAX_TARGETS);
    }
}
