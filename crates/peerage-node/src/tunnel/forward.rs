//! The user's side: from a connection of an application to the device.
//!
//! Each connection asks the node for a way. Where that leads through a tunnel-node, a link to it is used or dialled, and
//! where the device has a registered certificate, it is verified through the tunnel before the first byte of an
//! application goes there. A way that fails is reported, so that the next one the node gives is another; the
//! application sees nothing but a delay.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use peerage_proto::node::{Answer, Command, Failure, Input, PinProof, Route, TunnelId, Way};
use peerage_wire::codec::Service;
use peerage_wire::frame::Code;
use peerage_wire::id::{DeviceId, NodeId, SessionId};
use peerage_wire::open::Open;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time;

use super::early::{Early, Failed, OPEN_TIMEOUT, uncarried};
use super::serve::CONNECT_TIMEOUT;
use super::{Counters, Tunnels, pin, pump};
use crate::driver::NodeHandle;
use crate::link::{DialError, Links, OpenFailed, Path, PeerLink, Stream};
use crate::relay::OwnLegs;

/// The most ways that are tried for one connection. More makes an application wait for a site that is in trouble.
const MAX_WAYS: usize = 3;

/// The most ways of which it is remembered that the device's certificate was right; beyond, all are verified anew.
const MAX_PROOFS: usize = 1_024;

/// How long a proof counts (Rule 6.18). Shorter costs a handshake with a slow device for many connections of one page; longer
/// leaves more time to put something else in the device's place.
const PROOF_LIFETIME: Duration = Duration::from_secs(300);

/// Why a device cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The node knows no way.
    #[error(transparent)]
    NoWay(#[from] Failure),
    /// No tunnel-node could be dialled.
    #[error("the computer at the device's site cannot be reached: {0}")]
    Dial(#[from] DialError),
    /// The link took no more.
    #[error(transparent)]
    Open(#[from] OpenFailed),
    /// The tunnel-node has refused.
    #[error("the computer at the device's site refused: {0}")]
    Refused(Code),
    /// What answers is not the device.
    #[error("the device showed another certificate than the registered one; nothing was sent to it")]
    PinMismatch,
    /// The device has a registered certificate and showed none.
    #[error("the device did not show its certificate")]
    NoCertificate,
    /// On this LAN, it does not answer.
    #[error("the device at {address} does not answer: {source}")]
    Local {
        /// Where it was found.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The application did not wait for it.
    #[error("the application has closed its connection")]
    Abandoned,
    /// The node is shutting down.
    #[error("the node is shutting down")]
    ShuttingDown,
}

/// A way that was proven.
#[derive(Debug)]
pub struct Reached {
    /// What the node has said.
    pub route: Route,
    /// The link, if it leads through a tunnel.
    pub link: Option<PeerLink>,
    /// Whether the device's certificate was verified.
    pub is_verified: bool,
}

impl Reached {
    fn leads_to(&self, node: NodeId) -> bool {
        matches!(self.route.way, Way::Tunnel { peer, .. } if peer == node)
    }
}

/// The beginning of a connection to a device.
#[derive(Debug)]
enum Begun {
    /// Without a tunnel.
    Local(Route, SocketAddr),
    /// Through a tunnel that was asked for.
    Tunnel(Route, Arc<Stream>),
}

/// Told each time a connection takes a way, or another.
pub(crate) type OnPath<'a> = &'a (dyn Fn(&Route, Option<Path>) + Send + Sync);

/// A tunnel that the node watches until the value is dropped.
#[derive(Debug)]
pub struct Watch {
    /// The tunnel.
    pub stream: Arc<Stream>,
    id: TunnelId,
    tunnels: Tunnels,
    node: NodeHandle,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.tunnels.forget(self.id);
        self.node.tell(Input::TunnelEnded(self.id));
    }
}

/// What a device has proven through a tunnel-node: that it shows one of these certificates.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Proof {
    peer: NodeId,
    device: DeviceId,
    service: String,
    pins: Vec<[u8; 32]>,
}

/// Finds ways and opens tunnels. Clones share what they have learned.
#[derive(Clone, Debug)]
pub struct Dialer {
    node: NodeHandle,
    links: Links,
    legs: OwnLegs,
    tunnels: Tunnels,
    proofs: Arc<Mutex<BTreeMap<Proof, Instant>>>,
}

impl Dialer {
    /// Makes the value.
    pub fn new(node: NodeHandle, (links, legs): (Links, OwnLegs), tunnels: Tunnels) -> Self {
        Self { node, links, legs, tunnels, proofs: Arc::default() }
    }

    /// Finds a way to a service of a device, and proves as much of it as can be proven without an application.
    ///
    /// # Errors
    /// If there is none, or none of those that were tried works.
    pub async fn reach(&self, device: &str, service: Option<&str>) -> Result<Reached, ForwardError> {
        let mut last = None;
        for _way in 0..MAX_WAYS {
            let mut route = self.ask(device, service).await;
            if let Some(peer) = route.as_ref().ok().and_then(|route| self.lost_link(route)) {
                self.node.tell_first(Input::LinkDown(peer)).await;
                route = self.ask(device, service).await;
            }
            let route = match route {
                Ok(route) => route,
                // What happened to the way before says more than that there is no other.
                Err(error) => return Err(last.unwrap_or(error)),
            };
            match self.try_way(&route).await {
                Ok((link, is_verified)) => return Ok(Reached { route, link, is_verified }),
                // That says nothing against the tunnel-node, and the next request goes through a relay that has room, if there is one.
                Err(error @ ForwardError::Dial(DialError::RelayFull)) => last = Some(error),
                Err(error) => {
                    self.report(&route, &error);
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or(ForwardError::NoWay(Failure::NoTunnelNode)))
    }

    /// Begins a connection to a service of a device, by a way that was found before if there is one; the tunnel-node has not answered yet.
    async fn begin(
        &self,
        (device, service): (&str, &str),
        found: Option<Reached>,
    ) -> Result<Begun, ForwardError> {
        let reached = match found {
            Some(reached) => reached,
            None => self.reach(device, Some(service)).await?,
        };
        let Reached { route, link, .. } = reached;
        match (&route.way, link) {
            (Way::Local(address), _) => Ok(Begun::Local(route.clone(), *address)),
            (Way::Tunnel { .. }, Some(link)) => {
                let opened = ask_for(&link, &route).inspect_err(|error| self.report(&route, error))?;
                Ok(Begun::Tunnel(route, opened))
            }
            (Way::Tunnel { .. }, None) => Err(ForwardError::NoWay(Failure::NoTunnelNode)),
        }
    }

    /// Opens a session; as soon as its link is in doubt, another way is looked for beside it.
    ///
    /// # Errors
    /// Why it did not open, with what there is instead: the way through another tunnel-node that stands meanwhile, or the reason why there is
    /// none and will not be soon.
    async fn open_or_find(
        &self,
        (device, service): (&str, &str),
        (application, early): (&TcpStream, &mut Early),
        stream: &Stream,
    ) -> Result<(), (Failed, Option<Result<Reached, ForwardError>>)> {
        let another = async {
            for _way in 0..MAX_WAYS {
                uncarried(stream).await;
                match self.reach(device, Some(service)).await {
                    // A link to the same tunnel-node carries the session on by itself, unless that breaks as well.
                    Ok(reached) if reached.leads_to(stream.peer()) || stream.is_carried() => {}
                    Ok(reached) => return Ok(reached),
                    Err(error @ ForwardError::Dial(DialError::RelayFull)) if !stream.is_carried() => {
                        return Err(error);
                    }
                    Err(_silent) => break,
                }
            }
            std::future::pending().await
        };
        tokio::select! {
            biased;
            opened = early.open(application, stream) => opened.map_err(|failed| (failed, None)),
            instead = another => Err((Failed::Silent, Some(instead))),
        }
    }

    async fn ask(&self, device: &str, service: Option<&str>) -> Result<Route, ForwardError> {
        let (device, service) = (device.to_owned(), service.map(str::to_owned));
        match self.node.command(Command::Route { device, service }).await {
            Some(Answer::Route(route)) => Ok(*route),
            Some(Answer::Failed(failure)) => Err(failure.into()),
            Some(Answer::Refreshed | Answer::Left { .. } | Answer::SuperOff { .. }) | None => {
                Err(ForwardError::ShuttingDown)
            }
        }
    }

    /// Returns to whom the link led that a way should go over, if it has gone and the node has not heard of it yet: nobody was asked whether
    /// that tunnel-node is still there, and to dial one that is not takes far longer.
    fn lost_link(&self, route: &Route) -> Option<NodeId> {
        let Way::Tunnel { peer, candidates, relayed: None, begun: None, .. } = &route.way else {
            return None;
        };
        (candidates.is_empty() && !self.links.is_linked(*peer)).then_some(*peer)
    }

    async fn try_way(&self, route: &Route) -> Result<(Option<PeerLink>, bool), ForwardError> {
        let wants_proof = route.service.tls && !route.pins.is_empty();
        // The node has proven the place itself.
        let Way::Tunnel { peer, identity, candidates, relayed, begun } = &route.way else {
            return Ok((None, wants_proof));
        };
        let (peer, identity) = (*peer, *identity);
        let begun = begun.as_ref().and_then(|begun| self.links.take_begun(begun));
        let leg = relayed.and_then(|attempt| self.legs.take(attempt));
        let link = self.links.connect_or_meet((peer, identity), candidates, (begun, leg)).await?;
        if !wants_proof {
            return Ok((Some(link), false));
        }
        let proof = Proof {
            peer,
            device: route.device,
            service: route.service.name.clone(),
            pins: route.pins.clone(),
        };
        if self.proofs().get(&proof).is_none_or(|at| at.elapsed() > PROOF_LIFETIME) {
            let stream = open_on(&link, route).await?;
            match pin::prove_through(&stream, &route.pins).await {
                PinProof::Matches => {}
                PinProof::Differs(_) => return Err(ForwardError::PinMismatch),
                PinProof::NoAnswer => return Err(ForwardError::NoCertificate),
            }
            let mut proofs = self.proofs();
            if proofs.len() >= MAX_PROOFS {
                proofs.clear();
            }
            proofs.insert(proof, Instant::now());
        }
        Ok((Some(link), true))
    }

    fn report(&self, route: &Route, error: &ForwardError) {
        let Way::Tunnel { peer, .. } = route.way else { return };
        if was_lost(error) {
            return tracing::debug!(?peer, "a request was lost with its link");
        }
        let code = match error {
            ForwardError::Refused(code) => Some(*code),
            ForwardError::PinMismatch | ForwardError::NoCertificate => Some(Code::PinMismatch),
            ForwardError::NoWay(_)
            | ForwardError::Dial(_)
            | ForwardError::Open(_)
            | ForwardError::Local { .. }
            | ForwardError::Abandoned
            | ForwardError::ShuttingDown => None,
        };
        tracing::debug!(?peer, %error, "a way has failed");
        self.node.tell(Input::RouteFailed { device: route.device, peer, code });
    }

    fn watch(&self, stream: Arc<Stream>, route: &Route) -> Watch {
        let id = self.tunnels.add(&stream);
        let (peer, device, service) = (stream.peer(), route.device, route.service.name.clone());
        self.node.tell(Input::TunnelOpened { tunnel: id, peer, device, service });
        Watch { stream, id, tunnels: self.tunnels.clone(), node: self.node.clone() }
    }

    fn proofs(&self) -> std::sync::MutexGuard<'_, BTreeMap<Proof, Instant>> {
        self.proofs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns whether the request for a tunnel was lost with the link that carried it. That says nothing against the way: the next link to the
/// same tunnel-node will do.
const fn was_lost(error: &ForwardError) -> bool {
    matches!(error, ForwardError::Refused(Code::UnknownSession))
}

fn ask_for(link: &PeerLink, route: &Route) -> Result<Arc<Stream>, ForwardError> {
    let mut session = SessionId([0; 16]);
    rand_core::Rng::fill_bytes(&mut crate::enrol::rng(), &mut session.0);
    let Service { name, .. } = &route.service;
    Ok(Arc::new(link.open(&Open { session, device: route.device, service: name.clone() })?))
}

async fn open_on(link: &PeerLink, route: &Route) -> Result<Arc<Stream>, ForwardError> {
    let stream = ask_for(link, route)?;
    let opened = time::timeout(OPEN_TIMEOUT, stream.opened()).await;
    opened.unwrap_or(Err(Code::DeviceUnreachable)).map_err(ForwardError::Refused)?;
    Ok(stream)
}

/// Serves one connection of an application; if no way works, it is reset.
pub(crate) async fn serve_connection(
    dialer: &Dialer,
    names: (&str, &str),
    application: TcpStream,
    (counters, on_path): (&Counters, OnPath<'_>),
) -> Result<(), ForwardError> {
    // What matters is the application's rhythm, not the network's.
    let _ = application.set_nodelay(true);
    let mut early = Early::default();
    let (route, way) = match find_way(dialer, names, &application, &mut early).await {
        Ok(found) => found,
        Err(error) => {
            pump::reset(&application);
            return Err(error);
        }
    };
    match way {
        Opened::Tunnel(watch) => {
            counters.add_sent(early.len());
            let stream = &watch.stream;
            let pumping = pump::pump_rest(application, stream, counters, early.has_ended());
            let pumped = telling((&route, stream), on_path, pumping).await;
            pumped.map_err(ForwardError::Refused)
        }
        Opened::Local(address) => {
            on_path(&route, None);
            let copied = copy_local(&application, address, counters).await;
            copied.map_err(|source| {
                pump::reset(&application);
                ForwardError::Local { address, source }
            })
        }
    }
}

/// A connection to a device that stands.
enum Opened {
    Local(SocketAddr),
    Tunnel(Watch),
}

/// Tries one way after the other, with what the application says meanwhile.
async fn find_way(
    dialer: &Dialer,
    names: (&str, &str),
    application: &TcpStream,
    early: &mut Early,
) -> Result<(Route, Opened), ForwardError> {
    let (mut last, mut found) = (None, None);
    for _way in 0..MAX_WAYS {
        let (route, stream) = match dialer.begin(names, found.take()).await {
            Ok(Begun::Tunnel(route, stream)) => (route, stream),
            // What was kept goes nowhere: only a tunnel reads the application ahead.
            Ok(Begun::Local(route, address)) if early.len() == 0 && !early.has_ended() => {
                return Ok((route, Opened::Local(address)));
            }
            Ok(Begun::Local(..)) => break,
            // What happened to the way before says more than that there is no other.
            Err(error) => return Err(last.unwrap_or(error)),
        };
        let opened = dialer.open_or_find(names, (application, &mut *early), &stream).await;
        let error = match opened {
            Ok(()) => {
                let watch = dialer.watch(stream, &route);
                return Ok((route, Opened::Tunnel(watch)));
            }
            Err((_failed, Some(Err(error)))) => return Err(error),
            Err((failed, reached)) => {
                found = reached.and_then(Result::ok);
                match failed {
                    Failed::Abandoned => return Err(ForwardError::Abandoned),
                    Failed::Refused(code) => ForwardError::Refused(code),
                    Failed::Silent => ForwardError::Refused(Code::DeviceUnreachable),
                }
            }
        };
        dialer.report(&route, &error);
        // A tunnel that was resumed may have been granted before it failed, and the device may have read what was sent. A session that
        // the tunnel-node does not know was never granted.
        if early.len() > 0 && stream.was_resumed() && !was_lost(&error) {
            return Err(error);
        }
        last = Some(error);
    }
    Err(last.unwrap_or(ForwardError::NoWay(Failure::NoTunnelNode)))
}

/// Tells which path a tunnel takes, now and whenever it takes another, until it has ended.
async fn telling<T>(
    (route, stream): (&Route, &Stream),
    on_path: OnPath<'_>,
    pumping: impl Future<Output = T>,
) -> T {
    let tell = || {
        if let Some(path) = stream.path() {
            on_path(route, Some(path));
        }
    };
    tell();
    let mut pumping = std::pin::pin!(pumping);
    loop {
        tokio::select! {
            result = &mut pumping => return result,
            () = stream.moved() => tell(),
        }
    }
}

/// Copies between an application and a device on the same LAN.
async fn copy_local(application: &TcpStream, address: SocketAddr, counters: &Counters) -> io::Result<()> {
    let connected = time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let device = connected.unwrap_or(Err(io::ErrorKind::TimedOut.into()))?;
    let up = copy_one_way(application, &device, |count| counters.add_sent(count));
    let down = copy_one_way(&device, application, |count| counters.add_received(count));
    let result = tokio::try_join!(up, down);
    if result.is_err() {
        pump::reset(&device);
    }
    result.map(|_ends| ())
}

/// The room for bytes of one direction without a tunnel.
const COPY_BYTES: usize = 64 * 1_024;

async fn copy_one_way(from: &TcpStream, to: &TcpStream, count: impl Fn(usize)) -> io::Result<()> {
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        from.readable().await?;
        let length = match from.try_read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        count(length);
        let mut rest = buffer.get(..length).unwrap_or_default();
        while !rest.is_empty() {
            to.writable().await?;
            match to.try_write(rest) {
                Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
    // Whoever has closed already needs no end.
    let _ = socket2::SockRef::from(to).shutdown(std::net::Shutdown::Write);
    Ok(())
}

/// Serves the datagrams of one application. The first ones travel with the request; those that are sent to a tunnel-node which refuses
/// are lost, as datagrams may be.
pub(crate) async fn serve_flow(
    dialer: &Dialer,
    names: (&str, &str),
    mut flow: super::datagrams::Flow<'_>,
    (counters, on_path): (&Counters, OnPath<'_>),
) -> Result<(), ForwardError> {
    let mut last = None;
    for _way in 0..MAX_WAYS {
        let begun = match dialer.begin(names, None).await {
            Ok(begun) => begun,
            Err(error) => return Err(last.unwrap_or(error)),
        };
        match begun {
            Begun::Tunnel(route, stream) => {
                let watch = dialer.watch(stream, &route);
                let pumping = super::datagrams::pump_flow(&mut flow, &watch.stream, counters);
                let result = telling((&route, &watch.stream), on_path, pumping).await;
                let Err(code) = result else { return Ok(()) };
                let error = ForwardError::Refused(code);
                if flow.was_open {
                    return Err(error);
                }
                dialer.report(&route, &error);
                last = Some(error);
            }
            Begun::Local(route, address) => {
                on_path(&route, None);
                let failed = |source| ForwardError::Local { address, source };
                let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = UdpSocket::bind(any).await.map_err(failed)?;
                socket.connect(address).await.map_err(failed)?;
                return super::datagrams::copy_local(&mut flow, &socket, counters).await.map_err(failed);
            }
        }
    }
    Err(last.unwrap_or(ForwardError::NoWay(Failure::NoTunnelNode)))
}
