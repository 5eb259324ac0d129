//! A cache whose answers several processes share in Redis. Each "process" is a layer with a client of its own.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "tests fail by panics")]

mod cluster;
mod invalidation;
mod outages;
mod sharing;
mod support;
