//! Stacks around tonic channels.
//!
//! A `tonic::transport::Channel` is a `Service<http::Request<tonic::body::Body>>`, and the clients that tonic generates
//! take any such service. [`Stack::grpc`] starts a stack for one:
//!
//! ```
//! use tower::ServiceBuilder;
//! use tower_llm_stack::{BulkheadLayer, Stack};
//!
//! # fn run(channel: tonic::transport::Channel) -> Result<(), tower_llm_stack::ConfigError> {
//! let stack = Stack::grpc().bulkhead(BulkheadLayer::new(10)?).build();
//! let service = ServiceBuilder::new().layer(stack).service(channel);
//! let client = tonic::client::Grpc::new(service); // or the `::new` of a generated client
//! # Ok(())
//! # }
//! ```
//!
//! Such a stack has two layers of this module. [`StatusLayer`] is outermost: it turns refusals and timeouts into statuses
//! with a code. Without it, tonic reports every unknown error as `UNKNOWN`. [`ChannelLayer`] goes directly around the
//! channel, and attributes the channel's own timeouts and the failures of request messages.
//!
//! A gRPC request has no [`Call`](tower_llm_core::Call) unless you give it one: insert it into the extensions of the
//! `tonic::Request`. Limits by provider, model or caller need it.
//!
//! Clone the client, or make one for each call: tonic's clients make one call at a time.
//!
//! [`Stack::grpc`]: crate::Stack::grpc

use std::error::Error;
use std::future::Future;
use std::iter;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use ::tonic::{Code, Status, TimeoutExpired};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_llm_core::{Completion, Failure, Outcome, Refusal, RefusalKind};
use tower_service::Service;

use super::BoxError;
use super::classified::ClassifiedFuture;
use super::sent::{Classify, ResponseBody};

/// Turns errors of the stack, instead of a response or inside its body, into a [`Status`] with a code.
///
/// `code_of` is called with the error and then with each of its sources, until it returns a code. If it returns none, the
/// status is the one that tonic makes of the error: a status found among its sources, else `UNKNOWN`. In both cases the
/// error is the source of the status.
///
/// The message of the status is the text of the error. A server that forwards the status sends that text to its own
/// callers, so it should hold nothing private.
#[derive(Clone, Copy, Debug)]
pub struct StatusLayer<C> {
    code_of: C,
}

/// Chooses the code of an error: [`Refusals`], or a closure.
pub trait CodeOf {
    /// Returns the code of `error`, if it has one. It is called for each source of the error too.
    fn code_of(&self, error: &(dyn Error + 'static)) -> Option<Code>;
}

impl<F> CodeOf for F
where
    F: Fn(&(dyn Error + 'static)) -> Option<Code>,
{
    fn code_of(&self, error: &(dyn Error + 'static)) -> Option<Code> {
        self(error)
    }
}

/// Chooses codes for the errors of the stack: see [`StatusLayer::refusals`].
// A separate type, because futures that hold a function pointer on a trait object cannot be spawned.
#[derive(Clone, Copy, Debug)]
pub struct Refusals;

impl CodeOf for Refusals {
    fn code_of(&self, error: &(dyn Error + 'static)) -> Option<Code> {
        refusal(error)
    }
}

impl StatusLayer<Refusals> {
    /// Creates a layer with codes for the errors of the stack: `RESOURCE_EXHAUSTED` for a rate limit, `UNAVAILABLE` if no
    /// permit is free or a circuit is open, `INVALID_ARGUMENT` for a body that is too large, `DEADLINE_EXCEEDED` for a
    /// timeout.
    #[must_use]
    pub const fn refusals() -> Self {
        Self { code_of: Refusals }
    }
}

fn refusal(error: &(dyn Error + 'static)) -> Option<Code> {
    if let Some(refusal) = Refusal::find(error) {
        return Some(match refusal.kind() {
            RefusalKind::RateLimited => Code::ResourceExhausted,
            RefusalKind::TooLarge => Code::InvalidArgument,
            RefusalKind::NotCached => Code::NotFound,
            _ => Code::Unavailable,
        });
    }
    match Completion::of_error(error).outcome {
        Outcome::Failed(Failure::Timeout | Failure::Slow | Failure::Stalled) => {
            Some(Code::DeadlineExceeded)
        }
        Outcome::Throttled { .. } | Outcome::Exhausted => Some(Code::ResourceExhausted),
        Outcome::Overloaded { .. } | Outcome::Refused => Some(Code::Unavailable),
        // An error of a codec has its own status.
        _ => None,
    }
}

impl<C> StatusLayer<C>
where
    C: Fn(&(dyn Error + 'static)) -> Option<Code>,
{
    /// Creates a layer that chooses codes by the closure `code_of`.
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
    C: CodeOf + Clone,
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
    C: CodeOf + Clone,
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
    C: CodeOf,
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
    C: CodeOf,
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
    C: CodeOf,
{
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(code) = code_of.code_of(error) {
            return Some(code);
        }
        next = error.source();
    }
    None
}

/// Attributes errors of a channel: it goes directly around one, and is part of [`Stack::grpc`](crate::Stack::grpc).
///
/// `Endpoint::timeout` and `grpc-timeout` become a timeout of the model, and a request message that cannot be encoded
/// becomes the caller's own error. To the layers, both would otherwise be a failure of the connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChannelLayer {
    _private: (),
}

impl ChannelLayer {
    /// Creates the layer.
    #[must_use]
    pub const fn new() -> Self {
        Self { _private: () }
    }
}

impl<S> Layer<S> for ChannelLayer {
    type Service = ChannelService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ChannelService { inner }
    }
}

/// The service of [`ChannelLayer`].
#[derive(Clone, Copy, Debug)]
pub struct ChannelService<S> {
    inner: S,
}

impl<S, B> Service<Request<::tonic::body::Body>> for ChannelService<S>
where
    S: Service<Request<::tonic::body::Body>, Response = Response<B>>,
    S::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody<B>>;
    type Error = BoxError;
    type Future = ClassifiedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<::tonic::body::Body>) -> Self::Future {
        let classify = Classify::new(outcome_of);
        let request = request.map(|body| ::tonic::body::Body::new(classify.sent(body)));
        ClassifiedFuture::new(self.inner.call(request), classify)
    }
}

fn outcome_of(error: &(dyn Error + 'static)) -> Option<Outcome> {
    let mut errors = iter::successors(Some(error), |&error| error.source());
    errors
        .any(|error| error.is::<TimeoutExpired>())
        .then_some(Outcome::Failed(Failure::Timeout))
}
