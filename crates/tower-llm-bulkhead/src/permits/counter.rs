//! How many permits are in use, and how many there are.

use std::sync::atomic::Ordering;

#[cfg(not(all(test, bulkhead_loom)))]
use std::sync::atomic::AtomicU64;

#[cfg(all(test, bulkhead_loom))]
use ::loom::sync::atomic::AtomicU64;

/// The largest limit.
pub(crate) const MAX_LIMIT: usize = u32::MAX as usize;

/// The maximum number of calls, whatever they weigh.
pub(super) const MAX_CALLS: usize = (1 << 31) - 1;

/// The state, from its low end: 32 bits of what all calls weigh, 31 of how many there are, and `QUEUED`.
///
/// A call weighs at least one, and the total never exceeds the largest limit, so neither field overflows.
const ONE_CALL: u64 = 1 << 32;
const WEIGHT: u64 = ONE_CALL - 1;
const QUEUED: u64 = 1 << 63;

/// How much of a limit is in use, and whether calls wait.
#[derive(Debug)]
pub(super) struct Counter {
    state: AtomicU64,
    limit: AtomicU64,
}

impl Counter {
    /// Creates a counter with nothing in use; `limit` is at most [`MAX_LIMIT`].
    pub(super) fn new(limit: usize) -> Self {
        Self {
            state: AtomicU64::new(0),
            limit: AtomicU64::new(limit.min(MAX_LIMIT) as u64),
        }
    }

    /// Takes `weight` for a call if there is room and no call waits.
    pub(super) fn try_take(&self, weight: u32) -> bool {
        self.take_unless(QUEUED, weight)
    }

    /// Takes `weight` although calls wait; only under the queue's lock, for the call that is served.
    pub(super) fn take_in_turn(&self, weight: u32) -> bool {
        self.take_unless(0, weight)
    }

    /// Gives `weight` back; returns whether calls wait.
    pub(super) fn give_back(&self, weight: u32) -> bool {
        let taken = ONE_CALL + u64::from(weight);
        self.state.fetch_sub(taken, Ordering::AcqRel) & QUEUED != 0
    }

    /// Makes all calls join the queue from now on.
    pub(super) fn close(&self) {
        self.state.fetch_or(QUEUED, Ordering::AcqRel);
    }

    /// Ends that: the queue is empty.
    pub(super) fn reopen(&self) {
        self.state.fetch_and(!QUEUED, Ordering::AcqRel);
    }

    /// Whether there is room for `weight`, as of now.
    pub(super) fn has_room(&self, weight: u32) -> bool {
        self.room_in(self.state.load(Ordering::Acquire), weight)
    }

    /// Permits that are free, as of now.
    pub(super) fn free(&self) -> u64 {
        let in_use = self.state.load(Ordering::Acquire) & WEIGHT;
        self.limit.load(Ordering::Relaxed).saturating_sub(in_use)
    }

    /// Whether `try_take` would succeed now.
    pub(super) fn is_open_for(&self, weight: u32) -> bool {
        let state = self.state.load(Ordering::Relaxed);
        state & QUEUED == 0 && self.room_in(state, weight)
    }

    pub(super) fn set_limit(&self, limit: usize) {
        self.limit
            .store(limit.min(MAX_LIMIT) as u64, Ordering::Relaxed);
    }

    pub(super) fn limit(&self) -> usize {
        to_usize(self.limit.load(Ordering::Relaxed))
    }

    /// How many calls there are, and what they weigh.
    pub(super) fn in_use(&self) -> (usize, u64) {
        let state = self.state.load(Ordering::Relaxed);
        (to_usize((state & !QUEUED) / ONE_CALL), state & WEIGHT)
    }

    fn take_unless(&self, closed: u64, weight: u32) -> bool {
        let taken = ONE_CALL + u64::from(weight);
        let mut state = self.state.load(Ordering::Relaxed);
        while state & closed == 0 && self.room_in(state, weight) {
            match self.state.compare_exchange_weak(
                state,
                state + taken,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
        false
    }

    fn room_in(&self, state: u64, weight: u32) -> bool {
        let taken = state & WEIGHT;
        let fits = taken + u64::from(weight) <= self.limit.load(Ordering::Relaxed);
        // A call heavier than the whole limit is admitted when it is alone; otherwise it could never be admitted.
        let alone = taken == 0;
        (fits || alone) && (state & !QUEUED) / ONE_CALL < MAX_CALLS as u64
    }
}

fn to_usize(number: u64) -> usize {
    // At most `MAX_LIMIT`, which is one.
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(all(test, not(bulkhead_loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_largest_limit_is_not_taken_for_a_queue() {
        let counter = Counter::new(usize::MAX);
        assert_eq!(counter.limit(), MAX_LIMIT);
        assert!(counter.try_take(u32::MAX - 1));
        assert!(counter.try_take(1));
        assert_eq!(counter.in_use(), (2, u64::from(u32::MAX)));
        assert!(!counter.try_take(1));
        assert!(!counter.give_back(1));
        assert!(counter.try_take(1));
    }

    #[test]
    fn the_most_calls_are_not_taken_for_a_queue() {
        let counter = Counter::new(MAX_LIMIT);
        let all_but_one = (ONE_CALL + 1) * (MAX_CALLS as u64 - 1);
        counter.state.store(all_but_one, Ordering::Relaxed);
        assert!(counter.try_take(1));
        assert_eq!(counter.in_use(), (MAX_CALLS, MAX_CALLS as u64));
        assert!(!counter.try_take(1));
        counter.close();
        assert_eq!(counter.in_use(), (MAX_CALLS, MAX_CALLS as u64));
        assert!(counter.give_back(1));
    }

    #[test]
    fn a_call_heavier_than_the_limit_is_admitted_alone() {
        let counter = Counter::new(10);
        assert!(counter.try_take(u32::MAX));
        assert!(!counter.try_take(1));
        counter.give_back(u32::MAX);
        assert!(counter.try_take(1));
        assert!(!counter.try_take(10));
        assert!(counter.try_take(9));
        assert_eq!(counter.in_use(), (2, 10));
    }

    #[test]
    fn a_lower_limit_revokes_no_permits() {
        let counter = Counter::new(3);
        assert!((0..3).all(|_| counter.try_take(1)));
        counter.set_limit(1);
        for left in [2, 1] {
            counter.give_back(1);
            assert!(!counter.try_take(1));
            assert_eq!(counter.in_use(), (left, left as u64));
        }
        counter.give_back(1);
        assert!(counter.try_take(1));
        assert!(!counter.try_take(1));
    }
}
