use std::{
    sync::Arc,
    task::{Context, Poll},
};

use tower_llm_core::{Admission, Availability, BoxError, Entry, Gate, Gated, GatedFuture, Wait};

use crate::{
    blocked::QueuesPassed,
    demand::Demand,
    group::Keys,
    limiter::{Limiter, check_limits},
    reservation::Reservation,
    shared::backend::Shared,
    waiting::{self, Waiting},
};

/// Admits calls that all limits have room for, and queues others.
#[derive(Clone, Debug)]
pub struct RateLimitGate {
    limiter: Arc<Limiter>,
}

/// Limits requests and tokens per period; see [`RateLimitLayer`](crate::RateLimitLayer).
pub type RateLimit<S, W> = Gated<S, RateLimitGate, W>;

/// Resolves when the limits have admitted the call and the inner service has answered.
///
/// Dropping it leaves the queue, or settles what was reserved.
pub type ResponseFuture<S, Req, W> = GatedFuture<S, Req, W, Reservation>;

impl RateLimitGate {
    pub(crate) fn new(limiter: Arc<Limiter>) -> Self {
        Self { limiter }
    }

    /// The general path of limits that this process enforces by itself.
    #[cold]
    fn admit_or_wait(
        &self,
        keys: Keys,
        mut demand: Demand,
        entry: &Entry<'_>,
    ) -> Admission<Reservation> {
        if let Err(never) = self.limiter.fit(&mut demand, entry) {
            return Admission::Refused(never.refuse().into());
        }
        // What is ahead of the call depends on its caller, which is read only if something blocks the call.
        demand.caller = waiting::caller(entry);
        let passed = QueuesPassed::default();
        let now = self.limiter.clock.nanos(entry.now());
        match self
            .limiter
            .take_if(check_limits, &keys, &demand, passed, now)
        {
            Ok(taken) => Admission::Admitted(Reservation::new(keys, demand, taken)),
            Err(blocked) => match Waiting::in_queue(&self.limiter, keys, demand, entry, &blocked) {
                Ok(waiting) => Admission::Waits(Box::new(waiting)),
                Err(refused) => Admission::Refused(refused),
            },
        }
    }

    /// Admits a call by leases of its limits, or asks the store.
    fn admit_shared(
        &self,
        shared: &Shared,
        keys: Keys,
        mut demand: Demand,
        entry: &Entry<'_>,
    ) -> Admission<Reservation> {
        if let Err(never) = self.limiter.fit(&mut demand, entry) {
            return Admission::Refused(never.refuse().into());
        }
        if shared.lease.is_some() {
            let now = self.limiter.clock.nanos(entry.now());
            let spent = self
                .limiter
                .spend_leases(&keys, &demand, QueuesPassed::default(), now);
            if let Ok((taken, epochs)) = spent {
                return Admission::Admitted(Reservation::leased(keys, demand, taken, &epochs));
            }
        }
        let waiting = Waiting::for_store(&self.limiter, keys, demand, entry);
        Admission::Waits(Box::new(waiting))
    }
}

impl Gate for RateLimitGate {
    type Guard = Reservation;

    fn admit(&self, entry: &Entry<'_>) -> Admission<Reservation> {
        let demand = self
            .limiter
            .price(entry, entry.call(), entry.reports_usage());
        let keys = Keys::of(&self.limiter.groups, entry);
        match &self.limiter.shared {
            Some(shared) => self.admit_shared(shared, keys, demand, entry),
            None => {
                match self
                    .limiter
                    .try_take(&keys, &demand, self.limiter.clock.nanos(entry.now()))
                {
                    Some(taken) => Admission::Admitted(Reservation::new(keys, demand, taken)),
                    None => self.admit_or_wait(keys, demand, entry),
                }
            }
        }
    }

    fn would_admit(&self, entry: &Entry<'_>) -> Availability {
        self.limiter.would_admit(entry)
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
