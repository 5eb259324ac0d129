//! The pauses of a replayed stream.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    runtime::Handle,
    time::{Instant, Sleep, sleep_until},
};

/// Frames, and the pause after each.
pub(crate) struct Paced<I> {
    frames: I,
    pause: Duration,
    /// `None` until the first pause.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<I: Iterator<Item = Bytes>> Paced<I> {
    /// No pause takes no timer.
    pub(crate) fn new(frames: I, pause: Duration) -> Self {
        Self {
            frames,
            pause,
            waiting: None,
        }
    }

    pub(crate) fn frames(&self) -> &I {
        &self.frames
    }

    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(waiting) = &mut self.waiting {
            ready!(waiting.as_mut().poll(cx));
        }
        let frame = self.frames.next();
        if frame.is_some() && !self.pause.is_zero() {
            self.wait();
        }
        Poll::Ready(frame)
    }

    /// Starts the pause. Outside of a tokio runtime there is none.
    fn wait(&mut self) {
        let until = Instant::now() + self.pause;
        match &mut self.waiting {
            Some(waiting) => waiting.as_mut().reset(until),
            None if Handle::try_current().is_ok() => {
                self.waiting = Some(Box::pin(sleep_until(until)));
            }
            None => {}
        }
    }
}
