use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_llm_core::{Answer, BoxError, Oneshot, Served, Unsent};
use tower_service::Service;

use crate::{error::FlightFailed, flight::Participant, memory::Value};

pin_project! {
    /// Resolves with a stored response, with that of a call in flight, or with the inner service's.
    pub struct ClonedFuture<S, Req>
    where
        S: Service<Req>,
    {
        #[pin]
        state: State<Oneshot<S, Req>, S::Response>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, R> {
        // `None` once it was handed out.
        Hit { response: Option<(R, Unsent)> },
        Passing { #[pin] future: F },
        // Both are `None` once the response was handed out.
        Flying { participant: Option<Participant>, value: Option<Value> },
    }
}

impl<S: Service<Req>, Req> ClonedFuture<S, Req> {
    pub(super) fn hit(response: S::Response) -> Self {
        let response = Some((response, Unsent::new()));
        Self {
            state: State::Hit { response },
        }
    }

    pub(super) fn passing(future: Oneshot<S, Req>) -> Self {
        Self {
            state: State::Passing { future },
        }
    }

    pub(super) fn flying(participant: Participant) -> Self {
        Self {
            state: State::Flying {
                participant: Some(participant),
                value: None,
            },
        }
    }
}

impl<S, Req> Future for ClonedFuture<S, Req>
where
    S: Service<Req>,
    S::Response: Clone + 'static,
    S::Error: Into<BoxError>,
{
    type Output = Result<Answer<S::Response>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match self.project().state.project() {
            StateProj::Hit { response } => {
                let (response, _unsent) = response.take().expect("polled after it was ready");
                Ok(Answer::new(response, Some(Served::Hit)))
            }
            StateProj::Passing { future } => {
                let response = ready!(future.poll(cx)).map_err(Into::into)?;
                Ok(Answer::new(response, None))
            }
            StateProj::Flying { participant, value } => {
                let flying = participant.as_mut().expect("polled after it was ready");
                if value.is_none() {
                    *value = ready!(flying.poll_head(cx))?.value;
                }
                // There are no frames. At the end it is decided which caller pays.
                let _end = ready!(flying.poll_frame(cx));
                let served = (!flying.pays_for_response()).then_some(Served::Follower);
                *participant = None;
                let value = value.take();
                let response = value.as_deref().and_then(|value| value.downcast_ref());
                match response.cloned() {
                    Some(response) => Ok(Answer::new(response, served)),
                    // Another type of the same name.
                    None => Err(FlightFailed::no_answer().into()),
                }
            }
        })
    }
}

impl<S: Service<Req>, Req> fmt::Debug for ClonedFuture<S, Req> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClonedFuture").finish_non_exhaustive()
    }
}
