//! A gateway in front of language models: the tower-llm stack as a service.
//!
//! Limits, circuits, the cache and the timeouts are those of the `tower-llm` crates. The gateway adds what a server
//! needs: authentication of callers, [upstreams](Settings), removal of headers that a proxy must not forward, timeouts
//! for clients, metrics, a log and graceful shutdown. Several gateways share limits, circuits and answers through Redis.
//!
//! ```text
//! hyper > gate > Refusal > Describe > Monitor > caller's RateLimit > Cache > Breaker > provider's RateLimit > Bulkhead > Timeout > hyper-util's client
//! ```

mod access;
mod admin;
mod behind;
mod breaker;
mod cache;
mod caller;
mod client;
mod compress;
mod decode;
mod drain;
mod error;
mod framing;
mod gate;
mod headers;
mod known;
mod layers;
mod limits;
mod log;
mod many;
mod monitor;
mod paths;
mod problem;
mod proxy;
mod report;
mod resend;
mod secret;
mod sender;
mod server;
mod settings;
mod sharing;
mod shutdown;
mod targets;
mod upstream;
mod upstreams;
mod warm;

pub use self::{
    error::StartError,
    log::Log,
    paths::AllowPaths,
    server::{Gateway, Stopped},
    settings::{
        AccessSettings, AdminSettings, BreakerMode, BreakerSettings, BulkheadSettings,
        CacheCompletions, CacheSettings, CacheStatus, ProxySettings, RateLimitSettings, Secret,
        Settings, SharedLimitsBy, SharingSettings, Tiers, TimeoutSettings, UpstreamSettings,
    },
    shutdown::Drain,
};
