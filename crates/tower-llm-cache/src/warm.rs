use std::{error::Error, fmt, num::NonZeroUsize};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt;
use tower_llm_core::{BoxError, HttpBody, Oneshot, Outcome, Served, Watch};
use tower_service::Service;

use crate::upstream::Verdict;

/// Requests that are sent at once, unless set.
const CONCURRENCY: NonZeroUsize = NonZeroUsize::new(20).unwrap();

/// Sends requests through a service, so that the cache in it holds their answers before callers ask.
///
/// Each answer is read to its end and discarded. The requests pass all layers of the service: they count against its limits,
/// wait for its permits and end by its timeouts. An answer is stored for the caller or tenant of its request, as the cache's
/// [`Scope`](crate::Scope) says. Whatever fails is noted, and the others go on.
///
/// ```
/// # use http::{Request, Response};
/// # use http_body_util::Full;
/// # use bytes::Bytes;
/// # use tower::{ServiceBuilder, service_fn};
/// # use tower_llm_cache::{CacheLayer, Scope};
/// # use tower_llm_core::{BoxError, DescribeLayer, RequestBody};
/// use tower_llm_cache::Warming;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BoxError> {
/// # let layer = CacheLayer::builder(Scope::shared()).build()?;
/// # let model = ServiceBuilder::new().layer(DescribeLayer::new()).layer(layer).service(service_fn(
/// #     |_: Request<RequestBody>| async {
/// #         Ok::<_, BoxError>(Response::new(Full::new(Bytes::from(r#"{"choices":[{"finish_reason":"stop"}]}"#))))
/// #     },
/// # ));
/// let questions = ["What is a quota?", "What is a permit?"].map(|question| {
///     let body = format!(r#"{{"model":"gpt-5.4","messages":[{{"role":"user","content":"{question}"}}]}}"#);
///     Request::post("/v1/chat/completions").body(Full::new(Bytes::from(body))).unwrap()
/// });
/// let warmed = Warming::new()
///     .on_progress(|so_far| println!("{} of {} requests have failed", so_far.failed.len(), so_far.ended()))
///     .run(model, questions)
///     .await;
/// assert_eq!((warmed.answered, warmed.failed.len()), (2, 0));
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is sent until it is run"]
pub struct Warming<'a> {
    concurrency: NonZeroUsize,
    on_progress: Box<dyn FnMut(&Warmed) + Send + 'a>,
}

/// What the requests of a [`Warming`] have come to.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Warmed {
    /// Requests that the inner service has answered with a complete answer. Whether it was stored, the cache's
    /// [`Policy`](crate::Policy) decides: see [`CacheStats::stored`](crate::CacheStats::stored).
    pub answered: usize,
    /// Requests whose answers were in the cache already, or on their way there.
    pub cached: usize,
    /// Requests without a complete answer.
    pub failed: Vec<WarmingFailure>,
}

/// A request that did not get a complete answer.
#[derive(Debug)]
pub struct WarmingFailure {
    index: usize,
    reason: Reason,
}

#[derive(Debug)]
enum Reason {
    Status(StatusCode),
    Outcome(Outcome),
    Error(BoxError),
}

/// Where a complete answer came from.
enum Source {
    Inner,
    Cache,
}

impl<'a> Warming<'a> {
    /// Starts a warming that sends at most 20 requests at once.
    pub fn new() -> Self {
        Self {
            concurrency: CONCURRENCY,
            on_progress: Box::new(|_| {}),
        }
    }

    /// Sets how many requests are sent at once at most.
    pub fn concurrency(mut self, concurrency: NonZeroUsize) -> Self {
        self.concurrency = concurrency;
        self
    }

    /// Sets what is called after the end of each request, with what there is so far.
    pub fn on_progress(mut self, on_progress: impl FnMut(&Warmed) + Send + 'a) -> Self {
        self.on_progress = Box::new(on_progress);
        self
    }

    /// Sends the requests. They are taken from the iterator as they can be sent.
    ///
    /// Dropping the future drops the calls that run. Answers that have come stay in the cache.
    pub async fn run<S, B, R>(
        mut self,
        service: S,
        requests: impl IntoIterator<Item = Request<B>>,
    ) -> Warmed
    where
        S: Service<Request<B>, Response = Response<R>> + Clone,
        S::Error: Into<BoxError>,
        R: Body<Data = Bytes>,
        R::Error: Into<BoxError>,
    {
        let calls = requests.into_iter().enumerate().map(|(index, request)| {
            let call = Oneshot::new(service.clone(), request);
            async move { (index, read(call).await) }
        });
        let mut ended =
            std::pin::pin!(stream::iter(calls).buffer_unordered(self.concurrency.get()));
        let mut warmed = Warmed::default();
        while let Some((index, result)) = ended.next().await {
            match result {
                Ok(Source::Inner) => warmed.answered += 1,
                Ok(Source::Cache) => warmed.cached += 1,
                Err(reason) => warmed.failed.push(WarmingFailure { index, reason }),
            }
            (self.on_progress)(&warmed);
        }
        warmed
    }
}

/// Reads an answer to its end.
async fn read<S, B, R>(call: Oneshot<S, Request<B>>) -> Result<Source, Reason>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: Into<BoxError>,
    R: Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    let response = call.await.map_err(|error| Reason::Error(error.into()))?;
    let status = response.status();
    if !status.is_success() {
        return Err(Reason::Status(status));
    }
    let source = match response.extensions().get::<Served>() {
        Some(_) => Source::Cache,
        None => Source::Inner,
    };
    let verdict = Verdict::default();
    let response = HttpBody.watch(None, response, verdict.clone());
    let mut body = std::pin::pin!(response.into_body());
    while let Some(frame) = body.frame().await {
        frame.map_err(Reason::Error)?;
    }
    match verdict.outcome() {
        Some(Outcome::Success) => Ok(source),
        Some(other) => Err(Reason::Outcome(other)),
        None => unreachable!("the end of a body ends its guard"),
    }
}

impl Default for Warming<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Warming<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Warming")
            .field("concurrency", &self.concurrency)
            .finish_non_exhaustive()
    }
}

impl Warmed {
    /// Requests that have ended, well or not.
    #[must_use]
    pub fn ended(&self) -> usize {
        self.answered + self.cached + self.failed.len()
    }
}

impl WarmingFailure {
    /// The request's position among those given to [`Warming::run`], from 0.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// The status of the response, if it was not a success.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        match self.reason {
            Reason::Status(status) => Some(status),
            _ => None,
        }
    }
}

impl fmt::Display for WarmingFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {}: ", self.index)?;
        match &self.reason {
            Reason::Status(status) => write!(f, "the response has status {status}"),
            Reason::Outcome(outcome) => {
                write!(f, "the response is not a complete answer: {outcome:?}")
            }
            Reason::Error(error) => write!(f, "{error}"),
        }
    }
}

impl Error for WarmingFailure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.reason {
            Reason::Error(error) => error.source(),
            Reason::Status(_) | Reason::Outcome(_) => None,
        }
    }
}
