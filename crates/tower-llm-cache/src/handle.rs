use std::sync::{Arc, atomic::Ordering};

use tokio::time::Instant;

use crate::{
    glob::Glob,
    key::{Bypass, CacheKey},
    shared::Shared,
};

/// Reads and changes what a [`CacheLayer`](crate::CacheLayer) holds; cheap to clone.
#[derive(Clone, Debug)]
pub struct CacheHandle {
    shared: Arc<Shared>,
}

/// The state of a cache, as of now. Counts begin with the layer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheStats {
    /// Calls answered from the store.
    pub hits: u64,
    /// Calls that were sent, because no answer was stored that would do.
    pub misses: u64,
    /// Calls that shared the call of another caller while it was in flight.
    pub collapsed: u64,
    /// Inputs of embeddings that were not sent: they were stored, in flight, or more than once in a batch.
    pub items_reused: u64,
    /// Inputs of embeddings that were sent.
    pub items_sent: u64,
    /// Answers stored. Each input of embeddings has one.
    pub stored: u64,
    /// Answers to calls that were sent, and that were not stored: failed, cut, filtered, too large, or calling tools.
    pub not_stored: u64,
    /// Answers evicted to make room. Those that expired are not counted.
    pub evicted: u64,
    /// Answers held, expired ones that were not evicted yet among them.
    pub entries: u64,
    /// The size of all answers held, in bytes.
    pub bytes: u64,
    /// Calls in flight that can be joined.
    pub in_flight: u64,
    bypassed: Vec<(Bypass, u64)>,
}

impl CacheHandle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The state of the cache.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let counters = &self.shared.counters;
        let memory = self.shared.memory.as_ref();
        let size = memory.map(|memory| memory.size()).unwrap_or_default();
        CacheStats {
            hits: counters.hits.load(Ordering::Relaxed),
            misses: counters.misses.load(Ordering::Relaxed),
            collapsed: counters.collapsed.load(Ordering::Relaxed),
            stored: counters.stored.load(Ordering::Relaxed),
            not_stored: counters.not_stored.load(Ordering::Relaxed),
            evicted: size.evicted,
            entries: size.entries,
            bytes: size.bytes,
            items_reused: counters.items_reused.load(Ordering::Relaxed),
            items_sent: counters.items_sent.load(Ordering::Relaxed),
            in_flight: (self.shared.flights.len() + self.shared.claims.calls()) as u64,
            bypassed: counters.bypassed().collect(),
        }
    }

    /// Removes one answer; returns whether there was one.
    ///
    /// A call in flight for it goes on and is stored when it ends.
    #[expect(
        clippy::must_use_candidate,
        reason = "it removes; the answer is for logs"
    )]
    pub fn invalidate(&self, key: &CacheKey) -> bool {
        let memory = self.shared.memory.as_ref();
        memory.is_some_and(|memory| memory.remove(key.digest()))
    }

    /// Removes all answers whose keys match a pattern, such as `ai:completion:claude*`; returns how many.
    ///
    /// `*` stands for any characters and `?` for one. Models stand in keys percent-encoded. The whole memory is looked through.
    #[expect(
        clippy::must_use_candidate,
        reason = "it removes; the answer is for logs"
    )]
    pub fn invalidate_matching(&self, pattern: &str) -> u64 {
        let pattern = Glob::new(pattern);
        let Some(memory) = &self.shared.memory else {
            return 0;
        };
        memory.remove_if(&|stored| pattern.matches(&stored.key.to_string()))
    }

    /// Removes all answers; returns how many.
    #[expect(
        clippy::must_use_candidate,
        reason = "it removes; the answer is for logs"
    )]
    pub fn clear(&self) -> u64 {
        let memory = self.shared.memory.as_ref();
        memory.map_or(0, |memory| memory.remove_if(&|_| true))
    }

    /// Removes the answers that have expired, before they are evicted; returns how many.
    #[expect(
        clippy::must_use_candidate,
        reason = "it removes; the answer is for logs"
    )]
    pub fn purge_expired(&self) -> u64 {
        let now = Instant::now();
        let memory = self.shared.memory.as_ref();
        memory.map_or(0, |memory| {
            memory.remove_if(&|stored| stored.fresh_until <= now)
        })
    }
}

impl CacheStats {
    /// The ratio of cacheable calls that cost no call of their own, from 0 to 1; 0 before the first.
    #[must_use]
    pub fn hit_ratio(&self) -> f64 {
        let free = self.hits + self.collapsed;
        let all = free + self.misses;
        if all == 0 {
            return 0.0;
        }
        free as f64 / all as f64
    }

    /// Calls that had nothing to do with the cache, by reason.
    pub fn bypassed(&self) -> impl Iterator<Item = (Bypass, u64)> {
        self.bypassed.iter().copied()
    }
}
