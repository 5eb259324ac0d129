use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_llm_core::{BoxError, Oneshot, Unsent};
use tower_service::Service;

use crate::{
    body::CacheBody,
    headers::{Did, StatusHeader, Why},
    items::{Begun, Gather, Gathered},
    key::Bypass,
    shared::Boarded,
};

pin_project! {
    /// Resolves with a stored answer, with that of a call in flight, or with the inner service's.
    pub struct ResponseFuture<S, ReqB, ResB>
    where
        S: Service<Request<ReqB>>,
    {
        #[pin]
        state: State<Oneshot<S, Request<ReqB>>, ResB>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, B> {
        // `None` once it was handed out.
        Known { known: Option<Known<B>> },
        Looking { future: Looking<B> },
        LookingForItems { future: LookingForItems<F, B> },
        Passing { #[pin] future: F, status: StatusHeader, reason: Bypass },
        // `None` once the response headers were handed out.
        Flying { boarded: Option<Boarded> },
        Gathering { gather: Box<Gather> },
    }
}

impl<F, B> State<F, B> {
    fn gathered(result: Result<Gathered, BoxError>) -> Self {
        let result = match result {
            Ok(Gathered::Flying(boarded)) => {
                let boarded = Some(boarded);
                return Self::Flying { boarded };
            }
            Ok(Gathered::Answer(response)) => {
                Ok(response.map(|frames| CacheBody::converted(frames, Duration::ZERO)))
            }
            Err(error) => Err(error),
        };
        Self::known(result)
    }

    fn known(result: Result<Response<CacheBody<B>>, BoxError>) -> Self {
        let unsent = Unsent::new();
        Self::Known {
            known: Some((result, unsent)),
        }
    }
}

/// What a call came to without a call of its own: it has cost nothing if it is dropped before it is handed out.
type Known<B> = (Result<Response<CacheBody<B>>, BoxError>, Unsent);

/// Looks for an answer outside of this process.
type Looking<B> = Pin<Box<dyn Future<Output = Result<Response<CacheBody<B>>, BoxError>> + Send>>;

/// Looks for the items of a batch outside of this process, and then begins.
type LookingForItems<F, B> = Pin<Box<dyn Future<Output = State<F, B>> + Send>>;

impl<S, ReqB, ResB> ResponseFuture<S, ReqB, ResB>
where
    S: Service<Request<ReqB>>,
{
    pub(crate) fn known(result: Result<Response<CacheBody<ResB>>, BoxError>) -> Self {
        Self {
            state: State::known(result),
        }
    }

    #[cfg_attr(
        not(feature = "redis"),
        expect(dead_code, reason = "only Redis is outside")
    )]
    pub(crate) fn looking(future: Looking<ResB>) -> Self {
        Self {
            state: State::Looking { future },
        }
    }

    #[cfg(feature = "redis")]
    pub(crate) fn looking_for_items(future: impl Future<Output = Self> + Send + 'static) -> Self
    where
        S: 'static,
        ReqB: 'static,
        ResB: 'static,
    {
        let unsent = Unsent::new();
        let future = Box::pin(async move {
            let begun = future.await;
            drop(unsent);
            begun.state
        });
        Self {
            state: State::LookingForItems { future },
        }
    }

    pub(crate) fn passing(
        future: Oneshot<S, Request<ReqB>>,
        status: StatusHeader,
        reason: Bypass,
    ) -> Self {
        Self {
            state: State::Passing {
                future,
                status,
                reason,
            },
        }
    }

    pub(crate) fn begun(begun: Begun) -> Self {
        match begun {
            Begun::Ready(result) => Self {
                state: State::gathered(result),
            },
            Begun::Gathering(gather) => Self {
                state: State::Gathering { gather },
            },
        }
    }

    pub(crate) fn flying(boarded: Boarded) -> Self {
        let boarded = Some(boarded);
        Self {
            state: State::Flying { boarded },
        }
    }
}

impl<S, ReqB, ResB> Future for ResponseFuture<S, ReqB, ResB>
where
    S: Service<Request<ReqB>, Response = Response<ResB>>,
    S::Error: Into<BoxError>,
{
    type Output = Result<Response<CacheBody<ResB>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let StateProj::LookingForItems { future } = this.state.as_mut().project() {
            let next = ready!(future.as_mut().poll(cx));
            this.state.set(next);
        }
        if let StateProj::Gathering { gather } = this.state.as_mut().project() {
            let gathered = ready!(gather.poll(cx));
            this.state.set(State::gathered(gathered));
        }
        Poll::Ready(match this.state.project() {
            StateProj::Known { known } => {
                let (result, _unsent) = known.take().expect("polled after it was ready");
                result
            }
            StateProj::Looking { future } => ready!(future.as_mut().poll(cx)),
            StateProj::Passing {
                future,
                status,
                reason,
            } => {
                let response = ready!(future.poll(cx)).map_err(Into::into)?;
                let mut response = response.map(CacheBody::passed);
                let did = Did::Forwarded(Why::Bypass(*reason));
                status.write(did, None, response.headers_mut());
                Ok(response)
            }
            StateProj::Flying { boarded } => {
                let waiting = boarded.as_mut().expect("polled after it was ready");
                let head = ready!(waiting.participant.poll_head(cx));
                let boarded = boarded.take().expect("it was polled just now");
                head.and_then(|head| boarded.response(head))
            }
            StateProj::LookingForItems { .. } | StateProj::Gathering { .. } => {
                unreachable!("both were left just now")
            }
        })
    }
}

impl<S, ReqB, ResB> fmt::Debug for ResponseFuture<S, ReqB, ResB>
where
    S: Service<Request<ReqB>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
