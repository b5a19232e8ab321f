//! Locks.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes a lock whose holders leave nothing half-changed, so that what one of them has left in a panic is as good as ever.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
