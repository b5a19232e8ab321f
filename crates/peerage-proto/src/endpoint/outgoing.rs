//! Own requests: sent, sent again, matched with their answers, or given up.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use peerage_wire::crypto::TAG_SIZE;
use peerage_wire::id::{NodeId, Nonce};
use peerage_wire::limits::MAX_DATAGRAM;
use peerage_wire::message::{PLAINTEXT_HEADER, Request};
use peerage_wire::packet::{Class, tag_of};
use peerage_wire::seal::{Ends, Sealed, SendContext};
use peerage_wire::time::{Instant, Now};

use super::peers::{Opened, Peer};
use super::{Endpoint, Outcome, RequestId};
use crate::discard::Discard;
use crate::trust::Trust;

/// When a request that was not answered is sent again, counted from when it was last sent; after the last it has
/// failed (Rule 6.2). RFC 8489 starts at the same 500 ms; three packets survive 10 % loss in 99.9 of 100 cases.
pub(super) const RETRANSMIT: [Duration; 3] =
    [Duration::from_millis(500), Duration::from_millis(1_000), Duration::from_millis(2_000)];

/// Most requests that wait for an answer; more fail at once.
pub(super) const MAX_OUTSTANDING: usize = 4_096;

/// How often one request is sent again because of hints or a corrected clock (Rule 6.3): each of the four reasons once,
/// and once more. More would let whoever sees the requests make a node send; fewer would give up on an honest receiver.
const MAX_RESENT: u32 = 5;

/// How long after a datagram a hint about it is acted upon.
const HINT_LIFETIME: Duration = Duration::from_secs(5);

/// One datagram of a request.
#[derive(Clone, Debug)]
struct Attempt {
    request: RequestId,
    /// The context that sealed it, to open the answer with.
    context: SendContext,
    tag: [u8; TAG_SIZE],
    sent_at: Instant,
}

/// A request that waits for its answer.
#[derive(Clone, Debug)]
struct Waiting {
    to: NodeId,
    remote: SocketAddr,
    number: u8,
    class: Class,
    plaintext: Vec<u8>,
    reply_size: usize,
    /// How often it was sent because nothing came.
    sent: usize,
    /// How often it was sent because a hint asked for it.
    resent: u32,
    next_at: Instant,
    nonces: Vec<Nonce>,
    /// Whether it waits until a smaller one has introduced this node, because both do not fit into one datagram.
    parked: bool,
    /// Whether it was made here, to introduce this node, and nobody wants to hear of it.
    internal: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Outgoing {
    next_id: u64,
    waiting: BTreeMap<RequestId, Waiting>,
    attempts: BTreeMap<Nonce, Attempt>,
    by_tag: BTreeMap<[u8; TAG_SIZE], Nonce>,
    /// Requests that failed before they could be sent.
    failed: VecDeque<(RequestId, NodeId)>,
}

/// An answer that may be somebody's: what is needed to open it.
pub(super) struct Expected {
    pub(super) context: SendContext,
    pub(super) request: RequestId,
    pub(super) to: NodeId,
    pub(super) number: u8,
    pub(super) rtt: Duration,
}

impl Outgoing {
    fn new_id(&mut self) -> RequestId {
        self.next_id = self.next_id.saturating_add(1);
        RequestId(self.next_id)
    }

    /// Returns the earliest deadline.
    pub(super) fn next_at(&self) -> Option<Instant> {
        if !self.failed.is_empty() {
            return Some(Instant::default());
        }
        self.waiting.values().filter(|waiting| !waiting.parked).map(|waiting| waiting.next_at).min()
    }

    /// Returns how to open an answer to the request with this nonce.
    pub(super) fn expected(&self, nonce: &Nonce, now: Instant) -> Option<Expected> {
        let attempt = self.attempts.get(nonce)?;
        let waiting = self.waiting.get(&attempt.request)?;
        Some(Expected {
            context: attempt.context.clone(),
            request: attempt.request,
            to: waiting.to,
            number: waiting.number,
            rtt: now - attempt.sent_at,
        })
    }

    /// Forgets a request and all its datagrams. Returns whether somebody wants to hear of it.
    pub(super) fn finish(&mut self, request: RequestId) -> bool {
        let Some(waiting) = self.waiting.remove(&request) else { return false };
        for nonce in &waiting.nonces {
            if let Some(attempt) = self.attempts.remove(nonce) {
                self.by_tag.remove(&attempt.tag);
            }
        }
        !waiting.internal
    }

    /// Returns the request that a hint is about, if it was sent to just there and just now.
    pub(super) fn hinted(
        &self,
        echo: &[u8; TAG_SIZE],
        remote: SocketAddr,
        now: Instant,
    ) -> Option<(RequestId, NodeId)> {
        let attempt = self.attempts.get(self.by_tag.get(echo)?)?;
        let waiting = self.waiting.get(&attempt.request)?;
        let fresh = now - attempt.sent_at <= HINT_LIFETIME && waiting.remote == remote;
        fresh.then_some((attempt.request, waiting.to))
    }
}

impl Endpoint {
    /// Sends a request to a peer that was learned before; what comes of it is an [`Outcome`] with the id.
    pub fn request(&mut self, to: NodeId, remote: SocketAddr, request: &Request, now: Now) -> RequestId {
        let id = self.outgoing.new_id();
        if self.outgoing.waiting.len() >= MAX_OUTSTANDING || self.peers.get(&to).is_none() {
            self.outgoing.failed.push_back((id, to));
            return id;
        }
        self.outgoing.waiting.insert(id, Waiting::new(to, remote, request, now.mono));
        self.transmit(id, now);
        id
    }

    /// Seals a waiting request once more and sends it.
    fn transmit(&mut self, id: RequestId, now: Now) {
        let Some(mut waiting) = self.outgoing.waiting.remove(&id) else { return };
        match self.seal(&waiting, now) {
            Some((sealed, context)) => {
                if let Some(tag) = tag_of(&sealed.datagram) {
                    let attempt = Attempt { request: id, context, tag, sent_at: now.mono };
                    self.outgoing.attempts.insert(sealed.nonce, attempt);
                    self.outgoing.by_tag.insert(tag, sealed.nonce);
                    waiting.nonces.push(sealed.nonce);
                }
                self.transmits.push_back((waiting.remote, sealed.datagram.into()));
            }
            None if waiting.internal => self.discard(Discard::Full),
            None => {
                waiting.parked = true;
                self.introduce(waiting.to, waiting.remote, now);
            }
        }
        self.outgoing.waiting.insert(id, waiting);
    }

    /// Sends a Ping that carries the introduction, ahead of a request that has no room for it (Rule 3.7).
    fn introduce(&mut self, to: NodeId, remote: SocketAddr, now: Now) {
        let pending = |w: &Waiting| w.internal && w.to == to && w.remote == remote;
        if self.outgoing.waiting.values().any(pending) {
            return;
        }
        let id = self.outgoing.new_id();
        let ping = Waiting { internal: true, ..Waiting::new(to, remote, &Request::Ping, now.mono) };
        self.outgoing.waiting.insert(id, ping);
        self.transmit(id, now);
    }

    /// Sends what waited for a peer to know this node.
    pub(super) fn unpark(&mut self, peer: NodeId, now: Now) {
        let parked = self.outgoing.waiting.iter().filter(|(_, w)| w.parked && w.to == peer);
        let parked: Vec<_> = parked.map(|(id, _)| *id).collect();
        for id in parked {
            if let Some(waiting) = self.outgoing.waiting.get_mut(&id) {
                waiting.parked = false;
                waiting.next_at = now.mono.after(RETRANSMIT.first().copied().unwrap_or_default());
            }
            self.transmit(id, now);
        }
    }

    /// Seals a request in the short form if the peer has the context, in the long form with the introduction if not
    /// (Rule 6.3).
    /// `None` if that does not fit, or the peer is gone.
    fn seal(&mut self, waiting: &Waiting, now: Now) -> Option<(Sealed, SendContext)> {
        let time = self.clock.time(now);
        self.open_context(waiting.to, now)?;
        let peer = self.peers.get_mut(&waiting.to)?;
        let opened = peer.opened.as_mut()?;
        let with = (&*self.config.crypto, &mut self.rng as &mut dyn rand_core::CryptoRng);
        let sealed = if opened.confirmed {
            let plaintext = waiting.padded(peerage_wire::packet::SHORT_OVERHEAD);
            opened.context.seal_short(waiting.class, &plaintext, time, with)
        } else {
            let introduction = self.keys.introduction(&self.config);
            let cookie = opened.cookie.map_or(0, |cookie| cookie.len());
            let overhead =
                peerage_wire::packet::LONG_HEADER + cookie + introduction.to_bytes().len() + TAG_SIZE;
            if overhead + waiting.plaintext.len() > MAX_DATAGRAM {
                return None;
            }
            let plaintext = waiting.padded(overhead);
            let (class, cookie) = (waiting.class, opened.cookie);
            opened.context.seal_long(class, &plaintext, Some(introduction), cookie, time, with)
        };
        Some((sealed.ok()?, opened.context.clone()))
    }

    /// Makes sure that there is a context to a peer that may still be used.
    fn open_context(&mut self, to: NodeId, now: Now) -> Option<()> {
        let time = self.clock.time(now);
        let peer = self.peers.get_mut(&to)?;
        if peer.opened.as_ref().is_some_and(|opened| !opened.context.is_spent(time)) {
            return Some(());
        }
        let ends = Ends { network: self.config.network, sender: self.config.id, receiver: to };
        let (own, theirs) = (self.keys.current(), &peer.statement.key);
        let crypto = &*self.config.crypto;
        let context = SendContext::open(ends, own, theirs, time, crypto, &mut self.rng).ok()?;
        peer.opened = Some(Opened { context, confirmed: false, cookie: None });
        Some(())
    }

    /// Sends a request once more because a hint or a corrected clock asks for it, a bounded number of times.
    pub(super) fn resend(&mut self, id: RequestId, now: Now) {
        let Some(waiting) = self.outgoing.waiting.get_mut(&id) else { return };
        if waiting.resent >= MAX_RESENT {
            return;
        }
        waiting.resent += 1;
        waiting.next_at = now.mono.after(RETRANSMIT.first().copied().unwrap_or_default());
        self.transmit(id, now);
    }

    pub(super) fn retransmit(&mut self, trust: &Trust, now: Now) {
        while let Some((request, to)) = self.outgoing.failed.pop_front() {
            self.outcomes.push_back(Outcome::Failed { request, to });
        }
        let due = |w: &Waiting| !w.parked && w.next_at <= now.mono;
        let due: Vec<_> = self.outgoing.waiting.iter().filter(|(_, w)| due(w)).map(|(id, _)| *id).collect();
        for id in due {
            let Some(waiting) = self.outgoing.waiting.get_mut(&id) else { continue };
            waiting.sent += 1;
            let revoked = trust.is_revoked(&waiting.to);
            match RETRANSMIT.get(waiting.sent) {
                Some(wait) if !revoked => {
                    waiting.next_at = now.mono.after(*wait);
                    self.transmit(id, now);
                }
                _ => self.fail(id),
            }
        }
    }

    fn fail(&mut self, id: RequestId) {
        let Some(waiting) = self.outgoing.waiting.get(&id) else { return };
        let (to, internal) = (waiting.to, waiting.internal);
        self.outgoing.finish(id);
        if !internal {
            self.outcomes.push_back(Outcome::Failed { request: id, to });
            return;
        }
        // The introduction was not answered, so what waits behind it will not be either.
        let parked = self.outgoing.waiting.iter().filter(|(_, w)| w.parked && w.to == to);
        for id in parked.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.outgoing.finish(id);
            self.outcomes.push_back(Outcome::Failed { request: id, to });
        }
    }

    /// Returns what is known of a peer, to be changed by a hint.
    pub(super) fn peer_mut(&mut self, node: &NodeId) -> Option<&mut Peer> {
        self.peers.get_mut(node)
    }
}

impl Waiting {
    fn new(to: NodeId, remote: SocketAddr, request: &Request, now: Instant) -> Self {
        Self {
            to,
            remote,
            number: request.number(),
            class: request.class(),
            plaintext: request.encode(),
            reply_size: request.reply_size(),
            sent: 0,
            resent: 0,
            next_at: now.after(RETRANSMIT.first().copied().unwrap_or_default()),
            nonces: Vec::new(),
            parked: false,
            internal: false,
        }
    }

    /// Pads the plaintext so that the datagram is as long as the answer may be (Rule 4.2).
    fn padded(&self, overhead: usize) -> Vec<u8> {
        let wanted = self.reply_size.min(MAX_DATAGRAM).saturating_sub(overhead);
        let mut plaintext = self.plaintext.clone();
        plaintext.resize(plaintext.len().max(wanted).max(PLAINTEXT_HEADER), 0);
        plaintext
    }
}
