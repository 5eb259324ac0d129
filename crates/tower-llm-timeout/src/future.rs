use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;
use tower_llm_core::{Billed, BoxError, Call, HttpBody, Unary};

use crate::{
    TimeoutBody,
    deadlines::{Deadlines, Progress},
    timer::Timer,
};

/// Binds a response to the deadlines that remain when its headers have arrived.
///
/// Sealed: implemented for [`HttpBody`], whose deadlines continue to the end of the body, and for [`Unary`], which has none
/// left.
pub trait Bound<R>: sealed::Bind<R> {
    /// The response, bound.
    type Out;

    #[doc(hidden)]
    fn bind(&self, rest: Rest, response: R) -> Self::Out;
}

mod sealed {
    pub trait Bind<R> {}
}

/// What the future passes on to the body.
#[doc(hidden)]
#[derive(Debug)]
pub struct Rest {
    pub(crate) deadlines: Deadlines,
    pub(crate) progress: Progress,
    pub(crate) call: Option<Call>,
}

impl<B> sealed::Bind<Response<B>> for HttpBody {}

impl<B: Body<Data = Bytes>> Bound<Response<B>> for HttpBody {
    type Out = Response<TimeoutBody<B>>;

    fn bind(&self, rest: Rest, response: Response<B>) -> Self::Out {
        TimeoutBody::response(rest, response)
    }
}

impl<R> sealed::Bind<R> for Unary {}

impl<R> Bound<R> for Unary {
    type Out = R;

    fn bind(&self, _: Rest, response: R) -> R {
        response
    }
}

pin_project! {
    /// Resolves to the inner response, or to [`TimedOut`](tower_llm_core::TimedOut).
    #[derive(Debug)]
    pub struct ResponseFuture<F, W> {
        // `None` once it has timed out: the inner future is dropped before the caller gets the error.
        #[pin]
        inner: Option<F>,
        timer: Timer,
        watch: W,
        deadlines: Deadlines,
        progress: Progress,
        call: Option<Call>,
    }
}

impl<F, W> ResponseFuture<F, W> {
    pub(crate) fn new(
        inner: F,
        watch: W,
        deadlines: Deadlines,
        progress: Progress,
        call: Option<Call>,
    ) -> Self {
        Self {
            inner: Some(inner),
            timer: Timer::new(),
            watch,
            deadlines,
            progress,
            call,
        }
    }
}

impl<F, W, R, E> Future for ResponseFuture<F, W>
where
    F: Future<Output = Result<R, E>>,
    E: Into<BoxError>,
    W: Bound<R>,
{
    type Output = Result<W::Out, BoxError>;

    /// The response comes first: one that is ready when the time is up is used.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let inner = this.inner.as_mut().as_pin_mut();
        if let Poll::Ready(result) = inner.expect("polled after it was ready").poll(cx) {
            let response = result.map_err(Into::into)?;
            let rest = Rest {
                deadlines: *this.deadlines,
                progress: *this.progress,
                call: this.call.take(),
            };
            return Poll::Ready(Ok(this.watch.bind(rest, response)));
        }
        let Some(due) = this.deadlines.next(this.progress) else {
            return Poll::Pending;
        };
        ready!(this.timer.poll_until(due.at, cx));
        let error = Billed::dropping(due.error(), || this.inner.set(None));
        Poll::Ready(Err(error))
    }
}
