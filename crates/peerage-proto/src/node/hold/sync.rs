//! Getting into step with other holders, and staying so (Rules 4.7, 4.8 and 6.54).
//!
//! A session is one piece of that work with one counterpart. Several may go on at once: that of the moment (catching up, or the
//! regular one), and those about a domain whose Head states something else than what is held.

use std::collections::BTreeMap;
use std::time::Duration;

use peerage_wire::id::{Domain, NodeId, Segment};
use peerage_wire::message::Reply;
use peerage_wire::record::{Record, Table};
use peerage_wire::time::{Instant, Now};

use super::bulk::{Bulk, PieceId};
use super::catch_up::Stage;
use super::part::overlap;
use super::{Errand, Server};
use crate::node::Node;
use crate::reconcile::{Ended, MAX_GIFTS, RECONCILED, Reconciliation, StepId};
use crate::sizes::TableSize;
use crate::trust::{Member, Trust};

/// How often a holder compares what it holds with another one. More often mends sooner what a lost Store left behind; it costs
/// some six requests when nothing differs.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(600);

/// Every how many comparisons are made with an operator, who alone cannot have been given a part of the truth.
const OPERATOR_EVERY: u32 = 3;

/// Sessions at once. More settle more domains at the same time; each has at most sixteen requests under way.
const MAX_SESSIONS: usize = 4;

/// How soon the same domain is looked into again. A Head comes every fifteen seconds.
const DOMAIN_PAUSE: Duration = Duration::from_secs(5);

/// For how long a holder that has lied is not chosen.
const LIAR_TIME: Duration = Duration::from_secs(3_600);

/// Most liars that are remembered; a part of the table has tens of holders at the most.
const MAX_LIARS: usize = 64;

/// Within how long one counterpart is given [`MAX_GIFTS`] records because it lacks them.
const GIFT_TIME: Duration = Duration::from_secs(3_600);

/// Most counterparts of whom it is remembered what they were given; one more than that is given nothing.
const MAX_GIVEN: usize = 64;

/// Names a session, never used twice in the life of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::node) struct SessionId(u32);

/// Names a request of a session.
#[derive(Clone, Copy, Debug)]
pub(in crate::node) enum Step {
    Compare(StepId),
    Piece(PieceId),
}

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// A stage of catching up.
    Stage(Stage),
    /// What is done every ten minutes.
    Regular,
    /// A domain's Head states something else.
    Domain(Domain),
}

/// How it is pursued.
#[derive(Clone, Debug)]
pub(super) enum Work {
    Compare(Box<Reconciliation>),
    Fetch(Bulk),
}

impl Work {
    /// Returns how it has ended, `None` if it has not.
    fn ended(&self) -> Option<Ended> {
        match self {
            Self::Compare(reconciliation) => reconciliation.ended(),
            Self::Fetch(bulk) => {
                bulk.ended().map(|whole| if whole { Ended::Settled } else { Ended::Unfinished })
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Session {
    with: Server,
    goal: Goal,
    work: Work,
}

/// What goes on between this holder and others.
#[derive(Debug)]
pub(super) struct Sync {
    sessions: BTreeMap<SessionId, Session>,
    /// When catching up is tried again, or the next comparison is due.
    next_at: Instant,
    rounds: u32,
    liars: BTreeMap<NodeId, Instant>,
    /// Who was given how many records, and since when that is counted.
    given: BTreeMap<NodeId, (Instant, u32)>,
    looked_into: BTreeMap<Domain, Instant>,
    /// Set while no operator has confirmed since catching up that it was all: how long until one is asked again.
    unchecked: Option<Duration>,
}

impl Sync {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            sessions: BTreeMap::new(),
            next_at: now,
            rounds: 0,
            liars: BTreeMap::new(),
            given: BTreeMap::new(),
            looked_into: BTreeMap::new(),
            unchecked: None,
        }
    }

    /// Drops what is under way, because the range has changed.
    pub(super) fn begin_again(&mut self, now: Instant) {
        self.sessions.clear();
        self.next_at = now;
    }

    pub(super) fn sizes(&self) -> [TableSize; 3] {
        [
            // Besides those that look into something there may be a comparison.
            TableSize::new("sessions between holders", self.sessions.len(), MAX_SESSIONS + 1),
            TableSize::new("holders not believed", self.liars.len(), MAX_LIARS),
            TableSize::new("holders that were given records", self.given.len(), MAX_GIVEN),
        ]
    }

    pub(super) fn next_at(&self) -> Option<Instant> {
        (!self.is_busy()).then_some(self.next_at)
    }

    pub(super) const fn wait_until(&mut self, at: Instant) {
        self.next_at = at;
    }

    /// Does what is due next at that time, if not before.
    pub(super) fn hasten(&mut self, at: Instant) {
        self.next_at = self.next_at.min(at);
    }

    /// Has an operator asked soon whether what was caught up with is all.
    pub(super) const fn leave_unchecked(&mut self, pause: Duration) {
        self.unchecked = Some(pause);
    }

    /// Returns whether the work of the moment is under way.
    fn is_busy(&self) -> bool {
        self.sessions.values().any(|session| !matches!(session.goal, Goal::Domain(_)))
    }

    fn is_liar(&self, node: &NodeId, now: Instant) -> bool {
        self.liars.get(node).is_some_and(|at| now - *at < LIAR_TIME)
    }

    /// Returns how many records a counterpart may still be given.
    fn gifts(&mut self, to: &NodeId, now: Instant) -> u32 {
        self.given.retain(|_, (since, _)| now - *since < GIFT_TIME);
        match self.given.get(to) {
            Some((_, given)) => MAX_GIFTS.saturating_sub(*given),
            None if self.given.len() < MAX_GIVEN => MAX_GIFTS,
            None => 0,
        }
    }

    fn note_given(&mut self, to: NodeId, count: u32, now: Instant) {
        if count > 0 && (self.given.len() < MAX_GIVEN || self.given.contains_key(&to)) {
            let (_, given) = self.given.entry(to).or_insert((now, 0));
            *given = given.saturating_add(count);
        }
    }

    fn note_liar(&mut self, node: NodeId, now: Instant) {
        self.liars.retain(|_, at| now - *at < LIAR_TIME);
        if self.liars.len() < MAX_LIARS {
            self.liars.insert(node, now);
        }
    }
}

impl Node {
    /// Makes sure that another holder can be asked: only its record may be known.
    pub(super) fn acquaint_holder(&mut self, node: NodeId, now: Now) {
        if let Some((_, member)) = self.fellow(&node) {
            self.endpoint.learn_identity(member, now);
        }
    }

    fn fellow(&self, node: &NodeId) -> Option<(Server, Member)> {
        let part = self.hold.part.as_ref()?;
        let record = part.records.get(Table::SuperNode, node.domain, node.record_key())?;
        self.server_of(record)
    }

    /// Returns where a super-node is, and by which key it is known.
    fn server_of(&self, record: &Record) -> Option<(Server, Member)> {
        let (member, body) = Trust::super_node(record)?;
        Some((self.server_at(member.id, &body.addresses)?, member))
    }

    /// Returns the other holders that have places of a range, with the places of it that each has, in random order.
    pub(super) fn fellows(&mut self, range: Segment, now: Now) -> Vec<(Server, Segment)> {
        let time = self.hold_time(now);
        let Some(part) = &self.hold.part else { return Vec::new() };
        let found = part.records.super_nodes(range, time).filter_map(|(record, segment)| {
            let (server, _) = self.server_of(record)?;
            let usable = server.node != self.me.id
                && !self.trust.is_revoked(&server.node)
                && !part.sync.is_liar(&server.node, now.mono);
            Some((server, overlap(&segment, &range)?)).filter(|_| usable)
        });
        let mut found: Vec<_> = found.collect();
        for at in (1..found.len()).rev() {
            let other = usize::try_from(self.endpoint.below(at as u64 + 1)).unwrap_or(0);
            found.swap(at, other);
        }
        found
    }

    pub(super) fn begin_session(&mut self, with: Server, goal: Goal, work: Work) {
        let id = SessionId(self.hold.next_session);
        self.hold.next_session = self.hold.next_session.wrapping_add(1);
        if let Some(part) = &mut self.hold.part {
            part.sync.sessions.insert(id, Session { with, goal, work });
        }
    }

    pub(super) fn sync_timeout(&mut self, now: Now) {
        let Some(part) = &self.hold.part else { return };
        if part.sync.next_at().is_none_or(|at| at > now.mono) {
            return;
        }
        if part.catch_up.is_some() {
            self.catch_up(now);
        } else {
            self.compare_regularly(now);
        }
    }

    /// Plans the next comparison, so that all holders do not make theirs at once.
    pub(super) fn plan_comparison(&mut self, now: Now) {
        let unchecked = self.hold.part.as_ref().and_then(|part| part.sync.unchecked);
        let at = now.mono.after(self.jittered(unchecked.unwrap_or(RECONCILE_INTERVAL)));
        if let Some(part) = &mut self.hold.part {
            part.sync.next_at = at;
            part.sync.unchecked = unchecked.map(|pause| (pause * 2).min(RECONCILE_INTERVAL));
        }
    }

    fn compare_regularly(&mut self, now: Now) {
        self.plan_comparison(now);
        let Some(part) = &mut self.hold.part else { return };
        part.sync.rounds = part.sync.rounds.wrapping_add(1);
        let with_operator = part.sync.unchecked.is_some() || part.sync.rounds.is_multiple_of(OPERATOR_EVERY);
        let segment = part.segment;
        let operator = self.shuffled_operators(now).first().map(|server| (*server, segment));
        let fellow = self.fellows(segment, now).first().copied();
        let chosen = if with_operator { operator.or(fellow) } else { fellow.or(operator) };
        let Some((server, range)) = chosen else { return };
        let is_fellow = !self.trust.is_operator(&server.node);
        let part = self.hold.part.as_mut().filter(|_| is_fellow);
        let gifts = part.map_or(0, |part| part.sync.gifts(&server.node, now.mono));
        let work = Reconciliation::new(&RECONCILED, range, gifts);
        self.begin_session(server, Goal::Regular, Work::Compare(Box::new(work)));
    }

    /// Asks an operator about a domain whose Head states something else than what is held here (Rule 6.56).
    pub(super) fn look_into(&mut self, domain: Domain, now: Now) {
        let Some(part) = &mut self.hold.part else { return };
        let Some(range) = overlap(&part.segment, &Segment::of_domain(domain)) else { return };
        let sync = &mut part.sync;
        sync.looked_into.retain(|_, at| now.mono - *at < DOMAIN_PAUSE);
        if part.lacking.rests(domain, now.mono)
            || sync.sessions.len() >= MAX_SESSIONS
            || sync.looked_into.contains_key(&domain)
        {
            return;
        }
        sync.looked_into.insert(domain, now.mono);
        let operator = self.shuffled_operators(now).first().copied();
        let fellow = self.fellows(range, now).first().map(|(server, _)| *server);
        let operator = operator.filter(|_| !self.hold.operators_silent || fellow.is_none());
        let Some(server) = operator.or(fellow) else { return };
        let work = Reconciliation::new(&RECONCILED, range, 0);
        self.begin_session(server, Goal::Domain(domain), Work::Compare(Box::new(work)));
    }

    /// Makes the requests for which there is room, and ends the sessions that are through.
    pub(super) fn pump_sync(&mut self, now: Now) {
        let time = self.hold_time(now);
        let Some(part) = &mut self.hold.part else { return };
        let mut requests = Vec::new();
        for (id, session) in &mut part.sync.sessions {
            match &mut session.work {
                Work::Compare(work) => {
                    while let Some((step, request)) = work.poll(&part.records, time) {
                        requests.push((session.with, request, Errand::Sync(*id, Step::Compare(step))));
                    }
                }
                Work::Fetch(work) => {
                    while let Some((piece, request)) = work.poll() {
                        requests.push((session.with, request, Errand::Sync(*id, Step::Piece(piece))));
                    }
                }
            }
        }
        for (server, request, errand) in requests {
            self.send_on(server, &request, errand, now);
        }
        self.end_sessions(now);
    }

    fn end_sessions(&mut self, now: Now) {
        let Some(part) = &mut self.hold.part else { return };
        let over = part.sync.sessions.iter().filter_map(|(id, session)| Some((*id, session.work.ended()?)));
        for (id, ended) in over.collect::<Vec<_>>() {
            let Some(part) = &mut self.hold.part else { return };
            let Some(session) = part.sync.sessions.remove(&id) else { continue };
            if let Work::Compare(work) = &session.work {
                part.sync.note_given(session.with.node, work.tally().given, now.mono);
            }
            if ended == Ended::Liar {
                part.sync.note_liar(session.with.node, now.mono);
                self.servers.mark(session.with.node, now.mono);
            }
            let is_authority = self.trust.is_operator(&session.with.node);
            if let (Work::Compare(work), true) = (&session.work, is_authority) {
                self.forget_unlisted(work);
            }
            self.note_settled((id, session.goal), ended, is_authority, now);
            if let Goal::Stage(stage) = session.goal {
                self.stage_ended(stage, session.with, ended, now);
            }
        }
    }

    /// Forgets the super-nodes that an operator, asked for all that concern these places, does not list: who has lost them cannot be
    /// recognised in any other way if the record that says so was lost. Its own word about itself the node waits for.
    fn forget_unlisted(&mut self, work: &Reconciliation) {
        let own = self.me.id;
        let Some(part) = &mut self.hold.part else { return };
        let mut gone = Vec::new();
        for (at, version) in work.unlisted() {
            let node = NodeId { domain: at.place.domain(), hash: at.key.0 };
            let held = part.records.get(Table::SuperNode, node.domain, at.key);
            if node != own && held.is_some_and(|held| held.header().version == version) {
                gone.extend(part.records.remove(Table::SuperNode, node.domain, at.key));
            }
        }
        self.forget_on_disk(&gone);
    }

    /// Draws the consequences of a comparison for what is known to be complete; an operator's word counts for everything.
    fn note_settled(&mut self, (id, goal): (SessionId, Goal), ended: Ended, is_authority: bool, now: Now) {
        let Some(part) = &mut self.hold.part else { return };
        if !matches!(ended, Ended::Settled | Ended::Full) {
            return;
        }
        match goal {
            Goal::Domain(domain) => {
                part.lacking.settled(Some(domain), id.0);
                part.lacking.put_off(domain, now.mono);
            }
            Goal::Regular | Goal::Stage(Stage::Signed | Stage::Check) if is_authority => {
                part.lacking.settled(None, id.0);
                if part.sync.unchecked.take().is_some() {
                    self.plan_comparison(now);
                }
            }
            Goal::Regular | Goal::Stage(_) => {}
        }
    }

    pub(super) fn sync_answered(&mut self, id: SessionId, step: Step, reply: Reply, now: Now) {
        let Some(part) = &mut self.hold.part else { return };
        let (segment, session) = (part.segment, part.sync.sessions.remove(&id));
        let Some(mut session) = session else { return };
        match (&mut session.work, step) {
            (Work::Compare(work), Step::Compare(step)) => {
                work.answered(step, reply, |bytes| self.take_handed(&bytes, now));
            }
            (Work::Fetch(work), Step::Piece(piece)) => {
                work.answered(piece, reply, |bytes| self.take_handed(&bytes, now));
            }
            _ => {}
        }
        // Among what came may be another range for this node; then everything begins anew.
        if let Some(part) = self.hold.part.as_mut().filter(|part| part.segment == segment) {
            part.sync.sessions.insert(id, session);
        }
    }

    pub(super) fn sync_failed(&mut self, id: SessionId, step: Step, _now: Now) {
        let Some(part) = &mut self.hold.part else { return };
        let Some(session) = part.sync.sessions.get_mut(&id) else { return };
        match (&mut session.work, step) {
            (Work::Compare(work), Step::Compare(step)) => work.failed(step),
            (Work::Fetch(work), Step::Piece(piece)) => work.failed(piece),
            _ => {}
        }
    }
}
