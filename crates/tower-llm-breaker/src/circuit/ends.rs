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
        // In this order: a window that was clean before the word showed the call's generation was so in that generation.
        if self.failures.is_clean(pass.generation()) && self.is_current(pass) {
            return;
        }
        self.record(pass, Verdict::Success, now);
    }

    /// Counts the end of a call, and opens or closes the circuit if that is due.
    pub(crate) fn record(&self, pass: Pass, verdict: Verdict, now: &mut Now) {
        let input = match verdict {
            Verdict::Success if pass.is_probe() => Input::ProbeSucceeded(pass),
            Verdict::Success => return self.count(pass, None, now),
            Verdict::Failure { retry_after } if pass.is_probe() => {
                Input::ProbeFailed { pass, retry_after }
            }
            Verdict::Failure { retry_after } => return self.count(pass, Some(retry_after), now),
            Verdict::Neutral if pass.is_probe() => Input::ProbeReturned(pass),
            Verdict::Neutral => return,
            Verdict::Throttled { retry_after } => Input::Throttled { pass, retry_after },
            Verdict::Credential if !pass.is_probe() && !self.is_refused_often(pass, now) => return,
            Verdict::Credential => Input::Exhausted {
                pass,
                reason: Reason::Credential,
            },
            Verdict::Exhausted => Input::Exhausted {
                pass,
                reason: Reason::Exhausted,
            },
        };
        self.change(input, now.get());
    }

    /// Counts a credential error.
    fn is_refused_often(&self, pass: Pass, now: &mut Now) -> bool {
        let in_a_row = self.enter(&self.failures, pass, true, now);
        in_a_row.is_some_and(|errors| errors >= CREDENTIAL_ERRORS)
    }

    /// Counts a success, or a failure with the time that the provider named.
    fn count(&self, pass: Pass, failure: Option<Option<Duration>>, now: &mut Now) {
        let word = self.word();
        let is_current = pass.is_of(word);
        if is_current && !word.state.is_counting() {
            if let (State::HalfOpen, Some(retry_after)) = (word.state, failure) {
                // It had counted as a successful probe at its first token.
                self.change(Input::ProbeFailed { pass, retry_after }, now.get());
            }
            return;
        }
        if let Some(Some(time)) = failure {
            self.change(Input::RetryAfter { pass, time }, now.get());
        }
        if is_current {
            self.join(now);
        }
        let Some(in_a_row) = self.enter(&self.failures, pass, failure.is_some(), now) else {
            return;
        };
        let Some(retry_after) = failure else {
            return;
        };
        self.note_event(now.get());
        if let Some(reason) = self.reason_to_open(pass, in_a_row, now) {
            self.trip(pass, reason, retry_after, now);
        }
    }

    /// Why a failure that was just counted opens the circuit. A success never does, because it raises no ratio.
    fn reason_to_open(&self, pass: Pass, in_a_row: u32, now: &mut Now) -> Option<Reason> {
        let config = self.config();
        let is_run = config
            .failure_threshold
            .is_some_and(|most| in_a_row >= most);
        if is_run {
            return Some(Reason::ConsecutiveFailures);
        }
        let ratio = config.failure_ratio?;
        let tally = self.failures.tally(pass.generation(), now);
        let is_reached = tally.reaches(ratio, config.minimum_calls());
        is_reached.then_some(Reason::FailureRatio)
    }

    /// Counts whether a call was slow.
    pub(crate) fn record_slow(&self, pass: Pass, is_slow: bool, now: &mut Now) {
        let (Some(window), Some(slow)) = (&self.slow, self.config().slow) else {
            return;
        };
        let word = self.word();
        if !pass.is_of(word) || !word.state.is_counting() {
            return;
        }
        self.join(now);
        if self.enter(window, pass, is_slow, now).is_none() || !is_slow {
            return;
        }
        self.note_event(now.get());
        let tally = window.tally(pass.generation(), now);
        if tally.reaches(slow.ratio, self.config().minimum_calls()) {
            self.trip(pass, Reason::SlowRatio, None, now);
        }
    }

    fn trip(&self, pass: Pass, reason: Reason, retry_after: Option<Duration>, now: &mut Now) {
        let tripped = Input::Tripped {
            pass,
            reason,
            retry_after,
        };
        self.change(tripped, now.get());
    }

    fn enter(&self, window: &Window, pass: Pass, is_bad: bool, now: &mut Now) -> Option<u32> {
        let ended = Ended {
            is_bad,
            generation: pass.generation(),
            is_current: &|| self.is_current(pass),
        };
        let in_a_row = self.is_current(pass).then(|| window.record(&ended, now));
        let in_a_row = in_a_row.flatten();
        if in_a_row.is_none() {
            self.stale.fetch_add(1, Ordering::Relaxed);
        }
        in_a_row
    }
}
