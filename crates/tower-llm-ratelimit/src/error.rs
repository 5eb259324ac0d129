use std::{error::Error, fmt, time::Duration};

use http::HeaderMap;
use tower_llm_core::{Refusal, RefusalKind};

use crate::{Limit, Unit};

/// A limit does not let a call through now.
///
/// The text may change; what the getters say will not.
#[derive(Clone, Debug)]
pub struct RateLimited {
    reason: Reason,
    refusal: Refusal,
}

/// A call is larger than one of its limits: it will never be let through.
///
/// The text may change; what the getters say will not.
#[derive(Clone, Debug)]
pub struct ExceedsLimit {
    // Boxed, as in `Reason`: a result is no larger for it.
    limit: Box<Limit>,
    amount: u64,
    capacity: u64,
    refusal: Refusal,
}

/// Why a call was refused that could be admitted another time.
#[derive(Clone, Debug)]
pub(crate) enum Reason {
    /// A limit of ours is used up.
    Limit(Box<Limit>),
    /// The provider's own limit is, by what it told.
    Told(Unit),
    /// The provider asked to wait.
    Closed,
    /// Others were there before.
    Queue,
    /// The store of a shared limit is away.
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

    /// The limit that is used up; `None` if it is the provider that asked to wait, or others wait already.
    #[must_use]
    pub fn limit(&self) -> Option<&Limit> {
        match &self.reason {
            Reason::Limit(limit) => Some(limit),
            _ => None,
        }
    }

    /// Whether it is the provider's limit, as its responses told it.
    #[must_use]
    pub fn is_by_provider(&self) -> bool {
        matches!(self.reason, Reason::Told(_) | Reason::Closed)
    }

    /// Time until the same request could be admitted, if nobody else is; `None` if it is not known.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.refusal.retry_after()
    }
}

impl fmt::Display for RateLimited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Reason::Limit(limit) => write!(f, "the limit of {limit} is used up"),
            Reason::Told(unit) => write!(f, "the provider's limit of {unit} is used up"),
            Reason::Closed => f.write_str("the provider asked to wait"),
            Reason::Queue => f.write_str("too many calls wait for this limit"),
            Reason::Store => f.write_str("the store of the limits cannot be reached"),
        }?;
        match self.retry_after() {
            Some(wait) => write!(f, "; try again in {}", Seconds(wait)),
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

    /// The limit.
    #[must_use]
    pub fn limit(&self) -> &Limit {
        &self.limit
    }

    /// What the call would have taken of it.
    #[must_use]
    pub fn amount(&self) -> u64 {
        self.amount
    }

    /// The most that can be taken of it at once: its amount for the caller's tier, or a bucket's burst.
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
            "the request needs {amount} {unit}, and never more than {capacity} can be taken at once"
        )
    }
}

impl Error for ExceedsLimit {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.refusal)
    }
}

const LAYER: &str = "ratelimit";

/// A duration in seconds, rounded up to thousandths as the headers are.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_nanos().div_ceil(1_000_000);
        write!(f, "{}.{:03}s", millis / 1_000, millis % 1_000)
    }
}
