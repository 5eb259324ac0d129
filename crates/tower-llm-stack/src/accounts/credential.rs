//! What an account identifies itself with.

use http::{HeaderName, HeaderValue, header::AUTHORIZATION};
use tower_llm_core::{ConfigError, Dialect, Provider};

use super::Tokens;
use crate::Secret;

/// What an account identifies itself with. `Debug` does not show it.
#[derive(Clone, Debug)]
pub struct Credential(pub(super) Kind);

#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// The caller's own.
    Caller,
    /// The value is marked as sensitive, so that it is not shown.
    Header(HeaderName, HeaderValue),
    Tokens(Tokens),
}

impl Credential {
    /// The caller's own credential passes.
    #[must_use]
    pub fn caller() -> Self {
        Self(Kind::Caller)
    }

    /// A key in the header in which the provider takes it: `api-key` for Azure, and otherwise, by dialect, `x-api-key`,
    /// `x-goog-api-key` or `authorization`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the key has characters that a header must not have.
    pub fn key(provider: &Provider, dialect: Dialect, key: &Secret) -> Result<Self, ConfigError> {
        let name = key_header(provider, dialect);
        match name == AUTHORIZATION {
            true => Self::bearer(key),
            false => Self::header(name, key),
        }
    }

    /// A key in the header `authorization`, after `Bearer`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the key has characters that a header must not have.
    pub fn bearer(key: &Secret) -> Result<Self, ConfigError> {
        Ok(Self(Kind::Header(AUTHORIZATION, bearer(key)?)))
    }

    /// A key as the value of any header.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the key has characters that a header must not have.
    pub fn header(name: HeaderName, key: &Secret) -> Result<Self, ConfigError> {
        Ok(Self(Kind::Header(name, sensitive(key.expose())?)))
    }

    /// Access tokens, in the header `authorization`.
    #[must_use]
    pub fn tokens(tokens: Tokens) -> Self {
        Self(Kind::Tokens(tokens))
    }
}

/// The header in which a provider takes keys.
pub(super) fn key_header(provider: &Provider, dialect: Dialect) -> HeaderName {
    if *provider == Provider::AZURE_OPENAI {
        return HeaderName::from_static("api-key");
    }
    match dialect {
        Dialect::Anthropic => HeaderName::from_static("x-api-key"),
        Dialect::Gemini => HeaderName::from_static("x-goog-api-key"),
        _ => AUTHORIZATION,
    }
}

pub(super) fn bearer(key: &Secret) -> Result<HeaderValue, ConfigError> {
    sensitive(&format!("Bearer {}", key.expose()))
}

fn sensitive(value: &str) -> Result<HeaderValue, ConfigError> {
    let mut value = HeaderValue::try_from(value).map_err(|_| {
        let reason = "it has characters that a header must not have";
        ConfigError::new("credential", Secret::new(""), reason)
    })?;
    value.set_sensitive(true);
    Ok(value)
}
