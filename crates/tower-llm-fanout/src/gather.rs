//! What the answers of the branches come to.

use std::{future::Future, pin::Pin, time::Duration};

use tower_llm_core::{BoxError, Call, Completion, Outcome, TimedOut};

use crate::{Arrived, Report};

/// What the answers of the branches come to: when a response counts as an answer, and which answers make the call's own.
pub trait Gather<R>: Clone {
    /// A response that has arrived far enough to count.
    type Ripe;
    /// Resolves when a response counts.
    type Ripening: Future<Output = Arrived<Self::Ripe>>;
    /// The answers of one call.
    type Answers: Answers<Self::Ripe>;

    /// Waits until `response` counts.
    fn ripen(&self, call: Option<&Call>, response: R) -> Self::Ripening;

    /// The same for a call that can have only one branch.
    #[must_use]
    fn of_one_branch(self) -> Self {
        self
    }

    /// Ends a response that does not count yet as `outcome`, and returns what was seen of it, if that is known.
    fn give_up(&self, ripening: Pin<&mut Self::Ripening>, outcome: Outcome) -> Option<Completion> {
        let _ = (ripening, outcome);
        None
    }

    /// Starts to gather the answers of one call.
    fn answers(&self) -> Self::Answers;

    /// The description of a branch that [`ripen`](Self::ripen) reads; `None` if it reads none.
    fn keep(&self, call: Option<&Call>) -> Option<Call> {
        call.cloned()
    }
}

/// The answers of one call.
pub trait Answers<T> {
    /// The call's own answer.
    type Output;

    /// The answer of the branch with this number has arrived.
    fn push(&mut self, branch: usize, arrived: Arrived<T>) -> Next;

    /// The time of the call is up. [`finish`](Self::finish) follows.
    fn deadline_passed(&mut self, error: TimedOut);

    /// No branch is in flight any more, and none can start. Those that were given up have been dropped.
    ///
    /// # Errors
    ///
    /// If the answers come to none.
    fn finish(self, ended: Ended) -> Result<Self::Output, BoxError>;
}

/// A call whose branches have ended.
#[derive(Debug)]
#[non_exhaustive]
pub struct Ended {
    /// How many branches started.
    pub started: usize,
    /// How many there were, with those that did not start.
    pub branches: usize,
    /// When they ran; `None` if there was but one, or it was not written down.
    pub report: Option<Report>,
}

/// What an answer means for the other branches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The call has its answer.
    Done,
    /// Those in flight, and those that are due, go on.
    Wait,
    /// One more may start now.
    More,
    /// One more may start: now elsewhere, and after this time at the same target.
    MoreAfter(Duration),
    /// No other may start.
    NoMore,
}
