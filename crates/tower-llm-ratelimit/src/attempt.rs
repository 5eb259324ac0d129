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
    Unit,
    cell::Cells,
    engine::{Ask, Denied, Engine, Heed, Turns, Why},
    lease::{Back, Grant},
    reservation::Reservation,
    scope::Bound,
    store::{Away, Claim, Holding, Leasing, Store, Terms, Verdict},
    tier::Tier,
};

/// Limits that many processes share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn Store>,
    /// Calls that were decided without it.
    pub(crate) without_store: Arc<AtomicU64>,
    pub(crate) when_away: WhenAway,
    /// Among how many.
    pub(crate) parts: u64,
    /// For how long at most shares are had from the store; `None` if it is asked for every call.
    pub(crate) lease: Option<Duration>,
}

/// What decides while the store of shared limits cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum WhenAway {
    /// Each process by itself, with its share of every limit: together they let at most the limit through while the store
    /// is away.
    ///
    /// A process counts what it let through before, so that its own part of that is not forgotten. But a period in which
    /// the store goes or comes back can see more than the limit: what others let through before, each process does not
    /// know, and what was let through meanwhile the store is not told.
    LocalShare,
    /// Nothing: all calls are let through.
    Open,
    /// All calls are refused, or wait for it to come back.
    Closed,
}

/// A request for shares that the store may grant although nobody waits for them any more: then they go back.
struct Asking<'a> {
    store: &'a dyn Store,
    terms: Arc<[Terms]>,
    // `None` once it has answered.
    leasing: Option<Leasing>,
}

/// That somebody asks for shares of these cells, so that others ask only for what they need: until he has an answer, gets
/// none or leaves.
struct AsksForShares<'a> {
    cells: &'a Cells,
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
        cells: &Cells,
        ask: &Ask,
        turns: Turns,
    ) -> Result<Reservation, Denied> {
        let now = Instant::now();
        let Some(shared) = &self.policy.shared else {
            let taken = self.admit(cells, ask, now, turns, Heed::All)?;
            return Ok(Reservation::new(cells.clone(), ask.clone(), taken));
        };
        // Who waits here already, and what the provider has told this process, comes first.
        self.look(cells, ask, now, turns, Heed::AllButLimits)?;
        if shared.lease.is_some() {
            self.attempt_by_lease(shared, cells, ask, turns, now).await
        } else {
            self.attempt_by_claim(shared, cells, ask, turns, now).await
        }
    }

    async fn attempt_by_claim(
        &self,
        shared: &Shared,
        cells: &Cells,
        ask: &Ask,
        turns: Turns,
        now: Instant,
    ) -> Result<Reservation, Denied> {
        let claims = self.each_limit(cells, now, |bound, key, now| ask.claim(bound, key, now));
        let mut holding = Holding::new(Arc::clone(&shared.store), claims.into());
        match holding.take().await {
            Ok(Verdict::Granted(stands)) => {
                holding.stands = stands;
                // The provider may have told something meanwhile; what was granted goes back then.
                let turns = turns.everywhere();
                let taken = self.admit(cells, ask, Instant::now(), turns, Heed::AllButLimits)?;
                Ok(Reservation::new(cells.clone(), ask.clone(), taken).held_by(holding))
            }
            Ok(Verdict::Denied { limit, wait }) => {
                holding.release();
                Err(denied_by_store(cells, limit, wait))
            }
            Err(away) => {
                if !away.may_have_run {
                    holding.release();
                }
                drop(holding);
                self.attempt_without_store(shared, cells, ask, turns)
            }
        }
    }

    async fn attempt_by_lease(
        &self,
        shared: &Shared,
        cells: &Cells,
        ask: &Ask,
        turns: Turns,
        asked_at: Instant,
    ) -> Result<Reservation, Denied> {
        match self.admit(cells, ask, asked_at, turns, Heed::Shares) {
            Ok(taken) => return Ok(Reservation::new(cells.clone(), ask.clone(), taken)),
            Err(denied) if !matches!(denied.why, Why::Share) => return Err(denied),
            Err(_) => {}
        }
        let (terms, _asks_for_shares) = self.terms(shared, cells, ask, asked_at);
        let terms: Arc<[Terms]> = terms.into();
        let store = &*shared.store;
        match Asking::new(store, Arc::clone(&terms)).await {
            Ok(Verdict::Granted(grants)) => {
                // The provider may have told something meanwhile; what was granted is kept for others then.
                let turns = turns.everywhere();
                let taken = self.admit(cells, ask, Instant::now(), turns, Heed::AllButLimits);
                let spent = taken.as_ref().ok().map(|_| ask);
                self.keep_what_is_left(shared, cells, ask.tier, spent, &grants, asked_at);
                let mut taken = taken?;
                taken.leases = grants.iter().map(|grant| grant.mark).collect();
                Ok(Reservation::new(cells.clone(), ask.clone(), taken))
            }
            Ok(Verdict::Denied { limit, wait }) => Err(denied_by_store(cells, limit, wait)),
            Err(away) => {
                if !away.may_have_run {
                    store.adjust(terms.iter().map(Terms::without_need).collect());
                }
                self.attempt_without_store(shared, cells, ask, turns)
            }
        }
    }

    fn attempt_without_store(
        &self,
        shared: &Shared,
        cells: &Cells,
        ask: &Ask,
        turns: Turns,
    ) -> Result<Reservation, Denied> {
        shared.without_store.fetch_add(1, Ordering::Relaxed);
        let heed = match shared.when_away {
            WhenAway::LocalShare => Heed::All,
            WhenAway::Open => Heed::AllButLimits,
            WhenAway::Closed => return Err(Denied::until_looked_again()),
        };
        match self.admit(cells, ask, Instant::now(), turns, heed) {
            Ok(taken) => Ok(Reservation::new(cells.clone(), ask.clone(), taken)),
            // The share may be used up for long, or too small: the store may be back before.
            Err(denied) => Err(Denied {
                here_nanos: denied.here_nanos.min(nanos(LOOK_AGAIN)),
                wait_nanos: denied.wait_nanos.min(nanos(LOOK_AGAIN)),
                ..denied
            }),
        }
    }

    /// What is asked of the store for a share of each limit, and that it is until there is an answer. What was left of the
    /// shares before goes back with it.
    fn terms<'a>(
        &self,
        shared: &Shared,
        cells: &'a Cells,
        ask: &Ask,
        now: Instant,
    ) -> (Vec<Terms>, AsksForShares<'a>) {
        let now_nanos = self.clock.nanos(now);
        let mut asked = Vec::new();
        let mut until_nanos = Vec::new();
        for cell in cells {
            let mut state = cell.lock();
            let bounds = &cell.scope.bounds;
            let shares = state.shares(bounds.len()).iter_mut();
            asked.extend(bounds.iter().zip(shares).map(|(bound, share)| {
                // Many find the share spent at once: each of them would have one of its own, and nobody else would.
                let until = now_nanos.saturating_add(nanos(bound.lease(now_nanos)));
                let asks = share.may_ask(now_nanos, until);
                until_nanos.push(asks.then_some(until));
                let size = match asks {
                    true => bound.lease_size(ask.tier, shared.parts),
                    false => 0,
                };
                (share.clear(), size)
            }));
        }
        let mut asked = asked.into_iter();
        let terms = self.each_limit(cells, now, |bound, key, now| {
            let claim = ask.claim(bound, key, now);
            let (back, size) = asked.next().unwrap_or_default();
            Terms {
                want: claim.room.max(size),
                back,
                charge: 0,
                claim,
            }
        });
        (terms, AsksForShares { cells, until_nanos })
    }

    /// Keeps of the shares what the call that asked for them has not `spent` itself.
    fn keep_what_is_left(
        &self,
        shared: &Shared,
        cells: &Cells,
        tier: Tier,
        spent: Option<&Ask>,
        grants: &[Grant],
        asked_at: Instant,
    ) {
        let mut grants = grants.iter();
        let asked_at_nanos = self.clock.nanos(asked_at);
        let mut back = Vec::new();
        for cell in cells {
            let mut state = cell.lock();
            let bounds = &cell.scope.bounds;
            let shares = state.shares(bounds.len()).iter_mut();
            for ((bound, share), grant) in bounds.iter().zip(shares).zip(&mut grants) {
                let lease = bound.lease(asked_at_nanos);
                let spent = spent.map_or(0, |ask| ask.amount(bound));
                let left = Grant {
                    amount: grant.amount.saturating_sub(spent),
                    ..*grant
                };
                if left.amount == 0 {
                    continue;
                }
                // From when it was asked for: the store has not granted it before.
                let until = asked_at_nanos.saturating_add(nanos(lease));
                // Somebody else may have asked meanwhile.
                let before = share.replace(left, until, tier);
                back.extend(bound.give_back(cell.key(), before, asked_at_nanos));
            }
            let ends = state.look_after_shares(asked_at_nanos);
            drop(state);
            if let Some(ends) = ends
                && !shared
                    .store
                    .clear_at(Arc::downgrade(cell), self.clock.at(ends))
            {
                cell.lock().look_after_no_more();
            }
        }
        if !back.is_empty() {
            shared.store.adjust(back);
        }
    }

    fn each_limit<T>(
        &self,
        cells: &Cells,
        now: Instant,
        mut make: impl FnMut(&Bound, Option<&Key>, u64) -> T,
    ) -> Vec<T> {
        let now = self.clock.nanos(now);
        let mut made = Vec::new();
        for cell in cells {
            for bound in &cell.scope.bounds {
                made.push(make(bound, cell.key(), now));
            }
        }
        made
    }
}

fn denied_by_store(cells: &Cells, limit: usize, wait: Duration) -> Denied {
    let mut first = 0;
    for (scope, cell) in cells.iter().enumerate() {
        let limits = cell.scope.bounds.len();
        if limit < first + limits {
            return Denied {
                scope,
                why: Why::Limit(limit - first),
                // Others may give something back before, and not tell.
                here_nanos: nanos(wait.min(LOOK_AGAIN)),
                wait_nanos: nanos(wait),
            };
        }
        first += limits;
    }
    Denied::until_looked_again()
}

// === impl Denied ===

impl Denied {
    fn until_looked_again() -> Self {
        Self {
            scope: 0,
            why: Why::Store,
            here_nanos: nanos(LOOK_AGAIN),
            wait_nanos: nanos(LOOK_AGAIN),
        }
    }
}

// === impl Ask ===

impl Ask {
    /// What is asked of one limit of one key in a store.
    fn claim(&self, bound: &Bound, key: Option<&Key>, now: u64) -> Claim {
        let amount = self.amount(bound);
        Claim {
            room: amount.max(1),
            amount,
            ..bound.claim(key, self.tier, now)
        }
    }
}

// === impl Bound ===

impl Bound {
    /// A claim of nothing.
    pub(crate) fn claim(&self, key: Option<&Key>, tier: Tier, now: u64) -> Claim {
        Claim {
            key: self.store_key(key),
            kind: self.kind,
            rate: *self.rate(tier),
            now: self.now(now),
            room: 0,
            amount: 0,
            returns: self.limit.unit() != Unit::Requests,
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

// === impl AsksForShares ===

impl Drop for AsksForShares<'_> {
    fn drop(&mut self) {
        let mut until_nanos = self.until_nanos.iter();
        for cell in self.cells {
            let mut state = cell.lock();
            let shares = state.shares(cell.scope.bounds.len()).iter_mut();
            for (share, until) in shares.zip(&mut until_nanos) {
                if let Some(until) = *until {
                    share.was_asked_for(until);
                }
            }
        }
    }
}

// === impl Asking ===

impl<'a> Asking<'a> {
    fn new(store: &'a dyn Store, terms: Arc<[Terms]>) -> Self {
        Self {
            store,
            leasing: Some(store.lease(Arc::clone(&terms))),
            terms,
        }
    }
}

impl Future for Asking<'_> {
    type Output = Result<Verdict<Grant>, Away>;

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

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if let Some(leasing) = self.leasing.take() {
            self.store.forsake(leasing, Arc::clone(&self.terms));
        }
    }
}

pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
