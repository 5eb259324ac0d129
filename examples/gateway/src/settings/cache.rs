//! The cache.

use std::{num::NonZeroUsize, path::PathBuf, time::Duration};

use super::values::{Secret, amount, cache_completions, cache_status, switch, ttl};

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
