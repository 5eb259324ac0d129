//! A circuit breaker for calls to language models, judged at the end of the stream.
//!
//! A breaker that decides when the response's head comes sees nothing of what goes wrong with models: errors arrive inside a
//! 200, streams stall and break off, a 429 is a clock and not a fault, and a probe can last ten minutes. This one counts
//! a call when its *response's body* has ended or was dropped, by its [`Outcome`](tower_llm_core::Outcome):
//!
//! - What failed counts against those whose fault it is ([`Scope`]): transport errors before there is a response against the
//!   provider; overload, 5xx, errors within streams and streams that break off against the model; a spent account against
//!   that account.
//! - A 429 with a time opens the circuit of account and model until then, and counts as no failure; the later of two times
//!   wins. Without a time it changes nothing.
//! - What the caller does wrong, his leaving, a branch that lost a race, and refusals of our own layers say nothing of the
//!   provider; but that it was slow up to then counts ([`SlowCalls`]). A panic of the inner service is a failure.
//! - A result of a call that was let through before the circuit's last change is not counted in what it is now.
//!
//! When a circuit has been open for its time, calls are let through as *probes*, one at a time; each holds its place for
//! so long at most, so that one that never ends does not wedge the circuit. A success of enough of them closes it, a
//! failure opens it for longer.
//!
//! It does not retry, and it does not choose another provider.
//!
//! # Boundaries
//!
//! A circuit opens when the share of failures *reaches* its ratio, and only when something bad has happened; calls that are
//! missing to the minimum count as good. It is open up to its last millisecond, and half-open from then on. What is "as long
//! as" a time for slow calls and stalls has reached it. A window begins empty after each change of state but the end of a ramp;
//! and while the provider's clock runs and after that, a circuit goes on with what it has counted before. A time that a call of an earlier generation was told prolongs what is open, and opens nothing.
//!
//! # Example
//!
//! ```
//! use std::{borrow::Cow, time::Duration};
//!
//! use tower::{Service, ServiceExt, service_fn};
//! use tower_layer::Layer;
//! use tower_llm_breaker::{BreakerLayer, CircuitId, CircuitOpen, State};
//! use tower_llm_core::{BoxError, Call, Described, Operation, Provider, Unary};
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
//! # async fn main() -> Result<(), BoxError> {
//! let layer = BreakerLayer::builder()
//!     .failure_threshold(5)
//!     .open_for(Duration::from_secs(60))
//!     .watch(Unary)
//!     .build()?;
//! let mut model = layer.layer(service_fn(|_: Prompt| async {
//!     Err::<(), _>(std::io::Error::from(std::io::ErrorKind::ConnectionRefused))
//! }));
//!
//! let prompt = Prompt(Call::builder(Provider::OPENAI, Operation::CHAT).build());
//! for _ in 0..5 {
//!     model.ready().await?.call(prompt.clone()).await.unwrap_err();
//! }
//! assert_eq!(layer.handle().state(&CircuitId::provider("openai")), State::Open);
//!
//! let refused = model.ready().await?.call(prompt).await.unwrap_err();
//! let open = refused.downcast_ref::<CircuitOpen>().expect("it was not sent");
//! assert!(open.retry_after().is_some_and(|time| time > Duration::from_secs(59)));
//! # Ok(())
//! # }
//! ```

#![warn(missing_docs)]

mod circuit;
mod error;
mod event;
mod future;
mod group;
mod guard;
mod handle;
mod layer;
mod policy;
mod route;
mod service;
#[cfg(feature = "redis")]
mod shared;
mod state;
mod sync;
mod window;
mod word;

#[cfg(feature = "redis")]
pub use self::shared::SharedCircuits;
pub use self::{
    error::CircuitOpen,
    event::{Event, EventKind, EventReceiver, Reason},
    future::ResponseFuture,
    guard::BreakerGuard,
    handle::{BreakerHandle, CircuitStats},
    layer::{BreakerBuilder, BreakerLayer},
    policy::SlowCalls,
    service::Breaker,
    state::{CircuitId, Force, Scope, State},
};
