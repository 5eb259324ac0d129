use std::sync::Arc;

use tower_llm_core::Key;

use crate::{layer::Shared, places::Places};

/// Looks at the state of a [`BulkheadLayer`](crate::BulkheadLayer); cheap to clone.
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
    /// How many calls are let through at once.
    pub limit: usize,
    /// Calls that hold a place.
    pub in_flight: usize,
    /// Calls in the queue.
    pub waiting: usize,
    /// Calls that were refused since the key was first seen, or was seen again after it had been forgotten.
    pub refused: u64,
}

impl BulkheadHandle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
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
}

impl KeyStats {
    fn of(key: Option<&Key>, places: &Places) -> Self {
        Self {
            key: key.cloned(),
            limit: places.limit(),
            in_flight: places.in_flight(),
            waiting: places.waiting(),
            refused: places.refused(),
        }
    }
}
