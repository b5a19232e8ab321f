//! Members that claim what they are not, and what others ask about them.

use std::time::Duration;

use bytes::Bytes;
use peerage_proto::discard::Discard;
use peerage_proto::operator::Output;
use peerage_wire::crypto::Real;
use peerage_wire::id::{
    CommandId, DeviceId, Domain, LocationId, NetworkId, NodeId, RecordKey, Segment, SessionId,
};
use peerage_wire::intro::KeyStatement;
use peerage_wire::keys::{AgreementKey, IdentityKey};
use peerage_wire::message::{Reply, Request, TunnelRequest};
use peerage_wire::record::{
    Draft, HeadBody, Header, NodeBody, NodeInfoPublic, OperatorBody, OperatorState, Record, Roles, Table,
};

use crate::actor::{Actor, TUNNEL, USER_ONLY, node_state, operator_state};
use crate::support::{DOMAIN, World, device, office};

const HERE: &str = "45.66.6.6:6666";
const OTHER: Domain = Domain(0x0bad_cafe);

/// A NodeInfo of `subject`, signed by whoever.
fn node_info(
    world: &World,
    subject: NodeId,
    by: (&IdentityKey, NodeId),
    change: impl FnOnce(&mut Header),
) -> Bytes {
    let time = world.now.unix;
    let key = *AgreementKey::from_secret([9; 32]).public();
    let validity = time.before(Duration::from_secs(60))..time.after(Duration::from_secs(3_600));
    let statement = KeyStatement::sign(by.0, &world.network, subject, key, validity, &Real);
    let public = NodeInfoPublic { statement, tags: vec![], addresses: vec![] };
    let mut header = Header {
        table: Table::NodeInfo,
        domain: subject.domain,
        key: subject.record_key(),
        version: time.as_millis(),
        expires: time.after(Duration::from_secs(600)),
        signer: by.1,
        removed: false,
    };
    change(&mut header);
    let draft = Draft { header, public: public.write(), private: None };
    draft.sign(by.0, &world.network, &Real).unwrap().bytes().clone()
}

fn stores(world: &mut World, actor: &mut Actor, record: &Bytes) -> bool {
    let before = operator_state(world);
    let stored = actor.ask(world, &Request::Store(record.clone())).is_some();
    assert_eq!(
        operator_state(world) != before,
        stored || before.is_empty(),
        "silence and no effect go together"
    );
    stored
}

/// Rules 2.9 and 4.5: a member announces itself, and nobody else.
#[test]
fn a_member_cannot_announce_another_node() {
    let mut world = World::new(40);
    let mut actor = Actor::admitted(&mut world, HERE, DOMAIN, TUNNEL);
    let other = Actor::admitted(&mut world, "45.66.6.7:1", DOMAIN, TUNNEL);
    assert!(actor.ask(&mut world, &Request::Ping).is_some());
    let (me, own) = (actor.id, actor.identity.clone());
    let genuine = node_info(&world, me, (&own, me), |_| {});
    let of_other = node_info(&world, other.id, (&other.identity, other.id), |_| {});
    let forged = node_info(&world, other.id, (&own, me), |_| {});
    let stolen = node_info(&world, me, (&other.identity, other.id), |_| {});
    let same_key_elsewhere = NodeId { domain: OTHER, ..me };
    let elsewhere = node_info(&world, same_key_elsewhere, (&own, same_key_elsewhere), |_| {});
    for record in [of_other, forged, stolen, elsewhere] {
        assert!(!stores(&mut world, &mut actor, &record));
    }
    assert!(actor.ask(&mut world, &Request::Store(genuine)).is_some());
}

/// Rule 2.7: neither expired, nor from the future, nor for longer than its table allows.
#[test]
fn a_record_outside_its_time_is_not_stored() {
    let mut world = World::new(41);
    let mut actor = Actor::admitted(&mut world, HERE, DOMAIN, TUNNEL);
    assert!(actor.ask(&mut world, &Request::Ping).is_some());
    let (me, own, time) = (actor.id, actor.identity.clone(), world.now.unix);
    let changes: [&dyn Fn(&mut Header); 4] = [
        &|header| header.expires = time,
        &|header| header.expires = time.after(Duration::from_secs(601)),
        &|header| header.version = time.after(Duration::from_secs(121)).as_millis(),
        &|header| header.version = u64::MAX,
    ];
    for change in changes {
        let record = node_info(&world, me, (&own, me), change);
        assert!(!stores(&mut world, &mut actor, &record));
    }
    assert_eq!(world.operator.discards().of(Discard::BadRecord), 4);
}

/// Rules 2.20 and 2.21: an older record than the newest seen is answered with that version, a tombstone counts as one.
#[test]
fn a_record_that_was_rolled_back_is_answered_with_the_newer_version() {
    let mut world = World::new(42);
    let mut actor = Actor::admitted(&mut world, HERE, DOMAIN, TUNNEL);
    let (me, own) = (actor.id, actor.identity.clone());
    let older = node_info(&world, me, (&own, me), |_| {});
    world.run(Duration::from_secs(1));
    let tombstone = node_info(&world, me, (&own, me), |header| header.removed = true);
    let version = world.now.unix.as_millis();
    for record in [tombstone, older] {
        let reply = actor.ask(&mut world, &Request::Store(record));
        let expected = Reply::Stored { table: Table::NodeInfo, key: me.record_key(), version };
        assert_eq!(reply, Some(expected));
    }
}

/// Rule 4.3: a Store is for what a member owns; what operators sign comes from their ledger.
#[test]
fn operator_signed_records_are_not_taken_from_members() {
    let mut world = World::new(43);
    let mut actor = Actor::admitted(&mut world, HERE, DOMAIN, TUNNEL);
    assert!(actor.ask(&mut world, &Request::Ping).is_some());
    let records: Vec<_> = world.ledger.values().map(|record| record.bytes().clone()).collect();
    for record in records {
        assert!(!stores(&mut world, &mut actor, &record));
    }
}

fn node_record(
    world: &World,
    identity: &IdentityKey,
    by: (&IdentityKey, NetworkId),
    change: impl FnOnce(&mut Header),
) -> Record {
    let time = world.now.unix;
    let id = identity.node_id(DOMAIN);
    let mut header = Header {
        table: Table::Node,
        domain: DOMAIN,
        key: id.record_key(),
        version: time.as_millis(),
        expires: time.after(Duration::from_secs(86_400)),
        signer: by.0.node_id(Domain::OPERATORS),
        removed: false,
    };
    change(&mut header);
    let body = NodeBody { identity: identity.public(), receiving: [1; 32], roles: TUNNEL };
    Draft { header, public: body.write(), private: None }.sign(by.0, &by.1, &Real).unwrap()
}

/// Rules 2.9 and 3.7: only what an operator of this network has signed, for now, makes a member.
#[test]
fn nobody_gets_in_with_a_record_that_is_not_an_operators() {
    let mut world = World::new(44);
    let me = IdentityKey::generate(&mut world.rng);
    let stranger = IdentityKey::generate(&mut world.rng);
    let (root, operator, network) = (world.root.clone(), world.operator_identity.clone(), world.network);
    let time = world.now.unix;
    let month = Duration::from_secs(30 * 86_400);
    let records = [
        node_record(&world, &me, (&stranger, network), |_| {}),
        node_record(&world, &me, (&root, network), |_| {}),
        node_record(&world, &me, (&me, network), |_| {}),
        node_record(&world, &me, (&operator, NetworkId([3; 32])), |_| {}),
        node_record(&world, &me, (&operator, network), |header| header.expires = time),
        node_record(&world, &me, (&operator, network), |header| header.expires = time.after(month * 2)),
        node_record(&world, &me, (&operator, network), |header| {
            header.version = time.after(Duration::from_secs(3_600)).as_millis();
        }),
        node_record(&world, &me, (&operator, network), |header| header.removed = true),
    ];
    for (n, record) in records.into_iter().enumerate() {
        let mut actor = Actor::with_record(&mut world, &format!("45.66.7.{n}:1"), me.clone(), record);
        let before = operator_state(&world);
        assert_eq!(actor.ask(&mut world, &Request::Ping), None, "record {n}");
        assert_eq!(operator_state(&world), before, "record {n}");
    }
    let genuine = node_record(&world, &me, (&operator, network), |_| {});
    let mut actor = Actor::with_record(&mut world, HERE, me, genuine);
    assert!(actor.ask(&mut world, &Request::Ping).is_some());
}

/// Makes the network know a second operator in some state, as the root says.
fn second_operator(world: &mut World, identity: &IdentityKey, state: OperatorState, life: Duration) {
    let id = identity.node_id(Domain::OPERATORS);
    let body = OperatorBody { identity: identity.public(), enrolment: [1; 32], addresses: vec![], state };
    let header = Header {
        table: Table::OperatorNode,
        domain: Domain::OPERATORS,
        key: id.record_key(),
        version: world.now.unix.as_millis(),
        expires: world.now.unix.after(life),
        signer: world.root.node_id(Domain::OPERATORS),
        removed: false,
    };
    let draft = Draft { header, public: body.write(), private: None };
    let record = draft.sign(&world.root, &world.network, &Real).unwrap();
    world.commit(vec![record]);
}

/// Whether the network takes in somebody whom that operator has just signed.
fn is_taken_in(world: &mut World, operator: &IdentityKey) -> bool {
    let me = IdentityKey::generate(&mut world.rng);
    let record = node_record(world, &me, (operator, world.network), |_| {});
    let port = 1_000 + world.log.len() % 60_000;
    let mut actor = Actor::with_record(world, &format!("45.66.8.1:{port}"), me, record);
    actor.ask(world, &Request::Ping).is_some()
}

/// Rules 2.9 and 2.15: what an operator signed before its retirement stays valid, what it signs afterwards is nothing;
/// of a compromised one everything is void, and of one whose own record has expired too.
#[test]
fn a_retired_compromised_or_expired_operator_makes_no_members() {
    let mut world = World::new(45);
    let second = IdentityKey::generate(&mut world.rng);
    assert!(!is_taken_in(&mut world, &second), "not known yet");
    let day = Duration::from_secs(86_400);
    second_operator(&mut world, &second, OperatorState::Active, day);
    assert!(is_taken_in(&mut world, &second));
    let early = IdentityKey::generate(&mut world.rng);
    let before = node_record(&world, &early, (&second, world.network), |_| {});
    world.run(Duration::from_secs(1));
    second_operator(&mut world, &second, OperatorState::Retired, day);
    world.run(Duration::from_secs(1));
    assert!(!is_taken_in(&mut world, &second), "signed after the retirement");
    let mut actor = Actor::with_record(&mut world, HERE, early.clone(), before);
    assert!(actor.ask(&mut world, &Request::Ping).is_some(), "signed before the retirement");
    second_operator(&mut world, &second, OperatorState::Compromised, day);
    let before = node_record(&world, &early, (&second, world.network), |header| header.version -= 3_000);
    let mut actor = Actor::with_record(&mut world, "45.66.6.8:1", early, before);
    assert_eq!(actor.ask(&mut world, &Request::Ping), None, "compromised");
    let third = IdentityKey::generate(&mut world.rng);
    second_operator(&mut world, &third, OperatorState::Active, Duration::from_secs(30));
    assert!(is_taken_in(&mut world, &third));
    world.run(Duration::from_secs(31));
    assert!(!is_taken_in(&mut world, &third), "its own record has expired");
}

/// Rule 4.5: about another domain nobody learns anything, not even that there is nothing.
#[test]
fn a_member_learns_nothing_about_another_domain() {
    let (mut world, site, _) = office(46);
    let mut actor = Actor::admitted(&mut world, HERE, OTHER, TUNNEL);
    let site_id = world.host(site).id;
    assert_eq!(actor.ask(&mut world, &Request::GetNode(site_id)), None);
    assert_eq!(actor.ask(&mut world, &Request::GetNodeInfo(site_id)), None);
    assert_eq!(world.operator.discards().of(Discard::Forbidden), 2);
    let tags: Vec<_> = world.ledger.keys().map(|_| peerage_wire::id::LookupTag([0; 16])).take(1).collect();
    let own_info =
        world.host(site).stored.iter().rev().find(|r| r.header().table == Table::NodeInfo).cloned().unwrap();
    let found = NodeInfoPublic::read(&own_info).unwrap().tags;
    for request in [
        Request::GetTunnelNodes { tags: found, after: None },
        Request::GetTunnelNodes { tags, after: None },
        Request::GetDevices { after: None, range: Segment::ALL },
        Request::GetRevocations { after: None },
    ] {
        let reply = actor.ask(&mut world, &request).expect("about its own domain it may ask");
        let empty = match reply {
            Reply::TunnelNodes(page) | Reply::Devices(page) | Reply::Revocations(page) => {
                page.records.is_empty()
            }
            other => panic!("{other:?}"),
        };
        assert!(empty);
    }
    assert_eq!(actor.ask(&mut world, &Request::GetHead { domain: None }), Some(Reply::Head(None)));
    let own = Request::GetNode(actor.id);
    assert!(matches!(actor.ask(&mut world, &own), Some(Reply::Node(Some(_)))));
}

/// Rule 4.3: operators are asked for operators' things, nodes for nodes', and by those who may.
#[test]
fn commands_of_another_role_are_dropped() {
    let (mut world, site, _) = office(47);
    let mut actor = Actor::admitted(&mut world, HERE, DOMAIN, TUNNEL);
    let id = CommandId([6; 16]);
    let head = actor.ask(&mut world, &Request::GetHead { domain: None });
    let Some(Reply::Head(Some(head))) = head else { panic!("{head:?}") };
    let to_operator = [Request::Notify { id, head: head.clone() }, tunnel_request(device())];
    for request in to_operator {
        assert_eq!(actor.ask(&mut world, &request), None);
    }
    assert_eq!(world.operator.discards().of(Discard::UnknownCommand), 2);
    let before = node_state(&mut world, site);
    let to_node = [
        Request::Notify { id, head: head.clone() },
        Request::GetHead { domain: None },
        Request::GetDevices { after: None, range: Segment::ALL },
        Request::GetDomainKey,
        Request::Store(head),
        Request::Attach,
        Request::Leave(id),
        Request::DeviceSeen { id, key: RecordKey([1; 32]), location: LocationId([1; 32]) },
    ];
    for request in to_node {
        assert_eq!(actor.ask_host(&mut world, site, &request), None, "{request:?}");
    }
    assert_eq!(node_state(&mut world, site), before);
    assert!(actor.ask_host(&mut world, site, &Request::Ping).is_some());
}

fn tunnel_request(device: DeviceId) -> Request {
    let id = SessionId([1; 16]);
    Request::TunnelRequest(TunnelRequest {
        id,
        device,
        service: "ipp".to_owned(),
        candidates: vec![],
        relay: None,
        hello: None,
    })
}

/// Rule 4.3: a node tells members of another domain neither where it is nor that it is there; rule 6.17 likewise.
#[test]
fn a_node_says_nothing_to_members_of_another_domain() {
    let (mut world, site, _) = office(48);
    let mut foreign = Actor::admitted(&mut world, HERE, OTHER, TUNNEL);
    assert_eq!(foreign.ask_host(&mut world, site, &Request::Ping), None);
    assert_eq!(foreign.ask_host(&mut world, site, &tunnel_request(device())), None);
    let mut own = Actor::admitted(&mut world, "45.66.6.9:1", DOMAIN, USER_ONLY);
    let reply = own.ask_host(&mut world, site, &tunnel_request(device()));
    assert!(matches!(reply, Some(Reply::TunnelOpened { .. })));
    assert_eq!(own.ask_host(&mut world, site, &tunnel_request(DeviceId([8; 32]))), None);
}

/// Rules 4.3 and 6.10: who may not be a tunnel-node is neither attached nor heard about devices.
#[test]
fn without_the_tunnel_role_nobody_attaches_or_reports_devices() {
    let mut world = World::new(49);
    let mut actor = Actor::admitted(&mut world, HERE, DOMAIN, USER_ONLY);
    let seen = Request::DeviceSeen {
        id: CommandId([1; 16]),
        key: RecordKey([1; 32]),
        location: LocationId([1; 32]),
    };
    assert_eq!(actor.ask(&mut world, &seen), None);
    assert_eq!(actor.ask(&mut world, &Request::Attach), None);
    assert_eq!(world.operator.discards().of(Discard::Forbidden), 2);
    assert!(world.told.is_empty());
    // Leaving is everybody's right.
    let id = CommandId([2; 16]);
    assert_eq!(actor.ask(&mut world, &Request::Leave(id)), Some(Reply::Left(id)));
    assert_eq!(world.told, [Output::Left { id, node: actor.id }]);
}

/// Rule 2.21: the ledger's word counts, not the older record that a member still has.
#[test]
fn a_member_that_has_left_is_not_served_with_its_old_record() {
    let mut world = World::new(50);
    let mut actor = Actor::admitted(&mut world, HERE, DOMAIN, TUNNEL);
    assert!(actor.ask(&mut world, &Request::GetHead { domain: None }).is_some());
    let id = CommandId([2; 16]);
    assert_eq!(actor.ask(&mut world, &Request::Leave(id)), Some(Reply::Left(id)));
    let me = actor.id;
    let tombstone = world.sign(Table::Node, DOMAIN, me.record_key(), |mut draft| {
        draft.header.removed = true;
        draft
    });
    world.commit(vec![tombstone]);
    assert_eq!(actor.ask(&mut world, &Request::GetHead { domain: None }), None);
    assert_eq!(actor.ask(&mut world, &Request::GetDevices { after: None, range: Segment::ALL }), None);
    assert_eq!(
        actor.ask(&mut world, &Request::Leave(id)),
        Some(Reply::Left(id)),
        "told again that it is done"
    );
    let mut again =
        Actor::with_record(&mut world, "45.66.6.6:7", actor.identity.clone(), actor.record.clone());
    assert_eq!(again.ask(&mut world, &Request::GetHead { domain: None }), None);
}

/// Rule 2.21: a role that was taken away is gone, though the record that granted it has not expired.
#[test]
fn an_older_record_with_more_roles_does_not_bring_them_back() {
    let mut world = World::new(51);
    let mut actor = Actor::admitted(&mut world, HERE, DOMAIN, TUNNEL);
    assert!(actor.ask(&mut world, &Request::Attach).is_some());
    let body = NodeBody { identity: actor.identity.public(), receiving: [1; 32], roles: Roles::default() };
    let key = actor.id.record_key();
    let record = world.sign(Table::Node, DOMAIN, key, |d| Draft { public: body.write(), ..d });
    world.commit(vec![record]);
    assert_eq!(actor.ask(&mut world, &Request::Attach), None);
}

/// Rules 3.8 and 6.21: who was revoked gets no answer, in an old context or a new one.
#[test]
fn a_revoked_member_is_not_answered() {
    let (mut world, site, _) = office(52);
    let mut actor = Actor::admitted(&mut world, HERE, DOMAIN, TUNNEL);
    assert!(actor.ask(&mut world, &Request::Ping).is_some());
    assert!(actor.ask_host(&mut world, site, &Request::Ping).is_some());
    world.revoke(actor.id);
    world.run(Duration::from_secs(5));
    assert_eq!(actor.ask(&mut world, &Request::Ping), None);
    assert_eq!(actor.ask_host(&mut world, site, &Request::Ping), None);
    let mut again =
        Actor::with_record(&mut world, "45.66.6.6:7", actor.identity.clone(), actor.record.clone());
    assert_eq!(again.ask(&mut world, &Request::Ping), None);
    let now = world.now;
    assert!(world.operator.discards().of(Discard::Revoked) >= 2);
    assert!(world.host(site).node.status(now).discards.of(Discard::Revoked) >= 1);
}

/// Rule 3.5: a clock that was set back dates the new key before the old one, and the member is understood all the same.
#[test]
fn a_member_whose_clock_was_set_back_just_after_its_start_is_not_locked_out() {
    let (mut world, _, user) = office(53);
    world.step_clock(user, 40_000);
    world.restart(user);
    let task = world.command(user, peerage_proto::node::Command::RefreshDevices);
    world.await_answer(user, task);
    world.run(Duration::from_secs(2));
    world.step_clock(user, -40_000);
    let task = world.command(user, peerage_proto::node::Command::RefreshDevices);
    assert_eq!(world.await_answer(user, task), peerage_proto::node::Answer::Refreshed);
    world.restart(user);
    let task = world.command(user, peerage_proto::node::Command::RefreshDevices);
    assert_eq!(world.await_answer(user, task), peerage_proto::node::Answer::Refreshed);
}

/// Rule 6.20: Heads of other domains, retired signers and old times are told from the true one by every reader.
#[test]
fn a_head_says_what_the_ledger_holds() {
    let (mut world, _, _) = office(54);
    let mut actor = Actor::admitted(&mut world, HERE, DOMAIN, TUNNEL);
    let head = |world: &mut World, actor: &mut Actor| {
        let Some(Reply::Head(Some(bytes))) = actor.ask(world, &Request::GetHead { domain: None }) else {
            panic!("no Head")
        };
        let record = actor.trust.verify(&bytes, Some(world.now.unix), &Real).unwrap();
        (record.header().version, HeadBody::read(&record).unwrap())
    };
    let (first, body) = head(&mut world, &mut actor);
    assert_eq!((body.devices.count, body.operators.count, body.revocations.count), (1, 1, 0));
    world.run(Duration::from_secs(3));
    assert_eq!(head(&mut world, &mut actor).0, first, "the same for 5 s");
    world.run(Duration::from_secs(3));
    assert!(head(&mut world, &mut actor).0 > first);
    world.remove_device(&device());
    let (_, body) = head(&mut world, &mut actor);
    assert_eq!(body.devices.count, 1, "a tombstone counts");
    let stranger = NodeId { domain: DOMAIN, hash: [7; 32] };
    world.revoke(stranger);
    let (_, body) = head(&mut world, &mut actor);
    assert_eq!((body.revocations.count, body.epoch), (1, 2));
}
