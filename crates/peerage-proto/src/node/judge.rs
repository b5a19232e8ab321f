//! Whether what a look-up has found holds, and who told otherwise (Rules 6.4 and 6.5).
//!
//! Of ten holders nine may be silent, out of date, forgers, or keep something back. What the Head states is compared with it;
//! what a node signed itself is verified with that node's own record. Until it holds, others are asked.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use peerage_wire::id::{LookupTag, NodeId, RecordKey};
use peerage_wire::record::{NodeInfoPublic, RecordError, SetSummary, Table, UnverifiedRecord, subject};
use peerage_wire::time::{Instant, Now};

use super::Node;
use super::lookup::{Step, Verdict};
use super::queries::{Judgement, Query, Running};
use crate::trust::{Member, Trust};

/// How long the records of tunnel-nodes are waited for before others are asked as well. Shorter asks more than needed where a
/// round trip is long; longer lets whoever invents nodes delay everybody by as much.
const NODES_TIMEOUT: Duration = Duration::from_millis(300);

/// How long a newer Head is waited for before others are asked for a set that is not what the last one states: two steps of an
/// eager look-up. Shorter asks all holders while one of those with the Head is dead; longer lets whoever delays it delay the set.
const HEAD_TIMEOUT: Duration = Duration::from_millis(600);

/// Most nodes whose records are looked up to verify what one look-up has found.
const MAX_SOUGHT: usize = 8;

/// How long the look-up at other places goes on after one of them was through: a site has several locations, and a node is
/// found at each at which it stands.
const OTHER_PLACES_TIMEOUT: Duration = Duration::from_millis(500);

impl Running {
    /// Returns when parts that are not through are waited for no longer.
    pub(super) fn late_at(&self) -> Option<Instant> {
        self.part_done_at.map(|at| at.after(OTHER_PLACES_TIMEOUT))
    }

    /// Returns whether there is something to judge: every part is through, or enough of them are.
    pub(super) fn is_ready(&mut self, now: Instant) -> bool {
        let mut open = 0;
        for part in &mut self.parts {
            match part.lookup.poll(now) {
                Step::Done if part.lookup.verdict() == Verdict::Found => {
                    let several = matches!(self.query, Query::TunnelNodes(_));
                    self.part_done_at = self.part_done_at.or_else(|| several.then_some(now));
                }
                Step::Done => {}
                Step::Ask(_) | Step::Wait(_) | Step::Exhausted => open += 1,
            }
        }
        open == 0 || self.late_at().is_some_and(|at| at <= now)
    }

    /// Returns what the look-up came to: a list is as complete as its worst part, and a node may be found at any.
    pub(super) fn verdict(&self) -> Verdict {
        let verdicts = self.parts.iter().map(|part| part.lookup.verdict());
        let verdict =
            if matches!(self.query, Query::TunnelNodes(_)) { verdicts.max() } else { verdicts.min() };
        verdict.unwrap_or(Verdict::Silence)
    }

    /// Asks others wherever something was found that does not hold. Returns whether there was any such place.
    fn reject(&mut self, fails: impl Fn(&[LookupTag]) -> bool) -> bool {
        let found = self.parts.iter_mut().filter(|part| part.lookup.verdict() == Verdict::Found);
        let failing = found.filter(|part| fails(&part.tags)).map(|part| part.lookup.reject());
        failing.count() > 0
    }
}

/// A NodeInfo that was found.
struct Info {
    node: NodeId,
    tags: Vec<LookupTag>,
    bytes: Bytes,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Genuine,
    /// Its node's own record is not known.
    Unknown,
}

impl Node {
    /// Judges what a look-up has found, and lets it go on if that does not hold.
    pub(super) fn judge(&mut self, running: &mut Running, now: Now) -> Judgement {
        let holds = match &running.query {
            Query::Head | Query::DomainKey | Query::Node(_) => true,
            Query::Operators | Query::SuperNodes | Query::Revocations | Query::Devices => {
                return self.judge_set(running, now);
            }
            Query::TunnelNodes(_) => return self.judge_infos(running, now),
        };
        if !holds && running.reject(|_| true) { Judgement::Fails } else { Judgement::Holds }
    }

    /// Judges a set by what the Head states. If they differ, one of the two is old; that it is the Head costs two requests to
    /// find out, and that it is the set as many as there are holders.
    fn judge_set(&mut self, running: &mut Running, now: Now) -> Judgement {
        if !self.differs(&running.query) {
            return Judgement::Holds;
        }
        if !std::mem::replace(&mut running.sought_head, true) {
            if self.is_head_older(running.began_at) {
                self.look_up(Query::Head, None);
            }
            running.judged_by = Some(now.mono.after(HEAD_TIMEOUT));
        }
        if self.is_looking_up(&Query::Head) && running.judged_by.is_some_and(|at| now.mono < at) {
            return Judgement::Waits;
        }
        running.judged_by = None;
        if running.reject(|_| true) { Judgement::Fails } else { Judgement::Holds }
    }

    /// Judges NodeInfo records: at each place one has to be genuine.
    fn judge_infos(&mut self, running: &mut Running, now: Now) -> Judgement {
        let infos = self.infos(running, now);
        let genuine = infos.iter().filter(|info| info.state == State::Genuine);
        let confirmed: BTreeSet<LookupTag> = genuine.flat_map(|info| info.tags.iter().copied()).collect();
        let fails = |tags: &[LookupTag]| !tags.iter().any(|tag| confirmed.contains(tag));
        let is_missing =
            running.parts.iter().any(|part| part.lookup.verdict() == Verdict::Found && fails(&part.tags));
        let is_late = running.late_at().is_some_and(|at| at <= now.mono) && !confirmed.is_empty();
        if !is_missing || is_late {
            return Judgement::Holds;
        }
        for info in infos.iter().filter(|info| info.state == State::Unknown) {
            if running.sought.len() < MAX_SOUGHT && running.sought.insert(info.node) {
                self.look_up(Query::Node(info.node), None);
            }
        }
        let is_seeking = running.sought.iter().any(|node| self.is_looking_up(&Query::Node(*node)));
        let judged_by = *running.judged_by.get_or_insert(now.mono.after(NODES_TIMEOUT));
        if is_seeking && now.mono < judged_by {
            return Judgement::Waits;
        }
        running.judged_by = None;
        running.part_done_at = None;
        if running.reject(fails) { Judgement::Fails } else { Judgement::Holds }
    }

    /// Returns what a look-up has found and can be believed, or at least not be disproved: the newest of each node.
    pub(super) fn believable(&mut self, running: &Running, now: Now) -> Vec<Bytes> {
        self.infos(running, now).into_iter().map(|info| info.bytes).collect()
    }

    /// Verifies the NodeInfo records found, as far as their nodes are known, and marks who told forged ones.
    fn infos(&mut self, running: &Running, now: Now) -> Vec<Info> {
        let mut newest = BTreeMap::<RecordKey, (u64, Info)>::new();
        for ((key, by), bytes) in &running.found {
            let Ok(record) = UnverifiedRecord::parse(bytes) else { continue };
            let (node, version) = (subject(record.header()), record.header().version);
            if node.domain != self.me.id.domain || self.trust.is_revoked(&node) {
                continue;
            }
            let held = self.records.get(Table::Node, node.domain, *key).and_then(Trust::member);
            let (state, tags) = match held.map(|member| self.tags_if_genuine(bytes, &member, now)) {
                Some(Ok(tags)) => (State::Genuine, tags),
                Some(Err(RecordError::Signature | RecordError::Malformed(_))) => {
                    self.servers.mark(*by, now.mono);
                    continue;
                }
                Some(Err(_)) => continue,
                None => (State::Unknown, Vec::new()),
            };
            let is_newer = newest.get(key).is_none_or(|(held, _)| *held < version);
            if is_newer {
                newest.insert(*key, (version, Info { node, tags, bytes: bytes.clone(), state }));
            }
        }
        newest.into_values().map(|(_, info)| info).collect()
    }

    fn tags_if_genuine(
        &self,
        bytes: &Bytes,
        member: &Member,
        now: Now,
    ) -> Result<Vec<LookupTag>, RecordError> {
        let time = self.endpoint.judging_time(now);
        let info = self.trust.verify_node_info(bytes, member, time, self.endpoint.crypto())?;
        NodeInfoPublic::read(&info).map(|body| body.tags).map_err(RecordError::Malformed)
    }

    /// Sends those to the end of the list who told something else than what turned out to hold.
    pub(super) fn judge_tellers(&mut self, running: &Running, verdict: Verdict, now: Now) {
        if verdict != Verdict::Found {
            return;
        }
        // What was told under another Head is not measured by this one.
        let is_same = running.head == self.freshness.version();
        for told in &running.told {
            let expected = self.expected(&running.query, told.range).filter(|_| is_same);
            if told.is_bad || expected.is_some_and(|expected| expected != told.summary) {
                self.servers.mark(told.by, now.mono);
            }
        }
    }

    /// Returns what a holder of these places should have told, if the Head states that.
    fn expected(&self, query: &Query, range: peerage_wire::id::Segment) -> Option<SetSummary> {
        let (head, body) = (self.freshness.record()?, self.freshness.body()?);
        let made = head.header().made_at();
        match query {
            Query::Operators => Some(body.operators),
            Query::Revocations => Some(body.revocations),
            Query::SuperNodes => body.super_nodes,
            Query::Devices => {
                let all = self.records.list(Table::EndDevice, self.me.id.domain, None);
                let here = all.filter(|record| range.contains(record.header().placement()));
                Some(SetSummary::of(here.filter(|record| record.is_valid_at(made))))
            }
            Query::Head | Query::DomainKey | Query::Node(_) | Query::TunnelNodes(_) => None,
        }
    }
}
