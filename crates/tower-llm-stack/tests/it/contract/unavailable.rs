//! The store that processes share is unavailable: limits do as configured, and circuits and cache go on by themselves.

use tower::Layer;
use tower_llm_stack::{
    BreakerLayer, CacheLayer, CircuitOpen, Limit, RateLimitLayer, RateLimited, Redis, Scope,
    SharedCache, SharedCircuits, SharedLimits, Stack, StoreFallback, ratelimit::RateLimitBuilder,
};

use super::*;
use crate::{
    contract::layers::{Model, boxed},
    support::nowhere,
};

const REPLICAS: u32 = 2;

async fn redis() -> Redis {
    let nowhere = nowhere().await.replace("http", "redis");
    Redis::builder(nowhere).build().unwrap()
}

/// Calls with different prompts, until one is refused; at most ten.
async fn admitted(client: &Client) -> (usize, Option<BoxError>) {
    for number in 0..10 {
        let prompt = REQUEST.replace("forty", &number.to_string());
        match client
            .clone()
            .oneshot(request().map(|_| prompt.into()))
            .await
        {
            Ok(response) => drop(response.into_body().collect().await.unwrap()),
            Err(error) => return (number, Some(error)),
        }
    }
    (10, None)
}

/// Four requests a minute, in a store that is unavailable.
fn limit(builder: RateLimitBuilder, redis: &Redis, fallback: StoreFallback) -> RateLimitLayer {
    let shared = SharedLimits::new(redis.clone(), "contract", REPLICAS).store_fallback(fallback);
    let limit = builder.limit(Limit::requests(4).per_day()).shared(shared);
    limit.max_waiting(0).build().unwrap()
}

#[tokio::test]
async fn both_limits_admit_their_share_or_all_or_nothing() {
    let redis = redis().await;
    for (fallback, expected) in [
        (StoreFallback::LocalShare, 2),
        (StoreFallback::FailOpen, 10),
        (StoreFallback::FailClosed, 0),
    ] {
        let callers = limit(RateLimitLayer::for_callers(), &redis, fallback);
        let providers = limit(RateLimitLayer::for_providers(), &redis, fallback);
        for (callers, providers) in [(Some(callers), None), (None, Some(providers))] {
            let stack = Stack::builder()
                .caller_rate_limit(callers)
                .provider_rate_limit(providers)
                .build();
            let client: Client = boxed(stack.layer(Model::new([]).service()));
            let (admitted, refused) = admitted(&client).await;
            assert_eq!(admitted, expected, "{fallback:?}");
            assert!(refused.is_none_or(|error| error.is::<RateLimited>()));
        }
    }
}

#[tokio::test]
async fn a_circuit_opens_by_the_processs_own_calls() {
    let shared = SharedCircuits::new(redis().await, "contract");
    let breaker = BreakerLayer::builder().shared(shared).build().unwrap();
    let stack = Stack::builder().breaker(breaker).build();
    let failures = vec![Behavior::from(Fault::Status(500)); 10];
    let client: Client = boxed(stack.layer(Model::new(failures).service()));
    let (failed, refused) = admitted(&client).await;
    assert_eq!(failed, 5);
    assert!(refused.unwrap().is::<CircuitOpen>());
}

#[tokio::test]
async fn the_cache_answers_from_its_memory() {
    let shared = SharedCache::new(redis().await);
    let cache = CacheLayer::builder(Scope::shared()).shared(shared);
    let layers = Layers::around_cache(cache.build().unwrap(), 10);
    for _ in 0..3 {
        read(&layers.stack()).await;
    }
    assert_eq!(layers.stand().of_provider(), USED);
    assert_eq!(layers.stand().of_caller(), taken(3, USED.tokens));
}
