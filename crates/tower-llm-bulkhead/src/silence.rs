//! How long a stream brings no token, as far as that is the provider's doing.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

/// A stream that has brought no token yet.
///
/// Its reader may take his time once the head is there, and a token lie there unread: so from then on it is waited for only
/// while it is seen silent, by a timer, and not until a token is read.
#[derive(Debug)]
pub(crate) struct Silence {
    target: Duration,
    /// Before it is waited for now, and since when it is.
    waited: Duration,
    since: Option<Instant>,
    has_head: bool,
    // Made when it is first waited for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Silence {
    pub(crate) fn new(target: Duration, now: Instant) -> Self {
        Self {
            target,
            waited: Duration::ZERO,
            since: Some(now),
            has_head: false,
            timer: None,
        }
    }

    /// The head has come, as of `now`; what is behind it may lie there unread.
    pub(crate) fn head(&mut self, now: Instant) {
        self.waited = self.lasted(now);
        self.since = None;
        self.has_head = true;
        self.timer = None;
    }

    /// Ready when it has lasted for longer than the target.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Instant> {
        let since = *self.since.get_or_insert_with(Instant::now);
        let left = self.target.saturating_sub(self.waited) + Duration::from_millis(1);
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(since + left)));
        timer.as_mut().poll(cx).map(|()| Instant::now())
    }

    /// How long it has lasted, as far as anybody saw it.
    pub(crate) fn seen(&self, now: Instant) -> Duration {
        if self.has_head && self.timer.is_some() {
            // It has not run out, or that would have been told.
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
