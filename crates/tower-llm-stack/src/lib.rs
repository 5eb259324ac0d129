//! The tower-llm layers as one stack in a fixed order, and adapters for clients.
//!
//! [`Stack::full`] has all layers that need no second target, [`Stack::preset`] those for a purpose, and [`Stack::builder`]
//! the ones that you choose, as one typed [`tower_layer::Layer`]. Nothing is boxed, and a
//! layer that is left out costs nothing. Requests are described unless you say otherwise. The stack keeps the order:
//!
//! ```text
//! Refusal > Describe > Monitor > your own > caller's RateLimit > Cache > Batch > Fanout > Breaker > provider's RateLimit > Bulkhead > Timeout > client
//! ```
//!
//! - The refusal layer is outermost, so that every error goes through it.
//! - A request is described next, because all other layers use the description.
//! - A monitor counts what all layers inside of it refuse, serve or send. Attempts are counted inside of the fan-out.
//! - A caller over its limit uses nothing in the inner layers. A call that an inner layer refuses is refunded.
//! - A cached answer costs the caller one request and no tokens, and uses nothing in the inner layers.
//! - Calls that are merged into one are retried, and pass the inner layers, as one.
//! - Each branch of a call passes the inner layers for itself: its own circuit, tokens and permit.
//! - A call refused by an open circuit reserves none of the provider's tokens.
//! - A call that waits for the provider's tokens holds no permit. The timeouts start when the call has its permit.
//! - Only one layer acts on a 429. If a provider's rate limit is in the stack and observes what the provider reports,
//!   calls wait there; otherwise the circuit opens.
//!
//! [`adapters`] turns clients into the innermost service of a stack (reqwest, hyper-util, tonic), and installs a stack
//! in clients that accept middleware (reqwest-middleware, async-openai). [`guide::typed_services`] explains stacks
//! whose requests and responses are not HTTP. To print or log how calls end, add an [`OnEndLayer`] as your own layer.
//!
//! # With other layers
//!
//! - **One breaker twice**: apply a breaker once per call. A second one inside, even a clone, counts every call again.
//! - **tower's `Timeout` outside a breaker** drops the call, which looks like a disconnect: the circuit never opens. Put it
//!   inside the breaker, where its error counts as a timeout, or use a [`TimeoutLayer`].
//! - **tower's `load_shed` inside**: its error counts as a refusal, so the call is refunded and opens no circuit.
//!
//! # Example
//!
//! A stack for a server, in front of any HTTP service; here one that never answers:
//!
//! ```
//! use std::{convert::Infallible, time::Duration};
//!
//! use bytes::Bytes;
//! use http::{Request, Response, StatusCode};
//! use http_body_util::Full;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use tower_llm_stack::{BulkheadLayer, RefusalLayer, RequestBody, Stack, TimeoutLayer};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), tower_llm_stack::BoxError> {
//! let stack = Stack::builder()
//!     .refusal(RefusalLayer::new())
//!     .bulkhead(BulkheadLayer::new(10)?)
//!     .timeout(TimeoutLayer::builder().total(Duration::from_secs(60)).build()?)
//!     .build();
//! let service = ServiceBuilder::new().layer(stack).service(service_fn(
//!     |_: Request<RequestBody>| std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>(),
//! ));
//!
//! let request = Request::post("/v1/messages").body(Full::new(Bytes::from("{}")))?;
//! let response = service.oneshot(request).await?;
//! assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
//! # Ok(())
//! # }
//! ```

#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "accounts")]
#[cfg_attr(docsrs, doc(cfg(feature = "accounts")))]
pub mod accounts;
pub mod adapters;
mod assemble;
#[cfg(feature = "boxed")]
mod boxed;
#[cfg(feature = "config")]
#[cfg_attr(docsrs, doc(cfg(feature = "config")))]
pub mod config;
pub mod guide;
mod optional;
#[cfg(feature = "preset")]
mod preset;
#[cfg(any(feature = "accounts", feature = "config"))]
mod secret;
mod slot;
mod stack;

pub use tower_llm_core as core;
pub use tower_llm_core::{
    Answer, BoxError, Cached, Call, Caller, ClassifiedError, Completion, ConfigError, Deadline,
    DescribeLayer, Described, Dialect, Failure, FinishReason, Guard, HttpBody, Key, KeyBy,
    OnEndLayer, Operation, Outcome, Provider, Refusal, RefusalKind, RefusalLayer, RequestBody,
    Served, TimedOut, TooLarge, Unary, Usage, Watch,
};

#[cfg(feature = "batch")]
#[cfg_attr(docsrs, doc(cfg(feature = "batch")))]
pub use tower_llm_batch::{self as batch, BatchFull, BatchHandle, BatchLayer, Embeddings};
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use tower_llm_breaker::SharedCircuits;
#[cfg(feature = "breaker")]
#[cfg_attr(docsrs, doc(cfg(feature = "breaker")))]
pub use tower_llm_breaker::{self as breaker, BreakerHandle, BreakerLayer, CircuitOpen};
#[cfg(feature = "bulkhead")]
#[cfg_attr(docsrs, doc(cfg(feature = "bulkhead")))]
pub use tower_llm_bulkhead::{
    self as bulkhead, BulkheadFull, BulkheadHandle, BulkheadLayer, ReleaseAt, ReserveLayer,
};
#[cfg(all(feature = "cache", feature = "redis"))]
#[cfg_attr(docsrs, doc(cfg(all(feature = "cache", feature = "redis"))))]
pub use tower_llm_cache::SharedCache;
#[cfg(feature = "cache")]
#[cfg_attr(docsrs, doc(cfg(feature = "cache")))]
pub use tower_llm_cache::{self as cache, CacheHandle, CacheLayer, KeyContent, Policy, Scope};
#[cfg(feature = "fanout")]
#[cfg_attr(docsrs, doc(cfg(feature = "fanout")))]
pub use tower_llm_fanout::{self as fanout, FanoutLayer, Pool};
#[cfg(feature = "monitor")]
#[cfg_attr(docsrs, doc(cfg(feature = "monitor")))]
pub use tower_llm_monitor::{self as monitor, MonitorHandle, MonitorLayer};
#[cfg(feature = "ratelimit")]
#[cfg_attr(docsrs, doc(cfg(feature = "ratelimit")))]
pub use tower_llm_ratelimit::{
    self as ratelimit, ExceedsLimit, Limit, RateLimitHandle, RateLimitLayer, RateLimited,
};
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use tower_llm_ratelimit::{SharedLimits, StoreFallback};
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use tower_llm_redis::{self as redis, Redis};
#[cfg(feature = "timeout")]
#[cfg_attr(docsrs, doc(cfg(feature = "timeout")))]
pub use tower_llm_timeout::{self as timeout, TimeoutLayer};

#[cfg(feature = "boxed")]
#[cfg_attr(docsrs, doc(cfg(feature = "boxed")))]
pub use self::boxed::{BoxedBody, BoxedStack};
#[cfg(feature = "preset")]
#[cfg_attr(docsrs, doc(cfg(feature = "preset")))]
pub use self::preset::Preset;
#[cfg(any(feature = "accounts", feature = "config"))]
#[cfg_attr(docsrs, doc(cfg(any(feature = "accounts", feature = "config"))))]
pub use self::secret::Secret;
pub use self::{
    optional::OptionalService,
    stack::{Stack, StackBuilder},
};

/// The README's example, compiled.
#[cfg(all(
    doctest,
    feature = "boxed",
    feature = "monitor",
    feature = "preset",
    feature = "reqwest"
))]
#[doc = include_str!("../../../README.md")]
struct Readme;
