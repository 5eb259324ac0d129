//! A window over a time.

use std::time::Duration;

use super::{Ended, Run, Tally};
use crate::{
    clock::{Clock, Now},
    sync::{AtomicU64, Mutex, Ordering, lock},
};

/// Number of buckets of the window; the oldest one leaves it at a time.
const BUCKETS: usize = 10;

/// A ring of buckets, one word each: low bits of the generation, low bits of the tick, bad calls and all calls.
///
/// A writer that finds an earlier tick in its bucket replaces the word, so counting and clearing are one compare-and-swap.
/// A bucket of another generation counts as empty. The first writer in a tick clears the buckets of skipped ticks, so that
/// no old tick wraps around and looks like a new one.
#[derive(Debug)]
pub(crate) struct Time {
    clock: Clock,
    tick_nanos: u64,
    buckets: [AtomicU64; BUCKETS],
    /// The last tick in which something was counted.
    last: AtomicU64,
    waking: Mutex<()>,
    run: Run,
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
/// After so many ticks without a call, no bucket counts any more.
const LONG_REST: u64 = BUCKETS as u64;

impl Time {
    pub(super) fn new(window: Duration, clock: Clock) -> Self {
        Self {
            clock,
            tick_nanos: u64::try_from(window.as_nanos()).unwrap_or(u64::MAX) / BUCKETS as u64,
            buckets: Default::default(),
            last: AtomicU64::new(0),
            waking: Mutex::new(()),
            run: Run::default(),
        }
    }

    pub(super) fn record(&self, ended: Ended<'_>, now: &mut Now) -> Option<u32> {
        let tick = self.tick_at(now);
        let is_current = if self.note(tick) {
            self.count(ended, tick)
        } else {
            // It has left the window, but not the run.
            ended.is_current()
        };
        // If its generation ends meanwhile, the run no longer matters.
        is_current.then(|| self.run.record(ended).unwrap_or_default())
    }

    /// Counts a call in the bucket of `tick`; `false` if it is of an earlier generation.
    fn count(&self, ended: Ended<'_>, tick: u64) -> bool {
        let stamp = stamp(ended.generation(), tick);
        let bucket = self.bucket(tick);
        // Acquire: a thread that sees a bucket of a later generation also sees that its own has ended.
        let mut seen = bucket.load(Ordering::Acquire);
        loop {
            let was = Bucket::unpack(seen);
            let next = if was.stamp == stamp {
                was.with(ended.is_bad)
            } else if !ended.is_current() {
                return false;
            } else {
                Bucket::new(stamp).with(ended.is_bad)
            };
            let next = next.pack();
            match bucket.compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
    }

    pub(super) fn tally(&self, generation: u32, now: &mut Now) -> Tally {
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

    pub(super) fn clear(&self) {
        for bucket in &self.buckets {
            // Not a store: loom does not order stores with compare-exchanges.
            bucket.swap(0, Ordering::AcqRel);
        }
    }

    /// Notes that a call is counted in `tick`; `false` if that has passed.
    fn note(&self, tick: u64) -> bool {
        let last = self.last.load(Ordering::Acquire);
        if tick <= last {
            return last - tick < LONG_REST;
        }
        if tick - last >= LONG_REST {
            // One thread clears the buckets; others wait for it.
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

    /// Clears the bucket of `tick`, unless a call was counted in that tick meanwhile.
    fn empty(&self, tick: u64) {
        let bucket = self.bucket(tick);
        let seen = bucket.load(Ordering::Relaxed);
        if Bucket::unpack(seen).age_at(tick) != 0 {
            // If the exchange fails, another thread has counted in that tick.
            let _ = bucket.compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    fn bucket(&self, tick: u64) -> &AtomicU64 {
        &self.buckets[(tick % LONG_REST) as usize]
    }

    fn tick_at(&self, now: &mut Now) -> u64 {
        let nanos = now.nanos(self.clock);
        // Most likely the last tick is still current, which is checked without a division.
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

    /// Adds one call. A full bucket, with a million calls, halves its counts first: only their ratio matters.
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

    /// How many ticks `tick` is after this one's, which wraps around.
    fn age_at(self, tick: u64) -> u64 {
        tick.wrapping_sub(self.stamp) & MAX_TICK
    }

    /// Whether it counts at `tick`; a later bucket of another thread does.
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
