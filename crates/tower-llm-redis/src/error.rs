use std::{error::Error, fmt, time::Duration};

use tower_llm_core::ConfigError;

use crate::url::Address;

/// A script or a command could not be run, or its response did not arrive.
///
/// The text may change; the getters will not.
#[derive(Clone, Debug)]
pub struct StoreError {
    reason: Reason,
}

#[derive(Clone, Debug)]
enum Reason {
    /// Known to be unavailable: not sent.
    Down,
    /// Too many calls are waiting: not sent.
    Full {
        max_pending: usize,
    },
    TimedOut {
        after: Duration,
    },
    /// The connection ended before the response arrived, perhaps because of the server's response to another call.
    Lost {
        over: Option<String>,
    },
    /// The server cannot serve now: it is loading its data, has no primary or too few replicas, cannot write to its disk,
    /// or is busy with a script.
    NotServing {
        message: String,
    },
    /// A slot is being moved, and some of the keys have moved already.
    OnTheMove {
        message: String,
    },
    Server {
        message: String,
    },
    Redirects,
    Unexpected {
        what: &'static str,
    },
}

/// The server could not be reached, or refused the connection.
///
/// The text may change; the getters will not.
#[derive(Clone, Debug)]
pub struct ConnectError {
    reason: Unconnected,
}

#[derive(Clone, Debug)]
enum Unconnected {
    Config(ConfigError),
    Refused {
        address: Address,
        message: String,
    },
    TimedOut {
        address: Address,
        within: Duration,
        last: Option<String>,
    },
    NoSlots {
        within: Duration,
    },
}

// === impl StoreError ===

impl StoreError {
    pub(crate) fn down() -> Self {
        Reason::Down.into()
    }

    pub(crate) fn full(max_pending: usize) -> Self {
        Reason::Full { max_pending }.into()
    }

    pub(crate) fn timed_out(after: Duration) -> Self {
        Reason::TimedOut { after }.into()
    }

    pub(crate) fn lost(over: Option<String>) -> Self {
        Reason::Lost { over }.into()
    }

    pub(crate) fn not_serving(message: String) -> Self {
        Reason::NotServing { message }.into()
    }

    pub(crate) fn on_the_move(message: String) -> Self {
        Reason::OnTheMove { message }.into()
    }

    pub(crate) fn server(message: String) -> Self {
        Reason::Server { message }.into()
    }

    pub(crate) fn redirects() -> Self {
        Reason::Redirects.into()
    }

    pub(crate) fn unexpected(what: &'static str) -> Self {
        Reason::Unexpected { what }.into()
    }

    /// Whether no response arrived in time. The call may have run, or may still run.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self.reason, Reason::TimedOut { .. })
    }

    /// Whether Redis is unavailable and the call did not run. Either it was refused at once, because the server is known
    /// to be unavailable or [`max_pending`](crate::RedisBuilder::max_pending) calls are waiting. Or the server reported
    /// that it cannot serve now: it is loading its data, is no primary, has too few replicas, cannot write to its disk, is
    /// busy with a script, or has only some of the keys of a slot that is being moved.
    #[must_use]
    pub fn is_down(&self) -> bool {
        match self.reason {
            Reason::Down
            | Reason::Full { .. }
            | Reason::NotServing { .. }
            | Reason::OnTheMove { .. }
            | Reason::Redirects => true,
            Reason::TimedOut { .. }
            | Reason::Lost { .. }
            | Reason::Server { .. }
            | Reason::Unexpected { .. } => false,
        }
    }

    /// Whether the server answered with an error: of the script, of the user's rights, of a type, or of its memory. The server is up, and the
    /// same call is likely to fail again. What a script did before the error is not undone.
    #[must_use]
    pub fn is_script(&self) -> bool {
        matches!(self.reason, Reason::Server { .. })
    }

    /// Whether the key's slot is being moved, so that no node has all of the keys.
    pub(crate) fn is_on_the_move(&self) -> bool {
        matches!(self.reason, Reason::OnTheMove { .. })
    }

    /// Whether the call may have run although no response arrived: it timed out, or the connection was lost.
    #[must_use]
    pub fn may_have_run(&self) -> bool {
        matches!(self.reason, Reason::TimedOut { .. } | Reason::Lost { .. })
    }
}

impl From<Reason> for StoreError {
    fn from(reason: Reason) -> Self {
        Self { reason }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Reason::Down => write!(f, "redis is unavailable"),
            Reason::Full { max_pending } => {
                write!(f, "{max_pending} calls are already waiting for redis")
            }
            Reason::TimedOut { after } => write!(f, "redis did not answer within {after:?}"),
            Reason::Lost { over: None } => write!(f, "the connection to redis was lost"),
            Reason::Lost { over: Some(over) } => {
                write!(f, "the connection to redis was lost: {over}")
            }
            Reason::NotServing { message } | Reason::OnTheMove { message } => {
                write!(f, "redis cannot serve now: {message}")
            }
            Reason::Server { message } => write!(f, "redis answered: {message}"),
            Reason::Redirects => write!(
                f,
                "the nodes of the cluster disagree on the owner of the key"
            ),
            Reason::Unexpected { what } => write!(f, "the response is {what}"),
        }
    }
}

impl Error for StoreError {}

// === impl ConnectError ===

impl ConnectError {
    pub(crate) fn refused(address: &Address, message: String) -> Self {
        let address = address.clone();
        Unconnected::Refused { address, message }.into()
    }

    pub(crate) fn timed_out(address: &Address, within: Duration, last: Option<String>) -> Self {
        let timed_out = Unconnected::TimedOut {
            address: address.clone(),
            within,
            last,
        };
        timed_out.into()
    }

    /// The error of a cluster whose nodes answer, but do not return the owners of slots.
    pub(crate) fn no_slots(within: Duration) -> Self {
        Unconnected::NoSlots { within }.into()
    }

    /// The invalid setting, if that is the reason.
    #[must_use]
    pub fn config(&self) -> Option<&ConfigError> {
        match &self.reason {
            Unconnected::Config(error) => Some(error),
            _ => None,
        }
    }

    /// Whether the server answered and refused: wrong or missing credentials, a user without the rights to connect, or a
    /// server that is no Cluster although one was expected.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(self.reason, Unconnected::Refused { .. })
    }

    /// Whether it could not be reached in time.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self.reason,
            Unconnected::TimedOut { .. } | Unconnected::NoSlots { .. }
        )
    }
}

impl From<ConfigError> for ConnectError {
    fn from(error: ConfigError) -> Self {
        Unconnected::Config(error).into()
    }
}

impl From<Unconnected> for ConnectError {
    fn from(reason: Unconnected) -> Self {
        Self { reason }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Unconnected::Config(_) => write!(f, "a setting of redis is invalid"),
            Unconnected::Refused { address, message } => {
                write!(f, "redis at {address} refused the connection: {message}")
            }
            Unconnected::TimedOut {
                address,
                within,
                last,
            } => {
                write!(
                    f,
                    "redis at {address} could not be reached within {within:?}"
                )?;
                match last {
                    Some(last) => write!(f, ": {last}"),
                    None => Ok(()),
                }
            }
            Unconnected::NoSlots { within } => {
                write!(
                    f,
                    "no node of the cluster returned the owners of slots within {within:?}"
                )
            }
        }
    }
}

impl Error for ConnectError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.config().map(|error| error as _)
    }
}
