//! What an election draws, and what it computes from ranks.

use std::time::Duration;

use peerage_wire::time::Instant;

use super::{ABSTAINING_DELAY, Election};

impl Election {
    /// Returns how long this node waits before it takes a free seat.
    ///
    /// Few ranks have a short delay and many a long one, as `1 + log₂(rank) / 13` of the whole: so the time between the first and
    /// the second is about the same for three nodes as for three hundred, and longer than a beacon needs to arrive
    /// (Nonnenmacher and Biersack, "Scalable feedback for large groups", 1999).
    pub(super) fn delay(&self, since: Instant) -> Duration {
        /// Beyond 2^13 nodes on a LAN the first would crowd together.
        const BITS: u32 = 13;
        let zeros = self.rank.leading_zeros().min(BITS);
        // The fraction within the power of two, in 1,024ths; linear, which is near enough.
        let mantissa = self.rank.checked_shl(zeros.saturating_add(1)).unwrap_or(0) >> 54;
        let steps = u64::from(BITS.saturating_sub(zeros).saturating_sub(1)).saturating_mul(1_024);
        let steps = if zeros == BITS { 0 } else { steps.saturating_add(mantissa) };
        let spread = u64::try_from(self.config.spread.as_micros()).unwrap_or(u64::MAX);
        let micros = spread.saturating_mul(steps) / (u64::from(BITS) * 1_024);
        let extra = if since < self.abstains_until { ABSTAINING_DELAY } else { Duration::ZERO };
        Duration::from_micros(micros) + extra
    }

    /// Draws a number below another.
    pub(super) fn below(&mut self, bound: u32) -> u32 {
        self.chance = splitmix(self.chance);
        u32::try_from(self.chance >> 32).unwrap_or(0) % bound.max(1)
    }

    /// Draws a time within so many percent of its nominal length.
    pub(super) fn drawn(&mut self, nominal: Duration, percent: u32) -> Duration {
        self.chance = splitmix(self.chance);
        let thousandths = u32::try_from(self.chance >> 44).unwrap_or(0) % (percent.saturating_mul(20) + 1);
        let factor = 1_000_u32.saturating_sub(percent.saturating_mul(10)).saturating_add(thousandths);
        nominal.saturating_mul(factor) / 1_000
    }
}

/// SplitMix64: chance that need not be secret.
pub(super) const fn splitmix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
