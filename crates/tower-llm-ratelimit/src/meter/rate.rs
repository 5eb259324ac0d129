//! How fast a limit refills.

use std::time::Duration;

use super::SLICES;

/// The checked numbers of a limit for one tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) amount: u64,
    /// Maximum that can be taken at once.
    pub(crate) capacity: u64,
    pub(crate) period_nanos: u64,
    slice_nanos: u64,
}

impl Rate {
    pub(crate) fn new(amount: u64, capacity: u64, period: Duration) -> Self {
        let period_nanos = nanos(period);
        Self {
            amount,
            capacity,
            period_nanos,
            // Rounded up, so that the slices of a period cover it.
            slice_nanos: period_nanos.div_ceil(u64::from(SLICES)),
        }
    }

    /// One of `parts` equal parts of it, rounded down. A part of a limit that is too small admits nothing.
    pub(crate) fn divided(&self, parts: u64) -> Self {
        let amount = self.amount / parts;
        Self {
            // At least 1, so that what was taken still leaks.
            amount: amount.max(1),
            capacity: if amount == 0 {
                0
            } else {
                self.capacity / parts
            },
            ..*self
        }
    }

    /// The time in which a tenth of the capacity leaks; zero if a tenth is less than one.
    pub(crate) fn tenth_leaks_in(&self) -> Duration {
        let nanos = self.scaled(self.capacity / 10) / u128::from(self.amount);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Lowers the capacity by what leaks in `time`.
    pub(crate) fn leave_out(&mut self, time: Duration) {
        let leaks = u128::from(self.amount) * time.as_nanos();
        let leaks = leaks.div_ceil(u128::from(self.period_nanos));
        self.capacity = self
            .capacity
            .saturating_sub(u64::try_from(leaks).unwrap_or(u64::MAX));
    }

    pub(crate) fn scaled(&self, amount: u64) -> u128 {
        u128::from(amount) * u128::from(self.period_nanos)
    }

    pub(crate) fn slice_nanos(&self) -> u64 {
        self.slice_nanos
    }
}

/// A duration in nanoseconds; 584 years are the most.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
