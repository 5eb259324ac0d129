//! Admits calls by leases, and renews these.

use std::{
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use tokio::time::Instant;
use tower_llm_core::Keyed;

use super::{blocked_by_store, may_refund};
use crate::{
    blocked::{Blocked, QueuesPassed, Why},
    demand::Demand,
    group::{Keys, LimitedKey},
    limiter::{Limiter, check_before_store},
    meter::nanos,
    reservation::Reservation,
    shared::backend::{LeaseHolder, Leasing, Shared, Store, StoreUnavailable, Terms, Verdict},
    shared::lease::Grant,
    tier::Tier,
};

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
    keys: &'a Keys,
    /// For each limit, when the renewal expires; `None` if another call renews it.
    until_nanos: Vec<Option<u64>>,
}

// === impl Limiter ===

impl Limiter {
    pub(super) async fn acquire_by_lease(
        &self,
        shared: &Shared,
        keys: &Keys,
        demand: &Demand,
        passed: QueuesPassed,
        asked_at: Instant,
    ) -> Result<Reservation, Blocked> {
        match self.spend_leases(keys, demand, passed, self.clock.nanos(asked_at)) {
            Ok((taken, epochs)) => {
                let (keys, demand) = (keys.clone(), demand.clone());
                return Ok(Reservation::leased(keys, demand, taken, &epochs));
            }
            Err(blocked) if !matches!(blocked.why, Why::Lease) => return Err(blocked),
            Err(_) => {}
        }
        let (terms, _renewal) = self.terms(shared, keys, demand, asked_at);
        let terms: Arc<[Terms]> = terms.into();
        let store = &*shared.store;
        let may_refund = may_refund(shared, keys);
        let _asking = Arc::clone(&shared.asking);
        match LeaseRequest::new(store, Arc::clone(&terms)).await {
            Ok(Verdict::Granted(grants)) => {
                // The provider may have reported something meanwhile; then other calls use the lease.
                let (passed, now) = (passed.and_all(), self.clock.now_nanos());
                let taken = self.take_if(check_before_store, keys, demand, passed, now);
                let spent = taken.as_ref().ok().map(|_| demand);
                self.store_leases(shared, keys, demand.tier, spent, &grants, asked_at);
                let epochs: Vec<_> = grants.iter().map(|grant| grant.epoch).collect();
                let (keys, demand) = (keys.clone(), demand.clone());
                Ok(Reservation::leased(keys, demand, taken?, &epochs))
            }
            Ok(Verdict::Blocked { limit, wait }) => {
                let may_refund = may_refund || shared.store.is_settling();
                Err(blocked_by_store(keys, demand, limit, wait, may_refund))
            }
            Err(error) => {
                if !error.may_have_run {
                    store.adjust(terms.iter().map(Terms::without_need).collect());
                }
                self.acquire_without_store(shared, keys, demand, passed)
            }
        }
    }

    /// The terms on which the store is asked for a lease of each limit, and the renewal until it answers. What is left of
    /// the earlier leases goes back with them.
    fn terms<'a>(
        &self,
        shared: &Shared,
        keys: &'a Keys,
        demand: &Demand,
        now: Instant,
    ) -> (Vec<Terms>, Renewal<'a>) {
        let now_nanos = self.clock.nanos(now);
        let mut asked = Vec::new();
        let mut until_nanos = Vec::new();
        for key in keys.iter() {
            let mut state = key.lock();
            let limits = &key.group.limits;
            let leases = state.leases(limits.len()).iter_mut();
            asked.extend(limits.iter().zip(leases).map(|(checked, lease)| {
                // Many calls find the lease spent at the same moment; only one may renew it, or this process would starve
                // the others.
                let until = now_nanos.saturating_add(nanos(checked.lease_time(now_nanos)));
                let asks = lease.may_renew(now_nanos, until);
                until_nanos.push(asks.then_some(until));
                let size = match asks {
                    true => checked.lease_size(demand.tier, shared.processes),
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
    fn store_leases(
        &self,
        shared: &Shared,
        keys: &Keys,
        tier: Tier,
        spent: Option<&Demand>,
        grants: &[Grant],
        asked_at: Instant,
    ) {
        let mut grants = grants.iter();
        let asked_at_nanos = self.clock.nanos(asked_at);
        let mut back = Vec::new();
        for key in keys.iter() {
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
                    .clear_at(lease_holder(key), self.clock.at(ends))
            {
                key.lock().clean_up_no_more();
            }
        }
        if !back.is_empty() {
            shared.store.adjust(back);
        }
    }
}

impl LeaseHolder for Keyed<LimitedKey> {
    fn end_leases(&self) -> (Vec<Terms>, Option<Instant>) {
        let (clock, limits) = (self.group.clock, &self.group.limits);
        let now = clock.now_nanos();
        let (ended, next_end) = self.lock().end_leases(now);
        let ended = ended.into_iter();
        let left = ended.filter_map(|(limit, back)| limits[limit].give_back(self.key(), back, now));
        (left.collect(), next_end.map(|nanos| clock.at(nanos)))
    }
}

fn lease_holder(key: &Arc<Keyed<LimitedKey>>) -> Weak<dyn LeaseHolder> {
    Arc::downgrade(key) as Weak<dyn LeaseHolder>
}

// === impl Renewal ===

impl Drop for Renewal<'_> {
    fn drop(&mut self) {
        let mut until_nanos = self.until_nanos.iter();
        for key in self.keys.iter() {
            let mut state = key.lock();
            let leases = state.leases(key.group.limits.len()).iter_mut();
            for (lease, until) in leases.zip(&mut until_nanos) {
                if let Some(until) = *until {
                    lease.end_renewal(until);
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
            self.store.drop_request(leasing, Arc::clone(&self.terms));
        }
    }
}
