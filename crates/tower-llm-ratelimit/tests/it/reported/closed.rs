//! A provider that asks to wait is not called before that time.

use std::time::Duration;

use tower_llm_core::{Dialect, KeyBy, Provider};
use tower_llm_ratelimit::{Limit, RateLimitBuilder, RateLimitLayer};

use crate::http_support::timeline::{
    Timeline, answer, chat, chat_of, ended, json, refused, throttled,
};

const RETRY_INFO: &str = r#"{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","details":[
    {"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"1.25s"}]}}"#;

fn providers() -> RateLimitBuilder {
    RateLimitLayer::for_providers()
}

fn timeline(builder: RateLimitBuilder) -> Timeline {
    Timeline::new(builder.build().expect("legal settings"))
}

#[tokio::test(start_paused = true)]
async fn a_429_with_retry_after_closes_only_its_key_until_then() {
    let timeline = timeline(providers());
    timeline.push(throttled([("retry-after", "7")]));
    let response = timeline.call(chat("m")).await.unwrap();
    assert_eq!(response.status(), 429);
    let waits = timeline.start(chat("m")).await;
    timeline.call(chat("other")).await.unwrap();
    let anthropic = chat_of(Provider::ANTHROPIC, Dialect::Anthropic, "m");
    timeline.call(anthropic).await.unwrap();
    assert_eq!(timeline.now(), 0);
    ended(waits).await.unwrap();
    assert_eq!(timeline.models(), ["m", "other", "m", "m"]);
    assert_eq!(timeline.times(), [0, 0, 0, 7_000]);
}

#[tokio::test(start_paused = true)]
async fn the_key_opens_on_the_millisecond() {
    let timeline = timeline(providers().max_waiting(0));
    timeline.push(throttled([("retry-after", "7")]));
    timeline.call(chat("m")).await.unwrap();
    tokio::time::advance(Duration::from_millis(6_999)).await;
    let error = timeline.call(chat("m")).await.unwrap_err();
    assert_eq!(
        refused(&error).retry_after(),
        Some(Duration::from_millis(1))
    );
    assert!(refused(&error).is_provider_limit());
    assert_eq!(refused(&error).limit(), None);
    tokio::time::advance(Duration::from_millis(1)).await;
    timeline.call(chat("m")).await.unwrap();
    assert_eq!(timeline.times(), [0, 7_000]);
}

#[tokio::test(start_paused = true)]
async fn every_spelling_of_retry_after_closes() {
    let cases: [(&[(&str, &str)], u64); 6] = [
        (&[("retry-after", "2")], 2_000),
        (&[("retry-after", "1.5")], 1_500),
        (&[("retry-after-ms", "1234")], 1_234),
        // The finer of the two.
        (&[("retry-after-ms", "1234"), ("retry-after", "2")], 1_234),
        (
            &[
                ("date", "Sun, 22 Nov 2026 10:00:00 GMT"),
                ("retry-after", "Sun, 22 Nov 2026 10:00:09 GMT"),
            ],
            9_000,
        ),
        (&[("retry-after", "0")], 0),
    ];
    for (headers, opens) in cases {
        let timeline = timeline(providers());
        timeline.push(throttled(headers.iter().copied()));
        timeline.call(chat("m")).await.unwrap();
        timeline.call(chat("m")).await.unwrap();
        assert_eq!(timeline.times(), [0, opens], "{headers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_delay_in_geminis_body_closes() {
    let timeline = timeline(providers());
    let gemini = || chat_of(Provider::GEMINI, Dialect::Gemini, "m");
    timeline.push(json(429, [], RETRY_INFO));
    timeline.call(gemini()).await.unwrap();
    timeline.call(gemini()).await.unwrap();
    assert_eq!(timeline.times(), [0, 1_250]);
}

#[tokio::test(start_paused = true)]
async fn only_a_429_with_retry_after_closes_the_key() {
    let quota = r#"{"error":{"code":"insufficient_quota"}}"#;
    let wait = [("retry-after", "9")];
    for response in [
        throttled([]),
        throttled([("retry-after", "soon")]),
        throttled([("retry-after", "-3")]),
        // Others act on these: a circuit breaker, or an operator.
        json(429, [], quota),
        json(503, wait, "{}"),
        json(529, wait, "{}"),
        json(500, wait, "{}"),
        json(400, wait, "{}"),
        answer(wait),
    ] {
        let timeline = timeline(providers());
        let shown = format!("{response:?}");
        timeline.push(response);
        timeline.call(chat("m")).await.unwrap();
        timeline.call(chat("m")).await.unwrap();
        assert_eq!(timeline.times(), [0, 0], "{shown}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_quota_error_with_retry_after_closes_until_then() {
    let timeline = timeline(providers());
    let quota = r#"{"error":{"code":"insufficient_quota"}}"#;
    timeline.push(json(429, [("retry-after", "9")], quota));
    timeline.call(chat("m")).await.unwrap();
    timeline.call(chat("m")).await.unwrap();
    assert_eq!(timeline.times(), [0, 9_000]);
}

#[tokio::test(start_paused = true)]
async fn the_later_of_two_times_wins() {
    for waits in [["3", "10"], ["10", "3"]] {
        let timeline = timeline(providers());
        let holds = [timeline.hold(), timeline.hold()];
        let calls = [
            timeline.start(chat("m")).await,
            timeline.start(chat("m")).await,
        ];
        for ((hold, wait), call) in holds.into_iter().zip(waits).zip(calls) {
            hold.send(throttled([("retry-after", wait)])).unwrap();
            ended(call).await.unwrap();
        }
        timeline.call(chat("m")).await.unwrap();
        assert_eq!(timeline.times(), [0, 0, 10_000]);
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_calls_are_admitted_in_order_when_the_key_opens() {
    let timeline = timeline(providers().key_by(KeyBy::provider()));
    timeline.push(throttled([("retry-after", "4")]));
    timeline.call(chat("first")).await.unwrap();
    let mut waiting = Vec::new();
    for model in ["a", "b", "c", "d", "e"] {
        waiting.push(timeline.start(chat(model)).await);
        tokio::time::advance(Duration::from_millis(100)).await;
    }
    for call in waiting {
        ended(call).await.unwrap();
    }
    assert_eq!(timeline.models(), ["first", "a", "b", "c", "d", "e"]);
    assert_eq!(timeline.times(), [0, 4_000, 4_000, 4_000, 4_000, 4_000]);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_call_continues_to_wait_if_the_key_is_closed_for_longer() {
    let timeline = timeline(providers());
    let hold = timeline.hold();
    let slow = timeline.start(chat("m")).await;
    timeline.push(throttled([("retry-after", "2")]));
    timeline.call(chat("m")).await.unwrap();
    let waits = timeline.start(chat("m")).await;
    tokio::time::advance(Duration::from_secs(1)).await;
    hold.send(throttled([("retry-after", "5")])).unwrap();
    ended(slow).await.unwrap();
    ended(waits).await.unwrap();
    assert_eq!(timeline.times(), [0, 0, 6_000]);
}

#[tokio::test(start_paused = true)]
async fn a_time_beyond_the_longest_wait_refuses_at_once() {
    let timeline = timeline(providers().max_wait(Duration::from_secs(10)));
    timeline.push(throttled([("retry-after", "11")]));
    timeline.call(chat("m")).await.unwrap();
    let error = timeline.call(chat("m")).await.unwrap_err();
    assert_eq!(timeline.now(), 0);
    assert_eq!(refused(&error).retry_after(), Some(Duration::from_secs(11)));
    tokio::time::advance(Duration::from_secs(1)).await;
    timeline.call(chat("m")).await.unwrap();
    assert_eq!(timeline.times(), [0, 11_000]);
}

#[tokio::test(start_paused = true)]
async fn a_429_dropped_unread_still_closes() {
    let timeline = timeline(providers());
    let hold = timeline.hold();
    let call = timeline.start_unread(chat("m")).await;
    hold.send(throttled([("retry-after", "3")])).unwrap();
    call.await.unwrap();
    timeline.call(chat("m")).await.unwrap();
    assert_eq!(timeline.times(), [0, 3_000]);
}

#[tokio::test(start_paused = true)]
async fn a_call_refused_after_a_429_takes_nothing_of_the_limits() {
    let limit = Limit::requests(100).per_minute();
    let layer = providers().limit(limit).max_waiting(0).build().unwrap();
    let timeline = Timeline::new(layer.clone());
    timeline.push(throttled([("retry-after", "9")]));
    timeline.call(chat("m")).await.unwrap();
    for _ in 0..5 {
        assert!(timeline.call(chat("m")).await.is_err());
    }
    let stats = &layer.handle().stats()[0];
    assert_eq!((stats.consumed, stats.remaining), (1, 99));
    assert_eq!((stats.admitted, stats.refused), (1, 5));
}

#[tokio::test(start_paused = true)]
async fn without_observing_a_429_is_ignored() {
    let limit = Limit::requests(100).per_minute();
    let layers = [
        providers()
            .limit(limit.clone())
            .enforce_reported_limits(false),
        RateLimitLayer::for_callers().limit(limit),
    ];
    for builder in layers {
        let timeline = timeline(builder);
        timeline.push(throttled([("retry-after", "9")]));
        timeline.calls(3).await;
        assert_eq!(timeline.times(), [0, 0, 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_429_wakes_waiting_calls_and_refuses_those_that_would_be_late() {
    let limit = Limit::requests(6).per_minute().bucket(1);
    let builder = providers().limit(limit).max_wait(Duration::from_secs(20));
    let timeline = timeline(builder);
    let answer = timeline.hold();
    let first = timeline.start(chat("m")).await;
    let second = timeline.start(chat("m")).await;
    tokio::time::advance(Duration::from_secs(2)).await;
    let third = timeline.start(chat("m")).await;
    tokio::time::advance(Duration::from_secs(3)).await;
    answer.send(throttled([("retry-after", "25")])).unwrap();
    assert_eq!(ended(first).await.unwrap().status(), 429);
    assert_eq!(timeline.now(), 5_000);
    // Both would have to wait until 30 s, but may wait only until 20 and 22.
    for waits in [second, third] {
        let error = ended(waits).await.unwrap_err();
        assert_eq!(
            timeline.now(),
            5_000,
            "the calls do not wait until their deadlines"
        );
        assert!(refused(&error).is_provider_limit());
        assert_eq!(refused(&error).retry_after(), Some(Duration::from_secs(25)));
    }
    // A later call can wait that long.
    tokio::time::advance(Duration::from_secs(6)).await;
    timeline.call(chat("m")).await.unwrap();
    assert_eq!(timeline.times(), [0, 30_000]);
}
