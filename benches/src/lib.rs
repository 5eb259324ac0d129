//! What the layers cost, beside their peers in the same run.
//!
//! `cargo xtask bench` runs all suites, `cargo xtask bench bulkhead` one of them. Each is a file under `benches/`, with
//! its question in its first line. Times are medians, of one thread and of two that share the service; allocations are
//! counted exactly.

mod alloc;
mod poll;
mod runtime;
mod suite;

pub mod payload;

pub use self::{
    alloc::{Allocated, allocated_by, held, held_by},
    poll::{Frames, drain, now},
    runtime::runtime,
    suite::{Case, Suite, peer},
};
