//! The layer inside of a fan-out: it counts what became of each attempt.

use std::sync::Arc;

use tower_layer::Layer;
use tower_llm_core::{
    Admission, Availability, Completion, Entry, Gate, GateLayer, Gated, Guard, HttpBody,
};

use crate::{gate::Counted, handle::Shared};

/// Counts attempts: put it just inside of what sends a call more than once. [`MonitorLayer::attempts`](crate::MonitorLayer::attempts)
/// makes it.
///
/// An attempt is counted by the provider and model that it is sent to, with its outcome and what it used; together with what calls
/// have used, that shows what retries and lost branches cost.
#[derive(Clone, Debug)]
pub struct AttemptLayer<W = HttpBody> {
    shared: Arc<Shared>,
    watch: W,
}

/// Admits every attempt, and counts it.
#[derive(Clone, Debug)]
pub struct AttemptGate {
    shared: Arc<Shared>,
}

/// Counts an attempt when it ends, or is dropped.
#[derive(Debug)]
pub struct AttemptGuard {
    counted: Counted,
    #[cfg(feature = "tracing")]
    span: crate::span::CallSpan,
}

impl<W> AttemptLayer<W> {
    pub(crate) fn new(shared: Arc<Shared>, watch: W) -> Self {
        Self { shared, watch }
    }
}

impl<S, W: Clone> Layer<S> for AttemptLayer<W> {
    type Service = Gated<S, AttemptGate, W>;

    fn layer(&self, inner: S) -> Self::Service {
        Gated::new(inner, self.gate(), self.watch.clone())
    }
}

impl<W: Clone> GateLayer for AttemptLayer<W> {
    type Gate = AttemptGate;
    type Watch = W;

    fn gate(&self) -> AttemptGate {
        AttemptGate {
            shared: Arc::clone(&self.shared),
        }
    }

    fn watch(&self) -> W {
        self.watch.clone()
    }
}

impl Gate for AttemptGate {
    type Guard = AttemptGuard;

    fn admit(&self, entry: &Entry<'_>) -> Admission<AttemptGuard> {
        let counted = Counted::new(&self.shared, entry);
        Admission::Admitted(AttemptGuard {
            #[cfg(feature = "tracing")]
            span: crate::span::CallSpan::of_attempt(&counted.stripe().labels, entry.call()),
            counted,
        })
    }

    fn would_admit(&self, _: &Entry<'_>) -> Availability {
        Availability::Now
    }
}

impl Guard for AttemptGuard {
    fn end(&mut self, completion: &Completion) {
        let used = self.counted.used(completion);
        self.counted.stripe().tally().attempt(&used, completion);
        #[cfg(feature = "tracing")]
        self.span.end(completion, Some(&used));
    }
}
