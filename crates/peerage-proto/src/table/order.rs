//! The entries of one table by place and key, with the sum of the hashes of any range of them.
//!
//! Entries stand in sorted blocks, and each block knows its own sum. A range costs one addition per block inside of it and one
//! per entry of the two blocks at its ends: with a million entries some 4,000 additions of 256 bits, about as much as one
//! signature. A tree of sums would need fewer, and two to three times the memory.

use std::collections::BTreeMap;
use std::ops::Bound;

use peerage_wire::id::PlaceKey;

use super::look;
use super::sum::{Sum, Total};

/// Most entries of a block. More make an insertion move more bytes, 72 for each entry; fewer make a range add up more blocks.
const MAX_BLOCK: usize = 512;

/// Blocks smaller than this are joined with the one before.
const MIN_BLOCK: usize = MAX_BLOCK / 8;

type Entry = (PlaceKey, Sum);

#[derive(Clone, Debug, Default)]
struct Block {
    total: Total,
    /// In ascending order.
    entries: Vec<Entry>,
}

impl Block {
    fn of(entries: Vec<Entry>) -> Self {
        let mut total = Total::default();
        for (_, hash) in &entries {
            total.add(hash);
        }
        Self { total, entries }
    }

    fn find(&self, at: &PlaceKey) -> Result<usize, usize> {
        self.entries.binary_search_by(|(other, _)| other.cmp(at))
    }
}

/// The entries of one table in the order of their positions.
#[derive(Clone, Debug, Default)]
pub(super) struct Order {
    /// Blocks by the least position that may be in them; the first one's is the least of all.
    blocks: BTreeMap<PlaceKey, Block>,
}

impl Order {
    /// Adds an entry that is not there yet.
    pub(super) fn insert(&mut self, at: PlaceKey, hash: &[u8; 32]) {
        let hash = Sum::of(hash);
        let Some((_, block)) = self.blocks.range_mut(..=at).next_back() else {
            self.blocks.insert(PlaceKey::MIN, Block::of(vec![(at, hash)]));
            return;
        };
        let Err(index) = block.find(&at) else { return };
        block.entries.insert(index, (at, hash));
        block.total.add(&hash);
        if block.entries.len() > MAX_BLOCK {
            let upper = Block::of(block.entries.split_off(MAX_BLOCK / 2));
            block.entries.shrink_to(MAX_BLOCK / 2);
            for (_, hash) in &upper.entries {
                block.total.subtract(hash);
            }
            if let Some((first, _)) = upper.entries.first() {
                self.blocks.insert(*first, upper);
            }
        }
    }

    /// Takes an entry out, if it is there.
    pub(super) fn remove(&mut self, at: &PlaceKey) {
        let Some((start, block)) = self.blocks.range_mut(..=*at).next_back() else { return };
        let Ok(index) = block.find(at) else { return };
        let (_, hash) = block.entries.remove(index);
        block.total.subtract(&hash);
        let (start, len) = (*start, block.entries.len());
        if len < MIN_BLOCK {
            self.join(start, len);
        }
    }

    /// Puts the entries of a small block into the one before it, if there is room for both.
    fn join(&mut self, start: PlaceKey, len: usize) {
        let Some((_, before)) = self.blocks.range_mut(..start).next_back() else { return };
        if before.entries.len().saturating_add(len) > MAX_BLOCK / 2 && len > 0 {
            return;
        }
        let Some(block) = self.blocks.remove(&start) else { return };
        if let Some((_, before)) = self.blocks.range_mut(..start).next_back() {
            before.total.merge(&block.total);
            before.entries.extend(block.entries);
        }
    }

    /// Returns the positions from one to another, both included, in ascending order.
    pub(super) fn range(&self, from: PlaceKey, to: PlaceKey) -> impl Iterator<Item = PlaceKey> + '_ {
        let first = self.blocks.range(..=from).next_back().map(|(start, block)| (start, block, true));
        // BTreeMap::range panics where the start lies behind the end.
        let end = to.max(from);
        let more = self.blocks.range((Bound::Excluded(from), Bound::Included(end)));
        let blocks = first.into_iter().chain(more.map(|(start, block)| (start, block, false)));
        blocks
            .flat_map(move |(_, block, is_first)| {
                let skipped = if is_first { block.find(&from).unwrap_or_else(|index| index) } else { 0 };
                block.entries.iter().skip(skipped)
            })
            .map(|(at, _)| look(*at))
            .take_while(move |at| *at <= to)
    }

    /// Sums up the entries from one position to another, both included.
    pub(super) fn total(&self, from: PlaceKey, to: PlaceKey) -> Total {
        let mut total = Total::default();
        self.walk(from, to, |piece| match piece {
            Piece::Block(block) => total.merge(&block.total),
            Piece::Entry((_, hash)) => total.add(hash),
        });
        total
    }

    /// Cuts a range into parts of `size` entries each, the last one of as many as are left. Each part is given by its last
    /// entry, except the last one, which ends where the range does.
    pub(super) fn cut(&self, from: PlaceKey, to: PlaceKey, size: u32) -> Vec<(PlaceKey, Total)> {
        let mut cut = Cut { size, parts: Vec::new(), part: Total::default(), last: None };
        self.walk(from, to, |piece| match piece {
            Piece::Entry((at, hash)) => cut.entry(*at, hash),
            Piece::Block(block) => cut.block(block),
        });
        cut.parts.push((to, cut.part));
        cut.parts
    }

    /// Visits everything in a range in ascending order: whole blocks where they lie within, and entries where they do not.
    fn walk<'a>(&'a self, from: PlaceKey, to: PlaceKey, mut visit: impl FnMut(Piece<'a>)) {
        if from > to {
            return;
        }
        let start = self.blocks.range(..=from).next_back().map_or(from, |(start, _)| *start);
        for (_, block) in self.blocks.range(start..=to) {
            let within = block.entries.first().is_some_and(|(at, _)| *at >= from)
                && block.entries.last().is_some_and(|(at, _)| *at <= to);
            if within {
                visit(Piece::Block(block));
                continue;
            }
            let skipped = block.find(&from).unwrap_or_else(|index| index);
            for entry in block.entries.iter().skip(skipped).take_while(|(at, _)| *at <= to) {
                visit(Piece::Entry(entry));
            }
        }
    }
}

/// What [`Order::walk`] meets.
enum Piece<'a> {
    Block(&'a Block),
    Entry(&'a Entry),
}

/// A range on its way into parts of equal size.
struct Cut {
    size: u32,
    parts: Vec<(PlaceKey, Total)>,
    part: Total,
    /// The last entry of the part.
    last: Option<PlaceKey>,
}

impl Cut {
    fn entry(&mut self, at: PlaceKey, hash: &Sum) {
        if self.part.count >= self.size {
            let part = std::mem::take(&mut self.part);
            self.parts.extend(self.last.map(|last| (last, part)));
        }
        self.part.add(hash);
        self.last = Some(at);
    }

    fn block(&mut self, block: &Block) {
        if self.part.count.saturating_add(block.total.count) <= self.size {
            self.part.merge(&block.total);
            self.last = block.entries.last().map(|(at, _)| *at).or(self.last);
        } else {
            for (at, hash) in &block.entries {
                self.entry(*at, hash);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use peerage_wire::id::{PlacementKey, RecordKey};
    use proptest::prelude::*;

    use super::*;

    fn at(place: u16, key: u8) -> PlaceKey {
        PlaceKey { place: PlacementKey(u64::from(place)), key: RecordKey([key; 32]) }
    }

    fn summed<'a>(hashes: impl IntoIterator<Item = &'a [u8; 32]>) -> Total {
        let mut total = Total::default();
        for hash in hashes {
            total.add(&Sum::of(hash));
        }
        total
    }

    /// Inserts or removes; few places, so that much happens at the same ones.
    fn changes() -> impl Strategy<Value = Vec<(bool, u16, u8, [u8; 32])>> {
        let change = (prop::bool::weighted(0.7), 0..2_000_u16, 0..3_u8, any::<[u8; 32]>());
        prop::collection::vec(change, 0..4_000)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// Whatever went in and out, sums and order are those of what is inside.
        #[test]
        fn sums_and_order_are_those_of_a_plain_map(
            changes in changes(),
            ranges in prop::collection::vec((0..2_100_u16, 0..2_100_u16), 16),
            size in 1..300_u32,
        ) {
            let mut order = Order::default();
            let mut plain = BTreeMap::new();
            for (adds, place, key, hash) in changes {
                let at = at(place, key);
                if adds && !plain.contains_key(&at) {
                    plain.insert(at, hash);
                    order.insert(at, &hash);
                } else if !adds {
                    plain.remove(&at);
                    order.remove(&at);
                }
            }
            for (from, to) in ranges {
                let (from, to) = (at(from, 1), at(to, 1));
                let inside: Vec<_> = plain.iter().filter(|(at, _)| from <= **at && **at <= to).collect();
                prop_assert_eq!(order.total(from, to), summed(inside.iter().map(|(_, hash)| *hash)));
                let positions: Vec<_> = inside.iter().map(|(at, _)| **at).collect();
                prop_assert_eq!(order.range(from, to).collect::<Vec<_>>(), positions);
                let parts = order.cut(from, to, size);
                let expected: Vec<_> = inside.chunks(usize::try_from(size).unwrap()).collect();
                prop_assert_eq!(parts.len(), expected.len().max(1));
                prop_assert_eq!(parts.last().map(|(end, _)| *end), Some(to));
                for (n, (part, chunk)) in parts.iter().zip(&expected).enumerate() {
                    prop_assert_eq!(part.1, summed(chunk.iter().map(|(_, hash)| *hash)));
                    prop_assert!(n + 1 == parts.len() || Some(part.0) == chunk.last().map(|(at, _)| **at));
                }
            }
        }
    }
}
