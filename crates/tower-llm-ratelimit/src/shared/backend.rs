//! The store of limits that several processes share.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Weak, atomic::AtomicU64},
    time::Duration,
};

use tokio::time::Instant;

use tower_llm_core::Key;

use crate::{
    checked_limit::CheckedLimit,
    demand::Demand,
    meter::{Kind, Now, Rate},
    shared::lease::{Back, Grant},
    tier::Tier,
};

/// Limits that several processes share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn Store>,
    /// Number of calls that were decided without the store.
    pub(crate) without_store: Arc<AtomicU64>,
    pub(crate) store_fallback: StoreFallback,
    /// Number of processes.
    pub(crate) processes: u64,
    /// Maximum duration of a lease; `None` if every call claims from the store.
    pub(crate) lease: Option<Duration>,
    /// Held by each call that waits for the store's answer.
    pub(crate) asking: Arc<()>,
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

/// A store that several processes share. Its contract is one atomic step over all limits of a call.
///
/// A trait, so that another client can replace the current one; private until there is a second.
pub(crate) trait Store: Send + Sync + fmt::Debug {
    /// Takes `claims` from all limits, or nothing from any, under `id`.
    ///
    /// It resolves soon, whatever the state of the store. If the future is dropped or fails, the caller must still settle
    /// `id`.
    fn take(&self, id: u64, claims: Arc<[Claim]>) -> Taking;

    /// A new, unique id.
    fn next_id(&self) -> u64;

    /// Changes what was taken under an id to what was used, in the background.
    fn settle(&self, settlement: Settlement);

    /// Whether calls of this process have ended whose settlement is on its way.
    fn is_settling(&self) -> bool;

    /// Grants leases of all limits, or of none, and takes back what is left of earlier ones.
    fn lease(&self, terms: Arc<[Terms]>) -> Leasing;

    /// Waits for the answer to a dropped request, and gives back what it grants.
    fn drop_request(&self, leasing: Leasing, terms: Arc<[Terms]>);

    /// Refunds and charges, in the background.
    fn adjust(&self, terms: Vec<Terms>);

    /// Gives back what is left of a key's leases when they end `at` that time; `false` if there is no room for the job.
    fn clear_at(&self, key: Weak<dyn LeaseHolder>, at: Instant) -> bool;

    /// How many background jobs were not done, or may not have been done.
    fn unsettled(&self) -> u64;
}

/// A key that holds leases.
pub(crate) trait LeaseHolder: Send + Sync {
    /// Ends the leases that are over. Returns what goes back to the store, and when the next lease ends if others were granted
    /// meanwhile.
    fn end_leases(&self) -> (Vec<Terms>, Option<Instant>);
}

pub(crate) type Taking =
    Pin<Box<dyn Future<Output = Result<Verdict<StoredStatus>, StoreUnavailable>> + Send>>;

pub(crate) type Leasing =
    Pin<Box<dyn Future<Output = Result<Verdict<Grant>, StoreUnavailable>> + Send>>;

/// What a call claims of one limit of one key.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    /// The limit and the key, as text.
    pub(crate) key: String,
    pub(crate) kind: Kind,
    pub(crate) rate: Rate,
    pub(crate) now: Now,
    /// How much must be available; zero if the call uses none of it.
    pub(crate) room: u64,
    pub(crate) amount: u64,
    /// Whether it is refunded if its process is gone: tokens are, but requests were most likely sent.
    pub(crate) returns: bool,
}

/// The terms of a lease of one limit of one key.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    /// What is needed now.
    pub(crate) claim: Claim,
    /// The size of the lease.
    pub(crate) want: u64,
    /// What is left of the lease before.
    pub(crate) back: Back,
    /// What to charge in addition, whether there is room or not.
    pub(crate) charge: u64,
}

#[derive(Clone, Debug)]
pub(crate) enum Verdict<T> {
    /// The answers of all limits.
    Granted(Vec<T>),
    /// The limit with the longest wait.
    Blocked { limit: usize, wait: Duration },
}

/// The status of a shared limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoredStatus {
    pub(crate) remaining: u64,
    pub(crate) full_in: Duration,
}

/// What a call used of its claims, in their order.
#[derive(Clone, Debug)]
pub(crate) struct Settlement {
    pub(crate) id: u64,
    /// The time of the claim.
    pub(crate) since: Instant,
    pub(crate) claims: Arc<[Claim]>,
    pub(crate) used: Vec<u64>,
    /// Held until it is done, or given up.
    pub(crate) on_its_way: Option<Arc<()>>,
}

/// The store is unavailable.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoreUnavailable {
    /// Whether it may have run the command.
    pub(crate) may_have_run: bool,
}

/// What a call has taken from a store. If it is dropped before it is settled, everything is given back, even if it is not
/// known whether the store granted it.
#[derive(Debug)]
pub(crate) struct Holding {
    store: Arc<dyn Store>,
    settlement: Option<Settlement>,
    pub(crate) stored: Vec<StoredStatus>,
}

// === impl Terms ===

impl Terms {
    /// The part that goes back.
    pub(crate) fn without_need(&self) -> Self {
        let mut terms = self.clone();
        terms.claim.room = 0;
        terms.want = 0;
        terms
    }

    /// Whether nothing is given back or charged.
    pub(crate) fn is_empty(&self) -> bool {
        self.back.amount == 0 && self.charge == 0
    }

    /// The terms that give back a grant.
    pub(crate) fn undo(&self, grant: Grant) -> Self {
        let mut terms = self.without_need();
        terms.charge = 0;
        terms.back.amount = grant.amount;
        terms.back.epoch = grant.epoch;
        terms
    }
}

// === impl Demand ===

impl Demand {
    /// The claim on one limit of one key in a store.
    pub(crate) fn claim(&self, checked: &CheckedLimit, key: Option<&Key>, now: u64) -> Claim {
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

// === impl Holding ===

impl Holding {
    pub(crate) fn new(store: Arc<dyn Store>, claims: Arc<[Claim]>) -> Self {
        let id = store.next_id();
        let used = vec![0; claims.len()];
        Self {
            store,
            settlement: Some(Settlement {
                id,
                since: Instant::now(),
                claims,
                used,
                on_its_way: None,
            }),
            stored: Vec::new(),
        }
    }

    pub(crate) fn take(&self) -> Taking {
        let settlement = self.settlement.as_ref().expect("it is not settled yet");
        self.store
            .take(settlement.id, Arc::clone(&settlement.claims))
    }

    /// Records that nothing was taken.
    pub(crate) fn release(&mut self) {
        self.settlement = None;
    }

    /// Settles each limit to what was used.
    pub(crate) fn settle(mut self, used: impl Iterator<Item = u64>) {
        if let Some(settlement) = &mut self.settlement {
            for (to, used) in settlement.used.iter_mut().zip(used) {
                *to = used;
            }
        }
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        if let Some(settlement) = self.settlement.take() {
            self.store.settle(settlement);
        }
    }
}
