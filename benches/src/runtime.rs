//! The runtime of what cannot do without one.

use tokio::runtime::{Builder, Runtime};

/// A runtime with one thread beside the one that measures.
///
/// # Panics
///
/// If the thread cannot be started.
#[must_use]
pub fn runtime() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a thread can be started")
}
