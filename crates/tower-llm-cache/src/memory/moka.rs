//! Least recently and least frequently used first: moka, with weights.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

#[cfg(any(feature = "redis", test))]
use moka::ops::compute::Op;
use moka::{notification::RemovalCause, policy::EvictionPolicy, sync::Cache};

use super::{Entry, Size, Store, Stored};

pub(super) struct Moka {
    cache: Cache<[u8; 32], Entry, foldhash::fast::RandomState>,
    /// What a weight of one stands for, in bytes.
    unit: u64,
    evicted: Arc<AtomicU64>,
}

impl Moka {
    pub(super) fn lru(max_bytes: u64, max_entries: u64) -> Self {
        Self::new(max_bytes, max_entries, EvictionPolicy::lru())
    }

    pub(super) fn tiny_lfu(max_bytes: u64, max_entries: u64) -> Self {
        Self::new(max_bytes, max_entries, EvictionPolicy::tiny_lfu())
    }

    fn new(max_bytes: u64, max_entries: u64, policy: EvictionPolicy) -> Self {
        let evicted = Arc::new(AtomicU64::new(0));
        let evictions = Arc::clone(&evicted);
        // Moka has one capacity. Where answers are counted, each weighs at least its part of all bytes; in a unit in which
        // that fits.
        let least = max_bytes / max_entries;
        let unit = least.div_ceil(u32::MAX.into()).max(1);
        let cache = Cache::builder()
            .max_capacity(max_bytes / unit)
            .weigher(move |_, entry: &Entry| {
                let weight = entry.weight().div_ceil(unit).max(least / unit);
                u32::try_from(weight).unwrap_or(u32::MAX)
            })
            .eviction_policy(policy)
            .eviction_listener(move |_, _, cause| {
                if cause == RemovalCause::Size {
                    evictions.fetch_add(1, Ordering::Relaxed);
                }
            })
            .build_with_hasher(foldhash::fast::RandomState::default());
        Self {
            cache,
            unit,
            evicted,
        }
    }
}

/// Without the answers.
impl fmt::Debug for Moka {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Moka").finish_non_exhaustive()
    }
}

impl Store for Moka {
    fn get(&self, digest: &[u8; 32]) -> Option<Entry> {
        self.cache.get(digest)
    }

    fn insert(&self, entry: Entry) {
        self.cache.insert(*entry.digest(), entry);
    }

    #[cfg(any(feature = "redis", test))]
    fn insert_unless_newer(&self, entry: Entry) {
        let held = self.cache.entry(*entry.digest());
        held.and_compute_with(|held| match held {
            Some(held) if held.value().0.stored_at > entry.0.stored_at => Op::Nop,
            _ => Op::Put(entry),
        });
    }

    fn remove(&self, digest: &[u8; 32]) -> bool {
        self.cache.remove(digest).is_some()
    }

    fn remove_if(&self, matches: &dyn Fn(&Stored) -> bool) -> u64 {
        // Not moka's own predicates: those run later, for what is asked for, and must live as long.
        let found = self.cache.iter().filter(|(_, entry)| matches(&entry.0));
        let digests: Vec<_> = found.map(|(digest, _)| *digest).collect();
        let removed = digests.iter().filter(|digest| self.remove(digest));
        removed.count() as u64
    }

    fn size(&self) -> Size {
        self.cache.run_pending_tasks();
        Size {
            entries: self.cache.entry_count(),
            bytes: self.cache.weighted_size().saturating_mul(self.unit),
            evicted: self.evicted.load(Ordering::Relaxed),
        }
    }
}
