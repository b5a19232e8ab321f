//! The part of the table that this node holds: how it begins, moves, shrinks and ends (Rules 6.52 and 6.53).
//!
//! The SuperNode record about the node itself decides. It comes from an operator by Store, or from another holder with all others;
//! it is on disk like them, so that a holder that is started again goes on where it was.

use std::net::SocketAddr;
use std::time::Duration;

use peerage_wire::id::{Domain, PlacementKey, Segment};
use peerage_wire::record::{Record, SuperNodeBody, Table, subject};
use peerage_wire::time::{Instant, Now, UnixTime};

use super::catch_up::CatchUp;
use super::contacts::Contacts;
use super::heads::Heads;
use super::lacking::Lacking;
use super::sync::Sync;
use crate::limiter::{NodeLimiter, Rate};
use crate::node::{Node, Output};
use crate::relay::Desk;
use crate::table::{Limits, Records};

/// How long a holder whose range has changed goes on answering for what it has lost. Members learn of the change with their
/// next Head, at most a minute later.
const RETIRING_TIME: Duration = Duration::from_secs(90);

/// How often what has expired is swept out.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Requests of one member. A node that starts asks some tens; a domain's largest set of devices takes a thousand pages.
const MEMBER_RATE: Rate = Rate { per_second: 50, burst: 400 };

/// Requests of another holder, which fetches sixteen pages at a time.
const HOLDER_RATE: Rate = Rate { per_second: 1_000, burst: 4_000 };

/// What a super-node holds.
#[derive(Debug)]
pub(super) struct Part {
    /// The places of which it is a holder.
    pub(super) segment: Segment,
    /// The places that it held before, and until when it answers for them.
    retiring: Option<(Segment, Instant)>,
    /// Where it has everything that operators signed.
    pub(super) signed: Option<Segment>,
    /// Where it has what nodes announce.
    pub(super) announced: Option<Segment>,
    pub(super) records: Records,
    pub(super) lacking: Lacking,
    pub(super) heads: Heads,
    pub(super) contacts: Contacts,
    pub(super) sync: Sync,
    pub(super) catch_up: Option<CatchUp>,
    pub(super) desk: Desk,
    pub(super) members: NodeLimiter,
    pub(super) holders: NodeLimiter,
    sweep_at: Instant,
}

impl Part {
    fn new(segment: Segment, limits: Limits, desk: Desk, now: Instant) -> Self {
        Self {
            segment,
            retiring: None,
            signed: None,
            announced: None,
            records: Records::new(limits),
            lacking: Lacking::default(),
            heads: Heads::default(),
            contacts: Contacts::default(),
            sync: Sync::new(now),
            catch_up: Some(CatchUp::default()),
            desk,
            members: NodeLimiter::new(MEMBER_RATE),
            holders: NodeLimiter::new(HOLDER_RATE),
            sweep_at: now.after(SWEEP_INTERVAL),
        }
    }

    /// Returns the places for which records are taken.
    pub(super) fn places(&self) -> impl Iterator<Item = Segment> + '_ {
        std::iter::once(self.segment).chain(self.retiring.map(|(segment, _)| segment))
    }

    /// Returns the places of which everything is held that operators signed, and those of which NodeInfo is held.
    pub(super) fn answers_for(&self) -> (Vec<Segment>, Vec<Segment>) {
        let retiring = self.retiring.map(|(segment, _)| segment);
        let with = |complete: Option<Segment>| complete.into_iter().chain(retiring).collect();
        (with(self.signed), with(self.announced))
    }

    pub(super) fn holds(&self, place: PlacementKey) -> bool {
        self.places().any(|segment| segment.contains(place))
    }

    pub(super) fn touches(&self, domain: Domain) -> bool {
        self.places().any(|segment| segment.touches(domain))
    }

    pub(super) fn next_at(&self) -> Option<Instant> {
        let retiring = self.retiring.map(|(_, until)| until);
        let parts = [self.heads.next_at(), self.sync.next_at(), self.desk.poll_timeout()];
        [Some(self.sweep_at), retiring].into_iter().chain(parts).flatten().min()
    }

    /// Takes another range. What was complete stays so where the two overlap.
    fn move_to(&mut self, segment: Segment, now: Instant) {
        let kept = |complete: Option<Segment>| complete.and_then(|complete| overlap(&complete, &segment));
        self.retiring = self.signed.map(|complete| (complete, now.after(RETIRING_TIME)));
        (self.signed, self.announced) = (kept(self.signed), kept(self.announced));
        self.segment = segment;
        if self.signed != Some(segment) {
            self.catch_up = Some(CatchUp::default());
            self.sync.begin_again(now);
        }
    }
}

/// Returns the places that lie in both ranges.
pub(super) fn overlap(one: &Segment, other: &Segment) -> Option<Segment> {
    let both = Segment { from: one.from.max(other.from), to: one.to.min(other.to) };
    (both.from <= both.to).then_some(both)
}

impl Node {
    /// Returns the version of the SuperNode record about this node, 0 if there is none.
    pub(super) fn assignment_version(&self) -> u64 {
        let part = self.hold.part.as_ref();
        let id = self.me.id;
        let own = part.and_then(|part| part.records.get(Table::SuperNode, id.domain, id.record_key()));
        own.map_or(0, |record| record.header().version)
    }

    pub(in crate::node) const fn is_holder(&self) -> bool {
        self.hold.part.is_some()
    }

    /// Returns whether a place is in the range that this node holds now, not only until others know better.
    pub(in crate::node) fn holds_place(&self, place: PlacementKey) -> bool {
        self.hold.part.as_ref().is_some_and(|part| part.segment.contains(place))
    }

    /// Returns where the operator has found that a super-node is reached; none if this is none.
    pub(in crate::node) fn held_addresses(&self) -> Vec<SocketAddr> {
        let (id, part) = (self.me.id, self.hold.part.as_ref());
        let own = part.and_then(|part| part.records.get(Table::SuperNode, id.domain, id.record_key()));
        own.and_then(|record| SuperNodeBody::read(record).ok()).map(|body| body.addresses).unwrap_or_default()
    }

    pub(super) fn is_assignment(&self, record: &Record) -> bool {
        record.header().table == Table::SuperNode && subject(record.header()) == self.me.id
    }

    /// Goes on where the node was when it stopped: with what is on disk, if the owner still lends it; otherwise the disk is
    /// cleared of what only a super-node needs.
    pub(in crate::node) fn restore(&mut self, records: &[Record], now: Now) {
        let assignment = records
            .iter()
            .filter(|record| self.is_assignment(record))
            .reduce(|newest, record| if record.supersedes(newest) { record } else { newest });
        let body = assignment.filter(|record| !record.header().removed);
        let body = body.and_then(|record| SuperNodeBody::read(record).ok());
        let is_lent = self.hold.role.is_lent() && self.me.roles.super_node;
        let mut part = body.filter(|_| is_lent).map(|body| {
            let desk = self.new_desk();
            let mut part = Part::new(body.segment, self.hold.role.limits(), desk, now.mono);
            part.signed = Some(body.segment);
            part.sync.begin_again(now.mono);
            part
        });
        let mut gone = Vec::new();
        for record in records {
            match part.as_mut().filter(|part| part.belongs(record)) {
                Some(part) => gone.extend(part.records.offer(record.clone(), UnixTime::default()).evicted),
                None if !self.is_own(record) => gone.push(record.clone()),
                None => {}
            }
        }
        if part.is_some() {
            self.endpoint.ask_introductions(true);
        }
        self.hold.part = part.map(Box::new);
        self.forget_on_disk(&gone);
    }

    /// Draws the consequences of a newer SuperNode record about this node.
    pub(super) fn assigned(&mut self, record: &Record, now: Now) {
        let body = SuperNodeBody::read(record).ok().filter(|_| !record.header().removed);
        let Some(body) = body else {
            // An operator takes a part away from whoever leaves once others have it.
            return if self.is_handing_over() {
                self.end_handover(true, now)
            } else {
                self.give_up_part(now)
            };
        };
        if let Some(part) = &mut self.hold.part {
            if part.segment != body.segment {
                part.move_to(body.segment, now.mono);
            }
            return;
        }
        let desk = self.new_desk();
        let part = Part::new(body.segment, self.hold.role.limits(), desk, now.mono);
        self.hold.part = Some(Box::new(part));
        self.endpoint.ask_introductions(true);
        self.keep_held(record.clone(), now);
        // Whom to ask first: what a member of its own domain knows already.
        let known: Vec<_> = self.own_knowledge().cloned().collect();
        for record in known {
            self.keep_held(record, now);
        }
        self.announce_soon(now);
    }

    /// Drops everything that is held, in memory and on disk.
    pub(super) fn give_up_part(&mut self, now: Now) {
        let Some(mut part) = self.hold.part.take() else { return };
        // Nothing lives longer than the end of time.
        let gone = part.records.expire(UnixTime::from_millis(u64::MAX));
        self.forget_on_disk(&gone);
        // Whoever is relayed here finds another way.
        part.desk.review(|_| false);
        while let Some(output) = part.desk.poll_output(&mut self.endpoint) {
            self.outputs.push_back(Output::Leg(output));
        }
        self.endpoint.ask_introductions(false);
        self.announce_soon(now);
    }

    pub(super) fn part_timeout(&mut self, now: Now) {
        let Some(part) = &mut self.hold.part else { return };
        part.desk.handle_timeout(now);
        if part.retiring.is_some_and(|(_, until)| until <= now.mono) {
            part.retiring = None;
            let segment = part.segment;
            let gone = part.records.leave_outside(&segment);
            part.contacts.retain_domains(|domain| segment.touches(domain));
            part.heads.retain_domains(|domain| segment.touches(domain));
            self.forget_on_disk(&gone);
        }
        self.heads_timeout(now);
        self.sync_timeout(now);
        self.sweep_part(now);
    }

    fn sweep_part(&mut self, now: Now) {
        let time = self.endpoint.judging_time(now);
        let Some(part) = self.hold.part.as_mut().filter(|part| part.sweep_at <= now.mono) else { return };
        part.sweep_at = now.mono.after(SWEEP_INTERVAL);
        part.contacts.expire(now.mono);
        part.heads.forget_idle(now.mono);
        self.review_legs(now);
        let Some(part) = &mut self.hold.part else { return };
        let Some(time) = time else { return };
        let gone = part.records.expire(time);
        let is_over = gone.iter().any(|record| self.is_assignment(record));
        self.forget_on_disk(&gone);
        if is_over {
            self.give_up_part(now);
        }
    }

    /// Takes the owner's new limits.
    pub(super) fn limit_part(&mut self, now: Now) {
        let limits = self.hold.role.limits();
        let Some(part) = &mut self.hold.part else { return };
        let gone = part.records.set_limits(limits);
        self.note_lacking(&gone, now);
        self.forget_on_disk(&gone);
    }
}
