//! Hedges, races, failover and retries of one call.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tower_layer::Layer;
use tower_llm_core::{BoxError, Call, ConfigError, Described, HttpBody};
use tower_service::Service;

use crate::{
    Answers, Backoff, Budget, ByOutcome, Copies, Delay, Dispatch, Each, Fallback, FanoutFuture,
    FanoutStats, First, FirstOk, Gather, Mode, Pace, Pool, Reading, RipeAt, Ripeness, Route,
    Several, Split, Vote, plan::Plan, split::Eligible, stats::Counters,
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

/// Chooses the settings of a [`FanoutLayer`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct FanoutBuilder<W = HttpBody, C = ByOutcome, M = First> {
    settings: Settings,
    reading: Reading<W, C>,
    mode: M,
}

/// What does not depend on types.
#[derive(Clone, Debug)]
struct Settings {
    pace: Pace,
    branches: usize,
    planned: usize,
    budget: Option<Budget>,
    backoff: Option<Backoff>,
    max_retry_after: Duration,
    deadline: Option<Duration>,
    attempt_timeout: Option<Duration>,
    min_attempt: Duration,
    eligible: Eligible,
    traced: bool,
}

/// A service whose calls have branches.
#[derive(Clone, Debug)]
pub struct Fanout<S, Sp = Copies, G = FirstOk> {
    inner: S,
    split: Sp,
    gather: G,
    plan: Arc<Plan>,
}

// === impl FanoutLayer ===

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

// === impl FanoutBuilder ===

impl Settings {
    fn new(pace: Pace, branches: usize) -> Self {
        Self {
            pace,
            branches,
            planned: 1,
            budget: None,
            backoff: None,
            max_retry_after: Duration::from_secs(60),
            deadline: None,
            attempt_timeout: None,
            min_attempt: Duration::from_millis(100),
            eligible: Eligible::default(),
            traced: true,
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        const MOST: usize = 1_000;
        ConfigError::check_nonzero("branches", self.branches)?;
        if self.branches > MOST {
            let reason = "it must be at most 1000";
            return Err(ConfigError::new("branches", self.branches, reason));
        }
        for (field, time) in [
            ("deadline", self.deadline),
            ("attempt_timeout", self.attempt_timeout),
            ("min_attempt", Some(self.min_attempt)),
            ("max_retry_after", Some(self.max_retry_after)),
        ] {
            time.map(|time| ConfigError::check_duration(field, time))
                .transpose()?;
        }
        self.pace.check()
    }
}

impl FanoutBuilder {
    fn sequential(extra: usize, budget: Budget) -> Self {
        let settings = Settings {
            budget: Some(budget),
            backoff: Some(Backoff::default()),
            ..Settings::new(Pace::after_failure(1), extra.saturating_add(1))
        };
        Self::of(settings, First::default())
    }
}

impl<M> FanoutBuilder<HttpBody, ByOutcome, M> {
    fn of(settings: Settings, mode: M) -> Self {
        let reading = Reading {
            ripen: HttpBody,
            ripeness: Ripeness::default(),
            classify: ByOutcome,
        };
        Self {
            settings,
            reading,
            mode,
        }
    }

    fn planned(branches: usize, mode: M) -> Self {
        let settings = Settings {
            planned: branches,
            ..Settings::new(Pace::at_once(), branches)
        };
        Self::of(settings, mode)
    }
}

impl<W, C> FanoutBuilder<W, C, First> {
    /// Sets which answer a call gets if no branch has a good one.
    pub fn fallback(mut self, fallback: Fallback) -> Self {
        self.mode.fallback = fallback;
        self
    }

    /// Sets whether an HTTP response names how many branches its call had, in `x-fanout-attempts`, and which target of a
    /// [`Pool`] its answer is from, in `x-fanout-target`; off unless set. A call with one branch to no named target has
    /// neither.
    pub fn report_headers(mut self, report_headers: bool) -> Self {
        self.mode.report_headers = report_headers;
        self
    }
}

impl<W, C> FanoutBuilder<W, C, Each> {
    /// Sets whether the first failure ends the call: what is in flight is given up, and nothing else starts.
    pub fn fail_fast(mut self, fail_fast: bool) -> Self {
        self.mode.fail_fast = fail_fast;
        self
    }
}

impl<W, C> FanoutBuilder<W, C, Several> {
    /// Sets whether the first failure ends the call.
    pub fn fail_fast(mut self, fail_fast: bool) -> Self {
        self.mode.fail_fast = fail_fast;
        self
    }

    /// Sets how many good answers are needed; 1 unless set. With fewer, the call fails with
    /// [`TooFewAnswers`](crate::TooFewAnswers).
    pub fn min_ok(mut self, answers: usize) -> Self {
        self.mode.min_ok = answers;
        self
    }
}

impl<W, C, M> FanoutBuilder<W, C, M> {
    /// Sets the most branches of a call, the first one included.
    pub fn branches(mut self, branches: usize) -> Self {
        self.settings.branches = branches;
        self
    }

    /// Sets when the branches may start.
    pub fn pace(mut self, pace: Pace) -> Self {
        self.settings.pace = pace;
        self
    }

    /// Sets what extra branches are paid from. Give the same budget to all that call one provider. 10 % of calls unless set
    /// for a hedge (or the ratio of [`Delay::slowest`]), 20 % for retries; for failover, one for each call.
    pub fn budget(mut self, budget: Budget) -> Self {
        self.settings.budget = Some(budget);
        self
    }

    /// Sets how long a retry at the same target waits.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.settings.backoff = Some(backoff);
        self
    }

    /// Sets the longest time of a provider that is waited for; 60 s unless set. A target that asks for longer is not tried again.
    /// It is never tried sooner.
    pub fn max_retry_after(mut self, time: Duration) -> Self {
        self.settings.max_retry_after = time;
        self
    }

    /// Sets how long a call may take until its answer counts, all branches together. Branches that run one after another share
    /// what is left.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.settings.deadline = Some(deadline);
        self
    }

    /// Sets how long each branch may take until its answer counts.
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.settings.attempt_timeout = Some(timeout);
        self
    }

    /// Sets the time without which no other branch starts before the [deadline](Self::deadline); 100 ms unless set.
    pub fn min_attempt(mut self, time: Duration) -> Self {
        self.settings.min_attempt = time;
        self
    }

    /// Sets when a response counts as an answer.
    pub fn ripe_at(mut self, at: RipeAt) -> Self {
        self.reading.ripeness.at = at;
        self
    }

    /// Sets the most bytes of a response that are held until it counts; 1 MiB unless set.
    pub fn max_held_bytes(mut self, bytes: usize) -> Self {
        self.reading.ripeness.max_held_bytes = bytes;
        self
    }

    /// Decides which calls may have several branches; only calls for [inference](tower_llm_core::Operation::is_inference)
    /// unless set, and those that are not described.
    ///
    /// A call that stores something at the provider, or runs tools there, should have one branch.
    pub fn eligible(
        mut self,
        eligible: impl Fn(Option<&Call>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.settings.eligible = Eligible::By(Arc::new(eligible));
        self
    }

    /// Decides what an answer means.
    pub fn classify<D>(self, classify: D) -> FanoutBuilder<W, D, M> {
        let Reading {
            ripen, ripeness, ..
        } = self.reading;
        FanoutBuilder {
            settings: self.settings,
            reading: Reading {
                ripen,
                ripeness,
                classify,
            },
            mode: self.mode,
        }
    }

    /// Sets how requests are cloned and responses read: [`HttpBody`] unless set, [`Unary`](tower_llm_core::Unary) for
    /// requests of any other type.
    pub fn watch<V>(self, watch: V) -> FanoutBuilder<V, C, M> {
        let Reading {
            ripeness, classify, ..
        } = self.reading;
        FanoutBuilder {
            settings: self.settings,
            reading: Reading {
                ripen: watch,
                ripeness,
                classify,
            },
            mode: self.mode,
        }
    }

    /// Builds the layer.
    ///
    /// # Errors
    ///
    /// If there is to be no branch, or more than 1,000; if a time is zero or longer than a day; if nothing may be held; or if
    /// the ratio of [`Delay::slowest`] is not between 0 and 1.
    pub fn build(self) -> Result<FanoutLayer<W, C, M>, ConfigError>
    where
        M: Mode<W, C>,
    {
        let settings = self.settings;
        settings.check()?;
        self.mode.check(settings.branches)?;
        let max_held = self.reading.ripeness.max_held_bytes;
        ConfigError::check_nonzero("max_held_bytes", max_held)?;
        let plan = Plan {
            pace: settings.pace,
            planned: settings.planned,
            budget: settings.budget,
            backoff: settings.backoff,
            max_retry_after: settings.max_retry_after,
            deadline: settings.deadline,
            attempt_timeout: settings.attempt_timeout,
            min_attempt: settings.min_attempt,
            traced: settings.traced,
            counters: Counters::default(),
        };
        Ok(FanoutLayer {
            plan: Arc::new(plan),
            branches: settings.branches,
            reading: self.reading,
            mode: self.mode,
            eligible: settings.eligible,
        })
    }
}

// === impl Fanout ===

impl<S, Sp, G> Fanout<S, Sp, G> {
    pub(crate) const fn new(inner: S, split: Sp, gather: G, plan: Arc<Plan>) -> Self {
        Self {
            inner,
            split,
            gather,
            plan,
        }
    }
}

impl<S, Sp, G, Req> Service<Req> for Fanout<S, Sp, G>
where
    Sp: Split<Req>,
    Sp::Branch: Described,
    S: Service<Sp::Branch> + Clone,
    S::Error: Into<BoxError>,
    G: Gather<S::Response>,
{
    type Response = <G::Answers as Answers<G::Ripe>>::Output;
    type Error = BoxError;
    type Future = FanoutFuture<S, Sp::Branches, G>;

    /// Ready when the inner service can take the first branch. Each later branch waits for itself.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let branches = self.split.split(request);
        FanoutFuture::new(&mut self.inner, &self.plan, branches, self.gather.clone())
    }
}
