//! The gateway's settings, by flag or by environment variable.

mod admin;
mod load;
mod sharing;
mod values;

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::Parser;

pub(crate) use self::load::Names;
use self::values::{
    amount, at_least_one, breaker_mode, cache_completions, cache_status, permits, seconds,
    seconds_or_zero, switch, ttl,
};
pub use self::{
    admin::AdminSettings,
    sharing::{SharedLimitsBy, SharingSettings},
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

/// Addresses and keys of the providers, under the names that the providers' own clients use.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Upstreams")]
pub struct UpstreamSettings {
    /// Base URL of OpenAI, or of a server that speaks its dialect; usually ends in `/v1` [default:
    /// `https://api.openai.com/v1`].
    #[arg(long, env = "OPENAI_BASE_URL", value_name = "URL")]
    pub openai_base_url: Option<String>,
    /// Sent to OpenAI instead of the caller's key. Prefer the variable.
    #[arg(
        long,
        env = "OPENAI_API_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    pub openai_api_key: Option<Secret>,

    /// Base URL of Anthropic [default: `https://api.anthropic.com`].
    #[arg(long, env = "ANTHROPIC_BASE_URL", value_name = "URL")]
    pub anthropic_base_url: Option<String>,
    /// Sent to Anthropic instead of the caller's key. Prefer the variable.
    #[arg(
        long,
        env = "ANTHROPIC_API_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    pub anthropic_api_key: Option<Secret>,

    /// Base URL of Gemini [default: `https://generativelanguage.googleapis.com`].
    #[arg(long, env = "GOOGLE_GEMINI_BASE_URL", value_name = "URL")]
    pub gemini_base_url: Option<String>,
    /// Sent to Gemini instead of the caller's key. Prefer the variable.
    #[arg(
        long,
        env = "GEMINI_API_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    pub gemini_api_key: Option<Secret>,

    /// Endpoint of Azure OpenAI; it has no default.
    #[arg(long, env = "AZURE_OPENAI_ENDPOINT", value_name = "URL")]
    pub azure_endpoint: Option<String>,
    /// Sent to Azure OpenAI instead of the caller's key. Prefer the variable.
    #[arg(
        long,
        env = "AZURE_OPENAI_API_KEY",
        value_name = "KEY",
        hide_env_values = true
    )]
    pub azure_api_key: Option<Secret>,
}

/// Proxies on the way to the providers. The variables are read in lower case too.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Proxy")]
pub struct ProxySettings {
    /// Proxy for https upstreams, by CONNECT; its URL may contain a user and password.
    #[arg(
        long = "https-proxy",
        env = "HTTPS_PROXY",
        value_name = "URL",
        hide_env_values = true
    )]
    pub https: Option<Secret>,
    /// Proxy for http upstreams.
    #[arg(
        long = "http-proxy",
        env = "HTTP_PROXY",
        value_name = "URL",
        hide_env_values = true
    )]
    pub http: Option<Secret>,
    /// Proxy for upstreams that neither of the two above covers.
    #[arg(
        long = "all-proxy",
        env = "ALL_PROXY",
        value_name = "URL",
        hide_env_values = true
    )]
    pub all: Option<Secret>,
    /// Hosts that are reached without a proxy: domains with their subdomains, IP addresses, networks (`10.0.0.0/8`), or `*`.
    #[arg(long = "no-proxy", env = "NO_PROXY", value_name = "HOST,..")]
    pub no: Option<String>,
}

/// Limits for requests and tokens. What is not set is limited only by what providers report: see RATELIMIT_LEARN.
///
/// A provider's limits apply to all calls of the gateway to that provider together, whatever the model and the caller.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Rate limit")]
pub struct RateLimitSettings {
    /// OpenAI: requests per minute; no limit unless set.
    #[arg(long = "ratelimit-openai-rpm", env = "RATELIMIT_OPENAI_RPM", value_name = "REQUESTS", value_parser = amount)]
    pub openai_rpm: Option<u64>,
    /// OpenAI: tokens per minute, input and output; no limit unless set.
    #[arg(long = "ratelimit-openai-tpm", env = "RATELIMIT_OPENAI_TPM", value_name = "TOKENS", value_parser = amount)]
    pub openai_tpm: Option<u64>,
    /// Anthropic: requests per minute; no limit unless set.
    #[arg(long = "ratelimit-anthropic-rpm", env = "RATELIMIT_ANTHROPIC_RPM", value_name = "REQUESTS", value_parser = amount)]
    pub anthropic_rpm: Option<u64>,
    /// Anthropic: tokens per minute, input and output; no limit unless set.
    #[arg(long = "ratelimit-anthropic-tpm", env = "RATELIMIT_ANTHROPIC_TPM", value_name = "TOKENS", value_parser = amount)]
    pub anthropic_tpm: Option<u64>,
    /// Anthropic: input tokens per minute. Tokens read from its prompt cache do not count.
    #[arg(long = "ratelimit-anthropic-itpm", env = "RATELIMIT_ANTHROPIC_ITPM", value_name = "TOKENS", value_parser = amount)]
    pub anthropic_itpm: Option<u64>,
    /// Anthropic: output tokens per minute.
    #[arg(long = "ratelimit-anthropic-otpm", env = "RATELIMIT_ANTHROPIC_OTPM", value_name = "TOKENS", value_parser = amount)]
    pub anthropic_otpm: Option<u64>,
    /// Gemini: requests per minute; no limit unless set.
    #[arg(long = "ratelimit-gemini-rpm", env = "RATELIMIT_GEMINI_RPM", value_name = "REQUESTS", value_parser = amount)]
    pub gemini_rpm: Option<u64>,
    /// Gemini: tokens per minute, input and output; no limit unless set.
    #[arg(long = "ratelimit-gemini-tpm", env = "RATELIMIT_GEMINI_TPM", value_name = "TOKENS", value_parser = amount)]
    pub gemini_tpm: Option<u64>,
    /// Azure OpenAI: requests per minute; no limit unless set.
    #[arg(long = "ratelimit-azure-rpm", env = "RATELIMIT_AZURE_RPM", value_name = "REQUESTS", value_parser = amount)]
    pub azure_rpm: Option<u64>,
    /// Azure OpenAI: tokens per minute, input and output; no limit unless set.
    #[arg(long = "ratelimit-azure-tpm", env = "RATELIMIT_AZURE_TPM", value_name = "TOKENS", value_parser = amount)]
    pub azure_tpm: Option<u64>,
    /// Obey the limits and wait times that providers report in their responses, per model.
    #[arg(
        long = "ratelimit-learn",
        env = "RATELIMIT_LEARN",
        value_name = "BOOL",
        default_value = "true",
        action = clap::ArgAction::Set,
        value_parser = switch
    )]
    pub learn: bool,
    /// Calls that may wait for a provider's limit; with 0 a call over the limit is refused at once.
    #[arg(
        long = "ratelimit-queue",
        env = "RATELIMIT_QUEUE",
        value_name = "CALLS",
        default_value_t = 100
    )]
    pub queue: usize,
    /// Longest wait for a provider's limit; a call that would wait longer is refused at once.
    #[arg(long = "ratelimit-timeout", env = "RATELIMIT_TIMEOUT", value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub timeout: Duration,

    /// Each caller: requests per minute. A caller is identified by its gateway key. Without gateway keys it is
    /// identified by the provider key it sends. If the gateway then sends a provider key of its own instead, it does
    /// not check the caller's, so a caller can send another value each time and avoid its limit.
    #[arg(long = "ratelimit-caller-rpm", env = "RATELIMIT_CALLER_RPM", value_name = "REQUESTS", value_parser = amount)]
    pub caller_rpm: Option<u64>,
    /// Each caller: tokens per minute, input and output.
    #[arg(long = "ratelimit-caller-tpm", env = "RATELIMIT_CALLER_TPM", value_name = "TOKENS", value_parser = amount)]
    pub caller_tpm: Option<u64>,
    /// Tiers of callers, with requests per hour, such as `free:100,pro:1000,enterprise:10000`. A caller without a tier is
    /// in the first.
    #[arg(
        long = "ratelimit-tiers",
        env = "RATELIMIT_TIERS",
        value_name = "TIER:REQUESTS,.."
    )]
    pub tiers: Option<Tiers>,
    /// Assigns callers to tiers; a caller not listed here is in the first tier of RATELIMIT_TIERS. A caller is named by
    /// its gateway key or, without gateway keys, by the provider key it sends. Prefer the variable.
    #[arg(
        long = "ratelimit-caller-tiers",
        env = "RATELIMIT_CALLER_TIERS",
        value_name = "KEY:TIER,..",
        hide_env_values = true
    )]
    pub caller_tiers: Option<Secret>,
}

/// Which answers are cached, in memory and, with REDIS_URL, in Redis. A caller gets only answers to its own earlier calls; calls
/// without a credential are not cached.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Cache")]
pub struct CacheSettings {
    /// Completions to cache: `all`, `deterministic` (temperature 0, or a seed), or `off`.
    #[arg(
        long = "cache-completions",
        env = "CACHE_COMPLETIONS",
        value_name = "WHICH",
        default_value = "deterministic",
        value_parser = cache_completions
    )]
    pub completions: CacheCompletions,
    /// Whether embeddings are cached.
    #[arg(
        long = "cache-embeddings",
        env = "CACHE_EMBEDDINGS",
        value_name = "SWITCH",
        default_value = "on",
        action = clap::ArgAction::Set,
        value_parser = switch
    )]
    pub embeddings: bool,
    /// Time a cached answer is served, for completions and embeddings alike. CACHE_COMPLETIONS_TTL and
    /// CACHE_EMBEDDINGS_TTL each override it for their kind.
    #[arg(long = "cache-ttl", env = "CACHE_TTL", value_name = "SECONDS", value_parser = ttl)]
    pub ttl: Option<Duration>,
    /// Time a cached completion is served [default: 1800].
    #[arg(long = "cache-completions-ttl", env = "CACHE_COMPLETIONS_TTL", value_name = "SECONDS", value_parser = ttl)]
    pub completions_ttl: Option<Duration>,
    /// Time cached embeddings are served [default: 86400].
    #[arg(long = "cache-embeddings-ttl", env = "CACHE_EMBEDDINGS_TTL", value_name = "SECONDS", value_parser = ttl)]
    pub embeddings_ttl: Option<Duration>,
    /// Time a completion is served after its time, while a new one is fetched [default: none].
    #[arg(
        long = "cache-stale-while-revalidate",
        env = "CACHE_STALE_WHILE_REVALIDATE",
        value_name = "SECONDS",
        value_parser = ttl
    )]
    pub stale_while_revalidate: Option<Duration>,
    /// Time a completion is served after its time, if the call for a new one fails [default: none].
    #[arg(long = "cache-stale-if-error", env = "CACHE_STALE_IF_ERROR", value_name = "SECONDS", value_parser = ttl)]
    pub stale_if_error: Option<Duration>,
    /// Calls a minute that renew completions ahead: those with three hits or more that are asked for in the last tenth of their
    /// time. The calls cost money; 0 makes none.
    #[arg(
        long = "cache-refresh-per-minute",
        env = "CACHE_REFRESH_PER_MINUTE",
        value_name = "CALLS",
        default_value_t = 0
    )]
    pub refresh_per_minute: u32,
    /// Whether a completion that its caller has left is read to its end and stored, for callers that ask again.
    /// Caller limits charge the caller that left what the call has used, when it has ended.
    #[arg(
        long = "cache-finish-abandoned",
        env = "CACHE_FINISH_ABANDONED",
        value_name = "SWITCH",
        default_value = "off",
        action = clap::ArgAction::Set,
        value_parser = switch
    )]
    pub finish_abandoned: bool,
    /// Memory for all answers, in bytes. The least recently used answers are evicted first.
    #[arg(long = "cache-max-bytes", env = "CACHE_MAX_BYTES", value_name = "BYTES", default_value_t = 256 << 20, value_parser = amount)]
    pub max_bytes: u64,
    /// Maximum number of answers; no limit unless set.
    #[arg(long = "cache-max-entries", env = "CACHE_MAX_ENTRIES", value_name = "ANSWERS", value_parser = amount)]
    pub max_entries: Option<u64>,
    /// Content of the `cache-status` header in responses: `off`, `plain` (hit, or why not), or `key`, which adds the key that
    /// `/admin/cache/invalidate` takes.
    #[arg(
        long = "cache-status",
        env = "CACHE_STATUS",
        value_name = "WHAT",
        default_value = "plain",
        value_parser = cache_status
    )]
    pub status: CacheStatus,
    /// With REDIS_URL: whether gateways share answers in Redis, beside their own memory. Answers live there as long as in
    /// memory, and also outlive the gateway.
    #[arg(
        long = "cache-shared",
        env = "CACHE_SHARED",
        value_name = "BOOL",
        default_value = "true",
        action = clap::ArgAction::Set,
        value_parser = switch
    )]
    pub shared: bool,
    /// Seals the answers in Redis: without the secret they can be neither read nor replaced. The same in all gateways; at
    /// least 32 characters, such as the output of `openssl rand -hex 32`. Unless it is set, everyone who can read Redis can
    /// read the answers. Prefer the variable.
    #[arg(
        long = "cache-secret",
        env = "GATEWAY_CACHE_SECRET",
        value_name = "SECRET",
        hide_env_values = true
    )]
    pub secret: Option<Secret>,
    /// Name before the keys of answers in Redis, so that gateways with different names share no answers and remove only their
    /// own: `NAME:ai:completion:..`. Patterns leave it out [default: none].
    #[arg(long = "cache-namespace", env = "CACHE_NAMESPACE", value_name = "NAME")]
    pub namespace: Option<String>,
    /// File with calls to make after the start, so that their answers are in the cache: one JSON object a line, such as
    /// `{"caller": 1, "path": "/v1/embeddings", "body": {..}}`. An answer is cached for its caller: the number of a key in
    /// GATEWAY_KEYS or, instead of it, the `headers` that the caller sends. The calls cost money and count against limits.
    #[arg(long = "cache-warm", env = "CACHE_WARM", value_name = "FILE")]
    pub warm: Option<PathBuf>,
    /// Maximum number of calls that warm the cache at once: those of that file, or of a `POST /admin/cache/warm`.
    #[arg(
        long = "cache-warm-concurrency",
        env = "CACHE_WARM_CONCURRENCY",
        value_name = "CALLS",
        default_value = "4"
    )]
    pub warm_concurrency: NonZeroUsize,
}

/// What responses say of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheStatus {
    /// Nothing.
    Off,
    /// Whether they come from the cache, or why not.
    Plain,
    /// Also the key, by which an answer can be invalidated.
    Key,
}

/// Which completions are cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheCompletions {
    /// All, whatever their temperature.
    All,
    /// Those that ask for determinism: a temperature of 0, or a seed.
    Deterministic,
    /// None.
    Off,
}

/// When circuits open and close. Each provider (for failed connections), each model and each account has a circuit of
/// its own.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Circuit breaker")]
pub struct BreakerSettings {
    /// `on`, `off`, or `metrics-only`: circuits stay closed, and the log and the metrics say when one would have opened.
    #[arg(
        long = "breaker",
        env = "BREAKER",
        value_name = "MODE",
        default_value = "on",
        value_parser = breaker_mode
    )]
    pub mode: BreakerMode,
    /// Failure ratio at which a circuit opens, 0 to 1.
    #[arg(
        long = "breaker-failure-ratio",
        env = "BREAKER_FAILURE_RATIO",
        value_name = "RATIO",
        default_value_t = 0.5
    )]
    pub failure_ratio: f64,
    /// Length of the sliding window over which calls are counted.
    #[arg(long = "breaker-window", env = "BREAKER_WINDOW", value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub window: Duration,
    /// Minimum number of calls before the failure ratio is judged.
    #[arg(long = "breaker-minimum-calls", env = "BREAKER_MINIMUM_CALLS", value_name = "CALLS", default_value_t = 10, value_parser = at_least_one)]
    pub minimum_calls: usize,
    /// Consecutive failures that open a circuit, whatever the failure ratio; 0 switches this off.
    #[arg(
        long = "breaker-failure-threshold",
        env = "BREAKER_FAILURE_THRESHOLD",
        value_name = "FAILURES",
        default_value_t = 5
    )]
    pub failure_threshold: u32,
    /// Successful probes that close a half-open circuit.
    #[arg(
        long = "breaker-success-threshold",
        env = "BREAKER_SUCCESS_THRESHOLD",
        value_name = "PROBES",
        default_value_t = 2
    )]
    pub success_threshold: u32,
    /// Time a circuit stays open when it first opens, doubled each time it opens again. A provider's `retry-after` can
    /// extend it.
    #[arg(long = "breaker-timeout", env = "BREAKER_TIMEOUT", value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub open_for: Duration,
    /// Longest time a circuit stays open, unless a provider's `retry-after` is longer.
    #[arg(long = "breaker-max-timeout", env = "BREAKER_MAX_TIMEOUT", value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    pub max_open_for: Duration,
}

/// Whether circuits open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerMode {
    /// They open and close.
    On,
    /// They stay closed and report when they would have opened.
    MetricsOnly,
    /// There are no circuits.
    Off,
}

/// Permits for concurrent calls, by provider.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Bulkhead")]
pub struct BulkheadSettings {
    /// Concurrent calls to each provider without a limit of its own.
    #[arg(long = "bulkhead-default-concurrent", env = "BULKHEAD_DEFAULT_CONCURRENT", value_name = "CALLS", default_value_t = 100, value_parser = permits)]
    pub default_concurrent: usize,
    /// Concurrent calls to OpenAI.
    #[arg(long = "bulkhead-openai-concurrent", env = "BULKHEAD_OPENAI_CONCURRENT", value_name = "CALLS", value_parser = permits)]
    pub openai_concurrent: Option<usize>,
    /// Concurrent calls to Anthropic.
    #[arg(long = "bulkhead-anthropic-concurrent", env = "BULKHEAD_ANTHROPIC_CONCURRENT", value_name = "CALLS", value_parser = permits)]
    pub anthropic_concurrent: Option<usize>,
    /// Concurrent calls to Gemini.
    #[arg(long = "bulkhead-gemini-concurrent", env = "BULKHEAD_GEMINI_CONCURRENT", value_name = "CALLS", value_parser = permits)]
    pub gemini_concurrent: Option<usize>,
    /// Concurrent calls to Azure OpenAI.
    #[arg(long = "bulkhead-azure-concurrent", env = "BULKHEAD_AZURE_CONCURRENT", value_name = "CALLS", value_parser = permits)]
    pub azure_concurrent: Option<usize>,
    /// Concurrent calls to all providers together [default: no such limit].
    #[arg(long = "bulkhead-global-concurrent", env = "BULKHEAD_GLOBAL_CONCURRENT", value_name = "CALLS", value_parser = permits)]
    pub global_concurrent: Option<usize>,
    /// Calls per provider that may wait while its concurrent calls are at their limit; with 0, further calls are
    /// refused at once.
    #[arg(
        long = "bulkhead-default-queue",
        env = "BULKHEAD_DEFAULT_QUEUE",
        value_name = "CALLS",
        default_value_t = 100
    )]
    pub default_queue: usize,
    /// Longest wait for a permit.
    #[arg(long = "bulkhead-default-timeout", env = "BULKHEAD_DEFAULT_TIMEOUT", value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub default_timeout: Duration,
}

/// Timeouts of a call. A default below that is longer than TIMEOUT_TOTAL is shortened to it.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Timeout")]
pub struct TimeoutSettings {
    /// Time to the first content token of a stream [default: 120].
    #[arg(long = "timeout-first-token", env = "TIMEOUT_FIRST_TOKEN", value_name = "SECONDS", value_parser = seconds)]
    pub first_token: Option<Duration>,
    /// Time to the first content token if the stream shows signs of life before it, such as comments or events without
    /// content [default: five times TIMEOUT_FIRST_TOKEN, at most TIMEOUT_TOTAL].
    #[arg(long = "timeout-first-token-max", env = "TIMEOUT_FIRST_TOKEN_MAX", value_name = "SECONDS", value_parser = seconds)]
    pub first_token_max: Option<Duration>,
    /// Longest time between two frames after the first token [default: 60].
    #[arg(long = "timeout-idle", env = "TIMEOUT_IDLE", value_name = "SECONDS", value_parser = seconds)]
    pub idle: Option<Duration>,
    /// Time for the whole call, to the end of the response body.
    #[arg(long = "timeout-total", env = "TIMEOUT_TOTAL", value_name = "SECONDS", default_value = "600", value_parser = seconds)]
    pub total: Duration,
}

impl UpstreamSettings {
    /// Whether nothing is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let urls = [
            &self.openai_base_url,
            &self.anthropic_base_url,
            &self.gemini_base_url,
            &self.azure_endpoint,
        ];
        let keys = [
            &self.openai_api_key,
            &self.anthropic_api_key,
            &self.gemini_api_key,
            &self.azure_api_key,
        ];
        urls.into_iter()
            .flatten()
            .map(String::as_str)
            .chain(keys.into_iter().flatten().map(Secret::expose))
            .all(str::is_empty)
    }
}
