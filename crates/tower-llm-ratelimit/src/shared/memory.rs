//! A store in memory, for tests: does what the scripts do on a server.

use std::{
    collections::{HashMap, hash_map::Entry},
    future::ready,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep, sleep_until};

use super::{
    backend::{
        Claim, LeaseHolder, Leasing, Settlement, Shared, Store, StoreFallback, StoredStatus,
        Taking, Terms, Verdict,
    },
    lease::Grant,
};
use crate::meter::{Meter, Now, nanos};

#[derive(Clone, Debug)]
pub(crate) struct MemoryStore {
    started: Instant,
    state: Arc<Mutex<State>>,
    next_id: Arc<AtomicU64>,
    /// How much later than a refusal the answer to a granted claim arrives.
    grants_late_by: Duration,
    lease: Option<Duration>,
    asked: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct State {
    meters: HashMap<String, Meter>,
    /// When each claim of a call was taken, until it is settled.
    holds: HashMap<u64, Vec<u64>>,
}

impl MemoryStore {
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            state: Arc::default(),
            next_id: Arc::default(),
            grants_late_by: Duration::ZERO,
            lease: None,
            asked: Arc::default(),
        }
    }

    pub(crate) fn grants_late_by(mut self, delay: Duration) -> Self {
        self.grants_late_by = delay;
        self
    }

    /// Each process leases parts of the limits for `time`.
    pub(crate) fn lease_for(mut self, time: Duration) -> Self {
        self.lease = Some(time);
        self
    }

    /// The limits of one of two processes.
    pub(crate) fn shared(self) -> Shared {
        Shared {
            lease: self.lease,
            store: Arc::new(self),
            without_store: Arc::default(),
            store_fallback: StoreFallback::FailClosed,
            processes: 2,
            asking: Arc::default(),
        }
    }

    /// How often it was asked.
    pub(crate) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The clock of the store, read once for all limits of a call.
    fn now_nanos(&self) -> u64 {
        nanos(self.started.elapsed())
    }

    fn try_take(&self, id: u64, claims: &[Claim]) -> Verdict<StoredStatus> {
        let (mut state, now) = (self.lock(), self.now_nanos());
        if let Some(blocked) = state.blocked(claims.iter(), now) {
            return blocked;
        }
        let (mut statuses, mut taken_at) = (Vec::new(), Vec::new());
        for claim in claims {
            let (meter, now) = (state.meter(claim), at(claim, now));
            taken_at.push(meter.take(&claim.rate, claim.amount, now));
            statuses.push(StoredStatus {
                remaining: meter.remaining(&claim.rate, now),
                full_in: Duration::from_nanos(meter.full_in(&claim.rate, now)),
            });
        }
        state.holds.insert(id, taken_at);
        Verdict::Granted(statuses)
    }

    fn try_lease(&self, terms: &[Terms]) -> Verdict<Grant> {
        let (mut state, now) = (self.lock(), self.now_nanos());
        for Terms {
            claim,
            back,
            charge,
            ..
        } in terms
        {
            let now = at(claim, now);
            let meter = state.meter(claim);
            meter.give_back(&claim.rate, back.epoch, back.amount);
            meter.take(&claim.rate, *charge, now);
        }
        if let Some(blocked) = state.blocked(terms.iter().map(|terms| &terms.claim), now) {
            return blocked;
        }
        let grants = terms.iter().map(|Terms { claim, want, .. }| {
            let (meter, now) = (state.meter(claim), at(claim, now));
            if claim.room == 0 {
                return Grant {
                    amount: 0,
                    epoch: 0,
                };
            }
            // Half of what is left stays for other processes.
            let most = (meter.remaining(&claim.rate, now) / 2).min(*want);
            let amount = claim.room.max(most);
            let epoch = meter.take(&claim.rate, amount, now);
            Grant { amount, epoch }
        });
        Verdict::Granted(grants.collect())
    }
}

impl State {
    fn meter(&mut self, claim: &Claim) -> &mut Meter {
        match self.meters.entry(claim.key.clone()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Meter::new(claim.kind)),
        }
    }

    /// The limit that blocks the call for the longest time.
    fn blocked<'a, T>(
        &mut self,
        claims: impl Iterator<Item = &'a Claim>,
        now: u64,
    ) -> Option<Verdict<T>> {
        let waits = claims.map(|claim| match claim.room {
            0 => Duration::ZERO,
            room if room > claim.rate.capacity => Duration::MAX,
            room => {
                let wait = self.meter(claim).wait(&claim.rate, room, at(claim, now));
                Duration::from_nanos(wait)
            }
        });
        let mut longest = (0, Duration::ZERO);
        for (limit, wait) in waits.enumerate() {
            if wait > longest.1 {
                longest = (limit, wait);
            }
        }
        let (limit, wait) = longest;
        (!wait.is_zero()).then_some(Verdict::Blocked { limit, wait })
    }
}

/// The time of a claim: by the clock of the store, and on the day that the claim names.
fn at(claim: &Claim, nanos: u64) -> Now {
    let mut today = claim.now.today;
    let left = today.ends_nanos.saturating_sub(claim.now.nanos);
    today.ends_nanos = nanos.saturating_add(left);
    Now { nanos, today }
}

impl Store for MemoryStore {
    fn take(&self, id: u64, claims: Arc<[Claim]>) -> Taking {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let verdict = self.try_take(id, &claims);
        let delay = match verdict {
            Verdict::Granted(_) => self.grants_late_by,
            Verdict::Blocked { .. } => Duration::ZERO,
        };
        Box::pin(async move {
            if !delay.is_zero() {
                sleep(delay).await;
            }
            Ok(verdict)
        })
    }

    fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    fn settle(&self, settlement: Settlement) {
        let (mut state, now) = (self.lock(), self.now_nanos());
        let held = state.holds.remove(&settlement.id);
        let used = settlement.used.iter();
        for (limit, (claim, &used)) in settlement.claims.iter().zip(used).enumerate() {
            let (meter, now) = (state.meter(claim), at(claim, now));
            match held.as_ref().map(|taken_at| taken_at[limit]) {
                Some(taken_at) if used < claim.amount => {
                    meter.give_back(&claim.rate, taken_at, claim.amount - used);
                }
                Some(_) => drop(meter.take(&claim.rate, used - claim.amount, now)),
                None if claim.returns => drop(meter.take(&claim.rate, used, now)),
                None => {}
            }
        }
    }

    fn is_settling(&self) -> bool {
        false
    }

    fn lease(&self, terms: Arc<[Terms]>) -> Leasing {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Box::pin(ready(Ok(self.try_lease(&terms))))
    }

    fn drop_request(&self, leasing: Leasing, terms: Arc<[Terms]>) {
        let store = self.clone();
        tokio::spawn(async move {
            if let Ok(Verdict::Granted(grants)) = leasing.await {
                let undone = terms.iter().zip(grants);
                store.adjust(undone.map(|(terms, grant)| terms.undo(grant)).collect());
            }
        });
    }

    fn adjust(&self, terms: Vec<Terms>) {
        let terms: Vec<_> = terms.iter().map(without_room).collect();
        self.try_lease(&terms);
    }

    fn clear_at(&self, key: Weak<dyn LeaseHolder>, at: Instant) -> bool {
        let store = self.clone();
        tokio::spawn(async move {
            let mut next = Some(at);
            while let Some(at) = next {
                sleep_until(at).await;
                let Some(key) = key.upgrade() else { return };
                let (terms, again_at) = key.end_leases();
                store.adjust(terms);
                next = again_at;
            }
        });
        true
    }

    fn unsettled(&self) -> u64 {
        0
    }
}

/// The terms that only refund and charge.
fn without_room(terms: &Terms) -> Terms {
    let mut terms = terms.clone();
    (terms.claim.room, terms.want) = (0, 0);
    terms
}
