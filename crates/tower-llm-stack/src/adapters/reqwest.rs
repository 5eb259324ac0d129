//! A [`reqwest::Client`] as the innermost service of a stack.
//!
//! ```no_run
//! use bytes::Bytes;
//! use http::Request;
//! use http_body_util::{BodyExt, Full};
//! use tower::{ServiceBuilder, ServiceExt};
//! use tower_llm_stack::adapters::base_url::BaseUrl;
//! use tower_llm_stack::adapters::reqwest::ReqwestService;
//!
//! # async fn run() -> Result<(), tower::BoxError> {
//! let client = reqwest::Client::builder()
//!     .redirect(reqwest::redirect::Policy::none())
//!     .build()?;
//! let service = ServiceBuilder::new()
//!     .concurrency_limit(8) // or any other layers
//!     .service(ReqwestService::new(client).base_url(BaseUrl::new("https://api.openai.com/v1")?));
//!
//! let request = Request::post("/chat/completions").body(Full::<Bytes>::from(r#"{"model": "gpt-5"}"#))?;
//! let response = service.clone().oneshot(request).await?;
//! println!("{}", response.into_body().collect().await?.to_bytes().len());
//! # Ok(())
//! # }
//! ```
//!
//! Some things happen in the client, below the stack, which sees one call: redirects (up to ten, unless set otherwise), a
//! second attempt if the server had closed the connection, and decompression if reqwest's features for it are enabled. A
//! streamed body is never sent twice. `ClientBuilder::timeout` bounds the whole body, so it cuts long streams; use
//! `connect_timeout` there, and a `TimeoutLayer` in the stack. To the layers, both `timeout` and `read_timeout` are a
//! timeout of the model, and `connect_timeout` is a failure of the connection.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use ::reqwest::{Body, Client, Request};
use bytes::Bytes;
use pin_project_lite::pin_project;
use tower_llm_core::{ClassifiedError, Outcome};
use tower_service::Service;

use super::BoxError;
use super::base_url::BaseUrl;
use super::convert::{request_into_reqwest, response_from_reqwest};
use super::sent::Classify;

/// Sends `http::Request`s with a [`reqwest::Client`]; response bodies are not buffered.
///
/// Accepts any body that is `Send + 'static`. A body in memory, such as `Full` or a held
/// [`RequestBody`](tower_llm_core::RequestBody), is passed to reqwest as bytes without a copy, so it can be sent again
/// after a redirect. Any other body is a stream that is sent once. Clones share the client's connections. The service is
/// always ready: limiting concurrent calls is the job of a layer.
///
/// # Errors
///
/// The boxed error is a [`reqwest::Error`], or a [`ClassifiedError`] whose source is
///
/// - a [`reqwest::Error`], if the client's own timeout passed or the request cannot be sent,
/// - a [`RequestBodyError`](super::RequestBodyError), if the request's body failed,
/// - a [`BaseUrlError`](super::base_url::BaseUrlError), if the address could not be completed.
#[derive(Clone, Debug)]
pub struct ReqwestService {
    client: Client,
    base: Option<BaseUrl>,
}

impl ReqwestService {
    /// Creates a service over `client`; requests must have complete addresses.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client, base: None }
    }

    /// Sends requests that have only a path to `base`; see [`base_url`](super::base_url) for how they are joined.
    #[must_use]
    pub fn base_url(mut self, base: BaseUrl) -> Self {
        self.base = Some(base);
        self
    }

    fn send<B>(&self, mut request: http::Request<B>) -> Result<State, BoxError>
    where
        B: http_body::Body + Send + 'static,
        B::Data: Into<Bytes>,
        B::Error: Into<BoxError>,
    {
        if let Some(base) = &self.base {
            base.apply(&mut request)
                .map_err(|error| ClassifiedError::new(Outcome::ClientError, error))?;
        }
        let (request, classify) = request_into_reqwest(request)?;
        Ok(State::Sent {
            response: (&self.client).call(request),
            classify: Some(classify),
        })
    }
}

impl From<Client> for ReqwestService {
    fn from(client: Client) -> Self {
        Self::new(client)
    }
}

impl<B> Service<http::Request<B>> for ReqwestService
where
    B: http_body::Body + Send + 'static,
    B::Data: Into<Bytes>,
    B::Error: Into<BoxError>,
{
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // reqwest's client is always ready. If that changes, `call` must use the clone that was readied here.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let state = self
            .send(request)
            .unwrap_or_else(|error| State::Refused { error: Some(error) });
        ResponseFuture { state }
    }
}

/// reqwest's future, which has no public name.
type ClientFuture = <Client as Service<Request>>::Future;

pin_project! {
    /// The future of [`ReqwestService`]; dropping it ends the call.
    pub struct ResponseFuture {
        #[pin]
        state: State,
    }
}

impl Future for ResponseFuture {
    type Output = Result<http::Response<Body>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Sent { response, classify } => {
                let result = ready!(response.poll(cx));
                let classify = classify.take().expect("polled after completion");
                Poll::Ready(match result {
                    Ok(response) => Ok(response_from_reqwest(response, classify)),
                    // Its URL may contain a credential, such as Gemini's `?key=`.
                    Err(error) => Err(classify.error(error.without_url())),
                })
            }
            StateProj::Refused { error } => {
                Poll::Ready(Err(error.take().expect("polled after completion")))
            }
        }
    }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

pin_project! {
    #[project = StateProj]
    enum State {
        // `None` once it is ready.
        Sent { #[pin] response: ClientFuture, classify: Option<Classify> },
        Refused { error: Option<BoxError> },
    }
}
