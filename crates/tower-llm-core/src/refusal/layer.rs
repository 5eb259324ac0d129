use std::{convert::Infallible, marker::PhantomData};

use tower_layer::Layer;

use super::Refuse;
use crate::BoxError;

/// Turns refusals and timeouts into responses in the dialect of the request.
///
/// Use it in servers, as the outermost layer. Providers' clients act on these statuses and headers:
///
/// | error | status | headers |
/// |---|---|---|
/// | a rate limit | 429 | `retry-after` rounded up to seconds, `retry-after-ms` |
/// | no permit is free, a circuit is open | 503 | the same, if the time is known |
/// | the request body is too large | 413 | `x-should-retry: false` |
/// | the request body failed | 400 | |
/// | a timeout | 504 | |
///
/// `x-should-retry: false` is set on every refusal that a retry cannot change. An error that [states an
/// outcome](crate::ClassifiedError) gets the status of that outcome.
///
/// Other errors, such as a broken connection, are passed on as [`BoxError`], unless the layer is
/// [infallible](Self::infallible).
#[derive(Debug)]
pub struct RefusalLayer<E = BoxError> {
    error: PhantomData<fn() -> E>,
}

impl RefusalLayer {
    /// Creates a layer that passes on errors which are neither refusals nor timeouts.
    #[must_use]
    pub const fn new() -> Self {
        Self { error: PhantomData }
    }

    /// Turns every other error into a 502, so that the service's error is [`Infallible`], as axum requires.
    ///
    /// The text of the error is not repeated: it may name internal hosts.
    #[must_use]
    pub const fn infallible(self) -> RefusalLayer<Infallible> {
        RefusalLayer { error: PhantomData }
    }
}

// Not derived: `E` need not be `Copy`.
impl<E> Clone for RefusalLayer<E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for RefusalLayer<E> {}

impl Default for RefusalLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S, E> Layer<S> for RefusalLayer<E> {
    type Service = Refuse<S, E>;

    fn layer(&self, inner: S) -> Refuse<S, E> {
        Refuse::new(inner)
    }
}
