//! A window over a number of calls.

use super::{Ended, Tally};
use crate::{
    sync::{AtomicU64, Mutex, Ordering, lock},
    word::Pass,
};

/// A ring with a bit for each of the last calls, under a lock: as fast as a lock-free one, and easier to get right.
///
/// Most windows are full of good calls. One more changes nothing of such a window but the place where the next is written,
/// which shows nowhere. So it needs neither the ring nor the lock, only to find that the window is clean.
#[derive(Debug)]
pub(crate) struct Calls {
    length: usize,
    /// The generation of which the window is full of good calls, plus one; else zero. Written under the lock.
    clean: AtomicU64,
    ring: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    generation: u32,
    /// A set bit is a bad call. Grows to the length of the window.
    words: Vec<u64>,
    next: usize,
    total: usize,
    bad: usize,
    /// Bad calls in a row. Under the lock too: a window must not look clean to a call while the run of an earlier failure is
    /// still to be counted.
    run: u32,
}

impl Calls {
    pub(super) fn new(length: usize) -> Self {
        Self {
            length,
            clean: AtomicU64::new(0),
            ring: Mutex::default(),
        }
    }

    /// Whether the window is full of good calls of the generation.
    pub(super) fn is_clean(&self, pass: Pass) -> bool {
        self.clean.load(Ordering::Acquire) == u64::from(pass.generation()) + 1
    }

    pub(super) fn record(&self, ended: Ended<'_>) -> Option<u32> {
        let mut ring = lock(&self.ring);
        if ring.generation != ended.generation() {
            if !ended.is_current() {
                return None;
            }
            ring.clear();
            ring.generation = ended.generation();
        }
        ring.push(ended.is_bad, self.length);
        let is_clean = ring.total == self.length && ring.bad == 0;
        self.set_clean(if is_clean {
            u64::from(ended.generation()) + 1
        } else {
            0
        });
        Some(ring.run)
    }

    pub(super) fn tally(&self, generation: u32) -> Tally {
        let ring = lock(&self.ring);
        if ring.generation != generation {
            return Tally::default();
        }
        Tally {
            bad: ring.bad as u64,
            total: ring.total as u64,
        }
    }

    pub(super) fn clear(&self) {
        let mut ring = lock(&self.ring);
        ring.clear();
        self.set_clean(0);
    }

    fn set_clean(&self, clean: u64) {
        if self.clean.load(Ordering::Relaxed) != clean {
            self.clean.store(clean, Ordering::Release);
        }
    }
}

impl Ring {
    fn clear(&mut self) {
        // The capacity is kept; old bits are overwritten before they are read.
        self.words.clear();
        (self.next, self.total, self.bad, self.run) = (0, 0, 0, 0);
    }

    fn push(&mut self, is_bad: bool, length: usize) {
        let (word, bit) = (self.next / 64, 1 << (self.next % 64));
        if word == self.words.len() {
            self.words.push(0);
        }
        if self.total == length {
            self.bad -= usize::from(self.words[word] & bit != 0);
        } else {
            self.total += 1;
        }
        if is_bad {
            self.words[word] |= bit;
            self.bad += 1;
            self.run = self.run.saturating_add(1);
        } else {
            self.words[word] &= !bit;
            self.run = 0;
        }
        // Not a division, which costs more than all of the above.
        self.next = if self.next + 1 == length {
            0
        } else {
            self.next + 1
        };
    }
}
