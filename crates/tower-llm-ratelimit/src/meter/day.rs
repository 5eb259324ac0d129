//! The quota of a calendar day: all of it at midnight, and no more until the next.
//!
//! Some providers' daily quotas are for a calendar day in a time zone: Gemini's begins at midnight in California.

use super::{Needs, Now, Rate};

/// What was taken on the current day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Day {
    taken: u64,
    /// Reservations of this day that are not settled yet.
    unsettled: u64,
    number: u32,
    /// The time of the first call that saw this day.
    since_nanos: u64,
}

impl Day {
    /// How long until `amount` can be taken, in nanoseconds: zero if it can now.
    pub(crate) fn wait(&mut self, rate: &Rate, amount: u64, now: Now) -> u64 {
        self.turn(now);
        wait_with(self.taken, rate, amount, now)
    }

    /// The same if all unsettled reservations were refunded now.
    pub(crate) fn settled_wait(&mut self, rate: &Rate, amount: u64, now: Now) -> u64 {
        self.turn(now);
        let settled = self.taken.saturating_sub(self.unsettled);
        wait_with(settled, rate, amount, now)
    }

    /// Takes `amount`, whether there is room or not. Returns the time of it, for giving it back.
    pub(crate) fn take(&mut self, _: &Rate, amount: u64, now: Now) -> u64 {
        self.turn(now);
        self.taken = self.taken.saturating_add(amount);
        now.nanos.max(self.since_nanos)
    }

    /// Takes `needs` if there is room; returns the time of it.
    pub(crate) fn try_take(&mut self, rate: &Rate, needs: Needs, now: Now) -> Option<u64> {
        if !self.has_room(rate, needs.room, now) {
            return None;
        }
        let at = self.take(rate, needs.amount, now);
        if needs.is_unsettled {
            self.add_unsettled(needs.amount);
        }
        Some(at)
    }

    /// Whether `amount` can be taken now.
    pub(crate) fn has_room(&mut self, rate: &Rate, amount: u64, now: Now) -> bool {
        self.turn(now);
        self.taken.saturating_add(amount) <= rate.capacity
    }

    /// The latest time it knows: the begin of its day.
    pub(crate) fn latest_nanos(&self, _: &Rate) -> u64 {
        self.since_nanos
    }

    /// Gives back `amount` of what was taken at `taken_at`; nothing if that day is over.
    pub(crate) fn give_back(&mut self, _: &Rate, taken_at_nanos: u64, amount: u64) {
        if taken_at_nanos >= self.since_nanos {
            self.taken = self.taken.saturating_sub(amount);
        }
    }

    /// Notes that `amount` of what was just taken is not settled.
    pub(crate) fn add_unsettled(&mut self, amount: u64) {
        self.unsettled = self.unsettled.saturating_add(amount);
    }

    /// Notes that `amount` of what was taken at `taken_at` is settled.
    pub(crate) fn remove_unsettled(&mut self, _: &Rate, taken_at_nanos: u64, amount: u64) {
        if taken_at_nanos >= self.since_nanos {
            self.unsettled = self.unsettled.saturating_sub(amount);
        }
    }

    pub(crate) fn has_unsettled(&self) -> bool {
        self.unsettled > 0
    }

    /// How much could be taken now.
    pub(crate) fn remaining(&mut self, rate: &Rate, now: Now) -> u64 {
        self.turn(now);
        rate.capacity.saturating_sub(self.taken)
    }

    /// How long until nothing of what was taken counts any more, in nanoseconds.
    pub(crate) fn full_in(&mut self, _: &Rate, now: Now) -> u64 {
        self.turn(now);
        if self.taken == 0 {
            return 0;
        }
        now.today.ends_nanos.saturating_sub(now.nanos)
    }

    fn turn(&mut self, now: Now) {
        let Now { nanos, today } = now;
        // A call that read the date before midnight does not turn the day back.
        if today.number > self.number {
            *self = Self {
                taken: 0,
                unsettled: 0,
                number: today.number,
                since_nanos: nanos.max(self.since_nanos),
            };
        }
    }
}

fn wait_with(taken: u64, rate: &Rate, amount: u64, now: Now) -> u64 {
    if taken.saturating_add(amount) <= rate.capacity {
        return 0;
    }
    now.today.ends_nanos.saturating_sub(now.nanos).max(1)
}
