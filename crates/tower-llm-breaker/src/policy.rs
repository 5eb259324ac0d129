//! When a circuit opens, and for how long: the settings, checked.

use std::time::Duration;

use crate::{
    event::{Event, Events},
    window::{Over, Window},
    word::{Clock, Phase},
};

/// What the circuits of one layer go by.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) clock: Clock,
    pub(crate) events: Events,
    /// The way to other processes, if there are any.
    #[cfg(feature = "redis")]
    pub(crate) publisher: std::sync::OnceLock<crate::shared::Publisher>,
    /// What a circuit is before anything has happened.
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

/// Which calls are slow, and what share of them opens a circuit.
///
/// Times run from when the call was let through: what it waits for in layers inside of this one, such as a bulkhead's queue,
/// is among them. Set them beyond the longest wait there. How long a reader leaves a response unread is not.
///
/// A call counts as slow as soon as it is, though its caller may leave then; a slow probe whose caller leaves has failed. A
/// call that is not slow counts when it has ended well, or when its caller leaves after its first token.
///
/// A call that was slow and ended well is a success for the failure ratio, and one of the slow ones besides. Of each
/// kind that is not set, no call is slow.
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
    /// Opens a circuit when at least `ratio` of its calls are slow, over the window and with the minimum of the
    /// failure ratio; `0..=1`.
    pub fn at_ratio(ratio: f64) -> Self {
        Self {
            ratio,
            first_token: None,
            gap: None,
            total: None,
        }
    }

    /// A stream is slow if its first content token comes later than this after the call was let through.
    pub fn first_token(mut self, over: Duration) -> Self {
        self.first_token = Some(over);
        self
    }

    /// A stream is slow if no content comes for longer than this, once it has begun.
    pub fn gap(mut self, over: Duration) -> Self {
        self.gap = Some(over);
        self
    }

    /// A call that is not streamed is slow if it takes longer than this. Of a stream the length says nothing.
    pub fn total(mut self, over: Duration) -> Self {
        self.total = Some(over);
        self
    }
}

impl Policy {
    /// Tells all who are to know.
    pub(crate) fn tell(&self, event: Event) {
        #[cfg(feature = "redis")]
        if let Some(publisher) = self.publisher.get() {
            publisher.tell(&event);
        }
        self.events.send(event);
    }

    #[cfg(feature = "redis")]
    pub(crate) fn share(&self, publisher: crate::shared::Publisher) {
        // A board is started once.
        let _ = self.publisher.set(publisher);
    }

    pub(crate) fn window(&self) -> Window {
        Window::new(self.over, self.clock)
    }

    /// How long a circuit is open that has opened `times` before without staying closed, and if the provider asked for
    /// `at_least` so long.
    pub(crate) fn open_time(&self, times: u32, at_least: Option<Duration>) -> Duration {
        let grown = self.open_for.as_secs_f64() * self.open_factor.powi(times.min(1_000) as i32);
        let most = self.max_open_for.as_secs_f64();
        // The smaller first: what has grown may be infinite.
        let grown = Duration::from_secs_f64(most.min(grown));
        self.jittered(grown.max(self.told(at_least.unwrap_or_default())))
    }

    /// What the provider asks for, as far as it is believed.
    pub(crate) fn told(&self, time: Duration) -> Duration {
        time.min(self.max_retry_after)
    }

    /// `time`, and up to a share of it more: not all come back at once.
    pub(crate) fn jittered(&self, time: Duration) -> Duration {
        time + time.mul_f64(self.jitter * fastrand::f64())
    }

    /// For how long a circuit must have been left alone before it is forgotten for another.
    pub(crate) fn quiet_after(&self) -> Duration {
        match self.over {
            Over::Time(time) => time.max(self.max_open_for),
            Over::Calls(_) => self.max_open_for,
        }
    }
}
