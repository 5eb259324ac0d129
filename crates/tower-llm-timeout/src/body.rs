use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Response, header};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_llm_core::{
    BoxError, Completion, Dialect, Guard, HttpBody, Outcome, TimedOut, Watch, Watched,
};

use crate::{
    deadlines::{Deadlines, Due, Progress},
    future::Rest,
    timer::Timer,
};

pin_project! {
    /// A response body that ends when a deadline passes.
    #[derive(Debug)]
    pub struct TimeoutBody<B> {
        #[pin]
        inner: Watched<B, Ignore>,
        timer: Timer,
        deadlines: Deadlines,
        progress: Progress,
        dialect: Dialect,
        // Nothing can be added to a body of fixed length or with an encoding.
        is_open: bool,
    }
}

/// The body is watched only to be read; this layer does not use its end.
#[derive(Debug)]
pub(crate) struct Ignore;

impl Guard for Ignore {
    fn end(&mut self, _: &Completion) {}
}

impl<B: Body<Data = Bytes>> TimeoutBody<B> {
    pub(crate) fn response(rest: Rest, response: Response<B>) -> Response<Self> {
        let Rest {
            deadlines,
            mut progress,
            call,
        } = rest;
        let headers = response.headers();
        let is_open = !headers.contains_key(header::CONTENT_LENGTH)
            && !headers.contains_key(header::CONTENT_ENCODING)
            && response.body().size_hint().exact().is_none();
        let response = HttpBody.watch(call.as_ref(), response, Ignore);
        if response.body().is_event_stream() {
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
            dialect,
            is_open,
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

    /// A frame comes first: one that is ready when the time is up is passed on. But a body that always has one is still
    /// bound by the total deadline, unless this frame is the last.
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let now = Instant::now();
        let mut this = self.as_mut().project();
        this.progress.ask(now);
        if let Poll::Ready(frame) = this.inner.as_mut().poll_frame(cx) {
            this.progress.hand_on(now);
            if this.progress.awaits_token() {
                // A body that is not an event stream is not read for tokens: its first data counts as one.
                if this.inner.first_token_at().is_some() || !this.inner.is_event_stream() {
                    this.progress.had_token();
                } else {
                    this.progress.show_life(now);
                }
            }
            if this.inner.is_over() {
                this.progress.be_over(now);
            }
            let goes_on = matches!(frame, Some(Ok(_))) && !this.inner.is_end_stream();
            let lingers = this
                .progress
                .linger_until()
                .is_some_and(|until| until < now);
            if goes_on && lingers {
                this.inner.cut(Outcome::Success);
                return Poll::Ready(None);
            }
            let total = this.deadlines.total(this.progress);
            return Poll::Ready(match total.filter(|due| goes_on && due.is_over(now)) {
                Some(due) => self.cut(due),
                None => frame,
            });
        }
        let due = this.deadlines.next(this.progress);
        let linger_until = this.progress.linger_until();
        let Some(next) = linger_until.into_iter().chain(due.map(|due| due.at)).min() else {
            return Poll::Pending;
        };
        ready!(this.timer.poll_until(next, cx));
        match due {
            Some(due) if due.at == next => Poll::Ready(self.cut(due)),
            _ => {
                // Everything has arrived except the end of the body.
                this.inner.cut(Outcome::Success);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B: Body<Data = Bytes>> TimeoutBody<B> {
    /// Drops the upstream body and reports why, in the stream if that is possible.
    ///
    /// If everything has arrived except the end of the body, the call is a success.
    fn cut(self: Pin<&mut Self>, due: Due) -> Option<Result<Frame<Bytes>, BoxError>> {
        let this = self.project();
        let is_over = this.inner.is_over();
        let takes_event = *this.is_open && this.inner.is_event_stream();
        this.inner.cut(due.outcome());
        if is_over {
            return None;
        }
        let error = due.error();
        Some(if takes_event {
            Ok(Frame::data(last_event(&error, *this.dialect)))
        } else {
            Err(error.into())
        })
    }
}

/// The event that ends a stream.
fn last_event(error: &TimedOut, dialect: Dialect) -> Bytes {
    // The stream may have been cut within an event or a line end. Blank lines end both, so the reader gets a broken event
    // before this one; what has passed cannot be taken back. Elsewhere blank lines mean nothing.
    [&b"\n\n"[..], &error.event(dialect)].concat().into()
}
