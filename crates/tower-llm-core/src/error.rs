//! Refusals, and the other errors of layers.

use std::{error::Error, fmt, io, iter, sync::Arc, time::Duration};

use bytes::Bytes;
use http::HeaderMap;

use crate::{Dialect, Outcome, refusal::timed_out_event};

/// The error of every layer; [`Refusal::find`] and [`TimedOut::find`] find the cause in it.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// A layer refused a call before it was sent; says whether and when to retry.
///
/// Each layer's own error (`BulkheadFull`, [`TooLarge`], ...) has one as its source, so an error handler need not know the
/// layers:
///
/// ```
/// use tower_llm_core::{BoxError, Refusal, TooLarge};
///
/// let error: BoxError = TooLarge::new(10).into();
/// let refusal = Refusal::find(&*error).expect("a layer refused it");
/// assert_eq!(refusal.layer(), "describe");
/// assert!(!refusal.is_retryable());
/// ```
#[derive(Clone, Debug)]
pub struct Refusal {
    kind: RefusalKind,
    layer: &'static str,
    retry_after: Option<Duration>,
    retryable: bool,
    headers: Option<Arc<HeaderMap>>,
}

/// Why a call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefusalKind {
    /// A rate limit, of requests or tokens.
    RateLimited,
    /// No permit is free, or the provider is known to be down.
    Unavailable,
    /// The request is too large to be ever admitted.
    TooLarge,
    /// The request takes only a cached answer, and there is none.
    NotCached,
}

/// The request body exceeds the limit of the layer that reads it.
#[derive(Clone, Debug)]
pub struct TooLarge {
    limit_bytes: usize,
    refusal: Refusal,
}

/// A deadline of a timeout layer passed while the upstream worked. This is a failure of the upstream, not a refusal.
#[derive(Clone, Debug)]
pub struct TimedOut {
    deadline: Deadline,
    after: Duration,
}

/// Which deadline passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Deadline {
    /// For the first content token.
    FirstToken,
    /// For the next frame.
    Idle,
    /// For the whole call.
    Total,
}

/// An error with the [`Outcome`] that it stands for.
///
/// To the layers, an unknown error is a failure of the connection to the provider. Wrap an error in this type to state
/// another outcome. The adapters of `tower-llm-stack` do so for a client's own timeout, which is `Failed(Timeout)`, and for
/// an error of the request body, which is `ClientError`; do the same for errors of your own clients.
///
/// It displays as the error that it wraps, which is its [`source`](Error::source).
///
/// ```
/// use std::time::Duration;
///
/// use tower_llm_core::{ClassifiedError, Completion, Outcome};
///
/// // An SDK that returns rate limits as errors.
/// let throttled = Outcome::Throttled { retry_after: Some(Duration::from_secs(2)) };
/// let error = ClassifiedError::new(throttled, "too many requests");
/// assert_eq!(error.to_string(), "too many requests");
/// assert_eq!(Completion::of_error(&error).outcome, throttled);
/// ```
///
/// In the middle of a response body, `ClientError` counts as `Abandoned`: the model was at work, so the output seen is
/// charged.
#[derive(Debug)]
pub struct ClassifiedError {
    outcome: Outcome,
    source: BoxError,
}

/// A setting has an invalid value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    field: &'static str,
    value: String,
    reason: &'static str,
}

// === impl Refusal ===

impl Refusal {
    /// Creates a refusal by `layer` that may be retried, at a time that is not known.
    #[must_use]
    pub const fn new(kind: RefusalKind, layer: &'static str) -> Self {
        Self {
            kind,
            layer,
            retry_after: None,
            retryable: true,
            headers: None,
        }
    }

    /// Sets the time until the same request could be admitted.
    #[must_use]
    pub const fn after(mut self, retry_after: Duration) -> Self {
        self.retry_after = Some(retry_after);
        self
    }

    /// States that the same request will never be admitted.
    #[must_use]
    pub const fn never(mut self) -> Self {
        self.retryable = false;
        self
    }

    /// Adds headers to the response that reports the refusal, such as the state of a limit.
    #[must_use]
    pub fn with_headers(mut self, headers: HeaderMap) -> Self {
        self.headers = Some(Arc::new(headers));
        self
    }

    /// Returns the refusal among `error` and its sources, if there is one.
    #[must_use]
    pub fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        find(error)
    }

    /// Why the call was refused.
    #[must_use]
    pub fn kind(&self) -> RefusalKind {
        self.kind
    }

    /// The layer that refused, such as `bulkhead`.
    #[must_use]
    pub fn layer(&self) -> &'static str {
        self.layer
    }

    /// Time until the same request could be admitted; `None` if it is not known.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Whether the same request could ever be admitted.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.retryable
    }

    /// Headers for the response that reports the refusal.
    #[must_use]
    pub fn headers(&self) -> Option<&HeaderMap> {
        self.headers.as_deref()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused by {} before it was sent", self.layer)
    }
}

impl Error for Refusal {}

// === impl TooLarge ===

impl TooLarge {
    /// Creates the error of a body over `limit_bytes`.
    #[must_use]
    pub const fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            refusal: Refusal::new(RefusalKind::TooLarge, "describe").never(),
        }
    }

    /// The limit that the body exceeds, in bytes.
    #[must_use]
    pub fn limit_bytes(&self) -> usize {
        self.limit_bytes
    }

    /// Always `None`: waiting does not help.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        None
    }
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request body is over {} bytes", self.limit_bytes)
    }
}

impl Error for TooLarge {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.refusal)
    }
}

// === impl TimedOut ===

impl TimedOut {
    /// Creates the error of a `deadline` that passed `after` its start.
    #[must_use]
    pub const fn new(deadline: Deadline, after: Duration) -> Self {
        Self { deadline, after }
    }

    /// Returns the timeout among `error` and its sources, if there is one.
    #[must_use]
    pub fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        find(error)
    }

    /// Which deadline passed.
    #[must_use]
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// The length of the deadline.
    #[must_use]
    pub fn after(&self) -> Duration {
        self.after
    }

    /// Returns the server-sent event that reports the timeout in a stream in `dialect`.
    #[must_use]
    pub fn event(&self, dialect: Dialect) -> Bytes {
        timed_out_event(dialect, &self.to_string())
    }

    /// Always `None`: it is not known when the upstream will be faster.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        None
    }
}

impl fmt::Display for TimedOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.deadline {
            Deadline::FirstToken => "no first token",
            Deadline::Idle => "nothing more came",
            Deadline::Total => "not finished",
        };
        write!(f, "{what} within {:?}", self.after)
    }
}

impl Error for TimedOut {}

// === impl ClassifiedError ===

impl ClassifiedError {
    /// Wraps `source` and states `outcome` for the call that it ends.
    pub fn new(outcome: Outcome, source: impl Into<BoxError>) -> Self {
        Self {
            outcome,
            source: source.into(),
        }
    }

    /// Returns the first classified error among `error` and its sources.
    #[must_use]
    pub fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        find(error)
    }

    /// Returns the outcome that the error stands for.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Returns the error that this one wraps.
    #[must_use]
    pub fn into_source(self) -> BoxError {
        self.source
    }
}

impl fmt::Display for ClassifiedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl Error for ClassifiedError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

// === impl ConfigError ===

impl ConfigError {
    /// Creates the error of a `field` that cannot be `value`, because of `reason`.
    pub fn new(field: &'static str, value: impl fmt::Debug, reason: &'static str) -> Self {
        Self {
            field,
            value: format!("{value:?}"),
            reason,
        }
    }

    /// Returns `value` if it is over zero and at most a day.
    ///
    /// # Errors
    ///
    /// Otherwise, naming `field`.
    pub fn check_duration(field: &'static str, value: Duration) -> Result<Duration, Self> {
        const DAY: Duration = Duration::from_secs(86_400);
        if value.is_zero() {
            Err(Self::new(field, value, "it must be longer than zero"))
        } else if value > DAY {
            Err(Self::new(field, value, "it must be at most a day"))
        } else {
            Ok(value)
        }
    }

    /// Returns `value` if it is not zero.
    ///
    /// # Errors
    ///
    /// Otherwise, naming `field`.
    pub fn check_nonzero(field: &'static str, value: usize) -> Result<usize, Self> {
        if value == 0 {
            return Err(Self::new(field, value, "it must be at least one"));
        }
        Ok(value)
    }

    /// The setting.
    #[must_use]
    pub fn field(&self) -> &'static str {
        self.field
    }

    /// The value it cannot have.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}: {}", self.field, self.value, self.reason)
    }
}

impl Error for ConfigError {}

/// Returns the first `E` among an error and its sources.
fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    chain(error).find_map(|error| error.downcast_ref())
}

/// Iterates over an error and its sources.
pub(crate) fn chain<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |&error| {
        // An I/O error that wraps another one does not name it as its source.
        let wrapped = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        }
    })
}
