//! To a caller, a refusal looks like an error of its provider.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{
    error::Error,
    fmt,
    future::{Ready, ready},
    io,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Empty};
use serde_json::{Value, json};
use tower::{
    Service, ServiceExt, load_shed::error::Overloaded, service_fn, timeout::error::Elapsed,
};
use tower_layer::Layer;
use tower_llm_core::{
    BoxError, ClassifiedError, Deadline, Dialect, Failure, HttpBody, Outcome, Refusal, RefusalKind,
    RefusalLayer, TimedOut, TooLarge, Watch,
};

use crate::support::{Log, Script, next_frame, sse, watch_to_end};

const OPENAI: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";
const AZURE: &str = "/openai/deployments/east/chat/completions";
const ANTHROPIC: &str = "/v1/messages";
const GEMINI: &str = "/v1beta/models/gemini-3-flash:generateContent";

/// What a caller receives.
#[derive(Debug)]
struct Seen {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Seen {
    fn header(&self, name: &str) -> Option<&str> {
        Some(self.headers.get(name)?.to_str().unwrap())
    }
}

async fn try_refuse(
    layer: RefusalLayer,
    path: &str,
    error: impl Into<BoxError>,
) -> Result<Seen, BoxError> {
    let service = layer.layer(service_fn(failing(error)));
    Ok(seen(service.oneshot(request(path)).await?).await)
}

fn request(path: &str) -> Request<Empty<Bytes>> {
    Request::post(path).body(Empty::new()).unwrap()
}

fn failing(
    error: impl Into<BoxError>,
) -> impl FnMut(Request<Empty<Bytes>>) -> Ready<Result<Response<Empty<Bytes>>, BoxError>> {
    let mut error = Some(error.into());
    move |_| ready(Err(error.take().unwrap()))
}

async fn seen(response: Response<impl Body<Data = Bytes, Error: fmt::Debug>>) -> Seen {
    let (parts, body) = response.into_parts();
    assert_eq!(body.size_hint().exact(), body.size_hint().upper());
    let bytes = body.collect().await.unwrap().to_bytes();
    assert_eq!(parts.headers["content-type"], "application/json");
    Seen {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: serde_json::from_slice(&bytes).unwrap(),
    }
}

/// The response of a layer whose error type is infallible, so there is nothing to unwrap.
async fn refuse_all(path: &str, error: impl Into<BoxError>) -> Seen {
    let service = RefusalLayer::new()
        .infallible()
        .layer(service_fn(failing(error)));
    let Ok(response) = service.oneshot(request(path)).await;
    seen(response).await
}

async fn refuse(path: &str, error: impl Into<BoxError>) -> Seen {
    try_refuse(RefusalLayer::new(), path, error).await.unwrap()
}

/// A layer's own error, in the form that all layers use.
#[derive(Debug)]
struct BulkheadFull(Refusal);

impl fmt::Display for BulkheadFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the queue is full")
    }
}

impl Error for BulkheadFull {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.0)
    }
}

/// A client's error, whose text holds more than a caller should see.
#[derive(Debug)]
struct Client(BoxError);

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error for http://10.0.0.7/?key=sk-secret: {}", self.0)
    }
}

impl Error for Client {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}

fn openai(code: &str, message: &str) -> Value {
    json!({ "error": { "message": message, "type": code, "param": null, "code": code } })
}

fn anthropic(kind: &str, message: &str) -> Value {
    json!({ "type": "error", "error": { "type": kind, "message": message } })
}

fn gemini(code: u16, status: &str, message: &str) -> Value {
    json!({ "error": { "code": code, "message": message, "status": status } })
}

#[tokio::test]
async fn every_kind_is_written_in_every_dialect() {
    let errors: [(fn() -> BoxError, u16, &str, &str, &str, &str); 4] = [
        (
            || BulkheadFull(Refusal::new(RefusalKind::RateLimited, "ratelimit")).into(),
            429,
            "rate_limit_exceeded",
            "rate_limit_error",
            "RESOURCE_EXHAUSTED",
            "the queue is full",
        ),
        (
            || BulkheadFull(Refusal::new(RefusalKind::Unavailable, "bulkhead")).into(),
            503,
            "server_is_overloaded",
            "overloaded_error",
            "UNAVAILABLE",
            "the queue is full",
        ),
        (
            || TooLarge::new(10).into(),
            413,
            "request_too_large",
            "request_too_large",
            "INVALID_ARGUMENT",
            "request body is over 10 bytes",
        ),
        (
            || TimedOut::new(Deadline::FirstToken, Duration::from_secs(20)).into(),
            504,
            "timeout",
            "timeout_error",
            "DEADLINE_EXCEEDED",
            "no first token within 20s",
        ),
    ];
    for (error, status, in_openai, in_anthropic, in_gemini, message) in errors {
        for (path, body) in [
            (OPENAI, openai(in_openai, message)),
            (RESPONSES, openai(in_openai, message)),
            (AZURE, openai(in_openai, message)),
            (ANTHROPIC, anthropic(in_anthropic, message)),
            (GEMINI, gemini(status, in_gemini, message)),
            ("/healthz", openai(in_openai, message)),
        ] {
            let seen = refuse(path, error()).await;
            assert_eq!((seen.status, seen.body), (status, body), "{path}");
        }
    }
}

#[tokio::test]
async fn a_written_refusal_is_read_back_as_the_same_kind() {
    let cases: [(BoxError, Outcome); 3] = [
        (
            Refusal::new(RefusalKind::RateLimited, "ratelimit")
                .after(Duration::from_millis(1_200))
                .into(),
            Outcome::Throttled {
                retry_after: Some(Duration::from_millis(1_200)),
            },
        ),
        (
            Refusal::new(RefusalKind::Unavailable, "bulkhead").into(),
            Outcome::Overloaded { retry_after: None },
        ),
        (TooLarge::new(1).into(), Outcome::ClientError),
    ];
    for (error, outcome) in cases {
        let refusal = Refusal::find(&*error).unwrap().clone();
        for path in [OPENAI, RESPONSES, ANTHROPIC, GEMINI] {
            let seen = refuse(path, refusal.clone()).await;
            let mut response = Response::new(Script::data([seen.body.to_string()]));
            *response.status_mut() = seen.status.try_into().unwrap();
            *response.headers_mut() = seen.headers;
            assert_eq!(watch_to_end(None, response).0.outcome, outcome, "{path}");
        }
    }
}

#[tokio::test]
async fn a_wait_is_rounded_up() {
    for (wait, seconds, millis) in [
        (Duration::ZERO, "0", "0"),
        (Duration::from_nanos(1), "1", "1"),
        (Duration::from_millis(1), "1", "1"),
        (Duration::from_millis(999), "1", "999"),
        (Duration::from_secs(1), "1", "1000"),
        (Duration::from_nanos(1_000_000_001), "2", "1001"),
        (Duration::from_millis(1_200), "2", "1200"),
        (Duration::from_secs(60), "60", "60000"),
        (
            Duration::MAX,
            "18446744073709551615",
            "18446744073709551615",
        ),
    ] {
        for kind in [RefusalKind::RateLimited, RefusalKind::Unavailable] {
            let seen = refuse(OPENAI, Refusal::new(kind, "any").after(wait)).await;
            assert_eq!(seen.header("retry-after"), Some(seconds), "{wait:?}");
            // The largest number of milliseconds is good enough for the longest wait.
            let sent = seen.header("retry-after-ms");
            assert!(
                sent == Some(millis) || wait == Duration::MAX,
                "{wait:?}: {sent:?}"
            );
            assert_eq!(seen.header("x-should-retry"), None);
        }
    }
}

#[tokio::test]
async fn an_unknown_wait_is_not_sent() {
    let seen = refuse(
        ANTHROPIC,
        Refusal::new(RefusalKind::Unavailable, "bulkhead"),
    )
    .await;
    assert_eq!(seen.header("retry-after"), None);
    assert_eq!(seen.header("retry-after-ms"), None);
    assert_eq!(seen.header("x-should-retry"), None);
}

#[tokio::test]
async fn a_refusal_that_is_final_tells_clients_not_to_retry() {
    let never = Refusal::new(RefusalKind::RateLimited, "ratelimit").never();
    for error in [BoxError::from(never), TooLarge::new(1).into()] {
        let seen = refuse(OPENAI, error).await;
        assert_eq!(seen.header("x-should-retry"), Some("false"));
        assert_eq!(seen.header("retry-after"), None);
    }
}

#[tokio::test]
async fn a_refusal_is_found_within_other_errors() {
    let full = || BulkheadFull(Refusal::new(RefusalKind::Unavailable, "bulkhead"));
    let errors: [BoxError; 3] = [
        Client(full().into()).into(),
        Client(Client(full().into()).into()).into(),
        Client(io::Error::other(full()).into()).into(),
    ];
    for error in errors {
        assert_eq!(refuse(OPENAI, error).await.status, 503);
    }
}

/// A client's error names the URL that it called, including the key in it.
#[tokio::test]
async fn errors_around_a_refusal_do_not_leak() {
    let full = BulkheadFull(Refusal::new(RefusalKind::Unavailable, "bulkhead"));
    let seen = refuse(OPENAI, Client(Client(full.into()).into())).await;
    assert_eq!(
        seen.body,
        openai("server_is_overloaded", "the queue is full")
    );

    let timed_out = TimedOut::new(Deadline::Total, Duration::from_secs(2));
    let seen = refuse(OPENAI, Client(io::Error::other(timed_out).into())).await;
    assert_eq!(seen.body, openai("timeout", "not finished within 2s"));
}

#[tokio::test]
async fn a_bare_refusal_names_the_layer() {
    let bare = Refusal::new(RefusalKind::RateLimited, "ratelimit");
    let message = "refused by ratelimit before it was sent";
    let seen = refuse(OPENAI, bare.clone()).await;
    assert_eq!(seen.body, openai("rate_limit_exceeded", message));
    let seen = refuse(OPENAI, io::Error::other(bare)).await;
    assert_eq!(seen.body, openai("rate_limit_exceeded", message));
}

#[tokio::test]
async fn other_errors_pass() {
    let error = try_refuse(RefusalLayer::new(), OPENAI, "connection refused")
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "connection refused");
}

#[tokio::test]
async fn an_infallible_layer_turns_other_errors_into_a_502_without_their_text() {
    for (path, body) in [
        (
            OPENAI,
            openai("bad_gateway", "the upstream could not be reached"),
        ),
        (
            ANTHROPIC,
            anthropic("api_error", "the upstream could not be reached"),
        ),
        (
            GEMINI,
            gemini(502, "UNAVAILABLE", "the upstream could not be reached"),
        ),
    ] {
        let error = Client("connection refused".into());
        let seen = refuse_all(path, error).await;
        assert_eq!(seen.header("x-should-retry"), None);
        assert_eq!((seen.status, seen.body), (502, body), "{path}");
    }
    // A refusal stays a refusal.
    let seen = refuse_all(OPENAI, TooLarge::new(1)).await;
    assert_eq!(seen.status, 413);
}

#[tokio::test]
async fn an_inner_service_that_fails_to_become_ready_is_a_bad_gateway() {
    let inner = Broken;
    let mut service = RefusalLayer::new().infallible().layer(inner);
    let Ok(service) = service.ready().await;
    let Ok(response) = service.call(request(OPENAI)).await;
    assert_eq!(seen(response).await.status, 502);
}

/// The error became a 502, which invites a retry of a request that cannot be read.
#[tokio::test]
async fn an_error_that_states_an_outcome_has_the_status_of_that_outcome() {
    let wait = Some(Duration::from_millis(1_500));
    let outcomes = [
        (Outcome::Failed(Failure::Timeout), 504, None),
        (Outcome::Failed(Failure::Slow), 504, None),
        (Outcome::ClientError, 400, None),
        (Outcome::Throttled { retry_after: wait }, 429, Some("2")),
        (Outcome::Exhausted, 429, None),
        (Outcome::Overloaded { retry_after: wait }, 503, Some("2")),
        (Outcome::Failed(Failure::Transport), 502, None),
    ];
    for (outcome, status, retry_after) in outcomes {
        let error = ClassifiedError::new(outcome, Client("closed".into()));
        let seen = refuse_all(OPENAI, error).await;
        assert_eq!(seen.status, status, "{outcome:?}");
        assert_eq!(seen.header("retry-after"), retry_after, "{outcome:?}");
        assert!(!seen.body.to_string().contains("10.0.0.7"));
    }
    assert_eq!(refuse(OPENAI, Elapsed::new()).await.status, 504);
    assert_eq!(refuse(OPENAI, Overloaded::new()).await.status, 503);
}

/// A service that is never ready.
struct Broken;

impl Service<Request<Empty<Bytes>>> for Broken {
    type Response = Response<Empty<Bytes>>;
    type Error = BoxError;
    type Future = Ready<Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Err("closed".into()))
    }

    fn call(&mut self, _: Request<Empty<Bytes>>) -> Self::Future {
        panic!("called without being ready")
    }
}

#[tokio::test]
async fn a_request_of_unknown_path_is_answered_by_its_headers() {
    let inner = service_fn(async |_: Request<Empty<Bytes>>| {
        Err::<Response<Empty<Bytes>>, BoxError>(TooLarge::new(1).into())
    });
    let request = Request::get("/v1/models")
        .header("anthropic-version", "2023-06-01")
        .body(Empty::new())
        .unwrap();
    let response = RefusalLayer::new()
        .layer(inner)
        .oneshot(request)
        .await
        .unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        body,
        anthropic("request_too_large", "request body is over 1 bytes")
    );
}

#[tokio::test]
async fn a_response_passes_unchanged() {
    let inner = service_fn(async |_: Request<Empty<Bytes>>| {
        Ok::<_, BoxError>(sse(
            Script::data(["data: 1\n\n", "data: 2\n\n"]).with_known_length()
        ))
    });
    let request = Request::post(OPENAI).body(Empty::new()).unwrap();
    let response = RefusalLayer::new()
        .layer(inner)
        .oneshot(request)
        .await
        .unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body();
    assert_eq!(body.size_hint().exact(), Some(18));
    for expected in ["data: 1\n\n", "data: 2\n\n"] {
        assert!(!body.is_end_stream());
        let frame = next_frame(&mut body).unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), expected);
    }
    assert!(body.is_end_stream());
    assert!(next_frame(&mut body).is_none());
}

/// What a layer writes when it cuts a stream, and how the scanner reads it.
#[test]
fn a_time_out_ends_a_stream_with_an_error_in_its_dialect() {
    let timed_out = TimedOut::new(Deadline::Idle, Duration::from_millis(1_500));
    let message = "nothing more came within 1.5s";
    for (dialect, event, data) in [
        (Dialect::OpenAi, "", openai("timeout", message)),
        (
            Dialect::OpenAiResponses,
            "event: error\n",
            json!({ "type": "error", "code": "timeout", "message": message, "param": null, "sequence_number": 0 }),
        ),
        (
            Dialect::Anthropic,
            "event: error\n",
            anthropic("timeout_error", message),
        ),
        (
            Dialect::Gemini,
            "",
            gemini(504, "DEADLINE_EXCEEDED", message),
        ),
    ] {
        let bytes = timed_out.event(dialect);
        let text = std::str::from_utf8(&bytes).unwrap();
        let written = text
            .strip_prefix(event)
            .and_then(|text| text.strip_prefix("data: "))
            .unwrap();
        let written = written.strip_suffix("\n\n").unwrap();
        assert!(!written.contains('\n'));
        assert_eq!(
            serde_json::from_str::<Value>(written).unwrap(),
            data,
            "{dialect:?}"
        );

        let log = Log::new();
        let response = HttpBody.watch(None, sse(Script::data([bytes])), log.probe("only"));
        let mut body = response.into_body();
        next_frame(&mut body).unwrap().unwrap();
        drop(body);
        assert_eq!(
            log.outcome(),
            Outcome::Failed(tower_llm_core::Failure::InBand),
            "{dialect:?}"
        );
    }
}
