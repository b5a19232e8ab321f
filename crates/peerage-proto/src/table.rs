//! The part of the distributed table that a node holds, in memory: every entry was verified.
//!
//! Disk is the durable log behind it; reads are answered from here alone. One record stands for each table,
//! domain and key: the one with the highest version, until it expires (Rule 2.21).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use peerage_wire::id::{Domain, LookupTag, RecordKey};
use peerage_wire::record::{NodeInfoPublic, Record, SetSummary, Table};
use peerage_wire::time::UnixTime;

/// Most records of one table and domain. A domain's nodes and devices are bounded by what the operator signs; this bounds
/// what a flood costs, about 1 GiB for a million full-size records.
pub const MAX_PER_DOMAIN: usize = 1_000_000;

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

type Key = (Table, Domain, RecordKey);

/// The records that this node holds.
#[derive(Clone, Debug, Default)]
pub struct Records {
    all: BTreeMap<Key, Record>,
    /// NodeInfo by look-up tag.
    tags: BTreeMap<(Domain, LookupTag), BTreeSet<RecordKey>>,
    counts: BTreeMap<(Table, Domain), usize>,
    /// By expiry, so that expiring costs what expires.
    expiries: BTreeSet<(UnixTime, Key)>,
}

impl Records {
    /// Offers a verified record.
    pub fn insert(&mut self, record: Record) -> Inserted {
        let key = record.header().id();
        if let Some(held) = self.all.get(&key) {
            if held.bytes() == record.bytes() {
                return Inserted::Same;
            }
            if !record.supersedes(held) {
                return Inserted::Older(held.header().version);
            }
            self.remove(&key);
        } else if self.count(key.0, key.1) >= MAX_PER_DOMAIN {
            return Inserted::Full;
        }
        for tag in tags_of(&record) {
            self.tags.entry((key.1, tag)).or_default().insert(key.2);
        }
        *self.counts.entry((key.0, key.1)).or_default() += 1;
        self.expiries.insert((record.header().expires, key));
        self.all.insert(key, record);
        Inserted::New
    }

    fn remove(&mut self, key: &Key) {
        let Some(record) = self.all.remove(key) else { return };
        self.expiries.remove(&(record.header().expires, *key));
        if let Some(count) = self.counts.get_mut(&(key.0, key.1)) {
            *count = count.saturating_sub(1);
        }
        for tag in tags_of(&record) {
            let Some(keys) = self.tags.get_mut(&(key.1, tag)) else { continue };
            keys.remove(&key.2);
            if keys.is_empty() {
                self.tags.remove(&(key.1, tag));
            }
        }
    }

    /// Removes what has expired and returns it.
    pub fn expire(&mut self, time: UnixTime) -> Vec<Record> {
        let mut gone = Vec::new();
        while let Some((expires, key)) = self.expiries.first().copied() {
            if expires > time {
                break;
            }
            gone.extend(self.all.get(&key).cloned());
            self.remove(&key);
        }
        gone
    }

    /// Returns when the next record expires.
    pub fn next_expiry(&self) -> Option<UnixTime> {
        self.expiries.first().map(|(expires, _)| *expires)
    }

    /// Returns a record, tombstones included.
    pub fn get(&self, table: Table, domain: Domain, key: RecordKey) -> Option<&Record> {
        self.all.get(&(table, domain, key))
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
        self.all.range((from, to)).map(|(_, record)| record)
    }

    /// Returns the NodeInfo records that carry one of the tags, in ascending order of their keys.
    pub fn tagged(&self, domain: Domain, tags: &[LookupTag], after: Option<RecordKey>) -> Vec<&Record> {
        let keys = tags.iter().filter_map(|tag| self.tags.get(&(domain, *tag))).flatten();
        let keys: BTreeSet<_> = keys.filter(|key| after.is_none_or(|after| **key > after)).collect();
        keys.into_iter().filter_map(|key| self.get(Table::NodeInfo, domain, *key)).collect()
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

    /// Summarises a table of a domain: what is valid at `time` (Rule 2.19).
    pub fn summary(&self, table: Table, domain: Domain, time: UnixTime) -> SetSummary {
        SetSummary::of(self.list(table, domain, None).filter(|record| record.is_valid_at(time)))
    }
}

fn tags_of(record: &Record) -> Vec<LookupTag> {
    if record.header().table != Table::NodeInfo || record.header().removed {
        return Vec::new();
    }
    NodeInfoPublic::read(record).map(|body| body.tags).unwrap_or_default()
}
