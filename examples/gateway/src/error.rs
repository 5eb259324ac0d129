//! Why the gateway does not start.

use std::{error::Error, fmt, io, net::SocketAddr};

/// The gateway did not start.
#[derive(Debug)]
pub struct StartError(Reason);

#[derive(Debug)]
pub(crate) enum Reason {
    Setting {
        name: String,
        what: String,
    },
    Listen {
        addr: SocketAddr,
        flag: &'static str,
        error: io::Error,
    },
    Simulator(io::Error),
    Tls(String),
    Redis(String),
    Randomness,
}

impl StartError {
    pub(crate) fn setting(name: impl Into<String>, what: impl fmt::Display) -> Self {
        let (name, what) = (name.into(), what.to_string());
        Self(Reason::Setting { name, what })
    }

    /// Whether a setting is to blame, and not what the machine has.
    #[must_use]
    pub fn is_setting(&self) -> bool {
        matches!(self.0, Reason::Setting { .. })
    }
}

impl From<Reason> for StartError {
    fn from(reason: Reason) -> Self {
        Self(reason)
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Reason::Setting { name, what } => write!(f, "{name}: {what}"),
            Reason::Listen { addr, flag, error } if error.kind() == io::ErrorKind::AddrInUse => {
                write!(
                    f,
                    "{addr} is in use by another program; choose another with {flag}"
                )
            }
            Reason::Listen { addr, error, .. } => write!(f, "cannot listen on {addr}: {error}"),
            Reason::Simulator(error) => {
                write!(f, "the simulated provider does not start: {error}")
            }
            Reason::Randomness => f.write_str("the system gives no random numbers"),
            Reason::Redis(what) => write!(
                f,
                "{what}; REDIS_REQUIRED=off starts the gateway without it"
            ),
            Reason::Tls(what) => write!(f, "no https upstream can be reached: {what}"),
        }
    }
}

// Its text has the reason in it.
impl Error for StartError {}
