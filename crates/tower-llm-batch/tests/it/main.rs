//! The layer from outside: one binary, a module for each subject.

mod config;
mod contract;
mod embeddings;
mod failures;
mod leaving;
mod limits;
mod poison;
mod queue;
mod stalling;
mod stress;
mod support;
mod window;
