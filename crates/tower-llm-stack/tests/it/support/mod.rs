//! A small HTTP server on the loopback, and toy layers.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]
use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::channel::{Channel, Sender};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tower::{BoxError, Layer, Service};

pub(crate) type ServerBody = BoxBody<Bytes, BoxError>;

/// What a server received.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    requests: Arc<AtomicUsize>,
    open: Gauge,
}

impl Seen {
    /// Requests that arrived.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// Exchanges that neither ended nor were broken off by the client.
    pub(crate) fn open(&self) -> usize {
        self.open.value()
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    pub(crate) seen: Seen,
}

impl Server {
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }
}

/// Serves `handler`, which gets the number of the request (from 0), over HTTP/1.1 and HTTP/2 with prior knowledge.
pub(crate) async fn serve<H, F>(handler: H) -> Server
where
    H: Fn(usize, http::Request<Bytes>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = http::Response<ServerBody>> + Send,
{
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let seen = Seen::default();
    let server = Server {
        addr,
        seen: seen.clone(),
    };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            let (handler, seen) = (handler.clone(), seen.clone());
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let number = seen.requests.fetch_add(1, Ordering::SeqCst);
                let (handler, open) = (handler.clone(), seen.open.enter());
                async move {
                    let (parts, body) = request.into_parts();
                    let bytes = body.collect().await.unwrap_or_default().to_bytes();
                    let request = http::Request::from_parts(parts, bytes);
                    let response = handler(number, request).await;
                    Ok::<_, Infallible>(response.map(|body| Guarded::new(body, open)))
                }
            });
            tokio::spawn(async move {
                let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    server
}

pub(crate) fn text(status: u16, body: impl Into<Bytes>) -> http::Response<ServerBody> {
    let body = Full::new(body.into()).map_err(|never| match never {});
    http::Response::builder()
        .status(status)
        .body(body.boxed())
        .unwrap()
}

/// A response whose body the test sends.
pub(crate) fn stream() -> (Sender<Bytes, BoxError>, http::Response<ServerBody>) {
    let (sender, body) = Channel::<Bytes, BoxError>::new(16);
    (sender, http::Response::new(body.boxed()))
}

/// An address without a listener.
pub(crate) async fn nowhere() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// Polls until `condition` holds; it depends on sockets, so there is nothing to await.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("not within five seconds: {what}");
}

/// The first `T` among `error` and its sources.
pub(crate) fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// The refusal of the toy layers.
#[derive(Debug, PartialEq)]
pub(crate) struct Refused(pub(crate) &'static str);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "refused: {}", self.0)
    }
}

impl Error for Refused {}

/// Counts the calls inside.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gauge(Arc<AtomicUsize>);

impl Gauge {
    pub(crate) fn enter(&self) -> Entered {
        self.0.fetch_add(1, Ordering::SeqCst);
        Entered(self.clone())
    }

    pub(crate) fn value(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

#[derive(Debug)]
pub(crate) struct Entered(Gauge);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A layer that counts a call until its response body has ended or was dropped.
#[derive(Clone, Debug, Default)]
pub(crate) struct InFlight(pub(crate) Gauge);

impl<S> Layer<S> for InFlight {
    type Service = InFlightService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        InFlightService {
            inner,
            gauge: self.0.clone(),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct InFlightService<S> {
    inner: S,
    gauge: Gauge,
}

impl<S, Req, B> Service<Req> for InFlightService<S>
where
    S: Service<Req, Response = http::Response<B>>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Guarded<B>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let entered = self.gauge.enter();
        let response = self.inner.call(request);
        Box::pin(async move { Ok(response.await?.map(|body| Guarded::new(body, entered))) })
    }
}

/// A body that holds a value until it has ended or is dropped.
#[derive(Debug)]
pub(crate) struct Guarded<B> {
    inner: Pin<Box<B>>,
    entered: Option<Entered>,
}

impl<B> Guarded<B> {
    pub(crate) fn new(inner: B, entered: Entered) -> Self {
        Self {
            inner: Box::pin(inner),
            entered: Some(entered),
        }
    }
}

impl<B: Body> Body for Guarded<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = self.inner.as_mut().poll_frame(cx);
        if let Poll::Ready(None) = polled {
            self.entered = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
