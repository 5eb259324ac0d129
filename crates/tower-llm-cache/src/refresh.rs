//! Answers that are renewed before they expire, as by Caffeine's `refreshAfterWrite`.
//!
//! A hit near the end of an answer's life brings the request that renews it, so nothing is scanned and no request is held.

use std::{
    num::NonZeroU32,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::memory::Stored;

const MINUTE: Duration = Duration::from_secs(60);

/// Renews the answers that are asked for most, shortly before they expire, within a budget of calls a minute.
///
/// A hit in the last tenth of an answer's life sends the call again in a task, with the request of that hit, if the answer has
/// had enough hits by then. Its caller and all others get the answer that is stored. So do those after a renewal that
/// failed, which is not repeated: when the answer expires, the next caller waits as for any other.
///
/// The calls of the budget are evenly spaced. They are subject to the limits inside of the cache and are charged to no caller. With
/// a shared tier, a process first looks there for an answer that another process has renewed, which counts against the budget,
/// too. Embeddings are not renewed, nor is anything outside of a tokio runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "it does nothing until a builder takes it"]
pub struct RefreshAhead {
    calls_per_minute: NonZeroU32,
    min_hits: u32,
}

/// Decides which answers are renewed.
#[derive(Debug)]
pub(crate) struct Refresh {
    min_hits: u32,
    budget: Budget,
}

/// Calls at least `spacing` apart.
#[derive(Debug)]
struct Budget {
    spacing: Duration,
    next: Mutex<Option<Instant>>,
}

impl RefreshAhead {
    /// Renews at most this many answers a minute, evenly spaced, of those that were hit at least three times.
    pub const fn per_minute(calls: NonZeroU32) -> Self {
        Self {
            calls_per_minute: calls,
            min_hits: 3,
        }
    }

    /// Sets how many hits an answer needs since it was stored; 3 unless set. With 0 or 1, each answer that is asked for
    /// shortly before it expires is renewed.
    pub const fn min_hits(mut self, hits: u32) -> Self {
        self.min_hits = hits;
        self
    }

    pub(crate) fn build(self) -> Refresh {
        Refresh {
            min_hits: self.min_hits,
            budget: Budget::per_minute(self.calls_per_minute),
        }
    }
}

impl Refresh {
    /// Notes a hit, and whether it is the one that is to renew the answer.
    pub(crate) fn is_due(&self, stored: &Stored, now: Instant) -> bool {
        let hits = stored.count_hit();
        hits >= self.min_hits
            && stored.is_near_end(now)
            && stored.claim_renewal(|| self.budget.take(now))
    }
}

impl Budget {
    fn per_minute(calls: NonZeroU32) -> Self {
        // Rounded up: no minute has one call more.
        let nanos = MINUTE.as_nanos().div_ceil(calls.get().into());
        Self {
            spacing: Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)),
            next: Mutex::new(None),
        }
    }

    fn take(&self, now: Instant) -> bool {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        if next.is_some_and(|next| now < next) {
            return false;
        }
        *next = Some(now + self.spacing);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_minute_has_more_calls_than_the_budget(
            calls in 1u32..100,
            steps in prop::collection::vec(0u64..5_000, 1..500),
        ) {
            let budget = Budget::per_minute(NonZeroU32::new(calls).unwrap());
            let mut now = Instant::now();
            let mut taken = Vec::new();
            for step in steps {
                now += Duration::from_millis(step);
                if budget.take(now) {
                    taken.push(now);
                }
            }
            for &from in &taken {
                let minute = taken.iter().filter(|&&at| at >= from && at < from + MINUTE);
                prop_assert!(minute.count() <= calls as usize);
            }
        }
    }

    #[test]
    fn a_budget_in_constant_demand_is_used_up() {
        let start = Instant::now();
        for calls in [1, 7, 60] {
            let budget = Budget::per_minute(NonZeroU32::new(calls).unwrap());
            let times = (0..60_000).map(|ms| start + Duration::from_millis(ms));
            let taken = times.filter(|&now| budget.take(now)).count();
            assert_eq!(taken, calls as usize);
        }
    }
}
