//! Rate limits for calls to language models: requests and tokens per period, reserved before a call and settled after it.
//!
//! Providers limit tokens, but the number of tokens a call uses is known only when its stream ends. A limiter that
//! checks before the call and charges after it lets bursts through: 100 calls at once all see an unused limit. This
//! layer *reserves* what a call may use, in all of its limits together or in none. When the response body ends, it
//! settles: it refunds what the call did not use, and charges what the call used beyond its reservation. If a complete
//! answer reports no usage, the reservation is charged.
//!
//! - A [`Limit`] is plain data: an amount of requests, tokens or cost (by your own prices) per period, counted for each
//!   caller, for each model or by a key of your own, in a sliding window or a token bucket.
//! - [`RateLimitLayer::for_callers`] enforces the limits that a service sets for its callers.
//! - [`RateLimitLayer::for_providers`] enforces the limits that providers set for the service, including the limits that
//!   their responses report.
//!
//! With the feature `redis`, several processes share limits: see `SharedLimits`.
//!
//! # Cost, drop and time
//!
//! - The decision is in `limiter`, which locks the keys of a call in one order, checks all limits, and takes from all or from
//!   none. `key_state` decides for one key and `meter` for one limit; both are plain data with `now` as an argument.
//! - [`Reservation`] gives tokens back, once: what the call did not use when its response has ended, and everything if it was
//!   never sent.
//! - A caller that leaves while its call waits leaves the queue, and nothing is charged. One that leaves later is charged by
//!   [`CutShort`].
//! - An admitted call costs two locks per kind of key, one read of the clock and no allocation. A store of shared limits costs
//!   a round trip, or none by leases.
//! - Time is tokio's, which tests can pause. Only calendar days need the wall clock, which is read when a day ends.
//!
//! The layer does not know prices, and it does not choose another provider when a limit is exceeded.
//!
//! # Example
//!
//! ```
//! use std::{borrow::Cow, convert::Infallible};
//!
//! use tower::{Service, ServiceExt, service_fn};
//! use tower_layer::Layer;
//! use tower_llm_core::{Call, Described, Operation, Provider, Unary};
//! use tower_llm_ratelimit::{Limit, RateLimitLayer, RateLimited};
//!
//! #[derive(Clone)]
//! struct Prompt(Call);
//!
//! impl Described for Prompt {
//!     fn call(&self) -> Option<Cow<'_, Call>> {
//!         Some(Cow::Borrowed(&self.0))
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tower_llm_core::BoxError> {
//! let layer = RateLimitLayer::for_callers()
//!     .limit(Limit::requests(100).per_minute())
//!     .limit(Limit::tokens(1_500).per_minute())
//!     .watch(Unary)
//!     .build()?;
//! let model = layer.layer(service_fn(|_: Prompt| async { Ok::<_, Infallible>("answer") }));
//!
//! let call = Call::builder(Provider::OPENAI, Operation::CHAT).input_tokens(300).max_output_tokens(700);
//! let prompt = Prompt(call.build());
//! assert_eq!(model.clone().oneshot(prompt.clone()).await?, "answer");
//!
//! let refused = model.oneshot(prompt).await.unwrap_err();
//! let refused = refused.downcast_ref::<RateLimited>().expect("only 500 tokens remain");
//! assert_eq!(refused.limit().map(ToString::to_string).as_deref(), Some("1500 tokens per minute"));
//! assert!(refused.retry_after().is_some());
//! # Ok(())
//! # }
//! ```

#![warn(missing_docs)]

mod blocked;
mod calendar;
mod checked_limit;
mod demand;
mod error;
mod gate;
mod gauge;
mod group;
mod handle;
mod key_state;
mod layer;
mod limit;
mod limiter;
mod meter;
mod output_lengths;
mod pricing;
mod provider;
mod queue;
mod quota_headers;
mod reservation;
#[cfg_attr(
    not(feature = "redis"),
    allow(dead_code, reason = "the only store comes with the feature `redis`")
)]
mod shared;
mod tier;
mod waiting;

pub use self::{
    error::{ExceedsLimit, RateLimited},
    gate::{RateLimit, RateLimitGate, ResponseFuture},
    handle::{KeyStats, LimitStats, RateLimitHandle},
    layer::{RateLimitBuilder, RateLimitLayer},
    limit::{Limit, LimitBuilder, Unit},
    pricing::{CutShort, Reserve},
    quota_headers::Headers,
    reservation::Reservation,
    shared::backend::StoreFallback,
};

#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use self::shared::SharedLimits;
