//! The ways of an answer: as a datagram, on the stream or the leg on which the request came, or through whoever has forwarded it.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use peerage_wire::id::{ContextId, Nonce};
use peerage_wire::message::{Forward, Reply, Request};
use peerage_wire::packet::Packet;
use peerage_wire::time::Now;

use super::{Endpoint, ReplyTo, RequestId};
use crate::carrier::StreamId;
use crate::discard::Discard;
use crate::relay::LegId;
use crate::trust::Trust;

/// How an answer or a hint goes back.
#[derive(Clone, Debug)]
pub(super) enum Back {
    /// As a datagram, to where the request came from.
    Straight,
    /// On the stream on which the request came.
    Stream(StreamId),
    /// Inside the answer to a [`Forward`].
    Forwarded(Arc<Forwarded>),
    /// On the TCP connection that somebody has made to this relay.
    Leg(LegId),
}

/// What the answer to a [`Forward`] needs.
#[derive(Clone, Debug)]
pub(super) struct Forwarded {
    forwarder: ReplyTo,
    token: Bytes,
}

impl Back {
    /// Returns whether a request may come this way: through a forwarder what arranges a path, and nothing that would be
    /// forwarded once more (Rule 6.28); on a leg the wish to be joined; and that nowhere else (Rule 6.31).
    pub(super) const fn carries(&self, request: &Request) -> bool {
        match self {
            Self::Straight | Self::Stream(_) => !matches!(request, Request::RelayJoin { .. }),
            Self::Forwarded(_) => matches!(request, Request::TunnelRequest(_) | Request::Ping),
            Self::Leg(_) => matches!(request, Request::RelayJoin { .. }),
        }
    }
}

/// What a forwarder must know again to answer a request that it has passed on; small, so that it can travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Where the request came from.
    pub remote: SocketAddr,
    /// The context in which it was sealed.
    pub context: ContextId,
    /// Its nonce.
    pub nonce: Nonce,
    /// Most bytes of the sealed answer.
    pub room: u16,
}

impl ReplyTo {
    /// Returns on which leg the request came, if it was one.
    pub const fn leg(&self) -> Option<LegId> {
        match self.back {
            Back::Leg(leg) => Some(leg),
            Back::Straight | Back::Stream(_) | Back::Forwarded(_) => None,
        }
    }

    /// Returns whether the request came over UDP from its sender, not through a forwarder, on a stream or on a leg.
    pub const fn is_straight(&self) -> bool {
        matches!(self.back, Back::Straight)
    }

    /// Returns what [`Endpoint::redeem`] needs to answer the request later, without remembering it meanwhile.
    pub fn ticket(&self) -> Ticket {
        let room = u16::try_from(self.room).unwrap_or(u16::MAX);
        Ticket { remote: self.remote, context: self.context.id(), nonce: self.nonce, room }
    }
}

impl Endpoint {
    /// Answers a request. An answer that would be longer than its request is dropped (Rule 4.6).
    pub fn reply(&mut self, to: &ReplyTo, reply: &Reply) {
        if let Some(datagram) = self.seal_reply(to, reply) {
            self.send_back(&to.back, to.remote, datagram);
        }
    }

    /// Answers from the second port, which whoever has asked has not written to. The datagram comes out of
    /// [`poll_probe`](Self::poll_probe), and goes where an ordinary answer would go.
    pub fn reply_elsewhere(&mut self, to: &ReplyTo, reply: &Reply) {
        if !to.is_straight() {
            return self.discard(Discard::Forbidden);
        }
        if let Some(datagram) = self.seal_reply(to, reply) {
            self.probe_transmits.push_back((to.remote, datagram));
        }
    }

    /// Seals an answer without sending it, for whoever has to order it among other bytes.
    pub fn seal_reply(&mut self, to: &ReplyTo, reply: &Reply) -> Option<Bytes> {
        let plaintext = reply.encode();
        match to.context.seal_reply(to.nonce, &plaintext, (&*self.config.crypto, &mut self.rng)) {
            Ok(datagram) if datagram.len() <= to.room => Some(datagram.into()),
            Ok(_) | Err(_) => {
                self.discard(Discard::NoRoom);
                None
            }
        }
    }

    pub(super) fn send_back(&mut self, back: &Back, remote: SocketAddr, datagram: Bytes) {
        match back {
            Back::Straight => self.transmits.push_back((remote, datagram)),
            Back::Stream(stream) => self.stream_transmits.push_back((*stream, datagram)),
            Back::Leg(leg) => self.leg_transmits.push_back((*leg, datagram)),
            Back::Forwarded(forwarded) => {
                let Forwarded { forwarder, token } = &**forwarded;
                let reply = Reply::Forwarded { token: token.clone(), inner: datagram };
                // One hop: a forwarder's own request came straight.
                self.reply(forwarder, &reply);
            }
        }
    }

    /// Takes what a forwarder hands on: a request of somebody else, whose answer goes back through the forwarder. The
    /// caller has made sure that it is one that this node is attached to.
    pub fn handle_forwarded(&mut self, forward: &Forward, forwarder: ReplyTo, trust: &Trust, now: Now) {
        let is_request =
            matches!(Packet::parse(&forward.inner), Ok(Packet::Long { .. } | Packet::Short { .. }));
        if !is_request || !matches!(forwarder.back, Back::Straight | Back::Stream(_)) {
            return self.discard(Discard::Forbidden);
        }
        let back = Back::Forwarded(Arc::new(Forwarded { forwarder, token: forward.token.clone() }));
        if let Err(reason) = self.receive((forward.observed, &back), &forward.inner, trust, now) {
            self.discard(reason);
        }
    }

    /// Takes a datagram that came on a leg which somebody has made to this relay from `remote`.
    pub fn handle_leg_datagram(
        &mut self,
        (leg, remote): (LegId, SocketAddr),
        datagram: &[u8],
        trust: &Trust,
        now: Now,
    ) {
        self.observe_clock(now);
        if let Err(reason) = self.receive((remote, &Back::Leg(leg)), datagram, trust, now) {
            self.discard(reason);
        }
    }

    /// Returns the next hint to send on a leg that somebody has made.
    pub fn poll_leg_transmit(&mut self) -> Option<(LegId, Bytes)> {
        self.leg_transmits.pop_front()
    }

    /// Takes what a relay, at `remote`, says on a leg that this node has made.
    pub fn handle_own_leg_datagram(&mut self, remote: SocketAddr, datagram: &[u8], trust: &Trust, now: Now) {
        self.observe_clock(now);
        // A relay asks nothing.
        let result = match Packet::parse(datagram) {
            Ok(Packet::Reply { .. } | Packet::Hint(_)) => {
                self.receive((remote, &Back::Straight), datagram, trust, now)
            }
            Ok(Packet::Long { .. } | Packet::Short { .. }) | Err(_) => Err(Discard::Forbidden),
        };
        if let Err(reason) = result {
            self.discard(reason);
        }
    }

    /// Returns the next datagram to send on a leg that this node has made.
    pub fn poll_own_leg_transmit(&mut self) -> Option<(LegId, Bytes)> {
        self.own_leg_transmits.pop_front()
    }

    /// Returns whither an answer goes that was put off by a ticket; `None` if the context was forgotten meanwhile, so that
    /// the asker has to ask again.
    pub fn redeem(&self, ticket: &Ticket) -> Option<ReplyTo> {
        let Ticket { remote, context, nonce, room } = *ticket;
        let context = self.contexts.get(context)?;
        // The way that the asker has used last (Rule 6.103).
        let back = self.carried.of(&context.sender()).map_or(Back::Straight, Back::Stream);
        Some(ReplyTo { remote, context, nonce, room: usize::from(room), back })
    }

    /// Takes what came back through a forwarder: the answer, or a hint, of the one who was asked.
    pub(super) fn answered_through(
        &mut self,
        request: RequestId,
        (forwarder, back): (SocketAddr, &Back),
        inner: Option<&[u8]>,
        trust: &Trust,
        now: Now,
    ) -> Result<(), Discard> {
        match inner {
            None => {
                self.fail(request);
                Ok(())
            }
            Some(inner) if matches!(Packet::parse(inner), Ok(Packet::Reply { .. } | Packet::Hint(_))) => {
                self.receive((forwarder, back), inner, trust, now)
            }
            Some(_) => Err(Discard::Forbidden),
        }
    }
}
