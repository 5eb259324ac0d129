//! Plain values, beside answers.
//!
//! moka makes one load of all that ask for the same value at the same time, without a task: a caller that is dropped while it
//! loads is followed by one of those that wait, with its own loader. Its expiry keeps its own time; an entry says here when it
//! is stale, by tokio's, as stored answers do.

use std::{
    any::{Any, TypeId},
    fmt,
    future::{Future, ready},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use moka::{future::Cache, ops::compute::Op, policy::EvictionPolicy};
use tokio::time::Instant;

/// The values of one cache.
pub(crate) struct Values {
    cache: Cache<Name, Value, foldhash::fast::RandomState>,
    pub(crate) hits: AtomicU64,
    pub(crate) loads: AtomicU64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Name {
    namespace: Box<str>,
    id: Box<str>,
    /// Values of different types have different entries.
    kind: TypeId,
}

#[derive(Clone)]
struct Value {
    value: Arc<dyn Any + Send + Sync>,
    fresh_until: Instant,
}

impl Values {
    pub(crate) fn new(max_values: u64) -> Self {
        let cache = Cache::builder()
            .max_capacity(max_values)
            .eviction_policy(EvictionPolicy::lru())
            .build_with_hasher(foldhash::fast::RandomState::default());
        Self {
            cache,
            hits: AtomicU64::new(0),
            loads: AtomicU64::new(0),
        }
    }

    pub(crate) async fn value<T, E, F, Fut>(
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
        let name = Name {
            namespace: namespace.into(),
            id: id.into(),
            kind: TypeId::of::<T>(),
        };
        if let Some(found) = self.cache.get(&name).await {
            if found.is_fresh() {
                self.hits.fetch_add(1, Ordering::Relaxed);
                return Ok(found.get());
            }
            // Only if it is stale still: another caller may have loaded it since.
            let entry = self.cache.entry(name.clone());
            let remove_stale = entry.and_compute_with(|entry| {
                ready(match entry {
                    Some(entry) if !entry.value().is_fresh() => Op::Remove,
                    _ => Op::Nop,
                })
            });
            remove_stale.await;
        }
        let load = async {
            self.loads.fetch_add(1, Ordering::Relaxed);
            let value: Arc<dyn Any + Send + Sync> = Arc::new(load().await?);
            // A time too far to be told is beyond the life of the process.
            let now = Instant::now();
            let fresh_until = now.checked_add(ttl.min(MAX_TTL)).unwrap_or(now);
            Ok(Value { value, fresh_until })
        };
        let entry = self.cache.entry(name).or_try_insert_with(load).await?;
        if entry.is_fresh() {
            // moka evicts now and then. A load costs more than this.
            self.cache.run_pending_tasks().await;
        }
        Ok(entry.into_value().get())
    }

    pub(crate) async fn remove(&self, namespace: &str, id: &str) -> bool {
        let entries = self.cache.iter();
        let named = entries.filter(|(name, _)| *name.namespace == *namespace && *name.id == *id);
        let names: Vec<_> = named.map(|(name, _)| name).collect();
        for name in &names {
            self.cache.invalidate(&**name).await;
        }
        !names.is_empty()
    }

    pub(crate) fn clear(&self) {
        self.cache.invalidate_all();
    }

    pub(crate) fn len(&self) -> u64 {
        self.cache.iter().count() as u64
    }
}

const MAX_TTL: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

impl Value {
    fn is_fresh(&self) -> bool {
        Instant::now() < self.fresh_until
    }

    fn get<T: Clone + 'static>(&self) -> T {
        let value = self.value.downcast_ref::<T>();
        value.expect("the type is part of the name").clone()
    }
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Values").finish_non_exhaustive()
    }
}
