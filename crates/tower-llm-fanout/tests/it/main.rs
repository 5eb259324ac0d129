//! The crate as its users see it.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod collect;
mod config;
mod contract;
mod ensemble;
mod ensemble_http;
mod first_ok;
mod hedge;
mod http;
mod pool;
mod pool_changes;
mod pool_http;
mod pool_load;
mod pool_picks;
mod pool_property;
mod pool_refusals;
mod pool_support;
mod pool_unsent;
mod retry;
mod split;
mod stress;
mod support;
