//! The Head: an operator's fresh statement of what is newest in a domain (Rules 2.18 and 2.19).

use super::{Record, Table};
use crate::cbor::{Malformed, Map, MapWriter};
use crate::id::{Domain, RecordKey, prefix, sha256};

const LABEL_DIGEST: &[u8] = b"peerage head digest 1";

/// A set of records in short: how many, and the sum of their hashes modulo 2^256 (Rule 2.19). The sum does
/// not depend on their order, and a record can be added or taken away without looking at the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetSummary {
    /// How many records.
    pub count: u32,
    /// The sum of SHA-256 of each record's bytes, big end first.
    pub sum: [u8; 32],
}

impl SetSummary {
    /// Summarises records.
    pub fn of<'a>(records: impl IntoIterator<Item = &'a Record>) -> Self {
        let mut summary = Self::default();
        for record in records {
            summary.add(&record.hash());
        }
        summary
    }

    /// Adds a record by SHA-256 of its bytes.
    pub fn add(&mut self, hash: &[u8; 32]) {
        self.count = self.count.saturating_add(1);
        let mut carry = 0_u16;
        for (byte, add) in self.sum.iter_mut().zip(hash).rev() {
            let [high, low] = (u16::from(*byte) + u16::from(*add) + carry).to_be_bytes();
            *byte = low;
            carry = u16::from(high);
        }
    }

    fn write(&self) -> MapWriter {
        let mut map = MapWriter::new();
        map.uint(1, self.count).bytes(2, &self.sum);
        map
    }

    fn read(mut map: Map<'_>) -> Result<Self, Malformed> {
        let summary = Self { count: map.uint(1)?, sum: map.id(2)? };
        map.finish()?;
        Ok(summary)
    }
}

/// Table Head: what is newest in a domain, and what is revoked (Rule 2.18).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeadBody {
    /// The valid OperatorNode records.
    pub operators: SetSummary,
    /// The valid Revocation records of the domain.
    pub revocations: SetSummary,
    /// The valid EndDevice records of the domain, tombstones included.
    pub devices: SetSummary,
    /// The newest epoch.
    pub epoch: u32,
    /// The version of the segment map for this domain.
    pub map_version: u64,
    /// After how many hours without an operator members stop opening tunnels; `None` for never.
    pub offline_hours: Option<u16>,
    /// The valid SuperNode records whose range holds any place of the domain, tombstones left out; `None` if the
    /// operator does not say.
    pub super_nodes: Option<SetSummary>,
}

impl HeadBody {
    /// Returns the record key of a domain's Head: its number, then zeros.
    pub fn record_key(domain: Domain) -> RecordKey {
        let mut key = [0; 32];
        for (to, from) in key.iter_mut().zip(domain.to_bytes()) {
            *to = from;
        }
        RecordKey(key)
    }

    /// Returns what a Head states in 8 bytes, for neighbours to compare: the same as long as nothing in it has changed
    /// (Rule 6.25).
    pub fn digest(&self) -> [u8; 8] {
        prefix(&sha256(&[LABEL_DIGEST, &self.write().finish()]))
    }

    /// Writes the public body.
    pub fn write(&self) -> MapWriter {
        let mut map = MapWriter::new();
        map.map(1, &self.operators.write())
            .map(2, &self.revocations.write())
            .map(3, &self.devices.write())
            .uint(4, self.epoch)
            .uint(5, self.map_version)
            .optional_uint(6, self.offline_hours);
        if let Some(super_nodes) = &self.super_nodes {
            map.map(7, &super_nodes.write());
        }
        map
    }

    /// Reads the public body and checks that the record has the key of its domain's Head.
    ///
    /// # Errors
    /// If the record is of another table, malformed, or has another key.
    pub fn read(record: &Record) -> Result<Self, Malformed> {
        if record.header().key != Self::record_key(record.header().domain) {
            return Err(Malformed::Type(3));
        }
        record.read_public(Table::Head, |map| {
            Ok(Self {
                operators: SetSummary::read(map.map(1)?)?,
                revocations: SetSummary::read(map.map(2)?)?,
                devices: SetSummary::read(map.map(3)?)?,
                epoch: map.uint(4)?,
                map_version: map.uint(5)?,
                offline_hours: map.optional_uint(6)?,
                super_nodes: map.optional_map(7)?.map(SetSummary::read).transpose()?,
            })
        })
    }
}
