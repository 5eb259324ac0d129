//! What gateways share through Redis.

use std::time::Duration;

use super::{
    Secret,
    values::{replicas, seconds, shared_limits, switch},
};

/// What several gateways share through Redis: limits, circuits, cached answers and the identity of callers.
///
/// Gateways with the same Redis and the same secret share. Their other settings must be the same too.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Sharing")]
pub struct SharingSettings {
    /// Redis, Valkey or a Redis Cluster through which gateways share rate limits, circuits and cached answers, such as
    /// `redis://:password@host:6379/0`, `rediss://` for TLS, or `redis-cluster://host:7000`. Needs GATEWAY_CALLER_SECRET.
    #[arg(long, env = "REDIS_URL", value_name = "URL", hide_env_values = true)]
    pub redis_url: Option<Secret>,
    /// Whether Redis must be reachable when the gateway starts. If `off`, the gateway starts without it and connects later.
    /// A running gateway never needs Redis.
    #[arg(
        long,
        env = "REDIS_REQUIRED",
        value_name = "BOOL",
        default_value = "true",
        action = clap::ArgAction::Set,
        value_parser = switch
    )]
    pub redis_required: bool,
    /// Longest wait for an answer of Redis. After that, Redis counts as unavailable until it answers again.
    #[arg(long, env = "REDIS_TIMEOUT", value_name = "SECONDS", default_value = "0.1", value_parser = seconds)]
    pub redis_timeout: Duration,
    /// Identifies callers: gateways with the same secret recognize the same callers. Required with REDIS_URL; at least 32
    /// characters, such as the output of `openssl rand -hex 32`. Without it, each gateway has a random one. Prefer the
    /// variable.
    #[arg(
        long,
        env = "GATEWAY_CALLER_SECRET",
        value_name = "SECRET",
        hide_env_values = true
    )]
    pub caller_secret: Option<Secret>,
    /// Number of gateways that share. While Redis is unavailable, each enforces its part of the limits: the limit divided by
    /// this number.
    #[arg(long, env = "GATEWAY_REPLICAS", value_name = "GATEWAYS", default_value_t = 2, value_parser = replicas)]
    pub replicas: u32,
    /// How limits are shared. `script`: each call asks Redis, and the limit is exact. `lease`: each gateway leases a part of
    /// the limit for a second and decides by itself; the limit still holds, but a little of it may stay unused.
    #[arg(
        long,
        env = "RATELIMIT_SHARED",
        value_name = "HOW",
        default_value = "script",
        value_parser = shared_limits
    )]
    pub ratelimit_shared: SharedLimitsBy,
}

/// How limits are shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedLimitsBy {
    /// Each call runs a script in Redis.
    Script,
    /// Each gateway leases a part of each limit.
    Lease,
}
