//! Stacks around tonic channels.
//!
//! A `tonic::transport::Channel` is a `Service<http::Request<tonic::body::Body>>`, and a client that tonic generates
//! takes any service like it: the body of the response may be a layer's own, and the error anything that goes into a
//! box. So layers need no adapter to go around a channel.
//!
//! What they need is a code. tonic makes of an error it does not know the status `UNKNOWN`, which tells no client
//! whether to try again, and no server what to answer. [`StatusLayer`] goes outermost and chooses one:
//!
//! ```
//! use tower::ServiceBuilder;
//! use tower_llm_stack::{BulkheadLayer, Stack, adapters::tonic::StatusLayer};
//!
//! # fn run(channel: tonic::transport::Channel) -> Result<(), tower_llm_stack::ConfigError> {
//! let stack = Stack::builder().without_describe().bulkhead(BulkheadLayer::new(10)?).build();
//! let service = ServiceBuilder::new()
//!     .layer(StatusLayer::refusals())
//!     .layer(stack)
//!     .service(channel);
//! let client = tonic::client::Grpc::new(service); // or the `::new` of a generated client
//! # Ok(())
//! # }
//! ```
//!
//! Clone the client, or make one for each call: tonic's clients make the stack ready, and call it, one call at a time.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ::tonic::{Code, Status};
use http::Response;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_llm_core::{Refusal, RefusalKind, TimedOut};
use tower_service::Service;

use super::BoxError;

/// Turns errors of the stack, in place of a response or inside its body, into [`Status`] with a code of the caller's
/// choice.
///
/// `code_of` is asked about the error and then about each of its sources, until it names a code. If it names none, the
/// status is what tonic would have made of the error: a status found among its sources, else `UNKNOWN`. In each case the
/// error is kept as the status' source, for those who look there.
///
/// The message of the status is the error's text. It goes to the caller of this client only; a server that hands the
/// status on sends it, and then it should hold nothing private.
#[derive(Clone, Copy, Debug)]
pub struct StatusLayer<C> {
    code_of: C,
}

/// The code of an error, if it has one.
pub type CodeOf = fn(&(dyn Error + 'static)) -> Option<Code>;

impl StatusLayer<CodeOf> {
    /// A layer that knows the errors of these layers: `RESOURCE_EXHAUSTED` for a rate limit, `UNAVAILABLE` if no permit is
    /// free or a circuit is open, `INVALID_ARGUMENT` if the request is too large, `DEADLINE_EXCEEDED` for a deadline.
    #[must_use]
    pub fn refusals() -> Self {
        Self { code_of: refusal }
    }
}

fn refusal(error: &(dyn Error + 'static)) -> Option<Code> {
    if error.is::<TimedOut>() {
        return Some(Code::DeadlineExceeded);
    }
    match error.downcast_ref::<Refusal>()?.kind() {
        RefusalKind::RateLimited => Some(Code::ResourceExhausted),
        RefusalKind::TooLarge => Some(Code::InvalidArgument),
        _ => Some(Code::Unavailable),
    }
}

impl<C> StatusLayer<C>
where
    C: Fn(&(dyn Error + 'static)) -> Option<Code>,
{
    /// A layer that asks `code_of`.
    #[must_use]
    pub fn new(code_of: C) -> Self {
        Self { code_of }
    }
}

impl<C: Clone, S> Layer<S> for StatusLayer<C> {
    type Service = StatusService<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        StatusService {
            inner,
            code_of: self.code_of.clone(),
        }
    }
}

/// The service of [`StatusLayer`].
#[derive(Clone, Copy, Debug)]
pub struct StatusService<S, C> {
    inner: S,
    code_of: C,
}

impl<S, C, R, B> Service<R> for StatusService<S, C>
where
    S: Service<R, Response = Response<B>>,
    S::Error: Into<BoxError>,
    C: Fn(&(dyn Error + 'static)) -> Option<Code> + Clone,
{
    type Response = Response<StatusBody<B, C>>;
    type Error = Status;
    type Future = ResponseFuture<S::Future, C>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner
            .poll_ready(cx)
            .map_err(|error| into_status(error.into(), &self.code_of))
    }

    fn call(&mut self, request: R) -> Self::Future {
        ResponseFuture {
            inner: self.inner.call(request),
            code_of: self.code_of.clone(),
        }
    }
}

pin_project! {
    /// The future of [`StatusService`].
    #[derive(Debug)]
    pub struct ResponseFuture<F, C> {
        #[pin]
        inner: F,
        code_of: C,
    }
}

impl<F, C, B, E> Future for ResponseFuture<F, C>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
    C: Fn(&(dyn Error + 'static)) -> Option<Code> + Clone,
{
    type Output = Result<Response<StatusBody<B, C>>, Status>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let code_of = this.code_of;
        Poll::Ready(match ready!(this.inner.poll(cx)) {
            Ok(response) => Ok(response.map(|inner| StatusBody {
                inner,
                code_of: code_of.clone(),
            })),
            Err(error) => Err(into_status(error.into(), code_of)),
        })
    }
}

pin_project! {
    /// The body of a response that went through [`StatusService`].
    #[derive(Debug)]
    pub struct StatusBody<B, C> {
        #[pin]
        inner: B,
        code_of: C,
    }
}

impl<B, C> Body for StatusBody<B, C>
where
    B: Body,
    B::Error: Into<BoxError>,
    C: Fn(&(dyn Error + 'static)) -> Option<Code>,
{
    type Data = B::Data;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, Status>>> {
        let this = self.project();
        this.inner
            .poll_frame(cx)
            .map_err(|error| into_status(error.into(), this.code_of))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

fn into_status<C>(error: BoxError, code_of: &C) -> Status
where
    C: Fn(&(dyn Error + 'static)) -> Option<Code>,
{
    match find_code(&*error, code_of) {
        Some(code) => {
            let mut status = Status::new(code, error.to_string());
            status.set_source(Arc::from(error));
            status
        }
        None => Status::from_error(error),
    }
}

fn find_code<C>(error: &(dyn Error + 'static), code_of: &C) -> Option<Code>
where
    C: Fn(&(dyn Error + 'static)) -> Option<Code>,
{
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(code) = code_of(error) {
            return Some(code);
        }
        next = error.source();
    }
    None
}
