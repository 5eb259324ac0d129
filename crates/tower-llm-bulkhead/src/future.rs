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
    BulkheadFull, BulkheadGuard,
    layer::Shared,
    permit::{Permit, ReleaseAt, Ticket},
};

pin_project! {
    /// Resolves when a permit was granted and the inner service has answered.
    ///
    /// Dropping it leaves the queue, or gives the permits back.
    pub struct ResponseFuture<S: Service<Req>, Req, W> {
        #[pin]
        state: State<S, Req, W, Guarded<S::Future, W, BulkheadGuard>, Guarded<Oneshot<S, Req>, W, BulkheadGuard>>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, Req, W, F, L> {
        // Boxed to keep the other states small.
        Refused { error: Option<Box<BulkheadFull>> },
        Waiting { waiter: Waiter, call: Option<Waiting<S, Req, W>> },
        // A permit was free: the readied service has been called.
        Running { #[pin] future: F },
        // A permit was granted later: a clone is readied and called.
        Late { #[pin] future: L },
    }
}

/// A call in the queue.
struct Waiter {
    ticket: Ticket,
    until: Instant,
    // Created by the first poll, because there is no runtime before. Boxed: only a call that waits has one.
    timer: Option<Pin<Box<Sleep>>>,
    max_wait: Duration,
    release_at: ReleaseAt,
}

/// What is called when a permit is granted.
struct Waiting<S, Req, W> {
    inner: S,
    request: Req,
    watch: W,
}

impl<S: Service<Req>, Req, W> ResponseFuture<S, Req, W> {
    pub(crate) fn refused(error: Box<BulkheadFull>) -> Self {
        let error = Some(error);
        Self {
            state: State::Refused { error },
        }
    }

    pub(crate) fn running(
        inner: S::Future,
        watch: W,
        call: Option<Call>,
        armed: Armed<BulkheadGuard>,
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
    type Output = Result<W::Out<BulkheadGuard>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProj::Refused { error } => {
                    let error = error.take().expect("polled after it was ready");
                    return Poll::Ready(Err(error));
                }
                StateProj::Waiting { waiter, call } => match ready!(waiter.poll(cx)) {
                    Ok(permit) => {
                        let call = call.take().expect("polled after it was ready");
                        let future = call.start(permit, waiter.release_at);
                        this.state.set(State::Late { future });
                    }
                    // This drops the ticket: the call leaves the queue before its caller gets the error.
                    Err(error) => this.state.set(State::Refused { error: Some(error) }),
                },
                StateProj::Running { future } => return future.poll(cx),
                StateProj::Late { future } => return future.poll(cx),
            }
        }
    }
}

impl Waiter {
    /// The permit comes first: if it is granted at the moment the wait ends, it is taken.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Permit, Box<BulkheadFull>>> {
        if let Poll::Ready(granted) = self.ticket.poll(cx.waker()) {
            return Poll::Ready(granted);
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
    fn start(self, permit: Permit, at: ReleaseAt) -> Guarded<Oneshot<S, Req>, W, BulkheadGuard> {
        let permit = permit.hold(at, self.request.call().as_deref());
        let call = self.request.call().map(Cow::into_owned);
        let inner = Oneshot::new(self.inner, self.request);
        Guarded::new(inner, self.watch, call, Armed::new(permit))
    }
}

impl<S: Service<Req>, Req, W> fmt::Debug for ResponseFuture<S, Req, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
