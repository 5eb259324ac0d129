//! The layer on the way of a call: a guard that counts it when it ends.

use std::sync::Arc;

use tokio::time::Instant;
use tower_llm_core::{
    Admission, Availability, Bill, Call, Completion, Entry, Gate, Gated, GatedFuture, Guard,
    Outcome,
};

use crate::{
    handle::Shared,
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
    /// What the call used is counted when it has ended that goes on without its caller.
    outlived: bool,
}

/// Where a call is counted.
#[derive(Clone, Debug)]
struct Counted {
    stripe: Arc<Stripe>,
    request: Request,
}

/// Counts what a call used after its caller has left.
struct Late(Counted);

impl MonitorGate {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl Gate for MonitorGate {
    type Guard = MonitorGuard;

    fn admit(&self, entry: &Entry<'_>) -> Admission<MonitorGuard> {
        let stripe = self.shared.rows.stripe(entry.call());
        stripe.begin();
        Admission::Admitted(MonitorGuard {
            counted: Counted {
                stripe: Arc::clone(stripe),
                request: Request {
                    input_tokens: entry.call().map_or(0, Call::input_tokens),
                    body_bytes: entry.call().and_then(Call::body_bytes).unwrap_or(0),
                },
            },
            since: entry.now(),
            outlived: false,
        })
    }

    fn would_admit(&self, _: &Entry<'_>) -> Availability {
        Availability::Now
    }
}

impl Guard for MonitorGuard {
    fn outlived(&mut self, bill: &Bill) {
        self.outlived = true;
        bill.settle_later(Box::new(Late(self.counted.clone())));
    }

    fn end(&mut self, completion: &Completion) {
        let ended_at = completion.ended_at.unwrap_or_else(Instant::now);
        let after = |at: Instant| at.saturating_duration_since(self.since);
        let latency = after(ended_at);
        let Counted { stripe, request } = &self.counted;
        let used = (!self.outlived).then(|| Used::of(request, completion, stripe.labels.pricing));
        let first_token = completion
            .first_token_at
            .filter(|_| completion.served.is_none());

        let mut tally = stripe.tally();
        tally.end(request, latency, completion);
        if let Some(first_token) = first_token {
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
    }
}

impl Guard for Late {
    fn end(&mut self, completion: &Completion) {
        let Counted { stripe, request } = &self.0;
        let used = Used::of(request, completion, stripe.labels.pricing);
        stripe.tally().settle(&used);
    }
}
