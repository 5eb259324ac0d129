//! The cache of a typed service, whose responses are stored and replayed as clones.
//!
//! Keys, policies, memory, handle and calls in flight are those of the HTTP cache. A typed call is a flight whose response
//! headers carry the response, and which has no frames.

mod call;
mod future;
mod layer;
mod service;

pub use self::{future::ClonedFuture, layer::ClonedLayer, service::Cloned};
