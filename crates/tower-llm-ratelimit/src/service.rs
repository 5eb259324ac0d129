use std::{
    sync::Arc,
    task::{Context, Poll},
};

use tokio::time::Instant;
use tower_llm_core::{Armed, BoxError, Described, Watch};
use tower_service::Service;

use crate::{
    ResponseFuture,
    engine::{Check, Engine, Turns},
    queue::Waiting,
    reservation::Reservation,
};

/// Limits how many requests and tokens are let through; see [`RateLimitLayer`](crate::RateLimitLayer).
#[derive(Clone, Debug)]
pub struct RateLimit<S, W> {
    inner: S,
    engine: Arc<Engine>,
    watch: W,
}

/// What becomes of a call.
enum Decision {
    Admitted(Reservation),
    Waits(Waiting),
    Refused(BoxError),
}

impl<S, W> RateLimit<S, W> {
    pub(crate) fn new(inner: S, engine: Arc<Engine>, watch: W) -> Self {
        Self {
            inner,
            engine,
            watch,
        }
    }

    fn decide(&self, request: &dyn Described) -> Decision {
        let demand = match self.engine.demand(request) {
            Ok(demand) => demand,
            Err(never) => return Decision::Refused(never.into()),
        };
        let keys = self.engine.keys(request);
        let now = Instant::now();
        let shared = self.engine.policy.shared.as_ref();
        let check = match shared {
            None => Check::All,
            Some(shared) if shared.lease.is_some() => Check::Leases,
            Some(_) => return Decision::Waits(Waiting::for_store(&self.engine, keys, demand, now)),
        };
        match self
            .engine
            .admit(&keys, &demand, now, Turns::default(), check)
        {
            Ok(charge) => Decision::Admitted(Reservation::new(keys, demand, charge)),
            Err(_) if shared.is_some() => {
                Decision::Waits(Waiting::for_store(&self.engine, keys, demand, now))
            }
            Err(blocked) => match Waiting::in_line(&self.engine, keys, demand, &blocked, now) {
                Ok(waiting) => Decision::Waits(waiting),
                Err(refused) => Decision::Refused(refused.into()),
            },
        }
    }

    /// Gives up what the inner service was readied with: a call that need not wait may want it.
    fn unready(&mut self)
    where
        S: Clone,
    {
        self.inner = self.inner.clone();
    }
}

impl<S, W, Req> Service<Req> for RateLimit<S, W>
where
    S: Service<Req> + Clone,
    S::Error: Into<BoxError>,
    Req: Described,
    W: Watch<S::Response>,
{
    type Response = W::Out<Reservation>;
    type Error = BoxError;
    type Future = ResponseFuture<S, Req, W>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        match self.decide(&request) {
            Decision::Admitted(reservation) => {
                let call = self.watch.keep(request.call().as_deref());
                let mut armed = Armed::new(reservation);
                let inner = armed.enter(|| self.inner.call(request));
                ResponseFuture::running(inner, self.watch.clone(), call, armed)
            }
            Decision::Waits(waiting) => {
                self.unready();
                let admission = Box::pin(waiting.admitted());
                ResponseFuture::waiting(admission, self.inner.clone(), request, self.watch.clone())
            }
            Decision::Refused(error) => {
                self.unready();
                ResponseFuture::refused(error)
            }
        }
    }
}
