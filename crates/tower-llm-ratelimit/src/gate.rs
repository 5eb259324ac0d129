use std::{
    sync::Arc,
    task::{Context, Poll},
};

use tower_llm_core::{Admission, Availability, BoxError, Entry, Gate, Gated, GatedFuture, Wait};

use crate::{
    blocked::Turns,
    demand::Demand,
    engine::{Check, Engine},
    key_state::KeyStates,
    reservation::Reservation,
    waiting::{self, Waiting},
};

/// Admits calls that all limits have room for, and queues others.
#[derive(Clone, Debug)]
pub struct RateLimitGate {
    engine: Arc<Engine>,
}

/// Limits requests and tokens per period; see [`RateLimitLayer`](crate::RateLimitLayer).
pub type RateLimit<S, W> = Gated<S, RateLimitGate, W>;

/// Resolves when the limits have admitted the call and the inner service has answered.
///
/// Dropping it leaves the queue, or settles what was reserved.
pub type ResponseFuture<S, Req, W> = GatedFuture<S, Req, W, Reservation>;

impl RateLimitGate {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }

    fn ask_store(
        &self,
        keys: KeyStates,
        demand: Demand,
        entry: &Entry<'_>,
    ) -> Admission<Reservation> {
        let (reports_usage, now) = (entry.reports_usage(), entry.now());
        let waiting = Waiting::for_store(&self.engine, keys, demand, reports_usage, now);
        Admission::Waits(Box::new(waiting))
    }
}

impl Gate for RateLimitGate {
    type Guard = Reservation;

    fn admit(&self, entry: &Entry<'_>) -> Admission<Reservation> {
        let mut demand = match self.engine.demand(entry, entry.reports_usage()) {
            Ok(demand) => demand,
            Err(never) => return Admission::Refused(never.into()),
        };
        let keys = self.engine.keys(entry);
        let now = entry.now();
        let shared = self.engine.policy.shared.as_ref();
        let check = match shared {
            None => Check::All,
            Some(shared) if shared.lease.is_some() => Check::Leases,
            Some(_) => return self.ask_store(keys, demand, entry),
        };
        let admit = |demand: &Demand| {
            self.engine
                .admit(&keys, demand, now, Turns::default(), check)
        };
        let mut admitted = admit(&demand);
        if admitted.is_err() && shared.is_none() {
            // What is ahead of it depends on its caller, which is read only if something blocks the call.
            demand.caller = waiting::caller(entry);
            admitted = admit(&demand);
        }
        match admitted {
            Ok(charge) => Admission::Admitted(Reservation::new(keys, demand, charge)),
            Err(_) if shared.is_some() => self.ask_store(keys, demand, entry),
            Err(blocked) => {
                let (engine, reports_usage) = (&self.engine, entry.reports_usage());
                match Waiting::in_queue(engine, keys, demand, reports_usage, &blocked, now) {
                    Ok(waiting) => Admission::Waits(Box::new(waiting)),
                    Err(refused) => Admission::Refused(refused),
                }
            }
        }
    }

    fn would_admit(&self, entry: &Entry<'_>) -> Availability {
        self.engine.would_admit(entry)
    }
}

impl Wait<Reservation> for Waiting {
    fn poll(
        &mut self,
        entry: &Entry<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Reservation, BoxError>> {
        self.poll_admitted(cx, entry)
    }
}
