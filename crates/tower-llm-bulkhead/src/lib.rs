//! A bulkhead for calls to language models: limits how many run at once for each provider, to the end of the stream.
//!
//! One slow provider must not use up every connection of a service. A call takes a permit when it is admitted and gives it
//! back when its *response body* ends or is dropped. The headers of a streamed response arrive within a second and its end
//! after minutes, so a limit that releases at the headers limits nothing.
//!
//! There are two layers:
//!
//! - [`BulkheadLayer`] decides in `call`, when the request is known. A call that finds no permit waits in a queue that is
//!   bounded in length and time. The queue is fair between callers: a thousand waiting calls of one caller do not delay
//!   another's first. Use it in servers, and in clients of several providers.
//! - [`ReserveLayer`] takes a permit in `poll_ready`, with one limit for all requests. Use it behind a balancer, which
//!   chooses among the services that are ready.
//!
//! Besides a limit for each key there can be one for all keys together ([`global_limit`](BulkheadBuilder::global_limit)).
//! A call takes both or none. Limits can count tokens ([`Weigh`]), calls can have a [`Priority`], and limits can be changed
//! while calls run ([`BulkheadHandle::set_limit`]).
//!
//! The layer does not limit rates. By default a limit does not adjust itself: if the provider's limit is known, no
//! algorithm finds a better one. [`Adaptive`] limits adjust to refusals and latency. They can reduce refusals or the
//! time to the first token; they do not raise throughput.
//!
//! # Cost, drop and time
//!
//! - The decision is in `gate`: a free permit, a ticket in the queue, or a refusal. `permits` has the permits of a key,
//!   `permits/queue` the order of the calls that wait.
//! - [`BulkheadGuard`] gives permits back at [`ReleaseAt`], and when it is dropped.
//! - A caller that leaves while its call waits leaves the queue; a permit that was granted meanwhile goes to the next call.
//!   One that leaves later gives its permits back.
//! - An admitted call costs one look-up of its key, one compare-and-swap and one subtraction, twice that with a limit for all
//!   keys. It allocates nothing and takes no lock unless calls wait. A call that waits is boxed, and a few look-ups in trees
//!   find its turn.
//! - Time is tokio's, which tests can pause. It is read for the timer of a call that waits, and by adaptive limits.
//!
//! # Fairness
//!
//! Calls of a higher priority go first. Within a priority, callers take turns, and the calls of one caller keep their
//! order. A call that needs more permits than are free waits for them. Meanwhile lighter calls behind it may overtake
//! it, until the overtaking calls together hold as many permits as it needs. Then no further call may overtake it until
//! all of those overtaking calls have ended. So a heavy call does not block others while permits are free, and its wait
//! is bounded. If the first waiting call of a caller is dropped or times out, that caller loses its place and moves to
//! the end of the rotation.
//!
//! # Example
//!
//! ```
//! use std::{borrow::Cow, convert::Infallible};
//!
//! use tower::{Service, ServiceExt, service_fn};
//! use tower_layer::Layer;
//! use tower_llm_bulkhead::{BulkheadFull, BulkheadLayer};
//! use tower_llm_core::{Call, Described, Operation, Provider, Unary};
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
//! let layer = BulkheadLayer::builder(1).max_waiting(0).watch(Unary).build()?;
//! let model = layer.layer(service_fn(|_: Prompt| std::future::pending::<Result<(), Infallible>>()));
//!
//! let prompt = Prompt(Call::builder(Provider::OPENAI, Operation::CHAT).build());
//! let mut first = model.clone();
//! let running = first.ready().await?.call(prompt.clone());
//! let refused = model.oneshot(prompt).await.unwrap_err();
//! assert!(refused.downcast_ref::<BulkheadFull>().is_some());
//! assert_eq!(refused.to_string(), "bulkhead full for openai: 1/1 in use, queue 0/0");
//!
//! drop(running);
//! assert_eq!(layer.handle().stats()[0].in_flight, 0);
//! # Ok(())
//! # }
//! ```

#![warn(missing_docs)]

mod adaptive;
mod error;
mod gate;
mod handle;
mod layer;
mod permit;
mod permits;
mod priority;
mod reserve;
mod settings;
mod ticket;
mod weigh;

pub use self::{
    adaptive::Adaptive,
    error::{BulkheadFull, LimitOf},
    gate::{Bulkhead, BulkheadGate, ResponseFuture},
    handle::{BulkheadHandle, GlobalStats, KeyStats},
    layer::BulkheadLayer,
    permit::{BulkheadGuard, ReleaseAt},
    reserve::{Reserve, ReserveFuture, ReserveLayer},
    settings::BulkheadBuilder,
    weigh::Weigh,
};
pub use tower_llm_core::Priority;
