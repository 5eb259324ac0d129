//! Around hyper-util's client.

use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::connect::HttpConnector;
use tower::{Layer, Service, ServiceBuilder, ServiceExt};
use tower_llm_stack::{
    BreakerLayer, BulkheadLayer, CacheLayer, DescribeLayer, FanoutLayer, Limit, Preset,
    RateLimitLayer, Scope, Stack, adapters::hyper_util::client,
};

use super::*;

/// A chat.
async fn ask<S, B>(client: &S, upstream: &Upstream) -> Answer
where
    S: Service<Request<Full<Bytes>>, Response = http::Response<B>> + Clone,
    S::Error: Into<BoxError>,
    B: http_body::Body<Error: Into<BoxError>>,
{
    let request = Request::post(upstream.url("/v1/chat/completions"));
    let request = request.header("authorization", "Bearer a");
    let request = request.body(r#"{"model":"m","messages":[]}"#.into())?;
    let response = client.clone().oneshot(request).await.map_err(Into::into)?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(Into::into)?;
    match status.is_success() {
        true => Ok(body.to_bytes()),
        false => Err(status.to_string().into()),
    }
}

#[tokio::test]
async fn ratelimit() -> Result<(), BoxError> {
    let client = client(HttpConnector::new());
    // added
    let limit = RateLimitLayer::for_callers().limit(Limit::requests(2).per_minute());
    let client = ServiceBuilder::new()
        .layer((DescribeLayer::new(), limit.build()?))
        .service(client);
    // end
    let upstream = Upstream::http(Script::Well).await;
    the_third_call_is_refused(&upstream, || ask(&client, &upstream)).await;
    Ok(())
}

#[tokio::test]
async fn cache() -> Result<(), BoxError> {
    let client = client(HttpConnector::new());
    // added
    let cache = CacheLayer::builder(Scope::caller()).build()?;
    let client = ServiceBuilder::new()
        .layer((DescribeLayer::new(), cache))
        .service(client);
    // end
    let upstream = Upstream::http(Script::Well).await;
    the_second_call_is_a_hit(&upstream, || ask(&client, &upstream)).await;
    Ok(())
}

#[tokio::test]
async fn bulkhead() -> Result<(), BoxError> {
    let client = client(HttpConnector::new());
    // added
    let permits = BulkheadLayer::builder(1).max_waiting(0).build()?;
    let client = ServiceBuilder::new()
        .layer((DescribeLayer::new(), permits))
        .service(client);
    // end
    let upstream = Upstream::http(Script::SilentOnce).await;
    a_call_is_refused_while_another_runs(&upstream, || ask(&client, &upstream)).await;
    Ok(())
}

#[tokio::test]
async fn breaker() -> Result<(), BoxError> {
    let client = client(HttpConnector::new());
    // added
    let client = ServiceBuilder::new()
        .layer((DescribeLayer::new(), BreakerLayer::new()))
        .service(client);
    // end
    let upstream = Upstream::http(Script::Fails).await;
    the_sixth_call_is_refused_after_five_failures(&upstream, || ask(&client, &upstream)).await;
    Ok(())
}

#[tokio::test]
async fn fanout() -> Result<(), BoxError> {
    let client = client(HttpConnector::new());
    // added
    let retries = FanoutLayer::retry(1).build()?;
    let client = ServiceBuilder::new()
        .layer((DescribeLayer::new(), retries))
        .service(client);
    // end
    let upstream = Upstream::http(Script::FailsOnce).await;
    a_call_that_failed_is_sent_again(&upstream, || ask(&client, &upstream)).await;
    Ok(())
}

#[tokio::test]
async fn preset() -> Result<(), BoxError> {
    let client = client(HttpConnector::new());
    // added
    let client = Stack::preset(Preset::Chat).build().layer(client);
    // end
    let upstream = Upstream::http(Script::FailsOnce).await;
    let ask = || ask(&client, &upstream);
    a_call_that_failed_is_sent_again_and_its_answer_is_a_hit_then(&upstream, ask).await;
    Ok(())
}
