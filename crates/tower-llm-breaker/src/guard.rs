//! A call that was let through, until its end says what it was.

use std::{future::Future, pin::Pin, sync::Arc, task::Context, time::Duration};

use http::response::Parts;
use tokio::time::{Instant, Sleep, sleep_until};
use tower_llm_core::{Completion, Failure, Guard, Keyed, Outcome};

use crate::{
    policy::Policy,
    route::{Passes, Route},
    window::Now,
};

/// A call that was let through: its guard.
///
/// What it says is counted once: when its body has ended or was dropped, or as soon as it stalls.
#[derive(Debug)]
pub struct BreakerGuard {
    route: Arc<Keyed<Route>>,
    passes: Passes,
    /// `None` unless it is watched while it runs.
    pace: Option<Box<Pace>>,
    has_stalled: bool,
}

/// How a call runs: only kept where calls may be slow or stall.
///
/// What counts is how long the upstream was seen silent: up to the head, and then by a timer while it is asked for more.
/// When something comes nobody knows how long it had lain there before its reader asked.
#[derive(Debug)]
struct Pace {
    streamed: bool,
    first_token: bool,
    content_seen: Option<u64>,
    /// Of the head.
    status: Option<u16>,
    /// How long it was waited for since content came last, and since when it is waited for now.
    waited: Duration,
    waiting_since: Option<Instant>,
    is_slow: bool,
    /// Made when something is first waited for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl BreakerGuard {
    pub(crate) fn new(route: Arc<Keyed<Route>>, passes: Passes, streamed: bool) -> Self {
        let pace = route.is_watched.then(|| Box::new(Pace::new(streamed)));
        Self {
            passes,
            pace,
            has_stalled: false,
            route,
        }
    }

    /// Sees whether content was waited for for too long, as of `now`.
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
            // The way to where it stalls was good.
            stalled.status = status;
            self.report(&stalled, Some(now));
        }
    }

    /// Counts it as slow, before its end.
    fn slow(&mut self, now: Instant) {
        if let Some((index, circuit)) = self.route.of_model() {
            circuit.record_slow(self.passes[index], true, &mut Now::at(Some(now)));
        }
    }

    fn report(&self, completion: &Completion, at: Option<Instant>) {
        let mut now = Now::at(at);
        let is_slow = self.pace.as_ref().is_some_and(|pace| pace.is_slow);
        if completion.outcome == Outcome::Success && !is_slow {
            self.route.succeeded(&self.passes, &mut now);
            return;
        }
        for (circuit, pass, verdict) in self.route.judged(&self.passes, completion, is_slow) {
            circuit.record(pass, verdict, &mut now);
        }
    }

    /// Counts that it was not slow, unless it was.
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
    fn response_headers(&mut self, head: Option<&mut Parts>) {
        if self.pace.is_none() {
            return;
        }
        // Up to here there was nothing to read: nobody kept it waiting.
        let now = Instant::now();
        self.look(now);
        if let Some(pace) = &mut self.pace {
            pace.pause(now);
            pace.status = head.map(|head| head.status.as_u16());
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
        // What cannot be read may all be content.
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
        self.report_pace(completion);
        self.report(completion, completion.ended_at);
    }
}

impl BreakerGuard {
    /// What runs out when the next thing has been waited for for too long.
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

    /// After how long a wait for content it is slow.
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

    /// Whether one that was not slow says so by ending with `outcome`. A slow one is counted by a timer, whoever leaves:
    /// were those not counted who leave when they have what they wanted, a few slow ones would look like many.
    fn has_kept_time(&self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Success => true,
            Outcome::Abandoned | Outcome::Superseded => self.first_token,
            _ => false,
        }
    }

    /// After how long a wait for content it stalls.
    fn stalls_after(&self, policy: &Policy) -> Option<Duration> {
        policy.stalled_after.filter(|_| self.first_token)
    }

    fn waited_at(&self, now: Instant) -> Duration {
        let since = self.waiting_since;
        self.waited + since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// It is not waited for until it is asked for more.
    fn pause(&mut self, now: Instant) {
        self.waited = self.waited_at(now);
        self.waiting_since = None;
    }

    fn content_came(&mut self) {
        self.waited = Duration::ZERO;
        self.waiting_since = None;
    }
}
