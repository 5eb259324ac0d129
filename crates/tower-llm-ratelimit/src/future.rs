use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_llm_core::{Armed, BoxError, Call, Described, Guarded, Unsent, Watch};
use tower_service::Service;

use crate::{reservation::Reservation, waiting::Waiting};

pin_project! {
    /// Resolves when the limits have admitted the call and the inner service has answered.
    ///
    /// Dropping it leaves the queue, or settles what was reserved.
    pub struct ResponseFuture<S: Service<Req>, Req, W> {
        #[pin]
        state: State<S, Req, W, Guarded<S::Future, W, Reservation>>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, Req, W, F> {
        Refused { error: Option<BoxError> },
        // Boxed to keep calls that do not wait small.
        Waiting { waiting: Box<Waiting>, call: Option<NotSent<S, Req, W>> },
        // Admitted after a wait: a service of its own is readied. Nothing was sent yet, so dropping it refunds everything.
        Readying { call: Option<NotSent<S, Req, W>>, reservation: Option<Reservation> },
        Running { #[pin] future: F },
    }
}

/// A call that waits, and the service for it.
struct NotSent<S, Req, W> {
    inner: S,
    request: Req,
    watch: W,
    /// A drop while it waits reports that it was not sent, so outer layers refund it too.
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

    pub(crate) fn waiting(waiting: Box<Waiting>, inner: S, request: Req, watch: W) -> Self {
        let call = Some(NotSent {
            inner,
            request,
            watch,
            _unsent: Unsent::new(),
        });
        Self {
            state: State::Waiting { waiting, call },
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
                StateProj::Waiting { waiting, call } => {
                    let request = &call.as_ref().expect("it was not taken yet").request;
                    match ready!(waiting.poll(cx, request)) {
                        Ok(reservation) => {
                            let call = call.take();
                            let reservation = Some(reservation);
                            this.state.set(State::Readying { call, reservation });
                        }
                        Err(error) => {
                            let error = Some(error);
                            this.state.set(State::Refused { error });
                        }
                    }
                }
                StateProj::Readying { call, reservation } => {
                    let not_sent = call.as_mut().expect("polled after it was ready");
                    let is_ready = ready!(not_sent.inner.poll_ready(cx));
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

impl<S, Req, W> NotSent<S, Req, W>
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
