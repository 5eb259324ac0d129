//! A 429 of the provider: one layer acts on it, the provider's limit if it observes reports, otherwise the breaker.

use tokio::time::Instant;
use tower::Layer;
use tower_llm_stack::{BreakerLayer, CircuitOpen, Limit, RateLimitLayer, Stack};
use tower_llm_testkit::RetryAfter;

use super::*;
use crate::contract::layers::{Attempts, Model, boxed};

const RETRY_AFTER: Duration = Duration::from_secs(5);

/// A 429, and then successes.
fn throttled_once() -> Attempts {
    Model::new([Fault::Throttled(RetryAfter::Seconds(5)).into()]).service()
}

fn providers() -> RateLimitLayer {
    let limits = RateLimitLayer::for_providers().limit(Limit::requests(100).per_minute());
    limits.build().unwrap()
}

async fn is_throttled(client: &Client) {
    let response = client.clone().oneshot(request()).await.unwrap();
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    response.into_body().collect().await.unwrap();
}

/// The call after the 429 waits for the retry-after, and succeeds.
async fn waits(client: Client, breaker: &BreakerLayer) {
    is_throttled(&client).await;
    let start = Instant::now();
    let response = client.oneshot(request()).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(start.elapsed().as_secs(), RETRY_AFTER.as_secs());
    let circuit = breaker.handle().stats_of(&model()).unwrap();
    assert_eq!((circuit.state, circuit.refused), (State::Closed, 0));
}

/// The circuit refuses the call after the 429, with the retry-after.
async fn opens(client: Client) {
    is_throttled(&client).await;
    let error = client.oneshot(request()).await.unwrap_err();
    assert!(error.is::<CircuitOpen>());
    let wait = Refusal::find(&*error).unwrap().retry_after().unwrap();
    // A circuit stays open for up to a tenth longer, so that calls do not all return at once.
    assert!(
        (RETRY_AFTER..=RETRY_AFTER.mul_f64(1.1)).contains(&wait),
        "{wait:?}"
    );
}

/// Both acted: the circuit refused calls that would have waited at the limit.
#[tokio::test(start_paused = true)]
async fn with_both_layers_the_limit_acts_and_calls_wait() {
    let breaker = BreakerLayer::new();
    let both = Stack::builder()
        .breaker(breaker.clone())
        .provider_rate_limit(providers());
    waits(boxed(both.build().layer(throttled_once())), &breaker).await;
}

#[tokio::test(start_paused = true)]
async fn with_both_layers_as_options_the_limit_acts_too() {
    let breaker = BreakerLayer::new();
    let both = Stack::builder()
        .breaker(Some(breaker.clone()))
        .provider_rate_limit(Some(providers()));
    waits(boxed(both.build().layer(throttled_once())), &breaker).await;
}

#[tokio::test(start_paused = true)]
async fn with_the_breaker_alone_the_circuit_acts() {
    let alone = Stack::builder().breaker(BreakerLayer::new());
    opens(boxed(alone.build().layer(throttled_once()))).await;
}

#[tokio::test(start_paused = true)]
async fn with_a_disabled_limit_the_circuit_acts() {
    let without = Stack::builder()
        .breaker(BreakerLayer::new())
        .provider_rate_limit(None::<RateLimitLayer>);
    opens(boxed(without.build().layer(throttled_once()))).await;
}

#[tokio::test(start_paused = true)]
async fn with_a_limit_that_does_not_observe_the_circuit_acts() {
    let deaf = RateLimitLayer::for_providers()
        .limit(Limit::requests(100).per_minute())
        .enforce_reported_limits(false);
    let both = Stack::builder()
        .breaker(BreakerLayer::new())
        .provider_rate_limit(deaf.build().unwrap());
    opens(boxed(both.build().layer(throttled_once()))).await;
}

#[tokio::test(start_paused = true)]
async fn with_the_callers_limit_alone_the_circuit_acts() {
    let callers = RateLimitLayer::for_callers().limit(Limit::requests(100).per_minute());
    let both = Stack::builder()
        .breaker(BreakerLayer::new())
        .caller_rate_limit(callers.build().unwrap());
    opens(boxed(both.build().layer(throttled_once()))).await;
}

/// One breaker may be part of several stacks.
#[tokio::test(start_paused = true)]
async fn each_stack_decides_for_itself() {
    let breaker = BreakerLayer::new();
    let both = Stack::builder()
        .breaker(breaker.clone())
        .provider_rate_limit(providers());
    let both = boxed(both.build().layer(throttled_once()));
    let alone = Stack::builder().breaker(breaker.clone());
    let alone = boxed(alone.build().layer(throttled_once()));
    waits(both, &breaker).await;
    opens(alone).await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_answered_429_releases_its_lease() {
    let breaker = BreakerLayer::new();
    breaker.handle().trip(&model(), Duration::ZERO);
    let both = Stack::builder()
        .breaker(breaker.clone())
        .provider_rate_limit(providers());
    is_throttled(&boxed(both.build().layer(throttled_once()))).await;
    let circuit = breaker.handle().stats_of(&model()).unwrap();
    assert_eq!((circuit.state, circuit.probes), (State::HalfOpen, 0));
}
