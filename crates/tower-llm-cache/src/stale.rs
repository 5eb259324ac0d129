//! Answers that are past their time, instead of a failure or while a new one is fetched.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::StatusCode;
use tower_llm_core::Outcome;

use crate::{
    flight::{Drive, End, Step},
    replay::{Found, Replay},
};

/// Brings what the upstream answers or, if it fails before its answer has begun, a stale answer.
pub(crate) struct OrStale {
    state: State,
}

/// Looks for the stale answer.
type FindStale = Box<dyn FnOnce() -> Option<Found> + Send>;

enum State {
    // `None` once the answer has begun, or was the stale one.
    Calling(Pin<Box<dyn Drive>>, Option<FindStale>),
    Replaying(Replay),
}

impl OrStale {
    pub(crate) fn new(upstream: Pin<Box<dyn Drive>>, stale: FindStale) -> Self {
        Self {
            state: State::Calling(upstream, Some(stale)),
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
        match stale.and_then(|find| find()) {
            Some(stale) => {
                let (head, replay) = Replay::start(stale);
                self.state = State::Replaying(replay);
                Poll::Ready(head)
            }
            None => Poll::Ready(step),
        }
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
            State::Replaying(_) => End::without_answer(Outcome::Abandoned),
        }
    }
}

/// Whether another try may succeed.
fn is_failure(status: StatusCode) -> bool {
    const PASSING: [StatusCode; 2] = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
    status.is_server_error() || PASSING.contains(&status)
}
