//! Distributions of times.
//!
//! Counted in HDR histograms from 8 µs to an hour: a percentile is at most 0.8 % above the time that it stands for, and never
//! below it by more than 8 µs. Minimum, mean and maximum are exact.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::{Counter, Histogram};
use serde::Serialize;

/// The resolution, in micros.
const LOW: u64 = 8;
/// Longer times count as this one, in micros.
const HIGH: u64 = 3_600_000_000;
/// Decimal digits that are kept.
const DIGITS: u8 = 2;

/// Times of calls, summed up. In JSON they are in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Times {
    /// The number of times.
    pub count: u64,
    /// The shortest.
    #[serde(serialize_with = "seconds")]
    pub min: Duration,
    /// The mean.
    #[serde(serialize_with = "seconds")]
    pub mean: Duration,
    /// The time that half of the calls do not exceed.
    #[serde(serialize_with = "seconds")]
    pub p50: Duration,
    /// The time that 95 % do not exceed.
    #[serde(serialize_with = "seconds")]
    pub p95: Duration,
    /// The time that 99 % do not exceed.
    #[serde(serialize_with = "seconds")]
    pub p99: Duration,
    /// The longest.
    #[serde(serialize_with = "seconds")]
    pub max: Duration,
}

pub(crate) fn seconds<S: serde::Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(time.as_secs_f64())
}

/// What is exact.
#[derive(Clone, Copy, Debug)]
struct Extent {
    count: u64,
    sum: u64,
    min: u64,
    max: u64,
}

/// Times as they are counted: each costs the same, however many there are.
#[derive(Clone, Debug)]
pub(crate) struct Distribution<C: Counter> {
    extent: Extent,
    counts: Histogram<C>,
}

/// Few times, by their counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sparse {
    extent: Extent,
    counts: BTreeMap<u64, u64>,
}

// === impl Extent ===

impl Default for Extent {
    fn default() -> Self {
        Self {
            count: 0,
            sum: 0,
            min: u64::MAX,
            max: 0,
        }
    }
}

impl Extent {
    fn add(&mut self, other: &Self) {
        self.count += other.count;
        self.sum = self.sum.saturating_add(other.sum);
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// `at` returns the highest time, in micros, that counts as the one of this rank, which is from 1 to the count.
    fn times(&self, at: impl Fn(u64) -> u64) -> Times {
        if self.count == 0 {
            return Times::default();
        }
        let percentile = |percent: u64| {
            let rank = (self.count * percent).div_ceil(100).max(1);
            let nanos = at(rank).saturating_mul(1_000).clamp(self.min, self.max);
            Duration::from_nanos(nanos)
        };
        Times {
            count: self.count,
            min: Duration::from_nanos(self.min),
            mean: Duration::from_nanos(self.sum / self.count),
            p50: percentile(50),
            p95: percentile(95),
            p99: percentile(99),
            max: Duration::from_nanos(self.max),
        }
    }
}

// === impl Distribution ===

impl<C: Counter> Distribution<C> {
    pub(crate) fn new() -> Self {
        let counts = Histogram::new_with_bounds(LOW, HIGH, DIGITS);
        Self {
            extent: Extent::default(),
            counts: counts.expect("the bounds are valid"),
        }
    }

    pub(crate) fn record(&mut self, time: Duration) {
        let nanos = nanos(time);
        self.extent.add(&Extent {
            count: 1,
            sum: nanos,
            min: nanos,
            max: nanos,
        });
        self.counts.saturating_record(nanos / 1_000);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.extent.count == 0
    }

    /// Moves everything to where it is kept.
    pub(crate) fn drain(&mut self, total: &mut Distribution<u64>, recent: &mut Sparse) {
        if self.is_empty() {
            return;
        }
        total.extent.add(&self.extent);
        recent.extent.add(&self.extent);
        for step in self.counts.iter_recorded() {
            let (micros, count) = (step.value_iterated_to(), step.count_at_value().as_u64());
            total.counts.saturating_record_n(micros, count);
            *recent.counts.entry(micros).or_default() += count;
        }
        self.extent = Extent::default();
        self.counts.reset();
    }
}

impl Distribution<u64> {
    pub(crate) fn merge(&mut self, other: &Self) {
        if !other.is_empty() {
            self.extent.add(&other.extent);
            self.counts
                .add(&other.counts)
                .expect("the bounds are the same");
        }
    }

    /// How many there are within each of `bounds`, which rise.
    #[cfg(feature = "metrics")]
    pub(crate) fn at_most(&self, bounds: impl Iterator<Item = Duration>) -> Vec<u64> {
        let mut recorded = self.counts.iter_recorded().peekable();
        let mut count = 0;
        let counts = bounds.map(|bound| {
            let micros = nanos(bound) / 1_000;
            while let Some(step) = recorded.next_if(|step| step.value_iterated_to() <= micros) {
                count += step.count_at_value();
            }
            count
        });
        counts.collect()
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn count(&self) -> u64 {
        self.extent.count
    }

    #[cfg(feature = "metrics")]
    pub(crate) fn sum(&self) -> Duration {
        Duration::from_nanos(self.extent.sum)
    }

    pub(crate) fn times(&self) -> Times {
        self.extent.times(|rank| {
            // `value_at_quantile` rounds a ratio; the rank is exact.
            let mut seen = 0;
            let mut recorded = self.counts.iter_recorded();
            let reached = recorded.find(|step| {
                seen += step.count_at_value();
                seen >= rank
            });
            reached.map_or(HIGH, |step| step.value_iterated_to())
        })
    }
}

// === impl Sparse ===

impl Sparse {
    pub(crate) fn merge(&mut self, other: &Self) {
        self.extent.add(&other.extent);
        for (micros, count) in &other.counts {
            *self.counts.entry(*micros).or_default() += count;
        }
    }

    pub(crate) fn times(&self) -> Times {
        self.extent.times(|rank| {
            let mut seen = 0;
            let mut counts = self.counts.iter();
            let reached = counts.find(|(_, count)| {
                seen += *count;
                seen >= rank
            });
            reached.map_or(HIGH, |(micros, _)| *micros)
        })
    }
}

/// Nanoseconds that a number can hold: 584 years.
pub(crate) fn nanos(time: Duration) -> u64 {
    let seconds = time.as_secs().saturating_mul(1_000_000_000);
    seconds.saturating_add(time.subsec_nanos().into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: u64 = 3_600_000_000;

    fn counted(micros: &[u64]) -> (Times, Times) {
        let mut written = Distribution::<u32>::new();
        for micros in micros {
            written.record(Duration::from_micros(*micros));
        }
        let (mut total, mut recent) = (Distribution::new(), Sparse::default());
        written.drain(&mut total, &mut recent);
        assert!(written.is_empty());
        (total.times(), recent.times())
    }

    /// The time that so many percent do not exceed.
    fn exact(sorted: &[u64], percent: usize) -> u64 {
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted[rank - 1]
    }

    fn is_close(percentile: Duration, exact: u64) -> bool {
        let micros = u64::try_from(percentile.as_micros()).unwrap();
        exact <= micros + 8 && micros <= exact + exact / 128 + 8
    }

    proptest! {
        #[test]
        fn percentiles_are_within_their_error_and_the_rest_is_exact(
            micros in prop::collection::vec(0_u64..HOUR, 1..300),
            scale in 1_u64..100_000,
        ) {
            let mut micros: Vec<u64> = micros.iter().map(|micros| micros / scale).collect();
            let (total, recent) = counted(&micros);
            prop_assert_eq!(total, recent);
            micros.sort_unstable();
            let sum: u64 = micros.iter().sum();
            prop_assert_eq!(total.count, micros.len() as u64);
            prop_assert_eq!(total.min, Duration::from_micros(micros[0]));
            prop_assert_eq!(total.max, Duration::from_micros(micros[micros.len() - 1]));
            let mean = sum * 1_000 / total.count;
            prop_assert_eq!(total.mean, Duration::from_nanos(mean));
            for (percentile, percent) in [(total.p50, 50), (total.p95, 95), (total.p99, 99)] {
                let exact = exact(&micros, percent);
                prop_assert!(is_close(percentile, exact), "p{} is {:?}, not {}", percent, percentile, exact);
            }
        }

        #[test]
        fn two_that_are_merged_are_as_one(
            one in prop::collection::vec(0_u64..HOUR, 0..50),
            other in prop::collection::vec(0_u64..HOUR, 0..50),
        ) {
            let of = |micros: &[u64]| {
                let mut written = Distribution::<u32>::new();
                micros.iter().for_each(|micros| written.record(Duration::from_micros(*micros)));
                let (mut total, mut recent) = (Distribution::new(), Sparse::default());
                written.drain(&mut total, &mut recent);
                (total, recent)
            };
            let ((mut total, mut recent), (more, few)) = (of(&one), of(&other));
            total.merge(&more);
            recent.merge(&few);
            let all: Vec<u64> = one.into_iter().chain(other).collect();
            prop_assert_eq!((total.times(), recent.times()), counted(&all));
        }
    }

    #[test]
    fn longer_than_an_hour_is_an_hour_to_the_percentiles_and_exact_to_the_maximum() {
        let (times, _) = counted(&[1, 5 * HOUR]);
        assert_eq!(times.max, Duration::from_secs(5 * 3_600));
        assert!(times.p99 >= Duration::from_secs(3_600));
        assert_eq!(times.min, Duration::from_micros(1));
    }

    #[test]
    fn none_are_all_zero() {
        assert_eq!(counted(&[]).0, Times::default());
    }
}
