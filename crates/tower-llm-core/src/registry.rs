//! State per key, bounded.
//!
//! Keys come from requests, so whoever sends requests can invent them. A registry therefore holds at most a set
//! number of keys; when it is full, a key nobody uses gives way, and if none is found the new one shares the state
//! of all that found no place. So the number bounds memory, and no key in use is ever forgotten.
//!
//! It is sharded: a call takes one read lock, which readers share, on one of the shards. What gives way is found by
//! the clock algorithm (Corbató, 1968): a hand goes round a shard and takes the first entry that nobody holds and
//! nobody has asked for since the hand came by last.

use std::{
    fmt,
    hash::BuildHasher,
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use foldhash::quality::RandomState;
use hashbrown::HashTable;

use crate::{ConfigError, Described, Key, KeyBy, key::KeyRef};

const SHARDS: usize = 16;

/// Entries that are looked at for a new key's place: so many and no more, lest invented keys make all others wait.
const LOOKED_AT: usize = 64;

/// Keys a registry holds unless told otherwise.
const DEFAULT_MAX_KEYS: usize = 10_000;

/// The state of each key that is in use.
///
/// `T` is shared by reference; a key whose `T` nobody else holds, and which says that it [may be
/// forgotten](Forget::may_forget), can be evicted.
pub struct Registry<T> {
    key_by: KeyBy,
    shards: Box<[RwLock<Shard<T>>]>,
    hasher: RandomState,
    max_keys_per_shard: usize,
    /// For calls that have no key. They need no lookup, and all calls may be such.
    keyless: OnceLock<Arc<T>>,
    /// For keys that come when all places are taken by others in use.
    overflow: Arc<T>,
    make: Box<dyn Fn(Option<&Key>) -> T + Send + Sync>,
}

/// State that a registry may drop.
pub trait Forget {
    /// Whether nothing is lost if this state is made anew at its key's next call.
    ///
    /// Asked only when nobody but the registry holds it.
    fn may_forget(&self) -> bool;
}

struct Shard<T> {
    table: HashTable<Entry<T>>,
    /// Where the clock's hand stands.
    hand: usize,
}

struct Entry<T> {
    key: Key,
    state: Arc<T>,
    used: AtomicBool,
}

impl<T: Forget> Registry<T> {
    /// A registry whose keys are chosen by `key_by` and whose state is made by `make`.
    ///
    /// `make` is given the key, or `None` for the state that keys share when the registry is full.
    pub fn new<F>(key_by: KeyBy, make: F) -> Self
    where
        F: Fn(Option<&Key>) -> T + Send + Sync + 'static,
    {
        let shard = || {
            RwLock::new(Shard {
                table: HashTable::new(),
                hand: 0,
            })
        };
        Self {
            key_by,
            shards: (0..SHARDS).map(|_| shard()).collect(),
            hasher: RandomState::default(),
            max_keys_per_shard: DEFAULT_MAX_KEYS.div_ceil(SHARDS),
            keyless: OnceLock::new(),
            overflow: Arc::new(make(None)),
            make: Box::new(make),
        }
    }

    /// Sets the most keys it holds; 10,000 unless set. Rounded up to a multiple of 16, the empty key not counted.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if `max_keys` is zero.
    pub fn max_keys(mut self, max_keys: usize) -> Result<Self, ConfigError> {
        let max_keys = ConfigError::check_nonzero("max_keys", max_keys)?;
        self.max_keys_per_shard = max_keys.div_ceil(SHARDS);
        Ok(self)
    }

    /// The state of the key of `request`, made if there is none.
    pub fn get(&self, request: &dyn Described) -> Arc<T> {
        self.key_by.with_key(request, |key| self.get_or_make(key))
    }

    /// The state of `key`, if there is one.
    #[must_use]
    pub fn peek(&self, key: &Key) -> Option<Arc<T>> {
        let key = key.borrowed();
        if key.is_empty() {
            return self.keyless.get().map(Arc::clone);
        }
        let hash = self.hasher.hash_one(key);
        let shard = self
            .shard(hash)
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        shard.find(hash, key)
    }

    /// Runs `each` on every key and its state, one shard locked at a time, and last on the state that keys share
    /// when the registry is full.
    pub fn for_each(&self, mut each: impl FnMut(Option<&Key>, &T)) {
        if let Some(state) = self.keyless.get() {
            each(Some(&Key::new("")), state);
        }
        for shard in &self.shards {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            for entry in &shard.table {
                each(Some(&entry.key), &entry.state);
            }
        }
        each(None, &self.overflow);
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        let len = |shard: &RwLock<Shard<T>>| {
            shard
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .table
                .len()
        };
        self.shards.iter().map(len).sum::<usize>() + usize::from(self.keyless.get().is_some())
    }

    /// Whether there are no keys.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn get_or_make(&self, key: KeyRef<'_>) -> Arc<T> {
        if key.is_empty() {
            let make = || Arc::new((self.make)(Some(&key.to_key())));
            return Arc::clone(self.keyless.get_or_init(make));
        }
        let hash = self.hasher.hash_one(key);
        let shard = self.shard(hash);
        let found = shard
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .find(hash, key);
        if let Some(state) = found {
            return state;
        }
        // Made before the lock is taken: it may be code of the user's.
        let key = key.to_key();
        let state = Arc::new((self.make)(Some(&key)));
        let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = shard.find(hash, key.borrowed()) {
            return state;
        }
        if shard.table.len() >= self.max_keys_per_shard && !shard.evict() {
            return Arc::clone(&self.overflow);
        }
        let entry = Entry {
            key,
            state: Arc::clone(&state),
            used: AtomicBool::new(true),
        };
        shard.table.insert_unique(hash, entry, |entry| {
            self.hasher.hash_one(entry.key.borrowed())
        });
        state
    }

    fn shard(&self, hash: u64) -> &RwLock<Shard<T>> {
        // The table uses the hash's low and top bits; these lie between.
        let index = usize::try_from(hash >> 32).unwrap_or_default() % SHARDS;
        &self.shards[index]
    }
}

impl<T> Shard<T> {
    fn find(&self, hash: u64, key: KeyRef<'_>) -> Option<Arc<T>> {
        let entry = self.table.find(hash, |entry| entry.key.borrowed() == key)?;
        // Read first: a key in use by several threads should not be written to by all of them.
        if !entry.used.load(Ordering::Relaxed) {
            entry.used.store(true, Ordering::Relaxed);
        }
        Some(Arc::clone(&entry.state))
    }

    /// Makes a place; `false` if every entry that was looked at is in use.
    fn evict(&mut self) -> bool
    where
        T: Forget,
    {
        let buckets = self.table.num_buckets();
        let mut left = LOOKED_AT;
        // One that was asked for lately gives way only if no other does.
        let mut second_choice = None;
        for _ in 0..buckets {
            self.hand = (self.hand + 1) % buckets;
            let Ok(bucket) = self.table.get_bucket_entry(self.hand) else {
                continue;
            };
            let entry = bucket.get();
            let is_held = Arc::strong_count(&entry.state) > 1;
            if !is_held && entry.state.may_forget() {
                if !entry.used.swap(false, Ordering::Relaxed) {
                    bucket.remove();
                    return true;
                }
                second_choice.get_or_insert(self.hand);
            }
            left -= 1;
            if left == 0 {
                break;
            }
        }
        let bucket = second_choice.and_then(|index| self.table.get_bucket_entry(index).ok());
        bucket.map(|bucket| bucket.remove()).is_some()
    }
}

impl<T> fmt::Debug for Registry<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("key_by", &self.key_by)
            .field("max_keys_per_shard", &self.max_keys_per_shard)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Forgettable;

    impl Forget for Forgettable {
        fn may_forget(&self) -> bool {
            true
        }
    }

    fn shard(keys: usize) -> Shard<Forgettable> {
        let hasher = RandomState::default();
        let hash = |entry: &Entry<Forgettable>| hasher.hash_one(entry.key.borrowed());
        let mut table = HashTable::new();
        for key in 0..keys {
            let entry = Entry {
                key: Key::new(key.to_string()),
                state: Arc::new(Forgettable),
                used: AtomicBool::new(true),
            };
            table.insert_unique(hash(&entry), entry, hash);
        }
        Shard { table, hand: 0 }
    }

    #[test]
    fn one_that_was_asked_for_gives_way_if_all_were() {
        let mut shard = shard(100);
        for left in (50..100).rev() {
            assert!(shard.evict());
            assert_eq!(shard.table.len(), left);
        }
    }

    #[test]
    fn no_more_entries_are_looked_at_than_so_many() {
        let mut shard = shard(1_000);
        assert!(shard.evict());
        let asked_for = |entry: &&Entry<_>| entry.used.load(Ordering::Relaxed);
        let passed = 999 - shard.table.iter().filter(asked_for).count();
        assert_eq!(passed, LOOKED_AT - 1);
    }

    #[test]
    fn the_hand_passes_what_was_asked_for_since_it_came_by() {
        let mut shard = shard(100);
        for entry in &shard.table {
            let is_favourite = entry.key == Key::new("7");
            entry.used.store(is_favourite, Ordering::Relaxed);
        }
        for left in (1..100).rev() {
            assert!(shard.evict());
            assert_eq!(shard.table.len(), left);
        }
        let last = shard.table.iter().next().expect("one is left");
        assert_eq!(last.key, Key::new("7"));
    }

    #[test]
    fn the_hand_gives_up_where_all_are_held() {
        let mut shard = shard(100);
        let held: Vec<_> = shard
            .table
            .iter()
            .map(|entry| Arc::clone(&entry.state))
            .collect();
        assert!(!shard.evict());
        assert_eq!((shard.table.len(), held.len()), (100, 100));
    }
}
