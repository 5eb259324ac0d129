//! The atomics and locks of what calls share, either real or loom's.

#[cfg(not(all(test, fanout_loom)))]
pub(crate) use std::sync::{
    Mutex, MutexGuard, RwLock,
    atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize},
};

#[cfg(all(test, fanout_loom))]
pub(crate) use ::loom::sync::{
    Mutex, MutexGuard, RwLock,
    atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize},
};
