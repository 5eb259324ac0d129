//! Places that are taken before the request is known.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use tower_layer::Layer;
use tower_llm_core::{Armed, BoxError, Described, Guarded, HttpBody, Keyed, Watch};
use tower_service::Service;

use crate::{
    Place, ReleaseAt,
    permit::{Admission, Permit, Ticket},
    places::{Places, Shared, Wanted},
};

/// Limits how many calls run at once, all together; decides in `poll_ready`.
///
/// For clients behind a balancer, which asks who is ready before it chooses. A service that is ready holds a place
/// until it is called or dropped, also while it idles: under a server, which readies a service for each connection
/// before there is a request, use [`BulkheadLayer`](crate::BulkheadLayer).
///
/// Services wait first come, first served. A service keeps its turn if polling it is given up, and loses it when it
/// is dropped. State is shared by all clones of a layer and all services it makes.
///
/// Made by [`BulkheadBuilder::build_reserve`](crate::BulkheadBuilder::build_reserve).
#[derive(Clone, Debug)]
pub struct ReserveLayer<W = HttpBody> {
    places: Shared,
    release_at: ReleaseAt,
    watch: W,
}

/// Limits how many calls run at once; see [`ReserveLayer`].
///
/// A clone has no place of its own until it is readied.
#[derive(Debug)]
pub struct Reserve<S, W> {
    inner: S,
    layer: ReserveLayer<W>,
    turn: Turn,
}

/// The inner service's future, holding its place.
pub type ReserveFuture<F, W> = Guarded<F, W, Place>;

#[derive(Debug)]
enum Turn {
    None,
    Waiting(Ticket),
    Come(Permit),
}

impl<W> ReserveLayer<W> {
    pub(crate) fn new(limit: usize, release_at: ReleaseAt, watch: W) -> Self {
        Self {
            places: Arc::new(Keyed::keyless(Places::new(limit))),
            release_at,
            watch,
        }
    }

    /// Calls that hold a place, and services that are ready.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.places.taken().0
    }
}

impl<S, W: Clone> Layer<S> for ReserveLayer<W> {
    type Service = Reserve<S, W>;

    fn layer(&self, inner: S) -> Reserve<S, W> {
        Reserve {
            inner,
            layer: self.clone(),
            turn: Turn::None,
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
    type Response = W::Out<Place>;
    type Error = BoxError;
    type Future = ReserveFuture<S::Future, W>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        ready!(self.turn.poll(&self.layer.places, cx));
        let ready = ready!(self.inner.poll_ready(cx)).map_err(Into::into);
        if ready.is_err() {
            // Nobody will call a service that has failed.
            self.turn = Turn::None;
        }
        Poll::Ready(ready)
    }

    /// # Panics
    ///
    /// If the service was not readied.
    fn call(&mut self, request: Req) -> Self::Future {
        let Turn::Come(permit) = std::mem::replace(&mut self.turn, Turn::None) else {
            panic!("poll_ready must be called first");
        };
        let call = self.layer.watch.keep(request.call().as_deref());
        let mut armed = Armed::new(permit.hold(self.layer.release_at, request.call().as_deref()));
        let inner = armed.enter(|| self.inner.call(request));
        Guarded::new(inner, self.layer.watch.clone(), call, armed)
    }
}

impl Turn {
    fn take(places: Shared, cx: &mut Context<'_>) -> Self {
        let wanted = Wanted::default();
        let places = match Permit::try_acquire(places, wanted.weight) {
            Ok(permit) => return Self::Come(permit),
            Err(places) => places,
        };
        match Ticket::join(places, wanted, usize::MAX, cx.waker()) {
            Admission::Admitted(permit) => Self::Come(permit),
            Admission::Waiting(ticket) => Self::Waiting(ticket),
            Admission::Full(_) => unreachable!("no queue is that long"),
        }
    }

    fn poll(&mut self, places: &Shared, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            *self = match self {
                Self::None => Self::take(Arc::clone(places), cx),
                Self::Waiting(ticket) => match ready!(ticket.poll(cx.waker())) {
                    Ok(permit) => Self::Come(permit),
                    Err(_) => unreachable!("no queue is that long"),
                },
                Self::Come(_) => return Poll::Ready(()),
            };
        }
    }
}
