//! One request is divided into parts that its provider takes, and their answers are joined.
//!
//! The parts are a [map](FanoutLayer::map) that needs all of its items. What is here divides, joins, and has the caller pay for what was
//! sent if a part fails.

mod completions;
mod embeddings;
mod future;
mod list;

use std::{
    error::Error,
    fmt,
    task::{Context, Poll},
    time::Duration,
};

use tower_layer::Layer;
use tower_llm_core::{BoxError, ConfigError, HttpBody, Refusal, RefusalKind};
use tower_service::Service;

pub use self::{
    completions::{CompletionParts, JoinChoices},
    embeddings::{EmbeddingParts, JoinVectors},
    future::PartedFuture,
};
use crate::{
    Attach, ByOutcome, Collect, Collected, Each, Fanout, FanoutBuilder, FanoutLayer, FanoutStats,
    Items, Mode,
};

/// Divides requests into parts. Implemented for [`EmbeddingParts`] and [`CompletionParts`], over HTTP, and for closures.
pub trait Divide<Req>: Clone {
    /// Joins the answers to the parts of one request.
    type Join;

    /// Divides a request.
    ///
    /// # Errors
    ///
    /// If it cannot be sent, such as for an item that no call can take: [`ItemTooLong`].
    fn divide(&self, request: Req) -> Result<Divided<Req, Self::Join>, BoxError>;
}

/// Joins the answers to the parts of a request. Implemented for closures.
pub trait Join<T> {
    /// Joins the good answers to all parts, in their order.
    ///
    /// # Errors
    ///
    /// If they cannot be joined. Wrap the error in a [`ClassifiedError`](tower_llm_core::ClassifiedError) to state what it stands
    /// for.
    fn join(self, answers: Vec<T>) -> Result<T, BoxError>;
}

/// A request, divided.
#[derive(Debug)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a request is sent as it is, or in parts"
)]
pub enum Divided<Req, J> {
    /// It is sent as it is, and its response passes as it comes.
    Whole(Req),
    /// Each of these is sent, in a branch of its own.
    Parts(Vec<Req>, J),
}

/// Divides requests that are larger than their provider takes; see [`FanoutLayer::split`].
#[derive(Clone, Debug)]
pub struct SplitLayer<D, W = HttpBody, C = ByOutcome> {
    parts: FanoutLayer<W, C, Each>,
    divide: D,
    terms: Terms,
}

/// Chooses the settings of a [`SplitLayer`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct SplitBuilder<D, W = HttpBody, C = ByOutcome> {
    pub(crate) parts: FanoutBuilder<W, C, Each>,
    pub(crate) divide: D,
    pub(crate) report_headers: bool,
}

/// Sends requests in parts.
#[derive(Clone, Debug)]
pub struct Parted<F, D, W> {
    parts: F,
    divide: D,
    watch: W,
    terms: Terms,
}

/// What the answer to a call depends on.
#[derive(Clone, Copy, Debug)]
struct Terms {
    deadline: Option<Duration>,
    report_headers: bool,
}

/// An item of a request has more tokens than its provider takes, by their estimate. Nothing was sent.
#[derive(Debug)]
pub struct ItemTooLong {
    item: usize,
    tokens: u64,
    limit: u64,
    source: Refusal,
}

impl<Req, J, F> Divide<Req> for F
where
    F: Fn(Req) -> Result<Divided<Req, J>, BoxError> + Clone,
{
    type Join = J;

    fn divide(&self, request: Req) -> Result<Divided<Req, J>, BoxError> {
        self(request)
    }
}

impl<T, F> Join<T> for F
where
    F: FnOnce(Vec<T>) -> Result<T, BoxError>,
{
    fn join(self, answers: Vec<T>) -> Result<T, BoxError> {
        self(answers)
    }
}

// === impl SplitLayer ===

impl<D, W, C> SplitLayer<D, W, C> {
    /// What it has done so far. Each part is a branch.
    #[must_use]
    pub fn stats(&self) -> FanoutStats {
        self.parts.stats()
    }
}

impl<S, D, W, C> Layer<S> for SplitLayer<D, W, C>
where
    D: Clone,
    W: Clone,
    C: Clone,
{
    type Service = Parted<Fanout<S, Items, Collect<W, C>>, D, W>;

    fn layer(&self, inner: S) -> Self::Service {
        Parted {
            parts: self.parts.layer(inner),
            divide: self.divide.clone(),
            watch: self.parts.reading.ripen.clone(),
            terms: self.terms,
        }
    }
}

// === impl SplitBuilder ===

impl<D, W, C> SplitBuilder<D, W, C> {
    /// Sets how long a call may take, all parts together. No limit unless set.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.parts = self.parts.deadline(deadline);
        self
    }

    /// Sets how long each part may take.
    pub fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.parts = self.parts.attempt_timeout(timeout);
        self
    }

    /// Sets the most bytes of the answer to a part; 128 MiB unless set. 2,048 vectors of 3,072 numbers have some 80 MB as text.
    pub fn max_held_bytes(mut self, bytes: usize) -> Self {
        self.parts = self.parts.max_held_bytes(bytes);
        self
    }

    /// Sets whether a response that was joined names how many parts its request had, in `x-fanout-attempts`; off unless set.
    pub fn report_headers(mut self, report_headers: bool) -> Self {
        self.report_headers = report_headers;
        self
    }

    /// Decides which answers to parts are good: those that are [accepted](crate::Verdict::Accept).
    pub fn classify<E>(self, classify: E) -> SplitBuilder<D, W, E> {
        SplitBuilder {
            parts: self.parts.classify(classify),
            divide: self.divide,
            report_headers: self.report_headers,
        }
    }

    /// Sets how responses are read; as in [`FanoutBuilder::watch`].
    pub fn watch<V>(self, watch: V) -> SplitBuilder<D, V, C> {
        SplitBuilder {
            parts: self.parts.watch(watch),
            divide: self.divide,
            report_headers: self.report_headers,
        }
    }

    /// Builds the layer.
    ///
    /// # Errors
    ///
    /// If no part may run, a time is zero or longer than a day, or nothing may be held.
    pub fn build(self) -> Result<SplitLayer<D, W, C>, ConfigError>
    where
        Each: Mode<W, C>,
    {
        let parts = self.parts.build()?;
        let terms = Terms {
            deadline: parts.plan.deadline,
            report_headers: self.report_headers,
        };
        Ok(SplitLayer {
            parts,
            divide: self.divide,
            terms,
        })
    }
}

// === impl Parted ===

impl<F, D, W, Req, T> Service<Req> for Parted<F, D, W>
where
    F: Service<Vec<Req>, Response = Collected<T>, Error = BoxError>,
    D: Divide<Req>,
    D::Join: Join<T>,
    W: Attach<T>,
{
    type Response = T;
    type Error = BoxError;
    type Future = PartedFuture<F::Future, D::Join, W>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.parts.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let (parts, join) = match self.divide.divide(request) {
            Ok(Divided::Whole(request)) => (vec![request], None),
            Ok(Divided::Parts(parts, join)) => {
                let join = (parts.len() > 1).then_some(join);
                (parts, join)
            }
            Err(error) => return PartedFuture::refused(error),
        };
        let future = self.parts.call(parts);
        PartedFuture::new(future, join, self.watch.clone(), self.terms)
    }
}

// === impl ItemTooLong ===

impl ItemTooLong {
    /// States that an item, by its position, has so many tokens, and at most `limit` can be sent.
    #[must_use]
    pub fn new(item: usize, tokens: u64, limit: u64) -> Self {
        Self {
            item,
            tokens,
            limit,
            source: Refusal::new(RefusalKind::TooLarge, "split").never(),
        }
    }

    /// The position of the item among those of the request.
    #[must_use]
    pub const fn item(&self) -> usize {
        self.item
    }
}

impl fmt::Display for ItemTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            item,
            tokens,
            limit,
            ..
        } = self;
        write!(
            f,
            "input {item} has about {tokens} tokens, and at most {limit} can be sent"
        )
    }
}

impl Error for ItemTooLong {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.source)
    }
}
