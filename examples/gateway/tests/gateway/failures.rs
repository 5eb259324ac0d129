//! What a caller is told when the upstream fails.

use futures_util::future::join_all;
use tower_llm_testkit::{Fault, InBand, RetryAfter, SimulatedProvider, wire};

use crate::support::{Running, SOON, closed_port, get, request};

const PATHS: [(&str, &str); 4] = [
    ("/v1/chat/completions", r#"{"stream":true}"#),
    ("/v1/responses", r#"{"stream":true}"#),
    ("/v1/messages", r#"{"stream":true}"#),
    ("/v1beta/models/m:streamGenerateContent?alt=sse", "{}"),
];

const POINTERS: [&str; 4] = ["/error/code", "/error/code", "/error/type", "/error/status"];

#[tokio::test]
async fn an_upstream_that_is_down_is_502_in_the_dialect_and_is_not_named() {
    let addr = closed_port().await;
    let url = format!("http://{addr}");
    let mut flags = Vec::new();
    for flag in [
        "--openai-base-url",
        "--anthropic-base-url",
        "--gemini-base-url",
    ] {
        flags.extend([flag, url.as_str()]);
    }
    let gateway = Running::start(&flags).await;
    let values = ["bad_gateway", "bad_gateway", "api_error", "UNAVAILABLE"];
    for (((path, body), pointer), value) in PATHS.into_iter().zip(POINTERS).zip(values) {
        let answer = gateway.post(path, body).await;
        assert_eq!(answer.status, 502, "{path}");
        assert_eq!(answer.json().pointer(pointer).unwrap(), value, "{path}");
        let text = format!("{:?} {}", answer.headers, answer.text());
        assert!(!text.contains("127.0.0.1"), "{text}");
        assert!(!text.contains(&addr.port().to_string()), "{text}");
    }
    // A HEAD has no body to say it with.
    assert_eq!(
        request(gateway.addr, "HEAD", "/v1/models", "", "")
            .await
            .status,
        502
    );
    let metrics = get(gateway.addr, "/metrics").await.text();
    assert!(
        metrics.contains("outcome=\"failed_transport\""),
        "{metrics}"
    );
    assert_eq!(gateway.held(), 0);
}

#[tokio::test]
async fn a_reset_before_the_response_headers_is_502() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Fault::ResetBeforeHead);
    let gateway = Running::over(&provider, &[]).await;
    for (path, body) in PATHS {
        assert_eq!(gateway.post(path, body).await.status, 502, "{path}");
    }
}

#[tokio::test]
async fn an_upstream_that_is_silent_is_504_in_the_dialect() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Fault::NoAnswer);
    let gateway = Running::over(&provider, &["--timeout-first-token", "1.5"]).await;
    let values = ["timeout", "timeout", "timeout_error", "DEADLINE_EXCEEDED"];
    let answers = join_all(PATHS.map(|(path, body)| gateway.post(path, body))).await;
    for (((path, _), pointer), (value, answer)) in PATHS
        .into_iter()
        .zip(POINTERS)
        .zip(values.into_iter().zip(answers))
    {
        assert_eq!(answer.status, 504, "{path}");
        assert_eq!(answer.json().pointer(pointer).unwrap(), value, "{path}");
    }
    // Not streamed, it has the total alone.
    let gateway = Running::over(&provider, &["--timeout-total", "1.5"]).await;
    assert_eq!(gateway.post("/v1/messages", "{}").await.status, 504);
    let counts = provider
        .wait_for(SOON, |counts| counts.in_flight == 0)
        .await
        .unwrap();
    assert_eq!(counts.closed_before_head, 5);
}

#[tokio::test]
async fn a_stall_in_mid_stream_ends_it_with_an_error_in_the_dialect() {
    let provider = SimulatedProvider::start().await.unwrap();
    let flags = ["--timeout-first-token", "1.5", "--timeout-idle", "1.5"];
    let gateway = Running::over(&provider, &flags).await;
    let ends = [
        "\"code\":\"timeout\"",
        "\"code\":\"timeout\"",
        "timeout_error",
        "DEADLINE_EXCEEDED",
    ];
    // Before the first token, where there are events without one, and after it.
    for after in [1, 6] {
        let fault = Fault::StallAfter(after);
        provider.set(fault);
        let answers = join_all(PATHS.map(|(path, body)| gateway.post(path, body))).await;
        for ((path, body), (end, answer)) in PATHS.into_iter().zip(ends.into_iter().zip(answers)) {
            assert_eq!((answer.status, answer.complete), (200, true), "{path}");
            let sent = wire::body(path, body.as_bytes(), &fault.into()).concat();
            let body = answer.body();
            let (came, error) = body.split_at(sent.len());
            assert_eq!(came, sent, "{path}");
            let error = std::str::from_utf8(error).unwrap();
            assert!(
                error.contains(end) && error.ends_with("\n\n"),
                "{path}: {error}"
            );
        }
    }
    let counts = provider.wait_for(SOON, |counts| counts.in_flight == 0);
    assert_eq!(counts.await.unwrap().closed_by_caller, 8);
    assert_eq!(gateway.held(), 0);
}

#[tokio::test]
async fn a_stream_that_breaks_off_breaks_off_for_the_caller_too() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, &[]).await;
    for (path, body) in PATHS {
        provider.push(Fault::ResetAfter(3));
        let answer = gateway.post(path, body).await;
        assert_eq!((answer.status, answer.complete), (200, false), "{path}");
        let sent = wire::body(path, body.as_bytes(), &Fault::ResetAfter(3).into()).concat();
        assert_eq!(answer.body(), sent, "{path}");
    }
}

#[tokio::test]
async fn the_provider_s_own_errors_pass_as_they_are() {
    let provider = SimulatedProvider::start().await.unwrap();
    // So many failures would open a circuit, and what is told to wait would.
    let flags = ["--breaker", "off", "--ratelimit-learn", "false"];
    let gateway = Running::over(&provider, &flags).await;
    for fault in [
        Fault::Throttled(RetryAfter::Seconds(7)),
        Fault::Throttled(RetryAfter::Millis(70)),
        Fault::QuotaExhausted,
        Fault::Overloaded,
        Fault::Status(500),
        Fault::CutAfter(2),
        Fault::ErrorAfter(2, InBand::Overloaded),
        Fault::FailedAfter(2, InBand::ServerError),
    ] {
        for (path, body) in PATHS {
            provider.push(fault);
            let answer = gateway.post(path, body).await;
            let sent = wire::reply(path, body.as_bytes(), &fault.into());
            assert_eq!(answer.status, sent.status, "{path} {fault:?}");
            for (name, value) in &sent.headers {
                assert_eq!(&answer.headers[name], value, "{path} {fault:?}");
            }
            let bytes = wire::body(path, body.as_bytes(), &fault.into()).concat();
            assert_eq!(answer.body(), bytes, "{path} {fault:?}");
            assert!(answer.complete, "{path} {fault:?}");
        }
    }
    assert_eq!(gateway.held(), 0);
}
