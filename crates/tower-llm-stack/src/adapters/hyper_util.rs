//! hyper-util's pooled client as the innermost service of a stack.
//!
//! [`Client`] is a tower service as it is. To call a provider it needs an address, which
//! [`BaseUrlLayer`](super::base_url::BaseUrlLayer) adds, and settings that are easily forgotten, which [`client`] makes.
//! TLS belongs to the connector: pass in that of hyper-rustls or hyper-tls.
//!
//! ```no_run
//! use bytes::Bytes;
//! use http::Request;
//! use http_body_util::Full;
//! use hyper_util::client::legacy::connect::HttpConnector;
//! use tower::{ServiceBuilder, ServiceExt};
//! use tower_llm_stack::adapters::base_url::{BaseUrl, BaseUrlLayer};
//!
//! # async fn run() -> Result<(), tower::BoxError> {
//! let mut connector = HttpConnector::new();
//! // A larger request is written in two parts; don't delay the second.
//! connector.set_nodelay(true);
//! let service = ServiceBuilder::new()
//!     .concurrency_limit(8) // or any other layers
//!     .layer(BaseUrlLayer::new(BaseUrl::new("http://127.0.0.1:11434/v1")?))
//!     .service(tower_llm_stack::adapters::hyper_util::client(connector));
//!
//! let request = Request::post("/chat/completions").body(Full::<Bytes>::from(r#"{"model": "qwen3"}"#))?;
//! let response = service.clone().oneshot(request).await?;
//! println!("{}", response.status());
//! # Ok(())
//! # }
//! ```
//!
//! If the server closed a pooled connection before any of a request was written, the client sends the request again; the
//! stack sees one call. It follows no redirects and has no timeout of its own.
//!
//! A request body that is a stream may fail: a caller disconnects in the middle of an upload. The client reports this like
//! a broken connection, for which a circuit would open. Put [`RequestBodyLayer`] around a client with such bodies.

use std::task::{Context, Poll};

use ::hyper_util::client::legacy::Client;
use ::hyper_util::client::legacy::connect::Connect;
use ::hyper_util::rt::{TokioExecutor, TokioTimer};
use http::{Request, Response};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::BoxError;
use super::classified::ClassifiedFuture;
use super::sent::{Classify, ResponseBody, SentBody};

/// Maximum number of response headers. Some proxies send more than httparse's default of 100.
pub(crate) const MAX_HEADERS: usize = 512;

/// Creates a pooled client over `connector`, on tokio, with hyper-util's defaults, up to 512 response headers, and the
/// timer that it needs to close idle connections. Without one, an idle connection stays open until the next request to its
/// host finds it too old.
///
/// It sends any body: under a stack that describes requests, [`RequestBody`](tower_llm_core::RequestBody).
///
/// For other settings, build the [`Client`] yourself: nothing here depends on this function.
pub fn client<C, B>(connector: C) -> Client<C, B>
where
    C: Connect + Clone,
    B: Body + Send,
    B::Data: Send,
{
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .http1_max_headers(MAX_HEADERS)
        .build(connector)
}

/// Attributes a failed request body to the caller, not to the provider.
///
/// It goes directly around a client whose request bodies are streams, and works with any HTTP client. The client sends
/// [`SentBody<B>`](SentBody) for requests with bodies `B`. When a call fails after its request's body did, the error is a
/// [`ClassifiedError`](tower_llm_core::ClassifiedError) with the outcome `ClientError` and a
/// [`RequestBodyError`](super::RequestBodyError) as its source.
///
/// ```
/// use bytes::Bytes;
/// use http_body_util::combinators::BoxBody;
/// use hyper_util::{client::legacy::{Client, connect::HttpConnector}, rt::TokioExecutor};
/// use tower::ServiceBuilder;
/// use tower_llm_stack::{BoxError, adapters::{SentBody, hyper_util::RequestBodyLayer}};
///
/// type Upload = BoxBody<Bytes, BoxError>;
///
/// let client: Client<_, SentBody<Upload>> =
///     Client::builder(TokioExecutor::new()).build(HttpConnector::new());
/// let service = ServiceBuilder::new().layer(RequestBodyLayer::new()).service(client);
/// # let _ = service;
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestBodyLayer {
    _private: (),
}

impl RequestBodyLayer {
    /// Creates the layer.
    #[must_use]
    pub const fn new() -> Self {
        Self { _private: () }
    }
}

impl<S> Layer<S> for RequestBodyLayer {
    type Service = RequestBodyService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RequestBodyService { inner }
    }
}

/// The service of [`RequestBodyLayer`].
#[derive(Clone, Copy, Debug)]
pub struct RequestBodyService<S> {
    inner: S,
}

impl<S, B, R> Service<Request<B>> for RequestBodyService<S>
where
    S: Service<Request<SentBody<B>>, Response = Response<R>>,
    S::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody<R>>;
    type Error = BoxError;
    type Future = ClassifiedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let classify = Classify::new(|_| None);
        let request = request.map(|body| classify.sent(body));
        ClassifiedFuture::new(self.inner.call(request), classify)
    }
}
