//! Which calls are slow: a public setting.

use std::time::Duration;

/// Which calls are slow, and at what ratio of slow calls a circuit opens.
///
/// Times start when the call is admitted and include waits in inner layers, such as a bulkhead's queue: set them above the
/// longest wait there. The time in which a client does not read the response does not count.
///
/// A slow call counts as soon as it is slow, even if its caller then disconnects; a slow probe whose caller disconnects has
/// failed. A call that is not slow counts when it succeeds, or when its caller disconnects after the first token. A stream
/// that a deadline cuts before its first token although it showed signs of life
/// ([`Failure::Slow`](tower_llm_core::Failure::Slow)) is slow, and not a failure.
///
/// A slow call that succeeds is a success for the failure ratio. A time that is not set makes no call slow.
///
/// ```
/// use std::time::Duration;
///
/// use tower_llm_breaker::SlowCalls;
///
/// let slow = SlowCalls::at_ratio(0.8)
///     .first_token(Duration::from_secs(20))
///     .gap(Duration::from_secs(10));
/// # let _ = slow;
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use = "it does nothing until it is given to a builder"]
pub struct SlowCalls {
    pub(crate) ratio: f64,
    pub(crate) first_token: Option<Duration>,
    pub(crate) gap: Option<Duration>,
    pub(crate) total: Option<Duration>,
}

impl SlowCalls {
    /// Opens a circuit when at least `ratio` of the calls in the window are slow, from
    /// [`minimum_calls`](crate::BreakerBuilder::minimum_calls) on; 0 to 1.
    pub fn at_ratio(ratio: f64) -> Self {
        Self {
            ratio,
            first_token: None,
            gap: None,
            total: None,
        }
    }

    /// A stream is slow if its first content token arrives later than `over` after the call was admitted.
    pub fn first_token(mut self, over: Duration) -> Self {
        self.first_token = Some(over);
        self
    }

    /// A stream is slow if no content arrives for longer than `over` after the first token.
    pub fn gap(mut self, over: Duration) -> Self {
        self.gap = Some(over);
        self
    }

    /// A call that is not streamed is slow if it takes longer than `over`. The total time of a stream is not judged.
    pub fn total(mut self, over: Duration) -> Self {
        self.total = Some(over);
        self
    }
}
