//! When a circuit opens, and for how long: the settings of a layer's circuits.

use std::time::Duration;

use tokio::time::Instant;
use tower_llm_core::ConfigError;

use crate::{
    SlowCalls, State, advanced::Advanced, clock::Clock, slow_calls::check_ratio, window::Over,
    word::MAX_PROBES,
};

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
        self.check_window()?;
        if let Some(ratio) = self.failure_ratio {
            check_ratio("failure_ratio", ratio)?;
        }
        if let Some(slow) = &self.slow {
            slow.check()?;
        }
        ConfigError::check_duration("open_for", self.open_for)?;
        ConfigError::check_duration("max_open_for", self.max_open_for)?;
        if self.max_open_for < self.open_for {
            let reason = "it must not be shorter than open_for";
            return Err(ConfigError::new("max_open_for", self.max_open_for, reason));
        }
        if let Some(failures) = self.failure_threshold {
            ConfigError::check_nonzero("failure_threshold", failures as usize)?;
        }
        ConfigError::check_nonzero("success_threshold", self.success_threshold as usize)?;
        ConfigError::check_nonzero("probes", self.probes)?;
        if self.probes > MAX_PROBES {
            return Err(ConfigError::new(
                "probes",
                self.probes,
                "it must be at most 4095",
            ));
        }
        self.advanced.check()
    }

    fn check_window(&self) -> Result<(), ConfigError> {
        if let Some(minimum) = self.minimum_calls {
            ConfigError::check_nonzero("minimum_calls", minimum)?;
        }
        match self.over {
            Over::Time(time) => {
                ConfigError::check_duration("window", time)?;
                if time < SHORTEST_WINDOW {
                    return Err(ConfigError::new(
                        "window",
                        time,
                        "it must be at least 10 ms",
                    ));
                }
            }
            Over::Calls(calls) => {
                ConfigError::check_nonzero("window_calls", calls)?;
                if calls > LONGEST_WINDOW {
                    let reason = "it must be at most 16777216";
                    return Err(ConfigError::new("window_calls", calls, reason));
                }
                if let Some(minimum) = self.minimum_calls.filter(|&minimum| minimum > calls) {
                    let reason = "it must not be larger than the window";
                    return Err(ConfigError::new("minimum_calls", minimum, reason));
                }
            }
        }
        Ok(())
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
