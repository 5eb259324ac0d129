//! The decision: all limits of a call at once, or none.

use std::{
    sync::{Arc, MutexGuard},
    task::Waker,
    time::Duration,
};

use http::HeaderMap;
use smallvec::SmallVec;
use tokio::time::Instant;
use tower_llm_core::{Caller, Described, Keyed, Registry};

use crate::{
    ExceedsLimit, Headers, RateLimited, Unit,
    cost::{Amounts, Estimate},
    error::Reason,
    group::{CheckedLimit, Clock, LimitGroup, Policy},
    headers::Statuses,
    key_state::{KeyState, KeyStates, State},
    observed::ObservedOutput,
    provider_budget::Epoch,
    reservation::Reservation,
    tier::{Tier, Tiers},
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

/// What a call demands.
#[derive(Clone, Debug)]
pub(crate) struct Demand {
    pub(crate) estimate: Estimate,
    pub(crate) tier: Tier,
    /// Where the length of its output is observed.
    pub(crate) observed: Option<Arc<Keyed<ObservedOutput>>>,
    /// Whose call it is; not read before the call is blocked.
    pub(crate) caller: Option<Caller>,
}

/// What a call was charged: in each limit, in the order of the keys and their limits.
#[derive(Debug)]
pub(crate) struct Charge {
    /// When each limit's meter was charged.
    pub(crate) epochs: SmallVec<[u32; 6]>,
    /// Where the provider's limits are observed, until the call is answered.
    pub(crate) budget: Option<Epoch>,
    /// Of shared limits, the lease that was charged; empty if there are none.
    pub(crate) lease_epochs: SmallVec<[u64; 2]>,
}

/// Why a call cannot be admitted now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocked {
    /// The key in whose queue it waits.
    pub(crate) group: usize,
    /// How long that key blocks it at most, unless other calls come.
    pub(crate) here_nanos: u64,
    /// The longest time that any key blocks it, by what is known to be used.
    pub(crate) known_nanos: u64,
    /// What does for that long, and of which key.
    pub(crate) why: Why,
    pub(crate) why_group: usize,
}

/// How long one key blocks a call, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Waits {
    /// At most, unless other calls come.
    nanos: u64,
    /// By what is known to be used.
    known_nanos: u64,
    why: Why,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Why {
    Limit(usize),
    Reported(Unit),
    Closed,
    Queue,
    /// The lease of a shared limit is used up.
    Lease,
    /// The store of shared limits is unavailable.
    Store,
}

// === impl Blocked ===

impl Blocked {
    /// Both of two keys block the call. It stays in the queue in which it has its turn if that one blocks it, and else waits
    /// for the one that blocks it longer. The longer of the times is told.
    fn and(self, other: Self, turns: Turns) -> Self {
        let stays = Some(self.group) == turns.here;
        let moves = Some(other.group) == turns.here || other.here_nanos > self.here_nanos;
        let here = if moves && !stays { other } else { self };
        let longest = if other.is_known_longer_than(&self) {
            other
        } else {
            self
        };
        Self {
            group: here.group,
            here_nanos: here.here_nanos,
            ..longest
        }
    }

    fn is_known_longer_than(&self, other: &Self) -> bool {
        (self.known_nanos, self.here_nanos) > (other.known_nanos, other.here_nanos)
    }
}

// === impl Waits ===

impl Waits {
    /// Blocked, but not for a time.
    fn none(why: Why) -> Self {
        Self {
            nanos: 0,
            known_nanos: 0,
            why,
        }
    }

    /// Both: the longer of the times, and why for that.
    fn and(self, other: Self) -> Self {
        let is_longer = (other.known_nanos, other.nanos) > (self.known_nanos, self.nanos);
        Self {
            nanos: self.nanos.max(other.nanos),
            known_nanos: self.known_nanos.max(other.known_nanos),
            why: if is_longer { other.why } else { self.why },
        }
    }
}

// === impl Engine ===

impl Engine {
    /// What `request` demands.
    ///
    /// # Errors
    ///
    /// If a limit never admits as much.
    pub(crate) fn demand(
        &self,
        request: &dyn Described,
        reports_usage: bool,
    ) -> Result<Demand, ExceedsLimit> {
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
                checked.refused();
                return Err(ExceedsLimit::new(checked.limit.clone(), needed, capacity));
            }
            // Only the estimate exceeds the limit: reserve the whole limit instead of rejecting the call for ever.
            demand.estimate.reserved.cap(unit, capacity);
        }
        Ok(demand)
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

    /// Reserves what is demanded of all keys, or nothing of any.
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
        let refused = RateLimited::new(reason, known(blocked.known_nanos));
        self.with_statuses(refused, keys, demand)
    }

    /// The error for a call that other calls were ahead of for as long as it could wait, at the key of `group`.
    pub(crate) fn waited(
        &self,
        keys: &KeyStates,
        demand: &Demand,
        group: usize,
        now: Instant,
    ) -> RateLimited {
        let wait = self.known_wait(keys, demand, now);
        let wait = wait.and_then(|blocked| known(blocked.known_nanos));
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

/// A time that is known: if nothing that is known blocks a call, only reservations do, or other calls are ahead of it.
fn known(wait_nanos: u64) -> Option<Duration> {
    let wait = Duration::from_nanos(wait_nanos);
    (!wait.is_zero() && wait_nanos < u64::MAX).then_some(wait)
}

/// The queues in which a call has had its turn.
///
/// If a call had its turn in one queue and is then blocked by another key, it does not go back behind the calls that joined
/// the first queue later.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Turns {
    /// The queue of which it is the head.
    here: Option<usize>,
    /// The queues of which it has been the head, a bit for each.
    had: u64,
}

impl Turns {
    /// It is the head of a queue.
    pub(crate) fn come(&mut self, group: usize) {
        self.here = Some(group);
        self.had |= Self::bit(group);
    }

    /// It waits in no queue, because it has been admitted elsewhere.
    pub(crate) fn everywhere(self) -> Self {
        Self {
            had: u64::MAX,
            ..self
        }
    }

    fn has(self, group: usize) -> bool {
        self.here == Some(group) || self.had & Self::bit(group) != 0
    }

    /// None for more kinds of key than there are bits: calls wait there again.
    fn bit(group: usize) -> u64 {
        u32::try_from(group)
            .ok()
            .and_then(|group| 1_u64.checked_shl(group))
            .unwrap_or(0)
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

// === impl Demand ===

impl Demand {
    /// What the call reserves of one limit.
    pub(crate) fn amount(&self, checked: &CheckedLimit) -> u64 {
        self.estimate.reserved.of(checked.limit.unit())
    }

    /// How much there must be of a limit; `None` if the call uses none of it.
    pub(crate) fn needed(&self, checked: &CheckedLimit) -> Option<u64> {
        self.estimate.needed(checked.limit.unit())
    }

    /// How long a key blocks the call, and why; `None` if it does not.
    fn waits(
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
            // Only these units of what others will use are known.
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

    /// Whether nothing waits, nothing was reported, and all limits have room: nearly always, and found fast.
    fn is_free(&self, keys: &KeyStates, states: &mut [MutexGuard<'_, State>], now: u64) -> bool {
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

    fn take(
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
