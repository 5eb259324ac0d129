use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Response, header};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_llm_core::{BoxError, Completion, Dialect, Guard, HttpBody, TimedOut, Watch, Watched};

use crate::{
    deadlines::{Deadlines, Due, Progress},
    future::Rest,
    timer::Timer,
};

pin_project! {
    /// A response body that ends when it takes too long.
    #[derive(Debug)]
    pub struct TimeoutBody<B> {
        #[pin]
        inner: Watched<B, Nobody>,
        timer: Timer,
        deadlines: Deadlines,
        progress: Progress,
        // Others are not read for tokens: their first data stands for one.
        is_event_stream: bool,
        // How a stream is told of its end; `None` for a body that can only be broken off.
        dialect: Option<Dialect>,
    }
}

/// Nobody wants to know: the body is watched to be read.
#[derive(Debug)]
pub(crate) struct Nobody;

impl Guard for Nobody {
    fn end(&mut self, _: &Completion) {}
}

impl<B: Body<Data = Bytes>> TimeoutBody<B> {
    pub(crate) fn response(rest: Rest, response: Response<B>) -> Response<Self> {
        let Rest {
            deadlines,
            mut progress,
            call,
        } = rest;
        // Nothing can be added to a body whose length or encoding is settled.
        let headers = response.headers();
        let is_open = !headers.contains_key(header::CONTENT_LENGTH)
            && !headers.contains_key(header::CONTENT_ENCODING)
            && response.body().size_hint().exact().is_none();
        let response = HttpBody.watch(call.as_ref(), response, Nobody);
        let is_event_stream = response.body().is_event_stream();
        if is_event_stream {
            progress.await_token();
        }
        progress.hand_on(Instant::now());
        let dialect = call
            .and_then(|call| call.dialect())
            .unwrap_or(Dialect::OpenAi);
        response.map(|inner| Self {
            inner,
            timer: Timer::new(),
            deadlines,
            progress,
            is_event_stream,
            dialect: Some(dialect).filter(|_| is_event_stream && is_open),
        })
    }
}

impl<B> Body for TimeoutBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    /// A frame comes first: one that is there when time is up is handed on. But a body that always has one is bound by
    /// the total all the same, unless this one is the last.
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let now = Instant::now();
        let mut this = self.as_mut().project();
        this.progress.ask(now);
        if let Poll::Ready(frame) = this.inner.as_mut().poll_frame(cx) {
            this.progress.hand_on(now);
            if this.progress.awaits_token()
                && (!*this.is_event_stream || this.inner.first_token_at().is_some())
            {
                this.progress.had_token();
            }
            let goes_on = matches!(frame, Some(Ok(_))) && !this.inner.is_end_stream();
            let total = this.deadlines.total(this.progress);
            return Poll::Ready(match total.filter(|due| goes_on && due.is_over(now)) {
                Some(due) => self.cut(due),
                None => frame,
            });
        }
        let Some(due) = this.deadlines.next(this.progress) else {
            return Poll::Pending;
        };
        ready!(this.timer.poll_until(due.at, cx));
        Poll::Ready(self.cut(due))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B: Body<Data = Bytes>> TimeoutBody<B> {
    /// Drops the upstream and says why, in the stream if that is possible.
    ///
    /// Nothing is missing where the upstream has said all, and only the end of the body does not come.
    fn cut(self: Pin<&mut Self>, due: Due) -> Option<Result<Frame<Bytes>, BoxError>> {
        let this = self.project();
        let is_over = this.inner.is_over();
        this.inner.cut(due.outcome());
        if is_over {
            return None;
        }
        let error = due.error();
        Some(match this.dialect {
            Some(dialect) => Ok(Frame::data(last_event(&error, *dialect))),
            None => Err(error.into()),
        })
    }
}

/// The event that ends a stream.
fn last_event(error: &TimedOut, dialect: Dialect) -> Bytes {
    // The reader may stand within an event, or within a line's end. Blank lines end both: a broken event reaches the
    // reader before this one then, for what has passed cannot be taken back. Elsewhere they say nothing.
    [&b"\n\n"[..], &error.event(dialect)].concat().into()
}
