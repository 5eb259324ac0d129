//! Embeddings over HTTP.

mod body;
mod request;
mod response;
mod usage;

use std::{fmt, marker::PhantomData, mem, sync::Arc};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tokio::time::Instant;
use tower_llm_core::{BoxError, Described, EmbeddingLimits, Key, Priority, RequestBody};

pub use self::body::BatchBody;
use self::{
    request::{Mergeable, Merged},
    response::Division,
};
use crate::{Batcher, Scattered, Terms};

/// Merges embeddings requests of `OpenAI`'s dialect that have all in common but their `input`.
///
/// Requests must be [described](tower_llm_core::DescribeLayer); `B` is the type of their bodies and `R` that of the responses'.
///
/// # What is merged
///
/// Requests with the same URI, headers, provider, account and members of the body, `model`, `dimensions` and `user` among
/// them. So a batch has one credential. Headers that are about one request are not compared: those of tracing, proxies and
/// SDKs, `user-agent`, `content-length` and `accept-encoding`. The merged call has the headers and extensions of its first
/// request, and the sum of the items, tokens and cost of all.
///
/// Everything else passes through, as it is and without waiting: other operations, requests with an `idempotency-key`, with
/// a member that is not known to leave each vector to its own input (such as `late_chunking`), beyond the limits of the
/// provider on its own, or with an input that providers reject, as far as that can be seen. So does a request that finds
/// no other to be merged with.
///
/// # What callers get
///
/// A response with their own vectors, byte for byte as the provider wrote them, numbered from zero, and the provider's headers.
/// `usage` is divided by the estimated tokens of the requests; the parts add up. An error of the provider goes to all, with its
/// status and headers, such as `retry-after`; if an input may be at fault (400, 413, 422), the batch is sent again in halves.
/// So it is if the response does not have exactly one vector for each input.
///
/// # Example
///
/// ```
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::{BodyExt, Full};
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
/// use tower_llm_batch::{BatchLayer, Embeddings};
/// use tower_llm_core::{BoxError, DescribeLayer, RequestBody};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), BoxError> {
/// let layer = BatchLayer::new(Embeddings::new())?;
/// let model = ServiceBuilder::new()
///     .layer(DescribeLayer::new())
///     .layer(layer)
///     .service(service_fn(|_: Request<RequestBody<Full<Bytes>>>| async {
///         let vectors = r#"{"data":[{"index":0,"embedding":[0.5]}],"usage":{"total_tokens":1}}"#;
///         Ok::<_, BoxError>(Response::new(Full::new(Bytes::from(vectors))))
///     }));
///
/// let body = Full::new(Bytes::from(r#"{"model":"text-embedding-3-small","input":"hi"}"#));
/// let response = model.oneshot(Request::post("/v1/embeddings").body(body)?).await?;
/// let vectors = response.into_body().collect().await?.to_bytes();
/// assert!(vectors.starts_with(br#"{"data":[{"index":0,"embedding":[0.5]}"#));
/// # Ok(())
/// # }
/// ```
///
/// | setting | default |
/// |---|---|
/// | [`limits`](Self::limits) | those [of the provider](EmbeddingLimits::of) |
/// | [`group_by`](Self::group_by) | all callers with one credential share batches |
/// | [`priority_by`](Self::priority_by) | all calls are [`Priority::Normal`] |
/// | [`deadline_by`](Self::deadline_by) | none |
/// | [`dedupe`](Self::dedupe) | off |
pub struct Embeddings<B, R> {
    limits: Option<EmbeddingLimits>,
    group_by: Option<Choose<Key>>,
    priority_by: Option<Choose<Priority>>,
    deadline_by: Option<Choose<Option<Instant>>>,
    dedupes: bool,
    _bodies: PhantomData<fn(B) -> R>,
}

type Choose<T> = Arc<dyn Fn(&dyn Described) -> T + Send + Sync>;

/// How a response is divided among requests.
#[derive(Debug)]
pub struct EmbeddingsPlan(Option<Division>);

impl<B, R> Embeddings<B, R> {
    /// Creates one with defaults.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            limits: None,
            group_by: None,
            priority_by: None,
            deadline_by: None,
            dedupes: false,
            _bodies: PhantomData,
        }
    }

    /// Sets the limits of a batch, instead of those of the provider. The layer's own hold too.
    #[must_use]
    pub const fn limits(mut self, limits: EmbeddingLimits) -> Self {
        self.limits = Some(limits);
        self
    }

    /// Merges only requests with the same key, besides what they must have in common anyway. Use it to keep callers apart.
    #[must_use]
    pub fn group_by<F>(mut self, choose: F) -> Self
    where
        F: Fn(&dyn Described) -> Key + Send + Sync + 'static,
    {
        self.group_by = Some(Arc::new(choose));
        self
    }

    /// Sets how the priority of a call is chosen.
    ///
    /// Callers can send any header: give a high priority only to callers that you trust.
    #[must_use]
    pub fn priority_by<F>(mut self, choose: F) -> Self
    where
        F: Fn(&dyn Described) -> Priority + Send + Sync + 'static,
    {
        self.priority_by = Some(Arc::new(choose));
        self
    }

    /// Sets how the [deadline](Terms::deadline) of a call is found.
    #[must_use]
    pub fn deadline_by<F>(mut self, find: F) -> Self
    where
        F: Fn(&dyn Described) -> Option<Instant> + Send + Sync + 'static,
    {
        self.deadline_by = Some(Arc::new(find));
        self
    }

    /// Sends inputs that are written the same once in a batch. All requests that have one get its vector, and share its
    /// cost.
    #[must_use]
    pub const fn dedupe(mut self) -> Self {
        self.dedupes = true;
        self
    }
}

impl<B, R> Batcher for Embeddings<B, R>
where
    B: Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Request = Request<RequestBody<B>>;
    type Key = Box<[u8]>;
    type Batch = Request<RequestBody<B>>;
    type Plan = EmbeddingsPlan;
    type Reply = Response<R>;
    type Response = Response<BatchBody<R>>;

    fn terms(&self, request: &Self::Request) -> Option<Terms<Box<[u8]>>> {
        let mergeable = Mergeable::read(request)?;
        let call = mergeable.call;
        let limits = self
            .limits
            .unwrap_or_else(|| EmbeddingLimits::of(call.provider()));
        if !mergeable.is_within(&limits) {
            return None;
        }
        let group = self.group_by.as_ref().map(|choose| choose(request));
        let mut terms = Terms::new(mergeable.key(group))
            .items(mergeable.inputs.all().len() as u64)
            .tokens(call.input_tokens())
            .limits(limits.items, limits.tokens.unwrap_or(u64::MAX));
        if let Some(choose) = &self.priority_by {
            terms = terms.priority(choose(request));
        }
        if let Some(deadline) = self.deadline_by.as_ref().and_then(|find| find(request)) {
            terms = terms.deadline(deadline);
        }
        Some(terms)
    }

    fn assemble(&self, requests: &mut [Self::Request]) -> (Self::Batch, EmbeddingsPlan) {
        if let [request] = requests {
            let taken = mem::replace(request, Request::new(RequestBody::default()));
            return (taken, EmbeddingsPlan(None));
        }
        let merged = Merged::new(requests, self.dedupes).expect("each was read when it came");
        let division = Division {
            call: merged.call,
            inputs: merged.inputs,
            tokens: merged.tokens,
            sent: merged.sent,
        };
        (merged.request, EmbeddingsPlan(Some(division)))
    }

    async fn scatter(
        &self,
        plan: EmbeddingsPlan,
        response: Response<R>,
    ) -> Scattered<Self::Response> {
        match plan.0 {
            Some(division) => division.scatter(response).await,
            None => Scattered::Each(vec![Ok(response.map(BatchBody::passed))]),
        }
    }
}

impl<B, R> Default for Embeddings<B, R> {
    fn default() -> Self {
        Self::new()
    }
}

impl<B, R> Clone for Embeddings<B, R> {
    fn clone(&self) -> Self {
        Self {
            limits: self.limits,
            group_by: self.group_by.clone(),
            priority_by: self.priority_by.clone(),
            deadline_by: self.deadline_by.clone(),
            dedupes: self.dedupes,
            _bodies: PhantomData,
        }
    }
}

impl<B, R> fmt::Debug for Embeddings<B, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embeddings")
            .field("limits", &self.limits)
            .field("dedupes", &self.dedupes)
            .finish_non_exhaustive()
    }
}
