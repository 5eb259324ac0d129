//! Errors shared by the adapters.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use super::BoxError;

/// An error of a tower stack, returned by a client that the stack runs inside of.
///
/// It reads as the error that it wraps, which is its [`source`](Error::source). This level is needed because
/// `reqwest_middleware::Error` and `async_openai::error::OpenAIError` replace the error that they wrap: they print it, but
/// their source chain starts behind it, so a refusal put into them directly could not be found among the sources.
/// With this level, the refusal is the first source of the client's error.
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

/// A request whose streamed body failed, or was too long to be read into memory for the stack.
///
/// The text may change; what the getters return will not.
#[derive(Clone, Debug)]
pub struct RequestBodyError {
    reason: Reason,
}

impl RequestBodyError {
    #[cfg(any(feature = "reqwest-middleware", feature = "async-openai"))]
    pub(super) fn too_large(limit: usize) -> Self {
        Self {
            reason: Reason::TooLarge { limit },
        }
    }

    pub(super) fn read(error: BoxError) -> Self {
        Self {
            reason: Reason::Read(error.into()),
        }
    }

    /// The limit in bytes, if the body was longer; `None` if reading it failed.
    #[must_use]
    pub fn limit(&self) -> Option<usize> {
        match self.reason {
            Reason::TooLarge { limit } => Some(limit),
            Reason::Read(_) => None,
        }
    }
}

impl fmt::Display for RequestBodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason {
            Reason::TooLarge { limit } => {
                write!(f, "streamed request body is longer than {limit} bytes")
            }
            Reason::Read(_) => f.write_str("streamed request body could not be read"),
        }
    }
}

impl Error for RequestBodyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.reason {
            Reason::TooLarge { .. } => None,
            Reason::Read(error) => Some(&**error),
        }
    }
}

#[derive(Clone, Debug)]
enum Reason {
    #[allow(
        dead_code,
        reason = "only adapters inside of a client read a body into memory"
    )]
    TooLarge {
        limit: usize,
    },
    // Shared: the client returns it, and the layers see it.
    Read(Arc<dyn Error + Send + Sync>),
}
