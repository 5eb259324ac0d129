//! Limits that many processes share, kept in Redis, Valkey or a Cluster.
//!
//! One script takes from all limits of a call, or from none, by the server's clock. What was taken is *held* under the
//! call's id until it is settled; what nobody has settled in time, because its process is gone, comes back. While the
//! server is away, each process keeps its share of the limits by itself, or as [`WhenAway`] says.
//!
//! All keys of one layer carry one hash tag, so that a script may touch all limits of a call on a Cluster too. So a
//! layer's limits lie on one node, which decides some ten thousand calls per second; layers of other names may lie on others.

mod later;
mod redis;
mod settler;
mod work;

use std::{sync::Arc, time::Duration};

use tower_llm_core::ConfigError;
use tower_llm_redis::Redis;

use self::redis::RedisStore;
use crate::attempt::{Shared, WhenAway};

/// Has many processes keep the limits of a layer together; see
/// [`RateLimitBuilder::shared`](crate::RateLimitBuilder::shared).
///
/// A call that has ended is settled in the background, a round trip later unless more than two thousand end in one, and
/// when the store is back if it is away. What could not be settled is counted:
/// [`RateLimitHandle::unsettled`](crate::RateLimitHandle::unsettled).
///
/// | setting | default |
/// |---|---|
/// | name | as given to [`new`](Self::new): layers of one name share their limits |
/// | replicas | as given to [`new`](Self::new) |
/// | [`when_away`](Self::when_away) | local share |
/// | [`hold_for`](Self::hold_for) | 15 min |
/// | [`leases`](Self::leases) | none: every call asks |
#[derive(Clone, Debug)]
pub struct SharedLimits {
    redis: Redis,
    name: String,
    replicas: u32,
    when_away: WhenAway,
    hold_for: Duration,
    lease: Option<Duration>,
}

impl SharedLimits {
    /// Shares the limits among `replicas` processes, whose layers have the same `name` and the same limits.
    ///
    /// The number of replicas matters only while Redis is away: each keeps one part in so many of each limit then.
    pub fn new(redis: Redis, name: impl Into<String>, replicas: u32) -> Self {
        Self {
            redis,
            name: name.into(),
            replicas,
            when_away: WhenAway::LocalShare,
            hold_for: Duration::from_secs(15 * 60),
            lease: None,
        }
    }

    /// Sets what decides while Redis is away.
    #[must_use]
    pub fn when_away(mut self, when_away: WhenAway) -> Self {
        self.when_away = when_away;
        self
    }

    /// Sets how long a call may take before the tokens it reserved come back, because its process must be gone; 15 min
    /// unless set, at least a second and at most a day.
    ///
    /// It should be longer than any call takes: twice as long is good. One that is settled later is charged what it has used
    /// all the same, unless Redis did not answer when that was tried first, so that nobody knows whether it was: it is counted
    /// as [unsettled](crate::RateLimitHandle::unsettled).
    #[must_use]
    pub fn hold_for(mut self, time: Duration) -> Self {
        self.hold_for = time;
        self
    }

    /// Has each process take a share of the limits for `time` at once, and decide by itself as long as that lasts, instead of
    /// asking Redis for every call; a second is a good time, and a day the longest.
    ///
    /// The limits hold all the same: the store counts a share as if all of it were spent when its time is over, and what is
    /// left goes back then. What it costs is throughput near the limit: up to a share of each other process, which is an eighth
    /// of its part of the limit, and another thirteenth of a window. A lease is never longer than a twelfth of the limit's
    /// period, nor than a tenth of a bucket's burst takes to leak; a bucket lets through so much less at once.
    ///
    /// It suits limits that are large beside one call. A call that needs more than is left of the share asks the store.
    /// A process that ends takes what it has not spent with it, until the period is over, and so does a share whose grant is
    /// lost on the way. While others hold shares, a refusal's `retry_after` may be longer than it takes until one comes back.
    #[must_use]
    pub fn leases(mut self, time: Duration) -> Self {
        self.lease = Some(time);
        self
    }

    /// Checks the settings, and starts the task that settles.
    pub(crate) fn start(self) -> Result<Shared, ConfigError> {
        if self.name.is_empty() || self.name.contains(['{', '}']) {
            let reason = "it must not be empty, and have no braces";
            return Err(ConfigError::new("name", self.name, reason));
        }
        if self.replicas == 0 {
            return Err(ConfigError::new("replicas", 0, "it must be at least one"));
        }
        let hold_for = ConfigError::check_duration("hold_for", self.hold_for)?;
        if hold_for < Duration::from_secs(1) {
            let reason = "it must be at least a second";
            return Err(ConfigError::new("hold_for", hold_for, reason));
        }
        let check_lease = |lease| ConfigError::check_duration("leases", lease);
        let lease = self.lease.map(check_lease).transpose()?;
        let store = RedisStore::start(self.redis, &self.name, hold_for)?;
        Ok(Shared {
            store: Arc::new(store),
            without_store: Arc::default(),
            when_away: self.when_away,
            parts: self.replicas.into(),
            lease,
        })
    }
}
