//! When a circuit opens, and for how long: the checked settings.

use std::time::Duration;

use crate::{
    event::{Event, Events},
    window::{Over, Window},
    word::{Clock, Phase},
};

/// The settings of a layer's circuits.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) clock: Clock,
    pub(crate) events: Events,
    /// Publishes to other processes, if circuits are shared.
    #[cfg(feature = "redis")]
    pub(crate) publisher: std::sync::OnceLock<crate::shared::Publisher>,
    /// The state of a new circuit.
    pub(crate) initial_state: Phase,

    pub(crate) over: Over,
    pub(crate) failure_ratio: Option<f64>,
    pub(crate) minimum_calls: u64,
    pub(crate) failure_threshold: Option<u32>,
    pub(crate) slow: Option<SlowCalls>,
    pub(crate) stalled_after: Option<Duration>,

    pub(crate) open_for: Duration,
    pub(crate) open_factor: f64,
    pub(crate) max_open_for: Duration,
    pub(crate) jitter: f64,
    pub(crate) throttled_opens: bool,
    pub(crate) max_retry_after: Duration,
    pub(crate) exhausted_for: Duration,

    pub(crate) probes: usize,
    pub(crate) probe_lease: Duration,
    pub(crate) success_threshold: u32,
    pub(crate) first_token_is_success: bool,
    pub(crate) ramp: Option<Duration>,
    pub(crate) max_open_ratio: Option<f64>,
}

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

impl Policy {
    /// Sends `event` to the subscribers and to other processes. A manual close of a closed circuit goes only to other
    /// processes, where it may be open; for subscribers nothing has changed.
    pub(crate) fn tell(&self, event: Event) {
        #[cfg(feature = "redis")]
        if let Some(publisher) = self.publisher.get() {
            publisher.tell(&event);
        }
        if event.kind.is_change() {
            self.events.send(event);
        }
    }

    #[cfg(feature = "redis")]
    pub(crate) fn share(&self, publisher: crate::shared::Publisher) {
        // It is set once, when the layer is built.
        let _ = self.publisher.set(publisher);
    }

    pub(crate) fn window(&self) -> Window {
        Window::new(self.over, self.clock)
    }

    /// How long a circuit opens that has opened `times` before without staying closed; at least for the time that the
    /// provider named.
    pub(crate) fn open_time(&self, times: u32, at_least: Option<Duration>) -> Duration {
        let grown = self.open_for.as_secs_f64() * self.open_factor.powi(times.min(1_000) as i32);
        let most = self.max_open_for.as_secs_f64();
        // `min` before the conversion: the grown time may be infinite.
        let grown = Duration::from_secs_f64(most.min(grown));
        self.jittered(grown.max(self.capped(at_least.unwrap_or_default())))
    }

    /// The time that the provider named, up to the maximum.
    pub(crate) fn capped(&self, time: Duration) -> Duration {
        time.min(self.max_retry_after)
    }

    /// How long a client should wait while a circuit is half-open. A failed probe opens it for `open_for` or longer; a
    /// retry after a tenth of that is soon enough, and not too frequent.
    pub(crate) fn probe_wait(&self) -> Duration {
        (self.open_for / 10).clamp(Duration::from_secs(1), Duration::from_secs(5))
    }

    /// `time` plus a random part of it, so that not all calls return at once.
    pub(crate) fn jittered(&self, time: Duration) -> Duration {
        time + time.mul_f64(self.jitter * fastrand::f64())
    }

    /// How long a circuit must be quiet before it can be evicted.
    pub(crate) fn quiet_after(&self) -> Duration {
        match self.over {
            Over::Time(time) => time.max(self.max_open_for),
            Over::Calls(_) => self.max_open_for,
        }
    }
}
