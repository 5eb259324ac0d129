use std::time::Duration;

use tower_layer::Layer;
use tower_llm_core::{ConfigError, HttpBody};

use crate::{
    Timeout,
    deadlines::{Deadlines, SIGNS_OF_LIFE},
};

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
    /// Creates a layer for hosted models: first token 120 s, or 600 s while the stream shows signs of life; idle 60 s,
    /// total 600 s.
    ///
    /// The total is the default of the providers' own clients; the first-token timeout leaves time to reason.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            deadlines: Deadlines {
                first_token: Some(Duration::from_secs(120)),
                first_token_max: Some(Duration::from_secs(600)),
                idle: Some(Duration::from_secs(60)),
                total: Some(Duration::from_secs(600)),
                total_streamed: None,
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
    /// Sets how long a stream may take from the call to its first content token; no limit unless set.
    ///
    /// Signs of life extend it, up to [`first_token_max`](Self::first_token_max): comments, and events without content,
    /// such as those of hidden reasoning, a search or the provider's queue.
    ///
    /// After the response headers, only the time in which the body is polled counts. In a stream that is compressed or not
    /// of server-sent events, the first data counts as the first token. In a stream of an unknown dialect, the first event
    /// does.
    pub fn first_token(mut self, timeout: Duration) -> Self {
        self.deadlines.first_token = Some(timeout);
        self
    }

    /// Sets how long the first token may take while the stream shows signs of life; five times
    /// [`first_token`](Self::first_token) unless set, and never more than the total. If it equals `first_token`, signs of
    /// life extend nothing.
    ///
    /// A stream that is cut by it, or by the total, ends as [`Failure::Slow`](tower_llm_core::Failure::Slow).
    pub fn first_token_max(mut self, deadline: Duration) -> Self {
        self.deadlines.first_token_max = Some(deadline);
        self
    }

    /// Sets how long the next frame of a body may take; no limit unless set.
    pub fn idle(mut self, timeout: Duration) -> Self {
        self.deadlines.idle = Some(timeout);
        self
    }

    /// Sets how long the call may take in total, to the end of the body; no limit unless set.
    pub fn total(mut self, timeout: Duration) -> Self {
        self.deadlines.total = Some(timeout);
        self
    }

    /// Sets the total of calls that ask for a stream; that of other calls unless set.
    ///
    /// A stream that makes progress may take minutes. A call that is not streamed shows nothing before its end.
    pub fn total_streamed(mut self, timeout: Duration) -> Self {
        self.deadlines.total_streamed = Some(timeout);
        self
    }

    /// Sets how the end of a response is detected: [`Unary`](tower_llm_core::Unary) for types that are not HTTP; only the
    /// total applies to them.
    pub fn watch<V>(self, watch: V) -> TimeoutBuilder<V> {
        TimeoutBuilder {
            deadlines: self.deadlines,
            watch,
        }
    }

    /// Builds the layer.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] naming the setting, if a deadline is zero or over a day, if `first_token` or `idle` exceeds the
    /// total, if `first_token_max` is less than `first_token` or set without it, or if no deadline is set.
    pub fn build(self) -> Result<TimeoutLayer<W>, ConfigError> {
        let Deadlines {
            first_token,
            first_token_max,
            idle,
            total,
            total_streamed,
        } = self.deadlines;
        let settings = [
            ("first_token", first_token),
            ("first_token_max", first_token_max),
            ("idle", idle),
            ("total", total),
            ("total_streamed", total_streamed),
        ];
        let longest = total.max(total_streamed);
        for (field, timeout) in settings {
            let Some(timeout) = timeout else { continue };
            ConfigError::check_duration(field, timeout)?;
            if longest.is_some_and(|longest| timeout > longest) {
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
        if let Some(max) = first_token_max {
            let reason = match first_token {
                None => Some("it extends `first_token`, which is not set"),
                Some(first_token) if max < first_token => Some("it must be at least `first_token`"),
                Some(_) => None,
            };
            if let Some(reason) = reason {
                return Err(ConfigError::new("first_token_max", max, reason));
            }
        }
        let default = || {
            let max = first_token?.saturating_mul(SIGNS_OF_LIFE);
            Some(longest.map_or(max, |longest| max.min(longest)))
        };
        Ok(TimeoutLayer {
            deadlines: Deadlines {
                first_token_max: first_token_max.or_else(default),
                ..self.deadlines
            },
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
