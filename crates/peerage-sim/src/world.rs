//! A whole network in virtual time: the queue of what happens next, and who it happens to.
//!
//! One thread, one queue ordered by time and then by number, all chance from the seed: the same [`Setup`] and operations make the
//! same run. The machines are the real ones; only what surrounds them is made here, a file for each subject: `datagrams` between
//! parties, `hosts` and what their nodes ask for, `operators` with the ledger, `tunnels` with connections, and `operate` for what the
//! list of operations says.

mod capacity;
mod datagrams;
mod hosts;
mod liars;
mod operate;
mod operators;
mod setup;
mod tunnels;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use peerage_proto::link::bundle::Dial;
use peerage_proto::node::{Event, TaskId, TunnelId};
use peerage_proto::operator::{Assignment, CheckId};
use peerage_proto::path::Path;
use peerage_proto::wall::OPERATOR_STANDS;
use peerage_proto::{node, operator};
use peerage_wire::crypto::Crypto;
use peerage_wire::id::{CommandId, NodeId, SessionId};
use peerage_wire::limits::TIME_WINDOW;
use peerage_wire::record::DraftError;
use peerage_wire::time::{Instant, Now, UnixTime};

use crate::app::Script;
use crate::chance::Chance;
use crate::host::{ErrandId, Host, true_time};
use crate::invariants::{Fact, Invariant, Violation};
use crate::ledger::Ledger;
use crate::model::Model;
use crate::network::{Network, Party};
use crate::operations::Operation;
use crate::shell::CarrierId;
use crate::trace::Trace;

pub use self::capacity::{Capacity, Overload, Strain};
pub use self::hosts::Counts;
pub use self::operators::OperatorCounts;
use self::operators::OperatorHost;
pub use self::setup::{Bug, DeviceSetup, HostSetup, Setup, SiteSetup};
use self::tunnels::Carrier;

/// Most datagrams that an attacker remembers.
const MAX_OVERHEARD: usize = 256;

/// Most paths that are remembered for whoever wants to know.
const MAX_PATHS: usize = 4_096;

/// How often the ledger looks for what has to be done because time goes by.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(6 * 3_600);

/// How long finding a device and asking it for its certificate take at the most.
const MAX_PROOF_TIME: Duration = Duration::from_secs(12);

/// A device on a LAN.
#[derive(Clone, Debug)]
pub struct Device {
    /// What is registered about it, without what the network learned.
    pub registered: peerage_wire::record::EndDevice,
    /// The domain in which it is registered.
    pub domain: peerage_wire::id::Domain,
    /// Where it stands.
    pub site: usize,
    /// Its address now.
    pub address: std::net::IpAddr,
    /// Where it was before, and until when.
    pub moved: Option<(std::net::IpAddr, Instant)>,
    /// Whether it is plugged in.
    pub is_present: bool,
}

impl Device {
    /// Returns whether it has an address, or had it a moment ago: who has found it there and has asked it for its
    /// certificate cannot know that it moves meanwhile.
    pub fn was_lately_at(&self, address: std::net::IpAddr, now: Instant) -> bool {
        let before = self.moved.is_some_and(|(before, at)| before == address && now - at <= MAX_PROOF_TIME);
        self.address == address || before
    }
}

/// What a user wants, and what became of it.
#[derive(Clone, Debug)]
pub struct Errand {
    /// Whose wish.
    pub host: usize,
    /// Which device, by its place in the list of all.
    pub device: usize,
    /// What should happen in the tunnel.
    pub script: Script,
    /// How often it is tried.
    pub tries_left: u32,
    /// The newest try's session.
    pub session: Option<SessionId>,
    /// It can be used without a tunnel.
    pub is_local: bool,
    /// Why the last look for a way failed.
    pub failure: Option<node::Failure>,
    /// When it was begun.
    pub begun_at: Instant,
    /// When the device could be used first.
    pub reached_at: Option<Instant>,
}

impl Errand {
    /// Returns how long it took until the device could be used.
    pub fn took(&self) -> Option<Duration> {
        self.reached_at.map(|at| at - self.begun_at)
    }
}

/// What happens at a time.
#[derive(Debug)]
enum Due {
    Host(usize),
    Operator(usize),
    Arrive {
        from_site: Option<usize>,
        from: SocketAddr,
        to: SocketAddr,
        lan: Option<usize>,
        payload: Bytes,
    },
    Input {
        host: usize,
        boot: u32,
        input: Box<node::Input>,
    },
    Written {
        host: usize,
        boot: u32,
        task: TaskId,
    },
    Noted {
        operator: usize,
        boot: u32,
        id: CommandId,
        ok: bool,
    },
    Checked {
        operator: usize,
        boot: u32,
        task: CheckId,
        ok: bool,
    },
    Assign {
        map_version: u64,
        changes: Vec<Assignment>,
    },
    Renew {
        host: usize,
        boot: u32,
    },
    Dial {
        host: usize,
        boot: u32,
        peer: NodeId,
        dial: Option<Dial>,
        candidates: Vec<SocketAddr>,
        next: usize,
    },
    Chunk {
        carrier: CarrierId,
        towards: usize,
    },
    Lost {
        carrier: CarrierId,
        end: usize,
    },
    Connected {
        host: usize,
        boot: u32,
        tunnel: TunnelId,
        address: SocketAddr,
    },
    Group {
        host: usize,
        site: usize,
        from: SocketAddr,
        payload: Bytes,
    },
    Liar {
        host: usize,
        boot: u32,
    },
    OperatorGone(usize),
    Upkeep,
    Try(ErrandId),
    Wake {
        host: usize,
        boot: u32,
    },
    Operation(Operation),
    Sample,
}

/// A simulated network.
#[derive(Debug)]
pub struct World {
    now: Instant,
    queue: BTreeMap<(Instant, u64), Due>,
    order: u64,
    crypto: Arc<dyn Crypto>,
    chance: Chance,
    attacker: Chance,
    setup: Setup,
    /// Sites and lines.
    pub network: Network,
    /// All computers.
    pub hosts: Vec<Host>,
    operators: Vec<OperatorHost>,
    /// What the vendor decided.
    pub ledger: Ledger,
    /// All devices.
    pub devices: Vec<Device>,
    /// Those of each site, which they never leave.
    devices_at: BTreeMap<usize, Vec<usize>>,
    /// What users would expect.
    pub model: Model,
    /// Which computer has which address of which site.
    places: BTreeMap<(usize, SocketAddr), usize>,
    errands: BTreeMap<ErrandId, Errand>,
    probes: std::collections::BTreeSet<ErrandId>,
    carriers: BTreeMap<CarrierId, Carrier>,
    next_id: u64,
    overheard: Vec<(SocketAddr, SocketAddr, Bytes)>,
    /// What was said to a site's group, and by whom.
    overheard_groups: Vec<(usize, SocketAddr, Bytes)>,
    checkers: Vec<Box<dyn Invariant>>,
    violation: Option<Violation>,
    counts: Vec<Counts>,
    /// The direct paths that were found: when, by which computer, and where.
    paths: Vec<(Instant, usize, Path)>,
    /// Computers that still had tunnels when counting began.
    busy: std::collections::BTreeSet<usize>,
    is_counting: bool,
    /// Whose capacity is limited.
    limits: Option<capacity::Limits>,
    /// Reads a clock that is of no consequence for what happens.
    stopwatch: Option<fn() -> Duration>,
    trace: Trace,
}

impl World {
    /// Makes a world; everybody is switched on within its first seconds.
    ///
    /// # Errors
    /// If a record of the setup would be too long.
    pub fn new(setup: Setup, checkers: Vec<Box<dyn Invariant>>) -> Result<Self, DraftError> {
        setup::build(setup, checkers)
    }

    /// Returns the true time since the beginning.
    pub const fn now(&self) -> Instant {
        self.now
    }

    fn true_now(&self) -> Now {
        true_time(self.now)
    }

    /// Returns the fingerprint of everything that happened.
    pub fn trace(&self) -> u64 {
        self.trace.hash()
    }

    /// Returns how many events there were.
    pub const fn events(&self) -> u64 {
        self.trace.events()
    }

    /// Returns the setup.
    pub const fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Returns the invariant that was broken, if one was.
    pub const fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    /// Returns the errands.
    pub fn errands(&self) -> impl Iterator<Item = (ErrandId, &Errand)> {
        self.errands.iter().map(|(id, errand)| (*id, errand))
    }

    /// Marks an errand as one that must succeed.
    pub fn mark_probe(&mut self, errand: ErrandId) {
        self.probes.insert(errand);
    }

    /// Returns whether an errand must succeed.
    pub fn is_probe(&self, errand: ErrandId) -> bool {
        self.probes.contains(&errand)
    }

    /// Returns the operators that are up.
    pub fn operators(&self) -> impl Iterator<Item = (usize, &operator::Operator)> {
        let up = |(index, host): (usize, &'_ OperatorHost)| (index, host.machine.is_some());
        let up: Vec<_> = self.operators.iter().enumerate().map(up).filter(|(_, up)| *up).collect();
        up.into_iter().filter_map(|(index, _)| Some((index, self.operators.get(index)?.machine.as_ref()?)))
    }

    /// Returns how often an operator was started.
    pub fn operator_boot(&self, index: usize) -> u32 {
        self.operators.get(index).map_or(0, |operator| operator.boot)
    }

    /// Returns the most datagrams that an operator has heard in any second since [`World::count_from_here`].
    pub fn operator_peak(&self, index: usize) -> u64 {
        self.operators.get(index).map_or(0, |operator| operator.peak)
    }

    /// Makes an organisation of the setup the vendor's own: its super-nodes count as those that the vendor looks after.
    pub fn make_vendor(&mut self, domain: usize) {
        if let Some(domain) = setup::domain_at(&self.setup, domain) {
            self.ledger.make_vendor(domain);
        }
        self.commit(&[]);
    }

    /// Returns what passed between an operator and the rest since [`World::count_from_here`].
    pub fn operator_counts(&self, index: usize) -> OperatorCounts {
        self.operators.get(index).map_or_else(OperatorCounts::default, |operator| operator.counts)
    }

    /// Measures from now on with this clock how long operators work. What happens does not depend on it.
    pub const fn set_stopwatch(&mut self, stopwatch: fn() -> Duration) {
        self.stopwatch = Some(stopwatch);
    }

    /// Returns whether it is counted what computers send.
    pub const fn is_counting(&self) -> bool {
        self.is_counting
    }

    /// Returns whether a computer had no tunnels left when counting began.
    pub fn was_idle(&self, host: usize) -> bool {
        !self.busy.contains(&host)
    }

    /// Returns the direct paths that were found, in order: when, by which computer, and where.
    pub fn paths(&self) -> &[(Instant, usize, Path)] {
        &self.paths
    }

    /// Returns what a computer has sent since [`World::count_from_here`].
    pub fn counts(&self, host: usize) -> Counts {
        self.counts.get(host).copied().unwrap_or_default()
    }

    /// Plans an operation.
    pub fn plan(&mut self, at: Duration, operation: Operation) {
        self.schedule(Instant::default().after(at), Due::Operation(operation));
    }

    /// Leaves computers off that would be switched on in the beginning, until an operation starts them: to be called before any is planned.
    pub fn keep_off(&mut self, is_meant: impl Fn(usize) -> bool) {
        self.queue
            .retain(|_, due| !matches!(due, Due::Operation(Operation::Start { host }) if is_meant(*host)));
    }

    fn schedule(&mut self, at: Instant, due: Due) {
        self.order += 1;
        self.queue.insert((at.max(self.now), self.order), due);
    }

    fn schedule_in(&mut self, after: Duration, due: Due) {
        self.schedule(self.now.after(after), due);
    }

    /// Lets time pass until `end`, or until an invariant is broken.
    pub fn run_until(&mut self, end: Instant) {
        while self.violation.is_none() {
            let Some(entry) = self.queue.first_entry() else { break };
            if entry.key().0 > end {
                break;
            }
            let ((at, _), due) = entry.remove_entry();
            self.now = at;
            self.happen(due);
        }
        self.now = self.now.max(end);
    }

    /// Lets so much time pass.
    pub fn run(&mut self, span: Duration) {
        self.run_until(self.now.after(span));
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Host(host) => self.wake_host(host),
            Due::Operator(operator) => self.wake_operator(operator),
            Due::Arrive { from_site, from, to, lan, payload } => {
                self.arrive((from_site, from), to, lan, payload);
            }
            Due::Input { host, boot, input } => self.late_input(host, boot, input),
            Due::Written { host, boot, task } => self.written(host, boot, task),
            Due::Noted { operator, boot, id, ok } => self.noted(operator, boot, id, ok),
            Due::Checked { operator, boot, task, ok } => self.checked(operator, boot, task, ok),
            Due::Assign { map_version, changes } => self.assign(map_version, &changes),
            Due::Renew { host, boot } => self.renew(host, boot),
            Due::Dial { host, boot, peer, dial, candidates, next } => {
                self.dial((host, boot), (peer, dial), candidates, next);
            }
            Due::Chunk { carrier, towards } => self.chunk(carrier, towards),
            Due::Lost { carrier, end } => self.carrier_lost(carrier, end),
            Due::Connected { host, boot, tunnel, address } => {
                self.device_connected(host, boot, tunnel, address);
            }
            Due::Group { host, site, from, payload } => self.group_heard(host, site, from, payload),
            Due::Liar { host, boot } => self.liar_wakes(host, boot),
            Due::OperatorGone(operator) => self.stop_operator(operator),
            Due::Upkeep => self.upkeep(),
            Due::Try(errand) => self.try_errand(errand),
            Due::Wake { host, boot } => self.awake(host, boot),
            Due::Operation(operation) => self.operate(operation),
            Due::Sample => self.sample(),
        }
    }

    // ---- invariants -------------------------------------------------------------------------

    fn check(&mut self, mut look: impl FnMut(&mut dyn Invariant, &Self) -> Option<String>) {
        let mut checkers = std::mem::take(&mut self.checkers);
        for checker in &mut checkers {
            if let Some(what) = look(&mut **checker, self)
                && self.violation.is_none()
            {
                self.violation = Some(Violation { invariant: checker.name(), what, at: self.now });
            }
        }
        self.checkers = checkers;
    }

    fn observe(&mut self, fact: &Fact<'_>) {
        self.check(|checker, world| checker.observe(fact, world));
    }

    fn sample(&mut self) {
        self.chatter();
        self.lose_memory();
        self.note_contacts();
        self.note_apart();
        self.check(|checker, world| checker.sample(world));
        self.schedule_in(self.setup.sample_interval, Due::Sample);
    }

    /// Asks every invariant whether all came right in the end.
    pub fn conclude(&mut self) {
        self.note_contacts();
        self.tell_all();
        self.check(|checker, world| checker.conclude(world));
    }

    /// Notes which computers can talk to an operator.
    fn note_contacts(&mut self) {
        /// With more losses than this nobody promises anything.
        const MAX_LOSS: u32 = 300;
        for index in 0..self.hosts.len() {
            let can = self.hosts.get(index).is_some_and(|host| {
                let is_good =
                    self.network.sites.get(host.site).is_some_and(|site| site.quality.loss <= MAX_LOSS);
                host.is_awake() && is_good && self.reaches_operator(host.site)
            });
            let is_torn = can && self.is_torn(index);
            let now = self.now;
            if let Some(host) = self.hosts.get_mut(index) {
                let since = is_torn.then(|| host.torn_since.unwrap_or(now));
                host.torn_since = since;
                let can = can && since.is_none_or(|since| now - since > OPERATOR_STANDS);
                host.in_contact_since = can.then(|| host.in_contact_since.unwrap_or(now));
            }
        }
    }

    /// Returns whether a computer follows an operator from whose date those differ that it reaches: until that one has been silent for a while
    /// it does not believe them (Rule 6.1).
    fn is_torn(&self, index: usize) -> bool {
        if self.operators.iter().all(|operator| operator.error_millis == 0) {
            return false;
        }
        let Some(host) = self.hosts.get(index) else { return false };
        let now = host.now(self.now);
        let offset = host.node.as_ref().and_then(|node| node.status(now).clock_offset_millis);
        let Some(time) = offset.map(|offset| now.unix.shifted(offset)) else { return false };
        self.operator_times(host.site).all(|theirs| theirs.distance(time) > TIME_WINDOW)
    }

    /// Notes which tunnels are cut in two.
    fn note_apart(&mut self) {
        let now = self.now;
        let (hosts, network) = (&self.hosts, &self.network);
        self.model.note_apart(now, |user, server| {
            let (Some(user), Some(server)) = (hosts.get(user), hosts.get(server)) else { return true };
            let there = crate::network::Place::Lan(server.site, server.inner);
            !user.is_awake() || !server.is_awake() || !network.reaches(user.site, there)
        });
    }

    fn reaches_operator(&self, site: usize) -> bool {
        self.operator_times(site).next().is_some()
    }

    /// Returns the times of the operators that a site reaches.
    fn operator_times(&self, site: usize) -> impl Iterator<Item = UnixTime> {
        let reached =
            move |index: &usize| self.network.reaches(site, crate::network::Place::Operator(*index));
        let indices = self.operators().map(|(index, _)| index).filter(reached);
        indices.filter_map(|index| Some(self.operators.get(index)?.now(self.now).unix))
    }

    fn note_event(&mut self, host: usize, event: &Event) {
        let (now, text) = (self.now, format!("{event:?}"));
        if let Some(host) = self.hosts.get_mut(host).filter(|_| matches!(event, Event::SuperRole(_))) {
            host.terms = host.terms.wrapping_add(1);
        }
        if let Event::PathFound(path) = event
            && self.paths.len() < MAX_PATHS
        {
            self.paths.push((now, host, *path));
        }
        self.trace.note(now, 20, host as u64, text.as_bytes());
        if self.setup.is_told {
            self.tell(Party::Host(host), &text);
        }
    }

    /// Tells where everybody stands.
    fn tell_all(&self) {
        for (index, host) in self.hosts.iter().enumerate().filter(|_| self.setup.is_told) {
            let Some(status) = host.node.as_ref().map(|node| node.status(host.now(self.now))) else {
                continue;
            };
            let (head, dropped) = (status.head, status.discards.iter().collect::<Vec<_>>());
            let devices = status.devices.len();
            self.tell(
                Party::Host(index),
                &format!("knows {devices} devices, {head:?}, has dropped {dropped:?}"),
            );
        }
    }

    /// Writes a line for whoever replays a run.
    fn tell(&self, who: Party, what: &str) {
        if self.setup.is_told {
            crate::report::line(&format!("{:>12.6} {who:?} {what}", self.now.as_micros() as f64 / 1e6));
        }
    }

    const fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}
