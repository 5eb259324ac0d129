//! The exact answers the simulated provider gives, without a server.
//!
//! The server sends what [`reply()`] returns, byte for byte and frame for frame: the same request and
//! behaviour give the same answer, so a test can compare what arrived with what was sent.

mod answer;
mod anthropic;
mod chat;
mod completions;
mod cut;
mod embeddings;
mod errors;
mod gemini;
mod headers;
mod part;
mod reply;
mod responses;
mod route;

pub use reply::{End, Frame, Reply};

pub(crate) use errors::method_not_allowed;
pub(crate) use route::{Endpoint, Route};

use bytes::Bytes;

use crate::Behavior;

/// The answer to a request for `path` (its query included) with the body `request`.
#[must_use]
pub fn reply(path: &str, request: &[u8], behavior: &Behavior) -> Reply {
    Reply::build(path, request, behavior)
}

/// The frames of the response body alone; none if the fault is that there is no response.
#[must_use]
pub fn body(path: &str, request: &[u8], behavior: &Behavior) -> Vec<Bytes> {
    reply(path, request, behavior)
        .frames
        .into_iter()
        .map(|frame| frame.bytes)
        .collect()
}
