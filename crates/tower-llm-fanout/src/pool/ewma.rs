//! The latency of a target: an average that forgets, and that jumps to peaks.
//!
//! As in Finagle and tower, a latency above the average becomes the average at once, and lower ones bring it down with time.
//! While nothing is known, the average decays, so that a target that was slow is tried again.

use std::time::Duration;

use tokio::time::Instant;

/// After this time, a latency counts a third.
const DECAY_SECONDS: f64 = 10.0;

/// A peak-sensitive average of latencies; empty at first.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PeakEwma(Option<Average>);

#[derive(Clone, Copy, Debug)]
struct Average {
    seconds: f64,
    at: Instant,
}

impl PeakEwma {
    /// A call took this long.
    pub(crate) fn record(&mut self, latency: Duration, now: Instant) {
        let sample = latency.as_secs_f64();
        let seconds = match self.0 {
            Some(average) if sample < average.seconds => {
                let weight = average.weight(now);
                average.seconds * weight + sample * (1.0 - weight)
            }
            _ => sample,
        };
        self.0 = Some(Average { seconds, at: now });
    }

    /// A call that was given up would have taken at least this long.
    pub(crate) fn record_at_least(&mut self, ran: Duration, now: Instant) {
        if self
            .at(now)
            .is_none_or(|seconds| ran.as_secs_f64() > seconds)
        {
            self.record(ran, now);
        }
    }

    /// The average in seconds, as it was when it was last recorded.
    pub(crate) fn recorded(&self) -> Option<f64> {
        self.0.map(|average| average.seconds)
    }

    /// The average in seconds, decayed until `now`.
    pub(crate) fn at(&self, now: Instant) -> Option<f64> {
        self.0.map(|average| average.seconds * average.weight(now))
    }
}

impl Average {
    /// What it counts at `now`.
    fn weight(&self, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.at).as_secs_f64();
        (-age / DECAY_SECONDS).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn near(seconds: Option<f64>, expected: f64) -> bool {
        seconds.is_some_and(|seconds| (seconds - expected).abs() < 1e-3)
    }

    #[test]
    fn jumps_to_a_peak_and_comes_down_with_time() {
        let start = Instant::now();
        let mut latency = PeakEwma::default();
        assert_eq!(latency.at(start), None);
        latency.record(SECOND, start);
        latency.record(4 * SECOND, start);
        assert!(near(latency.at(start), 4.0));

        // Ten seconds later, the peak counts 1/e.
        let later = start + 10 * SECOND;
        assert!(near(latency.at(later), 4.0 * 0.3679));
        assert!(near(latency.recorded(), 4.0));
        latency.record(SECOND, later);
        assert!(near(latency.at(later), 4.0 * 0.3679 + 0.6321));
    }

    #[test]
    fn a_call_that_was_given_up_counts_only_if_it_ran_for_longer() {
        let start = Instant::now();
        let mut latency = PeakEwma::default();
        latency.record(2 * SECOND, start);
        latency.record_at_least(SECOND, start);
        assert!(near(latency.at(start), 2.0));
        latency.record_at_least(3 * SECOND, start);
        assert!(near(latency.at(start), 3.0));
    }
}
