//! Adapters between a stack and HTTP clients.
//!
//! Every layer of this workspace works around any `Service<http::Request<_>, Response = http::Response<_>>`; an adapter
//! turns a client into such a service (*under* the stack), or puts a layer *inside* a client that has a hook. Adapters work
//! with any tower layer. None of them buffers a response: the body that a layer returns is the body that is read, and what
//! it holds is held until it is dropped.
//!
//! | module | feature | what it gives |
//! |---|---|---|
//! | [`base_url`] | always | under: scheme, host and base path for requests that have only a path |
//! | [`reqwest`] | `reqwest` | under: a [`reqwest::Client`](::reqwest::Client) as the innermost service |
//! | [`reqwest_middleware`] | `reqwest-middleware` | inside: a layer as one `reqwest_middleware::Middleware` |
//! | [`hyper_util`] | `hyper-util` | under: hyper-util's pooled client, set up for long streams |
//! | [`tonic`] | `tonic` | around a tonic channel: errors of the stack as gRPC codes |
//! | [`async_openai`] | `async-openai` | inside: a stack under `async_openai::Client` |
//!
//! TLS belongs to the client: enable it on the `reqwest`, `tonic` or hyper connector that you pass in.
#![cfg_attr(
    not(all(
        feature = "reqwest",
        feature = "reqwest-middleware",
        feature = "hyper-util",
        feature = "tonic",
        feature = "async-openai"
    )),
    allow(
        rustdoc::broken_intra_doc_links,
        reason = "the table links to modules whose features may be off"
    )
)]

#[cfg(feature = "async-openai")]
#[cfg_attr(docsrs, doc(cfg(feature = "async-openai")))]
pub mod async_openai;
pub mod base_url;
#[cfg(feature = "hyper-util")]
#[cfg_attr(docsrs, doc(cfg(feature = "hyper-util")))]
pub mod hyper_util;
#[cfg(feature = "reqwest")]
#[cfg_attr(docsrs, doc(cfg(feature = "reqwest")))]
pub mod reqwest;
#[cfg(feature = "reqwest-middleware")]
#[cfg_attr(docsrs, doc(cfg(feature = "reqwest-middleware")))]
pub mod reqwest_middleware;
#[cfg(feature = "tonic")]
#[cfg_attr(docsrs, doc(cfg(feature = "tonic")))]
pub mod tonic;

#[cfg(any(feature = "hyper-util", feature = "tonic"))]
mod classified;
#[cfg(feature = "reqwest")]
mod convert;
#[cfg(any(feature = "reqwest", feature = "hyper-util", feature = "tonic"))]
mod error;
#[cfg(any(feature = "reqwest", feature = "hyper-util", feature = "tonic"))]
mod sent;

#[cfg(any(feature = "hyper-util", feature = "tonic"))]
pub use self::classified::ClassifiedFuture;
#[cfg(any(feature = "reqwest-middleware", feature = "async-openai"))]
pub use self::error::StackError;
#[cfg(any(feature = "reqwest", feature = "hyper-util", feature = "tonic"))]
pub use self::{
    error::RequestBodyError,
    sent::{ResponseBody, SentBody},
};

use tower_llm_core::BoxError;
