//! The message port, asked by a member over UDP on loopback.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failure here fails the test")]

mod common;

use common::member::Member;
use common::{acme, printer};
use peerage_client::admin::{DeviceState, NodeState, RevokeNode};
use peerage_wire::id::{CommandId, LocationId, LookupTag, Segment};
use peerage_wire::message::{Reply, Request};
use peerage_wire::record::{Table, UnverifiedRecord};
use tokio::net::UdpSocket;

/// Rule 6.20: a Head is made anew at once when a set has changed.
#[tokio::test]
async fn a_member_sees_what_was_registered_and_tells_where_it_is() {
    let (_dir, running) = acme().await;
    let mut member = Member::join(&running).await;
    assert_eq!(member.head().await.devices.count, 0);
    running.admin.add_device("acme", &printer("hp", "aa:00:04:00:00:01")).await.unwrap();
    assert_eq!(member.head().await.devices.count, 1, "an answer is never ahead of the network");
    let all = Request::GetDevices { after: None, range: Segment::ALL };
    let Some(Reply::Devices(page)) = member.ask(&all).await else { panic!("no devices") };
    let key = UnverifiedRecord::parse(&page.records[0]).unwrap().header().key;
    let id = CommandId([7; 16]);
    let seen = Request::DeviceSeen { id, key, location: LocationId([1; 32]) };
    assert_eq!(member.ask(&seen).await, Some(Reply::DeviceNoted(id)));
    let shown = running.admin.devices("acme").await.unwrap().remove(0);
    assert_eq!((shown.state, shown.sites), (DeviceState::Located, 1));
    running.end().await.unwrap();
}

/// Rule 6.23: without super-nodes the operator keeps announcements and answers look-ups.
#[tokio::test]
async fn a_member_finds_what_another_has_announced() {
    let (_dir, running) = acme().await;
    let (mut user, mut server) = (Member::join(&running).await, Member::join(&running).await);
    let tag = LookupTag([6; 16]);
    let announced = server.announcement(tag);
    let stored = server.ask(&Request::Store(announced.clone())).await;
    assert!(matches!(stored, Some(Reply::Stored { table: Table::NodeInfo, .. })), "{stored:?}");
    let attached = server.ask(&Request::Attach).await;
    let seen = server.socket.local_addr().unwrap();
    assert!(matches!(attached, Some(Reply::Attached { observed, .. }) if observed == seen), "{attached:?}");
    let look_up = Request::GetTunnelNodes { tags: vec![tag], after: None };
    let Some(Reply::TunnelNodes(page)) = user.ask(&look_up).await else { panic!("no answer") };
    let node = user.ask(&Request::GetNode(server.id)).await;
    let Some(Reply::Node(Some(node))) = node else { panic!("{node:?}") };
    assert_eq!(page.records, [announced, node], "its own record comes behind what it announces");
    running.end().await.unwrap();
}

/// Rule 6.21: the revoked hears nothing more, the others a new epoch.
#[tokio::test]
async fn a_revocation_begins_a_new_epoch_and_the_revoked_hears_nothing_more() {
    let (_dir, running) = acme().await;
    let (mut member, mut thief) = (Member::join(&running).await, Member::join(&running).await);
    assert_eq!(thief.head().await.epoch, 1);
    running.admin.revoke_node("acme", &thief.id.to_string(), &RevokeNode::default()).await.unwrap();
    let head = member.head().await;
    assert_eq!((head.epoch, head.revocations.count), (2, 1));
    assert_eq!(thief.ask(&Request::GetHead { domain: None }).await, None);
    let discards = running.admin.status().await.unwrap().discards;
    assert!(discards.get("revoked").is_some_and(|count| *count > 0), "{discards:?}");
    running.end().await.unwrap();
}

#[tokio::test]
async fn a_member_that_leaves_is_no_member_any_more() {
    let (_dir, running) = acme().await;
    let mut member = Member::join(&running).await;
    let id = CommandId([3; 16]);
    assert_eq!(member.ask(&Request::Leave(id)).await, Some(Reply::Left(id)));
    let node = running.admin.node("acme", &member.id.to_string()).await.unwrap();
    assert_eq!(node.state, NodeState::Left);
    running.end().await.unwrap();
}

#[tokio::test]
async fn datagrams_that_are_none_are_counted_and_not_answered() {
    let (_dir, running) = acme().await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for length in [0, 1, 7, 40, 200, 1_200, 1_201, 4_000] {
        socket.send_to(&vec![0xff; length], running.ready.listen).await.unwrap();
    }
    // Loopback keeps the order, so when a member has its answer the others were looked at.
    Member::join(&running).await.head().await;
    let discards = running.admin.status().await.unwrap().discards;
    assert!(discards.values().sum::<u64>() >= 8, "{discards:?}");
    let mut buffer = [0; 64];
    assert!(socket.try_recv_from(&mut buffer).is_err());
    running.end().await.unwrap();
}
