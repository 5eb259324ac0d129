//! The decision: all limits of a call at once, or none.

use std::{
    sync::{Arc, MutexGuard},
    task::Waker,
    time::Duration,
};

use http::HeaderMap;
use smallvec::SmallVec;
use tokio::time::Instant;
use tower_llm_core::{Availability, Described, Entry, Registry};

use crate::{
    ExceedsLimit, Headers, RateLimited,
    blocked::{Blocked, Turns, Why},
    demand::{Charge, Demand},
    error::Reason,
    group::{CheckedLimit, Clock, LimitGroup, Policy},
    headers::Statuses,
    key_state::{KeyState, KeyStates, State},
    reservation::Reservation,
    tier::Tiers,
};

/// The limits of a layer, and the state of their keys.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) groups: Box<[(Arc<LimitGroup>, Registry<KeyState>)]>,
    pub(crate) tiers: Tiers,
    pub(crate) policy: Arc<Policy>,
    pub(crate) clock: Clock,
    pub(crate) max_waiting: usize,
    pub(crate) max_wait: Duration,
}

// === impl Engine ===

impl Engine {
    /// What `request` demands.
    ///
    /// # Errors
    ///
    /// If the call exceeds a limit even when that is unused.
    pub(crate) fn demand(
        &self,
        request: &dyn Described,
        reports_usage: bool,
    ) -> Result<Demand, ExceedsLimit> {
        let demand = self.try_demand(request, reports_usage);
        demand.map_err(|(exceeds, checked)| {
            checked.refused();
            exceeds
        })
    }

    /// As [`demand`](Self::demand), but counts no refusal.
    fn try_demand(
        &self,
        request: &dyn Described,
        reports_usage: bool,
    ) -> Result<Demand, (ExceedsLimit, &CheckedLimit)> {
        let (estimate, observed) = self.policy.estimate(request, reports_usage);
        let mut demand = Demand {
            estimate,
            tier: self.tiers.of(request),
            observed,
            caller: None,
        };
        for checked in self.groups.iter().flat_map(|(group, _)| &group.limits) {
            let (unit, capacity) = (checked.limit.unit(), checked.rate(demand.tier).capacity);
            if demand.amount(checked) <= capacity {
                continue;
            }
            let needed = self
                .policy
                .pricing
                .needed(request.call().as_deref())
                .of(unit);
            if needed > capacity {
                return Err((
                    ExceedsLimit::new(checked.limit.clone(), needed, capacity),
                    checked,
                ));
            }
            // Only the estimate exceeds the limit: reserve the whole limit instead of rejecting the call for ever.
            demand.estimate.reserved.cap(unit, capacity);
        }
        Ok(demand)
    }

    /// When the limits have room for the call, by what is known here. Limits that processes share are known to their store.
    pub(crate) fn would_admit(&self, entry: &Entry<'_>) -> Availability {
        let Ok(demand) = self.try_demand(entry, entry.reports_usage()) else {
            return Availability::Never;
        };
        let check = match &self.policy.shared {
            None => Check::All,
            Some(shared) if shared.lease.is_some() => Check::Leases,
            Some(_) => Check::AllButLimits,
        };
        let keys = self.keys(entry);
        let looked = self.look(&keys, &demand, entry.now(), Turns::default(), check);
        looked.map_or_else(Blocked::availability, |()| Availability::Now)
    }

    /// The states of the keys of `request`.
    pub(crate) fn keys(&self, request: &dyn Described) -> KeyStates {
        let mut keys = KeyStates::new();
        for (_, registry) in &self.groups {
            keys.push(registry.get(request));
        }
        keys
    }

    /// Tries to admit a call whose limits this process does not share.
    pub(crate) fn attempt_alone(
        &self,
        keys: &KeyStates,
        demand: &Demand,
        turns: Turns,
        now: Instant,
    ) -> Result<Reservation, Blocked> {
        let charge = self.admit(keys, demand, now, turns, Check::All)?;
        Ok(Reservation::new(keys.clone(), demand.clone(), charge))
    }

    /// Wakes every call that waits.
    pub(crate) fn wake_all(&self) {
        let mut wakers = Vec::new();
        for (group, keys) in &self.groups {
            keys.for_each(|_, key| wakers.extend(key.lock().wake_all(group.clock)));
        }
        // Not within `for_each`, which holds a lock: a waker runs foreign code.
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Reserves the demand in all keys, or nothing in any.
    ///
    /// The keys are locked together, always in the same order, so that two calls cannot each reserve a part. Calls in the
    /// queue of a key go first, unless `turns` say that the call has had its turn there.
    pub(crate) fn admit(
        &self,
        keys: &KeyStates,
        demand: &Demand,
        now: Instant,
        turns: Turns,
        check: Check,
    ) -> Result<Charge, Blocked> {
        let now = self.clock.nanos(now);
        let mut states = lock(keys);
        let is_free = check == Check::All && demand.is_free(keys, &mut states, now);
        if !is_free {
            Self::look_at(keys, &mut states, demand, now, turns, check)?;
        }
        Ok(demand.take(keys, &mut states, now, check))
    }

    /// As [`admit`](Self::admit), but reserves nothing.
    pub(crate) fn look(
        &self,
        keys: &KeyStates,
        demand: &Demand,
        now: Instant,
        turns: Turns,
        check: Check,
    ) -> Result<(), Blocked> {
        let mut states = lock(keys);
        Self::look_at(
            keys,
            &mut states,
            demand,
            self.clock.nanos(now),
            turns,
            check,
        )
    }

    fn look_at(
        keys: &KeyStates,
        states: &mut [MutexGuard<'_, State>],
        demand: &Demand,
        now: u64,
        turns: Turns,
        check: Check,
    ) -> Result<(), Blocked> {
        let mut blocked: Option<Blocked> = None;
        for (group, (key, state)) in keys.iter().zip(states).enumerate() {
            let waits = demand.waits(&key.group, state, turns.has(group), now, check);
            let Some(waits) = waits else { continue };
            let here = Blocked {
                group,
                here_nanos: waits.nanos,
                known_nanos: waits.known_nanos,
                why: waits.why,
                why_group: group,
            };
            blocked = Some(blocked.map_or(here, |before| before.and(here, turns)));
        }
        blocked.map_or(Ok(()), Err)
    }

    /// How long a call that waits is blocked by what is known to be used, in nanoseconds.
    pub(crate) fn known_wait(
        &self,
        keys: &KeyStates,
        demand: &Demand,
        now: Instant,
    ) -> Option<Blocked> {
        let check = match self.policy.shared {
            None => Check::All,
            Some(_) => Check::AllButLimits,
        };
        let turns = Turns::default().everywhere();
        self.look(keys, demand, now, turns, check).err()
    }

    /// The error for a call that does not wait, or not any longer.
    pub(crate) fn refuse(
        &self,
        keys: &KeyStates,
        demand: &Demand,
        blocked: &Blocked,
    ) -> RateLimited {
        let limits = &keys[blocked.why_group].group.limits;
        let reason = match blocked.why {
            Why::Limit(limit) => {
                limits[limit].refused();
                Reason::Limit(Box::new(limits[limit].limit.clone()))
            }
            Why::Reported(unit) => Reason::Reported(unit),
            Why::Closed => Reason::Closed,
            Why::Queue => Reason::QueueFull,
            Why::Lease | Why::Store => Reason::Store,
        };
        if !matches!(blocked.why, Why::Limit(_)) {
            limits.iter().for_each(CheckedLimit::refused);
        }
        let refused = RateLimited::new(reason, retry_after(blocked.known_nanos));
        self.with_statuses(refused, keys, demand)
    }

    /// The error for a call that waited as long as it may, behind other calls at the key of `group`.
    pub(crate) fn waited(
        &self,
        keys: &KeyStates,
        demand: &Demand,
        group: usize,
        now: Instant,
    ) -> RateLimited {
        let wait = self.known_wait(keys, demand, now);
        let wait = retry_after(wait.map_or(0, |blocked| blocked.known_nanos));
        let limits = &keys[group].group.limits;
        limits.iter().for_each(CheckedLimit::refused);
        let waited = Reason::Waited(self.max_wait);
        self.with_statuses(RateLimited::new(waited, wait), keys, demand)
    }

    /// The error, with headers that state the limits.
    fn with_statuses(
        &self,
        refused: RateLimited,
        keys: &KeyStates,
        demand: &Demand,
    ) -> RateLimited {
        let form = self.policy.headers;
        // The state of shared limits is known to their store alone.
        if form == Headers::None || self.policy.shared.is_some() {
            return refused;
        }
        let mut headers = HeaderMap::new();
        Statuses::of(keys, demand.tier, &[]).write(form, &mut headers);
        refused.with_headers(headers)
    }
}

/// Stated if no time is known: only reservations block the call, or other calls are ahead of it. They may end at any time, and
/// without a time most clients would try again within milliseconds.
const SOON: Duration = Duration::from_secs(1);

/// The time after which a refused call is to try again; `None` if it can never be admitted.
fn retry_after(known_nanos: u64) -> Option<Duration> {
    match known_nanos {
        0 => Some(SOON),
        u64::MAX => None,
        nanos => Some(Duration::from_nanos(nanos)),
    }
}

/// What can block a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    All,
    /// Queues, and what the provider reported.
    AllButLimits,
    /// Queues, what the provider reported, and the leases of shared limits.
    Leases,
}

fn lock(keys: &KeyStates) -> SmallVec<[MutexGuard<'_, State>; 3]> {
    let mut states = SmallVec::new();
    for key in keys {
        states.push(key.lock());
    }
    states
}
