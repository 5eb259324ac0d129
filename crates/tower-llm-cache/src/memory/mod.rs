//! Answers in this process's memory.

mod fifo;
mod moka;

use std::{
    any::Any,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tower_llm_core::ConfigError;

use crate::{key::CacheKey, policy::Policy, record::Record};

/// The memory that answers are held in: its size, and which answer goes first when it is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "it does nothing until a builder takes it"]
pub struct Memory {
    eviction: Eviction,
    max_bytes: u64,
    max_entries: u64,
}

/// Which answer is evicted first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Eviction {
    Lru,
    TinyLfu,
    Fifo,
}

/// A stored answer.
#[derive(Clone, Debug)]
pub(crate) struct Entry(pub(crate) Arc<Stored>);

#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) key: CacheKey,
    pub(crate) content: Content,
    pub(crate) stored_at: Instant,
    /// The age up to which it is fresh, in nanoseconds; hits may raise it.
    fresh_for: AtomicU64,
    ttl: Duration,
    max_ttl: Option<Duration>,
    /// How long it is of use after that.
    stale_for: Duration,
    /// Counted if answers are renewed ahead.
    hits: AtomicU32,
    is_renewed: AtomicBool,
}

/// What is stored of an answer.
#[derive(Clone)]
pub(crate) enum Content {
    Record(Record),
    /// The response of a typed service, and how many bytes it counts for.
    Value(Value, usize),
}

/// A response of some type, to be cloned.
pub(crate) type Value = Arc<dyn Any + Send + Sync>;

/// Where answers are held.
pub(crate) trait Store: Send + Sync + fmt::Debug {
    fn get(&self, digest: &[u8; 32]) -> Option<Entry>;
    fn insert(&self, entry: Entry);
    /// Inserts an answer, unless one that was stored later is held.
    // Only answers from outside of this process may be old.
    #[cfg(any(feature = "redis", test))]
    fn insert_unless_newer(&self, entry: Entry);
    fn remove(&self, digest: &[u8; 32]) -> bool;
    /// Removes the entries for which `matches` returns true; returns how many.
    fn remove_if(&self, matches: &dyn Fn(&Stored) -> bool) -> u64;
    fn size(&self) -> Size;
}

/// What a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    pub(crate) evicted: u64,
}

impl Memory {
    /// Evicts the answer that was used longest ago. The right choice for chats: most answers are never asked for again, and
    /// those that are, soon.
    pub const fn lru() -> Self {
        Self::new(Eviction::Lru)
    }

    /// Evicts by frequency: moka's `TinyLFU`, an approximate LFU with admission. A new answer is stored only if it was asked for
    /// more often than the one it would replace, so a scan of one-time requests displaces nothing. For skewed traffic, such
    /// as a list of common questions; in a chat it rejects what is new.
    pub const fn tiny_lfu() -> Self {
        Self::new(Eviction::TinyLfu)
    }

    /// Evicts the answer that was stored first, however often it was used.
    pub const fn fifo() -> Self {
        Self::new(Eviction::Fifo)
    }

    const fn new(eviction: Eviction) -> Self {
        Self {
            eviction,
            max_bytes: 256 << 20,
            max_entries: u64::MAX,
        }
    }

    /// Sets the maximum size of all answers together, in bytes; 256 MiB unless set. An answer counts its headers, its body and
    /// 512 bytes for what holds it.
    pub const fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Sets the maximum number of answers; no limit unless set.
    pub const fn max_entries(mut self, entries: u64) -> Self {
        self.max_entries = entries;
        self
    }

    pub(crate) fn build(self) -> Result<Box<dyn Store>, ConfigError> {
        for (field, value) in [
            ("max_bytes", self.max_bytes),
            ("max_entries", self.max_entries),
        ] {
            if value == 0 {
                let reason = "leave the memory out to hold nothing";
                return Err(ConfigError::new(field, value, reason));
            }
        }
        let Self {
            eviction,
            max_bytes,
            max_entries,
        } = self;
        Ok(match eviction {
            Eviction::Lru => Box::new(moka::Moka::lru(max_bytes, max_entries)),
            Eviction::TinyLfu => Box::new(moka::Moka::tiny_lfu(max_bytes, max_entries)),
            Eviction::Fifo => Box::new(fifo::Fifo::new(max_bytes, max_entries)),
        })
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::lru()
    }
}

impl Stored {
    /// An answer that is fresh up to the age `fresh_for`.
    pub(crate) fn new(
        key: CacheKey,
        content: impl Into<Content>,
        stored_at: Instant,
        fresh_for: Duration,
        policy: &Policy,
    ) -> Self {
        Self {
            key,
            content: content.into(),
            stored_at,
            fresh_for: AtomicU64::new(nanos(fresh_for)),
            ttl: policy.ttl,
            max_ttl: policy.max_ttl,
            stale_for: policy.stale_for(),
            hits: AtomicU32::new(0),
            is_renewed: AtomicBool::new(false),
        }
    }

    /// The record of an HTTP answer.
    pub(crate) fn record(&self) -> Option<&Record> {
        match &self.content {
            Content::Record(record) => Some(record),
            Content::Value(..) => None,
        }
    }

    pub(crate) fn fresh_until(&self) -> Instant {
        self.stored_at + Duration::from_nanos(self.fresh_for.load(Ordering::Relaxed))
    }

    /// Whether it is of no more use.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        now >= self.fresh_until() + self.stale_for
    }

    /// Counts a hit; returns how many there are.
    pub(crate) fn count_hit(&self) -> u32 {
        self.hits.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    /// Whether the last tenth of its life has begun.
    pub(crate) fn is_near_end(&self, now: Instant) -> bool {
        self.fresh_until().saturating_duration_since(now) <= self.ttl / 10
    }

    /// Whether the caller is to renew it: one is, once `may_renew` agrees.
    pub(crate) fn claim_renewal(&self, may_renew: impl FnOnce() -> bool) -> bool {
        if self.is_renewed.swap(true, Ordering::Relaxed) {
            return false;
        }
        let may_renew = may_renew();
        self.is_renewed.store(may_renew, Ordering::Relaxed);
        may_renew
    }

    /// Notes a hit, which may give it more time.
    pub(crate) fn renew(&self, now: Instant) {
        if let Some(max_ttl) = self.max_ttl {
            let age = now.saturating_duration_since(self.stored_at);
            let fresh_for = (age + self.ttl).min(max_ttl);
            self.fresh_for
                .fetch_max(nanos(fresh_for), Ordering::Relaxed);
        }
    }
}

/// Ten years, the longest, are a tenth of a percent of what fits.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Entry {
    pub(crate) fn digest(&self) -> &[u8; 32] {
        self.0.key.digest()
    }

    /// What it counts for.
    fn weight(&self) -> u64 {
        const OVERHEAD: u64 = 512;
        let bytes = match &self.0.content {
            Content::Record(record) => record.bytes().len(),
            Content::Value(_, bytes) => *bytes,
        };
        OVERHEAD.saturating_add(bytes as u64)
    }
}

impl From<Record> for Content {
    fn from(record: Record) -> Self {
        Self::Record(record)
    }
}

/// Without the answer.
impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Record(_) => "Record",
            Self::Value(..) => "Value",
        })
    }
}

#[cfg(test)]
mod tests;
