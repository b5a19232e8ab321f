//! Look-ups under way: the questions, and what is done with the answers.

use std::collections::BTreeMap;

use bytes::Bytes;
use peerage_wire::id::{LookupTag, NodeId, RecordKey};
use peerage_wire::message::{Page, Reply, Request};
use peerage_wire::record::{Record, Table, UnverifiedRecord, subject};
use peerage_wire::time::{Instant, Now};

use super::lookup::{Lookup, Step, Verdict};
use super::{Discard, Node, Purpose, RequestId, TaskId};

/// Most look-ups at once; more wait until they are asked for again.
pub(super) const MAX_QUERIES: usize = 256;

/// Most pages that are fetched from one server for one list: 65,536 records at 16 a page.
const MAX_PAGES: u32 = 4_096;

/// Names a look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct QueryId(u64);

/// What is looked up.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Query {
    Head,
    Operators,
    Revocations,
    Devices,
    DomainKey,
    Node(NodeId),
    TunnelNodes(Vec<LookupTag>),
}

impl Query {
    fn request(&self, after: Option<RecordKey>) -> Request {
        match self {
            Self::Head => Request::GetHead,
            Self::Operators => Request::GetOperatorNodes { after },
            Self::Revocations => Request::GetRevocations { after },
            Self::Devices => Request::GetDevices { after },
            Self::DomainKey => Request::GetDomainKey,
            Self::Node(node) => Request::GetNode(*node),
            Self::TunnelNodes(tags) => Request::GetTunnelNodes { tags: tags.clone(), after },
        }
    }

    /// Returns whether an answer without records is a proper answer: an empty set is one, an absent record is not.
    const fn may_be_empty(&self) -> bool {
        matches!(self, Self::Operators | Self::Revocations | Self::Devices | Self::TunnelNodes(_))
    }
}

/// A look-up under way.
#[derive(Clone, Debug)]
pub(super) struct Running {
    query: Query,
    lookup: Lookup,
    /// NodeInfo records that carry a tag, newest of each node; they are verified when their nodes are known.
    found: BTreeMap<RecordKey, Bytes>,
    /// Per open request: pages so far, whether any record of them was usable, and where the last one ended.
    pages: BTreeMap<RequestId, (u32, bool, Option<RecordKey>)>,
    /// Commands that wait for its end.
    waiting: Vec<TaskId>,
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
        let lookup = Lookup::new(self.servers());
        let waiting = task.into_iter().collect();
        let running = Running { query, lookup, found: BTreeMap::new(), pages: BTreeMap::new(), waiting };
        self.queries.insert(id, running);
        true
    }

    pub(super) fn is_looking_up(&self, query: &Query) -> bool {
        self.queries.values().any(|running| running.query == *query)
    }

    pub(super) fn next_query_at(&self) -> Option<Instant> {
        self.queries.values().filter_map(|running| running.lookup.deadline()).min()
    }

    /// Asks whoever is to be asked next, and ends what is done. Returns whether there was anything to do.
    pub(super) fn drive_queries(&mut self, now: Now) -> bool {
        let mut moved = false;
        for id in self.queries.keys().copied().collect::<Vec<_>>() {
            while let Some(running) = self.queries.get_mut(&id) {
                match running.lookup.poll(now.mono) {
                    Step::Ask(server) => {
                        let request = running.query.request(None);
                        let asked = self.ask(server, &request, Purpose::Query(id), now);
                        if let Some(running) = self.queries.get_mut(&id) {
                            running.lookup.asked(asked);
                            running.pages.insert(asked, (1, false, None));
                        }
                    }
                    Step::Wait(_) => break,
                    Step::Done => {
                        if let Some(running) = self.queries.remove(&id) {
                            self.query_done(running, now);
                        }
                    }
                }
                moved = true;
            }
        }
        moved
    }

    pub(super) fn query_failed(&mut self, id: QueryId, request: RequestId) {
        if let Some(running) = self.queries.get_mut(&id) {
            running.lookup.failed(request);
        }
    }

    /// Takes an answer: keeps what can be believed, asks for the next page or notes that the server has told all.
    pub(super) fn query_answered(&mut self, id: QueryId, request: RequestId, reply: Reply, now: Now) {
        let Some(mut running) = self.queries.remove(&id) else { return };
        let Page { records, more } = page_of(reply);
        let (pages, mut usable, before) = running.pages.remove(&request).unwrap_or((1, false, None));
        let key_of = |bytes: &Bytes| UnverifiedRecord::parse(bytes).ok().map(|record| record.header().key);
        let (first, after) = (records.first().and_then(key_of), records.last().and_then(key_of));
        // A page that does not go on where the one before ended would never come to an end.
        let goes_on = before.is_none_or(|before| first.is_some_and(|first| first > before)) && first <= after;
        for bytes in records {
            usable |= self.take_found(&mut running, &bytes, now);
        }
        let server = running.lookup.server_of(request);
        let more = more && goes_on && pages < MAX_PAGES;
        if let (true, Some(server), Some(after)) = (more, server, after) {
            let next = self.ask(server, &running.query.request(Some(after)), Purpose::Query(id), now);
            running.lookup.asked_more(request, next);
            running.pages.insert(next, (pages.saturating_add(1), usable, Some(after)));
        } else {
            let usable = usable || running.query.may_be_empty();
            running.lookup.answered(request, usable, now.mono);
        }
        self.queries.insert(id, running);
    }

    /// Verifies one record of an answer and keeps it (Rule 6.5). Returns whether it is what was looked for.
    fn take_found(&mut self, running: &mut Running, bytes: &Bytes, now: Now) -> bool {
        if matches!(running.query, Query::Head) {
            return self.take_head(bytes, now);
        }
        if matches!(running.query, Query::TunnelNodes(_)) {
            return take_node_info(&mut running.found, bytes);
        }
        let time = self.endpoint.judging_time(now);
        let Ok(record) = self.trust.verify(bytes, time, self.endpoint.crypto()) else {
            self.endpoint.discard(Discard::BadRecord);
            return false;
        };
        if !self.is_looked_for(&running.query, &record) {
            self.endpoint.discard(Discard::BadRecord);
            return false;
        }
        self.keep(record);
        true
    }

    /// Returns whether a verified record answers a query: somebody might hand out another domain's, or another node's.
    fn is_looked_for(&self, query: &Query, record: &Record) -> bool {
        let header = record.header();
        let own = header.domain == self.me.id.domain;
        match query {
            Query::Operators => header.table == Table::OperatorNode,
            Query::Revocations => header.table == Table::Revocation && own,
            Query::Devices => header.table == Table::EndDevice && own,
            Query::DomainKey => header.table == Table::DomainKey && subject(header) == self.me.id,
            Query::Node(node) => {
                matches!(header.table, Table::Node | Table::OperatorNode) && subject(header) == *node
            }
            Query::Head | Query::TunnelNodes(_) => false,
        }
    }

    fn query_done(&mut self, running: Running, now: Now) {
        let verdict = running.lookup.verdict();
        match running.query {
            Query::Head => self.head_looked_up(verdict, now),
            Query::Operators => self.set_looked_up(),
            Query::Revocations => {
                self.set_looked_up();
                self.review_watched(now);
            }
            Query::Devices => {
                self.set_looked_up();
                self.devices_changed(now);
            }
            Query::DomainKey => self.own_records_changed(now),
            Query::Node(_) => {}
            Query::TunnelNodes(tags) => {
                let found: Vec<_> = running.found.into_values().collect();
                for task in running.waiting {
                    if self.routing.is_route(task) {
                        self.tunnel_nodes_found(task, &found, verdict);
                    } else {
                        let answered = verdict != Verdict::Silence;
                        self.site_looked_up(task, &tags, answered.then_some(found.len()));
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

fn take_node_info(found: &mut BTreeMap<RecordKey, Bytes>, bytes: &Bytes) -> bool {
    let Ok(record) = UnverifiedRecord::parse(bytes) else { return false };
    let header = record.header();
    if header.table != Table::NodeInfo {
        return false;
    }
    let newer = found
        .get(&header.key)
        .and_then(|held| UnverifiedRecord::parse(held).ok())
        .is_none_or(|held| held.header().version < header.version);
    if newer {
        found.insert(header.key, bytes.clone());
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
        | Reply::Reping { .. }
        | Reply::Stored { .. }
        | Reply::DeviceNoted(_)
        | Reply::Left(_)
        | Reply::Attached { .. }
        | Reply::Notified(_)
        | Reply::StaleTime(_) => Page::default(),
    }
}
