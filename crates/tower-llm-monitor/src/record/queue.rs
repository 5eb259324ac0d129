//! The queue between calls and the recorder.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crossbeam_queue::ArrayQueue;
use tokio::sync::Notify;
use tower_llm_core::{Call, Described, Entry};

use super::{Ended, RecordStats};

/// Records that are written at once.
pub(crate) const BATCH: usize = 100;

/// Longer ids are replaced: a caller may choose them.
const MAX_ID: usize = 128;

/// Records that wait to be written; bounded.
#[derive(Debug)]
pub(crate) struct Queue {
    waiting: ArrayQueue<(Identity, Ended)>,
    /// Notified when there is a batch.
    pub(super) full_batch: Notify,
    pub(super) written: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) failed_writes: AtomicU64,
    id_header: Option<&'static str>,
    next: AtomicU64,
    /// Tells the ids of this process from those of others.
    seed: u64,
}

/// A call that will be recorded when it ends.
#[derive(Debug)]
pub(crate) struct Begun {
    queue: Arc<Queue>,
    identity: Identity,
}

/// Which call a record is about.
#[derive(Debug)]
pub(super) struct Identity {
    /// `None` if the request has none.
    id: Option<Box<str>>,
    number: u64,
    pub(super) call: Option<Call>,
}

impl Queue {
    pub(crate) fn new(capacity: usize, id_header: Option<&'static str>) -> Self {
        Self {
            waiting: ArrayQueue::new(capacity),
            full_batch: Notify::new(),
            written: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            failed_writes: AtomicU64::new(0),
            id_header,
            next: AtomicU64::new(0),
            seed: RandomState::new().hash_one(0),
        }
    }

    pub(crate) fn begin(self: &Arc<Self>, entry: &Entry<'_>) -> Begun {
        let header = self.id_header.and_then(|name| entry.header(name));
        let id = header.filter(|id| (1..=MAX_ID).contains(&id.len()));
        let id = id.and_then(|id| str::from_utf8(id).ok()).map(Box::from);
        Begun {
            queue: Arc::clone(self),
            identity: Identity {
                id,
                number: self.next.fetch_add(1, Relaxed),
                call: entry.call().cloned(),
            },
        }
    }

    /// The one that has waited longest.
    pub(super) fn pop(&self) -> Option<(Identity, Ended)> {
        self.waiting.pop()
    }

    pub(super) fn has_batch(&self) -> bool {
        self.waiting.len() >= BATCH
    }

    pub(super) fn id(&self, identity: &mut Identity) -> Box<str> {
        let number = identity.number;
        let given = identity.id.take();
        given.unwrap_or_else(|| format!("{:016x}{number:016x}", self.seed).into())
    }

    pub(crate) fn stats(&self) -> RecordStats {
        RecordStats {
            queued: self.waiting.len() as u64,
            written: self.written.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
            failed_writes: self.failed_writes.load(Relaxed),
        }
    }
}

impl Begun {
    /// Has the call recorded, unless the queue is full.
    pub(crate) fn end(self, ended: Ended) {
        let Self { queue, identity } = self;
        if queue.waiting.push((identity, ended)).is_err() {
            queue.dropped.fetch_add(1, Relaxed);
        } else if queue.has_batch() {
            queue.full_batch.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `MonitorBuilder::records` says of the queue.
    #[test]
    fn a_record_that_waits_takes_half_a_kilobyte() {
        let size = size_of::<(Identity, Ended)>();
        assert!((400..=520).contains(&size), "{size} bytes");
    }
}
