//! What a circuit is opened by: shares of the calls that failed or were slow, and failures in a row.

use super::Pass;
use crate::{
    policy::Policy,
    sync::{AtomicU64, Ordering},
    window::Window,
};

/// What the ends of calls are counted in.
#[derive(Debug)]
pub(super) struct Judged {
    /// `None` where no share of them opens a circuit.
    pub(super) failures: Option<Window>,
    pub(super) slow: Option<Window>,
    /// Failures one after the other: the generation, and in the lower half how many.
    run: AtomicU64,
}

impl Judged {
    pub(super) fn new(policy: &Policy) -> Self {
        Self {
            failures: policy.failure_ratio.map(|_| policy.window()),
            slow: policy.slow.map(|_| policy.window()),
            run: AtomicU64::new(0),
        }
    }

    /// Notes a success or a failure, and says how many failures came one after the other.
    pub(super) fn follow(&self, pass: Pass, is_bad: bool, is_current: impl Fn() -> bool) -> u32 {
        let mut seen = self.run.load(Ordering::Acquire);
        loop {
            let is_of = seen >> 32 == u64::from(pass.generation());
            if !is_of && !is_current() {
                // The run of a later generation is not for this one to break.
                return 0;
            }
            let before = if is_of { seen as u32 } else { 0 };
            let in_a_row = if is_bad { before.saturating_add(1) } else { 0 };
            if is_of && in_a_row == before {
                return in_a_row;
            }
            let next = u64::from(pass.generation()) << 32 | u64::from(in_a_row);
            let noted =
                self.run
                    .compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Acquire);
            match noted {
                Ok(_) => return in_a_row,
                Err(now) => seen = now,
            }
        }
    }

    pub(super) fn clear(&self) {
        for window in self.failures.iter().chain(&self.slow) {
            window.clear();
        }
    }
}
