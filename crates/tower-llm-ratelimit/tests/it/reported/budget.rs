//! A provider's reported limits are enforced before the provider has to refuse.

use std::time::Duration;

use tokio::time::advance;
use tower_llm_core::{Dialect, Provider};
use tower_llm_ratelimit::{Limit, RateLimitBuilder, RateLimitLayer};

use crate::http_support::timeline::{
    Millis, Timeline, answer, chat, chat_of, ended, family, refused, reported, throttled,
};

const DATE: (&str, &str) = ("date", "Sun, 22 Nov 2026 10:00:00 GMT");

fn timeline(builder: RateLimitBuilder) -> Timeline {
    Timeline::new(builder.build().expect("legal settings"))
}

/// When `calls` concurrent calls arrive after one response with `headers`.
async fn paced(headers: &[(&str, &str)], calls: usize) -> Vec<Millis> {
    paced_by(RateLimitLayer::for_providers(), headers, calls).await
}

async fn paced_by(
    builder: RateLimitBuilder,
    headers: &[(&str, &str)],
    calls: usize,
) -> Vec<Millis> {
    let timeline = timeline(builder);
    timeline.push(answer(headers.iter().copied()));
    timeline.calls(1).await;
    assert_eq!(timeline.now(), 0);
    timeline.calls(calls).await;
    timeline.times().split_off(1)
}

async fn paced_by_family(name: &str, limit: u64, remaining: u64, reset: &str) -> Vec<Millis> {
    let timeline = timeline(RateLimitLayer::for_providers());
    timeline.push(reported(name, limit, remaining, reset));
    timeline.calls(5).await;
    timeline.times().split_off(1)
}

#[tokio::test(start_paused = true)]
async fn remaining_calls_pass_at_once_and_the_rest_at_the_refill_rate() {
    // Eight of ten refill in eight seconds: one a second.
    let times = paced_by_family("requests", 10, 2, "8s").await;
    assert_eq!(times, [0, 0, 1_000, 2_000]);
    let times = paced_by_family("requests", 10, 0, "5s").await;
    assert_eq!(times, [500, 1_000, 1_500, 2_000]);
    let times = paced_by_family("requests", 10, 3, "1m10s").await;
    assert_eq!(times[..3], [0, 0, 0]);
    assert_eq!(times[3], 10_000);
}

#[tokio::test(start_paused = true)]
async fn tokens_are_paced_by_what_calls_reserve() {
    // One of our calls reserves 400, as OpenAI does: the larger of input and maximum. 9,400 refill in 9.4 s.
    let times = paced_by_family("tokens", 10_000, 600, "9.4s").await;
    assert_eq!(times, [0, 200, 600, 1_000]);
}

#[tokio::test(start_paused = true)]
async fn the_tighter_of_requests_and_tokens_binds() {
    let requests = family("requests", 10, 3, "7s");
    let tokens = family("tokens", 10_000, 1_000, "9s");
    let headers: Vec<_> = requests.iter().chain(&tokens).collect();
    let headers: Vec<_> = headers
        .iter()
        .map(|pair| (pair.0.as_str(), pair.1.as_str()))
        .collect();
    // Tokens for two and a half calls, requests for three.
    assert_eq!(paced(&headers, 5).await, [0, 0, 200, 1_000, 2_000]);
}

#[tokio::test(start_paused = true)]
async fn a_full_budget_passes_at_once() {
    let times = paced_by_family("requests", 4, 4, "0s").await;
    assert_eq!(times, [0, 0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn each_provider_is_understood() {
    let azure = [
        ("x-ratelimit-limit-requests", "10"),
        ("x-ratelimit-remaining-requests", "1"),
        ("x-ratelimit-reset-requests", "18"),
    ];
    assert_eq!(paced(&azure, 3).await, [0, 2_000, 4_000]);
    let azure_period = [
        ("x-ratelimit-limit-requests", "10"),
        ("x-ratelimit-remaining-requests", "1"),
        ("x-ratelimit-reset-requests", "0"),
        ("x-ratelimit-renewalperiod-requests", "10"),
    ];
    assert_eq!(paced(&azure_period, 3).await, [0, 1_000, 2_000]);
    let anthropic = [
        DATE,
        ("anthropic-ratelimit-requests-limit", "50"),
        ("anthropic-ratelimit-requests-remaining", "1"),
        ("anthropic-ratelimit-requests-reset", "2026-11-22T10:00:49Z"),
    ];
    assert_eq!(paced(&anthropic, 3).await, [0, 1_000, 2_000]);
    // No reset: a sixtieth of a minute each.
    let mistral = [
        ("x-ratelimit-limit-req-minute", "60"),
        ("x-ratelimit-remaining-req-minute", "1"),
    ];
    assert_eq!(paced(&mistral, 3).await, [0, 1_000, 2_000]);
    let cerebras = [
        ("x-ratelimit-limit-tokens-minute", "60000"),
        ("x-ratelimit-remaining-tokens-minute", "0"),
        ("x-ratelimit-reset-tokens-minute", "60"),
    ];
    assert_eq!(paced(&cerebras, 2).await, [400, 800]);
}

#[tokio::test(start_paused = true)]
async fn anthropics_output_is_paced_by_its_expected_length() {
    let timeline = timeline(RateLimitLayer::for_providers());
    let claude = || chat_of(Provider::ANTHROPIC, Dialect::Anthropic, "m");
    timeline.push(answer([
        DATE,
        ("anthropic-ratelimit-output-tokens-limit", "8000"),
        ("anthropic-ratelimit-output-tokens-remaining", "0"),
        (
            "anthropic-ratelimit-output-tokens-reset",
            "2026-11-22T10:00:08Z",
        ),
    ]));
    timeline.call(claude()).await.unwrap();
    timeline.call(claude()).await.unwrap();
    assert_eq!(timeline.times(), [0, 400]);
}

/// The next call was woken only if one of the layer's own limits got a refund too.
#[tokio::test(start_paused = true)]
async fn an_unsent_call_admits_the_next_at_once() {
    let timeline = timeline(RateLimitLayer::for_providers());
    timeline.push(reported("requests", 10, 1, "3m"));
    timeline.calls(1).await;
    let inside = timeline.hold();
    let second = timeline.start(chat("m")).await;
    let third = timeline.start(chat("m")).await;
    advance(Duration::from_secs(1)).await;
    assert_eq!(timeline.times(), [0, 0]);
    // An inner layer refuses the call: the provider never sees it.
    drop(inside);
    ended(second).await.unwrap_err();
    ended(third).await.unwrap();
    assert_eq!(timeline.times(), [0, 0, 1_000]);
}

#[tokio::test(start_paused = true)]
async fn nonsense_changes_nothing() {
    let requests = |limit, remaining, reset| {
        [
            ("x-ratelimit-limit-requests", limit),
            ("x-ratelimit-remaining-requests", remaining),
            ("x-ratelimit-reset-requests", reset),
        ]
    };
    for headers in [
        requests("-1", "-1", "0"),
        requests("0", "0", "60s"),
        requests("ten", "0", "60s"),
        requests("10", "none", "60s"),
        requests("", "", ""),
        requests("99999999999999999999999999", "0", "1h"),
        requests("10", "0.5", "1h"),
    ] {
        assert_eq!(paced(&headers, 4).await, [0; 4], "{headers:?}");
    }
    // Without a limit, or without the remaining amount.
    for missing in [0, 1] {
        let mut headers = requests("10", "0", "60s").to_vec();
        headers.remove(missing);
        assert_eq!(paced(&headers, 4).await, [0; 4], "{headers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn remaining_is_capped_at_the_limit() {
    let headers = [
        ("x-ratelimit-limit-requests", "2"),
        ("x-ratelimit-remaining-requests", "1000"),
        ("x-ratelimit-reset-requests", "1s"),
    ];
    // Two a minute.
    assert_eq!(paced(&headers, 3).await, [0, 0, 30_000]);
}

#[tokio::test(start_paused = true)]
async fn a_429_without_retry_after_paces_by_its_headers() {
    let timeline = timeline(RateLimitLayer::for_providers());
    let family = family("requests", 10, 0, "20s");
    timeline.push(throttled(
        family.iter().map(|pair| (pair.0.as_str(), pair.1.as_str())),
    ));
    timeline.calls(3).await;
    assert_eq!(timeline.times(), [0, 2_000, 4_000]);
}

#[tokio::test(start_paused = true)]
async fn a_call_larger_than_the_providers_limit_is_sent_once_that_is_full() {
    let times = paced_by_family("tokens", 300, 0, "3s").await;
    assert_eq!(times[0], 3_000);
}

#[tokio::test(start_paused = true)]
async fn the_tighter_of_our_limit_and_the_providers_binds() {
    let headers = [
        ("x-ratelimit-limit-requests", "10"),
        ("x-ratelimit-remaining-requests", "2"),
        ("x-ratelimit-reset-requests", "8s"),
    ];
    let ours = |burst| {
        let limit = Limit::requests(120).per_minute().bucket(burst);
        RateLimitLayer::for_providers().limit(limit)
    };
    assert_eq!(paced_by(ours(100), &headers, 4).await, [0, 0, 1_000, 2_000]);
    // The first call has used our only one: one each half second, and then the provider's rate.
    assert_eq!(
        paced_by(ours(1), &headers, 4).await,
        [500, 1_000, 1_500, 2_000]
    );
    let strict = RateLimitLayer::for_providers().limit(Limit::requests(6).per_minute().bucket(2));
    assert_eq!(paced_by(strict, &headers, 3).await, [0, 10_000, 20_000]);
}

#[tokio::test(start_paused = true)]
async fn without_observing_headers_are_ignored() {
    let headers = [
        ("x-ratelimit-limit-requests", "10"),
        ("x-ratelimit-remaining-requests", "0"),
        ("x-ratelimit-reset-requests", "60s"),
    ];
    let limit = Limit::requests(100).per_minute();
    let deaf = RateLimitLayer::for_providers()
        .limit(limit.clone())
        .enforce_reported_limits(false);
    assert_eq!(paced_by(deaf, &headers, 4).await, [0; 4]);
    assert_eq!(
        paced_by(RateLimitLayer::for_callers().limit(limit), &headers, 4).await,
        [0; 4]
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_that_may_not_wait_gets_retry_after() {
    let timeline = timeline(RateLimitLayer::for_providers().max_waiting(0));
    timeline.push(reported("requests", 10, 0, "25s"));
    timeline.calls(1).await;
    let error = timeline.call(chat("m")).await.unwrap_err();
    assert_eq!(
        refused(&error).retry_after(),
        Some(Duration::from_millis(2_500))
    );
    assert!(refused(&error).is_provider_limit());
    assert!(error.to_string().contains("requests"), "{error}");
}
