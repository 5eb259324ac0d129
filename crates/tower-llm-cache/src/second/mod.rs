//! Answers that several processes share, in Redis.
//!
//! A look-up waits for Redis. Those for the same answer at the same time are one: most are part of a flight, those for the
//! items of a batch are shared here. Everything else is done by two tasks of the layer: one stores answers, one hears of
//! removals by other processes.

mod envelope;
mod look;
mod lookups;
mod names;
mod removals;
mod writer;

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::{runtime::Handle, task::AbortHandle};
use tower_llm_core::ConfigError;
use tower_llm_redis::{Event, Redis, StoreError, Subscription};

use self::{
    envelope::Codec,
    lookups::Lookups,
    names::Names,
    removals::{Hearing, Removals, Since},
    writer::{Job, Writer},
};
pub(crate) use self::{envelope::Opened, look::LookFirst};
use crate::{
    error::InvalidateError, handle::Removed, key::CacheKey, memory::Store, record::Record,
    shared::Counters, target::Target,
};

/// Answers below this size gain next to nothing from compression.
const COMPRESS_ABOVE: usize = 2_048;

/// The Redis, Valkey or Cluster in which answers are shared, and how they are stored there.
///
/// An answer stands under its [`CacheKey`], `ai:completion:{model}:{digest}`, after the cache's
/// [`namespace`](crate::CacheBuilder::namespace) if it has one, and expires by itself: after its time to live or
/// up to 10 % earlier, so that answers that were stored together do not expire together.
///
/// | setting | default |
/// |---|---|
/// | [`secret`](Self::secret) | none: a reader of Redis can read the answers |
/// | [`compress_above`](Self::compress_above) | 2 KiB |
#[derive(Clone)]
#[must_use = "it does nothing until a builder takes it"]
pub struct SharedCache {
    redis: Redis,
    secret: Option<[u8; 32]>,
    compress_above: Option<usize>,
}

/// The second tier of a cache.
pub(crate) struct SecondTier {
    redis: Redis,
    names: Names,
    lookups: Lookups,
    codec: Arc<Codec>,
    writer: Writer,
    removals: Arc<Removals>,
    counters: Arc<Counters>,
    listener: AbortHandle,
}

// === impl SharedCache ===

impl SharedCache {
    /// Shares answers in a Redis. One client for a process is enough: it can serve limits and circuits, too.
    pub fn new(redis: Redis) -> Self {
        Self {
            redis,
            secret: None,
            compress_above: Some(COMPRESS_ABOVE),
        }
    }

    /// Seals answers with XChaCha20-Poly1305 under a key that is derived from `secret`; none unless set.
    ///
    /// All processes need the same one: what is sealed with another secret, or not sealed, is not used. It hides the answers
    /// and their headers; models stand in the keys, and [`CacheBuilder::secret`](crate::CacheBuilder::secret) keeps keys from
    /// being guessed.
    pub fn secret(mut self, secret: [u8; 32]) -> Self {
        self.secret = Some(secret);
        self
    }

    /// Sets the size in bytes above which answers are compressed with LZ4, by the task that stores them; `None` for never.
    pub fn compress_above(mut self, bytes: impl Into<Option<usize>>) -> Self {
        self.compress_above = bytes.into();
        self
    }

    pub(crate) fn start(
        self,
        namespace: &str,
        memory: Option<Arc<dyn Store>>,
        counters: Arc<Counters>,
    ) -> Result<SecondTier, ConfigError> {
        let runtime = Handle::try_current().map_err(|_| {
            let reason = "answers are shared by tasks, which need a tokio runtime";
            ConfigError::new("shared", "outside a runtime", reason)
        })?;
        if self.secret == Some([0; 32]) {
            let reason = "all of it is zero; leave it out to seal nothing";
            return Err(ConfigError::new("shared.secret", "...", reason));
        }
        let codec = Arc::new(Codec::new(self.secret.as_ref(), self.compress_above));
        let removals = Arc::new(Removals::new());
        let names = Names::new(namespace);
        let subscription = self.redis.subscribe(names.channel());
        let listening = listen(subscription, memory, Arc::clone(&removals));
        let writer = Writer::start(
            &runtime,
            self.redis.clone(),
            names.clone(),
            Arc::clone(&codec),
            Arc::clone(&removals),
            Arc::clone(&counters),
        );
        Ok(SecondTier {
            redis: self.redis,
            names,
            lookups: Lookups::default(),
            codec,
            writer,
            removals,
            counters,
            listener: runtime.spawn(listening).abort_handle(),
        })
    }
}

impl fmt::Debug for SharedCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedCache")
            .field("redis", &self.redis)
            .field("secret", &self.secret.map(|_| "..."))
            .field("compress_above", &self.compress_above)
            .finish()
    }
}

// === impl SecondTier ===

impl SecondTier {
    /// Looks for an answer; none if Redis is unavailable, or what stands there is not one. Returns when the look-up began, to ask
    /// later whether the answer [was removed](Self::was_removed) since.
    pub(crate) async fn get(&self, key: &CacheKey) -> (Since, Option<Opened>) {
        let since = self.removals.since();
        let looking = self.lookups.join_or_start(*key.digest(), since.epoch, || {
            let (redis, name) = (self.redis.clone(), self.names.of(key));
            let (codec, counters) = (Arc::clone(&self.codec), Arc::clone(&self.counters));
            async move { look(&redis, &name, &codec, &counters).await }
        });
        (since, looking.await)
    }

    /// Has an answer stored; does not wait.
    pub(crate) fn store(&self, key: &CacheKey, record: &Record, ttl: Duration) {
        self.writer.send(Job {
            key: key.clone(),
            record: record.bytes().clone(),
            stored_at_ms: unix_ms(),
            ttl: jittered(ttl),
            since: self.removals.epoch(),
        });
    }

    /// Whether the memory lacks what other processes have removed. While Redis is unavailable, nothing is shared, and this
    /// process works from its memory as if it was alone.
    pub(crate) fn memory_is_current(&self) -> bool {
        self.removals.are_heard() || !self.redis.is_reachable()
    }

    /// Whether an answer was removed since, as far as is known; in doubt it was.
    pub(crate) fn was_removed(&self, key: &CacheKey, since: Since) -> bool {
        self.removals.concern_look_up(key, since)
    }

    /// Removes from Redis what was stored before, and tells the other processes. `in_memory` are the answers that were removed
    /// from this process's memory meanwhile.
    pub(crate) async fn remove(
        &self,
        target: Target,
        remove_from_memory: impl Fn(&Target) -> u64,
    ) -> Result<Removed, InvalidateError> {
        // Answers that wait to be stored are not, from here on.
        self.removals.note(target.clone());
        let mut memory = remove_from_memory(&target);
        // Those on their way to Redis arrive before they are removed.
        self.writer.settled().await;
        let removed = self.remove_from_redis(&target).await;
        // A look-up that began meanwhile may have read an answer before it was removed there.
        self.removals.note(target.clone());
        memory += remove_from_memory(&target);
        // In any case: no other process is to serve it from its memory.
        let message = self.removals.message(&target);
        let told = self.redis.publish(&self.names.channel(), message).await;
        match removed.and_then(|shared| told.map(|()| shared)) {
            Ok(shared) => Ok(Removed { memory, shared }),
            Err(error) => Err(InvalidateError::new(memory, error)),
        }
    }

    async fn remove_from_redis(&self, target: &Target) -> Result<u64, StoreError> {
        if let Target::Key(key) = target {
            return self.redis.remove(vec![self.names.of(key)]).await;
        }
        let mut pages = self.redis.scan(&self.names.matching(target));
        let (mut removed, mut failed) = (0, None);
        while let Some(page) = pages.next().await {
            let result = match page {
                Ok(mut names) => {
                    // The server knows more patterns than we do, and others may use keys that look like ours.
                    names.retain(|name| {
                        let key = self.names.parse(name);
                        key.is_some_and(|key| target.is(&key))
                    });
                    self.redis.remove(names).await
                }
                Err(error) => Err(error),
            };
            match result {
                Ok(keys) => removed += keys,
                // The other nodes are served nevertheless.
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(removed), Err)
    }
}

impl Drop for SecondTier {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl fmt::Debug for SecondTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecondTier")
            .field("redis", &self.redis)
            .finish_non_exhaustive()
    }
}

async fn look(redis: &Redis, name: &str, codec: &Codec, counters: &Counters) -> Option<Opened> {
    let Ok(value) = redis.get(name).await else {
        counters.shared_failures.fetch_add(1, Ordering::Relaxed);
        return None;
    };
    let opened = codec.open(name, &value?, unix_ms());
    if opened.is_none() {
        counters.shared_unreadable.fetch_add(1, Ordering::Relaxed);
    }
    opened
}

/// Removes from memory what other processes have removed.
async fn listen(
    mut messages: Subscription,
    memory: Option<Arc<dyn Store>>,
    removals: Arc<Removals>,
) {
    let forget = |target: &Target| {
        if let Some(memory) = &memory {
            target.remove_from(&**memory);
        }
    };
    let mut has_heard = false;
    loop {
        match messages.next().await {
            Event::Message(message) => {
                if let Some(target) = removals.heard(&message) {
                    removals.note(target.clone());
                    forget(&target);
                }
            }
            Event::Lost => {
                // What this process is about to store is younger than it is itself, and is stored all the same when it first
                // connects.
                if has_heard {
                    removals.note(Target::All);
                }
                has_heard = true;
                removals.set_hearing(Hearing::Emptying);
                forget(&Target::All);
                removals.set_hearing(match messages.is_connected() {
                    true => Hearing::Yes,
                    // It was lost again, and that event may have been dropped.
                    false => Hearing::No,
                });
            }
            Event::Disconnected => removals.set_hearing(Hearing::No),
        }
    }
}

/// Up to a tenth less.
fn jittered(ttl: Duration) -> Duration {
    ttl.mul_f64(1.0 - fastrand::f64() / 10.0)
}

#[expect(
    clippy::disallowed_methods,
    reason = "processes have no other clock in common"
)]
fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// A copy that holds no more memory than its own: what comes from a connection is a part of a larger buffer.
fn owned(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ttl_is_up_to_a_tenth_shorter_and_not_always_the_same() {
        let ttl = Duration::from_secs(1_000);
        let all: Vec<_> = (0..100).map(|_| jittered(ttl)).collect();
        assert!(all.iter().all(|&jittered| jittered <= ttl));
        assert!(all.iter().all(|jittered| jittered.as_secs() >= 900));
        assert!(all.iter().any(|&jittered| jittered != all[0]));
    }
}
