//! Changes of this process that are not published yet.

use std::{collections::HashMap, sync::Arc};

use tokio::{
    sync::mpsc::{self, Receiver, Sender},
    time::Instant,
};

use crate::{
    CircuitId,
    events::{Event, Publish},
    machine::PeerChange as Change,
    sync::{Mutex, lock},
};

/// Maximum number of circuits with a pending change; changes of further ones are not published. So many change only in a
/// long outage of the store.
const MOST: usize = 65_536;

/// The pending change of a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pending {
    change: Change,
    at: Instant,
    /// When it was closed before that, if this is pending too: it ends what the store still has.
    closed_at: Option<Instant>,
}

/// The last change of each circuit: a circuit that changes often is published once.
// A std mutex: it is held to note one change, or to copy a hundred.
#[derive(Clone, Debug, Default)]
pub(super) struct Outbox(Arc<Mutex<HashMap<CircuitId, Pending>>>);

/// The connection to the task, which ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Publisher {
    outbox: Outbox,
    bell: Sender<()>,
}

impl Publisher {
    /// Creates a publisher, and the receiver that wakes its task. One pending wake-up is enough.
    pub(super) fn new(outbox: Outbox) -> (Self, Receiver<()>) {
        let (bell, rings) = mpsc::channel(1);
        (Self { outbox, bell }, rings)
    }
}

impl Publish for Publisher {
    /// Publishes `event`, if it concerns other processes.
    fn publish(&self, event: &Event) {
        if let Some(change) = Change::of(event) {
            let pending = Pending::new(change, event.at);
            self.outbox.note(&event.circuit, pending);
            // Full: a wake-up is pending already.
            let _ = self.bell.try_send(());
        }
    }
}

impl Pending {
    pub(super) fn new(change: Change, at: Instant) -> Self {
        Self {
            change,
            at,
            closed_at: None,
        }
    }

    /// Whether the circuit is closed after all pending changes.
    pub(super) fn is_closed(self) -> bool {
        self.change == Change::Closed
    }

    /// The changes to publish in order, with their times.
    pub(super) fn changes(self) -> impl Iterator<Item = (Change, Instant)> {
        let closed = self.closed_at.map(|at| (Change::Closed, at));
        closed.into_iter().chain([(self.change, self.at)])
    }

    /// The same change, while `earlier` is still pending.
    fn after(mut self, earlier: Self) -> Self {
        if self.change != Change::Closed {
            let closed_at = match earlier.change {
                Change::Closed => Some(earlier.at),
                _ => earlier.closed_at,
            };
            self.closed_at = self.closed_at.max(closed_at);
        }
        self
    }
}

impl Outbox {
    fn note(&self, circuit: &CircuitId, pending: Pending) {
        let mut outbox = lock(&self.0);
        if let Some(last) = outbox.get_mut(circuit) {
            // Events are sent after the circuit's lock is released, so a later one may arrive first.
            *last = if pending.at >= last.at {
                pending.after(*last)
            } else {
                last.after(pending)
            };
        } else if outbox.len() < MOST {
            outbox.insert(circuit.clone(), pending);
        }
    }

    /// Notes the current state of a circuit, unless a change of it is pending anyway.
    pub(super) fn note_current(&self, circuit: &CircuitId, pending: Pending) {
        if !self.has(circuit) {
            self.note(circuit, pending);
        }
    }

    pub(super) fn has(&self, circuit: &CircuitId) -> bool {
        lock(&self.0).contains_key(circuit)
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.0).is_empty()
    }

    /// Returns at most `most` of the pending changes. A state that ended before it could be published is dropped; a close
    /// before it is not.
    pub(super) fn some(&self, most: usize, now: Instant) -> Vec<(CircuitId, Pending)> {
        let mut outbox = lock(&self.0);
        let (mut some, mut over) = (Vec::new(), Vec::new());
        for (circuit, pending) in outbox.iter_mut() {
            if pending.change.is_over(now) {
                let Some(closed_at) = pending.closed_at else {
                    over.push(circuit.clone());
                    continue;
                };
                *pending = Pending::new(Change::Closed, closed_at);
            }
            if some.len() == most {
                break;
            }
            some.push((circuit.clone(), *pending));
        }
        for circuit in over {
            outbox.remove(&circuit);
        }
        some
    }

    /// Removes published changes, except those of circuits that have changed again meanwhile.
    pub(super) fn published(&self, batch: &[(CircuitId, Pending)]) {
        let mut outbox = lock(&self.0);
        for (circuit, pending) in batch {
            if outbox.get(circuit) == Some(pending) {
                outbox.remove(circuit);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn circuit(number: usize) -> CircuitId {
        CircuitId::model("openai", format!("m-{number}"))
    }

    fn open(at: Instant) -> Pending {
        let until = at + 10 * SECOND;
        Pending::new(Change::Open(until), at)
    }

    fn closed(at: Instant) -> Pending {
        Pending::new(Change::Closed, at)
    }

    #[test]
    fn the_last_change_of_each_circuit_is_published_whatever_arrived_first() {
        let (outbox, now) = (Outbox::default(), Instant::now());
        for (number, pending) in [
            (0, [open(now), closed(now + SECOND)]),
            (1, [closed(now + SECOND), open(now)]),
        ] {
            for pending in pending {
                outbox.note(&circuit(number), pending);
            }
        }
        let mut some = outbox.some(100, now);
        some.sort_by_key(|(circuit, _)| circuit.to_string());
        let expected = [0, 1].map(|number| (circuit(number), closed(now + SECOND)));
        assert_eq!(some, expected);
    }

    #[test]
    fn a_close_is_published_even_if_the_later_opening_has_ended() {
        let (outbox, now) = (Outbox::default(), Instant::now());
        outbox.note(&circuit(0), closed(now));
        outbox.note(&circuit(0), open(now + SECOND));
        let later = now + 60 * SECOND;
        assert_eq!(outbox.some(100, later), [(circuit(0), closed(now))]);
    }

    #[test]
    fn a_close_before_another_opening_is_published_too_whatever_arrived_first() {
        let (outbox, now) = (Outbox::default(), Instant::now());
        let [then, later] = [1, 2].map(|seconds| now + seconds * SECOND);
        let pending_of_each = [
            [open(now), closed(then), open(later)],
            [open(now), open(later), closed(then)],
            [closed(now), open(then), closed(later)],
        ];
        for (number, pending) in pending_of_each.into_iter().enumerate() {
            for pending in pending {
                outbox.note(&circuit(number), pending);
            }
        }
        let mut some = outbox.some(100, now);
        some.sort_by_key(|(circuit, _)| circuit.to_string());
        let batch = some.iter().map(|(_, pending)| pending.changes().collect());
        let both = vec![(Change::Closed, then), (open(later).change, later)];
        let expected = [both.clone(), both, vec![(Change::Closed, later)]];
        assert_eq!(batch.collect::<Vec<Vec<_>>>(), expected);
    }

    #[test]
    fn a_change_during_a_publication_is_published_next() {
        let (outbox, now) = (Outbox::default(), Instant::now());
        for number in 0..2 {
            outbox.note(&circuit(number), open(now));
        }
        let batch = outbox.some(100, now);
        outbox.note(&circuit(1), closed(now + SECOND));
        outbox.published(&batch);
        assert_eq!(outbox.some(100, now), [(circuit(1), closed(now + SECOND))]);
    }

    #[test]
    fn an_ended_opening_is_not_published_and_a_close_always_is() {
        let (outbox, now) = (Outbox::default(), Instant::now());
        outbox.note(&circuit(0), open(now));
        outbox.note(&circuit(1), closed(now));
        let just_before = now + 10 * SECOND - Duration::from_millis(1);
        assert_eq!(outbox.some(100, just_before).len(), 2);
        let later = outbox.some(100, now + 10 * SECOND);
        assert_eq!(later, [(circuit(1), closed(now))]);
        assert!(!outbox.has(&circuit(0)));
    }

    #[test]
    fn the_number_of_pending_changes_is_bounded() {
        let (outbox, now) = (Outbox::default(), Instant::now());
        for number in 0..MOST + 10 {
            outbox.note(&circuit(number), open(now));
        }
        outbox.note(&circuit(0), closed(now));
        let some = outbox.some(usize::MAX, now);
        assert_eq!(some.len(), MOST);
        assert!(some.contains(&(circuit(0), closed(now))));
        assert_eq!(outbox.some(100, now).len(), 100);
    }
}
