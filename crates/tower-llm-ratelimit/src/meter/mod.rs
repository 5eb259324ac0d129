//! How much of a limit is used: plain data with `now` as an argument.

mod bucket;
mod day;
#[cfg(test)]
mod tests;
mod window;

pub(crate) use self::{bucket::Bucket, window::SLICES};
use self::{day::Day, window::Window};
use crate::{calendar::Today, limit::Rate};

/// How much one key has taken of one limit.
#[derive(Clone, Debug)]
pub(crate) enum Meter {
    Bucket(Bucket),
    Window(Window<u32>),
    /// For limits over 2^31. Boxed, so that the others stay small.
    Wide(Box<Window<u64>>),
    Day(Day),
}

/// The algorithm of a meter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Bucket,
    Window,
    Wide,
    Day,
}

/// The time since the limiter was built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Now {
    pub(crate) nanos: u64,
    /// The calendar day, for limits that have one.
    pub(crate) today: Today,
}

/// What a call needs of one limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs {
    /// How much must be available.
    pub(crate) room: u64,
    /// What is taken.
    pub(crate) amount: u64,
    /// Whether that may be too much, until it is [settled](Meter::settle).
    pub(crate) is_unsettled: bool,
}

impl Meter {
    pub(crate) fn new(kind: Kind) -> Self {
        match kind {
            Kind::Bucket => Self::Bucket(Bucket::default()),
            Kind::Window => Self::Window(Window::new()),
            Kind::Wide => Self::Wide(Box::new(Window::new())),
            Kind::Day => Self::Day(Day::default()),
        }
    }

    /// How long until `amount` can be taken, in nanoseconds: zero if it can now.
    ///
    /// `amount` must not be over the capacity, or it never can.
    pub(crate) fn wait(&mut self, rate: &Rate, amount: u64, now: Now) -> u64 {
        match self {
            Self::Bucket(bucket) => bucket.wait(rate, amount, now.nanos),
            Self::Window(window) => window.wait(rate, amount, now.nanos),
            Self::Wide(window) => window.wait(rate, amount, now.nanos),
            Self::Day(day) => day.wait(rate, amount, now),
        }
    }

    /// If `amount` can be taken now: when it would be, as [`take`](Self::take) says.
    #[inline]
    pub(crate) fn room_at(&mut self, rate: &Rate, amount: u64, now: Now) -> Option<u64> {
        let (has_room, latest) = match self {
            Self::Bucket(bucket) => (
                bucket.has_room(rate, amount, now.nanos),
                bucket.latest_nanos(),
            ),
            Self::Window(window) => (
                window.has_room(rate, amount, now.nanos),
                window.latest_nanos(rate),
            ),
            Self::Wide(window) => (
                window.has_room(rate, amount, now.nanos),
                window.latest_nanos(rate),
            ),
            Self::Day(day) => (day.has_room(rate, amount, now), day.latest_nanos()),
        };
        has_room.then(|| latest.max(now.nanos))
    }

    /// The same if every unsettled reservation were refunded: by what is known to be used.
    pub(crate) fn settled_wait(&mut self, rate: &Rate, amount: u64, now: Now) -> u64 {
        if amount > rate.capacity {
            return u64::MAX;
        }
        match self {
            Self::Bucket(bucket) => bucket.settled_wait(rate, amount, now.nanos),
            Self::Window(window) => window.settled_wait(rate, amount, now.nanos),
            Self::Wide(window) => window.settled_wait(rate, amount, now.nanos),
            Self::Day(day) => day.settled_wait(rate, amount, now),
        }
    }

    /// The minimum time until other calls have taken `ahead` and then `amount` can be taken, in nanoseconds.
    pub(crate) fn wait_behind(&mut self, rate: &Rate, ahead: u64, amount: u64, now: Now) -> u64 {
        if amount > rate.capacity {
            return u64::MAX;
        }
        let both = ahead.saturating_add(amount);
        if both <= rate.capacity || matches!(self, Self::Bucket(_)) {
            return self.wait(rate, both, now);
        }
        let whole_periods = both.saturating_sub(1) / rate.amount;
        let at_least = whole_periods.saturating_mul(rate.period_nanos);
        match self {
            // The first period ends at midnight, which may be soon.
            Self::Day(_) => self.wait(rate, rate.amount, now),
            _ => self.wait(rate, amount, now).max(at_least),
        }
    }

    /// Whether more was taken than the limit, because reservations were too small.
    pub(crate) fn is_over(&mut self, rate: &Rate, now: Now) -> bool {
        self.wait(rate, 0, now) > 0
    }

    /// Takes `amount`, whether there is room or not. Returns the time of it, for giving it back.
    ///
    /// That is `now`, or the [latest](Self::latest_nanos) time the meter knows if another thread read the clock later.
    pub(crate) fn take(&mut self, rate: &Rate, amount: u64, now: Now) -> u64 {
        match self {
            Self::Bucket(bucket) => bucket.take(rate, amount, now.nanos),
            Self::Window(window) => window.take(rate, amount, now.nanos),
            Self::Wide(window) => window.take(rate, amount, now.nanos),
            Self::Day(day) => day.take(amount, now),
        }
    }

    /// The latest time the meter knows: what is taken earlier counts as taken then.
    pub(crate) fn latest_nanos(&self, rate: &Rate) -> u64 {
        match self {
            Self::Bucket(bucket) => bucket.latest_nanos(),
            Self::Window(window) => window.latest_nanos(rate),
            Self::Wide(window) => window.latest_nanos(rate),
            Self::Day(day) => day.latest_nanos(),
        }
    }

    /// Takes what a call needs if there is room for it; returns the time of it, as [`take`](Self::take) does.
    #[inline]
    pub(crate) fn try_take(&mut self, rate: &Rate, needs: Needs, now: Now) -> Option<u64> {
        match self {
            Self::Bucket(bucket) => bucket.try_take(rate, needs, now.nanos),
            Self::Window(window) => window.try_take(rate, needs, now.nanos),
            Self::Wide(window) => window.try_take(rate, needs, now.nanos),
            Self::Day(day) => day.try_take(rate, needs, now),
        }
    }

    /// Takes `amount` until it is [settled](Self::settle): it may be too much. Returns the time of it.
    pub(crate) fn reserve(&mut self, rate: &Rate, amount: u64, now: Now) -> u64 {
        let at = self.take(rate, amount, now);
        self.add_unsettled(amount);
        at
    }

    /// Notes that `amount` of what was just taken is not settled.
    pub(crate) fn add_unsettled(&mut self, amount: u64) {
        match self {
            Self::Bucket(bucket) => bucket.add_unsettled(amount),
            Self::Window(window) => window.add_unsettled(amount),
            Self::Wide(window) => window.add_unsettled(amount),
            Self::Day(day) => day.add_unsettled(amount),
        }
    }

    /// Whether anything that still counts is not settled.
    pub(crate) fn has_unsettled(&self) -> bool {
        match self {
            Self::Bucket(bucket) => bucket.has_unsettled(),
            Self::Window(window) => window.has_unsettled(),
            Self::Wide(window) => window.has_unsettled(),
            Self::Day(day) => day.has_unsettled(),
        }
    }

    /// Settles what was reserved at `taken_at`: `refund` of it is given back.
    pub(crate) fn settle(&mut self, rate: &Rate, taken_at_nanos: u64, reserved: u64, refund: u64) {
        match self {
            Self::Bucket(bucket) => bucket.remove_unsettled(taken_at_nanos, reserved),
            Self::Window(window) => window.remove_unsettled(rate, taken_at_nanos, reserved),
            Self::Wide(window) => window.remove_unsettled(rate, taken_at_nanos, reserved),
            Self::Day(day) => day.remove_unsettled(taken_at_nanos, reserved),
        }
        if refund > 0 {
            self.give_back(rate, taken_at_nanos, refund);
        }
    }

    /// Gives back `amount` of what was taken at `taken_at`.
    pub(crate) fn give_back(&mut self, rate: &Rate, taken_at_nanos: u64, amount: u64) {
        match self {
            Self::Bucket(bucket) => bucket.give_back(rate, taken_at_nanos, amount),
            Self::Window(window) => window.give_back(rate, taken_at_nanos, amount),
            Self::Wide(window) => window.give_back(rate, taken_at_nanos, amount),
            Self::Day(day) => day.give_back(taken_at_nanos, amount),
        }
    }

    /// How much could be taken now.
    pub(crate) fn remaining(&mut self, rate: &Rate, now: Now) -> u64 {
        match self {
            Self::Bucket(bucket) => bucket.remaining(rate, now.nanos),
            Self::Window(window) => window.remaining(rate, now.nanos),
            Self::Wide(window) => window.remaining(rate, now.nanos),
            Self::Day(day) => day.remaining(rate, now),
        }
    }

    /// How long until nothing of what was taken counts any more, in nanoseconds.
    pub(crate) fn full_in(&mut self, rate: &Rate, now: Now) -> u64 {
        match self {
            Self::Bucket(bucket) => bucket.full_in(rate, now.nanos),
            Self::Window(window) => window.full_in(rate, now.nanos),
            Self::Wide(window) => window.full_in(rate, now.nanos),
            Self::Day(day) => day.full_in(now),
        }
    }
}
