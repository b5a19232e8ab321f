//! Links: authenticated connections to other nodes, on which tunnels open in one round trip and from which they move when a path
//! fails or a better one is there.
//!
//! A user-node [dials](Links::connect) a tunnel-node's candidates, keeps the link warm, and opens a [`Stream`] for each
//! connection of an application. A tunnel-node [listens](Links::serve); what is asked of it arrives as
//! [`LinkEvent::OpenAsked`], and the node decides.
//!
//! Which session stands on which link, and when another is dialled, is decided by [`Bundle`](peerage_proto::link::bundle::Bundle), one for
//! each peer. One task drives each link and one more keeps each peer: it lets time pass and dials. They and the tasks of the streams share
//! the bundle behind a lock that is held only while bytes move in memory, never while anything waits.
//!
//! Where no link stands, the first flights of the handshake travel with the request for a path ([`attempt`], and [`prepared`] at the other end),
//! so that a tunnel costs two round trips.
//!
//! Invariants: a link exists only after the peer has proven its key to this side; links, handshakes and links per address are
//! limited; everything that a stranger can make this node keep ends by itself.

mod attempt;
mod channel;
mod dial;
mod driver;
mod listen;
mod paths;
mod peer;
mod prepared;
mod quic;
mod relayed;
mod stream;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use peerage_proto::link::bundle::{Dial, LinkId, OpenError, PathKind, Purpose, Standing};
use peerage_proto::link::{self, Side};
use peerage_proto::session;
use peerage_wire::codec::{Candidate, CandidateKind, Transport};
use peerage_wire::frame::Code;
use peerage_wire::id::{DeviceId, LinkId as AttemptId, NodeId};
use peerage_wire::open::Open;
use tokio::net::TcpListener;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time;

pub(crate) use self::attempt::Begun;
use self::attempt::{Attempt, Early};
use self::channel::Channel;
pub use self::channel::ChannelError;
pub use self::dial::DialError;
use self::peer::{Ends, Peer};
use self::prepared::Prepared;
pub(crate) use self::relayed::Leg;
pub use self::stream::Stream;
use crate::clock::Clock;
use crate::connect::Connector;
use crate::door::Door;
use crate::places::Counted;
use crate::sync::lock;
use crate::tls::Tls;

/// The most links of a node. Each has one descriptor and, while it moves bytes, up to a megabyte of buffers; ten thousand
/// tunnels need some forty.
pub const MAX_LINKS: usize = 4_096;

/// The most events that wait for the node. An opening that finds no room is refused, so a flood of them costs nothing else.
const MAX_EVENTS: usize = 1_024;

/// What the node has to know about its links.
#[derive(Debug)]
pub enum LinkEvent {
    /// A link that this node has dialled to this peer can be used, after none could.
    Up(NodeId),
    /// No link that this node has dialled to this peer can be used any more.
    Down(NodeId),
    /// A peer asks for a tunnel.
    OpenAsked {
        /// The session, to be confirmed or reset; dropping it refuses.
        stream: Stream,
        /// For what.
        open: Open,
    },
    /// A peer has sent a Head; nothing in it is verified.
    Head(Bytes),
    /// A link over UDP stands with this peer.
    PathUsed {
        /// With whom.
        peer: NodeId,
        /// Where it is.
        remote: SocketAddr,
    },
    /// It is gone, or did not come about.
    PathUnused {
        /// With whom.
        peer: NodeId,
        /// Where it was.
        remote: SocketAddr,
    },
    /// A link over this relay has broken or does not answer.
    RelayLost(NodeId),
    /// A tunnel has lost its links, and the peer does not answer where it was; [`Links::set_path`] tells where it is now.
    PathWanted {
        /// Who is looked for.
        peer: NodeId,
        /// For a tunnel to this device,
        device: DeviceId,
        /// to this service.
        service: String,
        /// For which of its dials, if a relay shall lead to the peer once more; `take_own_leg` answers.
        own: Option<Dial>,
    },
}

/// The way that the bytes of a tunnel take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The address at the other end of the connection; a super-node's if it is relayed.
    pub remote: SocketAddr,
    /// How it is reached.
    pub via: Via,
}

/// How the other end of a path is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// At an address of its own.
    Direct,
    /// Through a port that its router has opened for it.
    Mapped,
    /// Through the mappings that both routers made when the two ends sent to each other.
    Punched,
    /// Over a super-node.
    Relay,
}

impl From<CandidateKind> for Via {
    fn from(kind: CandidateKind) -> Self {
        match kind {
            CandidateKind::Ethernet
            | CandidateKind::Wifi
            | CandidateKind::Vpn
            | CandidateKind::Configured => Self::Direct,
            CandidateKind::Mapped => Self::Mapped,
            CandidateKind::Reflexive | CandidateKind::Sequential | CandidateKind::Scattered => Self::Punched,
        }
    }
}

/// What a link runs on.
enum Connected {
    Tcp(Box<Channel>),
    Quic(quinn::Connection),
}

/// Why a session could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenFailed {
    /// No link takes it.
    #[error(transparent)]
    Refused(#[from] OpenError),
    /// The node is shutting down.
    #[error("the node is shutting down")]
    Closed,
}

/// What links need to know about their node.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// This node.
    pub local: NodeId,
    /// Its key.
    pub tls: Tls,
    /// For all sessions.
    pub session: session::Config,
    /// The node's clock.
    pub clock: Clock,
    /// How TCP connections are opened.
    pub connector: Connector,
}

/// All links of a node. Clones share them; they end with the last clone, or on [`close`](Self::close).
#[derive(Clone, Debug)]
pub struct Links {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: LinkConfig,
    /// Where there is a socket for it.
    quic: OnceLock<quic::Quic>,
    /// Where peers can be dialled over UDP as far as the node has found out.
    found: Mutex<BTreeMap<NodeId, Candidate>>,
    notifier: Notifier,
    peers: Mutex<BTreeMap<NodeId, Arc<Peer>>>,
    /// The newest Head, for peers that come.
    head: Mutex<Option<Bytes>>,
    permits: Arc<Semaphore>,
    /// Handshakes that this node has begun by message, and those that peers have.
    attempts: Mutex<BTreeMap<AttemptId, Attempt>>,
    prepared: Mutex<Prepared>,
    /// The links.
    tasks: Mutex<JoinSet<()>>,
    /// What never ends by itself, and what nobody waits for: listeners, keepers of peers, dials.
    helpers: Mutex<JoinSet<()>>,
}

/// A link to a peer that could be used when it was asked for.
#[derive(Clone, Debug)]
pub struct PeerLink {
    peer: Arc<Peer>,
    path: Path,
}

impl PeerLink {
    /// Opens a session over the best link to the peer; its first bytes travel with the request.
    ///
    /// # Errors
    /// If no link takes it, or there are too many.
    pub fn open(&self, open: &Open) -> Result<Stream, OpenFailed> {
        self.peer.open(open)
    }

    /// Returns the path of the link.
    pub const fn path(&self) -> Path {
        self.path
    }

    /// Returns the address at the other end.
    pub const fn remote(&self) -> SocketAddr {
        self.path.remote
    }
}

impl Links {
    /// Makes the value; nothing is connected yet. The receiver gets what the node has to know.
    pub fn new(config: LinkConfig) -> (Self, mpsc::Receiver<LinkEvent>) {
        let (sender, events) = mpsc::channel(MAX_EVENTS);
        let inner = Inner {
            config,
            quic: OnceLock::new(),
            found: Mutex::default(),
            notifier: Notifier { sender },
            peers: Mutex::default(),
            head: Mutex::default(),
            permits: Arc::new(Semaphore::new(MAX_LINKS)),
            attempts: Mutex::default(),
            prepared: Mutex::default(),
            tasks: Mutex::default(),
            helpers: Mutex::default(),
        };
        (Self { inner: Arc::new(inner) }, events)
    }

    /// Returns a link to `peer`, which holds the key `identity`: one that stands and has room, or a new one to the
    /// candidate that answers first.
    ///
    /// # Errors
    /// If none of the candidates leads to the peer, or the node has its limit of links.
    pub async fn connect(
        &self,
        peer: NodeId,
        identity: [u8; 32],
        candidates: &[Candidate],
    ) -> Result<PeerLink, DialError> {
        self.connect_or_meet((peer, identity), candidates, (None, None)).await
    }

    /// As [`connect`](Self::connect), by what was begun before, and at a relay at the same time, if a leg is under way.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub(crate) async fn connect_or_meet(
        &self,
        (peer, identity): (NodeId, [u8; 32]),
        candidates: &[Candidate],
        under_way: (Option<Begun>, Option<Leg>),
    ) -> Result<PeerLink, DialError> {
        let known = self.inner.peer(peer);
        known.set_reach(identity, candidates);
        let guard = known.gate.lock().await;
        let result = self.connect_alone(&known, under_way).await;
        drop(guard);
        let link = result.map(|path| PeerLink { peer: Arc::clone(&known), path });
        drop(known);
        self.inner.forget_idle(peer);
        link
    }

    async fn connect_alone(
        &self,
        peer: &Arc<Peer>,
        (begun, leg): (Option<Begun>, Option<Leg>),
    ) -> Result<Path, DialError> {
        let standing_path = peer.act(|state, _| state.bundle.best_link().and_then(|link| state.path(link)));
        if let Some(path) = standing_path.flatten() {
            return Ok(path);
        }
        if !peer.act(|state, _| state.bundle.may_dial()).unwrap_or(false) {
            return Err(DialError::TooManyLinks);
        }
        let dialled = async {
            match begun {
                Some(begun) => self.inner.go_on(peer, begun, leg).await,
                None => self.inner.race(peer, (None, leg)).await,
            }
        };
        // Others wait behind this dial, so it must not outlast the want: a link may come up otherwise, answer again, or have room again.
        let link = tokio::select! {
            biased;
            result = dialled => result?,
            link = peer.usable_link() => link,
        };
        let path = peer.act(|state, _| state.path(link)).flatten();
        path.ok_or(DialError::NoCandidate)
    }

    /// Accepts links of others on this socket, as tunnel-node, until [`close`](Self::close).
    pub fn serve(&self, listener: TcpListener) {
        let task = listen::run(Arc::downgrade(&self.inner), vec![listener].into(), None);
        lock(&self.inner.helpers).spawn(task);
    }

    /// Accepts on these sockets whom the door lets in, until [`close`](Self::close).
    pub(crate) fn serve_behind(&self, door: Door, listeners: Vec<TcpListener>) {
        let task = listen::run(Arc::downgrade(&self.inner), listeners.into(), Some(door));
        lock(&self.inner.helpers).spawn(task);
    }

    /// Tells where a peer can be reached now; tunnels that wait for a link try it at once. Without effect for a peer that is not known.
    pub fn set_path(&self, peer: NodeId, identity: [u8; 32], candidates: &[Candidate]) {
        let known = lock(&self.inner.peers).get(&peer).cloned();
        if let Some(known) = known {
            known.set_reach(identity, candidates);
        }
    }

    /// Returns whether a link leads to a peer that can be used, though it may be full.
    pub(crate) fn is_linked(&self, peer: NodeId) -> bool {
        let known = lock(&self.inner.peers).get(&peer).cloned();
        known.and_then(|known| known.act(|state, _| state.bundle.is_usable())).unwrap_or(false)
    }

    /// Returns whether a link that nothing is wrong with leads to a peer, and has room for another session.
    pub(crate) fn is_served(&self, peer: NodeId) -> bool {
        let known = lock(&self.inner.peers).get(&peer).cloned();
        let is_served = known.and_then(|known| {
            known.act(|state, _| state.bundle.serving().is_some() && state.bundle.best_link().is_some())
        });
        is_served.unwrap_or(false)
    }

    /// Tells that the computer's networks have changed: links from addresses that it has no more are left at once, and where it would
    /// reach a peer from another address now, a new link takes the tunnels over.
    pub fn networks_changed(&self, is_own: &dyn Fn(IpAddr) -> bool) {
        for peer in self.inner.all() {
            peer.networks_changed(is_own, &dial::route_to);
        }
    }

    /// Sends a signed Head to all peers, and to those that come (Rule 7.9).
    pub fn send_head(&self, record: &Bytes) {
        *lock(&self.inner.head) = Some(record.clone());
        for peer in self.inner.all() {
            peer.act(|state, now| state.bundle.send_head(record, now));
        }
    }

    /// Returns how many links stand.
    pub fn count(&self) -> usize {
        MAX_LINKS - self.inner.permits.available_permits()
    }

    /// Ends all tunnels and links politely, and waits for it; takes some seconds at most.
    pub async fn close(&self) {
        lock(&self.inner.helpers).abort_all();
        for peer in self.inner.all() {
            peer.act(|state, now| state.bundle.end_all(Code::Shutdown, now));
        }
        let mut tasks = std::mem::take(&mut *lock(&self.inner.tasks));
        let ended = async { while tasks.join_next().await.is_some() {} };
        // Those that do not end in time are cut off.
        let _ = time::timeout(driver::FAREWELL_TIMEOUT, ended).await;
        if let Some(quic) = self.inner.quic.get() {
            quic.close();
        }
        lock(&self.inner.peers).clear();
    }
}

/// Returns what a link stands on.
const fn standing(side: Side, purpose: Purpose, path: PathKind) -> Standing {
    let consent_interval = match path {
        PathKind::Quic => link::CONSENT_UDP,
        PathKind::Direct | PathKind::Relayed => link::CONSENT_TCP,
    };
    Standing { side, purpose, path, consent_interval }
}

/// Returns on what a link to a candidate stands.
const fn path_of(transport: Transport) -> PathKind {
    match transport {
        Transport::Tcp => PathKind::Direct,
        Transport::Udp => PathKind::Quic,
    }
}

impl Inner {
    fn all(&self) -> Vec<Arc<Peer>> {
        lock(&self.peers).values().cloned().collect()
    }

    /// Returns a peer, which is remembered as long as anything is left of it.
    fn peer(self: &Arc<Self>, id: NodeId) -> Arc<Peer> {
        let mut peers = lock(&self.peers);
        if let Some(peer) = peers.get(&id) {
            return Arc::clone(peer);
        }
        let (peer, kick) = Peer::new(id, self);
        peers.insert(id, Arc::clone(&peer));
        drop(peers);
        if let Some(head) = lock(&self.head).clone() {
            peer.act(|state, now| state.bundle.send_head(&head, now));
        }
        let mut helpers = lock(&self.helpers);
        // Tasks that have ended leave only their results.
        while helpers.try_join_next().is_some() {}
        helpers.spawn(peer::keep(Arc::downgrade(&peer), kick));
        peer
    }

    /// Forgets a peer of which nothing is left.
    fn forget_idle(&self, peer: NodeId) {
        let mut peers = lock(&self.peers);
        if peers.get(&peer).is_some_and(Peer::is_idle) {
            peers.remove(&peer);
        }
    }

    /// Dials a peer for new tunnels. Where it has tunnels already and its links are full or in doubt, it is looked for as well, since
    /// it may be that only a relay leads to it.
    async fn dial_or_await(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        early: Option<Early>,
    ) -> Result<LinkId, DialError> {
        let is_looked_for = peer.ask_for_path(self);
        let awaited = time::timeout(dial::CANDIDATE_TIMEOUT, peer.usable_link());
        let dialled = self.dial(peer, (Purpose::Shared, None), early);
        let (mut dialled, mut awaited) = (pin!(dialled), pin!(awaited));
        tokio::select! {
            result = &mut dialled => match result {
                Err(error) if is_looked_for => awaited.await.map_err(|_elapsed| error),
                result => result,
            },
            Ok(link) = &mut awaited => Ok(link),
        }
    }

    /// Dials a peer for its tunnels that wait, or that want another link.
    async fn dial_for(self: &Arc<Self>, peer: &Arc<Peer>, dial: Dial) -> Result<LinkId, DialError> {
        match time::timeout(dial.timeout, self.dial(peer, (dial.purpose, dial.serving), None)).await {
            Ok(result) => result,
            Err(_elapsed) => Err(DialError::TimedOut),
        }
    }

    /// Dials a peer where it is known to be, as far as that is better than what serves, and begins to drive the link.
    async fn dial(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        (purpose, serving): (Purpose, Option<PathKind>),
        early: Option<Early>,
    ) -> Result<LinkId, DialError> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| DialError::TooManyLinks)?;
        let reach = peer.act(|state, _| state.reach.clone()).unwrap_or_default();
        let identity = reach.identity.ok_or(DialError::NoCandidate)?;
        let quic = self.quic.get();
        let mut places = reach.places();
        if let Some(found) = self.found(peer.id) {
            places.retain(|candidate| {
                (candidate.transport, candidate.address) != (found.transport, found.address)
            });
            // Proven by both ends, unlike what was announced. Where something serves, it was dialled at once and takes no turn.
            if serving.is_none() {
                places.insert(0, found);
            }
        }
        places.retain(|candidate| {
            let path = path_of(candidate.transport);
            match purpose {
                // There is one connection per peer on QUIC: a session has nothing from another.
                Purpose::Own(_) => path == PathKind::Direct,
                Purpose::Shared => {
                    (path == PathKind::Direct || quic.is_some())
                        && serving.is_none_or(|serving| path > serving)
                }
            }
        });
        let (connected, candidate) = dial::dial((&self.config, quic), identity, &places, early).await?;
        let remote = candidate.address;
        let failed = |source: std::io::Error| DialError::Failed { address: remote, source: source.into() };
        let local = match &connected {
            Connected::Tcp(channel) => channel.socket().local_addr().map_err(failed)?,
            Connected::Quic(connection) => quic::local(connection, remote),
        };
        let standing = standing(Side::Client, purpose, path_of(candidate.transport));
        let ends = (local, remote, candidate.kind.into());
        let link = self.start(peer, standing, connected, ends, (permit, None));
        peer.act(|state, _| state.reach.last = Some(candidate));
        Ok(link)
    }

    /// Begins to drive a link whose handshake is complete.
    fn start(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        standing: Standing,
        connected: Connected,
        ends: (SocketAddr, SocketAddr, Via),
        permits: (OwnedSemaphorePermit, Option<Counted>),
    ) -> LinkId {
        self.start_over(None, peer, standing, connected, ends, permits)
    }

    /// As [`start`](Self::start), with the relay that the link goes over.
    fn start_over(
        self: &Arc<Self>,
        relay: Option<NodeId>,
        peer: &Arc<Peer>,
        standing: Standing,
        connected: Connected,
        (local, remote, via): (SocketAddr, SocketAddr, Via),
        permits: (OwnedSemaphorePermit, Option<Counted>),
    ) -> LinkId {
        let kick = Arc::new(Notify::new());
        let link = peer.act(|state, now| {
            let link = state.bundle.add_link(standing, now);
            state.links.insert(link, Ends { local, remote, via, relay, kick: Arc::clone(&kick) });
            link
        });
        if matches!(connected, Connected::Quic(_)) {
            self.notifier.notify(LinkEvent::PathUsed { peer: peer.id, remote });
        }
        // Only without a node is there none.
        let link = link.unwrap_or(LinkId(0));
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        let (inner, peer) = (Arc::downgrade(self), Arc::clone(peer));
        tasks.spawn(async move {
            let id = peer.id;
            let watched = matches!(connected, Connected::Quic(_)).then(|| Arc::downgrade(&peer));
            let code = match connected {
                Connected::Tcp(channel) => driver::run(peer, link, kick, *channel).await,
                Connected::Quic(connection) => {
                    quic::driver::run(peer, link, kick, connection, standing.side).await
                }
            };
            tracing::debug!(peer = ?id, %code, "a link has ended");
            if let Some(inner) = inner.upgrade() {
                if watched.is_some_and(|peer| !paths::is_used(&peer, remote)) {
                    inner.notifier.notify(LinkEvent::PathUnused { peer: id, remote });
                }
                inner.forget_idle(id);
            }
            drop(permits);
        });
        link
    }
}

/// The way to the node.
#[derive(Clone, Debug)]
struct Notifier {
    sender: mpsc::Sender<LinkEvent>,
}

impl Notifier {
    /// Tells the node, unless so much waits that it must be beyond help.
    fn notify(&self, event: LinkEvent) {
        if let Err(mpsc::error::TrySendError::Full(event)) = self.sender.try_send(event) {
            tracing::warn!(?event, "the node does not keep up with its links");
        }
    }

    /// Takes room for an opening; none if the node does not keep up or is gone.
    fn reserve(&self) -> Option<mpsc::Permit<'_, LinkEvent>> {
        self.sender.try_reserve().ok()
    }
}

/// Returns a place at which tests dial.
#[cfg(test)]
pub(crate) const fn place(transport: Transport, address: SocketAddr) -> Candidate {
    Candidate { kind: CandidateKind::Configured, transport, address }
}

#[cfg(test)]
mod cold;
#[cfg(test)]
mod mobility;
#[cfg(test)]
mod tests;
