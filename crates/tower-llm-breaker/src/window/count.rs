//! A window over a number of calls.

use super::{Entry, Tally};
use crate::sync::{Mutex, lock};

/// A ring with a bit for each of the last calls, under a lock: as fast as a lock-free one, and easier to get right.
#[derive(Debug)]
pub(crate) struct Counts {
    calls: usize,
    bits: Mutex<Bits>,
}

#[derive(Debug, Default)]
struct Bits {
    generation: u32,
    /// A set bit is a bad call. Grows to the length of the window.
    words: Vec<u64>,
    next: usize,
    total: usize,
    bad: usize,
}

impl Counts {
    pub(crate) fn new(calls: usize) -> Self {
        Self {
            calls,
            bits: Mutex::new(Bits::default()),
        }
    }

    pub(crate) fn record(&self, entry: &Entry<'_>) -> bool {
        let mut bits = lock(&self.bits);
        if bits.generation != entry.generation {
            if !(entry.is_current)() {
                return false;
            }
            bits.clear();
            bits.generation = entry.generation;
        }
        bits.push(entry.bad, self.calls);
        true
    }

    pub(crate) fn tally(&self, generation: u32) -> Tally {
        let bits = lock(&self.bits);
        if bits.generation != generation {
            return Tally::default();
        }
        Tally {
            bad: bits.bad as u64,
            total: bits.total as u64,
        }
    }

    pub(crate) fn clear(&self) {
        lock(&self.bits).clear();
    }
}

impl Bits {
    fn clear(&mut self) {
        // The capacity is kept; old bits are overwritten before they are read.
        self.words.clear();
        (self.next, self.total, self.bad) = (0, 0, 0);
    }

    fn push(&mut self, bad: bool, calls: usize) {
        let (word, bit) = (self.next / 64, 1 << (self.next % 64));
        if word == self.words.len() {
            self.words.push(0);
        }
        if self.total == calls {
            self.bad -= usize::from(self.words[word] & bit != 0);
        } else {
            self.total += 1;
        }
        if bad {
            self.words[word] |= bit;
            self.bad += 1;
        } else {
            self.words[word] &= !bit;
        }
        // Not a division, which costs more than all of the above.
        self.next = if self.next + 1 == calls {
            0
        } else {
            self.next + 1
        };
    }
}
