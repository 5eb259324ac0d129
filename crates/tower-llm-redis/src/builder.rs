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

    /// Sets how long a call may last in all, whatever happens meanwhile: 100 ms unless set, at most a day.
    ///
    /// It is what the first calls of an outage cost. Scripts that take longer count as an outage.
    pub fn command_timeout(mut self, timeout: Duration) -> Self {
        self.command_timeout = timeout;
        self
    }

    /// Sets how long an attempt to connect may take, until the first PING is answered: 1 s unless set, at most a day. No
    /// call waits that long, only what brings the server back, and [`connect`](Self::connect).
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets how many calls may wait for one server's answers; 10,000 unless set. Calls beyond are refused at once.
    pub fn max_pending(mut self, calls: usize) -> Self {
        self.max_pending = calls;
        self
    }

    /// A connection that is made in the background: Redis need not be up, now or ever.
    ///
    /// Calls wait for it, within their timeout, until it is found that Redis is away. Its tasks belong to the tokio
    /// runtime in which this is called and end with it; a `Redis` that outlives its runtime fails every call. Its timeouts
    /// are tokio's too: a test that pauses the clock will see them pass.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] naming the setting, if the URL is not one of those that [`Redis::builder`] takes, a timeout is
    /// zero or over a day, or `max_pending` is zero; and `runtime` if there is no tokio runtime.
    pub fn build(self) -> Result<Redis, ConfigError> {
        let settings = Settings {
            command_timeout: ConfigError::check_duration("command_timeout", self.command_timeout)?,
            connect_timeout: ConfigError::check_duration("connect_timeout", self.connect_timeout)?,
            max_pending: ConfigError::check_nonzero("max_pending", self.max_pending)?,
            target: Target::parse(&self.url)?,
        };
        if Handle::try_current().is_err() {
            let reason = "it must be built inside a tokio runtime, which its connection lives in";
            return Err(ConfigError::new("runtime", format_args!("missing"), reason));
        }
        Ok(Redis::start(settings))
    }

    /// Builds it, and waits until Redis has answered a PING; of a Cluster, every node.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] if a setting cannot work, the server refuses our credentials or a right that connecting needs, or it
    /// did not answer within [`connect_timeout`](Self::connect_timeout).
    pub async fn connect(self) -> Result<Redis, ConnectError> {
        let redis = self.build()?;
        redis.answered().await?;
        Ok(redis)
    }
}

impl fmt::Debug for RedisBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the URL: it can hold a password.
        f.debug_struct("RedisBuilder")
            .field("command_timeout", &self.command_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("max_pending", &self.max_pending)
            .finish_non_exhaustive()
    }
}
