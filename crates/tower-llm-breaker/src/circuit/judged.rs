//! What opens a circuit: the ratio of calls that failed or were slow, and failures in a row.

use super::Pass;
use crate::{
    policy::Policy,
    sync::{AtomicU64, Ordering},
    window::Window,
};

/// Counts outcomes of calls.
#[derive(Debug)]
pub(super) struct Judged {
    /// `None` if no ratio of failures opens a circuit.
    pub(super) failures: Option<Window>,
    pub(super) slow: Option<Window>,
}

/// Failures in a row: the generation in the upper half, their number in the lower.
#[derive(Debug)]
pub(super) struct Run(AtomicU64);

impl Judged {
    pub(super) fn new(policy: &Policy) -> Self {
        Self {
            failures: policy.failure_ratio.map(|_| policy.window()),
            slow: policy.slow.map(|_| policy.window()),
        }
    }

    pub(super) fn clear(&self) {
        for window in self.failures.iter().chain(&self.slow) {
            window.clear();
        }
    }
}

impl Run {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Counts a success or a failure; returns the number of failures in a row after it.
    pub(super) fn count(&self, pass: Pass, is_bad: bool, is_current: impl Fn() -> bool) -> u32 {
        let mut seen = self.0.load(Ordering::Acquire);
        loop {
            let is_of = seen >> 32 == u64::from(pass.generation());
            if !is_of && !is_current() {
                // An outcome of an earlier generation does not change the run of a later one.
                return 0;
            }
            let before = if is_of { seen as u32 } else { 0 };
            let in_a_row = if is_bad { before.saturating_add(1) } else { 0 };
            if is_of && in_a_row == before {
                return in_a_row;
            }
            let next = u64::from(pass.generation()) << 32 | u64::from(in_a_row);
            let noted =
                self.0
                    .compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Acquire);
            match noted {
                Ok(_) => return in_a_row,
                Err(now) => seen = now,
            }
        }
    }
}
