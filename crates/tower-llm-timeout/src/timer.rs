//! One timer for all deadlines of a call.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::time::{Instant, Sleep};

/// A timer that is created with the first wait, and moved only when it must be.
///
/// Every frame moves most deadlines later. The timer is left to fire and is then set again for the rest, because moving it
/// costs more than reading a frame.
#[derive(Debug)]
pub(crate) struct Timer {
    // Boxed: only a wait needs one, and the body stays `Unpin` for readers that take it frame by frame.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    pub(crate) const fn new() -> Self {
        Self { sleep: None }
    }

    /// Ready from `at` on.
    pub(crate) fn poll_until(&mut self, at: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if sleep.deadline() > at {
            sleep.as_mut().reset(at);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= at {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(at);
        }
    }
}
