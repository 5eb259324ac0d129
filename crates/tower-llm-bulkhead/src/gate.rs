//! The decision: a free permit, a ticket in the queue, or a refusal.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};
use tower_llm_core::{
    Admission, Availability, BoxError, Call, Entry, Gate, Gated, GatedFuture, Registry, Wait,
};

use crate::{
    Adaptive, BulkheadGuard, ReleaseAt, Weigh,
    permit::Permit,
    permits::{GlobalPermits, Permits, Tenant, Wanted},
    priority::{ByPriority, PriorityBy},
    ticket::{Entered, Ticket},
};

/// Admits as many calls as there are permits, and queues others.
#[derive(Clone, Debug)]
pub struct BulkheadGate {
    bulkheads: Arc<Bulkheads>,
}

/// The permits of all keys, and how calls take them.
#[derive(Debug)]
pub(crate) struct Bulkheads {
    pub(crate) permits: Registry<Permits>,
    pub(crate) all: Option<Arc<GlobalPermits>>,
    pub(crate) adaptive: Option<Adaptive>,
    pub(crate) weigh: Weigh,
    pub(crate) priority_by: PriorityBy,
    pub(crate) max_waiting: ByPriority,
    pub(crate) max_wait: Duration,
    pub(crate) release_at: ReleaseAt,
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
    pub(crate) fn new(bulkheads: Arc<Bulkheads>) -> Self {
        Self { bulkheads }
    }
}

impl Gate for BulkheadGate {
    type Guard = BulkheadGuard;

    fn admit(&self, entry: &Entry<'_>) -> Admission<BulkheadGuard> {
        let bulkheads = &self.bulkheads;
        match bulkheads.enter(entry) {
            Entered::Admitted(permit) => {
                Admission::Admitted(permit.hold(bulkheads.release_at, entry.call()))
            }
            Entered::Waiting(ticket) => Admission::Waits(Box::new(Waiter {
                ticket,
                until: entry.now() + bulkheads.max_wait,
                timer: None,
                max_wait: bulkheads.max_wait,
                release_at: bulkheads.release_at,
            })),
            Entered::Full(error) => Admission::Refused(error),
        }
    }

    /// When a permit becomes free is not known.
    fn would_admit(&self, entry: &Entry<'_>) -> Availability {
        if self.bulkheads.has_permit(entry) {
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

impl Bulkheads {
    /// Takes permits, or joins the queue.
    pub(crate) fn enter(&self, entry: &Entry<'_>) -> Entered {
        let weight = self.weigh.weight(entry.call());
        match Permit::try_acquire(self.permits.get(entry), weight) {
            Ok(permit) => Entered::Admitted(permit),
            Err(permits) => {
                let wanted = self.wanted(entry, weight);
                // No task polls yet; the first poll of the future registers its waker.
                Ticket::join(permits, wanted, Waker::noop())
            }
        }
    }

    /// Whether a call would be admitted without waiting.
    pub(crate) fn has_permit(&self, entry: &Entry<'_>) -> bool {
        let weight = self.weigh.weight(entry.call());
        self.permits.get(entry).is_open_for(weight)
    }

    fn wanted(&self, entry: &Entry<'_>, weight: u32) -> Wanted {
        let caller = entry.call().and_then(Call::caller).cloned();
        let priority = self.priority_by.of(entry);
        Wanted {
            weight,
            tenant: Tenant { priority, caller },
            max_waiting: match entry.may_queue() {
                true => self.max_waiting[priority.index()],
                false => 0,
            },
        }
    }
}
