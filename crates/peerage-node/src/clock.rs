//! The computer's clocks, as the state machines want them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use peerage_wire::time::{Instant, Now, UnixTime};

/// Advances during suspend, unlike the clock behind [`std::time::Instant`]: after a night's sleep every timer is due.
#[cfg(target_os = "linux")]
const STEADY: ClockId = ClockId::CLOCK_BOOTTIME;
/// On macOS this one advances during suspend.
#[cfg(not(target_os = "linux"))]
const STEADY: ClockId = ClockId::CLOCK_MONOTONIC;

/// Reads both clocks; clones share the same origin.
#[derive(Clone, Debug)]
pub struct Clock {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    origin: Duration,
    /// The latest reading that was handed out, in microseconds since the origin.
    latest: AtomicU64,
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock {
    /// Makes a clock whose monotonic time begins now.
    pub fn new() -> Self {
        Self { shared: Arc::new(Shared { origin: steady().unwrap_or_default(), latest: AtomicU64::new(0) }) }
    }

    /// Returns both clocks' time. The monotonic one never goes back, whatever the system says.
    pub fn now(&self) -> Now {
        Now { mono: self.mono(), unix: unix() }
    }

    /// Returns the monotonic time alone.
    pub fn mono(&self) -> Instant {
        // Should the system have no such clock, time stands still rather than jumping.
        let since = steady().unwrap_or_default().saturating_sub(self.shared.origin);
        let micros = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
        Instant::from_micros(self.shared.latest.fetch_max(micros, Ordering::Relaxed).max(micros))
    }
}

fn steady() -> Option<Duration> {
    clock_gettime(STEADY).map(Duration::from).ok()
}

fn unix() -> UnixTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixTime::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monotonic_time_begins_near_zero_and_never_goes_back() {
        let clock = Clock::new();
        let other = clock.clone();
        let mut last = clock.mono();
        for _ in 0..10_000 {
            let next = other.mono();
            assert!(next >= last);
            last = clock.mono();
            assert!(last >= next);
        }
    }

    #[test]
    fn a_later_reading_elsewhere_is_never_undercut() {
        let clock = Clock::new();
        let ahead = 3_600_000_000;
        clock.shared.latest.store(ahead, Ordering::Relaxed);
        assert_eq!(clock.mono(), Instant::from_micros(ahead));
    }
}
