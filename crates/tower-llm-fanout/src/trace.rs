//! The branches of a call, as they happen.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tower_llm_core::Outcome;

use crate::{Report, report::Attempt};

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
        self.attempts.push(Attempt {
            target,
            started: now.saturating_duration_since(self.began_at),
            ended: None,
            outcome: None,
        });
    }

    /// A branch has ended. Returns how long it ran.
    pub(crate) fn ended(
        &mut self,
        branch: usize,
        outcome: Outcome,
        now: Instant,
    ) -> Option<Duration> {
        let attempt = self.attempts.get_mut(branch)?;
        let ended = now.saturating_duration_since(self.began_at);
        attempt.ended = Some(ended);
        attempt.outcome = Some(outcome);
        Some(ended.saturating_sub(attempt.started))
    }

    /// The branches that have not ended.
    pub(crate) fn in_flight(&self) -> Vec<usize> {
        let attempts = self.attempts.iter().enumerate();
        let in_flight = attempts.filter(|(_, attempt)| attempt.ended.is_none());
        in_flight.map(|(branch, _)| branch).collect()
    }

    pub(crate) fn into_report(self) -> Report {
        Report::new(self.attempts)
    }
}
