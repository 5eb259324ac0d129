//! All answers are kept.

use std::{error::Error, fmt, pin::Pin};

use tower_llm_core::{BoxError, Call, ClassifiedError, Completion, HttpBody, Outcome, TimedOut};

use crate::{
    Answers, Arrived, ByOutcome, Classify, Ended, Gather, Next, Reading, Report, RipeAt, Ripen,
    Verdict,
};

/// All answers are kept, each at the position of its branch.
#[derive(Clone, Debug)]
pub struct Collect<W = HttpBody, C = ByOutcome> {
    pub(crate) reading: Reading<W, C>,
    pub(crate) fail_fast: bool,
    pub(crate) min_ok: usize,
    /// Whether the response of a call with one branch passes as it comes, without being held whole.
    pub(crate) only_passes: bool,
    /// Whether each branch must have a good answer, however many there are.
    pub(crate) needs_all: bool,
    /// There is but one branch.
    pub(crate) is_only: bool,
}

/// The answers of one call so far.
#[derive(Debug)]
pub struct CollectOf<T, C> {
    classify: C,
    fail_fast: bool,
    min_ok: usize,
    items: Vec<Option<Item<T>>>,
    /// The first failure that came, for a call that fails.
    failed: Option<Failed>,
    timed_out: Option<TimedOut>,
    needs_all: bool,
    /// The call has one branch, whose answer is the call's, good or bad.
    is_only: bool,
}

/// How a branch failed.
#[derive(Clone, Copy, Debug)]
struct Failed {
    branch: usize,
    outcome: Outcome,
}

/// The answers of all branches, in the order of the branches.
#[derive(Debug)]
pub struct Collected<T> {
    items: Vec<Item<T>>,
    report: Option<Report>,
    /// The call could be sent once.
    is_only: bool,
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
    report: Option<Report>,
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
            failed: None,
            timed_out: None,
            needs_all: self.needs_all,
            is_only: self.is_only,
        }
    }

    fn of_one_branch(mut self) -> Self {
        if self.only_passes {
            self.is_only = true;
            self.reading.ripeness.at = RipeAt::Headers;
        }
        self
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
        let is_good = self.is_only || self.classify.classify(&arrived) == Verdict::Accept;
        if !is_good && self.failed.is_none_or(|first| branch < first.branch) {
            let outcome = arrived.outcome;
            self.failed = Some(Failed { branch, outcome });
        }
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

    fn deadline_passed(&mut self, error: TimedOut) {
        self.timed_out = Some(error);
    }

    fn finish(mut self, ended: Ended) -> Result<Self::Output, BoxError> {
        let given_up = || match self.timed_out {
            Some(_) => Item::DeadlineExceeded,
            None => Item::Cancelled,
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
            is_only: self.is_only,
        };
        let good = collected.good();
        let min_ok = match self.needs_all {
            true => ended.branches,
            false => self.min_ok,
        };
        if good >= min_ok {
            return Ok(collected);
        }
        let (items, report) = collected.into_parts();
        let source = why(items, self.failed).or(self.timed_out.map(Into::into));
        match source {
            Some(source) if self.is_only => Err(source),
            source => Err(TooFewAnswers::new(good, min_ok, source, report).into()),
        }
    }
}

/// The error of the first branch that failed, or what its bad answer means.
fn why<T>(mut items: Vec<Item<T>>, failed: Option<Failed>) -> Option<BoxError> {
    let Failed { branch, outcome } = failed?;
    match items.swap_remove(branch) {
        Item::Failed(error) => Some(error),
        _ => Some(ClassifiedError::new(outcome, "the answer of a branch is bad").into()),
    }
}

impl<W, C> Collect<W, C> {
    /// All answers, bad ones too.
    pub(crate) const fn of(reading: Reading<W, C>) -> Self {
        Self {
            reading,
            fail_fast: false,
            min_ok: 0,
            only_passes: false,
            needs_all: false,
            is_only: false,
        }
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

    /// Takes the response of a call that could be sent once, which need not have arrived whole.
    pub(crate) fn take_only(&mut self) -> Option<T> {
        if !self.is_only && self.items.len() > 1 {
            return None;
        }
        // Branches before the last one were not sent.
        let is_answer = |item: &&Item<T>| matches!(item, Item::Done(_) | Item::Rejected(_));
        self.items.last().filter(is_answer)?;
        match self.items.pop()? {
            Item::Done(answer) | Item::Rejected(answer) => Some(answer),
            _ => None,
        }
    }

    pub(crate) fn into_parts(self) -> (Vec<Item<T>>, Option<Report>) {
        (self.items, self.report)
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
}

// === impl TooFewAnswers ===

impl TooFewAnswers {
    const fn new(
        good: usize,
        min_ok: usize,
        source: Option<BoxError>,
        report: Option<Report>,
    ) -> Self {
        Self {
            good,
            min_ok,
            source,
            report,
        }
    }

    /// When the branches ran and how they ended; `None` if there was but one.
    #[must_use]
    pub const fn report(&self) -> Option<&Report> {
        self.report.as_ref()
    }
}

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
