//! Bad calls in a row.

use super::Ended;
use crate::{
    sync::{AtomicU64, Ordering},
    word::Pass,
};

/// The generation in the upper half, the bad calls in a row in the lower.
#[derive(Debug)]
pub(crate) struct Run(AtomicU64);

impl Default for Run {
    fn default() -> Self {
        // Of no generation: the first call of the first one counts.
        Self(AtomicU64::new(u64::MAX))
    }
}

impl Run {
    /// Whether the last call of the generation was good.
    pub(super) fn is_clean(&self, pass: Pass) -> bool {
        self.0.load(Ordering::Acquire) == u64::from(pass.generation()) << 32
    }

    /// Counts a call, and returns the bad calls in a row; `None` if the call is of an earlier generation, which does not
    /// change the run of a later one.
    pub(super) fn record(&self, ended: Ended<'_>) -> Option<u32> {
        let mut seen = self.0.load(Ordering::Acquire);
        loop {
            let is_of = seen >> 32 == u64::from(ended.generation());
            if !is_of && !ended.is_current() {
                return None;
            }
            let before = if is_of { seen as u32 } else { 0 };
            let in_a_row = if ended.is_bad {
                before.saturating_add(1)
            } else {
                0
            };
            if is_of && in_a_row == before {
                return Some(in_a_row);
            }
            let next = u64::from(ended.generation()) << 32 | u64::from(in_a_row);
            let changed =
                self.0
                    .compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Acquire);
            match changed {
                Ok(_) => return Some(in_a_row),
                Err(now) => seen = now,
            }
        }
    }
}
