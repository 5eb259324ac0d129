//! Limits that processes share.

#[macro_use]
mod support;

mod config;
mod latency;
mod limits;
mod outage;
mod processes;
mod reported;
mod settle;
mod settle_again;
mod settlements;
mod wait;
