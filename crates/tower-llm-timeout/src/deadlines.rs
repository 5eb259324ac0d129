//! Which deadline is next, and which has passed.

use std::time::Duration;

use tokio::time::Instant;
use tower_llm_core::{Deadline, Failure, Outcome, TimedOut};

/// How long things may take; `None` for as long as they like.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Deadlines {
    pub(crate) first_token: Option<Duration>,
    pub(crate) idle: Option<Duration>,
    pub(crate) total: Option<Duration>,
}

/// How far a call has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    started: Instant,
    /// Since when the first token of a stream is waited for, if it still is; later by the time in which nobody read.
    token_since: Option<Instant>,
    /// Since when somebody waits for the next frame.
    idle_since: Option<Instant>,
    /// When the head or the last frame was handed on.
    handed_on_at: Instant,
}

/// A point in time, and what passes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) at: Instant,
    deadline: Deadline,
    after: Duration,
}

impl Deadlines {
    /// The deadline that passes first, if nothing comes before it.
    ///
    /// A stream may be silent until its first token for as long as that may take: models reason.
    pub(crate) fn next(&self, progress: &Progress) -> Option<Due> {
        let first_token = Due::since(progress.token_since, self.first_token, Deadline::FirstToken);
        let idle = Due::since(progress.idle_since, self.idle, Deadline::Idle);
        [
            self.total(progress),
            first_token,
            idle.filter(|_| first_token.is_none()),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|due| due.at)
    }

    /// The deadline for the whole call.
    pub(crate) fn total(&self, progress: &Progress) -> Option<Due> {
        Due::since(Some(progress.started), self.total, Deadline::Total)
    }
}

impl Progress {
    /// A call that was made at `now`.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            started: now,
            token_since: None,
            idle_since: None,
            handed_on_at: now,
        }
    }

    /// It is known to be a stream, so that there will be a first token.
    pub(crate) fn await_token(&mut self) {
        self.token_since.get_or_insert(self.started);
    }

    pub(crate) fn awaits_token(&self) -> bool {
        self.token_since.is_some()
    }

    pub(crate) fn had_token(&mut self) {
        self.token_since = None;
    }

    /// Somebody asks for a frame. The time in which nobody did is the reader's, and does not count.
    pub(crate) fn ask(&mut self, now: Instant) {
        if self.idle_since.is_some() {
            return;
        }
        self.idle_since = Some(now);
        if let Some(since) = &mut self.token_since {
            *since += now - self.handed_on_at;
        }
    }

    /// The head or a frame is handed on.
    pub(crate) fn hand_on(&mut self, now: Instant) {
        self.idle_since = None;
        self.handed_on_at = now;
    }
}

impl Due {
    /// Whether it has passed, and not just now.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.at < now
    }

    fn since(
        started: Option<Instant>,
        after: Option<Duration>,
        deadline: Deadline,
    ) -> Option<Self> {
        let after = after?;
        Some(Self {
            at: started? + after,
            deadline,
            after,
        })
    }

    pub(crate) fn error(&self) -> TimedOut {
        TimedOut::new(self.deadline, self.after)
    }

    pub(crate) fn outcome(&self) -> Outcome {
        Outcome::Failed(match self.deadline {
            Deadline::Idle => Failure::Stalled,
            _ => Failure::Timeout,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn next(progress: &Progress) -> Option<(Duration, Deadline)> {
        let deadlines = Deadlines {
            first_token: Some(5 * SECOND),
            idle: Some(2 * SECOND),
            total: Some(60 * SECOND),
        };
        let due = deadlines.next(progress)?;
        Some((due.at - progress.started, due.deadline))
    }

    #[test]
    fn the_nearest_deadline_that_applies_is_next() {
        let now = Instant::now();
        let mut progress = Progress::new(now);
        assert_eq!(next(&progress), Some((60 * SECOND, Deadline::Total)));
        progress.await_token();
        assert_eq!(next(&progress), Some((5 * SECOND, Deadline::FirstToken)));
        progress.hand_on(now + SECOND);
        progress.ask(now + SECOND);
        assert_eq!(next(&progress), Some((5 * SECOND, Deadline::FirstToken)));
        progress.hand_on(now + 4 * SECOND);
        progress.ask(now + 4 * SECOND);
        progress.had_token();
        assert_eq!(next(&progress), Some((6 * SECOND, Deadline::Idle)));
    }

    #[test]
    fn the_time_of_the_reader_is_not_the_providers() {
        let now = Instant::now();
        let mut progress = Progress::new(now);
        progress.await_token();
        progress.hand_on(now + SECOND);
        progress.ask(now + 11 * SECOND);
        // Asking again is waiting still.
        progress.ask(now + 12 * SECOND);
        // A second went before the head; of five, four are left.
        assert_eq!(next(&progress), Some((15 * SECOND, Deadline::FirstToken)));
        progress.hand_on(now + 12 * SECOND);
        progress.ask(now + 32 * SECOND);
        assert_eq!(next(&progress), Some((35 * SECOND, Deadline::FirstToken)));
        progress.had_token();
        assert_eq!(next(&progress), Some((34 * SECOND, Deadline::Idle)));
    }

    #[test]
    fn without_deadlines_nothing_is_due() {
        let mut progress = Progress::new(Instant::now());
        progress.await_token();
        progress.ask(Instant::now());
        assert_eq!(Deadlines::default().next(&progress), None);
    }

    #[test]
    fn what_is_due_now_is_not_over() {
        let now = Instant::now();
        let due = Due::since(Some(now), Some(SECOND), Deadline::Total).unwrap();
        assert!(!due.is_over(now + SECOND));
        assert!(due.is_over(now + SECOND + Duration::from_nanos(1)));
    }
}
