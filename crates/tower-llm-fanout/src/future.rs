//! The future of a call with branches.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_buffered::FuturesUnorderedBounded;
use futures_core::Stream;
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep_until};
use tower_llm_core::{BoxError, Described, Failure, Outcome, Unsent};
use tower_service::Service;

use crate::{
    Answers, Arrived, Branches, Ended, Gather, Next,
    branch::Branch,
    driver::{Driver, Later},
    plan::{Course, Plan},
    stats::Tally,
    trace::Trace,
};

pin_project! {
    /// Resolves when the answers of the branches come to one.
    ///
    /// Branches that lost are dropped before that. Dropping it drops all branches.
    pub struct FanoutFuture<S, B, G>
    where
        S: Service<B::Branch>,
        B: Branches,
        G: Gather<S::Response>,
    {
        // The first branch. It is kept here, so that a call with one branch allocates nothing.
        #[pin]
        first: Option<Branch<S::Future, G, S::Response>>,
        // The others, made when the second one starts.
        later: Option<FuturesUnorderedBounded<Later<S, B::Branch, G>>>,
        driver: Driver<S, B, G>,
        // Made when there is something to wait for.
        #[pin]
        timer: Option<Sleep>,
    }

    impl<S, B, G> PinnedDrop for FanoutFuture<S, B, G>
    where
        S: Service<B::Branch>,
        B: Branches,
        G: Gather<S::Response>,
    {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if this.driver.answers.is_none() {
                return;
            }
            this.driver.tally();
            this.driver.bill();
            if this.driver.course.has_sent() {
                // Whatever the branches in flight report, the provider was called.
                Unsent::while_dropping(|| ());
            } else if this.driver.course.in_flight == 0 {
                // All branches were refused, and none is there to report it.
                drop(Unsent::new());
            }
        }
    }
}

impl<S, B, G> FanoutFuture<S, B, G>
where
    S: Service<B::Branch> + Clone,
    S::Error: Into<BoxError>,
    B: Branches,
    B::Branch: Described,
    G: Gather<S::Response>,
{
    /// Starts the first branch on `service`, which is ready.
    pub(crate) fn new(service: &mut S, plan: &Arc<Plan>, branches: B, gather: G) -> Self {
        if let Some(budget) = &plan.budget {
            budget.deposit();
        }
        let gather = match branches.left() {
            0 | 1 => gather.of_one_branch(),
            _ => gather,
        };
        let mut driver = Driver {
            plan: Arc::clone(plan),
            service: None,
            answers: Some(gather.answers()),
            course: Course::new(),
            began_at: None,
            trace: None,
            losses: None,
            tally: Tally::default(),
            gather,
            branches,
        };
        let first = driver.next().map(|(request, terms)| {
            let future = service.call(request);
            Branch::new(terms, future, driver.gather.clone())
        });
        if first.is_some() && driver.branches.may_follow() {
            driver.service = Some(service.clone());
        }
        Self {
            first,
            later: None,
            driver,
            timer: None,
        }
    }
}

impl<S, B, G> Future for FanoutFuture<S, B, G>
where
    S: Service<B::Branch> + Clone,
    S::Error: Into<BoxError>,
    B: Branches,
    B::Branch: Described,
    G: Gather<S::Response>,
{
    type Output = Result<<G::Answers as Answers<G::Ripe>>::Output, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let driver = this.driver;
        if driver.course.started == 0 {
            driver.tally();
            driver.answers = None;
            return Poll::Ready(Err(driver.branches.refusal()));
        }
        let mut given_up = Outcome::Superseded;
        loop {
            // All that may start now start before any is polled: none gets a head start.
            while let Some(branch) = driver.start() {
                // All that may be in flight at once: one that is not sent leaves its place to another.
                let most = driver.course.started + driver.branches.left();
                let most = most.min(driver.plan.pace.at_most);
                this.later
                    .get_or_insert_with(|| FuturesUnorderedBounded::new(most))
                    .push(branch);
            }
            if let Some((branch, arrived)) = poll_arrived(this.first.as_mut(), this.later, cx) {
                if driver.arrived(branch, arrived) == Next::Done {
                    break;
                }
                continue;
            }
            if driver.is_over() {
                break;
            }
            let Some(at) = driver.wakes_at() else {
                return Poll::Pending;
            };
            if this
                .timer
                .as_ref()
                .as_pin_ref()
                .map(|timer| timer.deadline())
                != Some(at)
            {
                this.timer.set(Some(sleep_until(at)));
            }
            let timer = this.timer.as_mut().as_pin_mut();
            if timer.is_none_or(|timer| timer.poll(cx).is_pending()) {
                return Poll::Pending;
            }
            if !driver.is_due(at) {
                given_up = Outcome::Failed(Failure::Timeout);
                break;
            }
        }
        driver.give_up(given_up, this.first, this.later);
        driver.tally();
        let answers = driver.answers.take().expect("polled after it was ready");
        let started = driver.course.started;
        Poll::Ready(answers.finish(Ended {
            started,
            branches: started + driver.branches.left(),
            report: driver.trace.take().map(Trace::into_report),
        }))
    }
}

/// The next answer that is there.
fn poll_arrived<F, G, R, E, L>(
    mut first: Pin<&mut Option<Branch<F, G, R>>>,
    later: &mut Option<FuturesUnorderedBounded<L>>,
    cx: &mut Context<'_>,
) -> Option<(usize, Arrived<G::Ripe>)>
where
    F: Future<Output = Result<R, E>>,
    E: Into<BoxError>,
    G: Gather<R>,
    L: Future<Output = (usize, Arrived<G::Ripe>)>,
{
    if let Some(branch) = first.as_mut().as_pin_mut()
        && let Poll::Ready(arrived) = branch.poll(cx)
    {
        first.set(None);
        return Some(arrived);
    }
    match Pin::new(later.as_mut()?).poll_next(cx) {
        Poll::Ready(arrived) => arrived,
        Poll::Pending => None,
    }
}

impl<S, B, G> fmt::Debug for FanoutFuture<S, B, G>
where
    S: Service<B::Branch>,
    B: Branches,
    G: Gather<S::Response>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FanoutFuture")
            .field("course", &self.driver.course)
            .finish_non_exhaustive()
    }
}
