//! The nodes that lend themselves as super-nodes: their leases, and what is known of each (Rules 4.9 and 6.70 to 6.72).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use peerage_wire::id::{Domain, NodeId, Segment};
use peerage_wire::message::{Load, Refused, RefusedReason, Reply, Submission, SuperNodeState};
use peerage_wire::record::{Record, SuperNodeBody, Table};
use peerage_wire::time::{Instant, Now};

use super::checks::{Check, Checks};
use super::former::Former;
use super::pushes::Item;
use super::segments::{LEASE, Standing};
use super::spies::Spied;
use super::{DomainFacts, Operator};
use crate::discard::Discard;
use crate::segments::Coverage;
use crate::sizes::TableSize;
use crate::trust::Member;

/// Most nodes that offer themselves, some 500 bytes each. The map never needs as many; more would only stand by.
const MAX_LEASES: usize = 10_000;

/// How long a node without a part of the table is remembered after it was last heard. A node that is not needed asks once a minute.
const FORGET_AFTER: Duration = Duration::from_secs(180);

/// How soon the map is planned because a node offers itself that it had no use for. Well within the lease; thousands of them must not
/// keep the operator planning.
const SPARE_DELAY: Duration = Duration::from_secs(5);

/// How often leases and checks are looked through. Shorter finds a lost super-node that much earlier, and costs a walk over all.
const REVIEW_INTERVAL: Duration = Duration::from_secs(1);

/// What a record is taken to cost a super-node when the map is planned: an announcement of the usual 450 bytes with what its tags and
/// indices cost, rounded up. More leaves memory unused; less overruns those who lend little.
const BYTES_PER_RECORD: u64 = 1_280;

/// What the operator knows of a node that offers itself.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    pub(super) heard_at: Instant,
    /// Whence it was heard, and where it is told things.
    pub(super) remote: SocketAddr,
    /// The version of the SuperNode record that it holds about itself.
    version: u64,
    load: Load,
    leaving_since: Option<Instant>,
    pub(super) check: Check,
    /// Whether the lease held when it was last looked at.
    was_live: bool,
    /// Whether the map was planned since it could be reached, and had no use for it.
    pub(super) is_spare: bool,
    /// Since when it has been there without a pause, with the same record about itself.
    pub(super) steady_since: Instant,
    /// When it last told that records had no room.
    pub(super) told_full_at: Option<Instant>,
}

impl Lease {
    /// Returns how many records it is prepared to hold, as it says. One that says too much is overrun, and refuses.
    pub(super) const fn capacity(&self) -> u64 {
        self.load.max_bytes / BYTES_PER_RECORD
    }

    fn is_live(&self, now: Instant) -> bool {
        now - self.heard_at <= LEASE
    }
}

/// All super-nodes, present and possible.
#[derive(Clone, Debug)]
pub(super) struct Supers {
    pub(super) leases: BTreeMap<NodeId, Lease>,
    pub(super) checks: Checks,
    quarantined: BTreeSet<NodeId>,
    /// The records of those in quarantine, kept out of what is stated, listed and handed out.
    pub(super) withheld: BTreeMap<NodeId, Record>,
    refusals: BTreeMap<(Domain, RefusedReason), u64>,
    pub(super) coverage: Coverage,
    pub(super) former: Former,
    /// The highest version of the segment map that any record named.
    pub(super) map_version: u64,
    /// Since when this operator has kept the map in this run: those it has not heard since then may only be on their way here.
    pub(super) started_at: Instant,
    /// Whether it kept the map when that was last asked.
    kept_map: bool,
    pub(super) plan_at: Option<Instant>,
    /// Until when the ledger may be at work on the last plan.
    pub(super) signing_until: Option<Instant>,
    review_at: Instant,
}

/// How a super-node stands with the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuperState {
    /// Not reached yet; the operator is finding out whether it can be.
    Checking,
    /// It could not be reached from outside.
    Unreachable,
    /// It can be reached, and is not needed now.
    Spare,
    /// It holds a part of the table.
    Serving,
    /// It holds a part, and wants to stop.
    Leaving,
    /// It holds a part, and was not heard for longer than its lease.
    Lost,
    /// It is kept away from everybody.
    Quarantined,
}

/// What an administrator sees of a super-node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuperNodeStatus {
    /// Which.
    pub node: NodeId,
    /// How it stands.
    pub state: SuperState,
    /// Where it was reached, or says that it can be, if that is not known yet.
    pub addresses: Vec<SocketAddr>,
    /// What it holds.
    pub range: Option<Segment>,
    /// How long ago it was heard, if it was since the operator started.
    pub heard: Option<Duration>,
    /// How much it says that it does.
    pub load: Load,
    /// Whether it is one of the network vendor's own.
    pub vendor: bool,
    /// What spies have found.
    pub spied: Spied,
}

/// A part of the table, with who holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentStatus {
    /// The places.
    pub places: Segment,
    /// Its holders.
    pub holders: Vec<NodeId>,
    /// Whether the operator answers for it as well, towards domains of which no holder is one.
    pub stands_in: bool,
}

impl Supers {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            leases: BTreeMap::new(),
            checks: Checks::default(),
            quarantined: BTreeSet::new(),
            withheld: BTreeMap::new(),
            refusals: BTreeMap::new(),
            coverage: Coverage::default(),
            former: Former::default(),
            map_version: 0,
            started_at: now,
            kept_map: true,
            plan_at: None,
            signing_until: None,
            review_at: now,
        }
    }

    pub(super) fn next_at(&self) -> Option<Instant> {
        let review = (!self.leases.is_empty()).then_some(self.review_at);
        [self.plan_at, review].into_iter().flatten().min()
    }

    pub(super) fn sizes(&self) -> [TableSize; 2] {
        [TableSize::new("leases", self.leases.len(), MAX_LEASES), self.former.size()]
    }

    /// Returns all that hold any part of the table.
    pub(super) fn holders(&self) -> impl Iterator<Item = NodeId> {
        let all: BTreeSet<NodeId> =
            self.coverage.segments().flat_map(|(_, holders)| holders.iter().copied()).collect();
        all.into_iter()
    }

    /// Returns whether a node's lease held when it was last looked at, and it can be reached as far as is known.
    pub(super) fn is_live(&self, node: &NodeId) -> bool {
        let is_live = |lease: &Lease| lease.was_live && lease.check.unreachable_since.is_none();
        self.leases.get(node).is_some_and(is_live)
    }

    pub(super) fn is_quarantined(&self, node: &NodeId) -> bool {
        self.quarantined.contains(node)
    }

    pub(super) fn quarantined_count(&self) -> usize {
        self.quarantined.len()
    }

    pub(super) fn remote(&self, node: &NodeId) -> Option<SocketAddr> {
        self.leases.get(node).map(|lease| lease.remote)
    }

    /// Plans the map before long.
    pub(super) fn plan_by(&mut self, at: Instant) {
        self.plan_at = Some(self.plan_at.map_or(at, |planned| planned.min(at)));
    }

    /// Returns whether a node can be relied on; `None` if it is gone for good.
    pub(super) fn standing(&self, node: &NodeId, now: Instant) -> Option<Standing> {
        if self.is_quarantined(node) {
            return Some(Standing::Quarantined);
        }
        let Some(lease) = self.leases.get(node) else {
            return Some(Standing::by_lease(None, self.started_at, now));
        };
        if let Some(since) = lease.check.unreachable_since {
            return Some(Standing::Lost { since });
        }
        match lease.leaving_since {
            Some(since) => lease.is_live(now).then_some(Standing::Leaving { since }),
            None => Some(Standing::by_lease(Some(lease.heard_at), self.started_at, now)),
        }
    }
}

impl Operator {
    /// Returns every super-node, and whoever wants to be one.
    pub fn super_nodes(&self, now: Now) -> Vec<SuperNodeStatus> {
        let held = self.held_segments(now);
        let known: BTreeSet<_> = held.keys().chain(self.supers.leases.keys()).copied().collect();
        known.into_iter().map(|node| self.super_status(node, held.get(&node).copied(), now)).collect()
    }

    fn super_status(&self, node: NodeId, range: Option<Segment>, now: Now) -> SuperNodeStatus {
        let lease = self.supers.leases.get(&node);
        let is_new = lease.is_some_and(|lease| lease.check.good.is_empty());
        let state = match self.supers.standing(&node, now.mono) {
            Some(Standing::Quarantined) => SuperState::Quarantined,
            Some(Standing::Leaving { .. }) | None => SuperState::Leaving,
            _ if lease.is_some_and(|lease| lease.check.unreachable_since.is_some()) => {
                SuperState::Unreachable
            }
            Some(Standing::Lost { .. }) if range.is_some() => SuperState::Lost,
            Some(Standing::Live) if range.is_some() => SuperState::Serving,
            // Whoever is not needed asks once a minute, so that its lease comes and goes.
            Some(_) if is_new => SuperState::Checking,
            Some(_) => SuperState::Spare,
        };
        SuperNodeStatus {
            node,
            state,
            addresses: self.addresses_of(&node),
            range,
            heard: lease.map(|lease| now.mono - lease.heard_at),
            load: lease.map(|lease| lease.load).unwrap_or_default(),
            vendor: self.is_vendor(node.domain),
            spied: self.spies.found(&node),
        }
    }

    /// Returns where a node was reached, or was when its record was signed, or says that it is.
    fn addresses_of(&self, node: &NodeId) -> Vec<SocketAddr> {
        let check = self.supers.leases.get(node).map(|lease| &lease.check);
        let good = check.map(|check| check.good.clone()).filter(|good| !good.is_empty());
        let recorded = || self.assignment(node).map(|body| body.addresses);
        good.or_else(recorded).or_else(|| check.map(|check| check.declared.clone())).unwrap_or_default()
    }

    /// Returns the segments, with their holders.
    pub fn segment_map(&self) -> Vec<SegmentStatus> {
        let coverage = &self.supers.coverage;
        let status = |(places, holders): (Segment, &[NodeId])| SegmentStatus {
            places,
            holders: holders.to_vec(),
            stands_in: coverage.operator_stands_in(places.from, Domain::OPERATORS),
        };
        coverage.segments().map(status).collect()
    }

    /// Returns how often super-nodes have refused something to a domain's members, by reason, since the operator started.
    pub fn refusals(&self, domain: Domain) -> Vec<(RefusedReason, u64)> {
        let all = self.supers.refusals.iter().filter(|((of, _), _)| *of == domain);
        all.map(|((_, reason), count)| (*reason, *count)).collect()
    }

    pub(super) fn is_vendor(&self, domain: Domain) -> bool {
        self.facts.get(&domain).is_some_and(|facts: &DomainFacts| facts.vendor)
    }

    /// Returns whether this operator is the one that keeps the segment map: the first of those that sign, and whose records are valid
    /// (Rule 6.70). Two that plan, each hearing other super-nodes, would undo each other's changes.
    fn keeps_map(&self, now: Now) -> bool {
        let time = self.endpoint.time(now);
        let is_valid = |id: &NodeId| self.trust.operator(id).is_some_and(|member| time < member.expires);
        self.trust.operators().map(|(id, _)| id).find(is_valid) == Some(self.endpoint.id())
    }

    /// Returns whether this operator keeps the map. One that has taken over waits for the super-nodes as after its start.
    pub(super) fn keeps_map_now(&mut self, now: Now) -> bool {
        let keeps = self.keeps_map(now);
        if keeps && !self.supers.kept_map {
            self.supers.started_at = now.mono;
        }
        self.supers.kept_map = keeps;
        keeps
    }

    /// Returns what the newest record says about a super-node, in quarantine or not.
    pub(super) fn assignment(&self, node: &NodeId) -> Option<SuperNodeBody> {
        let held = self.records.get(Table::SuperNode, node.domain, node.record_key());
        let record = self.supers.withheld.get(node).or(held)?;
        if record.header().removed { None } else { SuperNodeBody::read(record).ok() }
    }

    /// Returns whether a node is a member that may be a super-node, as the ledger says, and its identity key.
    pub(super) fn permitted(&self, node: &NodeId, now: Now) -> Option<[u8; 32]> {
        let record = self.records.get(Table::Node, node.domain, node.record_key())?;
        let member = crate::trust::Trust::member(record)?;
        let is_current = record.is_valid_at(self.endpoint.time(now)) && !self.trust.is_revoked(node);
        (is_current && member.roles.super_node).then_some(member.identity)
    }

    /// Takes an offer, which is a lease as well, and says how it stands (Rule 4.9).
    pub(super) fn submitted(
        &mut self,
        from: &Member,
        remote: SocketAddr,
        submission: Submission,
        now: Now,
    ) -> Result<Reply, Discard> {
        if !self.keeps_map_now(now) {
            return Err(Discard::Forbidden);
        }
        let (id, node) = (submission.id, from.id);
        let answer = |state| Ok(Reply::SuperNodeSubmitted { id, state });
        if self.permitted(&node, now).is_none() {
            if self.supers.leases.remove(&node).is_some() {
                self.plan_soon(now);
            }
            return answer(SuperNodeState::Refused);
        }
        if !self.supers.leases.contains_key(&node) && self.supers.leases.len() >= MAX_LEASES {
            return Err(Discard::Full);
        }
        self.renew_lease(node, remote, &submission, now);
        self.begin_check_if_due(node, now);
        // What it was given may have been lost on the way.
        let record = self.records.get(Table::SuperNode, node.domain, node.record_key());
        let stated = record.filter(|record| !record.header().removed || submission.version > 0);
        if let Some(record) = stated.filter(|record| record.header().version > submission.version)
            && let Some(item) = Item::of(record)
        {
            self.push_to(node, item);
        }
        answer(self.state_for(node, &submission))
    }

    fn renew_lease(&mut self, node: NodeId, remote: SocketAddr, submission: &Submission, now: Now) {
        let near = self.addresses.iter().any(|own| is_local(own.ip()));
        let is_usable = |address: &SocketAddr| {
            let ip = address.ip().to_canonical();
            let is_one = address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast();
            is_one && (near || !is_local(ip))
        };
        let mut declared: Vec<_> = submission.addresses.iter().copied().filter(is_usable).collect();
        declared.dedup();
        let is_known = self.supers.leases.contains_key(&node);
        if !is_known {
            let assignment = self.assignment(&node);
            let recorded = assignment.map(|body| body.addresses).unwrap_or_default();
            let check = self.new_check(&declared, &recorded, now);
            let lease = Lease {
                heard_at: now.mono,
                remote,
                version: 0,
                load: Load::default(),
                leaving_since: None,
                check,
                was_live: false,
                is_spare: false,
                steady_since: now.mono,
                told_full_at: None,
            };
            self.supers.leases.insert(node, lease);
            if self.supers.leases.len() == 1 {
                self.supers.review_at = now.mono.after(REVIEW_INTERVAL);
            }
        }
        let Some(lease) = self.supers.leases.get_mut(&node) else { return };
        let was_live = std::mem::replace(&mut lease.was_live, true);
        let was_leaving = lease.leaving_since.is_some();
        (lease.heard_at, lease.remote, lease.load) = (now.mono, remote, submission.load);
        let has_news = lease.version != submission.version;
        lease.version = submission.version;
        if !was_live || has_news {
            lease.steady_since = now.mono;
        }
        lease.leaving_since = submission.leaving.then(|| lease.leaving_since.unwrap_or(now.mono));
        lease.check.declare(declared, now.mono);
        if lease.is_spare && !submission.leaving {
            self.supers.plan_by(now.mono.after(SPARE_DELAY));
        } else if !was_live || has_news || was_leaving != submission.leaving {
            self.plan_soon(now);
        }
    }

    fn state_for(&self, node: NodeId, submission: &Submission) -> SuperNodeState {
        // It is not to know.
        if self.supers.is_quarantined(&node) {
            let holds = submission.version > 0 && !submission.leaving;
            let rest =
                if submission.leaving { SuperNodeState::HandedOver } else { SuperNodeState::NotNeeded };
            return if holds { SuperNodeState::Assigned } else { rest };
        }
        let holds = self.assignment(&node).is_some();
        let Some(lease) = self.supers.leases.get(&node) else { return SuperNodeState::Checking };
        if submission.leaving {
            return if holds { SuperNodeState::Assigned } else { SuperNodeState::HandedOver };
        }
        if lease.check.unreachable_since.is_some() && !lease.check.is_running() {
            return SuperNodeState::Unreachable;
        }
        if lease.check.good.is_empty() {
            return SuperNodeState::Checking;
        }
        match (holds, lease.is_spare) {
            (true, _) => SuperNodeState::Assigned,
            (false, true) => SuperNodeState::NotNeeded,
            (false, false) => SuperNodeState::Checking,
        }
    }

    /// Returns whether a super-node has fetched what its record says, as far as can be told: it knows the record, and holds nearly as
    /// many records as the ledger has there, which is `signed`. Not all of them, since some come and go meanwhile.
    pub(super) fn is_ready(&self, node: &NodeId, signed: u64) -> bool {
        let record = self.records.get(Table::SuperNode, node.domain, node.record_key());
        let version = record.map_or(0, |record| record.header().version);
        let lease = self.supers.leases.get(node).filter(|lease| lease.version == version);
        lease.is_some_and(|lease| u64::from(lease.load.records) >= signed / 10 * 9)
    }

    /// Returns how many records the ledger has in a range.
    pub(super) fn signed_in(&self, range: Segment) -> u64 {
        let count = |table| {
            let (from, to) = crate::table::stretch(table, range);
            u64::from(self.records.stretch_summary(table, from, to).count)
        };
        [Table::Node, Table::EndDevice, Table::DomainKey].into_iter().map(count).sum()
    }

    // ---- time -------------------------------------------------------------------------------

    pub(super) fn supers_timeout(&mut self, now: Now) {
        if !self.supers.leases.is_empty() && self.supers.review_at <= now.mono {
            self.supers.review_at = now.mono.after(REVIEW_INTERVAL);
            self.review_leases(now);
        }
        if self.supers.plan_at.is_some_and(|at| at <= now.mono) {
            self.plan_map(now);
        }
    }

    fn review_leases(&mut self, now: Now) {
        let mut ended = Vec::new();
        for (node, lease) in &mut self.supers.leases {
            if lease.was_live && !lease.is_live(now.mono) {
                lease.was_live = false;
                ended.push(*node);
            }
        }
        for node in &ended {
            self.pushes.forget(node);
        }
        if !ended.is_empty() {
            self.plan_soon(now);
        }
        // Since when a super-node is lost is not forgotten.
        let held = self.held_segments(now);
        let is_recent = |lease: &Lease| now.mono - lease.heard_at <= FORGET_AFTER || lease.check.is_running();
        self.supers.leases.retain(|node, lease| is_recent(lease) || held.contains_key(node));
        let (spies, leases) = (&mut self.spies, &self.supers.leases);
        spies.retain(|node| leases.contains_key(node));
        self.review_checks(now);
    }

    // ---- quarantine and refusals ------------------------------------------------------------

    /// Keeps a super-node away from everybody, or no longer.
    pub(super) fn quarantine(&mut self, node: NodeId, on: bool, now: Now) {
        let range = self.assignment(&node).map(|body| body.segment);
        // The ledger has the evidence now; and who is released begins anew.
        self.spies.forget(&node);
        if on {
            self.supers.quarantined.insert(node);
            self.pushes.forget(&node);
            let record = self.records.get(Table::SuperNode, node.domain, node.record_key());
            if record.is_some_and(|record| !record.header().removed) {
                let record = self.records.remove(Table::SuperNode, node.domain, node.record_key());
                self.supers.withheld.extend(record.map(|record| (node, record)));
            }
        } else {
            self.supers.quarantined.remove(&node);
            if let Some(record) = self.supers.withheld.remove(&node) {
                self.records.insert(record);
            }
        }
        self.map_changed(&range.into_iter().collect(), now);
        self.plan_soon(now);
    }

    /// Notes what a super-node has refused to whom (Rules 4.10 and 6.77).
    pub(super) fn note_refusals(&mut self, from: NodeId, refused: &[Refused], now: Instant) {
        let has_no_room = refused.iter().any(|one| one.reason == RefusedReason::Quota);
        if let Some(lease) = self.supers.leases.get_mut(&from).filter(|_| has_no_room) {
            lease.told_full_at = Some(now);
        }
        for one in refused {
            if self.facts.contains_key(&one.domain) {
                let count = self.supers.refusals.entry((one.domain, one.reason)).or_default();
                *count = count.saturating_add(u64::from(one.count));
            }
        }
    }
}

/// Returns whether an address means something inside a site or computer only.
fn is_local(ip: IpAddr) -> bool {
    crate::node::is_private(ip) || ip.is_loopback()
}
