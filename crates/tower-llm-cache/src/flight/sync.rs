//! The locks and the flag of a flight, either real or loom's.

#[cfg(not(all(test, cache_loom)))]
pub(super) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering, fence},
};

#[cfg(all(test, cache_loom))]
pub(super) use ::loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering, fence},
};
