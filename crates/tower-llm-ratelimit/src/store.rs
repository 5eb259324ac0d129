//! Where limits are kept that many processes share.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::Instant;
use tower_llm_core::Keyed;

use crate::{
    key_state::KeyState,
    lease::{Back, Grant},
    limit::Rate,
    meter::{Kind, Now},
};

/// A store that many processes share. One atomic step over all limits of a call is its whole contract.
///
/// Ours, so that another client can take the place of the one there is; not public before there is one.
pub(crate) trait Store: Send + Sync + fmt::Debug {
    /// Takes what `claims` say from all limits, or nothing from any, under `id`.
    ///
    /// It answers soon, whatever becomes of the store. If nobody waits for the answer, or it does not come, the caller
    /// settles `id` all the same.
    fn take(&self, id: u64, claims: Arc<[Claim]>) -> Taking;

    /// An id that was not used before.
    fn next_id(&self) -> u64;

    /// Changes what was taken under an id to what was used; later, and without waiting.
    fn settle(&self, settlement: Settlement);

    /// Grants shares of all limits, or of none, and takes back what is left of others.
    fn lease(&self, terms: Arc<[Terms]>) -> Leasing;

    /// Waits for an answer in a caller's place, and gives back what it grants.
    fn forsake(&self, leasing: Leasing, terms: Arc<[Terms]>);

    /// Gives back and charges, later, and without waiting.
    fn adjust(&self, terms: Vec<Terms>);

    /// Gives back what is left of a cell's shares when their leases have ended, `at` that time; `false` if there is no room
    /// for it.
    fn clear_at(&self, key: Weak<Keyed<KeyState>>, at: Instant) -> bool;

    /// How often something that was to be done later was not, or nobody knows whether it was.
    fn unsettled(&self) -> u64;
}

pub(crate) type Taking =
    Pin<Box<dyn Future<Output = Result<Verdict<StoredStatus>, StoreUnavailable>> + Send>>;

pub(crate) type Leasing =
    Pin<Box<dyn Future<Output = Result<Verdict<Grant>, StoreUnavailable>> + Send>>;

/// What a call asks of one limit of one key.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    /// The limit and the key, as text.
    pub(crate) key: String,
    pub(crate) kind: Kind,
    pub(crate) rate: Rate,
    pub(crate) now: Now,
    /// What there must be room for; zero if the call uses none of it.
    pub(crate) room: u64,
    pub(crate) amount: u64,
    /// Whether it is refunded when the process is gone: tokens are, but requests were most likely sent.
    pub(crate) returns: bool,
}

/// On what terms a share of one limit of one key is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    /// What is needed at once.
    pub(crate) claim: Claim,
    /// As much is wanted as that, for a while.
    pub(crate) want: u64,
    /// What is left of a share before.
    pub(crate) back: Back,
    /// What was spent besides, whether there is room or not.
    pub(crate) charge: u64,
}

#[derive(Clone, Debug)]
pub(crate) enum Verdict<T> {
    /// What all limits say.
    Granted(Vec<T>),
    /// This limit has to be waited for longest.
    Blocked { limit: usize, wait: Duration },
}

/// How a shared limit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoredStatus {
    pub(crate) remaining: u64,
    pub(crate) full_in: Duration,
}

/// What a call has used of what it had claimed, in the order of its claims.
#[derive(Clone, Debug)]
pub(crate) struct Settlement {
    pub(crate) id: u64,
    /// When it was asked for.
    pub(crate) since: Instant,
    pub(crate) claims: Arc<[Claim]>,
    pub(crate) used: Vec<u64>,
}

/// The store cannot be reached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoreUnavailable {
    /// Whether it may have done what it was asked all the same.
    pub(crate) may_have_run: bool,
}

/// What a call has taken from a store. It is given back when this is dropped before it was settled, and so also when
/// nobody knows whether it was taken at all.
#[derive(Debug)]
pub(crate) struct Holding {
    store: Arc<dyn Store>,
    settlement: Option<Settlement>,
    pub(crate) stored: Vec<StoredStatus>,
}

// === impl Terms ===

impl Terms {
    /// Only what goes back.
    pub(crate) fn without_need(&self) -> Self {
        let mut terms = self.clone();
        terms.claim.room = 0;
        terms.want = 0;
        terms
    }

    /// Whether nothing goes back, and nothing is charged.
    pub(crate) fn is_nothing(&self) -> bool {
        self.back.amount == 0 && self.charge == 0
    }

    /// What gives a grant back.
    pub(crate) fn undo(&self, grant: Grant) -> Self {
        let mut terms = self.without_need();
        terms.charge = 0;
        terms.back.amount = grant.amount;
        terms.back.epoch = grant.epoch;
        terms
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
            }),
            stored: Vec::new(),
        }
    }

    pub(crate) fn take(&self) -> Taking {
        let settlement = self.settlement.as_ref().expect("it is not settled yet");
        self.store
            .take(settlement.id, Arc::clone(&settlement.claims))
    }

    /// Nothing was taken.
    pub(crate) fn release(&mut self) {
        self.settlement = None;
    }

    /// Sets what each limit is charged in the end.
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
