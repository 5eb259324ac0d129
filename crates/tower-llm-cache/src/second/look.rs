//! A flight that looks into Redis before it makes its call.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::Response;
use http_body::Body;
use tower_llm_core::{Completion, Outcome};

use crate::{
    body::CacheBody,
    flight::{Drive, End, Step},
};

/// The answer that was found; its body is never one that passed, so its type does not matter.
pub(crate) type Found = Response<CacheBody<String>>;
type Looking = Pin<Box<dyn Future<Output = Option<Found>> + Send>>;

/// Brings what is found in Redis, or else what the upstream answers.
pub(crate) struct LookFirst {
    state: State,
    upstream: Pin<Box<dyn Drive>>,
}

enum State {
    Looking(Looking),
    Replaying(CacheBody<String>),
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
                    let (parts, body) = found.into_parts();
                    self.state = State::Replaying(body);
                    return Poll::Ready(Step::Head(Box::new(parts)));
                }
                None => self.state = State::Calling,
            }
        }
        let this = &mut *self;
        let State::Replaying(body) = &mut this.state else {
            return this.upstream.as_mut().poll_step(cx);
        };
        Poll::Ready(match ready!(Pin::new(body).poll_frame(cx)) {
            Some(Ok(frame)) => Step::Frame(frame),
            Some(Err(error)) => Step::Failed(error),
            None => Step::End(end_of_replay()),
        })
    }

    fn end(&self) -> Option<End> {
        match &self.state {
            State::Looking(_) => None,
            State::Replaying(body) => body.is_end_stream().then(end_of_replay),
            State::Calling => self.upstream.end(),
        }
    }

    fn give_up(self: Pin<Box<Self>>) -> Option<End> {
        let this = *Pin::into_inner(self);
        match this.state {
            State::Looking(_) | State::Replaying(_) => None,
            State::Calling => this.upstream.give_up(),
        }
    }
}

/// It says nothing of the answer, which is not recorded again.
fn end_of_replay() -> End {
    End {
        completion: Completion::new(Outcome::Success),
        is_event_stream: false,
    }
}
