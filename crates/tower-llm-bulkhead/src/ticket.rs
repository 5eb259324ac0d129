//! A call that waits for permits.

use std::{
    sync::Arc,
    task::{Poll, Waker},
    time::Duration,
};

use tower_llm_core::Unsent;

use crate::{
    BulkheadFull, LimitOf,
    permit::Permit,
    permits::{Evicted, Joined, Permits, SharedPermits, Wanted},
};

/// A call's entry in the queue; dropping it leaves the queue, or gives back the permits that were granted meanwhile.
#[derive(Debug)]
pub(crate) struct Ticket {
    permits: SharedPermits,
    wanted: Wanted,
    // `None` once a `Permit` holds what was granted.
    number: Option<u64>,
    _unsent: Unsent,
}

/// How a call is admitted.
#[derive(Debug)]
pub(crate) enum Entered {
    Admitted(Permit),
    Waiting(Ticket),
    Full(Box<BulkheadFull>),
}

impl Ticket {
    /// Joins the queue for a permit.
    pub(crate) fn join(permits: SharedPermits, wanted: Wanted, waker: &Waker) -> Entered {
        match Permits::join(&permits, &wanted, waker) {
            Joined::Admitted(overtook) => {
                Entered::Admitted(Permit::new(permits, wanted.weight, overtook))
            }
            Joined::Waiting(number) => Entered::Waiting(Self {
                permits,
                wanted,
                number: Some(number),
                _unsent: Unsent::new(),
            }),
            Joined::Full(limit_of) => Entered::Full(full(&permits, limit_of, &wanted)),
        }
    }

    /// Returns the permit once it is granted, or an error if the call was evicted for another caller's.
    pub(crate) fn poll(&mut self, waker: &Waker) -> Poll<Result<Permit, Box<BulkheadFull>>> {
        let number = self.number.expect("polled after it was ready");
        let polled = self.permits.poll_ticket(&self.wanted.tenant, number, waker);
        polled.map(|granted| {
            self.number = None;
            match granted {
                Ok(overtook) => Ok(Permit::new(
                    Arc::clone(&self.permits),
                    self.wanted.weight,
                    overtook,
                )),
                Err(Evicted) => Err(self.full()),
            }
        })
    }

    /// The error of a call that waited for too long.
    pub(crate) fn refuse(&self, waited: Duration) -> Box<BulkheadFull> {
        self.permits.count_refused();
        let mut full = self.full();
        full.waited = Some(waited);
        full
    }

    fn full(&self) -> Box<BulkheadFull> {
        let limit_of = self.permits.full_of(self.wanted.weight);
        full(&self.permits, limit_of, &self.wanted)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.permits.leave(&self.wanted, number);
        }
    }
}

fn full(permits: &SharedPermits, limit_of: LimitOf, wanted: &Wanted) -> Box<BulkheadFull> {
    let ((_, in_use), limit) = match (limit_of, permits.all()) {
        (LimitOf::Global, Some(all)) => (all.in_use(), all.limit()),
        _ => (permits.in_use(), permits.limit()),
    };
    let priority = wanted.tenant.priority;
    Box::new(BulkheadFull {
        key: permits.key().cloned(),
        limit_of,
        limit,
        in_use,
        needed: wanted.weight,
        priority,
        queued: permits.waiting()[priority.index()],
        max_waiting: wanted.max_waiting,
        waited: None,
        refusal: BulkheadFull::REFUSAL,
    })
}
