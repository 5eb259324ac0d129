//! What a caller can get instead of an answer.

use std::{error::Error, fmt, iter, sync::Arc, time::Duration};

use tower_llm_core::{BoxError, ClassifiedError, Failure, Outcome, Priority, Refusal, RefusalKind};

/// A call found no room in the queue of its key, or waited there for too long: it was not sent.
///
/// The text may change; the getters will not.
#[derive(Clone, Debug)]
pub struct BatchFull {
    pub(crate) priority: Priority,
    pub(crate) queued: usize,
    pub(crate) max_waiting: usize,
    pub(crate) in_flight: usize,
    pub(crate) waited: Option<Duration>,
    pub(crate) refusal: Refusal,
}

/// A merged call has no answer for one of its calls.
///
/// An error of the upstream itself reaches every caller as the source of its error; this is what is left beside it.
#[derive(Debug)]
pub struct BatchFailed {
    reason: Reason,
    verdict: ClassifiedError,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Panicked,
    NoAnswer,
    WrongNumber { results: usize, requests: usize },
    Unreadable,
}

/// An error that several callers get. It reads as the one that it shares, which is its source.
#[derive(Clone)]
pub(crate) struct SharedError(Arc<BoxError>);

// === impl BatchFull ===

impl BatchFull {
    pub(crate) const REFUSAL: Refusal = Refusal::new(RefusalKind::Unavailable, "batch");

    /// The priority of the call, and of the queue in which it waited or that was full.
    #[must_use]
    pub fn priority(&self) -> Priority {
        self.priority
    }

    /// Calls of its key and priority that waited.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.queued
    }

    /// Batches of its key that were in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// How long the call waited in the queue; `None` if the queue was full.
    #[must_use]
    pub fn waited_for(&self) -> Option<Duration> {
        self.waited
    }

    /// Always `None`: there is room when a batch has ended, and that time cannot be known.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        None
    }
}

impl fmt::Display for BatchFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (queued, in_flight) = (self.queued, self.in_flight);
        match self.waited {
            Some(waited) => write!(
                f,
                "not sent in a batch within {waited:?}: {in_flight} in flight, queue {queued}/{}",
                self.max_waiting
            ),
            None => write!(
                f,
                "batch queue full: {in_flight} in flight, queue {queued}/{}",
                self.max_waiting
            ),
        }
    }
}

impl Error for BatchFull {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.refusal)
    }
}

// === impl BatchFailed ===

impl BatchFailed {
    fn new(reason: Reason, failure: Failure) -> Self {
        let verdict = ClassifiedError::new(Outcome::Failed(failure), "the merged call failed");
        Self { reason, verdict }
    }

    pub(crate) fn panicked() -> Self {
        Self::new(Reason::Panicked, Failure::Panic)
    }

    pub(crate) fn no_answer() -> Self {
        Self::new(Reason::NoAnswer, Failure::InBand)
    }

    pub(crate) fn wrong_number(results: usize, requests: usize) -> Self {
        Self::new(Reason::WrongNumber { results, requests }, Failure::InBand)
    }

    pub(crate) fn unreadable() -> Self {
        Self::new(Reason::Unreadable, Failure::InBand)
    }

    /// One for each of a number of requests.
    pub(crate) fn copies<T>(
        requests: usize,
        failed: impl Fn() -> Self,
    ) -> Vec<Result<T, BoxError>> {
        (0..requests).map(|_| Err(failed().into())).collect()
    }
}

impl fmt::Display for BatchFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason {
            Reason::Panicked => f.write_str("the upstream service or the batcher panicked"),
            Reason::NoAnswer => f.write_str("the merged call ended without an answer to this one"),
            Reason::WrongNumber { results, requests } => {
                write!(
                    f,
                    "the merged response has {results} results for {requests} requests"
                )
            }
            Reason::Unreadable => f.write_str("the merged response cannot be taken apart"),
        }
    }
}

impl Error for BatchFailed {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.verdict)
    }
}

// === impl SharedError ===

impl SharedError {
    /// One for each of a number of requests. A single one gets the error itself.
    pub(crate) fn copies<T>(requests: usize, error: BoxError) -> Vec<Result<T, BoxError>> {
        if requests == 1 {
            return vec![Err(error)];
        }
        let shared = Self(Arc::new(error));
        iter::repeat_with(|| Err(shared.clone().into()))
            .take(requests)
            .collect()
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
