//! The decision on a call.

use std::sync::Arc;

use tower_llm_core::{Admission, Availability, Call, Entry, Gate, Gated, GatedFuture};

use crate::{BreakerGuard, routes::Routes, timing::Timing};

/// Refuses calls whose circuits are open.
#[derive(Clone, Debug)]
pub struct BreakerGate {
    pub(crate) routes: Arc<Routes>,
}

/// Stops calls to what is failing; see [`BreakerLayer`](crate::BreakerLayer).
pub type Breaker<S, W> = Gated<S, BreakerGate, W>;

/// Resolves when the inner service has answered, or at once if a circuit is open.
///
/// Dropping it is neutral, and frees a probe's lease.
pub type ResponseFuture<S, Req, W> = GatedFuture<S, Req, W, BreakerGuard>;

impl Gate for BreakerGate {
    type Guard = BreakerGuard;

    fn admit(&self, entry: &Entry<'_>) -> Admission<BreakerGuard> {
        // All user code runs before the call is admitted: otherwise a panic in it would hold a probe's lease.
        let route = self.routes.find(entry);
        let timing = route.slow.map(|slow| {
            let streamed = entry.call().is_some_and(Call::streamed);
            Box::new(Timing::new(slow, streamed, entry.now()))
        });
        match route.admit(entry) {
            Ok(passes) => Admission::Admitted(BreakerGuard {
                route,
                passes,
                timing,
            }),
            Err(open) => Admission::Refused(open),
        }
    }

    fn would_admit(&self, entry: &Entry<'_>) -> Availability {
        self.routes.find(entry).would_admit(entry)
    }
}
