//! The locks and flags of batches, either real or loom's.

#[cfg(not(all(test, batch_loom)))]
pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering, fence},
};

#[cfg(all(test, batch_loom))]
pub(crate) use ::loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering, fence},
};
