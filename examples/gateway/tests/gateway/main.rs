//! The gateway from outside: its sockets, its binary, its figures.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod access;
mod admin;
mod breaker;
mod bulkhead;
mod cache;
mod callers;
mod cancel;
mod client;
mod compression;
mod dialects;
mod failures;
mod keys;
mod latency;
mod log;
mod many;
mod observe;
mod proxy;
mod ratelimit;
mod raw;
mod records;
mod requests;
mod reuse;
mod sharing;
mod shutdown;
mod start;
mod support;
mod targets;
mod tls;
mod uploads;
mod warm;
