//! The call that a flight makes.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;
use tower_llm_core::{
    BoxError, Call, Completion, Dialect, Failure, Guard, HttpBody, Outcome, Watch, Watched,
};

use crate::flight::{Drive, End, Step};

pin_project! {
    /// The inner service's future, and then its response's body, read for the verdict.
    pub(crate) struct Upstream<F, B> {
        #[pin]
        state: State<F, B>,
        call: Call,
        verdict: Verdict,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, B> {
        Calling { #[pin] future: F },
        Reading { #[pin] body: Watched<B, Verdict> },
    }
}

/// Keeps how the call has ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict(Arc<OnceLock<Completion>>);

impl Guard for Verdict {
    fn end(&mut self, completion: &Completion) {
        // A guard ends once.
        let _ = self.0.set(completion.clone());
    }
}

impl Verdict {
    pub(crate) fn outcome(&self) -> Option<Outcome> {
        self.0.get().map(|completion| completion.outcome)
    }

    fn completion(&self) -> Completion {
        let completion = self.0.get().cloned();
        completion.unwrap_or_else(|| {
            // Not reached: the end of the body ends its guard.
            Completion::new(Outcome::Failed(Failure::Truncated))
        })
    }

    fn as_end(&self, is_event_stream: bool) -> End {
        End {
            completion: self.completion(),
            is_certain: true,
            is_event_stream,
        }
    }
}

impl<F, B> Upstream<F, B> {
    pub(crate) fn new(future: F, call: Call) -> Self {
        Self {
            state: State::Calling { future },
            call,
            verdict: Verdict::default(),
        }
    }
}

impl<F, B, E> Drive for Upstream<F, B>
where
    F: Future<Output = Result<Response<B>, E>> + Send,
    E: Into<BoxError>,
    B: Body<Data = Bytes> + Send,
    B::Error: Into<BoxError>,
{
    fn poll_step(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Step> {
        let mut this = self.project();
        Poll::Ready(match this.state.as_mut().project() {
            StateProj::Calling { future } => match ready!(future.poll(cx)) {
                Ok(response) => {
                    let guard = this.verdict.clone();
                    let response = HttpBody.watch(Some(this.call), response, guard);
                    let (parts, body) = response.into_parts();
                    this.state.set(State::Reading { body });
                    Step::Head(Box::new(parts))
                }
                Err(error) => {
                    let error = error.into();
                    let completion = Completion::of_error(&*error);
                    Step::Failed(error, completion)
                }
            },
            StateProj::Reading { mut body } => match ready!(body.as_mut().poll_frame(cx)) {
                Some(Ok(frame)) => Step::Frame(frame),
                Some(Err(error)) => Step::Failed(error, this.verdict.completion()),
                None => Step::End(this.verdict.as_end(body.is_event_stream())),
            },
        })
    }

    fn end(&self) -> Option<End> {
        match &self.state {
            State::Reading { body } if body.is_end_stream() => {
                Some(self.verdict.as_end(body.is_event_stream()))
            }
            _ => None,
        }
    }

    fn give_up(self: Pin<Box<Self>>) -> End {
        let State::Reading { body } = &self.state else {
            return End::dropped(|| drop(self));
        };
        // Its streams have no terminal marker: a candidate that has not begun may have been about to.
        let is_certain = self.call.dialect() != Some(Dialect::Gemini);
        let is_event_stream = body.is_event_stream();
        let verdict = self.verdict.clone();
        // A body that is dropped ends its guard.
        drop(self);
        End {
            is_certain,
            ..verdict.as_end(is_event_stream)
        }
    }
}
