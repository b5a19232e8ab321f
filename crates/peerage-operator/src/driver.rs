//! The loop that owns the state machine: datagrams, timers and committed records in; datagrams and questions to the
//! ledger out.
//!
//! Nothing in it waits for the ledger. What the machine asks of the ledger comes back through a set of tasks, and what
//! was committed, by whomever, through a channel that is emptied first.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use peerage_node::carrier::Streams;
use peerage_node::clock::Clock;
use peerage_node::relay::Legs;
use peerage_node::udp::{self, Batches, Refused, Strangers};
use peerage_proto::carrier::StreamNews;
use peerage_proto::operator::{
    Assignment, Evidence, Input, Operator, Output, Port, SegmentStatus, SuperNodeStatus,
};
use peerage_proto::relay;
use peerage_wire::id::{CommandId, Domain, NodeId};
use peerage_wire::limits::MAX_DATAGRAM;
use peerage_wire::message::RefusedReason;
use peerage_wire::record::{Record, Table};
use peerage_wire::time::{Instant, UnixTime};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time;

use crate::check::Checker;
use crate::date::utc;
use crate::enrol::Published;
use crate::ledger::{Actor, Change, LedgerError, LedgerHandle, Tx};
use crate::spy_ports::SpyPorts;
use peerage_node::http::until_true;

/// Most datagrams that are read before something else has a turn.
const MAX_BATCH: usize = 64;

/// Longest sleep. The machine's clock goes on while the computer sleeps, the runtime's does not; so after a suspend
/// timers are at most this late.
const MAX_SLEEP: Duration = Duration::from_secs(1);

/// How long contacts are collected before they are written down together. Longer loses more at a crash, which only
/// makes `last seen` older than it was.
const CONTACT_DELAY: Duration = Duration::from_secs(5);

/// Most contacts that are collected; then they are written down at once.
const MAX_CONTACTS: usize = 4_096;

/// Most questions of other tasks that wait.
pub(crate) const MAX_ASKED: usize = 16;

/// What other tasks ask of the machine.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Offer the devices of a domain to all in contact.
    Push(Domain),
    /// Tell how every super-node stands.
    SuperNodes(oneshot::Sender<Vec<SuperNodeStatus>>),
    /// Tell who holds which part of the table.
    Segments(oneshot::Sender<Vec<SegmentStatus>>),
    /// Tell how often super-nodes have refused something to a domain's members.
    Refusals(Domain, oneshot::Sender<Vec<(RefusedReason, u64)>>),
    /// Tell how many datagrams were dropped, by reason.
    Discards(oneshot::Sender<BTreeMap<String, u64>>),
}

/// The state machine and what connects it with the world.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) machine: Operator,
    pub(crate) id: NodeId,
    pub(crate) socket: UdpSocket,
    /// Its room for many datagrams at once.
    pub(crate) batches: Batches,
    /// What strangers write to the same port, where that waits apart.
    pub(crate) strangers: Option<Strangers>,
    /// What is to be sent from it before anything else is done.
    pub(crate) sending: VecDeque<(SocketAddr, Bytes)>,
    /// For what must come from a port that nobody knows.
    pub(crate) probe: UdpSocket,
    /// The ports of spies, and what arrives there.
    pub(crate) spies: SpyPorts,
    pub(crate) spied: mpsc::Receiver<Input>,
    pub(crate) checker: Checker,
    /// Whether the socket is one of IPv6, which also serves IPv4 where the system lets it.
    pub(crate) is_ipv6: bool,
    pub(crate) clock: Clock,
    pub(crate) ledger: LedgerHandle,
    pub(crate) changes: mpsc::Receiver<Change>,
    pub(crate) asked: mpsc::Receiver<Ask>,
    /// The connections that are relayed, and what happens to them.
    pub(crate) legs: Legs,
    pub(crate) leg_news: mpsc::Receiver<relay::Input>,
    /// The connections that carry messages, and what happens to them.
    pub(crate) streams: Streams,
    pub(crate) stream_news: mpsc::Receiver<StreamNews>,
    pub(crate) published: watch::Sender<Published>,
    /// What is under way for the machine, and what it is told when it has ended.
    pub(crate) tasks: JoinSet<Option<Input>>,
    pub(crate) contacts: BTreeMap<NodeId, (SocketAddr, UnixTime)>,
    pub(crate) contacts_due_at: Option<Instant>,
    /// Datagrams that the system did not take, and errors while receiving.
    pub(crate) failed_sends: u64,
    pub(crate) failed_receives: u64,
}

/// What woke the loop.
enum Wake {
    Ended,
    Changed(Change),
    Asked(Ask),
    Done(Option<Input>),
    Leg(relay::Input),
    Stream(StreamNews),
    Spied(Input),
    Readable(Port),
    Timer,
}

impl Driver {
    /// Serves until `ending` says so.
    pub(crate) async fn run(mut self, mut ending: watch::Receiver<bool>) {
        loop {
            self.drain().await;
            match self.wait(&mut ending).await {
                Wake::Ended => break,
                Wake::Changed(change) => self.take(change),
                Wake::Asked(ask) => self.answer(ask),
                Wake::Done(Some(input)) => self.machine.handle(input, self.clock.now()),
                Wake::Leg(input) => self.machine.handle(Input::Leg(input), self.clock.now()),
                Wake::Stream(news) => {
                    self.machine.handle(Input::Stream(news), self.clock.now());
                    // Whoever fills his connection leaves datagrams their turn.
                    self.receive(Port::Main);
                }
                Wake::Spied(input) => self.machine.handle(input, self.clock.now()),
                Wake::Readable(port) => self.receive(port),
                Wake::Done(None) | Wake::Timer => {}
            }
            self.handle_timers();
        }
        self.legs.close_all();
        self.streams.close_all();
        self.write_contacts();
    }

    async fn wait(&mut self, ending: &mut watch::Receiver<bool>) -> Wake {
        let sleep = time::sleep(self.until_due());
        // In this order: a datagram is answered with what was committed before it came.
        tokio::select! {
            biased;
            () = until_true(ending) => Wake::Ended,
            Some(change) = self.changes.recv() => Wake::Changed(change),
            Some(done) = self.tasks.join_next() => match done {
                Ok(input) => Wake::Done(input),
                // A task that only waits does not panic; should it, the member asks again.
                Err(_) => Wake::Timer,
            },
            Some(ask) = self.asked.recv() => Wake::Asked(ask),
            Some(input) = self.leg_news.recv() => Wake::Leg(input),
            Some(input) = self.spied.recv() => Wake::Spied(input),
            Some(news) = self.stream_news.recv() => Wake::Stream(news),
            readable = self.socket.readable() => match readable {
                Ok(()) => Wake::Readable(Port::Main),
                Err(_) => Wake::Timer,
            },
            readable = udp::strangers(self.strangers.as_ref()) => match readable {
                Ok(()) => Wake::Readable(Port::Main),
                Err(_) => Wake::Timer,
            },
            readable = self.probe.readable() => match readable {
                Ok(()) => Wake::Readable(Port::Probe),
                Err(_) => Wake::Timer,
            },
            () = sleep => Wake::Timer,
        }
    }

    fn until_due(&self) -> Duration {
        let machine = self.machine.poll_timeout().map(|(at, _reason)| at);
        let due = machine.into_iter().chain(self.contacts_due_at).min();
        due.map_or(MAX_SLEEP, |at| at.since(self.clock.mono()).min(MAX_SLEEP))
    }

    fn handle_timers(&mut self) {
        let now = self.clock.now();
        if self.machine.poll_timeout().is_some_and(|(at, _reason)| at <= now.mono) {
            self.machine.handle(Input::Timeout, now);
            self.publish(None);
        }
        if self.contacts_due_at.is_some_and(|at| at <= now.mono) {
            self.write_contacts();
        }
    }

    fn take(&mut self, change: Change) {
        let now = self.clock.now();
        for facts in change.facts {
            self.machine.handle(Input::Domain(facts), now);
        }
        let own = |record: &&Record| {
            let header = record.header();
            header.table == Table::OperatorNode && header.key == self.id.record_key()
        };
        let own = change.records.iter().rfind(own).map(|record| record.bytes().clone());
        self.machine.handle(Input::Committed(change.records), now);
        for (node, on) in change.quarantine {
            self.machine.handle(Input::Quarantine { node, on }, now);
        }
        if !change.spies.is_empty() {
            self.machine.handle(Input::Spies(change.spies), now);
        }
        self.publish(own);
    }

    /// Lets the enrolment server know what it tells strangers.
    fn publish(&self, operator: Option<Bytes>) {
        let statement = *self.machine.statement();
        self.published.send_if_modified(|published| {
            let new =
                Published { statement, operator: operator.unwrap_or_else(|| published.operator.clone()) };
            let modified = *published != new;
            *published = new;
            modified
        });
    }

    fn answer(&mut self, ask: Ask) {
        match ask {
            Ask::Push(domain) => self.machine.handle(Input::Push(Some(domain)), self.clock.now()),
            // Whoever asked may have gone away.
            Ask::SuperNodes(answer) => drop(answer.send(self.machine.super_nodes(self.clock.now()))),
            Ask::Segments(answer) => drop(answer.send(self.machine.segment_map())),
            Ask::Refusals(domain, answer) => drop(answer.send(self.machine.refusals(domain))),
            Ask::Discards(answer) => {
                let counted = self.machine.discards().iter().map(|(name, n)| (name.to_owned(), n));
                let mut all: BTreeMap<_, _> = counted.filter(|(_, n)| *n > 0).collect();
                let own = [("not_sent", self.failed_sends), ("not_received", self.failed_receives)];
                all.extend(own.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name.to_owned(), n)));
                let _ = answer.send(all);
            }
        }
    }

    /// Reads what has arrived, up to a batch, before anything is answered.
    fn receive(&mut self, port: Port) {
        match port {
            Port::Main => {
                let have_others_come = self.receive_many() > 0;
                self.receive_strangers(have_others_come);
            }
            Port::Probe | Port::Spy(_) => self.receive_few(),
        }
    }

    fn receive_many(&mut self) -> usize {
        let Self { machine, clock, batches, socket, failed_receives, .. } = self;
        let mut taken = 0;
        while taken < MAX_BATCH {
            let received = batches.receive(socket, usize::MAX, |remote, datagram| {
                machine.handle(received(remote, datagram), clock.now());
            });
            match received {
                Ok(count) => taken += count.max(1),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Such as the news that an earlier datagram did not reach anybody.
                Err(_) => {
                    *failed_receives += 1;
                    taken += 1;
                }
            }
        }
        taken
    }

    fn receive_strangers(&mut self, do_others_wait: bool) {
        let Self { machine, clock, strangers: Some(strangers), failed_receives, .. } = self else { return };
        *failed_receives += strangers.receive(do_others_wait, clock, |remote, datagram| {
            machine.handle(received(remote, datagram), clock.now());
        });
    }

    fn receive_few(&mut self) {
        let mut buffer = [0; MAX_DATAGRAM + 1];
        for _ in 0..MAX_BATCH {
            match self.probe.try_recv_from(&mut buffer) {
                Ok((length, remote)) => {
                    let payload = Bytes::copy_from_slice(buffer.get(..length).unwrap_or(&[]));
                    let remote = as_known(remote);
                    self.machine.handle(Input::Datagram { remote, payload }, self.clock.now());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.failed_receives += 1,
            }
        }
    }

    async fn drain(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Transmit { remote, payload, port: Port::Spy(visit) } => {
                    if self.spies.send(visit, remote, &payload).await.is_err() {
                        self.failed_sends += 1;
                    }
                }
                Output::VisitEnded(visit) => self.spies.close(visit),
                Output::Quarantined { node, evidence } => self.convict(node, &evidence),
                Output::Transmit { remote, payload, port: Port::Main } => {
                    self.sending.push_back((self.as_seen_by_socket(remote), payload));
                    if self.sending.len() >= MAX_BATCH {
                        self.send().await;
                    }
                }
                Output::Transmit { remote, payload, port: Port::Probe } => {
                    if self.probe.send_to(&payload, self.as_seen_by_socket(remote)).await.is_err() {
                        self.failed_sends += 1;
                    }
                }
                Output::Stream(order) => self.streams.apply(order),
                Output::Leg(output) => self.legs.apply(output),
                Output::DeviceSeen { id, node, key, location } => {
                    self.note(id, move |tx| tx.device_seen(node, key, location));
                }
                Output::Left { id, node } => self.note(id, move |tx| tx.leave(node).map(|()| true)),
                Output::Contact { node, remote } => self.contact(node, remote),
                Output::CheckTcp { task, identity, address } => {
                    let checker = self.checker.clone();
                    self.tasks.spawn(async move {
                        let ok = checker.reaches(identity, address).await;
                        Some(Input::TcpChecked { task, ok })
                    });
                }
                Output::AssignSegments { map_version, changes } => self.assign(map_version, changes),
            }
        }
        self.send().await;
    }

    /// Sends what is to be sent.
    async fn send(&mut self) {
        while !self.sending.is_empty() {
            let failed = match self.batches.send(&self.socket, &mut self.sending) {
                Ok(failed) => failed,
                Err(Refused { failed }) => {
                    // An error of the socket itself shows at the next sending.
                    drop(self.socket.writable().await);
                    failed
                }
            };
            self.failed_sends += failed;
        }
    }

    /// Undoes what [`as_known`] does to IPv4 addresses.
    fn as_seen_by_socket(&self, remote: SocketAddr) -> SocketAddr {
        match remote.ip() {
            IpAddr::V4(v4) if self.is_ipv6 => SocketAddr::new(v4.to_ipv6_mapped().into(), remote.port()),
            IpAddr::V4(_) | IpAddr::V6(_) => remote,
        }
    }

    /// Has the ledger do something, and the machine told how it ended.
    fn note(
        &mut self,
        id: CommandId,
        action: impl FnOnce(&mut Tx<'_>) -> Result<bool, LedgerError> + Send + 'static,
    ) {
        match self.ledger.begin(action) {
            Ok(answer) => {
                self.tasks.spawn(async move {
                    let ok = answer.await.unwrap_or(Ok(false)).unwrap_or_else(|error| {
                        tracing::error!(%error, "what a member reported cannot be written down");
                        false
                    });
                    Some(Input::Noted { id, ok })
                });
            }
            Err(_busy) => self.machine.handle(Input::Noted { id, ok: false }, self.clock.now()),
        }
    }

    /// Has the ledger sign what changes in the segment map. If it cannot, the machine plans anew.
    fn assign(&mut self, map_version: u64, changes: Vec<Assignment>) {
        match self.ledger.begin(move |tx| tx.assign_segments(map_version, &changes)) {
            Ok(answer) => {
                self.tasks.spawn(async move {
                    if let Ok(Err(error)) = answer.await {
                        tracing::error!(%error, "the segment map cannot be signed");
                    }
                    None
                });
            }
            Err(_busy) => tracing::warn!("the ledger is too busy to sign the segment map"),
        }
    }

    /// Has the ledger note whom spies have found out. If it cannot, it is found out again.
    fn convict(&mut self, node: NodeId, evidence: &[Evidence]) {
        tracing::warn!(%node, "spies have found a super-node out; `peerage super list` shows the evidence");
        let lines: Vec<_> = evidence.iter().map(evidence_line).collect();
        let begin = move |tx: &mut Tx<'_>| tx.begin_quarantine(node, &lines.join("\n"), Actor::Operator);
        match self.ledger.begin(begin) {
            Ok(answer) => {
                self.tasks.spawn(async move {
                    if let Ok(Err(error)) = answer.await {
                        tracing::error!(%error, "a quarantine cannot be written down");
                    }
                    None
                });
            }
            Err(_busy) => tracing::warn!("the ledger is too busy to write down a quarantine"),
        }
    }

    fn contact(&mut self, node: NodeId, remote: SocketAddr) {
        let now = self.clock.now();
        self.contacts.insert(node, (remote, now.unix));
        let at = self.contacts_due_at.get_or_insert(now.mono.after(CONTACT_DELAY));
        if self.contacts.len() >= MAX_CONTACTS {
            *at = now.mono;
        }
    }

    fn write_contacts(&mut self) {
        self.contacts_due_at = None;
        let contacts = std::mem::take(&mut self.contacts);
        if contacts.is_empty() {
            return;
        }
        let contacts: Vec<_> = contacts.into_iter().map(|(id, (remote, at))| (id, remote, at)).collect();
        // When members were last seen is for people to look at; if the ledger is busy, the next contact tells.
        if self.ledger.begin(move |tx| tx.seen(&contacts)).is_err() {
            tracing::debug!("the ledger is too busy to write down who was seen");
        }
    }
}

/// Makes a datagram an input of the machine.
fn received(remote: SocketAddr, datagram: &[u8]) -> Input {
    // One byte more than is allowed, so that a longer one is seen to be longer.
    let datagram = datagram.get(..=MAX_DATAGRAM).unwrap_or(datagram);
    Input::Datagram { remote: as_known(remote), payload: Bytes::copy_from_slice(datagram) }
}

/// Returns an address as members know it: a socket of both families shows IPv4 addresses as IPv6.
const fn as_known(remote: SocketAddr) -> SocketAddr {
    SocketAddr::new(remote.ip().to_canonical(), remote.port())
}

/// Writes what a spy has seen as a line for people.
pub(crate) fn evidence_line(evidence: &Evidence) -> String {
    format!("{} {evidence}", utc(evidence.at))
}
