//! Look-ups under way: the questions, whom they go to, and what is done with the answers.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use peerage_wire::id::{LookupTag, NodeId, PlacementKey, RecordKey, Segment};
use peerage_wire::message::{Page, Reply, Request};
use peerage_wire::record::{DomainKeyBody, Header, Record, SetSummary, Table, UnverifiedRecord, subject};
use peerage_wire::time::{Instant, Now};

use super::lookup::{Lookup, Step, Verdict};
use super::sync::HeadNews;
use super::{Discard, Node, Purpose, RequestId, TaskId};
use crate::table::Inserted;
use crate::trust::Trust;

/// Most look-ups at once; more wait until they are asked for again.
pub(super) const MAX_QUERIES: usize = 256;

/// Most pages that are fetched from one server for one list: 65,536 records at 16 a page.
const MAX_PAGES: u32 = 4_096;

/// Most NodeInfo records that one look-up remembers until they are verified.
const MAX_FOUND: usize = 1_024;

/// Names a look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct QueryId(u64);

/// What is looked up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Query {
    Head,
    Operators,
    SuperNodes,
    Revocations,
    Devices,
    DomainKey,
    Node(NodeId),
    TunnelNodes(Vec<LookupTag>),
}

impl Query {
    /// Returns whether an answer without records is a proper answer: an empty set is one, an absent record is not.
    const fn may_be_empty(&self) -> bool {
        matches!(self, Self::Operators | Self::SuperNodes | Self::Revocations | Self::Devices)
    }

    /// Returns whether operators can give it although they do not stand in: they signed it.
    const fn is_operator_signed(&self) -> bool {
        !matches!(self, Self::TunnelNodes(_))
    }
}

/// A look-up under way.
#[derive(Clone, Debug)]
pub(super) struct Running {
    pub(super) query: Query,
    /// One plan for each stretch of places that other servers hold.
    pub(super) parts: Vec<Part>,
    /// When its plans were made.
    pub(super) began_at: Instant,
    /// The version of the Head at the beginning.
    pub(super) head: u64,
    /// Who has told all it has.
    pub(super) told: Vec<Told>,
    /// NodeInfo records that carry a tag, the newest of each node from each teller; not verified.
    pub(super) found: BTreeMap<(RecordKey, NodeId), Bytes>,
    /// Nodes whose own records were looked up, so that what was found can be verified.
    pub(super) sought: BTreeSet<NodeId>,
    /// Until when those records are waited for, or a newer Head.
    pub(super) judged_by: Option<Instant>,
    /// Whether a newer Head was looked up, to measure a set by.
    pub(super) sought_head: bool,
    /// When the first of several parts was through.
    pub(super) part_done_at: Option<Instant>,
    answers: BTreeMap<RequestId, Answering>,
    /// Commands that wait for its end.
    waiting: Vec<TaskId>,
}

/// The part of a look-up that concerns one stretch of places.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) range: Segment,
    /// What is asked for there, if tags are.
    pub(super) tags: Vec<LookupTag>,
    pub(super) lookup: Lookup,
    phase: Phase,
}

/// How far down its lists a part has come (Rule 6.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Those that were known at its beginning.
    Known,
    /// The set of super-nodes is being fetched.
    AwaitsList,
    /// Those that were in it besides.
    NewList,
    /// The operators, or nobody any more.
    LastResort,
}

/// An answer that comes in pages.
#[derive(Clone, Debug, Default)]
struct Answering {
    pages: u32,
    /// Whether any record of it was what is looked for.
    usable: bool,
    last: Option<RecordKey>,
    /// What it sums up to at the time of the Head.
    summary: SetSummary,
    /// The super-nodes in it.
    nodes: BTreeSet<NodeId>,
    /// Whether something in it could not be believed, or was out of date.
    is_bad: bool,
}

/// What one server has told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    pub(super) by: NodeId,
    pub(super) range: Segment,
    pub(super) summary: SetSummary,
    pub(super) is_bad: bool,
}

impl Running {
    fn next_at(&self) -> Option<Instant> {
        if self.judged_by.is_some() {
            return self.judged_by;
        }
        let parts = self.parts.iter().filter(|part| part.phase != Phase::AwaitsList);
        parts.filter_map(|part| part.lookup.deadline()).chain(self.late_at()).min()
    }
}

impl Node {
    /// Starts a look-up, or joins the one that is under way. Returns false if there are too many.
    pub(super) fn look_up(&mut self, query: Query, task: Option<TaskId>) -> bool {
        if let Some(running) = self.queries.values_mut().find(|running| running.query == query) {
            running.waiting.extend(task);
            return true;
        }
        if self.queries.len() >= MAX_QUERIES {
            return false;
        }
        let id = QueryId(self.new_task().0);
        let running = Running {
            query,
            began_at: Instant::default(),
            head: self.freshness.version(),
            // Its plans are made when it is driven, which is before this input has been dealt with.
            parts: Vec::new(),
            told: Vec::new(),
            found: BTreeMap::new(),
            sought: BTreeSet::new(),
            judged_by: None,
            sought_head: false,
            part_done_at: None,
            answers: BTreeMap::new(),
            waiting: task.into_iter().collect(),
        };
        self.queries.insert(id, running);
        true
    }

    pub(super) fn is_looking_up(&self, query: &Query) -> bool {
        self.queries.values().any(|running| running.query == *query)
    }

    pub(super) fn next_query_at(&self) -> Option<Instant> {
        self.queries.values().filter_map(Running::next_at).min()
    }

    /// Returns the stretches of places that a query concerns, with the tags that belong to each.
    fn stretches(&mut self, query: &Query) -> Vec<(Segment, Vec<LookupTag>)> {
        let domain = self.me.id.domain;
        let own_key = self.me.id.record_key();
        let mut place = |key: &[u8]| self.segment_of(PlacementKey::new(domain, key));
        match query {
            Query::Head | Query::Operators | Query::SuperNodes | Query::Revocations => {
                vec![(Segment::of_domain(domain), Vec::new())]
            }
            Query::Devices => self.own_segments().into_iter().map(|range| (range, Vec::new())).collect(),
            Query::DomainKey => vec![(place(&own_key.0), Vec::new())],
            Query::Node(node) => vec![(place(&node.record_key().0), Vec::new())],
            Query::TunnelNodes(tags) => {
                let mut stretches = BTreeMap::<Segment, Vec<LookupTag>>::new();
                for tag in tags {
                    stretches.entry(place(&tag.0)).or_default().push(*tag);
                }
                stretches.into_iter().collect()
            }
        }
    }

    fn plan(&mut self, query: &Query, now: Now) -> Vec<Part> {
        let stretches = self.stretches(query);
        let plan = |(range, tags)| {
            let holders = self.holders(&range, now);
            let patience = self.eager.then(|| self.servers.patience(&holders));
            Part { range, tags, lookup: Lookup::new(holders, patience), phase: Phase::Known }
        };
        stretches.into_iter().map(plan).collect()
    }

    /// Asks whoever is to be asked next, and ends what is done. Returns whether there was anything to do.
    pub(super) fn drive_queries(&mut self, now: Now) -> bool {
        let mut moved = false;
        for id in self.queries.keys().copied().collect::<Vec<_>>() {
            let Some(mut running) = self.queries.remove(&id) else { continue };
            if running.parts.is_empty() {
                running.began_at = now.mono;
                running.parts = self.plan(&running.query, now);
            }
            let is_done = loop {
                for part in 0..running.parts.len() {
                    moved |= self.drive_part(id, &mut running, part, now);
                }
                if !running.is_ready(now.mono) {
                    break false;
                }
                let others = self.queries.len();
                match self.judge(&mut running, now) {
                    Judgement::Holds => break true,
                    Judgement::Fails => moved = true,
                    Judgement::Waits => {
                        // What it waits for may just have begun.
                        moved |= self.queries.len() > others;
                        break false;
                    }
                }
            };
            if is_done {
                moved = true;
                self.query_done(running, now);
            } else {
                self.queries.insert(id, running);
            }
        }
        moved
    }

    /// Asks for one part as long as its plan says so. Returns whether anybody was asked.
    fn drive_part(&mut self, id: QueryId, running: &mut Running, part: usize, now: Now) -> bool {
        let mut moved = false;
        loop {
            let Some(plan) = running.parts.get_mut(part) else { return moved };
            match plan.lookup.poll(now.mono) {
                Step::Ask(server) => {
                    self.servers.suspect(plan.lookup.late(now.mono));
                    let request = self.question(&running.query, plan, None);
                    let asked = self.ask(server, &request, Purpose::Query(id), now);
                    plan.lookup.asked(asked, now.mono);
                    running.answers.insert(asked, Answering::default());
                    moved = true;
                }
                Step::Exhausted if !self.find_others(&running.query, plan, now) => return moved,
                Step::Exhausted => moved = true,
                Step::Wait(_) | Step::Done => return moved,
            }
        }
    }

    fn question(&self, query: &Query, part: &Part, after: Option<RecordKey>) -> Request {
        match query {
            Query::Head => Request::GetHead { domain: None },
            Query::Operators => Request::GetOperatorNodes { after },
            Query::SuperNodes => Request::GetSuperNodes { key: None, after },
            Query::Revocations => Request::GetRevocations { after },
            Query::Devices => {
                let is_whole = part.range == Segment::of_domain(self.me.id.domain);
                Request::GetDevices { after, range: if is_whole { Segment::ALL } else { part.range } }
            }
            Query::DomainKey => Request::GetDomainKey,
            Query::Node(node) => Request::GetNode(*node),
            Query::TunnelNodes(_) => Request::GetTunnelNodes { tags: part.tags.clone(), after },
        }
    }

    /// Everybody on the list was asked: finds others (Rule 6.4). Returns false if a new list has to arrive first.
    fn find_others(&mut self, query: &Query, part: &mut Part, now: Now) -> bool {
        part.phase = match part.phase {
            Phase::Known
                if self.may_lack_super_nodes(query, now) && self.look_up(Query::SuperNodes, None) =>
            {
                Phase::AwaitsList
            }
            Phase::AwaitsList if self.is_looking_up(&Query::SuperNodes) => return false,
            Phase::AwaitsList => {
                part.lookup.extend(self.holders(&part.range, now));
                Phase::NewList
            }
            Phase::Known | Phase::NewList => {
                let operators = self.shuffled_operators(now);
                let may_help = query.is_operator_signed() && part.lookup.lacks_any(&operators);
                if may_help && self.servers.take_last_resort(now.mono) {
                    part.lookup.extend(operators);
                }
                Phase::LastResort
            }
            Phase::LastResort => {
                part.lookup.give_up();
                Phase::LastResort
            }
        };
        true
    }

    /// Returns whether there may be super-nodes that this node has not heard of: unless a fresh Head says that there are none.
    fn may_lack_super_nodes(&self, query: &Query, now: Now) -> bool {
        let knows_some = self.servers.super_nodes().next().is_some();
        *query != Query::SuperNodes && knows_some && !self.knows_super_nodes(now)
    }

    pub(super) fn query_failed(&mut self, id: QueryId, request: RequestId) {
        if let Some(running) = self.queries.get_mut(&id) {
            running.answers.remove(&request);
            for part in &mut running.parts {
                part.lookup.failed(request);
            }
        }
    }

    /// Takes an answer: keeps what can be believed, asks for the next page or notes that the server has told all.
    pub(super) fn query_answered(&mut self, id: QueryId, request: RequestId, reply: Reply, now: Now) {
        let Some(mut running) = self.queries.remove(&id) else { return };
        self.take_answer(id, &mut running, request, reply, now);
        self.queries.insert(id, running);
    }

    fn take_answer(
        &mut self,
        id: QueryId,
        running: &mut Running,
        request: RequestId,
        reply: Reply,
        now: Now,
    ) {
        let Some(mut answer) = running.answers.remove(&request) else { return };
        let asked = running.parts.iter().enumerate();
        let asked = asked.filter_map(|(at, part)| Some((at, part.lookup.server_of(request)?))).next();
        let Some((at, server)) = asked else { return };
        let Page { records, more } = page_of(reply);
        let key_of = |bytes: &Bytes| UnverifiedRecord::parse(bytes).ok().map(|record| record.header().key);
        let (first, after) = (records.first().and_then(key_of), records.last().and_then(key_of));
        // A page that does not go on where the one before ended would never come to an end.
        let goes_on =
            answer.last.is_none_or(|last| first.is_some_and(|first| first > last)) && first <= after;
        for bytes in records {
            self.take_found(running, server.node, &mut answer, &bytes, now);
        }
        answer.pages = answer.pages.saturating_add(1);
        let Some(part) = running.parts.get_mut(at) else { return };
        if let (true, Some(after)) = (more && goes_on && answer.pages < MAX_PAGES, after) {
            let next = self.question(&running.query, part, Some(after));
            let next = self.ask(server, &next, Purpose::Query(id), now);
            part.lookup.asked_more(request, next, now.mono);
            answer.last = Some(after);
            running.answers.insert(next, answer);
            return;
        }
        let usable = answer.usable || running.query.may_be_empty();
        part.lookup.answered(request, usable, now.mono);
        let (summary, is_bad) = (answer.summary, answer.is_bad);
        running.told.push(Told { by: server.node, range: part.range, summary, is_bad });
        if running.query == Query::SuperNodes && self.stated_super_nodes() == Some(summary) {
            self.retain_super_nodes(&answer.nodes);
        }
    }

    /// Verifies one record of an answer and keeps it (Rule 6.5).
    fn take_found(
        &mut self,
        running: &mut Running,
        by: NodeId,
        answer: &mut Answering,
        bytes: &Bytes,
        now: Now,
    ) {
        match &running.query {
            Query::Head => {
                let news = self.take_head(bytes, now);
                answer.usable |= news == HeadNews::Fresh;
                answer.is_bad |= matches!(news, HeadNews::Old | HeadNews::Bad);
                return;
            }
            Query::TunnelNodes(_) => {
                answer.usable |= take_node_info(&mut running.found, by, bytes);
                return self.take_beside(&running.found, by, answer, bytes, now);
            }
            Query::Operators
            | Query::SuperNodes
            | Query::Revocations
            | Query::Devices
            | Query::DomainKey
            | Query::Node(_) => {}
        }
        let time = self.endpoint.judging_time(now);
        let verified = self.trust.verify(bytes, time, self.endpoint.crypto()).ok();
        let Some(record) = verified.filter(|record| self.is_looked_for(&running.query, record)) else {
            answer.is_bad = true;
            return self.endpoint.discard(Discard::BadRecord);
        };
        if self.freshness.record().is_none_or(|head| record.is_valid_at(head.header().made_at())) {
            answer.summary.add(&record.hash());
        }
        if running.query == Query::SuperNodes {
            answer.nodes.insert(subject(record.header()));
        }
        let suffices = self.suffices(&running.query, &record);
        let is_old = matches!(self.keep(record), Inserted::Older(_));
        answer.usable |= suffices && !is_old;
        answer.is_bad |= !suffices || is_old;
    }

    /// Takes the own record of a node whose NodeInfo came before it (Rule 4.4): then it need not be looked up.
    fn take_beside(
        &mut self,
        found: &BTreeMap<(RecordKey, NodeId), Bytes>,
        by: NodeId,
        answer: &mut Answering,
        bytes: &Bytes,
        now: Now,
    ) {
        let record = UnverifiedRecord::parse(bytes);
        let is_beside =
            |header: &Header| header.table == Table::Node && found.contains_key(&(header.key, by));
        if !record.is_ok_and(|record| is_beside(record.header())) {
            return;
        }
        let time = self.endpoint.judging_time(now);
        let verified = self.trust.verify(bytes, time, self.endpoint.crypto()).ok();
        match verified.filter(|record| record.header().domain == self.me.id.domain) {
            Some(record) => {
                self.keep(record);
            }
            None => {
                answer.is_bad = true;
                self.endpoint.discard(Discard::BadRecord);
            }
        }
    }

    /// Returns whether a verified record answers a query: somebody might hand out another domain's, or another node's.
    fn is_looked_for(&self, query: &Query, record: &Record) -> bool {
        let header = record.header();
        let domain = self.me.id.domain;
        let own = header.domain == domain;
        match query {
            Query::Operators => header.table == Table::OperatorNode,
            Query::SuperNodes => {
                Trust::super_node(record).is_some_and(|(_, body)| body.segment.touches(domain))
            }
            Query::Revocations => header.table == Table::Revocation && own,
            Query::Devices => header.table == Table::EndDevice && own,
            Query::DomainKey => header.table == Table::DomainKey && subject(header) == self.me.id,
            Query::Node(node) => {
                matches!(header.table, Table::Node | Table::OperatorNode) && subject(header) == *node
            }
            Query::Head | Query::TunnelNodes(_) => false,
        }
    }

    /// Returns whether a record is as new as it has to be: keys of an epoch before that of the Head are of no use.
    fn suffices(&self, query: &Query, record: &Record) -> bool {
        let epoch = self.freshness.body().map_or(0, |head| head.epoch);
        *query != Query::DomainKey
            || DomainKeyBody::read(record)
                .ok()
                .and_then(|body| body.open(self.trust.network(), self.me.id, &self.receiving).ok())
                .is_some_and(|keys| keys.epoch >= epoch)
    }

    fn query_done(&mut self, running: Running, now: Now) {
        let verdict = running.verdict();
        self.judge_tellers(&running, verdict, now);
        match running.query {
            Query::Head => self.head_looked_up(verdict, now),
            Query::Operators => self.set_looked_up(now),
            Query::SuperNodes => {
                self.set_looked_up(now);
                self.super_nodes_changed(now);
            }
            Query::Revocations => {
                self.set_looked_up(now);
                self.review_watched(now);
            }
            Query::Devices => {
                self.set_looked_up(now);
                self.devices_changed(now);
            }
            Query::DomainKey => self.own_records_changed(now),
            Query::Node(_) => {}
            Query::TunnelNodes(ref tags) => {
                let found = self.believable(&running, now);
                self.note_tunnel_nodes(&found, now);
                self.found_ahead(tags, &found, now);
                for task in running.waiting {
                    if self.routing.is_route(task) {
                        self.tunnel_nodes_found(task, &found, verdict);
                    } else if self.electing.is_survey(task) {
                        self.location_looked_up(task, &found, verdict, now);
                    } else {
                        let answered = verdict != Verdict::Silence;
                        self.site_looked_up(task, tags, answered.then_some(&found[..]), now);
                    }
                }
                return;
            }
        }
        // Only refreshes wait for these; routes look at what is known each time anything was learned.
        for task in running.waiting {
            self.devices_refreshed(task, verdict, now);
        }
    }
}

/// What a look-up that has its answers comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// It is over.
    Holds,
    /// Others are to be asked.
    Fails,
    /// It is not known yet.
    Waits,
}

/// Remembers the newest NodeInfo of each node from each teller: a forged one must not take the place of the genuine.
fn take_node_info(found: &mut BTreeMap<(RecordKey, NodeId), Bytes>, by: NodeId, bytes: &Bytes) -> bool {
    let Ok(record) = UnverifiedRecord::parse(bytes) else { return false };
    let header = record.header();
    let key = (header.key, by);
    if header.table != Table::NodeInfo || (found.len() >= MAX_FOUND && !found.contains_key(&key)) {
        return false;
    }
    let newer = found
        .get(&key)
        .and_then(|held| UnverifiedRecord::parse(held).ok())
        .is_none_or(|held| held.header().version < header.version);
    if newer {
        found.insert(key, bytes.clone());
    }
    true
}

/// Returns what an answer carries, whatever kind it is.
fn page_of(reply: Reply) -> Page {
    match reply {
        Reply::OperatorNodes(page)
        | Reply::SuperNodes(page)
        | Reply::TunnelNodes(page)
        | Reply::Devices(page)
        | Reply::Revocations(page) => page,
        Reply::Node(record) | Reply::NodeInfo(record) | Reply::Head(record) | Reply::DomainKey(record) => {
            Page { records: record.into_iter().collect(), more: false }
        }
        Reply::TunnelOpened { .. }
        | Reply::Heads(_)
        | Reply::SuperNodeSubmitted { .. }
        | Reply::Partition(_)
        | Reply::Reconciled(_)
        | Reply::RefusalsNoted(_)
        | Reply::Reping { .. }
        | Reply::ForwardedTunnelOpened(_)
        | Reply::Forwarded { .. }
        | Reply::RelayJoined(_)
        | Reply::Stored { .. }
        | Reply::DeviceNoted(_)
        | Reply::Left(_)
        | Reply::Attached { .. }
        | Reply::Notified(_)
        | Reply::StaleTime(_) => Page::default(),
    }
}
