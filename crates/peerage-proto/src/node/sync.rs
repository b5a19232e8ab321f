//! Keeping up with the operator: the Head, the sets that it states, and how old all that is (Rules 6.8 and 6.9).

use std::time::Duration;

use bytes::Bytes;
use peerage_wire::id::Domain;
use peerage_wire::limits::MAX_HEAD_AGE;
use peerage_wire::record::{HeadBody, Record, RecordError, SetSummary, Table};
use peerage_wire::time::{Instant, Now};

use super::lookup::Verdict;
use super::queries::Query;
use super::{Change, Event, Node, Output};

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

/// How often a node that may serve, but has nothing to serve, asks whether that has changed. Others are silent.
const POLL_INTERVAL: Duration = Duration::from_secs(300);

/// The same while somebody elected here says that its Head is still the newest. More often has the computers of a large LAN ask
/// for nothing; more seldom lets whoever says so falsely keep a revocation or a device from them for longer, and beyond the hour for
/// which the key of the epoch before is good they would not hear their neighbours any more.
const VOUCHED_INTERVAL: Duration = Duration::from_secs(1_800);

/// How long a neighbour's word counts: several of its beacons may be lost.
const VOUCHED_FOR: Duration = Duration::from_secs(60);

/// Within how long those ask for the new Head who hear of it, in milliseconds: hundreds hear it at once.
const NEWS_WITHIN_MILLIS: u64 = 30_000;

/// How old the Head on disk may become while nothing in it changes. More often would wear out a flash card for nothing; more
/// seldom makes a node that is restarted while no operator answers say that its knowledge is older than it is.
const STORE_INTERVAL: Duration = Duration::from_secs(600);

/// What a Head that was offered is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeadNews {
    /// It is no older than the newest known, and a basis for decisions.
    Fresh,
    /// It is a basis for decisions, but a newer one is known.
    Behind,
    /// It is genuine, but too old.
    Old,
    /// It is none.
    Bad,
}

/// What is known of the Head.
#[derive(Clone, Debug)]
pub(super) struct Freshness {
    head: Option<(Record, HeadBody)>,
    /// When a fresh one arrived last; `None` if none has since the start.
    received_at: Option<Instant>,
    /// The Head on disk: what it states, and when it was written.
    stored: Option<(HeadBody, Instant)>,
    /// When nobody could give a fresh one last.
    silent_at: Option<Instant>,
    /// Since when that is so.
    silent_since: Option<Instant>,
    /// When a look-up of it ended last.
    tried_at: Option<Instant>,
    /// How long to wait after that.
    pause: Duration,
    poll_at: Instant,
    /// What the Head before stated, for neighbours that do not have the newest yet.
    digest_before: Option<[u8; 8]>,
    /// When a neighbour said last that it has the same Head.
    vouched_at: Option<Instant>,
    /// Whether one said since the last look-up that it has another.
    has_news: bool,
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
            received_at: None,
            stored: None,
            silent_at: None,
            silent_since: None,
            tried_at: None,
            pause: RETRY_AFTER,
            poll_at: now,
            digest_before: None,
            vouched_at: None,
            has_news: false,
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

    /// Returns the version of the newest Head, 0 if none is known.
    pub(super) fn version(&self) -> u64 {
        self.record().map_or(0, |record| record.header().version)
    }

    /// Somebody answers again, or other networks are used now: whoever had no fresh Head before may have one.
    pub(super) const fn forget_silence(&mut self) {
        self.silent_at = None;
    }

    /// Returns how long ago nobody could give a fresh Head, unless somebody has since.
    pub(super) fn silent_for(&self, now: Instant) -> Option<Duration> {
        self.silent_since.map(|at| now - at)
    }
}

impl Node {
    /// Returns how old the newest Head is.
    pub(super) fn head_age(&self, now: Now) -> Option<Duration> {
        let made = self.freshness.record()?.header().made_at();
        Some(self.endpoint.time(now).since(made))
    }

    /// Takes up the Head of the last run: should nobody give a newer one, the node goes on with it (Rule 6.9).
    pub(super) fn remember_head(&mut self, record: Record, now: Now) {
        let own = record.header().domain == self.me.id.domain;
        let Some(body) = HeadBody::read(&record).ok().filter(|_| own) else { return };
        if record.header().version > self.freshness.version() {
            self.freshness.stored = Some((body, now.mono));
            self.freshness.head = Some((record, body));
        }
    }

    /// Takes a Head, from whoever handed it on (Rule 6.8).
    pub(super) fn take_head(&mut self, bytes: &Bytes, now: Now) -> HeadNews {
        let Some((record, body)) = self.verify_head(bytes, now) else {
            self.endpoint.discard(super::Discard::BadRecord);
            return HeadNews::Bad;
        };
        let (known, version) = (self.freshness.version(), record.header().version);
        let age = self.endpoint.time(now).since(record.header().made_at());
        let is_old = self.endpoint.judging_time(now).is_some() && age > MAX_HEAD_AGE;
        if version > known {
            self.outputs.push_back(Output::HeadChanged(bytes.clone()));
            let before = self.freshness.body().map(HeadBody::digest);
            if before != Some(body.digest()) {
                self.freshness.digest_before = before;
                self.freshness.vouched_at = None;
            }
            self.freshness.head = Some((record, body));
            self.freshness.complete = false;
            self.compare_sets(now);
            self.review_watched(now);
        }
        if is_old {
            return HeadNews::Old;
        }
        if version < known {
            return HeadNews::Behind;
        }
        self.freshness.silent_since = None;
        // The same one again is no news: somebody may be keeping a newer one back.
        if version > known || self.freshness.received_at.is_none() {
            self.freshness.received_at = Some(now.mono);
            self.freshness.poll_at = now.mono.after(self.jittered(POLL_INTERVAL));
        }
        HeadNews::Fresh
    }

    /// Verifies a Head of the own domain. One that has expired is no basis for a decision, but where nobody has a fresh one the
    /// newest is better than none: it may state a revocation.
    fn verify_head(&self, bytes: &Bytes, now: Now) -> Option<(Record, HeadBody)> {
        let (time, crypto) = (self.endpoint.judging_time(now), self.endpoint.crypto());
        let verified = match self.trust.verify(bytes, time, crypto) {
            Err(RecordError::Expired) => self.trust.verify(bytes, None, crypto),
            verified => verified,
        };
        let record = verified.ok()?;
        let own = record.header().table == Table::Head && record.header().domain == self.me.id.domain;
        let body = HeadBody::read(&record).ok().filter(|_| own)?;
        Some((record, body))
    }

    /// Writes the Head to disk if it states something else than the one there, or that has become old; and only if all was
    /// there that it states, because otherwise it would be of no use after a restart.
    fn store_head(&mut self, now: Now) {
        let Some((record, body)) = self.freshness.head.clone().filter(|_| self.freshness.complete) else {
            return;
        };
        let same = |(stored, at): (HeadBody, Instant)| stored == body && now.mono - at < STORE_INTERVAL;
        if !self.freshness.stored.is_some_and(same) {
            self.freshness.stored = Some((body, now.mono));
            self.write(vec![Change::Put(record)]);
        }
    }

    /// Returns whether the set that a look-up fetches is not the one that the Head states, as held here.
    pub(super) fn differs(&self, query: &Query) -> bool {
        let Some((record, body)) = &self.freshness.head else { return false };
        let made = record.header().made_at();
        let held = |table, domain| self.records.summary(table, domain, made);
        let own = self.me.id.domain;
        match query {
            Query::Operators => held(Table::OperatorNode, Domain::OPERATORS) != body.operators,
            Query::Revocations => held(Table::Revocation, own) != body.revocations,
            Query::Devices => held(Table::EndDevice, own) != body.devices,
            // An operator that does not state them leaves it to what super-nodes say.
            Query::SuperNodes => body.super_nodes.is_some_and(|stated| stated != self.servers.summary(made)),
            Query::Head | Query::DomainKey | Query::Node(_) | Query::TunnelNodes(_) => false,
        }
    }

    /// Returns whether the Head neither came nor was asked for since then, so that what differs from it may be newer.
    pub(super) fn is_head_older(&self, than: Instant) -> bool {
        let last = self.freshness.received_at.max(self.freshness.tried_at);
        self.freshness.head.is_some() && last.is_none_or(|at| at < than)
    }

    /// Returns what the Head states about the super-nodes.
    pub(super) fn stated_super_nodes(&self) -> Option<SetSummary> {
        self.freshness.body()?.super_nodes
    }

    /// Returns whether a fresh Head confirms that the super-nodes known are all there are.
    pub(super) fn knows_super_nodes(&self, now: Now) -> bool {
        let fresh = self.head_age(now).is_some_and(|age| age <= MAX_HEAD_AGE);
        fresh && self.stated_super_nodes().is_some() && !self.freshness.differing.contains(&Query::SuperNodes)
    }

    /// Fetches the sets that differ from what the Head states, and the keys of a new epoch.
    fn compare_sets(&mut self, now: Now) {
        let epoch = self.freshness.body().map_or(0, |body| body.epoch);
        if epoch > self.keys.epoch {
            self.look_up(Query::DomainKey, None);
        }
        self.note_differences(now);
        for query in self.freshness.differing.clone() {
            self.look_up(query, None);
        }
    }

    /// Notes which sets are not what the Head states, and whether those that say who is to be believed are (Rule 6.8).
    pub(super) fn note_differences(&mut self, now: Now) {
        let differing = self.differing_sets();
        let lacking = differing.iter().any(|query| matches!(query, Query::Revocations | Query::Operators));
        self.freshness.complete |= self.freshness.head.is_some() && !lacking;
        self.freshness.disputed &= !differing.is_empty();
        self.freshness.differing = differing;
        self.store_head(now);
    }

    /// Returns the look-ups of those sets that are not what the Head states.
    fn differing_sets(&self) -> Vec<Query> {
        let sets = [Query::Operators, Query::Revocations, Query::Devices, Query::SuperNodes];
        sets.into_iter().filter(|query| self.differs(query)).collect()
    }

    /// A set was looked up. If it is still not what the Head states, one of the two is old: ask for a newer Head soon, and each
    /// time that does not help after a longer pause.
    pub(super) fn set_looked_up(&mut self, now: Now) {
        self.note_differences(now);
        let disputed = !self.freshness.differing.is_empty();
        if std::mem::replace(&mut self.freshness.disputed, disputed) && disputed {
            self.pause_longer();
        } else if self.freshness.silent_since.is_none() {
            // A set that nobody gave does not differ from the old Head either: that is no success.
            self.freshness.pause = RETRY_AFTER;
        }
    }

    fn pause_longer(&mut self) {
        let longer = (self.freshness.pause * 2).min(MAX_RETRY_AFTER);
        self.freshness.pause = self.jittered(longer);
    }

    /// Decides whether a tunnel may be opened that was asked for at `since` (Rule 6.9).
    pub(super) fn gate(&self, since: Instant, now: Now) -> Gate {
        let fetching = [Query::Revocations, Query::Operators, Query::Devices];
        if fetching.iter().any(|query| self.is_looking_up(query)) {
            return Gate::Wait;
        }
        if self.head_age(now).is_some_and(|age| age <= MAX_HEAD_AGE) {
            // Who the super-nodes are has no bearing on whom may open a tunnel.
            let differs = self.freshness.differing.iter().any(|query| fetching.contains(query));
            return if differs { Gate::Wait } else { Gate::Open };
        }
        // Somebody may let the Head through and hold back what it states, then cut the line.
        let goes_on = self.freshness.complete && !self.is_stale(now);
        let silent_at = self.freshness.silent_at;
        // That nobody had a fresh one counts for as long as a Head would: what was decided since is in force as soon.
        if goes_on && silent_at.is_some_and(|at| now.mono - at <= MAX_HEAD_AGE) {
            return Gate::Open;
        }
        if self.is_looking_up(&Query::Head) || silent_at.is_none_or(|at| at < since) {
            return Gate::Wait;
        }
        if goes_on { Gate::Open } else { Gate::Stale }
    }

    /// Returns whether the last word of an operator is older than the domain allows.
    pub(super) fn is_stale(&self, now: Now) -> bool {
        let limit = self.freshness.body().and_then(|body| body.offline_hours);
        let limit = limit.map(|hours| Duration::from_secs(u64::from(hours) * 3_600));
        limit.is_some_and(|limit| self.head_age(now).is_none_or(|age| age > limit))
    }

    /// Returns whether something depends on a fresh Head just now.
    pub(super) fn needs_head(&self) -> bool {
        !self.watched.is_empty() || !self.openings.is_empty() || self.routing.is_busy() || self.is_attached()
    }

    /// Returns whether somebody waits for a fresh Head.
    pub(super) fn is_head_awaited(&self) -> bool {
        !self.openings.is_empty() || self.routing.is_busy()
    }

    fn head_due_at(&self) -> Instant {
        let refresh = if self.is_attached() { ATTACHED_REFRESH_AFTER } else { REFRESH_AFTER };
        let aged = match self.freshness.received_at {
            Some(at) if !self.freshness.disputed => at.after(refresh),
            Some(_) | None => Instant::default(),
        };
        // Whoever waits for a decision should not wait for a pause that protects others.
        let pause = if self.is_head_awaited() { RETRY_AFTER } else { self.freshness.pause };
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
        self.may_serve() || self.freshness.received_at.is_none()
    }

    /// Fetches the Head when it is due.
    pub(super) fn keep_fresh(&mut self, now: Now) {
        let due = self.freshness_at().is_some_and(|at| at <= now.mono);
        if due && self.is_vouched_for(now) {
            self.freshness.poll_at = now.mono.after(self.jittered(POLL_INTERVAL));
        } else if due && self.look_up(Query::Head, None) {
            self.freshness.poll_at = now.mono.after(self.jittered(POLL_INTERVAL));
            self.freshness.has_news = false;
        }
        let stale = self.is_stale(now);
        if stale != self.freshness.stale {
            self.freshness.stale = stale;
            self.event(Event::Stale(stale));
        }
    }

    /// Returns the digest of the newest Head, if that is fresh enough to be passed on as news.
    pub(super) fn fresh_digest(&self, now: Now) -> Option<[u8; 8]> {
        let is_fresh = self.head_age(now).is_some_and(|age| age <= MAX_HEAD_AGE);
        self.freshness.body().filter(|_| is_fresh).map(HeadBody::digest)
    }

    /// Somebody elected here has a Head with this digest (Rule 6.25). Whoever says so is believed no further than to ask later, or
    /// sooner, but no more often than without it.
    pub(super) fn neighbour_has_head(&mut self, digest: [u8; 8], now: Now) {
        let own = self.freshness.body().map(HeadBody::digest);
        if own == Some(digest) {
            self.freshness.vouched_at = Some(now.mono);
        } else if self.freshness.digest_before != Some(digest)
            && !std::mem::replace(&mut self.freshness.has_news, true)
        {
            let wait = Duration::from_millis(self.endpoint.below(NEWS_WITHIN_MILLIS));
            let last = self.freshness.received_at.max(self.freshness.tried_at);
            let allowed = last.map_or(now.mono, |at| at.after(POLL_INTERVAL).max(now.mono));
            self.freshness.poll_at = self.freshness.poll_at.min(allowed.after(wait));
        }
    }

    /// Returns whether a neighbour's word takes the place of asking for the Head now.
    fn is_vouched_for(&self, now: Now) -> bool {
        let within = |at: Option<Instant>, time| at.is_some_and(|at| now.mono - at < time);
        let is_needed = self.needs_head() && self.head_due_at() <= now.mono;
        let last = self.freshness.received_at.max(self.freshness.tried_at);
        // That the neighbour is answered says nothing about this node, which was not when it asked.
        !is_needed
            && self.servers.online
            && !self.freshness.has_news
            && within(self.freshness.vouched_at, VOUCHED_FOR)
            && within(last, VOUCHED_INTERVAL)
    }

    /// A look-up of the Head has ended.
    pub(super) fn head_looked_up(&mut self, verdict: Verdict, now: Now) {
        self.freshness.tried_at = Some(now.mono);
        match verdict {
            Verdict::Found => {
                self.freshness.silent_at = None;
                if !self.freshness.disputed {
                    self.freshness.pause = RETRY_AFTER;
                }
                self.compare_sets(now);
            }
            Verdict::NotFound | Verdict::Silence => {
                self.freshness.silent_at = Some(now.mono);
                self.freshness.silent_since.get_or_insert(now.mono);
                self.pause_longer();
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
