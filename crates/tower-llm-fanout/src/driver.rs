//! One call with its branches: what starts when, and what an answer changes.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_buffered::FuturesUnorderedBounded;
use tokio::time::Instant;
use tower_llm_core::{
    Bill, BoxError, Call, Deadline, Described, Failure, Oneshot, Outcome, TimedOut, Usage,
};
use tower_service::Service;

use crate::{
    Answers, Arrived, Branches, Gather, Next,
    branch::{Branch, Loss, Losses, Terms},
    pace::Start,
    plan::{Course, Plan},
    stats::Tally,
    trace::Trace,
};

pub(crate) type Later<S, R, G> = Branch<Oneshot<S, R>, G, <S as Service<R>>::Response>;

/// What a call needs beside its branches in flight.
pub(crate) struct Driver<S, B, G>
where
    S: Service<B::Branch>,
    B: Branches,
    G: Gather<S::Response>,
{
    pub(crate) plan: Arc<Plan>,
    /// `None` if no other branch can start.
    pub(crate) service: Option<S>,
    pub(crate) branches: B,
    pub(crate) gather: G,
    /// `None` once the call is answered.
    pub(crate) answers: Option<G::Answers>,
    pub(crate) course: Course,
    /// Read as soon as it is needed: a call whose answer is there at once reads no clock.
    pub(crate) began_at: Option<Instant>,
    pub(crate) trace: Option<Trace>,
    /// Made when the second branch starts.
    pub(crate) losses: Option<Arc<Losses>>,
    pub(crate) tally: Tally,
}

impl<S, B, G> Driver<S, B, G>
where
    S: Service<B::Branch> + Clone,
    S::Error: Into<BoxError>,
    B: Branches,
    B::Branch: Described,
    G: Gather<S::Response>,
{
    fn began_at(&mut self) -> Instant {
        *self.began_at.get_or_insert_with(Instant::now)
    }

    /// When the call has to be answered.
    fn until(&mut self) -> Option<Instant> {
        let deadline = self.plan.deadline?;
        self.began_at().checked_add(deadline)
    }

    /// Makes the next branch, with what it is told.
    pub(crate) fn next(&mut self) -> Option<(B::Branch, Terms)> {
        let request = self.branches.next()?;
        self.trace_start();
        let call = request.call();
        let input_tokens = call.as_deref().map_or(0, Call::input_tokens);
        let call = self.gather.keep(call.as_deref());
        let until = self.until();
        // Targets that are unavailable get no part of the time that is left.
        let left = match until.is_some() && self.plan.pace.is_sequential() {
            true => self.branches.available(),
            false => 0,
        };
        let timeout = self.plan.timeout(left, until);
        let index = self.course.started;
        self.course.start(&self.plan.pace);
        let terms = Terms {
            index,
            call,
            input_tokens,
            timeout,
            losses: None,
        };
        Some((request, terms))
    }

    /// Calls without named targets are traced once they may have a second branch.
    fn trace_start(&mut self) {
        let target = self.branches.target();
        let is_only = self.course.started == 0 && target.is_none();
        if !self.plan.traced || is_only {
            return;
        }
        let now = match self.course.started {
            0 => self.began_at(),
            _ => Instant::now(),
        };
        self.trace().started(target, now);
    }

    /// The trace, with the first branch in it, which needs no clock of its own.
    fn trace(&mut self) -> &mut Trace {
        let (began_at, started) = (self.began_at(), self.course.started);
        self.trace.get_or_insert_with(|| {
            let mut trace = Trace::new(began_at);
            if started > 0 {
                trace.started(None, began_at);
            }
            trace
        })
    }

    /// Starts the next branch, if it may start now.
    pub(crate) fn start(&mut self) -> Option<Later<S, B::Branch, G>> {
        let course = &self.course;
        let is_due = course.next == Start::Now && course.in_flight < self.plan.pace.at_most;
        if !is_due || self.branches.left() == 0 || self.answers.is_none() {
            return None;
        }
        let service = self.service.clone()?;
        let until = self.until();
        let is_late = until.is_some_and(|until| self.plan.is_too_late(Duration::ZERO, until));
        if is_late || !self.plan.pays(self.course.sent) {
            self.tally.refused_by_budget |= !is_late;
            // A hedge that is not paid for leaves the call its right to fail over.
            self.course.next = match is_late {
                true => Start::Never,
                false => Start::AfterFailure,
            };
            return None;
        }
        let Some((request, mut terms)) = self.next() else {
            self.plan.refund(self.course.sent);
            // There may be a target by the time that a branch fails.
            self.course.next = Start::AfterFailure;
            return None;
        };
        terms.losses = Some(Arc::clone(self.losses.get_or_insert_default()));
        let future = Oneshot::new(service, request);
        Some(Branch::new(terms, future, self.gather.clone()))
    }

    /// A branch has answered.
    pub(crate) fn arrived(&mut self, branch: usize, arrived: Arrived<G::Ripe>) -> Next {
        let (outcome, usage) = (arrived.outcome, arrived.usage);
        if outcome == Outcome::Refused {
            self.course.unsent(&self.plan);
            self.branches.unsent();
        }
        let Some(answers) = &mut self.answers else {
            return Next::Done;
        };
        let next = answers.push(branch, arrived);
        if next == Next::Done && branch > 0 {
            self.tally.won = true;
        }
        let may_go_on = next != Next::Done && self.branches.left() > 0;
        if self.plan.traced && may_go_on {
            self.trace();
        }
        self.record_end(branch, outcome, usage);
        let repeats = self.branches.repeats();
        self.course.arrived(next, &self.plan, repeats);
        if let (Start::After(wait), Some(until)) = (self.course.next, self.until())
            && self.plan.is_too_late(wait, until)
        {
            self.course.next = Start::Never;
        }
        next
    }

    /// Writes down how long a branch took.
    fn record_end(&mut self, branch: usize, outcome: Outcome, usage: Option<Usage>) {
        let (record, trace) = (self.plan.pace.record(), self.trace.as_mut());
        // An answer that was there at once says nothing of the provider.
        let Some(began_at) = self
            .began_at
            .filter(|_| record.is_some() || trace.is_some())
        else {
            return;
        };
        let now = Instant::now();
        let ran = match trace {
            Some(trace) => trace.ended(branch, outcome, usage, now),
            None => Some(now.saturating_duration_since(began_at)),
        };
        let is_latency = matches!(
            outcome,
            Outcome::Success | Outcome::Failed(Failure::Timeout)
        );
        if let (true, Some(record), Some(ran)) = (is_latency, record, ran) {
            record.record(ran, now);
        }
    }

    /// No branch is in flight, and no other one will start.
    pub(crate) fn is_over(&self) -> bool {
        let starts = match self.course.next {
            Start::Now | Start::After(_) | Start::At(_) => {
                self.branches.left() > 0 && self.service.is_some()
            }
            Start::AfterFailure | Start::Never => false,
        };
        self.course.in_flight == 0 && !starts
    }

    /// When there is something to do, whether a branch answers or not.
    pub(crate) fn wakes_at(&mut self) -> Option<Instant> {
        // A call whose first branch has to be waited for has begun.
        self.began_at();
        let until = self.until();
        if self.branches.left() == 0 || self.service.is_none() {
            return until;
        }
        if let Start::After(delay) = self.course.next {
            // The first branch began with the call.
            let from = match self.course.started {
                1 if self.course.in_flight == 1 => self.began_at(),
                _ => Instant::now(),
            };
            let at = from.checked_add(delay);
            self.course.next = at.map_or(Start::Never, Start::At);
        }
        let next = match self.course.next {
            Start::At(at) => Some(at),
            _ => None,
        };
        next.into_iter().chain(until).min()
    }

    /// The time `at` has come. Returns whether the call goes on.
    pub(crate) fn is_due(&mut self, at: Instant) -> bool {
        if self.until().is_some_and(|until| until <= at) {
            let after = self.plan.deadline.unwrap_or_default();
            if let Some(answers) = &mut self.answers {
                answers.deadline_passed(TimedOut::new(Deadline::Total, after));
            }
            return false;
        }
        if self.course.next == Start::At(at) {
            self.course.next = Start::Now;
        }
        true
    }

    /// Drops the branches in flight, which end as `outcome`.
    pub(crate) fn give_up<F>(
        &mut self,
        outcome: Outcome,
        mut first: Pin<&mut Option<Branch<F, G, S::Response>>>,
        later: &mut Option<FuturesUnorderedBounded<Later<S, B::Branch, G>>>,
    ) {
        if self.course.in_flight == 0 {
            return;
        }
        if outcome == Outcome::Superseded {
            self.tally.superseded = self.course.in_flight;
        }
        let now = Instant::now();
        if let Some(branch) = first.as_mut().as_pin_mut() {
            self.lost(branch.give_up(outcome), now);
            first.set(None);
        }
        if let Some(losses) = self.losses.take() {
            let lost = losses.of_dropping(outcome, || *later = None);
            lost.into_iter().for_each(|loss| self.lost(loss, now));
        }
    }

    /// A branch was given up.
    fn lost(&mut self, loss: Loss, now: Instant) {
        if loss.is_unsent() {
            self.course.unsent(&self.plan);
        }
        self.tally.wasted_tokens += loss.used.total();
        let Some(trace) = &mut self.trace else {
            return;
        };
        let ran = trace.ended(loss.branch, loss.outcome, Some(loss.used), now);
        let ran = ran.unwrap_or_default();
        self.tally.wasted += ran;
        if let Some(record) = self.plan.pace.record() {
            record.record(ran, now);
        }
    }
}

impl<S, B, G> Driver<S, B, G>
where
    S: Service<B::Branch>,
    B: Branches,
    G: Gather<S::Response>,
{
    /// The caller has left: it pays for the branches that have answered, if it pays for more than one.
    pub(crate) fn bill(&self) {
        let trace = self.trace.as_ref().filter(|_| self.plan.bills);
        let used = trace.map(Trace::used).unwrap_or_default();
        if used != Usage::default() {
            let bill = Bill::new();
            bill.charge_extra(used);
            bill.report();
        }
    }

    /// The call has ended: adds it to the statistics.
    pub(crate) fn tally(&mut self) {
        self.tally.branches = self.course.started;
        self.tally.extra = self.course.sent.saturating_sub(self.plan.planned);
        self.plan.counters.add(&self.tally);
    }
}
