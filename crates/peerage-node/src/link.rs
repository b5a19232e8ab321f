//! Links: authenticated connections to other nodes, on which tunnels open in one round trip.
//!
//! A user-node [dials](Links::connect) a tunnel-node's candidates, keeps the link warm, and opens a [`Stream`] for each
//! connection of an application. A tunnel-node [listens](Links::serve); what is asked of it arrives as
//! [`LinkEvent::OpenAsked`], and the node decides.
//!
//! One task drives each link. It and the tasks of its streams share the sessions behind a lock that is held only
//! while bytes move in memory, never while anything waits.
//!
//! Invariants: a link exists only after both sides have proven their keys; links, handshakes and links per address are
//! limited; everything that a stranger can make this node keep ends by itself.

mod channel;
mod dial;
mod driver;
mod listen;
mod stream;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use peerage_proto::link::{self, LinkError};
use peerage_proto::session::{self, AttachError};
use peerage_wire::frame::Code;
use peerage_wire::id::NodeId;
use peerage_wire::open::Open;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use self::channel::Channel;
pub use self::channel::ChannelError;
pub use self::dial::DialError;
use self::stream::Shared;
pub use self::stream::Stream;
use crate::clock::Clock;
use crate::tls::Tls;

/// The most links of a node. Each has one descriptor and, while it moves bytes, up to a megabyte of buffers; ten thousand
/// tunnels need some forty.
pub const MAX_LINKS: usize = 4_096;

/// The most links to one peer: together they carry some thousand tunnels, 256 each.
const MAX_LINKS_TO_PEER: usize = 4;

/// The most events that wait for the node. An opening that finds no room is refused, so a flood of them costs nothing else.
const MAX_EVENTS: usize = 1_024;

/// What the node has to know about its links.
#[derive(Debug)]
pub enum LinkEvent {
    /// A link that this node has dialled to this peer stands.
    Up(NodeId),
    /// The last link that this node has dialled to this peer has ended.
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
}

/// Why a session could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenFailed {
    /// The link does not take it.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The session cannot be made.
    #[error(transparent)]
    Session(AttachError),
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
}

/// All links of a node. Clones share them; they end with the last clone, or on [`close`](Self::close).
#[derive(Clone, Debug)]
pub struct Links {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: LinkConfig,
    notifier: Notifier,
    peers: Mutex<BTreeMap<NodeId, Peer>>,
    permits: Arc<Semaphore>,
    tasks: Mutex<JoinSet<()>>,
    /// They never end by themselves.
    listeners: Mutex<JoinSet<()>>,
}

#[derive(Debug, Default)]
struct Peer {
    /// Links that this node has dialled, and on which it may open streams.
    dialled: Vec<PeerLink>,
    accepted: Vec<PeerLink>,
    /// Held while dialling, so that many openings at once share one dial.
    gate: Arc<tokio::sync::Mutex<()>>,
    /// Where it was reached last.
    last: Option<SocketAddr>,
}

/// One link to a peer.
#[derive(Clone, Debug)]
pub struct PeerLink {
    shared: Arc<Shared>,
    remote: SocketAddr,
}

impl PeerLink {
    /// Opens a session; its first bytes travel with the request.
    ///
    /// # Errors
    /// If the link has its limit of streams, or has ended.
    pub fn open(&self, open: &Open) -> Result<Stream, OpenFailed> {
        self.shared.open(open)
    }

    /// Returns the address at the other end.
    pub const fn remote(&self) -> SocketAddr {
        self.remote
    }

    fn has_room(&self) -> bool {
        let table = self.shared.lock();
        table.link.closed().is_none() && !table.link.is_suspect() && table.link.streams() < link::MAX_STREAMS
    }
}

impl Links {
    /// Makes the value; nothing is connected yet. The receiver gets what the node has to know.
    pub fn new(config: LinkConfig) -> (Self, mpsc::Receiver<LinkEvent>) {
        let (sender, events) = mpsc::channel(MAX_EVENTS);
        let inner = Inner {
            config,
            notifier: Notifier { sender },
            peers: Mutex::default(),
            permits: Arc::new(Semaphore::new(MAX_LINKS)),
            tasks: Mutex::default(),
            listeners: Mutex::default(),
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
        candidates: &[SocketAddr],
    ) -> Result<PeerLink, DialError> {
        let gate = Arc::clone(&self.inner.peers().entry(peer).or_default().gate);
        let guard = gate.lock().await;
        let result = self.connect_alone(peer, identity, candidates).await;
        drop(guard);
        drop(gate);
        self.inner.forget_idle(peer);
        result
    }

    async fn connect_alone(
        &self,
        peer: NodeId,
        identity: [u8; 32],
        candidates: &[SocketAddr],
    ) -> Result<PeerLink, DialError> {
        let last = {
            let mut peers = self.inner.peers();
            let known = peers.entry(peer).or_default();
            if let Some(link) = known.dialled.iter().find(|link| link.has_room()) {
                return Ok(link.clone());
            }
            if known.dialled.len() >= MAX_LINKS_TO_PEER {
                return Err(DialError::TooManyLinks);
            }
            known.last
        };
        let permit =
            Arc::clone(&self.inner.permits).try_acquire_owned().map_err(|_| DialError::TooManyLinks)?;
        // A link that has just ended leaves no candidates behind but the place where it led.
        let last = last.filter(|last| !candidates.contains(last));
        let candidates: Vec<SocketAddr> = candidates.iter().copied().chain(last).collect();
        let (channel, remote) = dial::dial(&self.inner.config.tls, identity, &candidates).await?;
        Ok(self.inner.start(peer, link::Side::Client, (channel, remote), (permit, None)))
    }

    /// Accepts links of others on this socket, as tunnel-node, until [`close`](Self::close).
    pub fn serve(&self, listener: TcpListener) {
        let task = listen::run(Arc::downgrade(&self.inner), listener);
        lock(&self.inner.listeners).spawn(task);
    }

    /// Returns how many links stand.
    pub fn count(&self) -> usize {
        MAX_LINKS - self.inner.permits.available_permits()
    }

    /// Ends all links politely, and waits for it; takes some seconds at most.
    pub async fn close(&self) {
        lock(&self.inner.listeners).abort_all();
        let links: Vec<PeerLink> = {
            let mut peers = self.inner.peers();
            let all = std::mem::take(&mut *peers).into_values();
            all.flat_map(|peer| peer.dialled.into_iter().chain(peer.accepted)).collect()
        };
        for link in links {
            link.shared.lock().link.close(Code::Shutdown);
            link.shared.kick.notify_one();
        }
        let mut tasks = std::mem::take(&mut *self.inner.tasks());
        let ended = async { while tasks.join_next().await.is_some() {} };
        // Those that do not end in time are cut off.
        let _ = tokio::time::timeout(driver::FAREWELL_TIMEOUT, ended).await;
    }
}

impl Inner {
    fn peers(&self) -> MutexGuard<'_, BTreeMap<NodeId, Peer>> {
        lock(&self.peers)
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        lock(&self.tasks)
    }

    /// Begins to drive a link whose handshake is complete.
    fn start(
        self: &Arc<Self>,
        peer: NodeId,
        side: link::Side,
        (channel, remote): (Channel, SocketAddr),
        permits: (OwnedSemaphorePermit, Option<listen::Counted>),
    ) -> PeerLink {
        let LinkConfig { local, session, clock, .. } = self.config.clone();
        let consent_interval = link::CONSENT_TCP;
        let config = link::Config { side, local, remote: peer, consent_interval };
        let link = link::Link::new(config, clock.mono());
        let shared = Arc::new(Shared::new((peer, side), link, session, clock));
        let link = PeerLink { shared: Arc::clone(&shared), remote };
        {
            let mut peers = self.peers();
            let known = peers.entry(peer).or_default();
            match side {
                link::Side::Client => {
                    known.last = Some(remote);
                    known.dialled.push(link.clone());
                }
                link::Side::Server => known.accepted.push(link.clone()),
            }
        }
        let mut tasks = self.tasks();
        // Tasks that have ended leave only their results.
        while tasks.try_join_next().is_some() {}
        let (inner, notifier) = (Arc::downgrade(self), self.notifier.clone());
        tasks.spawn(async move {
            let code = driver::run(Arc::clone(&shared), channel, notifier).await;
            tracing::debug!(?peer, %code, "a link has ended");
            if let Some(inner) = inner.upgrade() {
                inner.ended(&shared);
            }
            drop(permits);
        });
        link
    }

    fn ended(&self, shared: &Arc<Shared>) {
        let peer = shared.peer;
        let mut peers = self.peers();
        let Some(known) = peers.get_mut(&peer) else { return };
        let others = |link: &PeerLink| !Arc::ptr_eq(&link.shared, shared);
        let dialled = known.dialled.len();
        known.dialled.retain(others);
        known.accepted.retain(others);
        let is_last = known.dialled.is_empty() && dialled > 0;
        drop(peers);
        self.forget_idle(peer);
        if is_last {
            self.notifier.notify(LinkEvent::Down(peer));
        }
    }

    /// Forgets a peer to which no link stands and nobody dials.
    fn forget_idle(&self, peer: NodeId) {
        let mut peers = self.peers();
        let is_idle = peers.get(&peer).is_some_and(|known| {
            known.dialled.is_empty() && known.accepted.is_empty() && Arc::strong_count(&known.gate) == 1
        });
        if is_idle {
            peers.remove(&peer);
        }
    }
}

/// Nothing that holds these locks leaves anything half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests;
