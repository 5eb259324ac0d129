//! Several candidates answer a call, and a judge makes one answer of theirs.
//!
//! The candidates are a fan-out like any other: copies of the call, or one target of a pool each, whose answers are all kept.
//! What is here is the second stage: it asks a judge about the good ones, hands out its answer or the one that it chose, and has
//! the caller pay for all.

mod court;
mod elect;
mod future;
mod judge;
mod service;
mod settings;

use std::{error::Error, fmt, sync::Arc};

use tower_layer::Layer;
use tower_llm_core::{BoxError, HttpBody};

use self::settings::Settings;
pub(crate) use self::settings::Terms;
pub use self::{
    elect::{Elect, EnsembleBody},
    future::EnsembleFuture,
    judge::{BestOf, Judge},
    service::Ensemble,
    settings::{EnsembleBuilder, IfJudgeFails},
};
use crate::{
    ByOutcome, Collect, Copies, Dispatch, Fanout, FanoutLayer, FanoutStats, Pool, Route, Several,
};

/// Sends a call to several candidates at once, and has a judge make one answer of theirs; see
/// [`FanoutLayer::ensemble`] and [`FanoutLayer::best_of`].
///
/// | event | what happens |
/// |---|---|
/// | two or more candidates have a good answer | the judge is asked |
/// | one has | its answer is the call's; the judge is not asked |
/// | fewer than [`min_ok`](EnsembleBuilder::min_ok) have | [`TooFewAnswers`](crate::TooFewAnswers) |
/// | the candidates' [deadline](EnsembleBuilder::deadline) passes | those that have not answered are given up |
/// | the judge fails | the first good answer, or the error: [`IfJudgeFails`] |
/// | the call is not [eligible](EnsembleBuilder::eligible) | it has one branch, whose response passes as it is |
///
/// For the layers outside it is one call: one permit, one request of a limit. Their limits on tokens charge what the
/// candidates and the judge have used together, also if the caller leaves: that of HTTP responses, which report their usage. A
/// typed response has no place for it, unless [`Elect`] and [`Attach::charge`](crate::Attach::charge) are implemented for it.
///
/// The candidates have cache keys of their own ([`Call::candidate`](tower_llm_core::Call::candidate)), so that a cache inside
/// does not answer all of them with one answer.
///
/// Answers of candidates are held whole, and reach the judge as their service gave them: those of a streamed call are event
/// streams. A judge that writes the answer may stream it.
#[derive(Clone, Debug)]
pub struct EnsembleLayer<J, A, W = HttpBody, C = ByOutcome> {
    candidates: FanoutLayer<W, C, Several>,
    judge: J,
    ask: A,
    settings: Arc<Settings>,
}

/// A judge has failed, and its call with it.
#[derive(Debug)]
pub struct JudgeFailed {
    source: BoxError,
}

// === impl EnsembleLayer ===

impl<J, A, W, C> EnsembleLayer<J, A, W, C> {
    /// What it has done so far.
    #[must_use]
    pub fn stats(&self) -> FanoutStats {
        self.candidates.stats()
    }
}

impl<J, A, W, C> EnsembleLayer<J, A, W, C>
where
    J: Clone,
    A: Clone,
    W: Clone,
    C: Clone,
{
    /// A service whose candidates are the targets of `pool`, each another one; see [`FanoutLayer::across`].
    #[must_use]
    pub fn across<S>(
        &self,
        pool: &Pool<S>,
    ) -> Ensemble<Fanout<Dispatch<W>, Route<S, W>, Collect<W, C>>, J, A, W> {
        self.around(self.candidates.across(pool))
    }

    fn around<F>(&self, candidates: F) -> Ensemble<F, J, A, W> {
        Ensemble {
            candidates,
            judge: self.judge.clone(),
            ask: self.ask.clone(),
            watch: self.candidates.reading.ripen.clone(),
            settings: Arc::clone(&self.settings),
        }
    }
}

impl<S, J, A, W, C> Layer<S> for EnsembleLayer<J, A, W, C>
where
    J: Clone,
    A: Clone,
    W: Clone,
    C: Clone,
{
    type Service = Ensemble<Fanout<S, Copies<W>, Collect<W, C>>, J, A, W>;

    fn layer(&self, inner: S) -> Self::Service {
        self.around(self.candidates.layer(inner))
    }
}

// === impl JudgeFailed ===

impl JudgeFailed {
    fn new(source: BoxError) -> Self {
        Self { source }
    }
}

impl fmt::Display for JudgeFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the judge of the candidates failed")
    }
}

impl Error for JudgeFailed {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}
