//! State per key, bounded.
//!
//! Keys come from requests, so whoever sends requests can invent them. A registry therefore holds at most a set
//! number of keys; when it is full, a key nobody uses gives way, and if none is found the new one shares the state
//! of all that found no place. So the number bounds memory, and no key in use is ever forgotten.
//!
//! It is sharded: a call takes one read lock, which readers share, on one of the shards. What gives way is found by
//! the clock algorithm (Corbató, 1968): a hand goes round a shard and takes the first entry that nobody holds and
//! nobody has asked for since the hand came by last. A new entry counts as not asked for, as in SIEVE (Zhang et al., 2024):
//! a key that was invented for one call gives way before any that came twice.

use std::{
    fmt,
    hash::BuildHasher,
    ops::Deref,
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
/// `T` is shared by reference; a key whose [`Keyed`] nobody else holds, and whose state says that it [may be
/// forgotten](Forget::may_forget), can be evicted.
///
/// A key costs its state, its text and about 80 bytes.
pub struct Registry<T> {
    key_by: KeyBy,
    shards: Box<[RwLock<Shard<T>>]>,
    hasher: RandomState,
    max_keys_per_shard: usize,
    /// For calls that have no key. They need no lookup, and all calls may be such.
    keyless: OnceLock<Arc<Keyed<T>>>,
    /// For keys that come when all places are taken by others in use.
    overflow: Arc<Keyed<T>>,
    make: Box<dyn Fn(Option<&Key>) -> T + Send + Sync>,
}

/// State that a registry may drop.
pub trait Forget {
    /// Whether nothing is lost if this state is made anew at its key's next call.
    ///
    /// Asked only when nobody but the registry holds it.
    fn may_forget(&self) -> bool;
}

/// The state of a key, with the key.
#[derive(Debug)]
pub struct Keyed<T> {
    // `None` for the state that keys share when the registry is full.
    key: Option<Key>,
    /// Whether it was asked for since it was made, or since the clock's hand came by last.
    used: AtomicBool,
    state: T,
}

/// What lies in the table is one pointer: a table is half empty after it has grown.
struct Shard<T> {
    table: HashTable<Arc<Keyed<T>>>,
    /// Where the clock's hand stands.
    hand: usize,
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
            overflow: Arc::new(Keyed::keyless(make(None))),
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
    pub fn get(&self, request: &dyn Described) -> Arc<Keyed<T>> {
        self.key_by.with_key(request, |key| self.get_or_make(key))
    }

    /// The state of `key`, made if there is none.
    pub fn get_key(&self, key: &Key) -> Arc<Keyed<T>> {
        self.get_or_make(key.borrowed())
    }

    /// The key that `request` has here.
    pub fn key_of(&self, request: &dyn Described) -> Key {
        self.key_by.with_key(request, |key| key.to_key())
    }

    /// The state of `key`, if there is one.
    #[must_use]
    pub fn peek(&self, key: &Key) -> Option<Arc<Keyed<T>>> {
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
        let mut each = |keyed: &Keyed<T>| each(keyed.key(), keyed);
        if let Some(keyed) = self.keyless.get() {
            each(keyed);
        }
        for shard in &self.shards {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            shard.table.iter().for_each(|keyed| each(keyed));
        }
        each(&self.overflow);
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

    fn get_or_make(&self, key: KeyRef<'_>) -> Arc<Keyed<T>> {
        if key.is_empty() {
            return Arc::clone(self.keyless.get_or_init(|| self.make(key)));
        }
        let hash = self.hasher.hash_one(key);
        let shard = self.shard(hash);
        let found = shard
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .find(hash, key);
        if let Some(keyed) = found {
            return keyed;
        }
        // Made before the lock is taken: it may be code of the user's.
        let made = self.make(key);
        let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(keyed) = shard.find(hash, key) {
            return keyed;
        }
        if shard.table.len() >= self.max_keys_per_shard && !shard.evict() {
            return Arc::clone(&self.overflow);
        }
        let hash_of = |keyed: &Arc<Keyed<T>>| self.hasher.hash_one(keyed.key_ref());
        shard.table.insert_unique(hash, Arc::clone(&made), hash_of);
        made
    }

    fn make(&self, key: KeyRef<'_>) -> Arc<Keyed<T>> {
        let key = key.to_key();
        let state = (self.make)(Some(&key));
        Arc::new(Keyed::new(Some(key), state))
    }

    fn shard(&self, hash: u64) -> &RwLock<Shard<T>> {
        // The table uses the hash's low and top bits; these lie between.
        let index = usize::try_from(hash >> 32).unwrap_or_default() % SHARDS;
        &self.shards[index]
    }
}

impl<T> Keyed<T> {
    fn new(key: Option<Key>, state: T) -> Self {
        Self {
            key,
            used: AtomicBool::new(false),
            state,
        }
    }

    /// State that belongs to no key.
    pub fn keyless(state: T) -> Self {
        Self::new(None, state)
    }

    /// The key; `None` for the state that keys share when the registry is full.
    pub fn key(&self) -> Option<&Key> {
        self.key.as_ref()
    }

    fn key_ref(&self) -> KeyRef<'_> {
        self.key.as_ref().map_or(KeyRef::EMPTY, Key::borrowed)
    }
}

impl<T> Deref for Keyed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.state
    }
}

impl<T> Shard<T> {
    fn find(&self, hash: u64, key: KeyRef<'_>) -> Option<Arc<Keyed<T>>> {
        let keyed = self.table.find(hash, |keyed| keyed.key_ref() == key)?;
        // Read first: a key in use by several threads should not be written to by all of them.
        if !keyed.used.load(Ordering::Relaxed) {
            keyed.used.store(true, Ordering::Relaxed);
        }
        Some(Arc::clone(keyed))
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
            let keyed = bucket.get();
            let is_held = Arc::strong_count(keyed) > 1;
            if !is_held && keyed.may_forget() {
                if !keyed.used.swap(false, Ordering::Relaxed) {
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

    /// A shard of keys that were all asked for.
    fn shard(keys: usize) -> Shard<Forgettable> {
        let hasher = RandomState::default();
        let hash = |keyed: &Arc<Keyed<Forgettable>>| hasher.hash_one(keyed.key_ref());
        let mut table = HashTable::new();
        for key in 0..keys {
            let key = Some(Key::new(key.to_string()));
            let keyed = Arc::new(Keyed::new(key, Forgettable));
            keyed.used.store(true, Ordering::Relaxed);
            table.insert_unique(hash(&keyed), keyed, hash);
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
        let asked_for = |keyed: &&Arc<Keyed<_>>| keyed.used.load(Ordering::Relaxed);
        let passed = 999 - shard.table.iter().filter(asked_for).count();
        assert_eq!(passed, LOOKED_AT - 1);
    }

    #[test]
    fn the_hand_passes_what_was_asked_for_since_it_came_by() {
        let mut shard = shard(100);
        for keyed in &shard.table {
            let is_favourite = keyed.key() == Some(&Key::new("7"));
            keyed.used.store(is_favourite, Ordering::Relaxed);
        }
        for left in (1..100).rev() {
            assert!(shard.evict());
            assert_eq!(shard.table.len(), left);
        }
        let last = shard.table.iter().next().expect("one is left");
        assert_eq!(last.key(), Some(&Key::new("7")));
    }

    #[test]
    fn the_hand_gives_up_where_all_are_held() {
        let mut shard = shard(100);
        let held: Vec<_> = shard.table.iter().map(Arc::clone).collect();
        assert!(!shard.evict());
        assert_eq!((shard.table.len(), held.len()), (100, 100));
    }
}
