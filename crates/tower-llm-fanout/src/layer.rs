//! Hedges, races, failover and retries of one call.

use std::sync::Arc;

use tower_layer::Layer;
use tower_llm_core::HttpBody;

use crate::{
    Budget, ByOutcome, Copies, Delay, Dispatch, Each, Fallback, Fanout, FanoutBuilder, FanoutStats,
    First, Mode, Pace, Pool, Reading, RipeAt, Route, Several, Vote, builder::Settings, plan::Plan,
    split::Eligible,
};

/// Sends a call in several branches.
///
/// Clones, and all services that it makes, share the budget, the record of latencies and the statistics.
#[derive(Clone, Debug)]
pub struct FanoutLayer<W = HttpBody, C = ByOutcome, M = First> {
    pub(crate) plan: Arc<Plan>,
    pub(crate) branches: usize,
    pub(crate) reading: Reading<W, C>,
    pub(crate) mode: M,
    pub(crate) eligible: Eligible,
}

impl FanoutLayer {
    /// Sends all `branches` at once; the first good answer wins.
    ///
    /// All of them are billed, so they are planned: they need no [`Budget`].
    pub fn race(branches: usize) -> FanoutBuilder {
        FanoutBuilder::planned(branches, First::default())
    }

    /// Sends a second branch if the first one has not answered after `delay`, or has failed.
    ///
    /// Most providers bill a branch that lost for what it had generated.
    pub fn hedge(delay: Delay) -> FanoutBuilder {
        let budget = Budget::for_hedge(&delay);
        let settings = Settings {
            budget,
            ..Settings::new(Pace::after(delay), 2)
        };
        FanoutBuilder::of(settings, First::default())
    }

    /// Sends a call that failed again, up to `retries` times, with a [`Backoff`].
    pub fn retry(retries: usize) -> FanoutBuilder {
        FanoutBuilder::sequential(retries, Budget::of(0.2))
    }

    /// Sends a call that failed to another target, up to `extra` times; for a [`Pool`]. A target is tried twice
    /// only if it is the only one.
    pub fn failover(extra: usize) -> FanoutBuilder {
        FanoutBuilder::sequential(extra, Budget::of(1.0))
    }

    /// Sends a call to one target of a [`Pool`] after the other, until an answer is good enough: cheap ones first.
    /// If none is, the call gets the last answer.
    ///
    /// Whether an answer is good is said by [`classify`](FanoutBuilder::classify), which sees all of it. The tiers are planned:
    /// they need no [`Budget`].
    pub fn cascade(tiers: usize) -> FanoutBuilder {
        let settings = Settings {
            planned: tiers,
            ..Settings::new(Pace::after_failure(1), tiers)
        };
        let mode = First {
            fallback: Fallback::Last,
            ..First::default()
        };
        FanoutBuilder::of(settings, mode).ripe_at(RipeAt::Whole)
    }

    /// Sends each item of a list in a branch of its own, at most so many at once, and returns what became of each, in order.
    pub fn map(max_concurrent: usize) -> FanoutBuilder<HttpBody, ByOutcome, Each> {
        let pace = Pace::at_once().at_most(max_concurrent);
        let settings = Settings {
            planned: usize::MAX,
            traced: false,
            ..Settings::new(pace, 1)
        };
        FanoutBuilder::of(settings, Each::default()).ripe_at(RipeAt::Whole)
    }

    /// Sends all `branches` at once, and returns what became of each: for a judge, or a merger.
    pub fn several(branches: usize) -> FanoutBuilder<HttpBody, ByOutcome, Several> {
        let mode = Several {
            fail_fast: false,
            min_ok: 1,
        };
        FanoutBuilder::planned(branches, mode).ripe_at(RipeAt::Whole)
    }

    /// Sends all `branches` at once; the first answer that so many `votes` agree on wins. `extract` says what an answer says.
    ///
    /// ```
    /// use tower_llm_core::Unary;
    /// use tower_llm_fanout::FanoutLayer;
    ///
    /// // Two of three must name the same city, however they spell it.
    /// let layer = FanoutLayer::quorum(3, 2, |answer: &String| answer.trim().to_lowercase())
    ///     .watch(Unary)
    ///     .build()?;
    /// # let _ = layer;
    /// # Ok::<(), tower_llm_core::ConfigError>(())
    /// ```
    pub fn quorum<X>(
        branches: usize,
        votes: usize,
        extract: X,
    ) -> FanoutBuilder<HttpBody, ByOutcome, Vote<X>> {
        FanoutBuilder::planned(branches, Vote { votes, extract }).ripe_at(RipeAt::Whole)
    }

    /// The answer that more than half of `branches` agree on wins.
    pub fn majority<X>(branches: usize, extract: X) -> FanoutBuilder<HttpBody, ByOutcome, Vote<X>> {
        Self::quorum(branches, branches / 2 + 1, extract)
    }
}

impl<W, C, M> FanoutLayer<W, C, M> {
    /// What it has done so far.
    #[must_use]
    pub fn stats(&self) -> FanoutStats {
        self.plan.counters.stats()
    }
}

impl<W, C, M> FanoutLayer<W, C, M>
where
    W: Clone,
    C: Clone,
    M: Mode<W, C, Split = Copies<W>>,
{
    /// A service whose calls go to the targets of `pool`, each branch of a call to another one.
    ///
    /// So a call has at most as many branches as the pool has targets. To send more, such as the votes of one model, apply the
    /// layer around a service that fails over across the pool.
    #[must_use]
    pub fn across<S>(&self, pool: &Pool<S>) -> Fanout<Dispatch<W>, Route<S, W>, M::Gather> {
        let watch = &self.reading.ripen;
        let eligible = self.eligible.clone();
        let route = Route::new(pool.clone(), self.branches, watch.clone(), eligible);
        let gather = self.mode.gather(self.reading.clone());
        let dispatch = Dispatch::new(watch.clone());
        Fanout::new(dispatch, route, gather, Arc::clone(&self.plan))
    }
}

impl<S, W, C, M> Layer<S> for FanoutLayer<W, C, M>
where
    W: Clone,
    C: Clone,
    M: Mode<W, C>,
{
    type Service = Fanout<S, M::Split, M::Gather>;

    fn layer(&self, inner: S) -> Self::Service {
        let split = self.mode.split(Copies {
            most: self.branches,
            replay: self.reading.ripen.clone(),
            eligible: self.eligible.clone(),
            candidates: false,
        });
        let gather = self.mode.gather(self.reading.clone());
        Fanout::new(inner, split, gather, Arc::clone(&self.plan))
    }
}
