//! The first good answer wins.

use std::pin::Pin;

use tower_llm_core::{BoxError, Call, Completion, HttpBody, Outcome, TimedOut};

use crate::{
    AllFailed, Answers, Arrived, Attach, ByOutcome, Classify, Ended, Fallback, Gather, Next,
    NoBranches, Reading, Ripen, Verdict,
};

/// The first answer that is accepted wins. If all branches fail, the answer is that of the first branch.
#[derive(Clone, Debug)]
pub struct FirstOk<W = HttpBody, C = ByOutcome> {
    pub(crate) reading: Reading<W, C>,
    pub(crate) fallback: Fallback,
    pub(crate) report_headers: bool,
}

/// The answers of one call, of which one wins.
#[derive(Debug)]
pub struct FirstOkOf<T, W, C> {
    attach: W,
    classify: C,
    fallback: Fallback,
    report_headers: bool,
    winner: Option<(usize, Result<T, BoxError>)>,
    /// The failure that is the answer if no branch wins.
    failed: Option<(usize, Arrived<T>)>,
}

impl<R, W, C> Gather<R> for FirstOk<W, C>
where
    W: Ripen<R> + Attach<W::Ripe>,
    C: Classify<W::Ripe>,
{
    type Ripe = W::Ripe;
    type Ripening = W::Ripening;
    type Answers = FirstOkOf<W::Ripe, W, C>;

    fn ripen(&self, call: Option<&Call>, response: R) -> W::Ripening {
        self.reading.ripen(call, response)
    }

    fn answers(&self) -> Self::Answers {
        FirstOkOf {
            attach: self.reading.ripen.clone(),
            classify: self.reading.classify.clone(),
            fallback: self.fallback,
            report_headers: self.report_headers,
            winner: None,
            failed: None,
        }
    }

    fn give_up(&self, ripening: Pin<&mut W::Ripening>, outcome: Outcome) -> Option<Completion> {
        self.reading.ripen.give_up(ripening, outcome)
    }

    fn keep(&self, call: Option<&Call>) -> Option<Call> {
        self.reading.ripen.keep(call)
    }
}

impl<T, W: Attach<T>, C: Classify<T>> Answers<T> for FirstOkOf<T, W, C> {
    type Output = T;

    fn push(&mut self, branch: usize, arrived: Arrived<T>) -> Next {
        let next = match self.classify.classify(&arrived) {
            Verdict::Accept | Verdict::Fatal => {
                self.winner = Some((branch, arrived.result));
                return Next::Done;
            }
            Verdict::Soft => Next::More,
            Verdict::SoftAfter(time) => Next::MoreAfter(time),
            Verdict::SoftNoMore => Next::NoMore,
        };
        self.fail(branch, arrived);
        next
    }

    fn deadline_passed(&mut self, error: TimedOut) {
        let timed_out = Arrived::error(error.into(), 0);
        self.failed.get_or_insert((0, timed_out));
    }

    fn finish(self, ended: Ended) -> Result<T, BoxError> {
        let has_won = self.winner.is_some();
        let failed = self.failed.map(|(branch, failed)| (branch, failed.result));
        let (branch, result) = self.winner.or(failed).ok_or_else(NoBranches::new)?;
        let Some(mut report) = ended.report else {
            return result;
        };
        report.answered_by(branch);
        match result {
            Ok(mut response) => {
                if self.report_headers {
                    self.attach.attach_headers(&mut response, &report);
                }
                self.attach.attach(&mut response, report);
                Ok(response)
            }
            Err(error) if has_won || report.attempts().len() < 2 => Err(error),
            Err(error) => Err(AllFailed::new(report, error).into()),
        }
    }
}

impl<T, W, C> FirstOkOf<T, W, C> {
    /// Keeps the answer of a branch that is not good, if it is to be the call's own as long as there is no good one.
    fn fail(&mut self, branch: usize, arrived: Arrived<T>) {
        let replaces = self.failed.as_ref().is_none_or(|(first, failed)| {
            let (old, new) = (rank(failed), rank(&arrived));
            match self.fallback {
                _ if old.0 != new.0 => new.0,
                Fallback::First => branch < *first,
                Fallback::Last if old.1 != new.1 => new.1,
                Fallback::Last => branch > *first,
            }
        });
        if replaces {
            self.failed = Some((branch, arrived));
        }
    }
}

/// Whether a branch was sent, and whether it has an answer that another judge may call good.
fn rank<T>(arrived: &Arrived<T>) -> (bool, bool) {
    (
        arrived.outcome != Outcome::Refused,
        arrived.outcome == Outcome::Success,
    )
}
