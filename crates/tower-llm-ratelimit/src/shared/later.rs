use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

/// Things to be seen to at a time each, the earliest first.
#[derive(Debug)]
pub(super) struct Later<T> {
    /// The number tells those of one instant apart.
    things: BTreeMap<(Instant, u64), T>,
    next: u64,
}

impl<T> Later<T> {
    pub(super) fn new() -> Self {
        Self {
            things: BTreeMap::new(),
            next: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.things.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.things.is_empty()
    }

    pub(super) fn push(&mut self, at: Instant, thing: T) {
        self.things.insert((at, self.next), thing);
        self.next += 1;
    }

    /// Has a thing seen to before all others, and at once.
    pub(super) fn push_first(&mut self, now: Instant, thing: T) {
        let first = self.first_at().map_or(now, |at| at.min(now));
        let before = first.checked_sub(Duration::from_nanos(1));
        self.push(before.unwrap_or(first), thing);
    }

    /// When the first is to be seen to.
    pub(super) fn first_at(&self) -> Option<Instant> {
        self.things.first_key_value().map(|(&(at, _), _)| at)
    }

    /// The first, if its time has come.
    pub(super) fn pop(&mut self, now: Instant) -> Option<T> {
        let first = self.things.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }
}
