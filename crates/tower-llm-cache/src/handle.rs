use std::{
    future::Future,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    error::InvalidateError,
    key::{Bypass, CacheKey},
    latency::Latency,
    shared::Shared,
    target::Target,
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
    /// Of the hits, those with an answer that was past its time.
    pub stale: u64,
    /// Calls made to renew an answer that was served past its time.
    pub revalidations: u64,
    /// Answers whose renewal was begun before they expired: see [`RefreshAhead`](crate::RefreshAhead).
    pub refreshes: u64,
    /// Answers evicted to make room. Those that expired are not counted.
    pub evicted: u64,
    /// Answers held, expired ones that were not evicted yet among them.
    pub entries: u64,
    /// Of `hits`, those answered from Redis. What is answered from there is held in memory from then on.
    pub shared_hits: u64,
    /// Answers stored in Redis.
    pub shared_stored: u64,
    /// Answers not stored in Redis: it was unavailable, too many were waiting, or they were removed meanwhile.
    pub shared_not_stored: u64,
    /// Look-ups in Redis without a response.
    pub shared_failures: u64,
    /// Values in Redis that were not used: damaged, of another version, or sealed with another secret.
    pub shared_unreadable: u64,
    /// Whether the memory is out of use: removals by other processes are not heard, though Redis can be reached. All answers
    /// come from Redis meanwhile. See [`CacheBuilder::shared`](crate::CacheBuilder#method.shared).
    pub memory_suspended: bool,
    /// The size of all answers held, in bytes.
    pub bytes: u64,
    /// Plain [values](CacheHandle::value) that were held.
    pub value_hits: u64,
    /// Plain values that were loaded, or tried to be.
    pub value_loads: u64,
    /// Plain values held, stale ones that were not evicted yet among them.
    pub values: u64,
    /// Calls in flight that can be joined.
    pub in_flight: u64,
    /// From the call to the response, of the calls in `hits`. It includes the look-up in Redis.
    pub hit_latency: Latency,
    /// From the call to the response headers, of the calls in `misses` that got any. Subtract `hit_latency` to see what a hit
    /// saves; a stream takes longer to its end.
    pub miss_latency: Latency,
    bypassed: Vec<(Bypass, u64)>,
}

/// How many answers were removed; see [`CacheHandle::invalidate`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Removed {
    /// From this process's memory.
    pub memory: u64,
    /// From Redis.
    pub shared: u64,
}

impl CacheHandle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The state of the cache.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let counters = &self.shared.counters;
        let hit_latency = counters.hit_latency.summary();
        let memory = self.shared.memory.as_ref();
        let size = memory.map(|memory| memory.size()).unwrap_or_default();
        CacheStats {
            hits: hit_latency.count,
            misses: counters.misses.load(Ordering::Relaxed),
            collapsed: counters.collapsed.load(Ordering::Relaxed),
            stored: counters.stored.load(Ordering::Relaxed),
            stale: counters.stale.load(Ordering::Relaxed),
            revalidations: counters.revalidations.load(Ordering::Relaxed),
            refreshes: counters.refreshes.load(Ordering::Relaxed),
            not_stored: counters.not_stored.load(Ordering::Relaxed),
            shared_hits: counters.shared_hits.load(Ordering::Relaxed),
            shared_stored: counters.shared_stored.load(Ordering::Relaxed),
            shared_not_stored: counters.shared_not_stored.load(Ordering::Relaxed),
            shared_failures: counters.shared_failures.load(Ordering::Relaxed),
            shared_unreadable: counters.shared_unreadable.load(Ordering::Relaxed),
            memory_suspended: memory.is_some() && self.shared.current_memory().is_none(),
            evicted: size.evicted,
            entries: size.entries,
            bytes: size.bytes,
            items_reused: counters.items_reused.load(Ordering::Relaxed),
            items_sent: counters.items_sent.load(Ordering::Relaxed),
            value_hits: self.shared.values.hits.load(Ordering::Relaxed),
            value_loads: self.shared.values.loads.load(Ordering::Relaxed),
            values: self.shared.values.len(),
            in_flight: (self.shared.flights.len() + self.shared.claims.calls()) as u64,
            hit_latency,
            miss_latency: counters.miss_latency.summary(),
            bypassed: counters.bypassed().collect(),
        }
    }

    /// Removes one answer.
    ///
    /// It is removed from this process's memory, from Redis, and from the memory of the other processes that share it: at
    /// once, if they are connected to Redis, or when they are again, which empties their memory. A process that can reach
    /// Redis, but is not connected for messages, does not use its memory. An answer that waits to be
    /// stored in Redis is removed too. A call in flight for it, in any process, goes on and is stored when it ends; so may be
    /// an answer that another process is storing at that moment.
    ///
    /// # Errors
    ///
    /// [`InvalidateError`] if Redis was not reached: the answer is removed from this process's memory only. Not without
    /// a Redis.
    pub async fn invalidate(&self, key: &CacheKey) -> Result<Removed, InvalidateError> {
        self.remove(Target::Key(key.clone())).await
    }

    /// Removes all answers whose keys match a pattern, such as `ai:completion:claude*`; otherwise as
    /// [`invalidate`](Self::invalidate).
    ///
    /// `*` stands for any characters and `?` for one. Models stand in keys percent-encoded, and the
    /// [`namespace`](crate::CacheBuilder::namespace) is not a part of them. The whole memory is looked through,
    /// and all keys in Redis, 512 at a time. Dropping the future leaves answers in Redis.
    ///
    /// # Errors
    ///
    /// [`InvalidateError`] if a part of Redis was not reached. What could be removed is.
    pub async fn invalidate_matching(&self, pattern: &str) -> Result<Removed, InvalidateError> {
        self.remove(Target::Matching(pattern.to_owned())).await
    }

    /// Removes all answers, from Redis those of all caches with the same namespace, and all plain values of this process; otherwise as [`invalidate_matching`](Self::invalidate_matching). It returns how many answers.
    ///
    /// # Errors
    ///
    /// [`InvalidateError`] if a part of Redis was not reached. What could be removed is.
    pub async fn clear(&self) -> Result<Removed, InvalidateError> {
        self.shared.values.clear();
        self.remove(Target::All).await
    }

    async fn remove(&self, target: Target) -> Result<Removed, InvalidateError> {
        let from_memory = |target: &Target| {
            let memory = self.shared.memory.as_ref();
            memory.map_or(0, |memory| target.remove_from(&**memory))
        };
        #[cfg(feature = "redis")]
        if let Some(second) = &self.shared.second {
            return second.remove(target, from_memory).await;
        }
        Ok(Removed {
            memory: from_memory(&target),
            shared: 0,
        })
    }

    /// The value called `id` in a namespace of your own, held for `ttl`, or loaded: for what is cached beside answers, such as
    /// summaries and metrics.
    ///
    /// Callers that ask for a value while it is loaded wait for it, without a task. If the caller that loads it is dropped,
    /// one that waits loads it with its own `load`. Values are held in this process only, counted and not weighed
    /// ([`max_values`](crate::CacheBuilder::max_values)), and not scoped: put the tenant into the id. Values of different
    /// types with one name are different values. Each caller gets a clone, so let a large value be an `Arc`.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_llm_cache::{CacheLayer, Scope};
    /// # use tower_llm_core::BoxError;
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> Result<(), BoxError> {
    /// # async fn summarize(dialog: &str) -> Result<String, std::io::Error> { Ok(dialog.to_uppercase()) }
    /// let cache = CacheLayer::builder(Scope::caller()).build()?.handle();
    /// let summary = cache.value("dialog:summary", "d-7", Duration::from_secs(600), || summarize("hello"));
    /// assert_eq!(summary.await?, "HELLO");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// That of the load, shared by all callers that waited for it. It is not stored: the next caller loads.
    pub async fn value<T, E, F, Fut>(
        &self,
        namespace: &str,
        id: &str,
        ttl: Duration,
        load: F,
    ) -> Result<T, Arc<E>>
    where
        T: Clone + Send + Sync + 'static,
        E: Send + Sync + 'static,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        self.shared.values.value(namespace, id, ttl, load).await
    }

    /// Removes a value; returns whether there was one. All names are looked through. A load in flight goes on and is stored.
    pub async fn remove_value(&self, namespace: &str, id: &str) -> bool {
        self.shared.values.remove(namespace, id).await
    }

    /// Removes the answers from memory that have expired, before they are evicted; returns how many. Those in Redis expire by
    /// themselves.
    #[expect(
        clippy::must_use_candidate,
        reason = "it removes; the answer is for logs"
    )]
    pub fn purge_expired(&self) -> u64 {
        let now = Instant::now();
        let memory = self.shared.memory.as_ref();
        memory.map_or(0, |memory| memory.remove_if(&|stored| stored.is_over(now)))
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

    /// All numbers, by the names of their fields, for a page or an exporter that leaves none out.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        // Takes the whole apart, so that no field is forgotten.
        macro_rules! named {
            ($whole:ident: $($field:ident),*; $($other:ident),*) => {{
                let &Self { $($field,)* $($other: _,)* } = $whole;
                [$((stringify!($field), $field)),*]
            }};
        }
        named![
            self:
            hits,
            misses,
            collapsed,
            items_reused,
            items_sent,
            stored,
            not_stored,
            stale,
            revalidations,
            refreshes,
            evicted,
            entries,
            shared_hits,
            shared_stored,
            shared_not_stored,
            shared_failures,
            shared_unreadable,
            bytes,
            value_hits,
            value_loads,
            values,
            in_flight;
            hit_latency, miss_latency, bypassed, memory_suspended
        ]
        .into_iter()
    }

    /// Calls that had nothing to do with the cache, by reason.
    pub fn bypassed(&self) -> impl Iterator<Item = (Bypass, u64)> {
        self.bypassed.iter().copied()
    }
}
