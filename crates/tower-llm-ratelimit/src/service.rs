use std::{
    sync::Arc,
    task::{Context, Poll},
};

use tokio::time::Instant;
use tower_llm_core::{Armed, BoxError, Described, Watch};
use tower_service::Service;

use crate::{
    ResponseFuture,
    blocked::Turns,
    demand::Demand,
    engine::{Check, Engine},
    key_state::KeyStates,
    reservation::Reservation,
    waiting::{self, Waiting},
};

/// Limits requests and tokens per period; see [`RateLimitLayer`](crate::RateLimitLayer).
#[derive(Clone, Debug)]
pub struct RateLimit<S, W> {
    inner: S,
    engine: Arc<Engine>,
    watch: W,
}

/// The decision on a call.
enum Decision {
    Admitted(Reservation),
    Waits(Box<Waiting>),
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

    fn decide(&self, request: &dyn Described, reports_usage: bool) -> Decision {
        let mut demand = match self.engine.demand(request, reports_usage) {
            Ok(demand) => demand,
            Err(never) => return Decision::Refused(never.into()),
        };
        let keys = self.engine.keys(request);
        let now = Instant::now();
        let shared = self.engine.policy.shared.as_ref();
        let check = match shared {
            None => Check::All,
            Some(shared) if shared.lease.is_some() => Check::Leases,
            Some(_) => return self.ask_store(keys, demand, reports_usage, now),
        };
        let admit = |demand: &Demand| {
            self.engine
                .admit(&keys, demand, now, Turns::default(), check)
        };
        let mut admitted = admit(&demand);
        if admitted.is_err() && shared.is_none() {
            // What is ahead of it depends on its caller, which is read only if something blocks the call.
            demand.caller = waiting::caller(request);
            admitted = admit(&demand);
        }
        match admitted {
            Ok(charge) => Decision::Admitted(Reservation::new(keys, demand, charge)),
            Err(_) if shared.is_some() => self.ask_store(keys, demand, reports_usage, now),
            Err(blocked) => {
                let engine = &self.engine;
                match Waiting::in_queue(engine, keys, demand, reports_usage, &blocked, now) {
                    Ok(waiting) => Decision::Waits(Box::new(waiting)),
                    Err(refused) => Decision::Refused(refused),
                }
            }
        }
    }

    fn ask_store(
        &self,
        keys: KeyStates,
        demand: Demand,
        reports_usage: bool,
        now: Instant,
    ) -> Decision {
        let waiting = Waiting::for_store(&self.engine, keys, demand, reports_usage, now);
        Decision::Waits(Box::new(waiting))
    }

    /// Gives up what the inner service reserved when it became ready: a call that need not wait may need it.
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
        match self.decide(&request, self.watch.reports_usage()) {
            Decision::Admitted(reservation) => {
                let call = self.watch.keep(request.call().as_deref());
                let mut armed = Armed::new(reservation);
                let inner = armed.enter(|| self.inner.call(request));
                ResponseFuture::running(inner, self.watch.clone(), call, armed)
            }
            Decision::Waits(waiting) => {
                self.unready();
                ResponseFuture::waiting(waiting, self.inner.clone(), request, self.watch.clone())
            }
            Decision::Refused(error) => {
                self.unready();
                ResponseFuture::refused(error)
            }
        }
    }
}
