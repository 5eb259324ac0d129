use std::time::Duration;

use tower_layer::Layer;
use tower_llm_core::{ConfigError, HttpBody};

use crate::{Timeout, deadlines::Deadlines};

/// Ends calls that take too long.
#[derive(Clone, Copy, Debug)]
pub struct TimeoutLayer<W = HttpBody> {
    deadlines: Deadlines,
    watch: W,
}

/// Builds a [`TimeoutLayer`].
#[derive(Clone, Copy, Debug)]
#[must_use = "a builder does nothing until it is built"]
pub struct TimeoutBuilder<W = HttpBody> {
    deadlines: Deadlines,
    watch: W,
}

impl TimeoutLayer {
    /// A layer for hosted models: first token 120 s, idle 60 s, total 600 s.
    ///
    /// The total is what the providers' own clients wait for; the first token leaves time to reason.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            deadlines: Deadlines {
                first_token: Some(Duration::from_secs(120)),
                idle: Some(Duration::from_secs(60)),
                total: Some(Duration::from_secs(600)),
            },
            watch: HttpBody,
        }
    }

    /// Starts a layer that has no deadline yet.
    pub fn builder() -> TimeoutBuilder {
        TimeoutBuilder {
            deadlines: Deadlines::default(),
            watch: HttpBody,
        }
    }
}

impl Default for TimeoutLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<W> TimeoutBuilder<W> {
    /// Sets how long a stream may take from the call to its first content token; for ever unless set.
    ///
    /// Once the head has come, only the time counts in which somebody reads. Of a stream that cannot be read, since it
    /// is compressed or not of server-sent events, the first data counts as the token, and so does the first event of
    /// a stream in no dialect that is known here.
    pub fn first_token(mut self, timeout: Duration) -> Self {
        self.deadlines.first_token = Some(timeout);
        self
    }

    /// Sets how long the next frame of a body may take; for ever unless set.
    pub fn idle(mut self, timeout: Duration) -> Self {
        self.deadlines.idle = Some(timeout);
        self
    }

    /// Sets how long the whole may take, from the call to the end of the body; for ever unless set.
    pub fn total(mut self, timeout: Duration) -> Self {
        self.deadlines.total = Some(timeout);
        self
    }

    /// Sets how the end of a response is seen: [`Unary`](tower_llm_core::Unary) for types that are not HTTP, for which
    /// only the total means anything.
    pub fn watch<V>(self, watch: V) -> TimeoutBuilder<V> {
        TimeoutBuilder {
            deadlines: self.deadlines,
            watch,
        }
    }

    /// The layer.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] naming the setting, if a deadline is zero or over a day, if the first token or a frame may take
    /// longer than the whole, or if no deadline is set.
    pub fn build(self) -> Result<TimeoutLayer<W>, ConfigError> {
        let Deadlines {
            first_token,
            idle,
            total,
        } = self.deadlines;
        let settings = [
            ("first_token", first_token),
            ("idle", idle),
            ("total", total),
        ];
        for (field, timeout) in settings {
            let Some(timeout) = timeout else { continue };
            ConfigError::check_duration(field, timeout)?;
            if total.is_some_and(|total| timeout > total) {
                return Err(ConfigError::new(
                    field,
                    timeout,
                    "it must be at most the total",
                ));
            }
        }
        if settings.iter().all(|(_, timeout)| timeout.is_none()) {
            return Err(ConfigError::new(
                "total",
                total,
                "at least one deadline must be set",
            ));
        }
        Ok(TimeoutLayer {
            deadlines: self.deadlines,
            watch: self.watch,
        })
    }
}

impl<S, W: Clone> Layer<S> for TimeoutLayer<W> {
    type Service = Timeout<S, W>;

    fn layer(&self, inner: S) -> Timeout<S, W> {
        Timeout::new(inner, self.deadlines, self.watch.clone())
    }
}
