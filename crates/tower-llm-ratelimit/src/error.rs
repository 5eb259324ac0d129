use std::{error::Error, fmt, time::Duration};

use http::HeaderMap;
use tower_llm_core::{Refusal, RefusalKind};

use crate::{Limit, Unit};

/// A limit refused a call that may be admitted later.
///
/// The text may change; the getters will not.
#[derive(Clone, Debug)]
pub struct RateLimited {
    reason: Reason,
    refusal: Refusal,
}

/// A call is larger than one of its limits, and can never be admitted.
///
/// The text may change; the getters will not.
#[derive(Clone, Debug)]
pub struct ExceedsLimit {
    // Boxed, as in `Reason`, to keep results small.
    limit: Box<Limit>,
    amount: u64,
    capacity: u64,
    refusal: Refusal,
}

/// Why a call was refused that may be admitted later.
#[derive(Clone, Debug)]
pub(crate) enum Reason {
    /// One of the layer's own limits is exceeded.
    Limit(Box<Limit>),
    /// A limit that the provider reported is exceeded.
    Reported(Unit),
    /// The provider asked to wait.
    Closed,
    /// The queue is full.
    QueueFull,
    /// Other calls were ahead of it for the longest wait allowed.
    Waited(Duration),
    /// The store of a shared limit is unavailable.
    Store,
}

// === impl RateLimited ===

impl RateLimited {
    pub(crate) fn new(reason: Reason, retry_after: Option<Duration>) -> Self {
        let refusal = Refusal::new(RefusalKind::RateLimited, LAYER);
        let refusal = match retry_after {
            Some(wait) => refusal.after(wait),
            None => refusal,
        };
        Self { reason, refusal }
    }

    /// With headers for the caller's response.
    pub(crate) fn with_headers(mut self, headers: HeaderMap) -> Self {
        self.refusal = self.refusal.with_headers(headers);
        self
    }

    /// Returns the exceeded limit; `None` if the provider asked to wait, if the queue is full, if other calls were ahead for
    /// too long, or if the store is unavailable.
    #[must_use]
    pub fn limit(&self) -> Option<&Limit> {
        match &self.reason {
            Reason::Limit(limit) => Some(limit),
            _ => None,
        }
    }

    /// Returns whether the provider reported the limit or asked to wait.
    #[must_use]
    pub fn is_provider_limit(&self) -> bool {
        matches!(self.reason, Reason::Reported(_) | Reason::Closed)
    }

    /// Returns the time until the same request could be admitted, by what is known to be used; `None` if it never can.
    ///
    /// Tokens that calls in flight have reserved do not count, because most of them may be refunded. If only these block the
    /// request, or calls that wait before it, the time is not known: they may end at any time. Then it is one second.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.refusal.retry_after()
    }
}

impl fmt::Display for RateLimited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Reason::Limit(limit) => write!(f, "rate limit of {limit} exceeded"),
            Reason::Reported(unit) => write!(f, "the provider's limit of {unit} is exceeded"),
            Reason::Closed => f.write_str("the provider asked to wait"),
            Reason::QueueFull => f.write_str("too many calls wait for the rate limit"),
            Reason::Waited(waited) => write!(f, "waited {waited:?} for the rate limit"),
            Reason::Store => f.write_str("the rate limit store is unavailable"),
        }?;
        match self.retry_after() {
            Some(wait) => write!(f, "; retry after {}", Seconds(wait)),
            None => Ok(()),
        }
    }
}

impl Error for RateLimited {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.refusal)
    }
}

// === impl ExceedsLimit ===

impl ExceedsLimit {
    pub(crate) fn new(limit: Limit, amount: u64, capacity: u64) -> Self {
        Self {
            limit: Box::new(limit),
            amount,
            capacity,
            refusal: Refusal::new(RefusalKind::RateLimited, LAYER).never(),
        }
    }

    /// Returns the limit.
    #[must_use]
    pub fn limit(&self) -> &Limit {
        &self.limit
    }

    /// Returns what the call needs.
    #[must_use]
    pub fn amount(&self) -> u64 {
        self.amount
    }

    /// Returns the most that the limit admits at once: its amount for the caller's tier, or a bucket's burst.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Always `None`: waiting does not help.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        None
    }
}

impl fmt::Display for ExceedsLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            limit,
            amount,
            capacity,
            ..
        } = self;
        let unit = limit.unit();
        write!(
            f,
            "the call needs {amount} {unit}, but the limit admits at most {capacity} at once"
        )
    }
}

impl Error for ExceedsLimit {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.refusal)
    }
}

const LAYER: &str = "ratelimit";

/// A duration in seconds, rounded up to milliseconds as in the headers.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_nanos().div_ceil(1_000_000);
        write!(f, "{}.{:03}s", millis / 1_000, millis % 1_000)
    }
}
