//! All randomness of a run: streams that a seed and a label name, so that one part can draw more without disturbing another.

use std::time::Duration;

use chacha20::ChaCha20Rng;
use rand_core::{Rng as _, SeedableRng as _};

use crate::crypto::Mix;

/// One stream of random numbers.
#[derive(Debug)]
pub struct Chance {
    rng: ChaCha20Rng,
}

impl Chance {
    /// Makes the stream of a seed that has this label.
    pub fn new(seed: u64, label: &str) -> Self {
        let mut mix = Mix::new();
        mix.take(&seed.to_le_bytes());
        mix.take(label.as_bytes());
        Self { rng: ChaCha20Rng::from_seed(mix.out()) }
    }

    /// Returns a number below `end`, or 0 if there is none.
    pub fn below(&mut self, end: u64) -> u64 {
        self.rng.next_u64().checked_rem(end).unwrap_or(0)
    }

    /// Returns an index of a list of this length, 0 if it is empty.
    pub fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or(0)
    }

    /// Returns a number from `from` to `to`, both included.
    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from.saturating_add(self.below(to.saturating_sub(from).saturating_add(1)))
    }

    /// Returns whether something happens that happens `thousandths` times in a thousand. Draws even when the answer is certain,
    /// so that a fault which is switched off does not shift all that follows.
    pub fn happens(&mut self, thousandths: u32) -> bool {
        self.below(1_000) < u64::from(thousandths)
    }

    /// Returns a time from zero to `longest`.
    pub fn duration(&mut self, longest: Duration) -> Duration {
        let micros = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.between(0, micros))
    }

    /// Returns one of a list.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.index(from.len()))
    }

    /// Draws a seed, a key or an id.
    pub fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }

    /// Returns the generator itself, for what draws its own.
    pub const fn rng(&mut self) -> &mut ChaCha20Rng {
        &mut self.rng
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_depends_on_seed_and_label_alone() {
        let draw = |seed, label| Chance::new(seed, label).bytes::<16>();
        assert_eq!(draw(1, "a"), draw(1, "a"));
        assert_ne!(draw(1, "a"), draw(2, "a"));
        assert_ne!(draw(1, "a"), draw(1, "b"));
    }
}
