use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::render::render;
use crate::{BoxError, Dialect};

/// Answers refusals with responses; see [`RefusalLayer`](super::RefusalLayer).
#[derive(Debug)]
pub struct Refuse<S> {
    inner: S,
    bad_gateway: bool,
    /// What the inner service failed with instead of becoming ready: the answer to the next call.
    failed: Option<BoxError>,
}

impl<S> Refuse<S> {
    pub(super) fn new(inner: S, bad_gateway: bool) -> Self {
        Self {
            inner,
            bad_gateway,
            failed: None,
        }
    }
}

impl<S: Clone> Clone for Refuse<S> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), self.bad_gateway)
    }
}

impl<S, A, B> Service<Request<A>> for Refuse<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Error: Into<BoxError>,
{
    type Response = Response<RefusalBody<B>>;
    type Error = BoxError;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
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
            bad_gateway: self.bad_gateway,
        }
    }
}

pin_project! {
    /// Answers with the inner response, or with what a refusal looks like.
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        inner: Answer<F>,
        dialect: Dialect,
        bad_gateway: bool,
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

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Response<RefusalBody<B>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = match this.inner.project() {
            AnswerProj::Called { future } => ready!(future.poll(cx)).map_err(Into::into),
            AnswerProj::Failed { error } => Err(error.take().expect("polled after it was ready")),
        };
        Poll::Ready(match answer {
            Ok(response) => Ok(response.map(RefusalBody::inner)),
            Err(error) => match render(&*error, *this.dialect, *this.bad_gateway) {
                Some(response) => Ok(response.map(RefusalBody::refusal)),
                None => Err(error),
            },
        })
    }
}

pin_project! {
    /// The inner response's body, or a refusal.
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
