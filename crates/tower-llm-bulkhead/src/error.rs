use std::{error::Error, fmt, time::Duration};

use tower_llm_core::{Key, Refusal, RefusalKind};

use crate::Priority;

/// A call found no permit: it was not sent.
///
/// The text may change; the getters will not.
#[derive(Clone, Debug)]
pub struct BulkheadFull {
    pub(crate) key: Option<Key>,
    pub(crate) limit_of: LimitOf,
    pub(crate) limit: usize,
    pub(crate) in_use: u64,
    pub(crate) needed: u32,
    pub(crate) priority: Priority,
    pub(crate) queued: usize,
    pub(crate) max_waiting: usize,
    pub(crate) waited: Option<Duration>,
    pub(crate) refusal: Refusal,
}

/// Which limit a call exceeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LimitOf {
    /// The limit of its key.
    Key,
    /// The limit for all keys together.
    Global,
}

impl BulkheadFull {
    pub(crate) const REFUSAL: Refusal = Refusal::new(RefusalKind::Unavailable, "bulkhead");

    /// The call's key; `None` if it counts against the limit that keys beyond
    /// [`max_keys`](crate::BulkheadBuilder::max_keys) share.
    #[must_use]
    pub fn key(&self) -> Option<&Key> {
        self.key.as_ref()
    }

    /// The limit: a number of calls, or of tokens if calls are [weighed](crate::Weigh).
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Which limit the call exceeds.
    #[must_use]
    pub fn limit_of(&self) -> LimitOf {
        self.limit_of
    }

    /// Permits in use when the call was refused.
    #[must_use]
    pub fn permits_in_use(&self) -> u64 {
        self.in_use
    }

    /// The priority of the call, and of the queue in which it waited or that was full.
    #[must_use]
    pub fn priority(&self) -> Priority {
        self.priority
    }

    /// How long the call waited in the queue; `None` if the queue was full.
    #[must_use]
    pub fn waited_for(&self) -> Option<Duration> {
        self.waited
    }

    /// Always `None`: a permit is free when some stream ends, and that time cannot be known.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        None
    }
}

impl fmt::Display for BulkheadFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bulkhead full")?;
        match (self.limit_of, &self.key) {
            (LimitOf::Global, _) => f.write_str(" for all keys")?,
            (LimitOf::Key, Some(key)) if *key != Key::new("") => write!(f, " for {key}")?,
            (LimitOf::Key, _) => {}
        }
        write!(f, ": {}/{} in use", self.in_use, self.limit)?;
        if self.needed > 1 {
            write!(f, ", {} needed", self.needed)?;
        }
        match self.waited {
            Some(waited) => write!(f, ", waited {waited:?}"),
            None => write!(f, ", queue {}/{}", self.queued, self.max_waiting),
        }
    }
}

impl Error for BulkheadFull {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.refusal)
    }
}
