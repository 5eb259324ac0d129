//! Merges small calls to language models into fewer upstream calls: the micro-batching of embeddings, and of anything else
//! that a provider takes by the list.
//!
//! A service that embeds one query for each of its own requests pays a round trip, a permit and a request of its rate limit for
//! every one. Providers take hundreds of inputs in one call, at the price of the tokens. A [`BatchLayer`] merges calls with
//! equal keys, and gives each caller its part of the response:
//!
//! - **Closed by items, tokens and time**: a batch stays within the limits of the provider, both at once. By default it waits
//!   for nothing: a call is sent at once if none of its key is in flight, and the calls that come meanwhile are sent together.
//!   So batches grow with the load, and a lone call is as fast as without the layer.
//! - **A bad request fails alone**: if a batch is rejected because of a request in it, its halves are sent again until that one
//!   is alone, within a bound of extra calls. Any other failure reaches all callers of the batch, each with an error that says
//!   what a single call's would ([`Refusal::find`](tower_llm_core::Refusal::find),
//!   [`Completion::of_error`](tower_llm_core::Completion::of_error)).
//! - **Callers that leave** are left out of a batch that was not sent yet. When all callers of a batch have left, its upstream
//!   call is dropped, or read to its end ([`Abandoned`]).
//! - **Deadlines**: a batch is closed early enough for the earliest deadline in it, by how long calls have taken.
//! - **A bounded queue** for each key, in which calls of a higher priority go first. A call that finds it full, or waits for too
//!   long, is refused with [`BatchFull`].
//!
//! A [`Batcher`] says what is merged. [`Embeddings`] is the one for embeddings over HTTP, in `OpenAI`'s dialect; other requests
//! pass through it. It stands between the cache and the provider's limits, which then count merged calls.
//!
//! # What it does not do
//!
//! It splits no request that is too large: such a request is sent alone, as it is. It does not use providers' offline batch
//! APIs, which answer within a day.
//!
//! # Cost, drop and time
//!
//! - A merged call is driven by the polls of its callers, and needs no task; `flight` says how. A caller that leaves takes
//!   nothing with it, and one that is not polled delays the others by a second at most.
//! - A call allocates the future of its batch, and a clone of the inner service. One lock guards the calls of a layer; it is
//!   held for a few look-ups, never while code of the user's or the inner service runs.
//! - Each part of a response has its part of the usage. Layers around this one settle a caller that leaves a batch in flight by
//!   what it has seen, which is nothing; the provider's limits are inside, and count the whole call.
//! - A batch of one call is in flight until its response arrives; its body goes to the caller as it comes. A merged response is
//!   read to its end first.
//! - Time is tokio's, which tests can pause. A call that is sent at once sets no timer.
//!
//! # Example
//!
//! A typed service that embeds many texts at once, called with one:
//!
//! ```
//! use std::time::Duration;
//!
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//! use tower_llm_batch::{BatchFull, BatchLayer, Batcher, Scattered, Terms};
//! use tower_llm_core::BoxError;
//!
//! struct Texts;
//!
//! impl Batcher for Texts {
//!     type Request = String;
//!     type Key = ();
//!     type Batch = Vec<String>;
//!     type Plan = ();
//!     type Reply = Vec<f32>;
//!     type Response = f32;
//!
//!     fn terms(&self, text: &String) -> Option<Terms<()>> {
//!         Some(Terms::new(()).tokens(text.len() as u64 / 4))
//!     }
//!
//!     fn assemble(&self, texts: &mut [String]) -> (Vec<String>, ()) {
//!         (texts.to_vec(), ())
//!     }
//!
//!     async fn scatter(&self, (): (), vectors: Vec<f32>) -> Scattered<f32> {
//!         Scattered::Each(vectors.into_iter().map(Ok).collect())
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), BoxError> {
//! let layer = BatchLayer::builder(Texts).max_waiting(3).build()?;
//! let batches = layer.handle();
//! let mut model = ServiceBuilder::new().layer(layer).service(service_fn(|texts: Vec<String>| async move {
//!     tokio::time::sleep(Duration::from_millis(80)).await;
//!     Ok::<_, BoxError>(texts.iter().map(|text| text.len() as f32).collect())
//! }));
//!
//! // The first is sent at once. The others wait for it, and are sent together; there is room for three.
//! let first = tokio::spawn(model.clone().oneshot("a".to_owned()));
//! tokio::task::yield_now().await;
//! let waiting: Vec<_> = ["ab", "abc", "abcd"].map(|text| model.call(text.to_owned())).into();
//! let error = model.call("abcde".to_owned()).await.unwrap_err();
//! assert!(error.is::<BatchFull>());
//!
//! assert_eq!(first.await??, 1.0);
//! let mut lengths = Vec::new();
//! for call in waiting {
//!     lengths.push(call.await?);
//! }
//! assert_eq!(lengths, [2.0, 3.0, 4.0]);
//! assert_eq!((batches.stats().calls, batches.stats().batches), (4, 2));
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod after;
mod batcher;
mod call_times;
mod embeddings;
mod error;
mod flight;
mod future;
mod handle;
mod lane;
mod layer;
#[cfg(all(test, batch_loom))]
mod loom;
mod queue;
mod send;
mod service;
mod settings;
mod shared;
mod sync;
mod ticket;
mod timer;

pub use self::{
    batcher::{Batcher, Scattered, Terms},
    embeddings::{BatchBody, Embeddings, EmbeddingsPlan},
    error::{BatchFailed, BatchFull},
    future::ResponseFuture,
    handle::{BatchHandle, BatchStats},
    layer::BatchLayer,
    service::Batch,
    settings::{Abandoned, BatchBuilder},
};
