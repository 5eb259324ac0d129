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
    Answers, Backoff, Budget, ByOutcome, Copies, Delay, FanoutFuture, FanoutStats, FirstOk, Gather,
    Pace, RipeAt, Ripeness, Split, plan::Plan, split::Eligible, stats::Counters,
};

/// Sends a call in several branches, of which the first good answer wins.
///
/// Clones, and all services that it makes, share the budget, the record of latencies and the statistics.
#[derive(Clone, Debug)]
pub struct FanoutLayer<W = HttpBody, C = ByOutcome> {
    pub(crate) plan: Arc<Plan>,
    pub(crate) branches: usize,
    pub(crate) gather: FirstOk<W, C>,
    eligible: Eligible,
}

/// Chooses the settings of a [`FanoutLayer`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct FanoutBuilder<W = HttpBody, C = ByOutcome> {
    pace: Pace,
    branches: usize,
    planned: usize,
    budget: Option<Budget>,
    backoff: Option<Backoff>,
    max_retry_after: Duration,
    deadline: Option<Duration>,
    attempt_timeout: Option<Duration>,
    min_attempt: Duration,
    gather: FirstOk<W, C>,
    eligible: Eligible,
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
        FanoutBuilder {
            planned: branches,
            ..FanoutBuilder::new(Pace::at_once(), branches)
        }
    }

    /// Sends a second branch if the first one has not answered after `delay`, or has failed.
    ///
    /// Most providers bill a branch that lost for what it had generated.
    pub fn hedge(delay: Delay) -> FanoutBuilder {
        let budget = Budget::for_hedge(&delay);
        FanoutBuilder {
            budget,
            ..FanoutBuilder::new(Pace::after(delay), 2)
        }
    }

    /// Sends a call that failed again, up to `retries` times, with a [`Backoff`].
    pub fn retry(retries: usize) -> FanoutBuilder {
        FanoutBuilder {
            budget: Some(Budget::of(0.2)),
            backoff: Some(Backoff::default()),
            ..FanoutBuilder::new(Pace::after_failure(1), retries.saturating_add(1))
        }
    }

    /// Sends a call that failed to another target, up to `extra` times; for a [`Pool`](crate::Pool). If all targets have been
    /// tried, the same ones are tried again only if there is but one.
    pub fn failover(extra: usize) -> FanoutBuilder {
        FanoutBuilder {
            budget: Some(Budget::of(1.0)),
            ..Self::retry(extra)
        }
    }
}

impl<W, C> FanoutLayer<W, C> {
    /// What it has done so far.
    #[must_use]
    pub fn stats(&self) -> FanoutStats {
        self.plan.counters.stats()
    }
}

impl<S, W: Clone, C: Clone> Layer<S> for FanoutLayer<W, C> {
    type Service = Fanout<S, Copies<W>, FirstOk<W, C>>;

    fn layer(&self, inner: S) -> Self::Service {
        let split = Copies {
            most: self.branches,
            replay: self.gather.ripen.clone(),
            eligible: self.eligible.clone(),
        };
        Fanout::new(inner, split, self.gather.clone(), Arc::clone(&self.plan))
    }
}

// === impl FanoutBuilder ===

impl FanoutBuilder {
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
            gather: FirstOk {
                ripen: HttpBody,
                ripeness: Ripeness::default(),
                classify: ByOutcome,
            },
            eligible: Eligible::default(),
        }
    }
}

impl<W, C> FanoutBuilder<W, C> {
    /// Sets the most branches of a call, the first one included.
    pub fn branches(mut self, branches: usize) -> Self {
        self.branches = branches;
        self
    }

    /// Sets when the branches may start.
    pub fn pace(mut self, pace: Pace) -> Self {
        self.pace = pace;
        self
    }

    /// Sets what extra branches are paid from. Give the same budget to all that call one provider. 10 % of calls unless set
    /// for a hedge (or the ratio of [`Delay::slowest`]), 20 % for retries; for failover, one for each call.
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Sets how long a retry at the same target waits.
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = Some(backoff);
        self
    }

    /// Sets the longest time of a provider that is waited for; 60 s unless set. A target that asks for longer is not tried again.
    /// It is never tried sooner.
    pub fn max_retry_after(mut self, time: Duration) -> Self {
        self.max_retry_after = time;
        self
    }

    /// Sets how long a call may take until its answer counts, all branches together. Branches that run one after another share
    /// what is left.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Sets how long each branch may take until its answer counts.
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.attempt_timeout = Some(timeout);
        self
    }

    /// Sets the time without which no other branch starts before the [deadline](Self::deadline); 100 ms unless set.
    pub fn min_attempt(mut self, time: Duration) -> Self {
        self.min_attempt = time;
        self
    }

    /// Sets when a response counts as an answer.
    pub fn ripe_at(mut self, at: RipeAt) -> Self {
        self.gather.ripeness.at = at;
        self
    }

    /// Sets the most bytes of a response that are held until it counts; 1 MiB unless set.
    pub fn max_held_bytes(mut self, bytes: usize) -> Self {
        self.gather.ripeness.max_held_bytes = bytes;
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
        self.eligible = Eligible::By(Arc::new(eligible));
        self
    }

    /// Decides what an answer means.
    pub fn classify<D>(self, classify: D) -> FanoutBuilder<W, D> {
        let FirstOk {
            ripen, ripeness, ..
        } = self.gather;
        let gather = FirstOk {
            ripen,
            ripeness,
            classify,
        };
        FanoutBuilder {
            pace: self.pace,
            branches: self.branches,
            planned: self.planned,
            budget: self.budget,
            backoff: self.backoff,
            max_retry_after: self.max_retry_after,
            deadline: self.deadline,
            attempt_timeout: self.attempt_timeout,
            min_attempt: self.min_attempt,
            gather,
            eligible: self.eligible,
        }
    }

    /// Sets how requests are cloned and responses read: [`HttpBody`] unless set, [`Unary`](tower_llm_core::Unary) for
    /// requests of any other type.
    pub fn watch<V>(self, watch: V) -> FanoutBuilder<V, C> {
        let FirstOk {
            ripeness, classify, ..
        } = self.gather;
        let gather = FirstOk {
            ripen: watch,
            ripeness,
            classify,
        };
        FanoutBuilder {
            pace: self.pace,
            branches: self.branches,
            planned: self.planned,
            budget: self.budget,
            backoff: self.backoff,
            max_retry_after: self.max_retry_after,
            deadline: self.deadline,
            attempt_timeout: self.attempt_timeout,
            min_attempt: self.min_attempt,
            gather,
            eligible: self.eligible,
        }
    }

    /// Builds the layer.
    ///
    /// # Errors
    ///
    /// If there is to be no branch, or more than 1,000; if a time is zero or longer than a day; if nothing may be held; or if
    /// the ratio of [`Delay::slowest`] is not between 0 and 1.
    pub fn build(self) -> Result<FanoutLayer<W, C>, ConfigError> {
        const MOST: usize = 1_000;
        ConfigError::check_nonzero("branches", self.branches)?;
        if self.branches > MOST {
            return Err(ConfigError::new(
                "branches",
                self.branches,
                "it must be at most 1000",
            ));
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
        ConfigError::check_nonzero("max_held_bytes", self.gather.ripeness.max_held_bytes)?;
        self.pace.check()?;
        let plan = Plan {
            pace: self.pace,
            planned: self.planned,
            budget: self.budget,
            backoff: self.backoff,
            max_retry_after: self.max_retry_after,
            deadline: self.deadline,
            attempt_timeout: self.attempt_timeout,
            min_attempt: self.min_attempt,
            counters: Counters::default(),
        };
        Ok(FanoutLayer {
            plan: Arc::new(plan),
            branches: self.branches,
            gather: self.gather,
            eligible: self.eligible,
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
