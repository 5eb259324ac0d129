use std::{error::Error, fmt, time::Duration};

use tower_llm_core::{Refusal, RefusalKind};

/// No place became free for a call.
///
/// The text may change; what the getters say will not.
#[derive(Clone, Debug)]
pub struct BulkheadFull {
    limit: usize,
    waited: Option<Duration>,
    refusal: Refusal,
}

impl BulkheadFull {
    /// All places are taken and so is the queue.
    pub(crate) fn queue_full(limit: usize) -> Self {
        Self {
            limit,
            waited: None,
            refusal: Refusal::new(RefusalKind::Unavailable, "bulkhead"),
        }
    }

    /// None became free while it waited in the queue.
    pub(crate) fn waited(limit: usize, waited: Duration) -> Self {
        Self {
            waited: Some(waited),
            ..Self::queue_full(limit)
        }
    }

    /// How many calls are let through at once.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// How long the call waited in the queue; `None` if there was no room in it.
    #[must_use]
    pub fn waited_for(&self) -> Option<Duration> {
        self.waited
    }

    /// Always `None`: a place is free when some stream ends, and nobody knows when that is.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        None
    }
}

impl fmt::Display for BulkheadFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, waited, .. } = self;
        match waited {
            None => write!(f, "all {limit} places are taken, and the queue is full"),
            Some(waited) => write!(f, "none of {limit} places became free within {waited:?}"),
        }
    }
}

impl Error for BulkheadFull {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.refusal)
    }
}
