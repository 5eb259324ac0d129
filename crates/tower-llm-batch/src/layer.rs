use std::{fmt, sync::Arc};

use tower_layer::Layer;
use tower_llm_core::ConfigError;

use crate::{Batch, BatchBuilder, BatchHandle, Batcher, shared::Shared};

/// Merges calls with equal keys into one upstream call.
///
/// State is shared by all clones of a layer and all services it makes, so calls of different services are merged. The service
/// whose call sends a batch is the one that the batch goes through: put a layer around services of one upstream only, and make
/// another layer for another upstream.
///
/// | setting | default |
/// |---|---|
/// | [`max_items`](BatchBuilder::max_items) | 2,048, and the [limit of the key](crate::Terms::limits) |
/// | [`max_tokens`](BatchBuilder::max_tokens) | 300,000, and the limit of the key |
/// | [`window`](BatchBuilder::window) | zero: sends when idle, gathers while a call is in flight |
/// | [`max_in_flight`](BatchBuilder::max_in_flight) | one batch for each key |
/// | [`max_waiting`](BatchBuilder::max_waiting) | 1,000 for each key and priority |
/// | [`max_wait`](BatchBuilder::max_wait) | 30 s |
/// | [`max_split_calls`](BatchBuilder::max_split_calls) | 32 |
/// | [`expected_call_time`](BatchBuilder::expected_call_time) | 1 s, until calls have been seen |
/// | [`abandoned`](BatchBuilder::abandoned) | dropped |
pub struct BatchLayer<Bt: Batcher> {
    pub(crate) shared: Arc<Shared<Bt>>,
}

impl<Bt: Batcher> BatchLayer<Bt> {
    /// Creates a layer with defaults.
    ///
    /// # Errors
    ///
    /// None: the defaults are valid.
    pub fn new(batcher: Bt) -> Result<Self, ConfigError> {
        Self::builder(batcher).build()
    }

    /// Starts a layer.
    pub fn builder(batcher: Bt) -> BatchBuilder<Bt> {
        BatchBuilder::new(batcher)
    }

    /// Returns a handle that reads the state.
    #[must_use]
    pub fn handle(&self) -> BatchHandle {
        BatchHandle::new(Arc::clone(&self.shared))
    }
}

impl<S, Bt: Batcher> Layer<S> for BatchLayer<Bt> {
    type Service = Batch<S, Bt>;

    fn layer(&self, inner: S) -> Batch<S, Bt> {
        Batch::new(inner, Arc::clone(&self.shared))
    }
}

impl<Bt: Batcher> Clone for BatchLayer<Bt> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<Bt: Batcher> fmt::Debug for BatchLayer<Bt> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchLayer")
            .field("settings", &self.shared.settings)
            .finish_non_exhaustive()
    }
}
