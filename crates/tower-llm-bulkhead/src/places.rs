//! A number of places, and the queue for them.
//!
//! A place that is free is taken by one compare-and-swap and given back by one subtraction: a semaphore that keeps
//! its waiters in a mutex costs more than everything else this crate does. Only when calls wait does a lock come
//! in:
//!
//! - While the queue is not empty, `QUEUED` is set in the state. It makes the state larger than any limit, so
//!   that nobody takes a place past those who wait, and whoever gives one back sees it.
//! - While it is set, places are taken only under the lock. Whoever gives one back subtracts first and then, under
//!   the lock, hands free places to the longest waiting. Whoever joins sets it first and then, under the same
//!   lock, looks for a free place once more. Both change the same word, so one of the two sees the other.
//!
//! Wakers are woken and dropped with the lock free. They run code that is not ours: one may be the last that holds a
//! task, and the task a future that waits here too.

use std::{
    collections::BTreeMap,
    mem,
    sync::{PoisonError, atomic::Ordering},
    task::{Poll, Waker},
};

#[cfg(not(all(test, bulkhead_loom)))]
use std::sync::{Mutex, MutexGuard, atomic::AtomicU64};

#[cfg(all(test, bulkhead_loom))]
use ::loom::sync::{Mutex, MutexGuard, atomic::AtomicU64};

/// Most places there can be.
pub(crate) const MAX_LIMIT: usize = u32::MAX as usize;

const QUEUED: u64 = 1 << 63;

#[derive(Debug)]
pub(crate) struct Places {
    /// Places that are taken, and `QUEUED`.
    state: AtomicU64,
    limit: u64,
    queue: Mutex<Queue>,
    refused: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    /// Who waits, by ticket: the lowest has waited longest. Who is not in it any more has been given a place.
    waiting: BTreeMap<u64, Waker>,
    next_ticket: u64,
}

/// What became of an attempt to join the queue.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Joined {
    /// A place became free just now, and is taken.
    Admitted,
    /// In the queue, with this ticket.
    Waiting(u64),
    /// There is no room in the queue.
    Full,
}

impl Places {
    /// `limit` places, none taken. At most [`MAX_LIMIT`] of them.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            state: AtomicU64::new(0),
            limit: limit.min(MAX_LIMIT) as u64,
            queue: Mutex::default(),
            refused: AtomicU64::new(0),
        }
    }

    /// Takes a place if one is free and nobody waits for it.
    pub(crate) fn try_acquire(&self) -> bool {
        let mut state = self.state.load(Ordering::Relaxed);
        while state < self.limit {
            match self.state.compare_exchange_weak(
                state,
                state + 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
        false
    }

    /// Gives a place back, to the longest waiting if there is one.
    pub(crate) fn release(&self) {
        let before = self.state.fetch_sub(1, Ordering::AcqRel);
        if before & QUEUED != 0 {
            // One at a time, and woken with the lock free.
            while let Some(waker) = self.hand_over() {
                waker.wake();
            }
        }
    }

    /// Joins the queue, unless a place has become free or `max_waiting` others are in it.
    pub(crate) fn join(&self, max_waiting: usize, waker: &Waker) -> Joined {
        let mut queue = self.queue();
        let state = self.state.fetch_or(QUEUED, Ordering::AcqRel);
        let joined = if queue.waiting.is_empty() && (state & !QUEUED) < self.limit {
            self.state.fetch_add(1, Ordering::AcqRel);
            Joined::Admitted
        } else if queue.waiting.len() >= max_waiting {
            self.refused.fetch_add(1, Ordering::Relaxed);
            Joined::Full
        } else {
            let ticket = queue.next_ticket;
            queue.next_ticket += 1;
            queue.waiting.insert(ticket, waker.clone());
            Joined::Waiting(ticket)
        };
        self.reopen_if_empty(&queue);
        joined
    }

    /// Whether the one with `ticket` has been given a place; if not, `waker` is woken when it has.
    pub(crate) fn poll_ticket(&self, ticket: u64, waker: &Waker) -> Poll<()> {
        let mut queue = self.queue();
        let Some(kept) = queue.waiting.get_mut(&ticket) else {
            return Poll::Ready(());
        };
        let replaced = (!kept.will_wake(waker)).then(|| mem::replace(kept, waker.clone()));
        drop(queue);
        drop(replaced);
        Poll::Pending
    }

    /// Leaves the queue; `false` if a place had been given already, which is then still taken.
    pub(crate) fn leave(&self, ticket: u64) -> bool {
        let mut queue = self.queue();
        let waker = queue.waiting.remove(&ticket);
        self.reopen_if_empty(&queue);
        drop(queue);
        waker.is_some()
    }

    /// Counts a call that was refused because it waited too long.
    pub(crate) fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn limit(&self) -> usize {
        to_usize(self.limit)
    }

    pub(crate) fn in_flight(&self) -> usize {
        to_usize(self.state.load(Ordering::Relaxed) & !QUEUED)
    }

    pub(crate) fn waiting(&self) -> usize {
        self.queue().waiting.len()
    }

    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Gives a free place to the longest waiting, who is to be woken.
    fn hand_over(&self) -> Option<Waker> {
        let mut queue = self.queue();
        let taken = self.state.load(Ordering::Acquire) & !QUEUED;
        let waker = if taken < self.limit {
            queue.waiting.pop_first().map(|(_, waker)| waker)
        } else {
            None
        };
        if waker.is_some() {
            self.state.fetch_add(1, Ordering::AcqRel);
        }
        self.reopen_if_empty(&queue);
        waker
    }

    fn reopen_if_empty(&self, queue: &Queue) {
        if queue.waiting.is_empty() {
            self.state.fetch_and(!QUEUED, Ordering::AcqRel);
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing that can panic runs while it is held but the waker's clone, which leaves it as it was.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn to_usize(places: u64) -> usize {
    // At most `MAX_LIMIT`, which is one.
    usize::try_from(places).unwrap_or(usize::MAX)
}

// Loom's types work inside its models only, so that it is one or the other.
#[cfg(all(test, bulkhead_loom))]
mod loom;
#[cfg(all(test, not(bulkhead_loom)))]
mod tests;
