//! Whose turn it is in a group of targets.

use std::sync::{PoisonError, atomic::Ordering::Relaxed};

use super::{set::Set, smooth::Smooth};
use crate::sync::{AtomicUsize, Mutex, MutexGuard};

/// Whose turn it is in a group.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    ticks: AtomicUsize,
    // A std mutex: it is held for a few additions.
    smooth: Mutex<Smooth>,
}

impl Turns {
    /// Turns that go on from others: `from` says which target of the others each target was.
    pub(crate) fn continuing(&self, from: impl IntoIterator<Item = Option<usize>>) -> Self {
        let smooth = self.smooth();
        let due = from.into_iter();
        let due = due.map(|index| index.map_or(0, |index| smooth.due(index)));
        Self {
            ticks: AtomicUsize::new(self.ticks.load(Relaxed)),
            smooth: Mutex::new(Smooth::new(due.collect())),
        }
    }

    /// The target whose turn it is. If it cannot take a call, the call takes the next turn: if its turn went to the target
    /// after it, that one would get twice as many.
    pub(crate) fn next(&self, targets: usize, skip: &Set) -> Option<usize> {
        let first = self.ticks.fetch_add(1, Relaxed) % targets;
        let after = (first..targets).chain(0..first);
        after.into_iter().find(|&index| !skip.contains(index))
    }

    /// The same by weight.
    pub(crate) fn next_by_weight(
        &self,
        weights: impl IntoIterator<Item = u32>,
        skip: &Set,
    ) -> Option<usize> {
        self.smooth().next(weights, skip)
    }

    /// See [`Smooth::take_back`].
    pub(crate) fn take_back(
        &self,
        index: usize,
        weights: impl IntoIterator<Item = u32>,
        skip: &Set,
    ) {
        self.smooth().take_back(index, weights, skip);
    }

    fn smooth(&self) -> MutexGuard<'_, Smooth> {
        self.smooth.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
