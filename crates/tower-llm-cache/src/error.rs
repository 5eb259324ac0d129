//! What a caller can get instead of an answer.

use std::{error::Error, fmt, sync::Arc};

use tower_llm_core::{BoxError, Refusal, RefusalKind};

/// The request says `only-if-cached`, and no fresh answer is stored: it was not sent.
#[derive(Clone, Debug)]
pub struct NotCached {
    refusal: Refusal,
}

/// An upstream call that other callers share has no answer for this one.
///
/// An error of the upstream itself reaches every caller as it is; this is what is left beside it.
#[derive(Clone, Debug)]
pub struct FlightFailed {
    reason: Reason,
}

/// Answers were removed from this process's memory, and perhaps not from Redis or from the memory of other processes.
///
/// The text may change; the getters will not.
#[derive(Debug)]
pub struct InvalidateError {
    memory: u64,
    source: BoxError,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Panicked,
    NoAnswer,
    Behind,
    Encoded,
}

/// An error that several callers get. It reads as the one that it shares, which is its source.
#[derive(Clone)]
pub(crate) struct SharedError(pub(crate) Arc<BoxError>);

// === impl NotCached ===

impl NotCached {
    pub(crate) const fn new() -> Self {
        Self {
            refusal: Refusal::new(RefusalKind::NotCached, "cache").never(),
        }
    }
}

impl fmt::Display for NotCached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no answer is cached, and the request allows no other")
    }
}

impl Error for NotCached {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.refusal)
    }
}

// === impl FlightFailed ===

impl FlightFailed {
    pub(crate) const fn panicked() -> Self {
        Self {
            reason: Reason::Panicked,
        }
    }

    pub(crate) const fn no_answer() -> Self {
        Self {
            reason: Reason::NoAnswer,
        }
    }

    pub(crate) const fn behind() -> Self {
        Self {
            reason: Reason::Behind,
        }
    }

    pub(crate) const fn encoded() -> Self {
        Self {
            reason: Reason::Encoded,
        }
    }
}

impl fmt::Display for FlightFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.reason {
            Reason::Panicked => "the upstream service panicked",
            Reason::NoAnswer => "the upstream ended without an answer",
            Reason::Behind => "the answer was read too slowly: what comes next is no longer held",
            Reason::Encoded => {
                "the shared answer has a content coding that this request does not accept"
            }
        })
    }
}

impl Error for FlightFailed {}

// === impl InvalidateError ===

impl InvalidateError {
    #[cfg(feature = "redis")]
    pub(crate) fn new(memory: u64, source: impl Into<BoxError>) -> Self {
        Self {
            memory,
            source: source.into(),
        }
    }

    /// How many answers were removed from this process's memory.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.memory
    }
}

impl fmt::Display for InvalidateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("some answers may not have been removed from redis")
    }
}

impl Error for InvalidateError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

// === impl SharedError ===

impl From<FlightFailed> for SharedError {
    fn from(failed: FlightFailed) -> Self {
        BoxError::from(failed).into()
    }
}

impl From<BoxError> for SharedError {
    fn from(error: BoxError) -> Self {
        Self(Arc::new(error))
    }
}

impl fmt::Debug for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl Error for SharedError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&**self.0)
    }
}
