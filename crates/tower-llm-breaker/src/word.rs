//! The state of a circuit in one word: its state, its generation, and its end; and what a call remembers of it.

use crate::{
    State,
    sync::{AtomicU64, Ordering},
};

/// A circuit's state and generation, and the end of the state if it has one: 3, 20 and 41 bits.
///
/// Each transition begins a generation, except those to and from a pause and the end of a ramp. A call carries the
/// generation in which it was admitted, so one comparison finds outcomes of earlier generations, which are not counted in
/// the current one. Generations wrap around after a million transitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) state: State,
    pub(crate) generation: u32,
    /// In milliseconds of the circuit's clock; zero if the state has no end.
    pub(crate) until: u64,
}

/// A [`Word`] that calls read while it changes.
#[derive(Debug)]
pub(crate) struct AtomicWord(AtomicU64);

/// How a circuit has admitted a call: its generation, and the lease of a probe in the upper bits.
///
/// One number, because a call carries one for each of its circuits and is moved often.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pass(u32);

const UNTIL_BITS: u32 = 41;
const GENERATION_BITS: u32 = 20;
const MAX_UNTIL: u64 = (1 << UNTIL_BITS) - 1;
const MAX_GENERATION: u32 = (1 << GENERATION_BITS) - 1;

/// Maximum number of leases; zero means no lease.
pub(crate) const MAX_PROBES: usize = (1 << (u32::BITS - GENERATION_BITS)) - 1;

const STATES: [State; 8] = [
    State::Closed,
    State::Ramping,
    State::Open,
    State::Throttled,
    State::HalfOpen,
    State::ForcedOpen,
    State::Disabled,
    State::MetricsOnly,
];

impl Word {
    pub(crate) fn first(state: State) -> Self {
        Self {
            state,
            generation: 0,
            until: 0,
        }
    }

    /// Begins the next generation in `state`.
    pub(crate) fn next(self, state: State, until: u64) -> Self {
        Self {
            generation: (self.generation + 1) & MAX_GENERATION,
            ..self.changed_to(state, until)
        }
    }

    /// Changes to `state` within the generation.
    pub(crate) fn changed_to(self, state: State, until: u64) -> Self {
        Self {
            state,
            until: until.min(MAX_UNTIL),
            ..self
        }
    }

    /// Whether its state has ended; only for states that have an end.
    pub(crate) fn is_over(self, now: u64) -> bool {
        now >= self.until
    }

    /// Whether it refuses all calls at `now`, in milliseconds of the circuit's clock.
    pub(crate) fn is_shut(self, now: impl FnOnce() -> u64) -> bool {
        match self.state {
            State::ForcedOpen => true,
            State::Open | State::Throttled => !self.is_over(now()),
            _ => false,
        }
    }

    /// Until when calls are refused because of failures, as of `now`.
    pub(crate) fn open_until(self, now: u64) -> Option<u64> {
        self.state.is_ejected().then_some(self.until.max(now))
    }

    fn pack(self) -> u64 {
        let state = self.state as u64;
        state << (GENERATION_BITS + UNTIL_BITS)
            | u64::from(self.generation) << UNTIL_BITS
            | self.until
    }

    fn unpack(word: u64) -> Self {
        let generation = word >> UNTIL_BITS & u64::from(MAX_GENERATION);
        Self {
            state: STATES[(word >> (GENERATION_BITS + UNTIL_BITS)) as usize & 7],
            generation: generation as u32,
            until: word & MAX_UNTIL,
        }
    }
}

impl AtomicWord {
    pub(crate) fn new(word: Word) -> Self {
        Self(AtomicU64::new(word.pack()))
    }

    pub(crate) fn load(&self) -> Word {
        Word::unpack(self.0.load(Ordering::Acquire))
    }

    pub(crate) fn store(&self, word: Word) {
        self.0.store(word.pack(), Ordering::Release);
    }

    /// Whether the circuit is still in the generation that admitted the call.
    pub(crate) fn is_current(&self, pass: Pass) -> bool {
        pass.is_of(self.load())
    }
}

impl Pass {
    /// Admits a call in the present generation.
    pub(crate) fn of(word: Word) -> Self {
        Self(word.generation)
    }

    pub(crate) fn with_lease(self, lease: u32) -> Self {
        Self(self.generation() | lease << GENERATION_BITS)
    }

    pub(crate) fn generation(self) -> u32 {
        self.0 & MAX_GENERATION
    }

    /// The number of a probe's lease; zero for other calls.
    pub(crate) fn lease(self) -> u32 {
        self.0 >> GENERATION_BITS
    }

    pub(crate) fn is_probe(self) -> bool {
        self.lease() != 0
    }

    pub(crate) fn is_of(self, word: Word) -> bool {
        self.generation() == word.generation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_unpacked() {
        for state in STATES {
            for generation in [0, 1, MAX_GENERATION] {
                for until in [0, 1, MAX_UNTIL] {
                    let word = Word {
                        state,
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
            ..Word::first(State::Closed)
        };
        let next = last.next(State::Open, u64::MAX);
        assert_eq!((next.generation, next.until), (0, MAX_UNTIL));
    }
}
