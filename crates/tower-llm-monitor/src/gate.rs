//! The layer on the way of a call: a guard that counts it when it ends.

use std::{sync::Arc, time::Duration};

use http::response::Parts;
use tokio::time::Instant;
use tower_llm_core::{
    Admission, Attempt, Availability, Bill, Call, Completion, Entry, Gate, Gated, GatedFuture,
    Guard, Outcome,
};

use crate::{
    handle::Shared,
    record::{Begun, Ended},
    rows::Stripe,
    used::{Request, Used},
};

/// Counts calls; see [`MonitorLayer`](crate::MonitorLayer).
pub type Monitor<S, W> = Gated<S, MonitorGate, W>;

/// Resolves when the inner service has answered.
pub type ResponseFuture<S, Req, W> = GatedFuture<S, Req, W, MonitorGuard>;

/// Admits every call, and counts it.
#[derive(Clone, Debug)]
pub struct MonitorGate {
    shared: Arc<Shared>,
}

/// Counts a call when it ends, or is dropped.
#[derive(Debug)]
pub struct MonitorGuard {
    counted: Counted,
    since: Instant,
    begun: Option<Begun>,
    /// For the record, if there will be one.
    attempts: Option<Arc<[Attempt]>>,
    /// What the call used is counted when it has ended that goes on without its caller.
    outlived: bool,
    #[cfg(feature = "tracing")]
    span: crate::span::CallSpan,
}

/// Where a call is counted.
#[derive(Clone, Debug)]
pub(crate) struct Counted {
    stripe: Arc<Stripe>,
    request: Request,
}

/// Counts what a call used after its caller has left.
struct Late {
    counted: Counted,
    begun: Option<Begun>,
    latency: Duration,
    left_at: Instant,
}

// === impl MonitorGate ===

impl MonitorGate {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl Gate for MonitorGate {
    type Guard = MonitorGuard;

    fn admit(&self, entry: &Entry<'_>) -> Admission<MonitorGuard> {
        let counted = Counted::new(&self.shared, entry);
        counted.stripe.begin();
        let queue = self.shared.records.as_ref();
        Admission::Admitted(MonitorGuard {
            #[cfg(feature = "tracing")]
            span: crate::span::CallSpan::new(&counted.stripe.labels, entry.call()),
            counted,
            since: entry.now(),
            begun: queue.map(|queue| queue.begin(entry)),
            attempts: None,
            outlived: false,
        })
    }

    fn would_admit(&self, _: &Entry<'_>) -> Availability {
        Availability::Now
    }
}

// === impl Counted ===

impl Counted {
    pub(crate) fn new(shared: &Shared, entry: &Entry<'_>) -> Self {
        let call = entry.call();
        Self {
            stripe: Arc::clone(shared.rows.stripe(call)),
            request: Request {
                input_tokens: call.map_or(0, Call::input_tokens),
                body_bytes: call.and_then(Call::body_bytes).unwrap_or(0),
                reports_usage: entry.reports_usage(),
            },
        }
    }

    pub(crate) fn used(&self, completion: &Completion) -> Used {
        Used::of(&self.request, completion, self.stripe.labels.pricing)
    }

    pub(crate) fn stripe(&self) -> &Stripe {
        &self.stripe
    }
}

// === impl Guard ===

impl Guard for MonitorGuard {
    fn response_headers(&mut self, head: Option<&mut Parts>) {
        if self.begun.is_some() {
            self.attempts = head.and_then(|head| head.extensions.get().cloned());
        }
    }

    fn outlived(&mut self, bill: &Bill) {
        self.outlived = true;
        let left_at = Instant::now();
        bill.settle_later(Box::new(Late {
            counted: self.counted.clone(),
            begun: self.begun.take(),
            latency: left_at.saturating_duration_since(self.since),
            left_at,
        }));
    }

    fn end(&mut self, completion: &Completion) {
        let ended_at = completion.ended_at.unwrap_or_else(Instant::now);
        let after = |at: Instant| at.saturating_duration_since(self.since);
        let latency = after(ended_at);
        let used = (!self.outlived).then(|| self.counted.used(completion));
        let first_token = completion.first_token_at;

        let Counted { stripe, request } = &self.counted;
        let mut tally = stripe.tally();
        tally.end(request, latency, completion);
        if let Some(first_token) = first_token.filter(|_| completion.served.is_none()) {
            let output = used.filter(|_| completion.outcome == Outcome::Success);
            let rest = ended_at.saturating_duration_since(first_token);
            tally.stream(
                after(first_token),
                rest,
                output.map(|used| used.paid.output),
            );
        }
        if let Some(used) = &used {
            tally.settle(used);
        }
        drop(tally);

        #[cfg(feature = "tracing")]
        self.span.end(completion, used.as_ref());
        if let Some((begun, used)) = self.begun.take().zip(used) {
            begun.end(Ended {
                completion: completion.clone(),
                used,
                at: ended_at,
                latency,
                first_token: first_token.map(after),
                attempts: self.attempts.take(),
            });
        }
    }
}

impl Guard for Late {
    fn end(&mut self, completion: &Completion) {
        let used = self.counted.used(completion);
        self.counted.stripe.tally().settle(&used);
        if let Some(begun) = self.begun.take() {
            let mut completion = completion.clone();
            completion.outcome = Outcome::Abandoned;
            begun.end(Ended {
                completion,
                used,
                at: self.left_at,
                latency: self.latency,
                first_token: None,
                attempts: None,
            });
        }
    }
}
