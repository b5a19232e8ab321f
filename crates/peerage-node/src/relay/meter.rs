//! What all tunnels of a relay share: the allowance of bytes, and the pipes.

use std::sync::{Mutex, PoisonError};

use peerage_proto::relay::Allowance;
use peerage_wire::time::UnixTime;
use tokio::time;

use crate::clock::Clock;

/// What the owner of a computer gives to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Bytes a second, both directions of all tunnels together; `None` without limit.
    pub bytes_per_second: Option<u64>,
    /// Bytes in 24 hours.
    pub bytes_per_day: Option<u64>,
}

impl Default for Caps {
    /// A hundred megabits a second and 200 GB a day: what a small virtual machine has to give away.
    fn default() -> Self {
        Self { bytes_per_second: Some(12_500_000), bytes_per_day: Some(200_000_000_000) }
    }
}

/// Counts what passes, and makes wait what would be too much.
#[derive(Debug)]
pub struct Meter {
    clock: Clock,
    allowance: Mutex<Allowance>,
    #[cfg(target_os = "linux")]
    pub(super) pipes: super::pipe::Pool,
}

impl Meter {
    /// Makes a full one.
    pub fn new(caps: Caps, clock: Clock) -> Self {
        let allowance = Allowance::new(caps.bytes_per_second, caps.bytes_per_day, clock.mono());
        Self {
            clock,
            allowance: Mutex::new(allowance),
            #[cfg(target_os = "linux")]
            pipes: super::pipe::Pool::default(),
        }
    }

    /// Sets other limits, from the next bytes on.
    pub fn set_caps(&self, caps: Caps) {
        self.lock().set_limits(caps.bytes_per_second, caps.bytes_per_day);
    }

    /// Takes up to `wanted` bytes; waits while there are none.
    pub(super) async fn take(&self, wanted: u64) -> u64 {
        loop {
            let now = self.clock.mono();
            let taken = self.lock().take(wanted, now);
            match taken {
                Ok(granted) => return granted,
                Err(again_at) => time::sleep(again_at - now).await,
            }
        }
    }

    /// Gives back what was taken and did not pass.
    pub(super) fn give_back(&self, bytes: u64) {
        if bytes > 0 {
            self.lock().give_back(bytes);
        }
    }

    /// Returns whether the day's bytes are used up.
    pub fn is_exhausted(&self) -> bool {
        self.lock().is_exhausted(self.clock.mono())
    }

    /// Goes on with the day of an earlier run: when it ends, and how many bytes have passed in it.
    pub(super) fn resume_day(&self, (ends, bytes): (UnixTime, u64)) {
        let now = self.clock.now();
        self.lock().resume(now.mono.after(ends.since(now.unix)), bytes, now.mono);
    }

    /// Returns when the day ends, and how many bytes have passed in it.
    pub(super) fn day(&self) -> (UnixTime, u64) {
        let now = self.clock.now();
        let (ends_at, bytes) = self.lock().day(now.mono);
        (now.unix.after(ends_at - now.mono), bytes)
    }

    /// Returns how many bytes have passed.
    pub fn total(&self) -> u64 {
        self.lock().total()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Allowance> {
        // Whoever panics with it leaves numbers that still add up.
        self.allowance.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
