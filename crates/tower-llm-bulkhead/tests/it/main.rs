//! The bulkhead from outside: one binary, a module for each subject.

mod adaptive;
mod config;
mod contract;
mod fairness;
mod http;
mod limits;
mod overtaking;
mod queue;
mod release;
mod reserve;
mod stress;
mod support;
