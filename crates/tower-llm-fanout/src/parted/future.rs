//! The future of a call in parts.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_llm_core::{BoxError, Deadline, TimedOut};

use super::{Join, Terms};
use crate::{Attach, Collected, Item, NoBranches, Report, bill::billed};

pin_project! {
    /// Resolves when all parts of a call have been answered, or one has failed. Dropping it drops all parts.
    pub struct PartedFuture<F, J, W> {
        #[pin]
        stage: Stage<F>,
        // `None` if it is sent as it is.
        join: Option<J>,
        watch: Option<W>,
        terms: Option<Terms>,
    }
}

pin_project! {
    #[project = StageProj]
    enum Stage<F> {
        Refused { error: Option<BoxError> },
        Parts { #[pin] future: F },
    }
}

impl<F, J, W> PartedFuture<F, J, W> {
    /// A call that is not sent.
    pub(super) const fn refused(error: BoxError) -> Self {
        let error = Some(error);
        Self {
            stage: Stage::Refused { error },
            join: None,
            watch: None,
            terms: None,
        }
    }

    pub(super) const fn new(future: F, join: Option<J>, watch: W, terms: Terms) -> Self {
        Self {
            stage: Stage::Parts { future },
            join,
            watch: Some(watch),
            terms: Some(terms),
        }
    }
}

impl<F, J, W, T> Future for PartedFuture<F, J, W>
where
    F: Future<Output = Result<Collected<T>, BoxError>>,
    J: Join<T>,
    W: Attach<T>,
{
    type Output = Result<T, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let collected = match this.stage.project() {
            StageProj::Refused { error } => {
                return Poll::Ready(Err(error.take().expect("polled after it was ready")));
            }
            StageProj::Parts { future } => ready!(future.poll(cx))?,
        };
        let (mut items, report) = collected.into_parts();
        let (Some(watch), Some(terms)) = (this.watch.take(), this.terms.take()) else {
            panic!("polled after it was ready");
        };
        Poll::Ready(match this.join.take() {
            None => only(items.pop(), terms),
            Some(join) => {
                let report = report.unwrap_or_else(|| Report::new(Vec::new()));
                joined(items, report, join, &watch, terms)
            }
        })
    }
}

/// The answer to a request that was sent as it is.
fn only<T>(item: Option<Item<T>>, terms: Terms) -> Result<T, BoxError> {
    match item.ok_or_else(NoBranches::new)? {
        Item::Done(answer) | Item::Rejected(answer) => Ok(answer),
        Item::Failed(error) => Err(error),
        Item::Cancelled | Item::NotStarted | Item::DeadlineExceeded => Err(late(terms)),
    }
}

/// The answer to a request of which all parts have been answered, or one has failed.
fn joined<T>(
    items: Vec<Item<T>>,
    report: Report,
    join: impl Join<T>,
    watch: &impl Attach<T>,
    terms: Terms,
) -> Result<T, BoxError> {
    let parts = items.len();
    let mut answers = Vec::with_capacity(parts);
    for (part, item) in items.into_iter().enumerate() {
        match item {
            Item::Done(answer) => answers.push(answer),
            Item::Rejected(mut answer) => {
                watch.charge(&mut answer, report.used_beside(part));
                watch.attach(&mut answer, report);
                return Ok(answer);
            }
            Item::Failed(error) => return Err(billed(error, report.used())),
            // Another one has failed, or all are late.
            Item::Cancelled | Item::NotStarted | Item::DeadlineExceeded => {}
        }
    }
    if answers.len() < parts {
        return Err(billed(late(terms), report.used()));
    }
    let mut answer = join
        .join(answers)
        .map_err(|error| billed(error, report.used()))?;
    watch.settle(&mut answer, report.used());
    if terms.report_headers {
        watch.attach_headers(&mut answer, &report);
    }
    watch.attach(&mut answer, report);
    Ok(answer)
}

fn late(terms: Terms) -> BoxError {
    TimedOut::new(Deadline::Total, terms.deadline.unwrap_or_default()).into()
}

impl<F, J, W> fmt::Debug for PartedFuture<F, J, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PartedFuture").finish_non_exhaustive()
    }
}
