//! One call to a language model, in several branches.

#![warn(missing_docs)]

mod backoff;
mod branch;
mod budget;
mod collect;
mod first_ok;
mod future;
mod gather;
mod items;
mod latency;
mod layer;
mod mode;
mod pace;
mod plan;
mod pool;
mod quorum;
mod reading;
mod report;
mod ripen;
mod split;
mod stats;
mod trace;
mod verdict;

pub use self::{
    backoff::Backoff,
    budget::Budget,
    collect::{Collect, CollectOf, Collected, Item, TooFewAnswers},
    first_ok::{FirstOk, FirstOkOf},
    future::FanoutFuture,
    gather::{Answers, Gather, Next},
    items::{Items, ItemsOf},
    layer::{Fanout, FanoutBuilder, FanoutLayer},
    mode::{Each, Fallback, First, Mode, Several, Vote},
    pace::{Delay, Pace},
    pool::{
        Dispatch, LoadGuard, NoTarget, Pick, Pool, PoolBuilder, Route, RouteBranches, Routed,
        Target, TargetStats,
    },
    quorum::{NoQuorum, Quorum, QuorumOf},
    reading::Reading,
    report::{AllFailed, Attempt, Report},
    ripen::{Attach, RipeAt, RipeBody, Ripen, Ripeness, Ripening},
    split::{Branches, Copies, CopiesOf, NoBranches, Replay, Split},
    stats::FanoutStats,
    verdict::{Arrived, ByOutcome, Classify, Verdict},
};
