//! Which deadline is next, and which has passed.

use std::time::Duration;

use tokio::time::Instant;
use tower_llm_core::{Deadline, Failure, Outcome, TimedOut};

/// How long a body may stay open after everything that its reader needs has arrived: the terminal marker, or a whole
/// document.
///
/// Long enough for the upstream's own end to arrive, after which its connection can be used again.
pub(crate) const LINGER: Duration = Duration::from_millis(250);

/// Default of the longer first-token deadline of a stream that shows signs of life, as a multiple of the first-token
/// timeout.
pub(crate) const SIGNS_OF_LIFE: u32 = 5;

/// The deadlines; `None` for no limit.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Deadlines {
    pub(crate) first_token: Option<Duration>,
    /// The first token of a stream that shows signs of life.
    pub(crate) first_token_max: Option<Duration>,
    pub(crate) idle: Option<Duration>,
    pub(crate) total: Option<Duration>,
    /// The total of calls that ask for a stream, if it is another one.
    pub(crate) total_streamed: Option<Duration>,
}

/// How far a call has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    started: Instant,
    /// Start of the wait for the first token of a stream, if it has not arrived; moved later by the time in which the body
    /// was not read.
    token_since: Option<Instant>,
    /// The last sign of life before the first token; moved later by the same time.
    life_at: Option<Instant>,
    /// Start of the reader's wait for the next frame.
    idle_since: Option<Instant>,
    /// When the response headers or the last frame were passed on.
    handed_on_at: Instant,
    /// When everything that the reader needs had arrived; moved later by the time in which the body was not read.
    over_at: Option<Instant>,
}

/// A point in time, and the deadline that passes then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) at: Instant,
    deadline: Deadline,
    after: Duration,
    showed_life: bool,
}

impl Deadlines {
    /// Those of a call that asks for a stream.
    pub(crate) fn of_stream(self) -> Self {
        Self {
            total: self.total_streamed.or(self.total),
            ..self
        }
    }

    /// The deadline that passes first, if nothing arrives before it.
    ///
    /// Until its first token, a stream may be silent for the whole first-token deadline, because models reason.
    pub(crate) fn next(&self, progress: &Progress) -> Option<Due> {
        let first_token = self.first_token(progress);
        let idle = Due::since(progress.idle_since, self.idle, Deadline::Idle, progress);
        [
            self.total(progress),
            first_token,
            idle.filter(|_| first_token.is_none()),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|due| due.at)
    }

    /// The deadline for the first token: every sign of life restarts it, up to a bound.
    fn first_token(&self, progress: &Progress) -> Option<Due> {
        let since = progress.token_since;
        let life_at = since.and(progress.life_at);
        let next = |since, after| Due::since(since, after, Deadline::FirstToken, progress);
        let silence = next(life_at.or(since), self.first_token);
        let bound = next(life_at.and(since), self.first_token_max);
        [silence, bound]
            .into_iter()
            .flatten()
            .min_by_key(|due| due.at)
    }

    /// The deadline for the whole call.
    pub(crate) fn total(&self, progress: &Progress) -> Option<Due> {
        Due::since(
            Some(progress.started),
            self.total,
            Deadline::Total,
            progress,
        )
    }
}

impl Progress {
    /// A call that was made at `now`.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            started: now,
            token_since: None,
            life_at: None,
            idle_since: None,
            handed_on_at: now,
            over_at: None,
        }
    }

    /// The response is known to be a stream, so there will be a first token.
    pub(crate) fn await_token(&mut self) {
        self.token_since.get_or_insert(self.started);
    }

    pub(crate) fn awaits_token(&self) -> bool {
        self.token_since.is_some()
    }

    pub(crate) fn had_token(&mut self) {
        self.token_since = None;
        self.life_at.get_or_insert(self.handed_on_at);
    }

    /// A stream shows that the model is at work: an event without content, or a comment.
    pub(crate) fn show_life(&mut self, now: Instant) {
        self.life_at = Some(now);
    }

    /// Everything that the reader needs has arrived.
    pub(crate) fn be_over(&mut self, now: Instant) {
        self.over_at.get_or_insert(now);
    }

    /// When a body ends that the upstream leaves open.
    pub(crate) fn linger_until(&self) -> Option<Instant> {
        self.over_at.map(|over_at| over_at + LINGER)
    }

    /// The reader polls for a frame. The time in which it did not poll does not count.
    pub(crate) fn ask(&mut self, now: Instant) {
        if self.idle_since.is_some() {
            return;
        }
        self.idle_since = Some(now);
        let reading = now - self.handed_on_at;
        for since in [&mut self.token_since, &mut self.life_at, &mut self.over_at]
            .into_iter()
            .flatten()
        {
            *since += reading;
        }
    }

    /// The response headers or a frame are passed on.
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
        progress: &Progress,
    ) -> Option<Self> {
        let after = after?;
        Some(Self {
            at: started? + after,
            deadline,
            after,
            showed_life: progress.life_at.is_some(),
        })
    }

    pub(crate) fn error(&self) -> TimedOut {
        TimedOut::new(self.deadline, self.after)
    }

    pub(crate) fn outcome(&self) -> Outcome {
        Outcome::Failed(match self.deadline {
            Deadline::Idle => Failure::Stalled,
            _ if self.showed_life => Failure::Slow,
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
            first_token_max: Some(12 * SECOND),
            idle: Some(2 * SECOND),
            total: Some(60 * SECOND),
            total_streamed: None,
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
        // Another poll continues the wait.
        progress.ask(now + 12 * SECOND);
        // A second passed before the response headers; of five, four are left.
        assert_eq!(next(&progress), Some((15 * SECOND, Deadline::FirstToken)));
        progress.hand_on(now + 12 * SECOND);
        progress.ask(now + 32 * SECOND);
        assert_eq!(next(&progress), Some((35 * SECOND, Deadline::FirstToken)));
        progress.had_token();
        assert_eq!(next(&progress), Some((34 * SECOND, Deadline::Idle)));
    }

    #[test]
    fn a_sign_of_life_starts_the_first_token_again_up_to_its_bound() {
        let now = Instant::now();
        let mut progress = Progress::new(now);
        progress.await_token();
        for (at, due) in [(4, 9), (6, 11), (8, 12), (11, 12)] {
            progress.hand_on(now + at * SECOND);
            progress.ask(now + at * SECOND);
            progress.show_life(now + at * SECOND);
            assert_eq!(next(&progress), Some((due * SECOND, Deadline::FirstToken)));
        }
        progress.had_token();
        assert_eq!(next(&progress), Some((13 * SECOND, Deadline::Idle)));
    }

    #[test]
    fn a_stream_that_showed_life_is_slow_and_not_dead() {
        let now = Instant::now();
        let mut progress = Progress::new(now);
        let deadlines = Deadlines {
            first_token: Some(5 * SECOND),
            total: Some(60 * SECOND),
            ..Deadlines::default()
        };
        let outcome = |progress: &Progress| deadlines.next(progress).unwrap().outcome();
        progress.await_token();
        assert_eq!(outcome(&progress), Outcome::Failed(Failure::Timeout));
        progress.show_life(now);
        assert_eq!(outcome(&progress), Outcome::Failed(Failure::Slow));
        progress.had_token();
        assert_eq!(outcome(&progress), Outcome::Failed(Failure::Slow));
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
        let progress = Progress::new(now);
        let due = Due::since(Some(now), Some(SECOND), Deadline::Total, &progress).unwrap();
        assert!(!due.is_over(now + SECOND));
        assert!(due.is_over(now + SECOND + Duration::from_nanos(1)));
    }
}
