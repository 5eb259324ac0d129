//! A stack under [`async_openai::Client`], through its hook for HTTP services (0.37 and later).
//!
//! ```no_run
//! use async_openai::{Client, config::OpenAIConfig};
//! use tower::ServiceBuilder;
//! use tower_llm_stack::adapters::async_openai::OpenAiService;
//! use tower_llm_stack::adapters::reqwest::ReqwestService;
//!
//! # fn run() {
//! let stack = ServiceBuilder::new()
//!     .concurrency_limit(8) // or any other layers over `http::Request<RequestBody<reqwest::Body>>`
//!     .service(ReqwestService::new(reqwest::Client::new()));
//! let client = Client::with_config(OpenAIConfig::new()).with_http_service(OpenAiService::new(stack));
//! # }
//! ```
//!
//! # What the hook does
//!
//! - **Retries.** A client without `with_http_service` retries three times after a 429, a 5xx or a failed connection. With
//!   it, only the stack retries. async-openai's own `OpenAIRetryLayer` can still wrap [`OpenAiService`]; it then retries
//!   the same responses and failed connections, but *no* error of the stack: a refusal is returned at once. It must not
//!   wrap a stack that turns refusals into responses, because it recognises a 429 only by its status, and ignores
//!   `x-should-retry` and waits below a second.
//! - **Errors.** A refusal of a layer is [`OpenAIError::Boxed`] with a [`StackError`], which displays as the refusal and
//!   has it as its first source. An error of reqwest is [`OpenAIError::Reqwest`], and an error of building the request is
//!   returned as it is.
//! - **Errors inside a stream.** async-openai stores only their text, and reqwest's text does not contain the cause: the
//!   stream ends with `OpenAIError::StreamError`, "error decoding response body", whatever error a layer's body had. Only
//!   the layers see the cause.
//! - **Reading ahead.** async-openai reads a stream in its own task, as fast as the server sends, into an unbounded
//!   channel. A layer's body therefore ends when the *server* has finished, not when the reader has. Dropping the stream
//!   drops the body soon after, when that task has run.
//! - **Extensions.** The request has none: what a layer needs to know about a call must be in a header, which async-openai
//!   can set per client and per call.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use ::async_openai::error::OpenAIError;
use ::async_openai::middleware::HttpRequestFactory;
use ::reqwest::{Body, Response};
use bytes::Bytes;
use tower_llm_core::RequestBody;
use tower_service::Service;

use super::convert::{from_reqwest, request_from_reqwest, response_into_reqwest};
use super::{BoxError, StackError};

/// Adapts a stack over `http::Request<RequestBody<reqwest::Body>>` to `Client::with_http_service`; see the [module](self).
///
/// JSON bodies are held, and layers can [clone](RequestBody::try_clone) them. Files and audio are multipart forms, which pass
/// through as streams and can be sent only once.
///
/// The client clones the service for every call, so clones of the stack must share their state. Its readiness is that of
/// the stack. The innermost service may be any: the client passed to `with_http_client` only builds requests and does not
/// send them.
#[derive(Clone, Debug)]
pub struct OpenAiService<S> {
    inner: S,
}

impl<S> OpenAiService<S> {
    /// Creates a service for async-openai over `stack`.
    #[must_use]
    pub fn new(stack: S) -> Self {
        Self { inner: stack }
    }
}

impl<S, B> Service<HttpRequestFactory> for OpenAiService<S>
where
    S: Service<http::Request<RequestBody<Body>>, Response = http::Response<B>>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: http_body::Body + Send + 'static,
    B::Data: Into<Bytes>,
    B::Error: Into<BoxError>,
{
    type Response = Response;
    type Error = OpenAIError;
    // Boxed, like the futures of the factory; the client boxes it again.
    type Future = Pin<Box<dyn Future<Output = Result<Response, OpenAIError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner
            .poll_ready(cx)
            .map_err(|error| into_error(error.into()))
    }

    fn call(&mut self, factory: HttpRequestFactory) -> Self::Future {
        // Use the service that was readied, and keep a clone for the next call.
        let clone = self.inner.clone();
        let mut ready = std::mem::replace(&mut self.inner, clone);
        Box::pin(async move {
            let request = factory.build().await?;
            let requested = request.url().clone();
            let request = request_from_reqwest(request).map_err(OpenAIError::Reqwest)?;
            let response = ready
                .call(request)
                .await
                .map_err(|error| into_error(error.into()))?;
            Ok(response_into_reqwest(response, requested))
        })
    }
}

/// The client's error: its own variant if there is one, otherwise the stack's error in a box.
fn into_error(error: BoxError) -> OpenAIError {
    match from_reqwest(error).downcast::<OpenAIError>() {
        Ok(error) => *error,
        Err(error) => match error.downcast::<::reqwest::Error>() {
            Ok(error) => OpenAIError::Reqwest(*error),
            Err(error) => OpenAIError::Boxed(Box::new(StackError::new(error))),
        },
    }
}
