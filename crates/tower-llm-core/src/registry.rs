//! State per key, bounded.
//!
//! Keys come from requests, so clients can invent them. A registry therefore holds at most a set number of keys. When
//! it is full, a new key evicts one that is not in use; if every key is in use, the new key shares one overflow state with
//! all others that did not fit. Memory is bounded by the number of keys, and a key in use is never evicted.
//!
//! The map is sharded: a lookup takes one read lock, which readers share, on one shard. Eviction is the clock
//! algorithm (Corbató, 1968): a hand moves around a shard and evicts the first entry that is not held and was not looked up
//! since the hand passed it last. As in SIEVE (Zhang et al., 2024), inserting an entry does not count as a lookup: a
//! key invented for one call is evicted before any key that was used twice.

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

/// Entries inspected to evict one; bounded, so that invented keys cannot make other calls wait for the lock.
const MAX_INSPECTED: usize = 64;

/// Keys a registry holds unless another number is set.
const DEFAULT_MAX_KEYS: usize = 10_000;

/// Holds the state of each key, up to a maximum number of keys.
///
/// States are shared as [`Arc<Keyed<T>>`](Keyed). A key can be evicted if no such reference to it is held and its state is
/// [evictable](Evictable::is_evictable).
///
/// A key costs its state, its text and about 80 bytes.
pub struct Registry<T> {
    key_by: KeyBy,
    shards: Box<[RwLock<Shard<T>>]>,
    hasher: RandomState,
    max_keys_per_shard: usize,
    /// For calls without a key. They need no lookup, and every call may be one.
    keyless: OnceLock<Arc<Keyed<T>>>,
    /// For keys that arrive when the registry is full of keys in use.
    overflow: Arc<Keyed<T>>,
    make: Box<dyn Fn(Option<&Key>) -> T + Send + Sync>,
}

/// State that a [`Registry`] may evict.
pub trait Evictable {
    /// Whether nothing is lost if this state is dropped and its key's next call makes a new one.
    ///
    /// Called only if the registry holds the last reference to it.
    fn is_evictable(&self) -> bool;
}

/// The state of a key, together with the key.
#[derive(Debug)]
pub struct Keyed<T> {
    // `None` for the state that keys share when the registry is full.
    key: Option<Key>,
    /// Whether it was looked up since it was inserted, or since the clock's hand passed it last.
    used: AtomicBool,
    state: T,
}

/// The table holds pointers, not states: it is half empty after it has grown.
struct Shard<T> {
    table: HashTable<Arc<Keyed<T>>>,
    /// The bucket that the clock's hand points at.
    hand: usize,
}

impl<T: Evictable> Registry<T> {
    /// Creates a registry: `key_by` chooses the key of a request, `make` creates the state of a new key.
    ///
    /// `make` receives the key, or `None` for the state that keys share when the registry is full.
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

    /// Sets the maximum number of keys; 10,000 unless set. Rounded up to a multiple of 16; the empty key does not count.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if `max_keys` is zero.
    pub fn max_keys(mut self, max_keys: usize) -> Result<Self, ConfigError> {
        let max_keys = ConfigError::check_nonzero("max_keys", max_keys)?;
        self.max_keys_per_shard = max_keys.div_ceil(SHARDS);
        Ok(self)
    }

    /// Returns the state of the key of `request`, created if there is none.
    pub fn get(&self, request: &dyn Described) -> Arc<Keyed<T>> {
        if let Some(keyless) = self.keyless.get()
            && self.key_by.is_shared()
        {
            return Arc::clone(keyless);
        }
        self.key_by.with_key(request, |key| self.get_or_make(key))
    }

    /// Returns the state of `key`, created if there is none.
    pub fn by_key(&self, key: &Key) -> Arc<Keyed<T>> {
        self.get_or_make(key.borrowed())
    }

    /// Returns the key of `request`.
    pub fn key_of(&self, request: &dyn Described) -> Key {
        self.key_by.with_key(request, |key| key.to_key())
    }

    /// Returns the state of `key` if there is one, without creating it.
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

    /// Runs `each` on every key and its state, with one shard locked at a time. The last one is the state that keys share when
    /// the registry is full.
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

    /// Returns the number of keys.
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

    /// Returns whether there are no keys.
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
        // Created before the lock is taken: `make` may be the user's code.
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
        // The table uses the low and the top bits of the hash; these lie between.
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

    /// Wraps state that belongs to no key.
    pub fn keyless(state: T) -> Self {
        Self::new(None, state)
    }

    /// Returns the key; `None` for the state that keys share when the registry is full.
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
        // Read first: threads that use the same key should not all write to its cache line.
        if !keyed.used.load(Ordering::Relaxed) {
            keyed.used.store(true, Ordering::Relaxed);
        }
        Some(Arc::clone(keyed))
    }

    /// Evicts an entry; `false` if every inspected entry is in use.
    fn evict(&mut self) -> bool
    where
        T: Evictable,
    {
        let buckets = self.table.num_buckets();
        let mut left = MAX_INSPECTED;
        // An entry that was looked up lately is evicted only if no other can be.
        let mut second_choice = None;
        for _ in 0..buckets {
            self.hand = (self.hand + 1) % buckets;
            let Ok(bucket) = self.table.get_bucket_entry(self.hand) else {
                continue;
            };
            let keyed = bucket.get();
            let is_held = Arc::strong_count(keyed) > 1;
            if !is_held && keyed.is_evictable() {
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

    struct State;

    impl Evictable for State {
        fn is_evictable(&self) -> bool {
            true
        }
    }

    /// A shard of keys that were all looked up.
    fn shard(keys: usize) -> Shard<State> {
        let hasher = RandomState::default();
        let hash = |keyed: &Arc<Keyed<State>>| hasher.hash_one(keyed.key_ref());
        let mut table = HashTable::new();
        for key in 0..keys {
            let key = Some(Key::new(key.to_string()));
            let keyed = Arc::new(Keyed::new(key, State));
            keyed.used.store(true, Ordering::Relaxed);
            table.insert_unique(hash(&keyed), keyed, hash);
        }
        Shard { table, hand: 0 }
    }

    #[test]
    fn evicts_a_used_key_if_all_were_used() {
        let mut shard = shard(100);
        for left in (50..100).rev() {
            assert!(shard.evict());
            assert_eq!(shard.table.len(), left);
        }
    }

    #[test]
    fn inspects_no_more_entries_than_the_maximum() {
        let mut shard = shard(1_000);
        assert!(shard.evict());
        let is_used = |keyed: &&Arc<Keyed<_>>| keyed.used.load(Ordering::Relaxed);
        let passed = 999 - shard.table.iter().filter(is_used).count();
        assert_eq!(passed, MAX_INSPECTED - 1);
    }

    #[test]
    fn does_not_evict_a_key_that_was_used_since_the_hand_passed() {
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
    fn evicts_nothing_if_every_key_is_held() {
        let mut shard = shard(100);
        let held: Vec<_> = shard.table.iter().map(Arc::clone).collect();
        assert!(!shard.evict());
        assert_eq!((shard.table.len(), held.len()), (100, 100));
    }
}
