//! Bringing two holders of the same part of the table to the same state, at a cost that grows with what differs (Rule 4.8).
//!
//! The asker names a stretch of one table and what it holds there: how many records, and the sum of their hashes. The answerer
//! says that it holds the same, or cuts the stretch into parts by its own records, or, where they are few, names them one by one.
//! So a difference is found in as many questions as the logarithm of the number of records. What the asker lacks it then fetches
//! with TransferPartition, and what the answerer lacks it stores there. Nothing is ever deleted because another does not have it:
//! records end by expiring, or by a tombstone.
//!
//! SuperNode records are too few to be cut, and lie elsewhere than where they belong: of them the answer is that they are the same, or
//! that they are not, and then all that belong to the stretch are fetched. What was held and did not come is told, since an operator that
//! does not list a super-node knows that it is elsewhere now.
//!
//! Both sides are values without I/O. [`answer`] is a function of the records. A [`Reconciliation`] yields requests and takes
//! their replies; a [`Transfer`] does so for one stretch that is fetched whole. A counterpart that lies cannot make them work
//! without end: parts must lie within the stretch and be smaller than it, the depth is limited, and each request uses up
//! patience that only genuine news restores.

mod transfer;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use peerage_wire::id::{Domain, PlaceKey, PlacementKey, Segment};
use peerage_wire::limits::{MAX_ENTRIES, MAX_PARTS};
use peerage_wire::message::{Entry, Part, Reconciled, Reply, Request};
use peerage_wire::record::{SetSummary, Table};
use peerage_wire::time::UnixTime;

use crate::table::{Inserted, Records, position, stretch};
pub use transfer::{MAX_VAIN_PAGES, Transfer};

/// Requests of one reconciliation under way at once. More settles sooner; fewer is kinder to the line of a borrowed machine, on
/// which 16 answers of 1,200 bytes are 20 kB at a time.
pub const MAX_IN_FLIGHT: usize = 16;

/// Stretches that wait to be asked about. An honest counterpart needs twelve for each level and request under way; what is beyond
/// is left to the next reconciliation.
pub const MAX_PENDING: usize = 4_096;

/// Deepest question. Thirteen parts a level reach down to the entries of a hundred million records in seven.
const MAX_DEPTH: u8 = 8;

/// Requests that are made without any news. Ten levels of questions for each of the requests under way at once are far fewer;
/// a liar costs this many datagrams of 1,200 bytes each way, some 600 kB.
const INITIAL_PATIENCE: u32 = 512;

/// Requests that a genuine difference is worth: at most one for each level, and one to fetch it.
const PATIENCE_FOR_NEWS: u32 = 8;

/// Most records that are stored with one counterpart in an hour. They make up for a few pushes that were lost; a fellow that lacks
/// more fetches them itself, within ten minutes. More would let a liar, who lacks everything for ever, draw more than some 230 kB
/// an hour; fewer would spread more slowly what was lost.
pub const MAX_GIFTS: u32 = 256;

/// Records of one domain for which there was no room after which the rest of the domain is left out. More fetches what is thrown
/// away; fewer gives up where something is about to expire.
pub const MAX_FULL: u32 = 16;

/// Requests without an answer after which the counterpart counts as gone; each was repeated before.
const MAX_FAILURES: u32 = 3;

/// The tables that are reconciled: what operators and the root sign, Heads excepted, which live for a minute.
pub const RECONCILED: [Table; 6] = [
    Table::OperatorNode,
    Table::SuperNode,
    Table::Revocation,
    Table::Node,
    Table::DomainKey,
    Table::EndDevice,
];

/// Compares what an asker holds in a stretch with what is held here.
pub fn answer(
    records: &Records,
    table: Table,
    from: PlaceKey,
    to: PlaceKey,
    theirs: SetSummary,
) -> Reconciled {
    let own = records.stretch_summary(table, from, to);
    if own == theirs {
        return Reconciled::Same;
    }
    if table == Table::SuperNode {
        return Reconciled::Entries(Vec::new());
    }
    if usize::try_from(own.count).is_ok_and(|count| count <= MAX_ENTRIES) {
        let held = records.within(table, from, to);
        let entries: BTreeSet<_> = held.map(|(_, record)| Entry::of(record)).collect();
        return Reconciled::Entries(entries.into_iter().collect());
    }
    Reconciled::Parts(records.parts(table, from, to, u32::try_from(MAX_PARTS).unwrap_or(u32::MAX)))
}

/// Names a request of a [`Reconciliation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepId(u32);

/// What a reconciliation has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Questions about a stretch.
    pub questions: u32,
    /// Pages of records that were asked for.
    pub pages: u32,
    /// Records that were new here.
    pub taken: u32,
    /// Records that were stored with the other.
    pub given: u32,
}

/// How a reconciliation has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Everything that differed was settled.
    Settled,
    /// Everything was settled but for records for which there was no room here.
    Full,
    /// The counterpart fell silent, or something was beyond a limit: the rest is for the next one.
    Unfinished,
    /// The counterpart's answers cannot be those of an honest holder.
    Liar,
}

#[derive(Clone, Copy, Debug)]
struct Stretch {
    table: Table,
    from: PlaceKey,
    to: PlaceKey,
}

/// Something left to do; the newest first, so that a difference is settled before the next is looked for.
#[derive(Clone, Debug)]
enum Todo {
    /// Ask, unless what the other holds there turns out to be the same.
    Compare { stretch: Stretch, theirs: Option<SetSummary>, depth: u8 },
    /// Find out what differs.
    Settle { stretch: Stretch, theirs: Vec<Entry> },
    /// Fetch.
    Fetch(Transfer),
    /// Store with the other what is held here.
    Give(Stretch),
}

#[derive(Clone, Debug)]
enum Asked {
    Question { stretch: Stretch, depth: u8 },
    Page(Transfer),
    Gift,
}

/// What stands at one place. Two records of a domain meet at a place once in four thousand million pairs.
#[derive(Debug, Default)]
struct Versions {
    own: BTreeSet<Entry>,
    theirs: BTreeSet<Entry>,
}

impl Versions {
    /// Returns whether there is something newer here, and there; both, where that cannot be told before it is fetched.
    fn newer(&self) -> (bool, bool) {
        if self.own == self.theirs {
            return (false, false);
        }
        if self.own.len() > 1 || self.theirs.len() > 1 {
            return (true, true);
        }
        let newest = |entries: &BTreeSet<Entry>| entries.first().map(|entry| entry.version);
        let (own, theirs) = (newest(&self.own), newest(&self.theirs));
        (own >= theirs, theirs >= own)
    }
}

/// The asking side of one reconciliation with one counterpart.
#[derive(Clone, Debug)]
pub struct Reconciliation {
    todo: Vec<Todo>,
    asked: BTreeMap<StepId, Asked>,
    next_id: u32,
    /// How many records may yet be stored with the other.
    gifts: u32,
    patience: u32,
    failures: u32,
    is_liar: bool,
    is_cut_short: bool,
    /// How many records of each domain had no room.
    full: BTreeMap<Domain, u32>,
    /// The SuperNode records that were held when the other said that it holds others, with their versions, but for those that it has
    /// listed since.
    unlisted: BTreeMap<PlaceKey, u64>,
    /// Whether it has listed all.
    is_listed: bool,
    tally: Tally,
}

impl Reconciliation {
    /// Begins one over what belongs to a segment, which both must hold. At most so many `gifts` are stored with the counterpart
    /// because it lacks them: none with an operator, who has its own ledger.
    pub fn new(tables: &[Table], segment: Segment, gifts: u32) -> Self {
        // The last is asked first: who is to be believed comes before what they signed.
        let todo = tables.iter().rev().map(|table| {
            let (from, to) = stretch(*table, segment);
            Todo::Compare { stretch: Stretch { table: *table, from, to }, theirs: None, depth: 0 }
        });
        Self {
            todo: todo.collect(),
            asked: BTreeMap::new(),
            next_id: 0,
            gifts,
            patience: INITIAL_PATIENCE,
            failures: 0,
            is_liar: false,
            is_cut_short: false,
            full: BTreeMap::new(),
            unlisted: BTreeMap::new(),
            is_listed: false,
            tally: Tally::default(),
        }
    }

    /// Returns what was done so far.
    pub const fn tally(&self) -> Tally {
        self.tally
    }

    /// Returns the SuperNode records, with their versions, that were held here and that the other does not have, if it has listed all
    /// that it has.
    pub fn unlisted(&self) -> impl Iterator<Item = (&PlaceKey, u64)> {
        self.unlisted.iter().filter(|_| self.is_listed).map(|(at, version)| (at, *version))
    }

    /// Returns how it has ended, `None` while there is something to do or to wait for.
    pub fn ended(&self) -> Option<Ended> {
        if self.is_liar {
            return Some(Ended::Liar);
        }
        let is_over = self.todo.is_empty() && self.asked.is_empty();
        is_over.then_some(match (self.is_cut_short, self.full.is_empty()) {
            (true, _) => Ended::Unfinished,
            (false, false) => Ended::Full,
            (false, true) => Ended::Settled,
        })
    }

    /// Returns the next request, if there is one to make now. Its fate is told by [`Self::answered`] or [`Self::failed`].
    pub fn poll(&mut self, records: &Records, time: UnixTime) -> Option<(StepId, Request)> {
        while self.asked.len() < MAX_IN_FLIGHT {
            let (asked, request) = match self.todo.pop()? {
                Todo::Compare { stretch, .. } | Todo::Settle { stretch, .. } if self.is_left_out(stretch) => {
                    continue;
                }
                Todo::Compare { stretch, theirs, depth } => {
                    let own = records.stretch_summary(stretch.table, stretch.from, stretch.to);
                    match self.compare(stretch, own, theirs, depth) {
                        Some(step) => step,
                        None => continue,
                    }
                }
                Todo::Settle { stretch, theirs } => {
                    self.settle(stretch, &theirs, records);
                    continue;
                }
                Todo::Fetch(mut transfer) => {
                    if let Some(end) = self.left_out_until(transfer.next_place()) {
                        transfer.skip_to(end);
                    }
                    if transfer.is_done() {
                        continue;
                    }
                    self.tally.pages = self.tally.pages.saturating_add(1);
                    let request = transfer.request();
                    (Asked::Page(transfer), request)
                }
                Todo::Give(stretch) => match self.give(stretch, records, time) {
                    Some(record) => (Asked::Gift, Request::Store(record)),
                    None => continue,
                },
            };
            if !matches!(asked, Asked::Gift) && !self.spend() {
                return None;
            }
            let id = StepId(self.next_id);
            self.next_id = self.next_id.wrapping_add(1);
            self.asked.insert(id, asked);
            return Some((id, request));
        }
        None
    }

    /// Returns the last place of the domain of a place, if there is no room for the rest of that.
    fn left_out_until(&self, place: PlacementKey) -> Option<PlacementKey> {
        let domain = place.domain();
        let is_full = self.full.get(&domain).is_some_and(|count| *count >= MAX_FULL);
        is_full.then_some(Segment::of_domain(domain).to)
    }

    fn is_left_out(&self, stretch: Stretch) -> bool {
        self.left_out_until(stretch.from.place).is_some_and(|end| stretch.to.place <= end)
    }

    /// Uses up a request's patience; without any left, nothing more is asked.
    fn spend(&mut self) -> bool {
        let left = self.patience.checked_sub(1);
        self.patience = left.unwrap_or(0);
        if left.is_none() {
            self.give_up();
        }
        left.is_some()
    }

    fn give_up(&mut self) {
        self.todo.clear();
        self.is_cut_short = true;
    }

    fn push(&mut self, todo: Todo) {
        if self.todo.len() < MAX_PENDING {
            self.todo.push(todo);
        } else {
            self.is_cut_short = true;
        }
    }

    fn compare(
        &mut self,
        stretch: Stretch,
        own: SetSummary,
        theirs: Option<SetSummary>,
        depth: u8,
    ) -> Option<(Asked, Request)> {
        let Stretch { table, from, to } = stretch;
        match theirs {
            Some(theirs) if theirs == own => return None,
            Some(theirs) if theirs.count == 0 => {
                self.push(Todo::Give(stretch));
                return None;
            }
            // Nothing to compare: whatever is there is lacking here.
            Some(_) if own.count == 0 => {
                self.push(Todo::Fetch(Transfer::of_stretch(table, from, to)));
                return None;
            }
            Some(_) | None => {}
        }
        self.tally.questions = self.tally.questions.saturating_add(1);
        Some((Asked::Question { stretch, depth }, Request::Reconcile { table, from, to, summary: own }))
    }

    /// Sets what the other holds of a short stretch against what is held here.
    fn settle(&mut self, stretch: Stretch, theirs: &[Entry], records: &Records) {
        let Stretch { table, from, to } = stretch;
        if table == Table::SuperNode {
            return self.list_map(Segment { from: from.place, to: to.place }, records);
        }
        let mut versions: BTreeMap<PlacementKey, Versions> = BTreeMap::new();
        for (at, record) in records.within(table, from, to) {
            versions.entry(at.place).or_default().own.insert(Entry::of(record));
        }
        for entry in theirs {
            versions.entry(entry.place).or_default().theirs.insert(*entry);
        }
        // Neighbours are fetched together.
        let mut run: Option<(PlacementKey, PlacementKey)> = None;
        for (place, versions) in &versions {
            let (here, there) = versions.newer();
            if here {
                let stretch =
                    Stretch { table, from: PlaceKey::first_at(*place), to: PlaceKey::last_at(*place) };
                self.push(Todo::Give(stretch));
            }
            if there {
                run = Some((run.map_or(*place, |(first, _)| first), *place));
            } else if !versions.theirs.is_empty() {
                self.fetch_run(table, run.take());
            }
        }
        self.fetch_run(table, run);
    }

    /// Fetches all SuperNode records that belong to a range.
    fn list_map(&mut self, range: Segment, records: &Records) {
        let held = records.in_range(Table::SuperNode, range, None);
        self.unlisted = held.map(|record| (position(record), record.header().version)).collect();
        self.push(Todo::Fetch(Transfer::of_segment(Table::SuperNode, range)));
    }

    fn fetch_run(&mut self, table: Table, run: Option<(PlacementKey, PlacementKey)>) {
        if let Some((first, last)) = run {
            let (from, to) = (PlaceKey::first_at(first), PlaceKey::last_at(last));
            self.push(Todo::Fetch(Transfer::of_stretch(table, from, to)));
        }
    }

    /// Takes the first valid record of a stretch and leaves the rest for later.
    fn give(&mut self, stretch: Stretch, records: &Records, time: UnixTime) -> Option<Bytes> {
        let mut held = records.within(stretch.table, stretch.from, stretch.to);
        let (at, record) = held.find(|(_, record)| record.is_valid_at(time))?;
        let Some(left) = self.gifts.checked_sub(1) else {
            // Whoever is given nothing at all is not expected to have what is held here.
            self.is_cut_short |= self.tally.given > 0;
            return None;
        };
        self.gifts = left;
        if let Some(from) = at.successor().filter(|from| *from <= stretch.to) {
            self.push(Todo::Give(Stretch { from, ..stretch }));
        }
        self.tally.given = self.tally.given.saturating_add(1);
        Some(record.bytes().clone())
    }

    /// Takes the reply to a request. Each record in it is handed to `take`, which verifies it, offers it to the table, and returns
    /// what became of it; `None` if it cannot be taken.
    pub fn answered(&mut self, id: StepId, reply: Reply, take: impl FnMut(Bytes) -> Option<Inserted>) {
        let Some(asked) = self.asked.remove(&id) else { return };
        match (asked, reply) {
            (Asked::Question { stretch, depth }, Reply::Reconciled(reconciled)) => {
                self.reconciled(stretch, depth, reconciled);
            }
            (Asked::Page(mut transfer), Reply::Partition(page)) => {
                let outcomes = transfer.answered(page, take);
                self.judge(transfer.table(), &outcomes);
                self.is_cut_short |= transfer.is_broken_off();
                if transfer.table() == Table::SuperNode {
                    self.unlisted.retain(|at, _| !outcomes.iter().any(|(listed, _)| listed == at));
                    self.is_listed = transfer.is_done() && !transfer.is_broken_off();
                }
                if !transfer.is_done() {
                    self.push(Todo::Fetch(transfer));
                }
            }
            // No news: whoever says so need not have kept it.
            (Asked::Gift, Reply::Stored { .. }) => {}
            _ => self.lied(),
        }
    }

    fn hope(&mut self) {
        self.patience = self.patience.saturating_add(PATIENCE_FOR_NEWS);
    }

    fn lied(&mut self) {
        self.is_liar = true;
        self.give_up();
        self.asked.clear();
    }

    fn reconciled(&mut self, stretch: Stretch, depth: u8, reconciled: Reconciled) {
        let within = |at: &PlaceKey| stretch.from <= *at && *at <= stretch.to;
        match reconciled {
            Reconciled::Same => {}
            Reconciled::Parts(_) if stretch.table == Table::SuperNode => self.lied(),
            Reconciled::Entries(theirs) => {
                let places = stretch.from.place..=stretch.to.place;
                let fits = theirs.iter().all(|entry| places.contains(&entry.place));
                if theirs.len() > MAX_ENTRIES || !fits || !theirs.is_sorted_by(|a, b| a < b) {
                    return self.lied();
                }
                self.push(Todo::Settle { stretch, theirs });
            }
            Reconciled::Parts(parts) => {
                let ends_there = parts.last().is_some_and(|part| part.to == stretch.to);
                let ascends = parts.is_sorted_by(|a, b| a.to < b.to);
                let fits =
                    (2..=MAX_PARTS).contains(&parts.len()) && parts.iter().all(|part| within(&part.to));
                if !(ends_there && ascends && fits) || depth >= MAX_DEPTH {
                    return self.lied();
                }
                self.descend(stretch, depth, &parts);
            }
        }
    }

    fn descend(&mut self, stretch: Stretch, depth: u8, parts: &[Part]) {
        let mut from = Some(stretch.from);
        let mut below = Vec::with_capacity(parts.len());
        for part in parts {
            let Some(first) = from else { break };
            let stretch = Stretch { from: first, to: part.to, ..stretch };
            below.push(Todo::Compare { stretch, theirs: Some(part.summary), depth: depth + 1 });
            from = part.to.successor();
        }
        for todo in below.into_iter().rev() {
            self.push(todo);
        }
    }

    fn judge(&mut self, table: Table, outcomes: &[(PlaceKey, Inserted)]) {
        for (at, outcome) in outcomes {
            match outcome {
                Inserted::New => {
                    self.tally.taken = self.tally.taken.saturating_add(1);
                    self.hope();
                }
                // The other holds an older one.
                Inserted::Older(_) => {
                    self.push(Todo::Give(Stretch { table, from: *at, to: *at }));
                }
                Inserted::Same => {}
                Inserted::Full => {
                    let count = self.full.entry(at.place.domain()).or_default();
                    *count = count.saturating_add(1);
                }
            }
        }
    }

    /// Takes note that a request was not answered, although it was repeated.
    pub fn failed(&mut self, id: StepId) {
        let Some(asked) = self.asked.remove(&id) else { return };
        self.is_cut_short = true;
        self.failures = self.failures.saturating_add(1);
        // Whoever has no room is silent about gifts, and may still answer.
        if matches!(asked, Asked::Gift) {
            self.gifts = 0;
        }
        if self.failures >= MAX_FAILURES {
            self.give_up();
        }
    }
}

#[cfg(test)]
mod tests;
