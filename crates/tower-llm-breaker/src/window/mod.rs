//! Counts of how calls have ended: how many there were, and how many of them were bad.
//!
//! The windows slide, and their cost does not depend on their length. Each count belongs to a generation of its circuit;
//! counts of an earlier generation are never part of the current one.

mod calls;
mod run;
mod time;

use std::time::Duration;

use self::{calls::Calls, run::Run, time::Time};
use crate::{
    clock::{Clock, Now},
    word::{AtomicWord, Pass},
};

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
    Calls(Calls),
    Time(Time),
    /// Bad calls in a row only.
    Run(Run),
}

/// The end of one call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended<'a> {
    pub(crate) is_bad: bool,
    pub(crate) pass: Pass,
    /// The circuit's, which tells whether the generation of the call is still the present one.
    pub(crate) word: &'a AtomicWord,
}

/// Calls, and the bad ones among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) bad: u64,
    pub(crate) total: u64,
}

impl Window {
    pub(crate) fn new(over: Over, clock: Clock) -> Self {
        match over {
            Over::Calls(calls) => Self::Calls(Calls::new(calls)),
            Over::Time(time) => Self::Time(Time::new(time, clock)),
        }
    }

    pub(crate) fn run_only() -> Self {
        Self::Run(Run::default())
    }

    /// Counts the end of a call, and returns how many bad calls there are in a row; `None` if the call is of an earlier
    /// generation.
    pub(crate) fn record(&self, ended: Ended<'_>, now: &mut Now) -> Option<u32> {
        match self {
            Self::Calls(calls) => calls.record(ended),
            Self::Time(time) => time.record(ended, now),
            Self::Run(run) => run.record(ended),
        }
    }

    /// Whether one more good call changes nothing.
    pub(crate) fn is_clean(&self, pass: Pass) -> bool {
        match self {
            Self::Calls(calls) => calls.is_clean(pass),
            // Never: a good call adds to the calls that later failures are a ratio of, and leaves the window at a time of its
            // own. To skip it would make the failures weigh more.
            Self::Time(_) => false,
            Self::Run(run) => run.is_clean(pass),
        }
    }

    /// The counts of `generation`.
    pub(crate) fn tally(&self, generation: u32, now: &mut Now) -> Tally {
        match self {
            Self::Calls(calls) => calls.tally(generation),
            Self::Time(time) => time.tally(generation, now),
            Self::Run(_) => Tally::default(),
        }
    }

    /// Empties the window: a generation has ended.
    pub(crate) fn clear(&self) {
        match self {
            Self::Calls(calls) => calls.clear(),
            Self::Time(time) => time.clear(),
            // It begins again with the first call of a generation.
            Self::Run(_) => {}
        }
    }
}

impl Ended<'_> {
    fn generation(&self) -> u32 {
        self.pass.generation()
    }

    fn is_current(&self) -> bool {
        self.word.is_current(self.pass)
    }
}

impl Tally {
    /// Whether at least `ratio` of the calls are bad. Below `minimum` calls no ratio is judged.
    pub(crate) fn reaches(self, ratio: f64, minimum: u64) -> bool {
        // A quotient rounds like the literal of the ratio, a product does not: 7 of 100 must reach 0.07.
        self.total >= minimum.max(1) && self.bad as f64 / self.total as f64 >= ratio
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
