//! One simulated computer: its clocks, its disk, its node, and the program around it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use peerage_proto::node::{Node, TaskId};
use peerage_wire::id::{Domain, NodeId};
use peerage_wire::intro::KeyStatement;
use peerage_wire::keys::{AgreementKey, IdentityKey};
use peerage_wire::time::{Instant, Now, UnixTime};

use crate::liar::Liar;
use crate::shell::Shell;
use crate::store::Store;
use crate::wide::WidePorts;

/// The true date at the beginning of every run: five hours before midnight UTC, so that longer runs see a change of day.
const START: UnixTime = UnixTime::from_secs(1_800_000_000 + 11 * 3_600);

/// Returns the true time of a moment of the run.
pub fn true_time(at: Instant) -> Now {
    Now { mono: at, unix: START.after(at - Instant::default()) }
}

/// The clocks of a computer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// When the monotonic clock showed zero, in true time; sleeping without counting moves it.
    pub zero: Instant,
    /// What the date is beyond the true one, in milliseconds.
    pub error_millis: i64,
    /// How much too fast the date runs, in millionths.
    pub drift_ppm: i64,
}

impl Clock {
    /// Returns what the computer's clocks show.
    pub fn now(&self, at: Instant) -> Now {
        let real = true_time(at);
        let elapsed = i64::try_from(at.as_micros() / 1_000).unwrap_or(i64::MAX);
        let drift = elapsed.saturating_mul(self.drift_ppm) / 1_000_000;
        let unix = real.unix.shifted(self.error_millis.saturating_add(drift));
        Now { mono: Instant::default().after(at - self.zero), unix }
    }

    /// Returns the true moment at which the monotonic clock shows this.
    pub fn when(&self, mono: Instant) -> Instant {
        self.zero.after(mono - Instant::default())
    }
}

/// What a person, or a program, wants: a tunnel to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ErrandId(pub u64);

/// A computer with a node.
#[derive(Debug)]
pub struct Host {
    /// Its domain.
    pub domain: Domain,
    /// Its id.
    pub id: NodeId,
    /// Its key.
    pub identity: IdentityKey,
    /// Its receiving key.
    pub receiving: AgreementKey,
    /// Where it is at home, and its address there.
    pub home: (usize, SocketAddr),
    /// Where it is.
    pub site: usize,
    /// Its address there.
    pub inner: SocketAddr,
    /// Where it says that it can be reached from outside.
    pub advertise: Vec<SocketAddr>,
    /// Whether its owner lets it serve devices.
    pub serves: bool,
    /// Whether its owner lets it open or try many ports.
    pub wide_checks: bool,
    /// Those that it has opened.
    pub wide_ports: WidePorts,
    /// Whether its owner lends it to the network as a super-node.
    pub lends: bool,
    /// How much memory it lends then, in bytes.
    pub lent_bytes: u64,
    /// Its clocks.
    pub clock: Clock,
    /// Its disk.
    pub store: Store,
    /// The running node, none while it is off.
    pub node: Option<Node>,
    /// How often it was started; what was meant for an earlier run is dropped.
    pub boot: u32,
    /// How often what it is as a super-node has changed.
    pub terms: u32,
    /// Links and tunnels.
    pub shell: Shell,
    /// Until when it sleeps.
    pub asleep_until: Option<Instant>,
    /// Since when it sleeps, if its monotonic clock does not count that.
    pub(crate) stopped_since: Option<Instant>,
    /// Since when it can talk to an operator that is up; none while it cannot.
    pub in_contact_since: Option<Instant>,
    /// Since when all operators that it reaches give another time than the one it follows.
    pub(crate) torn_since: Option<Instant>,
    /// What it was told of the operators' sealing keys when it joined.
    pub statements: Vec<KeyStatement>,
    pub(crate) wake_at: Option<Instant>,
    pub(crate) next_task: u64,
    pub(crate) errands: BTreeMap<TaskId, ErrandId>,
    /// Its user has said that it shall leave.
    pub(crate) leaving: Option<TaskId>,
    /// It has left the network, and is off for ever.
    pub has_left: bool,
    /// What runs in the place of its node, if it lies.
    pub liar: Option<Liar>,
}

/// What the tasks of the program around a node are numbered from, so that they are not the node's own.
const FIRST_TASK: u64 = 1 << 32;

impl Host {
    /// Returns whether it runs and is awake.
    pub const fn is_awake(&self) -> bool {
        self.node.is_some() && self.asleep_until.is_none()
    }

    /// Returns what its clocks show.
    pub fn now(&self, at: Instant) -> Now {
        self.clock.now(at)
    }

    /// Returns when it has to be woken, in true time.
    pub fn due(&self) -> Option<Instant> {
        let node = self.node.as_ref()?.poll_timeout().map(|(at, _)| at);
        let due = node.into_iter().chain(self.shell.poll_timeout()).min()?;
        Some(self.clock.when(due))
    }

    pub(crate) fn new_task(&mut self, errand: ErrandId) -> TaskId {
        self.next_task = self.next_task.saturating_add(1);
        let task = TaskId(FIRST_TASK.saturating_add(self.next_task));
        self.errands.insert(task, errand);
        task
    }

    /// Wakes it.
    pub(crate) fn wake(&mut self, now: Instant) {
        self.asleep_until = None;
        self.wake_at = None;
        if let Some(since) = self.stopped_since.take() {
            self.clock.zero = self.clock.zero.after(now - since);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_shows_its_error_and_its_drift() {
        let zero = Instant::from_micros(5_000_000);
        let clock = Clock { zero, error_millis: 7_000, drift_ppm: 100 };
        let at = Instant::from_micros(10_000_000_000);
        let now = clock.now(at);
        assert_eq!(now.unix, true_time(at).unix.shifted(7_000 + 1_000));
        assert_eq!(clock.when(now.mono), at);
    }
}
