use std::sync::Arc;

use tower_layer::Layer;
use tower_llm_core::{ConfigError, Operation};

use crate::{
    Cache, CacheHandle, Memory, Policy, Scope, StatusHeader, flight::Flights, items::Claims,
    key::KeySettings, policy::Policies, shared::Shared, values::Values,
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
        }
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

    /// Sets how another operation is cached, such as [`Operation::COUNT_TOKENS`]; none is unless set.
    pub fn operation(mut self, operation: Operation, policy: Policy) -> Self {
        self.policies.set(operation, policy);
        self
    }

    /// Separates the keys of this cache from those of others; empty unless set.
    pub fn namespace(mut self, namespace: impl Into<Box<str>>) -> Self {
        self.keys.namespace = namespace.into();
        self
    }

    /// Sets a secret for the keys; none unless set. Without one, a reader of a key can test whether a prompt is the one behind it.
    pub fn secret(mut self, secret: [u8; 32]) -> Self {
        self.keys.secret = Some(secret);
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

    /// Builds the layer.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] naming the setting: `ttl` if it is zero or over ten years, `max_answer_bytes`, `max_bytes`, `max_entries`
    /// or `max_values` if it is zero.
    pub fn build(self) -> Result<CacheLayer, ConfigError> {
        self.policies.check()?;
        let memory = self.memory.map(Memory::build).transpose()?;
        if self.max_values == 0 {
            let reason = "at least one value is held while it is loaded";
            return Err(ConfigError::new("max_values", 0, reason));
        }
        Ok(CacheLayer {
            shared: Arc::new(Shared {
                keys: self.keys,
                policies: self.policies,
                status: self.status,
                memory,
                flights: Arc::new(Flights::default()),
                claims: Claims::default(),
                values: Values::new(self.max_values),
                counters: Default::default(),
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
