//! Time as plain numbers, so that a simulation can make it.

use std::fmt;
use std::ops::Sub;
use std::time::Duration;

/// A point on a monotonic clock that also advances while the machine is suspended, counted from the
/// process' own start; drives timers only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant {
    micros: u64,
}

impl Instant {
    /// Makes an instant from microseconds since the start of the process.
    pub const fn from_micros(micros: u64) -> Self {
        Self { micros }
    }

    /// Returns the microseconds since the start of the process.
    pub const fn as_micros(self) -> u64 {
        self.micros
    }

    /// Returns this instant moved `by` into the future, at most to the end of time.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self { micros: self.micros.saturating_add(saturating_micros(by)) }
    }

    /// Returns how long ago `earlier` was, zero if it is in the future.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.micros.saturating_sub(earlier.micros))
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.since(earlier)
    }
}

/// Milliseconds since 1970-01-01T00:00:00Z without leap seconds; judges validity only, never drives a timer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime {
    millis: u64,
}

impl UnixTime {
    /// Makes a time from milliseconds since the epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Self { millis }
    }

    /// Makes a time from whole seconds since the epoch.
    pub const fn from_secs(secs: u64) -> Self {
        Self { millis: secs.saturating_mul(1_000) }
    }

    /// Returns the milliseconds since the epoch.
    pub const fn as_millis(self) -> u64 {
        self.millis
    }

    /// Returns the whole seconds since the epoch, rounded down.
    pub const fn as_secs(self) -> u64 {
        self.millis / 1_000
    }

    /// Returns this time moved `by` into the future, at most to the end of time.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self { millis: self.millis.saturating_add(saturating_millis(by)) }
    }

    /// Returns this time moved `by` into the past, at most to the epoch.
    #[must_use]
    pub fn before(self, by: Duration) -> Self {
        Self { millis: self.millis.saturating_sub(saturating_millis(by)) }
    }

    /// Returns this time moved by a signed number of milliseconds.
    #[must_use]
    pub const fn shifted(self, millis: i64) -> Self {
        Self { millis: self.millis.saturating_add_signed(millis) }
    }

    /// Returns how long ago `earlier` was, zero if it is in the future.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.millis.saturating_sub(earlier.millis))
    }

    /// Returns the distance between two times, whichever is earlier.
    pub fn distance(self, other: Self) -> Duration {
        Duration::from_millis(self.millis.abs_diff(other.millis))
    }

    /// Returns the number of the UTC day, counted from 1970-01-01.
    pub const fn day(self) -> u64 {
        self.millis / 86_400_000
    }
}

impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.millis / 1_000, self.millis % 1_000)
    }
}

/// Both clocks, read once by the caller for each input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Never goes back; every timer uses it.
    pub mono: Instant,
    /// The machine's idea of the date; may jump and may be wrong; never used for a timer.
    pub unix: UnixTime,
}

impl Now {
    /// Returns both clocks moved `by` into the future.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self { mono: self.mono.after(by), unix: self.unix.after(by) }
    }
}

fn saturating_micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

fn saturating_millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_saturates_at_both_ends() {
        assert_eq!(UnixTime::from_millis(5).before(Duration::from_secs(1)), UnixTime::default());
        assert_eq!(UnixTime::from_millis(u64::MAX).after(Duration::MAX).as_millis(), u64::MAX);
        assert_eq!(Instant::from_micros(5) - Instant::from_micros(9), Duration::ZERO);
    }

    #[test]
    fn a_day_begins_at_midnight_utc() {
        assert_eq!(UnixTime::from_secs(86_399).day(), 0);
        assert_eq!(UnixTime::from_secs(86_400).day(), 1);
    }
}
