//! Forwarding: a message for a node that only its standing contact can reach (Rules 6.28 and 6.29).
//!
//! The asker seals a message for a tunnel-node and asks a super-node, or an operator that stands in, to pass it on. The
//! forwarder hands it to the tunnel-node that is attached to it, with a *token*: everything that it must know to answer the
//! asker, sealed with a key of its own. The tunnel-node's answer brings the token back, so the forwarder remembers nothing in
//! between. Whoever hosts a [`Forwarder`] authenticates both, and knows who is attached.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use peerage_wire::codec::{address_bytes, address_from};
use peerage_wire::crypto::Crypto;
use peerage_wire::id::{ContextId, NodeId, Nonce};
use peerage_wire::keys::SecretKey;
use peerage_wire::message::{Forward, Reply, Request};
use peerage_wire::packet::Packet;
use peerage_wire::time::{Instant, Now};
use rand_core::CryptoRng;

use crate::discard::Discard;
use crate::endpoint::{Endpoint, Incoming, Ticket};
use crate::limiter::{NodeLimiter, Rate};

/// How long a token is good for. The asker gives up after a few seconds; longer lets a tunnel-node answer what nobody
/// waits for.
const TOKEN_LIFETIME: Duration = Duration::from_secs(60);

/// What one member may have forwarded. A tunnel to a device behind a NAT needs one message, three times if nothing comes
/// back, at two forwarders; more would let one member keep the line of another busy.
const FORWARDS: Rate = Rate { per_second: 20, burst: 100 };

const LABEL_TOKEN: &[u8] = b"peerage return token 1";

/// Passes messages on.
#[derive(Clone, Debug)]
pub struct Forwarder {
    key: SecretKey,
    rate: NodeLimiter,
}

impl Forwarder {
    /// Makes a forwarder with a key of its own; tokens of an earlier one are void.
    pub fn new(rng: &mut dyn CryptoRng) -> Self {
        Self { key: SecretKey::generate(rng), rate: NodeLimiter::new(FORWARDS) }
    }

    /// Passes on what a member asks. `attached` is where the receiver is, if it is attached here, valid and not revoked.
    /// Returns an answer if there is one already: that nobody of this name is attached.
    ///
    /// # Errors
    /// Why the request is dropped.
    pub fn pass_on(
        &mut self,
        asked: &Incoming,
        attached: Option<SocketAddr>,
        endpoint: &mut Endpoint,
        now: Now,
    ) -> Result<Option<Reply>, Discard> {
        let Request::ForwardedTunnelRequest { to, inner } = &asked.request else {
            return Err(Discard::UnknownCommand);
        };
        if to.domain != asked.from.id.domain || *to == asked.from.id {
            return Err(Discard::Forbidden);
        }
        if !matches!(Packet::parse(inner), Ok(Packet::Long { .. } | Packet::Short { .. })) {
            return Err(Discard::Malformed);
        }
        if !self.rate.take(&asked.from.id, now.mono) {
            return Err(Discard::RateLimited);
        }
        let Some(address) = attached else {
            return Ok(Some(Reply::ForwardedTunnelOpened(None)));
        };
        if !endpoint.has_room_once(asked.from.id, to) {
            return Err(Discard::Full);
        }
        let mut nonce = [0; 12];
        rand_core::Rng::fill_bytes(endpoint.rng(), &mut nonce);
        let ticket = asked.reply_to.ticket();
        let token = self.seal(&ticket, to, (now.mono, nonce), endpoint.crypto()).ok_or(Discard::NoRoom)?;
        let forward = Forward { observed: asked.remote, inner: inner.clone(), token };
        endpoint.request_once(asked.from.id, (*to, address), &Request::Forward(forward), now);
        Ok(None)
    }

    /// Passes an answer back to whoever asked.
    ///
    /// # Errors
    /// Why it is dropped: a token that was not made here for this node, or is too old, or an asker that is forgotten.
    pub fn pass_back(
        &self,
        (from, token, inner): (NodeId, &[u8], Bytes),
        endpoint: &mut Endpoint,
        now: Now,
    ) -> Result<(), Discard> {
        let ticket = self.open(token, &from, now.mono, endpoint.crypto()).ok_or(Discard::BadSeal)?;
        let reply_to = endpoint.redeem(&ticket).ok_or(Discard::UnknownContext)?;
        endpoint.reply(&reply_to, &Reply::ForwardedTunnelOpened(Some(inner)));
        Ok(())
    }

    /// Makes a token: nonce ‖ sealed {seconds (8) ‖ context (8) ‖ nonce (12) ‖ room (2) ‖ address}, for one node alone.
    fn seal(
        &self,
        ticket: &Ticket,
        to: &NodeId,
        (now, nonce): (Instant, [u8; 12]),
        crypto: &dyn Crypto,
    ) -> Option<Bytes> {
        let Ticket { remote, context, nonce: of_request, room } = ticket;
        let mut sealed = now.as_micros().to_be_bytes().to_vec();
        sealed.extend_from_slice(&context.0);
        sealed.extend_from_slice(&of_request.0);
        sealed.extend_from_slice(&room.to_be_bytes());
        sealed.extend_from_slice(&address_bytes(*remote));
        let tag = crypto.seal(&self.key, &nonce, &associated(to), &mut sealed).ok()?;
        sealed.extend_from_slice(&tag);
        Some([&nonce[..], &sealed].concat().into())
    }

    fn open(&self, token: &[u8], from: &NodeId, now: Instant, crypto: &dyn Crypto) -> Option<Ticket> {
        let (nonce, sealed) = token.split_first_chunk::<12>()?;
        let mut sealed = sealed.to_vec();
        let opened = crypto.open(&self.key, nonce, &associated(from), &mut sealed).ok()?;
        let (made_at, rest) = opened.split_first_chunk::<8>()?;
        let (context, rest) = rest.split_first_chunk::<8>()?;
        let (of_request, rest) = rest.split_first_chunk::<12>()?;
        let (room, address) = rest.split_first_chunk::<2>()?;
        let made_at = Instant::from_micros(u64::from_be_bytes(*made_at));
        if now - made_at > TOKEN_LIFETIME {
            return None;
        }
        Some(Ticket {
            remote: address_from(address)?,
            context: ContextId(*context),
            nonce: Nonce(*of_request),
            room: u16::from_be_bytes(*room),
        })
    }
}

fn associated(to: &NodeId) -> Vec<u8> {
    [LABEL_TOKEN, &to.to_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use chacha20::ChaCha20Rng;
    use peerage_wire::crypto::Real;
    use peerage_wire::id::Domain;
    use rand_core::SeedableRng as _;

    const NODE: NodeId = NodeId { domain: Domain(7), hash: [1; 32] };

    fn ticket() -> Ticket {
        let remote = "[2001:db8::1]:7400".parse().unwrap();
        Ticket { remote, context: ContextId([2; 8]), nonce: Nonce([3; 12]), room: 1_044 }
    }

    fn forwarder(seed: u64) -> Forwarder {
        Forwarder::new(&mut ChaCha20Rng::seed_from_u64(seed))
    }

    #[test]
    fn a_token_says_what_was_put_into_it_for_a_minute() {
        let forwarder = forwarder(1);
        let made_at = Instant::from_micros(5_000_000);
        let token = forwarder.seal(&ticket(), &NODE, (made_at, [9; 12]), &Real).unwrap();
        assert!(token.len() <= 80, "{}", token.len());
        let later = |seconds| made_at.after(Duration::from_secs(seconds));
        assert_eq!(forwarder.open(&token, &NODE, later(60), &Real), Some(ticket()));
        assert_eq!(forwarder.open(&token, &NODE, later(61), &Real), None);
    }

    #[test]
    fn a_token_of_somebody_else_for_somebody_else_or_altered_is_void() {
        let (forwarder, other) = (forwarder(1), forwarder(2));
        let now = Instant::from_micros(5_000_000);
        let token = forwarder.seal(&ticket(), &NODE, (now, [9; 12]), &Real).unwrap();
        assert_eq!(other.open(&token, &NODE, now, &Real), None);
        let neighbour = NodeId { hash: [2; 32], ..NODE };
        assert_eq!(forwarder.open(&token, &neighbour, now, &Real), None);
        for at in 0..token.len() {
            let mut altered = token.to_vec();
            altered[at] ^= 1;
            assert_eq!(forwarder.open(&altered, &NODE, now, &Real), None);
            assert_eq!(forwarder.open(&token[..at], &NODE, now, &Real), None);
        }
    }
}
