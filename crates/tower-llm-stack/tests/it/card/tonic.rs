//! Around a tonic channel under a client, and around a typed service that calls such a client: a gRPC message is neither cached
//! nor sent again as it is.

use ::tonic::transport::Channel;
use http::Request;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_llm_stack::{
    BreakerLayer, BulkheadLayer, CacheLayer, Call, FanoutLayer, KeyContent, Limit, Operation,
    Preset, Provider, RateLimitLayer, Scope, Stack, Unary, adapters::tonic::StatusLayer,
};

use super::*;
use crate::adapter_tonic;

fn channel(upstream: &Upstream) -> Channel {
    Channel::from_shared(upstream.url(""))
        .unwrap()
        .connect_lazy()
}

/// A call by a client around this channel.
async fn ask<S, B>(channel: &S) -> Answer
where
    S: ::tonic::client::GrpcService<::tonic::body::Body, ResponseBody = B> + Clone,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let mut client = ::tonic::client::Grpc::new(channel.clone());
    Ok(adapter_tonic::ask(&mut client, b"ping").await?.into_inner())
}

/// A typed service that calls a client.
fn typed(
    upstream: &Upstream,
) -> impl Service<Request<Bytes>, Response = Bytes, Error = BoxError, Future: Send>
+ Clone
+ Send
+ 'static {
    let channel = channel(upstream);
    service_fn(move |_: Request<Bytes>| {
        let channel = channel.clone();
        async move { ask(&channel).await }
    })
}

async fn ask_typed<S>(model: &S, message: fn(S::Response) -> Bytes) -> Answer
where
    S: Service<Request<Bytes>, Error = BoxError> + Clone,
{
    let mut request = Request::new(Bytes::from_static(b"ping"));
    let call = Call::builder(Provider::OPENAI, Operation::CHAT).model("m");
    request.extensions_mut().insert(call.build());
    model.clone().oneshot(request).await.map(message)
}

#[tokio::test]
async fn ratelimit() -> Result<(), BoxError> {
    let upstream = Upstream::grpc(Script::Well).await;
    let channel = channel(&upstream);
    // added
    let limit = RateLimitLayer::for_callers().limit(Limit::requests(2).per_minute());
    let channel = ServiceBuilder::new()
        .layer((StatusLayer::refusals(), limit.build()?))
        .service(channel);
    // end
    the_third_call_is_refused(&upstream, || ask(&channel)).await;
    Ok(())
}

#[tokio::test]
async fn cache() -> Result<(), BoxError> {
    let upstream = Upstream::grpc(Script::Well).await;
    let model = typed(&upstream);
    // added
    let cache = CacheLayer::builder(Scope::shared()).build()?;
    let cache = cache.cloned(|asked: &Request<Bytes>| KeyContent::bytes(asked.body()));
    let model = ServiceBuilder::new().layer(cache).service(model);
    // end
    let ask = || ask_typed(&model, |answer| Bytes::clone(&answer));
    the_second_call_is_a_hit(&upstream, ask).await;
    Ok(())
}

#[tokio::test]
async fn bulkhead() -> Result<(), BoxError> {
    let upstream = Upstream::grpc(Script::SilentOnce).await;
    let channel = channel(&upstream);
    // added
    let permits = BulkheadLayer::builder(1).max_waiting(0).build()?;
    let channel = ServiceBuilder::new()
        .layer((StatusLayer::refusals(), permits))
        .service(channel);
    // end
    a_call_is_refused_while_another_runs(&upstream, || ask(&channel)).await;
    Ok(())
}

#[tokio::test]
async fn breaker() -> Result<(), BoxError> {
    let upstream = Upstream::grpc(Script::Fails).await;
    let channel = channel(&upstream);
    // added
    let channel = ServiceBuilder::new()
        .layer((StatusLayer::refusals(), BreakerLayer::new()))
        .service(channel);
    // end
    the_sixth_call_is_refused_after_five_failures(&upstream, || ask(&channel)).await;
    Ok(())
}

#[tokio::test]
async fn fanout() -> Result<(), BoxError> {
    let upstream = Upstream::grpc(Script::FailsOnce).await;
    let model = typed(&upstream);
    // added
    let retries = FanoutLayer::retry(1).watch(Unary).build()?;
    let model = ServiceBuilder::new().layer(retries).service(model);
    // end
    a_call_that_failed_is_sent_again(&upstream, || ask_typed(&model, |answer| answer)).await;
    Ok(())
}

#[tokio::test]
async fn preset() -> Result<(), BoxError> {
    let upstream = Upstream::grpc(Script::Fails).await;
    let channel = channel(&upstream);
    // added
    let channel = Stack::grpc_preset(Preset::Chat).build().layer(channel);
    // end
    the_sixth_call_is_refused_after_five_failures(&upstream, || ask(&channel)).await;
    Ok(())
}
