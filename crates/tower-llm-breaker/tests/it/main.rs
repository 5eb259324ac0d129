//! The breaker from outside: one binary, a module for each subject.

mod config;
mod contract;
mod generations;
mod handle;
mod hostile;
mod keys;
mod max_open_ratio;
#[cfg(feature = "redis")]
mod shared;
mod slow;
mod streams;
mod subjects;
mod support;
mod times;
mod windows;
