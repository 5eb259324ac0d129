//! All answers are kept.

use std::{error::Error, fmt, pin::Pin};

use tower_llm_core::{BoxError, Call, Completion, HttpBody, Outcome, TimedOut};

use crate::{
    Answers, Arrived, ByOutcome, Classify, Ended, Gather, Next, Reading, Report, Ripen, Verdict,
};

/// All answers are kept, each at the position of its branch.
#[derive(Clone, Debug)]
pub struct Collect<W = HttpBody, C = ByOutcome> {
    pub(crate) reading: Reading<W, C>,
    pub(crate) fail_fast: bool,
    pub(crate) min_ok: usize,
}

/// The answers of one call so far.
#[derive(Debug)]
pub struct CollectOf<T, C> {
    classify: C,
    fail_fast: bool,
    min_ok: usize,
    items: Vec<Option<Item<T>>>,
    timed_out: bool,
}

/// The answers of all branches, in the order of the branches.
#[derive(Debug)]
pub struct Collected<T> {
    items: Vec<Item<T>>,
    report: Option<Report>,
}

/// What became of one branch.
#[derive(Debug)]
pub enum Item<T> {
    /// It has a good answer.
    Done(T),
    /// It has a bad answer.
    Rejected(T),
    /// It has none.
    Failed(BoxError),
    /// It was in flight when the call was given up, because another branch failed.
    Cancelled,
    /// It was not sent when the call was given up.
    NotStarted,
    /// It was in flight when the time of the call was up.
    DeadlineExceeded,
}

/// Fewer branches than needed have a good answer.
#[derive(Debug)]
pub struct TooFewAnswers {
    good: usize,
    min_ok: usize,
    /// That of the first branch that failed.
    source: Option<BoxError>,
}

impl<R, W, C> Gather<R> for Collect<W, C>
where
    W: Ripen<R>,
    C: Classify<W::Ripe>,
{
    type Ripe = W::Ripe;
    type Ripening = W::Ripening;
    type Answers = CollectOf<W::Ripe, C>;

    fn ripen(&self, call: Option<&Call>, response: R) -> W::Ripening {
        self.reading.ripen(call, response)
    }

    fn answers(&self) -> Self::Answers {
        CollectOf {
            classify: self.reading.classify.clone(),
            fail_fast: self.fail_fast,
            min_ok: self.min_ok,
            items: Vec::new(),
            timed_out: false,
        }
    }

    fn give_up(&self, ripening: Pin<&mut W::Ripening>, outcome: Outcome) -> Option<Completion> {
        self.reading.ripen.give_up(ripening, outcome)
    }

    fn keep(&self, call: Option<&Call>) -> Option<Call> {
        self.reading.ripen.keep(call)
    }
}

impl<T, C: Classify<T>> Answers<T> for CollectOf<T, C> {
    type Output = Collected<T>;

    fn push(&mut self, branch: usize, arrived: Arrived<T>) -> Next {
        let is_good = self.classify.classify(&arrived) == Verdict::Accept;
        let item = match arrived.result {
            Ok(response) if is_good => Item::Done(response),
            Ok(response) => Item::Rejected(response),
            Err(error) => Item::Failed(error),
        };
        self.put(branch, item);
        match is_good || !self.fail_fast {
            true => Next::Wait,
            false => Next::Done,
        }
    }

    fn deadline_passed(&mut self, _: TimedOut) {
        self.timed_out = true;
    }

    fn finish(mut self, ended: Ended) -> Result<Self::Output, BoxError> {
        let given_up = || match self.timed_out {
            true => Item::DeadlineExceeded,
            false => Item::Cancelled,
        };
        self.items.resize_with(ended.branches, || None);
        let items = self.items.into_iter().enumerate().map(|(branch, item)| {
            item.unwrap_or_else(|| match branch < ended.started {
                true => given_up(),
                false => Item::NotStarted,
            })
        });
        let collected = Collected {
            items: items.collect(),
            report: ended.report,
        };
        let good = collected.good();
        if good < self.min_ok {
            return Err(TooFewAnswers {
                good,
                min_ok: self.min_ok,
                source: collected.into_first_error(),
            }
            .into());
        }
        Ok(collected)
    }
}

impl<T, C> CollectOf<T, C> {
    fn put(&mut self, branch: usize, item: Item<T>) {
        if self.items.len() <= branch {
            self.items.resize_with(branch + 1, || None);
        }
        self.items[branch] = Some(item);
    }
}

// === impl Collected ===

impl<T> Collected<T> {
    /// What became of the branches, in their order.
    #[must_use]
    pub fn items(&self) -> &[Item<T>] {
        &self.items
    }

    /// The same, owned.
    #[must_use]
    pub fn into_items(self) -> Vec<Item<T>> {
        self.items
    }

    /// How many have a good answer.
    #[must_use]
    pub fn good(&self) -> usize {
        let good = self
            .items
            .iter()
            .filter(|item| matches!(item, Item::Done(_)));
        good.count()
    }

    /// When the branches ran; `None` if there was but one, and for a map.
    #[must_use]
    pub fn report(&self) -> Option<&Report> {
        self.report.as_ref()
    }

    fn into_first_error(self) -> Option<BoxError> {
        self.items.into_iter().find_map(|item| match item {
            Item::Failed(error) => Some(error),
            _ => None,
        })
    }
}

// === impl TooFewAnswers ===

impl fmt::Display for TooFewAnswers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { good, min_ok, .. } = self;
        write!(
            f,
            "{good} branches have a good answer, and {min_ok} are needed"
        )
    }
}

impl Error for TooFewAnswers {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}
