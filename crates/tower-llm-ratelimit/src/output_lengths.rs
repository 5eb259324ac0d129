//! The usual output length of a provider's model, for calls that name no maximum.

use std::sync::{Mutex, PoisonError};

use tower_llm_core::Evictable;

/// Steps of a factor of the square root of two, from 4 to 2^27 tokens.
const STEPS: usize = 48;

/// Minimum number of observations.
const ENOUGH: u32 = 20;

/// At this many observations all counts are halved, so that older ones weigh less and less.
const HALVED_AT: u32 = 1_000;

/// The expected length before enough observations: a quarter of the 4,096 tokens that used to be a common maximum.
pub(crate) const UNTIL_OBSERVED: u64 = 1_024;

/// A histogram of output lengths.
#[derive(Debug)]
pub(crate) struct OutputLengths(Mutex<Lengths>);

#[derive(Debug)]
struct Lengths {
    counts: [u32; STEPS],
    total: u32,
}

impl OutputLengths {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Lengths {
            counts: [0; STEPS],
            total: 0,
        }))
    }

    /// Records the length of an output.
    pub(crate) fn record(&self, tokens: u64) {
        let mut lengths = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lengths.record(tokens);
    }

    /// The length that `ratio` of the outputs do not exceed, rounded up to the next step; `None` before enough
    /// observations.
    pub(crate) fn percentile(&self, ratio: f64) -> Option<u64> {
        let lengths = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lengths.percentile(ratio)
    }
}

impl Evictable for OutputLengths {
    fn is_evictable(&self) -> bool {
        // It is observed again, and the default is used until then.
        true
    }
}

impl Lengths {
    fn record(&mut self, tokens: u64) {
        if self.total >= HALVED_AT {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.total = self.counts.iter().sum();
        }
        self.counts[step(tokens)] += 1;
        self.total += 1;
    }

    fn percentile(&self, ratio: f64) -> Option<u64> {
        if self.total < ENOUGH {
            return None;
        }
        let mut left = f64::from(self.total) * ratio;
        let reached = self.counts.iter().position(|&count| {
            left -= f64::from(count);
            left <= 0.0
        });
        Some(upper_bound(reached.unwrap_or(STEPS - 1)))
    }
}

/// The step whose upper bound is the first that is not below `tokens`.
fn step(tokens: u64) -> usize {
    (0..STEPS - 1)
        .find(|&step| upper_bound(step) >= tokens)
        .unwrap_or(STEPS - 1)
}

fn upper_bound(step: usize) -> u64 {
    let whole: u64 = 4 << (step / 2);
    if step.is_multiple_of(2) {
        whole
    } else {
        // Times the square root of two, rounded up.
        (whole * 1_414_214).div_ceil(1_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_grow_and_hold_what_is_below_them() {
        for step in 1..STEPS {
            assert!(upper_bound(step) > upper_bound(step - 1), "{step}");
        }
        for tokens in [0, 1, 2, 3, 100, 101, 4_096, 1 << 20] {
            let bound = upper_bound(step(tokens));
            assert!(bound >= tokens, "{tokens}");
            assert!(bound <= (tokens * 3 / 2).max(4), "{tokens}: {bound}");
        }
        assert_eq!(step(u64::MAX), STEPS - 1);
    }

    #[test]
    fn there_is_no_percentile_before_enough_observations() {
        let observed = OutputLengths::new();
        for _ in 1..ENOUGH {
            observed.record(100);
        }
        assert_eq!(observed.percentile(0.95), None);
        observed.record(100);
        assert_eq!(observed.percentile(0.95), Some(128));
    }

    #[test]
    fn the_percentile_is_the_requested_one() {
        let observed = OutputLengths::new();
        for _ in 0..95 {
            observed.record(60);
        }
        for _ in 0..5 {
            observed.record(4_000);
        }
        assert_eq!(observed.percentile(0.95), Some(64));
        assert_eq!(observed.percentile(0.96), Some(4_096));
        assert_eq!(observed.percentile(1.0), Some(4_096));
    }

    #[test]
    fn old_observations_fade() {
        let observed = OutputLengths::new();
        for _ in 0..1_000 {
            observed.record(4_000);
        }
        for _ in 0..20_000 {
            observed.record(10);
        }
        assert_eq!(observed.percentile(0.999), Some(12));
    }
}
