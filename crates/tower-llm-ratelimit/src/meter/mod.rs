//! How much of a limit is used: plain data with `now` as an argument.

mod bucket;
mod day;
mod rate;
#[cfg(test)]
mod tests;
mod window;

pub(crate) use self::{
    bucket::Bucket,
    rate::{Rate, nanos},
};
use self::{
    day::Day,
    window::{SLICES, Window},
};

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

/// A calendar day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Today {
    /// Larger than that of the day before.
    pub(crate) number: u32,
    /// When it ends, since the limiter was built.
    pub(crate) ends_nanos: u64,
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

/// Calls the meter of any kind. Only a day needs to know the date.
macro_rules! each {
    ($self:ident, $meter:ident => $call:expr) => {
        match $self {
            Self::Bucket($meter) => $call,
            Self::Window($meter) => $call,
            Self::Wide($meter) => $call,
            Self::Day($meter) => $call,
        }
    };
    ($self:ident, $meter:ident, $now:ident => $call:expr) => {{
        let (nanos, today) = ($now.nanos, $now);
        match $self {
            Self::Bucket($meter) => {
                let $now = nanos;
                $call
            }
            Self::Window($meter) => {
                let $now = nanos;
                $call
            }
            Self::Wide($meter) => {
                let $now = nanos;
                $call
            }
            Self::Day($meter) => {
                let $now = today;
                $call
            }
        }
    }};
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
        each!(self, meter, now => meter.wait(rate, amount, now))
    }

    /// If `amount` can be taken now: when it would be, as [`take`](Self::take) says.
    #[inline]
    pub(crate) fn room_at(&mut self, rate: &Rate, amount: u64, now: Now) -> Option<u64> {
        let has_room = each!(self, meter, now => meter.has_room(rate, amount, now));
        has_room.then(|| now.nanos.max(self.latest_nanos(rate)))
    }

    /// The same if every unsettled reservation were refunded: by what is known to be used.
    pub(crate) fn settled_wait(&mut self, rate: &Rate, amount: u64, now: Now) -> u64 {
        if amount > rate.capacity {
            return u64::MAX;
        }
        each!(self, meter, now => meter.settled_wait(rate, amount, now))
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
        each!(self, meter, now => meter.take(rate, amount, now))
    }

    /// The latest time the meter knows: what is taken earlier counts as taken then.
    pub(crate) fn latest_nanos(&self, rate: &Rate) -> u64 {
        each!(self, meter => meter.latest_nanos(rate))
    }

    /// Takes what a call needs if there is room for it; returns the time of it, as [`take`](Self::take) does.
    #[inline]
    pub(crate) fn try_take(&mut self, rate: &Rate, needs: Needs, now: Now) -> Option<u64> {
        each!(self, meter, now => meter.try_take(rate, needs, now))
    }

    /// Takes `amount` until it is [settled](Self::settle): it may be too much. Returns the time of it.
    pub(crate) fn reserve(&mut self, rate: &Rate, amount: u64, now: Now) -> u64 {
        let at = self.take(rate, amount, now);
        each!(self, meter => meter.add_unsettled(amount));
        at
    }

    /// Whether anything that still counts is not settled.
    pub(crate) fn has_unsettled(&self) -> bool {
        each!(self, meter => meter.has_unsettled())
    }

    /// Settles what was reserved at `taken_at`: `refund` of it is given back.
    pub(crate) fn settle(&mut self, rate: &Rate, taken_at_nanos: u64, reserved: u64, refund: u64) {
        each!(self, meter => meter.remove_unsettled(rate, taken_at_nanos, reserved));
        if refund > 0 {
            self.give_back(rate, taken_at_nanos, refund);
        }
    }

    /// Gives back `amount` of what was taken at `taken_at`.
    pub(crate) fn give_back(&mut self, rate: &Rate, taken_at_nanos: u64, amount: u64) {
        each!(self, meter => meter.give_back(rate, taken_at_nanos, amount));
    }

    /// How much could be taken now.
    pub(crate) fn remaining(&mut self, rate: &Rate, now: Now) -> u64 {
        each!(self, meter, now => meter.remaining(rate, now))
    }

    /// How long until nothing of what was taken counts any more, in nanoseconds.
    pub(crate) fn full_in(&mut self, rate: &Rate, now: Now) -> u64 {
        each!(self, meter, now => meter.full_in(rate, now))
    }
}
