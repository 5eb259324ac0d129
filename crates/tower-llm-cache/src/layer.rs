use std::sync::Arc;

use http::HeaderName;
use tower_layer::Layer;
use tower_llm_core::{ConfigError, Operation};

#[cfg(feature = "redis")]
use crate::SharedCache;
use crate::{
    Cache, CacheHandle, ClonedLayer, KeyContent, Memory, Policy, RefreshAhead, Scope, StatusHeader,
    flight::Flights, items::Claims, key::KeySettings, policy::Policies, shared::Shared,
    values::Values,
};

/// Answers repeated calls from memory, and makes one call of those that ask the same at the same time.
///
/// Clones, and all services that it makes, share what is stored and what is in flight.
#[derive(Clone, Debug)]
pub struct CacheLayer {
    shared: Arc<Shared>,
}

/// Builds a [`CacheLayer`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct CacheBuilder {
    keys: KeySettings,
    policies: Policies,
    status: StatusHeader,
    memory: Option<Memory>,
    max_values: u64,
    refresh: Option<RefreshAhead>,
    #[cfg(feature = "redis")]
    second: Option<SharedCache>,
}

impl CacheLayer {
    /// Starts a layer whose answers are shared as `scope` says. Unless set otherwise it holds 256 MiB by least recent use,
    /// completions for 30 minutes and embeddings for 24 hours.
    pub fn builder(scope: Scope) -> CacheBuilder {
        CacheBuilder {
            keys: KeySettings::new(scope),
            policies: Policies::new(),
            status: StatusHeader::default(),
            memory: Some(Memory::lru()),
            max_values: 10_000,
            refresh: None,
            #[cfg(feature = "redis")]
            second: None,
        }
    }

    /// The cache of a typed service: one whose request is a type of your own, and whose response is `Clone`.
    ///
    /// `content` returns what decides the answer to a request. The request also names its call ([`Described`](tower_llm_core::Described)); the answer is
    /// cached by the policy for its operation, and a request without a call bypasses the cache. The layers that this makes share
    /// scope, namespace, secret, memory and handle with this one. See [`ClonedLayer`].
    #[must_use]
    pub fn cloned<Req, R>(
        &self,
        content: impl Fn(&Req) -> KeyContent + Send + Sync + 'static,
    ) -> ClonedLayer<Req, R> {
        ClonedLayer::new(Arc::clone(&self.shared), content)
    }

    /// The handle, to read and to change what is stored.
    #[must_use]
    pub fn handle(&self) -> CacheHandle {
        CacheHandle::new(Arc::clone(&self.shared))
    }
}

impl CacheBuilder {
    /// Sets what holds the answers; `None` for nothing but calls in flight, which are shared all the same.
    pub fn memory(mut self, memory: impl Into<Option<Memory>>) -> Self {
        self.memory = memory.into();
        self
    }

    /// Shares answers with other processes, in Redis; none unless set.
    ///
    /// An answer that is not in memory is looked for in Redis before the call is made, which costs a miss one round trip, and
    /// at most the [`command_timeout`](tower_llm_redis::RedisBuilder::command_timeout) of the client. While Redis is
    /// unavailable, the cache works from memory alone, and an outage costs one timeout, not one per call. Answers are stored
    /// after they were passed on, by a task of the layer; if 4,096 of them or 64 MiB wait, further ones are not.
    ///
    /// What other processes remove is heard by SUBSCRIBE. As long as Redis can be reached and nothing is heard - just after
    /// the start, while the subscription connects again, or because the user has no right to the channel `tower-llm-cache` or
    /// `tower-llm-cache:{namespace}` - answers are neither held in memory nor served from there, but from Redis. The client
    /// logs a missing right (its feature `tracing`), and [`CacheStats::memory_suspended`](crate::CacheStats::memory_suspended)
    /// shows it.
    ///
    /// Processes share an answer if they agree on scope, [`namespace`](Self::namespace) and [`secret`](Self::secret). With
    /// [`Scope::caller`], all of them must name callers in the same way.
    #[cfg(feature = "redis")]
    #[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
    pub fn shared(mut self, shared: impl Into<Option<SharedCache>>) -> Self {
        self.second = shared.into();
        self
    }

    /// Sets how chat completions, messages, responses, generated content and text completions are cached; `None` for not at
    /// all.
    pub fn completions(mut self, policy: impl Into<Option<Policy>>) -> Self {
        self.policies.completions = policy.into();
        self
    }

    /// Sets how embeddings are cached; `None` for not at all.
    pub fn embeddings(mut self, policy: impl Into<Option<Policy>>) -> Self {
        self.policies.embeddings = policy.into();
        self
    }

    /// Sets how another operation is cached, such as [`Operation::COUNT_TOKENS`] or one that your service
    /// [names](Operation::new); none is unless set.
    ///
    /// Only requests by POST with a JSON object are cached. An answer is stored if it is a complete 200.
    pub fn operation(mut self, operation: Operation, policy: Policy) -> Self {
        self.policies.set(operation, policy);
        self
    }

    /// Separates the answers of this cache from those of others; empty unless set.
    ///
    /// In Redis, names are then `{namespace}:{key}`, the namespace percent-encoded. Removals, by pattern and of all, concern
    /// this namespace alone, in Redis and in other processes. The [`CacheKey`](crate::CacheKey) itself, and so `cache-status` and
    /// patterns, leave the namespace out.
    pub fn namespace(mut self, namespace: impl Into<Box<str>>) -> Self {
        self.keys.namespace = namespace.into();
        self
    }

    /// Sets a secret for the keys; none unless set. Without one, a reader of a key can test whether a prompt is the one behind it.
    pub fn secret(mut self, secret: [u8; 32]) -> Self {
        self.keys.secret = Some(secret);
        self
    }

    /// Makes a request header part of the key: one that changes the answer, and that only your service knows, such as a
    /// header that chooses between versions of a model server. None is unless set; may be set several times.
    ///
    /// Headers of providers that change answers, such as `anthropic-version` and `anthropic-beta`, are part of the key anyway.
    /// Requests with another value, or without the header, have answers of their own. To separate callers, use a [`Scope`].
    pub fn key_header(mut self, name: HeaderName) -> Self {
        self.keys.add_header(name);
        self
    }

    /// Caches answers that the provider stores under their id, too (`store: true`, the default of the Responses API).
    ///
    /// A caller that gets such an answer gets an id of another call, which the provider may forget or refuse it.
    pub fn stored_answers(mut self) -> Self {
        self.keys.allow_stored = true;
        self
    }

    /// Sets what responses say of the cache; [`StatusHeader::Plain`] unless set.
    pub fn status_header(mut self, status: StatusHeader) -> Self {
        self.status = status;
        self
    }

    /// Sets the maximum number of plain [values](CacheHandle::value); 10,000 unless set. Beyond, the value that was used
    /// longest ago is evicted. The size of a value is not known, so they are counted.
    pub fn max_values(mut self, values: u64) -> Self {
        self.max_values = values;
        self
    }

    /// Renews the answers that are asked for most before they expire; none unless set.
    pub fn refresh_ahead(mut self, refresh: impl Into<Option<RefreshAhead>>) -> Self {
        self.refresh = refresh.into();
        self
    }

    /// Builds the layer.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] naming the setting: `ttl` if it is zero or over ten years, `max_answer_bytes`, `max_bytes`, `max_entries`
    /// or `max_values` if it is zero; `shared.secret` if it is all zero, and `shared` outside a tokio runtime.
    pub fn build(self) -> Result<CacheLayer, ConfigError> {
        self.policies.check()?;
        let memory = self.memory.map(Memory::build).transpose()?.map(Arc::from);
        if self.max_values == 0 {
            let reason = "at least one value is held while it is loaded";
            return Err(ConfigError::new("max_values", 0, reason));
        }
        let counters = Arc::default();
        #[cfg(feature = "redis")]
        let second = match self.second {
            Some(second) => Some(second.start(
                &self.keys.namespace,
                Option::clone(&memory),
                Arc::clone(&counters),
            )?),
            None => None,
        };
        Ok(CacheLayer {
            shared: Arc::new(Shared {
                keys: self.keys,
                policies: self.policies,
                status: self.status,
                memory,
                #[cfg(feature = "redis")]
                second,
                flights: Arc::new(Flights::default()),
                claims: Claims::default(),
                values: Values::new(self.max_values),
                refresh: self.refresh.map(RefreshAhead::build),
                counters,
            }),
        })
    }
}

impl<S> Layer<S> for CacheLayer {
    type Service = Cache<S>;

    fn layer(&self, inner: S) -> Cache<S> {
        Cache::new(inner, Arc::clone(&self.shared))
    }
}
