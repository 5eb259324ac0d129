//! Describing requests.

mod body;
mod future;
mod layer;
mod reader;
mod rename;
mod service;
mod tokens;

pub use self::{
    future::ResponseFuture,
    layer::{DescribeLayer, MAX_BODY_BYTES},
    rename::rename_model,
    service::Describe,
};
