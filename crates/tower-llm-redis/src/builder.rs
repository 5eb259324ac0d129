use std::{fmt, time::Duration};

use tokio::runtime::Handle;
use tower_llm_core::ConfigError;

use crate::{ConnectError, Redis, settings::Settings, url::Target};

const COMMAND_TIMEOUT: Duration = Duration::from_millis(100);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_PENDING: usize = 10_000;

/// Builds a [`Redis`].
///
/// | setting | default |
/// |---|---|
/// | [`command_timeout`](Self::command_timeout) | 100 ms |
/// | [`connect_timeout`](Self::connect_timeout) | 1 s |
/// | [`max_pending`](Self::max_pending) | 10,000 calls for each server |
#[derive(Clone)]
#[must_use = "a builder does nothing until it is built"]
pub struct RedisBuilder {
    url: String,
    command_timeout: Duration,
    connect_timeout: Duration,
    max_pending: usize,
}

impl RedisBuilder {
    pub(crate) fn new(url: String) -> Self {
        Self {
            url,
            command_timeout: COMMAND_TIMEOUT,
            connect_timeout: CONNECT_TIMEOUT,
            max_pending: MAX_PENDING,
        }
    }

    /// Sets how long a call may take in total; 100 ms unless set, at most a day.
    ///
    /// The first calls of an outage take this long. A script that takes longer counts as an outage.
    pub fn command_timeout(mut self, timeout: Duration) -> Self {
        self.command_timeout = timeout;
        self
    }

    /// Sets how long an attempt to connect may take, until the first PING is answered: 1 s unless set, at most a day. No
    /// call waits that long: only reconnecting and [`connect`](Self::connect) do.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets how many calls may wait for the responses of one server; 10,000 unless set. Further calls are refused at once.
    pub fn max_pending(mut self, calls: usize) -> Self {
        self.max_pending = calls;
        self
    }

    /// Builds a client that connects in the background: Redis need not be up.
    ///
    /// Until it has connected or found Redis unavailable, calls wait within their timeout. Its tasks run in the current
    /// tokio runtime and end with it; a `Redis` that outlives its runtime fails every call. Its timeouts use tokio's clock
    /// too: in a test with a paused clock they pass at once.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] naming the setting, if [`Redis::builder`] does not support the URL, a timeout is zero or over a day,
    /// or `max_pending` is zero; and `runtime` if there is no tokio runtime.
    pub fn build(self) -> Result<Redis, ConfigError> {
        let settings = Settings {
            command_timeout: ConfigError::check_duration("command_timeout", self.command_timeout)?,
            connect_timeout: ConfigError::check_duration("connect_timeout", self.connect_timeout)?,
            max_pending: ConfigError::check_nonzero("max_pending", self.max_pending)?,
            target: Target::parse(&self.url)?,
        };
        if Handle::try_current().is_err() {
            let reason = "it must be built inside a tokio runtime, in which its tasks run";
            return Err(ConfigError::new("runtime", format_args!("missing"), reason));
        }
        Ok(Redis::start(settings))
    }

    /// Builds a client and waits until Redis, or every node of a Cluster, has answered a PING.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] if a setting is invalid, if the server refuses the credentials or a right that connecting needs, or
    /// if it does not answer within [`connect_timeout`](Self::connect_timeout).
    pub async fn connect(self) -> Result<Redis, ConnectError> {
        let redis = self.build()?;
        redis.answered().await?;
        Ok(redis)
    }
}

impl fmt::Debug for RedisBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the URL, which can contain a password.
        f.debug_struct("RedisBuilder")
            .field("command_timeout", &self.command_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("max_pending", &self.max_pending)
            .finish_non_exhaustive()
    }
}
