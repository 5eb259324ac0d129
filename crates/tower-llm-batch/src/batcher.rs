use std::{fmt, future::Future, hash::Hash, sync::Arc};

use tokio::time::Instant;
use tower_llm_core::{BoxError, Priority};

use crate::error::SharedError;

/// Says which calls share an upstream call, puts that call together, and takes its reply apart.
///
/// [`Embeddings`](crate::Embeddings) is one for HTTP. The [crate's example](crate#example) is one for types of your own.
///
/// No lock is held while one of its methods runs, and none of them should block.
pub trait Batcher: Send + Sync + 'static {
    /// What a caller asks.
    type Request: Send + 'static;
    /// What calls have in common that share an upstream call: the model, options, the credential.
    ///
    /// It is compared while the queue is locked, so a comparison must be cheap.
    type Key: Eq + Hash + Send + Sync + 'static;
    /// What is sent upstream.
    type Batch: Send + 'static;
    /// What [`scatter`](Self::scatter) must know of a batch.
    type Plan: Send + 'static;
    /// What comes back.
    type Reply: Send + 'static;
    /// What a caller gets.
    type Response: Send + 'static;

    /// Returns what the layer must know to merge a request; `None` if it is to be sent alone and at once.
    fn terms(&self, request: &Self::Request) -> Option<Terms<Self::Key>>;

    /// Puts an upstream call together from one request or more.
    ///
    /// More than one may be sent again, in smaller batches, so they must stay as they are. A single one is not sent again:
    /// what is in it may be taken.
    fn assemble(&self, requests: &mut [Self::Request]) -> (Self::Batch, Self::Plan);

    /// Takes a reply apart, in the order of the requests.
    fn scatter(
        &self,
        plan: Self::Plan,
        reply: Self::Reply,
    ) -> impl Future<Output = Scattered<Self::Response>> + Send;
}

/// What the layer must know of a request to merge it with others.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "terms do nothing until they are returned"]
pub struct Terms<K> {
    pub(crate) key: K,
    pub(crate) items: u64,
    pub(crate) tokens: u64,
    pub(crate) max_items: u64,
    pub(crate) max_tokens: u64,
    pub(crate) priority: Priority,
    pub(crate) deadline: Option<Instant>,
}

/// A reply, taken apart: a result for each request, in their order.
///
/// With another number of results than requests, all of them are dropped, and the requests are sent again as with
/// [`Split`](Self::Split).
pub enum Scattered<T> {
    /// These are the results.
    Each(Vec<Result<T, BoxError>>),
    /// One of the requests may be at fault for the whole: they are sent again in two halves.
    ///
    /// If no more calls may be made, or there was one request, these are the results.
    Split(Vec<Result<T, BoxError>>),
}

// === impl Terms ===

impl<K> Terms<K> {
    /// Those of a request of one item and no tokens, with normal priority and no deadline.
    pub const fn new(key: K) -> Self {
        Self {
            key,
            items: 1,
            tokens: 0,
            max_items: u64::MAX,
            max_tokens: u64::MAX,
            priority: Priority::Normal,
            deadline: None,
        }
    }

    /// Sets the number of items; zero counts as one.
    pub const fn items(mut self, items: u64) -> Self {
        self.items = if items == 0 { 1 } else { items };
        self
    }

    /// Sets the number of tokens.
    pub const fn tokens(mut self, tokens: u64) -> Self {
        self.tokens = tokens;
        self
    }

    /// Limits the items and tokens of a batch of this key, beyond the limits of the layer. The limits of the first call hold
    /// as long as calls of its key wait or are in flight.
    pub const fn limits(mut self, max_items: u64, max_tokens: u64) -> Self {
        self.max_items = max_items;
        self.max_tokens = max_tokens;
        self
    }

    /// Sets the priority.
    pub const fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    pub(crate) fn shared(self) -> Terms<Arc<K>> {
        Terms {
            key: Arc::new(self.key),
            items: self.items,
            tokens: self.tokens,
            max_items: self.max_items,
            max_tokens: self.max_tokens,
            priority: self.priority,
            deadline: self.deadline,
        }
    }

    /// Sets when the caller must have its answer. It is sent early enough for that if it can be, and refused if it still waits
    /// by then.
    pub const fn deadline(mut self, deadline: Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }
}

// === impl Scattered ===

impl<T> Scattered<T> {
    /// All of a number of requests failed for the same reason, which none of them is at fault for.
    ///
    /// Each gets an error that displays as `error`, and has it as its source.
    pub fn failed(requests: usize, error: impl Into<BoxError>) -> Self {
        Self::Each(SharedError::copies(requests, error.into()))
    }

    /// The same if one of the requests may be at fault.
    pub fn rejected(requests: usize, error: impl Into<BoxError>) -> Self {
        Self::Split(SharedError::copies(requests, error.into()))
    }
}

impl<T> fmt::Debug for Scattered<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, results) = match self {
            Self::Each(results) => ("Each", results),
            Self::Split(results) => ("Split", results),
        };
        f.debug_tuple(name).field(&results.len()).finish()
    }
}
