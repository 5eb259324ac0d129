//! The answer that enough branches give wins.

use std::{collections::HashMap, error::Error, fmt, hash::Hash, pin::Pin};

use tower_llm_core::{BoxError, Call, Completion, HttpBody, Outcome, TimedOut};

use crate::{
    Answers, Arrived, Attach, ByOutcome, Classify, Ended, Gather, Next, Reading, Ripen, Verdict,
};

/// The answer that enough branches give wins. Answers are equal if the extractor returns the same for them: texts are
/// seldom equal, and what they say may be.
#[derive(Clone, Debug)]
pub struct Quorum<W = HttpBody, C = ByOutcome, X = ()> {
    pub(crate) reading: Reading<W, C>,
    pub(crate) votes: usize,
    pub(crate) extract: X,
    pub(crate) report_headers: bool,
}

/// The votes of one call.
#[derive(Debug)]
pub struct QuorumOf<T, K, W, C, X> {
    attach: W,
    classify: C,
    extract: X,
    votes: usize,
    report_headers: bool,
    /// By what was extracted: the first branch that gave that answer, the answer, and how many did.
    cast: HashMap<K, (usize, T, usize)>,
    winner: Option<(usize, T)>,
    error: Option<BoxError>,
}

/// No answer has enough votes.
#[derive(Debug)]
pub struct NoQuorum {
    needed: usize,
    most: usize,
    source: Option<BoxError>,
}

impl<R, W, C, X, K> Gather<R> for Quorum<W, C, X>
where
    W: Ripen<R> + Attach<W::Ripe>,
    C: Classify<W::Ripe>,
    X: Fn(&W::Ripe) -> K + Clone,
    K: Eq + Hash,
{
    type Ripe = W::Ripe;
    type Ripening = W::Ripening;
    type Answers = QuorumOf<W::Ripe, K, W, C, X>;

    fn ripen(&self, call: Option<&Call>, response: R) -> W::Ripening {
        self.reading.ripen(call, response)
    }

    fn answers(&self) -> Self::Answers {
        QuorumOf {
            attach: self.reading.ripen.clone(),
            classify: self.reading.classify.clone(),
            extract: self.extract.clone(),
            votes: self.votes,
            report_headers: self.report_headers,
            cast: HashMap::new(),
            winner: None,
            error: None,
        }
    }

    fn give_up(&self, ripening: Pin<&mut W::Ripening>, outcome: Outcome) -> Option<Completion> {
        self.reading.ripen.give_up(ripening, outcome)
    }

    fn keep(&self, call: Option<&Call>) -> Option<Call> {
        self.reading.ripen.keep(call)
    }
}

impl<T, K, W, C, X> Answers<T> for QuorumOf<T, K, W, C, X>
where
    W: Attach<T>,
    C: Classify<T>,
    X: Fn(&T) -> K,
    K: Eq + Hash,
{
    type Output = T;

    fn push(&mut self, branch: usize, arrived: Arrived<T>) -> Next {
        let is_good = self.classify.classify(&arrived) == Verdict::Accept;
        match arrived.result {
            Ok(answer) if is_good => self.cast(branch, answer),
            Ok(_) => Next::Wait,
            Err(error) => {
                self.error.get_or_insert(error);
                Next::Wait
            }
        }
    }

    fn deadline_passed(&mut self, error: TimedOut) {
        self.error.get_or_insert_with(|| error.into());
    }

    fn finish(self, ended: Ended) -> Result<T, BoxError> {
        let Some((branch, mut answer)) = self.winner else {
            let most = self.cast.values().map(|&(_, _, votes)| votes).max();
            return Err(NoQuorum {
                needed: self.votes,
                most: most.unwrap_or(0),
                source: self.error,
            }
            .into());
        };
        if let Some(mut report) = ended.report {
            report.answered_by(branch);
            if self.report_headers {
                self.attach.attach_headers(&mut answer, &report);
            }
            self.attach.attach(&mut answer, report);
        }
        Ok(answer)
    }
}

impl<T, K, W, C, X> QuorumOf<T, K, W, C, X>
where
    X: Fn(&T) -> K,
    K: Eq + Hash,
{
    fn cast(&mut self, branch: usize, answer: T) -> Next {
        let key = (self.extract)(&answer);
        let entry = self.cast.entry(key).or_insert((branch, answer, 0));
        entry.2 += 1;
        if entry.2 < self.votes {
            return Next::Wait;
        }
        let key = (self.extract)(&entry.1);
        self.winner = self
            .cast
            .remove(&key)
            .map(|(branch, answer, _)| (branch, answer));
        Next::Done
    }
}

// === impl NoQuorum ===

impl fmt::Display for NoQuorum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { needed, most, .. } = self;
        write!(f, "at most {most} branches agree, and {needed} are needed")
    }
}

impl Error for NoQuorum {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}
