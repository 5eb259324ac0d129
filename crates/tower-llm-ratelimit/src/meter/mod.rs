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
            Self::Day(day) => day.wait(rate, amount, now.nanos, now.today),
        }
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
            Self::Day(day) => day.settled_wait(rate, amount, now.nanos, now.today),
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

    /// Takes `amount`, whether there is room or not. Returns the epoch, for giving it back.
    pub(crate) fn take(&mut self, rate: &Rate, amount: u64, now: Now) -> u32 {
        match self {
            Self::Bucket(bucket) => bucket.take(rate, amount, now.nanos),
            Self::Window(window) => window.take(rate, amount, now.nanos),
            Self::Wide(window) => window.take(rate, amount, now.nanos),
            Self::Day(day) => day.take(amount, now.today),
        }
    }

    /// Takes `amount` until it is [settled](Self::settle): it may be too much. Returns its epoch.
    pub(crate) fn reserve(&mut self, rate: &Rate, amount: u64, now: Now) -> u32 {
        let epoch = self.take(rate, amount, now);
        match self {
            Self::Bucket(bucket) => bucket.add_unsettled(amount),
            Self::Window(window) => window.add_unsettled(amount),
            Self::Wide(window) => window.add_unsettled(amount),
            Self::Day(day) => day.add_unsettled(amount),
        }
        epoch
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

    /// Settles what was reserved in `epoch`: `refund` of it is given back.
    pub(crate) fn settle(&mut self, rate: &Rate, epoch: u32, reserved: u64, refund: u64) {
        match self {
            Self::Bucket(bucket) => bucket.remove_unsettled(epoch, reserved),
            Self::Window(window) => window.remove_unsettled(epoch, reserved),
            Self::Wide(window) => window.remove_unsettled(epoch, reserved),
            Self::Day(day) => day.remove_unsettled(epoch, reserved),
        }
        self.give_back(rate, epoch, refund);
    }

    /// Gives `amount` of what was taken with `epoch` back.
    pub(crate) fn give_back(&mut self, rate: &Rate, epoch: u32, amount: u64) {
        match self {
            Self::Bucket(bucket) => bucket.give_back(rate, epoch, amount),
            Self::Window(window) => window.give_back(epoch, amount),
            Self::Wide(window) => window.give_back(epoch, amount),
            Self::Day(day) => day.give_back(epoch, amount),
        }
    }

    /// How much could be taken now.
    pub(crate) fn remaining(&mut self, rate: &Rate, now: Now) -> u64 {
        match self {
            Self::Bucket(bucket) => bucket.remaining(rate, now.nanos),
            Self::Window(window) => window.remaining(rate, now.nanos),
            Self::Wide(window) => window.remaining(rate, now.nanos),
            Self::Day(day) => day.remaining(rate, now.today),
        }
    }

    /// How long until nothing of what was taken counts any more, in nanoseconds.
    pub(crate) fn full_in(&mut self, rate: &Rate, now: Now) -> u64 {
        match self {
            Self::Bucket(bucket) => bucket.full_in(rate, now.nanos),
            Self::Window(window) => window.full_in(rate, now.nanos),
            Self::Wide(window) => window.full_in(rate, now.nanos),
            Self::Day(day) => day.full_in(now.nanos, now.today),
        }
    }
}
