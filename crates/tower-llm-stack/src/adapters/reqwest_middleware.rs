//! A tower layer as one middleware of `reqwest-middleware`.
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
//! A tower layer owns its inner service; a middleware is lent the rest of its chain, [`Next`], for one request only.
//! So the innermost service is a [`Port`] that owns nothing: it looks in the request's extensions for a sender that
//! [`handle`](Middleware::handle) put there, and sends the request through it. `handle` drives the layer's future and,
//! beside it in the same task, all that comes out of the port, each with its own clone of `Next`. The sender travels
//! with every clone of the request, so a layer may call several times, one after the other or at once. An inner call
//! whose future the layer has dropped is dropped; when `handle` is dropped so is everything inside. Nothing is spawned.
//!
//! What follows from it:
//!
//! - The layer is applied once, when the middleware is made; each request runs through a clone of that one service,
//!   made ready first. State that the layer's clones share (a limit, a circuit) is shared by all requests.
//! - An inner call must be made while the outer future runs: a layer that calls from a task it spawned, or from the
//!   body it returned, may come too late. It gets a [`PortError`], as does one that builds its request anew and leaves
//!   the extensions behind.
//! - Extensions of the reqwest-middleware request (`with_extension`) are extensions of the `http::Request` that the
//!   layer sees, and those of each inner request are what the middlewares behind it see. What those have put there is
//!   given back to the middlewares in front if the layer returns the response with its extensions.

use std::fmt;
use std::future::{Future, poll_fn};
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
use tower_llm_core::RequestBody;
use tower_service::Service;

use super::convert::{
    from_reqwest, request_from_reqwest, request_into_reqwest, response_from_reqwest,
    response_into_reqwest,
};
use super::sent::Classify;
use super::{BoxError, StackError};

/// Runs the requests of a `ClientWithMiddleware` through a tower layer; see the [module](self) for how.
///
/// The layer's service must be `Clone + Send + Sync`; `tower::util::BoxCloneSyncServiceLayer` helps where it can't be
/// named. It sees `http::Request<RequestBody<reqwest::Body>>`: a body that is bytes, as `json()` makes it, is held and can be
/// [cloned](RequestBody::try_clone); one that is a stream (an upload, a multipart form) passes through and can be sent only
/// once. The response's body is not buffered, and is dropped when the user drops the response.
///
/// # Errors
///
/// An error of the layer is [`Error::Middleware`] with a [`StackError`], whose source it is. An error that came from
/// behind the layer and went through it unwrapped stays what it was: `is_connect()` and the like still tell.
#[derive(Clone, Debug)]
pub struct TowerMiddleware<S> {
    service: S,
}

impl<S> TowerMiddleware<S> {
    /// A middleware that runs requests through `layer`, which may be a whole stack: a `tower::ServiceBuilder`, for one.
    pub fn new<L>(layer: L) -> Self
    where
        L: Layer<Port, Service = S>,
    {
        Self {
            service: layer.layer(Port::default()),
        }
    }
}

// Boxed because the trait is: `async_trait` makes a box of every call, reqwest-middleware's own included.
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
        let (sender, calls) = mpsc::unbounded_channel();
        let port = PortSender(sender);
        request.extensions_mut().extend(extensions.clone());
        request.extensions_mut().insert(port.clone());

        let mut response = serve(call(self.service.clone(), request), calls, next)
            .await
            .map_err(into_error)?;
        // A layer may answer with what another request was answered with; that one's extensions are not ours.
        if let Some(returned) = response.extensions_mut().remove::<Returned>()
            && returned.port.0.same_channel(&port.0)
        {
            *extensions = returned.extensions;
        }
        Ok(response_into_reqwest(response, requested))
    }
}

/// The innermost service of a layer that runs as a [`TowerMiddleware`]: the way to the rest of the chain.
///
/// It is always ready: `ClientWithMiddleware` has no readiness to pass on.
///
/// # Errors
///
/// What the rest of the chain returned: a [`reqwest::Error`], or an [`Error`] if it came from a
/// middleware; [`PortError`] if the chain could not be reached.
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
                Err(_) => Err(PortError::from(Unreachable::Ended).into()),
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
/// The text may change; the getters will not.
#[derive(Debug)]
pub struct PortError {
    reason: Unreachable,
}

impl PortError {
    /// Whether the call came when its request was over; otherwise the request had lost its extensions.
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

/// What came out of a port: one call of the layer to its inner service.
#[derive(Debug)]
struct InnerCall {
    port: PortSender,
    request: Request,
    classify: Classify,
    /// For the middlewares behind; without the port, which is not theirs.
    extensions: Extensions,
    reply: oneshot::Sender<Reply>,
}

/// The other end of `handle`, in the request's extensions.
///
/// A second `TowerMiddleware` behind the first puts its own in the same place; each one's layer sees only its own.
#[derive(Clone, Debug)]
// Boxed, since the channel makes room for a block of calls when it is opened.
struct PortSender(mpsc::UnboundedSender<Box<InnerCall>>);

/// The extensions that the middlewares behind have left, in the response's extensions.
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
    calls
        .send(Box::new(call))
        .map_err(|_| PortError::from(Unreachable::Ended))?;
    Ok(replied)
}

/// Makes the service ready and calls it.
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

/// Drives `outer` to its end and, beside it, what it sends through its port.
async fn serve<T>(
    outer: impl Future<Output = T>,
    mut calls: mpsc::UnboundedReceiver<Box<InnerCall>>,
    next: Next<'_>,
) -> T {
    let mut outer = pin!(outer);
    let mut inner = FuturesUnordered::new();
    poll_fn(|cx| {
        loop {
            // Outer first: it may have lost interest in calls that would otherwise be polled once more.
            if let Poll::Ready(output) = outer.as_mut().poll(cx) {
                return Poll::Ready(output);
            }
            while let Poll::Ready(Some(call)) = calls.poll_recv(cx) {
                inner.push(run(*call, next.clone()));
            }
            // One that ends has either replied, which outer is to see now, or was given up.
            match inner.poll_next_unpin(cx) {
                Poll::Ready(Some(())) => {}
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
}

/// Runs one inner call down the chain, until it ends or nobody waits for it.
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
            // Given up first: a response that comes at the same time has no one to go to.
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
        // Bare, for the layers to find: the variant hides reqwest's error from those who walk the sources.
        Some(Err(Error::Reqwest(error))) => Err(classify.error(error)),
        Some(Err(error)) => Err(classify.error(error)),
    };
    // Not taken if given up at this very moment: dropped here, as the layer would have.
    let _ = reply.send(result);
}

/// The client's error: its own where the stack passed it on as it was, else the stack's.
fn into_error(error: BoxError) -> Error {
    match from_reqwest(error).downcast::<Error>() {
        Ok(error) => *error,
        Err(error) => match error.downcast::<::reqwest::Error>() {
            Ok(error) => Error::Reqwest(*error),
            Err(error) => Error::middleware(StackError::new(error)),
        },
    }
}
