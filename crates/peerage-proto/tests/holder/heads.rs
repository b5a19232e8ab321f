//! Heads passed on, attachments, and how fast a revocation is known to everybody.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use peerage_wire::id::Segment;
use peerage_wire::message::{Reply, Request, Submission, SuperNodeState};
use peerage_wire::record::{HeadBody, UnverifiedRecord};

use crate::world::{BLUE, GREEN, LENDERS, RED, World, operator_address};

const SECOND: Duration = Duration::from_secs(1);
const GET_HEAD: u8 = 23;

fn body(head: &Bytes) -> HeadBody {
    HeadBody::read(&UnverifiedRecord::parse(head).unwrap().trust_own_store()).unwrap()
}

fn attach(world: &mut World, member: SocketAddr, holder: SocketAddr) -> Option<Bytes> {
    match world.ask(member, holder, &Request::Attach)? {
        Reply::Attached { observed, head } => {
            assert_eq!(observed, member);
            head
        }
        other => panic!("{other:?}"),
    }
}

/// Rule 6.56: the first who asks waits a moment and gets it; later ones get what is there, and a fresher one once that is too old.
#[test]
fn the_head_of_a_domain_is_fetched_when_somebody_asks_and_what_there_is_has_become_old() {
    let mut world = World::new(60);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let member = world.member("192.0.2.7:7400", RED);
    world.run(200 * SECOND);
    world.operator.served.clear();
    for _ in 0..50 {
        let Some(Reply::Head(Some(head))) = world.ask(member, holder, &Request::GetHead { domain: None })
        else {
            panic!("no Head")
        };
        let made = UnverifiedRecord::parse(&head).unwrap().header().made_at();
        assert!(world.now.unix.since(made) <= 36 * SECOND);
        world.run(10 * SECOND);
    }
    let fetched = world.operator.served[&GET_HEAD];
    assert!((10..=40).contains(&fetched), "{fetched} in 500 s");
    // Nobody asks any more.
    world.operator.served.clear();
    world.run(600 * SECOND);
    let own = world.operator.served.get(&GET_HEAD).copied().unwrap_or(0);
    assert!(own <= 30, "{own}: what it asks for as a member of its own domain");
}

/// Rule 6.56: who is attached does not wait, and what he gets is good until he comes again.
#[test]
fn the_head_of_a_domain_is_kept_fresh_while_somebody_is_attached() {
    let mut world = World::new(68);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let member = world.member("192.0.2.7:7400", RED);
    attach(&mut world, member, holder).unwrap();
    world.operator.served.clear();
    for _ in 0..20 {
        world.run(25 * SECOND);
        let head = attach(&mut world, member, holder).unwrap();
        let made = UnverifiedRecord::parse(&head).unwrap().header().made_at();
        assert!(world.now.unix.since(made) <= 30 * SECOND, "25 s later it must be good still");
    }
    let fetched = world.operator.served[&GET_HEAD];
    assert!((18..=60).contains(&fetched), "{fetched} in 500 s");
}

/// Members of three domains that are attached, and attach again every 25 s for so long; each time their Head must be good until
/// the next.
fn attached_of_three_domains(world: &mut World, holder: SocketAddr, rounds: usize) -> [SocketAddr; 3] {
    let members = [(7, RED), (8, BLUE), (9, GREEN)]
        .map(|(n, domain)| world.member(&format!("192.0.2.{n}:7400"), domain));
    for round in 0..rounds {
        for (n, member) in members.iter().enumerate() {
            let head = attach(world, *member, holder).unwrap();
            let made = UnverifiedRecord::parse(&head).unwrap().header().made_at();
            assert!(world.now.unix.since(made) <= 30 * SECOND, "round {round}, member {n}");
            // They have not come at the same time.
            world.run(if round == 0 { 7 * SECOND } else { Duration::ZERO });
        }
        world.run(25 * SECOND);
    }
    members
}

/// Rules 4.11 and 6.56: what is kept fresh is fetched together, as much as fits into one answer.
#[test]
fn the_heads_of_several_domains_are_fetched_in_one_request() {
    let mut world = World::new(69);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    attached_of_three_domains(&mut world, holder, 25);
    let asked = world.operator.served[&GET_HEAD];
    let threes = world.operator.lists.iter().filter(|asked| **asked == 3).count();
    assert!((20..=40).contains(&threes) && asked <= 75, "{asked} in 625 s, and {threes} of them for three");
}

/// Rule 4.11: an operator that answers with the first alone is asked for the others one by one.
#[test]
fn heads_are_kept_fresh_with_an_operator_that_answers_one_at_a_time() {
    let mut world = World::new(70);
    world.operator.is_old = true;
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    attached_of_three_domains(&mut world, holder, 25);
    assert!(!world.operator.lists.is_empty());
}

/// Rule 6.57: also by a Head that came with others.
#[test]
fn a_revocation_is_found_out_in_one_of_several_heads() {
    let mut world = World::new(71);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let [_, blue, _] = attached_of_three_domains(&mut world, holder, 6);
    let bad = world.member("192.0.2.17:7400", BLUE);
    attach(&mut world, bad, holder).unwrap();
    let (id, lists) = (world.actors[&bad].id, world.operator.lists.len());
    world.revoke(id);
    world.run(30 * SECOND);
    assert!(world.operator.lists.len() > lists);
    assert!(world.actors[&blue].told.iter().any(|head| body(head).revocations.count == 1));
    assert_eq!(world.ask(bad, holder, &Request::Ping), None);
}

/// Rule 6.57: by Store and Notify, at once.
#[test]
fn a_revocation_reaches_every_attached_node_of_the_domain_at_once() {
    let mut world = World::new(61);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let addresses = (1..=40).map(|n| format!("192.0.2.{n}:7400"));
    let members: Vec<_> = addresses.map(|address| world.member(&address, RED)).collect();
    let stranger = world.member("192.0.3.1:7400", BLUE);
    for member in members.iter().chain([&stranger]) {
        assert!(attach(&mut world, *member, holder).is_some());
    }
    assert_eq!(world.status(holder).attached, 41);
    let bad = world.actors[&members[0]].id;
    let revocation = world.revoke(bad);
    world.run(SECOND / 2);
    world.push(holder, &[revocation]);
    world.notify(holder, RED);
    world.run(2 * SECOND);
    for member in &members[1..] {
        let told = &world.actors[member].told;
        assert!(told.iter().any(|head| body(head).revocations.count == 1), "{member}");
    }
    assert!(world.actors[&members[0]].told.is_empty(), "the revoked one is told nothing");
    assert!(world.actors[&stranger].told.is_empty(), "nor another domain");
}

/// Rule 6.57: without Store and Notify, by the Heads that the holder fetches, within a minute.
#[test]
fn a_revocation_of_which_the_holder_was_not_told_reaches_everybody_within_a_minute() {
    let mut world = World::new(62);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let (bad, good) = (world.member("192.0.2.7:7400", RED), world.member("192.0.2.8:7400", RED));
    for member in [bad, good] {
        attach(&mut world, member, holder).unwrap();
    }
    let id = world.actors[&bad].id;
    world.revoke(id);
    world.run(30 * SECOND);
    assert!(world.actors[&good].told.iter().any(|head| body(head).revocations.count == 1));
    // What the Head states and the holder lacked, it has fetched.
    assert_eq!(world.ask(bad, holder, &Request::Ping), None);
    let Some(Reply::Revocations(page)) = world.ask(good, holder, &Request::GetRevocations { after: None })
    else {
        panic!("silent")
    };
    assert_eq!(page.records.len(), 1);
}

/// Rule 6.56: a Head that states something else is news to those who wait; one that is only newer is not.
#[test]
fn attached_nodes_are_not_told_what_they_know() {
    let mut world = World::new(63);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let member = world.member("192.0.2.7:7400", RED);
    for _ in 0..8 {
        attach(&mut world, member, holder).unwrap();
        world.run(25 * SECOND);
    }
    assert!(world.actors[&member].told.is_empty());
    let device = world.register(RED, 0..1);
    world.push(holder, &device);
    world.run(20 * SECOND);
    assert_eq!(world.actors[&member].told.len(), 1);
}

/// Rule 4.3: an attachment is remembered for 75 s.
#[test]
fn who_does_not_attach_again_is_forgotten() {
    let mut world = World::new(64);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let member = world.member("192.0.2.7:7400", RED);
    attach(&mut world, member, holder).unwrap();
    world.run(140 * SECOND);
    assert_eq!(world.status(holder).attached, 0);
}

/// Rule 6.56: with no operator another holder's newer Head is better than an own old one; an older one changes nothing.
#[test]
fn without_an_operator_holders_help_each_other_out() {
    let mut world = World::new(65);
    let first = world.holder(1, LENDERS[0], Segment::ALL);
    let second = world.holder(2, LENDERS[1], Segment::ALL);
    let record = world.assign(second, Segment::ALL);
    world.push(first, &[record]);
    let member = world.member("192.0.2.7:7400", RED);
    let Some(Reply::Head(Some(head))) = world.ask(member, first, &Request::GetHead { domain: None }) else {
        panic!("no Head")
    };
    world.cut.insert(operator_address());
    world.run(120 * SECOND);
    let mut asked = None;
    for _ in 0..4 {
        asked = world.ask(member, second, &Request::GetHead { domain: None });
        world.run(10 * SECOND);
    }
    assert_eq!(asked, Some(Reply::Head(Some(head))));
}

/// Rule 6.56: of several operators one that is down, even the one that keeps the map, does not keep Heads from being fetched.
#[test]
fn heads_stay_fresh_while_the_operator_that_keeps_the_map_is_down() {
    let mut world = World::new(67);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let member = world.member("192.0.2.7:7400", RED);
    let (keeper, record) = world.second_operator("198.51.101.2:7400");
    world.somebody(keeper).answers = Some(|request, _| match request {
        Request::SubmitSuperNode(Submission { id, .. }) => {
            Some(Reply::SuperNodeSubmitted { id: *id, state: SuperNodeState::Assigned })
        }
        Request::GetHead { .. } => Some(Reply::Head(None)),
        _ => None,
    });
    world.push(holder, &[record]);
    world.operator.keeps_map = false;
    world.run(60 * SECOND);
    assert!(world.actors[&keeper].asked > 0);
    world.cut.insert(keeper);
    world.ask(member, holder, &Request::GetHead { domain: None });
    world.run(30 * SECOND);
    for _ in 0..40 {
        let Some(Reply::Head(Some(head))) = world.ask(member, holder, &Request::GetHead { domain: None })
        else {
            panic!("no Head")
        };
        let age = world.now.unix.since(UnverifiedRecord::parse(&head).unwrap().header().made_at());
        assert!(age < 40 * SECOND, "{age:?}");
        world.run(25 * SECOND);
    }
}

/// Nobody but the operator is believed about what is new, and nobody's Head of another domain is taken for one's own.
#[test]
fn a_member_cannot_notify_a_holder() {
    let mut world = World::new(66);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let (member, other) = (world.member("192.0.2.7:7400", RED), world.member("192.0.2.8:7400", RED));
    attach(&mut world, other, holder).unwrap();
    world.register(RED, 0..3);
    let head = world.operator.head(RED, world.now).bytes().clone();
    let id = peerage_wire::id::CommandId([1; 16]);
    assert_eq!(world.ask(member, holder, &Request::Notify { id, head }), None);
    assert!(world.actors[&other].told.is_empty());
}
