use std::time::Duration;

use crate::url::Target;

/// The checked settings.
pub(crate) struct Settings {
    pub(crate) target: Target,
    /// The total time of a call.
    pub(crate) command_timeout: Duration,
    /// The time of an attempt to connect, including the first PING.
    pub(crate) connect_timeout: Duration,
    /// Maximum number of calls that wait for one server.
    pub(crate) max_pending: usize,
}
