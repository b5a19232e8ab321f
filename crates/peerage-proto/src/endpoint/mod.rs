//! Sealed messages: the layer that turns datagrams into requests and replies of members, and back.
//!
//! [`Endpoint`] is shared by every role. It keeps what can be recomputed or forgotten: peers with the contexts
//! opened to them, contexts that others opened, and the requests that wait for an answer. A datagram takes this
//! way (Rule 3.8, cheapest check first): form, receiver, time of start, known context; under load the cookie; then the
//! introduction by its hash, Ed25519, X25519; seal, window, replay, command, membership.

mod back;
mod contexts;
mod keys;
mod outgoing;
mod peers;
mod receive;
mod streams;
mod way;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chacha20::ChaCha20Rng;
use peerage_wire::crypto::Crypto;
use peerage_wire::id::{KeyHint, NetworkId, NodeId, Nonce};
use peerage_wire::intro::KeyStatement;
use peerage_wire::keys::{AgreementKey, IdentityKey, SecretKey};
use peerage_wire::limits::TIME_WINDOW;
use peerage_wire::message::{Reply, Request};
use peerage_wire::seal::ReceiveContext;
use peerage_wire::time::{Instant, Now, UnixTime};
use rand_core::{Rng as _, SeedableRng as _};

use crate::carrier::StreamId;
use crate::discard::{Discard, Discards};
use crate::limiter::{Limiter, Rate};
use crate::relay::LegId;
use crate::sizes::TableSize;
use crate::trust::{Member, Trust};
use crate::wall::WallClock;

use back::Back;
pub use back::Ticket;
use contexts::Contexts;
use keys::SealingKeys;
use outgoing::Outgoing;
use peers::Peers;
use streams::Carried;

/// Key agreements that strangers may cause from one place. Each costs about 0.3 ms; a company behind one
/// address that starts in the morning has some hundred nodes.
const AGREEMENTS: Rate = Rate { per_second: 50, burst: 200 };

/// Hints that are sent to one place: they are unsealed, so they must not be worth asking for.
const HINTS: Rate = Rate { per_second: 20, burst: 100 };

/// Key agreements a second, from everywhere, beyond which a cookie is asked for first: about a tenth of a core.
const BUSY_AGREEMENTS: Rate = Rate { per_second: 300, burst: 300 };

/// What an endpoint is.
#[derive(Clone, Debug)]
pub struct Config {
    /// The network.
    pub network: NetworkId,
    /// The cryptography.
    pub crypto: Arc<dyn Crypto>,
    /// The own identity.
    pub identity: IdentityKey,
    /// The own id.
    pub id: NodeId,
    /// The own Node or OperatorNode record, shown in introductions.
    pub record: Bytes,
    /// Whether strangers are asked to introduce themselves: operators and super-nodes do, others stay silent.
    pub asks_introduction: bool,
}

/// Names a request until it is answered or has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Whither an answer goes.
#[derive(Clone, Debug)]
pub struct ReplyTo {
    remote: SocketAddr,
    context: Arc<ReceiveContext>,
    nonce: Nonce,
    /// Most bytes of the sealed answer: as many as the request had.
    room: usize,
    back: Back,
}

impl ReplyTo {
    /// Returns the most bytes that the sealed answer may have.
    pub const fn room(&self) -> usize {
        self.room
    }
}

/// A request of a member, checked in every way that does not depend on the command.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// Who asks.
    pub from: Member,
    /// Whence, as seen here.
    pub remote: SocketAddr,
    /// What.
    pub request: Request,
    /// Whither the answer goes.
    pub reply_to: ReplyTo,
}

/// What came of a datagram or a timeout.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// A member asks something.
    Request(Box<Incoming>),
    /// An own request was answered.
    Answered {
        /// Which.
        request: RequestId,
        /// By whom.
        from: NodeId,
        /// What.
        reply: Reply,
        /// How long it took since it was last sent.
        rtt: Duration,
        /// From where it came, if request and answer were datagrams between the two.
        straight: Option<SocketAddr>,
        /// On which stream the answer came, if it came on one.
        stream: Option<StreamId>,
    },
    /// Somebody through whom an own request goes has answered, whether or not its receiver does.
    Forwarded {
        /// Who.
        by: NodeId,
        /// On which stream, if not as a datagram.
        stream: Option<StreamId>,
    },
    /// An own request was not answered in time.
    Failed {
        /// Which.
        request: RequestId,
        /// Who was asked.
        to: NodeId,
    },
    /// The clock's offset was learned or has changed.
    ClockLearned(i64),
    /// Somebody whose word alone does not count gave another time, and no operator stands by the own one.
    ClockDoubted,
}

/// The sealed message layer of one node.
#[derive(Debug)]
pub struct Endpoint {
    config: Config,
    rng: ChaCha20Rng,
    clock: WallClock,
    /// When one of the computer's clocks was seen to step last, or the offset was changed.
    stepped_at: Instant,
    /// The computer's clock at start, uncorrected like what it is compared with after correction.
    started: Now,
    keys: SealingKeys,
    peers: Peers,
    contexts: Contexts,
    outgoing: Outgoing,
    carried: Carried,
    agreements: Limiter,
    busy: Limiter,
    hints: Limiter,
    cookie_key: SecretKey,
    discards: Discards,
    transmits: VecDeque<(SocketAddr, Bytes)>,
    probe_transmits: VecDeque<(SocketAddr, Bytes)>,
    /// Datagrams that leave from each of some ports.
    wide_transmits: VecDeque<(SocketAddr, Bytes)>,
    leg_transmits: VecDeque<(LegId, Bytes)>,
    own_leg_transmits: VecDeque<(LegId, Bytes)>,
    stream_transmits: VecDeque<(StreamId, Bytes)>,
    outcomes: VecDeque<Outcome>,
}

impl Endpoint {
    /// Makes an endpoint with a fresh sealing key.
    pub fn new(config: Config, seed: [u8; 32], now: Now) -> Self {
        let mut rng = ChaCha20Rng::from_seed(seed);
        let keys = SealingKeys::new(&config, now, &mut rng);
        let cookie_key = SecretKey::generate(&mut rng);
        let mut clock = WallClock::new();
        clock.observe(now);
        Self {
            config,
            rng,
            clock,
            stepped_at: now.mono,
            started: now,
            keys,
            peers: Peers::default(),
            contexts: Contexts::default(),
            outgoing: Outgoing::default(),
            carried: Carried::default(),
            agreements: Limiter::new(AGREEMENTS),
            busy: Limiter::new(BUSY_AGREEMENTS),
            hints: Limiter::new(HINTS),
            cookie_key,
            discards: Discards::default(),
            transmits: VecDeque::new(),
            probe_transmits: VecDeque::new(),
            wide_transmits: VecDeque::new(),
            leg_transmits: VecDeque::new(),
            own_leg_transmits: VecDeque::new(),
            stream_transmits: VecDeque::new(),
            outcomes: VecDeque::new(),
        }
    }

    /// Returns the own id.
    pub const fn id(&self) -> NodeId {
        self.config.id
    }

    /// Returns the network.
    pub const fn network(&self) -> NetworkId {
        self.config.network
    }

    /// Returns the own identity.
    pub const fn identity(&self) -> &IdentityKey {
        &self.config.identity
    }

    /// Returns the cryptography.
    pub fn crypto(&self) -> &dyn Crypto {
        &*self.config.crypto
    }

    /// Returns the cryptography, for another endpoint of the same process.
    pub fn shared_crypto(&self) -> Arc<dyn Crypto> {
        Arc::clone(&self.config.crypto)
    }

    /// Returns the random generator, so that one seed makes a whole run.
    pub const fn rng(&mut self) -> &mut ChaCha20Rng {
        &mut self.rng
    }

    /// Returns a random number below `below`, or 0.
    pub fn below(&mut self, below: u64) -> u64 {
        self.rng.next_u64().checked_rem(below).unwrap_or(0)
    }

    /// Returns the corrected clock.
    pub const fn clock(&self) -> &WallClock {
        &self.clock
    }

    /// Returns the corrected time.
    pub fn time(&self, now: Now) -> UnixTime {
        self.clock.time(now)
    }

    /// Returns the corrected time if it was learned: nothing is judged expired before.
    pub fn judging_time(&self, now: Now) -> Option<UnixTime> {
        self.clock.is_learned().then(|| self.clock.time(now))
    }

    /// Returns the statement about the own sealing key of the day.
    pub const fn statement(&self) -> &KeyStatement {
        self.keys.statement()
    }

    /// Changes whether strangers are asked to introduce themselves: a node that becomes a super-node begins to.
    pub const fn ask_introductions(&mut self, asks: bool) {
        self.config.asks_introduction = asks;
    }

    /// Takes a renewed record of its own.
    pub fn set_record(&mut self, record: Bytes) {
        self.config.record = record;
    }

    /// Makes a clock that cannot be wrong count as learned: an operator's own.
    pub const fn trust_own_clock(&mut self) {
        self.clock.confirm();
    }

    /// Returns why datagrams were dropped, and how often.
    pub const fn discards(&self) -> &Discards {
        &self.discards
    }

    /// Counts a datagram that was dropped.
    pub fn discard(&mut self, reason: Discard) {
        self.discards.count(reason);
    }

    /// Makes a peer known, so that it can be asked.
    pub fn learn_peer(&mut self, member: Member, statement: KeyStatement, now: Now) {
        let time = self.judging_time(now);
        self.peers.learn(member, statement, time, now.mono);
    }

    /// Makes a peer known of which only the identity key is known, from a SuperNode or OperatorNode record. What is sent first
    /// is sealed to a key that nobody has; the peer answers with a hint that states its own, and the request goes out again
    /// (Rule 3.9). A peer that is known already stays as it is.
    pub fn learn_identity(&mut self, member: Member, now: Now) {
        if self.peers.get(&member.id).is_some() {
            return;
        }
        let nobody = AgreementKey::generate(&mut self.rng);
        let statement = KeyStatement {
            node: member.id,
            key: *nobody.public(),
            not_before: UnixTime::default(),
            not_after: UnixTime::default(),
            signature: [0; 64],
        };
        // Its own introduction says more, so it takes the place of this one whatever its date.
        let member = Member { expires: UnixTime::default(), ..member };
        self.peers.learn(member, statement, None, now.mono);
    }

    /// Forgets a peer: what it sends next is that of a stranger, and its record must be valid then.
    pub fn forget_peer(&mut self, node: &NodeId) {
        self.peers.forget(node);
    }

    /// Returns what is known of a peer.
    pub fn peer(&self, node: &NodeId) -> Option<&Member> {
        self.peers.get(node).map(|peer| &peer.member)
    }

    /// Returns which sealing key a peer has, as far as is known.
    pub fn peer_key(&self, node: &NodeId) -> Option<KeyHint> {
        self.peers.get(node).map(|peer| peer.statement.hint())
    }

    /// Returns the next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Bytes)> {
        self.transmits.pop_front()
    }

    /// Returns the next datagram to send from the second port.
    pub fn poll_probe(&mut self) -> Option<(SocketAddr, Bytes)> {
        self.probe_transmits.pop_front()
    }

    /// Returns the next datagram to send from each of some ports.
    pub fn poll_wide(&mut self) -> Option<(SocketAddr, Bytes)> {
        self.wide_transmits.pop_front()
    }

    /// Returns the next outcome.
    pub fn poll_outcome(&mut self) -> Option<Outcome> {
        self.outcomes.pop_front()
    }

    /// Returns whether [`poll_outcome`](Self::poll_outcome) has nothing to say.
    pub fn has_no_outcome(&self) -> bool {
        self.outcomes.is_empty()
    }

    /// Returns how full its tables are.
    pub fn table_sizes(&self) -> Vec<TableSize> {
        let limiters = [self.agreements.size("agreements"), self.busy.size("busy"), self.hints.size("hints")];
        let tables = [self.peers.size(), self.carried.size()].into_iter().chain(self.contexts.sizes());
        tables.chain(self.outgoing.sizes()).chain(limiters).collect()
    }

    /// Returns when [`handle_timeout`](Self::handle_timeout) is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let requests = self.outgoing.next_at();
        let keys = Some(self.keys.rotate_at());
        [requests, keys].into_iter().flatten().min()
    }

    /// Sends again what was not answered, gives up what waited too long, rotates the sealing key.
    pub fn handle_timeout(&mut self, trust: &Trust, now: Now) {
        self.observe_clock(now);
        if self.keys.rotate_at() <= now.mono {
            self.keys.rotate(&self.config, self.clock.time(now), now.mono, &mut self.rng);
            // A context ends with the key it was agreed with; introductions state the new one from now on.
            self.peers.drop_contexts();
            self.contexts.forget_expired(self.clock.time(now));
        }
        self.retransmit(trust, now);
    }

    /// Notices a suspend, a restored snapshot or a date that was set: then no context may be used any more, since a
    /// copy of this machine may be using them too (Rule 3.5). The contexts that others opened stay: they hold the memory of
    /// what was executed already.
    fn observe_clock(&mut self, now: Now) {
        if self.clock.observe(now) {
            self.stepped_at = now.mono;
            self.peers.drop_contexts();
            self.keys.rotate(&self.config, self.clock.time(now), now.mono, &mut self.rng);
        }
    }

    /// Hears the time of an operator that has renewed the membership (Rule 6.1). Who was cut off for weeks may be told it nowhere else. Where an
    /// operator stands by the own time, messages have told it more precisely.
    pub(crate) fn hear_renewal(&mut self, theirs: UnixTime, now: Now) {
        let is_wanted = self.is_far(theirs, now) || !self.clock.is_learned();
        if is_wanted && self.clock.standing(now.mono).next().is_none() {
            self.learn_clock(theirs, now);
        }
    }

    /// Returns whether somebody's time differs from the own by more than a message takes on its way.
    fn is_far(&self, theirs: UnixTime, now: Now) -> bool {
        theirs.distance(self.clock.time(now)) > TIME_WINDOW / 2
    }

    /// Corrects the clock by an operator's time, and all that was made with the wrong one.
    fn learn_clock(&mut self, theirs: UnixTime, now: Now) {
        if self.clock.learn(theirs, now) {
            self.stepped_at = now.mono;
            self.peers.drop_contexts();
            self.keys.rotate(&self.config, self.clock.time(now), now.mono, &mut self.rng);
        }
        self.outcomes.push_back(Outcome::ClockLearned(self.clock.offset_millis()));
    }
}

#[cfg(test)]
pub(crate) mod tests;
