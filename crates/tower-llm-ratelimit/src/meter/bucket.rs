//! A token bucket: what was taken leaks at a steady rate, and never exceeds the burst.
//!
//! This is the generic cell rate algorithm (ITU-T I.371, as `governor` has it) with one difference: it stores how much was
//! taken and not the time at which that will have leaked, so that a reservation can be refunded or increased later, and the
//! rate can change between calls. Amounts are stored times the period, so what leaks within a nanosecond is a whole number
//! and nothing is rounded.

use std::ops::RangeInclusive;

use super::{Needs, Rate};

/// One bucket, empty when new.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bucket {
    /// What was taken and has not leaked yet, times the period in nanoseconds; as high and low word, which need less
    /// padding than a `u128`.
    taken: [u64; 2],
    /// The time of that value.
    at_nanos: u64,
    /// When something was first taken from the empty bucket. All that was taken before has leaked.
    filling_since_nanos: u64,
    /// When something was last taken.
    last_taken_nanos: u64,
    /// Reservations since then that are not settled yet.
    unsettled: u64,
}

impl Bucket {
    /// How long until `amount` can be taken, in nanoseconds: zero if it can now.
    ///
    /// `amount` must not be over the burst, or it never can.
    pub(crate) fn wait(&mut self, rate: &Rate, amount: u64, now_nanos: u64) -> u64 {
        self.wait_without(rate, amount, 0, now_nanos)
    }

    /// The same if all unsettled reservations were refunded now.
    pub(crate) fn settled_wait(&mut self, rate: &Rate, amount: u64, now_nanos: u64) -> u64 {
        self.wait_without(rate, amount, self.unsettled, now_nanos)
    }

    /// The same if `less` were refunded now.
    pub(crate) fn wait_without(
        &mut self,
        rate: &Rate,
        amount: u64,
        less: u64,
        now_nanos: u64,
    ) -> u64 {
        self.leak(rate, now_nanos);
        let taken = self.taken().saturating_sub(rate.scaled(less));
        let wanted = taken.saturating_add(rate.scaled(amount));
        let over = wanted.saturating_sub(rate.scaled(rate.capacity));
        if over == 0 {
            return 0;
        }
        let wait = u64::try_from(over.div_ceil(u128::from(rate.amount))).unwrap_or(u64::MAX);
        wait.saturating_add(self.at_nanos.saturating_sub(now_nanos))
    }

    /// Takes `amount`, whether there is room or not: the excess is debt, which later calls wait for. Returns the time of
    /// it, for giving it back.
    pub(crate) fn take(&mut self, rate: &Rate, amount: u64, now_nanos: u64) -> u64 {
        self.leak(rate, now_nanos.max(self.latest_nanos(rate)));
        self.add(rate, amount);
        self.at_nanos
    }

    /// Takes `needs` if there is room; returns the time of it.
    pub(crate) fn try_take(&mut self, rate: &Rate, needs: Needs, now_nanos: u64) -> Option<u64> {
        let now_nanos = now_nanos.max(self.latest_nanos(rate));
        if !self.has_room(rate, needs.room, now_nanos) {
            return None;
        }
        self.add(rate, needs.amount);
        if needs.is_unsettled {
            self.add_unsettled(needs.amount);
        }
        Some(self.at_nanos)
    }

    /// Whether `amount` can be taken now.
    pub(crate) fn has_room(&mut self, rate: &Rate, amount: u64, now_nanos: u64) -> bool {
        self.leak(rate, now_nanos);
        let wanted = self.taken().saturating_add(rate.scaled(amount));
        wanted <= rate.scaled(rate.capacity)
    }

    fn add(&mut self, rate: &Rate, amount: u64) {
        if self.taken() == 0 {
            self.filling_since_nanos = self.at_nanos;
            self.unsettled = 0;
        }
        self.last_taken_nanos = self.at_nanos;
        self.set(self.taken().saturating_add(rate.scaled(amount)));
    }

    /// The latest time it knows.
    pub(crate) fn latest_nanos(&self, _: &Rate) -> u64 {
        // A refund of what had leaked can empty the bucket in the instant of another call. The next filling begins later, so
        // that the time of that call shows that it belongs to an earlier one.
        let is_emptied = self.taken() == 0 && self.last_taken_nanos > self.filling_since_nanos;
        self.at_nanos
            .max(self.last_taken_nanos + u64::from(is_emptied))
    }

    /// Gives back `amount` of what was taken at `taken_at`, at most what is left; nothing if the bucket has been empty
    /// since, because all of it has leaked and what is left belongs to other calls.
    ///
    /// Within a filling, leaks cannot be assigned to calls: if this call had taken less, more of the other calls would have
    /// leaked. So the whole amount comes back, whichever of several calls ends first. If the bucket was nearly empty in
    /// between, that is slightly too much; to avoid it, more state per key would be needed. It needs no clock: the result
    /// is the same before and after a leak.
    pub(crate) fn give_back(&mut self, rate: &Rate, taken_at_nanos: u64, amount: u64) {
        if taken_at_nanos >= self.filling_since_nanos {
            self.set(self.taken().saturating_sub(rate.scaled(amount)));
        }
    }

    /// Gives back `amount`, whenever it was taken.
    pub(crate) fn refund(&mut self, rate: &Rate, amount: u64, now_nanos: u64) {
        self.leak(rate, now_nanos);
        self.set(self.taken().saturating_sub(rate.scaled(amount)));
    }

    /// Notes that `amount` of what was just taken is not settled.
    pub(crate) fn add_unsettled(&mut self, amount: u64) {
        self.unsettled = self.unsettled.saturating_add(amount);
    }

    /// Notes that `amount` of what was taken at `taken_at` is settled.
    pub(crate) fn remove_unsettled(&mut self, _: &Rate, taken_at_nanos: u64, amount: u64) {
        if taken_at_nanos >= self.filling_since_nanos {
            self.unsettled = self.unsettled.saturating_sub(amount);
        }
    }

    pub(crate) fn has_unsettled(&self) -> bool {
        self.unsettled > 0
    }

    /// How much could be taken now.
    pub(crate) fn remaining(&mut self, rate: &Rate, now_nanos: u64) -> u64 {
        self.leak(rate, now_nanos);
        let free = rate.scaled(rate.capacity).saturating_sub(self.taken());
        u64::try_from(free / u128::from(rate.period_nanos)).unwrap_or(u64::MAX)
    }

    /// Raises what was taken to at least that of another bucket of the same rate and time.
    pub(crate) fn raise_to(&mut self, other: Self) {
        self.set(self.taken().max(other.taken()));
    }

    /// Whether nothing is left of what was taken.
    pub(crate) fn is_empty(&mut self, rate: &Rate, now_nanos: u64) -> bool {
        self.leak(rate, now_nanos);
        self.taken() == 0
    }

    /// How long until nothing is left of what was taken, in nanoseconds.
    pub(crate) fn full_in(&mut self, rate: &Rate, now_nanos: u64) -> u64 {
        self.leak(rate, now_nanos);
        u64::try_from(self.taken().div_ceil(u128::from(rate.amount))).unwrap_or(u64::MAX)
    }

    /// The bucket at another rate from now on, with what was taken bounded by a minimum and a maximum.
    pub(crate) fn refilled_by(
        mut self,
        old: &Rate,
        new: &Rate,
        taken: RangeInclusive<u64>,
        now_nanos: u64,
    ) -> Self {
        self.leak(old, now_nanos);
        let (old_period, new_period) = (u128::from(old.period_nanos), u128::from(new.period_nanos));
        // The fraction that has not leaked yet is kept: if it were rounded up, frequent changes would stop the leak.
        let (whole, part) = (self.taken() / old_period, self.taken() % old_period);
        let kept = whole.saturating_mul(new_period) + part * new_period / old_period;
        self.set(kept.clamp(new.scaled(*taken.start()), new.scaled(*taken.end())));
        self
    }

    fn leak(&mut self, rate: &Rate, now_nanos: u64) {
        // A time that another thread read earlier leaks nothing.
        let elapsed = now_nanos.saturating_sub(self.at_nanos);
        if elapsed == 0 {
            return;
        }
        self.at_nanos = now_nanos;
        let leaked = u128::from(elapsed) * u128::from(rate.amount);
        self.set(self.taken().saturating_sub(leaked));
    }

    fn taken(&self) -> u128 {
        let [high, low] = self.taken;
        (u128::from(high) << 64) | u128::from(low)
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "the low word is what is meant"
    )]
    fn set(&mut self, taken: u128) {
        self.taken = [(taken >> 64) as u64, taken as u64];
    }
}
