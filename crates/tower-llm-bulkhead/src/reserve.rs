//! Permits that are taken before the request is known.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use tower_layer::Layer;
use tower_llm_core::{Armed, BoxError, Described, Guarded, HttpBody, Keyed, Watch};
use tower_service::Service;

use crate::{
    BulkheadGuard, ReleaseAt,
    permit::Permit,
    permits::{Permits, SharedPermits, Wanted},
    ticket::{Entered, Ticket},
};

/// Limits how many calls run at once, with one limit for all; decides in `poll_ready`.
///
/// For clients behind a balancer, which chooses among the services that are ready. A ready service holds a permit until it
/// is called or dropped, even while it is idle. A server readies a service for each connection before there is a request,
/// so use [`BulkheadLayer`](crate::BulkheadLayer) there.
///
/// Services are served in the order in which they began to wait. A service keeps its position if it is no longer polled, and
/// loses it when it is dropped. State is shared by all clones of a layer and all services it makes.
///
/// Made by [`BulkheadBuilder::build_reserve`](crate::BulkheadBuilder::build_reserve).
#[derive(Clone, Debug)]
pub struct ReserveLayer<W = HttpBody> {
    permits: SharedPermits,
    release_at: ReleaseAt,
    watch: W,
}

/// Limits how many calls run at once; see [`ReserveLayer`].
///
/// A clone holds no permit until it is readied.
#[derive(Debug)]
pub struct Reserve<S, W> {
    inner: S,
    layer: ReserveLayer<W>,
    reservation: Reservation,
}

/// The inner service's future, with its permit.
pub type ReserveFuture<F, W> = Guarded<F, W, BulkheadGuard>;

#[derive(Debug)]
enum Reservation {
    None,
    Waiting(Ticket),
    Held(Permit),
}

impl<W> ReserveLayer<W> {
    pub(crate) fn new(limit: usize, release_at: ReleaseAt, watch: W) -> Self {
        Self {
            permits: Arc::new(Keyed::keyless(Permits::new(limit))),
            release_at,
            watch,
        }
    }

    /// Permits in use: calls that run, and services that are ready.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.permits.in_use().0
    }
}

impl<S, W: Clone> Layer<S> for ReserveLayer<W> {
    type Service = Reserve<S, W>;

    fn layer(&self, inner: S) -> Reserve<S, W> {
        Reserve {
            inner,
            layer: self.clone(),
            reservation: Reservation::None,
        }
    }
}

impl<S: Clone, W: Clone> Clone for Reserve<S, W> {
    fn clone(&self) -> Self {
        self.layer.layer(self.inner.clone())
    }
}

impl<S, W, Req> Service<Req> for Reserve<S, W>
where
    S: Service<Req>,
    S::Error: Into<BoxError>,
    Req: Described,
    W: Watch<S::Response>,
{
    type Response = W::Out<BulkheadGuard>;
    type Error = BoxError;
    type Future = ReserveFuture<S::Future, W>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        ready!(self.reservation.poll(&self.layer.permits, cx));
        let ready = ready!(self.inner.poll_ready(cx)).map_err(Into::into);
        if ready.is_err() {
            // A service that has failed is not called again.
            self.reservation = Reservation::None;
        }
        Poll::Ready(ready)
    }

    /// # Panics
    ///
    /// If the service was not readied.
    fn call(&mut self, request: Req) -> Self::Future {
        let Reservation::Held(permit) = std::mem::replace(&mut self.reservation, Reservation::None)
        else {
            panic!("poll_ready must be called first");
        };
        let call = self.layer.watch.keep(request.call().as_deref());
        let mut armed = Armed::new(permit.hold(self.layer.release_at, request.call().as_deref()));
        let inner = armed.enter(|| self.inner.call(request));
        Guarded::new(inner, self.layer.watch.clone(), call, armed)
    }
}

impl Reservation {
    fn take(permits: SharedPermits, cx: &mut Context<'_>) -> Self {
        let wanted = Wanted::default();
        let permits = match Permit::try_acquire(permits, wanted.weight) {
            Ok(permit) => return Self::Held(permit),
            Err(permits) => permits,
        };
        match Ticket::join(permits, wanted, cx.waker()) {
            Entered::Admitted(permit) => Self::Held(permit),
            Entered::Waiting(ticket) => Self::Waiting(ticket),
            Entered::Full(_) => unreachable!("no queue is that long"),
        }
    }

    fn poll(&mut self, permits: &SharedPermits, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            *self = match self {
                Self::None => Self::take(Arc::clone(permits), cx),
                Self::Waiting(ticket) => match ready!(ticket.poll(cx.waker())) {
                    Ok(permit) => Self::Held(permit),
                    Err(_) => unreachable!("no queue is that long"),
                },
                Self::Held(_) => return Poll::Ready(()),
            };
        }
    }
}
