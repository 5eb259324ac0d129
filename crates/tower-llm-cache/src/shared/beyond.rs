//! What is looked for in Redis, before a call is made.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::{StreamExt as _, future, stream};
use http::Response;
use tokio::time::Instant;

use super::{Lookup, Shared};
use crate::{
    body::CacheBody,
    directives::Directives,
    flight::Drive,
    headers::Did,
    items::Batch,
    key::CacheKey,
    memory::{Entry, Store, Stored},
    policy::Policy,
    record::Record,
    replay,
    second::{LookFirst, Opened, SecondTier},
};

/// Look-ups for the items of one batch that are made at once.
const ITEMS_AT_ONCE: usize = 64;

/// An answer from Redis.
pub(crate) struct Fetched {
    pub(crate) record: Record,
    pub(crate) age: Duration,
    /// The time that is left.
    pub(crate) ttl: Duration,
}

impl Shared {
    /// Has an answer stored in Redis; returns whether there is one.
    pub(super) fn share(&self, key: &CacheKey, record: &Record, ttl: Duration) -> bool {
        let Some(second) = &self.second else {
            return false;
        };
        second.store(key, record, ttl);
        true
    }

    /// The memory, unless it may hold what other processes have removed.
    pub(crate) fn current_memory(&self) -> Option<&dyn Store> {
        let second = self.second.as_ref();
        let is_current = second.is_none_or(SecondTier::memory_is_current);
        self.memory.as_deref().filter(|_| is_current)
    }

    /// Whether a call looks into Redis before it is made.
    pub(super) fn looks_first(&self, lookup: &Lookup) -> bool {
        self.second.is_some() && !lookup.directives.no_cache
    }

    pub(super) fn look_first(
        self: &Arc<Self>,
        looks: bool,
        lookup: &Lookup,
        upstream: Pin<Box<dyn Drive>>,
    ) -> Pin<Box<dyn Drive>> {
        if !looks {
            return upstream;
        }
        let (shared, lookup) = (Arc::clone(self), lookup.clone());
        let looking = async move {
            let (did, mut found) = shared.find(&lookup).await?;
            found.extensions_mut().insert(did);
            Some(found)
        };
        Box::pin(LookFirst::new(Box::pin(looking), upstream))
    }

    /// The answer that is stored in Redis, for a call that is not made otherwise; `None` without Redis.
    pub(crate) fn look_only<B: Send + 'static>(
        self: &Arc<Self>,
        lookup: &Lookup,
    ) -> Option<impl Future<Output = Option<Response<CacheBody<B>>>> + Send + use<B>> {
        let looks = self.looks_first(lookup);
        let (shared, lookup) = looks.then(|| (Arc::clone(self), lookup.clone()))?;
        Some(async move {
            let (did, response) = shared.find(&lookup).await?;
            shared.counters.shared_hits.fetch_add(1, Ordering::Relaxed);
            Some(shared.as_hit(did, &lookup, response))
        })
    }

    /// Looks for the items of a batch that are not in memory; `None` if none is to be looked for.
    pub(crate) fn look_for_items(
        self: &Arc<Self>,
        batch: &mut Batch,
    ) -> Option<impl Future<Output = Vec<(u32, Fetched)>> + Send + use<>> {
        self.second.as_ref()?;
        let (policy, directives) = batch.wanted()?;
        batch.find_all(self);
        let missing = batch.missing_keys();
        if missing.is_empty() {
            return None;
        }
        let fetching = missing.into_iter().map({
            let shared = Arc::clone(self);
            move |(item, key)| Arc::clone(&shared).fetch_item(item, key, policy, directives)
        });
        let found = stream::iter(fetching).buffer_unordered(ITEMS_AT_ONCE);
        Some(found.filter_map(future::ready).collect())
    }

    async fn fetch_item(
        self: Arc<Self>,
        item: u32,
        key: CacheKey,
        policy: Policy,
        directives: Directives,
    ) -> Option<(u32, Fetched)> {
        // Another caller may have fetched it since this one has looked into the memory.
        if self.holds(&key, directives) {
            return None;
        }
        let fetched = self.fetch(&key, &policy, directives).await?;
        Some((item, fetched))
    }

    /// Whether there is a fresh answer in memory.
    fn holds(&self, key: &CacheKey, directives: Directives) -> bool {
        let memory = self.current_memory();
        let found = memory.and_then(|memory| memory.get(key.digest()));
        found.is_some_and(|Entry(stored)| {
            let now = Instant::now();
            let age = now.saturating_duration_since(stored.stored_at);
            now < stored.fresh_until() && directives.allows(age)
        })
    }

    /// Looks into Redis for the answer to one call.
    async fn find<B>(&self, lookup: &Lookup) -> Option<(Did, Response<CacheBody<B>>)> {
        let fetching = self.fetch(&lookup.asked.key, &lookup.policy, lookup.directives);
        let Fetched { record, age, ttl } = fetching.await?;
        let response = replay::response(&record, lookup)?;
        Some((Did::Hit { age, ttl }, response))
    }

    /// Looks into Redis; what is found enters the memory for the time that is left.
    async fn fetch(
        &self,
        key: &CacheKey,
        policy: &Policy,
        directives: Directives,
    ) -> Option<Fetched> {
        let second = self.second.as_ref()?;
        let (epoch, opened) = second.get(key).await;
        let Opened { record, age, ttl } = opened?;
        // Another process may store answers for longer than this one wants them.
        let ttl = ttl.min(policy.ttl).saturating_sub(age);
        if ttl.is_zero() || !directives.allows(age) || !policy.serves(&record) {
            return None;
        }
        if let Some(memory) = self.current_memory() {
            let now = Instant::now();
            let stored_at = now.checked_sub(age).unwrap_or(now);
            let fresh_for = (now + ttl).duration_since(stored_at);
            let stored = Stored::new(key.clone(), record.clone(), stored_at, fresh_for, policy);
            // A call that did not look here may have stored a newer answer meanwhile.
            memory.insert_unless_newer(Entry(Arc::new(stored)));
            // If a removal came after it was read and before this, it has not removed it.
            if second.was_removed(key, epoch) {
                memory.remove(key.digest());
            }
        }
        Some(Fetched { record, age, ttl })
    }
}
