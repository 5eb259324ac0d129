//! A bulkhead for calls to language models: so many at once for each provider, counted to the end of the stream.
//!
//! One slow provider must not eat every connection of a service. A place here is taken when a call is admitted and
//! given back when its *response's body* has ended or was dropped: the head of a streamed answer comes within a
//! second, its end after minutes, and a limit that lets go at the head limits nothing.
//!
//! There are two ways to admit, told apart by type:
//!
//! - [`BulkheadLayer`] decides in `call`, once the request says whose place it needs. Calls that find none wait in
//!   a queue, bounded in number and time: callers take turns, so that a thousand waiting calls of one tenant do not delay
//!   another's first. This is for servers, and for clients of several
//!   providers.
//! - [`ReserveLayer`] takes a place in `poll_ready`, for all requests alike. This is for clients behind a
//!   balancer, which wants to know who is ready before it chooses.
//!
//! Beside a limit for each key there can be one for all of them ([`global_limit`](BulkheadBuilder::global_limit)), and
//! both are taken together or not at all. Limits can be counted in tokens ([`Weigh`]), calls be put in classes
//! ([`Priority`]), and limits be changed while calls run ([`BulkheadHandle::set_limit`]).
//!
//! It does not limit rates. A limit stays as it is set: that is the default, and where the provider's is known nothing
//! finds a better one. One that follows a signal is to be asked for ([`Adaptive`]), and buys fewer refusals or a shorter
//! wait for the first token, not more throughput.
//!
//! # Example
//!
//! ```
//! use std::{borrow::Cow, convert::Infallible};
//!
//! use tower::{Service, ServiceExt, service_fn};
//! use tower_layer::Layer;
//! use tower_llm_bulkhead::{BulkheadFull, BulkheadLayer};
//! use tower_llm_core::{Call, Described, Unary};
//!
//! #[derive(Clone)]
//! struct Prompt(&'static str);
//!
//! impl Described for Prompt {
//!     fn call(&self) -> Option<Cow<'_, Call>> {
//!         None
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tower_llm_core::BoxError> {
//! let layer = BulkheadLayer::builder(1).max_waiting(0).watch(Unary).build()?;
//! let model = layer.layer(service_fn(|prompt: Prompt| async move {
//!     std::future::pending::<()>().await;
//!     Ok::<_, Infallible>(prompt.0)
//! }));
//!
//! let mut first = model.clone();
//! let running = first.ready().await?.call(Prompt("long"));
//! let refused = model.oneshot(Prompt("one too many")).await.unwrap_err();
//! assert!(refused.downcast_ref::<BulkheadFull>().is_some());
//!
//! drop(running);
//! assert_eq!(layer.handle().stats()[0].in_flight, 0);
//! # Ok(())
//! # }
//! ```

#![warn(missing_docs)]

mod adaptive;
mod error;
mod future;
mod handle;
mod layer;
mod permit;
mod places;
mod priority;
mod reserve;
mod service;
mod silence;
mod weigh;

pub use self::{
    adaptive::Adaptive,
    error::{BulkheadFull, LimitOf},
    future::ResponseFuture,
    handle::{BulkheadHandle, GlobalStats, KeyStats},
    layer::{BulkheadBuilder, BulkheadLayer},
    permit::{Place, ReleaseAt},
    priority::Priority,
    reserve::{Reserve, ReserveFuture, ReserveLayer},
    service::Bulkhead,
    weigh::Weigh,
};
