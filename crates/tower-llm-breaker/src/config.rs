//! When a circuit opens, and for how long: the settings of a layer's circuits.

use std::{fmt::Debug, ops::RangeBounds, time::Duration};

use tokio::time::Instant;
use tower_llm_core::ConfigError;

use crate::{SlowCalls, State, advanced::Advanced, clock::Clock, window::Over, word::MAX_PROBES};

#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) clock: Clock,
    /// The state of a new circuit.
    pub(crate) initial_state: State,
    pub(crate) over: Over,
    pub(crate) failure_ratio: Option<f64>,
    /// Unless set, 10 or the length of the window.
    pub(crate) minimum_calls: Option<usize>,
    pub(crate) failure_threshold: Option<u32>,
    pub(crate) slow: Option<SlowCalls>,
    pub(crate) open_for: Duration,
    pub(crate) max_open_for: Duration,
    pub(crate) throttled_opens: bool,
    pub(crate) probes: usize,
    pub(crate) success_threshold: u32,
    pub(crate) advanced: Advanced,
}

const MINUTE: Duration = Duration::from_secs(60);
/// A ratio of fewer calls means little.
const MINIMUM_CALLS: usize = 10;
/// A tenth of it is a whole millisecond.
const SHORTEST_WINDOW: Duration = Duration::from_millis(10);
/// Two megabytes per circuit.
const LONGEST_WINDOW: usize = 1 << 24;

impl Default for Config {
    fn default() -> Self {
        Self {
            clock: Clock::new(Instant::now()),
            initial_state: State::Closed,
            over: Over::Time(MINUTE),
            failure_ratio: Some(0.5),
            minimum_calls: None,
            // The usual default of guides and breakers.
            failure_threshold: Some(5),
            slow: None,
            open_for: MINUTE / 2,
            max_open_for: 5 * MINUTE,
            throttled_opens: true,
            probes: 1,
            success_threshold: 2,
            advanced: Advanced::default(),
        }
    }
}

impl Config {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let (slow, advanced) = (self.slow, &self.advanced);
        for (field, ratio) in [
            ("failure_ratio", self.failure_ratio),
            ("slow_calls", slow.map(|slow| slow.ratio)),
            ("jitter", Some(advanced.jitter)),
            ("max_open_ratio", advanced.max_open_ratio),
        ] {
            check(field, ratio, 0.0..=1.0, "it must be from 0 to 1")?;
        }
        for (field, time) in [
            (
                "slow_calls.first_token",
                slow.and_then(|slow| slow.first_token),
            ),
            ("slow_calls.gap", slow.and_then(|slow| slow.gap)),
            ("slow_calls.total", slow.and_then(|slow| slow.total)),
            ("open_for", Some(self.open_for)),
            ("max_open_for", Some(self.max_open_for)),
            ("max_retry_after", Some(advanced.max_retry_after)),
            ("exhausted_for", Some(advanced.exhausted_for)),
            ("probe_lease", Some(advanced.probe_lease)),
            ("ramp", advanced.ramp),
        ] {
            time.map_or(Ok(()), |time| {
                ConfigError::check_duration(field, time).map(drop)
            })?;
        }
        for (field, number) in [
            ("minimum_calls", self.minimum_calls),
            (
                "failure_threshold",
                self.failure_threshold.map(|most| most as usize),
            ),
            ("success_threshold", Some(self.success_threshold as usize)),
            ("probes", Some(self.probes)),
        ] {
            check(field, number, 1.., "it must be at least one")?;
        }
        let (factor, probes) = (Some(advanced.open_factor), Some(self.probes));
        check(
            "open_factor",
            factor,
            1.0..=1_000.0,
            "it must be from 1 to 1000",
        )?;
        check("probes", probes, ..=MAX_PROBES, "it must be at most 4095")?;
        let max_open_for = Some(self.max_open_for);
        let reason = "it must not be shorter than open_for";
        check("max_open_for", max_open_for, self.open_for.., reason)?;
        self.check_window()
    }

    fn check_window(&self) -> Result<(), ConfigError> {
        match self.over {
            Over::Time(time) => {
                ConfigError::check_duration("window", time)?;
                check(
                    "window",
                    Some(time),
                    SHORTEST_WINDOW..,
                    "it must be at least 10 ms",
                )
            }
            Over::Calls(calls) => {
                let length = Some(ConfigError::check_nonzero("window_calls", calls)?);
                let reason = "it must be at most 16777216";
                check("window_calls", length, ..=LONGEST_WINDOW, reason)?;
                let reason = "it must not be larger than the window";
                check("minimum_calls", self.minimum_calls, ..=calls, reason)
            }
        }
    }

    pub(crate) fn minimum_calls(&self) -> u64 {
        let minimum = self.minimum_calls.unwrap_or(MINIMUM_CALLS);
        let minimum = match self.over {
            Over::Time(_) => minimum,
            Over::Calls(calls) => minimum.min(calls),
        };
        minimum as u64
    }

    /// How long a circuit opens that has opened `times` before without staying closed; at least for the time that the
    /// provider named.
    pub(crate) fn open_time(&self, times: u32, at_least: Option<Duration>) -> Duration {
        let factor = self.advanced.open_factor.powi(times.min(1_000) as i32);
        let grown = self.open_for.as_secs_f64() * factor;
        let most = self.max_open_for.as_secs_f64();
        // `min` before the conversion: the grown time may be infinite.
        let grown = Duration::from_secs_f64(most.min(grown));
        self.jittered(grown.max(self.capped(at_least.unwrap_or_default())))
    }

    /// The time that the provider named, up to the maximum.
    pub(crate) fn capped(&self, time: Duration) -> Duration {
        time.min(self.advanced.max_retry_after)
    }

    /// How long a client should wait while a circuit is half-open. A failed probe opens it for `open_for` or longer; a
    /// retry after a tenth of that is soon enough, and not too frequent.
    pub(crate) fn probe_wait(&self) -> Duration {
        (self.open_for / 10).clamp(Duration::from_secs(1), Duration::from_secs(5))
    }

    /// `time` plus a random part of it, so that not all calls return at once.
    pub(crate) fn jittered(&self, time: Duration) -> Duration {
        time + time.mul_f64(self.advanced.jitter * fastrand::f64())
    }

    /// How long a circuit must be quiet before it can be evicted.
    pub(crate) fn quiet_after(&self) -> Duration {
        match self.over {
            Over::Time(time) => time.max(self.max_open_for),
            Over::Calls(_) => self.max_open_for,
        }
    }
}

/// Checks a setting, if it is set.
fn check<T: PartialOrd + Debug>(
    field: &'static str,
    value: Option<T>,
    allowed: impl RangeBounds<T>,
    reason: &'static str,
) -> Result<(), ConfigError> {
    match value {
        Some(value) if !allowed.contains(&value) => Err(ConfigError::new(field, value, reason)),
        _ => Ok(()),
    }
}
