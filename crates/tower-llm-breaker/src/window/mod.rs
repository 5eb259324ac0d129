//! Sliding windows: how many calls there were, and how many of them were bad.
//!
//! Both windows slide, and their cost does not depend on their length. Each count belongs to a generation of its circuit;
//! counts of an earlier generation are never part of the current one.

mod count;
mod time;

use std::time::Duration;

use tokio::time::Instant;

use self::{count::Counts, time::Ring};
use crate::word::Clock;

/// The length of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// The last calls, up to a number.
    Calls(usize),
    /// The calls that ended within the last time.
    Time(Duration),
}

#[derive(Debug)]
pub(crate) enum Window {
    Calls(Counts),
    Time(Ring),
}

/// Calls, and the bad ones among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) bad: u64,
    pub(crate) total: u64,
}

/// The outcome of one call, for a window.
pub(crate) struct Entry<'a> {
    pub(crate) bad: bool,
    pub(crate) generation: u32,
    /// Whether this is still the generation of the circuit.
    pub(crate) is_current: &'a dyn Fn() -> bool,
}

/// Reads the clock once, when the time is first needed: a call may be counted in several windows.
#[derive(Debug, Default)]
pub(crate) struct Now {
    at: Option<Instant>,
    /// The same by the layer's clock.
    nanos: Option<u64>,
}

impl Window {
    pub(crate) fn new(over: Over, clock: Clock) -> Self {
        match over {
            Over::Calls(calls) => Self::Calls(Counts::new(calls)),
            Over::Time(time) => Self::Time(Ring::new(time, clock)),
        }
    }

    /// Counts the outcome of a call; `false` if it belongs to an earlier generation.
    pub(crate) fn record(&self, entry: &Entry<'_>, now: &mut Now) -> bool {
        match self {
            Self::Calls(counts) => counts.record(entry),
            Self::Time(ring) => ring.record(entry, now),
        }
    }

    /// The counts of `generation`.
    pub(crate) fn tally(&self, generation: u32, now: &mut Now) -> Tally {
        match self {
            Self::Calls(counts) => counts.tally(generation),
            Self::Time(ring) => ring.tally(generation, now),
        }
    }

    /// Empties the window: a generation has ended.
    pub(crate) fn clear(&self) {
        match self {
            Self::Calls(counts) => counts.clear(),
            Self::Time(ring) => ring.clear(),
        }
    }
}

impl Tally {
    /// Whether at least `ratio` of the calls are bad. Below `minimum` calls no ratio is judged.
    pub(crate) fn reaches(self, ratio: f64, minimum: u64) -> bool {
        // A quotient rounds like the literal of the ratio, a product does not: 7 of 100 must reach 0.07.
        self.total >= minimum.max(1) && self.bad as f64 / self.total as f64 >= ratio
    }
}

impl Now {
    pub(crate) fn at(at: Option<Instant>) -> Self {
        Self { at, nanos: None }
    }

    pub(crate) fn get(&mut self) -> Instant {
        *self.at.get_or_insert_with(Instant::now)
    }

    fn nanos(&mut self, clock: Clock) -> u64 {
        let at = self.get();
        *self.nanos.get_or_insert_with(|| clock.nanos(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_reached_by_the_exact_number() {
        for percent in 1..=100_u64 {
            let ratio = format!("0.{percent:02}").parse().unwrap_or(1.0);
            let ratio = if percent == 100 { 1.0 } else { ratio };
            let tally = |bad| Tally { bad, total: 100 };
            assert!(tally(percent).reaches(ratio, 10), "{percent}");
            assert!(!tally(percent - 1).reaches(ratio, 10), "{percent}");
        }
    }

    #[test]
    fn below_the_minimum_no_ratio_is_judged() {
        let all_bad = |total| Tally { bad: total, total };
        assert!(!all_bad(9).reaches(0.5, 10));
        assert!(all_bad(10).reaches(0.5, 10));
        assert!(!all_bad(0).reaches(0.0, 0));
    }
}
