use std::sync::Arc;

use tower_llm_core::{ConfigError, Key};

use crate::{
    Priority,
    layer::{Shared, check_limit},
    places::{AllPlaces, Places},
    priority::ByPriority,
};

/// Looks at the state of a [`BulkheadLayer`](crate::BulkheadLayer) and changes its limits; cheap to clone.
#[derive(Clone, Debug)]
pub struct BulkheadHandle {
    shared: Arc<Shared>,
}

/// The state of one key's places, as of now.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyStats {
    /// The key; `None` for the places that keys share beyond [`max_keys`](crate::BulkheadBuilder::max_keys).
    pub key: Option<Key>,
    /// How much is let through at once: calls, or what they [weigh](crate::Weigh).
    pub limit: usize,
    /// Calls that hold a place.
    pub in_flight: usize,
    /// Calls in the queues of all classes.
    pub waiting: usize,
    /// Calls that were refused since the key was first seen, or was seen again after it had been forgotten.
    pub refused: u64,
    /// What the calls that hold a place weigh: one each, or their tokens.
    pub weight: u64,
    by_priority: ByPriority,
}

/// The state of the places that all keys have together, as of now.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GlobalStats {
    /// How much is let through at once: calls, or what they [weigh](crate::Weigh).
    pub limit: usize,
    /// Calls that hold a place.
    pub in_flight: usize,
    /// Calls in the queues of all keys and classes.
    pub waiting: usize,
    /// Calls that were refused, by this limit or by a key's.
    pub refused: u64,
    /// What the calls that hold a place weigh: one each, or their tokens.
    pub weight: u64,
}

impl BulkheadHandle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Sets the limit of one key, seen or not, from now on.
    ///
    /// If it is raised, those who wait for the new places are let in at once. If it is lowered, no call is cut: nobody
    /// gets in until enough have ended. A call that is being admitted at this moment may be let in by the old limit.
    ///
    /// A key whose limit is not the one the layer was built with is not forgotten, so that it takes one of
    /// [`max_keys`](crate::BulkheadBuilder::max_keys). An [adaptive](crate::Adaptive) limit goes on from there.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] naming `limit` if it is zero, over 4,294,967,295 or not between the floor and the ceiling of an
    /// adaptive limit; naming `key` if there are as many keys as there may be, all in use.
    pub fn set_limit(&self, key: &Key, limit: usize) -> Result<(), ConfigError> {
        let limit = check_limit("limit", limit)?;
        if let Some(rules) = self.shared.adaptive {
            rules.check_limit("limit", limit)?;
        }
        let places = self.shared.places.by_key(key);
        if places.key() != Some(key) {
            let reason = "there is no room for another key";
            return Err(ConfigError::new("key", key, reason));
        }
        places.set_limit(limit);
        Ok(())
    }

    /// Sets the limit of all keys together, from now on; see [`set_limit`](Self::set_limit).
    ///
    /// # Errors
    ///
    /// [`ConfigError`] naming `global_limit` if it is zero or over 4,294,967,295, or if the layer was built without one:
    /// its keys have nothing in common that could be limited.
    pub fn set_global_limit(&self, limit: usize) -> Result<(), ConfigError> {
        let limit = check_limit("global_limit", limit)?;
        let Some(all) = &self.shared.all else {
            let reason = "the layer was built without one";
            return Err(ConfigError::new("global_limit", limit, reason));
        };
        all.set_limit(limit);
        Ok(())
    }

    /// The state of each key that has been seen, in no order; of the shared places only if they were ever needed.
    #[must_use]
    pub fn stats(&self) -> Vec<KeyStats> {
        let mut stats = Vec::new();
        self.shared.places.for_each(|key, places| {
            let of_key = KeyStats::of(key, places);
            if key.is_some() || of_key.in_flight + of_key.waiting > 0 || of_key.refused > 0 {
                stats.push(of_key);
            }
        });
        stats
    }

    /// The state of one key; `None` if no call with it has been seen.
    #[must_use]
    pub fn stats_of(&self, key: &Key) -> Option<KeyStats> {
        let places = self.shared.places.peek(key)?;
        Some(KeyStats::of(Some(key), &places))
    }

    /// The state of the places that all keys have together; `None` if there is no limit to these.
    #[must_use]
    pub fn global_stats(&self) -> Option<GlobalStats> {
        self.shared.all.as_deref().map(GlobalStats::of)
    }
}

impl KeyStats {
    fn of(key: Option<&Key>, places: &Places) -> Self {
        let (in_flight, weight) = places.taken();
        let by_priority = places.waiting();
        Self {
            key: key.cloned(),
            limit: places.limit(),
            in_flight,
            weight,
            waiting: by_priority.iter().sum(),
            refused: places.refused(),
            by_priority,
        }
    }

    /// Calls in the queue of one class.
    #[must_use]
    pub fn waiting_of(&self, priority: Priority) -> usize {
        self.by_priority[priority.index()]
    }
}

impl GlobalStats {
    fn of(all: &AllPlaces) -> Self {
        let (in_flight, weight) = all.taken();
        Self {
            limit: all.limit(),
            in_flight,
            weight,
            waiting: all.waiting(),
            refused: all.refused(),
        }
    }
}
