//! Caches the answers of language models, streams included, for identical requests, and shares one call among identical
//! requests in flight.
//!
//! A [`CacheLayer`] records an answer while it passes, and serves it again to identical requests:
//!
//! - **Identical** means equal content: the key is a digest of the request in canonical form. JSON formatting, the order
//!   of members, and members such as `user`, `metadata` or `service_tier`, do not affect it. All other members do,
//!   including those that this crate does not know. In schemas and tools, the order of members does, too: models write
//!   structured output in that order.
//! - **Scope**: an answer is shared within one caller, one tenant or all callers. The builder requires a [`Scope`];
//!   there is no default.
//! - **Complete answers only**: the layer passes on, but does not store, streams that broke off, errors inside a 200,
//!   and answers that hit a token limit or were filtered. Answers that call tools are stored only if the policy allows
//!   it.
//! - **Frame for frame**: a recorded stream is replayed as it came, reasoning and usage included, without pauses. A
//!   streamed answer also serves callers that do not stream, as one JSON object, and an unstreamed answer serves
//!   callers that stream. Both have the provider's format.
//! - **In flight**: identical requests at the same time share one upstream call. Each reads the growing answer from its
//!   first frame, at its own speed; a caller that disconnects or stops reading does not delay the others. When the last
//!   caller disconnects, the upstream call is dropped, or read to its end and stored
//!   ([`finish_abandoned`](Policy::finish_abandoned)). One caller pays for all of the call: the first one or, if that
//!   leaves while the call runs, another one that shares it. The last one to leave pays for what came of the call; if the
//!   call goes on, it pays at the end. If the shared call fails, it fails for all callers that share it, and the next
//!   caller starts a new call.
//! - **Embeddings by item**: each input of a batch (OpenAI's `input`) is cached separately, so it is also a hit when it
//!   is sent alone or in another batch. Only those that are neither stored nor in flight are sent, each once, in one
//!   call. Vectors come as the provider wrote them, in the caller's order. `usage` counts only the inputs that were
//!   sent upstream for this answer; it is zero if none were.
//!
//! Requests whose answer depends on more than the request are not cached: those that refer to state at the provider, that have
//! the provider search or run tools, or that ask it to store the answer. [`Bypass`] lists the reasons.
//!
//! Responses say what happened in a `cache-status` header (RFC 9211), and the layer obeys these directives in a
//! request's `cache-control`: `no-store`, `no-cache`, `max-age` and `only-if-cached`.
//!
//! [`CacheLayer::cloned`] caches the responses of a typed service: one whose request is a type of your own and whose response
//! is `Clone`. [`ClonedLayer`] has an example.
//!
//! The [handle](CacheHandle) also caches [plain values](CacheHandle::value) beside answers, such as summaries.
//!
//! A [`Policy`] can serve an answer past its time while a new one is fetched, or instead of a failure, and extend the life of an
//! answer with each hit. [`RefreshAhead`] fetches a new answer before the old one expires, for what is asked for most, within a
//! budget of calls. All four are off unless set.
//!
//! # What it does not do
//!
//! It compares no meaning: two questions that differ in a word are two questions.
//!
//! # Several processes
//!
//! With the feature `redis`, `CacheBuilder::shared` adds a second tier: Redis, Valkey or a Cluster. An answer stored by
//! one process is a hit in all; callers who ask the same share the look-up as they share the call. No caller waits for
//! a write to Redis: a task of the layer stores answers after they have been passed on. While Redis is unavailable, the
//! cache works from memory, and an outage costs one timeout, not one per call. What does not check out there - damaged,
//! of another version, another key's - is a miss. Answers can be sealed, so that a reader of Redis learns nothing from
//! them.
//!
//! [`CacheHandle::invalidate`] and its kin reach Redis and, by publish/subscribe, the memory of every process. A process that
//! lost its connection may have missed one of these messages, so it empties its memory when it is connected again. A process
//! that can reach Redis, but hears no messages, serves nothing from its memory: a Redis user needs the right to SUBSCRIBE to
//! the cache's channel, and `CacheStats::memory_suspended` shows that it is missing.
//!
//! # Compression
//!
//! The cache reads what it stores, so a call that can be cached is sent with `accept-encoding: identity`, whatever its caller
//! accepts. All callers share the plain answer; compress it outside of the cache. A client or layer inside of the cache that
//! compresses by itself usually does so only if a request has no `accept-encoding`, that is, for bypassed requests.
//!
//! If a provider compresses an answer all the same, its caller gets it as it is. It is not stored, and no more callers join.
//! Those that have joined get it if they accept its coding, and [`FlightFailed`] otherwise.
//!
//! # Costs
//!
//! Exact repeats are rare in chats with people, and common in evaluations, classification, embeddings and retries. A
//! miss allocates the state of one shared call and spawns no task. When an answer exceeds
//! [`max_answer_bytes`](Policy::max_answer_bytes), its recording stops and no more callers can join. From then on, a
//! caller that falls more than `max_answer_bytes` behind the fastest caller gets an error.
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
mod cloned;
mod coding;
mod directives;
mod error;
mod flight;
mod form;
mod future;
mod glob;
mod handle;
mod headers;
mod items;
mod key;
mod latency;
mod layer;
mod memory;
mod pace;
mod policy;
mod record;
mod refresh;
mod replay;
#[cfg(feature = "redis")]
mod second;
mod service;
mod shared;
mod stale;
mod target;
mod upstream;
mod values;
mod warm;

pub use self::{
    body::CacheBody,
    cloned::{Cloned, ClonedFuture, ClonedLayer},
    error::{FlightFailed, InvalidateError, NotCached},
    future::ResponseFuture,
    handle::{CacheHandle, CacheStats, Removed},
    headers::StatusHeader,
    key::{Bypass, CacheKey, KeyContent, ParseKeyError, Scope},
    latency::Latency,
    layer::{CacheBuilder, CacheLayer},
    memory::Memory,
    policy::Policy,
    refresh::RefreshAhead,
    service::Cache,
    warm::{Warmed, Warming, WarmingFailure},
};

#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use self::second::SharedCache;
