//! A tower layer as a middleware of `reqwest-middleware`.
//!
//! ```no_run
//! use std::time::Duration;
//! use reqwest_middleware::ClientBuilder;
//! use tower::limit::ConcurrencyLimitLayer;
//! use tower_llm_stack::adapters::reqwest_middleware::TowerMiddleware;
//!
//! # async fn run() -> Result<(), reqwest_middleware::Error> {
//! let client = ClientBuilder::new(reqwest::Client::new())
//!     .with(TowerMiddleware::new(ConcurrencyLimitLayer::new(8)))
//!     .build();
//!
//! let response = client.get("https://api.openai.com/v1/models").send().await?;
//! println!("{}", response.status());
//! # Ok(())
//! # }
//! ```
//!
//! # How it works
//!
//! A tower layer owns its inner service, but a middleware borrows the rest of its chain, [`Next`], for one request. So the
//! innermost service is a [`Port`] that owns nothing: it takes a sender from the request's extensions, where
//! [`handle`](Middleware::handle) put it, and sends the request through it. In one task, `handle` drives the layer's future
//! and all inner calls from the port, each with its own clone of `Next`. Every clone of the request has the sender, so a
//! layer may call several times, in sequence or concurrently. If the layer drops the future of an inner call, the call is
//! dropped; if `handle` is dropped, everything inside is dropped. Nothing is spawned.
//!
//! Consequences:
//!
//! - The layer is applied once, when the middleware is created; each request uses a clone of that service, which is readied
//!   first. All requests share the state that clones of the layer share, such as a limit or a circuit.
//! - An inner call must be made while the outer future runs. A layer that calls from a spawned task, or from the body that
//!   it returned, may be too late and gets a [`PortError`]. So does a layer that builds a new request without the
//!   extensions.
//! - A call that requests share, as in a cache, is driven by the request that began it. If that one is dropped before the
//!   response, the others are run again, with calls of their own. No circuit counts that as a failure. A layer's background
//!   calls, such as a cache's refreshes, get a `PortError`.
//! - Extensions of the reqwest-middleware request (`with_extension`) are extensions of the `http::Request` that the layer
//!   sees, and those of each inner request are what the middlewares behind it see. Extensions that these set are returned
//!   to the middlewares in front, if the layer returns the response with its extensions.

use std::fmt;
use std::future::{Future, poll_fn};
use std::iter;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use ::reqwest::{Body, Request, Response};
use ::reqwest_middleware::{Error, Middleware, Next};
use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use http::Extensions;
use pin_project_lite::pin_project;
use tokio::sync::{mpsc, oneshot};
use tower_layer::Layer;
use tower_llm_core::{ClassifiedError, Outcome, RequestBody};
use tower_service::Service;

use super::convert::{
    from_reqwest, request_from_reqwest, request_into_reqwest, response_from_reqwest,
    response_into_reqwest,
};
use super::sent::Classify;
use super::{BoxError, StackError};

/// How often a request is run that shared a call of others, which ended with them.
const MAX_RUNS: usize = 4;

/// Runs the requests of a `ClientWithMiddleware` through a tower layer; see the [module](self) for how.
///
/// The layer's service must be `Clone + Send + Sync`; `tower::util::BoxCloneSyncServiceLayer` helps if its type cannot be
/// named. It sees `http::Request<RequestBody<reqwest::Body>>`: a body of bytes, as from `json()`, is held and can be
/// [cloned](RequestBody::try_clone); a stream (an upload, a multipart form) passes through and can be sent only once. The
/// response body is not buffered, and is dropped when the user drops the response.
///
/// # Errors
///
/// An error of the layer is [`Error::Middleware`] with a [`StackError`], whose source it is. An inner error that the layer
/// returns unwrapped is returned as it was, so `is_connect()` and similar methods work.
#[derive(Clone, Debug)]
pub struct TowerMiddleware<S> {
    service: S,
}

impl<S> TowerMiddleware<S> {
    /// Creates a middleware that runs requests through `layer`, which may be a whole stack, such as a
    /// `tower::ServiceBuilder`.
    pub fn new<L>(layer: L) -> Self
    where
        L: Layer<Port, Service = S>,
    {
        Self {
            service: layer.layer(Port::default()),
        }
    }
}

impl<S> TowerMiddleware<S> {
    /// Runs a request through the layer.
    ///
    /// The layer may let it share the call of another request, as a cache does. If that one ends before the call, the call ends
    /// with it. This request has a port of its own, so it is run again, and begins a call, or shares another.
    async fn run<B>(
        &self,
        mut request: http::Request<RequestBody<Body>>,
        calls: &mut mpsc::UnboundedReceiver<Box<InnerCall>>,
        next: Next<'_>,
    ) -> Result<http::Response<B>, BoxError>
    where
        S: Service<http::Request<RequestBody<Body>>, Response = http::Response<B>> + Clone,
        S::Error: Into<BoxError>,
    {
        for _ in 1..MAX_RUNS {
            let Some(again) = RequestBody::try_clone_request(&request) else {
                break;
            };
            match serve(call(self.service.clone(), request), calls, next.clone()).await {
                // While this request runs, its own port is open.
                Err(error) if PortError::find(&*error).is_some_and(PortError::is_ended) => {
                    request = again;
                }
                result => return result,
            }
        }
        serve(call(self.service.clone(), request), calls, next).await
    }
}

// The trait requires boxes: `async_trait` boxes every call.
#[async_trait::async_trait]
impl<S, B> Middleware for TowerMiddleware<S>
where
    S: Service<http::Request<RequestBody<Body>>, Response = http::Response<B>>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: http_body::Body + Send + 'static,
    B::Data: Into<Bytes>,
    B::Error: Into<BoxError>,
{
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> Result<Response, Error> {
        let requested = request.url().clone();
        let mut request = request_from_reqwest(request)?;
        // Unbounded, but holds no more than the calls that the layer made since it was last polled.
        let (sender, mut calls) = mpsc::unbounded_channel();
        let port = PortSender(sender);
        request.extensions_mut().extend(extensions.clone());
        request.extensions_mut().insert(port.clone());

        let mut response = self
            .run(request, &mut calls, next)
            .await
            .map_err(into_error)?;
        // A layer may return the response to another request, whose extensions do not belong to this one.
        if let Some(returned) = response.extensions_mut().remove::<Returned>()
            && returned.port.0.same_channel(&port.0)
        {
            *extensions = returned.extensions;
        }
        Ok(response_into_reqwest(response, requested))
    }
}

/// The innermost service of a layer that runs as a [`TowerMiddleware`]: sends requests to the rest of the chain.
///
/// It is always ready: `ClientWithMiddleware` has no readiness to pass on.
///
/// # Errors
///
/// The error of the rest of the chain: a [`reqwest::Error`], or an [`Error`] if it is from a middleware; [`PortError`] if
/// the chain could not be reached.
#[derive(Clone, Debug, Default)]
pub struct Port {
    _not_made_by_users: (),
}

impl<B> Service<http::Request<B>> for Port
where
    B: http_body::Body + Send + 'static,
    B::Data: Into<Bytes>,
    B::Error: Into<BoxError>,
{
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let state = match send(request) {
            Ok(reply) => State::Sent { reply },
            Err(error) => State::Refused { error: Some(error) },
        };
        ResponseFuture { state }
    }
}

pin_project! {
    /// The future of [`Port`]; dropping it ends the inner call.
    #[derive(Debug)]
    pub struct ResponseFuture {
        #[pin]
        state: State,
    }
}

impl Future for ResponseFuture {
    type Output = Result<http::Response<Body>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Sent { reply } => Poll::Ready(match ready!(reply.poll(cx)) {
                Ok(result) => result,
                Err(_) => Err(PortError::ended()),
            }),
            StateProj::Refused { error } => {
                Poll::Ready(Err(error.take().expect("polled after completion")))
            }
        }
    }
}

pin_project! {
    #[project = StateProj]
    #[derive(Debug)]
    enum State {
        Sent { #[pin] reply: oneshot::Receiver<Reply> },
        Refused { error: Option<BoxError> },
    }
}

/// An inner call that could not reach the rest of the chain.
///
/// If its request has ended, it is the source of a [`ClassifiedError`]: the call was abandoned, and no circuit opens for it.
///
/// The text may change; the getters will not.
#[derive(Debug)]
pub struct PortError {
    reason: Unreachable,
}

impl PortError {
    fn find<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        iter::successors(Some(error), |error| error.source())
            .find_map(<dyn std::error::Error>::downcast_ref)
    }

    /// The call ended with the caller that began it: no failure of the provider.
    fn ended() -> BoxError {
        let error = Self::from(Unreachable::Ended);
        ClassifiedError::new(Outcome::Abandoned, error).into()
    }

    /// Whether the call was made after its request had ended; otherwise the request had lost its extensions.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(self.reason, Unreachable::Ended)
    }
}

impl From<Unreachable> for PortError {
    fn from(reason: Unreachable) -> Self {
        Self { reason }
    }
}

impl fmt::Display for PortError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.reason {
            Unreachable::Ended => "inner call was made after its request had ended",
            Unreachable::Lost => "inner call lost the extensions of its request",
        })
    }
}

impl std::error::Error for PortError {}

#[derive(Clone, Copy, Debug)]
enum Unreachable {
    Ended,
    Lost,
}

type Reply = Result<http::Response<Body>, BoxError>;

/// One call of the layer to its inner service, through a port.
#[derive(Debug)]
struct InnerCall {
    port: PortSender,
    request: Request,
    classify: Classify,
    /// The extensions for the middlewares behind, without the port.
    extensions: Extensions,
    reply: oneshot::Sender<Reply>,
}

/// The other end of `handle`, in the request's extensions.
///
/// A second `TowerMiddleware` behind the first replaces it with its own; the layer of each sees only its own.
#[derive(Clone, Debug)]
// Boxed, because the channel allocates a block of calls when it is created.
struct PortSender(mpsc::UnboundedSender<Box<InnerCall>>);

/// The extensions that the middlewares behind have set, in the response's extensions.
#[derive(Clone, Debug)]
struct Returned {
    /// The request they belong to.
    port: PortSender,
    extensions: Extensions,
}

fn send<B>(mut request: http::Request<B>) -> Result<oneshot::Receiver<Reply>, BoxError>
where
    B: http_body::Body + Send + 'static,
    B::Data: Into<Bytes>,
    B::Error: Into<BoxError>,
{
    let Some(port) = request.extensions_mut().remove::<PortSender>() else {
        return Err(PortError::from(Unreachable::Lost).into());
    };
    let extensions = request.extensions().clone();
    let (request, classify) = request_into_reqwest(request)?;
    let (reply, replied) = oneshot::channel();
    let calls = port.0.clone();
    let call = InnerCall {
        port,
        request,
        classify,
        extensions,
        reply,
    };
    calls.send(Box::new(call)).map_err(|_| PortError::ended())?;
    Ok(replied)
}

/// Readies the service and calls it.
async fn call<S, R>(mut service: S, request: R) -> Result<S::Response, BoxError>
where
    S: Service<R>,
    S::Error: Into<BoxError>,
{
    poll_fn(|cx| service.poll_ready(cx))
        .await
        .map_err(Into::into)?;
    service.call(request).await.map_err(Into::into)
}

/// Drives `outer` to its end and, concurrently, the calls that it sends through its port.
async fn serve<T>(
    outer: impl Future<Output = T>,
    calls: &mut mpsc::UnboundedReceiver<Box<InnerCall>>,
    next: Next<'_>,
) -> T {
    let mut outer = pin!(outer);
    let mut inner = FuturesUnordered::new();
    poll_fn(|cx| {
        loop {
            // Outer first: it may drop calls that would otherwise be polled once more.
            if let Poll::Ready(output) = outer.as_mut().poll(cx) {
                return Poll::Ready(output);
            }
            while let Poll::Ready(Some(call)) = calls.poll_recv(cx) {
                inner.push(run(*call, next.clone()));
            }
            // A call that ends has either replied, which outer must see now, or was dropped.
            match inner.poll_next_unpin(cx) {
                Poll::Ready(Some(())) => {}
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
}

/// Runs one inner call down the chain, until it ends or its caller has dropped it.
async fn run(call: InnerCall, next: Next<'_>) {
    let InnerCall {
        port,
        request,
        classify,
        mut extensions,
        mut reply,
    } = call;
    let result = {
        let mut response = next.run(request, &mut extensions);
        poll_fn(|cx| {
            // Checked first: a response that arrives at the same time has no receiver.
            if reply.poll_closed(cx).is_ready() {
                return Poll::Ready(None);
            }
            response.as_mut().poll(cx).map(Some)
        })
        .await
    };
    let result = match result {
        None => return,
        Some(Ok(response)) => {
            let mut response = response_from_reqwest(response, classify);
            response
                .extensions_mut()
                .insert(Returned { port, extensions });
            Ok(response)
        }
        // Unwrapped, so that the layers find it: the variant hides reqwest's error from the chain of sources.
        Some(Err(Error::Reqwest(error))) => Err(classify.error(error)),
        Some(Err(error)) => Err(classify.error(error)),
    };
    // If the call is dropped at this moment, the result is dropped here.
    let _ = reply.send(result);
}

/// The client's error: its own if the stack passed it on unchanged, otherwise the stack's.
fn into_error(error: BoxError) -> Error {
    match from_reqwest(error).downcast::<Error>() {
        Ok(error) => *error,
        Err(error) => match error.downcast::<::reqwest::Error>() {
            Ok(error) => Error::Reqwest(*error),
            Err(error) => Error::middleware(StackError::new(error)),
        },
    }
}
