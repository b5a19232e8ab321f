//! How many bytes a relay gives: a rate, and a total for each day.

use std::time::Duration;

use peerage_wire::time::Instant;

/// Least bytes that are granted at a time, unless less is left of a day; smaller portions would cost a wake-up each.
pub const MIN_GRANT_BYTES: u64 = 16 * 1_024;

/// How much of a second's bytes may pass at once. Longer makes the caps coarse, shorter makes fast tunnels wait often.
const BURST: u64 = 4;

/// The time over which a total is counted.
const DAY: Duration = Duration::from_secs(86_400);

/// What is left to give. Not a queue: whoever is told to come back later asks again.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    per_second: Option<u64>,
    per_day: Option<u64>,
    /// Bytes that may pass now.
    tokens: u64,
    /// Up to when tokens were filled in.
    filled_at: Instant,
    day_ends_at: Instant,
    /// Bytes of the day so far.
    of_day: u64,
    /// Bytes ever.
    total: u64,
}

impl Allowance {
    /// Makes a full allowance; `None` is without limit.
    pub fn new(per_second: Option<u64>, per_day: Option<u64>, now: Instant) -> Self {
        let day_ends_at = now.after(DAY);
        let mut allowance =
            Self { per_second, per_day, tokens: 0, filled_at: now, day_ends_at, of_day: 0, total: 0 };
        allowance.tokens = allowance.burst();
        allowance
    }

    /// Sets other limits; what has passed today counts against the new ones too.
    pub fn set_limits(&mut self, per_second: Option<u64>, per_day: Option<u64>) {
        (self.per_second, self.per_day) = (per_second, per_day);
        self.tokens = self.tokens.min(self.burst());
    }

    /// Takes up to `wanted` bytes.
    ///
    /// # Errors
    /// If there are none now: when it is worth asking again.
    pub fn take(&mut self, wanted: u64, now: Instant) -> Result<u64, Instant> {
        self.begin_day(now);
        self.fill(now);
        let left_of_day = self.left_of_day();
        if left_of_day == 0 {
            return Err(self.day_ends_at);
        }
        let wanted = wanted.min(left_of_day);
        let granted = match self.per_second {
            None => wanted,
            Some(per_second) => {
                let least = wanted.min(MIN_GRANT_BYTES).min(self.burst());
                if self.tokens < least {
                    let missing = least - self.tokens;
                    let micros = missing.saturating_mul(1_000_000).div_ceil(per_second.max(1));
                    return Err(now.after(Duration::from_micros(micros)));
                }
                wanted.min(self.tokens)
            }
        };
        self.tokens = self.tokens.saturating_sub(granted);
        self.of_day = self.of_day.saturating_add(granted);
        self.total = self.total.saturating_add(granted);
        Ok(granted)
    }

    /// Gives back what was taken and not used.
    pub fn give_back(&mut self, bytes: u64) {
        self.tokens = self.tokens.saturating_add(bytes).min(self.burst());
        self.of_day = self.of_day.saturating_sub(bytes);
        self.total = self.total.saturating_sub(bytes);
    }

    /// Returns whether the day's bytes are used up.
    pub fn is_exhausted(&mut self, now: Instant) -> bool {
        self.begin_day(now);
        self.left_of_day() == 0
    }

    /// Goes on with a day that began before it was made, ends then, and in which so many bytes have passed. One that would end
    /// more than a day from now is shortened: somebody has set a clock.
    pub fn resume(&mut self, ends_at: Instant, of_day: u64, now: Instant) {
        self.day_ends_at = ends_at.min(now.after(DAY));
        self.of_day = of_day;
    }

    /// Returns when the day ends, and how many bytes have passed in it.
    pub fn day(&mut self, now: Instant) -> (Instant, u64) {
        self.begin_day(now);
        (self.day_ends_at, self.of_day)
    }

    /// Returns how many bytes have passed since it was made.
    pub const fn total(&self) -> u64 {
        self.total
    }

    fn burst(&self) -> u64 {
        self.per_second.map_or(0, |rate| (rate / BURST).max(1))
    }

    fn left_of_day(&self) -> u64 {
        self.per_day.map_or(u64::MAX, |most| most.saturating_sub(self.of_day))
    }

    fn begin_day(&mut self, now: Instant) {
        if now >= self.day_ends_at {
            self.day_ends_at = now.after(DAY);
            self.of_day = 0;
        }
    }

    fn fill(&mut self, now: Instant) {
        let Some(per_second) = self.per_second else { return };
        let micros = u64::try_from((now - self.filled_at).as_micros()).unwrap_or(u64::MAX);
        let new = per_second.saturating_mul(micros) / 1_000_000;
        if new > 0 {
            // What does not make a whole byte stays for the next time.
            let used = new.saturating_mul(1_000_000) / per_second.max(1);
            self.filled_at =
                if micros > 2_000_000 { now } else { self.filled_at.after(Duration::from_micros(used)) };
            self.tokens = self.tokens.saturating_add(new).min(self.burst());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_micros(millis * 1_000)
    }

    /// Takes all that is to be had until `end`, as an eager tunnel does.
    fn drink(allowance: &mut Allowance, from: Instant, end: Instant) -> u64 {
        let (mut now, mut sum) = (from, 0);
        while now <= end {
            match allowance.take(65_536, now) {
                Ok(bytes) => sum += bytes,
                Err(again_at) => {
                    assert!(again_at > now, "a wait must have an end that lies ahead");
                    now = again_at;
                }
            }
        }
        sum
    }

    #[test]
    fn an_eager_tunnel_gets_the_rate_and_one_burst() {
        for rate in [1_000, 10_000, 1_000_000, 100_000_000_u64] {
            let mut allowance = Allowance::new(Some(rate), None, at(0));
            let sum = drink(&mut allowance, at(0), at(10_000));
            assert!(sum <= 10 * rate + rate / 4 + 1, "{rate}: {sum}");
            assert!(sum >= 10 * rate - rate / 4 - 1, "{rate}: {sum}");
            assert_eq!(allowance.total(), sum);
        }
    }

    #[test]
    fn a_pause_does_not_save_up_more_than_a_burst() {
        let mut allowance = Allowance::new(Some(400_000), None, at(0));
        drink(&mut allowance, at(0), at(1_000));
        let first = allowance.take(u64::MAX, at(100_000)).unwrap();
        assert_eq!(first, 100_000);
    }

    #[test]
    fn lower_limits_hold_at_once_and_the_day_goes_on() {
        let mut allowance = Allowance::new(Some(400_000), Some(100_000), at(0));
        assert_eq!(allowance.take(60_000, at(0)), Ok(60_000));
        allowance.set_limits(Some(40_000), Some(65_000));
        assert_eq!(allowance.take(60_000, at(0)), Ok(5_000));
        assert!(allowance.is_exhausted(at(1)));
        allowance.set_limits(Some(40_000), Some(200_000));
        assert_eq!(allowance.take(60_000, at(0)), Err(at(125)), "half of a burst of the new rate is missing");
        assert_eq!(allowance.take(60_000, at(125)), Ok(10_000));
        assert_eq!(allowance.total(), 75_000);
    }

    #[test]
    fn the_total_of_a_day_ends_and_begins_again() {
        let mut allowance = Allowance::new(None, Some(100_000), at(5));
        assert_eq!(allowance.take(60_000, at(6)), Ok(60_000));
        assert_eq!(allowance.take(60_000, at(6)), Ok(40_000));
        let tomorrow = at(5).after(DAY);
        assert_eq!(allowance.take(1, at(7)), Err(tomorrow));
        assert!(allowance.is_exhausted(at(8)));
        assert!(!allowance.is_exhausted(tomorrow));
        assert_eq!(allowance.take(60_000, tomorrow), Ok(60_000));
    }

    #[test]
    fn a_day_goes_on_after_a_restart_and_ends_when_it_would_have() {
        let mut before = Allowance::new(None, Some(100), at(0));
        assert_eq!(before.take(70, at(1)), Ok(70));
        let (ends_at, of_day) = before.day(at(2));
        let mut after = Allowance::new(None, Some(100), at(2));
        after.resume(ends_at, of_day, at(2));
        assert_eq!((after.take(100, at(3)), after.total()), (Ok(30), 30));
        assert_eq!(after.take(1, at(4)), Err(ends_at));
        assert_eq!(after.take(100, ends_at), Ok(100));
        // A clock was set back by a week meanwhile.
        after.resume(ends_at.after(7 * DAY), 100, at(5));
        assert_eq!(after.take(1, at(5)), Err(at(5).after(DAY)));
    }

    #[test]
    fn what_is_given_back_may_be_taken_again() {
        let mut allowance = Allowance::new(None, Some(100), at(0));
        assert_eq!(allowance.take(100, at(0)), Ok(100));
        allowance.give_back(30);
        assert_eq!((allowance.total(), allowance.take(100, at(0))), (70, Ok(30)));
    }

    #[test]
    fn without_limits_everything_passes() {
        let mut allowance = Allowance::new(None, None, at(0));
        assert_eq!(allowance.take(u64::MAX, at(0)), Ok(u64::MAX));
        assert!(!allowance.is_exhausted(at(0)));
    }
}
