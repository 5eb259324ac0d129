//! What became of the branches of a call.

use std::{error::Error, fmt};

use tower_llm_core::{Attempt, BoxError, Usage};

/// What became of the branches of a call.
///
/// It is in the extensions of an [`http::Response`] if the call had more than one branch, or went to a [`Pool`](crate::Pool). Its
/// attempts are beside it, for the layers around.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    attempts: Vec<Attempt>,
    winner: Option<usize>,
    judge: Option<Attempt>,
}

/// All branches of a call failed.
///
/// Its [`source`](Error::source) is the error of the branch that decides: the first one that was
/// sent.
#[derive(Debug)]
pub struct AllFailed {
    report: Report,
    source: BoxError,
}

// === impl Report ===

impl Report {
    pub(crate) const fn new(attempts: Vec<Attempt>) -> Self {
        Self {
            attempts,
            winner: None,
            judge: None,
        }
    }

    pub(crate) fn judged_by(&mut self, judge: Attempt) {
        self.judge = Some(judge);
    }

    /// What all branches have used.
    pub(crate) fn used(&self) -> Usage {
        used(&self.attempts)
    }

    /// What all branches but this one have used.
    pub(crate) fn used_beside(&self, branch: usize) -> Usage {
        let attempts = self.attempts.iter().enumerate();
        used(attempts.filter_map(|(other, attempt)| (other != branch).then_some(attempt)))
    }

    pub(crate) fn answered_by(&mut self, branch: usize) {
        self.winner = Some(branch);
    }

    /// The branches, in the order in which they started.
    #[must_use]
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    /// The branch whose answer the call got, good or bad; `None` if the answer was made of several.
    #[must_use]
    pub fn winner(&self) -> Option<&Attempt> {
        self.attempts.get(self.winner?)
    }

    /// The call to the judge of an ensemble; `None` if there was none. It has no target.
    #[must_use]
    pub fn judge(&self) -> Option<&Attempt> {
        self.judge.as_ref()
    }
}

/// What these branches have used together.
pub(crate) fn used<'a>(attempts: impl IntoIterator<Item = &'a Attempt>) -> Usage {
    let used = attempts.into_iter().filter_map(|attempt| attempt.usage);
    used.fold(Usage::default(), |all, used| all.plus(&used))
}

// === impl AllFailed ===

impl AllFailed {
    pub(crate) const fn new(report: Report, source: BoxError) -> Self {
        Self { report, source }
    }

    /// Returns the one among `error` and its sources, if there is one.
    #[must_use]
    pub fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        std::iter::successors(Some(error), |&error| error.source())
            .find_map(<dyn Error>::downcast_ref)
    }

    /// What became of the branches.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }
}

impl fmt::Display for AllFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let branches = self.report.attempts.len();
        write!(
            f,
            "all {branches} branches of the call failed: {}",
            self.source
        )
    }
}

impl Error for AllFailed {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}
