//! A circuit breaker for calls to language models that judges each call at the end of its stream.
//!
//! Generic breakers judge a call as soon as its response headers arrive. With language models most failures come later:
//! errors arrive inside a 200, streams stall and break off, a 429 is a time to wait and not a failure, and a probe can
//! take ten minutes. This layer counts a call when its *response body* ends or is dropped, by its
//! [`Outcome`](tower_llm_core::Outcome).
//!
//! # What opens which circuit
//!
//! A call passes up to four circuits: those of its provider, its model, its account, and its account and model
//! together. Its outcome counts only in the circuit of what failed ([`Scope`]):
//!
//! | end of the call | circuit |
//! |---|---|
//! | transport error before a response | provider |
//! | overload, 5xx, error in the stream, truncated or stalled stream, timeout | model |
//! | 429 with a `retry-after` | account and model together, until that time; not a failure |
//! | money or quota used up | account, or account and model together if the quota is that of a model |
//! | credential refused (401) | account, after three in a row |
//! | permission refused (403) | account and model together, after three in a row |
//! | first-token deadline exceeded although the stream showed signs of life | not a failure; counts as a slow call ([`SlowCalls`]) |
//! | client error, dropped call, refusal by another layer, a call that lost a race of parallel calls | none |
//!
//! An account is one of the service's own credentials for a provider, under a name that you give it
//! ([`Call::account`](tower_llm_core::Call::account)). A call without such a name is taken to be sent with its caller's
//! credential. The caller then serves as the account, so a bad credential opens no circuit for other callers.
//! Credential errors of calls that have neither an account nor a caller open no circuit.
//!
//! Calls that run no inference, such as lists, files, job states and token counts, pass only the circuits of provider and
//! account. They open no circuit of a model and are not refused by one.
//!
//! # States
//!
//! A closed circuit opens after five failures in a row, or when at least ten calls have ended within a minute and half
//! of them failed. It refuses calls for 30 s, and for longer each time it opens again. Then it is half-open: calls are
//! admitted as *probes*, one at a time. Two successful probes close it, and one failed probe opens it again. Each probe
//! has a time limit, after which another call may probe, so a probe that never ends does not block the circuit. All
//! these numbers are [settings](BreakerLayer).
//!
//! The layer does not retry, and it does not choose another provider.
//!
//! # Details
//!
//! - A circuit opens when a ratio *reaches* its limit. This is checked only when a failure or a slow call is counted,
//!   so a success never opens a circuit.
//! - A circuit is open up to the last millisecond of its time, and half-open from then on.
//! - A call that was admitted before the circuit changed state does not count in the new state. A `retry-after` in the
//!   response to such an earlier call extends an open circuit but does not open a closed one.
//! - Counts restart at each change of state, with two exceptions: they are kept when a 429 with a `retry-after` opens
//!   the circuit, and when a ramp ends (a phase after a circuit has closed, in which calls are admitted gradually).
//! - If several circuits refuse a call, the longest of their times is reported.
//! - A stream that stalls is not noticed here before it ends: set an idle deadline in `tower-llm-timeout`, inside this layer.
//! - A layer applied twice in one stack counts each call twice. A `tower` timeout outside this layer drops the call,
//!   which counts neither as a success nor as a failure: use `tower-llm-timeout` inside. Inside this layer, the error
//!   of tower's own `load_shed` counts as a refusal; the error of another crate's load-shedding layer counts as a
//!   transport error.
//!
//! # Inside
//!
//! - **Decision.** `verdict` says what the end of a call means for a circuit: good, bad or nothing. `machine` says what that
//!   changes; it is plain code that takes the time. `circuit` is the lock, the word and the windows around it.
//! - **Cost.** A call looks up its route once, reads one word per circuit, and adds one good call to each window. It
//!   allocates nothing. A window by count that is full of good calls takes no lock; a window by time needs the clock once
//!   per call. Everything else happens under one lock per circuit, briefly.
//! - **Drop.** A call that is dropped ends as any other, once: its guard gives a probe's lease back, and counts nothing. A lease
//!   that is never given back runs out.
//! - **Time.** All of it is tokio's: tests pause it (`#[tokio::test(start_paused = true)]`) and `advance` it.
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
//! let open = refused.downcast_ref::<CircuitOpen>().expect("the circuit is open");
//! assert!(open.retry_after().is_some_and(|time| time > Duration::from_secs(59)));
//! # Ok(())
//! # }
//! ```

#![warn(missing_docs)]

mod advanced;
mod builder;
mod circuit;
mod circuits;
mod clock;
mod config;
mod ejection;
mod error;
mod events;
mod gate;
mod group;
mod guard;
mod handle;
mod id;
mod layer;
mod machine;
mod route;
mod routes;
#[cfg(feature = "redis")]
mod shared;
mod slow_calls;
mod state;
mod sync;
mod timing;
mod verdict;
mod window;
mod word;

#[cfg(feature = "redis")]
pub use self::shared::SharedCircuits;
pub use self::{
    advanced::Advanced,
    builder::BreakerBuilder,
    error::CircuitOpen,
    events::{Event, EventKind, EventReceiver, Reason},
    gate::{Breaker, BreakerGate, ResponseFuture},
    guard::BreakerGuard,
    handle::BreakerHandle,
    id::{CircuitId, Scope},
    layer::BreakerLayer,
    slow_calls::SlowCalls,
    state::{CircuitStats, Force, State},
};
