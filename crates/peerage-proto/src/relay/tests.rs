use super::*;

const DOMAIN: Domain = Domain(7);
const LIMITS: Limits = Limits { tunnels: 6, per_node: 3, per_domain: 4 };

fn node(n: u8) -> NodeId {
    NodeId::new(DOMAIN, &[n; 32])
}

fn foreign(domain: u32, n: u8) -> NodeId {
    NodeId::new(Domain(domain), &[n; 32])
}

fn link(n: u8) -> LinkId {
    LinkId([n; 16])
}

fn at(millis: u64) -> Instant {
    Instant::from_micros(millis * 1_000)
}

struct World {
    relay: Relay<LegId>,
    next: u64,
}

impl World {
    fn new() -> Self {
        Self { relay: Relay::new(LIMITS), next: 0 }
    }

    fn join(&mut self, from: NodeId, peer: NodeId, link: LinkId, millis: u64) -> LegId {
        self.next += 1;
        let leg = LegId(self.next);
        self.relay.join(leg, Join { from, peer, link }, leg, at(millis));
        leg
    }

    fn actions(&mut self) -> Vec<Action<LegId>> {
        let all: Vec<_> = std::iter::from_fn(|| self.relay.poll_action()).collect();
        for action in &all {
            match action {
                Action::Join(legs) => legs.iter().for_each(|(leg, ticket)| assert_eq!(leg, ticket)),
                Action::Refuse(leg, ticket, _) => assert_eq!(leg, ticket),
                Action::Close(_) => {}
            }
        }
        all
    }

    fn pair(&mut self, a: NodeId, b: NodeId, n: u8) -> [LegId; 2] {
        let legs = [self.join(a, b, link(n), 0), self.join(b, a, link(n), 0)];
        assert_eq!(self.actions(), [Action::Join(legs.map(|leg| (leg, leg)))]);
        legs
    }

    fn is_empty(&self) -> bool {
        let relay = &self.relay;
        let counts = relay.per_node.len() + relay.per_domain.len() + relay.joined;
        relay.tunnels.len() + relay.legs.len() + counts == 0
    }
}

fn refused(leg: LegId, why: RelayRefusal) -> Action<LegId> {
    Action::Refuse(leg, leg, why)
}

#[test]
fn two_legs_that_name_each_other_are_joined() {
    let mut world = World::new();
    world.pair(node(1), node(2), 1);
    assert_eq!((world.relay.tunnels(), world.relay.legs()), (1, 2));
}

#[test]
fn legs_that_do_not_name_each_other_are_never_joined_and_end_after_ten_seconds() {
    let mut world = World::new();
    let legs = [
        world.join(node(1), node(2), link(1), 0),
        world.join(node(3), node(1), link(1), 1),
        world.join(node(2), node(1), link(2), 2),
        world.join(node(2), node(3), link(1), 3),
    ];
    assert_eq!(world.actions(), []);
    world.relay.handle_timeout(at(9_999));
    assert_eq!((world.actions(), world.relay.poll_timeout()), (vec![], Some(at(10_000))));
    world.relay.handle_timeout(at(10_003));
    assert_eq!(world.actions(), legs.map(|leg| refused(leg, RelayRefusal::NoPeer)));
    assert!(world.is_empty());
    assert_eq!(world.relay.poll_timeout(), None);
}

#[test]
fn a_node_cannot_be_joined_with_itself() {
    let mut world = World::new();
    for _ in 0..2 {
        let leg = world.join(node(1), node(1), link(1), 0);
        assert_eq!(world.actions(), [refused(leg, RelayRefusal::Names)]);
    }
}

#[test]
fn nobody_is_joined_across_domains() {
    let mut world = World::new();
    let ends = [(node(1), foreign(8, 2)), (foreign(8, 2), node(1))];
    for (from, peer) in ends {
        let leg = world.join(from, peer, link(1), 0);
        assert_eq!(world.actions(), [refused(leg, RelayRefusal::Names)]);
    }
    assert!(world.is_empty());
}

#[test]
fn a_third_leg_is_refused_and_disturbs_nothing() {
    let mut world = World::new();
    world.pair(node(1), node(2), 1);
    for (from, peer) in [(node(1), node(2)), (node(2), node(1))] {
        let third = world.join(from, peer, link(1), 1);
        assert_eq!(world.actions(), [refused(third, RelayRefusal::Duplicate)]);
    }
    assert_eq!(world.relay.tunnels(), 1);
}

#[test]
fn whoever_dials_again_before_it_was_joined_is_joined_on_its_new_leg() {
    let mut world = World::new();
    let old = world.join(node(1), node(2), link(1), 0);
    let new = world.join(node(1), node(2), link(1), 9_000);
    assert_eq!(world.actions(), [refused(old, RelayRefusal::Duplicate)]);
    world.relay.handle_timeout(at(18_999));
    let other = world.join(node(2), node(1), link(1), 18_999);
    assert_eq!(world.actions(), [Action::Join([(new, new), (other, other)])]);
    world.relay.handle_timeout(at(60_000));
    assert_eq!(world.actions(), []);
}

#[test]
fn a_leg_that_asks_twice_is_ended() {
    let mut world = World::new();
    let leg = world.join(node(1), node(2), link(1), 0);
    world.relay.join(leg, Join { from: node(1), peer: node(3), link: link(2) }, leg, at(1));
    assert_eq!(world.actions(), [refused(leg, RelayRefusal::Duplicate)]);
    assert!(world.is_empty());
}

#[test]
fn with_one_leg_the_other_ends() {
    for first in [0, 1] {
        let mut world = World::new();
        let legs = world.pair(node(1), node(2), 1);
        world.relay.closed(legs[first]);
        assert_eq!(world.actions(), [Action::Close(legs[1 - first])]);
        world.relay.closed(legs[1 - first]);
        assert_eq!(world.actions(), []);
        assert!(world.is_empty());
    }
}

#[test]
fn a_leg_that_went_while_it_waited_is_not_joined_with_anybody() {
    let mut world = World::new();
    let gone = world.join(node(1), node(2), link(1), 0);
    world.relay.closed(gone);
    world.join(node(2), node(1), link(1), 1);
    assert_eq!(world.actions(), []);
    assert_eq!(world.relay.legs(), 1);
}

#[test]
fn one_node_has_its_quota_of_legs_and_waiting_ones_count() {
    let mut world = World::new();
    let first = world.join(node(1), node(2), link(0), 0);
    for n in 1..LIMITS.per_node {
        world.join(node(1), node(2), link(u8::try_from(n).unwrap()), 0);
    }
    assert_eq!(world.actions(), []);
    let beyond = world.join(node(1), node(3), link(9), 0);
    assert_eq!(world.actions(), [refused(beyond, RelayRefusal::NodeQuota)]);
    // Somebody who names it first cannot make it exceed its quota either.
    world.join(node(3), node(1), link(9), 0);
    let answer = world.join(node(1), node(3), link(9), 0);
    assert_eq!(world.actions(), [refused(answer, RelayRefusal::NodeQuota)]);
    world.relay.closed(first);
    world.join(node(1), node(3), link(9), 0);
    assert!(matches!(world.actions()[..], [Action::Join(_)]));
    assert_eq!(world.relay.take_refusals(), BTreeMap::from([(DOMAIN, 2)]));
    assert_eq!(world.relay.take_refusals(), BTreeMap::new());
}

#[test]
fn one_domain_has_its_quota_of_tunnels_and_leaves_room_for_others() {
    let mut world = World::new();
    for n in 0..4 {
        world.pair(node(2 * n), node(2 * n + 1), n);
    }
    let beyond = world.join(node(100), node(101), link(1), 0);
    assert_eq!(world.actions(), [refused(beyond, RelayRefusal::DomainQuota)]);
    world.pair(foreign(8, 1), foreign(8, 2), 1);
    world.pair(foreign(8, 1), foreign(8, 2), 2);
    let beyond = world.join(foreign(9, 1), foreign(9, 2), link(1), 0);
    assert_eq!(world.actions(), [refused(beyond, RelayRefusal::Full)]);
    assert_eq!(world.relay.take_refusals(), BTreeMap::from([(DOMAIN, 1)]));
}

/// Of the ways that a node tries at once one is used; the legs of the others wait for nobody.
#[test]
fn legs_that_wait_in_vain_take_no_place_of_a_tunnel() {
    let mut world = World { relay: Relay::new(Limits { tunnels: 1, ..LIMITS }), next: 0 };
    let vain = world.join(node(2), node(1), link(1), 0);
    let late = [world.join(node(1), node(3), link(2), 0), world.join(node(3), node(4), link(3), 0)];
    assert_eq!(world.actions(), []);
    world.pair(node(1), node(4), 4);
    // What comes when the place is taken is refused, and whoever waited for that is told.
    let first = world.join(node(3), node(1), link(2), 1);
    let full = |leg| refused(leg, RelayRefusal::Full);
    assert_eq!(world.actions(), [full(late[0]), full(first)]);
    let second = world.join(node(5), node(4), link(5), 1);
    assert_eq!(world.actions(), [full(second)]);
    world.relay.handle_timeout(at(10_000));
    assert_eq!(world.actions(), [vain, late[1]].map(|leg| refused(leg, RelayRefusal::NoPeer)));
    assert_eq!((world.relay.tunnels(), world.relay.legs()), (1, 2));
}

#[test]
fn the_legs_that_wait_at_a_relay_are_bounded() {
    let limits = Limits { tunnels: 1, per_node: 64, per_domain: 64 };
    let mut world = World { relay: Relay::new(limits), next: 0 };
    for n in 0..u8::try_from(MIN_WAITING).unwrap() {
        world.join(node(1), node(2), link(n), 0);
    }
    assert_eq!(world.actions(), []);
    let beyond = world.join(node(3), node(4), link(1), 0);
    assert_eq!(world.actions(), [refused(beyond, RelayRefusal::Full)]);
}

#[test]
fn legs_of_the_revoked_are_ended_with_their_partners() {
    let mut world = World::new();
    let revoked = node(1);
    let joined = world.pair(revoked, node(2), 1);
    let waiting = world.join(revoked, node(3), link(2), 0);
    world.pair(node(4), node(5), 3);
    world.relay.review(|node| *node != revoked);
    let mut closed = Vec::new();
    for action in world.actions() {
        match action {
            Action::Close(leg) => closed.push(leg),
            other @ (Action::Join(_) | Action::Refuse(..)) => {
                assert_eq!(other, refused(waiting, RelayRefusal::Membership));
            }
        }
    }
    closed.sort();
    assert_eq!(closed, joined);
    assert_eq!((world.relay.tunnels(), world.relay.legs()), (1, 2));
}

/// Whatever happens in whatever order, the counts are those of what is there.
#[test]
fn the_counts_hold_after_any_sequence() {
    for seed in 0..200_u64 {
        let mut world = World::new();
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut draw = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % below as u64).unwrap()
        };
        let mut alive = std::collections::BTreeSet::new();
        for step in 0..200_u64 {
            let byte = |n: usize| u8::try_from(n).unwrap();
            let of = |n: usize| if n < 4 { node(byte(n)) } else { foreign(8, byte(n)) };
            match draw(10) {
                0..=5 => {
                    let (from, peer) = (of(draw(7)), of(draw(7)));
                    alive.insert(world.join(from, peer, link(byte(draw(3))), step * 300));
                }
                6..=7 => {
                    if let Some(leg) = alive.iter().nth(draw(alive.len() + 1)).copied() {
                        alive.remove(&leg);
                        world.relay.closed(leg);
                    }
                }
                8 => world.relay.handle_timeout(at(step * 300)),
                _ => {
                    let gone = of(draw(7));
                    world.relay.review(|node| *node != gone);
                }
            }
            for action in world.actions() {
                match action {
                    Action::Join(legs) => legs.iter().for_each(|(leg, _)| assert!(alive.contains(leg))),
                    Action::Refuse(leg, ..) | Action::Close(leg) => {
                        alive.remove(&leg);
                    }
                }
            }
            let relay = &world.relay;
            assert!(relay.legs.keys().eq(alive.iter()), "seed {seed}, step {step}");
            let legs = relay.tunnels.values().map(|t| if matches!(t, Tunnel::Joined(_)) { 2 } else { 1 });
            assert_eq!(legs.sum::<usize>(), relay.legs.len());
            assert_eq!(relay.per_node.values().sum::<u32>() as usize, relay.legs.len());
            assert_eq!(relay.per_domain.values().sum::<u32>() as usize, relay.tunnels.len());
            assert!(relay.joined <= LIMITS.tunnels);
            assert!(relay.tunnels.len() - relay.joined <= MIN_WAITING);
            assert!(relay.per_node.values().all(|count| *count <= LIMITS.per_node));
        }
    }
}
