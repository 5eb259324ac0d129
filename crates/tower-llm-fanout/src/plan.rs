//! The settings of a fan-out, and the course of one call by them.

use std::time::Duration;

use tokio::time::Instant;

use crate::{Backoff, Budget, Next, Pace, pace::Start, stats::Counters};

/// The settings that all calls share.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) pace: Pace,
    /// Branches beyond these are extra, and need a budget.
    pub(crate) planned: usize,
    pub(crate) budget: Option<Budget>,
    pub(crate) backoff: Option<Backoff>,
    pub(crate) max_retry_after: Duration,
    pub(crate) deadline: Option<Duration>,
    pub(crate) attempt_timeout: Option<Duration>,
    /// No branch starts with less time than this left.
    pub(crate) min_attempt: Duration,
    /// Whether it is written down when branches start and end.
    pub(crate) traced: bool,
    /// Whether a caller that leaves pays for all branches, and not for one.
    pub(crate) bills: bool,
    pub(crate) counters: Counters,
}

/// The course of one call.
#[derive(Debug)]
pub(crate) struct Course {
    pub(crate) started: usize,
    pub(crate) in_flight: usize,
    /// Those that were sent, or may be: the provider has at most so many calls.
    pub(crate) sent: usize,
    pub(crate) next: Start,
    failed: u32,
}

impl Plan {
    /// The time of one branch that starts now, of the time that is left to the call and of `left` branches.
    ///
    /// Branches that run one after another share what is left.
    pub(crate) fn timeout(&self, left: usize, until: Option<Instant>) -> Option<Duration> {
        let remaining = until.map(|until| until.saturating_duration_since(Instant::now()));
        let fair = remaining.map(|remaining| match self.pace.is_sequential() {
            true => (remaining / u32::try_from(left + 1).unwrap_or(u32::MAX)).max(self.min_attempt),
            false => remaining,
        });
        let fair = fair
            .zip(remaining)
            .map(|(fair, remaining)| fair.min(remaining));
        match (self.attempt_timeout, fair) {
            (Some(timeout), Some(fair)) => Some(timeout.min(fair)),
            (timeout, fair) => timeout.or(fair),
        }
    }

    /// Whether a branch that starts after `wait` has no time to answer.
    pub(crate) fn is_too_late(&self, wait: Duration, until: Instant) -> bool {
        until.saturating_duration_since(Instant::now()) < wait.saturating_add(self.min_attempt)
    }

    /// Pays for a branch beside `sent` others; returns whether it may start.
    pub(crate) fn pays(&self, sent: usize) -> bool {
        sent < self.planned
            || self
                .budget
                .as_ref()
                .is_none_or(|budget| budget.withdraw(Instant::now()))
    }

    /// What is added to a time that the provider asks for, so that calls that wait for it do not come back together.
    fn jitter(time: Duration) -> Duration {
        (time / 10)
            .min(Duration::from_secs(1))
            .mul_f64(fastrand::f64())
    }

    /// A branch beside `sent` others is known not to have been sent.
    pub(crate) fn refund(&self, sent: usize) {
        if sent >= self.planned
            && let Some(budget) = &self.budget
        {
            budget.refund();
        }
    }
}

impl Course {
    /// A call whose first branch starts.
    pub(crate) const fn new() -> Self {
        Self {
            started: 0,
            in_flight: 0,
            sent: 0,
            next: Start::Now,
            failed: 0,
        }
    }

    /// A branch has started.
    pub(crate) fn start(&mut self, pace: &Pace) {
        self.started += 1;
        self.in_flight += 1;
        self.sent += 1;
        self.next = pace.next(self.started);
    }

    /// Whether a branch that has answered was sent.
    pub(crate) fn has_sent(&self) -> bool {
        self.sent > self.in_flight
    }

    /// A branch that has started was not sent. If it was a planned one, the next one takes its place and costs nothing.
    pub(crate) fn unsent(&mut self, plan: &Plan) {
        self.sent -= 1;
        plan.refund(self.sent);
    }

    /// A branch has answered, and that means `next`. `repeats` says whether the next branch would go to the same target.
    pub(crate) fn arrived(&mut self, next: Next, plan: &Plan, repeats: bool) {
        self.in_flight -= 1;
        let start = match next {
            Next::Done | Next::NoMore => Start::Never,
            Next::Wait => return,
            Next::MoreAfter(time) if repeats => {
                self.failed = 0;
                match time > plan.max_retry_after {
                    true => Start::Never,
                    false => Start::After(time + Plan::jitter(time)),
                }
            }
            Next::More | Next::MoreAfter(_) => {
                self.failed += 1;
                match &plan.backoff {
                    Some(backoff) if repeats => Start::After(backoff.delay(self.failed)),
                    _ => Start::Now,
                }
            }
        };
        if self.next != Start::Never {
            self.next = start;
        }
    }
}
