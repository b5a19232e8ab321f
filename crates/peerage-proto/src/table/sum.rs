//! Sums of hashes modulo 2^256 (Rule 2.19), in machine words: a range of the table adds thousands of them.

use peerage_wire::record::SetSummary;

/// A sum of hashes; words in ascending significance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum([u64; 4]);

impl Sum {
    pub(super) fn of(hash: &[u8; 32]) -> Self {
        let mut words = [0; 4];
        let (chunks, _) = hash.as_chunks::<8>();
        for (word, chunk) in words.iter_mut().rev().zip(chunks) {
            *word = u64::from_be_bytes(*chunk);
        }
        Self(words)
    }

    pub(super) fn to_bytes(self) -> [u8; 32] {
        let mut out = [0; 32];
        let (chunks, _) = out.as_chunks_mut::<8>();
        for (chunk, word) in chunks.iter_mut().zip(self.0.iter().rev()) {
            *chunk = word.to_be_bytes();
        }
        out
    }

    pub(super) fn add(&mut self, other: &Self) {
        let mut carry = false;
        for (word, add) in self.0.iter_mut().zip(other.0) {
            (*word, carry) = word.carrying_add(add, carry);
        }
    }

    pub(super) fn subtract(&mut self, other: &Self) {
        let mut borrow = false;
        for (word, take) in self.0.iter_mut().zip(other.0) {
            (*word, borrow) = word.borrowing_sub(take, borrow);
        }
    }
}

/// How many entries, and the sum of their hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Total {
    pub(super) count: u32,
    pub(super) sum: Sum,
}

impl Total {
    pub(super) fn add(&mut self, hash: &Sum) {
        self.count = self.count.saturating_add(1);
        self.sum.add(hash);
    }

    pub(super) fn subtract(&mut self, hash: &Sum) {
        self.count = self.count.saturating_sub(1);
        self.sum.subtract(hash);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.count = self.count.saturating_add(other.count);
        self.sum.add(&other.sum);
    }
}

impl From<Total> for SetSummary {
    fn from(total: Total) -> Self {
        Self { count: total.count, sum: total.sum.to_bytes() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Rule 2.19: read as numbers, the most significant byte first.
    #[test]
    fn a_carry_runs_from_the_last_byte_to_the_first() {
        let mut one = [0; 32];
        one[31] = 1;
        let mut sum = Sum::of(&[0xff; 32]);
        sum.add(&Sum::of(&one));
        assert_eq!(sum, Sum::default());
        sum.subtract(&Sum::of(&one));
        assert_eq!(sum.to_bytes(), [0xff; 32]);
        let mut low = [0; 32];
        low[24..].fill(0xff);
        let mut sum = Sum::of(&low);
        sum.add(&Sum::of(&one));
        let mut expected = [0; 32];
        expected[23] = 1;
        assert_eq!(sum.to_bytes(), expected);
    }

    proptest! {
        /// Rule 2.19: the order does not matter, and what is taken away leaves no trace.
        #[test]
        fn what_is_added_can_be_taken_away_in_any_order(a: [u8; 32], b: [u8; 32], c: [u8; 32]) {
            let [a, b, c] = [a, b, c].map(|hash| Sum::of(&hash));
            let mut all = Total::default();
            for hash in [&a, &b, &c] {
                all.add(hash);
            }
            let mut other = Total::default();
            for hash in [&c, &a] {
                other.add(hash);
            }
            all.subtract(&b);
            prop_assert_eq!(all, other);
            prop_assert_eq!(Sum::of(&a.to_bytes()), a);
        }
    }
}
