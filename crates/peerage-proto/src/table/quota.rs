//! Who may hold how much: room is shared between domains by fairness, and within a domain by rank.
//!
//! When the memory is full, whatever has expired goes first. Then the domain that uses the most gives way, as long as it uses
//! more than the one whose record comes would use with it: so a domain below its fair share can always store, and one that
//! floods finds only its own way barred. Within a domain a NodeInfo gives way to what an operator signed, and a device to a
//! revocation; among equals, what expires first.

use std::collections::{BTreeMap, BTreeSet};

use peerage_wire::id::{Domain, RecordKey};
use peerage_wire::record::{Record, Table};
use peerage_wire::time::UnixTime;

/// Records of one table that every domain may have, as long as the memory suffices for all (Ynddal 2016, section 4.3.7).
pub const DOMAIN_FLOOR: usize = 10_000;

/// Most records of one table and domain, whoever holds them. A domain's nodes and devices are bounded by what the operator signs;
/// this bounds what a flood costs where no cap of memory does.
pub const MAX_PER_DOMAIN: usize = 1_000_000;

/// Memory that a super-node lends to records, in bytes, unless its owner says otherwise. More serves more domains; less is kinder
/// to a borrowed machine.
pub const DEFAULT_MAX_BYTES: usize = 64 << 20;

/// What a record costs besides its own bytes: its entries in the indices, as measured by the bench `table`, rounded up.
pub const RECORD_OVERHEAD: usize = 640;

/// What each look-up tag of a NodeInfo costs in the indices by tag and by place, in bytes.
pub const TAG_OVERHEAD: usize = 192;

/// How much may be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    max_bytes: usize,
    max_per_domain: usize,
}

impl Limits {
    /// Makes limits of the memory in bytes, overhead included, and of the records of one table and domain, which are at
    /// least [`DOMAIN_FLOOR`].
    pub const fn new(max_bytes: usize, max_per_domain: usize) -> Self {
        let floored = if max_per_domain < DOMAIN_FLOOR { DOMAIN_FLOOR } else { max_per_domain };
        let capped = if floored > MAX_PER_DOMAIN { MAX_PER_DOMAIN } else { floored };
        Self { max_bytes, max_per_domain: capped }
    }

    /// Returns the most bytes in memory, overhead included.
    pub const fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Returns the most records of one table and domain.
    pub const fn max_per_domain(&self) -> usize {
        self.max_per_domain
    }
}

impl Default for Limits {
    /// No cap of memory: for whoever holds only what operators signed for it, or has a machine of its own.
    fn default() -> Self {
        Self::new(usize::MAX, MAX_PER_DOMAIN)
    }
}

/// What gives way first within a domain; the lower goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    /// Signed by its node, which makes it anew every five minutes.
    Announced,
    /// Signed by an operator.
    Signed,
    /// Says who is to be believed, or who holds what.
    Trust,
}

impl Rank {
    pub(super) const fn of(table: Table) -> Self {
        match table {
            Table::NodeInfo => Self::Announced,
            Table::Node | Table::EndDevice | Table::DomainKey => Self::Signed,
            Table::SuperNode | Table::OperatorNode | Table::Revocation | Table::Head => Self::Trust,
        }
    }
}

/// Returns what a record costs in memory, in bytes.
pub(super) fn cost(record: &Record, tags: usize) -> usize {
    record.bytes().len().saturating_add(RECORD_OVERHEAD).saturating_add(tags.saturating_mul(TAG_OVERHEAD))
}

/// A record in the order of giving way: domain by domain, the lowest rank first, then what expires first.
type Turn = (Domain, Rank, UnixTime, Table, RecordKey);

/// How much each domain uses, and which of its records would go first.
#[derive(Clone, Debug, Default)]
pub(super) struct Usage {
    bytes: usize,
    domains: BTreeMap<Domain, usize>,
    /// The same by size. The operators' own records are few, signed by the root, and never give way: they are not in here.
    by_size: BTreeSet<(usize, Domain)>,
    turns: BTreeSet<Turn>,
}

impl Usage {
    pub(super) fn add(&mut self, record: &Record, cost: usize) {
        self.bytes = self.bytes.saturating_add(cost);
        let domain = record.header().domain;
        self.resize(domain, self.of(domain).saturating_add(cost));
        self.turns.insert(turn(record));
    }

    pub(super) fn remove(&mut self, record: &Record, cost: usize) {
        self.bytes = self.bytes.saturating_sub(cost);
        let domain = record.header().domain;
        self.resize(domain, self.of(domain).saturating_sub(cost));
        self.turns.remove(&turn(record));
    }

    fn resize(&mut self, domain: Domain, size: usize) {
        let before = self.of(domain);
        self.by_size.remove(&(before, domain));
        if size == 0 {
            self.domains.remove(&domain);
            return;
        }
        self.domains.insert(domain, size);
        if domain != Domain::OPERATORS {
            self.by_size.insert((size, domain));
        }
    }

    /// Returns what all records use, in bytes.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns what a domain uses, in bytes.
    pub(super) fn of(&self, domain: Domain) -> usize {
        self.domains.get(&domain).copied().unwrap_or(0)
    }

    /// Returns the record that gives way next to one of `domain` that costs `cost` bytes; `None` if none does. A record that takes
    /// the place of an older one of the same key may displace others of its rank, a new one only those below.
    pub(super) fn victim(
        &self,
        domain: Domain,
        cost: usize,
        rank: Rank,
        is_update: bool,
    ) -> Option<(Table, Domain, RecordKey)> {
        let asks = if domain == Domain::OPERATORS { 0 } else { self.of(domain).saturating_add(cost) };
        let heaviest = self.by_size.last().filter(|(size, other)| *other != domain && *size > asks);
        if let Some((_, heaviest)) = heaviest {
            return self.first_of(*heaviest).map(|(domain, _, _, table, key)| (table, domain, key));
        }
        let (domain, lowest, _, table, key) = self.first_of(domain)?;
        let gives_way = lowest < rank || (is_update && lowest == rank);
        (gives_way && domain != Domain::OPERATORS).then_some((table, domain, key))
    }

    fn first_of(&self, domain: Domain) -> Option<Turn> {
        let least = (domain, Rank::Announced, UnixTime::default(), Table::Node, RecordKey([0; 32]));
        self.turns.range(least..).next().copied().filter(|turn| turn.0 == domain)
    }
}

fn turn(record: &Record) -> Turn {
    let header = record.header();
    (header.domain, Rank::of(header.table), header.expires, header.table, header.key)
}
