//! First in, first out.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use hashbrown::HashMap;

use super::{Entry, Size, Store, Stored};

#[derive(Debug)]
pub(super) struct Fifo {
    max_bytes: u64,
    max_entries: u64,
    // One lock: it is held for a lookup or an insertion.
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    entries: HashMap<[u8; 32], (u64, Entry), foldhash::fast::RandomState>,
    /// In their order, with the number that tells an entry from an earlier one of the same key.
    order: VecDeque<(u64, [u8; 32])>,
    inserted: u64,
    bytes: u64,
    evicted: u64,
}

impl Fifo {
    pub(super) fn new(max_bytes: u64, max_entries: u64) -> Self {
        Self {
            max_bytes,
            max_entries,
            queue: Mutex::default(),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Inserts an entry that is not too large by itself.
    fn insert_into(&self, queue: &mut Queue, entry: Entry) {
        let digest = *entry.digest();
        queue.remove(&digest);
        queue.inserted += 1;
        let number = queue.inserted;
        queue.bytes += entry.weight();
        queue.order.push_back((number, digest));
        queue.entries.insert(digest, (number, entry));
        while queue.bytes > self.max_bytes || queue.entries.len() as u64 > self.max_entries {
            queue.evict_first();
        }
        // What is left in the order of entries that were removed or replaced.
        if queue.order.len() > 2 * queue.entries.len() + 16 {
            let Queue { entries, order, .. } = queue;
            order.retain(|(number, digest)| {
                entries.get(digest).is_some_and(|(held, _)| held == number)
            });
        }
    }
}

impl Queue {
    fn remove(&mut self, digest: &[u8; 32]) -> bool {
        let Some((_, entry)) = self.entries.remove(digest) else {
            return false;
        };
        self.bytes -= entry.weight();
        true
    }

    fn evict_first(&mut self) {
        if let Some((number, digest)) = self.order.pop_front()
            && self
                .entries
                .get(&digest)
                .is_some_and(|(held, _)| *held == number)
        {
            self.remove(&digest);
            self.evicted += 1;
        }
    }
}

impl Store for Fifo {
    fn get(&self, digest: &[u8; 32]) -> Option<Entry> {
        let queue = self.queue();
        queue.entries.get(digest).map(|(_, entry)| entry.clone())
    }

    fn insert(&self, entry: Entry) {
        if entry.weight() <= self.max_bytes {
            self.insert_into(&mut self.queue(), entry);
        }
    }

    #[cfg(any(feature = "redis", test))]
    fn insert_unless_newer(&self, entry: Entry) {
        if entry.weight() > self.max_bytes {
            return;
        }
        let mut queue = self.queue();
        let held = queue.entries.get(entry.digest());
        if held.is_none_or(|(_, held)| held.0.stored_at <= entry.0.stored_at) {
            self.insert_into(&mut queue, entry);
        }
    }

    fn remove(&self, digest: &[u8; 32]) -> bool {
        self.queue().remove(digest)
    }

    fn remove_if(&self, matches: &dyn Fn(&Stored) -> bool) -> u64 {
        let mut queue = self.queue();
        let found = queue
            .entries
            .iter()
            .filter(|(_, (_, entry))| matches(&entry.0));
        let digests: Vec<_> = found.map(|(digest, _)| *digest).collect();
        digests.iter().filter(|digest| queue.remove(digest)).count() as u64
    }

    fn size(&self) -> Size {
        let queue = self.queue();
        Size {
            entries: queue.entries.len() as u64,
            bytes: queue.bytes,
            evicted: queue.evicted,
        }
    }
}
