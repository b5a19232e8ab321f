//! Keeping up with the operator: the Head, the sets that it states, and how old all that is (Rules 6.8 and 6.9).

use std::time::Duration;

use bytes::Bytes;
use peerage_wire::id::Domain;
use peerage_wire::limits::MAX_HEAD_AGE;
use peerage_wire::record::{HeadBody, Record, Table};
use peerage_wire::time::{Instant, Now};

use super::lookup::Verdict;
use super::queries::Query;
use super::{Event, Node};

/// How old the newest Head may become while tunnels depend on it.
const REFRESH_AFTER: Duration = Duration::from_secs(20);

/// The same for an attached node, to which every renewal of the attachment brings a Head: only if that fails is it asked for.
/// A Head may be 20 s old when it arrives, so that it is asked for before it is a minute old.
const ATTACHED_REFRESH_AFTER: Duration = Duration::from_secs(35);

/// How soon after a silence, or a set that does not match, the Head is asked for again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The longest pause between such attempts while nobody waits for one; each silence doubles it. Longer would keep what a network
/// missed during an outage from being in force within the minute after it; shorter costs operators that come back, and whoever
/// pays for the traffic of a node that nobody answers any more.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(40);

/// How often a node that may serve, but has no device at its locations, asks whether that has changed. Others are silent.
const POLL_INTERVAL: Duration = Duration::from_secs(300);

/// What is known of the Head.
#[derive(Clone, Debug)]
pub(super) struct Freshness {
    head: Option<(Record, HeadBody)>,
    received_at: Instant,
    /// When nobody answered last.
    silent_at: Option<Instant>,
    /// When a look-up of it ended last.
    tried_at: Option<Instant>,
    /// How long to wait after that.
    pause: Duration,
    poll_at: Instant,
    /// The look-ups of those sets that are not what the Head states. Comparing costs a hash of every record, so it is done
    /// when a set or the Head changes, and not for each tunnel.
    differing: Vec<Query>,
    /// Whether a set that was fetched is not what the Head states.
    disputed: bool,
    /// Whether the revocations and operators were all there that the Head states; they may expire later.
    complete: bool,
    stale: bool,
}

/// Whether a tunnel may be opened now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// The Head is fresh, or nobody could give a fresher one and the domain goes on without.
    Open,
    /// A Head or a set is being fetched.
    Wait,
    /// No.
    Stale,
}

impl Freshness {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            head: None,
            received_at: now,
            silent_at: None,
            tried_at: None,
            pause: RETRY_AFTER,
            poll_at: now,
            differing: Vec::new(),
            disputed: false,
            complete: false,
            stale: false,
        }
    }

    pub(super) fn body(&self) -> Option<&HeadBody> {
        self.head.as_ref().map(|(_, body)| body)
    }

    pub(super) fn record(&self) -> Option<&Record> {
        self.head.as_ref().map(|(record, _)| record)
    }
}

impl Node {
    /// Returns how old the newest Head is.
    pub(super) fn head_age(&self, now: Now) -> Option<Duration> {
        let made = self.freshness.record()?.header().made_at();
        Some(self.endpoint.time(now).since(made))
    }

    /// Takes a Head, from whoever handed it on. Returns whether it is valid and no older than the newest.
    pub(super) fn take_head(&mut self, bytes: &Bytes, now: Now) -> bool {
        let time = self.endpoint.judging_time(now);
        let verified = self.trust.verify(bytes, time, self.endpoint.crypto());
        let own = |record: &Record| {
            let header = record.header();
            header.table == Table::Head && header.domain == self.me.id.domain
        };
        let Some((record, body)) = verified
            .ok()
            .filter(own)
            .and_then(|record| HeadBody::read(&record).ok().map(|body| (record, body)))
        else {
            self.endpoint.discard(super::Discard::BadRecord);
            return false;
        };
        let known = self.freshness.record().map_or(0, |known| known.header().version);
        let version = record.header().version;
        if version > known {
            self.freshness.head = Some((record, body));
            self.freshness.received_at = now.mono;
            self.freshness.pause = RETRY_AFTER;
            self.freshness.disputed = false;
            self.freshness.complete = false;
            self.freshness.poll_at = now.mono.after(self.jittered(POLL_INTERVAL));
            self.compare_sets(now);
            self.review_watched(now);
        }
        version >= known
    }

    /// Returns whether a set held here is not the one that the Head states.
    fn differs(&self, table: Table, domain: Domain) -> bool {
        let Some((record, body)) = &self.freshness.head else { return false };
        let stated = match table {
            Table::OperatorNode => body.operators,
            Table::Revocation => body.revocations,
            Table::EndDevice => body.devices,
            Table::Node | Table::NodeInfo | Table::SuperNode | Table::DomainKey | Table::Head => {
                return false;
            }
        };
        self.records.summary(table, domain, record.header().made_at()) != stated
    }

    /// Fetches the sets that differ from what the Head states, and the keys of a new epoch.
    fn compare_sets(&mut self, _now: Now) {
        let epoch = self.freshness.body().map_or(0, |body| body.epoch);
        if epoch > self.keys.epoch {
            self.look_up(Query::DomainKey, None);
        }
        self.note_differences();
        for query in self.freshness.differing.clone() {
            self.look_up(query, None);
        }
    }

    /// Notes which sets are not what the Head states, and whether those that say who is to be believed are (Rule 6.8).
    pub(super) fn note_differences(&mut self) {
        let differing = self.differing_sets();
        let lacking = differing.iter().any(|query| matches!(query, Query::Revocations | Query::Operators));
        self.freshness.complete |= self.freshness.head.is_some() && !lacking;
        self.freshness.differing = differing;
    }

    /// Returns the look-ups of those sets that are not what the Head states.
    fn differing_sets(&self) -> Vec<Query> {
        let own = self.me.id.domain;
        let sets = [
            (Table::OperatorNode, Domain::OPERATORS, Query::Operators),
            (Table::Revocation, own, Query::Revocations),
            (Table::EndDevice, own, Query::Devices),
        ];
        let differing = sets.into_iter().filter(|(table, domain, _)| self.differs(*table, *domain));
        differing.map(|(_, _, query)| query).collect()
    }

    /// A set was looked up. If it is still not what the Head states, one of the two is old: ask for a newer Head soon.
    pub(super) fn set_looked_up(&mut self) {
        self.note_differences();
        self.freshness.disputed = !self.freshness.differing.is_empty();
    }

    /// Decides whether a tunnel may be opened that was asked for at `since` (Rule 6.9).
    pub(super) fn gate(&self, since: Instant, now: Now) -> Gate {
        let fetching = [Query::Revocations, Query::Operators, Query::Devices];
        if fetching.iter().any(|query| self.is_looking_up(query)) {
            return Gate::Wait;
        }
        if self.head_age(now).is_some_and(|age| age <= MAX_HEAD_AGE) {
            return if self.freshness.differing.is_empty() { Gate::Open } else { Gate::Wait };
        }
        if self.is_looking_up(&Query::Head) {
            return Gate::Wait;
        }
        if self.freshness.silent_at.is_none_or(|at| at < since) {
            return Gate::Wait;
        }
        // Somebody may let the Head through and hold back what it states, then cut the line.
        if self.freshness.complete && !self.is_stale(now) { Gate::Open } else { Gate::Stale }
    }

    /// Returns whether the last word of an operator is older than the domain allows.
    pub(super) fn is_stale(&self, now: Now) -> bool {
        let limit = self.freshness.body().and_then(|body| body.offline_hours);
        let limit = limit.map(|hours| Duration::from_secs(u64::from(hours) * 3_600));
        limit.is_some_and(|limit| self.head_age(now).is_none_or(|age| age > limit))
    }

    /// Returns whether something depends on a fresh Head just now.
    fn needs_head(&self) -> bool {
        !self.watched.is_empty() || !self.openings.is_empty() || self.routing.is_busy() || self.is_attached()
    }

    fn head_due_at(&self) -> Instant {
        let aged = match self.freshness.head {
            Some(_) if self.freshness.disputed => Instant::default(),
            Some(_) if self.is_attached() => self.freshness.received_at.after(ATTACHED_REFRESH_AFTER),
            Some(_) => self.freshness.received_at.after(REFRESH_AFTER),
            None => Instant::default(),
        };
        // Whoever waits for a decision should not wait for a pause that protects others.
        let is_awaited = !self.openings.is_empty() || self.routing.is_busy();
        let pause = if is_awaited { RETRY_AFTER } else { self.freshness.pause };
        self.freshness.tried_at.map_or(aged, |at| aged.max(at.after(pause)))
    }

    pub(super) fn freshness_at(&self) -> Option<Instant> {
        if self.is_looking_up(&Query::Head) {
            return None;
        }
        let due = self.needs_head().then(|| self.head_due_at());
        let poll = self.polls().then_some(self.freshness.poll_at);
        [due, poll].into_iter().flatten().min()
    }

    /// Returns whether this node asks for the Head now and then although nothing depends on it: once after its
    /// start, then only if it may serve.
    fn polls(&self) -> bool {
        self.may_serve() || self.freshness.head.is_none()
    }

    /// Fetches the Head when it is due.
    pub(super) fn keep_fresh(&mut self, now: Now) {
        let due = self.freshness_at().is_some_and(|at| at <= now.mono);
        if due && self.look_up(Query::Head, None) {
            self.freshness.poll_at = now.mono.after(self.jittered(POLL_INTERVAL));
        }
        let stale = self.is_stale(now);
        if stale != self.freshness.stale {
            self.freshness.stale = stale;
            self.event(Event::Stale(stale));
        }
    }

    /// A look-up of the Head has ended.
    pub(super) fn head_looked_up(&mut self, verdict: Verdict, now: Now) {
        self.freshness.tried_at = Some(now.mono);
        match verdict {
            Verdict::Found => {
                self.freshness.silent_at = None;
                self.freshness.pause = RETRY_AFTER;
                self.compare_sets(now);
            }
            Verdict::NotFound | Verdict::Silence => {
                self.freshness.silent_at = Some(now.mono);
                let longer = self.freshness.pause.saturating_mul(2).min(MAX_RETRY_AFTER);
                self.freshness.pause = self.jittered(longer);
                // At the start it is asked for again soon; later the jittered interval is what protects the operator.
                if self.freshness.head.is_none() {
                    self.freshness.poll_at = now.mono.after(self.jittered(RETRY_AFTER * 2));
                }
            }
        }
    }

    /// Reads the own records anew, and the devices if there is a key of another epoch: until then some could not be read.
    pub(super) fn own_records_changed(&mut self, now: Now) {
        let before = self.keys.epoch;
        self.read_own_records(now);
        if self.keys.epoch != before {
            self.devices_changed(now);
            self.announce_soon(now);
        }
    }
}
