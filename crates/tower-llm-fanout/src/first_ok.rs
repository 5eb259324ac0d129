//! The first good answer wins.

use tower_llm_core::{BoxError, Call, HttpBody, Outcome};

use crate::{
    AllFailed, Answers, Arrived, Attach, ByOutcome, Classify, Gather, Next, NoBranches, Report,
    Ripen, Ripeness, Verdict,
};

/// The first answer that is accepted wins. If all branches fail, the answer is that of the first branch.
#[derive(Clone, Debug)]
pub struct FirstOk<W = HttpBody, C = ByOutcome> {
    pub(crate) ripen: W,
    pub(crate) ripeness: Ripeness,
    pub(crate) classify: C,
}

/// The answers of one call, of which one wins.
#[derive(Debug)]
pub struct FirstOkOf<T, W, C> {
    attach: W,
    classify: C,
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
        self.ripen.ripen(call, response, self.ripeness)
    }

    fn answers(&self) -> Self::Answers {
        FirstOkOf {
            attach: self.ripen.clone(),
            classify: self.classify.clone(),
            winner: None,
            failed: None,
        }
    }

    fn keep(&self, call: Option<&Call>) -> Option<Call> {
        self.ripen.keep(call)
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

    fn finish(self, report: Option<Report>) -> Result<T, BoxError> {
        let has_won = self.winner.is_some();
        let failed = self.failed.map(|(branch, failed)| (branch, failed.result));
        let (branch, result) = self.winner.or(failed).ok_or_else(NoBranches::new)?;
        let Some(mut report) = report else {
            return result;
        };
        report.answered_by(branch);
        match result {
            Ok(mut response) => {
                self.attach.attach(&mut response, report);
                Ok(response)
            }
            Err(error) if has_won || report.attempts().len() < 2 => Err(error),
            Err(error) => Err(AllFailed::new(report, error).into()),
        }
    }
}

impl<T, W, C> FirstOkOf<T, W, C> {
    /// Keeps the failure of the first branch, unless that was not sent and another one was.
    fn fail(&mut self, branch: usize, arrived: Arrived<T>) {
        let replaces = match &self.failed {
            None => true,
            Some((first, failed)) => {
                let is_refused = |outcome| outcome == Outcome::Refused;
                match (is_refused(failed.outcome), is_refused(arrived.outcome)) {
                    (true, false) => true,
                    (false, true) => false,
                    _ => branch < *first,
                }
            }
        };
        if replaces {
            self.failed = Some((branch, arrived));
        }
    }
}
