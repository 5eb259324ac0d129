use std::sync::Arc;

use tower_llm_core::{Admission, Availability, Call, Entry, Gate, Gated, GatedFuture};

use crate::{
    BreakerGuard,
    route::{Board, Kind},
};

/// Refuses calls whose circuits are open.
#[derive(Clone, Debug)]
pub struct BreakerGate {
    board: Arc<Board>,
    ignores_throttled: bool,
}

/// Stops calls to what is failing; see [`BreakerLayer`](crate::BreakerLayer).
pub type Breaker<S, W> = Gated<S, BreakerGate, W>;

/// Resolves when the inner service has answered, or at once if a circuit is open.
///
/// Dropping it is neutral, and frees a probe's lease.
pub type ResponseFuture<S, Req, W> = GatedFuture<S, Req, W, BreakerGuard>;

impl BreakerGate {
    pub(crate) fn new(board: Arc<Board>, ignores_throttled: bool) -> Self {
        Self {
            board,
            ignores_throttled,
        }
    }
}

impl Gate for BreakerGate {
    type Guard = BreakerGuard;

    fn admit(&self, entry: &Entry<'_>) -> Admission<BreakerGuard> {
        // All user code runs before the call is admitted: otherwise a panic in it would hold a probe's lease.
        let call = entry.call();
        let route = self.board.route(entry, Kind::of(call));
        match route.admit() {
            Ok(passes) => {
                let mut guard = BreakerGuard::new(route, passes, call.is_some_and(Call::streamed));
                guard.ignores_throttled = self.ignores_throttled;
                Admission::Admitted(guard)
            }
            Err(open) => Admission::Refused(open.into()),
        }
    }

    fn would_admit(&self, entry: &Entry<'_>) -> Availability {
        let route = self.board.route(entry, Kind::of(entry.call()));
        route.would_admit(|| entry.now())
    }
}
