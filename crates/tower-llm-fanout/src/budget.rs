//! How many extra calls are allowed.

use std::{
    fmt,
    sync::{Arc, OnceLock, atomic::Ordering::Relaxed},
};

use tokio::time::Instant;
use tower_llm_core::ConfigError;

use crate::{
    Delay,
    sync::{AtomicI64, AtomicU64},
};

/// What one call is worth: a ratio is exact to a millionth.
const CALL: i64 = 1_000_000;

/// What can be saved up, and what is there at first.
const MOST: i64 = 10 * CALL;

/// How many extra calls (hedges, retries, failovers) are allowed for each call that callers make.
///
/// Each call of a caller pays the ratio in; each extra call takes one out, and does not start if less is there. Clones share
/// their account: give one budget to all that call the same provider, so that extra calls of all kinds together stay within
/// it. Branches that were planned, such as those of a race or a map, cost nothing.
///
/// With a ratio of 0.1, a provider that fails gets at most 1.1 calls for each call, and besides those the reserve.
///
/// ```
/// use tower_llm_fanout::Budget;
///
/// let budget = Budget::new(0.2)?;
/// assert!(Budget::new(1.5).is_err());
/// # let _ = budget;
/// # Ok::<(), tower_llm_core::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct Budget(Arc<Account>);

struct Account {
    /// Of a call, in millionths.
    ratio: i64,
    balance: AtomicI64,
    reserve: Option<Reserve>,
}

/// What slow traffic may use besides: a token bucket, in millionths of a call.
struct Reserve {
    per_second: f64,
    epoch: OnceLock<Instant>,
    /// Nanos since `epoch` up to which the reserve is used.
    used_until: AtomicU64,
}

// === impl Budget ===

impl Budget {
    /// Allows extra calls up to this ratio of calls, from 0 to 1, and one each second besides: slow traffic would wait for long
    /// until it may retry once. At most 10 extra calls are saved up, and so many are
    /// there at first.
    ///
    /// # Errors
    ///
    /// If the ratio is not between 0 and 1.
    pub fn new(ratio: f64) -> Result<Self, ConfigError> {
        Self::with_reserve(ratio, 1.0)
    }

    /// The same with another reserve, in extra calls a second; 0 for none.
    ///
    /// # Errors
    ///
    /// If the ratio is not between 0 and 1, or the reserve neither 0 nor between 0.001 and 1,000.
    pub fn with_reserve(ratio: f64, per_second: f64) -> Result<Self, ConfigError> {
        if !(0.0..=1.0).contains(&ratio) {
            return Err(ConfigError::new("budget", ratio, "it must be from 0 to 1"));
        }
        if per_second != 0.0 && !(0.001..=1_000.0).contains(&per_second) {
            let reason = "it must be 0, or from 0.001 to 1000 a second";
            return Err(ConfigError::new("budget reserve", per_second, reason));
        }
        let reserve = (per_second > 0.0).then(|| Reserve {
            per_second,
            epoch: OnceLock::new(),
            used_until: AtomicU64::new(0),
        });
        Ok(Self(Arc::new(Account {
            ratio: (ratio * CALL as f64).round() as i64,
            balance: AtomicI64::new(MOST),
            reserve,
        })))
    }

    /// A budget with a ratio that is known to be right.
    pub(crate) fn of(ratio: f64) -> Self {
        Self::new(ratio).expect("the ratio is between 0 and 1")
    }

    /// What a hedge with this delay may use: the ratio that the delay aims at, and nothing besides.
    pub(crate) fn for_hedge(delay: &Delay) -> Option<Self> {
        match delay.ratio() {
            // A ratio that is wrong is reported when the layer is built.
            Some(ratio) => Self::with_reserve(ratio, 0.0).ok(),
            None => Some(Self::of(0.1)),
        }
    }

    /// A caller makes a call.
    pub(crate) fn deposit(&self) {
        let Account { ratio, balance, .. } = &*self.0;
        // What is saved up is full most of the time: then nothing is written.
        if *ratio > 0 && balance.load(Relaxed) < MOST {
            // In one step: of two deposits that exceed it together, each would take out what both are over.
            let put = |balance: i64| (balance < MOST).then(|| (balance + ratio).min(MOST));
            let _ = balance.fetch_update(Relaxed, Relaxed, put);
        }
    }

    /// An extra call is to start; returns whether it may.
    pub(crate) fn withdraw(&self, now: Instant) -> bool {
        let balance = &self.0.balance;
        let take = |balance: i64| (balance >= CALL).then_some(balance - CALL);
        balance.fetch_update(Relaxed, Relaxed, take).is_ok()
            || self
                .0
                .reserve
                .as_ref()
                .is_some_and(|reserve| reserve.take(now))
    }

    /// An extra call was not sent.
    pub(crate) fn refund(&self) {
        let balance = &self.0.balance;
        let put = |balance: i64| (balance < MOST).then(|| (balance + CALL).min(MOST));
        let _ = balance.fetch_update(Relaxed, Relaxed, put);
    }
}

impl Reserve {
    /// One second's worth may be saved up.
    fn take(&self, now: Instant) -> bool {
        let epoch = *self.epoch.get_or_init(|| now);
        let now = now.saturating_duration_since(epoch).as_nanos();
        let now = u64::try_from(now).unwrap_or(u64::MAX / 2);
        let one = (1e9 / self.per_second) as u64;
        let saved = one.max(1_000_000_000);
        let take = |used: u64| {
            // GCRA: what was saved before that is forfeit.
            let from = used.max((now + one).saturating_sub(saved));
            (from <= now).then_some(from + one)
        };
        self.used_until.fetch_update(Relaxed, Relaxed, take).is_ok()
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let balance = self.0.balance.load(Relaxed) as f64 / CALL as f64;
        f.debug_struct("Budget")
            .field("ratio", &(self.0.ratio as f64 / CALL as f64))
            .field("balance", &balance)
            .finish_non_exhaustive()
    }
}
