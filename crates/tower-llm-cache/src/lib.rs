//! Caches exact answers of language models, streams included, and shares calls in flight.
//!
//! A [`CacheLayer`] records an answer while it passes, and serves it again to requests that ask the same:
//!
//! - **The same** means the same content: the key is a digest of the canonical request, in which spelling, and members such as
//!   `user`, `metadata` or `service_tier`, do not count. Any other member does, also one that is not known here.
//! - **For whom** is a decision that the builder demands: a [`Scope`] of one caller, of a tenant, or of all.
//! - **Whole answers only**: a stream that was cut, an error inside a 200, an answer that was truncated or filtered, and, unless
//!   the policy allows it, one that calls tools, is passed on and not stored.
//! - **Frame for frame**: a recorded stream is replayed as it came, reasoning and usage included, without pauses. Callers that do
//!   not stream get the same answer as one object, and the other way round, in the provider's own form.
//! - **In flight**: callers that ask the same at the same time share one upstream call. Each reads the growing answer from its
//!   first frame, at its own speed; one that leaves, or reads nothing, holds up no other. The upstream is dropped when the last
//!   one leaves. A call that fails fails those that share it, and the next caller starts a new one.
//!
//! Requests whose answer depends on more than the request are not cached: those that refer to state at the provider, that have
//! the provider search or run tools, or that ask it to store the answer. [`Bypass`] lists the reasons.
//!
//! Responses say what happened in a `cache-status` header (RFC 9211), and requests are obeyed in `cache-control`: `no-store`,
//! `no-cache`, `max-age` and `only-if-cached`.
//!
//! # What it does not do
//!
//! It holds answers in this process only. It compares no meaning: two questions that differ in a word are two questions. A batch
//! of embeddings is one answer: it is found again as a whole, not by item.
//!
//! # Costs
//!
//! Exact repeats are rare in chats with people, and common in evaluations, classification, embeddings and retries. A miss
//! allocates one flight and spawns no task. Beyond
//! [`max_answer_bytes`](Policy::max_answer_bytes) nothing is recorded, and no more callers join. A reader that falls further
//! behind than that, while others read on, gets an error.
//!
//! # Example
//!
//! ```
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::{BodyExt, Full};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_llm_cache::{CacheLayer, NotCached, Scope};
//! use tower_llm_core::{BoxError, DescribeLayer, RequestBody};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), BoxError> {
//! let layer = CacheLayer::builder(Scope::shared()).build()?;
//! let cache = layer.handle();
//! let model = ServiceBuilder::new()
//!     .layer(DescribeLayer::new())
//!     .layer(layer)
//!     .service(service_fn(|_: Request<RequestBody>| async {
//!         let answer = r#"{"choices":[{"finish_reason":"stop"}]}"#;
//!         Ok::<_, BoxError>(Response::new(Full::new(Bytes::from(answer))))
//!     }));
//!
//! let ask = |control: &'static str| {
//!     let request = Request::post("/v1/chat/completions").header("cache-control", control);
//!     request.body(Full::new(Bytes::from(r#"{"model":"gpt-5.4","messages":[]}"#))).unwrap()
//! };
//! // Nothing is cached yet, and the request allows nothing else.
//! let error = model.clone().oneshot(ask("only-if-cached")).await.unwrap_err();
//! assert!(error.is::<NotCached>());
//!
//! let first = model.clone().oneshot(ask("")).await?.into_body().collect().await?.to_bytes();
//! let again = model.oneshot(ask("only-if-cached")).await?;
//! assert_eq!(again.headers()["cache-status"], "tower-llm-cache; hit; ttl=1800");
//! assert_eq!(again.into_body().collect().await?.to_bytes(), first);
//! assert_eq!(cache.stats().hit_ratio(), 0.5);
//! # Ok(())
//! # }
//! ```

#![warn(missing_docs)]

mod assemble;
mod body;
mod directives;
mod error;
mod flight;
mod form;
mod future;
mod glob;
mod handle;
mod headers;
mod key;
mod layer;
mod memory;
mod policy;
mod record;
mod replay;
mod service;
mod shared;
mod upstream;

pub use self::{
    body::CacheBody,
    error::{FlightFailed, NotCached},
    future::ResponseFuture,
    handle::{CacheHandle, CacheStats},
    headers::StatusHeader,
    key::{Bypass, CacheKey, ParseKeyError, Scope},
    layer::{CacheBuilder, CacheLayer},
    memory::Memory,
    policy::Policy,
    service::Cache,
};
