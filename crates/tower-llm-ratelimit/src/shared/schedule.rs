use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

/// A queue of items, each due at a time, the earliest first.
#[derive(Debug)]
pub(super) struct Schedule<T> {
    /// The number distinguishes items of one instant.
    items: BTreeMap<(Instant, u64), T>,
    next: u64,
    /// The number of items at which useless ones are removed next.
    prune_at: usize,
}

const PRUNE_AT: usize = 1_024;

impl<T> Schedule<T> {
    pub(super) fn new() -> Self {
        Self {
            items: BTreeMap::new(),
            next: 0,
            prune_at: PRUNE_AT,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    pub(super) fn push(&mut self, at: Instant, item: T) {
        self.items.insert((at, self.next), item);
        self.next += 1;
    }

    /// Adds an item that is due now, before all others.
    pub(super) fn push_first(&mut self, now: Instant, item: T) {
        let first = self.first_at().map_or(now, |at| at.min(now));
        let before = first.checked_sub(Duration::from_nanos(1));
        self.push(before.unwrap_or(first), item);
    }

    /// Occasionally, so that the amortised cost is low, drops items that are not `of_use`. So there are at most a thousand
    /// more than twice the useful items.
    pub(super) fn prune(&mut self, of_use: impl Fn(&T) -> bool) {
        if self.items.len() >= self.prune_at {
            self.items.retain(|_, item| of_use(item));
            self.prune_at = PRUNE_AT.max(2 * self.items.len());
        }
    }

    /// When the first item is due.
    pub(super) fn first_at(&self) -> Option<Instant> {
        self.items.first_key_value().map(|(&(at, _), _)| at)
    }

    /// The first item, if it is due.
    pub(super) fn pop(&mut self, now: Instant) -> Option<T> {
        let first = self.items.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_at_most_a_thousand_more_than_twice_the_useful_items() {
        let mut later = Schedule::new();
        let now = Instant::now();
        for number in 0..100_000_u32 {
            later.push(now + Duration::from_secs(number.into()), number);
            // The last hundred are of use.
            later.prune(|&other| other + 100 > number);
            assert!(later.len() <= PRUNE_AT);
        }
        let mut left = Vec::new();
        while let Some(number) = later.pop(now + Duration::from_secs(200_000)) {
            left.push(number);
        }
        assert!(left.ends_with(&Vec::from_iter(99_900..100_000)));
        assert!(left.is_sorted());
    }

    #[test]
    fn no_useful_item_is_dropped() {
        let mut later = Schedule::new();
        for number in 0..10_000 {
            later.push(Instant::now(), number);
            later.prune(|_| true);
        }
        assert_eq!(later.len(), 10_000);
    }
}
