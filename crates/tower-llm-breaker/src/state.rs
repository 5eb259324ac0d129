//! Which circuits there are, and what state one is in.

use std::fmt;

use tower_llm_core::Key;

use crate::word::Phase;

/// What a circuit does with calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum State {
    /// Lets all through, and counts how they end.
    Closed,
    /// Lets a growing share of them through, after it was open.
    Ramping,
    /// Lets none through until its time is over.
    Open,
    /// Lets none through until the time is over that the provider has named; then it goes on as it was, closed or ramping.
    Throttled,
    /// Lets probes through, to see whether it may close.
    HalfOpen,
    /// Lets none through until somebody says otherwise.
    ForcedOpen,
    /// Lets all through, and counts nothing.
    Disabled,
    /// Lets all through, counts, and tells when it would have opened.
    MetricsOnly,
}

/// What a hand can set a circuit to, or a builder all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Force {
    /// [`State::ForcedOpen`]
    Open,
    /// [`State::Disabled`]
    Disabled,
    /// [`State::MetricsOnly`]
    MetricsOnly,
}

/// Whose fault a circuit is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Scope {
    /// The way to a provider: transport errors before there is a response.
    Provider,
    /// A model at a provider: overload, 5xx, errors within streams, streams that break off or stall, time-outs.
    ProviderAndModel,
    /// An account at a provider: its money is spent, or its credentials are no good.
    Account,
    /// A model for one account: its rate limit.
    AccountAndModel,
    /// Everything, by the key of the layer's [`key_by`](crate::BreakerBuilder::key_by).
    Key,
}

/// One circuit of a layer: whose fault it is about, and the key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CircuitId {
    scope: Scope,
    key: Key,
}

impl CircuitId {
    pub(crate) fn new(scope: Scope, key: Key) -> Self {
        Self { scope, key }
    }

    /// The way to `provider`.
    #[must_use]
    pub fn provider(provider: impl AsRef<str>) -> Self {
        Self::new(Scope::Provider, Key::new(provider))
    }

    /// A model at `provider`.
    #[must_use]
    pub fn model(provider: impl AsRef<str>, model: impl AsRef<str>) -> Self {
        Self::new(Scope::ProviderAndModel, Key::pair(provider, model))
    }

    /// An account at `provider`; empty for calls that name none.
    #[must_use]
    pub fn account(provider: impl AsRef<str>, account: impl AsRef<str>) -> Self {
        Self::new(Scope::Account, Key::pair(provider, account))
    }

    /// A model at `provider` for one account; empty for calls that name none.
    #[must_use]
    pub fn account_and_model(
        provider: impl AsRef<str>,
        account: impl AsRef<str>,
        model: impl AsRef<str>,
    ) -> Self {
        let key = Key::triple(provider, account, model);
        Self::new(Scope::AccountAndModel, key)
    }

    /// The circuit of `key`, of a layer with a [`key_by`](crate::BreakerBuilder::key_by).
    #[must_use]
    pub fn key_only(key: Key) -> Self {
        Self::new(Scope::Key, key)
    }

    /// Whose fault it is about.
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

impl State {
    pub(crate) fn of(phase: Phase) -> Self {
        match phase {
            Phase::Closed => Self::Closed,
            Phase::Ramping => Self::Ramping,
            Phase::Open => Self::Open,
            Phase::Paused => Self::Throttled,
            Phase::HalfOpen => Self::HalfOpen,
            Phase::ForcedOpen => Self::ForcedOpen,
            Phase::Disabled => Self::Disabled,
            Phase::MetricsOnly => Self::MetricsOnly,
        }
    }
}

impl Force {
    pub(crate) fn phase(self) -> Phase {
        match self {
            Self::Open => Phase::ForcedOpen,
            Self::Disabled => Phase::Disabled,
            Self::MetricsOnly => Phase::MetricsOnly,
        }
    }
}
