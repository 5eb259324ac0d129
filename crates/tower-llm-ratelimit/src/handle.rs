use std::{
    borrow::Cow,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tower_llm_core::{Described, Key, Registry};

use crate::{
    Limit,
    cell::Cell,
    engine::Engine,
    scope::{Bound, Scope},
    tier::Tier,
};

/// Looks at the state of a [`RateLimitLayer`](crate::RateLimitLayer), and changes its tiers; cheap to clone.
#[derive(Clone, Debug)]
pub struct RateLimitHandle {
    engine: Arc<Engine>,
}

/// What a limit has done since the layer was made, over all its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LimitStats {
    /// The limit.
    pub limit: Limit,
    /// Keys that are kept.
    pub keys: usize,
    /// Calls that were let through, by this limit and the others.
    pub admitted: u64,
    /// Calls that were refused because of this limit: that it was used up, that others waited for it already, or that
    /// they were larger than it.
    pub refused: u64,
    /// Calls in the queues of its keys, and of the limits that share them.
    pub waiting: usize,
    /// What was taken, of calls that have ended what they used, and of the others what they reserved.
    pub consumed: u64,
    /// The least that any key has left; of shared limits, of this process's own share.
    pub remaining: u64,
    /// What calls used beyond what they had reserved.
    pub settled_up: u64,
    /// What calls had reserved and did not use.
    pub settled_down: u64,
    /// How often a call used so much more than it had reserved that the limit was exceeded. What is over is paid off
    /// before the next is let through.
    pub violations: u64,
}

/// How one limit stands for one key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyStats {
    /// The limit.
    pub limit: Limit,
    /// What could be taken now, by a caller without a tier; of shared limits, of this process's own share.
    pub remaining: u64,
    /// How long until nothing is taken any more.
    pub full_in: Duration,
    /// Calls in the queue.
    pub waiting: usize,
}

impl RateLimitHandle {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }

    /// What each limit has done, in the order in which those of one key were given to the layer.
    ///
    /// It looks at every key; it is made for a page or a scrape, not for every call.
    #[must_use]
    pub fn stats(&self) -> Vec<LimitStats> {
        let scopes = self.engine.scopes.iter();
        scopes
            .flat_map(|(scope, cells)| LimitStats::of(scope, cells))
            .collect()
    }

    /// How the limits stand for `key`; nothing if no call with it was seen, or nothing of it is taken any more.
    ///
    /// Limits whose keys are of another kind have no such key, unless it is named the same.
    #[must_use]
    pub fn stats_of(&self, key: &Key) -> Vec<KeyStats> {
        let cells = self.engine.scopes.iter();
        cells
            .filter_map(|(_, cells)| cells.peek(key))
            .flat_map(|cell| KeyStats::of(&cell))
            .collect()
    }

    /// How often a call was decided without the store that its limits are shared in, since that could not be reached or
    /// answered with an error; zero if they are not shared.
    #[must_use]
    pub fn decided_without_store(&self) -> u64 {
        let shared = self.engine.policy.shared.as_ref();
        shared.map_or(0, |shared| shared.without_store.load(Ordering::Relaxed))
    }

    /// How often the store that the limits are shared in was not told what a call had used, or what was left of a share, or
    /// nobody knows whether it was; zero if they are not shared.
    ///
    /// It grows when more calls end than the store settles, so that there is no room for them to wait; when the server
    /// answers with an error again and again; when the store is away as the layer is dropped; when no answer came to what must
    /// not be sent twice: with leases, and of calls that had [run out](crate::SharedLimits::hold_for) before it could be tried
    /// again. What such a call had reserved comes back when it has run out, although it
    /// may have used it: then more is let through than the limit. What is left of a share comes back when its period is over.
    #[must_use]
    pub fn unsettled(&self) -> u64 {
        let shared = self.engine.policy.shared.as_ref();
        shared.map_or(0, |shared| shared.store.unsettled())
    }

    /// Chooses tiers by another policy from now on; `false` if no limit has any.
    ///
    /// What callers have used counts on in their new tiers. Calls under way are settled in the tiers they began in.
    pub fn set_tier_by<F>(&self, policy: F) -> bool
    where
        F: Fn(&dyn Described) -> Cow<'static, str> + Send + Sync + 'static,
    {
        self.engine.tiers.choose_by(Arc::new(policy))
    }
}

impl LimitStats {
    fn of(scope: &Scope, cells: &Registry<Cell>) -> Vec<Self> {
        let mut stats: Vec<_> = scope.bounds.iter().map(Self::new).collect();
        let now = scope.clock.now_nanos();
        for (limit, stats) in stats.iter_mut().enumerate() {
            stats.admitted = scope.forgotten.admitted();
            stats.consumed = scope.forgotten.consumed(limit);
            stats.keys = cells.len();
        }
        cells.for_each(|_, cell| {
            let state = cell.lock();
            let of_cell = stats.iter_mut().zip(&scope.bounds).zip(state.gauges.iter());
            for ((stats, bound), gauge) in of_cell {
                stats.admitted += state.admitted;
                stats.consumed = stats.consumed.saturating_add(gauge.consumed);
                stats.waiting += state.waiting();
                let mut meter = gauge.meter.clone();
                let remaining = meter.remaining(bound.own_rate(Tier::default()), bound.now(now));
                stats.remaining = stats.remaining.min(remaining);
            }
        });
        stats
    }

    fn new(bound: &Bound) -> Self {
        let counts = &bound.counts;
        Self {
            limit: bound.limit.clone(),
            keys: 0,
            admitted: 0,
            refused: counts.refused.load(Ordering::Relaxed),
            waiting: 0,
            consumed: 0,
            remaining: bound.own_rate(Tier::default()).capacity,
            settled_up: counts.settled_up.load(Ordering::Relaxed),
            settled_down: counts.settled_down.load(Ordering::Relaxed),
            violations: counts.violations.load(Ordering::Relaxed),
        }
    }
}

impl KeyStats {
    fn of(cell: &Cell) -> Vec<Self> {
        let scope = &cell.scope;
        let now = scope.clock.now_nanos();
        let state = cell.lock();
        let of_limit = scope.bounds.iter().zip(state.gauges.iter());
        of_limit
            .map(|(bound, gauge)| {
                let mut meter = gauge.meter.clone();
                let (rate, now) = (bound.own_rate(Tier::default()), bound.now(now));
                Self {
                    limit: bound.limit.clone(),
                    remaining: meter.remaining(rate, now),
                    full_in: Duration::from_nanos(meter.full_in(rate, now)),
                    waiting: state.waiting(),
                }
            })
            .collect()
    }
}
