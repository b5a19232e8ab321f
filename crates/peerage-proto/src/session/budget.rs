//! The memory that all sessions of a node share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How far first windows may exceed the budget. They are promised to every session, and few are ever full at once; more would
/// promise memory that is not there, less would refuse tunnels while memory is free.
const OVERBOOKING: u64 = 4;

/// How much memory the windows and send buffers of all sessions of one node may take together, in bytes.
///
/// Receive windows count as promised to the peers, not as filled at the moment, because a promise cannot be
/// taken back. Each session gets its first window of 64 KiB, and a send buffer of 16 KiB, whatever the budget says, until first windows
/// alone are four times the budget; all growth beyond needs room here, and so do buffers that received pieces keep alive, without
/// which they are copied. So sessions keep at most the budget, and 80 KiB each. Clones share the same
/// budget.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Account>);

#[derive(Debug)]
struct Account {
    total: u64,
    used: AtomicU64,
}

impl Budget {
    /// Makes a budget of this many bytes.
    pub fn new(total_bytes: u64) -> Self {
        Self(Arc::new(Account { total: total_bytes, used: AtomicU64::new(0) }))
    }

    /// Returns how many bytes are promised at the moment; may exceed the total by first windows.
    pub fn used_bytes(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// Takes a part for something else than a session, if there is room; it goes back when the value is dropped.
    pub fn try_hold(&self, bytes: u64) -> Option<Held> {
        let mut lease = self.lease(0);
        lease.try_grow(bytes).then_some(Held { _lease: lease })
    }

    /// Returns whether another session may begin: first windows may exceed the total, but not without end.
    pub fn admits(&self) -> bool {
        self.used_bytes() <= self.0.total.saturating_mul(OVERBOOKING)
    }

    pub(super) fn lease(&self, bytes: u64) -> Lease {
        self.0.used.fetch_add(bytes, Ordering::Relaxed);
        Lease { budget: self.clone(), held: bytes }
    }

    /// Takes `bytes` more, if there is room.
    fn try_take(&self, bytes: u64) -> bool {
        // No other memory depends on the counter, so the order of its changes is all that matters.
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.0.total);
        self.0.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }
}

/// A part of a [`Budget`] for something else than a session: the buffers of a link that is busy. Goes back when dropped.
#[derive(Debug)]
pub struct Held {
    _lease: Lease,
}

/// A part of a [`Budget`]; goes back when dropped.
#[derive(Debug)]
pub(super) struct Lease {
    budget: Budget,
    held: u64,
}

impl Lease {
    pub(super) const fn held(&self) -> u64 {
        self.held
    }

    /// Returns whether [`try_grow`](Self::try_grow) would do at the moment.
    pub(super) fn can_grow(&self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.held);
        self.budget.used_bytes().saturating_add(more) <= self.budget.0.total
    }

    /// Grows to `bytes` whatever the budget says; never shrinks.
    pub(super) fn grow(&mut self, bytes: u64) {
        let more = bytes.saturating_sub(self.held);
        self.budget.0.used.fetch_add(more, Ordering::Relaxed);
        self.held += more;
    }

    /// Grows to `bytes` if the budget has room; never shrinks.
    pub(super) fn try_grow(&mut self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.held);
        let granted = self.budget.try_take(more);
        if granted {
            self.held += more;
        }
        granted
    }

    /// Gives back what is above `bytes`.
    pub(super) fn shrink(&mut self, bytes: u64) {
        let less = self.held.saturating_sub(bytes);
        self.budget.0.used.fetch_sub(less, Ordering::Relaxed);
        self.held -= less;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_needs_room_and_a_dropped_lease_gives_everything_back() {
        let budget = Budget::new(100);
        let mut first = budget.lease(60);
        let mut second = budget.lease(60);
        assert_eq!(budget.used_bytes(), 120);
        assert!(!first.try_grow(61));
        second.shrink(10);
        assert!(first.try_grow(90));
        assert!(!second.try_grow(11));
        drop(first);
        assert!(second.try_grow(100));
        drop(second);
        assert_eq!(budget.used_bytes(), 0);
    }
}
