//! The gateway's settings, by flag or by environment variable.

mod admin;
mod cache;
mod layers;
mod load;
mod sharing;
mod upstreams;
mod values;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Parser;

pub(crate) use self::load::Names;
use self::values::{at_least_one, seconds, seconds_or_zero, switch};
pub use self::{
    admin::AdminSettings,
    cache::{CacheCompletions, CacheSettings, CacheStatus},
    layers::{BreakerMode, BreakerSettings, BulkheadSettings, RateLimitSettings, TimeoutSettings},
    sharing::{SharedLimitsBy, SharingSettings},
    upstreams::{ProxySettings, UpstreamSettings},
    values::{Secret, Tiers},
};
use crate::AllowPaths;

/// A gateway in front of language models: limits, a circuit breaker and timeouts for OpenAI, Azure OpenAI, Anthropic, Gemini
/// and servers that speak their dialects.
///
/// If no base URL and no key of a provider is set, it answers from a built-in simulated provider, so it runs without
/// keys and without a network. If any is set, real providers are called, each at its base URL or, without one, at its
/// official address.
///
/// Every setting is a flag and an environment variable; the flag wins, and an empty value counts as not set. RUST_LOG sets
/// the log level, such as `warn` or `info,tower_llm_breaker=debug` [default: info].
#[derive(Clone, Debug, Parser)]
#[command(name = "gateway", version)]
pub struct Settings {
    /// Address to listen on; port 0 picks a free port.
    #[arg(
        long,
        env = "GATEWAY_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:8080"
    )]
    pub listen: SocketAddr,

    /// File with targets and models, in TOML; `gateway.toml` in the working directory if it is there. With targets, the base URLs
    /// and keys of providers are not used.
    #[arg(long, env = "GATEWAY_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// File to which a record of each call is added, as a line of JSON: caller, model, outcome, tokens, times and cost, and
    /// nothing of what was asked or answered. A file of 100 MB is renamed, and the last five of those are kept.
    #[arg(long, env = "GATEWAY_RECORDS", value_name = "FILE")]
    pub records: Option<PathBuf>,

    /// Answer every call from the built-in simulated provider, whatever else is set.
    #[arg(
        long,
        env = "GATEWAY_SIMULATE",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        action = clap::ArgAction::Set,
        value_parser = switch
    )]
    pub simulate: bool,

    /// Largest JSON request body, in bytes. It is held in memory.
    #[arg(long, env = "GATEWAY_MAX_BODY_BYTES", value_name = "BYTES", default_value_t = 10 * 1024 * 1024, value_parser = at_least_one)]
    pub max_body_bytes: usize,

    /// Largest upload, in bytes: a request body that is not JSON, such as a form or audio. It is streamed and not held.
    #[arg(long, env = "GATEWAY_MAX_UPLOAD_BYTES", value_name = "BYTES", default_value_t = 2 << 30, value_parser = at_least_one)]
    pub max_upload_bytes: usize,

    /// Compress responses for clients that accept it. Streams are never compressed.
    #[arg(
        long,
        env = "GATEWAY_COMPRESS",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        action = clap::ArgAction::Set,
        value_parser = switch
    )]
    pub compress: bool,

    /// Maximum number of open client connections; further ones wait to be accepted.
    #[arg(long, env = "GATEWAY_MAX_CONNECTIONS", value_name = "CONNECTIONS", default_value_t = 1024, value_parser = at_least_one)]
    pub max_connections: usize,

    /// Client inactivity timeout, for reading the request and for writing the response.
    #[arg(long, env = "GATEWAY_CALLER_TIMEOUT", value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub caller_timeout: Duration,

    /// Time to keep listening after a SIGTERM, while /readyz fails and load balancers stop sending requests.
    #[arg(long, env = "GATEWAY_DRAIN_DELAY", value_name = "SECONDS", default_value = "5", value_parser = seconds_or_zero)]
    pub drain_delay: Duration,

    /// Time that calls in flight have to finish after the gateway stops listening. Then they are cut off.
    #[arg(long, env = "GATEWAY_SHUTDOWN_DEADLINE", value_name = "SECONDS", default_value = "30", value_parser = seconds_or_zero)]
    pub shutdown_deadline: Duration,

    /// The callers that may use the gateway, and what for.
    #[command(flatten)]
    pub access: AccessSettings,

    /// Addresses and keys of the providers.
    #[command(flatten)]
    pub upstreams: UpstreamSettings,

    /// Proxies on the way to the providers.
    #[command(flatten)]
    pub proxy: ProxySettings,

    /// Requests and tokens per time.
    #[command(flatten)]
    pub ratelimit: RateLimitSettings,

    /// Which answers are cached.
    #[command(flatten)]
    pub cache: CacheSettings,

    /// Administration of a running gateway.
    #[command(flatten)]
    pub admin: AdminSettings,

    /// What several gateways share.
    #[command(flatten)]
    pub sharing: SharingSettings,

    /// When calls to a failing provider stop.
    #[command(flatten)]
    pub breaker: BreakerSettings,

    /// How many calls run at once.
    #[command(flatten)]
    pub bulkhead: BulkheadSettings,

    /// How long a call may take.
    #[command(flatten)]
    pub timeout: TimeoutSettings,

    /// The variable that gave each setting.
    #[arg(skip)]
    pub(crate) names: Names,

    /// Warnings for the operator about the environment.
    #[arg(skip)]
    pub(crate) notices: Vec<String>,
}

/// The callers that may use the gateway, and what for.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Access")]
pub struct AccessSettings {
    /// Keys that callers send to the gateway in place of a provider's key. Required if the key of any provider is set:
    /// without GATEWAY_KEYS every call then gets a 401. `none` allows calls without a key. If there are gateway keys,
    /// and the gateway has no key for a provider, a call to that provider carries two: the gateway key and the caller's
    /// own, in two of the headers `authorization`, `x-api-key`, `api-key` and `x-goog-api-key`. If the upstream server
    /// needs no key, give the gateway any value as that provider's key, and callers send only the gateway key. Prefer
    /// the variable: other users of the machine can see flags.
    #[arg(
        long = "keys",
        env = "GATEWAY_KEYS",
        value_name = "KEY,..",
        hide_env_values = true
    )]
    pub keys: Option<Secret>,
    /// Paths that callers may use with your provider keys, besides inference and model lists, such as
    /// `/v1/batches,/v1/files/*`. A trailing `/*` allows everything below. All methods are allowed.
    #[arg(
        long = "allow-paths",
        env = "GATEWAY_ALLOW_PATHS",
        value_name = "PATH,.."
    )]
    pub allow_paths: Option<AllowPaths>,
}
