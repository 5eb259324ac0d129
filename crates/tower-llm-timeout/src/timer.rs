//! One timer for all deadlines of a call.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::time::{Instant, Sleep};

/// A timer that is set when something is first waited for, and moved only when it must be.
///
/// Deadlines mostly move away while it runs, with every frame. It is left to fire then, and set anew for what is
/// left: moving it costs more than reading a frame.
#[derive(Debug)]
pub(crate) struct Timer {
    // Boxed: only what waits has one, and a body with it stays `Unpin` for those who read it frame by frame.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    pub(crate) const fn new() -> Self {
        Self { sleep: None }
    }

    /// Ready once `at` has come.
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
