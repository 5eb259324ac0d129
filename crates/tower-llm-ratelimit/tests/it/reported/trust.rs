//! Neither a provider's report nor a caller's request blocks a key for longer than necessary.

use std::time::Duration;

use crate::http_support::timeline::{Timeline, chat, described, json, reported};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower::{Layer, ServiceExt, service_fn};
use tower_llm_core::{BoxError, Call, Dialect, Operation, Provider, Refusal, RefusalKind};
use tower_llm_ratelimit::{Limit, RateLimitBuilder, RateLimitLayer, RateLimited};

fn timeline(builder: RateLimitBuilder) -> Timeline {
    Timeline::new(builder.max_waiting(0).build().expect("legal settings"))
}

fn greedy(maximum: u64) -> Request<()> {
    let call = Call::builder(Provider::OPENAI, Operation::CHAT)
        .dialect(Dialect::OpenAi)
        .model("m")
        .max_output_tokens(maximum);
    described(call.build())
}

#[tokio::test(start_paused = true)]
async fn one_call_of_an_absurd_size_does_not_block_others_for_long() {
    let timeline = timeline(RateLimitLayer::for_providers());
    timeline.push(reported("tokens", 90_000, 89_000, "1s"));
    timeline.calls(1).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    timeline.push(json(400, [], r#"{"error":{"code":"invalid_value"}}"#));
    timeline
        .call(greedy(1_000_000_000_000_000))
        .await
        .expect("the call is sent");
    // All of the rest is used, and refills at the reported rate: 90,000 in 90 seconds. One call may probe after 60 s.
    tokio::time::sleep(Duration::from_secs(61)).await;
    timeline.call(chat("m")).await.expect("there is room again");
}

#[tokio::test(start_paused = true)]
async fn a_reported_limit_is_probed_again_after_a_minute() {
    let timeline = timeline(RateLimitLayer::for_providers());
    timeline.push(reported("requests", 1, 0, "99999h"));
    timeline.calls(1).await;
    let refused = timeline.call(chat("m")).await.expect_err("none remains");
    let refused = refused
        .downcast_ref::<RateLimited>()
        .expect("the layer's own error");
    assert_eq!(refused.retry_after(), Some(Duration::from_secs(60)));
    tokio::time::sleep(Duration::from_secs(60)).await;
    timeline.push(reported("requests", 60, 59, "1s"));
    timeline.call(chat("m")).await.expect("one call may probe");
    timeline
        .call(chat("m"))
        .await
        .expect("the report was corrected");
}

#[tokio::test(start_paused = true)]
async fn unsent_calls_take_nothing_of_the_reported_budget() {
    let layer = RateLimitLayer::for_providers().max_waiting(0);
    let layer = layer.build().expect("legal settings");
    let timeline = Timeline::new(layer.clone());
    timeline.push(reported("requests", 60, 59, "1s"));
    timeline.calls(1).await;
    let full = layer.layer(service_fn(|_: Request<()>| async {
        let refusal = Refusal::new(RefusalKind::Unavailable, "bulkhead");
        Err::<Response<Full<Bytes>>, BoxError>(refusal.into())
    }));
    for _ in 0..200 {
        let refused = full
            .clone()
            .oneshot(chat("m"))
            .await
            .expect_err("the inner layer is full");
        assert!(!refused.is::<RateLimited>(), "{refused}");
    }
}

#[tokio::test(start_paused = true)]
async fn absurd_usage_is_not_believed() {
    let bucket = Limit::tokens(90_000).per_minute().bucket(90_000);
    let timeline = timeline(RateLimitLayer::for_providers().limit(bucket));
    let usage = r#"{"usage":{"prompt_tokens":100,"completion_tokens":9000000000000000000}}"#;
    timeline.push(json(200, [], usage));
    timeline.call(chat("m")).await.expect("there is room");
    // A debt of a hundred million tokens is paid off in less than a day.
    tokio::time::sleep(Duration::from_secs(86_400)).await;
    timeline
        .call(chat("m"))
        .await
        .expect("the debt is paid off");
}
