use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};
use tower_llm_core::{Admission, Availability, BoxError, Entry, Gate, Gated, GatedFuture, Wait};

use crate::{
    BulkheadGuard,
    layer::Shared,
    permit::{Entered, ReleaseAt, Ticket},
};

/// Admits as many calls as there are permits, and queues others.
#[derive(Clone, Debug)]
pub struct BulkheadGate {
    shared: Arc<Shared>,
}

/// Limits how many calls run at once; see [`BulkheadLayer`](crate::BulkheadLayer).
pub type Bulkhead<S, W> = Gated<S, BulkheadGate, W>;

/// Resolves when a permit was granted and the inner service has answered.
///
/// Dropping it leaves the queue, or gives the permits back.
pub type ResponseFuture<S, Req, W> = GatedFuture<S, Req, W, BulkheadGuard>;

/// A call in the queue.
struct Waiter {
    ticket: Ticket,
    until: Instant,
    // Created by the first poll, because there is no runtime before.
    timer: Option<Pin<Box<Sleep>>>,
    max_wait: Duration,
    release_at: ReleaseAt,
}

impl BulkheadGate {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl Gate for BulkheadGate {
    type Guard = BulkheadGuard;

    fn admit(&self, entry: &Entry<'_>) -> Admission<BulkheadGuard> {
        let shared = &self.shared;
        match shared.enter(entry) {
            Entered::Admitted(permit) => {
                Admission::Admitted(permit.hold(shared.release_at, entry.call()))
            }
            Entered::Waiting(ticket) => Admission::Waits(Box::new(Waiter {
                ticket,
                until: entry.now() + shared.max_wait,
                timer: None,
                max_wait: shared.max_wait,
                release_at: shared.release_at,
            })),
            Entered::Full(error) => Admission::Refused(error),
        }
    }

    /// When a permit becomes free is not known.
    fn would_admit(&self, entry: &Entry<'_>) -> Availability {
        if self.shared.has_permit(entry) {
            Availability::Now
        } else {
            Availability::Unknown
        }
    }
}

impl Wait<BulkheadGuard> for Waiter {
    /// The permit comes first: if it is granted at the moment the wait ends, it is taken.
    fn poll(
        &mut self,
        entry: &Entry<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<BulkheadGuard, BoxError>> {
        if let Poll::Ready(granted) = self.ticket.poll(cx.waker()) {
            let held = granted.map(|permit| permit.hold(self.release_at, entry.call()));
            return Poll::Ready(held.map_err(|full| full as BoxError));
        }
        let until = self.until;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(until)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(self.ticket.refuse(self.max_wait)))
    }
}
