//! The layer, and what it gives out.

use std::sync::Arc;

use tower_layer::Layer;
use tower_llm_core::{GateLayer, HttpBody};

#[cfg(doc)]
use crate::{Advanced, BreakerBuilder};
use crate::{Breaker, BreakerGate, BreakerHandle, circuits::Circuits, routes::Routes};

/// Stops calls to a provider, model or account that fails, and probes until it has recovered.
///
/// State is shared by all clones of a layer and all services it makes.
///
/// | setting | default |
/// |---|---|
/// | [`failure_threshold`](BreakerBuilder::failure_threshold) | 5 failures in a row |
/// | [`failure_ratio`](BreakerBuilder::failure_ratio) | 0.5 |
/// | [`minimum_calls`](BreakerBuilder::minimum_calls) | 10, or the length of the window if that is less |
/// | [`window`](BreakerBuilder::window) or [`window_calls`](BreakerBuilder::window_calls) | the last 60 s |
/// | [`slow_calls`](BreakerBuilder::slow_calls) | none |
/// | [`open_for`](BreakerBuilder::open_for) | 30 s, doubled each time up to [5 min](BreakerBuilder::max_open_for), plus up to [a tenth](Advanced::jitter) |
/// | [`throttled_opens`](BreakerBuilder::throttled_opens) | yes, for at most [an hour](Advanced::max_retry_after) |
/// | [`exhausted_for`](Advanced::exhausted_for) | 15 min |
/// | [`probes`](BreakerBuilder::probes) | one at a time, each for at most [60 s](Advanced::probe_lease) |
/// | [`success_threshold`](BreakerBuilder::success_threshold) | 2 probes |
/// | [`ramp`](Advanced::ramp), [`max_open_ratio`](Advanced::max_open_ratio) | none |
/// | [`key_by`](BreakerBuilder::key_by) | by [`Scope`](crate::Scope) |
/// | [`account_by`](BreakerBuilder::account_by) | the credential that the call carries |
/// | [`max_keys`](BreakerBuilder::max_keys) | 10,000 |
#[derive(Clone, Debug)]
pub struct BreakerLayer<W = HttpBody> {
    pub(crate) circuits: Arc<Circuits>,
    pub(crate) routes: Arc<Routes>,
    pub(crate) watch: W,
}

impl<W> BreakerLayer<W> {
    /// Leaves the provider's 429 to an inner rate limit, where calls can wait for it.
    ///
    /// A 429 then opens no circuit, whatever [`throttled_opens`](BreakerBuilder::throttled_opens) says. It applies to
    /// services that this layer makes from now on. Earlier clones are not changed, and share the circuits. `Stack` of
    /// `tower-llm-stack` sets it if its provider limit enforces reported limits.
    pub fn ignore_throttled(&mut self) {
        self.routes = Arc::new(self.routes.ignoring_throttled());
    }

    /// Returns a handle that reads the state of the circuits, and opens and closes them.
    #[must_use]
    pub fn handle(&self) -> BreakerHandle {
        BreakerHandle {
            circuits: Arc::clone(&self.circuits),
        }
    }
}

impl<W: Clone> GateLayer for BreakerLayer<W> {
    type Gate = BreakerGate;
    type Watch = W;

    fn gate(&self) -> BreakerGate {
        BreakerGate {
            routes: Arc::clone(&self.routes),
        }
    }

    fn watch(&self) -> W {
        self.watch.clone()
    }
}

impl<S, W: Clone> Layer<S> for BreakerLayer<W> {
    type Service = Breaker<S, W>;

    fn layer(&self, inner: S) -> Breaker<S, W> {
        Breaker::new(inner, self.gate(), self.watch())
    }
}
