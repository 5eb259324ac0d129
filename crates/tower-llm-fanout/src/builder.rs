//! The settings of a fan-out.

use std::{sync::Arc, time::Duration};

use tower_llm_core::{Call, ConfigError, HttpBody};

use crate::{
    Backoff, Budget, ByOutcome, Each, Fallback, FanoutLayer, First, Mode, Pace, Reading, RipeAt,
    Ripeness, Several, Vote, plan::Plan, split::Eligible, stats::Counters,
};

/// Chooses the settings of a [`FanoutLayer`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct FanoutBuilder<W = HttpBody, C = ByOutcome, M = First> {
    pub(crate) settings: Settings,
    reading: Reading<W, C>,
    mode: M,
}

/// What does not depend on types.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) pace: Pace,
    pub(crate) branches: usize,
    pub(crate) planned: usize,
    pub(crate) budget: Option<Budget>,
    pub(crate) backoff: Option<Backoff>,
    pub(crate) max_retry_after: Duration,
    pub(crate) deadline: Option<Duration>,
    pub(crate) attempt_timeout: Option<Duration>,
    pub(crate) min_attempt: Duration,
    pub(crate) eligible: Eligible,
    pub(crate) traced: bool,
    pub(crate) bills: bool,
}

impl Settings {
    pub(crate) fn new(pace: Pace, branches: usize) -> Self {
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
            bills: false,
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
    pub(crate) fn sequential(extra: usize, budget: Budget) -> Self {
        let settings = Settings {
            budget: Some(budget),
            backoff: Some(Backoff::default()),
            ..Settings::new(Pace::after_failure(1), extra.saturating_add(1))
        };
        Self::of(settings, First::default())
    }
}

impl<M> FanoutBuilder<HttpBody, ByOutcome, M> {
    pub(crate) fn of(settings: Settings, mode: M) -> Self {
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

    pub(crate) fn planned(branches: usize, mode: M) -> Self {
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
    /// [`Pool`](crate::Pool) its answer is from, in `x-fanout-target`; off unless set. A call with one branch to no named target has
    /// neither.
    pub fn report_headers(mut self, report_headers: bool) -> Self {
        self.mode.report_headers = report_headers;
        self
    }
}

impl<W, C, X> FanoutBuilder<W, C, Vote<X>> {
    /// Sets whether an HTTP response names how many branches its call had and which target its answer is from; off unless set.
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
    /// for a hedge (or the ratio of [`Delay::slowest`](crate::Delay::slowest)), 20 % for retries; for failover, one for each call.
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

    /// Decides which calls may have several branches; unless set, only calls for
    /// [inference](tower_llm_core::Operation::is_inference) of which the provider [keeps nothing](Call::stored), and those that are not
    /// described.
    ///
    /// Other calls are sent once. If a target of a pool refuses one before it is sent, it goes to the next.
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
    /// the ratio of [`Delay::slowest`](crate::Delay::slowest) is not between 0 and 1.
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
            bills: settings.bills,
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
