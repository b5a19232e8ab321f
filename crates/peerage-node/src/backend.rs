//! The node behind the local API: what its machine says and what its shell knows, put together for programs.

mod describe;
mod lend;
mod ports;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use peerage_client::local::{
    Device, Event, EventDetail, NodeState, OpenTunnel, Status, SuperNode, SuperOff, SuperOn, Tunnel,
};
use peerage_client::{Problem, ProblemKind};
use peerage_proto::node::{Answer, Command, Event as NodeEvent, Failure};
use peerage_wire::frame::Code;
use peerage_wire::id::DeviceId;
use tokio::sync::{broadcast, mpsc, watch};

use self::lend::Lendings;
use self::ports::LocalPorts;
use crate::connect::Connector;
use crate::driver::{NodeHandle, Snapshot};
use crate::lending::Lending;
use crate::local_api;
use crate::membership::Membership;
use crate::tunnel::forward::{Dialer, ForwardError};

/// The most events that a slow reader may be behind; older ones are left out, and it is told how many.
const MAX_EVENTS: usize = 256;

/// What the local API answers from.
#[derive(Debug)]
pub(crate) struct Shell {
    node: NodeHandle,
    membership: Arc<Membership>,
    listen: Vec<SocketAddr>,
    advertised: Vec<SocketAddr>,
    lendings: Arc<Lendings>,
    ports: LocalPorts,
    events: Events,
    ending: watch::Sender<bool>,
    connector: Connector,
}

/// Where events are published.
#[derive(Clone, Debug)]
pub(crate) struct Events(broadcast::Sender<Event>);

impl Events {
    pub(crate) fn new() -> Self {
        Self(broadcast::channel(MAX_EVENTS).0)
    }

    pub(crate) fn publish(&self, detail: EventDetail) {
        // Without readers there is nobody to tell.
        let _ = self.0.send(Event { at_ms: now_ms(), detail });
    }
}

pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Shell {
    pub(crate) fn new(
        (node, dialer): (NodeHandle, Dialer),
        membership: Arc<Membership>,
        ((listen, advertised), lendings): ((Vec<SocketAddr>, Vec<SocketAddr>), (Lending, Lending)),
        (ending, connector): (watch::Sender<bool>, Connector),
    ) -> Self {
        let events = Events::new();
        let ports = LocalPorts::new(dialer, events.clone());
        let lendings = Arc::new(Lendings::new(lendings));
        Self { node, membership, listen, advertised, lendings, ports, events, ending, connector }
    }

    pub(crate) fn publish(&self, detail: EventDetail) {
        self.events.publish(detail);
    }

    async fn snapshot(&self) -> Result<Snapshot, Problem> {
        self.node.status().await.ok_or_else(shutting_down)
    }

    /// Publishes what the machine tells, until it is gone.
    pub(crate) async fn relay(self: Arc<Self>, mut events: mpsc::Receiver<NodeEvent>) {
        let mut served = BTreeSet::new();
        while let Some(event) = events.recv().await {
            for detail in self.translate(event, &mut served).await {
                self.publish(detail);
            }
        }
    }

    async fn translate(&self, event: NodeEvent, served: &mut BTreeSet<DeviceId>) -> Vec<EventDetail> {
        let warning = |text: String| {
            tracing::warn!("{text}");
            vec![EventDetail::Warning { text }]
        };
        match event {
            NodeEvent::Online => vec![EventDetail::StateChanged { state: NodeState::Online }],
            NodeEvent::Offline => vec![EventDetail::StateChanged { state: NodeState::Offline }],
            NodeEvent::Locations(_) => match self.snapshot().await {
                Ok(snapshot) => {
                    vec![EventDetail::NetworkChanged { locations: describe::locations(&snapshot.status) }]
                }
                Err(_ending) => Vec::new(),
            },
            NodeEvent::DevicesChanged => match self.snapshot().await {
                Ok(snapshot) => {
                    vec![EventDetail::DevicesChanged { devices: snapshot.status.devices.len() as u64 }]
                }
                Err(_ending) => Vec::new(),
            },
            NodeEvent::Serving(devices) => self.serving_changed(devices, served).await,
            NodeEvent::TunnelRefused { peer, code } => {
                tracing::debug!(?peer, %code, "a tunnel was refused");
                vec![EventDetail::Warning { text: format!("A tunnel of node {peer} was refused: {code}.") }]
            }
            NodeEvent::Revoked => warning(Failure::Revoked.to_string()),
            NodeEvent::ExpiresSoon(_) => {
                warning("this computer's membership ends within a week and has not been renewed".to_owned())
            }
            NodeEvent::Stale(true) => warning(Failure::Stale.to_string()),
            NodeEvent::SuperRole(state) => {
                let state = lend::state(state);
                tracing::info!("as a super-node: {state}");
                vec![EventDetail::SuperChanged { state }]
            }
            // The links make use of them.
            NodeEvent::PathFound(_) | NodeEvent::PathLost(_) | NodeEvent::Reachable => Vec::new(),
            NodeEvent::Stale(false)
            | NodeEvent::Announced(_)
            | NodeEvent::ClockLearned(_)
            | NodeEvent::DeviceReported(_) => Vec::new(),
        }
    }

    async fn serving_changed(&self, now: Vec<DeviceId>, served: &mut BTreeSet<DeviceId>) -> Vec<EventDetail> {
        let Ok(snapshot) = self.snapshot().await else { return Vec::new() };
        let name = |id: &DeviceId| {
            let known = snapshot.status.devices.iter().find(|status| status.device.device == *id);
            known.map_or_else(|| id.to_string(), |status| status.device.name.clone())
        };
        let now: BTreeSet<DeviceId> = now.into_iter().collect();
        let began = now.difference(served).map(|id| EventDetail::ServingStarted { device: name(id) });
        let ended = served.difference(&now).map(|id| EventDetail::ServingStopped {
            device: name(id),
            reason: "it is no longer found here, or no longer registered".to_owned(),
        });
        let changes = began.chain(ended).collect();
        *served = now;
        changes
    }
}

impl local_api::Backend for Shell {
    async fn status(&self) -> Result<Status, Problem> {
        let snapshot = self.snapshot().await?;
        let listen = (self.listen.clone(), self.advertised.clone());
        let super_node = self.super_node_now().await?;
        let mut status = describe::status(&snapshot, &self.membership, listen, super_node);
        status.proxy = self.connector.proxy().map(describe::proxy);
        Ok(status)
    }

    async fn devices(&self) -> Result<Vec<Device>, Problem> {
        Ok(describe::devices(&self.snapshot().await?.status))
    }

    async fn refresh_devices(&self) -> Result<Vec<Device>, Problem> {
        match self.node.command(Command::RefreshDevices).await {
            Some(Answer::Refreshed) => self.devices().await,
            Some(Answer::Failed(failure)) => Err(problem_of(&failure.into())),
            Some(Answer::Route(_) | Answer::Left { .. } | Answer::SuperOff { .. }) | None => {
                Err(shutting_down())
            }
        }
    }

    async fn tunnels(&self) -> Result<Vec<Tunnel>, Problem> {
        Ok(self.ports.list())
    }

    async fn open_tunnel(&self, request: OpenTunnel) -> Result<Tunnel, Problem> {
        self.ports.open(request).await
    }

    async fn close_tunnel(&self, id: &str) -> Result<(), Problem> {
        self.ports.close(id)
    }

    async fn super_node(&self) -> Result<SuperNode, Problem> {
        self.super_node_now().await
    }

    async fn super_on(&self, lend: SuperOn) -> Result<SuperNode, Problem> {
        self.lend(lend).await
    }

    async fn super_off(&self) -> Result<SuperOff, Problem> {
        self.lend_nothing().await
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.0.subscribe()
    }

    async fn shutdown(&self) -> Result<(), Problem> {
        self.ending.send_replace(true);
        Ok(())
    }
}

fn shutting_down() -> Problem {
    Problem::new(ProblemKind::Unavailable, "The node is shutting down.")
}

/// Returns a failure as programs are told it.
pub(crate) fn problem_of(error: &ForwardError) -> Problem {
    let kind = match error {
        ForwardError::NoWay(failure) => kind_of(*failure),
        ForwardError::PinMismatch | ForwardError::Refused(Code::PinMismatch) => ProblemKind::PinMismatch,
        ForwardError::Refused(Code::NotAllowed) => ProblemKind::NotAllowed,
        ForwardError::Refused(Code::Revoked | Code::NotMember) => ProblemKind::NotValid,
        ForwardError::Refused(Code::UnknownService) => ProblemKind::UnknownService,
        ForwardError::Dial(_)
        | ForwardError::Open(_)
        | ForwardError::Refused(_)
        | ForwardError::NoCertificate
        | ForwardError::Local { .. } => ProblemKind::DeviceUnreachable,
        ForwardError::Abandoned | ForwardError::ShuttingDown => ProblemKind::Unavailable,
    };
    let mut detail = error.to_string();
    if let Some(first) = detail.get(..1).map(str::to_uppercase) {
        detail.replace_range(..1, &first);
    }
    Problem::new(kind, format!("{detail}."))
}

const fn kind_of(failure: Failure) -> ProblemKind {
    match failure {
        Failure::UnknownDevice => ProblemKind::UnknownDevice,
        Failure::UnknownService => ProblemKind::UnknownService,
        Failure::UnusableDevice | Failure::NoTunnelNode | Failure::TunnelNodesSilent => {
            ProblemKind::DeviceUnreachable
        }
        Failure::NotAllowed => ProblemKind::NotAllowed,
        Failure::Offline | Failure::Stale => ProblemKind::Offline,
        Failure::Revoked | Failure::Expired => ProblemKind::NotValid,
        Failure::Busy => ProblemKind::TooMany,
    }
}
