use std::sync::Arc;

use tower_layer::Layer;
use tower_llm_core::{ConfigError, GateLayer, HttpBody};

use crate::{Bulkhead, BulkheadBuilder, BulkheadGate, BulkheadHandle, gate::Bulkheads};

/// Limits how many calls of each key run at once; decides in `call`.
///
/// State is shared by all clones of a layer and all services it makes.
///
/// Permits are given back when the upstream body is dropped; if its connection has to be closed, that may happen a little
/// later. A call holds its permits from the moment they are granted, even if its future is not polled, so poll or drop
/// every future. A response body that is not read holds permits too, so a server needs a timeout for clients that stop
/// reading. A layer applied twice in one stack waits for itself.
///
/// | setting | default |
/// |---|---|
/// | limit | as given to [`builder`](Self::builder), for each key |
/// | [`global_limit`](BulkheadBuilder::global_limit) | none |
/// | [`adaptive`](BulkheadBuilder::adaptive) | none: limits stay as they are set |
/// | [`weigh_by`](BulkheadBuilder::weigh_by) | calls |
/// | [`key_by`](BulkheadBuilder::key_by) | provider |
/// | [`priority_by`](BulkheadBuilder::priority_by) | all calls are [`Priority::Normal`](crate::Priority::Normal) |
/// | [`max_waiting`](BulkheadBuilder::max_waiting) | 100 for each key and priority |
/// | [`max_wait`](BulkheadBuilder::max_wait) | 30 s |
/// | [`release_at`](BulkheadBuilder::release_at) | end of the response body |
/// | [`max_keys`](BulkheadBuilder::max_keys) | 10,000 |
#[derive(Clone, Debug)]
pub struct BulkheadLayer<W = HttpBody> {
    pub(crate) bulkheads: Arc<Bulkheads>,
    pub(crate) watch: W,
}

impl BulkheadLayer {
    /// Creates a layer with `limit` permits for each provider, and defaults for the rest.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if `limit` is zero or over 4,294,967,295.
    pub fn new(limit: usize) -> Result<Self, ConfigError> {
        Self::builder(limit).build()
    }

    /// Starts a layer with `limit` permits for each key.
    pub fn builder(limit: usize) -> BulkheadBuilder {
        BulkheadBuilder::new(limit)
    }
}

impl<W> BulkheadLayer<W> {
    /// Returns a handle that reads the state and changes limits.
    #[must_use]
    pub fn handle(&self) -> BulkheadHandle {
        BulkheadHandle::new(Arc::clone(&self.bulkheads))
    }
}

impl<W: Clone> GateLayer for BulkheadLayer<W> {
    type Gate = BulkheadGate;
    type Watch = W;

    fn gate(&self) -> BulkheadGate {
        BulkheadGate::new(Arc::clone(&self.bulkheads))
    }

    fn watch(&self) -> W {
        self.watch.clone()
    }
}

impl<S, W: Clone> Layer<S> for BulkheadLayer<W> {
    type Service = Bulkhead<S, W>;

    fn layer(&self, inner: S) -> Bulkhead<S, W> {
        Bulkhead::new(inner, self.gate(), self.watch())
    }
}
