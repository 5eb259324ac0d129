//! Against a provider over real HTTP that falls silent: the caller hears of it, and the connection is let go.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tower::{ServiceBuilder, ServiceExt, util::BoxCloneService};
use tower_llm_core::{BoxError, Deadline, DescribeLayer, TimedOut};
use tower_llm_testkit::{Behavior, Counts, Fault, SimulatedProvider};
use tower_llm_timeout::{TimeoutBuilder, TimeoutLayer};

use crate::support::{assert_timed_out, last_event};

/// Long enough for what comes at once, on a busy machine too.
const SHORT: Duration = Duration::from_millis(1_500);
const LONG: Duration = Duration::from_secs(60);

type AnyBody = UnsyncBoxBody<Bytes, BoxError>;
type Service = BoxCloneService<Request<Full<Bytes>>, Response<AnyBody>, BoxError>;

fn service(timeout: TimeoutBuilder) -> Service {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let service = ServiceBuilder::new()
        .map_response(boxed)
        .layer(DescribeLayer::new())
        .layer(timeout.build().unwrap())
        .service(client);
    BoxCloneService::new(service)
}

fn boxed<B>(response: Response<B>) -> Response<AnyBody>
where
    B: Body<Data = Bytes, Error = BoxError> + Send + 'static,
{
    response.map(BodyExt::boxed_unsync)
}

fn chat(provider: &SimulatedProvider, path: &str, streamed: bool) -> Request<Full<Bytes>> {
    let body = format!(r#"{{"model":"sim-1","messages":[],"max_tokens":9,"stream":{streamed}}}"#);
    Request::post(format!("{}{path}", provider.url()))
        .body(body.into())
        .unwrap()
}

async fn settled(provider: &SimulatedProvider) -> Counts {
    let settled = provider.wait_for(Duration::from_secs(10), |counts| counts.in_flight == 0);
    settled.await.expect("the provider sees the call end")
}

#[tokio::test]
async fn the_connection_to_a_provider_that_never_answers_is_closed() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Fault::NoAnswer);
    for (timeout, deadline) in [
        (
            TimeoutLayer::builder().first_token(SHORT),
            Deadline::FirstToken,
        ),
        (TimeoutLayer::builder().total(SHORT), Deadline::Total),
    ] {
        let request = chat(&provider, "/v1/chat/completions", true);
        let error = service(timeout).oneshot(request).await.unwrap_err();
        assert_timed_out(&error, deadline, SHORT);
    }
    let counts = settled(&provider).await;
    assert_eq!((counts.requests, counts.closed_before_head), (2, 2));
}

#[tokio::test]
async fn a_stream_that_falls_silent_ends_and_its_connection_is_closed() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Fault::StallAfter(3));
    for (path, code) in [
        ("/v1/chat/completions", "/error/code"),
        ("/v1/responses", "/code"),
        ("/v1/messages", "/error/type"),
        (
            "/v1beta/models/sim-1:streamGenerateContent?alt=sse",
            "/error/status",
        ),
    ] {
        let idle = service(TimeoutLayer::builder().idle(SHORT).total(LONG));
        let response = idle.oneshot(chat(&provider, path, true)).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let text = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(text.into()).unwrap();
        let (_, data) = last_event(&text);
        assert!(data.pointer(code).is_some(), "{path}: {text}");
        assert!(text.contains("nothing more came within 1.5s"), "{path}");
        // The three events that were sent, and the one that ends it.
        assert_eq!(crate::support::events(&text).len(), 4, "{path}: {text}");
    }
    let counts = settled(&provider).await;
    assert_eq!((counts.requests, counts.closed_by_caller), (4, 4));
}

#[tokio::test]
async fn a_first_token_that_is_late_ends_the_stream_and_keep_alives_help_no_longer_than_allowed() {
    let provider = SimulatedProvider::start().await.unwrap();
    let slow = Behavior::new().first_token(LONG);
    provider.set(slow.keep_alive(Duration::from_millis(20)));
    for path in ["/v1/chat/completions", "/v1/messages"] {
        let timeout = TimeoutLayer::builder()
            .first_token(SHORT)
            .first_token_max(SHORT)
            .idle(SHORT);
        let request = chat(&provider, path, true);
        let response = service(timeout).oneshot(request).await.unwrap();
        let text = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(text.into()).unwrap();
        assert!(text.contains("no first token within 1.5s"), "{text}");
        assert!(text.contains("ping"), "{text}");
        last_event(&text);
    }
    let counts = settled(&provider).await;
    assert_eq!((counts.requests, counts.closed_by_caller), (2, 2));
    assert_eq!(counts.output_tokens, 0);
}

#[tokio::test]
async fn an_answer_that_stops_midway_fails_and_its_connection_is_closed() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Fault::StallAfter(1));
    let timeout = TimeoutLayer::builder().idle(SHORT);
    let request = chat(&provider, "/v1/chat/completions", false);
    let response = service(timeout).oneshot(request).await.unwrap();
    let error = response.into_body().collect().await.unwrap_err();
    let timed_out = TimedOut::find(&*error).unwrap();
    assert_eq!(timed_out.deadline(), Deadline::Idle);
    let counts = settled(&provider).await;
    assert_eq!((counts.requests, counts.closed_by_caller), (1, 1));
}

#[tokio::test]
async fn a_provider_in_time_is_passed_on_to_its_end() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Behavior::new().gap(Duration::from_millis(20)));
    for streamed in [true, false] {
        let request = chat(&provider, "/v1/chat/completions", streamed);
        let patient = TimeoutLayer::builder().first_token(LONG).idle(LONG);
        let response = service(patient.total(LONG)).oneshot(request).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(!body.is_empty());
    }
    let counts = settled(&provider).await;
    assert_eq!((counts.requests, counts.finished), (2, 2));
}
