use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;
use tower_llm_core::{BoxError, Call, HttpBody, Unary};

use crate::{
    TimeoutBody,
    deadlines::{Deadlines, Progress},
    timer::Timer,
};

/// How a response is bound by the deadlines that are left when its head has come.
///
/// Implemented for the strategies of the core, and sealed: [`HttpBody`] goes on to the end of the body, [`Unary`] has
/// nothing left to bind.
pub trait Bound<R>: sealed::Bind<R> {
    /// The response, bound.
    type Out;

    #[doc(hidden)]
    fn bind(&self, rest: Rest, response: R) -> Self::Out;
}

mod sealed {
    pub trait Bind<R> {}
}

/// What the future hands on to the body.
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
    /// Answers with the inner response, or with [`TimedOut`](tower_llm_core::TimedOut).
    #[derive(Debug)]
    pub struct ResponseFuture<F, W> {
        // `None` once it has timed out: the upstream goes before the caller hears of it.
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

    /// The response comes first: one that is there when time is up is taken.
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
        this.inner.set(None);
        Poll::Ready(Err(due.error().into()))
    }
}
