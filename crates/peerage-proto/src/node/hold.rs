//! The super-node: a part of everybody's table, held by a borrowed machine that nobody has to believe (Rules 6.50 to 6.59).
//!
//! A node whose owner lends it offers itself to an operator (`role`). The operator finds out whether anybody reaches it, and
//! sends a SuperNode record: the range of places that it holds from then on (`part`). It catches up with another holder (`catch_up`,
//! `sync`), and answers only once it has everything (`serve`). What operators signed it keeps on disk, what nodes announce in
//! memory; both within the memory that its owner gave (`keep`). It passes on the Heads of those domains that somebody asks about, and
//! wakes the nodes that are attached to it (`heads`).
//!
//! All this is apart from what the node keeps for itself as a member of its own domain, although both lie in one store on disk.

mod bulk;
mod catch_up;
mod contacts;
mod heads;
mod keep;
mod lacking;
mod look;
mod part;
mod pass;
mod role;
mod serve;
mod sync;

use std::collections::BTreeSet;
use std::time::Duration;

use peerage_wire::id::{Domain, NodeId};
use peerage_wire::message::{Refused, RefusedReason, Reply, Request};
use peerage_wire::time::{Instant, Now, UnixTime};

use super::{Change, Event, Node, Purpose, Server, SuperConfig, SuperState, SuperStatus};
use crate::table::Refusals;

use part::Part;
use role::Role;
use sync::{SessionId, Step};

/// How often an operator hears of what was refused, if anything was.
const REPORT_INTERVAL: Duration = Duration::from_secs(300);

/// Most changes that are written to disk together: a part of the table that is given up is a hundred thousand.
const MAX_CHANGES: usize = 1_024;

/// What a request was for that the node made as a super-node.
#[derive(Clone, Debug)]
pub(super) enum Errand {
    /// Seeing the own address from outside.
    Observe,
    /// Offering itself.
    Submit,
    /// Telling what was refused.
    Report,
    /// The Heads of these domains, at most [`MAX_HEADS`](peerage_wire::limits::MAX_HEADS).
    Heads(Vec<Domain>),
    /// Telling an attached node about a new Head.
    Notice,
    /// Showing another holder the own assignment.
    Present,
    /// A step of getting into step with another holder.
    Sync(SessionId, Step),
}

/// What a node does as a super-node, or would.
#[derive(Debug)]
pub(super) struct Hold {
    role: Role,
    part: Option<Box<Part>>,
    refusals: Refusals,
    /// The report that is on its way.
    reporting: Vec<Refused>,
    report_at: Instant,
    /// What is to be written to disk.
    changes: Vec<Change>,
    next_session: u32,
    /// Whether no operator has answered lately: then nobody is kept waiting for one.
    operators_silent: bool,
    served: u64,
    refused: u64,
    /// As the shell has counted them.
    relayed_bytes: u64,
    told: SuperState,
}

impl Hold {
    pub(super) fn new(config: SuperConfig, now: Instant) -> Self {
        Self {
            role: Role::new(config),
            part: None,
            refusals: Refusals::default(),
            reporting: Vec::new(),
            report_at: now.after(REPORT_INTERVAL),
            changes: Vec::new(),
            next_session: 0,
            operators_silent: false,
            served: 0,
            refused: 0,
            relayed_bytes: 0,
            told: SuperState::Off,
        }
    }

    /// Counts what was refused to a member of a domain; the operator hears of it (Rule 6.58).
    fn refuse(&mut self, domain: Domain, reason: RefusedReason) {
        self.refused = self.refused.saturating_add(1);
        self.refusals.count(domain, reason);
    }
}

impl Node {
    /// Returns when something of the super-node is due.
    pub(super) fn hold_at(&self) -> Option<Instant> {
        let part = self.hold.part.as_ref();
        let report = (part.is_some() && !self.hold.refusals.is_empty()).then_some(self.hold.report_at);
        [self.hold.role.next_at(), report, part.and_then(|part| part.next_at())].into_iter().flatten().min()
    }

    pub(super) fn hold_timeout(&mut self, now: Now) {
        self.role_timeout(now);
        self.part_timeout(now);
        if self.hold.part.is_some() && self.hold.report_at <= now.mono {
            self.report_refusals(now);
        }
    }

    /// Works off what waits for room: requests to other holders, notices to attached nodes, changes for the disk.
    pub(super) fn settle_hold(&mut self, now: Now) {
        self.review_role(now);
        // Whom to ask after an operator that was silent is known at once; no timer has to say so.
        self.role_timeout(now);
        self.pump_sync(now);
        self.pump_notices(now);
        self.pump_legs();
        self.flush_changes();
        let state = self.super_state();
        if state != std::mem::replace(&mut self.hold.told, state) {
            self.event(Event::SuperRole(state));
        }
    }

    pub(super) fn hold_answered(&mut self, errand: Errand, from: NodeId, reply: Reply, now: Now) {
        if self.trust.is_operator(&from) {
            self.hold.operators_silent = false;
        }
        match errand {
            Errand::Observe => self.observed(&reply, now),
            Errand::Submit => self.submitted(from, &reply, now),
            Errand::Report => self.hold.reporting.clear(),
            Errand::Heads(domains) => self.heads_fetched(&domains, from, reply, now),
            Errand::Notice => self.notice_ended(),
            Errand::Present => {}
            Errand::Sync(session, step) => self.sync_answered(session, step, reply, now),
        }
    }

    pub(super) fn hold_unanswered(&mut self, errand: Errand, to: NodeId, now: Now) {
        if self.trust.is_operator(&to) {
            self.hold.role.was_silent(&to);
            // Those that do not keep the map are silent to offers.
            if !matches!(errand, Errand::Submit) {
                self.hold.operators_silent = self.answering_operator(now).is_none();
            }
        }
        match errand {
            Errand::Observe => self.unobserved(now),
            Errand::Submit => self.submission_failed(to, now),
            Errand::Report => {
                let report = std::mem::take(&mut self.hold.reporting);
                self.hold.refusals.put_back(report);
            }
            Errand::Heads(domains) => self.heads_unanswered(&domains, to, now),
            Errand::Notice => self.notice_ended(),
            Errand::Present => {}
            Errand::Sync(session, step) => self.sync_failed(session, step, now),
        }
    }

    /// Asks somebody on an errand of the super-node.
    fn send_on(&mut self, server: Server, request: &Request, errand: Errand, now: Now) {
        self.acquaint_holder(server.node, now);
        self.ask(server, request, Purpose::Hold(errand), now);
    }

    /// Returns the corrected time to judge by; nothing has expired for a node that does not know the time (Rule 6.1).
    fn hold_time(&self, now: Now) -> UnixTime {
        self.endpoint.judging_time(now).unwrap_or_default()
    }

    fn report_refusals(&mut self, now: Now) {
        self.hold.report_at = now.mono.after(self.jittered(REPORT_INTERVAL));
        if self.hold.refusals.is_empty() || !self.hold.reporting.is_empty() {
            return;
        }
        let Some(server) = self.next_operator(&BTreeSet::new(), now) else { return };
        let refused = self.hold.refusals.report();
        self.hold.reporting.clone_from(&refused);
        let request = Request::Refusals { id: self.command_id(), refused };
        self.send_on(server, &request, Errand::Report, now);
    }

    fn flush_changes(&mut self) {
        while !self.hold.changes.is_empty() {
            let rest = self.hold.changes.split_off(self.hold.changes.len().min(MAX_CHANGES));
            let changes = std::mem::replace(&mut self.hold.changes, rest);
            self.write(changes);
        }
    }

    /// Returns what this node is as a super-node.
    fn super_state(&self) -> SuperState {
        let holds = self.hold.part.as_ref().map(|part| part.segment);
        self.hold.role.state(holds, self.me.roles.super_node)
    }

    pub(super) fn super_status(&self) -> SuperStatus {
        let part = self.hold.part.as_ref();
        SuperStatus {
            state: self.super_state(),
            unfit: self.hold.role.unfit().unwrap_or_default().to_owned(),
            from: part.map(|part| part.segment.from),
            to: part.map(|part| part.segment.to),
            records: part.map_or(0, |part| part.records.len()),
            bytes: part.map_or(0, |part| part.records.bytes_held()),
            lacking: part.map_or(0, |part| part.lacking.len()),
            attached: part.map_or(0, |part| part.contacts.len()),
            served: self.hold.served,
            relayed_bytes: self.hold.relayed_bytes,
            relayed_tunnels: part
                .map_or(0, |part| u32::try_from(part.desk.load().tunnels).unwrap_or(u32::MAX)),
            refusals: self.hold.refused,
        }
    }
}
