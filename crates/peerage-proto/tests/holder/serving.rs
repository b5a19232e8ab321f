//! What a holder answers, to whom, and what it takes.

use std::time::Duration;

use peerage_wire::id::{LookupTag, NodeId, PlacementKey, Segment};
use peerage_wire::keys::IdentityKey;
use peerage_wire::limits::MAX_LIST;
use peerage_wire::message::{RefusedReason, Reply, Request};
use peerage_wire::record::{Record, Roles, Table};

use crate::world::{BLUE, LENDER, LENDERS, MEMBER, RED, World};

const SECOND: Duration = Duration::from_secs(1);

/// The places of [`RED`] alone.
fn red_only() -> Segment {
    Segment::of_domain(RED)
}

/// Rule 4.5: a super-node of one organisation answers the members of another.
#[test]
fn members_of_a_foreign_domain_find_everything_that_a_look_up_needs() {
    let mut world = World::new(20);
    world.register(RED, 0..40);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let member = world.member("192.0.2.7:7400", RED);
    let id = world.actors[&member].id;
    let record = world.actors[&member].record.clone();
    world.push(holder, std::slice::from_ref(&record));
    assert_eq!(world.devices_told(member, holder), Some(40));
    assert_eq!(
        world.ask(member, holder, &Request::GetNode(id)),
        Some(Reply::Node(Some(record.bytes().clone())))
    );
    let Some(Reply::Head(Some(head))) = world.ask(member, holder, &Request::GetHead { domain: None }) else {
        panic!("no Head")
    };
    assert_eq!(head, *world.operator.head(RED, world.now).bytes());
    let Some(Reply::SuperNodes(page)) =
        world.ask(member, holder, &Request::GetSuperNodes { key: None, after: None })
    else {
        panic!("no super-nodes")
    };
    assert_eq!(page.records.len(), 1);
    let Some(Reply::Revocations(page)) = world.ask(member, holder, &Request::GetRevocations { after: None })
    else {
        panic!("no revocations")
    };
    assert!(page.records.is_empty());
    let pinged = world.ask(member, holder, &Request::Ping);
    assert_eq!(pinged, Some(Reply::Reping { observed: member }));
    assert!(world.status(holder).served >= 8);
}

/// Rules 6.6 and 6.55: what a member announces is found under its tags by its own domain.
#[test]
fn an_announcement_is_kept_and_found_by_its_tags() {
    let mut world = World::new(21);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let member = world.member("192.0.2.7:7400", RED);
    let tag = LookupTag([7; 16]);
    let info = world.info(member, &[tag]);
    let stored = world.ask(member, holder, &Request::Store(info.bytes().clone()));
    let header = *info.header();
    assert_eq!(
        stored,
        Some(Reply::Stored { table: Table::NodeInfo, key: header.key, version: header.version })
    );
    let request = Request::GetTunnelNodes { tags: vec![tag], after: None };
    let Some(Reply::TunnelNodes(page)) = world.ask(member, holder, &request) else { panic!("no answer") };
    assert_eq!(page.records, [info.bytes().clone()]);
    let other = world.member("192.0.2.8:7400", BLUE);
    let Some(Reply::TunnelNodes(page)) = world.ask(other, holder, &request) else { panic!("no answer") };
    assert!(page.records.is_empty(), "tags of another domain are other tags");
    assert_eq!(world.on_disk(holder, Table::NodeInfo, RED), 0, "announcements are kept in memory");
    // One that is older is answered with the version that is held (Rule 6.6).
    world.run(10 * SECOND);
    let newer = world.info(member, &[tag]);
    world.ask(member, holder, &Request::Store(newer.bytes().clone())).unwrap();
    let held = world.ask(member, holder, &Request::Store(info.bytes().clone()));
    let version = newer.header().version;
    assert_eq!(held, Some(Reply::Stored { table: Table::NodeInfo, key: header.key, version }));
}

/// Rule 4.5: what is not held is not answered, nor who is nobody's member.
#[test]
fn a_holder_is_silent_out_of_its_range_and_to_strangers() {
    let mut world = World::new(22);
    world.register(RED, 0..5);
    world.register(BLUE, 0..5);
    let holder = world.holder(1, LENDERS[0], red_only());
    let (red, blue) = (world.member("192.0.2.7:7400", RED), world.member("192.0.2.8:7400", BLUE));
    assert_eq!(world.devices_told(red, holder), Some(5));
    assert_eq!(world.devices_told(blue, holder), None);
    for request in [
        Request::GetRevocations { after: None },
        Request::GetHead { domain: None },
        Request::GetHead { domain: Some(RED) },
        Request::Attach,
        Request::GetDomainKey,
        Request::GetTunnelNodes { tags: vec![LookupTag([1; 16])], after: None },
        Request::TransferPartition { table: Table::EndDevice, range: red_only(), after: None },
    ] {
        assert_eq!(world.ask(blue, holder, &request), None, "{request:?}");
    }
    let info = world.info(blue, &[]);
    assert_eq!(world.ask(blue, holder, &Request::Store(info.bytes().clone())), None);
    // Whom nobody admitted is not even told that this is a super-node.
    let identity = IdentityKey::generate(&mut world.rng);
    let forged = forged_membership(&mut world, &identity);
    let stranger = world.actor("192.0.2.9:7400", identity, forged);
    assert_eq!(world.ask(stranger, holder, &Request::Ping), None);
}

/// Signs a membership with a key of somebody's own.
fn forged_membership(world: &mut World, identity: &IdentityKey) -> Record {
    let genuine = world.admit(RED, MEMBER).2[0].clone();
    let body =
        peerage_wire::record::NodeBody { identity: identity.public(), receiving: [1; 32], roles: MEMBER };
    let id = identity.node_id(RED);
    let header = peerage_wire::record::Header { key: id.record_key(), signer: id, ..*genuine.header() };
    let draft = peerage_wire::record::Draft { header, public: body.write(), private: None };
    draft.sign(identity, &world.network, &peerage_wire::crypto::Real).unwrap()
}

/// Rule 4.5: who holds the same places may have everything of them, and nothing beyond.
#[test]
fn another_holder_gets_its_own_range_and_no_more() {
    let mut world = World::new(23);
    world.register(RED, 0..5);
    world.register(BLUE, 0..5);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let (identity, _, [node, _]) = world.admit(LENDERS[1], LENDER);
    let (id, key) = (identity.node_id(LENDERS[1]), identity.public());
    let fellow = world.actor("192.0.2.30:7400", identity, node);
    let request = |range| Request::TransferPartition { table: Table::EndDevice, range, after: None };
    assert_eq!(world.ask(fellow, holder, &request(red_only())), None, "it holds nothing");
    let record = world.assign_node(id, key, fellow, red_only());
    world.push(holder, &[record]);
    let Some(Reply::Partition(page)) = world.ask(fellow, holder, &request(red_only())) else {
        panic!("silent")
    };
    assert_eq!(page.records.len(), 5);
    assert_eq!(world.ask(fellow, holder, &request(Segment::ALL)), None);
    assert_eq!(world.ask(fellow, holder, &request(Segment::of_domain(BLUE))), None);
    assert!(matches!(
        world.ask(fellow, holder, &Request::GetHead { domain: Some(RED) }),
        Some(Reply::Head(_))
    ));
    assert_eq!(world.ask(fellow, holder, &Request::GetHead { domain: Some(BLUE) }), None);
}

/// Rule 6.55: only its owner stores a NodeInfo; only operators and holders what operators signed.
#[test]
fn what_somebody_may_not_store_is_dropped() {
    let mut world = World::new(24);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let (red, other) = (world.member("192.0.2.7:7400", RED), world.member("192.0.2.8:7400", RED));
    let info = world.info(red, &[]);
    assert_eq!(world.ask(other, holder, &Request::Store(info.bytes().clone())), None);
    let device = world.register(RED, 0..1).remove(0);
    assert_eq!(world.ask(red, holder, &Request::Store(device.bytes().clone())), None);
    let mut altered = info.bytes().to_vec();
    let last = altered.len() - 1;
    altered[last] ^= 1;
    assert_eq!(world.ask(red, holder, &Request::Store(altered.into())), None);
    assert_eq!(world.ask(red, holder, &Request::Store(vec![0xff; 40].into())), None);
    assert!(world.status(holder).refusals >= 2, "bad records are counted");
    // Another holder may: nothing has to be believed about it.
    let (identity, _, [node, _]) = world.admit(LENDERS[1], LENDER);
    let (id, key) = (identity.node_id(LENDERS[1]), identity.public());
    let fellow = world.actor("192.0.2.30:7400", identity, node);
    let record = world.assign_node(id, key, fellow, red_only());
    world.push(holder, &[record]);
    assert!(world.ask(fellow, holder, &Request::Store(device.bytes().clone())).is_some());
}

/// Rule 6.57: who was revoked is not answered any more, and what it announced is gone.
#[test]
fn a_revoked_member_is_forgotten_at_once() {
    let mut world = World::new(25);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let (bad, good) = (world.member("192.0.2.7:7400", RED), world.member("192.0.2.8:7400", RED));
    let tag = LookupTag([7; 16]);
    let info = world.info(bad, &[tag]);
    world.ask(bad, holder, &Request::Store(info.bytes().clone())).unwrap();
    assert!(world.ask(bad, holder, &Request::Attach).is_some());
    assert_eq!(world.status(holder).attached, 1);
    let id = world.actors[&bad].id;
    let revocation = world.revoke(id);
    world.push(holder, &[revocation]);
    assert_eq!(world.ask(bad, holder, &Request::Ping), None);
    assert_eq!(world.status(holder).attached, 0);
    let request = Request::GetTunnelNodes { tags: vec![tag], after: None };
    let Some(Reply::TunnelNodes(page)) = world.ask(good, holder, &request) else { panic!("silent") };
    assert!(page.records.is_empty());
    assert_eq!(world.on_disk(holder, Table::Revocation, RED), 1);
}

/// Rule 2.21: an introduction may be older than what the operator has said since.
#[test]
fn a_member_that_has_left_is_not_answered_and_the_operator_hears_of_it() {
    let mut world = World::new(26);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let member = world.member("192.0.2.7:7400", RED);
    assert!(world.ask(member, holder, &Request::Ping).is_some());
    let id = world.actors[&member].id;
    let gone = world.commit(Table::Node, (RED, id.record_key()), |mut draft| {
        draft.header.removed = true;
        draft
    });
    world.push(holder, &[gone]);
    assert_eq!(world.ask(member, holder, &Request::Ping), None);
    world.run(400 * SECOND);
    let told = world.operator.refused.iter().find(|(_, refused)| refused.reason == RefusedReason::NotMember);
    assert!(told.is_some_and(|(_, refused)| refused.domain == RED && refused.count >= 1));
}

/// Rule 6.7: a super-node announces where it is, and holds that itself.
#[test]
fn a_holder_announces_its_addresses() {
    let mut world = World::new(27);
    let home = LENDERS[0];
    let holder = world.holder(1, home, Segment::ALL);
    world.run(SECOND);
    let colleague = world.member("192.0.2.7:7400", home);
    let id = world.holders[&holder].id;
    let Some(Reply::NodeInfo(Some(bytes))) = world.ask(colleague, holder, &Request::GetNodeInfo(id)) else {
        panic!("no announcement")
    };
    let record = peerage_wire::record::UnverifiedRecord::parse(&bytes).unwrap().trust_own_store();
    let body = peerage_wire::record::NodeInfoPublic::read(&record).unwrap();
    assert_eq!((body.addresses, body.tags.len()), (vec![holder], 0));
}

/// Rule 4.4: pages of a foreign domain are whole, however many there are, and in the order of their keys.
#[test]
fn a_long_list_comes_in_pages() {
    let mut world = World::new(28);
    world.register(RED, 0..100);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let member = world.member("192.0.2.7:7400", RED);
    assert_eq!(world.devices_told(member, holder), Some(100));
    let before = world.status(holder).served;
    world.devices_told(member, holder);
    assert!(world.status(holder).served - before >= 100 / MAX_LIST as u64);
}

/// A domain may be cut: each holder answers for its part.
#[test]
fn a_holder_of_half_a_domain_answers_for_that_half() {
    let mut world = World::new(29);
    let devices = world.register(RED, 0..40);
    let whole = red_only();
    let middle = PlacementKey(whole.from.0 + 0x8000_0000);
    let low = Segment { from: PlacementKey::MIN, to: PlacementKey(middle.0 - 1) };
    let holder = world.holder(1, LENDERS[0], low);
    let member = world.member("192.0.2.7:7400", RED);
    let range = Segment { from: whole.from, to: low.to };
    let expected = devices.iter().filter(|record| range.contains(record.header().placement())).count();
    let Some(Reply::Devices(page)) = world.ask(member, holder, &Request::GetDevices { after: None, range })
    else {
        panic!("silent")
    };
    assert!(page.records.len() == expected || page.more);
    assert_eq!(world.on_disk(holder, Table::EndDevice, RED), expected);
    assert_eq!(world.devices_told(member, holder), None, "nor for the whole");
    let revoked = world.revoke(NodeId { domain: RED, hash: [0xff; 32] });
    world.push(holder, &[revoked]);
    assert_eq!(
        world.on_disk(holder, Table::Revocation, RED),
        1,
        "revocations are held by all holders of a domain"
    );
}

/// Rule 6.59: without any operator, for a day here: everything is answered, Heads as they were.
#[test]
fn a_holder_goes_on_without_any_operator() {
    let mut world = World::new(30);
    world.register(RED, 0..10);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let fellow = world.holder(2, LENDERS[1], Segment::ALL);
    let member = world.member("192.0.2.7:7400", RED);
    let head = world.operator.head(RED, world.now).bytes().clone();
    let asked = world.ask(member, holder, &Request::GetHead { domain: None });
    assert_eq!(asked, Some(Reply::Head(Some(head.clone()))));
    world.operator.is_up = false;
    for _ in 0..4 {
        world.run(Duration::from_secs(6 * 3_600));
        assert_eq!(world.devices_told(member, holder), Some(10));
        assert_eq!(world.devices_told(member, fellow), Some(10));
        let asked = world.ask(member, holder, &Request::GetHead { domain: None });
        assert_eq!(asked, Some(Reply::Head(Some(head.clone()))), "its age is for the asker to judge");
        // The fellow has it from the other holder.
        assert!(world.ask(member, fellow, &Request::GetHead { domain: None }).is_some());
        let info = world.info(member, &[]);
        assert!(world.ask(member, holder, &Request::Store(info.bytes().clone())).is_some());
    }
    world.restart(holder);
    world.run(60 * SECOND);
    assert_eq!(world.devices_told(member, holder), Some(10), "even after a restart");
    world.operator.is_up = true;
    let asked_before = world.operator.submissions.len();
    world.run(60 * SECOND);
    assert!(world.operator.submissions.len() > asked_before, "and reports when one is back");
}

/// Members of two domains that know each other's ids learn nothing about each other.
#[test]
fn a_member_reads_nothing_of_another_domain() {
    let mut world = World::new(31);
    world.register(RED, 0..5);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let (red, blue) = (world.member("192.0.2.7:7400", RED), world.member("192.0.2.8:7400", BLUE));
    let id = world.actors[&red].id;
    let record = world.actors[&red].record.clone();
    world.push(holder, &[record]);
    for request in [Request::GetNode(id), Request::GetNodeInfo(id), Request::GetHead { domain: Some(RED) }] {
        assert_eq!(world.ask(blue, holder, &request), None, "{request:?}");
    }
    assert_eq!(world.devices_told(blue, holder), Some(0));
    let operator = world.operator.layer.id;
    assert!(world.ask(blue, holder, &Request::GetNode(operator)).is_some(), "operators are everybody's");
}

/// Rule 6.28: what is asked of a node that is attached here is passed on to it, and its answer back; to nobody else.
#[test]
fn a_message_is_passed_on_to_an_attached_member_of_the_same_domain() {
    let mut world = World::new(33);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let (asker, site) = (world.member("192.0.2.7:7400", RED), world.member("192.0.2.8:7400", RED));
    assert_eq!(world.ask_through(asker, holder, site), None, "nobody of that name is attached");
    world.ask(site, holder, &Request::Attach).unwrap();
    assert!(matches!(world.ask_through(asker, holder, site), Some(Reply::Reping { .. })));
    let stranger = world.member("192.0.2.9:7400", BLUE);
    assert_eq!(world.ask_through(stranger, holder, site), None);
    let id = world.actors[&site].id;
    let revocation = world.revoke(id);
    world.push(holder, &[revocation]);
    assert_eq!(world.ask_through(asker, holder, site), None);
}

/// Rule 6.28: of messages for a node that does not answer a few are on the way, so that others find room.
#[test]
fn a_silent_receiver_is_passed_so_many_messages_at_a_time_and_no_more() {
    let mut world = World::new(35);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let (asker, site) = (world.member("192.0.2.7:7400", RED), world.member("192.0.2.8:7400", RED));
    world.ask(site, holder, &Request::Attach).unwrap();
    let others: Vec<_> = (10..16).map(|n| world.member(&format!("192.0.2.{n}:7400"), RED)).collect();
    for one in others.iter().chain([&asker]) {
        assert!(world.ask_through(*one, holder, site).is_some());
    }
    world.cut.insert(site);
    let before = world.carried.get(&(holder, site)).copied().unwrap_or(0);
    world.flood_through(asker, holder, site, 40);
    let passed = |world: &World| world.carried[&(holder, site)] - before;
    assert_eq!(passed(&world), 4);
    // Whoever has asked for more leaves room for the others, of whom all together have a limit too.
    for (n, other) in others.into_iter().enumerate() {
        world.flood_through(other, holder, site, 10);
        assert_eq!(passed(&world), (4 * (n + 2)).min(16));
    }
    world.run(10 * SECOND);
    world.cut.remove(&site);
    assert!(world.ask_through(asker, holder, site).is_some());
}

/// Rule 6.30: the revocations of a domain that its range does not touch never reach a super-node, so nobody of that gets a leg.
#[test]
fn a_revoked_member_of_an_untouched_domain_gets_no_leg() {
    let mut world = World::new(34);
    let holder = world.holder(1, LENDERS[0], red_only());
    let meet = |world: &mut World, first, second| {
        let [first_id, second_id] = [first, second].map(|member| world.actors[&member].id);
        world.join(first, holder, second_id);
        world.join(second, holder, first_id);
        world.status(holder).relayed_tunnels
    };
    let (bad, other) = (world.member("192.0.2.7:7400", BLUE), world.member("192.0.2.8:7400", BLUE));
    let id = world.actors[&bad].id;
    let revocation = world.revoke(id);
    world.push(holder, &[revocation]);
    assert_eq!(meet(&mut world, bad, other), 0);
    let (one, two) = (world.member("192.0.2.9:7400", RED), world.member("192.0.2.10:7400", RED));
    assert_eq!(meet(&mut world, one, two), 1);
}

/// Nobody but members permitted as tunnel-node attaches.
#[test]
fn a_member_without_the_tunnel_role_does_not_attach() {
    let mut world = World::new(32);
    let holder = world.holder(1, LENDERS[0], Segment::ALL);
    let (identity, _, [node, _]) = world.admit(RED, Roles { tunnel: false, super_node: false });
    let user = world.actor("192.0.2.7:7400", identity, node);
    assert_eq!(world.ask(user, holder, &Request::Attach), None);
    assert!(world.ask(user, holder, &Request::Ping).is_some());
    assert_eq!(world.status(holder).attached, 0);
}
