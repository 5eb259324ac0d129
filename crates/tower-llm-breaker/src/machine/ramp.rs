//! The ramp: a circuit that has closed admits a growing ratio of the calls, from a tenth to all.

use std::time::Duration;

use tokio::time::Instant;

use super::Status;
use crate::{State, config::Config, word::Word};

#[derive(Debug, Default)]
pub(super) struct Ramp {
    /// The part of a call that is due: each call adds the ratio of that time.
    due: f64,
    /// The end of the ramp that a throttled time has interrupted.
    interrupted_until: Option<u64>,
}

/// Calls that another circuit refuses are added again, and must not accumulate to a burst.
const MAX_DUE: f64 = 2.0;

/// A call that is refused on the ramp has a good chance a second later.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl Ramp {
    /// Begins a generation. A ramp admits its first call.
    pub(super) fn restart(&mut self) {
        self.due = 1.0;
    }

    /// Admits a call, or says why not.
    pub(super) fn admit(
        &mut self,
        word: Word,
        now: Instant,
        config: &Config,
    ) -> Result<(), Status> {
        let refused = self.refusal(word, now, config);
        self.due += ratio(word, now, config);
        if let Some(refused) = refused {
            return Err(refused);
        }
        self.due -= 1.0;
        Ok(())
    }

    /// Why it would not admit a call at `now`.
    pub(super) fn refusal(&self, word: Word, now: Instant, config: &Config) -> Option<Status> {
        let left = config.clock.left(word.until, now);
        (self.due + ratio(word, now, config) < 1.0).then(|| Status {
            state: State::Ramping,
            left: Some(left.min(RETRY_AFTER)),
        })
    }

    /// An admitted call is not sent: another one may be admitted instead.
    pub(super) fn was_not_sent(&mut self) {
        self.due = (self.due + 1.0).min(MAX_DUE);
    }

    /// A throttled time begins.
    pub(super) fn interrupt(&mut self, word: Word) {
        self.interrupted_until = (word.state == State::Ramping).then_some(word.until);
    }

    /// What follows a throttled time: the interrupted ramp, or closed if its time is over too.
    pub(super) fn resumed(&self, throttled: Word, now: u64) -> Word {
        match self.interrupted_until {
            Some(until) if now < until => throttled.changed_to(State::Ramping, until),
            _ => throttled.changed_to(State::Closed, 0),
        }
    }
}

/// The ratio of calls to admit at `now`.
fn ratio(word: Word, now: Instant, config: &Config) -> f64 {
    let length = config.advanced.ramp.unwrap_or_default().as_secs_f64();
    let left = config.clock.left(word.until, now);
    (1.0 - left.as_secs_f64() / length).max(0.1)
}
