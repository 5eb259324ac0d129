//! Errors shared by the adapters that sit inside another client.

use std::error::Error;
use std::fmt;

use super::BoxError;

/// An error of a tower stack, handed on by a client that the stack runs inside.
///
/// It reads as the error it holds, and that error is its [`source`](Error::source). The level is there because
/// `reqwest_middleware::Error` and `async_openai::error::OpenAIError` both stand in for the error they wrap: they print
/// it, but begin their source chain behind it, so a refusal put into them as it is could not be found by walking the
/// sources. With this level between, it is the first source of the client's error.
///
/// Something that prints a whole chain shows the text of the cause twice; the alternative is a client error that does
/// not name its cause to those who print only the first level, as most do.
#[derive(Debug)]
pub struct StackError(BoxError);

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

impl fmt::Display for StackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for StackError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}

/// A request whose body could not be turned into bytes before the stack saw it.
///
/// The text may change; what the getters tell will not.
#[derive(Debug)]
pub struct RequestBodyError {
    reason: Reason,
}

impl RequestBodyError {
    pub(super) fn too_large(limit: usize) -> Self {
        Self {
            reason: Reason::TooLarge { limit },
        }
    }

    pub(super) fn read(error: BoxError) -> Self {
        Self {
            reason: Reason::Read(error),
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

#[derive(Debug)]
enum Reason {
    TooLarge { limit: usize },
    Read(BoxError),
}
