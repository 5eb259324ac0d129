use std::{
    borrow::Cow,
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};
use tower_llm_core::{Armed, BoxError, Call, Described, Guarded, Oneshot, Watch};
use tower_service::Service;

use crate::{
    BulkheadFull, Place,
    layer::Shared,
    permit::{Permit, ReleaseAt, Ticket},
};

pin_project! {
    /// Answers when a place was found and the inner service has answered.
    ///
    /// Dropping it leaves the queue, or gives the place back.
    pub struct ResponseFuture<S: Service<Req>, Req, W> {
        #[pin]
        state: State<S, Req, W, Guarded<S::Future, W, Place>, Guarded<Oneshot<S, Req>, W, Place>>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, Req, W, F, L> {
        Refused { error: Option<BulkheadFull> },
        Waiting { waiter: Waiter, call: Option<Waiting<S, Req, W>> },
        // A place was free: the service that was readied has been called.
        Running { #[pin] future: F },
        // A place came later: a service of its own is readied and called.
        Late { #[pin] future: L },
    }
}

/// One in the queue.
struct Waiter {
    ticket: Ticket,
    until: Instant,
    // Made when it is first polled, for only then there is a runtime. Boxed: only a call that waits has one, and the
    // others need not be larger for it.
    timer: Option<Pin<Box<Sleep>>>,
    max_wait: Duration,
    release_at: ReleaseAt,
}

/// What is called when a place has come.
struct Waiting<S, Req, W> {
    inner: S,
    request: Req,
    watch: W,
}

impl<S: Service<Req>, Req, W> ResponseFuture<S, Req, W> {
    pub(crate) fn refused(error: BulkheadFull) -> Self {
        let error = Some(error);
        Self {
            state: State::Refused { error },
        }
    }

    pub(crate) fn running(
        inner: S::Future,
        watch: W,
        call: Option<Call>,
        armed: Armed<Place>,
    ) -> Self {
        let future = Guarded::new(inner, watch, call, armed);
        Self {
            state: State::Running { future },
        }
    }

    pub(crate) fn waiting(
        inner: S,
        request: Req,
        watch: W,
        shared: &Shared,
        ticket: Ticket,
    ) -> Self {
        Self {
            state: State::Waiting {
                waiter: Waiter {
                    ticket,
                    until: Instant::now() + shared.max_wait,
                    timer: None,
                    max_wait: shared.max_wait,
                    release_at: shared.release_at,
                },
                call: Some(Waiting {
                    inner,
                    request,
                    watch,
                }),
            },
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
    type Output = Result<W::Out<Place>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProj::Refused { error } => {
                    let error = error.take().expect("polled after it was ready");
                    return Poll::Ready(Err(error.into()));
                }
                StateProj::Waiting { waiter, call } => match ready!(waiter.poll(cx)) {
                    Ok(permit) => {
                        let call = call.take().expect("polled after it was ready");
                        let future = call.start(permit, waiter.release_at);
                        this.state.set(State::Late { future });
                    }
                    // The ticket goes with the state: out of the queue before the caller hears of it.
                    Err(error) => this.state.set(State::Refused { error: Some(error) }),
                },
                StateProj::Running { future } => return future.poll(cx),
                StateProj::Late { future } => return future.poll(cx),
            }
        }
    }
}

impl Waiter {
    /// The place comes first: one that is there when time is up is taken.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Permit, BulkheadFull>> {
        if let Poll::Ready(turn_came) = self.ticket.poll(cx.waker()) {
            return Poll::Ready(turn_came);
        }
        let until = self.until;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(self.ticket.refuse(self.max_wait)))
    }
}

impl<S: Service<Req>, Req: Described, W> Waiting<S, Req, W> {
    fn start(self, permit: Permit, at: ReleaseAt) -> Guarded<Oneshot<S, Req>, W, Place> {
        let place = permit.hold(at, self.request.call().as_deref());
        let call = self.request.call().map(Cow::into_owned);
        let inner = Oneshot::new(self.inner, self.request);
        Guarded::new(inner, self.watch, call, Armed::new(place))
    }
}

impl<S: Service<Req>, Req, W> fmt::Debug for ResponseFuture<S, Req, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
