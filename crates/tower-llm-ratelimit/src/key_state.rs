//! What one key has used of its limits.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    task::Waker,
};

use smallvec::SmallVec;
use tower_llm_core::{Evictable, Keyed};

use crate::{
    demand::Demand,
    group::{CheckedLimit, Clock, LimitGroup},
    lease::Lease,
    meter::Meter,
    provider_budget::ProviderBudget,
    queue::Queue,
    tier::Tier,
};

#[cfg(feature = "redis")]
use {crate::store::Terms, tokio::time::Instant};

/// The state of one key, and its group.
pub(crate) struct KeyState {
    pub(crate) group: Arc<LimitGroup>,
    // A std mutex, not tokio's: it is held for a few additions and never across an await.
    state: Mutex<State>,
}

/// The key states of a call, in the order of their groups, which is also the order in which they are locked.
pub(crate) type KeyStates = SmallVec<[Arc<Keyed<KeyState>>; 3]>;

pub(crate) struct State {
    pub(crate) gauges: Gauges,
    pub(crate) admitted: u64,
    /// State that few keys have.
    extra: Option<Box<Extra>>,
}

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

#[derive(Default)]
pub(crate) struct Extra {
    pub(crate) budget: Option<ProviderBudget>,
    pub(crate) queue: Option<Queue>,
    /// The lease of each shared limit; empty before the first.
    pub(crate) leases: Box<[Lease]>,
    /// Whether a task gives back what is left when they end.
    is_cleaned_up: bool,
}

// === impl KeyState ===

impl KeyState {
    pub(crate) fn new(group: Arc<LimitGroup>) -> Self {
        let gauges = Gauges::new(&group.limits);
        Self {
            group,
            state: Mutex::new(State {
                gauges,
                admitted: 0,
                extra: None,
            }),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What goes back to the store of shared limits, and when to check again if leases were granted meanwhile.
#[cfg(feature = "redis")]
pub(crate) fn left_of_leases(key: &Keyed<KeyState>) -> (Vec<Terms>, Option<Instant>) {
    let clock = key.group.clock;
    let now = clock.now_nanos();
    let limits = &key.group.limits;
    let mut state = key.lock();
    let leases = state.leases(limits.len()).iter_mut();
    let left = limits.iter().zip(leases).filter_map(|(checked, lease)| {
        let back = lease.clear_if_over(now)?;
        checked.give_back(key.key(), back, now)
    });
    let left = left.collect();
    let next_end = state.extra.as_mut().and_then(|extra| {
        extra.is_cleaned_up = false;
        extra.look_after(now)
    });
    (left, next_end.map(|nanos| clock.at(nanos)))
}

impl Evictable for KeyState {
    fn is_evictable(&self) -> bool {
        let now_nanos = self.group.clock.now_nanos();
        let mut state = self.lock();
        let extra = state.extra.as_deref_mut();
        let is_quiet = extra.is_none_or(|extra| {
            let budget = extra.budget.as_mut();
            let is_spent = |lease: &Lease| lease.is_spent(now_nanos);
            let is_spent = extra.leases.iter().all(is_spent);
            is_spent
                && extra.queue.is_none()
                && budget.is_none_or(|budget| budget.is_over(now_nanos))
        });
        is_quiet
            && self
                .group
                .limits
                .iter()
                .zip(state.gauges.iter())
                .all(|(checked, gauge)| {
                    // At the slowest rate and on a copy, because the tier of the caller is not known.
                    let mut meter = gauge.meter.clone();
                    meter.full_in(checked.slowest(), checked.now(now_nanos)) == 0
                })
    }
}

impl Drop for KeyState {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.group.evicted.add(state);
    }
}

// === impl State ===

impl State {
    /// The gauges, if a call need check nothing else.
    pub(crate) fn plain_gauges(&mut self) -> Option<&mut Gauges> {
        self.extra.is_none().then_some(&mut self.gauges)
    }

    pub(crate) fn budget(&mut self) -> Option<&mut ProviderBudget> {
        self.extra.as_mut()?.budget.as_mut()
    }

    pub(crate) fn budget_or_new(&mut self) -> &mut ProviderBudget {
        let extra = self.extra.get_or_insert_default();
        extra.budget.get_or_insert_default()
    }

    /// The leases of the key's limits, as many as `limits`.
    pub(crate) fn leases(&mut self, limits: usize) -> &mut [Lease] {
        let extra = self.extra.get_or_insert_default();
        if extra.leases.len() != limits {
            extra.leases = vec![Lease::default(); limits].into();
        }
        &mut extra.leases
    }

    /// Returns when the next lease ends, unless a task is already scheduled to give back what is left. The caller must
    /// schedule one.
    pub(crate) fn clean_up_leases(&mut self, now_nanos: u64) -> Option<u64> {
        let extra = self.extra.as_mut()?;
        (!extra.is_cleaned_up)
            .then(|| extra.look_after(now_nanos))
            .flatten()
    }

    /// Records that this task could not be scheduled.
    pub(crate) fn clean_up_no_more(&mut self) {
        if let Some(extra) = &mut self.extra {
            extra.is_cleaned_up = false;
        }
    }

    pub(crate) fn gauges_and_queue(&mut self) -> (&mut Gauges, Option<&Queue>) {
        let queue = self.extra.as_ref().and_then(|extra| extra.queue.as_ref());
        (&mut self.gauges, queue)
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        let queue = self.extra.as_ref().and_then(|extra| extra.queue.as_ref());
        queue.map_or(0, Queue::len)
    }

    /// Wakes the head of the queue, if there is one, to try again.
    pub(crate) fn wake_head(mut this: MutexGuard<'_, Self>, clock: Clock) {
        let head = this
            .queue()
            .and_then(|queue| queue.wake_head(clock.now_nanos()));
        Self::wake(this, head);
    }

    /// Wakes a call, without the lock because its waker runs foreign code.
    pub(crate) fn wake(this: MutexGuard<'_, Self>, waker: Option<Waker>) {
        drop(this);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The wakers of all waiting calls, so that they check whether they can still be admitted; to be woken without the
    /// lock.
    pub(crate) fn wake_all(&mut self, clock: Clock) -> Vec<Waker> {
        let queue = self.queue();
        queue.map_or_else(Vec::new, |queue| queue.wake_all(clock.now_nanos()))
    }

    pub(crate) fn queue(&mut self) -> Option<&mut Queue> {
        self.extra.as_mut()?.queue.as_mut()
    }

    pub(crate) fn queue_or_new(&mut self) -> &mut Queue {
        self.extra
            .get_or_insert_default()
            .queue
            .get_or_insert_default()
    }

    /// Whether `most` calls wait.
    pub(crate) fn queue_is_full(&self, most: usize, now_nanos: u64) -> bool {
        let queue = self.extra.as_ref().and_then(|extra| extra.queue.as_ref());
        queue.map_or(most == 0, |queue| queue.is_full(most, now_nanos))
    }

    /// Drops the queue, which is empty.
    pub(crate) fn drop_queue(&mut self) {
        if let Some(extra) = &mut self.extra {
            extra.queue = None;
            if extra.budget.is_none() && extra.leases.is_empty() {
                self.extra = None;
            }
        }
    }
}

impl Extra {
    fn look_after(&mut self, now_nanos: u64) -> Option<u64> {
        let ends = self.leases.iter().filter_map(|lease| lease.ends(now_nanos));
        let next = ends.min();
        self.is_cleaned_up = next.is_some();
        next
    }
}

// === impl Gauges ===

impl Gauges {
    fn new(limits: &[CheckedLimit]) -> Self {
        let gauge = |checked: &CheckedLimit| Gauge {
            meter: Meter::new(checked.kind),
            consumed: 0,
        };
        match limits {
            [checked] => Self::One(gauge(checked)),
            _ => Self::Many(limits.iter().map(gauge).collect()),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Gauge> {
        match self {
            Self::One(gauge) => std::slice::from_ref(gauge).iter(),
            Self::Many(gauges) => gauges.iter(),
        }
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Gauge> {
        match self {
            Self::One(gauge) => std::slice::from_mut(gauge).iter_mut(),
            Self::Many(gauges) => gauges.iter_mut(),
        }
    }
}

// === impl Gauge ===

impl Gauge {
    /// Whether a limit without a queue admits the call now.
    pub(crate) fn has_room(&mut self, checked: &CheckedLimit, demand: &Demand, now: u64) -> bool {
        let rate = checked.own_rate(demand.tier);
        demand.needed(checked).is_none_or(|needed| {
            // False if the call needs more than the capacity: its need may be just above it.
            needed <= rate.capacity && self.meter.wait(rate, needed, checked.now(now)) == 0
        })
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

    /// Charges what the call reserves; returns the epoch by which it is settled.
    pub(crate) fn charge(&mut self, checked: &CheckedLimit, demand: &Demand, now: u64) -> u32 {
        let (rate, amount) = (checked.own_rate(demand.tier), demand.amount(checked));
        self.consumed = self.consumed.saturating_add(amount);
        match checked.is_exact() {
            true => self.meter.take(rate, amount, checked.now(now)),
            false => self.meter.reserve(rate, amount, checked.now(now)),
        }
    }

    /// Settles what a call reserved, and refunds what it did not use.
    pub(crate) fn settle(
        &mut self,
        checked: &CheckedLimit,
        tier: Tier,
        epoch: u32,
        reserved: u64,
        used: u64,
    ) {
        let rate = checked.own_rate(tier);
        let refund = reserved.saturating_sub(used);
        match checked.is_exact() {
            true => self.meter.give_back(rate, epoch, refund),
            false => self.meter.settle(rate, epoch, reserved, refund),
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

impl std::fmt::Debug for KeyState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cell").finish_non_exhaustive()
    }
}

const _: () = assert!(
    mem::size_of::<KeyState>() <= 152,
    "a key's memory is promised to be small"
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::Grant;

    /// The state of a key with leases that end at `untils`.
    fn state(untils: &[u64]) -> State {
        let mut state = State {
            gauges: Gauges::Many([].into()),
            admitted: 0,
            extra: None,
        };
        for (lease, until) in state.leases(untils.len()).iter_mut().zip(untils) {
            let grant = Grant {
                amount: 5,
                epoch: 1,
            };
            lease.replace(grant, *until, Tier::NONE);
        }
        state
    }

    #[test]
    fn one_task_cleans_up_leases() {
        let mut state = state(&[300, 200]);
        assert_eq!(state.clean_up_leases(100), Some(200));
        assert_eq!(state.clean_up_leases(150), None, "a task does already");
        state.clean_up_no_more();
        assert_eq!(
            state.clean_up_leases(250),
            Some(300),
            "the task could not be started"
        );
    }

    #[test]
    fn without_leases_there_is_nothing_to_clean_up() {
        let mut state = state(&[0, 100]);
        assert_eq!(state.clean_up_leases(100), None);
        state.leases(2)[0].replace(
            Grant {
                amount: 5,
                epoch: 1,
            },
            400,
            Tier::NONE,
        );
        assert_eq!(state.clean_up_leases(100), Some(400));
    }
}
