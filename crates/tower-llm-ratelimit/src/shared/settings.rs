//! What a service sets about limits that it shares.

use std::{sync::Arc, time::Duration};

use tower_llm_core::ConfigError;
use tower_llm_redis::Redis;

use super::{
    backend::{Shared, StoreFallback},
    redis::RedisStore,
};

/// Shares the limits of a layer with other processes; see
/// [`RateLimitBuilder::shared`](crate::RateLimitBuilder::shared).
///
/// A call that has ended is settled in the background: one round trip later, unless more than two thousand calls end within
/// one round trip, or when the store has recovered. [`RateLimitHandle::unsettled`](crate::RateLimitHandle::unsettled) counts
/// what could not be settled.
///
/// The store's wait times count every reservation of every process as used. If calls of its own process are in flight for
/// the limit, a blocked call waits, unless what this process has used blocks it for longer than it may wait. If only other
/// processes have calls in flight, it waits if the store's time is within its maximum wait, and is refused otherwise. The
/// head of a queue asks the store again every 250 ms, and after each settlement of its own process. Callers take turns
/// within a process, not across processes.
///
/// | setting | default |
/// |---|---|
/// | name | as passed to [`new`](Self::new): layers with the same name share their limits |
/// | replicas | as passed to [`new`](Self::new) |
/// | [`store_fallback`](Self::store_fallback) | each process enforces its share |
/// | [`hold_for`](Self::hold_for) | 15 min |
/// | [`lease_for`](Self::lease_for) | no leases: every call asks Redis |
#[derive(Clone, Debug)]
pub struct SharedLimits {
    redis: Redis,
    name: String,
    replicas: u32,
    store_fallback: StoreFallback,
    hold_for: Duration,
    lease: Option<Duration>,
}

impl SharedLimits {
    /// Shares the limits among `replicas` processes whose layers have the same `name` and the same limits.
    ///
    /// The number of replicas matters while Redis is unavailable, when each process enforces `1 / replicas` of each limit,
    /// and for the size of [leases](Self::lease_for).
    pub fn new(redis: Redis, name: impl Into<String>, replicas: u32) -> Self {
        Self {
            redis,
            name: name.into(),
            replicas,
            store_fallback: StoreFallback::LocalShare,
            hold_for: Duration::from_secs(15 * 60),
            lease: None,
        }
    }

    /// Sets what decides while Redis is unavailable.
    #[must_use]
    pub fn store_fallback(mut self, store_fallback: StoreFallback) -> Self {
        self.store_fallback = store_fallback;
        self
    }

    /// Sets how long a reservation is held before its tokens are refunded, because its process must be gone; 15 min unless
    /// set, at least one second and at most one day.
    ///
    /// It should be about twice as long as the longest call. A call that ends later is still charged what it used, unless
    /// Redis did not answer the first attempt: then it may have been charged already, and is counted as
    /// [unsettled](crate::RateLimitHandle::unsettled).
    #[must_use]
    pub fn hold_for(mut self, time: Duration) -> Self {
        self.hold_for = time;
        self
    }

    /// Lets each process lease a part of the limits for `time`, and decide by itself while the lease lasts, instead of asking
    /// Redis for every call. One second is a good value; one day is the maximum.
    ///
    /// The limits still hold: the store counts a lease as used in full, and the process returns what is left when the lease
    /// ends. The price is throughput near the limit: up to one lease of each other process, which is an eighth of its share
    /// of the limit, and another thirteenth of a window. A lease is never longer than a twelfth of the limit's period, or
    /// than a tenth of a bucket's burst takes to drain; a bucket admits that much less at once.
    ///
    /// Leases suit limits that are large compared to one call. A call that needs more than is left of the lease asks the
    /// store. If a process is killed, or the answer with a lease is lost, the unused part is available again after the
    /// period. While other processes hold leases, a refusal's `retry_after` may be longer than necessary.
    #[must_use]
    pub fn lease_for(mut self, time: Duration) -> Self {
        self.lease = Some(time);
        self
    }

    /// Checks the settings, and starts the task that settles.
    pub(crate) fn start(self) -> Result<Shared, ConfigError> {
        if self.name.is_empty() || self.name.contains(['{', '}']) {
            let reason = "must not be empty or contain braces";
            return Err(ConfigError::new("name", self.name, reason));
        }
        if self.replicas == 0 {
            return Err(ConfigError::new("replicas", 0, "must be at least 1"));
        }
        let hold_for = ConfigError::check_duration("hold_for", self.hold_for)?;
        if hold_for < Duration::from_secs(1) {
            let reason = "must be at least one second";
            return Err(ConfigError::new("hold_for", hold_for, reason));
        }
        let check_lease = |lease| ConfigError::check_duration("lease_for", lease);
        let lease = self.lease.map(check_lease).transpose()?;
        let store = RedisStore::start(self.redis, &self.name, hold_for)?;
        Ok(Shared {
            store: Arc::new(store),
            without_store: Arc::default(),
            store_fallback: self.store_fallback,
            processes: self.replicas.into(),
            lease,
            asking: Arc::new(()),
        })
    }
}
