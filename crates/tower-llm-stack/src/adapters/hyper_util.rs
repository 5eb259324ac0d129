//! hyper-util's pooled client as the innermost service of a stack.
//!
//! [`Client`] is a tower service as it is. What is missing to call a provider with it is an address, from
//! [`BaseUrlLayer`](super::base_url::BaseUrlLayer), and settings that are easily forgotten, from [`client`]. TLS is the
//! connector's: hand in hyper-rustls' or hyper-tls'.
//!
//! ```no_run
//! use bytes::Bytes;
//! use http::Request;
//! use http_body_util::Full;
//! use hyper_util::client::legacy::connect::HttpConnector;
//! use tower::{ServiceBuilder, ServiceExt};
//! use tower_llm_stack::adapters::base_url::{BaseUrl, BaseUrlLayer};
//!
//! # async fn run() -> Result<(), tower::BoxError> {
//! let mut connector = HttpConnector::new();
//! // A request is written in two parts where it is not small; don't hold back the second.
//! connector.set_nodelay(true);
//! let service = ServiceBuilder::new()
//!     .concurrency_limit(8) // or any other layers
//!     .layer(BaseUrlLayer::new(BaseUrl::new("http://127.0.0.1:11434/v1")?))
//!     .service(tower_llm_stack::adapters::hyper_util::client(connector));
//!
//! let request = Request::post("/chat/completions").body(Full::<Bytes>::from(r#"{"model": "qwen3"}"#))?;
//! let response = service.clone().oneshot(request).await?;
//! println!("{}", response.status());
//! # Ok(())
//! # }
//! ```
//!
//! The client sends a request again by itself if the server had closed the pooled connection before any of it was
//! written; the stack sees one call. It follows no redirects and has no timeout of its own.

use ::hyper_util::client::legacy::Client;
use ::hyper_util::client::legacy::connect::Connect;
use ::hyper_util::rt::{TokioExecutor, TokioTimer};
use bytes::Bytes;
use http_body_util::Full;

/// A pooled client over `connector`, on tokio, with hyper-util's defaults and the timer it needs to close idle
/// connections: without one, an idle connection stays open until the next request to its host finds it too old.
///
/// For other settings, build the [`Client`] yourself: nothing here depends on this function.
pub fn client<C>(connector: C) -> Client<C, Full<Bytes>>
where
    C: Connect + Clone,
{
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .build(connector)
}
