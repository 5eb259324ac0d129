//! Clients that send malformed requests, that are slow, and that send nothing.

use std::time::Duration;

use tokio::time::Instant;
use tower_llm_testkit::{Behavior, Fault, SimulatedProvider, wire};

use crate::support::{Connection, Running, SOON, eventually, post, within};

const PATHS: [(&str, &str, &str); 3] = [
    ("/v1/chat/completions", "/error/code", "request_too_large"),
    ("/v1/messages", "/error/type", "request_too_large"),
    (
        "/v1beta/models/m:generateContent",
        "/error/status",
        "INVALID_ARGUMENT",
    ),
];

#[tokio::test]
async fn a_body_over_the_limit_is_413_in_the_dialect() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, &["--max-body-bytes", "1000"]).await;
    let body = |bytes: usize| format!("{{\"x\":\"{}\"}}", "x".repeat(bytes - 8));
    for (path, pointer, value) in PATHS {
        assert_eq!(gateway.post(path, &body(1000)).await.status, 200, "{path}");
        let answer = gateway.post(path, &body(1001)).await;
        assert_eq!(answer.status, 413, "{path}");
        assert_eq!(answer.json().pointer(pointer).unwrap(), value, "{path}");
        assert_eq!(answer.headers["x-should-retry"], "false", "{path}");
    }
    assert_eq!(provider.counts().requests, 3);
}

#[tokio::test]
async fn broken_json_passes_and_gets_the_provider_s_own_answer() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, &[]).await;
    for (path, ..) in PATHS {
        for body in [r#"{"model":"m","messages":[{"#, "", "\u{0}", "[1,2"] {
            let answer = gateway.post(path, body).await;
            let sent = wire::reply(path, body.as_bytes(), &Behavior::new());
            assert_eq!((answer.status, sent.status), (400, 400), "{path}");
            assert_eq!(answer.body(), sent.frames[0].bytes, "{path}");
            assert_eq!(provider.recorded().pop().unwrap().body, body);
        }
    }
}

#[tokio::test]
async fn a_slow_reader_slows_the_provider_and_in_the_end_loses_its_permit() {
    let provider = SimulatedProvider::start().await.unwrap();
    // Far more than the sockets on the way can hold.
    provider.set(Behavior::new().output_tokens(200_000));
    let gateway = Running::over(&provider, &["--caller-timeout", "1"]).await;
    let mut connection = Connection::open(gateway.addr).await;
    connection
        .send("POST", "/v1/chat/completions", "", r#"{"stream":true}"#)
        .await;
    within(SOON, connection.head(false)).await.unwrap();
    eventually("the permit is taken", async || gateway.held() == 1).await;

    // The client reads nothing until the timeout of one second passes.
    eventually("the permit is free", async || gateway.held() == 0).await;

    let counts = provider
        .wait_for(SOON, |counts| counts.open_streams == 0)
        .await
        .unwrap();
    assert_eq!(counts.closed_by_caller, 1);
    assert!(counts.output_tokens < 150_000, "{counts:?}");
}

#[tokio::test]
async fn a_slow_but_steady_reader_keeps_its_permit() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(
        Behavior::new()
            .output_tokens(8)
            .gap(Duration::from_millis(400)),
    );
    // Longer than that in all, and at no time without progress for so long.
    let gateway = Running::over(&provider, &["--caller-timeout", "2"]).await;
    let answer = gateway.post("/v1/messages", r#"{"stream":true}"#).await;
    assert!(answer.complete);
    assert!(answer.text().contains("message_stop"));
}

#[tokio::test]
async fn a_client_that_sends_nothing_or_stops_in_its_headers_is_cut_off() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, &["--caller-timeout", "0.3"]).await;
    // Nothing; what may become HTTP/2's preface; half a header; a second request's half.
    let answered = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nPOST /v1";
    for said in [
        "",
        "PRI * HT",
        "POST /v1/messages HTTP/1.1\r\nhost:",
        answered,
    ] {
        let began = Instant::now();
        let mut connection = Connection::open(gateway.addr).await;
        connection.write(said.as_bytes()).await;
        within(SOON, async { while connection.more().await > 0 {} }).await;
        assert!(began.elapsed() >= Duration::from_millis(300), "{said}");
    }
}

#[tokio::test]
async fn a_client_that_stops_in_its_body_gets_an_error() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, &["--caller-timeout", "1.5"]).await;
    let mut connection = Connection::open(gateway.addr).await;
    let head = "POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{\"a";
    connection.write(head.as_bytes()).await;
    let answer = within(SOON, connection.answer(false)).await.unwrap();
    assert_eq!(answer.status, 408);
    assert_eq!(answer.json()["error"]["type"], "timeout_error");
    assert_eq!(provider.counts().requests, 0);
}

#[tokio::test]
async fn connections_beyond_the_cap_wait_for_one_to_end() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.push(Fault::StallAfter(1));
    let gateway = Running::over(&provider, &["--max-connections", "1"]).await;
    let mut first = Connection::open(gateway.addr).await;
    first
        .send("POST", "/v1/messages", "", r#"{"stream":true}"#)
        .await;
    first.head(false).await.unwrap();

    let second = tokio::spawn(post(gateway.addr, "/v1/messages", "", "{}"));
    assert!(
        tokio::time::timeout(Duration::from_millis(100), async {
            while !second.is_finished() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .is_err()
    );
    drop(first);
    assert_eq!(within(SOON, second).await.unwrap().status, 200);
}
