//! The time of a layer's circuits.

use std::time::Duration;

use tokio::time::Instant;

/// Counts the time since the layer was built.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    epoch: Instant,
}

/// Reads the clock once, when the time is first needed: a call may count in several circuits.
#[derive(Debug, Default)]
pub(crate) struct Now {
    at: Option<Instant>,
    /// The same by the layer's clock.
    nanos: Option<u64>,
}

impl Clock {
    pub(crate) fn new(epoch: Instant) -> Self {
        Self { epoch }
    }

    /// The last whole millisecond at `now`.
    pub(crate) fn millis(self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.epoch);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// The first whole millisecond that is not before `at`, so that no state ends too early.
    pub(crate) fn until(self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.epoch);
        u64::try_from(since.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }

    /// Nanoseconds until `now`: 64 bits are 584 years.
    fn nanos(self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.epoch);
        since.as_secs() * 1_000_000_000 + u64::from(since.subsec_nanos())
    }

    /// The time from `now` until `millis`.
    pub(crate) fn left(self, millis: u64, now: Instant) -> Duration {
        let until = Duration::from_millis(millis);
        until.saturating_sub(now.saturating_duration_since(self.epoch))
    }
}

impl Now {
    pub(crate) fn at(at: Option<Instant>) -> Self {
        Self { at, nanos: None }
    }

    pub(crate) fn get(&mut self) -> Instant {
        *self.at.get_or_insert_with(Instant::now)
    }

    pub(crate) fn nanos(&mut self, clock: Clock) -> u64 {
        let at = self.get();
        *self.nanos.get_or_insert_with(|| clock.nanos(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_between_two_milliseconds_is_over_at_the_second() {
        let epoch = Instant::now();
        let clock = Clock::new(epoch);
        let at = epoch + Duration::from_micros(1_500);
        assert_eq!((clock.millis(at), clock.until(at)), (1, 2));
        assert_eq!(clock.left(2, at), Duration::from_micros(500));
        assert_eq!(clock.left(1, at), Duration::ZERO);
    }
}
