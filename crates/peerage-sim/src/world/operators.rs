//! The operators and the ledger that they share.

use std::net::SocketAddr;
use std::time::Duration;

use peerage_proto::operator::{Assignment, CheckId, Config, DomainFacts, Input, Operator, Output, Port};
use peerage_proto::{endpoint, relay};
use peerage_wire::id::CommandId;
use peerage_wire::record::Record;
use peerage_wire::time::{Instant, Now};

use super::{Bug, Due, World};
use crate::host::true_time;
use crate::invariants::Violation;
use crate::ledger::OperatorIdentity;
use crate::model::Standing;
use crate::network::{PROBE_PORT, Party, Place};
use crate::operations::Operation;

/// How long a transaction of the ledger takes.
const TRANSACTION: Duration = Duration::from_millis(5);

/// How long an operator's connection to a super-node takes, and how long one to nobody.
const HANDSHAKE: Duration = Duration::from_millis(60);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a retired operator still answers.
const RETIRES_AFTER: Duration = Duration::from_secs(10);

/// What passed between an operator and the rest of the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OperatorCounts {
    /// Datagrams that came.
    pub heard: u64,
    /// Their bytes.
    pub heard_bytes: u64,
    /// Datagrams that it sent.
    pub said: u64,
    /// Their bytes.
    pub said_bytes: u64,
    /// How long the simulating computer worked on its behalf, if a stopwatch is set.
    pub busy: Duration,
}

impl OperatorCounts {
    /// Returns the datagrams of both directions.
    pub const fn messages(&self) -> u64 {
        self.heard.saturating_add(self.said)
    }

    /// Returns the bytes of both directions.
    pub const fn bytes(&self) -> u64 {
        self.heard_bytes.saturating_add(self.said_bytes)
    }
}

/// One operator's computer.
#[derive(Debug)]
pub(super) struct OperatorHost {
    pub(super) identity: OperatorIdentity,
    pub(super) machine: Option<Operator>,
    pub(super) boot: u32,
    /// What its date is beyond the true one.
    pub(super) error_millis: i64,
    /// Datagrams of the second in which the last one came: which second, and how many.
    heard: (u64, u64),
    /// Most of them in any second since counting began.
    pub(super) peak: u64,
    /// What passed since counting began.
    pub(super) counts: OperatorCounts,
    is_retired: bool,
    zero: Instant,
    wake_at: Option<Instant>,
}

impl OperatorHost {
    pub(super) fn now(&self, at: Instant) -> Now {
        let unix = true_time(at).unix.shifted(self.error_millis);
        Now { mono: Instant::default().after(at - self.zero), unix }
    }
}

impl World {
    pub(super) fn found_operators(&mut self) {
        let (zero, now) = (self.now, self.now);
        let host = |identity: &OperatorIdentity| OperatorHost {
            identity: identity.clone(),
            machine: None,
            boot: 0,
            error_millis: 0,
            heard: (0, 0),
            peak: 0,
            counts: OperatorCounts::default(),
            is_retired: false,
            zero,
            wake_at: Some(now),
        };
        self.operators = self.ledger.operators().iter().map(host).collect();
    }

    /// Starts an operator from the ledger; what it had in memory is gone.
    pub(super) fn start_operator(&mut self, index: usize) {
        let (network, root, now) = (self.ledger.network(), self.ledger.root(), self.now);
        let (crypto, seed) = (std::sync::Arc::clone(&self.crypto), self.chance.bytes());
        let Some(host) = self.operators.get_mut(index) else { return };
        if host.machine.is_some() || host.is_retired {
            return;
        }
        host.boot += 1;
        host.zero = now;
        host.wake_at = None;
        let identity = &host.identity;
        let endpoint = endpoint::Config {
            network,
            crypto,
            identity: identity.key.clone(),
            id: identity.id,
            record: identity.record.bytes().clone(),
            asks_introduction: true,
        };
        let config = Config {
            endpoint,
            root,
            addresses: vec![identity.address],
            relay: relay::Limits::default(),
            spy_interval: None,
        };
        host.machine = Some(Operator::new(config, seed, host.now(now)));
        let (facts, records) = (self.ledger.facts(), self.ledger.records().cloned().collect());
        self.inform(index, &facts, records);
    }

    pub(super) fn stop_operator(&mut self, index: usize) {
        if let Some(host) = self.operators.get_mut(index) {
            host.machine = None;
        }
    }

    /// Starts an operator anew, with this error of its date.
    pub(super) fn restart_operator(&mut self, index: usize, error_millis: i64) {
        self.stop_operator(index);
        if let Some(host) = self.operators.get_mut(index) {
            host.error_millis = error_millis;
        }
        self.start_operator(index);
    }

    /// The root retires an operator: it signs nothing more, and is soon switched off.
    pub(super) fn retire(&mut self, index: usize) {
        let now = self.true_now();
        let written = self.ledger.retire(index, now).unwrap_or_default();
        if written.is_empty() {
            return;
        }
        self.start_operator(index);
        if let Some(host) = self.operators.get_mut(index) {
            host.is_retired = true;
        }
        self.commit(&written);
        self.schedule_in(RETIRES_AFTER, Due::OperatorGone(index));
    }

    /// What the ledger does because time goes by.
    pub(super) fn upkeep(&mut self) {
        let now = self.true_now();
        let written = self.ledger.upkeep(now).unwrap_or_default();
        self.commit(&written);
        self.schedule_in(super::UPKEEP_INTERVAL, Due::Upkeep);
    }

    fn inform(&mut self, index: usize, facts: &[DomainFacts], records: Vec<Record>) {
        for facts in facts {
            self.operator_input(index, Input::Domain(*facts));
        }
        if self.setup.planted == Some(Bug::ForgetsRecords) && self.now > Instant::from_micros(5_000_000) {
            return;
        }
        self.operator_input(index, Input::Committed(records));
    }

    /// A transaction is done: every operator that is up learns what it wrote.
    pub(super) fn commit(&mut self, records: &[Record]) {
        let facts = self.ledger.take_news();
        if records.is_empty() && facts.is_empty() {
            return;
        }
        for index in 0..self.operators.len() {
            self.inform(index, &facts, records.to_vec());
        }
    }

    pub(super) fn operator_input(&mut self, index: usize, input: Input) {
        let now = self.now;
        let Some(host) = self.operators.get_mut(index) else { return };
        let at = host.now(now);
        let is_timeout = matches!(input, Input::Timeout);
        let Some(machine) = &mut host.machine else { return };
        if let Input::Datagram { payload, .. } = &input {
            host.counts.heard += 1;
            host.counts.heard_bytes += payload.len() as u64;
            let second = now.as_micros() / 1_000_000;
            let before = if host.heard.0 == second { host.heard.1 } else { 0 };
            host.heard = (second, before + 1);
            host.peak = host.peak.max(before + 1);
        }
        let ignores = is_timeout && self.setup.planted == Some(Bug::OperatorIgnoresTimeouts);
        let began = self.stopwatch.map(|stopwatch| stopwatch());
        if !ignores {
            machine.handle(input, at);
        }
        if let (Some(stopwatch), Some(began)) = (self.stopwatch, began) {
            host.counts.busy += stopwatch().saturating_sub(began);
        }
        let next = if is_timeout { machine.poll_timeout() } else { None };
        if let Some((due, why)) = next.filter(|(due, _)| *due <= at.mono) {
            let what = format!("operator {index} after a timeout at {at:?} wants one at {due:?} for {why}");
            self.violation.get_or_insert(Violation { invariant: "timers advance", what, at: now });
        }
        self.drain_operator(index);
        self.plan_operator(index);
    }

    pub(super) fn wake_operator(&mut self, index: usize) {
        let now = self.now;
        let Some(host) = self.operators.get_mut(index) else { return };
        if host.wake_at.is_some_and(|at| at > now) {
            return;
        }
        host.wake_at = None;
        let at = host.now(now).mono;
        let is_due = host.machine.as_ref().and_then(Operator::poll_timeout).is_some_and(|(due, _)| due <= at);
        if is_due {
            self.trace.note(now, 2, index as u64, &[]);
            self.operator_input(index, Input::Timeout);
        } else {
            self.plan_operator(index);
        }
    }

    fn plan_operator(&mut self, index: usize) {
        let Some(host) = self.operators.get_mut(index) else { return };
        let Some((due, _)) = host.machine.as_ref().and_then(Operator::poll_timeout) else { return };
        let at = host.zero.after(due - Instant::default());
        if host.wake_at.is_none_or(|planned| at < planned) {
            host.wake_at = Some(at);
            self.schedule(at, Due::Operator(index));
        }
    }

    fn drain_operator(&mut self, index: usize) {
        loop {
            let Some(host) = self.operators.get_mut(index) else { return };
            let (boot, address) = (host.boot, host.identity.address);
            let Some(output) = host.machine.as_mut().and_then(Operator::poll_output) else { return };
            match output {
                Output::Transmit { remote, payload, port } => {
                    let from = match port {
                        Port::Main => address,
                        Port::Probe => SocketAddr::new(address.ip(), PROBE_PORT),
                        // No operator here has spies.
                        Port::Spy(_) => continue,
                    };
                    host.counts.said += 1;
                    host.counts.said_bytes += payload.len() as u64;
                    self.send(Party::Operator(index), from, remote, payload);
                }
                Output::DeviceSeen { id, node, key, location } => {
                    let now = self.true_now();
                    let (ok, records) = self.ledger.device_seen(node, key, location, now).unwrap_or_default();
                    self.commit(&records);
                    self.schedule_in(TRANSACTION, Due::Noted { operator: index, boot, id, ok });
                }
                Output::Left { id, node } => {
                    let now = self.true_now();
                    let records = self.ledger.leave(node, now).unwrap_or_default();
                    self.model.vendor.decide_member(node, Standing::Left);
                    self.commit(&records);
                    self.schedule_in(TRANSACTION, Due::Noted { operator: index, boot, id, ok: true });
                }
                Output::CheckTcp { task, identity, address } => {
                    let ok = self.takes_connections(index, &identity, address);
                    self.tell(Party::Operator(index), &format!("calls {address} back: {ok}"));
                    let after = if ok { HANDSHAKE } else { HANDSHAKE_TIMEOUT };
                    self.schedule_in(after, Due::Checked { operator: index, boot, task, ok });
                }
                Output::AssignSegments { map_version, changes } => {
                    self.schedule_in(TRANSACTION, Due::Assign { map_version, changes });
                }
                // Nobody makes legs here yet.
                Output::Contact { .. }
                | Output::Leg(_)
                | Output::Stream(_)
                | Output::VisitEnded(_)
                | Output::Quarantined { .. } => {}
            }
        }
    }

    /// Returns whether a computer with this key would answer a connection from an operator.
    fn takes_connections(&self, operator: usize, identity: &[u8; 32], address: SocketAddr) -> bool {
        let Some(Place::Lan(site, inner)) = self.network.public_listener(address) else { return false };
        let host = self.host_at(site, inner).and_then(|host| self.hosts.get(host));
        let is_it = host.is_some_and(|host| {
            (host.is_awake() || host.liar.is_some()) && host.identity.public() == *identity
        });
        is_it && self.network.reaches(site, Place::Operator(operator))
    }

    pub(super) fn checked(&mut self, index: usize, boot: u32, task: CheckId, ok: bool) {
        if self.operators.get(index).is_some_and(|host| host.boot == boot) {
            self.operator_input(index, Input::TcpChecked { task, ok });
        }
    }

    /// The ledger signs a change of the segment map.
    pub(super) fn assign(&mut self, map_version: u64, changes: &[Assignment]) {
        let now = self.true_now();
        let written = self.ledger.assign(map_version, changes, now).unwrap_or_default();
        self.commit(&written);
    }

    /// The segment map is lost.
    pub(super) fn forget_holders(&mut self) {
        let now = self.true_now();
        let written = self.ledger.forget_super_nodes(now).unwrap_or_default();
        self.commit(&written);
    }

    /// All operators are down for a while.
    pub(super) fn outage(&mut self, span: Duration) {
        for index in 0..self.operators.len() {
            self.stop_operator(index);
            let operation = Operation::StartOperator { operator: index };
            self.schedule_in(span, Due::Operation(operation));
        }
    }

    pub(super) fn noted(&mut self, index: usize, boot: u32, id: CommandId, ok: bool) {
        if self.operators.get(index).is_some_and(|host| host.boot == boot) {
            self.operator_input(index, Input::Noted { id, ok });
        }
    }
}
