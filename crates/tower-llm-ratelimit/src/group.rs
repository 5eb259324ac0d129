//! The limits of one kind of key, and the state of each key.

use std::{
    fmt, mem,
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tower_llm_core::{Described, Evictable, Keyed, Registry};

use crate::{
    Headers, checked_limit::CheckedLimit, key_state::KeyState, pricing::Pricing,
    shared::backend::Store,
};

/// The limits of one kind of key, and how calls are charged.
#[derive(Debug)]
pub(crate) struct LimitGroup {
    pub(crate) limits: Box<[CheckedLimit]>,
    pub(crate) clock: Clock,
    pub(crate) pricing: Pricing,
    /// The headers that state the limits.
    pub(crate) headers: Headers,
    /// The store of limits that other processes share; it alone knows what remains.
    pub(crate) store: Option<Arc<dyn Store>>,
    /// Whether the limits that the provider reports are enforced for these keys.
    pub(crate) observes: bool,
    /// Whether every limit is of an [exact](crate::Unit::is_exact) unit.
    pub(crate) is_exact: bool,
    /// The counts of evicted keys.
    pub(crate) evicted: Evicted,
}

/// The state of one key, behind its lock, and its group.
pub(crate) struct LimitedKey {
    pub(crate) group: Arc<LimitGroup>,
    // A std mutex, not tokio's: it is held for a few additions and never across an await.
    state: Mutex<KeyState>,
}

/// The keys of a call, in the order of their groups, which is also the order in which they are locked; never empty.
#[derive(Clone, Debug)]
pub(crate) enum Keys {
    One([Arc<Keyed<LimitedKey>>; 1]),
    Two([Arc<Keyed<LimitedKey>>; 2]),
    Three([Arc<Keyed<LimitedKey>>; 3]),
    More(Box<[Arc<Keyed<LimitedKey>>]>),
}

#[derive(Debug)]
pub(crate) struct Evicted {
    admitted: AtomicU64,
    consumed: Box<[AtomicU64]>,
}

/// Time since the limiter was built.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

// === impl Keys ===

impl Keys {
    /// Finds the keys of `request`.
    pub(crate) fn of(
        groups: &[(Arc<LimitGroup>, Registry<LimitedKey>)],
        request: &dyn Described,
    ) -> Self {
        match groups {
            [(_, a)] => Self::One([a.get(request)]),
            [(_, a), (_, b)] => Self::Two([a, b].map(|keys| keys.get(request))),
            [(_, a), (_, b), (_, c)] => Self::Three([a, b, c].map(|keys| keys.get(request))),
            more => Self::More(more.iter().map(|(_, keys)| keys.get(request)).collect()),
        }
    }
}

impl Deref for Keys {
    type Target = [Arc<Keyed<LimitedKey>>];

    fn deref(&self) -> &Self::Target {
        match self {
            Self::One(keys) => keys,
            Self::Two(keys) => keys,
            Self::Three(keys) => keys,
            Self::More(keys) => keys,
        }
    }
}

// === impl LimitedKey ===

impl LimitedKey {
    pub(crate) fn new(group: Arc<LimitGroup>) -> Self {
        let state = Mutex::new(KeyState::new(&group.limits));
        Self { group, state }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, KeyState> {
        // Nothing that can panic runs while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Evictable for LimitedKey {
    fn is_evictable(&self) -> bool {
        let now_nanos = self.group.clock.now_nanos();
        self.lock().is_evictable(&self.group.limits, now_nanos)
    }
}

impl Drop for LimitedKey {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.group.evicted.add(state);
    }
}

impl fmt::Debug for LimitedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimitedKey").finish_non_exhaustive()
    }
}

const _: () = assert!(
    mem::size_of::<LimitedKey>() <= 152,
    "a key's memory is promised to be small"
);

// === impl Evicted ===

impl Evicted {
    pub(crate) fn new(limits: usize) -> Self {
        Self {
            admitted: AtomicU64::new(0),
            consumed: (0..limits).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    fn add(&self, state: &KeyState) {
        self.admitted.fetch_add(state.admitted, Ordering::Relaxed);
        for (sum, gauge) in self.consumed.iter().zip(state.gauges.iter()) {
            sum.fetch_add(gauge.consumed, Ordering::Relaxed);
        }
    }

    pub(crate) fn admitted(&self) -> u64 {
        self.admitted.load(Ordering::Relaxed)
    }

    pub(crate) fn consumed(&self, limit: usize) -> u64 {
        self.consumed[limit].load(Ordering::Relaxed)
    }
}

// === impl Clock ===

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    pub(crate) fn now_nanos(self) -> u64 {
        self.nanos(Instant::now())
    }

    pub(crate) fn at(self, nanos: u64) -> Instant {
        self.0 + Duration::from_nanos(nanos)
    }

    pub(crate) fn nanos(self, at: Instant) -> u64 {
        // 64 bits are 584 years.
        let since = at.saturating_duration_since(self.0);
        since.as_secs() * 1_000_000_000 + u64::from(since.subsec_nanos())
    }
}
