//! Own requests: sent, sent again, matched with their answers, or given up.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use peerage_wire::crypto::TAG_SIZE;
use peerage_wire::id::{Domain, NodeId, Nonce};
use peerage_wire::limits::{MAX_DATAGRAM, MAX_FORWARDED};
use peerage_wire::message::{PLAINTEXT_HEADER, Request};
use peerage_wire::packet::{Class, tag_of};
use peerage_wire::seal::{Ends, Sealed, SendContext};
use peerage_wire::time::{Instant, Now};

use super::peers::{Opened, Peer};
use super::way::{RETRANSMIT, Way};
use super::{Endpoint, Outcome, RequestId};
use crate::discard::Discard;
use crate::relay::LegId;
use crate::sizes::TableSize;
use crate::trust::Trust;

/// Most requests that wait for an answer; more fail at once.
pub(super) const MAX_OUTSTANDING: usize = 4_096;

/// How often one request is sent again because of hints or a corrected clock (Rule 6.3): each of the four reasons once,
/// and once more. More would let whoever sees the requests make a node send; fewer would give up on an honest receiver.
const MAX_RESENT: u32 = 5;

/// How often one request is sent earlier than it would be, because its sender has reason to believe that the receiver is back. With
/// those of Rule 6.2 that is one datagram in half a second at the most.
const MAX_HASTENED: u32 = 5;

/// How long after a datagram a hint about it is acted upon.
const HINT_LIFETIME: Duration = Duration::from_secs(5);

/// Most requests sent only once that wait for an answer: others cause them, and must not take the room of the own ones.
const MAX_ONCE: usize = MAX_OUTSTANDING / 4;

/// Most of them to one receiver. An honest one answers within a round trip; more would let one that is silent take the room of
/// others, fewer would lose what several ask at once.
const MAX_ONCE_PER_NODE: u32 = 16;

/// Most of them to one receiver on behalf of one asker: a quarter, so that a member that floods leaves room for the others. Fewer
/// would drop what a user-node opens at once, and its repetitions.
const MAX_ONCE_PER_ASKER: u32 = MAX_ONCE_PER_NODE / 4;

/// Most of them to the nodes of one domain, so that no domain takes the room of all others.
const MAX_ONCE_PER_DOMAIN: u32 = 128;

/// One datagram of a request.
#[derive(Clone, Debug)]
struct Attempt {
    request: RequestId,
    /// Who can answer it: the receiver, or the forwarder.
    to: NodeId,
    /// The command that is answered.
    number: u8,
    /// The context that sealed it, to open the answer with.
    context: SendContext,
    tag: [u8; TAG_SIZE],
    sent_at: Instant,
}

/// A request that waits for its answer.
#[derive(Clone, Debug)]
struct Waiting {
    to: NodeId,
    /// Where datagrams go: to the receiver, or to the forwarder.
    remote: SocketAddr,
    way: Way,
    number: u8,
    class: Class,
    plaintext: Vec<u8>,
    reply_size: usize,
    /// How often it was sent because nothing came.
    sent: usize,
    /// How often it was sent because a hint asked for it.
    resent: u32,
    /// How often it was sent because somebody could not wait.
    hastened: u32,
    next_at: Instant,
    nonces: Vec<Nonce>,
    /// To whom a smaller one introduces this node first, because both do not fit into one datagram.
    parked: Option<NodeId>,
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
    /// How many of those that wait are sent only once.
    once: usize,
    /// The same by receiver, by its domain, and by whoever has asked for it.
    once_to: BTreeMap<NodeId, u32>,
    once_for: BTreeMap<(NodeId, NodeId), u32>,
    once_in: BTreeMap<Domain, u32>,
}

/// A sealed request, with what answers each of its layers.
type Layers = (Bytes, Vec<(Nonce, Attempt)>);

/// An answer that may be somebody's: what is needed to open it.
pub(super) struct Expected {
    pub(super) context: SendContext,
    pub(super) request: RequestId,
    pub(super) to: NodeId,
    pub(super) number: u8,
    pub(super) rtt: Duration,
}

impl Outgoing {
    pub(super) fn sizes(&self) -> [TableSize; 2] {
        // Each sending makes an attempt, and one more with a forwarder.
        let sendings =
            RETRANSMIT.len().saturating_add(usize::try_from(MAX_RESENT + MAX_HASTENED).unwrap_or(0));
        [
            TableSize::new("requests", self.waiting.len(), 2 * MAX_OUTSTANDING),
            TableSize::new("attempts", self.attempts.len(), 4 * MAX_OUTSTANDING * sendings),
        ]
    }

    fn new_id(&mut self) -> RequestId {
        self.next_id = self.next_id.saturating_add(1);
        RequestId(self.next_id)
    }

    fn has_room_once(&self, asker: NodeId, to: &NodeId) -> bool {
        let count = |count: Option<&u32>| count.copied().unwrap_or(0);
        self.waiting.len() < MAX_OUTSTANDING
            && self.once < MAX_ONCE
            && count(self.once_to.get(to)) < MAX_ONCE_PER_NODE
            && count(self.once_for.get(&(asker, *to))) < MAX_ONCE_PER_ASKER
            && count(self.once_in.get(&to.domain)) < MAX_ONCE_PER_DOMAIN
    }

    fn count_once(&mut self, asker: NodeId, to: NodeId) {
        self.once += 1;
        *self.once_for.entry((asker, to)).or_default() += 1;
        *self.once_to.entry(to).or_default() += 1;
        *self.once_in.entry(to.domain).or_default() += 1;
    }

    /// Returns whether a request goes through a forwarder, so that its answer comes inside the forwarder's.
    pub(super) fn is_through(&self, request: RequestId) -> bool {
        self.waiting.get(&request).is_some_and(|waiting| matches!(waiting.way, Way::Through(_)))
    }

    /// Returns whether a request went straight to its receiver, so that its answer comes from there.
    pub(super) fn is_straight(&self, request: RequestId) -> bool {
        let way = self.waiting.get(&request).map(|waiting| waiting.way);
        matches!(way, Some(Way::Straight | Way::Once(_) | Way::Check | Way::Widely))
    }

    /// Returns the earliest deadline.
    pub(super) fn next_at(&self) -> Option<Instant> {
        if !self.failed.is_empty() {
            return Some(Instant::default());
        }
        self.waiting.values().filter(|waiting| waiting.parked.is_none()).map(|waiting| waiting.next_at).min()
    }

    /// Returns how to open an answer to the request with this nonce.
    pub(super) fn expected(&self, nonce: &Nonce, now: Instant) -> Option<Expected> {
        let attempt = self.attempts.get(nonce)?;
        Some(Expected {
            context: attempt.context.clone(),
            request: attempt.request,
            to: attempt.to,
            number: attempt.number,
            rtt: now - attempt.sent_at,
        })
    }

    /// Forgets a request and all its datagrams. Returns whether somebody wants to hear of it.
    pub(super) fn finish(&mut self, request: RequestId) -> bool {
        let Some(waiting) = self.waiting.remove(&request) else { return false };
        if let Way::Once(asker) = waiting.way {
            self.once = self.once.saturating_sub(1);
            uncount(&mut self.once_for, &(asker, waiting.to));
            uncount(&mut self.once_to, &waiting.to);
            uncount(&mut self.once_in, &waiting.to.domain);
        }
        for nonce in &waiting.nonces {
            if let Some(attempt) = self.attempts.remove(nonce) {
                self.by_tag.remove(&attempt.tag);
            }
        }
        !waiting.internal
    }

    /// Returns the request that a hint is about, if it was sent just now, and to just there where a place is given.
    pub(super) fn hinted(
        &self,
        echo: &[u8; TAG_SIZE],
        remote: Option<SocketAddr>,
        now: Instant,
    ) -> Option<(RequestId, NodeId)> {
        let attempt = self.attempts.get(self.by_tag.get(echo)?)?;
        let waiting = self.waiting.get(&attempt.request)?;
        let fresh =
            now - attempt.sent_at <= HINT_LIFETIME && remote.is_none_or(|remote| waiting.remote == remote);
        fresh.then_some((attempt.request, attempt.to))
    }
}

impl Endpoint {
    /// Sends a request to a peer that was learned before; what comes of it is an [`Outcome`] with the id.
    pub fn request(&mut self, to: NodeId, remote: SocketAddr, request: &Request, now: Now) -> RequestId {
        self.begin(Waiting::new(to, (remote, Way::Straight), request, now.mono), now)
    }

    /// Returns whether there is room for one more request to a peer that is sent once for this asker: each peer, each domain and,
    /// at one peer, each asker has a share.
    pub fn has_room_once(&self, asker: NodeId, to: &NodeId) -> bool {
        self.outgoing.has_room_once(asker, to)
    }

    /// Sends a request once, on behalf of an asker who repeats it if it is lost.
    pub fn request_once(
        &mut self,
        asker: NodeId,
        (to, remote): (NodeId, SocketAddr),
        request: &Request,
        now: Now,
    ) -> RequestId {
        self.begin(Waiting::new(to, (remote, Way::Once(asker)), request, now.mono), now)
    }

    /// Sends a request once to where its receiver may be.
    pub fn request_as_check(
        &mut self,
        to: NodeId,
        remote: SocketAddr,
        request: &Request,
        now: Now,
    ) -> RequestId {
        self.begin(Waiting::new(to, (remote, Way::Check), request, now.mono), now)
    }

    /// The same from each of some ports that are there for it alone (Rule 6.99). The datagrams come out of
    /// [`poll_wide`](Self::poll_wide).
    pub fn request_widely(
        &mut self,
        to: NodeId,
        remote: SocketAddr,
        request: &Request,
        now: Now,
    ) -> RequestId {
        self.begin(Waiting::new(to, (remote, Way::Widely), request, now.mono), now)
    }

    /// Sends a request from a second port, to see whether whoever knows only the address gets an answer. The datagrams come out
    /// of [`poll_probe`](Self::poll_probe).
    pub fn request_as_stranger(
        &mut self,
        to: NodeId,
        remote: SocketAddr,
        request: &Request,
        now: Now,
    ) -> RequestId {
        self.begin(Waiting::new(to, (remote, Way::Probe), request, now.mono), now)
    }

    /// Sends a request through a forwarder, itself a peer, at whose address it is given; the outcome names the receiver.
    pub fn request_through(
        &mut self,
        (forwarder, remote): (NodeId, SocketAddr),
        to: NodeId,
        request: &Request,
        now: Now,
    ) -> RequestId {
        self.begin(Waiting::new(to, (remote, Way::Through(forwarder)), request, now.mono), now)
    }

    /// Sends a request on an own leg, whose other end is at `remote`.
    pub fn request_on(
        &mut self,
        (leg, remote): (LegId, SocketAddr),
        to: NodeId,
        request: &Request,
        now: Now,
    ) -> RequestId {
        self.begin(Waiting::new(to, (remote, Way::Leg(leg)), request, now.mono), now)
    }

    /// Sends a request that waits for its answer once more at once, beside the sendings of Rule 6.2; at most five times.
    pub fn hasten(&mut self, id: RequestId, now: Now) {
        let Some(waiting) = self.outgoing.waiting.get_mut(&id) else { return };
        if waiting.parked.is_none() && waiting.hastened < MAX_HASTENED {
            waiting.hastened += 1;
            self.transmit(id, now);
        }
    }

    /// Does the same for all that wait for this node and are repeated here.
    pub(super) fn hasten_to(&mut self, receiver: &NodeId, now: Now) {
        let repeated = |way| matches!(way, Way::Straight | Way::Through(_));
        let waiting = self.outgoing.waiting.iter();
        let theirs = waiting.filter(|(_, w)| w.receiver() == *receiver && repeated(w.way));
        for id in theirs.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.hasten(id, now);
        }
    }

    /// Begins a request in a certain way.
    pub(super) fn begin_on(
        &mut self,
        way: (SocketAddr, Way),
        to: NodeId,
        request: &Request,
        now: Now,
    ) -> RequestId {
        self.begin(Waiting::new(to, way, request, now.mono), now)
    }

    /// Forgets a request that nobody waits for any more; nothing comes of it.
    pub fn forget_request(&mut self, id: RequestId) {
        self.outgoing.finish(id);
    }

    /// Introduces this node to a peer that has not answered it lately, so that the next long message fits.
    pub fn warm_up(&mut self, to: NodeId, remote: SocketAddr, now: Now) {
        if !self.is_known_to(&to, now) {
            self.introduce(to, (remote, Way::Straight), now);
        }
    }

    /// Returns whether a peer has answered lately, so that messages to it need no introduction.
    pub fn is_known_to(&self, peer: &NodeId, now: Now) -> bool {
        let time = self.clock.time(now);
        let opened = self.peers.get(peer).and_then(|peer| peer.opened.as_ref());
        opened.is_some_and(|opened| opened.confirmed && !opened.context.is_spent(time))
    }

    fn begin(&mut self, waiting: Waiting, now: Now) -> RequestId {
        let id = self.outgoing.new_id();
        let through = waiting.receiver();
        let known = self.peers.get(&waiting.to).is_some() && self.peers.get(&through).is_some();
        let asker = if let Way::Once(asker) = waiting.way { Some(asker) } else { None };
        let is_full = self.outgoing.waiting.len() >= MAX_OUTSTANDING
            || asker.is_some_and(|asker| !self.outgoing.has_room_once(asker, &waiting.to));
        if is_full || !known {
            self.outgoing.failed.push_back((id, waiting.to));
            return id;
        }
        if let Some(asker) = asker {
            self.outgoing.count_once(asker, waiting.to);
        }
        self.outgoing.waiting.insert(id, waiting);
        self.transmit(id, now);
        id
    }

    /// Seals a waiting request once more and sends it.
    fn transmit(&mut self, id: RequestId, now: Now) {
        let Some(mut waiting) = self.outgoing.waiting.remove(&id) else { return };
        match self.seal_layers(id, &waiting, now) {
            Ok((datagram, attempts)) => {
                for (nonce, attempt) in attempts {
                    self.outgoing.by_tag.insert(attempt.tag, nonce);
                    self.outgoing.attempts.insert(nonce, attempt);
                    waiting.nonces.push(nonce);
                }
                match waiting.way {
                    Way::Leg(leg) => self.own_leg_transmits.push_back((leg, datagram)),
                    Way::Probe => self.probe_transmits.push_back((waiting.remote, datagram)),
                    Way::Widely => self.wide_transmits.push_back((waiting.remote, datagram)),
                    Way::Check => self.transmits.push_back((waiting.remote, datagram)),
                    Way::Stream(stream) => self.stream_transmits.push_back((stream, datagram)),
                    Way::Straight | Way::Once(_) | Way::Through(_) => {
                        match self.carried.of(&waiting.receiver()) {
                            Some(stream) => self.stream_transmits.push_back((stream, datagram)),
                            None => self.transmits.push_back((waiting.remote, datagram)),
                        }
                    }
                }
            }
            // Even the introduction alone does not fit.
            Err(stranger) if waiting.internal && stranger == waiting.to => self.discard(Discard::Full),
            Err(stranger) => {
                waiting.parked = Some(stranger);
                let way = if stranger == waiting.to { waiting.way } else { Way::Straight };
                self.introduce(stranger, (waiting.remote, way), now);
            }
        }
        self.outgoing.waiting.insert(id, waiting);
    }

    /// Seals a request, and once more for the forwarder if it goes through one. Fails with the node that has to know this
    /// one first, because there is no room for an introduction.
    fn seal_layers(&mut self, id: RequestId, waiting: &Waiting, now: Now) -> Result<Layers, NodeId> {
        let Waiting { to, number, .. } = *waiting;
        let message = (waiting.class, &waiting.plaintext[..], waiting.reply_size);
        let attempt = |(sealed, context): (Sealed, SendContext), to, number| {
            let tag = tag_of(&sealed.datagram).unwrap_or_default();
            let attempt = Attempt { request: id, to, number, context, tag, sent_at: now.mono };
            (sealed.datagram, (sealed.nonce, attempt))
        };
        let Way::Through(forwarder) = waiting.way else {
            let sealed = self.seal(to, message, MAX_DATAGRAM, now).ok_or(to)?;
            let (datagram, one) = attempt(sealed, to, number);
            return Ok((datagram.into(), vec![one]));
        };
        let inner = self.seal(to, message, MAX_FORWARDED, now).ok_or(to)?;
        let (inner, first) = attempt(inner, to, number);
        let outer = Request::ForwardedTunnelRequest { to, inner: inner.into() };
        let plaintext = outer.encode();
        let message = (outer.class(), &plaintext[..], outer.reply_size());
        let sealed = self.seal(forwarder, message, MAX_DATAGRAM, now).ok_or(forwarder)?;
        let (datagram, second) = attempt(sealed, forwarder, outer.number());
        Ok((datagram.into(), vec![first, second]))
    }

    /// Sends a Ping that carries the introduction, ahead of a request that has no room for it (Rule 3.7).
    fn introduce(&mut self, to: NodeId, (remote, way): (SocketAddr, Way), now: Now) {
        let pending = |w: &Waiting| w.internal && w.to == to && w.remote == remote;
        if self.outgoing.waiting.values().any(pending) {
            return;
        }
        let way = if matches!(way, Way::Once(_)) { Way::Straight } else { way };
        let id = self.outgoing.new_id();
        let ping = Waiting { internal: true, ..Waiting::new(to, (remote, way), &Request::Ping, now.mono) };
        self.outgoing.waiting.insert(id, ping);
        self.transmit(id, now);
    }

    /// Sends what waited for a peer to know this node.
    pub(super) fn unpark(&mut self, peer: NodeId, now: Now) {
        let parked = self.outgoing.waiting.iter().filter(|(_, w)| w.parked == Some(peer));
        let parked: Vec<_> = parked.map(|(id, _)| *id).collect();
        for id in parked {
            if let Some(waiting) = self.outgoing.waiting.get_mut(&id) {
                waiting.parked = None;
                waiting.next_at = now.mono.after(waiting.way.patience());
            }
            self.transmit(id, now);
        }
    }

    /// Seals a request in the short form if the peer has the context, in the long form with the introduction if not
    /// (Rule 6.3).
    /// `None` if that has more than `room` bytes, or the peer is gone.
    fn seal(
        &mut self,
        to: NodeId,
        (class, plaintext, reply_size): (Class, &[u8], usize),
        room: usize,
        now: Now,
    ) -> Option<(Sealed, SendContext)> {
        let time = self.clock.time(now);
        self.open_context(to, now)?;
        let peer = self.peers.get_mut(&to)?;
        let opened = peer.opened.as_mut()?;
        let with = (&*self.config.crypto, &mut self.rng as &mut dyn rand_core::CryptoRng);
        let fits = |overhead: usize| overhead + plaintext.len() <= room;
        let padded = |overhead| padded(plaintext, reply_size.min(room), overhead);
        let sealed = if opened.confirmed {
            let overhead = peerage_wire::packet::SHORT_OVERHEAD;
            if !fits(overhead) {
                return None;
            }
            opened.context.seal_short(class, &padded(overhead), time, with)
        } else {
            let introduction = self.keys.introduction(&self.config);
            let cookie = opened.cookie.map_or(0, |cookie| cookie.len());
            let overhead =
                peerage_wire::packet::LONG_HEADER + cookie + introduction.to_bytes().len() + TAG_SIZE;
            if !fits(overhead) {
                return None;
            }
            let (introduction, cookie) = (Some(introduction), opened.cookie);
            opened.context.seal_long(class, &padded(overhead), introduction, cookie, time, with)
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
        waiting.next_at = now.mono.after(waiting.way.patience());
        self.transmit(id, now);
    }

    pub(super) fn retransmit(&mut self, trust: &Trust, now: Now) {
        while let Some((request, to)) = self.outgoing.failed.pop_front() {
            self.outcomes.push_back(Outcome::Failed { request, to });
        }
        let due = |w: &Waiting| w.parked.is_none() && w.next_at <= now.mono;
        let due: Vec<_> = self.outgoing.waiting.iter().filter(|(_, w)| due(w)).map(|(id, _)| *id).collect();
        for id in due {
            let Some(waiting) = self.outgoing.waiting.get_mut(&id) else { continue };
            waiting.sent += 1;
            let revoked = trust.is_revoked(&waiting.to);
            match waiting.way.wait_after(waiting.sent) {
                Some(wait) if !revoked => {
                    waiting.next_at = now.mono.after(wait);
                    self.transmit(id, now);
                }
                _ => self.fail(id),
            }
        }
    }

    pub(super) fn fail(&mut self, id: RequestId) {
        let Some(waiting) = self.outgoing.waiting.get(&id) else { return };
        let (to, internal) = (waiting.to, waiting.internal);
        self.outgoing.finish(id);
        if !internal {
            self.outcomes.push_back(Outcome::Failed { request: id, to });
            return;
        }
        // The introduction was not answered, so what waits behind it will not be either.
        let parked = self.outgoing.waiting.iter().filter(|(_, w)| w.parked == Some(to));
        for (id, to) in parked.map(|(id, w)| (*id, w.to)).collect::<Vec<_>>() {
            if self.outgoing.finish(id) {
                self.outcomes.push_back(Outcome::Failed { request: id, to });
            }
        }
    }

    /// Returns what is known of a peer, to be changed by a hint.
    pub(super) fn peer_mut(&mut self, node: &NodeId) -> Option<&mut Peer> {
        self.peers.get_mut(node)
    }
}

impl Waiting {
    /// Returns who gets the datagrams: the receiver, or the forwarder.
    const fn receiver(&self) -> NodeId {
        if let Way::Through(forwarder) = self.way { forwarder } else { self.to }
    }

    fn new(to: NodeId, (remote, way): (SocketAddr, Way), request: &Request, now: Instant) -> Self {
        Self {
            to,
            remote,
            way,
            number: request.number(),
            class: request.class(),
            plaintext: request.encode(),
            reply_size: request.reply_size(),
            sent: 0,
            resent: 0,
            hastened: 0,
            next_at: now.after(way.patience()),
            nonces: Vec::new(),
            parked: None,
            internal: false,
        }
    }
}

fn uncount<K: Ord>(counts: &mut BTreeMap<K, u32>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// Pads a plaintext so that its datagram is as long as the answer may be (Rule 4.2).
fn padded(plaintext: &[u8], reply_size: usize, overhead: usize) -> Vec<u8> {
    let wanted = reply_size.min(MAX_DATAGRAM).saturating_sub(overhead);
    let mut plaintext = plaintext.to_vec();
    plaintext.resize(plaintext.len().max(wanted).max(PLAINTEXT_HEADER), 0);
    plaintext
}
