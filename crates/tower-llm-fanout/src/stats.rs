//! What a fan-out has done.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// What a fan-out has done; see [`FanoutLayer::stats`](crate::FanoutLayer::stats).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FanoutStats {
    /// Calls of callers.
    pub calls: u64,
    /// Branches after the first ones of their calls.
    pub extra: u64,
    /// Calls whose answer came from a branch after the first ones.
    pub won: u64,
    /// Branches that were given up because another one had the answer.
    pub superseded: u64,
    /// Extra branches that the [`Budget`](crate::Budget) did not allow.
    pub refused_by_budget: u64,
    /// How long the branches that were given up had run.
    pub wasted: Duration,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    calls: AtomicU64,
    extra: AtomicU64,
    won: AtomicU64,
    superseded: AtomicU64,
    refused_by_budget: AtomicU64,
    wasted_micros: AtomicU64,
}

impl FanoutStats {
    /// Extra branches for each call.
    #[must_use]
    pub fn extra_ratio(&self) -> f64 {
        match self.calls {
            0 => 0.0,
            calls => self.extra as f64 / calls as f64,
        }
    }
}

impl Counters {
    pub(crate) fn call(&self) {
        self.calls.fetch_add(1, Relaxed);
    }

    pub(crate) fn extra(&self) {
        self.extra.fetch_add(1, Relaxed);
    }

    pub(crate) fn won(&self) {
        self.won.fetch_add(1, Relaxed);
    }

    pub(crate) fn refused_by_budget(&self) {
        self.refused_by_budget.fetch_add(1, Relaxed);
    }

    /// A branch was given up after it had run this long.
    pub(crate) fn superseded(&self, ran: Duration) {
        self.superseded.fetch_add(1, Relaxed);
        let micros = u64::try_from(ran.as_micros()).unwrap_or(u64::MAX);
        self.wasted_micros.fetch_add(micros, Relaxed);
    }

    pub(crate) fn stats(&self) -> FanoutStats {
        FanoutStats {
            calls: self.calls.load(Relaxed),
            extra: self.extra.load(Relaxed),
            won: self.won.load(Relaxed),
            superseded: self.superseded.load(Relaxed),
            refused_by_budget: self.refused_by_budget.load(Relaxed),
            wasted: Duration::from_micros(self.wasted_micros.load(Relaxed)),
        }
    }
}
