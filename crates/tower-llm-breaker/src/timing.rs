//! How long a call waits for content; only if there are settings for slow calls.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};
use tower_llm_core::{Failure, Outcome};

use crate::SlowCalls;

/// Only silence of the upstream counts: the time to the response headers, and then the time in which the body was polled
/// and was pending. How long content waited for its reader cannot be known.
#[derive(Debug)]
pub(crate) struct Timing {
    slow: SlowCalls,
    streamed: bool,
    has_first_token: bool,
    content_seen: Option<u64>,
    /// Time waited since the last content before the current wait, which began at `waiting_since`.
    waited: Duration,
    waiting_since: Option<Instant>,
    is_slow: bool,
    /// Created with the first wait.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Timing {
    /// A call that is admitted at `now`.
    pub(crate) fn new(slow: SlowCalls, streamed: bool, now: Instant) -> Self {
        Self {
            slow,
            streamed,
            has_first_token: false,
            content_seen: None,
            waited: Duration::ZERO,
            waiting_since: Some(now),
            is_slow: false,
            timer: None,
        }
    }

    pub(crate) fn is_slow(&self) -> bool {
        self.is_slow
    }

    /// The response headers have arrived; returns whether the call has become slow with that.
    pub(crate) fn response_headers(&mut self, now: Instant) -> bool {
        // There was nothing to read until here: the upstream alone was the cause.
        self.pause(now);
        let is_late = self.limit().is_some_and(|limit| self.waited >= limit);
        let has_become_slow = is_late && !self.is_slow;
        self.is_slow |= is_late;
        has_become_slow
    }

    pub(crate) fn first_token(&mut self) {
        self.streamed = true;
        self.has_first_token = true;
        self.content_came();
    }

    /// A frame has passed, with so much content so far.
    pub(crate) fn frame(&mut self, seen: Option<u64>) {
        // If the body cannot be read, all of it may be content.
        let is_content = seen.is_none() || self.has_first_token && self.content_seen != seen;
        if is_content {
            self.content_seen = seen;
            self.content_came();
        } else {
            self.pause(Instant::now());
        }
    }

    /// Waits for content, and has the task woken when that takes too long; returns when the call has become slow.
    pub(crate) fn poll_slow(&mut self, cx: &mut Context<'_>) -> Poll<Instant> {
        let since = *self.waiting_since.get_or_insert_with(Instant::now);
        let Some(limit) = self.limit().filter(|_| !self.is_slow) else {
            return Poll::Pending;
        };
        let at = since + limit.saturating_sub(self.waited);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        if timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.is_slow = true;
        Poll::Ready(Instant::now())
    }

    /// The call has ended; returns whether it was slow, if that is to be counted now.
    ///
    /// A timer counts a slow call even if its caller disconnects. If calls that are dropped after their first token did not
    /// count, a few slow ones would look like many.
    pub(crate) fn ended(&mut self, outcome: Outcome) -> Option<bool> {
        if self.is_slow {
            return None;
        }
        match outcome {
            // A deadline cut a stream that showed signs of life: it was slow, whatever the settings.
            Outcome::Failed(Failure::Slow) => {
                self.is_slow = true;
                Some(true)
            }
            Outcome::Success => Some(false),
            Outcome::Abandoned | Outcome::Superseded => self.has_first_token.then_some(false),
            _ => None,
        }
    }

    /// The wait for content after which the call is slow.
    fn limit(&self) -> Option<Duration> {
        match (self.streamed, self.has_first_token) {
            (false, _) => self.slow.total,
            (true, false) => self.slow.first_token,
            (true, true) => self.slow.gap,
        }
    }

    /// The wait pauses until the body is polled again.
    fn pause(&mut self, now: Instant) {
        if let Some(since) = self.waiting_since.take() {
            self.waited += now.saturating_duration_since(since);
        }
    }

    fn content_came(&mut self) {
        self.waited = Duration::ZERO;
        self.waiting_since = None;
    }
}
