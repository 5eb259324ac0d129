//! The rate limit headers that callers see.

use std::{collections::BTreeMap, time::Duration};

use http::HeaderMap;
use tower::ServiceExt;
use tower_llm_core::{Call, KeyBy, Operation, Provider};
use tower_llm_ratelimit::{Headers, Limit, RateLimitBuilder, RateLimitLayer};
use tower_llm_testkit::{Behavior, Fault, SimulatedProvider};

use crate::http_support::{
    APIS, Api, ESTIMATED, INPUT, MAXIMUM, OUTPUT, call, read_events, stack,
    timeline::{Timeline, described, reported},
};

/// A call with an input of 100 and a maximum of 400 tokens.
fn request() -> http::Request<()> {
    let call = Call::builder(Provider::OPENAI, Operation::CHAT)
        .model("m")
        .input_tokens(100)
        .max_output_tokens(400);
    described(call.build())
}

fn callers(limits: impl IntoIterator<Item = Limit>) -> RateLimitBuilder {
    RateLimitLayer::for_callers().limits(limits)
}

/// The rate limit headers of the response to a call.
async fn shown(builder: RateLimitBuilder) -> BTreeMap<String, String> {
    let timeline = Timeline::new(builder.build().expect("legal settings"));
    let response = timeline.call(request()).await.expect("let through");
    of_limits(response.headers())
}

fn of_limits(headers: &HeaderMap) -> BTreeMap<String, String> {
    let text = |value: &http::HeaderValue| value.to_str().expect("text").to_owned();
    headers
        .iter()
        .filter(|(name, _)| name.as_str().contains("ratelimit"))
        .map(|(name, value)| (name.to_string(), text(value)))
        .collect()
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |pair: &(&str, &str)| (pair.0.to_owned(), pair.1.to_owned());
    pairs.iter().map(owned).collect()
}

// === OpenAI's format ===

#[tokio::test(start_paused = true)]
async fn six_headers_state_requests_and_tokens() {
    let limits = [
        Limit::requests(60).per_minute().bucket(60),
        Limit::tokens(90_000).per_minute().bucket(90_000),
    ];
    assert_eq!(
        shown(callers(limits)).await,
        map(&[
            ("x-ratelimit-limit-requests", "60"),
            ("x-ratelimit-remaining-requests", "59"),
            ("x-ratelimit-reset-requests", "1s"),
            ("x-ratelimit-limit-tokens", "90000"),
            ("x-ratelimit-remaining-tokens", "89500"),
            // 500 at 1,500 a second, rounded up.
            ("x-ratelimit-reset-tokens", "334ms"),
        ])
    );
}

#[tokio::test(start_paused = true)]
async fn a_window_is_full_again_when_its_last_slice_has_gone() {
    let limits = [
        Limit::requests(60).per_minute(),
        Limit::tokens(9_000).per_hour(),
    ];
    let shown = shown(callers(limits)).await;
    // Thirteen slices, each a twelfth of the period.
    assert_eq!(shown["x-ratelimit-reset-requests"], "1m5s");
    assert_eq!(shown["x-ratelimit-reset-tokens"], "1h5m0s");
}

#[tokio::test(start_paused = true)]
async fn the_limit_with_the_least_left_is_shown() {
    let limits = [
        Limit::requests(60).per_minute(),
        Limit::requests(10).per_hour(),
        Limit::tokens(5_000).per_minute(),
        Limit::input_tokens(100_000).per_minute(),
        Limit::output_tokens(700).per_day().by(KeyBy::shared()),
    ];
    let shown = shown(callers(limits)).await;
    assert_eq!(shown["x-ratelimit-limit-requests"], "10");
    assert_eq!(shown["x-ratelimit-remaining-requests"], "9");
    assert_eq!(shown["x-ratelimit-reset-requests"], "1h5m0s");
    assert_eq!(shown["x-ratelimit-limit-tokens"], "700");
    assert_eq!(shown["x-ratelimit-remaining-tokens"], "300");
    assert_eq!(shown["x-ratelimit-reset-tokens"], "26h0m0s");
}

#[tokio::test(start_paused = true)]
async fn only_units_with_a_limit_are_shown() {
    let shown = shown(callers([Limit::requests(7).per_second()])).await;
    assert_eq!(shown.len(), 3);
    assert_eq!(shown["x-ratelimit-remaining-requests"], "6");
}

#[tokio::test(start_paused = true)]
async fn a_callers_tier_is_shown() {
    let limit = Limit::requests(100).per_hour().tier("pro", 1_000);
    let shown = shown(callers([limit]).tier_by(|_| "pro".into())).await;
    assert_eq!(shown["x-ratelimit-limit-requests"], "1000");
    assert_eq!(shown["x-ratelimit-remaining-requests"], "999");
}

#[tokio::test]
async fn headers_state_the_limits_at_the_response_headers() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Behavior::new().input_tokens(INPUT).output_tokens(OUTPUT));
    let limits = [
        Limit::requests(10).per_hour(),
        Limit::tokens(1_000).per_hour(),
    ];
    let layer = callers(limits).key_by(KeyBy::shared()).build().unwrap();
    let service = stack(&layer);
    let mut left = 1_000;
    for (api, requests) in APIS.into_iter().skip(1).zip((6..10).rev()) {
        let response = service.clone().oneshot(api.request(&provider, true)).await;
        let response = response.unwrap();
        let shown = of_limits(response.headers());
        // This call's reservation is charged, and the unused part of the previous one is refunded.
        let reserved = left - ESTIMATED - MAXIMUM;
        assert_eq!(shown["x-ratelimit-remaining-tokens"], reserved.to_string());
        assert_eq!(
            shown["x-ratelimit-remaining-requests"],
            requests.to_string()
        );
        // The provider's own headers said 10,000 and 2,000,000.
        assert_eq!(shown["x-ratelimit-limit-requests"], "10");
        assert_eq!(shown["x-ratelimit-limit-tokens"], "1000");
        read_events(response, usize::MAX).await;
        left -= INPUT + OUTPUT;
    }
    provider.set(Fault::Status(400));
    let response = service.oneshot(Api::Chat.request(&provider, true)).await;
    let shown = of_limits(response.unwrap().headers());
    assert_eq!(
        shown["x-ratelimit-remaining-requests"], "5",
        "headers of an error response"
    );
}

// === no headers ===

#[tokio::test(start_paused = true)]
async fn without_headers_of_the_layer_those_of_the_provider_pass() {
    let limit = Limit::requests(100).per_hour();
    let builders = [
        callers([limit.clone()]).headers(Headers::None),
        RateLimitLayer::for_providers().limit(limit),
    ];
    for builder in builders {
        let timeline = Timeline::new(builder.build().unwrap());
        timeline.push(reported("requests", 50, 49, "1.2s"));
        let response = timeline.call(request()).await.unwrap();
        let theirs = [
            ("x-ratelimit-limit-requests", "50"),
            ("x-ratelimit-remaining-requests", "49"),
            ("x-ratelimit-reset-requests", "1.2s"),
        ];
        assert_eq!(of_limits(response.headers()), map(&theirs));
    }
}

#[tokio::test(start_paused = true)]
async fn reported_limits_are_read_before_the_headers_are_replaced() {
    let builder = RateLimitLayer::for_providers()
        .limit(Limit::requests(100).per_hour())
        .headers(Headers::OpenAi);
    let timeline = Timeline::new(builder.build().unwrap());
    timeline.push(reported("requests", 10, 0, "10s"));
    let response = timeline.call(request()).await.unwrap();
    assert_eq!(
        of_limits(response.headers())["x-ratelimit-limit-requests"],
        "100"
    );
    timeline.call(request()).await.unwrap();
    assert_eq!(timeline.times(), [0, 1_000]);
}

#[tokio::test]
async fn limits_of_a_provider_leave_the_response_unchanged() {
    let provider = SimulatedProvider::start().await.unwrap();
    let layer = RateLimitLayer::for_providers().build().unwrap();
    let seen = call(&stack(&layer), Api::Chat.request(&provider, true)).await;
    assert!(seen.body.ends_with("data: [DONE]\n\n"));
}

// === the IETF's format ===

/// An item of a list of structured fields (RFC 9651): a string, and parameters that are integers or strings.
fn items(field: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let item = |item: &str| {
        let mut parts = item.split(';');
        let name = parts.next().expect("a name");
        let name = name
            .strip_prefix('"')
            .and_then(|name| name.strip_suffix('"'));
        let name = name.expect("a quoted name").to_owned();
        assert!(
            name.bytes()
                .all(|byte| (0x20..0x7f).contains(&byte) && byte != b'\\')
        );
        let parameters = parts.map(|parameter| {
            let (key, value) = parameter.split_once('=').expect("a value");
            assert!(key.bytes().all(|byte| byte.is_ascii_lowercase()), "{key}");
            let is_string = value.starts_with('"') && value.ends_with('"') && value.len() > 1;
            let is_integer = value.parse::<u64>().is_ok() && value.len() <= 15;
            assert!(is_string || is_integer, "{value}");
            assert_eq!(is_string, key == "qu", "{key}={value}");
            (key.to_owned(), value.trim_matches('"').to_owned())
        });
        (name, parameters.collect())
    };
    field.split(", ").map(item).collect()
}

#[tokio::test(start_paused = true)]
async fn policies_and_remaining_amounts_are_lists_of_named_items() {
    let limits = [
        Limit::requests(60).per_minute(),
        Limit::tokens(90_000).per_minute().bucket(90_000),
        Limit::input_tokens(50_000).per_hour(),
        Limit::output_tokens(5_000).per(Duration::from_millis(1_500)),
    ];
    let shown = shown(callers(limits).headers(Headers::Ietf)).await;
    assert_eq!(
        shown.keys().collect::<Vec<_>>(),
        ["ratelimit", "ratelimit-policy"]
    );
    assert_eq!(
        shown["ratelimit-policy"],
        "\"requests-0\";q=60;w=60, \"tokens-1\";q=90000;w=60;qu=\"tokens\", \
         \"input-tokens-2\";q=50000;w=3600;qu=\"tokens\", \
         \"output-tokens-3\";q=5000;w=2;qu=\"tokens\""
    );
    assert_eq!(
        shown["ratelimit"],
        "\"requests-0\";r=59;t=65, \"tokens-1\";r=89500;t=1, \
         \"input-tokens-2\";r=49900;t=3900, \"output-tokens-3\";r=4600;t=2"
    );
    let policies = items(&shown["ratelimit-policy"]);
    let standings = items(&shown["ratelimit"]);
    for (policy, standing) in policies.iter().zip(&standings) {
        assert_eq!(policy.0, standing.0);
    }
}

#[tokio::test(start_paused = true)]
async fn the_largest_limit_is_still_a_legal_number() {
    let limits = [
        Limit::tokens(1 << 53).per(Duration::from_secs(31 * 86_400)),
        Limit::requests(1).per_second(),
    ];
    let shown = shown(callers(limits).headers(Headers::Ietf)).await;
    let policies = items(&shown["ratelimit-policy"]);
    assert_eq!(policies[0].1["q"], "999999999999999");
    assert_eq!(policies[0].1["w"], "2678400");
    let standings = items(&shown["ratelimit"]);
    assert_eq!(standings[0].1["r"], "999999999999999");
    assert_eq!(standings[1].1["r"], "0");
}

#[tokio::test(start_paused = true)]
async fn a_layer_without_limits_shows_none() {
    for headers in [Headers::OpenAi, Headers::Ietf] {
        let shown = shown(RateLimitLayer::for_providers().headers(headers)).await;
        assert_eq!(shown, BTreeMap::new());
    }
}
