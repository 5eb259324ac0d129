//! The quota of a calendar day: all of it at midnight, and no more until the next.
//!
//! Some providers' daily quotas are for a calendar day in a time zone: Gemini's begins at midnight in California.

use crate::{calendar::Today, limit::Rate};

/// What was taken on the current day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Day {
    taken: u64,
    /// Reservations of this day that are not settled yet.
    unsettled: u64,
    number: u32,
}

impl Day {
    /// How long until `amount` can be taken, in nanoseconds: zero if it can now.
    pub(crate) fn wait(&mut self, rate: &Rate, amount: u64, now_nanos: u64, today: Today) -> u64 {
        self.turn(today);
        wait_with(self.taken, rate, amount, now_nanos, today)
    }

    /// The same if all unsettled reservations were refunded now.
    pub(crate) fn settled_wait(
        &mut self,
        rate: &Rate,
        amount: u64,
        now_nanos: u64,
        today: Today,
    ) -> u64 {
        self.turn(today);
        let settled = self.taken.saturating_sub(self.unsettled);
        wait_with(settled, rate, amount, now_nanos, today)
    }

    /// Takes `amount`, whether there is room or not. Returns the day, for giving it back.
    pub(crate) fn take(&mut self, amount: u64, today: Today) -> u32 {
        self.turn(today);
        self.taken = self.taken.saturating_add(amount);
        self.number
    }

    /// Gives `amount` back that was taken on the day `number`; nothing if that is over.
    pub(crate) fn give_back(&mut self, number: u32, amount: u64) {
        if number == self.number {
            self.taken = self.taken.saturating_sub(amount);
        }
    }

    /// Notes that `amount` of what was just taken is not settled.
    pub(crate) fn add_unsettled(&mut self, amount: u64) {
        self.unsettled = self.unsettled.saturating_add(amount);
    }

    /// Notes that `amount` of what was taken on the day `number` is settled.
    pub(crate) fn remove_unsettled(&mut self, number: u32, amount: u64) {
        if number == self.number {
            self.unsettled = self.unsettled.saturating_sub(amount);
        }
    }

    pub(crate) fn has_unsettled(&self) -> bool {
        self.unsettled > 0
    }

    /// How much could be taken now.
    pub(crate) fn remaining(&mut self, rate: &Rate, today: Today) -> u64 {
        self.turn(today);
        rate.capacity.saturating_sub(self.taken)
    }

    /// How long until nothing of what was taken counts any more, in nanoseconds.
    pub(crate) fn full_in(&mut self, now_nanos: u64, today: Today) -> u64 {
        self.turn(today);
        if self.taken == 0 {
            return 0;
        }
        today.ends_nanos.saturating_sub(now_nanos)
    }

    fn turn(&mut self, today: Today) {
        // A call that read the date before midnight does not turn the day back.
        if today.number > self.number {
            *self = Self {
                taken: 0,
                unsettled: 0,
                number: today.number,
            };
        }
    }
}

fn wait_with(taken: u64, rate: &Rate, amount: u64, now_nanos: u64, today: Today) -> u64 {
    if taken.saturating_add(amount) <= rate.capacity {
        return 0;
    }
    today.ends_nanos.saturating_sub(now_nanos).max(1)
}
