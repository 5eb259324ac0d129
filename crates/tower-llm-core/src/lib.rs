//! The types that all `tower-llm` layers share: what a call to a language model is, how it ended, and how it is refused.
//!
//! The layers know each other only through these types. This crate has no policy of its own:
//!
//! - [`DescribeLayer`] reads a request once and describes it as a [`Call`].
//! - [`Watch`] and [`Guard`] report to a layer how a call ended, as a [`Completion`] with its [`Outcome`] and [`Usage`],
//!   when the response body ends or is dropped.
//! - [`Refusal`] is the error that a layer returns for a call that it refuses to send. [`RefusalLayer`] turns refusals
//!   and timeouts into responses in the dialect of the request.
//! - [`KeyBy`] and [`Registry`] hold bounded state per provider, model, caller or a key of your own.
//! - [`EmbeddingLimits`] are what providers take in one call.
//!
//! It never holds a response body in memory.
//!
//! # A guard in a few lines
//!
//! A guard that counts the tokens of each call, streamed or not, when its response body ends or is dropped:
//!
//! ```
//! use std::sync::atomic::{AtomicU64, Ordering};
//!
//! use bytes::Bytes;
//! use http_body_util::{BodyExt, Full};
//! use tower_llm_core::{Completion, Guard, HttpBody, Outcome, Watch};
//!
//! static TOKENS: AtomicU64 = AtomicU64::new(0);
//!
//! struct Count;
//!
//! impl Guard for Count {
//!     fn end(&mut self, completion: &Completion) {
//!         assert_eq!(completion.outcome, Outcome::Success);
//!         let tokens = completion.usage.map_or(0, |usage| usage.total());
//!         TOKENS.fetch_add(tokens, Ordering::Relaxed);
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let body = r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3}}"#;
//! let response = http::Response::builder()
//!     .header("content-type", "application/json")
//!     .body(Full::new(Bytes::from(body)))
//!     .unwrap();
//!
//! let response = HttpBody.watch(None, response, Count);
//! let bytes = response.into_body().collect().await.unwrap().to_bytes();
//! assert_eq!(bytes, body);
//! assert_eq!(TOKENS.load(Ordering::Relaxed), 12);
//! # }
//! ```

#![warn(missing_docs)]

mod answer;
mod attempt;
mod call;
mod describe;
mod dialect;
mod embeddings;
mod error;
mod gate;
mod key;
mod on_end;
mod oneshot;
mod outcome;
mod priority;
mod refusal;
mod registry;
mod request_body;
mod scan;
mod served;
mod usage;
mod watch;

pub use self::{
    answer::Answer,
    attempt::Attempt,
    call::{Call, CallBuilder, Caller, Described, Operation, Provider},
    describe::{Describe, DescribeLayer, MAX_BODY_BYTES, rename_model},
    dialect::Dialect,
    embeddings::{
        CompletionChoices, CompletionPrompts, EmbeddingInputs, EmbeddingLimits, EmbeddingVectors,
        is_of_each_input, sum_usages,
    },
    error::{
        BoxError, ClassifiedError, ConfigError, Deadline, Refusal, RefusalKind, TimedOut, TooLarge,
    },
    gate::{Admission, Availability, Both, Entry, Gate, GateLayer, Gated, GatedFuture, Wait},
    key::{Key, KeyBy},
    on_end::{OnEnd, OnEndGuard, OnEndLayer},
    oneshot::Oneshot,
    outcome::{Completion, Failure, FinishReason, Outcome, Subject},
    priority::Priority,
    refusal::{RefusalBody, RefusalLayer, Refuse},
    registry::{Evictable, Keyed, Registry},
    request_body::{RequestBody, TryClone},
    served::{Bill, Billed, Served, Unfinished},
    usage::Usage,
    watch::{
        Armed, Cached, CachedGuard, Guard, Guarded, HttpBody, Unary, Unsent, Watch, Watched,
        drop_as,
    },
};

/// The layers' futures, for signatures that must name them.
pub mod future {
    pub use crate::{
        describe::ResponseFuture as DescribeFuture, refusal::ResponseFuture as RefuseFuture,
    };
}
