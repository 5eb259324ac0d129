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
//! # What the hook allows
//!
//! - **Retries.** A client without `with_http_service` tries three times more after a 429, a 5xx and a failed
//!   connection. With it, nothing is retried but by the stack. async-openai's own `OpenAIRetryLayer` can still go around
//!   [`OpenAiService`]; it then retries those same answers and failed connections, and *not* an error of the stack:
//!   a refusal comes through at once. It must not go around a stack that turns refusals into responses: it knows a 429
//!   by its status alone, and neither `x-should-retry` nor a wait below a second.
//! - **Errors.** A refusal of a layer is [`OpenAIError::Boxed`] with a [`StackError`]: printed, it reads as the
//!   refusal; its sources begin with it. An error of reqwest is [`OpenAIError::Reqwest`], and an error with which the
//!   request could not be built is itself.
//! - **Errors inside a stream.** async-openai keeps only their text, and reqwest's text does not name its cause: the
//!   stream ends with `OpenAIError::StreamError`, "error decoding response body", whatever a layer's body failed with.
//!   The truth is known to the layers alone.
//! - **Reading ahead.** async-openai reads a stream in a task of its own, as fast as the server sends, into an
//!   unbounded channel. A layer's body therefore ends when the *server* is done, not when the user is; dropping the
//!   stream drops the body soon after, when that task has run.
//! - **Extensions.** The request carries none: what a layer is to know about a call has to be in a header, which
//!   async-openai can set by client and by call.

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

/// Makes a stack over `http::Request<RequestBody<reqwest::Body>>` what `Client::with_http_service` takes; see the
/// [module](self).
///
/// JSON bodies are held, and layers can [clone](RequestBody::try_clone) them. Files and audio are multipart forms, which pass
/// through as streams and can be sent only once.
///
/// The client clones the service for every call, so state that is to be shared must be shared by the stack's clones. Its
/// readiness is the stack's. The innermost service may be any: what async-openai is given as `with_http_client` only
/// builds requests and does not send them.
#[derive(Clone, Debug)]
pub struct OpenAiService<S> {
    inner: S,
}

impl<S> OpenAiService<S> {
    /// A service for async-openai over `stack`.
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
    // Boxed: the factory's futures are, and the client boxes this one again.
    type Future = Pin<Box<dyn Future<Output = Result<Response, OpenAIError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner
            .poll_ready(cx)
            .map_err(|error| into_error(error.into()))
    }

    fn call(&mut self, factory: HttpRequestFactory) -> Self::Future {
        // Take the service that was made ready and leave a clone for next time.
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

/// The client's error: its own where it has a variant that says more than a box, else the stack's.
fn into_error(error: BoxError) -> OpenAIError {
    match from_reqwest(error).downcast::<OpenAIError>() {
        Ok(error) => *error,
        Err(error) => match error.downcast::<::reqwest::Error>() {
            Ok(error) => OpenAIError::Reqwest(*error),
            Err(error) => OpenAIError::Boxed(Box::new(StackError::new(error))),
        },
    }
}
