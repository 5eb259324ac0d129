//! The decision: all limits of a call at once, or none.

use std::{
    sync::{Arc, MutexGuard},
    task::Waker,
    time::Duration,
};

use http::HeaderMap;
use smallvec::SmallVec;
use tower_llm_core::{Availability, Call, Described, Entry, Registry};

use crate::{
    ExceedsLimit, Headers, RateLimited,
    blocked::{Blocked, QueuesPassed, Waits, Why},
    checked_limit::CheckedLimit,
    demand::Demand,
    error::Reason,
    group::{Clock, Keys, LimitGroup, LimitedKey},
    key_state::{KeyState, Taken},
    output_lengths::{OutputLengths, UNTIL_OBSERVED},
    pricing::Pricing,
    quota_headers::Statuses,
    shared::backend::Shared,
    tier::Tiers,
};

/// The limits of a layer, and the state of their keys.
#[derive(Debug)]
pub(crate) struct Limiter {
    pub(crate) groups: Box<[(Arc<LimitGroup>, Registry<LimitedKey>)]>,
    pub(crate) tiers: Tiers,
    pub(crate) pricing: Pricing,
    pub(crate) observed: Registry<OutputLengths>,
    pub(crate) output_percentile: f64,
    pub(crate) headers: Headers,
    pub(crate) clock: Clock,
    pub(crate) max_waiting: usize,
    pub(crate) max_wait: Duration,
    /// Decides on limits that several processes share.
    pub(crate) shared: Option<Arc<Shared>>,
}

/// How long one key blocks a call, and why; `None` if it does not. `behind` says whether the calls in its queue go first.
pub(crate) type Check = fn(&LimitGroup, &mut KeyState, &Demand, bool, u64) -> Option<Waits>;

type States<'a> = SmallVec<[MutexGuard<'a, KeyState>; 3]>;

/// The check of limits on which this process decides by itself.
pub(crate) fn check_limits(
    group: &LimitGroup,
    state: &mut KeyState,
    demand: &Demand,
    behind: bool,
    now: u64,
) -> Option<Waits> {
    let waits = state.blocked_by_report(demand, now);
    let waits = state.blocked_by_limits(&group.limits, demand, behind, now, waits);
    state.blocked_by_queue(behind, waits)
}

/// The check of limits on which the store decides: only what comes before them.
pub(crate) fn check_before_store(
    _: &LimitGroup,
    state: &mut KeyState,
    demand: &Demand,
    behind: bool,
    now: u64,
) -> Option<Waits> {
    let waits = state.blocked_by_report(demand, now);
    state.blocked_by_queue(behind, waits)
}

/// The check of limits of which the store has granted leases.
pub(crate) fn check_leases(
    group: &LimitGroup,
    state: &mut KeyState,
    demand: &Demand,
    behind: bool,
    now: u64,
) -> Option<Waits> {
    let waits = state.blocked_by_report(demand, now);
    let waits = waits.or_else(|| state.blocked_by_leases(&group.limits, demand, now));
    state.blocked_by_queue(behind, waits)
}

// === impl Limiter ===

impl Limiter {
    /// The fast path: takes what the call demands if no call waits, no report blocks it and all limits have room.
    pub(crate) fn try_take(&self, keys: &Keys, demand: &Demand, now: u64) -> Option<Taken> {
        if let Keys::One([key]) = keys {
            let LimitGroup {
                limits, observes, ..
            } = &*key.group;
            return key.lock().try_take(limits, demand, *observes, now);
        }
        let mut states = lock(keys);
        let mut all = keys.iter().zip(&mut states);
        let at_nanos = all.try_fold(now, |latest, (key, state)| {
            if !state.is_open(demand, now) {
                return None;
            }
            let room_at = state.room_at(&key.group.limits, demand, now)?;
            Some(latest.max(room_at))
        })?;
        Some(take(keys, &mut states, demand, at_nanos))
    }

    /// When the limits have room for the call, by what is known here. Limits that processes share are known to their store.
    pub(crate) fn would_admit(&self, entry: &Entry<'_>) -> Availability {
        let mut demand = self.price(entry, entry.call(), entry.reports_usage());
        if self.fit(&mut demand, entry).is_err() {
            return Availability::Never;
        }
        let check = match &self.shared {
            None => check_limits,
            Some(shared) if shared.lease.is_some() => check_leases,
            Some(_) => check_before_store,
        };
        let (keys, now) = (Keys::of(&self.groups, entry), self.clock.nanos(entry.now()));
        let looked = self.look(check, &keys, &demand, QueuesPassed::default(), now);
        looked.map_or_else(Blocked::availability, |()| Availability::Now)
    }

    /// What `request` demands; not more than its limits admit.
    ///
    /// # Errors
    ///
    /// If the call exceeds a limit even when that is unused.
    pub(crate) fn demand(
        &self,
        request: &dyn Described,
        reports_usage: bool,
    ) -> Result<Demand, ExceedsLimit> {
        let call = request.call();
        let mut demand = self.price(request, call.as_deref(), reports_usage);
        self.fit(&mut demand, request).map_err(TooLarge::refuse)?;
        Ok(demand)
    }

    /// What `request` demands, even if that is more than a limit admits.
    #[inline]
    pub(crate) fn price(
        &self,
        request: &dyn Described,
        call: Option<&Call>,
        reports_usage: bool,
    ) -> Demand {
        let mut observed = None;
        let expected = || {
            let of_key = self.observed.get(request);
            let percentile = of_key.percentile(self.output_percentile);
            let expected = percentile.unwrap_or(UNTIL_OBSERVED);
            let maximum = call.and_then(Call::max_output_tokens);
            // An output whose maximum is below the expected length shows nothing about the length of others.
            if maximum.is_none_or(|maximum| expected <= maximum) {
                observed = Some(of_key);
            }
            expected
        };
        let estimate = self
            .pricing
            .estimate(call, reports_usage.then_some(expected));
        Demand {
            estimate,
            tier: self.tiers.of(request),
            observed,
            caller: None,
        }
    }

    /// Lowers an estimate that exceeds a limit to the limit, unless the call needs more than that.
    pub(crate) fn fit(
        &self,
        demand: &mut Demand,
        request: &dyn Described,
    ) -> Result<(), TooLarge<'_>> {
        for checked in self.groups.iter().flat_map(|(group, _)| &group.limits) {
            let (unit, capacity) = (checked.limit.unit(), checked.rate(demand.tier).capacity);
            if demand.amount(checked) <= capacity {
                continue;
            }
            let needed = self.pricing.needed(request.call().as_deref()).of(unit);
            if needed > capacity {
                return Err(TooLarge {
                    checked,
                    needed,
                    capacity,
                });
            }
            // Only the estimate exceeds the limit: reserve the whole limit instead of rejecting the call for ever.
            demand.estimate.reserved.cap(unit, capacity);
        }
        Ok(())
    }

    /// Takes what the call demands of all keys, or of none if `check` says that a key blocks the call.
    ///
    /// The keys are locked together, always in the same order, so that two calls cannot each take a part. Calls in the queue
    /// of a key go first, unless the call has passed that queue.
    pub(crate) fn take_if(
        &self,
        check: Check,
        keys: &Keys,
        demand: &Demand,
        passed: QueuesPassed,
        now: u64,
    ) -> Result<Taken, Blocked> {
        let mut states = lock(keys);
        let now = latest(keys, &states, demand, now);
        blocked_longest(check, keys, &mut states, demand, passed, now)?;
        Ok(take(keys, &mut states, demand, now))
    }

    /// The same by leases, which are spent; also returns their epochs, in the order of the keys and their limits.
    pub(crate) fn spend_leases(
        &self,
        keys: &Keys,
        demand: &Demand,
        passed: QueuesPassed,
        now: u64,
    ) -> Result<(Taken, SmallVec<[u64; 2]>), Blocked> {
        let mut states = lock(keys);
        let now = latest(keys, &states, demand, now);
        blocked_longest(check_leases, keys, &mut states, demand, passed, now)?;
        let mut epochs = SmallVec::new();
        for (key, state) in keys.iter().zip(&mut states) {
            epochs.extend(state.spend_leases(&key.group.limits, demand));
        }
        Ok((take(keys, &mut states, demand, now), epochs))
    }

    /// Returns what blocks a call, and takes nothing.
    pub(crate) fn look(
        &self,
        check: Check,
        keys: &Keys,
        demand: &Demand,
        passed: QueuesPassed,
        now: u64,
    ) -> Result<(), Blocked> {
        blocked_longest(check, keys, &mut lock(keys), demand, passed, now)
    }

    /// What blocks a call that waits, whatever its position in the queue.
    pub(crate) fn known_wait(&self, keys: &Keys, demand: &Demand, now: u64) -> Option<Blocked> {
        let check = match self.shared {
            None => check_limits,
            Some(_) => check_before_store,
        };
        let passed = QueuesPassed::default().and_all();
        self.look(check, keys, demand, passed, now).err()
    }

    /// Wakes every call that waits.
    pub(crate) fn wake_all(&self) {
        let mut wakers = Vec::new();
        for (group, keys) in &self.groups {
            keys.for_each(|_, key| {
                wakers.extend(key.lock().wake_all(|| group.clock.now_nanos()));
            });
        }
        // Not within `for_each`, which holds a lock: a waker runs foreign code.
        wakers.into_iter().for_each(Waker::wake);
    }

    /// The error for a call that does not wait, or not any longer.
    pub(crate) fn refuse(&self, keys: &Keys, demand: &Demand, blocked: &Blocked) -> RateLimited {
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
        keys: &Keys,
        demand: &Demand,
        group: usize,
        now: u64,
    ) -> RateLimited {
        let wait = self.known_wait(keys, demand, now);
        let wait = retry_after(wait.map_or(0, |blocked| blocked.known_nanos));
        let limits = &keys[group].group.limits;
        limits.iter().for_each(CheckedLimit::refused);
        let waited = Reason::Waited(self.max_wait);
        self.with_statuses(RateLimited::new(waited, wait), keys, demand)
    }

    /// The error, with headers that state the limits.
    fn with_statuses(&self, refused: RateLimited, keys: &Keys, demand: &Demand) -> RateLimited {
        // The state of shared limits is known to their store alone.
        if self.headers == Headers::None || self.shared.is_some() {
            return refused;
        }
        let mut headers = HeaderMap::new();
        Statuses::of(keys, demand.tier, &[]).write(self.headers, &mut headers);
        refused.with_headers(headers)
    }
}

/// A call that needs more than a limit ever admits.
pub(crate) struct TooLarge<'a> {
    checked: &'a CheckedLimit,
    needed: u64,
    capacity: u64,
}

impl TooLarge<'_> {
    /// Counts the refusal.
    pub(crate) fn refuse(self) -> ExceedsLimit {
        self.checked.refused();
        ExceedsLimit::new(self.checked.limit.clone(), self.needed, self.capacity)
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

fn lock(keys: &Keys) -> States<'_> {
    let mut states = SmallVec::new();
    for key in keys.iter() {
        states.push(key.lock());
    }
    states
}

/// `now`, or the latest time that a key knows: what a call takes, it takes of all limits at one time.
fn latest(keys: &Keys, states: &States<'_>, demand: &Demand, now: u64) -> u64 {
    let both = keys.iter().zip(states);
    both.fold(now, |now, (key, state)| {
        state.latest(&key.group.limits, demand.tier, now)
    })
}

/// What blocks a call for the longest time.
fn blocked_longest(
    check: Check,
    keys: &Keys,
    states: &mut States<'_>,
    demand: &Demand,
    passed: QueuesPassed,
    now: u64,
) -> Result<(), Blocked> {
    let mut blocked: Option<Blocked> = None;
    for (group, (key, state)) in keys.iter().zip(states).enumerate() {
        let behind = !passed.has(group);
        if let Some(waits) = check(&key.group, state, demand, behind, now) {
            let here = Blocked::at(group, waits);
            blocked = Some(blocked.map_or(here, |before| before.and(here, passed)));
        }
    }
    blocked.map_or(Ok(()), Err)
}

/// Takes what the call demands of all keys.
fn take(keys: &Keys, states: &mut States<'_>, demand: &Demand, now: u64) -> Taken {
    let mut in_flight = None;
    for (key, state) in keys.iter().zip(states) {
        let LimitGroup {
            limits, observes, ..
        } = &*key.group;
        in_flight = state.take(limits, demand, *observes, now).or(in_flight);
    }
    Taken {
        at_nanos: now,
        in_flight,
    }
}
