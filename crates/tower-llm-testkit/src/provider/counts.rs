//! Counters, and the state that all connections share.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use super::script::Script;

/// What a provider has received and sent.
///
/// Every request ends as exactly one of `finished`, `closed_by_caller`, `closed_before_head` and
/// `aborted`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Requests whose headers have arrived.
    pub requests: u64,
    /// Requests in flight now, from their headers to the end of the response body.
    pub in_flight: u64,
    /// The most requests in flight at the same time.
    pub max_in_flight: u64,
    /// Response bodies being sent now, streamed or not.
    pub open_streams: u64,
    /// The most response bodies open at the same time.
    pub max_open_streams: u64,
    /// Bodies sent to their end, including early clean ends.
    pub finished: u64,
    /// Bodies that the caller dropped before their end.
    pub closed_by_caller: u64,
    /// Requests that the caller dropped before response headers were sent.
    pub closed_before_head: u64,
    /// Answers that the provider broke off: by resets, or because it was stopped.
    pub aborted: u64,
    /// Requests answered by a fault.
    pub faults: u64,
    /// Input tokens of the answers that were started.
    pub input_tokens: u64,
    /// Output tokens that were sent; of an answer that broke off, those before the break.
    pub output_tokens: u64,
}

/// What all connections of a provider share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    // Std mutexes, not tokio's: held for a few additions and never across an await.
    counts: Mutex<Counts>,
    script: Mutex<Script>,
    stopping: AtomicBool,
}

impl Shared {
    pub(super) fn counts(&self) -> Counts {
        *self.lock()
    }

    pub(super) fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.lock());
    }

    pub(super) fn reset_counts(&self) {
        let mut counts = self.lock();
        let Counts {
            in_flight,
            open_streams,
            ..
        } = *counts;
        *counts = Counts {
            in_flight,
            max_in_flight: in_flight,
            open_streams,
            max_open_streams: open_streams,
            ..Counts::default()
        };
    }

    /// From now on what ends early is the provider's own doing.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
