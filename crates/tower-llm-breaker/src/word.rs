//! The state of a circuit in one word: its phase, its generation, and its end.

use std::time::Duration;

use tokio::time::Instant;

/// A circuit's phase and generation, and the end of the phase if it has one: 3, 20 and 41 bits.
///
/// Each transition begins a generation, except those to and from a pause and the end of a ramp. A call carries the
/// generation in which it was admitted, so one comparison finds outcomes of earlier generations, which are not counted in
/// the current one. Generations wrap around after a million transitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) phase: Phase,
    pub(crate) generation: u32,
    /// In milliseconds of the circuit's clock; zero if the phase has no end.
    pub(crate) until: u64,
}

/// The phase of a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Closed,
    /// Closed, but it does not admit all calls yet.
    Ramping,
    Open,
    /// Open until the time that the provider named; then it continues as before.
    Paused,
    HalfOpen,
    ForcedOpen,
    Disabled,
    MetricsOnly,
}

/// The clock of the words: milliseconds since the layer was built.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    epoch: Instant,
}

const UNTIL_BITS: u32 = 41;
pub(crate) const GENERATION_BITS: u32 = 20;
const MAX_UNTIL: u64 = (1 << UNTIL_BITS) - 1;
pub(crate) const MAX_GENERATION: u32 = (1 << GENERATION_BITS) - 1;

const PHASES: [Phase; 8] = [
    Phase::Closed,
    Phase::Ramping,
    Phase::Open,
    Phase::Paused,
    Phase::HalfOpen,
    Phase::ForcedOpen,
    Phase::Disabled,
    Phase::MetricsOnly,
];

impl Word {
    pub(crate) fn first(phase: Phase) -> Self {
        Self {
            phase,
            generation: 0,
            until: 0,
        }
    }

    /// Begins the next generation in `phase`.
    pub(crate) fn next(self, phase: Phase, until: u64) -> Self {
        Self {
            phase,
            generation: (self.generation + 1) & MAX_GENERATION,
            ..Self::first(phase).lasting_until(until)
        }
    }

    /// The same with another end.
    pub(crate) fn lasting_until(self, until: u64) -> Self {
        let until = until.min(MAX_UNTIL);
        Self { until, ..self }
    }

    pub(crate) fn pack(self) -> u64 {
        let phase = self.phase as u64;
        phase << (GENERATION_BITS + UNTIL_BITS)
            | u64::from(self.generation) << UNTIL_BITS
            | self.until
    }

    pub(crate) fn unpack(word: u64) -> Self {
        let generation = word >> UNTIL_BITS & u64::from(MAX_GENERATION);
        Self {
            phase: PHASES[(word >> (GENERATION_BITS + UNTIL_BITS)) as usize & 7],
            generation: generation as u32,
            until: word & MAX_UNTIL,
        }
    }
}

impl Phase {
    /// Whether every call is admitted.
    pub(crate) fn is_free(self) -> bool {
        matches!(self, Self::Closed | Self::Disabled | Self::MetricsOnly)
    }

    /// Whether outcomes are counted.
    pub(crate) fn is_judged(self) -> bool {
        matches!(
            self,
            Self::Closed | Self::Ramping | Self::Paused | Self::MetricsOnly
        )
    }

    /// Whether it was set manually; only manual control ends it.
    pub(crate) fn is_by_hand(self) -> bool {
        matches!(self, Self::ForcedOpen | Self::Disabled | Self::MetricsOnly)
    }

    /// Whether calls are refused because of failures.
    pub(crate) fn is_ejected(self) -> bool {
        matches!(self, Self::Open | Self::HalfOpen)
    }
}

impl Clock {
    pub(crate) fn new(epoch: Instant) -> Self {
        Self { epoch }
    }

    /// The last whole millisecond at `now`.
    pub(crate) fn millis(self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.epoch);
        u64::try_from(since.as_millis()).unwrap_or(MAX_UNTIL)
    }

    /// The first whole millisecond that is not before `at`, so that no phase ends too early.
    pub(crate) fn until(self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.epoch);
        u64::try_from(since.as_nanos().div_ceil(1_000_000)).unwrap_or(MAX_UNTIL)
    }

    /// Nanoseconds until `now`: 64 bits are 584 years.
    pub(crate) fn nanos(self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.epoch);
        since.as_secs() * 1_000_000_000 + u64::from(since.subsec_nanos())
    }

    /// The time from `now` until `millis`.
    pub(crate) fn left(self, millis: u64, now: Instant) -> Duration {
        let until = Duration::from_millis(millis);
        until.saturating_sub(now.saturating_duration_since(self.epoch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_unpacked() {
        for phase in PHASES {
            for generation in [0, 1, MAX_GENERATION] {
                for until in [0, 1, MAX_UNTIL] {
                    let word = Word {
                        phase,
                        generation,
                        until,
                    };
                    assert_eq!(Word::unpack(word.pack()), word);
                }
            }
        }
    }

    #[test]
    fn generations_go_round_and_times_end_at_their_largest() {
        let last = Word {
            generation: MAX_GENERATION,
            ..Word::first(Phase::Closed)
        };
        let next = last.next(Phase::Open, u64::MAX);
        assert_eq!((next.generation, next.until), (0, MAX_UNTIL));
    }

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
