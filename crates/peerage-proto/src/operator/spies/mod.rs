//! Spies: identities of the operator inside real domains, which ask super-nodes as members do and compare the answers with what the
//! ledger knows (Rules 6.79 and 6.61; Ynddal 2016, section 4.3.5).
//!
//! A spy comes, from a new port and with a new sealing key, as a computer does that has just been switched on; it pings a few
//! super-nodes, asks two that hold places of its domain for the Head and some of what it states, and goes away. What it learns is
//! judged by [`judge`], remembered by [`dossier`], and told to the ledger when it is enough. A super-node sees what any member shows;
//! what it might still know a spy by is said in `docs/THREATS.md`.

mod dossier;
mod judge;
mod visit;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use peerage_wire::crypto::Crypto;
use peerage_wire::id::{NodeId, Segment};
use peerage_wire::keys::IdentityKey;
use peerage_wire::record::{Record, Table, subject};
use peerage_wire::time::{Instant, Now};
use rand_core::Rng as _;

use super::{Operator, Output, Port};
use crate::endpoint::{self, Endpoint};
use crate::sizes::TableSize;
use crate::trust::{Member, Trust};

use dossier::Dossier;
pub use dossier::{Evidence, Fault};
use judge::Question;
use visit::{Sources, Talk, Visit};

/// Most spies that the machine takes, some 100 bytes each: two of each domain that an operator may have.
const MAX_SPIES: usize = 20_000;

/// Most visits at once, each with a port of its own. One takes a few seconds, or two minutes where somebody is silent.
const MAX_VISITS_AT_ONCE: usize = 16;

/// The shortest time between the beginnings of two visits, however many super-nodes there are.
const MIN_PAUSE: Duration = Duration::from_secs(1);

/// How many super-nodes a visit asks, as a look-up does (Rule 6.4).
const ASKED: usize = 2;

/// How many it pings, as a member does at its start (Rule 6.1).
const PINGED: usize = 4;

/// How many questions follow that for the Head. All of them each time would be a member that never remembers anything.
const QUESTIONS: usize = 3;

/// How long a super-node must have been there, with the range that it has, before anything counts.
const STEADY_AFTER: Duration = Duration::from_secs(600);

/// How long it may say that it does not have everything yet. The largest segment is fetched in minutes.
const CAUGHT_UP_AFTER: Duration = Duration::from_secs(3_600);

/// How long its silence about a domain is forgiven after it told that records had no room (Rule 6.55).
const NO_ROOM_FORGIVEN: Duration = Duration::from_secs(3_600);

/// How long the ledger may take for a conviction before there is another one.
const CONVICTION_TIMEOUT: Duration = Duration::from_secs(10);

/// An identity of the operator in a real domain. Its Node record is among those that were committed.
#[derive(Clone, Debug)]
pub struct SpyIdentity {
    /// Its id.
    pub node: NodeId,
    /// Its key.
    pub identity: IdentityKey,
}

/// Names a spy's visit, which has a port of its own while it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VisitId(pub u64);

/// What spies have found about one super-node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spied {
    /// How often it was visited in the last day, as far as is remembered since the operator started.
    pub visits: usize,
    /// What it was seen to do that an honest one does not, oldest first.
    pub evidence: Vec<Evidence>,
}

/// All spies, those that are out, and what they have found.
#[derive(Debug)]
pub(super) struct Spies {
    /// The mean time between two visits to one super-node; `None`: never.
    interval: Option<Duration>,
    all: BTreeMap<NodeId, IdentityKey>,
    visits: BTreeMap<VisitId, Visit>,
    next_visit: u64,
    due_at: Option<Instant>,
    dossiers: BTreeMap<NodeId, Dossier>,
    /// Until when the ledger may be at work on the last conviction; one at a time, so that their number is known.
    convicting_until: Option<Instant>,
}

impl Spies {
    pub(super) const fn new(interval: Option<Duration>) -> Self {
        Self {
            interval,
            all: BTreeMap::new(),
            visits: BTreeMap::new(),
            next_visit: 0,
            due_at: None,
            dossiers: BTreeMap::new(),
            convicting_until: None,
        }
    }

    pub(super) fn next_at(&self) -> Option<Instant> {
        self.visits.values().filter_map(Visit::next_at).chain(self.due_at).min()
    }

    pub(super) fn sizes(&self) -> [TableSize; 2] {
        [
            TableSize::new("spies", self.all.len(), MAX_SPIES),
            TableSize::new("visits of spies", self.visits.len(), MAX_VISITS_AT_ONCE),
        ]
    }

    /// Begins anew with a super-node that was put in quarantine, or released.
    pub(super) fn forget(&mut self, node: &NodeId) {
        self.dossiers.remove(node);
        self.convicting_until = None;
    }

    /// Forgets those who are no longer around.
    pub(super) fn retain(&mut self, is_known: impl Fn(&NodeId) -> bool) {
        self.dossiers.retain(|node, _| is_known(node));
    }

    pub(super) fn found(&self, node: &NodeId) -> Spied {
        let found = |dossier: &Dossier| Spied { visits: dossier.visits(), evidence: dossier.evidence() };
        self.dossiers.get(node).map(found).unwrap_or_default()
    }
}

impl Operator {
    /// Takes more spies.
    pub(super) fn take_spies(&mut self, spies: Vec<SpyIdentity>, now: Now) {
        let room = MAX_SPIES.saturating_sub(self.spies.all.len());
        self.spies.all.extend(spies.into_iter().take(room).map(|spy| (spy.node, spy.identity)));
        let Some(interval) = self.spies.interval.filter(|_| !self.spies.all.is_empty()) else {
            self.spies.due_at = None;
            return;
        };
        if self.spies.due_at.is_none() {
            self.spies.due_at = Some(now.mono.after(self.drawn(interval)));
        }
    }

    /// Hands a visiting spy what arrived at its port.
    pub(super) fn spy_datagram(&mut self, id: VisitId, remote: SocketAddr, payload: &[u8], now: Now) {
        self.with_visit(id, now, |visit, sources| visit.handle_datagram(remote, payload, sources, now));
    }

    pub(super) fn spies_timeout(&mut self, now: Now) {
        let is_due = |visit: &Visit| visit.next_at().is_some_and(|at| at <= now.mono);
        let due = self.spies.visits.iter().filter(|(_, visit)| is_due(visit));
        for id in due.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.with_visit(id, now, |visit, sources| visit.handle_timeout(sources, now));
        }
        if self.spies.due_at.is_some_and(|at| at <= now.mono) {
            let holders: Vec<_> = self.supers.holders().collect();
            self.spies.due_at = self.spies.interval.map(|interval| {
                // Two are asked each time, and the time between is anything between none and twice the mean.
                let count = u32::try_from(holders.len()).unwrap_or(u32::MAX).max(1);
                let mean = interval.saturating_mul(2).checked_div(count).unwrap_or(interval).min(interval);
                now.mono.after(self.drawn(mean.saturating_mul(2)).max(MIN_PAUSE))
            });
            if self.spies.visits.len() < MAX_VISITS_AT_ONCE {
                self.begin_visit(&holders, now);
            }
        }
    }

    fn with_visit(&mut self, id: VisitId, now: Now, act: impl FnOnce(&mut Visit, Sources<'_>)) {
        let Some(mut visit) = self.spies.visits.remove(&id) else { return };
        act(&mut visit, Sources { records: &self.records, trust: &self.trust });
        while let Some((remote, payload)) = visit.poll_transmit() {
            self.outputs.push_back(Output::Transmit { remote, payload, port: Port::Spy(id) });
        }
        if visit.is_over(now.mono) {
            self.outputs.push_back(Output::VisitEnded(id));
            self.conclude(&visit, now);
        } else {
            self.spies.visits.insert(id, visit);
        }
    }

    // ---- setting out ------------------------------------------------------------------------

    /// Sends a spy to one of these super-nodes, drawn like everything else about it.
    fn begin_visit(&mut self, holders: &[NodeId], now: Now) {
        let Some(target) = self.one_of(holders) else { return };
        let Some(range) = self.assignment(&target).map(|body| body.segment) else { return };
        let Some((spy, record)) = self.spy_for(range, now) else { return };
        let fellows: Vec<_> = self.supers.coverage.holders_in(spy.domain).into_iter().collect();
        let mut asked = BTreeSet::from([target]);
        asked.extend(self.one_of(&without(&fellows, &asked)).filter(|_| ASKED > 1));
        let mut pinged = asked.clone();
        while pinged.len() < PINGED {
            let mut others = without(holders, &pinged);
            others.retain(|other| pinged.iter().all(|node| node.domain != other.domain));
            let Some(other) = self.one_of(&others) else { break };
            pinged.insert(other);
        }
        let (mut peers, mut talks) = (Vec::new(), Vec::new());
        for node in pinged {
            let Some((peer, remote)) = self.peer_of(&node) else { continue };
            let (steady, questions) = if asked.contains(&node) {
                (self.steady_since(&node, now), self.questions(spy, &node))
            } else {
                (None, vec![Question::Ping])
            };
            peers.push(peer);
            talks.push(Talk::new((node, remote), steady, questions));
        }
        let Some(endpoint) = self.spy_endpoint(spy, record, now) else { return };
        let id = VisitId(self.spies.next_visit);
        self.spies.next_visit = self.spies.next_visit.wrapping_add(1);
        self.spies.visits.insert(id, Visit::begin(endpoint, peers, talks, now));
        self.with_visit(id, now, |_, _| {});
    }

    /// Returns a spy of a domain of which a super-node holds places, with its record.
    fn spy_for(&mut self, range: Segment, now: Now) -> Option<(NodeId, Bytes)> {
        let time = self.endpoint.time(now);
        let record_of = |node: &NodeId| {
            let record = self.records.get(Table::Node, node.domain, node.record_key())?;
            let is_member = !record.header().removed && record.is_valid_at(time);
            (is_member && !self.trust.is_revoked(node)).then(|| record.bytes().clone())
        };
        let busy: BTreeSet<_> = self.spies.visits.values().map(Visit::spy).collect();
        let near = self.spies.all.keys().filter(|spy| range.touches(spy.domain) && !busy.contains(spy));
        let able: Vec<_> = near.filter_map(|spy| Some((*spy, record_of(spy)?))).collect();
        let n = self.index_below(able.len())?;
        able.into_iter().nth(n)
    }

    fn spy_endpoint(&mut self, spy: NodeId, record: Bytes, now: Now) -> Option<Endpoint> {
        let identity = self.spies.all.get(&spy)?.clone();
        let crypto: Arc<dyn Crypto> = self.endpoint.shared_crypto();
        let network = self.endpoint.network();
        let config =
            endpoint::Config { network, crypto, identity, id: spy, record, asks_introduction: false };
        let mut seed = [0; 32];
        self.endpoint.rng().fill_bytes(&mut seed);
        Some(Endpoint::new(config, seed, now))
    }

    /// Returns a super-node as its record shows it to everybody, and one of its addresses.
    fn peer_of(&mut self, node: &NodeId) -> Option<(Member, SocketAddr)> {
        let record = self.records.get(Table::SuperNode, node.domain, node.record_key())?;
        let (member, body) = Trust::super_node(record)?;
        let n = self.index_below(body.addresses.len())?;
        Some((member, body.addresses.get(n).copied()?))
    }

    /// Returns since when a super-node has been there, if it can be judged.
    fn steady_since(&self, node: &NodeId, now: Now) -> Option<Instant> {
        let lease = self.supers.leases.get(node).filter(|_| self.supers.is_live(node))?;
        let steady = now.mono - lease.steady_since;
        let has_all =
            self.assignment(node).is_some_and(|body| self.is_ready(node, self.signed_in(body.segment)))
                || steady >= CAUGHT_UP_AFTER;
        (has_all && steady >= STEADY_AFTER).then_some(lease.steady_since)
    }

    /// Draws what a spy asks one super-node.
    fn questions(&mut self, spy: NodeId, node: &NodeId) -> Vec<Question> {
        let pieces = self.supers.coverage.segments_of(spy.domain);
        let held: Vec<_> =
            pieces.filter(|(_, holders)| holders.contains(node)).map(|(piece, _)| piece).collect();
        let mut questions = vec![Question::Revocations, Question::SuperNodes];
        if let Some(piece) = self.index_below(held.len()).and_then(|n| held.get(n)) {
            let is_whole = *piece == Segment::of_domain(spy.domain);
            questions.push(Question::Devices(if is_whole { Segment::ALL } else { *piece }));
            let live = |record: &&Record| !record.header().removed;
            let members = self.records.list_within(Table::Node, spy.domain, *piece, None).filter(live);
            let members: Vec<_> = members.map(|record| subject(record.header())).collect();
            questions.extend(self.one_of(&members).map(Question::Node));
            let own = peerage_wire::id::PlacementKey::new(spy.domain, &spy.hash);
            questions.extend(piece.contains(own).then_some(Question::DomainKey));
        }
        let mut drawn = vec![Question::Ping, Question::Head];
        while drawn.len() < 2 + QUESTIONS {
            let Some(n) = self.index_below(questions.len()) else { break };
            drawn.push(questions.swap_remove(n));
        }
        drawn
    }

    // ---- coming back ------------------------------------------------------------------------

    /// Judges what a visit has found; whoever is found out is told to the ledger.
    fn conclude(&mut self, visit: &Visit, now: Now) {
        let (spy, at) = (visit.spy(), self.endpoint.time(now));
        for talk in &visit.talks {
            let node = talk.node;
            let lease = self.supers.leases.get(&node).filter(|_| self.supers.is_live(&node));
            // Whoever was away meanwhile, or has changed its range, could not answer, or not about that.
            let Some(lease) = lease.filter(|lease| talk.steady_since == Some(lease.steady_since)) else {
                continue;
            };
            let is_full = lease.told_full_at.is_some_and(|at| now.mono - at <= NO_ROOM_FORGIVEN);
            let is_excused = |kind: &str| is_full && kind != "Ping" && kind != "GetHead";
            let mut finding = talk.finding.clone();
            // Where nobody else has answered either, it may be the spy's own line.
            finding.unanswered.retain(|kind| visit.heard_others(&node) && !is_excused(kind));
            let silences = finding.unanswered.iter();
            let silences = silences.map(|kind| Evidence {
                at,
                fault: Fault::Silent,
                spy,
                about: format!("{kind}: no answer"),
            });
            finding.evidence.extend(silences.collect::<Vec<_>>());
            let is_enough = self.spies.dossiers.entry(node).or_default().note(finding, now.mono);
            if is_enough && self.may_convict(now) {
                self.spies.convicting_until = Some(now.mono.after(CONVICTION_TIMEOUT));
                let evidence = self.spies.found(&node).evidence;
                self.outputs.push_back(Output::Quarantined { node, evidence });
            }
        }
    }

    /// Returns whether one more may be put in quarantine without a person who has looked at it: when half of all have been, something
    /// else is wrong, perhaps here.
    fn may_convict(&self, now: Now) -> bool {
        if self.spies.convicting_until.is_some_and(|until| until > now.mono) {
            return false;
        }
        let convicted = self.supers.quarantined_count();
        let held = self.held_segments(now);
        let others = held.keys().filter(|node| !self.supers.is_quarantined(node)).count();
        convicted == 0 || convicted < others
    }

    // ---- chance -----------------------------------------------------------------------------

    fn drawn(&mut self, below: Duration) -> Duration {
        let micros = u64::try_from(below.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.endpoint.below(micros))
    }

    fn index_below(&mut self, count: usize) -> Option<usize> {
        let below = u64::try_from(count).ok().filter(|count| *count > 0)?;
        usize::try_from(self.endpoint.below(below)).ok()
    }

    fn one_of(&mut self, nodes: &[NodeId]) -> Option<NodeId> {
        let n = self.index_below(nodes.len())?;
        nodes.get(n).copied()
    }
}

fn without(nodes: &[NodeId], left_out: &BTreeSet<NodeId>) -> Vec<NodeId> {
    nodes.iter().filter(|node| !left_out.contains(node)).copied().collect()
}
