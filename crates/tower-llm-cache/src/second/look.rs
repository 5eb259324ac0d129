//! A flight that looks into Redis before it makes its call.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tower_llm_core::{Outcome, Usage};

use crate::{
    flight::{Drive, End, Step},
    replay::{Found, Replay},
};

type Looking = Pin<Box<dyn Future<Output = Option<Found>> + Send>>;

/// Brings what is found in Redis, or else what the upstream answers.
pub(crate) struct LookFirst {
    state: State,
    upstream: Pin<Box<dyn Drive>>,
}

enum State {
    Looking(Looking),
    Replaying(Replay),
    Calling,
}

impl LookFirst {
    pub(crate) fn new(looking: Looking, upstream: Pin<Box<dyn Drive>>) -> Self {
        Self {
            state: State::Looking(looking),
            upstream,
        }
    }
}

impl Drive for LookFirst {
    fn poll_step(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Step> {
        if let State::Looking(looking) = &mut self.state {
            match ready!(looking.as_mut().poll(cx)) {
                Some(found) => {
                    let (head, replay) = Replay::start(Usage::default(), found);
                    self.state = State::Replaying(replay);
                    return Poll::Ready(head);
                }
                None => self.state = State::Calling,
            }
        }
        let this = &mut *self;
        match &mut this.state {
            State::Replaying(replay) => replay.poll_step(cx),
            State::Looking(_) | State::Calling => this.upstream.as_mut().poll_step(cx),
        }
    }

    fn end(&self) -> Option<End> {
        match &self.state {
            State::Looking(_) => None,
            State::Replaying(replay) => replay.end(),
            State::Calling => self.upstream.end(),
        }
    }

    fn give_up(self: Pin<Box<Self>>) -> End {
        let this = *Pin::into_inner(self);
        match this.state {
            // Nothing was sent.
            State::Looking(_) => End::without_answer(Outcome::Refused),
            State::Replaying(replay) => replay.give_up(),
            State::Calling => this.upstream.give_up(),
        }
    }
}
