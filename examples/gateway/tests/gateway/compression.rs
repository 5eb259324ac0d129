//! What an upstream compressed is read all the same; callers get compressed responses if that is switched on.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use tower::{ServiceExt, service_fn};
use tower_http::{compression::Compression, compression::predicate::SizeAbove};
use tower_llm_testkit::{Behavior, SimulatedProvider};

use crate::{
    raw::{Raw, response},
    support::{Running, get, post},
};

const JSON: &str = r#"{"object":"chat.completion","choices":[{"index":0,"message":{"content":"four"},"finish_reason":"stop"}],"usage":{"prompt_tokens":30,"completion_tokens":12,"total_tokens":42}}"#;

const SSE: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"four\"}}]}\n\n\
                   data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n\
                   data: {\"choices\":[],\"usage\":{\"prompt_tokens\":30,\"completion_tokens\":12}}\n\n\
                   data: [DONE]\n\n";

const CODINGS: [&str; 4] = ["gzip", "br", "zstd", "deflate"];

async fn compressed(text: &'static str, coding: &str) -> Bytes {
    let plain = service_fn(async |_: http::Request<()>| {
        Ok::<_, std::convert::Infallible>(http::Response::new(Full::<Bytes>::from(text)))
    });
    let request = http::Request::builder().header("accept-encoding", coding);
    let service = Compression::new(plain).compress_when(SizeAbove::new(0));
    let response = service.oneshot(request.body(()).unwrap()).await.unwrap();
    assert_eq!(response.headers()["content-encoding"], coding);
    response.into_body().collect().await.unwrap().to_bytes()
}

async fn tokens(gateway: &Running) -> u64 {
    let metrics = get(gateway.addr, "/metrics").await.text();
    let tokens = metrics.lines().filter(|line| {
        line.starts_with("llm_tokens_total")
            && (line.contains("direction=\"input\"") || line.contains("direction=\"output\""))
    });
    tokens
        .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap())
        .sum()
}

#[tokio::test]
async fn a_compressed_response_is_read_and_passed_on_decoded() {
    for (content_type, text) in [("application/json", JSON), ("text/event-stream", SSE)] {
        for coding in CODINGS {
            // The names of codings have no case, and `identity` is none.
            for name in [
                coding.to_owned(),
                coding.to_uppercase(),
                format!("{coding}, identity"),
                format!("identity\r\ncontent-encoding: {coding}"),
            ] {
                let headers =
                    format!("content-type: {content_type}\r\ncontent-encoding: {name}\r\n");
                let body = compressed(text, coding).await;
                let upstream = Raw::start([response("200 OK", &headers, &body)]).await;
                let gateway = upstream.gateway(&[]).await;
                let request = r#"{"model":"m","messages":[]}"#;
                let answer = gateway.post("/v1/chat/completions", request).await;
                assert_eq!(answer.text(), text, "{name}");
                assert!(!answer.headers.contains_key("content-encoding"), "{name}");
                assert_eq!(tokens(&gateway).await, 42, "{content_type} {name}");
            }
        }
    }
}

#[tokio::test]
async fn identity_alone_is_no_coding() {
    for name in ["identity", "Identity, identity"] {
        let headers = format!("content-type: application/json\r\ncontent-encoding: {name}\r\n");
        let upstream = Raw::start([response("200 OK", &headers, JSON.as_bytes())]).await;
        let gateway = upstream.gateway(&[]).await;
        let answer = gateway.post("/v1/chat/completions", "{}").await;
        assert_eq!(answer.text(), JSON, "{name}");
        assert_eq!(tokens(&gateway).await, 42, "{name}");
    }
}

/// hyper drops a body with a length after its last byte, so the end has to be known by then.
#[tokio::test]
async fn a_response_with_a_length_has_ended_with_its_last_byte() {
    let gzipped = compressed(JSON, "gzip").await;
    // The end alone tells that these are over.
    let no_marker = SSE.trim_end_matches("data: [DONE]\n\n");
    let anthropic =
        "data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"}}\n\n";
    for (headers, body) in [
        ("content-type: text/event-stream\r\n", no_marker.as_bytes()),
        ("content-type: application/json\r\n", no_marker.as_bytes()),
        ("content-type: text/event-stream\r\n", anthropic.as_bytes()),
        ("content-type: application/json\r\n", JSON.as_bytes()),
        ("content-type: text/event-stream\r\n", SSE.as_bytes()),
        (
            "content-type: application/json\r\ncontent-encoding: gzip\r\n",
            &gzipped,
        ),
    ] {
        let upstream = Raw::start([response("200 OK", headers, body)]).await;
        let gateway = upstream.gateway(&[]).await;
        for _ in 0..5 {
            let answer = gateway.post("/v1/chat/completions", "{}").await;
            assert!(answer.complete);
        }
        let metrics = get(gateway.addr, "/metrics").await.text();
        let calls: Vec<_> = metrics
            .lines()
            .filter(|line| line.starts_with("llm_calls_total"))
            .collect();
        assert_eq!(calls.len(), 1, "{calls:?}");
        assert!(
            calls[0].contains("success") && calls[0].ends_with(" 5"),
            "{calls:?}"
        );
    }
}

#[tokio::test]
async fn a_compressed_error_and_an_empty_body_pass() {
    let error = r#"{"error":{"message":"no such model","type":"invalid_request_error"}}"#;
    let body = compressed(error, "gzip").await;
    let coded = "content-type: application/json\r\ncontent-encoding: gzip\r\n";
    for (status, sent, expected) in [("404 Not Found", &body[..], error), ("200 OK", b"", "")] {
        let upstream = Raw::start([response(status, coded, sent)]).await;
        let gateway = upstream.gateway(&[]).await;
        let answer = gateway.post("/v1/chat/completions", "{}").await;
        assert!(answer.complete);
        assert_eq!(answer.text(), expected);
    }
}

#[tokio::test]
async fn responses_are_compressed_for_callers_only_where_that_is_switched_on_and_accepted() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Behavior::new().output_tokens(200));
    let body = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
    let accepts = "accept-encoding: gzip\r\n";
    for (flags, headers, expected) in [
        (&[][..], accepts, false),
        (&["--compress"], accepts, true),
        (&["--compress"], "", false),
        (
            &["--compress"],
            "accept-encoding: identity, gzip;q=0\r\n",
            false,
        ),
    ] {
        let gateway = Running::over(&provider, flags).await;
        let answer = post(gateway.addr, "/v1/chat/completions", headers, body).await;
        let is_compressed = answer.headers.contains_key("content-encoding");
        assert_eq!(is_compressed, expected, "{flags:?} {headers}");
        assert_eq!(answer.body().starts_with(b"{"), !expected);
        assert!(answer.complete);
    }
}

#[tokio::test]
async fn a_stream_is_never_compressed() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, &["--compress"]).await;
    for (path, body) in [
        (
            "/v1/chat/completions",
            r#"{"model":"m","messages":[],"stream":true}"#,
        ),
        (
            "/v1/messages",
            r#"{"model":"m","max_tokens":9,"messages":[],"stream":true}"#,
        ),
        ("/v1beta/models/m:streamGenerateContent?alt=sse", "{}"),
        // An array of JSON, as it comes.
        ("/v1beta/models/m:streamGenerateContent", "{}"),
    ] {
        let answer = post(gateway.addr, path, "accept-encoding: gzip\r\n", body).await;
        assert!(!answer.headers.contains_key("content-encoding"), "{path}");
    }
}
