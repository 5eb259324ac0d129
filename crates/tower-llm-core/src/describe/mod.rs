//! Describing requests.

mod body;
mod future;
mod layer;
mod reader;
mod service;
mod tokens;

pub use self::{
    future::ResponseFuture,
    layer::{DescribeLayer, MAX_BODY_BYTES},
    service::Describe,
};
