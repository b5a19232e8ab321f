//! Catching up: from an assignment to a holder that has everything (Rule 6.54).
//!
//! First who is who, from an operator; then what operators signed and what nodes have announced, from another holder, so that
//! the operator does not carry the whole table to everybody; last a comparison with an operator, because another holder may keep
//! something back. Until then nothing is answered: half a set looks like the truth.

use std::collections::BTreeSet;
use std::time::Duration;

use peerage_wire::id::NodeId;
use peerage_wire::message::Request;
use peerage_wire::record::Table;
use peerage_wire::time::Now;

use super::bulk::Bulk;
use super::sync::{Goal, Work};
use super::{Errand, Server};
use crate::node::Node;
use crate::reconcile::{Ended, RECONCILED, Reconciliation};

/// How soon catching up is tried again after nobody could help.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// How often that is doubled: an attempt is some thirty datagrams, which are for nothing all day where a holder was revoked and
/// nobody tells it. More leaves a holder that was cut off behind for longer; as a rule it hears of somebody before.
const MAX_RETRY_DOUBLINGS: u32 = 4;

/// How long a holder that was appointed may still be catching up itself, in milliseconds, and is asked only when operators are
/// silent. Shorter makes those that are appointed together wait for each other, for a request each; longer has operators carry
/// the table to more newcomers.
const FRESH_MILLIS: u64 = 20_000;

/// The tables that say who is who.
const TRUST_TABLES: [Table; 2] = [Table::OperatorNode, Table::SuperNode];

/// Where a holder is that catches up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Stage {
    /// Who signs, and who holds what.
    #[default]
    Trust,
    /// What operators signed.
    Signed,
    /// What nodes announced.
    Announced,
    /// Whether that was all.
    Check,
}

/// What is remembered on the way.
#[derive(Clone, Debug, Default)]
pub(super) struct CatchUp {
    stage: Stage,
    /// From whom the bulk came.
    source: Option<Server>,
    /// Who could not help.
    tried: BTreeSet<NodeId>,
    /// How often nobody could.
    failures: u32,
}

impl Node {
    /// Begins the next stage, or the same one with somebody else.
    pub(super) fn catch_up(&mut self, now: Now) {
        let Some(part) = &self.hold.part else { return };
        let Some(state) = part.catch_up.clone() else { return };
        let segment = part.segment;
        // What this node has and the other lacks can wait for a regular comparison.
        let compare = |tables: &[Table]| Work::Compare(Box::new(Reconciliation::new(tables, segment, 0)));
        let (with, work) = match state.stage {
            Stage::Trust => (self.next_operator(&BTreeSet::new(), now), compare(&TRUST_TABLES)),
            Stage::Signed => (self.source(&state.tried, now), compare(&RECONCILED)),
            Stage::Announced => (state.source, Work::Fetch(Bulk::new(Table::NodeInfo, segment))),
            Stage::Check => (self.checker(&state, now), compare(&RECONCILED)),
        };
        match with {
            Some(server) => {
                if state.stage == Stage::Signed {
                    self.present_assignment(server, now);
                }
                self.begin_session(server, Goal::Stage(state.stage), work);
            }
            None => self.stage_skipped(state.stage, now),
        }
    }

    /// Shows another holder why it may ask: the operator tells everybody, but perhaps not first.
    fn present_assignment(&mut self, server: Server, now: Now) {
        let (id, part) = (self.me.id, self.hold.part.as_ref());
        let own = part.and_then(|part| part.records.get(Table::SuperNode, id.domain, id.record_key()));
        let own = own.filter(|_| !self.trust.is_operator(&server.node)).map(|record| record.bytes().clone());
        if let Some(bytes) = own {
            self.send_on(server, &Request::Store(bytes), Errand::Present, now);
        }
    }

    /// Returns who has everything that this node has to hold: another holder, or else an operator, or else a holder that may
    /// not have everything yet.
    fn source(&mut self, tried: &BTreeSet<NodeId>, now: Now) -> Option<Server> {
        let segment = self.hold.part.as_ref()?.segment;
        let fellows = self.fellows(segment, now).into_iter();
        let whole = fellows.filter(|(server, range)| *range == segment && !tried.contains(&server.node));
        let (fresh, settled): (Vec<_>, Vec<_>) =
            whole.partition(|(server, _)| self.is_fresh(&server.node, now));
        let first = |found: Vec<(Server, _)>| found.into_iter().next().map(|(server, _)| server);
        first(settled).or_else(|| self.next_operator(tried, now)).or_else(|| first(fresh))
    }

    /// Returns whether another holder was appointed a moment ago.
    fn is_fresh(&self, holder: &NodeId, now: Now) -> bool {
        let records = self.hold.part.as_ref().map(|part| &part.records);
        let record =
            records.and_then(|records| records.get(Table::SuperNode, holder.domain, holder.record_key()));
        let settled_at = record.map_or(0, |record| record.header().version.saturating_add(FRESH_MILLIS));
        settled_at > self.hold_time(now).as_millis()
    }

    /// Returns the operator that is asked whether that was all, unless everything came from one.
    fn checker(&mut self, state: &CatchUp, now: Now) -> Option<Server> {
        let from_operator = state.source.is_some_and(|source| self.trust.is_operator(&source.node));
        if from_operator || self.hold.operators_silent {
            return None;
        }
        self.next_operator(&BTreeSet::new(), now)
    }

    fn stage_skipped(&mut self, stage: Stage, now: Now) {
        match stage {
            Stage::Trust | Stage::Announced => self.next_stage(stage, now),
            Stage::Signed => self.cannot_catch_up(now),
            Stage::Check => {
                let catch_up = self.hold.part.as_ref().and_then(|part| part.catch_up.as_ref());
                let source = catch_up.and_then(|state| state.source);
                let is_sure = source.is_some_and(|source| self.trust.is_operator(&source.node));
                self.caught_up(is_sure, now);
            }
        }
    }

    pub(super) fn stage_ended(&mut self, stage: Stage, with: Server, ended: Ended, now: Now) {
        let Some(part) = &mut self.hold.part else { return };
        let Some(state) = part.catch_up.as_mut().filter(|state| state.stage == stage) else { return };
        let is_through = matches!(ended, Ended::Settled | Ended::Full);
        if stage == Stage::Check {
            return self.caught_up(is_through, now);
        }
        if stage == Stage::Signed && !is_through {
            state.tried.insert(with.node);
            return self.catch_up(now);
        }
        if stage == Stage::Signed {
            state.source = Some(with);
        }
        self.next_stage(stage, now);
    }

    fn next_stage(&mut self, stage: Stage, now: Now) {
        let Some(part) = &mut self.hold.part else { return };
        let Some(state) = &mut part.catch_up else { return };
        state.stage = match stage {
            Stage::Trust => Stage::Signed,
            Stage::Signed => Stage::Announced,
            Stage::Announced | Stage::Check => Stage::Check,
        };
        self.catch_up(now);
    }

    /// Begins to answer. Unless an operator has confirmed that it was all, one is asked soon.
    fn caught_up(&mut self, is_sure: bool, now: Now) {
        if let Some(part) = &mut self.hold.part {
            if !is_sure {
                part.sync.leave_unchecked(RETRY_INTERVAL);
            }
            part.catch_up = None;
            part.signed = Some(part.segment);
            part.announced = Some(part.segment);
        }
        self.plan_comparison(now);
    }

    /// Nobody could help. What was on disk is answered all the same: whoever asks compares it with the Head, and with several
    /// holders that were all started again together it is all there is.
    fn cannot_catch_up(&mut self, now: Now) {
        let before = self.hold.part.as_ref().and_then(|part| part.catch_up.as_ref());
        let failures = before.map_or(0, |state| state.failures);
        let pause = RETRY_INTERVAL * (1 << failures.min(MAX_RETRY_DOUBLINGS));
        let retry = now.mono.after(self.jittered(pause));
        let Some(part) = &mut self.hold.part else { return };
        part.announced = part.signed;
        part.catch_up = Some(CatchUp { failures: failures.saturating_add(1), ..CatchUp::default() });
        part.sync.wait_until(retry);
    }

    /// Somebody answers again after a silence: what waits for its next attempt need not wait for long.
    pub(in crate::node) fn hasten_catch_up(&mut self, now: Now) {
        let soon = now.mono.after(self.jittered(RETRY_INTERVAL));
        let Some(part) = &mut self.hold.part else { return };
        if let Some(state) = &mut part.catch_up {
            state.failures = 0;
            part.sync.hasten(soon);
        }
    }
}
