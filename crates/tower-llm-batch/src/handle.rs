use std::{fmt, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    Batcher,
    lane::{Place, Waiting},
    shared::Shared,
};

/// Reads the state of a [`BatchLayer`](crate::BatchLayer); cheap to clone.
#[derive(Clone)]
pub struct BatchHandle {
    shared: Arc<dyn ReadStats>,
}

/// The state of a layer, as of now, and what it has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BatchStats {
    /// Keys that have calls.
    pub keys: usize,
    /// Calls that wait until they are sent.
    pub waiting: usize,
    /// Batches in flight.
    pub in_flight: usize,
    /// Calls that were sent in batches; a batch may have one.
    pub calls: u64,
    /// Calls that had no [terms](crate::Batcher::terms) and were sent alone.
    pub alone: u64,
    /// Batches.
    pub batches: u64,
    /// Calls that were made because a batch was rejected.
    pub split_calls: u64,
    /// Calls that were refused: the queue was full, or they waited for too long.
    pub refused: u64,
    /// Calls whose caller left without an answer.
    pub left: u64,
    /// How often a call took over a batch, because the one that drove it was not polled.
    pub takeovers: u64,
    /// Items in all batches.
    pub items: u64,
    /// How long all calls together waited until they were sent.
    pub waited: Duration,
    /// Items that would have fit into all batches.
    capacity: u64,
}

/// What a layer has done so far.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) alone: u64,
    pub(crate) split_calls: u64,
    pub(crate) refused: u64,
    pub(crate) left: u64,
    pub(crate) takeovers: u64,
    calls: u64,
    batches: u64,
    items: u64,
    waited: Duration,
    capacity: u64,
}

trait ReadStats: Send + Sync {
    fn stats(&self) -> BatchStats;
}

impl BatchHandle {
    pub(crate) fn new<Bt: Batcher>(shared: Arc<Shared<Bt>>) -> Self {
        Self { shared }
    }

    /// The state as of now.
    #[must_use]
    pub fn stats(&self) -> BatchStats {
        self.shared.stats()
    }
}

impl<Bt: Batcher> ReadStats for Shared<Bt> {
    fn stats(&self) -> BatchStats {
        self.queue(|queue, _| queue.stats())
    }
}

impl BatchStats {
    /// Calls in a batch on average; `None` before the first.
    #[must_use]
    pub fn mean_calls(&self) -> Option<f64> {
        (self.batches > 0).then(|| self.calls as f64 / self.batches as f64)
    }

    /// How long a call waited on average; `None` before the first.
    #[must_use]
    pub fn mean_wait(&self) -> Option<Duration> {
        let calls = u32::try_from(self.calls).unwrap_or(u32::MAX);
        self.waited.checked_div(calls)
    }

    /// Items in batches, in proportion to what would have fit; `None` before the first batch.
    #[must_use]
    pub fn fill_ratio(&self) -> Option<f64> {
        (self.capacity > 0).then(|| self.items as f64 / self.capacity as f64)
    }
}

impl Counts {
    /// Notes a batch.
    pub(crate) fn took<R>(&mut self, calls: &[(Place, Waiting<R>)], max_items: u64, now: Instant) {
        self.batches += 1;
        self.calls += calls.len() as u64;
        self.capacity = self.capacity.saturating_add(max_items);
        for (_, call) in calls {
            self.items = self.items.saturating_add(call.items);
            let waited = now.saturating_duration_since(call.arrived);
            self.waited = self.waited.saturating_add(waited);
        }
    }

    pub(crate) fn stats(&self, keys: usize, waiting: usize, in_flight: usize) -> BatchStats {
        BatchStats {
            keys,
            waiting,
            in_flight,
            calls: self.calls,
            alone: self.alone,
            batches: self.batches,
            split_calls: self.split_calls,
            refused: self.refused,
            left: self.left,
            takeovers: self.takeovers,
            items: self.items,
            waited: self.waited,
            capacity: self.capacity,
        }
    }
}

impl fmt::Debug for BatchHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BatchHandle").field(&self.stats()).finish()
    }
}
