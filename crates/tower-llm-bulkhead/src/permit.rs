use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use http::response::Parts;
use tokio::time::Instant;
use tower_llm_core::{Call, Completion, Guard, Unsent};

use crate::{
    Adaptive, BulkheadFull, LimitOf,
    adaptive::Sign,
    permits::{Evicted, Joined, Overtook, Permits, Shared, Wanted},
    silence::Silence,
};

/// When a call gives its permits back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReleaseAt {
    /// When the response headers arrive: limits calls that start, not streams that run.
    ResponseHeaders,
    /// With the first content token of a stream, or at the end if there is none.
    FirstToken,
    /// When the response body ends or is dropped.
    #[default]
    End,
}

/// The permits that a call holds, as many as it weighs; dropping this gives them back.
#[derive(Debug)]
pub(crate) struct Permit {
    permits: Shared,
    weight: u32,
    overtook: Overtook,
}

/// A call's entry in the queue; dropping it leaves the queue, or gives back the permits that were granted meanwhile.
#[derive(Debug)]
pub(crate) struct Ticket {
    permits: Shared,
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

/// Holds a call's permits until the point of release: its guard.
#[derive(Debug)]
pub struct BulkheadGuard {
    permit: Option<Permit>,
    release_at: ReleaseAt,
    // Only with an adaptive limit.
    observer: Option<Observer>,
}

/// Reports to an adaptive limit how a call goes.
#[derive(Debug)]
struct Observer {
    // Held beyond the release of the permits.
    permits: Shared,
    // For a stream without a token so far, if the limit follows that.
    silence: Option<Silence>,
}

// === impl Permit ===

impl Permit {
    /// Takes `weight` permits if they are free; returns `permits` if not.
    pub(crate) fn try_acquire(permits: Shared, weight: u32) -> Result<Self, Shared> {
        if permits.try_acquire(weight) {
            let overtook = Overtook::default();
            Ok(Self {
                permits,
                weight,
                overtook,
            })
        } else {
            Err(permits)
        }
    }

    /// Turns this permit into the guard of `call`.
    pub(crate) fn hold(self, release_at: ReleaseAt, call: Option<&Call>) -> BulkheadGuard {
        let observer = self.permits.rules().map(|rules| Observer {
            permits: Arc::clone(&self.permits),
            silence: rules.silence_of(call),
        });
        BulkheadGuard {
            permit: Some(self),
            release_at,
            observer,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.permits.release(self.weight, self.overtook);
    }
}

// === impl Ticket ===

impl Ticket {
    /// Joins the queue for a permit.
    pub(crate) fn join(permits: Shared, wanted: Wanted, waker: &Waker) -> Entered {
        match Permits::join(&permits, &wanted, waker) {
            Joined::Admitted(overtook) => Entered::Admitted(Permit {
                permits,
                weight: wanted.weight,
                overtook,
            }),
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
                Ok(overtook) => Ok(Permit {
                    permits: Arc::clone(&self.permits),
                    weight: self.wanted.weight,
                    overtook,
                }),
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

fn full(permits: &Shared, limit_of: LimitOf, wanted: &Wanted) -> Box<BulkheadFull> {
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

// === impl BulkheadGuard ===

impl BulkheadGuard {
    fn release(&mut self, reached: ReleaseAt) {
        if self.release_at == reached {
            self.permit = None;
        }
    }
}

impl Guard for BulkheadGuard {
    fn response_headers(&mut self, _: Option<&mut Parts>) {
        if let Some(observer) = &mut self.observer {
            observer.response_headers();
        }
        self.release(ReleaseAt::ResponseHeaders);
    }

    fn pending(&mut self, cx: &mut Context<'_>) {
        if let Some(observer) = &mut self.observer {
            observer.pending(cx);
        }
    }

    fn first_token(&mut self, at: Instant) {
        if let Some(observer) = &mut self.observer {
            observer.first_token(at);
        }
        self.release(ReleaseAt::FirstToken);
    }

    fn end(&mut self, completion: &Completion) {
        // Reported before the permits are free, so that they are granted by the new limit.
        if let Some(observer) = &self.observer {
            observer.end(completion);
        }
    }
}

// === impl Observer ===

impl Observer {
    fn response_headers(&mut self) {
        if let Some(silence) = &mut self.silence {
            silence.response_headers(Instant::now());
        }
    }

    fn pending(&mut self, cx: &mut Context<'_>) {
        if let Some(silence) = &mut self.silence
            && let Poll::Ready(now) = silence.poll(cx)
        {
            self.silence = None;
            self.report(now, |_| Some(Sign::Bad));
        }
    }

    fn first_token(&mut self, at: Instant) {
        if let Some(silence) = self.silence.take() {
            let after = silence.seen(at);
            self.report(at, |rules| rules.first_token(after));
        }
    }

    fn end(&self, completion: &Completion) {
        let now = completion.ended_at.unwrap_or_else(Instant::now);
        let silent_for = self.silence.as_ref().map(|silence| silence.seen(now));
        self.report(now, |rules| rules.end(completion, silent_for));
    }

    fn report(&self, now: Instant, sign: impl FnOnce(&Adaptive) -> Option<Sign>) {
        if let Some(sign) = self.permits.rules().and_then(sign) {
            self.permits.observe(sign, now);
        }
    }
}
