//! Embeddings by item.

mod calls;
mod flights;
mod model;
mod support;
