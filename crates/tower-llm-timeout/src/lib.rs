//! Deadlines for calls to language models, which stream: for the first token, between frames, for the whole.
//!
//! A timeout on the response headers is met by a provider that answers 200 and then says nothing, and one on the whole
//! call cuts long answers that come along well. So there are three here:
//!
//! - **first token**: until the first *content* of a stream has come. Role-only frames, empty deltas and keep-alive
//!   comments are not content, but signs of life: they extend this deadline up to a second, longer one, because a model
//!   that searches or reasons out of sight is at work. It does not bear on calls that are not streamed.
//! - **idle**: between two frames of a response's body, of whatever content, while the body is read. A slow reader is not
//!   a silent provider. Until the first token of a stream it rests, if there is a deadline for that.
//! - **total**: from the call to the end of the body.
//!
//! A deadline that passes before the response headers gives the error [`TimedOut`](tower_llm_core::TimedOut). One that
//! passes in an event stream ends it with an error event in the dialect of the request, and any other body with the same
//! error; both say which deadline it was. The upstream's body is dropped, and the layers around see
//! [`Failed`](tower_llm_core::Outcome::Failed): `Timeout` if nothing had come, `Slow` if the stream showed signs of life,
//! `Stalled` if it fell silent.
//!
//! A body ends 250 ms after all has come that its reader needs - the terminal marker, or a whole document - if the
//! upstream does not end it before: some stay open, and would keep the caller and its permit.
//!
//! This layer does not retry, and it does not limit how long a call may queue in the layers around it. No deadline passes
//! in a body that is not polled: a server must itself bound how long a caller may read nothing.
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
