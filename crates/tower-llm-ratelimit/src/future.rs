use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_llm_core::{Armed, BoxError, Call, Described, Guarded, Unsent, Watch};
use tower_service::Service;

use crate::{RateLimited, reservation::Reservation};

/// Answers with what a call that waits has taken. Boxed: calls that need not wait are no larger for it.
pub(crate) type Admission = Pin<Box<dyn Future<Output = Result<Reservation, RateLimited>> + Send>>;

pin_project! {
    /// Answers when the limits have let the call through and the inner service has answered.
    ///
    /// Dropping it leaves the queue, or settles what was taken.
    pub struct ResponseFuture<S: Service<Req>, Req, W> {
        #[pin]
        state: State<S, Req, W, Guarded<S::Future, W, Reservation>>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, Req, W, F> {
        Refused { error: Option<BoxError> },
        Waiting { admission: Admission, call: Option<Waiting<S, Req, W>> },
        // There was room later: a service of its own is readied. Nothing was sent yet, so that who leaves gets all back.
        Readying { call: Option<Waiting<S, Req, W>>, reservation: Option<Reservation> },
        Running { #[pin] future: F },
    }
}

/// What is called when there is room.
struct Waiting<S, Req, W> {
    inner: S,
    request: Req,
    watch: W,
    /// Dropped before there was room, the call was not sent: the layers around refund it too.
    _unsent: Unsent,
}

impl<S: Service<Req>, Req, W> ResponseFuture<S, Req, W> {
    pub(crate) fn refused(error: BoxError) -> Self {
        let error = Some(error);
        Self {
            state: State::Refused { error },
        }
    }

    pub(crate) fn running(
        inner: S::Future,
        watch: W,
        call: Option<Call>,
        armed: Armed<Reservation>,
    ) -> Self {
        let future = Guarded::new(inner, watch, call, armed);
        Self {
            state: State::Running { future },
        }
    }

    pub(crate) fn waiting(admission: Admission, inner: S, request: Req, watch: W) -> Self {
        let call = Some(Waiting {
            inner,
            request,
            watch,
            _unsent: Unsent::new(),
        });
        Self {
            state: State::Waiting { admission, call },
        }
    }
}

impl<S, Req, W> Future for ResponseFuture<S, Req, W>
where
    S: Service<Req>,
    S::Error: Into<BoxError>,
    Req: Described,
    W: Watch<S::Response>,
{
    type Output = Result<W::Out<Reservation>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProj::Refused { error } => {
                    let error = error.take().expect("polled after it was ready");
                    return Poll::Ready(Err(error));
                }
                StateProj::Waiting { admission, call } => match ready!(admission.as_mut().poll(cx))
                {
                    Ok(reservation) => {
                        let call = call.take();
                        let reservation = Some(reservation);
                        this.state.set(State::Readying { call, reservation });
                    }
                    Err(error) => {
                        let error = Some(error.into());
                        this.state.set(State::Refused { error });
                    }
                },
                StateProj::Readying { call, reservation } => {
                    let waiting = call.as_mut().expect("polled after it was ready");
                    let is_ready = ready!(waiting.inner.poll_ready(cx));
                    let both = call.take().zip(reservation.take());
                    let (call, reservation) = both.expect("they were not taken yet");
                    if let Err(error) = is_ready {
                        return Poll::Ready(Err(error.into()));
                    }
                    let future = call.start(reservation);
                    this.state.set(State::Running { future });
                }
                StateProj::Running { future } => return future.poll(cx),
            }
        }
    }
}

impl<S, Req, W> Waiting<S, Req, W>
where
    S: Service<Req>,
    Req: Described,
    W: Watch<S::Response>,
{
    /// Calls the service, which is ready.
    fn start(mut self, reservation: Reservation) -> Guarded<S::Future, W, Reservation> {
        let call = self.watch.keep(self.request.call().as_deref());
        let mut armed = Armed::new(reservation);
        let inner = armed.enter(|| self.inner.call(self.request));
        Guarded::new(inner, self.watch, call, armed)
    }
}

impl<S: Service<Req>, Req, W> fmt::Debug for ResponseFuture<S, Req, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
