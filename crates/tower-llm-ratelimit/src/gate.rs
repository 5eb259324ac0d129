use std::{
    sync::Arc,
    task::{Context, Poll},
};

use tower_llm_core::{Admission, Availability, BoxError, Entry, Gate, Gated, GatedFuture, Wait};

use crate::{limiter::Limiter, reservation::Reservation, waiting::Waiting};

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
}

impl Gate for RateLimitGate {
    type Guard = Reservation;

    fn admit(&self, entry: &Entry<'_>) -> Admission<Reservation> {
        self.limiter.admit(entry)
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
