use std::sync::Arc;

use tower_llm_core::{ConfigError, Key};

use crate::{
    Priority,
    gate::Bulkheads,
    permits::{GlobalPermits, Permits},
    priority::ByPriority,
    settings::check_limit,
};

/// Reads the state of a [`BulkheadLayer`](crate::BulkheadLayer) and changes its limits; cheap to clone.
#[derive(Clone, Debug)]
pub struct BulkheadHandle {
    bulkheads: Arc<Bulkheads>,
}

/// The state of one key, as of now.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyStats {
    /// The key; `None` for the limit that keys beyond [`max_keys`](crate::BulkheadBuilder::max_keys) share.
    pub key: Option<Key>,
    /// The limit: a number of calls, or of tokens if calls are [weighed](crate::Weigh).
    pub limit: usize,
    /// Calls that hold permits.
    pub in_flight: usize,
    /// Calls in the queues of all priorities.
    pub waiting: usize,
    /// Calls refused since the key was first seen. The count restarts if the key was evicted in between.
    pub refused: u64,
    /// Permits that the calls in flight hold: one each, or their tokens.
    pub permits_in_use: u64,
    by_priority: ByPriority,
}

/// The state of the limit for all keys together, as of now.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GlobalStats {
    /// The limit: a number of calls, or of tokens if calls are [weighed](crate::Weigh).
    pub limit: usize,
    /// Calls that hold permits.
    pub in_flight: usize,
    /// Calls in the queues of all keys and priorities.
    pub waiting: usize,
    /// Calls refused, for this limit or for a key's.
    pub refused: u64,
    /// Permits that the calls in flight hold: one each, or their tokens.
    pub permits_in_use: u64,
}

impl BulkheadHandle {
    pub(crate) fn new(bulkheads: Arc<Bulkheads>) -> Self {
        Self { bulkheads }
    }

    /// Sets the limit of one key, whether it has been seen or not.
    ///
    /// A raised limit admits waiting calls at once. A lowered limit cuts no call: nothing is admitted until enough calls
    /// have ended. A call that is being admitted at this moment may still use the old limit.
    ///
    /// A key whose limit differs from the one that the layer was built with is never evicted, so it permanently uses one of
    /// [`max_keys`](crate::BulkheadBuilder::max_keys). An [adaptive](crate::Adaptive) limit continues from the new value.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] naming `limit` if it is zero, over 4,294,967,295 or not between the floor and the ceiling of an
    /// adaptive limit; naming `key` if the maximum number of keys is reached and all are in use.
    pub fn set_limit(&self, key: &Key, limit: usize) -> Result<(), ConfigError> {
        let limit = check_limit("limit", limit)?;
        if let Some(rules) = self.bulkheads.adaptive {
            rules.check_limit("limit", limit)?;
        }
        let permits = self.bulkheads.permits.by_key(key);
        if permits.key() != Some(key) {
            let reason = "all keys are in use, and max_keys allows no more";
            return Err(ConfigError::new("key", key, reason));
        }
        permits.set_limit(limit);
        Ok(())
    }

    /// Sets the limit for all keys together; see [`set_limit`](Self::set_limit).
    ///
    /// # Errors
    ///
    /// [`ConfigError`] naming `global_limit` if it is zero or over 4,294,967,295, or if the layer was built without one.
    pub fn set_global_limit(&self, limit: usize) -> Result<(), ConfigError> {
        let limit = check_limit("global_limit", limit)?;
        let Some(all) = &self.bulkheads.all else {
            let reason = "the layer was built without one";
            return Err(ConfigError::new("global_limit", limit, reason));
        };
        all.set_limit(limit);
        Ok(())
    }

    /// The state of each key that has been seen, in no order. The limit that keys share is listed only if it was ever used.
    #[must_use]
    pub fn stats(&self) -> Vec<KeyStats> {
        let mut stats = Vec::new();
        self.bulkheads.permits.for_each(|key, permits| {
            let of_key = KeyStats::of(key, permits);
            if key.is_some() || of_key.in_flight + of_key.waiting > 0 || of_key.refused > 0 {
                stats.push(of_key);
            }
        });
        stats
    }

    /// The state of one key; `None` if no call with it has been seen.
    #[must_use]
    pub fn stats_of(&self, key: &Key) -> Option<KeyStats> {
        let permits = self.bulkheads.permits.peek(key)?;
        Some(KeyStats::of(Some(key), &permits))
    }

    /// The state of the limit for all keys together; `None` if there is none.
    #[must_use]
    pub fn global_stats(&self) -> Option<GlobalStats> {
        self.bulkheads.all.as_deref().map(GlobalStats::of)
    }
}

impl KeyStats {
    fn of(key: Option<&Key>, permits: &Permits) -> Self {
        let (in_flight, permits_in_use) = permits.in_use();
        let by_priority = permits.waiting();
        Self {
            key: key.cloned(),
            limit: permits.limit(),
            in_flight,
            permits_in_use,
            waiting: by_priority.iter().sum(),
            refused: permits.refused(),
            by_priority,
        }
    }

    /// Calls in the queue of one priority.
    #[must_use]
    pub fn waiting_of(&self, priority: Priority) -> usize {
        self.by_priority[priority.index()]
    }
}

impl GlobalStats {
    fn of(all: &GlobalPermits) -> Self {
        let (in_flight, permits_in_use) = all.in_use();
        Self {
            limit: all.limit(),
            in_flight,
            permits_in_use,
            waiting: all.waiting(),
            refused: all.refused(),
        }
    }
}
