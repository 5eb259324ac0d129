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
    /// Branches of these calls.
    pub branches: u64,
    /// Branches that were sent beyond the planned ones: hedges, retries and failovers.
    pub extra: u64,
    /// Calls whose answer came from a branch after the first ones.
    pub won: u64,
    /// Branches that were given up because another one had the answer.
    pub superseded: u64,
    /// Calls for which the [`Budget`](crate::Budget) did not allow another branch.
    pub refused_by_budget: u64,
    /// Calls whose judge was asked.
    pub judged: u64,
    /// Those whose judge failed.
    pub judge_failed: u64,
    /// How long the branches that were given up had run.
    pub wasted: Duration,
    /// What those had used, in tokens: the estimates of their input, and the output that was seen, unless reported.
    pub wasted_tokens: u64,
}

// On cache lines of their own: each call reads what stands beside them.
#[repr(align(128))]
#[derive(Debug, Default)]
pub(crate) struct Counters {
    calls: AtomicU64,
    branches: AtomicU64,
    extra: AtomicU64,
    won: AtomicU64,
    superseded: AtomicU64,
    refused_by_budget: AtomicU64,
    judged: AtomicU64,
    judge_failed: AtomicU64,
    wasted_micros: AtomicU64,
    wasted_tokens: AtomicU64,
}

/// What one call adds to them, all at once: the threads contend once a call.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) branches: usize,
    pub(crate) extra: usize,
    pub(crate) won: bool,
    pub(crate) superseded: usize,
    pub(crate) refused_by_budget: bool,
    pub(crate) wasted: Duration,
    pub(crate) wasted_tokens: u64,
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
    pub(crate) fn add(&self, tally: &Tally) {
        let add = |counter: &AtomicU64, count: u64| {
            if count > 0 {
                counter.fetch_add(count, Relaxed);
            }
        };
        let micros = u64::try_from(tally.wasted.as_micros()).unwrap_or(u64::MAX);
        add(&self.calls, 1);
        add(&self.branches, tally.branches as u64);
        add(&self.extra, tally.extra as u64);
        add(&self.won, tally.won.into());
        add(&self.superseded, tally.superseded as u64);
        add(&self.refused_by_budget, tally.refused_by_budget.into());
        add(&self.wasted_micros, micros);
        add(&self.wasted_tokens, tally.wasted_tokens);
    }

    /// A judge was asked.
    pub(crate) fn judged(&self, has_failed: bool) {
        self.judged.fetch_add(1, Relaxed);
        self.judge_failed.fetch_add(has_failed.into(), Relaxed);
    }

    pub(crate) fn stats(&self) -> FanoutStats {
        FanoutStats {
            calls: self.calls.load(Relaxed),
            branches: self.branches.load(Relaxed),
            extra: self.extra.load(Relaxed),
            won: self.won.load(Relaxed),
            superseded: self.superseded.load(Relaxed),
            refused_by_budget: self.refused_by_budget.load(Relaxed),
            judged: self.judged.load(Relaxed),
            judge_failed: self.judge_failed.load(Relaxed),
            wasted: Duration::from_micros(self.wasted_micros.load(Relaxed)),
            wasted_tokens: self.wasted_tokens.load(Relaxed),
        }
    }
}
