//! Answers that are past their time, instead of a failure or while a new one is fetched.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::StatusCode;
use tower_llm_core::Usage;

use crate::{
    flight::{Drive, End, Step},
    replay::{Found, Replay},
};

/// Brings what the upstream answers or, if it fails before its answer has begun, a stale answer.
pub(crate) struct OrStale {
    state: State,
    /// The estimate of the call's input.
    input_tokens: u64,
}

/// Looks for the stale answer.
type FindStale = Box<dyn FnOnce() -> Option<Found> + Send>;

enum State {
    // `None` once the answer has begun, or was the stale one.
    Calling(Pin<Box<dyn Drive>>, Option<FindStale>),
    Replaying(Replay),
}

impl OrStale {
    pub(crate) fn new(upstream: Pin<Box<dyn Drive>>, input_tokens: u64, stale: FindStale) -> Self {
        Self {
            state: State::Calling(upstream, Some(stale)),
            input_tokens,
        }
    }
}

impl Drive for OrStale {
    fn poll_step(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Step> {
        let (upstream, stale) = match &mut self.state {
            State::Calling(upstream, stale) => (upstream, stale),
            State::Replaying(replay) => return replay.poll_step(cx),
        };
        let step = ready!(upstream.as_mut().poll_step(cx));
        let has_failed = match &step {
            Step::Head(head) => is_failure(head.status),
            Step::Failed(..) => true,
            Step::Frame(_) | Step::End(_) => false,
        };
        let stale = stale.take().filter(|_| has_failed);
        let Some(stale) = stale.and_then(|find| find()) else {
            return Poll::Ready(step);
        };
        // It may have cost something all the same, such as the input of a call that timed out. A status of failure costs nothing.
        let cost = match &step {
            Step::Failed(_, completion) => completion.used(self.input_tokens),
            _ => Usage::default(),
        };
        let (head, replay) = Replay::start(cost, stale);
        self.state = State::Replaying(replay);
        Poll::Ready(head)
    }

    fn end(&self) -> Option<End> {
        match &self.state {
            State::Calling(upstream, _) => upstream.end(),
            State::Replaying(replay) => replay.end(),
        }
    }

    fn give_up(self: Pin<Box<Self>>) -> End {
        match Pin::into_inner(self).state {
            State::Calling(upstream, _) => upstream.give_up(),
            State::Replaying(replay) => replay.give_up(),
        }
    }
}

/// Whether another try may succeed.
fn is_failure(status: StatusCode) -> bool {
    const PASSING: [StatusCode; 2] = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
    status.is_server_error() || PASSING.contains(&status)
}
