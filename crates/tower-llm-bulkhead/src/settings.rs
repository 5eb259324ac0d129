//! The settings of a layer, and their checks.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tower_llm_core::{ConfigError, Described, HttpBody, Key, KeyBy, Registry};

use crate::{
    Adaptive, BulkheadLayer, Priority, ReleaseAt, ReserveLayer, Weigh,
    gate::Bulkheads,
    permits::{GlobalPermits, MAX_LIMIT, Permits},
    priority::{ByPriority, PriorityBy},
};

/// Builds a [`BulkheadLayer`] or a [`ReserveLayer`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct BulkheadBuilder<W = HttpBody> {
    limit: usize,
    limits: HashMap<Key, usize>,
    global_limit: Option<usize>,
    adaptive: Option<Adaptive>,
    weigh: Weigh,
    key_by: KeyBy,
    priority_by: PriorityBy,
    max_keys: Option<usize>,
    max_waiting: ByPriority,
    max_wait: Duration,
    release_at: ReleaseAt,
    watch: W,
}

impl BulkheadBuilder {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            limits: HashMap::new(),
            global_limit: None,
            adaptive: None,
            weigh: Weigh::Calls,
            key_by: KeyBy::provider(),
            priority_by: PriorityBy::NORMAL,
            max_keys: None,
            max_waiting: [100; 3],
            max_wait: Duration::from_secs(30),
            release_at: ReleaseAt::End,
            watch: HttpBody,
        }
    }
}

impl<W> BulkheadBuilder<W> {
    /// Sets the limit of one key. No call has a key with a part over 256 bytes.
    pub fn limit_for(mut self, key: Key, limit: usize) -> Self {
        self.limits.insert(key, limit);
        self
    }

    /// Sets a limit for all keys together, besides their own.
    ///
    /// A call takes permits of both limits or waits for both, so a call that waits for its key does not block calls of
    /// other keys. Callers take turns across all keys.
    pub fn global_limit(mut self, limit: usize) -> Self {
        self.global_limit = Some(limit);
        self
    }

    /// Adapts each key's limit to its calls, starting with the limit that is set; see [`Adaptive`] for when that helps. The
    /// limit for all keys together stays as it is set.
    ///
    /// The adapted limit is lost when its key is evicted; see [`max_keys`](Self::max_keys).
    pub fn adaptive(mut self, rules: Adaptive) -> Self {
        self.adaptive = Some(rules);
        self
    }

    /// Sets what limits count; calls unless set.
    pub fn weigh_by(mut self, weigh: Weigh) -> Self {
        self.weigh = weigh;
        self
    }

    /// Sets how the priority of a call that has to wait is chosen; [`Priority::Normal`] unless set.
    ///
    /// Callers can send any header: give a high priority only to callers that you trust.
    pub fn priority_by<F>(mut self, choose: F) -> Self
    where
        F: Fn(&dyn Described) -> Priority + Send + Sync + 'static,
    {
        self.priority_by = PriorityBy::custom(choose);
        self
    }

    /// Sets which calls share a limit; those of one provider unless set.
    pub fn key_by(mut self, key_by: KeyBy) -> Self {
        self.key_by = key_by;
        self
    }

    /// Sets the maximum number of keys, rounded up to a multiple of 16. A key beyond that replaces one that is not in use;
    /// if all are in use, it shares one limit with all other such keys.
    pub fn max_keys(mut self, max_keys: usize) -> Self {
        self.max_keys = Some(max_keys);
        self
    }

    /// Sets how many calls of each priority may wait for each key; at zero, a call that finds no permit is refused at once.
    ///
    /// If the queue is full and a call arrives from a caller with fewer waiting calls than average, the newest call of the
    /// caller with the most is refused instead. Otherwise the new call is refused.
    pub fn max_waiting(mut self, calls: usize) -> Self {
        self.max_waiting = [calls; 3];
        self
    }

    /// Sets how many calls of one priority may wait for each key.
    pub fn max_waiting_of(mut self, priority: Priority, calls: usize) -> Self {
        self.max_waiting[priority.index()] = calls;
        self
    }

    /// Sets how long a call may wait for a permit; 30 s unless set, at most a day.
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.max_wait = wait;
        self
    }

    /// Sets when a call gives its permits back.
    pub fn release_at(mut self, release_at: ReleaseAt) -> Self {
        self.release_at = release_at;
        self
    }

    /// Sets how the end of a response is detected: [`Unary`](tower_llm_core::Unary) for types that are not HTTP.
    pub fn watch<V>(self, watch: V) -> BulkheadBuilder<V> {
        BulkheadBuilder {
            limit: self.limit,
            limits: self.limits,
            global_limit: self.global_limit,
            adaptive: self.adaptive,
            weigh: self.weigh,
            key_by: self.key_by,
            priority_by: self.priority_by,
            max_keys: self.max_keys,
            max_waiting: self.max_waiting,
            max_wait: self.max_wait,
            release_at: self.release_at,
            watch,
        }
    }

    /// Builds the layer that decides in `call`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] naming the setting, if a limit or `max_keys` is zero, a limit is over 4,294,967,295, or
    /// `max_wait` is zero or over a day. With [`adaptive`](Self::adaptive), also if its floor is zero or over its
    /// ceiling, a key's limit is not between them, its factor is not between zero and one, its interval or target is
    /// zero or over a day, or limits count tokens.
    pub fn build(self) -> Result<BulkheadLayer<W>, ConfigError> {
        let default = check_limit("limit", self.limit)?;
        for &limit in self.limits.values() {
            check_limit("limit_for", limit)?;
        }
        let global = self
            .global_limit
            .map(|limit| check_limit("global_limit", limit));
        let max_wait = ConfigError::check_duration("max_wait", self.max_wait)?;
        let adaptive = self.check_adaptive()?;
        let all = global
            .transpose()?
            .map(|limit| Arc::new(GlobalPermits::new(limit)));
        let make = {
            let (limits, all) = (self.limits, all.clone());
            move |key: Option<&Key>| {
                let own = key.and_then(|key| limits.get(key));
                let limit = *own.unwrap_or(&default);
                let permits = match &all {
                    None => Permits::new(limit),
                    Some(all) => Permits::within(limit, Arc::clone(all)),
                };
                permits.adaptive(adaptive)
            }
        };
        let mut permits = Registry::new(self.key_by, make);
        if let Some(max_keys) = self.max_keys {
            permits = permits.max_keys(max_keys)?;
        }
        Ok(BulkheadLayer {
            bulkheads: Arc::new(Bulkheads {
                permits,
                all,
                adaptive,
                weigh: self.weigh,
                priority_by: self.priority_by,
                max_waiting: self.max_waiting,
                max_wait,
                release_at: self.release_at,
            }),
            watch: self.watch,
        })
    }

    fn check_adaptive(&self) -> Result<Option<Adaptive>, ConfigError> {
        let Some(rules) = self.adaptive else {
            return Ok(None);
        };
        let rules = rules.check()?;
        rules.check_limit("limit", self.limit)?;
        for &limit in self.limits.values() {
            rules.check_limit("limit_for", limit)?;
        }
        if self.weigh != Weigh::Calls {
            let reason = "an adaptive limit counts calls";
            return Err(ConfigError::new("weigh_by", self.weigh, reason));
        }
        Ok(Some(rules))
    }

    /// Builds the layer that takes a permit in `poll_ready`.
    ///
    /// There is no request at that point, so it has one limit for all requests, and its queue is not bounded: each waiting
    /// service is in it. Only the limit, [`release_at`](Self::release_at) and [`watch`](Self::watch) apply to it.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the limit is zero or over 4,294,967,295.
    pub fn build_reserve(self) -> Result<ReserveLayer<W>, ConfigError> {
        let limit = check_limit("limit", self.limit)?;
        Ok(ReserveLayer::new(limit, self.release_at, self.watch))
    }
}

pub(crate) fn check_limit(field: &'static str, limit: usize) -> Result<usize, ConfigError> {
    if limit > MAX_LIMIT {
        return Err(ConfigError::new(
            field,
            limit,
            "it must be at most 4294967295",
        ));
    }
    ConfigError::check_nonzero(field, limit)
}
