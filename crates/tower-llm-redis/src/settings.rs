use std::time::Duration;

use crate::url::Target;

/// What was built, checked.
pub(crate) struct Settings {
    pub(crate) target: Target,
    /// For a call, all in all.
    pub(crate) command_timeout: Duration,
    /// For an attempt to connect, the first PING included.
    pub(crate) connect_timeout: Duration,
    /// Calls that wait for one server.
    pub(crate) max_pending: usize,
}
