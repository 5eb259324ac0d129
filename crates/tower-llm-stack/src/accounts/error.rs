//! What goes wrong with an account.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use http::StatusCode;
use tower_llm_core::{BoxError, Refusal, RefusalKind};

/// There is no access token for an account, so a call was not sent.
///
/// Its text may change; its getters will not. It holds no credential.
#[derive(Clone, Debug)]
pub struct NoAccessToken {
    account: Box<str>,
    error: TokenError,
    refusal: Refusal,
}

/// Why an access token could not be fetched.
///
/// Its text may change. It holds no credential: of what the authorization server answered, only the status and OAuth's error
/// code are kept.
#[derive(Clone, Debug)]
pub struct TokenError(Arc<Reason>);

#[derive(Debug)]
enum Reason {
    /// The server refused the client.
    Denied(StatusCode, Option<Box<str>>),
    /// The server could not be reached, or its answer could not be read.
    Transport(BoxError),
    /// A source of the service's own failed.
    Source(BoxError),
    Malformed,
    TimedOut(Duration),
    Panicked,
    /// The account is gone.
    Cancelled,
}

/// An HTTP client could not be made.
///
/// Its text may change.
#[derive(Debug)]
pub struct ClientsError(Box<str>);

// === impl NoAccessToken ===

impl NoAccessToken {
    pub(super) fn new(account: &str, error: TokenError, retry_after: Duration) -> Self {
        Self {
            account: account.into(),
            error,
            refusal: Refusal::new(RefusalKind::Unavailable, "account").after(retry_after),
        }
    }

    /// Returns the name of the account.
    #[must_use]
    pub fn account(&self) -> &str {
        &self.account
    }

    /// Returns why there is none.
    #[must_use]
    pub fn error(&self) -> &TokenError {
        &self.error
    }

    /// Time until a token is fetched again.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.refusal.retry_after()
    }
}

impl fmt::Display for NoAccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no access token for account {}: {}",
            self.account, self.error
        )
    }
}

impl Error for NoAccessToken {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.refusal)
    }
}

// === impl TokenError ===

impl TokenError {
    pub(super) fn denied(status: StatusCode, code: Option<&str>) -> Self {
        // OAuth's codes are such words; anything else is the server's own text.
        let is_code = |code: &&str| {
            let is_letter = |letter: char| letter.is_ascii_lowercase() || letter == '_';
            code.len() <= 64 && code.chars().all(is_letter)
        };
        Reason::Denied(status, code.filter(is_code).map(Into::into)).into()
    }

    pub(super) fn transport(error: impl Into<BoxError>) -> Self {
        Reason::Transport(error.into()).into()
    }

    pub(super) fn source_failed(error: BoxError) -> Self {
        Reason::Source(error).into()
    }

    pub(super) fn malformed() -> Self {
        Reason::Malformed.into()
    }

    pub(super) fn timed_out(after: Duration) -> Self {
        Reason::TimedOut(after).into()
    }

    pub(super) fn panicked() -> Self {
        Reason::Panicked.into()
    }

    pub(super) fn cancelled() -> Self {
        Reason::Cancelled.into()
    }

    /// Returns the status of the authorization server, if it refused the client.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        match *self.0 {
            Reason::Denied(status, _) => Some(status),
            _ => None,
        }
    }

    /// Returns OAuth's error code, such as `invalid_client`, if the server sent one.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match &*self.0 {
            Reason::Denied(_, code) => code.as_deref(),
            _ => None,
        }
    }
}

impl From<Reason> for TokenError {
    fn from(reason: Reason) -> Self {
        Self(Arc::new(reason))
    }
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0 {
            Reason::Denied(status, Some(code)) => {
                write!(
                    f,
                    "the authorization server answered {} ({code})",
                    status.as_u16()
                )
            }
            Reason::Denied(status, None) => {
                write!(f, "the authorization server answered {}", status.as_u16())
            }
            Reason::Transport(_) => f.write_str("the authorization server could not be reached"),
            Reason::Source(_) => f.write_str("its source failed"),
            Reason::Malformed => f.write_str("the authorization server answered without one"),
            Reason::TimedOut(after) => {
                write!(
                    f,
                    "the authorization server did not answer within {after:?}"
                )
            }
            Reason::Panicked => f.write_str("its source panicked"),
            Reason::Cancelled => f.write_str("the account was dropped"),
        }
    }
}

impl Error for TokenError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &*self.0 {
            Reason::Transport(error) | Reason::Source(error) => Some(&**error),
            _ => None,
        }
    }
}

// === impl ClientsError ===

impl ClientsError {
    pub(super) fn new(what: impl Into<Box<str>>) -> Self {
        Self(what.into())
    }
}

impl fmt::Display for ClientsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for ClientsError {}
