//! Local ports that lead to services of devices.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use peerage_client::local::{EventDetail, OpenTunnel, Path, PathKind, Privacy, Tunnel, TunnelState};
use peerage_client::{Problem, ProblemKind};
use peerage_proto::node::{Route, Way};
use peerage_wire::codec;
use peerage_wire::frame::MAX_DATAGRAM;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time;

use super::{Events, describe, now_ms, problem_of};
use crate::link::{self, PeerLink, Via};
use crate::tunnel::Counters;
use crate::tunnel::datagrams::{Flow, MAX_WAITING};
use crate::tunnel::forward::{Dialer, OnPath, Reached, serve_connection, serve_flow};

/// The most local ports at a time. Each has a descriptor; more are a program that forgets to close.
const MAX_PORTS: usize = 256;

/// The most connections of applications to one local port; the next wait in the system's queue.
const MAX_CONNECTIONS: usize = 4_096;

/// The most applications that use one local port for datagrams; the next are dropped until one falls silent.
const MAX_FLOWS: usize = 64;

/// How long to wait after the system could not accept, most likely for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The open local ports.
#[derive(Clone, Debug)]
pub(super) struct LocalPorts {
    dialer: Dialer,
    events: Events,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    next: AtomicU64,
    ports: Mutex<BTreeMap<u64, Port>>,
}

impl Shared {
    fn ports(&self) -> MutexGuard<'_, BTreeMap<u64, Port>> {
        // Nothing that holds the lock can leave it half-changed.
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One local port; its task and all connections end with it.
#[derive(Debug)]
struct Port {
    described: Tunnel,
    counters: Arc<Counters>,
    task: AbortHandle,
}

impl Drop for Port {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Port {
    fn describe(&self) -> Tunnel {
        Tunnel {
            bytes_sent: self.counters.sent.load(Ordering::Relaxed),
            bytes_received: self.counters.received.load(Ordering::Relaxed),
            connections: self.counters.connections.load(Ordering::Relaxed),
            ..self.described.clone()
        }
    }
}

/// The socket of a local port.
enum Listening {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl LocalPorts {
    pub(super) fn new(dialer: Dialer, events: Events) -> Self {
        Self { dialer, events, shared: Arc::default() }
    }

    pub(super) fn list(&self) -> Vec<Tunnel> {
        self.shared.ports().values().map(Port::describe).collect()
    }

    /// Opens a local port, once a way to the device has been proven.
    pub(super) async fn open(&self, request: OpenTunnel) -> Result<Tunnel, Problem> {
        let reached = self.dialer.reach(&request.device, request.service.as_deref()).await;
        let reached = reached.map_err(|error| named(problem_of(&error), &request))?;
        let wanted = request.listen.unwrap_or_else(|| (Ipv4Addr::LOCALHOST, 0).into());
        let listening = bind(wanted, reached.route.service.protocol).await;
        let (listening, local) = listening.map_err(|error| bind_problem(wanted, &error))?;

        // From here on nothing waits, so a request that is given up leaves nothing behind.
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let described = describe_port(id, &reached, local);
        let counters = Arc::new(Counters::default());
        let mut ports = self.shared.ports();
        if ports.len() >= MAX_PORTS {
            let detail = format!("{MAX_PORTS} local ports are open already; close some first.");
            return Err(Problem::new(ProblemKind::TooMany, detail));
        }
        let service = Service {
            dialer: self.dialer.clone(),
            // By id, which does not change when an administrator renames the device.
            device: reached.route.device.to_string(),
            service: reached.route.service.name,
            counters: Arc::clone(&counters),
            ports: self.clone(),
            id,
        };
        let task = tokio::spawn(async move {
            match listening {
                Listening::Tcp(listener) => service.serve_tcp(listener).await,
                Listening::Udp(socket) => service.serve_udp(socket).await,
            }
        });
        ports.insert(id, Port { described: described.clone(), counters, task: task.abort_handle() });
        drop(ports);
        self.events.publish(EventDetail::TunnelOpened { tunnel: described.clone() });
        Ok(described)
    }

    pub(super) fn close(&self, id: &str) -> Result<(), Problem> {
        let port = id.parse().ok().and_then(|id: u64| self.shared.ports().remove(&id));
        if port.is_none() {
            let detail = format!("There is no tunnel {id}; it may have been closed.");
            return Err(Problem::new(ProblemKind::UnknownTunnel, detail));
        }
        let reason = "closed through the local API".to_owned();
        self.events.publish(EventDetail::TunnelClosed { id: id.to_owned(), reason });
        Ok(())
    }
}

async fn bind(wanted: SocketAddr, protocol: codec::Protocol) -> io::Result<(Listening, SocketAddr)> {
    Ok(match protocol {
        codec::Protocol::Tcp => {
            let listener = TcpListener::bind(wanted).await?;
            let local = listener.local_addr()?;
            (Listening::Tcp(listener), local)
        }
        codec::Protocol::Udp => {
            let socket = UdpSocket::bind(wanted).await?;
            let local = socket.local_addr()?;
            (Listening::Udp(socket), local)
        }
    })
}

fn bind_problem(wanted: SocketAddr, error: &io::Error) -> Problem {
    if error.kind() == io::ErrorKind::AddrInUse {
        let detail = format!("{wanted} is in use by another program; choose another address.");
        return Problem::new(ProblemKind::AddressInUse, detail);
    }
    let detail = format!("This computer cannot listen on {wanted}: {error}.");
    Problem::new(ProblemKind::InvalidRequest, detail)
}

fn describe_port(id: u64, reached: &Reached, local: SocketAddr) -> Tunnel {
    let route = &reached.route;
    let path = describe_path(route, reached.link.as_ref().map(PeerLink::path));
    let is_local = matches!(route.way, Way::Local(_));
    let privacy = match (reached.is_verified, is_local, route.service.tls) {
        (true, _, _) => Privacy::DeviceVerified,
        (false, true, _) => Privacy::LocalNetwork,
        (false, false, true) => Privacy::DeviceTls,
        (false, false, false) => Privacy::TunnelNodeCanRead,
    };
    let service = describe::service(&route.service);
    Tunnel {
        id: id.to_string(),
        device: route.name.clone(),
        service: service.name,
        protocol: service.protocol,
        local,
        state: TunnelState::Ready,
        path,
        bytes_sent: 0,
        bytes_received: 0,
        connections: 0,
        opened_at_ms: now_ms(),
        privacy,
    }
}

fn describe_path(route: &Route, path: Option<link::Path>) -> Option<Path> {
    match &route.way {
        Way::Local(address) => Some(Path { kind: PathKind::Local, remote: *address, tunnel_node: None }),
        Way::Tunnel { peer, .. } => path.map(|path| Path {
            kind: match path.via {
                Via::Direct => PathKind::Direct,
                Via::Mapped => PathKind::Mapped,
                Via::Punched => PathKind::Punched,
                Via::Relay => PathKind::Relayed,
            },
            remote: path.remote,
            tunnel_node: Some(peer.to_string()),
        }),
    }
}

/// What a local port leads to.
#[derive(Clone)]
struct Service {
    dialer: Dialer,
    device: String,
    service: String,
    counters: Arc<Counters>,
    ports: LocalPorts,
    id: u64,
}

impl Service {
    /// Notes the path that a connection takes: the port's is that of the newest, or of the one that moved last.
    fn note_path(&self, route: &Route, path: Option<link::Path>) {
        let Some(path) = describe_path(route, path) else { return };
        let changed = {
            let mut ports = self.ports.shared.ports();
            let Some(port) = ports.get_mut(&self.id) else { return };
            let before = port.described.path.replace(path.clone());
            (before.as_ref() != Some(&path)).then(|| port.describe())
        };
        if let Some(tunnel) = changed {
            self.ports.events.publish(EventDetail::TunnelChanged { tunnel });
        }
    }

    async fn serve_tcp(self, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                Some(_ended) = connections.join_next() => continue,
                accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => accepted,
            };
            match accepted {
                Ok((application, _)) => {
                    let service = self.clone();
                    connections.spawn(async move {
                        let _counted = service.counters.connection();
                        let names = (service.device.as_str(), service.service.as_str());
                        let on_path = |route: &Route, path| service.note_path(route, path);
                        let notes = (&*service.counters, &on_path as OnPath<'_>);
                        let served = serve_connection(&service.dialer, names, application, notes);
                        if let Err(error) = served.await {
                            tracing::info!(%error, "a connection of an application has failed");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection of an application");
                    time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn serve_udp(self, socket: UdpSocket) {
        let socket = Arc::new(socket);
        let mut flows: HashMap<SocketAddr, mpsc::Sender<Bytes>> = HashMap::new();
        let mut tasks: JoinSet<SocketAddr> = JoinSet::new();
        // One byte more than can be sent tells datagrams that were cut.
        let mut buffer = [0; MAX_DATAGRAM + 1];
        loop {
            let received = tokio::select! {
                Some(ended) = tasks.join_next() => {
                    if let Ok(application) = ended {
                        flows.remove(&application);
                    }
                    continue;
                }
                received = socket.recv_from(&mut buffer) => received,
            };
            let Ok((count, application)) = received else { continue };
            if count > MAX_DATAGRAM || (flows.len() >= MAX_FLOWS && !flows.contains_key(&application)) {
                continue;
            }
            let flow = flows.entry(application).or_insert_with(|| {
                let (sender, incoming) = mpsc::channel(MAX_WAITING);
                let (service, socket) = (self.clone(), Arc::clone(&socket));
                tasks.spawn(async move {
                    let _counted = service.counters.connection();
                    let names = (service.device.as_str(), service.service.as_str());
                    let flow = Flow { incoming, outgoing: (&socket, application), was_open: false };
                    let on_path = |route: &Route, path| service.note_path(route, path);
                    let notes = (&*service.counters, &on_path as OnPath<'_>);
                    if let Err(error) = serve_flow(&service.dialer, names, flow, notes).await {
                        tracing::info!(%error, "datagrams of an application lead nowhere");
                    }
                    application
                });
                sender
            });
            // A flow that does not keep up loses datagrams, as on any network.
            let _ = flow.try_send(Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default()));
        }
    }
}

/// Repeats what was asked for where it is the name that is wrong: the asker may be a program with many names.
fn named(problem: Problem, request: &OpenTunnel) -> Problem {
    let name = if problem.kind == ProblemKind::UnknownDevice {
        Some(request.device.as_str())
    } else if problem.kind == ProblemKind::UnknownService {
        request.service.as_deref()
    } else {
        None
    };
    match name {
        Some(name) => Problem::new(problem.kind, format!("\"{name}\": {}", problem.detail)),
        None => problem,
    }
}
