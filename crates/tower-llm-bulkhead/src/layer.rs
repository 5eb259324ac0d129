use std::{collections::HashMap, sync::Arc, time::Duration};

use tower_layer::Layer;
use tower_llm_core::{ConfigError, HttpBody, Key, KeyBy, Registry};

use crate::{
    Bulkhead, BulkheadHandle, ReleaseAt, ReserveLayer,
    places::{MAX_LIMIT, Places},
};

/// Limits how many calls run at once, for each key apart; decides in `call`.
///
/// State is shared by all clones of a layer and all services it makes.
///
/// A place is given back when our side of the upstream's body is gone; a connection that has to be closed for that may
/// be closed a little later. A call whose turn has come holds its place although its future is not polled: poll what you
/// have called, or drop it. The same goes for a body that nobody reads: a server must itself bound how long a caller may
/// take nothing. One layer twice in a stack waits for itself.
///
/// | setting | default |
/// |---|---|
/// | limit | as given to [`builder`](Self::builder), for each key |
/// | [`key_by`](BulkheadBuilder::key_by) | provider |
/// | [`max_waiting`](BulkheadBuilder::max_waiting) | 100 for each key |
/// | [`max_wait`](BulkheadBuilder::max_wait) | 30 s |
/// | [`release_at`](BulkheadBuilder::release_at) | end of the body |
/// | [`max_keys`](BulkheadBuilder::max_keys) | 10,000 |
#[derive(Clone, Debug)]
pub struct BulkheadLayer<W = HttpBody> {
    shared: Arc<Shared>,
    watch: W,
}

/// Builds a [`BulkheadLayer`] or a [`ReserveLayer`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct BulkheadBuilder<W = HttpBody> {
    limit: usize,
    limits: HashMap<Key, usize>,
    key_by: KeyBy,
    max_keys: Option<usize>,
    max_waiting: usize,
    max_wait: Duration,
    release_at: ReleaseAt,
    watch: W,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) places: Registry<Places>,
    pub(crate) max_waiting: usize,
    pub(crate) max_wait: Duration,
    pub(crate) release_at: ReleaseAt,
}

impl BulkheadLayer {
    /// A layer with the defaults and `limit` places for each provider.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if `limit` is zero or over 4,294,967,295.
    pub fn new(limit: usize) -> Result<Self, ConfigError> {
        Self::builder(limit).build()
    }

    /// Starts a layer with `limit` places for each key.
    pub fn builder(limit: usize) -> BulkheadBuilder {
        BulkheadBuilder {
            limit,
            limits: HashMap::new(),
            key_by: KeyBy::provider(),
            max_keys: None,
            max_waiting: 100,
            max_wait: Duration::from_secs(30),
            release_at: ReleaseAt::End,
            watch: HttpBody,
        }
    }
}

impl<W> BulkheadLayer<W> {
    /// A handle to look at the state with.
    #[must_use]
    pub fn handle(&self) -> BulkheadHandle {
        BulkheadHandle::new(Arc::clone(&self.shared))
    }
}

impl<W> BulkheadBuilder<W> {
    /// Sets the limit of one key, in place of the one for each.
    pub fn limit_for(mut self, key: Key, limit: usize) -> Self {
        self.limits.insert(key, limit);
        self
    }

    /// Sets what calls are counted together by; the provider unless set.
    pub fn key_by(mut self, key_by: KeyBy) -> Self {
        self.key_by = key_by;
        self
    }

    /// Sets how many keys are told apart at most, rounded up to a multiple of 16. A key beyond that takes the place of one
    /// nobody uses; if all are in use, it shares one limit with all others that found no place.
    pub fn max_keys(mut self, max_keys: usize) -> Self {
        self.max_keys = Some(max_keys);
        self
    }

    /// Sets how many calls may wait for each key's places; at zero, a call that finds none is refused at once.
    pub fn max_waiting(mut self, calls: usize) -> Self {
        self.max_waiting = calls;
        self
    }

    /// Sets how long a call may wait for a place; 30 s unless set, at most a day.
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.max_wait = wait;
        self
    }

    /// Sets when a call gives its place back.
    pub fn release_at(mut self, release_at: ReleaseAt) -> Self {
        self.release_at = release_at;
        self
    }

    /// Sets how the end of a response is seen: [`Unary`](tower_llm_core::Unary) for types that are not HTTP.
    pub fn watch<V>(self, watch: V) -> BulkheadBuilder<V> {
        BulkheadBuilder {
            limit: self.limit,
            limits: self.limits,
            key_by: self.key_by,
            max_keys: self.max_keys,
            max_waiting: self.max_waiting,
            max_wait: self.max_wait,
            release_at: self.release_at,
            watch,
        }
    }

    /// The layer that decides in `call`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] naming the setting, if a limit or `max_keys` is zero, a limit is over 4,294,967,295, or
    /// `max_wait` is zero or over a day.
    pub fn build(self) -> Result<BulkheadLayer<W>, ConfigError> {
        let default = check_limit("limit", self.limit)?;
        for &limit in self.limits.values() {
            check_limit("limit_for", limit)?;
        }
        let max_wait = ConfigError::check_duration("max_wait", self.max_wait)?;
        let limits = self.limits;
        let mut places = Registry::new(self.key_by, move |key| {
            let own = key.and_then(|key| limits.get(key));
            Places::new(*own.unwrap_or(&default))
        });
        if let Some(max_keys) = self.max_keys {
            places = places.max_keys(max_keys)?;
        }
        Ok(BulkheadLayer {
            shared: Arc::new(Shared {
                places,
                max_waiting: self.max_waiting,
                max_wait,
                release_at: self.release_at,
            }),
            watch: self.watch,
        })
    }

    /// The layer that takes a place in `poll_ready`.
    ///
    /// It knows no request there, so it has one limit for all of them, and its queue is as long as there are
    /// services that wait: what is set of keys, `max_waiting` and `max_wait` does not bear on it.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the limit is zero or over 4,294,967,295.
    pub fn build_reserve(self) -> Result<ReserveLayer<W>, ConfigError> {
        let limit = check_limit("limit", self.limit)?;
        Ok(ReserveLayer::new(limit, self.release_at, self.watch))
    }
}

impl<S, W: Clone> Layer<S> for BulkheadLayer<W> {
    type Service = Bulkhead<S, W>;

    fn layer(&self, inner: S) -> Bulkhead<S, W> {
        Bulkhead::new(inner, Arc::clone(&self.shared), self.watch.clone())
    }
}

fn check_limit(field: &'static str, limit: usize) -> Result<usize, ConfigError> {
    if limit > MAX_LIMIT {
        return Err(ConfigError::new(
            field,
            limit,
            "it must be at most 4294967295",
        ));
    }
    ConfigError::check_nonzero(field, limit)
}
