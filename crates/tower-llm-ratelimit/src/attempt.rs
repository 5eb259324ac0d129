//! Admits calls whose limits several processes share: by a claim in the store for each call, or by leases.

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
use tower_llm_core::{Key, Keyed};

use crate::{
    blocked::{Blocked, Turns, Why},
    demand::Demand,
    engine::{Check, Engine},
    group::CheckedLimit,
    key_state::{Gauge, KeyState, KeyStates},
    lease::{Back, Grant},
    reservation::Reservation,
    store::{Claim, Holding, Leasing, Store, StoreUnavailable, Terms, Verdict},
    tier::Tier,
};

/// Limits that several processes share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn Store>,
    /// Number of calls that were decided without the store.
    pub(crate) without_store: Arc<AtomicU64>,
    pub(crate) store_fallback: StoreFallback,
    /// Number of processes.
    pub(crate) parts: u64,
    /// Maximum duration of a lease; `None` if every call claims from the store.
    pub(crate) lease: Option<Duration>,
}

/// What decides while the store of shared limits is unavailable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreFallback {
    /// Each process enforces its share of every limit: the limit divided by the number of processes. Together they admit at
    /// most the limit.
    ///
    /// In a period in which the store fails or recovers, they can admit more than the limit: each process counts only what
    /// it admitted itself before the failure, and the store does not count what was admitted without it.
    LocalShare,
    /// All calls are admitted.
    FailOpen,
    /// All calls are refused, or wait for the store to recover.
    FailClosed,
}

/// A request for leases. If it is dropped before the store answers, granted leases are given back.
struct LeaseRequest<'a> {
    store: &'a dyn Store,
    terms: Arc<[Terms]>,
    // `None` once it has answered.
    leasing: Option<Leasing>,
}

/// A call that renews the leases of these keys. Until it gets an answer or is dropped, other calls claim only what they
/// need.
struct Renewal<'a> {
    keys: &'a KeyStates,
    /// For each limit, when the renewal expires; `None` if another call renews it.
    until_nanos: Vec<Option<u64>>,
}

/// How soon the head of a queue checks again whether other processes have given something back, or whether the store has
/// recovered.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

// === impl Engine ===

impl Engine {
    /// Admits a call, if necessary with the store of shared limits.
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
        // Calls that wait in this process, and what the provider reported to it, come first.
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
        let may_refund = may_refund(shared, keys);
        match holding.take().await {
            Ok(Verdict::Granted(stored)) => {
                holding.stored = stored;
                // The provider may have reported something meanwhile; then the claim is given back.
                let turns = turns.everywhere();
                let charge =
                    self.admit(keys, demand, Instant::now(), turns, Check::AllButLimits)?;
                Ok(Reservation::new(keys.clone(), demand.clone(), charge).held_by(holding))
            }
            Ok(Verdict::Blocked { limit, wait }) => {
                holding.release();
                let may_refund = may_refund || shared.store.is_settling();
                Err(blocked_by_store(keys, demand, limit, wait, may_refund))
            }
            Err(error) => {
                if !error.may_have_run {
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
        let may_refund = may_refund(shared, keys);
        match LeaseRequest::new(store, Arc::clone(&terms)).await {
            Ok(Verdict::Granted(grants)) => {
                // The provider may have reported something meanwhile; then other calls use the lease.
                let turns = turns.everywhere();
                let charge = self.admit(keys, demand, Instant::now(), turns, Check::AllButLimits);
                let spent = charge.as_ref().ok().map(|_| demand);
                self.keep_what_is_left(shared, keys, demand.tier, spent, &grants, asked_at);
                let mut charge = charge?;
                charge.lease_epochs = grants.iter().map(|grant| grant.epoch).collect();
                Ok(Reservation::new(keys.clone(), demand.clone(), charge))
            }
            Ok(Verdict::Blocked { limit, wait }) => {
                let may_refund = may_refund || shared.store.is_settling();
                Err(blocked_by_store(keys, demand, limit, wait, may_refund))
            }
            Err(error) => {
                if !error.may_have_run {
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
            // This process's share may be too small, or used up for longer than the store is unavailable.
            Err(blocked) => Err(Blocked {
                here_nanos: blocked.here_nanos.min(nanos(LOOK_AGAIN)),
                known_nanos: blocked.known_nanos.min(nanos(LOOK_AGAIN)),
                ..blocked
            }),
        }
    }

    /// The terms on which the store is asked for a lease of each limit, and the renewal until it answers. What is left of
    /// the earlier leases goes back with them.
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
                // Many calls find the lease spent at the same moment; only one may renew it, or this process would starve
                // the others.
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

    /// Stores the granted leases, less what the call that asked for them `spent` itself.
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
                // Counted from the request, because the store cannot have granted it earlier.
                let until = asked_at_nanos.saturating_add(nanos(time));
                // Another call may have renewed the lease meanwhile.
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

/// Whether what calls of this process have reserved may be refunded in the store while it is asked.
fn may_refund(shared: &Shared, keys: &KeyStates) -> bool {
    let has_unsettled = |key: &Arc<Keyed<KeyState>>| {
        let state = key.lock();
        state.gauges.iter().any(Gauge::has_unsettled)
    };
    shared.store.is_settling() || keys.iter().any(has_unsettled)
}

/// `may_refund` says that what the store counts may have been refunded since.
fn blocked_by_store(
    keys: &KeyStates,
    demand: &Demand,
    limit: usize,
    wait: Duration,
    may_refund: bool,
) -> Blocked {
    let mut first = 0;
    for (group, key) in keys.iter().enumerate() {
        let limits = &key.group.limits;
        let index = limit - first;
        if let Some(checked) = limits.get(index) {
            let now = key.group.clock.now_nanos();
            let mut state = key.lock();
            let mut gauges = state.gauges.iter_mut();
            let gauge = gauges.nth(index);
            // What calls of this process reserved may be refunded; only the store knows what calls of others reserved.
            let alone = gauge
                .and_then(|gauge| gauge.settled_wait_in_flight(checked, demand, now, may_refund));
            return Blocked {
                group,
                // Other processes may give something back earlier, without notice.
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
    /// The claim on one limit of one key in a store.
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

    /// The terms that give `back` to the store; `None` if there is nothing to give back.
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
        // Taken out meanwhile, because a future that panics, as outside a runtime, must not be polled again.
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
