//! The timeouts from outside: one binary, a module for each subject.

mod config;
mod contract;
mod cut;
mod deadlines;
mod life;
mod provider;
mod support;
mod timer;
