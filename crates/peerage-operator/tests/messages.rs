//! The message port, asked by a member over UDP on loopback.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failure here fails the test")]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::{Computer, Running, acme, admitted, hello, printer, rng, token};
use peerage_client::admin::{DeviceState, NodeState, RevokeNode};
use peerage_node::clock::Clock;
use peerage_proto::endpoint::{self, Endpoint, Outcome};
use peerage_proto::trust::Trust;
use peerage_wire::crypto::Real;
use peerage_wire::id::{CommandId, LocationId, LookupTag, NodeId};
use peerage_wire::keys::AgreementKey;
use peerage_wire::message::{Reply, Request};
use peerage_wire::record::{Draft, HeadBody, Header, NodeInfoPublic, Table, UnverifiedRecord};
use tokio::net::UdpSocket;

/// A member with nothing but its message layer.
struct Member {
    endpoint: Endpoint,
    trust: Trust,
    socket: UdpSocket,
    clock: Clock,
    operator: NodeId,
    remote: SocketAddr,
    id: NodeId,
}

impl Member {
    async fn join(running: &Running) -> Self {
        let (token, computer) = (token(running, 1).await, Computer::new());
        let admission = admitted(computer.join(&token).await);
        let remote = token.addresses[0];
        let operator = hello(remote).await.verify(&token.network, None, &Real).unwrap();
        let mut trust = Trust::new(token.network, operator.root);
        trust.learn(&operator.record);
        let id = computer.identity.node_id(UnverifiedRecord::parse(&admission.node).unwrap().header().domain);
        let config = endpoint::Config {
            network: token.network,
            crypto: Arc::new(Real),
            identity: computer.identity,
            id,
            record: admission.node,
            asks_introduction: false,
        };
        let clock = Clock::new();
        let seed = *AgreementKey::generate(&mut rng()).secret();
        let mut endpoint = Endpoint::new(config, seed, clock.now());
        endpoint.trust_own_clock();
        let known = Trust::member(&operator.record).unwrap();
        endpoint.learn_peer(known, admission.statement, clock.now());
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        Self { endpoint, trust, socket, clock, operator: operator.id, remote, id }
    }

    /// Asks the operator; `None` if it does not answer.
    async fn ask(&mut self, request: &Request) -> Option<Reply> {
        self.endpoint.request(self.operator, self.remote, request, self.clock.now());
        let mut buffer = [0; 2_048];
        loop {
            while let Some((remote, payload)) = self.endpoint.poll_transmit() {
                self.socket.send_to(&payload, remote).await.unwrap();
            }
            while let Some(outcome) = self.endpoint.poll_outcome() {
                match outcome {
                    Outcome::Answered { reply, .. } => return Some(reply),
                    Outcome::Failed { .. } => return None,
                    Outcome::Request(_) | Outcome::ClockLearned(_) => {}
                }
            }
            let due = self.endpoint.poll_timeout().map(|at| at.since(self.clock.mono()));
            let wait = due.unwrap_or(Duration::from_secs(1));
            match tokio::time::timeout(wait, self.socket.recv_from(&mut buffer)).await {
                Ok(received) => {
                    let (length, remote) = received.unwrap();
                    self.endpoint.handle_datagram(remote, &buffer[..length], &self.trust, self.clock.now());
                }
                Err(_elapsed) => self.endpoint.handle_timeout(&self.trust, self.clock.now()),
            }
        }
    }

    /// Signs where it is, findable by a tag.
    fn announcement(&self, tag: LookupTag) -> Bytes {
        let now = self.clock.now().unix;
        let header = Header {
            table: Table::NodeInfo,
            domain: self.id.domain,
            key: self.id.record_key(),
            version: now.as_millis(),
            expires: now.after(Duration::from_secs(600)),
            signer: self.id,
            removed: false,
        };
        let public =
            NodeInfoPublic { statement: *self.endpoint.statement(), tags: vec![tag], addresses: Vec::new() };
        let draft = Draft { header, public: public.write(), private: None };
        draft.sign(self.endpoint.identity(), self.trust.network(), &Real).unwrap().bytes().clone()
    }

    async fn head(&mut self) -> HeadBody {
        let Some(Reply::Head(Some(bytes))) = self.ask(&Request::GetHead).await else { panic!("no Head") };
        let record = self.trust.verify(&bytes, None, &Real).unwrap();
        HeadBody::read(&record).unwrap()
    }
}

/// Rule 6.20: a Head is made anew at once when a set has changed.
#[tokio::test]
async fn a_member_sees_what_was_registered_and_tells_where_it_is() {
    let (_dir, running) = acme().await;
    let mut member = Member::join(&running).await;
    assert_eq!(member.head().await.devices.count, 0);
    running.admin.add_device("acme", &printer("hp", "aa:00:04:00:00:01")).await.unwrap();
    assert_eq!(member.head().await.devices.count, 1, "an answer is never ahead of the network");
    let Some(Reply::Devices(page)) = member.ask(&Request::GetDevices { after: None }).await else {
        panic!("no devices")
    };
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
    assert_eq!(page.records, [announced]);
    let node = user.ask(&Request::GetNode(server.id)).await;
    assert!(matches!(node, Some(Reply::Node(Some(_)))), "{node:?}");
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
    assert_eq!(thief.ask(&Request::GetHead).await, None);
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
