//! What a super-node, or an operator in its place, does for those who cannot reach each other: the [`Forwarder`] and the
//! [`Relay`] behind one door, between the message layer and the shell.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bytes::Bytes;
use peerage_wire::id::{Domain, NodeId};
use peerage_wire::message::{Reply, Request};
use peerage_wire::time::{Instant, Now};
use rand_core::CryptoRng;

use super::{Action, Join, LegId, Limits, Relay};
use crate::discard::Discard;
use crate::endpoint::{Endpoint, Incoming, ReplyTo};
use crate::forward::Forwarder;
use crate::trust::Trust;

/// What happens to legs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A datagram arrived on a leg that is not joined.
    Datagram {
        /// On which.
        leg: LegId,
        /// Who made it, as seen here.
        remote: SocketAddr,
        /// What was in it; not checked in any way.
        payload: Bytes,
    },
    /// A leg is gone.
    Closed(LegId),
}

/// What to do with legs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a datagram, and read the next one.
    Send {
        /// On which.
        leg: LegId,
        /// What.
        payload: Bytes,
    },
    /// Send each its datagram, then pass bytes between them.
    Join([(LegId, Bytes); 2]),
    /// Send this datagram, if any and if it is not joined, then close.
    Close {
        /// Which.
        leg: LegId,
        /// What.
        last: Option<Bytes>,
    },
}

/// How much is relayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Tunnels that are joined.
    pub tunnels: usize,
    /// Legs, the waiting ones included.
    pub legs: usize,
}

/// Forwarder and relay of one computer.
#[derive(Clone, Debug)]
pub struct Desk {
    forwarder: Forwarder,
    relay: Relay<ReplyTo>,
}

impl Desk {
    /// Makes both.
    pub fn new(limits: Limits, rng: &mut dyn CryptoRng) -> Self {
        Self { forwarder: Forwarder::new(rng), relay: Relay::new(limits) }
    }

    /// Takes what happens to legs. A request that comes of it is an outcome of the endpoint, for [`asked`](Self::asked).
    pub fn handle(&mut self, input: Input, endpoint: &mut Endpoint, trust: &Trust, now: Now) {
        match input {
            Input::Datagram { leg, remote, payload } => {
                endpoint.handle_leg_datagram((leg, remote), &payload, trust, now);
            }
            Input::Closed(leg) => self.relay.closed(leg),
        }
    }

    /// Takes a ForwardedTunnelRequest or RelayJoin of a valid member. `attached` is where the receiver of the former is, if
    /// it is attached here, valid and not revoked.
    ///
    /// # Errors
    /// Why it is dropped.
    pub fn asked(
        &mut self,
        incoming: Incoming,
        attached: Option<SocketAddr>,
        endpoint: &mut Endpoint,
        now: Now,
    ) -> Result<(), Discard> {
        if let Request::RelayJoin { link, peer } = incoming.request {
            let leg = incoming.reply_to.leg().ok_or(Discard::Forbidden)?;
            let join = Join { from: incoming.from.id, peer, link };
            self.relay.join(leg, join, incoming.reply_to, now.mono);
            return Ok(());
        }
        if let Some(reply) = self.forwarder.pass_on(&incoming, attached, endpoint, now)? {
            endpoint.reply(&incoming.reply_to, &reply);
        }
        Ok(())
    }

    /// Takes an answer to a request of the endpoint; one to what was forwarded is passed back.
    pub fn answered(&mut self, from: NodeId, reply: Reply, endpoint: &mut Endpoint, now: Now) {
        if let Reply::Forwarded { token, inner } = reply
            && let Err(reason) = self.forwarder.pass_back((from, &token, inner), endpoint, now)
        {
            endpoint.discard(reason);
        }
    }

    /// Ends the legs of all that may not be here any more.
    pub fn review(&mut self, may_stay: impl Fn(&NodeId) -> bool) {
        self.relay.review(may_stay);
    }

    /// Returns when [`handle_timeout`](Self::handle_timeout) is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.relay.poll_timeout()
    }

    /// Gives up legs that have waited for too long.
    pub fn handle_timeout(&mut self, now: Now) {
        self.relay.handle_timeout(now.mono);
    }

    /// Returns the next thing to do with legs.
    pub fn poll_output(&mut self, endpoint: &mut Endpoint) -> Option<Output> {
        if let Some((leg, payload)) = endpoint.poll_leg_transmit() {
            return Some(Output::Send { leg, payload });
        }
        Some(match self.relay.poll_action()? {
            Action::Close(leg) => Output::Close { leg, last: None },
            Action::Refuse(leg, to, why) => {
                Output::Close { leg, last: endpoint.seal_reply(&to, &Reply::RelayJoined(Err(why))) }
            }
            Action::Join([(first, to_first), (second, to_second)]) => {
                let joined = Reply::RelayJoined(Ok(()));
                match (endpoint.seal_reply(&to_first, &joined), endpoint.seal_reply(&to_second, &joined)) {
                    (Some(answer), Some(other)) => Output::Join([(first, answer), (second, other)]),
                    // A request too short for its answer: with this leg the other is closed too.
                    (_, _) => {
                        self.relay.closed(first);
                        Output::Close { leg: first, last: None }
                    }
                }
            }
        })
    }

    /// Returns how much is relayed now.
    pub fn load(&self) -> Load {
        Load { tunnels: self.relay.tunnels(), legs: self.relay.legs() }
    }

    /// Hands over how often each domain was refused for its quota since the last time, to be reported.
    pub fn take_refusals(&mut self) -> BTreeMap<Domain, u64> {
        self.relay.take_refusals()
    }
}
