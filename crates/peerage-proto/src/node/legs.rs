//! This node's own legs: TCP connections to relays, asked for beside every attempt to reach a peer directly (Rules 6.31 and
//! 6.32).
//!
//! A leg is dialled by the shell, says here that it stands, carries the sealed wish to be joined to the relay, and is the
//! shell's for a link once the relay has joined it. Relays are named by id and found in signed records, so nobody can make
//! this node dial a place of his choice.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use peerage_wire::id::{LinkId, NodeId};
use peerage_wire::message::{RelayRefusal, Reply, Request, TunnelRequest};
use peerage_wire::time::{Instant, Now};

use super::{Discard, Node, Output, Purpose, RequestId, Server};
use crate::carrier::LegWays;
use crate::link::Side;
use crate::relay::LegId;
use crate::sizes::TableSize;
use crate::trust::Member;

/// Most legs that are on their way to be joined; those that are count among the links.
const MAX_LEGS: usize = 256;

/// Most legs on their way to be joined with one peer: one member must not take all.
const MAX_LEGS_TO_PEER: usize = 8;

/// How long an attempt is remembered, so that a TunnelRequest that comes twice makes one leg.
const ATTEMPT_MEMORY: Duration = Duration::from_secs(120);

/// Most attempts that are remembered; beyond it no further leg is dialled for a peer until some are forgotten.
const MAX_ATTEMPTS: usize = 4_096;

/// How long a relay that has given no more is asked after others. Longer leaves the nearest relay idle when its tunnels have ended, shorter
/// has each new tunnel refused once more.
const FULL_FOR: Duration = Duration::from_secs(30);

/// Most relays that are remembered for it; further ones are refused by again.
const MAX_FULL: usize = 64;

/// A leg that the shell is to dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnLeg {
    /// The relay.
    pub relay: NodeId,
    /// Where it is, from its signed record: the address that is tried first.
    pub address: SocketAddr,
    /// The attempt that both ends know of.
    pub link: LinkId,
    /// With whose leg it is to be joined.
    pub peer: NodeId,
    /// That peer's identity key, to be pinned in TLS.
    pub identity: [u8; 32],
    /// Which side of the link this node is: the client if it is the user-node.
    pub side: Side,
}

/// What happened to an own leg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LegNews {
    /// The TCP connection to the relay stands.
    Opened,
    /// The relay has sent a datagram; not checked in any way.
    Datagram(Bytes),
    /// It could not be dialled, or is gone before it was joined.
    Closed,
}

/// What to do with an own leg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LegOrder {
    /// Connect in one of these ways, and say so by [`LegNews::Opened`] or [`LegNews::Closed`].
    Dial(OwnLeg, LegWays),
    /// Send a datagram; what comes back is [`LegNews::Datagram`].
    Send(Bytes),
    /// It is joined: all that follows is the peer's. Nothing more is said of it here.
    Joined,
    /// Close it: the relay has no room for another one.
    Full,
    /// Close it.
    Close,
}

#[derive(Clone, Copy, Debug)]
struct Leg {
    what: OwnLeg,
    request: Option<RequestId>,
}

/// What a node remembers of its own legs.
#[derive(Clone, Debug, Default)]
pub(super) struct Legs {
    next: u64,
    pending: BTreeMap<LegId, Leg>,
    attempts: BTreeMap<(NodeId, LinkId), Instant>,
    /// When relays have refused for a quota.
    full_at: BTreeMap<NodeId, Instant>,
}

impl Legs {
    pub(super) fn sizes(&self) -> [TableSize; 3] {
        [
            TableSize::new("own legs", self.pending.len(), MAX_LEGS),
            TableSize::new("attempts at relays", self.attempts.len(), MAX_ATTEMPTS),
            TableSize::new("full relays", self.full_at.len(), MAX_FULL),
        ]
    }

    /// Returns whether a relay has refused for a quota lately.
    pub(super) fn is_full(&self, relay: &NodeId, now: Instant) -> bool {
        self.full_at.get(relay).is_some_and(|at| now - *at < FULL_FOR)
    }

    fn note_full(&mut self, relay: NodeId, now: Instant) {
        self.full_at.retain(|_, at| now - *at < FULL_FOR);
        if self.full_at.len() < MAX_FULL {
            self.full_at.insert(relay, now);
        }
    }
}

impl Node {
    /// Dials a relay for an attempt to reach a peer, unless that is under way or too much is.
    pub(super) fn dial_leg(&mut self, relay: Server, link: LinkId, (peer, side): (&Member, Side), now: Now) {
        let legs = &mut self.legs;
        if legs.attempts.len() >= MAX_ATTEMPTS {
            legs.attempts.retain(|_, at| now.mono - *at < ATTEMPT_MEMORY);
        }
        let to_peer = legs.pending.values().filter(|leg| leg.what.peer == peer.id).count();
        let is_full = legs.pending.len() >= MAX_LEGS
            || to_peer >= MAX_LEGS_TO_PEER
            || legs.attempts.len() >= MAX_ATTEMPTS;
        if is_full {
            return self.endpoint.discard(Discard::Full);
        }
        let before = legs.attempts.insert((peer.id, link), now.mono);
        if before.is_some_and(|at| now.mono - at < ATTEMPT_MEMORY) {
            return;
        }
        legs.next = legs.next.saturating_add(1);
        let leg = LegId(legs.next);
        let Server { node: relay, address } = relay;
        let what = OwnLeg { relay, address, link, peer: peer.id, identity: peer.identity, side };
        legs.pending.insert(leg, Leg { what, request: None });
        let ways = self.carriers.leg_ways(&relay, &self.addresses_of(&relay));
        self.order_leg(leg, LegOrder::Dial(what, ways));
    }

    /// Dials the relay that a peer has named in its request: one that this node is attached to, and no other.
    pub(super) fn meet_at_relay(&mut self, from: &Member, request: &TunnelRequest, now: Now) {
        let Some(relay) = request.relay.filter(|relay| self.serving.attachments.contains_key(relay)) else {
            return;
        };
        if let Some(server) = self.server(relay) {
            self.dial_leg(server, request.link(), (from, Side::Server), now);
        }
    }

    /// Gives up the own leg of an attempt that is not to be made any more, if it was not joined yet.
    pub(super) fn abandon_leg(&mut self, link: LinkId) {
        let of = |leg: &Leg| leg.what.link == link && leg.what.side == Side::Client;
        let legs: Vec<_> = self.legs.pending.iter().filter(|(_, leg)| of(leg)).map(|(id, _)| *id).collect();
        for leg in legs {
            self.forget_leg(leg);
            self.order_leg(leg, LegOrder::Close);
        }
    }

    fn forget_leg(&mut self, leg: LegId) {
        let Some(Leg { request: Some(request), .. }) = self.legs.pending.remove(&leg) else { return };
        self.endpoint.forget_request(request);
        self.purposes.remove(&request);
    }

    pub(super) fn own_leg(&mut self, leg: LegId, news: LegNews, now: Now) {
        let Some(Leg { what, request }) = self.legs.pending.get(&leg).copied() else { return };
        match news {
            LegNews::Opened if request.is_none() => {
                self.acquaint(what.relay, now);
                let join = Request::RelayJoin { link: what.link, peer: what.peer };
                let id = self.endpoint.request_on((leg, what.address), what.relay, &join, now);
                self.purposes.insert(id, Purpose::Leg(leg));
                if let Some(pending) = self.legs.pending.get_mut(&leg) {
                    pending.request = Some(id);
                }
            }
            LegNews::Opened => {}
            LegNews::Datagram(payload) => {
                self.endpoint.handle_own_leg_datagram(what.address, &payload, &self.trust, now);
            }
            LegNews::Closed => {
                self.forget_leg(leg);
                if request.is_none() {
                    // It could not even be dialled.
                    self.servers.doubt(what.relay, now.mono);
                    self.relay_refused(what.link, now);
                }
            }
        }
    }

    pub(super) fn leg_answered(&mut self, leg: LegId, reply: &Reply, now: Now) {
        let Some(Leg { what, .. }) = self.legs.pending.remove(&leg) else { return };
        let full = [RelayRefusal::NodeQuota, RelayRefusal::DomainQuota, RelayRefusal::Full];
        let is_joined = matches!(reply, Reply::RelayJoined(Ok(())));
        let is_full = matches!(reply, Reply::RelayJoined(Err(why)) if full.contains(why));
        let refusal = if is_full { LegOrder::Full } else { LegOrder::Close };
        self.order_leg(leg, if is_joined { LegOrder::Joined } else { refusal });
        if is_full {
            self.legs.note_full(what.relay, now.mono);
            self.relay_refused(what.link, now);
        }
    }

    pub(super) fn leg_unanswered(&mut self, leg: LegId) {
        if self.legs.pending.remove(&leg).is_some() {
            self.order_leg(leg, LegOrder::Close);
        }
    }

    pub(super) fn send_on_legs(&mut self) {
        while let Some((leg, payload)) = self.endpoint.poll_own_leg_transmit() {
            self.order_leg(leg, LegOrder::Send(payload));
        }
    }

    fn order_leg(&mut self, leg: LegId, order: LegOrder) {
        self.outputs.push_back(Output::OwnLeg { leg, order });
    }
}
