//! The calls of one key that wait, and what of them makes the next batch: no lock, no clock, no service.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;
use tower_llm_core::Priority;

/// Where a call waits: first by priority, then by arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) priority: Priority,
    pub(crate) id: u64,
}

/// A call that waits.
#[derive(Debug)]
pub(crate) struct Waiting<R> {
    pub(crate) request: R,
    pub(crate) items: u64,
    pub(crate) tokens: u64,
    pub(crate) arrived: Instant,
    pub(crate) deadline: Option<Instant>,
    /// Then it is refused.
    pub(crate) until: Instant,
}

/// The calls of the next batch, and those that have waited for too long.
#[derive(Debug)]
pub(crate) struct Next<R> {
    pub(crate) calls: Vec<(Place, Waiting<R>)>,
    pub(crate) expired: Vec<(Place, Waiting<R>)>,
}

/// What a batch may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) items: u64,
    pub(crate) tokens: u64,
}

/// When an open batch is closed, although it is not full.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub(crate) length: Duration,
    /// How long the call that follows may take.
    pub(crate) call_time: Duration,
}

/// The calls of one key that wait.
#[derive(Debug)]
pub(crate) struct Lane<R> {
    limits: Limits,
    waiting: BTreeMap<Place, Waiting<R>>,
    by_priority: [usize; Priority::COUNT],
    /// Of all that wait; no number of calls reaches its end.
    items: u128,
    tokens: u128,
    deadlines: BTreeSet<(Instant, u64)>,
}

impl<R> Lane<R> {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            waiting: BTreeMap::new(),
            by_priority: [0; Priority::COUNT],
            items: 0,
            tokens: 0,
            deadlines: BTreeSet::new(),
        }
    }

    pub(crate) fn join(&mut self, place: Place, call: Waiting<R>) {
        self.by_priority[place.priority.index()] += 1;
        self.items += u128::from(call.items);
        self.tokens += u128::from(call.tokens);
        self.deadlines
            .extend(call.deadline.map(|deadline| (deadline, place.id)));
        self.waiting.insert(place, call);
    }

    pub(crate) fn leave(&mut self, place: Place) -> Option<Waiting<R>> {
        let left = self.waiting.remove(&place)?;
        self.by_priority[place.priority.index()] -= 1;
        self.items -= u128::from(left.items);
        self.tokens -= u128::from(left.tokens);
        if let Some(deadline) = left.deadline {
            self.deadlines.remove(&(deadline, place.id));
        }
        Some(left)
    }

    /// Takes the calls of the next batch: in their order, as many as fit. The first always fits, since it may be larger than
    /// any batch.
    ///
    /// A call that does not fit ends the batch. If smaller ones behind it went first, it might wait for ever.
    pub(crate) fn take(&mut self, now: Instant) -> Next<R> {
        let mut next = Next {
            calls: Vec::new(),
            expired: Vec::new(),
        };
        let (mut items, mut tokens) = (0_u64, 0_u64);
        while let Some((&place, first)) = self.waiting.first_key_value() {
            if first.until <= now {
                let expired = self.leave(place);
                next.expired.extend(expired.map(|call| (place, call)));
                continue;
            }
            items = items.saturating_add(first.items);
            tokens = tokens.saturating_add(first.tokens);
            let fits = items <= self.limits.items && tokens <= self.limits.tokens;
            if !fits && !next.calls.is_empty() {
                break;
            }
            let call = self.leave(place);
            next.calls.extend(call.map(|call| (place, call)));
        }
        next
    }

    /// Whether a batch is to be sent, if one more may be in flight.
    pub(crate) fn is_due(&self, window: Window, now: Instant) -> bool {
        let is_full = self.items >= u128::from(self.limits.items)
            || self.tokens >= u128::from(self.limits.tokens);
        let closes_at = self.closes_at(window);
        !self.waiting.is_empty() && (is_full || closes_at.is_some_and(|at| at <= now))
    }

    /// When the next batch is closed at the latest, full or not; `None` if no call waits.
    pub(crate) fn closes_at(&self, window: Window) -> Option<Instant> {
        let oldest = self.oldest()?;
        let earliest = self.deadlines.first();
        let for_deadline =
            earliest.map(|(deadline, _)| deadline.checked_sub(window.call_time).unwrap_or(oldest));
        let for_window = oldest.checked_add(window.length);
        for_window.into_iter().chain(for_deadline).min()
    }

    /// When the oldest call arrived: within a priority, that is the first.
    fn oldest(&self) -> Option<Instant> {
        let priorities = [Priority::Interactive, Priority::Normal, Priority::Batch];
        let first = |priority| {
            let start = Place { priority, id: 0 };
            let end = Place {
                priority,
                id: u64::MAX,
            };
            let (_, call) = self.waiting.range(start..=end).next()?;
            Some(call.arrived)
        };
        priorities.into_iter().filter_map(first).min()
    }

    /// The calls that wait, in the order in which they are sent.
    pub(crate) fn calls(&self) -> impl Iterator<Item = u64> {
        self.waiting.keys().map(|place| place.id)
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn waiting_of(&self, priority: Priority) -> usize {
        self.by_priority[priority.index()]
    }
}

#[cfg(test)]
mod tests;
