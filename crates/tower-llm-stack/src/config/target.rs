//! Targets: accounts at providers.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::{Deserialize, Deserializer, de};
use tower_llm_core::{Dialect, Provider};

use super::duration;
use crate::Secret;

/// An account at a provider: where it is, how it is called, and what it may be asked.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
#[non_exhaustive]
pub struct TargetConfig {
    /// `openai`, `azure`, `anthropic` or `gemini`; any other name needs a `dialect` and a `base_url`.
    pub provider: String,
    /// The API format; the provider's own unless set. A provider's OpenAI-compatible endpoint is `openai`.
    #[serde(deserialize_with = "dialect")]
    pub dialect: Option<Dialect>,
    /// The base URL; the provider's official address unless set.
    pub base_url: Option<String>,
    /// The environment variable that holds the key.
    pub api_key_env: Option<String>,
    /// The file that holds the key.
    pub api_key_file: Option<PathBuf>,
    /// OAuth client credentials, in place of a key. With neither, the caller's own credential passes.
    pub oauth: Option<OAuthConfig>,
    /// The outbound proxy; that of the environment unless set. Its URL may hold a user and password.
    pub proxy: Option<Secret>,
    /// Requests per minute; no limit unless set.
    pub rpm: Option<u64>,
    /// Input and output tokens per minute; no limit unless set.
    pub tpm: Option<u64>,
    /// Input tokens per minute; no limit unless set.
    pub itpm: Option<u64>,
    /// Output tokens per minute; no limit unless set.
    pub otpm: Option<u64>,
    /// Calls at once; no limit unless set.
    pub concurrency: Option<usize>,
    /// The portion of calls under the strategy `weighted`, relative to the other targets; 1 unless set.
    pub weight: u32,
    /// Targets with the lowest number are used first; 0 unless set. The tiers of a `cascade` have the order of its model.
    pub priority: u32,
    /// Prices, for the strategy `cheapest`.
    pub price: Option<PriceConfig>,
    /// Timeouts of each call.
    pub timeouts: TimeoutConfig,
    /// Bounds of the pool of connections.
    pub pool: PoolConfig,
    /// The caller's model name to the target's; a name that is not listed passes as it is.
    pub models: BTreeMap<String, String>,
    /// A check that takes the target out while it fails; none unless set.
    pub health: Option<HealthConfig>,
}

/// OAuth client credentials (RFC 6749, section 4.4).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
#[non_exhaustive]
pub struct OAuthConfig {
    /// Where tokens are requested.
    pub token_url: String,
    /// The client's id.
    pub client_id: String,
    /// The environment variable that holds the client's secret.
    pub client_secret_env: Option<String>,
    /// The file that holds the client's secret.
    pub client_secret_file: Option<PathBuf>,
    /// The scope that is asked for, if any.
    pub scope: Option<String>,
    /// Where the id and the secret stand in the request for a token.
    pub auth: ClientAuth,
}

/// Where a client's id and secret stand in the request for a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ClientAuth {
    /// In the `authorization` header, which every authorization server accepts.
    #[default]
    Basic,
    /// In the body.
    Body,
}

/// Prices per million tokens, in any currency as long as it is the same for all targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
#[non_exhaustive]
pub struct PriceConfig {
    /// Price of a million input tokens.
    pub input: f64,
    /// Price of a million output tokens.
    pub output: f64,
}

/// Timeouts of a call to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
#[non_exhaustive]
pub struct TimeoutConfig {
    /// For a call that is not streamed, to its end; 60 s unless set.
    #[serde(deserialize_with = "duration::required")]
    pub total: Duration,
    /// For a stream, to its end; 300 s unless set.
    #[serde(deserialize_with = "duration::required")]
    pub total_streamed: Duration,
    /// For the first content of a stream; the timeout layer's default unless set.
    #[serde(deserialize_with = "duration::optional")]
    pub first_token: Option<Duration>,
    /// Between two frames; the timeout layer's default unless set.
    #[serde(deserialize_with = "duration::optional")]
    pub idle: Option<Duration>,
}

/// Bounds of a pool of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
#[non_exhaustive]
pub struct PoolConfig {
    /// Idle connections that are kept for each host; 100 unless set.
    pub max_idle_per_host: usize,
    /// How long an idle connection is kept; 90 s unless set.
    #[serde(deserialize_with = "duration::required")]
    pub idle_timeout: Duration,
}

/// A check that takes a target out while it fails, and brings it back.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
#[non_exhaustive]
pub struct HealthConfig {
    /// Time between two checks; 30 s unless set.
    #[serde(deserialize_with = "duration::required")]
    pub interval: Duration,
    /// The path of a GET, below the base URL.
    pub path: Option<String>,
    /// The model of a call of one token, in place of a GET.
    pub model: Option<String>,
}

/// The provider names that need neither a dialect nor, but for Azure, a base URL.
pub(super) const PROVIDERS: [&str; 4] = ["openai", "azure", "anthropic", "gemini"];

const DIALECTS: [&str; 3] = ["openai", "anthropic", "gemini"];

impl TargetConfig {
    /// Returns the provider, as layers name it.
    #[must_use]
    pub fn provider(&self) -> Provider {
        match self.provider.as_str() {
            "openai" => Provider::OPENAI,
            "azure" => Provider::AZURE_OPENAI,
            "anthropic" => Provider::ANTHROPIC,
            "gemini" => Provider::GEMINI,
            other => Provider::new(other.to_owned()),
        }
    }

    /// Returns the dialect: the one that is set, or the provider's own. [`Dialect::OpenAi`] stands for `OpenAI`'s responses
    /// too.
    #[must_use]
    pub fn dialect(&self) -> Option<Dialect> {
        self.dialect.or(match self.provider.as_str() {
            "openai" | "azure" => Some(Dialect::OpenAi),
            "anthropic" => Some(Dialect::Anthropic),
            "gemini" => Some(Dialect::Gemini),
            _ => None,
        })
    }

    /// Returns the base URL: the one that is set, or the provider's official address.
    #[must_use]
    pub fn base_url(&self) -> Option<&str> {
        self.base_url
            .as_deref()
            .or(match (self.provider.as_str(), self.dialect()) {
                ("openai", _) => Some("https://api.openai.com/v1"),
                ("anthropic", Some(Dialect::Anthropic)) => Some("https://api.anthropic.com"),
                ("gemini", Some(Dialect::Gemini)) => {
                    Some("https://generativelanguage.googleapis.com")
                }
                ("gemini", Some(Dialect::OpenAi)) => {
                    Some("https://generativelanguage.googleapis.com/v1beta/openai")
                }
                _ => None,
            })
    }
}

impl Default for TargetConfig {
    fn default() -> Self {
        Self {
            provider: String::new(),
            dialect: None,
            base_url: None,
            api_key_env: None,
            api_key_file: None,
            oauth: None,
            proxy: None,
            rpm: None,
            tpm: None,
            itpm: None,
            otpm: None,
            concurrency: None,
            weight: 1,
            priority: 0,
            price: None,
            timeouts: TimeoutConfig::default(),
            pool: PoolConfig::default(),
            models: BTreeMap::new(),
            health: None,
        }
    }
}

impl Default for TimeoutConfig {
    fn default() -> Self {
        Self {
            total: Duration::from_secs(60),
            total_streamed: Duration::from_secs(300),
            first_token: None,
            idle: None,
        }
    }
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            max_idle_per_host: 100,
            idle_timeout: Duration::from_secs(90),
        }
    }
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(30),
            path: None,
            model: None,
        }
    }
}

fn dialect<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Dialect>, D::Error> {
    let name = String::deserialize(deserializer)?;
    Ok(Some(match name.as_str() {
        "openai" => Dialect::OpenAi,
        "anthropic" => Dialect::Anthropic,
        "gemini" => Dialect::Gemini,
        _ => return Err(de::Error::unknown_variant(&name, &DIALECTS)),
    }))
}
