//! Errors shared by the adapters.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use super::BoxError;

/// An error of a tower stack, returned by a client that has the stack inside.
///
/// It displays as the error that it wraps, which is its [`source`](Error::source). This level is needed because
/// `reqwest_middleware::Error` and `async_openai::error::OpenAIError` are transparent: they display the error that they
/// wrap, but their source is the source of that error, so a refusal in them could not be found among the sources. With this
/// level, the refusal is the first source of the client's error.
///
/// A program that prints the whole chain shows the text of the cause twice. The alternative is worse: a program that prints
/// only the first level, as most do, would not show the cause at all.
#[cfg(any(feature = "reqwest-middleware", feature = "async-openai"))]
#[derive(Debug)]
pub struct StackError(BoxError);

#[cfg(any(feature = "reqwest-middleware", feature = "async-openai"))]
impl StackError {
    pub(super) fn new(error: BoxError) -> Self {
        Self(error)
    }

    /// The error as the stack returned it.
    #[must_use]
    pub fn into_inner(self) -> BoxError {
        self.0
    }
}

#[cfg(any(feature = "reqwest-middleware", feature = "async-openai"))]
impl fmt::Display for StackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(any(feature = "reqwest-middleware", feature = "async-openai"))]
impl Error for StackError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}

/// A streamed request body failed while a client sent it.
///
/// Its text may be shown to the caller; its [`source`](Error::source) is the error of the body.
#[derive(Clone, Debug)]
pub struct RequestBodyError(
    // Shared: the client returns it, and the layers see it.
    Arc<dyn Error + Send + Sync>,
);

impl RequestBodyError {
    pub(super) fn new(error: BoxError) -> Self {
        Self(error.into())
    }
}

impl fmt::Display for RequestBodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("request body could not be read")
    }
}

impl Error for RequestBodyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}
