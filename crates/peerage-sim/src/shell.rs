//! What a program does around the machines of one computer: a [`Bundle`] of links and sessions for each peer, applications on sessions.
//!
//! It is what the real shell is, without sockets and tasks: which session stands on which link, and when another is dialled, is for the
//! bundle to decide. The world moves bytes and makes connections; it is told what to do by [`Want`]s.

mod flow;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use peerage_proto::link::bundle::{Bundle, Config, Dial, LinkId, PathKind, Purpose, SessionKey, Standing};
use peerage_proto::link::{self, Side};
use peerage_proto::node::{Input, TunnelId};
use peerage_proto::session::{self, Budget, Session, State};
use peerage_wire::frame::Code;
use peerage_wire::id::{DeviceId, NodeId, SessionId};
use peerage_wire::open::Open;
use peerage_wire::time::Instant;

use crate::app::{App, Deed, End};

/// Most bytes under way on one carrier in one direction: about what the socket buffers of two computers take.
const MAX_UNDER_WAY: usize = 256 * 1_024;

/// How long a tunnel waits to be granted, as in the real shell.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);

/// What the windows of all sessions of a computer may take.
const BUDGET_BYTES: u64 = 32 << 20;

/// The largest window, smaller than the usual one so that transfers of moderate size meet it.
const MAX_WINDOW: u64 = 1 << 20;

/// Names a carrier in the whole world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CarrierId(pub u64);

/// What the world is asked to do.
#[derive(Clone, Debug)]
pub enum Want {
    /// Tell the node.
    Tell(Box<Input>),
    /// Send bytes.
    Send(CarrierId, Bytes),
    /// Close a connection after what was sent.
    Close(CarrierId),
    /// Connect to a peer: because its bundle wants that, or for a tunnel that finds no link.
    Dial(NodeId, Vec<SocketAddr>, Option<Dial>),
    /// Note what an application did.
    Deed(SessionId, End, Deed),
    /// A peer asks for a tunnel.
    Asked(TunnelId, NodeId, Open),
    /// The own tunnel is open.
    Opened(SessionId),
    /// A tunnel has ended.
    Ended(SessionId, End, session::End),
}

/// A tunnel at one end.
#[derive(Debug)]
pub struct Tunnel {
    /// Its session's id.
    pub session: SessionId,
    /// Where its session stands.
    pub state: State,
    /// The node at the other end.
    pub peer: NodeId,
    /// Which end this is.
    pub end: End,
    /// To which device.
    pub device: DeviceId,
    /// To which service.
    pub service: String,
    key: SessionKey,
    app: Option<App>,
    was_open: bool,
    is_released: bool,
    /// When it is given up if it was not granted.
    gives_up_at: Instant,
}

/// A tunnel that finds no link.
#[derive(Debug)]
struct Waiting {
    open: Open,
    app: App,
}

/// A peer, with all that is shared with it.
#[derive(Debug)]
struct Peer {
    bundle: Bundle,
    candidates: Vec<SocketAddr>,
    carriers: BTreeMap<LinkId, CarrierId>,
    tunnels: BTreeMap<SessionKey, TunnelId>,
    waiting: Vec<Waiting>,
    /// A link is dialled for the tunnels that wait.
    is_dialling: bool,
}

impl Peer {
    fn is_due(&self, now: Instant) -> bool {
        self.bundle.poll_timeout().is_some_and(|at| at <= now)
    }

    fn is_idle(&self) -> bool {
        self.bundle.is_empty() && self.waiting.is_empty() && !self.is_dialling
    }
}

/// A connection that carries a link.
#[derive(Clone, Copy, Debug)]
struct Carrier {
    peer: NodeId,
    link: LinkId,
    under_way: usize,
}

/// All links and tunnels of a computer.
#[derive(Debug)]
pub struct Shell {
    local: NodeId,
    config: session::Config,
    peers: BTreeMap<NodeId, Peer>,
    carriers: BTreeMap<CarrierId, Carrier>,
    tunnels: BTreeMap<TunnelId, Tunnel>,
    next_tunnel: u64,
    wants: VecDeque<Want>,
    /// What all windows may take.
    budget_bytes: u64,
    /// Peers at which something has changed.
    touched: BTreeSet<NodeId>,
    /// Carriers that were full and have room again.
    roomy: BTreeSet<CarrierId>,
    overdue: Option<Instant>,
    /// How often an own tunnel has come to another link.
    moves: u64,
    /// A tunnel that was not granted when its link is in doubt goes on waiting, in place of another way being tried.
    is_patient: bool,
    /// A signed Head, for every link that comes.
    head: Option<Bytes>,
}

impl Shell {
    /// Makes a shell without links. Tunnels get numbers from `first_tunnel` on.
    pub fn new(local: NodeId, first_tunnel: u64) -> Self {
        let shell = Self::with_memory(local, first_tunnel, (MAX_WINDOW, BUDGET_BYTES));
        Self { is_patient: false, ..shell }
    }

    /// Makes a shell with a largest window and a budget for all windows, in bytes, whose tunnels wait for their links.
    pub fn with_memory(local: NodeId, first_tunnel: u64, (max_window, budget_bytes): (u64, u64)) -> Self {
        let config = session::Config { max_window, budget: Budget::new(budget_bytes) };
        Self {
            local,
            config,
            peers: BTreeMap::new(),
            carriers: BTreeMap::new(),
            tunnels: BTreeMap::new(),
            next_tunnel: first_tunnel,
            wants: VecDeque::new(),
            budget_bytes,
            touched: BTreeSet::new(),
            roomy: BTreeSet::new(),
            overdue: None,
            moves: 0,
            is_patient: true,
            head: None,
        }
    }

    /// Returns the next thing to do.
    pub fn poll_want(&mut self) -> Option<Want> {
        self.wants.pop_front()
    }

    /// Returns the tunnels.
    pub fn tunnels(&self) -> impl Iterator<Item = (TunnelId, &Tunnel)> {
        self.tunnels.iter().map(|(id, tunnel)| (*id, tunnel))
    }

    /// Returns whether no tunnel stands or waits for a link.
    pub fn is_idle(&self) -> bool {
        self.tunnels.is_empty() && self.peers.values().all(|peer| peer.waiting.is_empty())
    }

    /// Returns a tunnel.
    pub fn tunnel(&self, id: TunnelId) -> Option<&Tunnel> {
        self.tunnels.get(&id)
    }

    /// Returns how many streams each link has.
    pub fn streams(&self) -> impl Iterator<Item = usize> + '_ {
        let links = self.peers.values().flat_map(|peer| peer.carriers.keys().map(move |link| (peer, link)));
        links.map(|(peer, link)| peer.bundle.streams(*link))
    }

    /// Returns how many links each peer has.
    pub fn links(&self) -> impl Iterator<Item = usize> + '_ {
        self.peers.values().map(|peer| peer.bundle.links())
    }

    /// Returns the carriers of links.
    pub fn carriers(&self) -> impl Iterator<Item = CarrierId> + '_ {
        self.carriers.keys().copied()
    }

    /// Returns the number of the next tunnel, for the shell after a restart.
    pub const fn next_tunnel(&self) -> u64 {
        self.next_tunnel
    }

    /// Returns how many bytes all windows take, and may take beyond the first window of each session.
    pub fn budget(&self) -> (u64, u64) {
        (self.config.budget.used_bytes(), self.budget_bytes)
    }

    /// Returns how often an own tunnel has come to another link.
    pub const fn moves(&self) -> u64 {
        self.moves
    }

    /// Returns what all sessions share.
    pub const fn memory(&self) -> &session::Config {
        &self.config
    }

    /// Returns over which carrier each session goes that has one, and whose session it is.
    pub fn carried(&self) -> impl Iterator<Item = (SessionId, NodeId, CarrierId)> + '_ {
        self.tunnels.values().filter_map(|tunnel| {
            let peer = self.peers.get(&tunnel.peer)?;
            let link = peer.bundle.link_of(tunnel.key)?;
            Some((tunnel.session, tunnel.peer, *peer.carriers.get(&link)?))
        })
    }

    fn tell(&mut self, input: Input) {
        self.wants.push_back(Want::Tell(Box::new(input)));
    }

    fn peer(&mut self, id: NodeId, now: Instant) -> &mut Peer {
        let (local, session, head) = (self.local, &self.config, &self.head);
        self.peers.entry(id).or_insert_with(|| {
            let mut bundle = Bundle::new(Config { local, remote: id, session: session.clone() });
            if let Some(head) = head {
                bundle.send_head(head, now);
            }
            Peer {
                bundle,
                candidates: Vec::new(),
                carriers: BTreeMap::new(),
                tunnels: BTreeMap::new(),
                waiting: Vec::new(),
                is_dialling: false,
            }
        })
    }

    // ---- own tunnels ------------------------------------------------------------------------

    /// Opens a tunnel through a peer, over a link that stands or one that is dialled now.
    pub fn open(&mut self, (id, candidates): (NodeId, Vec<SocketAddr>), open: &Open, app: App, now: Instant) {
        let peer = self.peer(id, now);
        let is_news = candidates.iter().any(|candidate| !peer.candidates.contains(candidate));
        if !candidates.is_empty() {
            peer.candidates = candidates;
        }
        if is_news {
            peer.bundle.retry(now);
        }
        peer.waiting.push(Waiting { open: open.clone(), app });
        if peer.bundle.best_link().is_some() {
            self.open_waiting(id, now);
        } else if !std::mem::replace(&mut peer.is_dialling, true) {
            // Without candidates it fails at once.
            let candidates = peer.candidates.clone();
            self.wants.push_back(Want::Dial(id, candidates, None));
        }
        self.pump_peer(id, now);
    }

    fn open_waiting(&mut self, id: NodeId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        for Waiting { open, app } in std::mem::take(&mut peer.waiting) {
            let Some(peer) = self.peers.get_mut(&id) else { return };
            match peer.bundle.open(&open, now) {
                Ok(key) => self.add_tunnel((id, key), &open, End::User, Some(app), now),
                Err(_) => self.not_opened(id, &open, Code::Limit),
            }
        }
    }

    /// A tunnel has come to nothing before its session began.
    fn not_opened(&mut self, peer: NodeId, open: &Open, code: Code) {
        self.wants.push_back(Want::Ended(open.session, End::User, session::End::ResetHere(code)));
        self.tell(Input::RouteFailed { device: open.device, peer, code: None });
    }

    fn add_tunnel(
        &mut self,
        (peer, key): (NodeId, SessionKey),
        open: &Open,
        end: End,
        app: Option<App>,
        now: Instant,
    ) {
        self.next_tunnel = self.next_tunnel.saturating_add(1);
        let id = TunnelId(self.next_tunnel);
        let (session, device, service) = (open.session, open.device, open.service.clone());
        let state = if end == End::User { State::Opening } else { State::Asked };
        let gives_up_at = now.after(OPEN_TIMEOUT);
        let (was_open, is_released) = (false, false);
        let tunnel = Tunnel {
            session,
            state,
            peer,
            end,
            device,
            service,
            key,
            app,
            was_open,
            is_released,
            gives_up_at,
        };
        self.tunnels.insert(id, tunnel);
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.tunnels.insert(key, id);
        }
        if end == End::User {
            self.drive(id, now);
        } else {
            self.wants.push_back(Want::Asked(id, peer, open.clone()));
            self.tell(Input::OpenAsked { tunnel: id, peer, open: open.clone() });
        }
    }

    /// A dial has come to nothing; tunnels that waited for it are given up.
    pub fn dial_failed(&mut self, id: NodeId, dial: Option<Dial>, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        match dial {
            Some(dial) => peer.bundle.dial_failed(dial, now),
            None => {
                peer.is_dialling = false;
                for waiting in std::mem::take(&mut peer.waiting) {
                    self.not_opened(id, &waiting.open, Code::DeviceUnreachable);
                }
            }
        }
        self.pump_peer(id, now);
    }

    // ---- tunnels asked for ------------------------------------------------------------------

    /// The node has granted a tunnel and the device has taken the connection.
    pub fn confirm(&mut self, id: TunnelId, app: App, now: Instant) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else { return };
        tunnel.app = Some(app);
        self.with_session(id, now, Session::confirm);
    }

    /// The node refuses or closes a tunnel, or the device does not take the connection.
    pub fn close_tunnel(&mut self, id: TunnelId, code: Code, now: Instant) {
        self.with_session(id, now, |session| session.reset(code));
    }

    fn with_session(&mut self, id: TunnelId, now: Instant, act: impl FnOnce(&mut Session)) {
        let Some(tunnel) = self.tunnels.get(&id) else { return };
        let (peer_id, key) = (tunnel.peer, tunnel.key);
        if let Some(peer) = self.peers.get_mut(&peer_id) {
            peer.bundle.with(key, now, |session, _| act(session));
            self.drive(id, now);
            self.pump_peer(peer_id, now);
        }
    }

    // ---- connections ------------------------------------------------------------------------

    /// A connection to a peer stands, and both have proven who they are.
    pub fn connected(
        &mut self,
        carrier: CarrierId,
        id: NodeId,
        (side, dial, path): (Side, Option<Dial>, PathKind),
        now: Instant,
    ) {
        let purpose = dial.map_or(Purpose::Shared, |dial| dial.purpose);
        let standing = Standing { side, purpose, path, consent_interval: link::CONSENT_TCP };
        let peer = self.peer(id, now);
        if side == Side::Client && dial.is_none() {
            peer.is_dialling = false;
        }
        let link = peer.bundle.add_link(standing, now);
        peer.carriers.insert(link, carrier);
        self.carriers.insert(carrier, Carrier { peer: id, link, under_way: 0 });
        if side == Side::Client {
            self.open_waiting(id, now);
        }
        self.pump_peer(id, now);
    }

    /// Bytes have arrived on a connection.
    pub fn received(&mut self, id: CarrierId, bytes: &[u8], now: Instant) {
        let Some(Carrier { peer: peer_id, link, .. }) = self.carriers.get(&id).copied() else { return };
        if let Some(peer) = self.peers.get_mut(&peer_id) {
            let mut input = peer.bundle.take_input(link);
            input.extend_from_slice(bytes);
            peer.bundle.handle_input(link, input, now);
            self.pump_peer(peer_id, now);
        }
    }

    /// Bytes that this end sent have left it.
    pub fn delivered(&mut self, id: CarrierId, bytes: usize) {
        if let Some(carrier) = self.carriers.get_mut(&id) {
            if carrier.under_way >= MAX_UNDER_WAY {
                self.roomy.insert(id);
            }
            carrier.under_way = carrier.under_way.saturating_sub(bytes);
        }
    }

    /// A connection is lost.
    pub fn lost(&mut self, id: CarrierId, now: Instant) {
        let Some(Carrier { peer: peer_id, link, .. }) = self.carriers.remove(&id) else { return };
        if let Some(peer) = self.peers.get_mut(&peer_id) {
            peer.carriers.remove(&link);
            peer.bundle.link_lost(link, now);
            self.pump_peer(peer_id, now);
        }
    }

    /// The computer has slept, or its networks have changed: every link is in doubt.
    pub fn doubt(&mut self, now: Instant) {
        for id in self.peers.keys().copied().collect::<Vec<_>>() {
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            for link in peer.carriers.keys() {
                peer.bundle.doubt(*link, now);
            }
            peer.bundle.retry(now);
            self.pump_peer(id, now);
        }
    }

    /// The computer would reach a peer another way now: a link takes the place of the one in use. Returns whether there is one.
    pub fn replace(&mut self, id: NodeId, now: Instant) -> bool {
        let Some(peer) = self.peers.get_mut(&id) else { return false };
        let Some(best) = peer.bundle.best_link() else { return false };
        peer.bundle.replace(best, now);
        self.pump_peer(id, now);
        true
    }

    /// The node has a newer Head, which goes to all peers.
    pub fn send_head(&mut self, record: &Bytes, now: Instant) {
        self.head = Some(record.clone());
        for id in self.peers.keys().copied().collect::<Vec<_>>() {
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.bundle.send_head(record, now);
                self.pump_peer(id, now);
            }
        }
    }
}
