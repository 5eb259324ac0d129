//! How long a stream has no token, as far as the provider is the cause.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

/// A stream without a token so far.
///
/// After the response headers a slow reader may leave a token unread. From then on, only the time in which the stream was
/// polled and was pending counts.
#[derive(Debug)]
pub(crate) struct Silence {
    target: Duration,
    /// Time waited before the current wait, which began at `since`.
    waited: Duration,
    since: Option<Instant>,
    has_headers: bool,
    // Created with the first wait.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Silence {
    pub(crate) fn new(target: Duration, now: Instant) -> Self {
        Self {
            target,
            waited: Duration::ZERO,
            since: Some(now),
            has_headers: false,
            timer: None,
        }
    }

    /// The response headers arrived at `now`; what follows may be unread.
    pub(crate) fn response_headers(&mut self, now: Instant) {
        self.waited = self.lasted(now);
        self.since = None;
        self.has_headers = true;
        self.timer = None;
    }

    /// Ready when the stream has been silent for longer than the target.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Instant> {
        let since = *self.since.get_or_insert_with(Instant::now);
        let left = self.target.saturating_sub(self.waited) + Duration::from_millis(1);
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(since + left)));
        timer.as_mut().poll(cx).map(|()| Instant::now())
    }

    /// How long the stream was silent.
    pub(crate) fn seen(&self, now: Instant) -> Duration {
        if self.has_headers && self.timer.is_some() {
            // The timer has not fired, or that would have been reported.
            self.waited
        } else {
            self.lasted(now)
        }
    }

    fn lasted(&self, now: Instant) -> Duration {
        let lasts = |since| now.saturating_duration_since(since);
        self.waited + self.since.map_or(Duration::ZERO, lasts)
    }
}
