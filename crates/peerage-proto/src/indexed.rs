//! A map that is asked for single keys much more often than it is walked: found by hash, walked in order.
//!
//! A look-up in an ordered tree waits for memory once a level; here it waits about once, however many entries there are. The keys
//! stand in a tree besides, and only in their order is anything handed out: the order of the hash table, which differs from run to
//! run, is never seen. Its hashes have a secret, so whoever chooses the keys cannot make them meet.

#![expect(
    clippy::disallowed_types,
    reason = "nothing here walks the hash table, so its random order is never seen"
)]

use std::collections::{BTreeSet, HashMap, hash_map};
use std::fmt;
use std::hash::Hash;
use std::ops::RangeBounds;

/// Entries that are found by hash and walked in ascending order of their keys.
#[derive(Clone)]
pub(crate) struct Indexed<K, V> {
    entries: HashMap<K, V>,
    keys: BTreeSet<K>,
}

impl<K, V> Default for Indexed<K, V> {
    fn default() -> Self {
        Self { entries: HashMap::default(), keys: BTreeSet::default() }
    }
}

impl<K: Copy + Ord + Hash, V> Indexed<K, V> {
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key)
    }

    /// Puts an entry in the place of the one with its key, if there is one.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        match self.entries.entry(key) {
            hash_map::Entry::Occupied(mut held) => drop(held.insert(value)),
            hash_map::Entry::Vacant(free) => {
                free.insert(value);
                self.keys.insert(key);
            }
        }
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let value = self.entries.remove(key)?;
        self.keys.remove(key);
        Some(value)
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Returns the entries in ascending order of their keys.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.keys.iter().filter_map(|key| self.entries.get_key_value(key))
    }

    /// Returns the entries of a range of keys, in ascending order of these.
    pub(crate) fn range(&self, range: impl RangeBounds<K>) -> impl Iterator<Item = (&K, &V)> {
        self.keys.range(range).filter_map(|key| self.entries.get_key_value(key))
    }

    /// Changes every entry, in ascending order of the keys.
    pub(crate) fn for_each_mut(&mut self, mut change: impl FnMut(&mut V)) {
        for key in &self.keys {
            if let Some(value) = self.entries.get_mut(key) {
                change(value);
            }
        }
    }

    /// Keeps the entries of which `is_kept` is true; it is asked in ascending order of the keys.
    pub(crate) fn retain(&mut self, mut is_kept: impl FnMut(&K, &mut V) -> bool) {
        let Self { entries, keys } = self;
        keys.retain(|key| {
            let is_kept = entries.get_mut(key).is_some_and(|value| is_kept(key, value));
            if !is_kept {
                entries.remove(key);
            }
            is_kept
        });
    }
}

impl<K: Copy + Ord + Hash + fmt::Debug, V: fmt::Debug> fmt::Debug for Indexed<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_walked_in_the_order_of_their_keys_whatever_came_first() {
        let mut indexed = Indexed::default();
        for key in [5, 1, 9, 3, 7] {
            indexed.insert(key, key * 10);
        }
        indexed.insert(3, 33);
        assert_eq!(indexed.remove(&9), Some(90));
        assert_eq!(indexed.remove(&9), None);
        let all: Vec<_> = indexed.iter().map(|(key, value)| (*key, *value)).collect();
        assert_eq!(all, [(1, 10), (3, 33), (5, 50), (7, 70)]);
        let some: Vec<_> = indexed.range(2..=5).map(|(key, _)| *key).collect();
        assert_eq!(some, [3, 5]);
        indexed.for_each_mut(|value| *value += 1);
        indexed.retain(|key, value| *key != 5 && *value != 11);
        assert_eq!(format!("{indexed:?}"), "{3: 34, 7: 71}");
        assert_eq!((indexed.len(), indexed.get(&5), indexed.get(&7)), (2, None, Some(&71)));
    }
}
