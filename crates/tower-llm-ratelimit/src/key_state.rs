//! What one key has used of its limits: plain data with `now` as an argument.

use std::task::Waker;

use crate::{
    blocked::{Waits, Why},
    checked_limit::CheckedLimit,
    demand::Demand,
    gauge::Gauges,
    pricing::Amounts,
    provider::budget::{InFlight, ProviderBudget},
    queue::Queue,
    shared::lease::{Back, Lease},
    tier::Tier,
};

/// The state of one key.
pub(crate) struct KeyState {
    pub(crate) gauges: Gauges,
    pub(crate) admitted: u64,
    /// State that few keys have.
    extra: Option<Box<Extra>>,
}

#[derive(Default)]
struct Extra {
    budget: Option<ProviderBudget>,
    queue: Option<Queue>,
    /// The lease of each shared limit; empty before the first.
    leases: Box<[Lease]>,
    /// Whether a task gives back what is left when they end.
    is_cleaned_up: bool,
}

/// What a call has taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    /// When, by the limiter's clock.
    pub(crate) at_nanos: u64,
    /// If the provider's limits are observed, what its response is compared with.
    pub(crate) in_flight: Option<InFlight>,
}

// === impl KeyState ===

impl KeyState {
    pub(crate) fn new(limits: &[CheckedLimit]) -> Self {
        Self {
            gauges: Gauges::new(limits),
            admitted: 0,
            extra: None,
        }
    }

    /// Takes what the call demands at `now`, or at the latest time known here, if no call waits, no report blocks it and all
    /// limits have room. A single limit is checked and charged in one step.
    pub(crate) fn try_take(
        &mut self,
        limits: &[CheckedLimit],
        demand: &Demand,
        observes: bool,
        now: u64,
    ) -> Option<Taken> {
        if !self.is_open(demand, now) {
            return None;
        }
        if let (Gauges::One(gauge), [checked]) = (&mut self.gauges, limits) {
            let at_nanos = gauge.try_take(checked, demand, now)?;
            self.admitted += 1;
            let in_flight = observes.then(|| self.send(demand, at_nanos));
            return Some(Taken {
                at_nanos,
                in_flight,
            });
        }
        let at_nanos = self.room_at(limits, demand, now)?;
        Some(Taken {
            at_nanos,
            in_flight: self.take(limits, demand, observes, at_nanos),
        })
    }

    /// Whether no call waits, and no report blocks the call.
    pub(crate) fn is_open(&mut self, demand: &Demand, now: u64) -> bool {
        let Some(extra) = &mut self.extra else {
            return true;
        };
        let budget = extra.budget.as_mut();
        extra.queue.is_none() && budget.is_none_or(|budget| budget.admits(&demand.estimate, now))
    }

    /// If all limits have room for the call: `now`, or the latest time known here.
    pub(crate) fn room_at(
        &mut self,
        limits: &[CheckedLimit],
        demand: &Demand,
        now: u64,
    ) -> Option<u64> {
        let mut gauges = limits.iter().zip(self.gauges.iter_mut());
        gauges.try_fold(now, |latest, (checked, gauge)| {
            Some(latest.max(gauge.room_at(checked, demand, now)?))
        })
    }

    /// Takes what the call demands, whether there is room or not.
    pub(crate) fn take(
        &mut self,
        limits: &[CheckedLimit],
        demand: &Demand,
        observes: bool,
        now: u64,
    ) -> Option<InFlight> {
        self.admitted += 1;
        for (checked, gauge) in limits.iter().zip(self.gauges.iter_mut()) {
            gauge.take(checked, demand, now);
        }
        observes.then(|| self.send(demand, now))
    }

    /// Counts a call that the provider will answer: from the first one on, so that the calls in flight are known when a
    /// response reports something.
    fn send(&mut self, demand: &Demand, now: u64) -> InFlight {
        let budget = self.budget_or_new();
        budget.take(&demand.estimate.reserved, now)
    }

    /// `now`, or the latest time that is known here: another thread may have read the clock later, and come first.
    pub(crate) fn latest(&self, limits: &[CheckedLimit], tier: Tier, now: u64) -> u64 {
        let gauges = limits.iter().zip(self.gauges.iter());
        gauges.fold(now, |now, (checked, gauge)| {
            now.max(gauge.meter.latest_nanos(checked.own_rate(tier)))
        })
    }

    /// How long what the provider reported blocks the call, and why; `None` if it does not.
    pub(crate) fn blocked_by_report(&mut self, demand: &Demand, now: u64) -> Option<Waits> {
        let wait = self.budget()?.wait(&demand.estimate, now)?;
        Some(Waits {
            nanos: wait.nanos,
            known_nanos: wait.known_nanos,
            why: wait.unit.map_or(Why::Closed, Why::Reported),
        })
    }

    /// How long the limits block the call, `besides` what else does. If it is `behind` the queue, so does what the calls
    /// ahead of it need.
    pub(crate) fn blocked_by_limits(
        &mut self,
        limits: &[CheckedLimit],
        demand: &Demand,
        behind: bool,
        now: u64,
        besides: Option<Waits>,
    ) -> Option<Waits> {
        let queue = self.extra.as_ref().and_then(|extra| extra.queue.as_ref());
        let ahead = match queue.filter(|_| behind) {
            // Only in exact units is the use of other calls known.
            Some(queue) if limits.iter().any(CheckedLimit::is_exact) => {
                queue.ahead(demand.caller.as_ref())
            }
            _ => Amounts::NONE,
        };
        let mut longest = besides;
        for (limit, (checked, gauge)) in limits.iter().zip(self.gauges.iter_mut()).enumerate() {
            let ahead = ahead.of(checked.limit.unit());
            let (nanos, known_nanos) = gauge.waits(checked, demand, ahead, now);
            if nanos > 0 {
                let waits = Waits {
                    nanos,
                    known_nanos,
                    why: Why::Limit(limit),
                };
                longest = Some(longest.map_or(waits, |longest| longest.and(waits)));
            }
        }
        longest
    }

    /// Blocks a call that is `behind` the queue, for as long as what else does.
    pub(crate) fn blocked_by_queue(&self, behind: bool, besides: Option<Waits>) -> Option<Waits> {
        let extra = self.extra.as_ref().filter(|_| behind);
        if extra.is_none_or(|extra| extra.queue.is_none()) {
            return besides;
        }
        Some(Waits {
            why: Why::Queue,
            ..besides.unwrap_or(Waits::none(Why::Queue))
        })
    }

    /// Blocks the call if a lease has too little left.
    pub(crate) fn blocked_by_leases(
        &mut self,
        limits: &[CheckedLimit],
        demand: &Demand,
        now: u64,
    ) -> Option<Waits> {
        let leases = self.leases(limits.len()).iter();
        let has_all = limits.iter().zip(leases).all(|(checked, lease)| {
            let needed = demand.needed(checked);
            needed.is_none_or(|needed| lease.has(needed, now))
        });
        (!has_all).then(|| Waits::none(Why::Lease))
    }

    /// Spends what the call demands of the leases; returns their epochs.
    pub(crate) fn spend_leases(
        &mut self,
        limits: &[CheckedLimit],
        demand: &Demand,
    ) -> impl Iterator<Item = u64> {
        let leases = self.leases(limits.len()).iter_mut();
        let both = limits.iter().zip(leases);
        both.map(|(checked, lease)| lease.spend(demand.amount(checked)))
    }

    /// Whether nothing is lost if the state is dropped: nothing that was taken or reported still counts.
    pub(crate) fn is_evictable(&mut self, limits: &[CheckedLimit], now: u64) -> bool {
        let is_quiet = self.extra.as_deref_mut().is_none_or(|extra| {
            let budget = extra.budget.as_mut();
            extra.queue.is_none()
                && extra.leases.iter().all(|lease| lease.is_spent(now))
                && budget.is_none_or(|budget| budget.is_over(now))
        });
        is_quiet
            && limits
                .iter()
                .zip(self.gauges.iter())
                .all(|(checked, gauge)| {
                    // At the slowest rate and on a copy, because the tier of the caller is not known.
                    let mut meter = gauge.meter.clone();
                    meter.full_in(checked.slowest(), checked.now(now)) == 0
                })
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

    /// Takes what is left of each lease that has ended; also returns when the next one ends.
    pub(crate) fn end_leases(&mut self, now: u64) -> (Vec<(usize, Back)>, Option<u64>) {
        let Some(extra) = &mut self.extra else {
            return (Vec::new(), None);
        };
        let leases = extra.leases.iter_mut().enumerate();
        let ended = leases.filter_map(|(limit, lease)| Some((limit, lease.clear_if_over(now)?)));
        let ended = ended.collect();
        extra.is_cleaned_up = false;
        (ended, extra.next_clean_up(now))
    }

    /// Returns when the next lease ends, unless a task is already scheduled to give back what is left. The caller must
    /// schedule one.
    pub(crate) fn clean_up_leases(&mut self, now_nanos: u64) -> Option<u64> {
        let extra = self.extra.as_mut()?;
        (!extra.is_cleaned_up)
            .then(|| extra.next_clean_up(now_nanos))
            .flatten()
    }

    /// Records that this task could not be scheduled.
    pub(crate) fn clean_up_no_more(&mut self) {
        if let Some(extra) = &mut self.extra {
            extra.is_cleaned_up = false;
        }
    }

    /// The number of calls that wait.
    pub(crate) fn waiting(&self) -> usize {
        let queue = self.extra.as_ref().and_then(|extra| extra.queue.as_ref());
        queue.map_or(0, Queue::len)
    }

    /// Makes the head of the queue try again; returns its waker, to be woken without the lock because it runs foreign code.
    pub(crate) fn wake_head(&mut self, now: impl FnOnce() -> u64) -> Option<Waker> {
        self.queue()?.wake_head(now())
    }

    /// Makes all waiting calls check whether they can still be admitted; returns their wakers.
    pub(crate) fn wake_all(&mut self, now: impl FnOnce() -> u64) -> Vec<Waker> {
        let queue = self.queue();
        queue.map_or_else(Vec::new, |queue| queue.wake_all(now()))
    }

    pub(crate) fn queue(&mut self) -> Option<&mut Queue> {
        self.extra.as_mut()?.queue.as_mut()
    }

    pub(crate) fn queue_or_new(&mut self) -> &mut Queue {
        let extra = self.extra.get_or_insert_default();
        extra.queue.get_or_insert_default()
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
    fn next_clean_up(&mut self, now_nanos: u64) -> Option<u64> {
        let ends = self.leases.iter().filter_map(|lease| lease.ends(now_nanos));
        let next = ends.min();
        self.is_cleaned_up = next.is_some();
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::lease::Grant;

    /// The state of a key with leases that end at `untils`.
    fn state(untils: &[u64]) -> KeyState {
        let mut state = KeyState {
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
