//! The settings of an ensemble.

use std::{sync::Arc, time::Duration};

use tower_llm_core::{Call, ConfigError, HttpBody};

use super::EnsembleLayer;
use crate::{ByOutcome, FanoutBuilder, Mode, Several, plan::Plan};

/// What a call gets if its judge fails: with an error, in time, or with an answer that names no candidate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IfJudgeFails {
    /// The good answer of the first candidate that has one.
    #[default]
    FirstCandidate,
    /// The response of the judge, if there is one, or else [`JudgeFailed`](crate::JudgeFailed).
    Error,
}

/// Chooses the settings of an [`EnsembleLayer`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct EnsembleBuilder<J, A, W = HttpBody, C = ByOutcome> {
    pub(crate) candidates: FanoutBuilder<W, C, Several>,
    pub(crate) judge: J,
    pub(crate) ask: A,
    pub(crate) terms: Terms,
}

/// What is set about the judge.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Terms {
    judge_timeout: Option<Duration>,
    if_judge_fails: IfJudgeFails,
    report_headers: bool,
}

/// What the calls of an ensemble share.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) judge_timeout: Option<Duration>,
    pub(super) if_judge_fails: IfJudgeFails,
    pub(super) report_headers: bool,
    pub(super) max_held_bytes: usize,
    /// That of the candidates, for the statistics.
    pub(super) plan: Arc<Plan>,
}

impl<J, A, W, C> EnsembleBuilder<J, A, W, C> {
    /// Sets how many candidates must have a good answer; 1 unless set. With fewer, the call fails with
    /// [`TooFewAnswers`](crate::TooFewAnswers). If one has, the judge is not asked.
    pub fn min_ok(mut self, answers: usize) -> Self {
        self.candidates = self.candidates.min_ok(answers);
        self
    }

    /// Sets whether the first failure of a candidate fails the call, and gives up the other candidates; `false` unless set.
    pub fn fail_fast(mut self, fail_fast: bool) -> Self {
        self.candidates = self.candidates.fail_fast(fail_fast);
        self
    }

    /// Sets the time for the candidates together: the answers that have come by then are used. No limit unless set.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.candidates = self.candidates.deadline(deadline);
        self
    }

    /// Sets the time of the judge, which begins when it is asked. No limit unless set.
    pub fn judge_timeout(mut self, timeout: Duration) -> Self {
        self.terms.judge_timeout = Some(timeout);
        self
    }

    /// Sets what a call gets if its judge fails.
    pub fn if_judge_fails(mut self, then: IfJudgeFails) -> Self {
        self.terms.if_judge_fails = then;
        self
    }

    /// Sets whether an HTTP response names how many candidates its call had, in `x-fanout-attempts`, and which target of a
    /// [`Pool`](crate::Pool) its answer is from, in `x-fanout-target`, if the judge has chosen it; off unless set.
    pub fn report_headers(mut self, report_headers: bool) -> Self {
        self.terms.report_headers = report_headers;
        self
    }

    /// Sets the most bytes of each answer; 1 MiB unless set. A candidate with a longer one has failed.
    pub fn max_held_bytes(mut self, bytes: usize) -> Self {
        self.candidates = self.candidates.max_held_bytes(bytes);
        self
    }

    /// Decides which calls have several candidates; as in [`FanoutBuilder::eligible`].
    pub fn eligible(
        mut self,
        eligible: impl Fn(Option<&Call>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.candidates = self.candidates.eligible(eligible);
        self
    }

    /// Decides which answers of candidates are good: those that are [accepted](crate::Verdict::Accept).
    pub fn classify<D>(self, classify: D) -> EnsembleBuilder<J, A, W, D> {
        EnsembleBuilder {
            candidates: self.candidates.classify(classify),
            judge: self.judge,
            ask: self.ask,
            terms: self.terms,
        }
    }

    /// Sets how requests are cloned and responses read; as in [`FanoutBuilder::watch`].
    pub fn watch<V>(self, watch: V) -> EnsembleBuilder<J, A, V, C> {
        EnsembleBuilder {
            candidates: self.candidates.watch(watch),
            judge: self.judge,
            ask: self.ask,
            terms: self.terms,
        }
    }

    /// Builds the layer.
    ///
    /// # Errors
    ///
    /// If there are to be fewer than two candidates, or more than 1,000; if `min_ok` is zero or exceeds them; if a time is zero or
    /// longer than a day; or if nothing may be held.
    pub fn build(self) -> Result<EnsembleLayer<J, A, W, C>, ConfigError>
    where
        Several: Mode<W, C>,
    {
        let max_providers = self.candidates.settings.branches;
        if max_providers < 2 {
            let reason = "a judge needs at least two candidates";
            return Err(ConfigError::new("max_providers", max_providers, reason));
        }
        let terms = self.terms;
        let timeout = terms.judge_timeout;
        timeout
            .map(|timeout| ConfigError::check_duration("judge_timeout", timeout))
            .transpose()?;
        let candidates = self.candidates.build()?;
        let settings = Settings {
            judge_timeout: terms.judge_timeout,
            if_judge_fails: terms.if_judge_fails,
            report_headers: terms.report_headers,
            max_held_bytes: candidates.reading.ripeness.max_held_bytes,
            plan: Arc::clone(&candidates.plan),
        };
        Ok(EnsembleLayer {
            candidates,
            judge: self.judge,
            ask: self.ask,
            settings: Arc::new(settings),
        })
    }
}
