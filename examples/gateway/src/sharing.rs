//! What several gateways share through Redis: limits, circuits and cached answers.
//!
//! A gateway needs Redis to start, unless told otherwise, so that a wrong address is noticed. From then on it never needs
//! it: while Redis is unavailable, each gateway enforces its part of the limits, and has its own circuits and answers.

use std::{fmt, time::Duration};

use tower_llm_stack::{
    Redis, SharedCache, SharedCircuits, SharedLimits,
    redis::{ConnectError, Health},
};

use crate::{
    Settings, SharedLimitsBy, StartError,
    error::Reason,
    secret::{self, CallerSecret},
};

const LEASE: Duration = Duration::from_secs(1);

/// How long a circuit that another gateway opened or closed may be unknown here.
const CIRCUITS_MAX_AGE: Duration = Duration::from_secs(1);

const DAY: Duration = Duration::from_secs(86_400);

/// The connection to Redis, and how to share.
#[derive(Clone, Debug)]
pub(crate) struct Sharing {
    redis: Redis,
    namespace: String,
    replicas: u32,
    by: SharedLimitsBy,
    hold_for: Duration,
    cache: Option<Sealing>,
}

/// How cached answers are shared.
#[derive(Clone, Copy)]
enum Sealing {
    Plain,
    Sealed([u8; 32]),
}

impl Sharing {
    /// Connects to Redis if it is configured. Adds to `notices` what the operator should know.
    pub(crate) async fn connect(
        settings: &Settings,
        caller_secret: Option<&CallerSecret>,
        notices: &mut Vec<String>,
    ) -> Result<Option<Self>, StartError> {
        let sharing = &settings.sharing;
        let (Some(url), Some(caller_secret)) = (&sharing.redis_url, caller_secret) else {
            return Ok(None);
        };
        let cache = match secret::of_sealed_answers(settings)? {
            _ if !settings.cache.shared => None,
            Some(secret) => Some(Sealing::Sealed(secret)),
            None => Some(Sealing::Plain),
        };
        let builder = Redis::builder(url.expose()).command_timeout(sharing.redis_timeout);
        let redis = match builder.clone().connect().await {
            Ok(redis) => redis,
            Err(error) if error.is_unreachable() && !sharing.redis_required => {
                notices.push(format!(
                    "{error}. The gateway starts without it, enforces its part of the limits, and connects later."
                ));
                let built = builder.build();
                built.map_err(|error| not_connected(settings, &error.into()))?
            }
            Err(error) => return Err(not_connected(settings, &error)),
        };
        // A call may wait for its limit and its permit before it runs.
        let longest =
            settings.timeout.total + settings.ratelimit.timeout + settings.bulkhead.default_timeout;
        Ok(Some(Self {
            redis,
            namespace: caller_secret.namespace(),
            replicas: sharing.replicas,
            by: sharing.ratelimit_shared,
            hold_for: (2 * longest).min(DAY),
            cache,
        }))
    }

    /// Shares the limits that have this name.
    pub(crate) fn limits(&self, of: &str) -> SharedLimits {
        let name = format!("{}:{of}", self.namespace);
        let limits =
            SharedLimits::new(self.redis.clone(), name, self.replicas).hold_for(self.hold_for);
        match self.by {
            SharedLimitsBy::Script => limits,
            SharedLimitsBy::Lease => limits.lease_for(LEASE),
        }
    }

    /// Shares the circuits that have this name.
    pub(crate) fn circuits(&self, of: &str) -> SharedCircuits {
        let name = format!("{}:{of}", self.namespace);
        SharedCircuits::new(self.redis.clone(), name).max_age(CIRCUITS_MAX_AGE)
    }

    /// Shares cached answers; `None` if each gateway has its own.
    pub(crate) fn cache(&self) -> Option<SharedCache> {
        let cache = SharedCache::new(self.redis.clone());
        match self.cache? {
            Sealing::Plain => Some(cache),
            Sealing::Sealed(secret) => Some(cache.secret(secret)),
        }
    }

    pub(crate) fn health(&self) -> Health {
        self.redis.health()
    }
}

/// What is shared, for the operator.
impl fmt::Display for Sharing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = match self.by {
            SharedLimitsBy::Script => "script",
            SharedLimitsBy::Lease => "lease",
        };
        write!(
            f,
            "limits (by {by}), circuits (at most {CIRCUITS_MAX_AGE:?} old)"
        )?;
        match self.cache {
            Some(Sealing::Sealed(_)) => f.write_str(", cached answers (sealed)")?,
            Some(Sealing::Plain) => {
                f.write_str(", cached answers (not sealed: GATEWAY_CACHE_SECRET is not set)")?
            }
            None => {}
        }
        write!(
            f,
            ", as {}, among {} gateways",
            self.namespace, self.replicas
        )
    }
}

impl fmt::Debug for Sealing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "Plain",
            Self::Sealed(_) => "Sealed(..)",
        })
    }
}

fn not_connected(settings: &Settings, error: &ConnectError) -> StartError {
    let name = settings.names.of("--redis-url");
    if let Some(error) = error.config() {
        return StartError::setting(name, error);
    }
    if error.is_refused() {
        return StartError::setting(name, error);
    }
    Reason::Redis(error.to_string()).into()
}
