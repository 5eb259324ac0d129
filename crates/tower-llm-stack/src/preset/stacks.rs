//! Whole stacks in one call.

use tower_llm_breaker::BreakerLayer;
use tower_llm_bulkhead::BulkheadLayer;
use tower_llm_cache::{CacheLayer, Scope};
use tower_llm_core::{ConfigError, RefusalLayer};
use tower_llm_fanout::FanoutLayer;
use tower_llm_ratelimit::{Limit, RateLimitLayer};
use tower_llm_timeout::TimeoutLayer;

use super::{Preset, valid};
use crate::{
    slot::{self, Unset},
    stack::{Stack, StackBuilder},
};

impl Stack<Unset> {
    /// Starts a stack with all layers that need no second target, for a service with callers of its own.
    ///
    /// | layer | settings |
    /// |---|---|
    /// | [refusals](StackBuilder::refusal) | responses, with the time until a retry can succeed |
    /// | [description](StackBuilder::describe) | callers are told apart by their credentials |
    /// | [limit of callers](StackBuilder::caller_rate_limit) | 10,000 requests an hour for each |
    /// | [cache](StackBuilder::cache) | each caller's own answers; completions for 30 minutes, embeddings for 24 hours; 256 MiB |
    /// | [extra branches](StackBuilder::fanout) | two retries after failures, for at most 20 % of calls |
    /// | [circuits](StackBuilder::breaker) | 5 failures in a row, or half of a minute's calls, open one for 30 s |
    /// | [limits of a provider](StackBuilder::provider_rate_limit) | those that it reports; 100 calls wait for up to 30 s |
    /// | [permits](StackBuilder::bulkhead) | 10 for each provider; 100 calls wait for up to 30 s |
    /// | [timeouts](StackBuilder::timeout) | first token 120 s, next frame 60 s, total 600 s |
    ///
    /// A monitor is yours to add, by the builder's `monitor` (feature `monitor`): what it counts is read by its handle.
    ///
    /// Each can be changed or left out; the circuits' and all else that is not named here are the layers' own defaults.
    ///
    /// ```
    /// use tower_llm_stack::{BulkheadLayer, RateLimitLayer, Stack};
    ///
    /// # fn run() -> Result<(), tower_llm_stack::ConfigError> {
    /// let stack = Stack::full()
    ///     .bulkhead(BulkheadLayer::new(50)?)
    ///     .caller_rate_limit(None::<RateLimitLayer>)
    ///     .build();
    /// # let _ = stack;
    /// # Ok(())
    /// # }
    /// ```
    pub fn full() -> StackBuilder<slot::Full> {
        valid(full())
    }

    /// Starts a stack for a purpose: a [`Preset`] lists every switch that it sets.
    ///
    /// ```
    /// use tower_llm_stack::{Preset, RefusalLayer, Stack};
    ///
    /// let stack = Stack::preset(Preset::Chat).build();
    /// let for_a_server = Stack::preset(Preset::Chat).refusal(RefusalLayer::new()).build();
    /// # let _ = (stack, for_a_server);
    /// ```
    pub fn preset(preset: Preset) -> StackBuilder<slot::ForPurpose> {
        valid(http(preset))
    }

    /// Starts a stack for a purpose around a gRPC channel: [`Stack::grpc`], with the preset's circuits, limits, permits and
    /// timeouts.
    ///
    /// A gRPC message is neither cached nor sent again, so the preset's cache and extra branches are left out. Use them
    /// around a [typed service](crate::guide::typed_services) that calls the client. Of the timeouts, those of the total and
    /// of the next frame apply: a message is no event of a stream.
    #[cfg(feature = "tonic")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tonic")))]
    pub fn grpc_preset(preset: Preset) -> StackBuilder<slot::ForGrpc> {
        valid(grpc(preset))
    }
}

fn full() -> Result<StackBuilder<slot::Full>, ConfigError> {
    let callers = RateLimitLayer::for_callers().limit(Limit::requests(10_000).per_hour());
    Ok(Stack::builder()
        .refusal(RefusalLayer::new())
        .caller_rate_limit(callers.build()?)
        .cache(CacheLayer::builder(Scope::caller()).build()?)
        .fanout(FanoutLayer::retry(2).build()?)
        .breaker(BreakerLayer::new())
        .provider_rate_limit(RateLimitLayer::for_providers().build()?)
        .bulkhead(BulkheadLayer::new(10)?)
        .timeout(TimeoutLayer::new()))
}

fn http(preset: Preset) -> Result<StackBuilder<slot::ForPurpose>, ConfigError> {
    Ok(Stack::builder()
        .cache(preset.cache(Scope::caller()).build()?)
        .fanout(preset.fanout().build()?)
        .breaker(preset.breaker().build()?)
        .provider_rate_limit(preset.provider_rate_limit().build()?)
        .bulkhead(preset.bulkhead().build()?)
        .timeout(preset.timeout().build()?))
}

#[cfg(feature = "tonic")]
fn grpc(preset: Preset) -> Result<StackBuilder<slot::ForGrpc>, ConfigError> {
    Ok(Stack::grpc()
        .breaker(preset.breaker().build()?)
        .provider_rate_limit(preset.provider_rate_limit().build()?)
        .bulkhead(preset.bulkhead().build()?)
        .timeout(preset.timeout().build()?))
}
