//! The part of the distributed table that a node holds, in memory: every entry was verified.
//!
//! Disk is the durable log behind it; reads are answered from here alone. One record stands for each table,
//! domain and key: the one with the highest version, until it expires (Rule 2.21). How much is held has [`Limits`]; who gives
//! way when they are reached stands in `quota`.

mod holders;
mod order;
mod quota;
mod refusals;
mod sum;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use peerage_wire::id::{Domain, LookupTag, NodeId, PlaceKey, PlacementKey, RecordKey, Segment};
use peerage_wire::limits::MAX_LIST;
use peerage_wire::message::Part;
use peerage_wire::record::{NodeInfoPublic, Record, SetSummary, SuperNodeBody, Table, subject};
use peerage_wire::time::UnixTime;

use crate::indexed::Indexed;

use holders::Holders;
use order::Order;
pub use quota::{DEFAULT_MAX_BYTES, DOMAIN_FLOOR, Limits, MAX_PER_DOMAIN, RECORD_OVERHEAD, TAG_OVERHEAD};
use quota::{Rank, Usage, cost};
pub use refusals::{MAX_REFUSED_DOMAINS, Refusals};
use sum::{Sum, Total};

/// What became of a record that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It is the newest and is held now.
    New,
    /// This very version was held already.
    Same,
    /// A newer one is held; its version.
    Older(u64),
    /// No room.
    Full,
}

/// What became of a record that was offered to a table with limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offered {
    /// What became of it.
    pub outcome: Inserted,
    /// What is no longer held because of it: what had expired, and what gave way. Whoever keeps a log on disk deletes it there.
    pub evicted: Vec<Record>,
}

impl From<Inserted> for Offered {
    fn from(outcome: Inserted) -> Self {
        Self { outcome, evicted: Vec::new() }
    }
}

type Key = (Table, Domain, RecordKey);

/// The records that this node holds.
#[derive(Clone, Debug, Default)]
pub struct Records {
    limits: Limits,
    /// Boxed, so that the table moves 50 bytes for each when it grows, and not 200.
    all: Indexed<Key, Box<Record>>,
    /// By place and key, with sums of their hashes.
    orders: BTreeMap<Table, Order>,
    /// NodeInfo by look-up tag.
    tags: BTreeSet<(Domain, LookupTag, RecordKey)>,
    /// The places of a NodeInfo's look-up tags; none for those without tags.
    tag_places: BTreeMap<(Domain, RecordKey), Box<[PlacementKey]>>,
    /// The same by place, with the position of the NodeInfo.
    places: BTreeSet<(PlacementKey, PlaceKey)>,
    holders: Holders,
    counts: BTreeMap<(Table, Domain), usize>,
    usage: Usage,
    /// By expiry, so that expiring costs what expires.
    expiries: BTreeSet<(UnixTime, Key)>,
}

impl Records {
    /// Makes an empty table with limits.
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Returns the limits.
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// Changes the limits and returns what had to go: of the domain that uses the most, again and again.
    pub fn set_limits(&mut self, limits: Limits) -> Vec<Record> {
        self.limits = limits;
        let mut evicted = Vec::new();
        while self.usage.bytes() > self.limits.max_bytes() {
            // Whatever an operator weighs, it is the others who make room.
            let Some(key) = self.usage.victim(Domain::OPERATORS, 0, Rank::Trust, false) else { break };
            evicted.extend(self.take(&key));
        }
        evicted
    }

    /// Offers a verified record to a table without a cap of memory, where nothing has to give way for another.
    pub fn insert(&mut self, record: Record) -> Inserted {
        self.offer(record, UnixTime::default()).outcome
    }

    /// Offers a verified record. Where there is no room, what has expired at `time` goes first, then the records of the domain
    /// that uses the most.
    pub fn offer(&mut self, record: Record, time: UnixTime) -> Offered {
        let key = record.header().id();
        if let Some(held) = self.all.get(&key) {
            if held.bytes() == record.bytes() {
                return Inserted::Same.into();
            }
            if !record.supersedes(held) {
                return Inserted::Older(held.header().version).into();
            }
        }
        let older = self.take(&key);
        let (fits, evicted) = self.make_room(&record, older.is_some(), time);
        if fits {
            self.put(record);
            return Offered { outcome: Inserted::New, evicted };
        }
        // It fitted before, and nothing came in since.
        if let Some(older) = older {
            self.put(older);
        }
        Offered { outcome: Inserted::Full, evicted }
    }

    /// Makes room for a record, and returns whether there is any now, and what went.
    fn make_room(&mut self, record: &Record, is_update: bool, time: UnixTime) -> (bool, Vec<Record>) {
        let header = record.header();
        let (table, domain, rank) = (header.table, header.domain, Rank::of(header.table));
        let cost = cost(record, tags_of(record).len());
        let over = |records: &Self| records.usage.bytes().saturating_add(cost) > records.limits.max_bytes();
        let mut evicted = Vec::new();
        if self.count(table, domain) >= self.limits.max_per_domain() || over(self) {
            evicted = self.expire(time);
        }
        if self.count(table, domain) >= self.limits.max_per_domain() {
            return (false, evicted);
        }
        while over(self) {
            let Some(key) = self.usage.victim(domain, cost, rank, is_update) else {
                return (false, evicted);
            };
            evicted.extend(self.take(&key));
        }
        (true, evicted)
    }

    fn put(&mut self, record: Record) {
        let key = record.header().id();
        let (table, domain, record_key) = key;
        let tags = tags_of(&record);
        self.usage.add(&record, cost(&record, tags.len()));
        self.orders.entry(table).or_default().insert(position(&record), &record.hash());
        if !tags.is_empty() {
            let at = position(&record);
            let places = tags.iter().map(|tag| PlacementKey::new(domain, &tag.0)).collect::<Box<[_]>>();
            self.places.extend(places.iter().map(|place| (*place, at)));
            self.tag_places.insert((domain, record_key), places);
            self.tags.extend(tags.into_iter().map(|tag| (domain, tag, record_key)));
        }
        if let Some(segment) = segment_of(&record) {
            self.holders.insert(subject(record.header()), segment);
        }
        *self.counts.entry((table, domain)).or_default() += 1;
        self.expiries.insert((record.header().expires, key));
        self.all.insert(key, Box::new(record));
    }

    fn take(&mut self, key: &Key) -> Option<Record> {
        let record = *self.all.remove(key)?;
        let (table, domain, record_key) = *key;
        let tags = tags_of(&record);
        self.usage.remove(&record, cost(&record, tags.len()));
        if let Some(order) = self.orders.get_mut(&table) {
            order.remove(&position(&record));
        }
        if !tags.is_empty() {
            let at = position(&record);
            for place in self.tag_places.remove(&(domain, record_key)).into_iter().flatten() {
                self.places.remove(&(place, at));
            }
            for tag in tags {
                self.tags.remove(&(domain, tag, record_key));
            }
        }
        if table == Table::SuperNode {
            self.holders.remove(&subject(record.header()));
        }
        self.expiries.remove(&(record.header().expires, *key));
        let left = self.counts.get(&(table, domain)).map_or(0, |count| count.saturating_sub(1));
        if left == 0 {
            self.counts.remove(&(table, domain));
        } else {
            self.counts.insert((table, domain), left);
        }
        Some(record)
    }

    /// Removes a record and returns it. What is removed this way may come again, in any version.
    pub fn remove(&mut self, table: Table, domain: Domain, key: RecordKey) -> Option<Record> {
        self.take(&(table, domain, key))
    }

    /// Removes what has expired and returns it.
    pub fn expire(&mut self, time: UnixTime) -> Vec<Record> {
        let mut gone = Vec::new();
        while let Some((expires, key)) = self.expiries.first().copied() {
            if expires > time {
                break;
            }
            gone.extend(self.take(&key));
        }
        gone
    }

    /// Removes what does not belong to a segment and returns it: for a super-node whose segment has changed.
    pub fn leave_outside(&mut self, segment: &Segment) -> Vec<Record> {
        let outside: Vec<_> = self
            .all
            .iter()
            .filter(|(_, record)| !self.belongs(record, segment))
            .map(|(key, _)| *key)
            .collect();
        outside.iter().filter_map(|key| self.take(key)).collect()
    }

    /// Returns when the next record expires.
    pub fn next_expiry(&self) -> Option<UnixTime> {
        self.expiries.first().map(|(expires, _)| *expires)
    }

    /// Returns a record, tombstones included.
    pub fn get(&self, table: Table, domain: Domain, key: RecordKey) -> Option<&Record> {
        self.all.get(&(table, domain, key)).map(|record| &**record)
    }

    /// Returns the record at a position of a table, tombstones included.
    pub fn at(&self, table: Table, at: &PlaceKey) -> Option<&Record> {
        // The key alone decides; a place that does not fit to it has no record.
        self.get(table, at.place.domain(), at.key).filter(|record| record.header().placement() == at.place)
    }

    /// Returns the records of a table and domain in ascending order of their keys, tombstones included.
    pub fn list(
        &self,
        table: Table,
        domain: Domain,
        after: Option<RecordKey>,
    ) -> impl Iterator<Item = &Record> {
        let from = after.map_or(Bound::Included((table, domain, RecordKey([0; 32]))), |key| {
            Bound::Excluded((table, domain, key))
        });
        let to = Bound::Included((table, domain, RecordKey([0xff; 32])));
        self.all.range((from, to)).map(|(_, record)| look(&**record))
    }

    /// Returns the records of a table and domain whose places lie in a range, in ascending order of their keys.
    pub fn list_within(
        &self,
        table: Table,
        domain: Domain,
        range: Segment,
        after: Option<RecordKey>,
    ) -> impl Iterator<Item = &Record> {
        let order = self.orders.get(&table).into_iter();
        let inside = order.flat_map(|order| {
            let own = Segment::of_domain(domain);
            let (from, to) = (range.from.max(own.from), range.to.min(own.to));
            order.range(PlaceKey::first_at(from), PlaceKey::last_at(to)).map(|at| at.key)
        });
        let few = self.few(table, domain, inside);
        let many = few.is_none().then(|| self.list(table, domain, after)).into_iter().flatten();
        let few = few.into_iter().flatten().filter(move |key| after.is_none_or(|after| *key > after));
        let few = few.filter_map(move |key| self.get(table, domain, key));
        few.chain(many.filter(move |record| range.contains(record.header().placement())))
    }

    /// Returns entries in order if they are so few that a page of them is found sooner among them than by going through the
    /// domain, where every n-th fits.
    fn few<T: Ord>(
        &self,
        table: Table,
        domain: Domain,
        entries: impl Iterator<Item = T>,
    ) -> Option<BTreeSet<T>> {
        let most = self.count(table, domain).saturating_mul(MAX_LIST).isqrt();
        let mut few = BTreeSet::new();
        for (n, entry) in entries.enumerate() {
            if n >= most {
                return None;
            }
            few.insert(entry);
        }
        Some(few)
    }

    /// Returns the NodeInfo records that carry one of the tags, in ascending order of their keys.
    pub fn tagged(
        &self,
        domain: Domain,
        tags: &[LookupTag],
        after: Option<RecordKey>,
    ) -> impl Iterator<Item = &Record> + use<'_> {
        let keys_of = |tag: &LookupTag| {
            let from = after.map_or(Bound::Included((domain, *tag, RecordKey([0; 32]))), |key| {
                Bound::Excluded((domain, *tag, key))
            });
            let to = Bound::Included((domain, *tag, RecordKey([0xff; 32])));
            self.tags.range((from, to)).map(|(_, _, key)| look(*key)).peekable()
        };
        let mut tags: Vec<_> = tags.iter().map(keys_of).collect();
        let keys = std::iter::from_fn(move || {
            let least = tags.iter_mut().filter_map(|keys| keys.peek().copied()).min()?;
            for keys in &mut tags {
                keys.next_if_eq(&least);
            }
            Some(least)
        });
        keys.filter_map(move |key| self.get(Table::NodeInfo, domain, key))
    }

    /// Returns the records of a table that belong to a segment, over all domains, ascending by the place of the record key,
    /// then by the key (Rule 4.7).
    pub fn in_range(
        &self,
        table: Table,
        segment: Segment,
        after: Option<PlaceKey>,
    ) -> impl Iterator<Item = &Record> {
        let (first, last) = match table {
            // Some of what lies outside belongs to it as well.
            Table::NodeInfo => (PlaceKey::first_at(segment.from), PlaceKey::last_at(segment.to)),
            Table::Node
            | Table::EndDevice
            | Table::DomainKey
            | Table::Revocation
            | Table::Head
            | Table::SuperNode
            | Table::OperatorNode => stretch(table, segment),
        };
        let next = after.map_or(Some(PlaceKey::MIN), |after| after.successor());
        let map = next.filter(|_| table == Table::SuperNode).map(|next| self.map_positions(segment, next));
        let order = next.zip(self.orders.get(&table)).filter(|_| table != Table::SuperNode);
        let inside = order.map(|(next, order)| order.range(next.max(first), last));
        let outside = next.filter(|_| table == Table::NodeInfo).map(|next| {
            let (below, above) = (segment.from.domain(), segment.to.domain());
            let (below, above) = (Segment::of_domain(below).from, Segment::of_domain(above).to);
            let before = self.tagged_between(segment, (next.max(PlaceKey::first_at(below)), first));
            (before, self.tagged_between(segment, (next.max(last), PlaceKey::last_at(above))))
        });
        let (before, behind) = outside.unzip();
        let before = before.into_iter().flatten().filter(move |at| *at < first);
        let behind = behind.into_iter().flatten().filter(move |at| *at > last);
        let inside = map.into_iter().flatten().chain(inside.into_iter().flatten());
        let positions = before.chain(inside).chain(behind);
        positions.filter_map(move |at| self.get(table, at.place.domain(), at.key))
    }

    /// Returns the positions, from one on, of the SuperNode records that belong to a segment: of those who hold any place of its domains.
    fn map_positions(&self, segment: Segment, from: PlaceKey) -> BTreeSet<PlaceKey> {
        let holders = self.holders.in_range(segment.whole_domains()).into_iter();
        let positions = holders.map(|(node, _)| {
            let key = node.record_key();
            PlaceKey { place: PlacementKey::new(node.domain, &key.0), key }
        });
        positions.filter(|at| *at >= from).collect()
    }

    /// Returns the positions of one domain, from one to another, of what has a look-up tag whose place lies in a segment.
    fn tagged_between(
        &self,
        segment: Segment,
        (from, to): (PlaceKey, PlaceKey),
    ) -> impl Iterator<Item = PlaceKey> {
        let domain = to.place.domain();
        let own = Segment::of_domain(domain);
        let (first, last) = (segment.from.max(own.from), segment.to.min(own.to));
        let is_any = from < to && first <= last;
        let tagged = is_any.then(|| self.places.range((first, PlaceKey::MIN)..=(last, PlaceKey::MAX)));
        let tagged = tagged.into_iter().flatten().map(|(_, at)| look(*at));
        let few = self.few(Table::NodeInfo, domain, tagged);
        let order = self.orders.get(&Table::NodeInfo).filter(|_| is_any && few.is_none());
        let many = order.into_iter().flat_map(move |order| order.range(from, to));
        let many = many.filter(move |at| self.is_tagged((domain, at.key), &segment));
        few.into_iter().flatten().filter(move |at| from <= *at && *at <= to).chain(many)
    }

    /// Returns whether a NodeInfo has a look-up tag whose place lies in a segment.
    fn is_tagged(&self, key: (Domain, RecordKey), segment: &Segment) -> bool {
        let places = self.tag_places.get(&key);
        places.is_some_and(|places| places.iter().any(|place| segment.contains(*place)))
    }

    /// Returns whether a record belongs to a segment (Rule 1.8): by its place; a NodeInfo by the places of its tags as well;
    /// revocations and Heads if any place of their domain does; operators always. What is known of super-nodes elsewhere is kept as
    /// well, for those who ask for them here because they were here before.
    fn belongs(&self, record: &Record, segment: &Segment) -> bool {
        let header = record.header();
        match header.table {
            Table::SuperNode | Table::OperatorNode => true,
            Table::Revocation | Table::Head => segment.touches(header.domain),
            Table::Node | Table::EndDevice | Table::DomainKey => segment.contains(header.placement()),
            Table::NodeInfo => {
                self.is_tagged((header.domain, header.key), segment) || segment.contains(header.placement())
            }
        }
    }

    /// Returns how many records of a table and domain are held.
    pub fn count(&self, table: Table, domain: Domain) -> usize {
        self.counts.get(&(table, domain)).copied().unwrap_or(0)
    }

    /// Returns how many records are held.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Returns whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Returns what all records use, in bytes with the overhead that is counted for each.
    pub const fn bytes_held(&self) -> usize {
        self.usage.bytes()
    }

    /// Returns what the records of a domain use, in bytes with overhead.
    pub fn bytes_of(&self, domain: Domain) -> usize {
        self.usage.of(domain)
    }

    /// Summarises a table of a domain: what is valid at `time` (Rule 2.19). Costs what lies between, not a hash of each record.
    pub fn summary(&self, table: Table, domain: Domain, time: UnixTime) -> SetSummary {
        let range = Segment::of_domain(domain);
        let mut total = self.total(table, PlaceKey::first_at(range.from), PlaceKey::last_at(range.to));
        let expired = self.expiries.iter().take_while(|(expires, _)| *expires <= time);
        for (_, key) in expired.filter(|(_, key)| (key.0, key.1) == (table, domain)) {
            if let Some(record) = self.all.get(key) {
                total.subtract(&Sum::of(&record.hash()));
            }
        }
        total.into()
    }

    fn total(&self, table: Table, from: PlaceKey, to: PlaceKey) -> Total {
        self.orders.get(&table).map(|order| order.total(from, to)).unwrap_or_default()
    }

    /// Summarises what is held of a table from one position to another, both included; of SuperNode records what belongs to the range
    /// from one place to another.
    pub fn stretch_summary(&self, table: Table, from: PlaceKey, to: PlaceKey) -> SetSummary {
        if table == Table::SuperNode {
            let range = Segment { from: from.place, to: to.place };
            return SetSummary::of(self.in_range(table, range, None));
        }
        self.total(table, from, to).into()
    }

    /// Cuts a stretch into at most `most` parts that hold about as many records each, whatever their distribution.
    pub fn parts(&self, table: Table, from: PlaceKey, to: PlaceKey, most: u32) -> Vec<Part> {
        let Some(order) = self.orders.get(&table) else {
            return vec![Part { to, summary: SetSummary::default() }];
        };
        let size = order.total(from, to).count.div_ceil(most.max(1)).max(1);
        let parts = order.cut(from, to, size);
        parts.into_iter().map(|(to, total)| Part { to, summary: total.into() }).collect()
    }

    /// Returns what is held from one position to another, both included, in ascending order.
    pub fn within(
        &self,
        table: Table,
        from: PlaceKey,
        to: PlaceKey,
    ) -> impl Iterator<Item = (PlaceKey, &Record)> {
        let positions = self.orders.get(&table).map(|order| order.range(from, to));
        let positions = positions.into_iter().flatten();
        positions.filter_map(move |at| Some((at, self.get(table, at.place.domain(), at.key)?)))
    }

    /// Returns the segment of a super-node, if its record is held and valid at `time`.
    pub fn segment(&self, node: &NodeId, time: UnixTime) -> Option<Segment> {
        let record = self.get(Table::SuperNode, node.domain, node.record_key())?;
        self.holders.segment(node).filter(|_| record.is_valid_at(time))
    }

    /// Returns the SuperNode records valid at `time` whose segment has any place of `range`, in ascending order of their record
    /// keys, over all domains.
    pub fn super_nodes(&self, range: Segment, time: UnixTime) -> impl Iterator<Item = (&Record, Segment)> {
        self.holders.in_range(range).into_iter().filter_map(move |(node, segment)| {
            let record = self.get(Table::SuperNode, node.domain, node.record_key())?;
            record.is_valid_at(time).then_some((record, segment))
        })
    }

    /// Summarises the SuperNode records that concern a domain, as its Head states them (Rule 2.18).
    pub fn super_node_summary(&self, domain: Domain, time: UnixTime) -> SetSummary {
        SetSummary::of(self.super_nodes(Segment::of_domain(domain), time).map(|(record, _)| record))
    }
}

/// Passes on an entry of an index that a read has come across; tests count them.
fn look<T>(entry: T) -> T {
    #[cfg(test)]
    testing::look();
    entry
}

/// Returns the position of a record among those of its table.
pub fn position(record: &Record) -> PlaceKey {
    PlaceKey { place: record.header().placement(), key: record.header().key }
}

/// Returns the first and the last position of what belongs to a segment: by domain for those tables of which a holder has whole
/// domains, and everything for those that every holder has (Rule 4.7). Of SuperNode records, which do not lie where they belong, these
/// are the first and the last of the places that they concern.
pub const fn stretch(table: Table, segment: Segment) -> (PlaceKey, PlaceKey) {
    let places = match table {
        Table::Node | Table::EndDevice | Table::DomainKey => segment,
        Table::NodeInfo | Table::Revocation | Table::Head | Table::SuperNode => segment.whole_domains(),
        Table::OperatorNode => Segment::ALL,
    };
    (PlaceKey::first_at(places.from), PlaceKey::last_at(places.to))
}

fn segment_of(record: &Record) -> Option<Segment> {
    if record.header().table != Table::SuperNode {
        return None;
    }
    SuperNodeBody::read(record).ok().map(|body| body.segment)
}

fn tags_of(record: &Record) -> Vec<LookupTag> {
    if record.header().table != Table::NodeInfo || record.header().removed {
        return Vec::new();
    }
    let mut tags = NodeInfoPublic::read(record).map(|body| body.tags).unwrap_or_default();
    tags.sort_unstable();
    tags.dedup();
    tags
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
