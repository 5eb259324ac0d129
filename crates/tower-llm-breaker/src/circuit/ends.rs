//! How the end of a call counts in a circuit's windows, and which input of the machine follows.

use std::time::Duration;

use tokio::time::Instant;

use super::Circuit;
use crate::{
    State,
    clock::Now,
    events::Reason,
    machine::Input,
    sync::Ordering,
    verdict::Verdict,
    window::{Ended, Window},
    word::Pass,
};

/// Credential errors in a row that open a circuit. A single one may be a replica that does not know a new key yet.
const CREDENTIAL_ERRORS: u32 = 3;

impl Circuit {
    /// A probe's first token counts as its success; returns what its end counts as.
    pub(crate) fn first_token(&self, pass: Pass, now: Instant) -> Pass {
        let admission = self.change(Input::FirstToken(pass), now);
        admission.and_then(Result::ok).unwrap_or(pass)
    }

    /// Counts a success, the most common end.
    pub(crate) fn succeeded(&self, pass: Pass, now: &mut Now) {
        // In this order: a window that was clean before the word showed the call's generation was so in that generation. The
        // generation of a probe counts nothing, so its window is never clean.
        if self.failures.is_clean(pass) && self.word.is_current(pass) {
            return;
        }
        if pass.is_probe() {
            self.change(Input::ProbeEnded(pass, Verdict::Success), now.get());
        } else if self.is_counting(pass) {
            self.join(now);
            self.enter(&self.failures, pass, false, now);
        }
    }

    /// Counts the end of a call, and opens or closes the circuit if that is due.
    pub(crate) fn record(&self, pass: Pass, verdict: Verdict, now: &mut Now) {
        let input = match verdict {
            Verdict::Success => return self.succeeded(pass, now),
            Verdict::Failure { retry_after } => return self.failed(pass, retry_after, now),
            Verdict::Neutral if !pass.is_probe() => return,
            Verdict::Neutral => Input::ProbeEnded(pass, verdict),
            Verdict::Throttled { retry_after } => Input::Throttled(pass, retry_after),
            Verdict::Credential if !pass.is_probe() && !self.is_refused_often(pass, now) => return,
            Verdict::Credential => Input::Exhausted(pass, Reason::Credential),
            Verdict::Exhausted => Input::Exhausted(pass, Reason::Exhausted),
        };
        self.change(input, now.get());
    }

    /// Counts a credential error.
    fn is_refused_often(&self, pass: Pass, now: &mut Now) -> bool {
        let counts = self.is_counting(pass);
        let in_a_row = counts.then(|| self.enter(&self.failures, pass, true, now));
        in_a_row
            .flatten()
            .is_some_and(|errors| errors >= CREDENTIAL_ERRORS)
    }

    /// Counts a failure, with the time that the provider named.
    fn failed(&self, pass: Pass, retry_after: Option<Duration>, now: &mut Now) {
        let word = self.word.load();
        let was_probe = word.state == State::HalfOpen && pass.is_of(word);
        if pass.is_probe() || was_probe {
            // It may have counted as a successful probe at its first token.
            let failed = Verdict::Failure { retry_after };
            self.change(Input::ProbeEnded(pass, failed), now.get());
            return;
        }
        if let Some(time) = retry_after {
            self.change(Input::RetryAfter(pass, time), now.get());
        }
        if !self.is_counting(pass) {
            return;
        }
        self.join(now);
        let Some(in_a_row) = self.enter(&self.failures, pass, true, now) else {
            return;
        };
        self.note_event(now.get());
        if let Some(reason) = self.reason_to_open(pass, in_a_row, now) {
            self.change(Input::Tripped(pass, reason, retry_after), now.get());
        }
    }

    /// Why a failure that was just counted opens the circuit. A success never does, because it raises no ratio.
    fn reason_to_open(&self, pass: Pass, in_a_row: u32, now: &mut Now) -> Option<Reason> {
        let config = &self.group.config;
        if config
            .failure_threshold
            .is_some_and(|most| in_a_row >= most)
        {
            return Some(Reason::ConsecutiveFailures);
        }
        let tally = self.failures.tally(pass.generation(), now);
        let is_reached = tally.reaches(config.failure_ratio?, config.minimum_calls());
        is_reached.then_some(Reason::FailureRatio)
    }

    /// Counts whether a call was slow.
    pub(crate) fn record_slow(&self, pass: Pass, is_slow: bool, now: &mut Now) {
        let (Some(window), Some(slow)) = (&self.slow, self.group.config.slow) else {
            return;
        };
        // Whether it is of an earlier generation counts with its success or failure.
        let word = self.word.load();
        if !pass.is_of(word) || !word.state.is_counting() {
            return;
        }
        self.join(now);
        if self.enter(window, pass, is_slow, now).is_none() || !is_slow {
            return;
        }
        self.note_event(now.get());
        let tally = window.tally(pass.generation(), now);
        if tally.reaches(slow.ratio, self.group.config.minimum_calls()) {
            self.change(Input::Tripped(pass, Reason::SlowRatio, None), now.get());
        }
    }

    /// Whether the end of a call counts in a window. One of an earlier generation does not.
    fn is_counting(&self, pass: Pass) -> bool {
        let word = self.word.load();
        if !pass.is_of(word) {
            self.stale.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        word.state.is_counting()
    }

    /// Counts a call in `window`; returns the bad ones in a row, or `None` if its generation has ended meanwhile.
    fn enter(&self, window: &Window, pass: Pass, is_bad: bool, now: &mut Now) -> Option<u32> {
        let word = &self.word;
        let in_a_row = window.record(Ended { is_bad, pass, word }, now);
        if in_a_row.is_none() {
            self.stale.fetch_add(1, Ordering::Relaxed);
        }
        in_a_row
    }
}
