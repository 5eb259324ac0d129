//! A gateway in front of language models: the tower-llm stack as a service.
//!
//! The policy is in the crates; here is what a server adds to them: which [upstream](Settings) a request goes to,
//! what a proxy may not pass on, patience with callers, metrics, and an orderly end.
//!
//! ```text
//! hyper > Refusal > Describe > Monitor > caller's RateLimit > Breaker > provider's RateLimit > Bulkhead > Timeout > hyper-util's client
//! ```

mod access;
mod breaker;
mod caller;
mod client;
mod error;
mod framing;
mod gate;
mod headers;
mod limits;
mod log;
mod monitor;
mod paths;
mod problem;
mod proxy;
mod report;
mod server;
mod settings;
mod shutdown;
mod upstream;

pub use self::{
    error::StartError,
    log::Log,
    paths::AllowPaths,
    server::{Gateway, Stopped},
    settings::{
        AccessSettings, BreakerMode, BreakerSettings, BulkheadSettings, ProxySettings,
        RateLimitSettings, Secret, Settings, Tiers, TimeoutSettings, UpstreamSettings,
    },
    shutdown::Drain,
};
