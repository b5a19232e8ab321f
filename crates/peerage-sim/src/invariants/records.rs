//! No acknowledged record is lost while a holder lives: what the ledger has committed, what operators hold, what disks acknowledged.

use std::collections::BTreeMap;

use peerage_proto::node::Change;
use peerage_wire::id::{Domain, RecordKey};
use peerage_wire::record::Table;
use peerage_wire::time::UnixTime;

use super::{Fact, Invariant};
use crate::host::true_time;
use crate::world::World;

type Key = (Table, Domain, RecordKey);

/// Version and expiry of records.
type Versions = BTreeMap<Key, (u64, UnixTime)>;

/// See the module.
#[derive(Debug, Default)]
pub struct Records {
    /// What each disk has acknowledged.
    written: BTreeMap<usize, Versions>,
    /// What each operator was seen to hold of what nodes announce, since it was started last.
    held: BTreeMap<usize, (u32, Versions)>,
}

impl Records {
    fn check_started(&self, index: usize, world: &World) -> Option<String> {
        let host = world.hosts.get(index)?;
        let node = host.node.as_ref()?;
        let time = true_time(world.now()).unix;
        let is_holder = node.status(host.now(world.now())).super_role.from.is_some();
        // What only a super-node needs is dropped when the role has ended.
        let is_own = |key: &&Key| {
            let is_other = key.0 == Table::DomainKey && key.2 != host.id.record_key();
            key.1 == host.domain && !is_other && key.0 != Table::SuperNode
        };
        let written = self.written.get(&index)?.iter().filter(|(key, _)| is_holder || is_own(key));
        for (key, (version, expires)) in written {
            // The Head is not held among records.
            let head = || node.status(host.now(world.now())).head.map(|head| head.version);
            let own = || node.record(key.0, key.1, key.2);
            let both = || own().into_iter().chain(node.held_record(key.0, key.1, key.2));
            let record = || both().map(|record| record.header().version).max();
            let held = if key.0 == Table::Head { head() } else { record() }.unwrap_or(0);
            if *expires > time && held < *version {
                return Some(format!(
                    "computer {index} starts with version {held} of {key:?}, not {version}"
                ));
            }
        }
        None
    }

    fn check_operator(&mut self, index: usize, world: &World) -> Option<String> {
        let time = true_time(world.now()).unix;
        let (_, operator) = world.operators().find(|(up, _)| *up == index)?;
        let held =
            |key: Key| operator.record(key.0, key.1, key.2).map_or(0, |record| record.header().version);
        for record in world.ledger.records().filter(|record| record.header().expires > time) {
            let key = record.header().id();
            if held(key) < record.header().version {
                return Some(format!("operator {index} has lost {key:?}"));
            }
        }
        let boot = world.operator_boot(index);
        let (seen_in, seen) = self.held.entry(index).or_default();
        if *seen_in != boot {
            (*seen_in, *seen) = (boot, BTreeMap::new());
        }
        seen.retain(|_, (_, expires)| *expires > time);
        for (key, (version, _)) in &*seen {
            if held(*key) < *version {
                return Some(format!("operator {index} has lost version {version} of {key:?}"));
            }
        }
        for host in &world.hosts {
            let key = (Table::NodeInfo, host.domain, host.id.record_key());
            if let Some(record) = operator.record(key.0, key.1, key.2) {
                seen.insert(key, (record.header().version, record.header().expires));
            }
        }
        None
    }
}

impl Invariant for Records {
    fn name(&self) -> &'static str {
        "no acknowledged record is lost"
    }

    fn observe(&mut self, fact: &Fact<'_>, world: &World) -> Option<String> {
        match fact {
            Fact::Acknowledged { host, changes } => {
                let written = self.written.entry(*host).or_default();
                for change in *changes {
                    match change {
                        Change::Put(record) => {
                            let header = record.header();
                            written.insert(header.id(), (header.version, header.expires));
                        }
                        Change::Delete { table, domain, key } => {
                            written.remove(&(*table, *domain, *key));
                        }
                    }
                }
                None
            }
            Fact::Restored { host } => {
                self.written.remove(host);
                None
            }
            Fact::Started { host } => self.check_started(*host, world),
            Fact::Sent { .. }
            | Fact::Deed { .. }
            | Fact::Asked { .. }
            | Fact::Served { .. }
            | Fact::UsedHere { .. } => None,
        }
    }

    fn sample(&mut self, world: &World) -> Option<String> {
        let up: Vec<_> = world.operators().map(|(index, _)| index).collect();
        up.into_iter().find_map(|index| self.check_operator(index, world))
    }
}
