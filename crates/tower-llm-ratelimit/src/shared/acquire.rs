//! Admits calls whose limits several processes share: by a claim in the store for each call, by leases, or without the store
//! while that is unavailable.

mod renewal;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::Instant;
use tower_llm_core::{Key, Keyed};

use crate::{
    blocked::{Blocked, QueuesPassed, Why},
    checked_limit::CheckedLimit,
    demand::Demand,
    gauge::Gauge,
    group::{Keys, LimitedKey},
    limiter::{Limiter, check_before_store, check_limits},
    meter::nanos,
    reservation::Reservation,
    shared::backend::{Holding, Shared, StoreFallback, Verdict},
};

/// How soon the head of a queue checks again whether other processes have given something back, or whether the store has
/// recovered.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

// === impl Limiter ===

impl Limiter {
    /// Admits a call, if necessary with the store of shared limits.
    pub(crate) async fn acquire(
        &self,
        shared: &Shared,
        keys: &Keys,
        demand: &Demand,
        passed: QueuesPassed,
    ) -> Result<Reservation, Blocked> {
        let now = Instant::now();
        // Calls that wait in this process, and what the provider reported to it, come first.
        self.look(
            check_before_store,
            keys,
            demand,
            passed,
            self.clock.nanos(now),
        )?;
        if shared.lease.is_some() {
            self.acquire_by_lease(shared, keys, demand, passed, now)
                .await
        } else {
            self.acquire_by_script(shared, keys, demand, passed, now)
                .await
        }
    }

    async fn acquire_by_script(
        &self,
        shared: &Shared,
        keys: &Keys,
        demand: &Demand,
        passed: QueuesPassed,
        now: Instant,
    ) -> Result<Reservation, Blocked> {
        let claims = self.each_limit(keys, now, |checked, key, now| {
            demand.claim(checked, key, now)
        });
        let mut holding = Holding::new(Arc::clone(&shared.store), claims.into());
        let may_refund = may_refund(shared, keys);
        let _asking = Arc::clone(&shared.asking);
        match holding.take().await {
            Ok(Verdict::Granted(stored)) => {
                holding.stored = stored;
                // The provider may have reported something meanwhile; then the claim is given back.
                let (passed, now) = (passed.and_all(), self.clock.now_nanos());
                let taken = self.take_if(check_before_store, keys, demand, passed, now)?;
                Ok(Reservation::new(keys.clone(), demand.clone(), taken).held_by(holding))
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
                self.acquire_without_store(shared, keys, demand, passed)
            }
        }
    }

    fn acquire_without_store(
        &self,
        shared: &Shared,
        keys: &Keys,
        demand: &Demand,
        passed: QueuesPassed,
    ) -> Result<Reservation, Blocked> {
        shared.without_store.fetch_add(1, Ordering::Relaxed);
        let check = match shared.store_fallback {
            StoreFallback::LocalShare => check_limits,
            StoreFallback::FailOpen => check_before_store,
            StoreFallback::FailClosed => return Err(Blocked::until_looked_again()),
        };
        match self.take_if(check, keys, demand, passed, self.clock.now_nanos()) {
            Ok(taken) => Ok(Reservation::new(keys.clone(), demand.clone(), taken)),
            // This process's share may be too small, or used up for longer than the store is unavailable.
            Err(blocked) => Err(Blocked {
                here_nanos: blocked.here_nanos.min(nanos(LOOK_AGAIN)),
                known_nanos: blocked.known_nanos.min(nanos(LOOK_AGAIN)),
                ..blocked
            }),
        }
    }

    fn each_limit<T>(
        &self,
        keys: &Keys,
        now: Instant,
        mut make: impl FnMut(&CheckedLimit, Option<&Key>, u64) -> T,
    ) -> Vec<T> {
        let now = self.clock.nanos(now);
        let mut made = Vec::new();
        for key in keys.iter() {
            for checked in &key.group.limits {
                made.push(make(checked, key.key(), now));
            }
        }
        made
    }
}

/// Whether what calls of this process have reserved may be refunded in the store while it is asked.
fn may_refund(shared: &Shared, keys: &Keys) -> bool {
    // The store may grant an earlier request, of which this process learns later than of the answer to this one.
    let others_ask = Arc::strong_count(&shared.asking) > 1;
    let has_unsettled = |key: &Arc<Keyed<LimitedKey>>| {
        let state = key.lock();
        state.gauges.iter().any(Gauge::has_unsettled)
    };
    others_ask || shared.store.is_settling() || keys.iter().any(has_unsettled)
}

/// `may_refund` says that what the store counts may have been refunded since.
fn blocked_by_store(
    keys: &Keys,
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

#[cfg(test)]
mod tests;
