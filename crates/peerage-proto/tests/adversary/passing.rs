//! Attempts to use forwarders and relays for what they are not for.

use bytes::Bytes;
use peerage_proto::discard::Discard;
use peerage_proto::relay::{LegId, Output};
use peerage_wire::id::{CommandId, Domain, LinkId, NodeId, SessionId};
use peerage_wire::limits::MAX_FORWARDED;
use peerage_wire::message::{Forward, Reply, Request, TunnelRequest};

use crate::actor::{Actor, TUNNEL, USER_ONLY, node_state};
use crate::support::{DOMAIN, Flight, OPERATOR_ADDRESS, SITE, World, device, office};

const HERE: &str = "45.66.6.6:1";
const OTHER: Domain = Domain(0x0bad_cafe);

fn tunnel_request() -> Request {
    Request::TunnelRequest(TunnelRequest {
        id: SessionId([1; 16]),
        device: device(),
        service: "ipp".to_owned(),
        candidates: vec![],
        relay: None,
        hello: None,
    })
}

/// Returns what the operator has sent to the site since.
fn to_site(world: &World, since: usize) -> Vec<Flight> {
    let (from, to) = (OPERATOR_ADDRESS.parse().unwrap(), SITE.parse().unwrap());
    world.log[since..].iter().filter(|flight| flight.from == from && flight.to == to).cloned().collect()
}

fn dropped(world: &World, reason: Discard) -> u64 {
    world.operator.discards().of(reason)
}

/// Rule 6.28: across domains nothing is passed on, and nothing is said.
#[test]
fn nobody_is_reached_through_a_forwarder_from_another_domain() {
    let (mut world, site, _) = office(70);
    let mut foreign = Actor::admitted(&mut world, HERE, OTHER, TUNNEL);
    let inner = foreign.seal_for_host(&mut world, site, &tunnel_request());
    let (to, since) = (world.host(site).id, world.log.len());
    let before = node_state(&mut world, site);
    assert_eq!(foreign.ask(&mut world, &Request::ForwardedTunnelRequest { to, inner }), None);
    assert_eq!((to_site(&world, since).len(), node_state(&mut world, site)), (0, before));
}

/// Rule 6.28: only those attached are reached; who else is there cannot be told from who is not.
#[test]
fn whoever_is_not_attached_is_as_good_as_nobody() {
    let (mut world, _, user) = office(71);
    let mut actor = Actor::admitted(&mut world, HERE, DOMAIN, USER_ONLY);
    let inner = actor.seal_for_host(&mut world, user, &Request::Ping);
    let (present, absent) = (world.host(user).id, NodeId::new(DOMAIN, &[9; 32]));
    for to in [present, absent] {
        let since = world.log.len();
        let reply = actor.ask(&mut world, &Request::ForwardedTunnelRequest { to, inner: inner.clone() });
        assert_eq!(reply, Some(Reply::ForwardedTunnelOpened(None)));
        assert!(world.log[since..].iter().all(|flight| flight.to != user));
    }
}

/// Rule 6.28: through a forwarder a node arranges paths, and does nothing else for anybody.
#[test]
fn nothing_but_the_arranging_of_a_path_is_executed_through_a_forwarder() {
    let (mut world, site, _) = office(72);
    let mut actor = Actor::admitted(&mut world, HERE, DOMAIN, TUNNEL);
    let to = world.host(site).id;
    let id = CommandId([1; 16]);
    let forward = Forward { observed: HERE.parse().unwrap(), inner: Bytes::new(), token: Bytes::new() };
    let inners = [
        Request::Attach,
        Request::Leave(id),
        Request::GetHead { domain: None },
        Request::GetDomainKey,
        Request::Store(actor.record.bytes().clone()),
        Request::ForwardedTunnelRequest { to, inner: Bytes::from_static(&[5; 200]) },
        Request::Forward(forward),
        Request::RelayJoin { link: LinkId([1; 16]), peer: to },
    ];
    // Those that are not answered have their share of the room for two seconds: four of one asker.
    for some in inners.chunks(4) {
        let before = node_state(&mut world, site);
        for request in some {
            let inner = actor.seal_for_host(&mut world, site, request);
            let since = world.log.len();
            let reply = actor.ask(&mut world, &Request::ForwardedTunnelRequest { to, inner });
            assert_eq!(reply, None, "{request:?}");
            assert!(!to_site(&world, since).is_empty(), "the forwarder cannot tell what is inside");
        }
        assert_eq!(node_state(&mut world, site), before);
        world.run(std::time::Duration::from_secs(3));
    }
    let inner = actor.seal_for_host(&mut world, site, &tunnel_request());
    let reply = actor.ask(&mut world, &Request::ForwardedTunnelRequest { to, inner });
    assert!(matches!(reply, Some(Reply::ForwardedTunnelOpened(Some(_)))), "{reply:?}");
}

/// Rule 6.28: what is no sealed request, or too long, is not passed on.
#[test]
fn a_forwarder_passes_on_nothing_but_sealed_requests() {
    let (mut world, site, _) = office(73);
    let mut actor = Actor::admitted(&mut world, HERE, DOMAIN, USER_ONLY);
    let to = world.host(site).id;
    let reply_form = [&[9; 1][..], &[1; 100]].concat();
    let hint = [&[0x0b, 1][..], &[1; 16]].concat();
    let quic = vec![0x40; 300];
    for inner in
        [vec![], vec![5], reply_form, hint, quic, b"GET / HTTP/1.1".to_vec(), vec![5; MAX_FORWARDED + 1]]
    {
        let since = world.log.len();
        let inner = Bytes::from(inner);
        assert_eq!(actor.ask(&mut world, &Request::ForwardedTunnelRequest { to, inner }), None);
        assert_eq!(to_site(&world, since).len(), 0);
    }
}

/// Rule 6.28: a node takes Forward from those alone to whom it is attached.
#[test]
fn a_member_cannot_pose_as_a_forwarder() {
    let (mut world, site, _) = office(74);
    let mut actor = Actor::admitted(&mut world, HERE, DOMAIN, TUNNEL);
    let inner = actor.seal_for_host(&mut world, site, &tunnel_request());
    let forward = Forward { observed: "203.0.113.9:9".parse().unwrap(), inner, token: Bytes::new() };
    let since = world.log.len();
    assert_eq!(actor.ask_host(&mut world, site, &Request::Forward(forward)), None);
    let victim = "203.0.113.9:9".parse().unwrap();
    assert!(world.log[since..].iter().all(|flight| flight.to != victim));
}

/// Rule 6.28: one member cannot keep the line of another busy.
#[test]
fn a_flood_through_a_forwarder_is_cut_to_its_rate() {
    let (mut world, site, _) = office(75);
    let mut actor = Actor::admitted(&mut world, HERE, DOMAIN, USER_ONLY);
    let (to, since) = (world.host(site).id, world.log.len());
    for _ in 0..300 {
        let inner = actor.seal_for_host(&mut world, site, &Request::Ping);
        actor.ask(&mut world, &Request::ForwardedTunnelRequest { to, inner });
    }
    assert!((50..=110).contains(&to_site(&world, since).len()), "{}", to_site(&world, since).len());
    assert!(dropped(&world, Discard::RateLimited) >= 190);
}

/// Lets somebody ask for a leg to be joined.
fn join(world: &mut World, actor: &mut Actor, peer: NodeId, link: u8) -> (LegId, Bytes) {
    let leg = world.new_leg();
    let payload = actor.seal(world, &Request::RelayJoin { link: LinkId([link; 16]), peer });
    world.say_on_leg(leg, actor.address, payload.clone());
    (leg, payload)
}

fn is_refused(world: &World, leg: LegId) -> bool {
    matches!(world.legs.own[&leg][..], [Output::Close { last: Some(_), .. }])
}

/// Rule 6.31: without membership nobody is joined, or gets an answer worth anything.
#[test]
fn a_relay_joins_no_strangers() {
    let mut world = World::new(76);
    let elsewhere = World::new(77).admit(DOMAIN, USER_ONLY);
    let (identity, _, [record, _]) = elsewhere;
    let mut stranger = Actor::with_record(&mut world, HERE, identity, record);
    let mut member = Actor::admitted(&mut world, "45.66.6.7:1", DOMAIN, USER_ONLY);
    let (first, _) = join(&mut world, &mut member, stranger.id, 1);
    let (second, _) = join(&mut world, &mut stranger, member.id, 1);
    assert_eq!((&world.legs.own[&first][..], &world.legs.own[&second][..]), (&[][..], &[][..]));
    assert_eq!(world.operator.relayed().tunnels, 0);
}

#[test]
fn a_relay_joins_nobody_across_domains_or_with_himself() {
    let mut world = World::new(78);
    let mut one = Actor::admitted(&mut world, HERE, DOMAIN, USER_ONLY);
    let mut other = Actor::admitted(&mut world, "45.66.6.7:1", OTHER, TUNNEL);
    let pairs = [join(&mut world, &mut one, other.id, 1).0, join(&mut world, &mut other, one.id, 1).0];
    let itself = one.id;
    let alone = [join(&mut world, &mut one, itself, 2).0, join(&mut world, &mut one, itself, 2).0];
    assert!(pairs.iter().chain(&alone).all(|leg| is_refused(&world, *leg)), "{:?}", world.legs.own);
}

/// Rule 6.31: the revoked are refused, and what waited for them goes.
#[test]
fn a_relay_joins_no_revoked_member() {
    let mut world = World::new(79);
    let mut one = Actor::admitted(&mut world, HERE, DOMAIN, USER_ONLY);
    let mut other = Actor::admitted(&mut world, "45.66.6.7:1", DOMAIN, TUNNEL);
    join(&mut world, &mut one, other.id, 1);
    world.revoke(one.id);
    world.pump();
    let (leg, _) = join(&mut world, &mut other, one.id, 1);
    let (revoked, _) = join(&mut world, &mut one, other.id, 1);
    assert_eq!((&world.legs.own[&leg][..], &world.legs.own[&revoked][..]), (&[][..], &[][..]));
    assert_eq!(world.operator.relayed().tunnels, 0);
}

/// Rules 3.12 and 6.31: who has recorded a leg's beginning cannot take its place.
#[test]
fn a_replayed_request_joins_nothing() {
    let mut world = World::new(80);
    let mut one = Actor::admitted(&mut world, HERE, DOMAIN, USER_ONLY);
    let mut other = Actor::admitted(&mut world, "45.66.6.7:1", DOMAIN, TUNNEL);
    let (first, recorded) = join(&mut world, &mut one, other.id, 1);
    let thief = world.new_leg();
    world.say_on_leg(thief, "45.66.6.8:1".parse().unwrap(), recorded);
    assert_eq!(world.legs.own[&thief], []);
    let (second, _) = join(&mut world, &mut other, one.id, 1);
    for leg in [first, second] {
        assert!(matches!(&world.legs.own[&leg][..], [Output::Join(_)]), "{:?}", world.legs.own);
    }
    assert_eq!(world.legs.own[&thief], []);
}

/// Rule 6.31: a third leg with the same names disturbs nothing.
#[test]
fn a_third_leg_is_refused() {
    let mut world = World::new(81);
    let mut one = Actor::admitted(&mut world, HERE, DOMAIN, USER_ONLY);
    let mut other = Actor::admitted(&mut world, "45.66.6.7:1", DOMAIN, TUNNEL);
    join(&mut world, &mut one, other.id, 1);
    join(&mut world, &mut other, one.id, 1);
    let (third, _) = join(&mut world, &mut one, other.id, 1);
    assert!(is_refused(&world, third));
    assert_eq!(world.operator.relayed().tunnels, 1);
}

/// Rule 6.30: a leg is for RelayJoin, and RelayJoin for legs.
#[test]
fn a_leg_carries_one_command_and_no_datagram_carries_it() {
    let mut world = World::new(82);
    let mut actor = Actor::admitted(&mut world, HERE, DOMAIN, TUNNEL);
    let peer = NodeId::new(DOMAIN, &[9; 32]);
    assert_eq!(actor.ask(&mut world, &Request::RelayJoin { link: LinkId([1; 16]), peer }), None);
    assert_eq!(world.operator.relayed().legs, 0);
    for request in [Request::Ping, Request::Attach, Request::GetHead { domain: None }, tunnel_request()] {
        let leg = world.new_leg();
        let payload = actor.seal(&world, &request);
        world.say_on_leg(leg, actor.address, payload);
        assert_eq!(world.legs.own[&leg], [], "{request:?}");
    }
    assert_eq!(world.operator.contacts(world.now).count(), 0);
}

/// Rule 6.30: whatever stands on a leg, the relay does not fall over it.
#[test]
fn rubbish_on_a_leg_is_dropped() {
    let mut world = World::new(83);
    let mut actor = Actor::admitted(&mut world, HERE, DOMAIN, TUNNEL);
    let peer = NodeId::new(DOMAIN, &[9; 32]);
    let good = actor.seal(&world, &Request::RelayJoin { link: LinkId([1; 16]), peer });
    let leg = world.new_leg();
    // Fewer than bring on cookies.
    for at in (0..good.len()).step_by(5) {
        let mut altered = good.to_vec();
        altered[at] ^= 1;
        let place = std::net::Ipv4Addr::from_bits(0x2d43_0000 + u32::try_from(at).unwrap());
        world.say_on_leg(leg, (place, 1).into(), altered.into());
        world.say_on_leg(leg, (place, 1).into(), good.slice(..at));
    }
    assert_eq!(world.operator.relayed().legs, 0);
    world.say_on_leg(leg, actor.address, good);
    assert_eq!(world.operator.relayed().legs, 1);
}
