//! What a program does around the machines of one computer: links on carriers, sessions on links, applications on sessions.
//!
//! A session outlives its carrier here: the user-node dials again and resumes. The world moves bytes and makes connections; it is told
//! what to do by [`Want`]s.

mod carry;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use peerage_proto::link::{self, BATCH_BYTES, Link, Side};
use peerage_proto::node::{Input, TunnelId};
use peerage_proto::session::{self, Budget, Lane, Session, State};
use peerage_wire::frame::{CarrierNumber, Code, Encoded, Resume, StreamId};
use peerage_wire::id::{DeviceId, NodeId, SessionId};
use peerage_wire::open::Open;
use peerage_wire::time::Instant;

use crate::app::{App, Deed, End};

/// Most bytes under way on one carrier in one direction: about what the socket buffers of two computers take.
const MAX_UNDER_WAY: usize = 256 * 1_024;

/// How long after a failed dial, or a carrier that a session could not have, the next is tried.
const REDIAL_AFTER: Duration = Duration::from_secs(2);

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
    /// Connect to a peer.
    Dial(NodeId, Vec<SocketAddr>),
    /// Note what an application did.
    Deed(SessionId, End, Deed),
    /// A peer asks for a tunnel.
    Asked(TunnelId, NodeId, Open),
    /// The own tunnel is open.
    Opened(SessionId),
    /// A tunnel has ended.
    Ended(SessionId, End, session::End),
}

#[derive(Debug)]
struct Connection {
    link: Link,
    peer: NodeId,
    side: Side,
    streams: BTreeMap<StreamId, (TunnelId, CarrierNumber)>,
    under_way: usize,
    is_up: bool,
}

/// A tunnel at one end.
#[derive(Debug)]
pub struct Tunnel {
    /// Its session.
    pub session: Session,
    /// The node at the other end.
    pub peer: NodeId,
    /// Which end this is.
    pub end: End,
    /// To which device.
    pub device: DeviceId,
    /// To which service.
    pub service: String,
    app: Option<App>,
    redial_at: Instant,
    was_open: bool,
    has_ended: bool,
}

#[derive(Debug, Default)]
struct Reach {
    candidates: Vec<SocketAddr>,
    is_dialling: bool,
}

/// All links and tunnels of a computer.
#[derive(Debug)]
pub struct Shell {
    local: NodeId,
    config: session::Config,
    connections: BTreeMap<CarrierId, Connection>,
    tunnels: BTreeMap<TunnelId, Tunnel>,
    reach: BTreeMap<NodeId, Reach>,
    next_tunnel: u64,
    wants: VecDeque<Want>,
    /// What all windows may take.
    budget_bytes: u64,
    overdue: Option<Instant>,
    /// A planted bug: whoever names a session may resume it.
    pub(crate) trusts_anybody: bool,
}

impl Shell {
    /// Makes a shell without links. Tunnels get numbers from `first_tunnel` on.
    pub fn new(local: NodeId, first_tunnel: u64) -> Self {
        Self::with_memory(local, first_tunnel, (MAX_WINDOW, BUDGET_BYTES))
    }

    /// Makes a shell with a largest window and a budget for all windows, in bytes.
    pub fn with_memory(local: NodeId, first_tunnel: u64, (max_window, budget_bytes): (u64, u64)) -> Self {
        let config = session::Config { max_window, budget: Budget::new(budget_bytes) };
        Self {
            local,
            config,
            budget_bytes,
            overdue: None,
            trusts_anybody: false,
            connections: BTreeMap::new(),
            tunnels: BTreeMap::new(),
            reach: BTreeMap::new(),
            next_tunnel: first_tunnel,
            wants: VecDeque::new(),
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

    /// Returns how many streams each link has.
    pub fn streams(&self) -> impl Iterator<Item = usize> + '_ {
        self.connections.values().map(|connection| connection.link.streams())
    }

    /// Returns the carriers of links.
    pub fn carriers(&self) -> impl Iterator<Item = CarrierId> + '_ {
        self.connections.keys().copied()
    }

    /// Returns the number of the next tunnel, for the shell after a restart.
    pub const fn next_tunnel(&self) -> u64 {
        self.next_tunnel
    }

    /// Returns how many bytes all windows take, and may take beyond the first window of each session.
    pub fn budget(&self) -> (u64, u64) {
        (self.config.budget.used_bytes(), self.budget_bytes)
    }

    /// Returns what all sessions share.
    pub const fn memory(&self) -> &session::Config {
        &self.config
    }

    /// Returns a tunnel that is carried by a connection of another peer than its own, which must never be.
    pub fn stolen(&self) -> Option<SessionId> {
        let carried = self.connections.values().flat_map(|connection| {
            connection.streams.values().map(move |(tunnel, _)| (connection.peer, tunnel))
        });
        let tunnels = carried.filter_map(|(peer, id)| Some((peer, self.tunnels.get(id)?)));
        tunnels.filter(|(peer, tunnel)| tunnel.peer != *peer).map(|(_, tunnel)| tunnel.session.id()).next()
    }

    fn new_tunnel(&mut self) -> TunnelId {
        self.next_tunnel = self.next_tunnel.saturating_add(1);
        TunnelId(self.next_tunnel)
    }

    fn tell(&mut self, input: Input) {
        self.wants.push_back(Want::Tell(Box::new(input)));
    }

    // ---- own tunnels ------------------------------------------------------------------------

    /// Opens a tunnel through a peer.
    pub fn open(
        &mut self,
        (peer, candidates): (NodeId, Vec<SocketAddr>),
        open: &Open,
        app: App,
        now: Instant,
    ) {
        let request = Bytes::from(open.encode());
        let Ok(session) = Session::open(open.session, request, &self.config, now) else { return };
        let reach = self.reach.entry(peer).or_default();
        if !candidates.is_empty() {
            reach.candidates = candidates;
        }
        let (device, service) = (open.device, open.service.clone());
        let (redial_at, was_open, has_ended) = (now, false, false);
        let app = Some(app);
        let tunnel =
            Tunnel { session, peer, end: End::User, device, service, app, redial_at, was_open, has_ended };
        let id = self.new_tunnel();
        self.tunnels.insert(id, tunnel);
        self.pump(now);
    }

    // ---- connections ------------------------------------------------------------------------

    /// A connection to a peer stands, and both have proven who they are.
    pub fn connected(&mut self, id: CarrierId, peer: NodeId, side: Side, now: Instant) {
        if side == Side::Client {
            self.reach.entry(peer).or_default().is_dialling = false;
        }
        let consent_interval = link::CONSENT_TCP;
        let config = link::Config { side, local: self.local, remote: peer, consent_interval };
        let link = Link::new(config, now);
        let streams = BTreeMap::new();
        let connection = Connection { link, peer, side, streams, under_way: 0, is_up: false };
        self.connections.insert(id, connection);
        if side == Side::Client {
            for tunnel in self.tunnels.values_mut().filter(|tunnel| tunnel.peer == peer) {
                tunnel.redial_at = now;
            }
        }
        self.pump(now);
    }

    /// Bytes have arrived on a connection.
    pub fn received(&mut self, id: CarrierId, bytes: &[u8], now: Instant) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.link.handle_input(bytes, now);
            self.pump(now);
        }
    }

    /// Bytes that this end sent have left it.
    pub fn delivered(&mut self, id: CarrierId, bytes: usize) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.under_way = connection.under_way.saturating_sub(bytes);
        }
    }

    /// A connection is lost.
    pub fn lost(&mut self, id: CarrierId, now: Instant) {
        self.drop_connection(id, now);
        self.pump(now);
    }

    fn drop_connection(&mut self, id: CarrierId, now: Instant) {
        let Some(connection) = self.connections.remove(&id) else { return };
        for (tunnel, number) in connection.streams.into_values() {
            if let Some(tunnel) = self.tunnels.get_mut(&tunnel) {
                tunnel.session.detach(number, now);
            }
        }
        let others =
            |other: &Connection| other.peer == connection.peer && other.side == Side::Client && other.is_up;
        let is_last = connection.side == Side::Client && !self.connections.values().any(others);
        if is_last && connection.is_up {
            self.tell(Input::LinkDown(connection.peer));
        }
    }

    /// The computer has slept: every link is in doubt.
    pub fn doubt(&mut self, now: Instant) {
        for connection in self.connections.values_mut() {
            connection.link.doubt(now);
        }
        self.pump(now);
    }

    // ---- tunnels asked for ------------------------------------------------------------------

    /// The node has granted a tunnel and the device has taken the connection.
    pub fn confirm(&mut self, id: TunnelId, app: App, now: Instant) {
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            tunnel.session.confirm();
            tunnel.app = Some(app);
            self.pump(now);
        }
    }

    /// The node refuses or closes a tunnel, or the device does not take the connection.
    pub fn close_tunnel(&mut self, id: TunnelId, code: Code, now: Instant) {
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            tunnel.session.reset(code);
            self.pump(now);
        }
    }

    /// Returns the session of a tunnel and its peer.
    pub fn tunnel(&self, id: TunnelId) -> Option<&Tunnel> {
        self.tunnels.get(&id)
    }

    fn on_open(
        &mut self,
        carrier: CarrierId,
        (stream, limit, request): (StreamId, u64, Bytes),
        now: Instant,
    ) {
        let Some(connection) = self.connections.get_mut(&carrier) else { return };
        let peer = connection.peer;
        let Ok(open) = Open::decode(&request) else {
            return connection.link.refuse(stream, Code::BadRequest, now);
        };
        let is_taken =
            self.tunnels.values().any(|t| t.end == End::Device && t.session.id().ct_eq(&open.session));
        if is_taken {
            return connection.link.refuse(stream, Code::BadRequest, now);
        }
        let mut session = Session::accept(open.session, limit, &self.config, now);
        session.set_round_trip(CarrierNumber(0), connection.link.round_trip().unwrap_or_default());
        let id = self.new_tunnel();
        if let Some(connection) = self.connections.get_mut(&carrier) {
            connection.streams.insert(stream, (id, CarrierNumber(0)));
        }
        let (device, service) = (open.device, open.service.clone());
        let (redial_at, was_open, has_ended) = (now, false, false);
        let app = None;
        let tunnel =
            Tunnel { session, peer, end: End::Device, device, service, app, redial_at, was_open, has_ended };
        self.tunnels.insert(id, tunnel);
        self.wants.push_back(Want::Asked(id, peer, open.clone()));
        self.tell(Input::OpenAsked { tunnel: id, peer, open });
    }

    fn on_resume(&mut self, carrier: CarrierId, stream: StreamId, resume: &Resume, now: Instant) {
        let Some(connection) = self.connections.get_mut(&carrier) else { return };
        let peer = connection.peer;
        let known = self.tunnels.iter_mut().find(|(_, tunnel)| {
            let is_peers = tunnel.peer == peer || self.trusts_anybody;
            tunnel.end == End::Device && is_peers && tunnel.session.id().ct_eq(&resume.session)
        });
        let Some((id, tunnel)) = known else {
            return connection.link.refuse(stream, Code::UnknownSession, now);
        };
        let round_trip = connection.link.round_trip().unwrap_or_default();
        match tunnel.session.resume(resume, round_trip, now) {
            Ok(()) => {
                connection.streams.insert(stream, (*id, resume.carrier));
            }
            Err(error) => connection.link.refuse(stream, error.code(), now),
        }
    }

    // ---- moving things ----------------------------------------------------------------------

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        for connection in self.connections.values_mut() {
            if connection.link.poll_timeout().is_some_and(|at| at <= now) {
                connection.link.handle_timeout(now);
                let due = connection.link.poll_timeout().filter(|due| *due <= now);
                self.overdue = self.overdue.or(due);
            }
        }
        for tunnel in self.tunnels.values_mut() {
            if tunnel.session.poll_timeout().is_some_and(|at| at <= now) {
                tunnel.session.handle_timeout(now);
                let due = tunnel.session.poll_timeout().filter(|due| *due <= now);
                self.overdue = self.overdue.or(due);
            }
        }
        self.pump(now);
    }

    /// Returns what a link or session wanted right after its time-out though it did not lie in the future, if that ever was.
    pub const fn overdue(&self) -> Option<Instant> {
        self.overdue
    }

    /// Returns when [`handle_timeout`](Self::handle_timeout) is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let links = self.connections.values().filter_map(|connection| connection.link.poll_timeout());
        let sessions = self.tunnels.values().filter_map(|tunnel| tunnel.session.poll_timeout());
        let needy = self.tunnels.values().filter(|t| t.end == End::User && t.session.needs_carrier());
        let apps = self.tunnels.values().filter_map(|tunnel| tunnel.app.as_ref()?.wakes_at());
        links.chain(sessions).chain(needy.map(|tunnel| tunnel.redial_at)).chain(apps).min()
    }

    /// Moves everything until nothing moves.
    pub fn pump(&mut self, now: Instant) {
        if self.connections.is_empty() && self.tunnels.is_empty() {
            return;
        }
        loop {
            self.drain_events(now);
            self.carry(now);
            let acted = self.drive_apps(now);
            let sent = self.send_frames(now);
            self.note_states();
            if !acted && !sent {
                break;
            }
        }
        self.forget_over();
    }

    fn drain_events(&mut self, now: Instant) {
        for carrier in self.connections.keys().copied().collect::<Vec<_>>() {
            while let Some(connection) = self.connections.get_mut(&carrier) {
                let Some(event) = connection.link.poll_event(now) else { break };
                self.on_event(carrier, event, now);
            }
        }
    }

    fn on_event(&mut self, carrier: CarrierId, event: link::Event, now: Instant) {
        let Some(connection) = self.connections.get_mut(&carrier) else { return };
        match event {
            link::Event::Up => {
                connection.is_up = true;
                let peer = connection.peer;
                if connection.side == Side::Client {
                    self.tell(Input::LinkUp(peer));
                }
            }
            link::Event::OpenAsked { stream, limit, request } => {
                self.on_open(carrier, (stream, limit, request), now);
            }
            link::Event::ResumeAsked { stream, resume } => self.on_resume(carrier, stream, &resume, now),
            link::Event::Frame { stream, frame } => match connection.streams.get(&stream) {
                Some((tunnel, number)) => {
                    if let Some(tunnel) = self.tunnels.get_mut(tunnel) {
                        tunnel.session.handle_frame(*number, frame, now);
                    }
                }
                None => connection.link.refuse(stream, Code::UnknownSession, now),
            },
            link::Event::Suspect | link::Event::Trusted => {
                let is_suspect = event == link::Event::Suspect;
                for (tunnel, number) in connection.streams.values() {
                    if let Some(tunnel) = self.tunnels.get_mut(tunnel) {
                        tunnel.session.set_suspect(*number, is_suspect);
                    }
                }
            }
            link::Event::Head(_) => {}
            link::Event::Closed(_) => {
                let mut frames = Vec::new();
                connection.link.poll_output(BATCH_BYTES, now, |_, _| None, &mut frames);
                self.wants.extend(joined(&frames).map(|bytes| Want::Send(carrier, bytes)));
                self.wants.push_back(Want::Close(carrier));
                self.drop_connection(carrier, now);
            }
        }
    }

    fn drive_apps(&mut self, now: Instant) -> bool {
        let mut acted = false;
        for tunnel in self.tunnels.values_mut() {
            let Some(app) = &mut tunnel.app else { continue };
            for deed in app.drive(&mut tunnel.session, now) {
                acted = true;
                self.wants.push_back(Want::Deed(tunnel.session.id(), tunnel.end, deed));
            }
        }
        acted
    }

    fn send_frames(&mut self, now: Instant) -> bool {
        let mut sent = false;
        for (carrier, connection) in &mut self.connections {
            let Connection { link, streams, under_way, .. } = connection;
            for (stream, (tunnel, number)) in &*streams {
                let Some(tunnel) = self.tunnels.get_mut(tunnel) else { continue };
                if let Some(round_trip) = link.round_trip() {
                    tunnel.session.set_round_trip(*number, round_trip);
                }
                if tunnel.session.ready().any(|ready| ready == *number) {
                    link.mark_ready(*stream);
                }
            }
            let room = MAX_UNDER_WAY.saturating_sub(*under_way);
            if room == 0 || !link.wants_output() {
                continue;
            }
            let mut frames = Vec::new();
            let tunnels = &mut self.tunnels;
            let pull = |stream: StreamId, lane: Lane| {
                let (tunnel, number) = streams.get(&stream)?;
                tunnels.get_mut(tunnel)?.session.poll_frame(*number, lane, now)
            };
            let bytes = link.poll_output(room, now, pull, &mut frames);
            *under_way = under_way.saturating_add(bytes);
            if let Some(bytes) = joined(&frames) {
                sent = true;
                self.wants.push_back(Want::Send(*carrier, bytes));
            }
            streams.retain(|stream, _| link.has_stream(*stream));
        }
        sent
    }

    /// Tells about tunnels that have been opened or have ended.
    fn note_states(&mut self) {
        let mut told = Vec::new();
        for (id, tunnel) in &mut self.tunnels {
            match tunnel.session.state() {
                State::Open if !tunnel.was_open => {
                    tunnel.was_open = true;
                    if tunnel.end == End::User {
                        self.wants.push_back(Want::Opened(tunnel.session.id()));
                        let (peer, device) = (tunnel.peer, tunnel.device);
                        let service = tunnel.service.clone();
                        told.push(Input::TunnelOpened { tunnel: *id, peer, device, service });
                    }
                }
                State::Ended(end) if !tunnel.has_ended => {
                    tunnel.has_ended = true;
                    self.wants.push_back(Want::Ended(tunnel.session.id(), tunnel.end, end));
                    if let (End::User, session::End::ResetByPeer(code), false) =
                        (tunnel.end, end, tunnel.was_open)
                    {
                        let (device, peer) = (tunnel.device, tunnel.peer);
                        told.push(Input::RouteFailed { device, peer, code: Some(code) });
                    }
                    told.push(Input::TunnelEnded(*id));
                }
                State::Opening | State::Asked | State::Open | State::Ended(_) => {}
            }
        }
        for input in told {
            self.tell(input);
        }
    }

    fn forget_over(&mut self) {
        self.tunnels.retain(|_, tunnel| {
            let is_seen = tunnel.app.as_ref().is_none_or(App::has_seen_end);
            !(tunnel.session.is_over() && is_seen)
        });
    }
}

fn joined(frames: &[Encoded]) -> Option<Bytes> {
    let mut bytes = BytesMut::new();
    for frame in frames {
        bytes.extend_from_slice(&frame.header);
        bytes.extend_from_slice(&frame.payload);
    }
    (!bytes.is_empty()).then(|| bytes.freeze())
}
