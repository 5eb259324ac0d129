use std::{
    borrow::Cow,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tower_llm_core::{Described, Key, Registry};

use crate::{
    Limit,
    checked_limit::CheckedLimit,
    group::{LimitGroup, LimitedKey},
    limiter::Limiter,
    tier::Tier,
};

/// Reads the statistics of a [`RateLimitLayer`](crate::RateLimitLayer), and changes its tiers; cheap to clone.
#[derive(Clone, Debug)]
pub struct RateLimitHandle {
    limiter: Arc<Limiter>,
}

/// Statistics of one limit over all of its keys, since the layer was built.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LimitStats {
    /// The limit.
    pub limit: Limit,
    /// Keys with state.
    pub keys: usize,
    /// Admitted calls.
    pub admitted: u64,
    /// Calls that this limit refused: it was exceeded, its queue was full, or the call was larger than the limit.
    pub refused: u64,
    /// Calls in the queues of its keys. Limits with the same kind of key share their queues.
    pub waiting: usize,
    /// What calls used or, for calls that have not ended, reserved.
    pub consumed: u64,
    /// The smallest amount that remains for any key; of limits shared by several processes, of this process's part.
    pub remaining: u64,
    /// What calls used beyond their reservations.
    pub overrun: u64,
    /// What calls reserved and did not use.
    pub refunded: u64,
    /// How often a call used so much more than its reservation that the limit was exceeded. See [`Limit`] for how such a
    /// debt is paid off.
    pub violations: u64,
}

/// The state of one limit for one key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyStats {
    /// The limit.
    pub limit: Limit,
    /// What remains for a caller without a tier; of limits shared by several processes, of this process's part.
    pub remaining: u64,
    /// How long until the full amount remains again, if no other call is made.
    pub full_in: Duration,
    /// Calls in the queue.
    pub waiting: usize,
}

impl RateLimitHandle {
    pub(crate) fn new(limiter: Arc<Limiter>) -> Self {
        Self { limiter }
    }

    /// Returns the statistics of each limit; limits with the same kind of key are in the order in which they were added.
    ///
    /// It visits every key, so call it for a page or a scrape, not for every call.
    #[must_use]
    pub fn stats(&self) -> Vec<LimitStats> {
        let groups = self.limiter.groups.iter();
        groups
            .flat_map(|(group, keys)| LimitStats::of(group, keys))
            .collect()
    }

    /// Returns the state of each limit for `key`; empty if the key was never seen or was evicted.
    ///
    /// Limits with another kind of key are left out, unless one of their keys has the same name.
    #[must_use]
    pub fn stats_of(&self, key: &Key) -> Vec<KeyStats> {
        let keys = self.limiter.groups.iter();
        keys.filter_map(|(_, keys)| keys.peek(key))
            .flat_map(|key| KeyStats::of(&key))
            .collect()
    }

    /// Returns how many calls were decided without the shared store, because it was unavailable or answered with an error;
    /// zero if the limits are not shared.
    #[must_use]
    pub fn decided_without_store(&self) -> u64 {
        let shared = self.limiter.shared.as_ref();
        shared.map_or(0, |shared| shared.without_store.load(Ordering::Relaxed))
    }

    /// Returns how many settlements and returned leases did not reach the shared store, or may not have reached it; zero if
    /// the limits are not shared.
    ///
    /// It grows when calls end faster than the store settles them, when the server keeps answering with errors, when the
    /// store is unavailable while the layer is dropped, and when a command that must not be sent twice gets no answer: with
    /// leases, and for calls whose reservation [expired](crate::SharedLimits::hold_for) before the next attempt. Such a
    /// reservation is refunded when it expires, although the call may have used it, so more than the limit may be admitted.
    /// An unused lease is available again after its period.
    #[must_use]
    pub fn unsettled(&self) -> u64 {
        let shared = self.limiter.shared.as_ref();
        shared.map_or(0, |shared| shared.store.unsettled())
    }

    /// Replaces the policy that chooses tiers; `false` if no limit has tiers.
    ///
    /// Calls that wait are moved to their new tiers at once. What callers have used still counts. Calls in flight are settled
    /// in the tier in which they were admitted.
    pub fn set_tier_by<F>(&self, policy: F) -> bool
    where
        F: Fn(&dyn Described) -> Cow<'static, str> + Send + Sync + 'static,
    {
        let has_tiers = self.limiter.tiers.choose_by(Arc::new(policy));
        if has_tiers {
            self.limiter.wake_all();
        }
        has_tiers
    }
}

impl LimitStats {
    fn of(group: &LimitGroup, keys: &Registry<LimitedKey>) -> Vec<Self> {
        let mut stats: Vec<_> = group.limits.iter().map(Self::new).collect();
        let now = group.clock.now_nanos();
        for (limit, stats) in stats.iter_mut().enumerate() {
            stats.admitted = group.evicted.admitted();
            stats.consumed = group.evicted.consumed(limit);
            stats.keys = keys.len();
        }
        keys.for_each(|_, key| {
            let state = key.lock();
            let of_key = stats.iter_mut().zip(&group.limits).zip(state.gauges.iter());
            for ((stats, checked), gauge) in of_key {
                stats.admitted += state.admitted;
                stats.consumed = stats.consumed.saturating_add(gauge.consumed);
                stats.waiting += state.waiting();
                let mut meter = gauge.meter.clone();
                let remaining =
                    meter.remaining(checked.own_rate(Tier::default()), checked.now(now));
                stats.remaining = stats.remaining.min(remaining);
            }
        });
        stats
    }

    fn new(checked: &CheckedLimit) -> Self {
        let counts = &checked.counts;
        Self {
            limit: checked.limit.clone(),
            keys: 0,
            admitted: 0,
            refused: counts.refused.load(Ordering::Relaxed),
            waiting: 0,
            consumed: 0,
            remaining: checked.own_rate(Tier::default()).capacity,
            overrun: counts.overrun.load(Ordering::Relaxed),
            refunded: counts.refunded.load(Ordering::Relaxed),
            violations: counts.violations.load(Ordering::Relaxed),
        }
    }
}

impl KeyStats {
    fn of(key: &LimitedKey) -> Vec<Self> {
        let group = &key.group;
        let now = group.clock.now_nanos();
        let state = key.lock();
        let of_limit = group.limits.iter().zip(state.gauges.iter());
        of_limit
            .map(|(checked, gauge)| {
                let mut meter = gauge.meter.clone();
                let (rate, now) = (checked.own_rate(Tier::default()), checked.now(now));
                Self {
                    limit: checked.limit.clone(),
                    remaining: meter.remaining(rate, now),
                    full_in: Duration::from_nanos(meter.full_in(rate, now)),
                    waiting: state.waiting(),
                }
            })
            .collect()
    }
}
