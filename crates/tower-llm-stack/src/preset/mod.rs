//! Stacks for a purpose: their switches, and the layers that have them.

mod stacks;

use std::time::Duration;

use tower_llm_breaker::{BreakerBuilder, BreakerLayer};
use tower_llm_bulkhead::{BulkheadBuilder, BulkheadLayer};
use tower_llm_cache::{CacheBuilder, CacheLayer, Policy, Scope};
use tower_llm_core::ConfigError;
use tower_llm_fanout::{Backoff, Budget, Delay, FanoutBuilder, FanoutLayer};
use tower_llm_ratelimit::{Limit, RateLimitBuilder, RateLimitLayer};
use tower_llm_timeout::{TimeoutBuilder, TimeoutLayer};

#[doc = include_str!("switches.md")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Preset {
    /// A person waits for each answer, and reads it as it comes.
    Chat,
    /// Answers are long, and right ones count more than fast ones.
    Code,
    /// An answer that is late is worth nothing: slow calls are sent twice.
    Realtime,
    /// Long documents, by the batch: no person waits, and each has to be processed.
    Documents,
    /// An answer that was paid for is used again for as long as possible.
    Cost,
}

/// The switches in which presets differ.
#[derive(Clone, Copy, Debug)]
struct Switches {
    first_token: Duration,
    first_token_max: Duration,
    idle: Duration,
    total: Duration,
    total_streamed: Duration,
    extra: Extra,
    max_retry_after: Duration,
    deadline: Option<Duration>,
    budget: f64,
    completions: Option<Duration>,
    max_waiting: usize,
    max_wait: Duration,
    requests_per_minute: Option<u64>,
}

/// What a call's extra branches are.
#[derive(Clone, Copy, Debug)]
enum Extra {
    /// At most so many, with a backoff from the first of these times to the second.
    Retries(usize, Duration, Duration),
    /// One, for this ratio of calls.
    Hedge(f64),
}

const SDK: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(8));
const CONCURRENT: usize = 10;

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn hours(hours: u64) -> Duration {
    Duration::from_secs(hours * 60 * 60)
}

/// What is made of settings that are fixed, and that tests have built.
fn valid<T>(built: Result<T, ConfigError>) -> T {
    built.expect("the settings are valid")
}

// === impl Preset ===

impl Preset {
    /// Starts its timeouts.
    pub fn timeout(self) -> TimeoutBuilder {
        let switches = self.switches();
        TimeoutLayer::builder()
            .first_token(switches.first_token)
            .first_token_max(switches.first_token_max)
            .idle(switches.idle)
            .total(switches.total)
            .total_streamed(switches.total_streamed)
    }

    /// Starts its cache, with answers shared as `scope` says.
    pub fn cache(self, scope: Scope) -> CacheBuilder {
        let completions = self.switches().completions;
        CacheLayer::builder(scope)
            .completions(completions.map(|ttl| Policy::completions().ttl(ttl)))
            .embeddings(Policy::embeddings().ttl(hours(24)))
    }

    /// Starts its extra branches: retries, or a hedge.
    pub fn fanout(self) -> FanoutBuilder {
        let switches = self.switches();
        let fanout = match switches.extra {
            Extra::Retries(retries, base, max) => {
                let backoff = valid(Backoff::exponential(base, max));
                FanoutLayer::retry(retries).backoff(backoff)
            }
            Extra::Hedge(ratio) => FanoutLayer::hedge(Delay::slowest(ratio)),
        };
        let fanout = fanout
            .budget(valid(Budget::new(switches.budget)))
            .max_retry_after(switches.max_retry_after);
        match switches.deadline {
            Some(deadline) => fanout.deadline(deadline),
            None => fanout,
        }
    }

    /// Starts its circuits.
    pub fn breaker(self) -> BreakerBuilder {
        BreakerLayer::builder()
            .failure_threshold(5)
            .success_threshold(2)
            .open_for(seconds(60))
    }

    /// Starts its limits of a provider.
    pub fn provider_rate_limit(self) -> RateLimitBuilder {
        let switches = self.switches();
        let requests = switches.requests_per_minute;
        RateLimitLayer::for_providers()
            .limits(requests.map(|requests| Limit::requests(requests).per_minute()))
            .max_waiting(switches.max_waiting)
            .max_wait(switches.max_wait)
    }

    /// Starts its permits.
    pub fn bulkhead(self) -> BulkheadBuilder {
        let switches = self.switches();
        BulkheadLayer::builder(CONCURRENT)
            .max_waiting(switches.max_waiting)
            .max_wait(switches.max_wait)
    }

    /// The table of the docs.
    const fn switches(self) -> Switches {
        match self {
            Self::Chat => Switches {
                first_token: seconds(15),
                first_token_max: seconds(60),
                idle: seconds(15),
                total: seconds(30),
                total_streamed: seconds(300),
                extra: Extra::Retries(1, SDK.0, SDK.1),
                max_retry_after: seconds(10),
                deadline: Some(seconds(30)),
                budget: 0.2,
                completions: Some(seconds(5 * 60)),
                max_waiting: 100,
                max_wait: seconds(10),
                requests_per_minute: None,
            },
            Self::Code => Switches {
                first_token: seconds(60),
                first_token_max: seconds(300),
                idle: seconds(30),
                total: seconds(60),
                total_streamed: seconds(300),
                extra: Extra::Retries(3, SDK.0, SDK.1),
                max_retry_after: seconds(60),
                deadline: None,
                budget: 0.2,
                completions: Some(hours(1)),
                max_waiting: 100,
                max_wait: seconds(30),
                requests_per_minute: None,
            },
            Self::Realtime => Switches {
                first_token: seconds(5),
                first_token_max: seconds(15),
                idle: seconds(5),
                total: seconds(15),
                total_streamed: seconds(60),
                extra: Extra::Hedge(0.05),
                max_retry_after: seconds(2),
                deadline: Some(seconds(15)),
                budget: 0.1,
                completions: None,
                max_waiting: 20,
                max_wait: seconds(2),
                requests_per_minute: Some(1_000),
            },
            Self::Documents => Switches {
                first_token: seconds(120),
                first_token_max: seconds(300),
                idle: seconds(60),
                total: seconds(300),
                total_streamed: seconds(300),
                extra: Extra::Retries(5, seconds(5), seconds(60)),
                max_retry_after: seconds(300),
                deadline: None,
                budget: 0.5,
                completions: Some(hours(24)),
                max_waiting: 1_000,
                max_wait: seconds(300),
                requests_per_minute: None,
            },
            Self::Cost => Switches {
                first_token: seconds(60),
                first_token_max: seconds(300),
                idle: seconds(60),
                total: seconds(60),
                total_streamed: seconds(300),
                extra: Extra::Retries(1, SDK.0, SDK.1),
                max_retry_after: seconds(60),
                deadline: None,
                budget: 0.1,
                completions: Some(hours(24)),
                max_waiting: 100,
                max_wait: seconds(30),
                requests_per_minute: None,
            },
        }
    }
}
