//! Rate limits for calls to language models: requests and tokens, reserved before and settled after.
//!
//! Providers limit tokens, and how many a call uses is known only when its stream has ended. Who checks before the call
//! and charges after it lets a burst through: a hundred calls that each see an unused limit. Here a call *reserves* what
//! it may use, together with its request and in all its limits at once or not at all, and when its response's body has
//! ended what it did not use is given back, and what it used beyond is charged.
//!
//! - A [`Limit`] is data: requests, input, output or all tokens per time, by key, as a sliding window or a token bucket.
//! - [`RateLimitLayer::for_callers`] keeps the limits that a service sets its own callers.
//! - [`RateLimitLayer::for_providers`] keeps those that providers set the service, and learns what their responses tell.
//!
//! Many processes can keep limits together (feature `redis`): see `SharedLimits`.
//!
//! It does not know what a call costs in money, nor does it choose another provider when one is used up.
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
//! let refused = refused.downcast_ref::<RateLimited>().expect("500 tokens are left");
//! assert_eq!(refused.limit().map(ToString::to_string).as_deref(), Some("1500 tokens per minute"));
//! assert!(refused.retry_after().is_some());
//! # Ok(())
//! # }
//! ```

#![warn(missing_docs)]

mod attempt;
mod calendar;
mod cell;
mod cost;
mod engine;
mod error;
mod future;
mod handle;
mod headers;
mod layer;
mod learned;
#[cfg_attr(
    not(feature = "redis"),
    allow(dead_code, reason = "the one store there is comes with the feature")
)]
mod lease;
mod limit;
mod meter;
mod pace;
mod queue;
mod reservation;
mod scope;
mod service;
#[cfg(feature = "redis")]
mod shared;
#[cfg_attr(
    not(feature = "redis"),
    allow(dead_code, reason = "the one store there is comes with the feature")
)]
mod store;
mod tier;
mod told;

pub use self::{
    attempt::WhenAway,
    cost::{CutShort, Reserve},
    error::{ExceedsLimit, RateLimited},
    future::ResponseFuture,
    handle::{KeyStats, LimitStats, RateLimitHandle},
    headers::Headers,
    layer::{RateLimitBuilder, RateLimitLayer},
    limit::{Limit, LimitOf, Unit},
    reservation::Reservation,
    service::RateLimit,
};

#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use self::shared::SharedLimits;
