//! Timeouts for streamed calls to language models: for the first token, between frames, and in total.
//!
//! A timeout on the response headers does not catch a provider that answers 200 and then sends nothing. A timeout on the
//! whole call cuts long answers that make good progress. So this layer has three:
//!
//! - **first token**: until the first *content* of a stream arrives. Role-only frames, empty deltas and keep-alive
//!   comments are not content but signs of life: they extend this timeout, up to a separate, longer maximum, because
//!   the model may be searching or reasoning. It does not apply to calls that are not streamed.
//! - **idle**: between two frames of a response body, whatever they contain. It runs only while the body is polled,
//!   because a slow reader is not a silent provider. In a stream with a first-token timeout, it starts after the first
//!   token.
//! - **total**: from the call to the end of the body.
//!
//! If a timeout fires before the response headers arrive, the call fails with [`TimedOut`](tower_llm_core::TimedOut).
//! If it fires later, an event stream ends with an error event in the dialect of the request, and any other body fails
//! with the same error. Both name the timeout. The upstream body is dropped, and outer layers see
//! [`Failed`](tower_llm_core::Outcome::Failed): `Stalled` if the idle timeout fired; otherwise `Slow` if the stream had
//! shown signs of life, and `Timeout` if not. A call that was still queued by a layer inside of this one was never sent: outer
//! layers see [`Refused`](tower_llm_core::Outcome::Refused). If other callers share it through a cache inside, they may pay for
//! it instead.
//!
//! Some upstreams leave a body open after its last content, which would hold the caller and its permit. So this layer
//! ends a body at most 250 ms after the end marker of its stream (such as `[DONE]`), or its complete JSON document, has
//! arrived.
//!
//! This layer does not retry, and it does not limit how long a call queues in outer layers. No timeout fires while the
//! body is not polled, not even the total one, so a server needs its own timeout for callers that stop reading.
//!
//! # Example
//!
//! ```
//! use std::{borrow::Cow, convert::Infallible, time::Duration};
//!
//! use tower::{ServiceExt, service_fn};
//! use tower_layer::Layer;
//! use tower_llm_core::{Call, Deadline, Described, TimedOut, Unary};
//! use tower_llm_timeout::TimeoutLayer;
//!
//! struct Prompt;
//!
//! impl Described for Prompt {
//!     fn call(&self) -> Option<Cow<'_, Call>> {
//!         None
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), tower_llm_core::BoxError> {
//! let layer = TimeoutLayer::builder().total(Duration::from_secs(60)).watch(Unary).build()?;
//! let model = layer.layer(service_fn(|_: Prompt| std::future::pending::<Result<(), Infallible>>()));
//!
//! let error = model.oneshot(Prompt).await.unwrap_err();
//! let timed_out = TimedOut::find(&*error).expect("the model never answers");
//! assert_eq!(timed_out.deadline(), Deadline::Total);
//! # Ok(())
//! # }
//! ```

#![warn(missing_docs)]

mod body;
mod deadlines;
mod future;
mod layer;
mod service;
mod timer;

pub use self::{
    body::TimeoutBody,
    future::{Bound, ResponseFuture},
    layer::{TimeoutBuilder, TimeoutLayer},
    service::Timeout,
};
