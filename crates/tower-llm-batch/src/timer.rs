//! When a call that waits looks again.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::time::{Instant, Sleep, sleep_until};

use crate::flight::PATROL;

/// Fires when a call is due, and once in [`PATROL`].
///
/// It is created when its call waits for the first time: a call that is sent at once needs none.
#[derive(Debug, Default)]
pub(crate) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Whether it has fired since the last poll.
    pub(crate) fn has_fired(&self) -> bool {
        self.0.as_ref().is_some_and(|timer| timer.is_elapsed())
    }

    /// Ready at `at`, or for a patrol.
    pub(crate) fn poll(&mut self, at: Option<Instant>, cx: &mut Context<'_>) -> Poll<()> {
        // There is no time among loom's threads: what wakes a call must do so without.
        if cfg!(all(test, batch_loom)) {
            return Poll::Pending;
        }
        let patrol = Instant::now() + PATROL;
        let at = at.map_or(patrol, |at| at.min(patrol));
        let timer = self.0.get_or_insert_with(|| Box::pin(sleep_until(at)));
        // It is left as it is if it fires no later: a timer is moved at a cost, and this is polled often.
        if timer.is_elapsed() || timer.deadline() > at {
            timer.as_mut().reset(at);
        }
        timer.as_mut().poll(cx)
    }
}
