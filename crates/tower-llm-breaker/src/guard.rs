//! An admitted call, until its end.

use std::{future::Future, pin::Pin, sync::Arc, task::Context, time::Duration};

use http::response::Parts;
use tokio::time::{Instant, Sleep, sleep_until};
use tower_llm_core::{Completion, Failure, Guard, Keyed, Outcome};

use crate::{
    policy::Policy,
    route::{Passes, Route},
    window::Now,
};

/// The guard of an admitted call: counts how it ends.
///
/// It counts once: when the response body ends or is dropped, or as soon as the stream stalls.
#[derive(Debug)]
pub struct BreakerGuard {
    route: Arc<Keyed<Route>>,
    passes: Passes,
    /// `None` unless the call is watched while it runs.
    pace: Option<Box<Pace>>,
    has_stalled: bool,
    /// An inner rate limit acts on the provider's 429.
    pub(crate) ignores_throttled: bool,
}

/// How long a call has waited for content; only with settings for slow or stalled calls.
///
/// Only silence of the upstream counts: the time to the response headers, and then the time in which the body was polled
/// and was pending. How long content waited for its reader cannot be known.
#[derive(Debug)]
struct Pace {
    streamed: bool,
    first_token: bool,
    content_seen: Option<u64>,
    /// Of the response.
    status: Option<u16>,
    /// Time waited since the last content before the current wait, which began at `waiting_since`.
    waited: Duration,
    waiting_since: Option<Instant>,
    is_slow: bool,
    /// Created with the first wait.
    timer: Option<Pin<Box<Sleep>>>,
}

impl BreakerGuard {
    pub(crate) fn new(route: Arc<Keyed<Route>>, passes: Passes, streamed: bool) -> Self {
        let pace = route.is_watched.then(|| Box::new(Pace::new(streamed)));
        Self {
            passes,
            pace,
            has_stalled: false,
            ignores_throttled: false,
            route,
        }
    }

    /// Checks whether the wait for content is too long as of `now`.
    fn look(&mut self, now: Instant) {
        let (policy, Some(pace)) = (&self.route.policy, &mut self.pace) else {
            return;
        };
        let waited = pace.waited_at(now);
        let was_slow = pace.is_slow;
        pace.is_slow |= pace.slow_after(policy).is_some_and(|most| waited >= most);
        let is_slow_now = pace.is_slow && !was_slow;
        let stalls_after = pace.stalls_after(policy);
        let status = pace.status;
        if is_slow_now {
            self.slow(now);
        }
        if !self.has_stalled && stalls_after.is_some_and(|most| waited >= most) {
            self.has_stalled = true;
            let mut stalled = Completion::new(Outcome::Failed(Failure::Stalled));
            // The provider was reached.
            stalled.status = status;
            self.report(&stalled, Some(now));
        }
    }

    /// A deadline cut a stream that showed signs of life: it was slow, whatever the settings.
    fn note_slow(&mut self, completion: &Completion) {
        if let Some(pace) = &mut self.pace
            && self.route.policy.slow.is_some()
            && !pace.is_slow
        {
            pace.is_slow = true;
            self.slow(completion.ended_at.unwrap_or_else(Instant::now));
        }
    }

    /// Counts the call as slow.
    fn slow(&mut self, now: Instant) {
        if let Some((index, circuit)) = self.route.of_model() {
            circuit.record_slow(self.passes[index], true, &mut Now::at(Some(now)));
        }
    }

    fn report(&self, completion: &Completion, at: Option<Instant>) {
        let mut now = Now::at(at);
        if completion.served.is_some() {
            // A cache's answer shows nothing about the provider; a probe is given back.
            return self.count(&Completion::new(Outcome::Superseded), &mut now);
        }
        if self.ignores_throttled && matches!(completion.outcome, Outcome::Throttled { .. }) {
            // Without a time it opens no circuit and is neither success nor failure; a probe's lease is given back.
            let mut untimed = completion.clone();
            untimed.outcome = Outcome::Throttled { retry_after: None };
            return self.count(&untimed, &mut now);
        }
        self.count(completion, &mut now);
    }

    fn count(&self, completion: &Completion, now: &mut Now) {
        let is_slow = self.pace.as_ref().is_some_and(|pace| pace.is_slow);
        if completion.outcome == Outcome::Success && !is_slow {
            self.route.succeeded(&self.passes, now);
            return;
        }
        for (circuit, pass, verdict) in self.route.judged(&self.passes, completion, is_slow) {
            circuit.record(pass, verdict, now);
        }
    }

    /// Counts that the call was not slow, unless it was.
    fn report_pace(&self, completion: &Completion) {
        let Some(pace) = &self.pace else {
            return;
        };
        if pace.is_slow || !pace.has_kept_time(completion.outcome) {
            return;
        }
        if let Some((index, circuit)) = self.route.of_model() {
            let mut now = Now::at(completion.ended_at);
            circuit.record_slow(self.passes[index], false, &mut now);
        }
    }
}

impl Guard for BreakerGuard {
    fn response_headers(&mut self, headers: Option<&mut Parts>) {
        if self.pace.is_none() {
            return;
        }
        // There was nothing to read until here: the upstream alone was the cause.
        let now = Instant::now();
        self.look(now);
        if let Some(pace) = &mut self.pace {
            pace.pause(now);
            pace.status = headers.map(|headers| headers.status.as_u16());
        }
    }

    fn first_token(&mut self, at: Instant) {
        let is_slow = self.pace.as_mut().is_some_and(|pace| {
            pace.streamed = true;
            pace.first_token = true;
            pace.content_came();
            pace.is_slow
        });
        if self.route.policy.first_token_is_success && !is_slow {
            for (circuit, pass) in self.route.with_passes(&mut self.passes) {
                if pass.is_probe() {
                    *pass = circuit.probed_early(*pass, &mut Now::at(Some(at)));
                }
            }
        }
    }

    fn follows_content(&self) -> bool {
        self.pace.is_some()
    }

    fn content(&mut self, seen: Option<u64>) {
        let Some(pace) = &mut self.pace else {
            return;
        };
        // If the body cannot be read, all of it may be content.
        let is_content = seen.is_none() || pace.first_token && pace.content_seen != seen;
        if is_content {
            pace.content_seen = seen;
            pace.content_came();
        } else {
            pace.pause(Instant::now());
        }
    }

    fn pending(&mut self, cx: &mut Context<'_>) {
        while let Some(timer) = self.timer() {
            if timer.as_mut().poll(cx).is_pending() {
                return;
            }
            self.look(Instant::now());
        }
    }

    fn end(&mut self, completion: &Completion) {
        if self.has_stalled {
            return;
        }
        if completion.outcome == Outcome::Failed(Failure::Slow) {
            self.note_slow(completion);
        }
        self.report_pace(completion);
        self.report(completion, completion.ended_at);
    }
}

impl BreakerGuard {
    /// Fires when the wait for the next content is too long.
    fn timer(&mut self) -> Option<&mut Pin<Box<Sleep>>> {
        let policy = &self.route.policy;
        let pace = self.pace.as_mut()?;
        let slow = pace.slow_after(policy).filter(|_| !pace.is_slow);
        let stalled = pace.stalls_after(policy).filter(|_| !self.has_stalled);
        let since = *pace.waiting_since.get_or_insert_with(Instant::now);
        let most = slow.into_iter().chain(stalled).min()?;
        let at = since + most.saturating_sub(pace.waited);
        let timer = pace.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        Some(timer)
    }
}

impl Pace {
    fn new(streamed: bool) -> Self {
        let now = Instant::now();
        Self {
            streamed,
            first_token: false,
            content_seen: None,
            status: None,
            waited: Duration::ZERO,
            waiting_since: Some(now),
            is_slow: false,
            timer: None,
        }
    }

    /// The wait for content after which the call is slow.
    fn slow_after(&self, policy: &Policy) -> Option<Duration> {
        let slow = policy.slow?;
        if !self.streamed {
            return slow.total;
        }
        if self.first_token {
            slow.gap
        } else {
            slow.first_token
        }
    }

    /// Whether a call that was not slow counts as such if it ends with `outcome`. A timer counts a slow call even if its
    /// caller disconnects. If calls that are dropped after their first token did not count, a few slow ones would look like
    /// many.
    fn has_kept_time(&self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Success => true,
            Outcome::Abandoned | Outcome::Superseded => self.first_token,
            _ => false,
        }
    }

    /// The wait for content after which the stream has stalled.
    fn stalls_after(&self, policy: &Policy) -> Option<Duration> {
        policy.stalled_after.filter(|_| self.first_token)
    }

    fn waited_at(&self, now: Instant) -> Duration {
        let since = self.waiting_since;
        self.waited + since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// The wait pauses until the body is polled again.
    fn pause(&mut self, now: Instant) {
        self.waited = self.waited_at(now);
        self.waiting_since = None;
    }

    fn content_came(&mut self) {
        self.waited = Duration::ZERO;
        self.waiting_since = None;
    }
}
