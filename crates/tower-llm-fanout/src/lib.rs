//! One call to a language model, in several branches: hedge, race, failover, retry, cascade, vote and map.
//!
//! [`FanoutLayer`] has a constructor for each:
//!
//! | constructor | branches | starts the next one | answer |
//! |---|---|---|---|
//! | [`race`](FanoutLayer::race) | copies | at once | the first good one |
//! | [`hedge`](FanoutLayer::hedge) | two copies | after a delay, or a failure | the first good one |
//! | [`retry`](FanoutLayer::retry) | copies | after a failure and a backoff | the first good one |
//! | [`failover`](FanoutLayer::failover) | one target after the other | after a failure | the first good one |
//! | [`cascade`](FanoutLayer::cascade) | one tier after the other | after an answer that is too weak | the first one that is good enough |
//! | [`quorum`](FanoutLayer::quorum), [`majority`](FanoutLayer::majority) | copies | at once | the one that enough agree on |
//! | [`several`](FanoutLayer::several) | copies | at once | all of them |
//! | [`ensemble`](FanoutLayer::ensemble) | copies, or targets | at once | what a judge makes of them |
//! | [`best_of`](FanoutLayer::best_of) | copies, or targets | at once | the one that a judge chooses |
//! | [`map`](FanoutLayer::map) | the items of a list | as many at once as set | each item's own |
//! | [`split`](FanoutLayer::split) | the parts of a request | as many at once as set | one, joined of all |
//!
//! All are one engine with three parts: a [`Split`] makes the branches, a [`Pace`] says when the next one may start, and a
//! [`Gather`] what their answers come to.
//!
//! # When a response is an answer
//!
//! Response headers say little: errors arrive inside a 200, and a stream may begin with a frame that only names a role. So a
//! stream counts with its first content token, any other response with its end ([`RipeAt`]). Until then the frames are
//! held, within a bound, and a failure starts another branch, unseen by the caller. After that, the caller has what arrives.
//!
//! What an answer means is decided by its [`Outcome`](tower_llm_core::Outcome) ([`ByOutcome`]), or by a closure
//! ([`Classify`]), in five values ([`Verdict`]).
//!
//! # Cost, drop and time
//!
//! - `future` polls in this order: completions, launches, timer. `driver` starts branches and takes their answers, by the
//!   settings in `plan`; `first_ok`, `collect` and `quorum` say what the answers come to.
//! - A call with one branch allocates nothing here, reads no clock if its answer is there at once, and clones its request if a
//!   second branch could start. Other branches are kept in one slab, made when the second one starts.
//! - Providers bill what they generate, whether it is read or not. So extra branches (hedges, retries, failover) are paid for
//!   from a [`Budget`]; [`FanoutStats`] says how many there were, and how long those ran that lost.
//! - Branches that lost are dropped before the answer is handed out, and end as
//!   [`Superseded`](tower_llm_core::Outcome::Superseded) for the layers in them: neutral for a breaker, and settled by what
//!   was seen. On HTTP/2 that resets the stream; on HTTP/1 it closes the connection.
//! - A caller that leaves drops all branches. No task is spawned.
//! - Time is tokio's, which tests can pause.
//!
//! # Example
//!
//! ```
//! use std::{borrow::Cow, convert::Infallible, time::Duration};
//!
//! use tower::{Layer, ServiceExt, service_fn};
//! use tower_llm_core::{Call, Described, Unary};
//! use tower_llm_fanout::{Delay, FanoutLayer};
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
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), tower_llm_core::BoxError> {
//! // One call of ten thousand hangs: a second one is sent after 2 s, and its answer taken.
//! let hedge = FanoutLayer::hedge(Delay::fixed(Duration::from_secs(2))).watch(Unary).build()?;
//! let calls = std::sync::atomic::AtomicUsize::new(0);
//! let calls: &'static _ = Box::leak(Box::new(calls));
//! let model = hedge.layer(service_fn(move |Prompt(text)| async move {
//!     if calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0 {
//!         std::future::pending::<()>().await;
//!     }
//!     Ok::<_, Infallible>(format!("{text} Because."))
//! }));
//!
//! assert_eq!(model.oneshot(Prompt("Why?")).await?, "Why? Because.");
//! assert_eq!(hedge.stats().extra, 1);
//! # Ok(())
//! # }
//! ```
//!
//! # What was looked at and not used
//!
//! - tower's `hedge` hands out the first branch that finishes, good or bad, has no layer, and reads a histogram under a lock for
//!   each call. It records winners only, so a hedge at 5 % settles at 10 %. Its `TpsBudget` allows one retry a call for every
//!   ratio above a half. Its `balance` is no `Clone`, waits for ever on an empty set, and draws half of the traffic to a target that
//!   fails fast. Its `steer` waits until all services are ready.
//! - tower-resilience's `hedge` and `router` box each call and attempt, and an error does not bring the next attempt forward.
//! - `backon` and `exponential-backoff` sleep between attempts of a closure, and know neither readiness nor a budget; full jitter is
//!   four lines.
//! - `FuturesUnordered` allocates for each branch, `JoinSet` spawns a task for it, `select_ok` and `select!` need all branches at
//!   first. [`futures_buffered`]'s bounded set allocates once for all, and holds the branches after the first.
//! - `tower::util::ServiceExt::call_all` and `Steer` know nothing of positions and failures of the items of a list.
//!
//! The shape is that of other systems: verdicts as in gRFC A6, one number for the pace as in Polly, the delay and the record of
//! Finagle's backup requests, the penalty for failures of linkerd2-proxy.

#![warn(missing_docs)]

mod backoff;
mod bill;
mod branch;
mod budget;
mod builder;
mod collect;
mod driver;
mod ensemble;
mod first_ok;
mod future;
mod gather;
mod items;
mod latency;
mod layer;
#[cfg(all(test, fanout_loom))]
mod loom;
mod mode;
mod pace;
mod parted;
mod plan;
mod pool;
mod quorum;
mod reading;
mod report;
mod ripe_body;
mod ripen;
mod service;
mod split;
mod stats;
mod sync;
mod trace;
mod verdict;

pub use tower_llm_core::Attempt;

pub use self::{
    backoff::Backoff,
    budget::Budget,
    builder::FanoutBuilder,
    collect::{Collect, CollectOf, Collected, Item, TooFewAnswers},
    ensemble::{
        BestOf, Elect, Ensemble, EnsembleBody, EnsembleBuilder, EnsembleFuture, EnsembleLayer,
        IfJudgeFails, Judge, JudgeFailed,
    },
    first_ok::{FirstOk, FirstOkOf},
    future::FanoutFuture,
    gather::{Answers, Ended, Gather, Next},
    items::{Items, ItemsOf},
    layer::FanoutLayer,
    mode::{Each, Fallback, First, Mode, Several, Vote},
    pace::{Delay, Pace},
    parted::{
        CompletionParts, Divide, Divided, EmbeddingParts, ItemTooLong, Join, JoinChoices,
        JoinVectors, Parted, PartedFuture, SplitBuilder, SplitLayer,
    },
    pool::{
        Dispatch, LoadGuard, NoTarget, Pick, Pool, PoolBuilder, Route, RouteBranches, Routed,
        Target, TargetStats,
    },
    quorum::{NoQuorum, Quorum, QuorumOf},
    reading::Reading,
    report::{AllFailed, Report},
    ripe_body::RipeBody,
    ripen::{Attach, RipeAt, Ripen, Ripeness, Ripening},
    service::Fanout,
    split::{Branches, Copies, CopiesOf, NoBranches, Replay, Split},
    stats::FanoutStats,
    verdict::{Arrived, ByOutcome, Classify, Verdict},
};
