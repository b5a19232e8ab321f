//! The loop around the node's state machine: one task owns it, feeds it what happens, and does what it asks.
//!
//! Everything slow (the disk, a device, an operator over HTTPS) is a job beside the loop whose result comes back as an
//! input. Local work goes before timers, and timers before what strangers send.

mod lend;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use peerage_proto::carrier::StreamNews;
use peerage_proto::lan::{Interface, InterfaceKind};
use peerage_proto::link::bundle::Dial;
use peerage_proto::node::{
    Answer, Command, Event, Found, Input, Node, Output, Status, TaskId, TunnelId, Way,
};
use peerage_wire::enrol::Refusal;
use peerage_wire::frame::Code;
use peerage_wire::id::{DeviceId, Mac, NodeId};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time;

pub(crate) use self::lend::Lent;
use crate::carrier::{self, Streams};
use crate::clock::Clock;
use crate::connect::Connector;
use crate::data::NodeKeys;
use crate::enrol::{self, EnrolFailure};
use crate::lan::{Beacons, FindDevice, Lan, LanChanges, LanError, Presence};
use crate::link::{LinkEvent, Links, Stream};
use crate::mapping::Mappings;
use crate::membership::Membership;
use crate::relay::{OwnLegEvent, OwnLegs};
use crate::store::{Batch, Store};
use crate::tunnel::{Tunnels, pin, serve};
use crate::udp::{Arrived, Datagrams, MAX_BATCH};

/// The most requests that wait for the node; whoever asks for more waits.
const MAX_REQUESTS: usize = 1_024;

/// Sleeps are cut to this, because timers of the runtime stand still while the computer sleeps.
const MAX_SLEEP: Duration = Duration::from_secs(5);

/// How long after the routing socket failed it is opened again.
const WATCH_RETRY: Duration = Duration::from_secs(30);

/// What the shell wants of the node.
#[derive(Debug)]
enum Request {
    Tell(Input),
    Command(Command, oneshot::Sender<Answer>),
    Keep(Batch, oneshot::Sender<bool>),
    Status(oneshot::Sender<Snapshot>),
}

/// The state of the node, and what only its shell knows.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The machine's view.
    pub status: Status,
    /// Datagrams that could not be sent, and errors in place of received ones.
    pub socket_errors: u64,
}

/// The way to the task that owns the node.
#[derive(Clone, Debug)]
pub struct NodeHandle {
    requests: mpsc::Sender<Request>,
}

/// The other end of a [`NodeHandle`].
#[derive(Debug)]
pub struct Requests(mpsc::Receiver<Request>);

impl NodeHandle {
    /// Makes both ends.
    pub fn new() -> (Self, Requests) {
        let (requests, receiver) = mpsc::channel(MAX_REQUESTS);
        (Self { requests }, Requests(receiver))
    }

    /// Lets the node know something.
    pub fn tell(&self, input: Input) {
        match self.requests.try_send(Request::Tell(input)) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            // From a `Drop`, nothing can be waited for; where there is a runtime, it waits instead.
            Err(mpsc::error::TrySendError::Full(request)) => {
                let requests = self.requests.clone();
                if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                    runtime.spawn(async move { requests.send(request).await });
                }
            }
        }
    }

    /// Gives a command and waits for what comes of it; `None` when the node shuts down.
    pub async fn command(&self, command: Command) -> Option<Answer> {
        let (answer, receiver) = oneshot::channel();
        self.requests.send(Request::Command(command, answer)).await.ok()?;
        receiver.await.ok()
    }

    /// Writes facts of the shell to disk. Returns whether they are safe there.
    pub(crate) async fn keep(&self, batch: Batch) -> bool {
        let (answer, receiver) = oneshot::channel();
        self.requests.send(Request::Keep(batch, answer)).await.is_ok() && receiver.await.unwrap_or(false)
    }

    /// Lets the node know something before whatever is asked of it next; without effect when it shuts down.
    pub(crate) async fn tell_first(&self, input: Input) {
        // Whoever shuts down needs to know nothing more.
        let _ = self.requests.send(Request::Tell(input)).await;
    }

    /// Asks for the state; `None` when the node shuts down.
    pub async fn status(&self) -> Option<Snapshot> {
        let (answer, receiver) = oneshot::channel();
        self.requests.send(Request::Status(answer)).await.ok()?;
        receiver.await.ok()
    }
}

/// All that the loop works with.
pub(crate) struct Driver {
    pub(crate) node: Node,
    pub(crate) clock: Clock,
    pub(crate) datagrams: Datagrams,
    /// The connections that carry messages.
    pub(crate) streams: Streams,
    pub(crate) store: Store,
    pub(crate) links: Links,
    /// This computer's own legs to relays.
    pub(crate) legs: OwnLegs,
    pub(crate) lent: Lent,
    pub(crate) tunnels: Tunnels,
    pub(crate) lan: Lan,
    pub(crate) beacons: Beacons,
    /// None if the owner forbids that routers are asked.
    pub(crate) mappings: Option<Mappings>,
    /// Where devices are if the whole network lives on this machine; then no other network is looked at.
    pub(crate) one_machine: Option<BTreeMap<Mac, std::net::IpAddr>>,
    pub(crate) membership: Arc<Membership>,
    pub(crate) keys: Arc<NodeKeys>,
    /// Where operators are asked to renew, and how they are connected to.
    pub(crate) operators: Vec<SocketAddr>,
    pub(crate) connector: Connector,
    pub(crate) on_event: Box<dyn Fn(Event) + Send>,
    pub(crate) jobs: JoinSet<Option<Input>>,
    pub(crate) asked: BTreeMap<TunnelId, Arc<Stream>>,
    pub(crate) answers: BTreeMap<TaskId, oneshot::Sender<Answer>>,
    pub(crate) next_task: u64,
}

/// What comes to the loop from the tasks beside it.
pub(crate) struct Inbox {
    pub(crate) requests: Requests,
    pub(crate) link_events: mpsc::Receiver<LinkEvent>,
    pub(crate) leg_events: mpsc::Receiver<OwnLegEvent>,
    /// What happens to the legs that others have made to this computer.
    pub(crate) leg_news: mpsc::Receiver<peerage_proto::relay::Input>,
    /// What happens to the connections that carry messages.
    pub(crate) stream_news: mpsc::Receiver<StreamNews>,
}

impl Driver {
    /// Runs until `shutdown` is ready, and for what it holds for others a little longer; calls `farewell` when all that is left is
    /// to close. What was written is safe when it returns.
    pub(crate) async fn run(
        mut self,
        mut inbox: Inbox,
        shutdown: impl Future<Output = ()>,
        farewell: impl FnOnce(),
    ) {
        let mut changes = Watch::new(&self.lan);
        self.turn(&mut inbox, &mut changes, shutdown).await;
        self.hand_over(&mut inbox, &mut changes).await;
        farewell();
        self.handle(Input::Stopping);
        self.drain();
        self.lent.legs().close_all();
        self.streams.close_all();
        self.keep_relayed();
        let (mappings, links) = (self.mappings.take(), self.links);
        let give_back = async {
            if let Some(mappings) = mappings {
                mappings.close().await;
            }
        };
        tokio::join!(links.close(), give_back);
    }

    /// Serves until `end` is ready.
    async fn turn(&mut self, inbox: &mut Inbox, changes: &mut Watch, end: impl Future<Output = ()>) {
        let mut end = std::pin::pin!(end);
        loop {
            self.drain();
            let left = self.node.poll_timeout().map_or(MAX_SLEEP, |(at, _reason)| at - self.clock.mono());
            tokio::select! {
                biased;
                () = &mut end => break,
                Some(request) = inbox.requests.0.recv() => self.on_request(request),
                Some(done) = self.jobs.join_next() => match done {
                    Ok(Some(input)) => {
                        if let Input::Networks(interfaces) = &input {
                            self.networks(interfaces);
                        }
                        self.handle(input);
                    }
                    Ok(None) => {}
                    Err(error) => tracing::error!(%error, "a job of the node has failed"),
                },
                Some(event) = inbox.link_events.recv() => self.on_link_event(event),
                Some(event) = inbox.leg_events.recv() => self.on_leg_event(event),
                Some(news) = inbox.leg_news.recv() => self.handle(Input::Leg(news)),
                () = changes.changed(&self.lan) => self.look_around(),
                () = time::sleep(left.min(MAX_SLEEP)) => {
                    self.count_relayed();
                    self.handle(Input::Timeout);
                }
                (interface, from, payload) = self.beacons.receive() => {
                    self.handle(Input::Multicast { interface, from, payload });
                }
                Some(news) = inbox.stream_news.recv() => {
                    self.handle(Input::Stream(news));
                    // Whoever fills his connection leaves datagrams their turn.
                    self.take_datagrams(1);
                }
                arrived = self.datagrams.arrived() => match arrived {
                    Arrived::Datagram(remote, payload) => {
                        self.handle(Input::Datagram { remote, payload });
                        self.take_datagrams(MAX_BATCH - 1);
                        self.take_strangers(true);
                    }
                    Arrived::Strangers => self.take_strangers(false),
                },
            }
        }
    }

    /// Takes so many datagrams at the most that are there already.
    fn take_datagrams(&mut self, most: usize) {
        for _ in 0..most {
            let Some((remote, payload)) = self.datagrams.try_receive() else { break };
            self.handle(Input::Datagram { remote, payload });
        }
    }

    fn take_strangers(&mut self, do_others_wait: bool) {
        let Self { node, clock, datagrams, .. } = self;
        datagrams.receive_strangers(do_others_wait, clock, |remote, payload| {
            let input = Input::Datagram { remote, payload };
            tracing::trace!(?input);
            node.handle(input, clock.now());
        });
    }

    fn handle(&mut self, input: Input) {
        tracing::trace!(?input);
        self.node.handle(input, self.clock.now());
    }

    fn on_request(&mut self, request: Request) {
        match request {
            Request::Tell(input) => {
                if let Input::SuperRole(config) = &input {
                    self.lent.set(*config);
                }
                self.handle(input);
            }
            Request::Keep(batch, answer) => {
                let written = self.store.submit(batch);
                self.jobs.spawn(async move {
                    // Whoever asked may be gone.
                    let _ = answer.send(matches!(written.await, Ok(Ok(()))));
                    None
                });
            }
            Request::Command(command, answer) => {
                let task = TaskId(self.next_task);
                self.next_task += 1;
                self.answers.insert(task, answer);
                self.handle(Input::Command { task, command });
            }
            Request::Status(answer) => {
                self.count_relayed();
                self.handle(Input::Watched);
                let status = self.node.status(self.clock.now());
                // Whoever asked may be gone.
                let _ = answer.send(Snapshot { status, socket_errors: self.datagrams.errors() });
            }
        }
    }

    fn on_link_event(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Up(peer) => self.handle(Input::LinkUp(peer)),
            LinkEvent::Down(peer) => self.handle(Input::LinkDown(peer)),
            LinkEvent::OpenAsked { stream, open } => {
                let stream = Arc::new(stream);
                let (tunnel, peer) = (self.tunnels.add(&stream), stream.peer());
                self.asked.insert(tunnel, stream);
                self.handle(Input::OpenAsked { tunnel, peer, open });
            }
            LinkEvent::Head(record) => self.handle(Input::HeadSeen(record)),
            LinkEvent::PathUsed { peer, remote } => self.handle(Input::PathUsed { peer, remote }),
            LinkEvent::PathUnused { peer, remote } => self.handle(Input::PathUnused { peer, remote }),
            LinkEvent::RelayLost(relay) => self.handle(Input::RelayLost(relay)),
            LinkEvent::PathWanted { peer, device, service, own } => {
                self.find_path((peer, own), device, service);
            }
        }
    }

    fn on_leg_event(&mut self, event: OwnLegEvent) {
        match event {
            OwnLegEvent::News(leg, news) => self.handle(Input::OwnLeg { leg, news }),
            OwnLegEvent::Visited(joined) => self.links.take_leg(joined),
        }
    }

    /// Asks the node where a peer is now whose links are lost, or where one session is to have a leg of its own, and lets the links know.
    fn find_path(&mut self, (peer, own): (NodeId, Option<Dial>), device: DeviceId, service: String) {
        let (answer, receiver) = oneshot::channel();
        self.on_request(Request::Command(Command::Path { peer, device, service }, answer));
        let (links, legs) = (self.links.clone(), self.legs.clone());
        self.jobs.spawn(async move {
            let mut leg = None;
            if let Ok(Answer::Route(route)) = receiver.await
                && let Way::Tunnel { peer, identity, candidates, relayed, begun: _ } = route.way
            {
                leg = relayed.and_then(|attempt| legs.take(attempt));
                links.set_path(peer, identity, &candidates);
            }
            match (own, leg) {
                (Some(dial), leg) => links.take_own_leg(peer, dial, leg),
                // Where a link serves already, a direct path is looked for, and the leg is let go.
                (None, Some(leg)) if !links.is_served(peer) => links.await_leg(leg),
                (None, _) => {}
            }
            None
        });
    }

    /// Takes the networks as they are now.
    pub(crate) fn networks(&mut self, interfaces: &[Interface]) {
        self.links.networks_changed(&|own| {
            own.is_loopback() || interfaces.iter().any(|interface| interface.has_address(own))
        });
        self.beacons.networks(interfaces);
        if let Some(mappings) = &self.mappings {
            mappings.networks(interfaces);
        }
    }

    /// Reads the networks anew.
    fn look_around(&mut self) {
        let lan = self.lan.clone();
        let one_machine = self.one_machine.is_some();
        self.jobs.spawn(async move {
            match lan.snapshot().await {
                Ok(interfaces) => Some(Input::Networks(usable(interfaces, one_machine))),
                Err(error) => {
                    tracing::warn!(%error, "the computer's networks are not known");
                    None
                }
            }
        });
    }

    fn drain(&mut self) {
        while let Some(output) = self.node.poll_output() {
            tracing::trace!(?output);
            self.on_output(output);
        }
    }

    fn on_output(&mut self, output: Output) {
        match output {
            Output::Transmit { remote, payload } => self.datagrams.send(remote, payload),
            Output::TransmitWidely { remote, payload, ports } => {
                self.datagrams.send_widely(remote, &payload, ports);
            }
            Output::Multicast { interface, payload } => self.multicast(interface, &payload),
            Output::Store { task, changes } => {
                let written = self.store.submit(Batch { changes, facts: Vec::new() });
                self.jobs.spawn(async move {
                    let ok = matches!(written.await, Ok(Ok(())));
                    Some(Input::Stored { task, ok })
                });
            }
            Output::FindDevice { task, mac, interfaces, .. } if self.one_machine.is_some() => {
                let address = self.one_machine.as_ref().and_then(|known| known.get(&mac)).copied();
                let interface = interfaces.first().copied();
                let found = address.zip(interface).map(|(address, interface)| Found { address, interface });
                self.jobs.spawn(async move { Some(Input::DeviceFound { task, found }) });
            }
            Output::FindDevice { task, mac, last, interfaces } => {
                let lan = self.lan.clone();
                self.jobs.spawn(async move {
                    let found = find(&lan, mac, last, &interfaces).await;
                    Some(Input::DeviceFound { task, found })
                });
            }
            Output::ProvePin { task, address, pins } => {
                self.jobs.spawn(async move {
                    Some(Input::PinProven { task, proof: pin::prove(address, &pins).await })
                });
            }
            Output::ServeTunnel { tunnel, address, protocol } => {
                // Gone if its opener has given up meanwhile.
                if let Some(stream) = self.asked.remove(&tunnel) {
                    let tunnels = self.tunnels.clone();
                    self.jobs.spawn(async move {
                        serve::serve(stream, address, protocol).await;
                        tunnels.forget(tunnel);
                        Some(Input::TunnelEnded(tunnel))
                    });
                }
            }
            Output::CloseTunnel { tunnel, code } => self.close_tunnel(tunnel, code),
            Output::Answer { task, answer } => {
                if let Some(waiting) = self.answers.remove(&task) {
                    // Whoever asked may be gone.
                    let _ = waiting.send(answer);
                }
            }
            Output::Renew => self.renew(),
            Output::MapPorts(wanted) => {
                if let Some(mappings) = &self.mappings {
                    mappings.want(wanted);
                }
            }
            handshake @ (Output::BeginHandshake { .. } | Output::AnswerHandshake { .. }) => {
                self.on_handshake(handshake);
            }
            Output::Leg(output) => self.lent.legs().apply(output),
            Output::Stream(order) => self.streams.apply(order),
            Output::KeepCarriers(known) => drop(self.store.submit(carrier::keep(&known))),
            Output::OwnLeg { leg, order } => self.legs.order(leg, order),
            Output::HeadChanged(record) => self.links.send_head(&record),
            Output::Event(event) => self.pass_on(event),
        }
    }

    /// Tells of an event whoever acts upon it, and then everybody.
    fn pass_on(&mut self, event: Event) {
        if let Event::SuperRole(state) = event {
            self.lent.changed(state);
        } else if let Event::PathFound(path) = &event {
            self.links.path_found(path);
        } else if let Event::PathLost(path) = &event {
            self.links.path_lost(path);
        } else if matches!(event, Event::Reachable) {
            self.links.look_again();
        }
        (self.on_event)(event);
    }

    /// Begins or answers a handshake by message; it is computing, and takes a fraction of a millisecond.
    fn on_handshake(&mut self, output: Output) {
        if let Output::BeginHandshake { attempt, identity, places } = output {
            let hello = self.links.begin(attempt, identity, places);
            self.handle(Input::HandshakeBegun { attempt, hello });
        } else if let Output::AnswerHandshake { task, peer, identity, hello } = output {
            let flight = self.links.answer((peer, identity), &hello);
            self.handle(Input::HandshakeAnswered { task, flight });
        }
    }

    fn multicast(&mut self, interface: u32, payload: &[u8]) {
        if let Err(error) = self.beacons.send(interface, payload) {
            tracing::debug!(%error, interface, "other nodes of the LAN cannot be told anything");
            self.handle(Input::MulticastFailed { interface });
        }
    }

    fn close_tunnel(&mut self, tunnel: TunnelId, code: Code) {
        match self.asked.remove(&tunnel) {
            Some(stream) => {
                stream.reset(code);
                self.tunnels.forget(tunnel);
            }
            None => self.tunnels.close(tunnel, code),
        }
    }

    fn renew(&mut self) {
        let (membership, keys) = (Arc::clone(&self.membership), Arc::clone(&self.keys));
        let (operators, connector) = (self.operators.clone(), self.connector.clone());
        self.jobs.spawn(async move {
            let (records, time) = match enrol::renew(&membership, &keys, &operators, &connector).await {
                Ok(Some(admitted)) => {
                    let records = admitted.records.iter().map(|record| record.bytes().clone());
                    (records.collect(), Some(admitted.time))
                }
                Ok(None) => (Vec::new(), None),
                Err(EnrolFailure::Refused(Refusal::RevokedNode | Refusal::RevokedDomain)) => {
                    return Some(Input::Expelled);
                }
                Err(error) => {
                    tracing::warn!(%error, "the membership was not renewed");
                    (Vec::new(), None)
                }
            };
            Some(Input::Renewed { records, time })
        });
    }
}

/// Returns the networks that a node uses: on one machine the loopback interface alone, so that nothing leaves it and
/// nodes with different places do not meet at the gateway that they share.
pub(crate) fn usable(interfaces: Vec<Interface>, one_machine: bool) -> Vec<Interface> {
    let is_used = |interface: &Interface| !one_machine || interface.kind == InterfaceKind::Loopback;
    interfaces.into_iter().filter(is_used).collect()
}

/// Looks for a device on one interface after the other.
async fn find(lan: &Lan, mac: Mac, last: Option<std::net::IpAddr>, interfaces: &[u32]) -> Option<Found> {
    for interface in interfaces {
        let request = FindDevice { interface: Some(*interface), last_address: last, ..FindDevice::new(mac) };
        match lan.find(&request).await {
            Ok(Presence::Found(found)) => {
                return Some(Found { address: found.address, interface: found.interface });
            }
            Ok(Presence::Absent { .. } | Presence::Refused(_)) => {}
            Err(error) => tracing::warn!(%error, "a device could not be looked for"),
        }
    }
    None
}

/// Changes of the networks, as long as the system tells them.
struct Watch {
    changes: Result<LanChanges, LanError>,
    retry_at: time::Instant,
}

impl Watch {
    fn new(lan: &Lan) -> Self {
        Self { changes: lan.watch(), retry_at: time::Instant::now() + WATCH_RETRY }
    }

    /// Waits for a change; the first comes at once. May be dropped while it waits.
    async fn changed(&mut self, lan: &Lan) {
        loop {
            match &mut self.changes {
                Ok(changes) => match changes.changed().await {
                    Ok(()) => return,
                    Err(error) => {
                        tracing::warn!(%error, "changes of the networks are not noticed");
                        self.retry_at = time::Instant::now() + WATCH_RETRY;
                        self.changes = Err(error);
                    }
                },
                Err(LanError::Unsupported) => std::future::pending().await,
                Err(_failed) => {
                    time::sleep_until(self.retry_at).await;
                    self.retry_at = time::Instant::now() + WATCH_RETRY;
                    self.changes = lan.watch();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
