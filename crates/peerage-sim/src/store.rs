//! A node's disk: slow, full, or cut off in the middle.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use peerage_proto::node::{Change, TaskId};
use peerage_wire::id::{Domain, RecordKey};
use peerage_wire::record::{Record, Table};

/// How the disk is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// Writes are done after this time.
    Good(Duration),
    /// Every write is refused.
    Full,
}

type Key = (Table, Domain, RecordKey);

/// What is on the disk, and what is on its way there.
#[derive(Clone, Debug)]
pub struct Store {
    /// How it behaves.
    pub disk: Disk,
    /// A planted bug: it acknowledges what it does not write.
    pub forgets: bool,
    records: BTreeMap<Key, Record>,
    pending: VecDeque<(TaskId, Vec<Change>)>,
    snapshot: Option<BTreeMap<Key, Record>>,
}

impl Store {
    /// Makes a disk with these records.
    pub fn new(records: impl IntoIterator<Item = Record>) -> Self {
        let records = records.into_iter().map(|record| (record.header().id(), record)).collect();
        Self {
            disk: Disk::Good(Duration::ZERO),
            forgets: false,
            records,
            pending: VecDeque::new(),
            snapshot: None,
        }
    }

    /// Begins a write.
    pub fn begin(&mut self, task: TaskId, changes: Vec<Change>) {
        self.pending.push_back((task, changes));
    }

    /// Ends a write, and those that began before. Returns what is safe now, or nothing if the disk refused; none if a crash came between.
    pub fn end(&mut self, task: TaskId) -> Option<Vec<Change>> {
        let at = self.pending.iter().position(|(pending, _)| *pending == task)?;
        let done = self.pending.drain(..=at).collect::<Vec<_>>();
        if self.disk == Disk::Full {
            return Some(Vec::new());
        }
        let changes: Vec<_> = done.into_iter().flat_map(|(_, changes)| changes).collect();
        if !self.forgets {
            self.apply(changes.clone());
        }
        Some(changes)
    }

    fn apply(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Put(record) => {
                    self.records.insert(record.header().id(), record);
                }
                Change::Delete { table, domain, key } => {
                    self.records.remove(&(table, domain, key));
                }
            }
        }
    }

    /// Returns how many writes are under way.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Loses power: the first `survivors` of the writes under way are on the disk, though nobody was told; the others are lost.
    pub fn crash(&mut self, survivors: usize) {
        let survivors: Vec<_> = self.pending.drain(..).take(survivors).collect();
        if self.disk != Disk::Full {
            for (_, changes) in survivors {
                self.apply(changes);
            }
        }
    }

    /// Keeps a copy of the disk, as a backup does.
    pub fn keep_snapshot(&mut self) {
        self.snapshot = Some(self.records.clone());
    }

    /// Puts the copy back, if there is one.
    pub fn restore_snapshot(&mut self) -> bool {
        let Some(snapshot) = self.snapshot.clone() else { return false };
        self.records = snapshot;
        true
    }

    /// Returns the records on the disk.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }
}

#[cfg(test)]
mod tests {
    use peerage_wire::crypto::Crypto as _;
    use peerage_wire::record::{Draft, EndDevice, Header};
    use peerage_wire::time::UnixTime;

    use super::*;
    use crate::crypto::Cheap;

    fn put(version: u64) -> Vec<Change> {
        let key = peerage_wire::keys::IdentityKey::from_seed(&[1; 32]);
        let signer = key.node_id(Domain(1));
        let expires = UnixTime::from_millis(version + 1);
        let header = Header {
            table: Table::EndDevice,
            domain: Domain(1),
            key: RecordKey([1; 32]),
            version,
            expires,
            signer,
            removed: true,
        };
        assert!(!Cheap::default().verify(&key.public(), b"", &[0; 64]));
        let draft = Draft { header, public: EndDevice::public(), private: None };
        vec![Change::Put(draft.sign(&key, &peerage_wire::id::NetworkId([0; 32]), &Cheap::default()).unwrap())]
    }

    fn versions(store: &Store) -> Vec<u64> {
        store.records().map(|record| record.header().version).collect()
    }

    #[test]
    fn a_crash_keeps_what_was_acknowledged_and_the_first_of_the_rest() {
        let mut store = Store::new([]);
        for version in 1..=3 {
            store.begin(TaskId(version), put(version));
        }
        assert_eq!(store.end(TaskId(1)).map(|changes| changes.len()), Some(1));
        assert_eq!(versions(&store), [1]);
        store.crash(1);
        assert_eq!(versions(&store), [2]);
        assert_eq!(store.end(TaskId(3)), None);
    }

    #[test]
    fn a_full_disk_refuses_and_a_backup_comes_back() {
        let mut store = Store::new([]);
        store.begin(TaskId(1), put(1));
        store.end(TaskId(1));
        store.keep_snapshot();
        store.begin(TaskId(2), put(2));
        store.end(TaskId(2));
        store.disk = Disk::Full;
        store.begin(TaskId(3), put(3));
        assert_eq!(store.end(TaskId(3)), Some(Vec::new()));
        assert_eq!(versions(&store), [2]);
        assert!(store.restore_snapshot());
        assert_eq!(versions(&store), [1]);
    }
}
