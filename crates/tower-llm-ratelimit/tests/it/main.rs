//! The rate limit from outside: one binary, a module for each subject.

mod config;
mod contract;
mod headers;
mod http;
mod http_support;
mod limits;
mod memory;
mod queue;
mod refusal_headers;
mod reported;
mod settle_reserve;
#[cfg(feature = "redis")]
mod shared;
mod stress;
mod support;
mod tiers;
