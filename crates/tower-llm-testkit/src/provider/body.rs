//! A response body that keeps to its timetable.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
    vec,
};

use bytes::Bytes;
use http_body::{Body, Frame as HttpFrame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::{call::Call, io::Reset};
use crate::wire::{End, Frame, Reply};

/// Sends the frames of a reply when they are due, then ends as the reply does.
#[derive(Debug)]
pub(super) struct SimulatedBody {
    frames: vec::IntoIter<Frame>,
    end: End,
    /// The length, where it is promised in the head.
    exact: Option<u64>,
    started: Instant,
    sleep: Option<Pin<Box<Sleep>>>,
    done: bool,
    reset: ResetBy,
    call: Call,
}

/// How a body breaks its connection.
#[derive(Debug)]
pub(super) enum ResetBy {
    /// HTTP/1: the socket is reset.
    Socket(Reset),
    /// HTTP/2: the body's error resets the stream.
    Error,
}

impl SimulatedBody {
    pub(super) fn new(reply: Reply, reset: ResetBy, mut call: Call) -> Self {
        call.open(reply.input_tokens);
        let whole = !reply.streamed && reply.frames.len() == 1;
        Self {
            exact: whole.then(|| {
                reply
                    .frames
                    .iter()
                    .map(|frame| frame.bytes.len() as u64)
                    .sum()
            }),
            frames: reply.frames.into_iter(),
            end: reply.end,
            started: Instant::now(),
            sleep: None,
            done: false,
            reset,
            call,
        }
    }

    fn wait(&mut self, due: Duration, cx: &mut Context<'_>) -> Poll<()> {
        if due.is_zero() {
            return Poll::Ready(());
        }
        // A wait too long for the clock is for ever.
        let Some(until) = self.started.checked_add(due) else {
            return Poll::Pending;
        };
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(sleep_until(until)));
        if sleep.deadline() != until {
            sleep.as_mut().reset(until);
        }
        sleep.as_mut().poll(cx)
    }

    fn finish(&mut self) {
        self.done = true;
        self.call.finish();
    }
}

impl Body for SimulatedBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<HttpFrame<Bytes>>>> {
        let Some(due) = self.frames.as_slice().first().map(|frame| frame.due) else {
            match (self.end, &self.reset) {
                (End::Clean, _) => {
                    self.finish();
                    return Poll::Ready(None);
                }
                (End::Reset, ResetBy::Socket(reset)) => {
                    reset.request();
                    self.call.abort();
                }
                (End::Reset, ResetBy::Error) => {
                    self.call.abort();
                    self.done = true;
                    return Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into())));
                }
                _ => {}
            }
            return Poll::Pending;
        };
        std::task::ready!(self.wait(due, cx));
        let Some(frame) = self.frames.next() else {
            return Poll::Ready(None);
        };
        self.call.sent(frame.tokens);
        // Counted as it is handed over and not when it is asked for more, so that a client that has
        // read to the end finds it counted.
        if self.frames.as_slice().is_empty() && self.end == End::Clean {
            self.finish();
        }
        Poll::Ready(Some(Ok(HttpFrame::data(frame.bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.done
    }

    fn size_hint(&self) -> SizeHint {
        self.exact.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}
