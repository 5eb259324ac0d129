//! The decision: all limits of a call at once, or none.

use std::{
    sync::{Arc, MutexGuard},
    time::Duration,
};

use http::HeaderMap;
use smallvec::SmallVec;
use tokio::time::Instant;
use tower_llm_core::{Described, Keyed, Registry};

use crate::{
    ExceedsLimit, Headers, RateLimited, Unit,
    cost::Estimate,
    error::Reason,
    group::{CheckedLimit, Clock, LimitGroup, Policy},
    headers::Statuses,
    key_state::{KeyState, KeyStates, State},
    observed::ObservedOutput,
    provider_budget::Epoch,
    tier::{Tier, Tiers},
};

/// The limits of a layer, and what their keys have taken of them.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) groups: Box<[(Arc<LimitGroup>, Registry<KeyState>)]>,
    pub(crate) tiers: Tiers,
    pub(crate) policy: Arc<Policy>,
    pub(crate) clock: Clock,
    pub(crate) max_waiting: usize,
    pub(crate) max_wait: Duration,
}

/// What a call asks for.
#[derive(Clone, Debug)]
pub(crate) struct Demand {
    pub(crate) estimate: Estimate,
    pub(crate) tier: Tier,
    /// Where what it produces is to be learned.
    pub(crate) observed: Option<Arc<Keyed<ObservedOutput>>>,
}

/// What a call has taken: of each limit, in the order of the cells and their limits.
#[derive(Debug)]
pub(crate) struct Charge {
    /// Where each limit's meter has it.
    pub(crate) epochs: SmallVec<[u32; 6]>,
    /// Where the provider's limits are learned, until the call is answered.
    pub(crate) budget: Option<Epoch>,
    /// Of shared limits, in which lease it was taken; nothing where there are none.
    pub(crate) lease_epochs: SmallVec<[u64; 2]>,
}

/// Why a call cannot be admitted now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocked {
    /// The cell that held it up.
    pub(crate) group: usize,
    pub(crate) why: Why,
    /// How long that cell does.
    pub(crate) here_nanos: u64,
    /// How long any of them does.
    pub(crate) wait_nanos: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Why {
    Limit(usize),
    Reported(Unit),
    Closed,
    Queue,
    /// The share of a shared limit is spent.
    Lease,
    /// The store of shared limits is away.
    Store,
}

// === impl Engine ===

impl Engine {
    /// What `request` asks for.
    ///
    /// # Errors
    ///
    /// If it asks for more than there ever is.
    pub(crate) fn demand(&self, request: &dyn Described) -> Result<Demand, ExceedsLimit> {
        let (estimate, observed) = self.policy.estimate(request);
        let mut demand = Demand {
            estimate,
            tier: self.tiers.of(request),
            observed,
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
            // The rest is only expected of it: that makes it wait for all there is, and keeps it out for ever from nothing.
            demand.estimate.reserved.cap(unit, capacity);
        }
        Ok(demand)
    }

    /// The cells that `request` is counted in.
    pub(crate) fn keys(&self, request: &dyn Described) -> KeyStates {
        let mut keys = KeyStates::new();
        for (_, registry) in &self.groups {
            keys.push(registry.get(request));
        }
        keys
    }

    /// Takes what is asked for from all cells, or nothing from any.
    ///
    /// The cells are locked together, always in the same order, so that two calls cannot each take a part. Whoever waits
    /// in a cell's line goes first, unless `turns` say that the call came before.
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

    /// As [`admit`](Self::admit), but takes nothing.
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
        let mut wait_nanos = 0;
        for (group, (key, state)) in keys.iter().zip(states).enumerate() {
            let is_here = turns.here == Some(group);
            let waits = demand.blocked(&key.group, state, turns.has(group), now, check);
            let Some((here_nanos, why)) = waits else {
                continue;
            };
            wait_nanos = wait_nanos.max(here_nanos);
            // It stays in its line if that holds it up; else it is for the longest.
            let is_longer = |blocked: Blocked| {
                Some(blocked.group) != turns.here && here_nanos > blocked.here_nanos
            };
            if is_here || blocked.is_none_or(is_longer) {
                blocked = Some(Blocked {
                    group,
                    why,
                    here_nanos,
                    wait_nanos,
                });
            }
        }
        match blocked {
            Some(blocked) => Err(Blocked {
                wait_nanos,
                ..blocked
            }),
            None => Ok(()),
        }
    }

    /// The error for a call that is not going to wait any longer.
    pub(crate) fn refuse(
        &self,
        keys: &KeyStates,
        demand: &Demand,
        blocked: &Blocked,
    ) -> RateLimited {
        let limits = &keys[blocked.group].group.limits;
        let reason = match blocked.why {
            Why::Limit(limit) => {
                limits[limit].refused();
                Reason::Limit(Box::new(limits[limit].limit.clone()))
            }
            Why::Reported(unit) => Reason::Reported(unit),
            Why::Closed => Reason::Closed,
            Why::Queue => Reason::Queue,
            Why::Lease | Why::Store => Reason::Store,
        };
        if !matches!(blocked.why, Why::Limit(_)) {
            limits.iter().for_each(CheckedLimit::refused);
        }
        let refused = RateLimited::new(reason, known(blocked.wait_nanos));
        self.with_statuses(refused, keys, demand)
    }

    /// The error for a call whose turn did not come in time.
    pub(crate) fn waited(&self, keys: &KeyStates, demand: &Demand, group: usize) -> RateLimited {
        let key = &keys[group];
        let now = self.clock.now_nanos();
        let blocked = demand.blocked(&key.group, &mut key.lock(), true, now, Check::All);
        let wait = blocked.and_then(|(nanos, _)| known(nanos));
        key.group.limits.iter().for_each(CheckedLimit::refused);
        self.with_statuses(RateLimited::new(Reason::Queue, wait), keys, demand)
    }

    /// The error, with headers that say how the limits stand.
    fn with_statuses(
        &self,
        refused: RateLimited,
        keys: &KeyStates,
        demand: &Demand,
    ) -> RateLimited {
        let form = self.policy.headers;
        // How limits stand that many processes share only their store knows.
        if form == Headers::None || self.policy.shared.is_some() {
            return refused;
        }
        let mut headers = HeaderMap::new();
        Statuses::of(keys, demand.tier, &[]).write(form, &mut headers);
        refused.with_headers(headers)
    }
}

/// A wait that can be told: others go first where there is none to be seen, and no limit makes anybody wait for ever.
fn known(wait_nanos: u64) -> Option<Duration> {
    let wait = Duration::from_nanos(wait_nanos);
    (!wait.is_zero() && wait_nanos < u64::MAX).then_some(wait)
}

/// In whose lines a call's turn has come.
///
/// One that had its turn in a line, and was held up elsewhere, is not sent back behind those who came after it: whoever is
/// in that line now did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Turns {
    /// In whose line it is the first.
    here: Option<usize>,
    /// In whose lines it was, a bit for each cell.
    had: u64,
}

impl Turns {
    /// It is the first in the line before the cell of `scope`.
    pub(crate) fn come(&mut self, group: usize) {
        self.here = Some(group);
        self.had |= Self::bit(group);
    }

    /// It is not to wait in any line, because it has been let through elsewhere.
    pub(crate) fn everywhere(self) -> Self {
        Self {
            had: u64::MAX,
            ..self
        }
    }

    fn has(self, group: usize) -> bool {
        self.here == Some(group) || self.had & Self::bit(group) != 0
    }

    /// None for more kinds of key than there are bits: they just wait again.
    fn bit(group: usize) -> u64 {
        u32::try_from(group)
            .ok()
            .and_then(|group| 1_u64.checked_shl(group))
            .unwrap_or(0)
    }
}

/// What can deny a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    All,
    /// Who waits, and what the provider told.
    AllButLimits,
    /// Who waits, what the provider told, and the shares of shared limits.
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
    /// What is asked of one limit.
    pub(crate) fn amount(&self, checked: &CheckedLimit) -> u64 {
        self.estimate.reserved.of(checked.limit.unit())
    }

    /// How long a cell holds the call up, in nanoseconds, and why; `None` if it does not.
    fn blocked(
        &self,
        group: &LimitGroup,
        state: &mut State,
        has_turn: bool,
        now: u64,
        check: Check,
    ) -> Option<(u64, Why)> {
        let mut longest = state.budget().and_then(|budget| {
            let (wait, unit) = budget.wait(&self.estimate.reserved, now);
            (wait > 0).then(|| (wait, unit.map_or(Why::Closed, Why::Reported)))
        });
        if check == Check::Leases && longest.is_none() && !self.has_leases(group, state, now) {
            longest = Some((0, Why::Lease));
        }
        let (gauges, queue) = state.gauges_and_queue();
        let queue = queue.filter(|_| !has_turn);
        let limits = match check {
            Check::All => &group.limits[..],
            _ => &[],
        };
        for (limit, (checked, gauge)) in limits.iter().zip(gauges.iter_mut()).enumerate() {
            let ahead = queue.map_or(0, |queue| queue.ahead[limit]);
            let rate = checked.own_rate(self.tier);
            // Who asks for nothing, because it is charged afterwards, waits all the same for debts to be paid off.
            let amount = self.amount(checked).max(1);
            let wait = gauge
                .meter
                .wait_behind(rate, ahead, amount, checked.now(now));
            if wait > longest.map_or(0, |(longest, _)| longest) {
                longest = Some((wait, Why::Limit(limit)));
            }
        }
        match queue {
            Some(_) => Some((longest.map_or(0, |(wait, _)| wait), Why::Queue)),
            None => longest,
        }
    }

    /// Whether nobody waits, no provider has told anything, and all limits have room: nearly always, and soon seen.
    fn is_free(&self, keys: &KeyStates, states: &mut [MutexGuard<'_, State>], now: u64) -> bool {
        keys.iter().zip(states).all(|(key, state)| {
            let gauges = state.plain_gauges();
            gauges.is_some_and(|gauges| {
                let mut limits = key.group.limits.iter().zip(gauges.iter_mut());
                limits.all(|(checked, gauge)| {
                    gauge.has_room(checked, self.tier, self.amount(checked), now)
                })
            })
        })
    }

    fn has_leases(&self, group: &LimitGroup, state: &mut State, now: u64) -> bool {
        let leases = state.leases(group.limits.len()).iter();
        let mut leases = group.limits.iter().zip(leases);
        leases.all(|(checked, lease)| lease.has(self.amount(checked).max(1), now))
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
                // From the first call on, so that those under way are known when one is told something.
                charge.budget = Some(state.budget_or_new().take(&self.estimate.reserved, now));
            }
            for (checked, gauge) in key.group.limits.iter().zip(state.gauges.iter_mut()) {
                let rate = checked.own_rate(self.tier);
                charge
                    .epochs
                    .push(gauge.take(checked, rate, self.amount(checked), now));
            }
        }
        charge
    }
}
