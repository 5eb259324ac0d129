//! How long calls took: a histogram that costs two additions.

use std::{
    array, fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// How long calls took; see [`CacheStats`](crate::CacheStats).
///
/// The percentiles are rounded up, by at most an eighth. All are zero if there were no calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Latency {
    /// The calls that were measured.
    pub count: u64,
    /// The arithmetic mean.
    pub mean: Duration,
    /// Half of the calls took at most this long.
    pub p50: Duration,
    /// 99 of 100 calls took at most this long.
    pub p99: Duration,
}

/// Counts calls by their time in nanoseconds. Each power of two is divided into eight buckets, as in HdrHistogram.
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    total_nanos: AtomicU64,
}

const BITS: u32 = 3;
const PER_POWER: usize = 1 << BITS;
const BUCKETS: usize = (u64::BITS - BITS + 1) as usize * PER_POWER;

impl Histogram {
    pub(crate) fn record(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(nanos)].fetch_add(1, Ordering::Relaxed);
        self.total_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    pub(crate) fn summary(&self) -> Latency {
        let counts: [u64; BUCKETS] =
            array::from_fn(|bucket| self.buckets[bucket].load(Ordering::Relaxed));
        let count: u64 = counts.iter().sum();
        if count == 0 {
            return Latency::default();
        }
        let percentile = |percent: u64| {
            let rank = (count * percent).div_ceil(100);
            let mut seen = 0;
            let bucket = counts.iter().position(|count| {
                seen += count;
                seen >= rank
            });
            Duration::from_nanos(bucket.map_or(0, longest_in))
        };
        Latency {
            count,
            mean: Duration::from_nanos(self.total_nanos.load(Ordering::Relaxed) / count),
            p50: percentile(50),
            p99: percentile(99),
        }
    }
}

fn bucket_of(nanos: u64) -> usize {
    // The first bit and the three after it.
    let shift = (u64::BITS - BITS - 1).saturating_sub(nanos.leading_zeros());
    shift as usize * PER_POWER + (nanos >> shift) as usize
}

fn longest_in(bucket: usize) -> u64 {
    let shift = (bucket / PER_POWER).saturating_sub(1);
    let first_bits = (bucket - shift * PER_POWER) as u64;
    // The last bucket ends where the integers do.
    ((first_bits + 1) << shift).wrapping_sub(1)
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            total_nanos: AtomicU64::new(0),
        }
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.summary().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_shortest_and_the_longest_time_have_a_bucket() {
        assert_eq!((bucket_of(0), longest_in(0)), (0, 0));
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
        assert_eq!(longest_in(BUCKETS - 1), u64::MAX);
    }

    #[test]
    fn percentiles_count_from_the_shortest() {
        let histogram = Histogram::default();
        assert_eq!(histogram.summary(), Latency::default());
        for nanos in 1..=100 {
            // Exact below sixteen; the others differ by more than an eighth.
            let nanos = if nanos <= 50 { 8 } else { 1 << (nanos / 2) };
            histogram.record(Duration::from_nanos(nanos));
        }
        let Latency {
            count, p50, p99, ..
        } = histogram.summary();
        assert_eq!((count, p50), (100, Duration::from_nanos(8)));
        let is_last_but_one = (1 << 49)..(1 << 49) + (1 << 46);
        assert!(
            is_last_but_one.contains(&(p99.as_nanos() as u64)),
            "{p99:?}"
        );
    }

    proptest! {
        #[test]
        fn a_bucket_ends_at_most_an_eighth_above_each_of_its_times(bits in 0u32..64, seed: u64) {
            let nanos = seed >> bits;
            let longest = longest_in(bucket_of(nanos));
            prop_assert!(longest >= nanos);
            prop_assert!(longest - nanos <= nanos / 8, "{nanos} {longest}");
            if let Some(next) = longest.checked_add(1) {
                prop_assert_eq!(bucket_of(next), bucket_of(nanos) + 1);
            }
        }
    }
}
