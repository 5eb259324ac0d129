//! As a middleware of reqwest-middleware.

use ::reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use tower::ServiceBuilder;
use tower_llm_stack::{
    BreakerLayer, BulkheadLayer, CacheLayer, DescribeLayer, FanoutLayer, Limit, Preset,
    RateLimitLayer, Scope, Stack, adapters::reqwest_middleware::TowerMiddleware,
};

use super::*;

/// A chat.
async fn ask(client: &ClientWithMiddleware, upstream: &Upstream) -> Answer {
    let request = client.post(upstream.url("/v1/chat/completions"));
    let request = request
        .bearer_auth("a")
        .body(r#"{"model":"m","messages":[]}"#);
    let response = request.send().await?;
    Ok(response.error_for_status()?.bytes().await?)
}

#[tokio::test]
async fn ratelimit() -> Result<(), BoxError> {
    let client = ClientBuilder::new(reqwest::Client::new());
    // added
    let limit = RateLimitLayer::for_callers().limit(Limit::requests(2).per_minute());
    let layers = ServiceBuilder::new().layer((DescribeLayer::new(), limit.build()?));
    let client = client.with(TowerMiddleware::new(layers));
    // end
    let client = client.build();
    let upstream = Upstream::http(Script::Well).await;
    the_third_call_is_refused(&upstream, || ask(&client, &upstream)).await;
    Ok(())
}

#[tokio::test]
async fn cache() -> Result<(), BoxError> {
    let client = ClientBuilder::new(reqwest::Client::new());
    // added
    let cache = CacheLayer::builder(Scope::caller()).build()?;
    let layers = ServiceBuilder::new().layer((DescribeLayer::new(), cache));
    let client = client.with(TowerMiddleware::new(layers));
    // end
    let client = client.build();
    let upstream = Upstream::http(Script::Well).await;
    the_second_call_is_a_hit(&upstream, || ask(&client, &upstream)).await;
    Ok(())
}

#[tokio::test]
async fn bulkhead() -> Result<(), BoxError> {
    let client = ClientBuilder::new(reqwest::Client::new());
    // added
    let permits = BulkheadLayer::builder(1).max_waiting(0).build()?;
    let layers = ServiceBuilder::new().layer((DescribeLayer::new(), permits));
    let client = client.with(TowerMiddleware::new(layers));
    // end
    let client = client.build();
    let upstream = Upstream::http(Script::SilentOnce).await;
    a_call_is_refused_while_another_runs(&upstream, || ask(&client, &upstream)).await;
    Ok(())
}

#[tokio::test]
async fn breaker() -> Result<(), BoxError> {
    let client = ClientBuilder::new(reqwest::Client::new());
    // added
    let layers = ServiceBuilder::new().layer((DescribeLayer::new(), BreakerLayer::new()));
    let client = client.with(TowerMiddleware::new(layers));
    // end
    let client = client.build();
    let upstream = Upstream::http(Script::Fails).await;
    the_sixth_call_is_refused_after_five_failures(&upstream, || ask(&client, &upstream)).await;
    Ok(())
}

#[tokio::test]
async fn fanout() -> Result<(), BoxError> {
    let client = ClientBuilder::new(reqwest::Client::new());
    // added
    let retries = FanoutLayer::retry(1).build()?;
    let layers = ServiceBuilder::new().layer((DescribeLayer::new(), retries));
    let client = client.with(TowerMiddleware::new(layers));
    // end
    let client = client.build();
    let upstream = Upstream::http(Script::FailsOnce).await;
    a_call_that_failed_is_sent_again(&upstream, || ask(&client, &upstream)).await;
    Ok(())
}

#[tokio::test]
async fn preset() -> Result<(), BoxError> {
    let client = ClientBuilder::new(reqwest::Client::new());
    // added
    let client = client.with(TowerMiddleware::new(Stack::preset(Preset::Chat).build()));
    // end
    let client = client.build();
    let upstream = Upstream::http(Script::FailsOnce).await;
    let ask = || ask(&client, &upstream);
    a_call_that_failed_is_sent_again_and_its_answer_is_a_hit_then(&upstream, ask).await;
    Ok(())
}
