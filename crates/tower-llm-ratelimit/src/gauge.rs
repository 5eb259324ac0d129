//! What one key has used of one limit: a meter, and totals.

use std::{slice, sync::atomic::Ordering};

use crate::{
    checked_limit::CheckedLimit,
    demand::Demand,
    meter::{Meter, Needs},
    tier::Tier,
};

/// A gauge for each limit; a single one is not allocated.
pub(crate) enum Gauges {
    One(Gauge),
    Many(Box<[Gauge]>),
}

/// A meter, and totals since its creation.
pub(crate) struct Gauge {
    pub(crate) meter: Meter,
    pub(crate) consumed: u64,
}

// === impl Gauges ===

impl Gauges {
    pub(crate) fn new(limits: &[CheckedLimit]) -> Self {
        let gauge = |checked: &CheckedLimit| Gauge {
            meter: Meter::new(checked.kind),
            consumed: 0,
        };
        match limits {
            [checked] => Self::One(gauge(checked)),
            _ => Self::Many(limits.iter().map(gauge).collect()),
        }
    }

    pub(crate) fn iter(&self) -> slice::Iter<'_, Gauge> {
        match self {
            Self::One(gauge) => slice::from_ref(gauge).iter(),
            Self::Many(gauges) => gauges.iter(),
        }
    }

    pub(crate) fn iter_mut(&mut self) -> slice::IterMut<'_, Gauge> {
        match self {
            Self::One(gauge) => slice::from_mut(gauge).iter_mut(),
            Self::Many(gauges) => gauges.iter_mut(),
        }
    }
}

// === impl Gauge ===

impl Gauge {
    /// Takes what the call demands if the limit has room; returns the time of it.
    #[inline]
    pub(crate) fn try_take(
        &mut self,
        checked: &CheckedLimit,
        demand: &Demand,
        now: u64,
    ) -> Option<u64> {
        let (rate, amount) = (checked.own_rate(demand.tier), demand.amount(checked));
        let now = checked.now(now);
        let at = match demand.needed(checked) {
            Some(room) => {
                let is_unsettled = !checked.is_exact();
                let needs = Needs {
                    room,
                    amount,
                    is_unsettled,
                };
                self.meter.try_take(rate, needs, now)?
            }
            None => self.meter.take(rate, amount, now),
        };
        self.consumed = self.consumed.saturating_add(amount);
        Some(at)
    }

    /// If the limit has room for the call: `now`, or the latest time known here.
    pub(crate) fn room_at(
        &mut self,
        checked: &CheckedLimit,
        demand: &Demand,
        now: u64,
    ) -> Option<u64> {
        let rate = checked.own_rate(demand.tier);
        match demand.needed(checked) {
            Some(needed) => self.meter.room_at(rate, needed, checked.now(now)),
            None => Some(now.max(self.meter.latest_nanos(rate))),
        }
    }

    /// How long a limit blocks the call, in nanoseconds, behind calls that need `ahead`: by what is reserved, and by what
    /// is known to be used.
    pub(crate) fn waits(
        &mut self,
        checked: &CheckedLimit,
        demand: &Demand,
        ahead: u64,
        now: u64,
    ) -> (u64, u64) {
        let (rate, now) = (checked.own_rate(demand.tier), checked.now(now));
        let Some(needed) = demand.needed(checked) else {
            return (0, 0);
        };
        if checked.is_exact() {
            let wait = self.meter.wait_behind(rate, ahead, needed, now);
            return (wait, wait);
        }
        // The use of calls ahead of it and of calls in flight is not known.
        let wait = self.meter.wait_behind(rate, 0, needed, now);
        match wait {
            0 => (0, 0),
            wait => (wait, self.meter.settled_wait(rate, needed, now)),
        }
    }

    /// How long the limit as a whole blocks the call by what is known to be used here, if calls in flight have reserved more
    /// or `may_refund` says that the store counts more.
    pub(crate) fn settled_wait_in_flight(
        &mut self,
        checked: &CheckedLimit,
        demand: &Demand,
        now: u64,
        may_refund: bool,
    ) -> Option<u64> {
        let needed = demand.needed(checked).filter(|_| !checked.is_exact())?;
        let (rate, now) = (checked.rate(demand.tier), checked.now(now));
        let wait = self.meter.settled_wait(rate, needed, now);
        (may_refund || self.has_unsettled()).then_some(wait)
    }

    /// Whether calls in flight have reserved what they may not use.
    pub(crate) fn has_unsettled(&self) -> bool {
        self.meter.has_unsettled()
    }

    /// Takes what the call reserves, whether there is room or not.
    pub(crate) fn take(&mut self, checked: &CheckedLimit, demand: &Demand, now: u64) {
        let (rate, amount) = (checked.own_rate(demand.tier), demand.amount(checked));
        self.consumed = self.consumed.saturating_add(amount);
        match checked.is_exact() {
            true => self.meter.take(rate, amount, checked.now(now)),
            false => self.meter.reserve(rate, amount, checked.now(now)),
        };
    }

    /// Settles what a call reserved at `taken_at`, and refunds what it did not use.
    pub(crate) fn settle(
        &mut self,
        checked: &CheckedLimit,
        tier: Tier,
        taken_at_nanos: u64,
        reserved: u64,
        used: u64,
    ) {
        let rate = checked.own_rate(tier);
        let refund = reserved.saturating_sub(used);
        match checked.is_exact() {
            true => self.meter.give_back(rate, taken_at_nanos, refund),
            false => self.meter.settle(rate, taken_at_nanos, reserved, refund),
        }
        if refund > 0 {
            self.consumed = self.consumed.saturating_sub(refund);
            checked.counts.refunded.fetch_add(refund, Ordering::Relaxed);
        }
    }

    /// Charges what a call used beyond its reservation.
    pub(crate) fn charge_more(&mut self, checked: &CheckedLimit, tier: Tier, more: u64, now: u64) {
        let (counts, now) = (&checked.counts, checked.now(now));
        self.consumed = self.consumed.saturating_add(more);
        self.meter.take(checked.own_rate(tier), more, now);
        counts.overrun.fetch_add(more, Ordering::Relaxed);
        if self.meter.is_over(checked.rate(tier), now) {
            counts.violations.fetch_add(1, Ordering::Relaxed);
        }
    }
}
