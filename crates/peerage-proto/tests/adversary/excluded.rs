//! What becomes of a domain that is revoked as a whole.

use std::net::SocketAddr;
use std::time::Duration;

use peerage_proto::discard::Discard;
use peerage_proto::node::{Answer, Event, Input, TunnelId};
use peerage_wire::frame::Code;
use peerage_wire::id::Segment;
use peerage_wire::message::{Reply, Request};
use peerage_wire::record::{Draft, RevocationBody, RevocationKind, Table};

use crate::actor::{Actor, TUNNEL};
use crate::support::lenders::lender_address;
use crate::support::{DOMAIN, Decision, World, device, office};

/// Revokes a whole domain, as the ledger does.
fn revoke_domain(world: &mut World) {
    let body = RevocationBody { kind: RevocationKind::Domain(DOMAIN), at: world.now.unix, reason: 3 };
    let record =
        world.sign(Table::Revocation, DOMAIN, body.record_key(), |d| Draft { public: body.write(), ..d });
    world.commit(vec![record]);
}

/// Opens a tunnel between the two and lets both watch it.
fn tunnel(world: &mut World, site: SocketAddr, user: SocketAddr) {
    let (peer, user_id) = (world.host(site).id, world.host(user).id);
    assert!(matches!(world.open(site, 5, user_id, device(), "ipp"), Decision::Served(_)));
    let opened =
        Input::TunnelOpened { tunnel: TunnelId(5), peer, device: device(), service: "ipp".to_owned() };
    world.input(user, opened);
}

/// Rules 6.60 and 6.9: every member finds out within a minute, even if what the operator sends by itself is lost, and ends what is open.
#[test]
fn the_members_of_a_revoked_domain_end_their_tunnels_within_a_minute() {
    for is_lost in [false, true] {
        let (mut world, site, user) = office(87);
        assert!(matches!(world.route(user, "hp", None), Answer::Route(_)));
        tunnel(&mut world, site, user);
        if is_lost {
            // The operator's notices are gone before anybody hears them.
            world.cut.extend([site, user]);
        }
        revoke_domain(&mut world);
        world.run(Duration::from_secs(5));
        world.cut.clear();
        world.run(Duration::from_secs(55));
        for host in [site, user] {
            assert_eq!(world.host(host).closed, [(TunnelId(5), Code::Revoked)], "{is_lost}");
            assert!(world.host(host).events.contains(&Event::Revoked));
        }
    }
}

/// Rule 6.60: with super-nodes in between, which answer them nothing else.
#[test]
fn super_nodes_tell_the_members_of_a_revoked_domain_and_nothing_else() {
    let (mut world, site, user) = office(88);
    for n in 1..=3 {
        world.add_lender(n);
    }
    world.run(Duration::from_secs(500));
    assert!(matches!(world.route(user, "hp", None), Answer::Route(_)));
    tunnel(&mut world, site, user);
    world.run(Duration::from_secs(30));
    revoke_domain(&mut world);
    world.run(Duration::from_secs(5));
    // From now on there are only super-nodes.
    world.operator_up = false;
    world.run(Duration::from_secs(55));
    for host in [site, user] {
        assert_eq!(world.host(host).closed, [(TunnelId(5), Code::Revoked)]);
    }
    for n in 1..=3 {
        let lender = lender_address(n);
        let node = world.host(site).id;
        let kept = |table| world.hosts[&lender].node.held_record(table, DOMAIN, node.record_key()).is_some();
        assert!(!kept(Table::NodeInfo), "what it announced is gone");
    }
}

/// Rule 6.60: the Head and the revocations, and not a word more.
#[test]
fn a_member_of_a_revoked_domain_is_told_only_that() {
    let (mut world, _, _) = office(89);
    let mut actor = Actor::admitted(&mut world, "45.66.6.6:7", DOMAIN, TUNNEL);
    assert!(actor.ask(&mut world, &Request::Ping).is_some());
    revoke_domain(&mut world);
    world.run(Duration::from_secs(1));
    assert!(matches!(actor.ask(&mut world, &Request::GetHead { domain: None }), Some(Reply::Head(Some(_)))));
    let told = actor.ask(&mut world, &Request::GetRevocations { after: None });
    assert!(matches!(told, Some(Reply::Revocations(page)) if page.records.len() == 1));
    let all = Segment::ALL;
    for request in [
        Request::Ping,
        Request::Attach,
        Request::GetDomainKey,
        Request::GetDevices { after: None, range: all },
        Request::GetSuperNodes { key: None, after: None },
        Request::GetHead { domain: Some(DOMAIN) },
        Request::GetNode(actor.id),
    ] {
        assert_eq!(actor.ask(&mut world, &request), None, "{request:?}");
    }
    assert!(world.operator.discards().of(Discard::Revoked) >= 7);
}
