//! Computers: starting and stopping them, and what their nodes ask for.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use peerage_proto::endpoint;
use peerage_proto::mapping::{Mapping, MappingProtocol, Ports, RouterMapping};
use peerage_proto::node::{
    Answer, Command, Config, Elections, Found, Input, LegNews, LegOrder, Node, Output, PinProof, SuperConfig,
    TaskId, Way,
};
use peerage_wire::codec::Transport;
use peerage_wire::id::{Mac, SessionId};
use peerage_wire::keys::DomainKeys;
use peerage_wire::open::Open;
use peerage_wire::record::{DomainKeyBody, Table};
use peerage_wire::time::Instant;

use super::{Bug, Due, Errand, World};
use crate::app::{App, End, Script};
use crate::host::{ErrandId, Host};
use crate::invariants::{Fact, Violation};
use crate::model::{Direction, Tunnel};
use crate::network::Party;
use crate::shell::Shell;
use crate::store::Disk;

/// How long finding a device on a LAN takes at most, if it is there, and if it is not.
const FIND: Duration = Duration::from_millis(50);
const FIND_NOTHING: Duration = Duration::from_secs(3);

/// How long a handshake with a device takes.
const HANDSHAKE: Duration = Duration::from_millis(30);

/// How long the first flights of TLS with raw public keys are, in bytes.
const HELLO_SIZE: usize = 218;
const FLIGHT_SIZE: usize = 383;

/// How long a renewal over HTTPS takes.
const RENEWAL: Duration = Duration::from_millis(300);

/// How long a router takes to forward a port.
const ROUTER_ANSWERS: Duration = Duration::from_millis(100);

/// How long a user waits before trying again.
const TRY_AGAIN: Duration = Duration::from_secs(4);

/// What a computer has sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Datagrams.
    pub datagrams: u64,
    /// Those of them that answer what somebody else asked.
    pub answers: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Datagrams to the group of its LAN.
    pub multicasts: u64,
}

impl World {
    // ---- life -------------------------------------------------------------------------------

    /// Starts a computer from its disk.
    pub(super) fn start_host(&mut self, index: usize) {
        let statements: Vec<_> =
            self.operators.iter().filter_map(|o| o.machine.as_ref()).map(|o| *o.statement()).collect();
        let (network, root, now) = (self.ledger.network(), self.ledger.root(), self.now);
        let (crypto, seed) = (std::sync::Arc::clone(&self.crypto), self.chance.bytes());
        let keys = self.hosts.get(index).and_then(|host| self.ledger.keys(host.domain)).cloned();
        let (Some(host), Some(keys)) = (self.hosts.get_mut(index), keys) else { return };
        if host.node.is_some() || host.has_left {
            return;
        }
        host.liar = None;
        if host.statements.is_empty() {
            host.statements = statements;
        }
        let Some(mut config) = config_of(host, network, root, crypto, &keys) else { return };
        config.eager = self.setup.eager;
        host.boot += 1;
        host.clock.zero = now;
        host.wake_at = None;
        host.asleep_until = None;
        host.stopped_since = None;
        host.shell = Shell::new(host.id, host.shell.next_tunnel());
        host.node = Some(Node::new(config, seed, host.now(now)));
        self.observe(&Fact::Started { host: index });
        self.tell_networks(index);
    }

    pub(super) fn stop_host(&mut self, index: usize, survivors: usize) {
        let Some(host) = self.hosts.get_mut(index) else { return };
        if host.node.take().is_none() {
            return;
        }
        host.store.crash(survivors);
        host.leaving = None;
        host.errands.clear();
        host.asleep_until = None;
        self.model.excuse(|tunnel| tunnel.user == index || tunnel.server == Some(index));
        self.lose_all_carriers(index);
    }

    /// Tells a node which networks there are; one that sleeps hears of it when it wakes.
    pub(super) fn tell_networks(&mut self, index: usize) {
        let Some(host) = self.hosts.get(index).filter(|host| host.is_awake()) else { return };
        let Some(site) = self.network.sites.get(host.site) else { return };
        let interfaces = site.interfaces(host.inner.ip());
        self.host_input(index, Input::Networks(interfaces));
    }

    pub(super) fn sleep(&mut self, index: usize, span: Duration, counts: bool) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(index).filter(|host| host.is_awake()) else { return };
        host.asleep_until = Some(now.after(span));
        host.stopped_since = (!counts).then_some(now);
        let boot = host.boot;
        self.schedule_in(span, Due::Wake { host: index, boot });
    }

    pub(super) fn awake(&mut self, index: usize, boot: u32) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(index).filter(|host| host.boot == boot) else { return };
        if host.asleep_until.is_none_or(|until| until > now) {
            return;
        }
        self.wake(index);
    }

    /// Wakes a computer that sleeps.
    pub(super) fn wake(&mut self, index: usize) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(index).filter(|host| host.asleep_until.is_some()) else { return };
        host.wake(now);
        let at = host.now(now).mono;
        host.shell.doubt(at);
        self.tell_networks(index);
        self.host_input(index, Input::Timeout);
    }

    // ---- inputs -----------------------------------------------------------------------------

    /// Lets somebody look at the status of a computer.
    pub fn look_at(&mut self, index: usize) {
        self.host_input(index, Input::Watched);
    }

    pub(super) fn host_input(&mut self, index: usize, input: Input) {
        let now = self.now;
        let is_deaf = self.setup.planted == Some(Bug::GoesDeaf) && now > Instant::from_micros(60_000_000);
        let Some(host) = self.hosts.get_mut(index) else { return };
        let at = host.now(now);
        let is_timeout = matches!(input, Input::Timeout);
        let Some(node) = &mut host.node else { return };
        let ignores = is_timeout && self.setup.planted == Some(Bug::IgnoresTimeouts);
        let is_unheard = is_deaf && matches!(input, Input::Datagram { .. });
        if !is_unheard && !ignores {
            node.handle(input, at);
        }
        let next = if is_timeout { node.poll_timeout() } else { None };
        if let Some((due, why)) = next.filter(|(due, _)| *due <= at.mono) {
            let what = format!("computer {index} after a timeout at {at:?} wants one at {due:?} for {why}");
            self.violation.get_or_insert(Violation { invariant: "timers advance", what, at: now });
        }
        self.drain_host(index);
    }

    /// Takes everything that a computer wants done, and plans its next turn.
    pub(super) fn drain_host(&mut self, index: usize) {
        loop {
            let Some(host) = self.hosts.get_mut(index) else { return };
            if let Some(output) = host.node.as_mut().and_then(Node::poll_output) {
                self.output(index, output);
            } else if let Some(want) = host.shell.poll_want() {
                self.want(index, want);
            } else {
                break;
            }
        }
        self.plan_host(index);
    }

    fn plan_host(&mut self, index: usize) {
        let Some(host) = self.hosts.get_mut(index).filter(|host| host.is_awake()) else { return };
        let Some(at) = host.due() else { return };
        if host.wake_at.is_none_or(|planned| at < planned) {
            host.wake_at = Some(at);
            self.schedule(at, Due::Host(index));
        }
    }

    pub(super) fn wake_host(&mut self, index: usize) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(index).filter(|host| host.is_awake()) else { return };
        if host.wake_at.is_some_and(|at| at > now) {
            return;
        }
        host.wake_at = None;
        let at = host.now(now).mono;
        let node_is_due = host.node.as_ref().and_then(Node::poll_timeout).is_some_and(|(due, _)| due <= at);
        if host.shell.poll_timeout().is_some_and(|due| due <= at) {
            self.trace.note(now, 5, index as u64, &[]);
            host.shell.handle_timeout(at);
            self.drain_host(index);
        }
        if node_is_due {
            self.trace.note(now, 1, index as u64, &[]);
            self.host_input(index, Input::Timeout);
        }
        self.plan_host(index);
    }

    /// An answer to something that a node asked for, unless it was started anew since; a sleeping computer gets it later.
    pub(super) fn late_input(&mut self, index: usize, boot: u32, input: Box<Input>) {
        let Some(host) = self.hosts.get(index).filter(|host| host.boot == boot && host.node.is_some()) else {
            return;
        };
        if let Some(until) = host.asleep_until {
            return self.schedule(until, Due::Input { host: index, boot, input });
        }
        self.host_input(index, *input);
    }

    pub(super) fn later(&mut self, index: usize, after: Duration, input: Input) {
        let boot = self.hosts.get(index).map_or(0, |host| host.boot);
        self.schedule_in(after, Due::Input { host: index, boot, input: Box::new(input) });
    }

    // ---- outputs ----------------------------------------------------------------------------

    fn output(&mut self, index: usize, output: Output) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(index) else { return };
        let (inner, boot) = (host.inner, host.boot);
        match output {
            Output::Transmit { remote, payload } => {
                let from = host.wide_ports.source(inner, remote);
                self.send(Party::Host(index), from, remote, payload);
            }
            Output::TransmitWidely { remote, payload, ports } => {
                for from in host.wide_ports.open(inner, remote, ports) {
                    self.send(Party::Host(index), from, remote, payload.clone());
                }
            }
            Output::Multicast { interface, payload } => self.multicast(index, interface, payload),
            Output::Store { task, changes } => {
                let delay = match host.store.disk {
                    Disk::Good(delay) => delay,
                    Disk::Full => Duration::from_millis(1),
                };
                host.store.forgets = self.setup.planted == Some(Bug::ForgetsWrites);
                host.store.begin(task, changes);
                self.schedule_in(delay, Due::Written { host: index, boot, task });
            }
            Output::FindDevice { task, mac, .. } => {
                let found = self.find_device(index, mac);
                let longest = if found.is_some() { FIND } else { FIND_NOTHING };
                let delay = self.chance.duration(longest);
                self.later(index, delay, Input::DeviceFound { task, found });
            }
            Output::ProvePin { task, address, pins } => {
                let proof = self.prove(index, address, &pins);
                self.later(index, HANDSHAKE, Input::PinProven { task, proof });
            }
            Output::ServeTunnel { tunnel, address, .. } => {
                self.schedule_in(HANDSHAKE, Due::Connected { host: index, boot, tunnel, address });
            }
            Output::CloseTunnel { tunnel, code } => self.node_closes(index, tunnel, code),
            Output::Answer { task, answer } => self.answered(index, task, answer),
            Output::MapPorts(ports) => self.map_ports(index, ports),
            Output::Renew => self.schedule_in(RENEWAL, Due::Renew { host: index, boot }),
            Output::HeadChanged(record) => {
                let at = host.clock.now(now).mono;
                host.shell.send_head(&record, at);
            }
            Output::BeginHandshake { attempt, .. } => {
                let hello = Some(Bytes::from(vec![0; HELLO_SIZE]));
                self.later(index, Duration::ZERO, Input::HandshakeBegun { attempt, hello });
            }
            // Connections prove who is there without it.
            Output::AnswerHandshake { task, .. } => {
                let flight = Some(Bytes::from(vec![0; FLIGHT_SIZE]));
                self.later(index, Duration::ZERO, Input::HandshakeAnswered { task, flight });
            }
            // Nobody takes legs here yet.
            Output::OwnLeg { leg, order: LegOrder::Dial(..) } => {
                self.later(index, HANDSHAKE, Input::OwnLeg { leg, news: LegNews::Closed });
            }
            // The machines of the simulator speak over UDP alone.
            Output::Stream(_) | Output::KeepCarriers(_) | Output::Leg(_) | Output::OwnLeg { .. } => {}
            Output::Event(event) => self.note_event(index, &event),
        }
    }

    pub(super) fn written(&mut self, index: usize, boot: u32, task: TaskId) {
        let Some(host) = self.hosts.get_mut(index).filter(|host| host.boot == boot && host.node.is_some())
        else {
            return;
        };
        let refused = host.store.disk == Disk::Full;
        if let Some(changes) = host.store.end(task) {
            self.observe(&Fact::Acknowledged { host: index, changes: &changes });
            let input = Box::new(Input::Stored { task, ok: !refused });
            self.late_input(index, boot, input);
        }
    }

    /// Returns the devices at the site where a computer is.
    fn devices_near(&self, index: usize) -> impl Iterator<Item = &super::Device> {
        let site = self.hosts.get(index).map(|host| host.site);
        let here = site.and_then(|site| self.devices_at.get(&site)).into_iter().flatten();
        here.filter_map(|device| self.devices.get(*device))
    }

    fn find_device(&self, index: usize, mac: Mac) -> Option<Found> {
        let here = |device: &&super::Device| device.is_present && device.registered.mac == mac;
        let device = self.devices_near(index).find(here)?;
        Some(Found { address: device.address, interface: 2 })
    }

    fn prove(&self, index: usize, address: SocketAddr, pins: &[[u8; 32]]) -> PinProof {
        let shown = self.device_at(index, address).and_then(|device| device.registered.pins.first());
        match shown {
            Some(pin) if pins.contains(pin) => PinProof::Matches,
            Some(pin) => PinProof::Differs(*pin),
            None => PinProof::NoAnswer,
        }
    }

    /// Returns the device that answers at an address of a computer's LAN.
    pub(super) fn device_at(&self, index: usize, address: SocketAddr) -> Option<&super::Device> {
        self.devices_near(index).find(|device| {
            let listens = device.registered.services.iter().any(|s| s.port == address.port());
            device.is_present && device.address == address.ip() && listens
        })
    }

    pub(super) fn renew(&mut self, index: usize, boot: u32) {
        let now = self.true_now();
        let Some(host) = self.hosts.get(index).filter(|host| host.boot == boot) else { return };
        let id = host.id;
        let time = self.operator_times(host.site).next();
        let is_revoked = self.ledger.member(&id).is_some_and(|member| member.revoked_at.is_some());
        if is_revoked && time.is_some() {
            return self.late_input(index, boot, Box::new(Input::Expelled));
        }
        let records: Vec<Bytes> = if time.is_some() {
            let written = self.ledger.renew(id, now).unwrap_or_default();
            self.commit(&written);
            let operators = self.ledger.operators().iter().map(|operator| operator.record.bytes().clone());
            written.iter().map(|record| record.bytes().clone()).chain(operators).collect()
        } else {
            Vec::new()
        };
        self.late_input(index, boot, Box::new(Input::Renewed { records, time }));
    }

    // ---- leaving ----------------------------------------------------------------------------

    /// A member leaves the network, and its computer is switched off for ever.
    pub(super) fn leave(&mut self, index: usize) {
        let Some(host) = self.hosts.get_mut(index).filter(|host| host.is_awake() && host.leaving.is_none())
        else {
            return;
        };
        let task = host.new_task(ErrandId(0));
        host.errands.remove(&task);
        host.leaving = Some(task);
        self.host_input(index, Input::Command { task, command: Command::Leave });
    }

    fn depart(&mut self, index: usize) {
        self.stop_host(index, 0);
        if let Some(host) = self.hosts.get_mut(index) {
            host.has_left = true;
        }
    }

    // ---- errands ----------------------------------------------------------------------------

    /// A user wants a tunnel; it is tried until it stands, at most so often.
    pub fn begin_errand(&mut self, host: usize, device: usize, script: Script, tries: u32) -> ErrandId {
        let id = ErrandId(self.new_id());
        let errand = Errand {
            host,
            device,
            script,
            tries_left: tries,
            session: None,
            is_local: false,
            failure: None,
            begun_at: self.now,
            reached_at: None,
        };
        self.errands.insert(id, errand);
        self.schedule_in(Duration::ZERO, Due::Try(id));
        id
    }

    pub(super) fn try_errand(&mut self, id: ErrandId) {
        let Some(errand) = self.errands.get_mut(&id) else { return };
        if errand.tries_left == 0 {
            return;
        }
        errand.tries_left -= 1;
        let (index, device) = (errand.host, errand.device);
        let Some(device) = self.devices.get(device).map(|device| device.registered.name.clone()) else {
            return;
        };
        let Some(host) = self.hosts.get_mut(index).filter(|host| host.is_awake()) else {
            return self.try_again(id);
        };
        let task = host.new_task(id);
        let command = Command::Route { device, service: None };
        self.host_input(index, Input::Command { task, command });
    }

    pub(super) fn try_again(&mut self, id: ErrandId) {
        if self.errands.get(&id).is_some_and(|errand| errand.tries_left > 0) {
            self.schedule_in(TRY_AGAIN, Due::Try(id));
        }
    }

    /// Has the router forward a port to a computer, if it is one that can be asked.
    fn map_ports(&mut self, index: usize, ports: Ports) {
        let Some(host) = self.hosts.get(index) else { return };
        let site = self.network.sites.get_mut(host.site);
        let nat = site.and_then(|site| site.nat.as_mut()).filter(|nat| nat.can_be_asked);
        let (Some(nat), inner) = (nat, host.inner) else { return };
        nat.take_back(inner);
        let mut held = Vec::new();
        if ports != Ports::None {
            let outer = (inner.port()..).find(|port| nat.forwarded(*port).is_none()).unwrap_or(inner.port());
            nat.forward(outer, inner);
            let external = SocketAddr::new(nat.public, outer);
            let of = |transport| ports.transports().contains(&transport).then_some(external);
            let (udp, tcp) = (of(Transport::Udp), of(Transport::Tcp));
            let mapping = Mapping::Held { protocol: MappingProtocol::Pcp, udp, tcp };
            held.push(RouterMapping { router: nat.public, mapping });
        }
        self.later(index, ROUTER_ANSWERS, Input::Mapped(held));
    }

    fn answered(&mut self, index: usize, task: TaskId, answer: Answer) {
        let now = self.now;
        if self.setup.is_told {
            self.tell(Party::Host(index), &format!("{answer:?}"));
        }
        if let Answer::Left { .. } = answer
            && self.hosts.get(index).is_some_and(|host| host.leaving == Some(task))
        {
            return self.depart(index);
        }
        let Some(id) = self.hosts.get_mut(index).and_then(|host| host.errands.remove(&task)) else { return };
        let Some(errand) = self.errands.get_mut(&id) else { return };
        match answer {
            Answer::Route(route) => match route.way {
                Way::Local(address) => {
                    errand.is_local = true;
                    errand.reached_at.get_or_insert(now);
                    let device = route.device;
                    self.observe(&Fact::UsedHere { host: index, device, address });
                }
                Way::Tunnel { peer, candidates, .. } => {
                    let (device, service) = (route.device, route.service.name);
                    let tcp = candidates.iter().filter(|candidate| candidate.transport == Transport::Tcp);
                    let places = tcp.map(|candidate| candidate.address).collect();
                    self.open_tunnel(id, (peer, places), (device, service));
                }
            },
            Answer::Failed(failure) => {
                errand.failure = Some(failure);
                self.try_again(id);
            }
            Answer::Refreshed | Answer::Left { .. } | Answer::SuperOff { .. } => {}
        }
    }

    pub(super) fn open_tunnel(
        &mut self,
        id: ErrandId,
        to: (peerage_wire::id::NodeId, Vec<SocketAddr>),
        (device, service): (peerage_wire::id::DeviceId, String),
    ) {
        let now = self.now;
        let session = SessionId(self.chance.bytes());
        let Some(errand) = self.errands.get_mut(&id) else { return };
        errand.session = Some(session);
        let (user, script) = (errand.host, errand.script);
        self.model.begin(
            session,
            Tunnel {
                errand: id,
                user,
                server: None,
                device,
                script,
                directions: [Direction::default(); 2],
                was_opened: false,
                ends: [None; 2],
                is_excused: false,
                apart_since: None,
            },
        );
        let Some(host) = self.hosts.get_mut(user) else { return };
        let at = host.now(now).mono;
        let app = App::new(session, End::User, script, at);
        host.shell.open(to, &Open { session, device, service }, app, at);
    }

    /// A planted bug: nodes begin anew from their disks, although their computers run on.
    pub(super) fn lose_memory(&mut self) {
        let Some(Bug::LosesMemory(from)) = self.setup.planted else { return };
        if self.now - Instant::default() < from {
            return;
        }
        for index in 0..self.hosts.len() {
            let Some(host) = self.hosts.get_mut(index) else { return };
            let (boot, terms, clock) = (host.boot, host.terms, host.clock);
            if !host.lends || host.node.take().is_none() {
                continue;
            }
            self.start_host(index);
            if let Some(host) = self.hosts.get_mut(index) {
                (host.boot, host.terms, host.clock) = (boot, terms, clock);
            }
        }
    }

    /// A planted bug: everybody says something, to nobody's use.
    pub(super) fn chatter(&mut self) {
        let operator = self.operators.first().map(|operator| operator.identity.address);
        let Some(to) = operator.filter(|_| self.setup.planted == Some(Bug::Chatters)) else { return };
        for index in 0..self.hosts.len() {
            if let Some(inner) = self.hosts.get(index).map(|host| host.inner) {
                self.send(Party::Host(index), inner, to, Bytes::from_static(&[0]));
            }
        }
    }
}

/// Returns what a node is started with: what its disk says.
fn config_of(
    host: &Host,
    network: peerage_wire::id::NetworkId,
    root: [u8; 32],
    crypto: std::sync::Arc<dyn peerage_wire::crypto::Crypto>,
    at_joining: &DomainKeys,
) -> Option<Config> {
    let key = host.id.record_key();
    let own = |table| {
        let is_own = move |header: &peerage_wire::record::Header| header.table == table && header.key == key;
        host.store.records().find(move |record| is_own(record.header()))
    };
    let opened = own(Table::DomainKey)
        .and_then(|record| DomainKeyBody::read(record).ok()?.open(&network, host.id, &host.receiving).ok());
    let endpoint = endpoint::Config {
        network,
        crypto,
        identity: host.identity.clone(),
        id: host.id,
        record: own(Table::Node)?.bytes().clone(),
        asks_introduction: false,
    };
    Some(Config {
        endpoint,
        root,
        receiving: host.receiving.clone(),
        keys: opened.unwrap_or_else(|| at_joining.clone()),
        statements: host.statements.clone(),
        records: host.store.records().cloned().collect(),
        port: host.inner.port(),
        advertise: host.advertise.clone(),
        serves: host.serves,
        eager: false,
        place: None,
        one_machine: false,
        bound: None,
        carriers: vec![peerage_proto::carrier::Carrier::Udp],
        wide_checks: host.wide_checks,
        known_carriers: Default::default(),
        elections: Elections::default(),
        super_role: SuperConfig { on: host.lends, max_bytes: host.lent_bytes, ..SuperConfig::default() },
    })
}
