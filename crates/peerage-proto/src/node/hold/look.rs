//! What a super-node holds, as invariants look at it from outside.

use peerage_wire::id::{Domain, RecordKey};
use peerage_wire::record::{Record, Table};

use crate::node::Node;
use crate::sizes::TableSize;

impl Node {
    /// Returns the record of a table, domain and key that is held for others, if this is a super-node.
    pub fn held_record(&self, table: Table, domain: Domain, key: RecordKey) -> Option<&Record> {
        self.hold.part.as_ref()?.records.get(table, domain, key)
    }

    /// Returns whether this is a super-node that has everything that it should have, so that it answers for all its places.
    pub fn is_caught_up(&self) -> bool {
        let part = self.hold.part.as_ref();
        part.is_some_and(|part| part.signed == Some(part.segment) && part.announced == Some(part.segment))
    }

    /// Returns how full the tables of the super-node are.
    pub(in crate::node) fn hold_sizes(&self) -> Vec<TableSize> {
        let Some(part) = &self.hold.part else { return Vec::new() };
        let (bytes, most) = (part.records.bytes_held(), part.records.limits().max_bytes());
        let own = [
            TableSize::new("bytes held", bytes, most),
            part.heads.size(),
            part.lacking.size(),
            part.members.size("members that ask"),
            part.holders.size("holders that ask"),
        ];
        own.into_iter().chain(part.contacts.sizes()).chain(part.sync.sizes()).collect()
    }
}
