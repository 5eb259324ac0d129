//! Decides whether the caller or the provider is at fault when a call fails in the client.
//!
//! A client reports a failed request body like a failed connection: over HTTP/2, hyper resets the stream and the call ends
//! with "stream error". So the body stores its error, and later errors of the call are attributed to it.

use std::error::Error;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_llm_core::{ClassifiedError, Outcome};

use super::{BoxError, RequestBodyError};

/// The outcome of a client's error; `None` for an error of the connection.
pub(super) type OutcomeOf = fn(&(dyn Error + 'static)) -> Option<Outcome>;

/// Classifies the errors of one call.
#[derive(Clone, Debug)]
pub(super) struct Classify {
    /// The error of the request body, if it failed.
    body: Arc<OnceLock<RequestBodyError>>,
    outcome_of: OutcomeOf,
}

impl Classify {
    pub(super) fn new(outcome_of: OutcomeOf) -> Self {
        Self {
            body: Arc::default(),
            outcome_of,
        }
    }

    /// Wraps the request body, so that its error is stored.
    pub(super) fn sent<B>(&self, inner: B) -> SentBody<B> {
        SentBody {
            inner,
            error: Arc::clone(&self.body),
        }
    }

    /// Wraps the response, so that errors of its body are classified too.
    pub(super) fn received<B>(
        self,
        response: http::Response<B>,
    ) -> http::Response<ResponseBody<B>> {
        response.map(|inner| ResponseBody {
            inner,
            classify: self,
        })
    }

    /// Classifies an error of the client, unless it is of the connection.
    pub(super) fn error(&self, error: impl Into<BoxError>) -> BoxError {
        if let Some(body) = self.body.get() {
            return ClassifiedError::new(Outcome::ClientError, body.clone()).into();
        }
        let error = error.into();
        match (self.outcome_of)(&*error) {
            Some(outcome) => ClassifiedError::new(outcome, error).into(),
            None => error,
        }
    }
}

pin_project! {
    /// A request body that stores its error.
    #[derive(Debug)]
    pub struct SentBody<B> {
        #[pin]
        inner: B,
        error: Arc<OnceLock<RequestBodyError>>,
    }
}

impl<B> Body for SentBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = RequestBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, RequestBodyError>>> {
        let this = self.project();
        this.inner.poll_frame(cx).map_err(|error| {
            let error = RequestBodyError::new(error.into());
            this.error.get_or_init(|| error).clone()
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

pin_project! {
    /// A client's response body with classified errors.
    ///
    /// See [`ClassifiedError`].
    #[derive(Debug)]
    pub struct ResponseBody<B> {
        #[pin]
        inner: B,
        classify: Classify,
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let this = self.project();
        let classify = this.classify;
        this.inner
            .poll_frame(cx)
            .map_err(|error| classify.error(error))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
