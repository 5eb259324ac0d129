//! The locks and atomics of a circuit, as they are and as loom tries them.

use std::sync::PoisonError;

#[cfg(not(all(test, breaker_loom)))]
pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};

#[cfg(all(test, breaker_loom))]
pub(crate) use ::loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, Ordering},
};

/// Nothing of the user's runs while one of these locks is held: poison says nothing.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
