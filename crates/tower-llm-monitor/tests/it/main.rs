//! The monitor from outside: one binary, a module for each subject.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod alerts;
mod attempts;
mod config;
mod contract;
mod counts;
mod json_lines;
#[cfg(feature = "metrics")]
mod metrics;
mod records;
#[cfg(feature = "tracing")]
mod spans;
mod stress;
mod support;
mod window;
