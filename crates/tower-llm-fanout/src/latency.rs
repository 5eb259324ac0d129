//! A lock-free record of latencies, and the delay read from it.
//!
//! Two windows of counters on a logarithmic scale, as in an HDR histogram: one is written, both are read. What is read from
//! them, the delay, is kept in one atomic, so that a call does no arithmetic.

use std::{
    sync::{
        OnceLock,
        atomic::{
            AtomicBool, AtomicU32, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use tokio::time::Instant;

/// Counters for each doubling of the time: a latency is known to 1.6 %, and better by interpolation.
const STEPS: usize = 64;
/// From 0.1 ms to 3.7 hours.
const DOUBLINGS: usize = 21;
const BUCKETS: usize = STEPS * (DOUBLINGS + 1);
const UNIT_MICROS: u64 = 100;

/// How often the delay is read from the record.
const REFRESH: Duration = Duration::from_secs(3);
/// How many refreshes a window is written for: what is older than two minutes is forgotten.
const WINDOW: u64 = 20;
/// Fewer latencies say nothing of the slowest.
const MIN_SAMPLES: u64 = 100;

/// The latencies of late, and the delay that only a given ratio of them exceeds.
#[derive(Debug)]
pub(crate) struct LatencyRecord {
    ratio: f64,
    windows: [Window; 2],
    /// Micros; `u64::MAX` as long as it is unknown.
    delay_micros: AtomicU64,
    /// When it is read next, in nanos since `epoch`.
    refresh_at: AtomicU64,
    refreshing: AtomicBool,
    refreshes: AtomicU64,
    epoch: OnceLock<Instant>,
}

#[derive(Debug)]
struct Window {
    buckets: Box<[AtomicU32]>,
    total: AtomicU64,
}

// === impl LatencyRecord ===

impl LatencyRecord {
    pub(crate) fn new(ratio: f64) -> Self {
        Self {
            ratio,
            windows: [Window::new(), Window::new()],
            delay_micros: AtomicU64::new(u64::MAX),
            refresh_at: AtomicU64::new(0),
            refreshing: AtomicBool::new(false),
            refreshes: AtomicU64::new(0),
            epoch: OnceLock::new(),
        }
    }

    pub(crate) fn ratio(&self) -> f64 {
        self.ratio
    }

    /// The delay; `None` as long as too little is known.
    pub(crate) fn delay(&self) -> Option<Duration> {
        match self.delay_micros.load(Relaxed) {
            u64::MAX => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }

    /// Counts a branch that took, or ran, this long.
    pub(crate) fn record(&self, latency: Duration, now: Instant) {
        let window = self.refreshes.load(Relaxed) / WINDOW % 2;
        self.windows[window as usize].record(latency);
        self.refresh_if_due(now);
    }

    fn refresh_if_due(&self, now: Instant) {
        let epoch = *self.epoch.get_or_init(|| now);
        let nanos = u64::try_from(now.saturating_duration_since(epoch).as_nanos());
        let nanos = nanos.unwrap_or(u64::MAX);
        let is_due = nanos >= self.refresh_at.load(Relaxed)
            // Until the first delay is known, each latency may make it known.
            || self.delay_micros.load(Relaxed) == u64::MAX;
        if !is_due || self.refreshing.swap(true, Acquire) {
            return;
        }
        if nanos >= self.refresh_at.load(Relaxed) {
            let next = nanos.saturating_add(REFRESH.as_nanos() as u64);
            self.refresh_at.store(next, Relaxed);
            self.rotate();
        }
        self.delay_micros.store(self.read(), Relaxed);
        self.refreshing.store(false, Release);
    }

    /// Counts a refresh, and forgets the older window when it is its turn to be written.
    fn rotate(&self) {
        let before = self.refreshes.load(Relaxed);
        if (before + 1) / WINDOW != before / WINDOW {
            self.windows[((before + 1) / WINDOW % 2) as usize].clear();
        }
        self.refreshes.store(before + 1, Relaxed);
    }

    /// The time in micros that only `ratio` of the latencies exceed.
    fn read(&self) -> u64 {
        let total: u64 = self
            .windows
            .iter()
            .map(|window| window.total.load(Relaxed))
            .sum();
        if total < MIN_SAMPLES {
            return u64::MAX;
        }
        // How many may exceed it.
        let mut slower = self.ratio * total as f64;
        for bucket in (0..BUCKETS).rev() {
            let counts = self.windows.iter().map(|window| &window.buckets[bucket]);
            let count = f64::from(counts.map(|count| count.load(Relaxed)).sum::<u32>());
            if count > slower {
                // The latencies of one bucket are taken to be spread evenly.
                let (low, high) = (lower_bound(bucket), lower_bound(bucket + 1));
                let part = slower / count;
                let units = high as f64 - part * (high - low) as f64;
                return ((units * UNIT_MICROS as f64) as u64).max(1_000);
            }
            slower -= count;
        }
        1_000
    }
}

impl Window {
    fn new() -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| AtomicU32::new(0)).collect(),
            total: AtomicU64::new(0),
        }
    }

    fn record(&self, latency: Duration) {
        let units = latency.as_micros() / u128::from(UNIT_MICROS);
        let units = u64::try_from(units).unwrap_or(u64::MAX);
        self.buckets[bucket_of(units)].fetch_add(1, Relaxed);
        self.total.fetch_add(1, Relaxed);
    }

    fn clear(&self) {
        self.buckets
            .iter()
            .for_each(|count| count.store(0, Relaxed));
        self.total.store(0, Relaxed);
    }
}

/// The bucket of a time: exact below `STEPS` units, then `STEPS` for each doubling.
fn bucket_of(units: u64) -> usize {
    let steps = STEPS as u64;
    if units < steps {
        return units as usize;
    }
    let doublings = units.ilog2() - steps.ilog2();
    let step = (units >> doublings) - steps;
    let bucket = (u64::from(doublings) + 1) * steps + step;
    (bucket as usize).min(BUCKETS - 1)
}

/// The least time of a bucket.
fn lower_bound(bucket: usize) -> u64 {
    let (doublings, step) = (bucket / STEPS, bucket % STEPS);
    match doublings {
        0 => step as u64,
        _ => ((STEPS + step) as u64) << (doublings - 1),
    }
}
