//! Which circuits there are.

use std::fmt;

use tower_llm_core::Key;

/// What the failures of a circuit concern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Scope {
    /// The connection to a provider: transport errors before a response.
    Provider,
    /// A model at a provider: overload, 5xx, errors in streams, truncated and stalled streams, timeouts.
    ProviderAndModel,
    /// An account at a provider: its money or its quota is used up, or its credential is refused.
    Account,
    /// A model for one account: its rate limit, its own quota, or a credential that may not use it.
    AccountAndModel,
    /// Everything, by the key of [`key_by`](crate::BreakerBuilder::key_by).
    Key,
}

/// Identifies a circuit of a layer: its scope and its key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CircuitId {
    scope: Scope,
    key: Key,
}

impl CircuitId {
    pub(crate) fn new(scope: Scope, key: Key) -> Self {
        Self { scope, key }
    }

    /// The circuit of the connection to `provider`.
    #[must_use]
    pub fn provider(provider: impl AsRef<str>) -> Self {
        Self::new(Scope::Provider, Key::new(provider))
    }

    /// The circuit of a model at `provider`.
    #[must_use]
    pub fn model(provider: impl AsRef<str>, model: impl AsRef<str>) -> Self {
        Self::new(Scope::ProviderAndModel, Key::pair(provider, model))
    }

    /// The circuit of an account at `provider`; empty for calls without one.
    ///
    /// For a call that carries its caller's own credential, the account is the caller.
    #[must_use]
    pub fn account(provider: impl AsRef<str>, account: impl AsRef<str>) -> Self {
        Self::new(Scope::Account, Key::pair(provider, account))
    }

    /// The circuit of a model at `provider` for one account; empty for calls without one.
    #[must_use]
    pub fn account_and_model(
        provider: impl AsRef<str>,
        account: impl AsRef<str>,
        model: impl AsRef<str>,
    ) -> Self {
        let key = Key::triple(provider, account, model);
        Self::new(Scope::AccountAndModel, key)
    }

    /// The circuit of `key` in a layer with [`key_by`](crate::BreakerBuilder::key_by).
    #[must_use]
    pub fn key_only(key: Key) -> Self {
        Self::new(Scope::Key, key)
    }

    /// What its failures concern.
    #[must_use]
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// Its key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }
}

impl fmt::Display for CircuitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scope = match self.scope {
            Scope::Provider => "provider",
            Scope::ProviderAndModel => "model",
            Scope::Account => "account",
            Scope::AccountAndModel => "account and model",
            Scope::Key => "key",
        };
        write!(f, "{scope} {}", self.key)
    }
}
