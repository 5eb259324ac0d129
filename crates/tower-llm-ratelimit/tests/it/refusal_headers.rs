//! How callers see refusals.

use std::{convert::Infallible, fmt::Debug, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use tokio::time::advance;
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_llm_core::{DescribeLayer, KeyBy, RefusalLayer};
use tower_llm_ratelimit::{Headers, Limit, RateLimitBuilder, RateLimitLayer};
use tower_llm_testkit::SimulatedProvider;

use crate::http_support::{
    APIS, Api, Request,
    timeline::{json, throttled},
};

/// A server: refusals as responses, descriptions, the limits, and a provider that answers at once.
struct Server {
    layer: RateLimitLayer,
    answer: fn() -> Response<Full<Bytes>>,
}

impl Server {
    fn new(builder: RateLimitBuilder) -> Self {
        Self {
            layer: builder
                .key_by(KeyBy::shared())
                .build()
                .expect("legal settings"),
            answer: || json(200, [], "{}"),
        }
    }

    /// The response's status, headers and text.
    async fn call(&self, request: Request) -> (u16, HeaderMap, String) {
        let response = self.response(request).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        let text = String::from_utf8(body.to_vec()).expect("text");
        (parts.status.as_u16(), parts.headers, text)
    }

    /// The response, with its body unread.
    async fn response(
        &self,
        request: Request,
    ) -> Response<impl Body<Data = Bytes, Error: Debug> + use<>> {
        let answer = self.answer;
        let service = ServiceBuilder::new()
            .layer(RefusalLayer::new())
            .layer(DescribeLayer::new())
            .layer(self.layer.clone())
            .service(service_fn(move |_: http::Request<_>| async move {
                Ok::<_, Infallible>(answer())
            }));
        service.oneshot(request).await.expect("let through")
    }
}

/// A request of 120 tokens.
async fn request(api: Api) -> Request {
    // Only the provider's address is used.
    let provider = SimulatedProvider::start().await.expect("a free port");
    api.request(&provider, true)
}

fn bucket(amount: u64) -> RateLimitBuilder {
    RateLimitLayer::for_callers().limit(Limit::requests(amount).per_minute().bucket(1))
}

#[track_caller]
fn assert_header(headers: &HeaderMap, name: &str, value: Option<&str>) {
    let found = headers.get(name).map(|value| value.to_str().expect("text"));
    assert_eq!(found, value, "{name}");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_states_its_wait_rounded_up() {
    // One each 857.142857 ms.
    let server = Server::new(bucket(70));
    let request = request(Api::Chat).await;
    assert_eq!(server.call(request.clone()).await.0, 200);
    let (status, headers, _) = server.call(request.clone()).await;
    assert_eq!(status, 429);
    assert_header(&headers, "retry-after", Some("1"));
    assert_header(&headers, "retry-after-ms", Some("858"));
    assert_header(&headers, "x-should-retry", None);
    // A retry at the reported time is admitted.
    advance(Duration::from_millis(857)).await;
    assert_eq!(server.call(request.clone()).await.0, 429);
    advance(Duration::from_millis(1)).await;
    assert_eq!(server.call(request).await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn seconds_are_rounded_up_beyond_the_first() {
    let server = Server::new(bucket(7));
    let request = request(Api::Chat).await;
    server.call(request.clone()).await;
    let (_, headers, _) = server.call(request.clone()).await;
    assert_header(&headers, "retry-after", Some("9"));
    assert_header(&headers, "retry-after-ms", Some("8572"));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_has_the_error_format_of_the_requests_provider() {
    for api in APIS {
        let server = Server::new(bucket(60));
        let request = request(api).await;
        server.call(request.clone()).await;
        let (status, headers, body) = server.call(request).await;
        assert_eq!(status, 429, "{api:?}");
        assert_header(&headers, "content-type", Some("application/json"));
        assert_header(&headers, "retry-after", Some("1"));
        let name = match api {
            Api::Chat | Api::ChatUsage | Api::Responses => r#""code":"rate_limit_exceeded""#,
            Api::Messages => r#""type":"rate_limit_error""#,
            Api::Gemini => r#""status":"RESOURCE_EXHAUSTED""#,
        };
        assert!(body.contains(name), "{body}");
        assert!(body.contains("60 requests per minute"), "{body}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_larger_than_its_limit_is_not_retriable() {
    for api in APIS {
        let limit = Limit::tokens(119).per_minute();
        let server = Server::new(RateLimitLayer::for_callers().limit(limit));
        let (status, headers, body) = server.call(request(api).await).await;
        assert_eq!(status, 429, "{api:?}");
        assert_header(&headers, "x-should-retry", Some("false"));
        assert_header(&headers, "retry-after", None);
        assert_header(&headers, "retry-after-ms", None);
        assert!(body.contains("120 tokens"), "{body}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_for_want_of_reserved_tokens_is_retried_after_a_second() {
    for api in APIS {
        let limit = Limit::tokens(200).per_minute();
        let server = Server::new(RateLimitLayer::for_callers().limit(limit));
        let request = request(api).await;
        let running = server.response(request.clone()).await;
        let (status, headers, _) = server.call(request).await;
        assert_eq!(status, 429, "{api:?}");
        assert_header(&headers, "retry-after", Some("1"));
        assert_header(&headers, "retry-after-ms", Some("1000"));
        assert_header(&headers, "x-should-retry", None);
        drop(running);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_shows_the_remaining_limits() {
    let limits = [
        Limit::requests(2).per_minute().bucket(2),
        Limit::tokens(1_000).per_minute().bucket(1_000),
    ];
    let server = Server::new(RateLimitLayer::for_callers().limits(limits));
    let request = request(Api::Chat).await;
    for _ in 0..2 {
        server.call(request.clone()).await;
    }
    let (status, headers, _) = server.call(request).await;
    assert_eq!(status, 429);
    let usual = [
        ("x-ratelimit-limit-requests", "2"),
        ("x-ratelimit-remaining-requests", "0"),
        ("x-ratelimit-reset-requests", "1m0s"),
        ("x-ratelimit-limit-tokens", "1000"),
        // The provider reported no usage: the reservation stays charged.
        ("x-ratelimit-remaining-tokens", "760"),
        ("x-ratelimit-reset-tokens", "14.4s"),
        ("retry-after", "30"),
    ];
    for (name, value) in usual {
        assert_header(&headers, name, Some(value));
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_has_headers_in_the_configured_format() {
    let request = request(Api::Chat).await;
    let server = Server::new(bucket(60).headers(Headers::Ietf));
    server.call(request.clone()).await;
    let (_, headers, _) = server.call(request.clone()).await;
    assert_header(
        &headers,
        "ratelimit-policy",
        Some(r#""requests-0";q=60;w=60"#),
    );
    assert_header(&headers, "ratelimit", Some(r#""requests-0";r=0;t=1"#));
    assert_header(&headers, "x-ratelimit-limit-requests", None);

    let server = Server::new(bucket(60).headers(Headers::None));
    server.call(request.clone()).await;
    let (_, headers, _) = server.call(request).await;
    assert!(
        headers
            .keys()
            .all(|name| !name.as_str().contains("ratelimit"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_refused_after_a_wait_gets_headers_with_the_limits() {
    let builder = bucket(6).max_waiting(1).max_wait(Duration::from_secs(12));
    let server = Server::new(builder);
    let request = request(Api::Chat).await;
    server.call(request.clone()).await;
    let (waits, refused) = tokio::join!(server.call(request.clone()), server.call(request));
    assert_eq!((waits.0, refused.0), (200, 429));
    assert_header(&refused.1, "x-ratelimit-remaining-requests", Some("0"));
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_asks_to_wait_is_a_refusal_with_that_time() {
    let mut server = Server::new(RateLimitLayer::for_providers().max_waiting(0));
    server.answer = || throttled([("retry-after-ms", "4300")]);
    let request = request(Api::Messages).await;
    let (status, headers, _) = server.call(request.clone()).await;
    // The provider's own response, unchanged.
    assert_eq!(status, 429);
    assert_header(&headers, "retry-after-ms", Some("4300"));
    assert_header(&headers, "retry-after", None);
    advance(Duration::from_millis(1_100)).await;
    let (status, headers, body) = server.call(request).await;
    assert_eq!(status, 429);
    assert_header(&headers, "retry-after-ms", Some("3200"));
    assert_header(&headers, "retry-after", Some("4"));
    assert!(body.contains("the provider asked to wait"), "{body}");
}
