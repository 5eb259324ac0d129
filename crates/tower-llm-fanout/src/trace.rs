//! The branches of a call, as they happen.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tower_llm_core::{Attempt, Outcome, Usage};

use crate::{Report, report};

/// The branches of a call with more than one, or with a named target.
#[derive(Debug)]
pub(crate) struct Trace {
    began_at: Instant,
    attempts: Vec<Attempt>,
}

impl Trace {
    pub(crate) const fn new(began_at: Instant) -> Self {
        Self {
            began_at,
            attempts: Vec::new(),
        }
    }

    pub(crate) fn started(&mut self, target: Option<Arc<str>>, now: Instant) {
        let started = now.saturating_duration_since(self.began_at);
        self.attempts.push(Attempt::started(target, started));
    }

    /// A branch has ended. Returns how long it ran.
    pub(crate) fn ended(
        &mut self,
        branch: usize,
        outcome: Outcome,
        usage: Option<Usage>,
        now: Instant,
    ) -> Option<Duration> {
        let attempt = self.attempts.get_mut(branch)?;
        let ended = now.saturating_duration_since(self.began_at);
        attempt.ended = Some(ended);
        attempt.outcome = Some(outcome);
        attempt.usage = usage;
        Some(ended.saturating_sub(attempt.started))
    }

    /// What the branches that have ended had used.
    pub(crate) fn used(&self) -> Usage {
        report::used(&self.attempts)
    }

    pub(crate) fn into_report(self) -> Report {
        Report::new(self.attempts)
    }
}
