use tower_layer::Layer;

use super::Refuse;

/// Answers refusals and time-outs with a response in the dialect of the request.
///
/// For servers; it stands outermost. Status and headers are those the providers' clients act on:
///
/// | error | status | headers |
/// |---|---|---|
/// | a rate limit | 429 | `retry-after` rounded up to seconds, `retry-after-ms` |
/// | no place, circuit open | 503 | the same, if the time is known |
/// | too large | 413 | `x-should-retry: false` |
/// | [`TimedOut`](crate::TimedOut) | 504 | |
///
/// `x-should-retry: false` comes with every refusal that waiting cannot change. Other errors, such as a connection that
/// broke, are passed on, unless [`bad_gateway`](Self::bad_gateway) is set.
#[derive(Clone, Copy, Debug, Default)]
pub struct RefusalLayer {
    bad_gateway: bool,
}

impl RefusalLayer {
    /// A layer that passes on errors that are not of these layers.
    #[must_use]
    pub const fn new() -> Self {
        Self { bad_gateway: false }
    }

    /// Answers every other error with 502 too, so that none is left. The text does not repeat the error.
    #[must_use]
    pub const fn bad_gateway(mut self) -> Self {
        self.bad_gateway = true;
        self
    }
}

impl<S> Layer<S> for RefusalLayer {
    type Service = Refuse<S>;

    fn layer(&self, inner: S) -> Refuse<S> {
        Refuse::new(inner, self.bad_gateway)
    }
}
