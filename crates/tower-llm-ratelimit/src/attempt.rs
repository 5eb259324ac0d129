//! Admitting calls whose limits many processes share: by asking the store for each, or by spending shares it granted.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;
use tower_llm_core::Key;

use crate::{
    blocked::{Blocked, Turns, Why},
    demand::Demand,
    engine::{Check, Engine},
    group::CheckedLimit,
    key_state::KeyStates,
    lease::{Back, Grant},
    reservation::Reservation,
    store::{Claim, Holding, Leasing, Store, StoreUnavailable, Terms, Verdict},
    tier::Tier,
};

/// Limits that many processes share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn Store>,
    /// Calls that were decided without it.
    pub(crate) without_store: Arc<AtomicU64>,
    pub(crate) store_fallback: StoreFallback,
    /// Among how many.
    pub(crate) parts: u64,
    /// For how long at most shares are had from the store; `None` if it is asked for every call.
    pub(crate) lease: Option<Duration>,
}

/// What decides while the store of shared limits is unavailable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreFallback {
    /// Each process enforces its share of every limit: the limit divided by the number of processes. Together they admit at
    /// most the limit while the store is unavailable.
    ///
    /// Each process counts what it admitted before. But in a period in which the store fails or recovers, more than the limit
    /// can be admitted: a process does not know what the others admitted before, and the store does not learn what was
    /// admitted meanwhile.
    LocalShare,
    /// All calls are admitted.
    FailOpen,
    /// All calls are refused, or wait for the store to recover.
    FailClosed,
}

/// A request for shares that the store may grant although nobody waits for them any more: then they go back.
struct LeaseRequest<'a> {
    store: &'a dyn Store,
    terms: Arc<[Terms]>,
    // `None` once it has answered.
    leasing: Option<Leasing>,
}

/// That somebody asks for shares of these cells, so that others ask only for what they need: until he has an answer, gets
/// none or leaves.
struct Renewal<'a> {
    keys: &'a KeyStates,
    /// Of each limit, until when he is taken to; `None` where another asks.
    until_nanos: Vec<Option<u64>>,
}

/// How soon the first in a line looks again at what other processes may have given back, or whether the store is there.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

// === impl Engine ===

impl Engine {
    /// Admits a call, if need be by asking the store of shared limits.
    pub(crate) async fn attempt(
        &self,
        keys: &KeyStates,
        demand: &Demand,
        turns: Turns,
    ) -> Result<Reservation, Blocked> {
        let now = Instant::now();
        let Some(shared) = &self.policy.shared else {
            return self.attempt_alone(keys, demand, turns, now);
        };
        // Who waits here already, and what the provider has told this process, comes first.
        self.look(keys, demand, now, turns, Check::AllButLimits)?;
        if shared.lease.is_some() {
            self.attempt_by_lease(shared, keys, demand, turns, now)
                .await
        } else {
            self.attempt_by_claim(shared, keys, demand, turns, now)
                .await
        }
    }

    async fn attempt_by_claim(
        &self,
        shared: &Shared,
        keys: &KeyStates,
        demand: &Demand,
        turns: Turns,
        now: Instant,
    ) -> Result<Reservation, Blocked> {
        let claims = self.each_limit(keys, now, |checked, key, now| {
            demand.claim(checked, key, now)
        });
        let mut holding = Holding::new(Arc::clone(&shared.store), claims.into());
        match holding.take().await {
            Ok(Verdict::Granted(stored)) => {
                holding.stored = stored;
                // The provider may have told something meanwhile; what was granted goes back then.
                let turns = turns.everywhere();
                let charge =
                    self.admit(keys, demand, Instant::now(), turns, Check::AllButLimits)?;
                Ok(Reservation::new(keys.clone(), demand.clone(), charge).held_by(holding))
            }
            Ok(Verdict::Blocked { limit, wait }) => {
                holding.release();
                Err(blocked_by_store(keys, demand, limit, wait))
            }
            Err(away) => {
                if !away.may_have_run {
                    holding.release();
                }
                drop(holding);
                self.attempt_without_store(shared, keys, demand, turns)
            }
        }
    }

    async fn attempt_by_lease(
        &self,
        shared: &Shared,
        keys: &KeyStates,
        demand: &Demand,
        turns: Turns,
        asked_at: Instant,
    ) -> Result<Reservation, Blocked> {
        match self.admit(keys, demand, asked_at, turns, Check::Leases) {
            Ok(charge) => return Ok(Reservation::new(keys.clone(), demand.clone(), charge)),
            Err(blocked) if !matches!(blocked.why, Why::Lease) => return Err(blocked),
            Err(_) => {}
        }
        let (terms, _renewal) = self.terms(shared, keys, demand, asked_at);
        let terms: Arc<[Terms]> = terms.into();
        let store = &*shared.store;
        match LeaseRequest::new(store, Arc::clone(&terms)).await {
            Ok(Verdict::Granted(grants)) => {
                // The provider may have told something meanwhile; what was granted is kept for others then.
                let turns = turns.everywhere();
                let charge = self.admit(keys, demand, Instant::now(), turns, Check::AllButLimits);
                let spent = charge.as_ref().ok().map(|_| demand);
                self.keep_what_is_left(shared, keys, demand.tier, spent, &grants, asked_at);
                let mut charge = charge?;
                charge.lease_epochs = grants.iter().map(|grant| grant.epoch).collect();
                Ok(Reservation::new(keys.clone(), demand.clone(), charge))
            }
            Ok(Verdict::Blocked { limit, wait }) => {
                Err(blocked_by_store(keys, demand, limit, wait))
            }
            Err(away) => {
                if !away.may_have_run {
                    store.adjust(terms.iter().map(Terms::without_need).collect());
                }
                self.attempt_without_store(shared, keys, demand, turns)
            }
        }
    }

    fn attempt_without_store(
        &self,
        shared: &Shared,
        keys: &KeyStates,
        demand: &Demand,
        turns: Turns,
    ) -> Result<Reservation, Blocked> {
        shared.without_store.fetch_add(1, Ordering::Relaxed);
        let check = match shared.store_fallback {
            StoreFallback::LocalShare => Check::All,
            StoreFallback::FailOpen => Check::AllButLimits,
            StoreFallback::FailClosed => return Err(Blocked::until_looked_again()),
        };
        match self.admit(keys, demand, Instant::now(), turns, check) {
            Ok(charge) => Ok(Reservation::new(keys.clone(), demand.clone(), charge)),
            // The share may be used up for long, or too small: the store may be back before.
            Err(blocked) => Err(Blocked {
                here_nanos: blocked.here_nanos.min(nanos(LOOK_AGAIN)),
                known_nanos: blocked.known_nanos.min(nanos(LOOK_AGAIN)),
                ..blocked
            }),
        }
    }

    /// What is asked of the store for a share of each limit, and that it is until there is an answer. What was left of the
    /// shares before goes back with it.
    fn terms<'a>(
        &self,
        shared: &Shared,
        keys: &'a KeyStates,
        demand: &Demand,
        now: Instant,
    ) -> (Vec<Terms>, Renewal<'a>) {
        let now_nanos = self.clock.nanos(now);
        let mut asked = Vec::new();
        let mut until_nanos = Vec::new();
        for key in keys {
            let mut state = key.lock();
            let limits = &key.group.limits;
            let leases = state.leases(limits.len()).iter_mut();
            asked.extend(limits.iter().zip(leases).map(|(checked, lease)| {
                // Many find the share spent at once: each of them would have one of its own, and nobody else would.
                let until = now_nanos.saturating_add(nanos(checked.lease_time(now_nanos)));
                let asks = lease.may_ask(now_nanos, until);
                until_nanos.push(asks.then_some(until));
                let size = match asks {
                    true => checked.lease_size(demand.tier, shared.parts),
                    false => 0,
                };
                (lease.clear(), size)
            }));
        }
        let mut asked = asked.into_iter();
        let terms = self.each_limit(keys, now, |checked, key, now| {
            let claim = demand.claim(checked, key, now);
            let (back, size) = asked.next().unwrap_or_default();
            Terms {
                want: claim.room.max(size),
                back,
                charge: 0,
                claim,
            }
        });
        (terms, Renewal { keys, until_nanos })
    }

    /// Keeps of the shares what the call that asked for them has not `spent` itself.
    fn keep_what_is_left(
        &self,
        shared: &Shared,
        keys: &KeyStates,
        tier: Tier,
        spent: Option<&Demand>,
        grants: &[Grant],
        asked_at: Instant,
    ) {
        let mut grants = grants.iter();
        let asked_at_nanos = self.clock.nanos(asked_at);
        let mut back = Vec::new();
        for key in keys {
            let mut state = key.lock();
            let limits = &key.group.limits;
            let leases = state.leases(limits.len()).iter_mut();
            for ((checked, lease), grant) in limits.iter().zip(leases).zip(&mut grants) {
                let time = checked.lease_time(asked_at_nanos);
                let spent = spent.map_or(0, |demand| demand.amount(checked));
                let left = Grant {
                    amount: grant.amount.saturating_sub(spent),
                    ..*grant
                };
                if left.amount == 0 {
                    continue;
                }
                // From when it was asked for: the store has not granted it before.
                let until = asked_at_nanos.saturating_add(nanos(time));
                // Somebody else may have asked meanwhile.
                let before = lease.replace(left, until, tier);
                back.extend(checked.give_back(key.key(), before, asked_at_nanos));
            }
            let ends = state.clean_up_leases(asked_at_nanos);
            drop(state);
            if let Some(ends) = ends
                && !shared
                    .store
                    .clear_at(Arc::downgrade(key), self.clock.at(ends))
            {
                key.lock().clean_up_no_more();
            }
        }
        if !back.is_empty() {
            shared.store.adjust(back);
        }
    }

    fn each_limit<T>(
        &self,
        keys: &KeyStates,
        now: Instant,
        mut make: impl FnMut(&CheckedLimit, Option<&Key>, u64) -> T,
    ) -> Vec<T> {
        let now = self.clock.nanos(now);
        let mut made = Vec::new();
        for key in keys {
            for checked in &key.group.limits {
                made.push(make(checked, key.key(), now));
            }
        }
        made
    }
}

fn blocked_by_store(keys: &KeyStates, demand: &Demand, limit: usize, wait: Duration) -> Blocked {
    let mut first = 0;
    for (group, key) in keys.iter().enumerate() {
        let limits = &key.group.limits;
        let index = limit - first;
        if let Some(checked) = limits.get(index) {
            let now = key.group.clock.now_nanos();
            let mut state = key.lock();
            let mut gauges = state.gauges.iter_mut();
            let gauge = gauges.nth(index);
            // What this process has in flight may be refunded; what others have is known to the store alone.
            let alone = gauge.and_then(|gauge| gauge.settled_wait_in_flight(checked, demand, now));
            return Blocked {
                group,
                // Other processes may give something back before, without a notice.
                here_nanos: nanos(wait.min(LOOK_AGAIN)),
                known_nanos: nanos(wait).min(alone.unwrap_or(u64::MAX)),
                why: Why::Limit(index),
                why_group: group,
            };
        }
        first += limits.len();
    }
    Blocked::until_looked_again()
}

// === impl Blocked ===

impl Blocked {
    fn until_looked_again() -> Self {
        Self {
            group: 0,
            why: Why::Store,
            why_group: 0,
            here_nanos: nanos(LOOK_AGAIN),
            known_nanos: nanos(LOOK_AGAIN),
        }
    }
}

// === impl Demand ===

impl Demand {
    /// What is asked of one limit of one key in a store.
    fn claim(&self, checked: &CheckedLimit, key: Option<&Key>, now: u64) -> Claim {
        Claim {
            room: self.needed(checked).unwrap_or(0),
            amount: self.amount(checked),
            ..checked.claim(key, self.tier, now)
        }
    }
}

// === impl CheckedLimit ===

impl CheckedLimit {
    /// A claim of nothing.
    pub(crate) fn claim(&self, key: Option<&Key>, tier: Tier, now: u64) -> Claim {
        Claim {
            key: self.store_key(key),
            kind: self.kind,
            rate: *self.rate(tier),
            now: self.now(now),
            room: 0,
            amount: 0,
            returns: !self.is_exact(),
        }
    }

    /// What gives `back` to the store, if it is anything.
    pub(crate) fn give_back(&self, key: Option<&Key>, back: Back, now: u64) -> Option<Terms> {
        (back.amount > 0).then(|| Terms {
            claim: self.claim(key, back.tier, now),
            back,
            charge: 0,
            want: 0,
        })
    }
}

// === impl Renewal ===

impl Drop for Renewal<'_> {
    fn drop(&mut self) {
        let mut until_nanos = self.until_nanos.iter();
        for key in self.keys {
            let mut state = key.lock();
            let leases = state.leases(key.group.limits.len()).iter_mut();
            for (lease, until) in leases.zip(&mut until_nanos) {
                if let Some(until) = *until {
                    lease.was_asked_for(until);
                }
            }
        }
    }
}

// === impl LeaseRequest ===

impl<'a> LeaseRequest<'a> {
    fn new(store: &'a dyn Store, terms: Arc<[Terms]>) -> Self {
        Self {
            store,
            leasing: Some(store.lease(Arc::clone(&terms))),
            terms,
        }
    }
}

impl Future for LeaseRequest<'_> {
    type Output = Result<Verdict<Grant>, StoreUnavailable>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Not there meanwhile: one that panics, as outside a runtime, is polled by nobody again.
        let mut leasing = self.leasing.take().expect("polled after it was ready");
        let polled = leasing.as_mut().poll(cx);
        if polled.is_pending() {
            self.leasing = Some(leasing);
        }
        polled
    }
}

impl Drop for LeaseRequest<'_> {
    fn drop(&mut self) {
        if let Some(leasing) = self.leasing.take() {
            self.store.forsake(leasing, Arc::clone(&self.terms));
        }
    }
}

pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
