//! The crate as its users see it.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod collect;
mod config;
mod contract;
mod first_ok;
mod hedge;
mod http;
mod retry;
mod stress;
mod support;
