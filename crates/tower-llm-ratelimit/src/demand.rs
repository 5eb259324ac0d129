//! What a call demands of its limits, and what it is charged.

use std::sync::{Arc, MutexGuard};

use smallvec::SmallVec;
use tower_llm_core::{Caller, Keyed};

use crate::{
    blocked::{Waits, Why},
    cost::{Amounts, Estimate},
    engine::Check,
    group::{CheckedLimit, LimitGroup},
    key_state::{KeyStates, State},
    observed::ObservedOutput,
    provider_budget::Epoch,
    tier::Tier,
};

/// What a call demands.
#[derive(Clone, Debug)]
pub(crate) struct Demand {
    pub(crate) estimate: Estimate,
    pub(crate) tier: Tier,
    /// Where the length of its output is observed.
    pub(crate) observed: Option<Arc<Keyed<ObservedOutput>>>,
    /// The caller; not read before the call is blocked.
    pub(crate) caller: Option<Caller>,
}

/// What a call was charged: in each limit, in the order of the keys and their limits.
#[derive(Debug)]
pub(crate) struct Charge {
    /// When each limit's meter was charged.
    pub(crate) epochs: SmallVec<[u32; 6]>,
    /// Where the provider's limits are observed, until the call is answered.
    pub(crate) budget: Option<Epoch>,
    /// The leases that were charged for shared limits; empty if there are none.
    pub(crate) lease_epochs: SmallVec<[u64; 2]>,
}

// === impl Demand ===

impl Demand {
    /// What the call reserves of one limit.
    pub(crate) fn amount(&self, checked: &CheckedLimit) -> u64 {
        self.estimate.reserved.of(checked.limit.unit())
    }

    /// How much of a limit must be available; `None` if the call uses none of it.
    pub(crate) fn needed(&self, checked: &CheckedLimit) -> Option<u64> {
        self.estimate.needed(checked.limit.unit())
    }

    /// How long a key blocks the call, and why; `None` if it does not.
    pub(crate) fn waits(
        &self,
        group: &LimitGroup,
        state: &mut State,
        has_turn: bool,
        now: u64,
        check: Check,
    ) -> Option<Waits> {
        let budget = state.budget();
        let reported = budget.and_then(|budget| budget.wait(&self.estimate, now));
        let mut longest = reported.map(|wait| Waits {
            nanos: wait.nanos,
            known_nanos: wait.known_nanos,
            why: wait.unit.map_or(Why::Closed, Why::Reported),
        });
        if check == Check::Leases && longest.is_none() && !self.has_leases(group, state, now) {
            longest = Some(Waits::none(Why::Lease));
        }
        let (gauges, queue) = state.gauges_and_queue();
        let queue = queue.filter(|_| !has_turn);
        let limits = match check {
            Check::All => &group.limits[..],
            _ => &[],
        };
        let ahead = match queue {
            // Only in exact units is the use of other calls known.
            Some(queue) if limits.iter().any(CheckedLimit::is_exact) => {
                queue.ahead(self.caller.as_ref())
            }
            _ => Amounts::NONE,
        };
        for (limit, (checked, gauge)) in limits.iter().zip(gauges.iter_mut()).enumerate() {
            let ahead = ahead.of(checked.limit.unit());
            let (nanos, known_nanos) = gauge.waits(checked, self, ahead, now);
            if nanos > 0 {
                let why = Why::Limit(limit);
                let waits = Waits {
                    nanos,
                    known_nanos,
                    why,
                };
                longest = Some(longest.map_or(waits, |longest| longest.and(waits)));
            }
        }
        match queue {
            Some(_) => Some(Waits {
                why: Why::Queue,
                ..longest.unwrap_or(Waits::none(Why::Queue))
            }),
            None => longest,
        }
    }

    /// The fast path: whether no call waits, nothing was reported, and all limits have room.
    pub(crate) fn is_free(
        &self,
        keys: &KeyStates,
        states: &mut [MutexGuard<'_, State>],
        now: u64,
    ) -> bool {
        keys.iter().zip(states).all(|(key, state)| {
            let gauges = state.plain_gauges();
            gauges.is_some_and(|gauges| {
                let mut limits = key.group.limits.iter().zip(gauges.iter_mut());
                limits.all(|(checked, gauge)| gauge.has_room(checked, self, now))
            })
        })
    }

    fn has_leases(&self, group: &LimitGroup, state: &mut State, now: u64) -> bool {
        let leases = state.leases(group.limits.len()).iter();
        let mut leases = group.limits.iter().zip(leases);
        leases.all(|(checked, lease)| {
            self.needed(checked)
                .is_none_or(|needed| lease.has(needed, now))
        })
    }

    pub(crate) fn take(
        &self,
        keys: &KeyStates,
        states: &mut [MutexGuard<'_, State>],
        now: u64,
        check: Check,
    ) -> Charge {
        let mut charge = Charge {
            epochs: SmallVec::new(),
            budget: None,
            lease_epochs: SmallVec::new(),
        };
        for (key, state) in keys.iter().zip(states) {
            state.admitted += 1;
            if check == Check::Leases {
                let limits = key.group.limits.iter();
                let leases = state.leases(limits.len()).iter_mut();
                let spent = limits
                    .zip(leases)
                    .map(|(checked, lease)| lease.spend(self.amount(checked)));
                charge.lease_epochs.extend(spent);
            }
            if key.group.observes {
                // From the first call on, so that the calls in flight are known when a response reports something.
                charge.budget = Some(state.budget_or_new().take(&self.estimate.reserved, now));
            }
            for (checked, gauge) in key.group.limits.iter().zip(state.gauges.iter_mut()) {
                charge.epochs.push(gauge.charge(checked, self, now));
            }
        }
        charge
    }
}
