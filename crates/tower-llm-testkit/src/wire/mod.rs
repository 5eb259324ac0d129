//! The exact answers the simulated provider gives, without a server.
//!
//! The server sends what [`reply()`] returns, byte for byte and frame for frame: the same request and
//! behaviour give the same answer, so a test can compare what arrived with what was sent.

mod answer;
mod anthropic;
mod chat;
mod completions;
mod count;
mod cut;
mod embeddings;
mod errors;
mod gemini;
mod headers;
mod models;
mod part;
mod reply;
mod responses;
mod route;
mod schema;
mod speech;
mod tools;
mod validate;

pub use reply::{End, Frame, Reply};

pub(crate) use reply::Asked;
pub(crate) use route::Dialect;

use bytes::Bytes;
use serde_json::Value;

use crate::Behavior;

/// The answer to a POST to `path`, which may have a query, with the body `request`; to a GET of a list of models.
#[must_use]
pub fn reply(path: &str, request: &[u8], behavior: &Behavior) -> Reply {
    Reply::build(&Asked::post(path, request), behavior)
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

/// The text as it stands between the quotes of a JSON string.
fn escaped(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}
