//! One call to a language model, in several branches.

#![warn(missing_docs)]

mod backoff;
mod branch;
mod budget;
mod first_ok;
mod future;
mod gather;
mod latency;
mod layer;
mod pace;
mod plan;
mod report;
mod ripen;
mod split;
mod stats;
mod trace;
mod verdict;

pub use self::{
    backoff::Backoff,
    budget::Budget,
    first_ok::{FirstOk, FirstOkOf},
    future::FanoutFuture,
    gather::{Answers, Gather, Next},
    layer::{Fanout, FanoutBuilder, FanoutLayer},
    pace::{Delay, Pace},
    report::{AllFailed, Attempt, Report},
    ripen::{Attach, RipeAt, RipeBody, Ripen, Ripeness, Ripening},
    split::{Branches, Copies, CopiesOf, NoBranches, Replay, Split},
    stats::FanoutStats,
    verdict::{Arrived, ByOutcome, Classify, Verdict},
};
