//! A member, or somebody with a member's keys, that sends what it likes: a message layer without a node behind it.

use std::net::SocketAddr;

use bytes::Bytes;
use peerage_proto::endpoint::{Endpoint, Outcome};
use peerage_proto::trust::{Member, Trust};
use peerage_wire::id::{Domain, NodeId};
use peerage_wire::intro::KeyStatement;
use peerage_wire::keys::{AgreementKey, IdentityKey};
use peerage_wire::message::{Reply, Request};
use peerage_wire::record::{Record, Roles};
use peerage_wire::time::{Now, UnixTime};
use rand_core::Rng as _;

use crate::support::{Flight, OPERATOR_ADDRESS, World, shifted};

pub(crate) const TUNNEL: Roles = Roles { tunnel: true, super_node: false };
pub(crate) const USER_ONLY: Roles = Roles { tunnel: false, super_node: false };

pub(crate) struct Actor {
    pub(crate) endpoint: Endpoint,
    pub(crate) trust: Trust,
    pub(crate) address: SocketAddr,
    pub(crate) identity: IdentityKey,
    pub(crate) id: NodeId,
    pub(crate) record: Record,
    /// What its clock shows beyond the true time, in milliseconds.
    pub(crate) clock_error: i64,
}

impl Actor {
    /// Makes a member that the ledger knows.
    pub(crate) fn admitted(world: &mut World, address: &str, domain: Domain, roles: Roles) -> Self {
        let (identity, _, [node, _]) = world.admit(domain, roles);
        Self::with_record(world, address, identity, node)
    }

    /// Makes somebody who introduces itself with a record, whoever signed that.
    pub(crate) fn with_record(
        world: &mut World,
        address: &str,
        identity: IdentityKey,
        record: Record,
    ) -> Self {
        let id = identity.node_id(record.header().domain);
        let mut config = world.operator_config.endpoint.clone();
        config.identity = identity.clone();
        config.id = id;
        config.record = record.bytes().clone();
        config.asks_introduction = false;
        let mut seed = [0; 32];
        world.rng.fill_bytes(&mut seed);
        let mut trust = Trust::new(world.network, world.root.public());
        trust.learn(&world.operator_record);
        let mut actor = Self {
            endpoint: Endpoint::new(config, seed, world.now),
            trust,
            address: address.parse().unwrap(),
            identity,
            id,
            record,
            clock_error: 0,
        };
        let operator = Trust::member(&world.operator_record).unwrap();
        let statement = *world.operator.statement();
        actor.endpoint.learn_peer(operator, statement, world.now);
        actor
    }

    pub(crate) fn now(&self, world: &World) -> Now {
        shifted(world.now, self.clock_error)
    }

    /// Asks the operator and returns what it answers, without waiting for time to pass.
    pub(crate) fn ask(&mut self, world: &mut World, request: &Request) -> Option<Reply> {
        let (to, at) = (world.operator_id, OPERATOR_ADDRESS.parse().unwrap());
        self.ask_at(world, (to, at), request)
    }

    /// Asks a node of this world. Its sealing key is learned on the way, by a hint.
    pub(crate) fn ask_host(&mut self, world: &mut World, at: SocketAddr, request: &Request) -> Option<Reply> {
        let id = self.know_host(world, at);
        self.ask_at(world, (id, at), request)
    }

    /// Seals a request to a node of this world as if it were sent straight to it.
    pub(crate) fn seal_for_host(&mut self, world: &mut World, at: SocketAddr, request: &Request) -> Bytes {
        if !matches!(request, Request::Ping) {
            // So that the node's sealing key is known.
            self.ask_host(world, at, &Request::Ping);
        }
        let (id, now) = (self.know_host(world, at), self.now(world));
        self.endpoint.request(id, at, request, now);
        let mut last = None;
        while let Some((_, payload)) = self.endpoint.poll_transmit() {
            last = Some(payload);
        }
        last.expect("a known peer is asked at once")
    }

    fn know_host(&mut self, world: &mut World, at: SocketAddr) -> NodeId {
        let host = world.host(at);
        let (id, identity) = (host.id, host.identity.public());
        if self.endpoint.peer(&id).is_none() {
            let key = *AgreementKey::from_secret([5; 32]).public();
            let (not_before, not_after) = (UnixTime::default(), world.now.unix);
            let unknown = KeyStatement { node: id, key, not_before, not_after, signature: [0; 64] };
            let expires = UnixTime::from_millis(u64::MAX);
            let member = Member { id, identity, roles: TUNNEL, is_operator: false, expires };
            self.endpoint.learn_peer(member, unknown, world.now);
        }
        id
    }

    fn ask_at(
        &mut self,
        world: &mut World,
        (to, at): (NodeId, SocketAddr),
        request: &Request,
    ) -> Option<Reply> {
        let now = self.now(world);
        let asked = self.endpoint.request(to, at, request, now);
        let mut seen = world.log.len();
        loop {
            let arrived: Vec<Flight> = world.log[seen..].to_vec();
            seen = world.log.len();
            for flight in arrived.iter().filter(|flight| flight.to == self.address) {
                self.endpoint.handle_datagram(flight.from, &flight.payload, &self.trust, now);
            }
            while let Some(outcome) = self.endpoint.poll_outcome() {
                if let Outcome::Answered { request, reply, .. } = outcome
                    && request == asked
                {
                    return Some(reply);
                }
            }
            let mut sent = false;
            while let Some((to, payload)) = self.endpoint.poll_transmit() {
                world.send(self.address, to, payload);
                sent = true;
            }
            if !sent {
                return None;
            }
            world.pump();
        }
    }

    /// Seals a request to the operator without sending it.
    pub(crate) fn seal(&mut self, world: &World, request: &Request) -> Bytes {
        let (to, at) = (world.operator_id, OPERATOR_ADDRESS.parse().unwrap());
        let now = self.now(world);
        self.endpoint.request(to, at, request, now);
        self.endpoint.poll_transmit().expect("a known peer is asked at once").1
    }
}

/// What an operator can be seen to know.
pub(crate) fn operator_state(world: &World) -> String {
    let contacts: Vec<_> = world.operator.contacts(world.now).collect();
    format!("{} {contacts:?} {:?}", world.operator.records_held(), world.told)
}

/// What a node can be seen to know and to have done, without its counters.
pub(crate) fn node_state(world: &mut World, at: SocketAddr) -> String {
    let now = world.now;
    let host = world.host(at);
    let mut status = host.node.status(now);
    status.discards = peerage_proto::discard::Discards::default();
    format!("{status:?} {:?} {:?} {:?}", host.events, host.served, host.closed)
}
