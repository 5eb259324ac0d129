//! When the next branch may start.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tower_llm_core::ConfigError;

use crate::latency::LatencyRecord;

/// When the branches of a call may start: one number, as in Polly. The first branches start at once; each later one when
/// one has failed, or a while after the one before it.
#[derive(Clone, Debug)]
pub struct Pace {
    pub(crate) at_once: usize,
    pub(crate) at_most: usize,
    pub(crate) then: Then,
}

/// When the branches after the first ones start.
#[derive(Clone, Debug)]
pub(crate) enum Then {
    AfterFailure,
    After(Delay),
}

/// How long a hedge waits for the branch before it.
#[derive(Clone, Debug)]
pub struct Delay(pub(crate) DelayKind);

#[derive(Clone, Debug)]
pub(crate) enum DelayKind {
    Fixed(Duration),
    Recorded(Arc<LatencyRecord>),
}

/// When the next branch of a call may start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Start {
    Now,
    /// After this time, which has not begun.
    After(Duration),
    At(Instant),
    AfterFailure,
    Never,
}

// === impl Pace ===

impl Pace {
    /// All branches at once.
    #[must_use]
    pub const fn at_once() -> Self {
        Self::after_failure(usize::MAX)
    }

    /// `first` branches at once, then one after each that has failed.
    #[must_use]
    pub const fn after_failure(first: usize) -> Self {
        Self {
            at_once: first,
            at_most: usize::MAX,
            then: Then::AfterFailure,
        }
    }

    /// One branch, and the next when the one before has failed or has not answered for a while.
    #[must_use]
    pub const fn after(delay: Delay) -> Self {
        Self {
            at_once: 1,
            at_most: usize::MAX,
            then: Then::After(delay),
        }
    }

    /// At most so many branches in flight.
    #[must_use]
    pub const fn at_most(mut self, branches: usize) -> Self {
        self.at_most = branches;
        self
    }

    /// When the branch after `started` ones may start, if none of them fails.
    pub(crate) fn next(&self, started: usize) -> Start {
        if started < self.at_once {
            return Start::Now;
        }
        match &self.then {
            Then::AfterFailure => Start::AfterFailure,
            Then::After(delay) => delay.get().map_or(Start::AfterFailure, Start::After),
        }
    }

    /// Checks what its constructors take as it is.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        ConfigError::check_nonzero("branches at once", self.at_once)?;
        ConfigError::check_nonzero("branches in flight", self.at_most)?;
        match &self.then {
            Then::AfterFailure => Ok(()),
            Then::After(Delay(DelayKind::Fixed(delay))) => {
                ConfigError::check_duration("delay", *delay).map(drop)
            }
            Then::After(Delay(DelayKind::Recorded(record))) => {
                let ratio = record.ratio();
                match ratio > 0.0 && ratio < 1.0 {
                    true => Ok(()),
                    false => Err(ConfigError::new(
                        "delay",
                        ratio,
                        "it must be between 0 and 1",
                    )),
                }
            }
        }
    }

    /// Whether branches run one after another.
    pub(crate) fn is_sequential(&self) -> bool {
        self.at_once == 1 && matches!(self.then, Then::AfterFailure)
    }

    /// The record of latencies that delays are read from.
    pub(crate) fn record(&self) -> Option<&LatencyRecord> {
        match &self.then {
            Then::After(Delay(DelayKind::Recorded(record))) => Some(record),
            _ => None,
        }
    }
}

// === impl Delay ===

impl Delay {
    /// Always the same.
    #[must_use]
    pub const fn fixed(delay: Duration) -> Self {
        Self(DelayKind::Fixed(delay))
    }

    /// As long as all but this ratio of branches take, by what was seen of late: a hedge at 0.05 is sent for the slowest 5 % of
    /// calls, as in Finagle's backup requests.
    ///
    /// Branches that lost count with the time that they ran. Nothing is hedged before 100 branches have been seen.
    #[must_use]
    pub fn slowest(ratio: f64) -> Self {
        Self(DelayKind::Recorded(Arc::new(LatencyRecord::new(ratio))))
    }

    /// The ratio of calls that it aims at.
    pub(crate) fn ratio(&self) -> Option<f64> {
        match &self.0 {
            DelayKind::Fixed(_) => None,
            DelayKind::Recorded(record) => Some(record.ratio()),
        }
    }

    fn get(&self) -> Option<Duration> {
        match &self.0 {
            DelayKind::Fixed(delay) => Some(*delay),
            DelayKind::Recorded(record) => record.delay(),
        }
    }
}
