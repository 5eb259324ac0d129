use std::{
    convert::Infallible,
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::render::{bad_gateway, render};
use crate::{BoxError, Dialect};

/// Turns refusals into responses; see [`RefusalLayer`](super::RefusalLayer).
pub struct Refuse<S, E> {
    inner: S,
    /// The error with which the inner service failed to become ready: the answer to the next call.
    failed: Option<BoxError>,
    error: PhantomData<fn() -> E>,
}

/// The error of a [`Refuse`] service: [`BoxError`], or [`Infallible`] if it answers every error.
///
/// Sealed: there are only these two.
pub trait Unanswered: Sized + sealed::Sealed {
    /// Turns an error that is neither a refusal nor a timeout into a response, or passes it on.
    #[doc(hidden)]
    fn answer(error: BoxError, dialect: Dialect) -> Result<Response<Full<Bytes>>, Self>;
}

mod sealed {
    pub trait Sealed {}
}

impl sealed::Sealed for BoxError {}

impl Unanswered for BoxError {
    fn answer(error: BoxError, _: Dialect) -> Result<Response<Full<Bytes>>, Self> {
        Err(error)
    }
}

impl sealed::Sealed for Infallible {}

impl Unanswered for Infallible {
    fn answer(_: BoxError, dialect: Dialect) -> Result<Response<Full<Bytes>>, Self> {
        Ok(bad_gateway(dialect))
    }
}

impl<S, E> Refuse<S, E> {
    pub(super) fn new(inner: S) -> Self {
        Self {
            inner,
            failed: None,
            error: PhantomData,
        }
    }
}

impl<S: Clone, E> Clone for Refuse<S, E> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone())
    }
}

impl<S: fmt::Debug, E> fmt::Debug for Refuse<S, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refuse")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl<S, E, A, B> Service<Request<A>> for Refuse<S, E>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    E: Unanswered,
{
    type Response = Response<RefusalBody<B>>;
    type Error = E;
    type Future = ResponseFuture<S::Future, E>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E>> {
        if let Err(error) = ready!(self.inner.poll_ready(cx)) {
            self.failed = Some(error.into());
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let dialect = Dialect::of(request.method(), request.uri(), request.headers());
        ResponseFuture {
            inner: match self.failed.take() {
                Some(error) => Answer::Failed { error: Some(error) },
                None => Answer::Called {
                    future: self.inner.call(request),
                },
            },
            dialect: dialect.unwrap_or(Dialect::OpenAi),
            error: PhantomData,
        }
    }
}

pin_project! {
    /// Resolves to the inner response, or to the response for a refusal.
    #[derive(Debug)]
    pub struct ResponseFuture<F, E> {
        #[pin]
        inner: Answer<F>,
        dialect: Dialect,
        error: PhantomData<fn() -> E>,
    }
}

pin_project! {
    #[project = AnswerProj]
    #[derive(Debug)]
    enum Answer<F> {
        Called { #[pin] future: F },
        // The service failed before it could be called.
        Failed { error: Option<BoxError> },
    }
}

impl<F, E, B, I> Future for ResponseFuture<F, E>
where
    F: Future<Output = Result<Response<B>, I>>,
    E: Unanswered,
    I: Into<BoxError>,
{
    type Output = Result<Response<RefusalBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = match this.inner.project() {
            AnswerProj::Called { future } => ready!(future.poll(cx)).map_err(Into::into),
            AnswerProj::Failed { error } => Err(error.take().expect("polled after it was ready")),
        };
        Poll::Ready(match answer {
            Ok(response) => Ok(response.map(RefusalBody::inner)),
            Err(error) => match render(&*error, *this.dialect) {
                Some(response) => Ok(response),
                None => E::answer(error, *this.dialect),
            }
            .map(|response| response.map(RefusalBody::refusal)),
        })
    }
}

pin_project! {
    /// The body of the inner response, or of a refusal.
    #[derive(Debug)]
    pub struct RefusalBody<B> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = KindProj]
    #[derive(Debug)]
    enum Kind<B> {
        Inner { #[pin] body: B },
        Refusal { #[pin] body: Full<Bytes> },
    }
}

impl<B> RefusalBody<B> {
    fn inner(body: B) -> Self {
        Self {
            kind: Kind::Inner { body },
        }
    }

    fn refusal(body: Full<Bytes>) -> Self {
        Self {
            kind: Kind::Refusal { body },
        }
    }
}

impl<B> Body for RefusalBody<B>
where
    B: Body<Data = Bytes>,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().kind.project() {
            KindProj::Inner { body } => body.poll_frame(cx),
            KindProj::Refusal { body } => body.poll_frame(cx).map_err(|never| match never {}),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Inner { body } => body.is_end_stream(),
            Kind::Refusal { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Inner { body } => body.size_hint(),
            Kind::Refusal { body } => body.size_hint(),
        }
    }
}
