//! The calls that ended within so long.

use std::time::Duration;

use super::{Entry, Now, Tally};
use crate::{
    sync::{AtomicU64, Mutex, Ordering, lock},
    word::Clock,
};

/// So many parts of the window are counted apart, and leave it one by one.
const BUCKETS: usize = 10;

/// A ring of counts, one word each: the generation's low bits, the tick's, the bad calls and all of them.
///
/// A writer who finds an earlier tick in its bucket replaces the word, so that counting and making room are one
/// compare-and-swap. What lies in a bucket of another generation is as good as nothing. Whoever is the first in a tick
/// empties the buckets that were passed over, so that no tick is so old that it comes round and looks like a new one.
#[derive(Debug)]
pub(crate) struct Ring {
    clock: Clock,
    tick_nanos: u64,
    buckets: [AtomicU64; BUCKETS],
    /// The last tick in which something was counted.
    last: AtomicU64,
    waking: Mutex<()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bucket {
    stamp: u64,
    bad: u64,
    total: u64,
}

const COUNT_BITS: u32 = 20;
const TICK_BITS: u32 = 12;
const GENERATION_BITS: u32 = 12;
const MAX_COUNT: u64 = (1 << COUNT_BITS) - 1;
const MAX_TICK: u64 = (1 << TICK_BITS) - 1;
/// After so many ticks of rest nothing counts any more.
const LONG_REST: u64 = BUCKETS as u64;

impl Ring {
    pub(crate) fn new(window: Duration, clock: Clock) -> Self {
        Self {
            clock,
            tick_nanos: u64::try_from(window.as_nanos()).unwrap_or(u64::MAX) / BUCKETS as u64,
            buckets: Default::default(),
            last: AtomicU64::new(0),
            waking: Mutex::new(()),
        }
    }

    pub(crate) fn record(&self, entry: &Entry<'_>, now: &mut Now) -> bool {
        let tick = self.tick_at(now);
        if !self.note(tick) {
            return (entry.is_current)();
        }
        let stamp = stamp(entry.generation, tick);
        let bucket = self.bucket(tick);
        // Acquire: whoever sees a bucket of a later generation sees too that his own is over.
        let mut seen = bucket.load(Ordering::Acquire);
        loop {
            let was = Bucket::unpack(seen);
            let next = if was.stamp == stamp {
                was.with(entry.bad)
            } else if !(entry.is_current)() {
                return false;
            } else {
                Bucket::new(stamp).with(entry.bad)
            };
            let next = next.pack();
            match bucket.compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
    }

    pub(crate) fn tally(&self, generation: u32, now: &mut Now) -> Tally {
        let tick = self.tick_at(now);
        if tick.saturating_sub(self.last.load(Ordering::Acquire)) >= LONG_REST {
            return Tally::default();
        }
        let buckets = self
            .buckets
            .iter()
            .map(|bucket| bucket.load(Ordering::Acquire));
        buckets
            .map(Bucket::unpack)
            .filter(|bucket| bucket.is_of(generation) && bucket.is_within(tick))
            .fold(Tally::default(), |tally, bucket| Tally {
                bad: tally.bad + bucket.bad,
                total: tally.total + bucket.total,
            })
    }

    pub(crate) fn clear(&self) {
        for bucket in &self.buckets {
            // Not a store: loom puts one in no order with what is exchanged.
            bucket.swap(0, Ordering::AcqRel);
        }
    }

    /// Notes that something is counted in `tick`; `false` if that is past.
    fn note(&self, tick: u64) -> bool {
        let last = self.last.load(Ordering::Acquire);
        if tick <= last {
            return last - tick < LONG_REST;
        }
        if tick - last >= LONG_REST {
            // Emptied by one; who comes meanwhile waits.
            let _waking = lock(&self.waking);
            if tick.saturating_sub(self.last.load(Ordering::Acquire)) >= LONG_REST {
                self.clear();
                self.last.store(tick, Ordering::Release);
            }
        }
        let last = self.last.fetch_max(tick, Ordering::AcqRel);
        for passed_over in last + 1..tick {
            self.empty(passed_over);
        }
        true
    }

    /// Empties the bucket of `tick`, unless somebody has counted in that tick after all.
    fn empty(&self, tick: u64) {
        let bucket = self.bucket(tick);
        let seen = bucket.load(Ordering::Relaxed);
        if Bucket::unpack(seen).age_at(tick) != 0 {
            // Whoever changes it meanwhile counts in that tick.
            let _ = bucket.compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    fn bucket(&self, tick: u64) -> &AtomicU64 {
        &self.buckets[(tick % LONG_REST) as usize]
    }

    fn tick_at(&self, now: &mut Now) -> u64 {
        let nanos = now.nanos(self.clock);
        // Most likely the last one is still current, which is known without a division.
        let last = self.last.load(Ordering::Relaxed);
        if nanos.wrapping_sub(last.wrapping_mul(self.tick_nanos)) < self.tick_nanos {
            last
        } else {
            nanos / self.tick_nanos
        }
    }
}

impl Bucket {
    fn new(stamp: u64) -> Self {
        Self {
            stamp,
            bad: 0,
            total: 0,
        }
    }

    /// With one more call. When there is room for no more, a million of them, those that are in count for half: their
    /// share is what matters.
    fn with(self, bad: bool) -> Self {
        let halved = u32::from(self.total == MAX_COUNT);
        Self {
            bad: (self.bad >> halved) + u64::from(bad),
            total: (self.total >> halved) + 1,
            ..self
        }
    }

    fn is_of(self, generation: u32) -> bool {
        self.stamp >> TICK_BITS == u64::from(generation) & ((1 << GENERATION_BITS) - 1)
    }

    /// How many ticks `tick` is after this one's, which counts round.
    fn age_at(self, tick: u64) -> u64 {
        tick.wrapping_sub(self.stamp) & MAX_TICK
    }

    /// Whether it counts at `tick`; one that somebody has begun since does.
    fn is_within(self, tick: u64) -> bool {
        !(LONG_REST..=MAX_TICK - LONG_REST).contains(&self.age_at(tick))
    }

    fn pack(self) -> u64 {
        self.stamp << (2 * COUNT_BITS) | self.bad << COUNT_BITS | self.total
    }

    fn unpack(word: u64) -> Self {
        Self {
            stamp: word >> (2 * COUNT_BITS),
            bad: word >> COUNT_BITS & MAX_COUNT,
            total: word & MAX_COUNT,
        }
    }
}

fn stamp(generation: u32, tick: u64) -> u64 {
    let generation = u64::from(generation) & ((1 << GENERATION_BITS) - 1);
    generation << TICK_BITS | tick & MAX_TICK
}
