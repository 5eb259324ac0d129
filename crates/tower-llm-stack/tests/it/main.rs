//! The stack and its adapters from outside: one binary, a module for each subject.

#[cfg(feature = "accounts")]
mod accounts;
#[cfg(feature = "async-openai")]
mod adapter_async_openai;
#[cfg(all(feature = "hyper-util", feature = "reqwest"))]
mod adapter_errors;
#[cfg(feature = "hyper-util")]
mod adapter_hyper_util;
#[cfg(feature = "reqwest")]
mod adapter_reqwest;
#[cfg(feature = "reqwest-middleware")]
mod adapter_reqwest_middleware;
#[cfg(all(
    feature = "breaker",
    feature = "bulkhead",
    feature = "ratelimit",
    feature = "timeout",
    feature = "tonic"
))]
mod adapter_tonic;
#[cfg(all(
    feature = "hyper-util",
    feature = "preset",
    feature = "reqwest-middleware",
    feature = "tonic"
))]
mod card;
#[cfg(feature = "config")]
mod config;
#[cfg(feature = "preset")]
mod contract;
#[cfg(all(
    feature = "breaker",
    feature = "bulkhead",
    feature = "ratelimit",
    feature = "timeout"
))]
mod optional;
#[cfg(all(feature = "boxed", feature = "preset"))]
mod preset;
#[cfg(all(
    feature = "breaker",
    feature = "bulkhead",
    feature = "ratelimit",
    feature = "timeout"
))]
mod stack;
#[allow(dead_code, reason = "each feature uses its part")]
mod support;
