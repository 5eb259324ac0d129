use std::{error::Error, fmt, time::Duration};

use tower_llm_core::{Refusal, RefusalKind};

use crate::Priority;

/// No place became free for a call.
///
/// The text may change; what the getters say will not.
#[derive(Clone, Debug)]
pub struct BulkheadFull {
    limit: usize,
    limit_of: LimitOf,
    priority: Priority,
    waited: Option<Duration>,
    refusal: Refusal,
}

/// Whose limit a call found no place in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LimitOf {
    /// That of its own key.
    Key,
    /// That of all keys together.
    Global,
}

impl BulkheadFull {
    /// All places are taken and so is the queue of its class.
    pub(crate) fn queue_full(limit: usize, limit_of: LimitOf, priority: Priority) -> Self {
        Self {
            limit,
            limit_of,
            priority,
            waited: None,
            refusal: Refusal::new(RefusalKind::Unavailable, "bulkhead"),
        }
    }

    /// None became free while it waited in the queue.
    pub(crate) fn after(mut self, waited: Duration) -> Self {
        self.waited = Some(waited);
        self
    }

    /// How much is let through at once: calls, or what they [weigh](crate::Weigh).
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Whose limit that is.
    #[must_use]
    pub fn limit_of(&self) -> LimitOf {
        self.limit_of
    }

    /// The class in whose queue it waited, or found no room.
    #[must_use]
    pub fn priority(&self) -> Priority {
        self.priority
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
        let of = match self.limit_of {
            LimitOf::Key => "",
            LimitOf::Global => " for all keys",
        };
        match waited {
            None => write!(f, "all {limit} places{of} are taken, and the queue is full"),
            Some(waited) => write!(
                f,
                "none of {limit} places{of} became free within {waited:?}"
            ),
        }
    }
}

impl Error for BulkheadFull {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.refusal)
    }
}
