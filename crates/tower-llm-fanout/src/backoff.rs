//! How long a retry waits.

use std::time::Duration;

use tower_llm_core::ConfigError;

/// The wait before a retry at the same target: exponential, with full jitter (Exponential Backoff And Jitter, AWS 2015): the
/// n-th wait is drawn evenly from 0 to `base * 2^(n-1)`, at most `max`.
///
/// A time that the provider asks for goes first; the waits after it start from `base` again, as in gRFC A6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    base: Duration,
    max: Duration,
}

impl Backoff {
    /// From `base`, doubled with each failure, up to `max`.
    ///
    /// # Errors
    ///
    /// If `base` is zero, or `max` is shorter than `base` or longer than a day.
    pub fn exponential(base: Duration, max: Duration) -> Result<Self, ConfigError> {
        let base = ConfigError::check_duration("backoff base", base)?;
        let max = ConfigError::check_duration("backoff max", max)?;
        if max < base {
            return Err(ConfigError::new(
                "backoff max",
                max,
                "it must not be shorter than the base",
            ));
        }
        Ok(Self { base, max })
    }

    /// The wait after so many failures in a row.
    pub(crate) fn delay(&self, failures: u32) -> Duration {
        self.most(failures).mul_f64(fastrand::f64())
    }

    fn most(&self, failures: u32) -> Duration {
        let factor = 1_u32
            .checked_shl(failures.saturating_sub(1))
            .unwrap_or(u32::MAX);
        self.base.saturating_mul(factor).min(self.max)
    }
}

impl Default for Backoff {
    /// From 0.5 s up to 8 s, as the SDKs of `OpenAI` and Anthropic.
    fn default() -> Self {
        Self {
            base: Duration::from_millis(500),
            max: Duration::from_secs(8),
        }
    }
}
