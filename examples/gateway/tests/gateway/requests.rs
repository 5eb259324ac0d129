//! Requests that the gateway answers itself or mends, and connections that are closed under it.

use tower_llm_testkit::SimulatedProvider;

use crate::{
    raw::{Raw, Reply, response},
    support::{Connection, Running, SOON, get, post, request, within},
};

const HANDSHAKE: &str = "connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// The calls that have been counted, and the circuits that are open.
async fn counted(gateway: &Running) -> Vec<String> {
    let metrics = get(gateway.addr, "/metrics").await.text();
    let of_interest = |line: &&str| {
        let is_call = line.starts_with("llm_calls_total");
        let is_open = line.starts_with("breaker_circuits") && line.contains("state=\"open\"");
        (is_call || is_open) && !line.ends_with(" 0")
    };
    metrics
        .lines()
        .filter(of_interest)
        .map(str::to_owned)
        .collect()
}

fn ok(body: &str) -> Reply {
    response(
        "200 OK",
        "content-type: application/json\r\n",
        body.as_bytes(),
    )
}

#[tokio::test]
async fn a_websocket_handshake_is_answered_in_the_dialect_and_sent_nowhere() {
    let upstream = Raw::start([ok("{}")]).await;
    let gateway = upstream.gateway(&[]).await;
    for (path, headers, pointer, value) in [
        (
            "/v1/realtime?model=m",
            "",
            "/error/code",
            "upgrade_not_supported",
        ),
        ("/v1/responses", "", "/error/code", "upgrade_not_supported"),
        (
            "/v1/models",
            "anthropic-version: 2023-06-01\r\n",
            "/error/type",
            "invalid_request_error",
        ),
        (
            "/v1beta/models/m:bidiGenerateContent",
            "",
            "/error/status",
            "UNIMPLEMENTED",
        ),
    ] {
        let headers = format!("{HANDSHAKE}{headers}");
        let answer = request(gateway.addr, "GET", path, &headers, "").await;
        assert_eq!(answer.status, 426, "{path}");
        assert_eq!(answer.json().pointer(pointer).unwrap(), value, "{path}");
        assert_eq!(answer.headers["upgrade"], "HTTP/1.1", "{path}");
    }
    assert_eq!(upstream.connections(), 0);
    assert_eq!(counted(&gateway).await, [""; 0]);
}

#[tokio::test]
async fn an_offer_of_http_2_is_a_request_like_any_other() {
    let upstream = Raw::start([ok("{}")]).await;
    let gateway = upstream.gateway(&[]).await;
    let headers =
        "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAA\r\n";
    let answer = post(gateway.addr, "/v1/chat/completions", headers, "{}").await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn an_upstream_that_switches_protocols_unasked_has_failed() {
    let switching =
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let upstream = Raw::start([Reply::Bytes(switching.into())]).await;
    let gateway = upstream.gateway(&[]).await;
    let answer = request(gateway.addr, "GET", "/v1/realtime", "", "").await;
    assert_eq!(answer.status, 502);
    assert_eq!(answer.json()["error"]["code"], "bad_gateway");
}

#[tokio::test]
async fn slashes_in_a_row_are_one() {
    let upstream = Raw::start([ok("{}")]).await;
    let gateway = upstream.gateway(&[]).await;
    for (path, sent) in [
        (
            "//v1/chat/completions",
            "POST /v1/chat/completions HTTP/1.1",
        ),
        (
            "/v1//messages?beta=//x",
            "POST /v1/messages?beta=//x HTTP/1.1",
        ),
        (
            "///v1beta//models/m:generateContent",
            "POST /v1beta/models/m:generateContent HTTP/1.1",
        ),
    ] {
        assert_eq!(gateway.post(path, "{}").await.status, 200, "{path}");
        assert_eq!(upstream.requests().pop().unwrap(), sent);
    }
    assert_eq!(get(gateway.addr, "//healthz").await.status, 200);
}

#[tokio::test]
async fn a_callers_cookies_reach_no_provider() {
    let provider = SimulatedProvider::start().await.unwrap();
    for flags in [
        &[][..],
        &[
            "--openai-api-key",
            "sk-owner",
            "--keys",
            "a-key-of-many-characters",
        ],
    ] {
        let gateway = Running::over(&provider, flags).await;
        let headers = "authorization: Bearer a-key-of-many-characters\r\ncookie: session=1\r\n";
        let answer = post(gateway.addr, "/v1/chat/completions", headers, "{}").await;
        assert_eq!(answer.status, 200);
        let recorded = provider.recorded().pop().unwrap();
        assert!(!recorded.headers.contains_key("cookie"), "{flags:?}");
    }
}

#[tokio::test]
async fn more_than_a_hundred_response_headers_pass() {
    let headers: String = (0..300)
        .map(|number| format!("x-{number}: {number}\r\n"))
        .collect();
    let upstream = Raw::start([response("200 OK", &headers, b"{}")]).await;
    let gateway = upstream.gateway(&[]).await;
    let answer = gateway.post("/v1/chat/completions", "{}").await;
    assert_eq!(
        (answer.status, &answer.headers["x-299"]),
        (200, &"299".parse().unwrap())
    );
}

#[tokio::test]
async fn a_reused_connection_that_is_closed_is_tried_once_more_for_get_and_head_alone() {
    for (method, path, sent, status) in [
        ("GET", "/v1/models", 3, 200),
        ("HEAD", "/v1/models", 3, 200),
        ("POST", "/v1/chat/completions", 2, 502),
        ("POST", "/v1/messages", 2, 502),
        ("DELETE", "/v1/files/f", 2, 502),
    ] {
        let upstream = Raw::start([ok("{}"), Reply::Close, ok("")]).await;
        let gateway = upstream.gateway(&[]).await;
        assert_eq!(gateway.post("/v1/messages", "{}").await.status, 200);
        let answer = request(gateway.addr, method, path, "", "{}").await;
        assert_eq!(answer.status, status, "{method} {path}");
        let requests = upstream.requests();
        assert_eq!(requests.len(), sent, "{requests:?}");
        // One such close opens nothing.
        let open = counted(&gateway).await;
        assert!(
            !open.iter().any(|line| line.contains("breaker_circuits")),
            "{open:?}"
        );
        assert_eq!(gateway.held(), 0);
    }
}

#[tokio::test]
async fn a_get_is_not_sent_a_third_time() {
    let upstream = Raw::start([ok("{}"), Reply::Close]).await;
    let gateway = upstream.gateway(&[]).await;
    assert_eq!(get(gateway.addr, "/v1/models").await.status, 200);
    assert_eq!(get(gateway.addr, "/v1/models").await.status, 502);
    assert_eq!(upstream.requests().len(), 3);
}

#[tokio::test]
async fn connections_that_are_closed_are_no_failure_of_the_model() {
    let upstream = Raw::start([Reply::Close]).await;
    let gateway = upstream.gateway(&[]).await;
    let body = r#"{"model":"m","messages":[]}"#;
    for _ in 0..20 {
        let answer = gateway.post("/v1/chat/completions", body).await;
        assert!([502, 503].contains(&answer.status));
    }
    // The circuit of the way to the provider opens; none of a model does.
    let open = counted(&gateway).await;
    let circuits: Vec<_> = open
        .iter()
        .filter(|line| line.contains("breaker_circuits"))
        .collect();
    assert_eq!(circuits.len(), 1, "{circuits:?}");
    assert!(circuits[0].contains("=\"provider\""), "{circuits:?}");
}

#[tokio::test]
async fn a_broken_body_of_the_caller_is_not_the_providers_fault() {
    let upstream = Raw::start([ok("{}")]).await;
    let gateway = upstream.gateway(&[]).await;
    for content_type in ["application/json", "audio/wav"] {
        let mut connection = Connection::open(gateway.addr).await;
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\n\
             transfer-encoding: chunked\r\n\r\n1\r\n{{\r\nno chunk\r\n"
        );
        connection.write(head.as_bytes()).await;
        let answer = within(SOON, connection.answer(false)).await.unwrap();
        assert_eq!(answer.status, 400, "{content_type}");
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
    }
    let counted = counted(&gateway).await;
    assert!(
        !counted.iter().any(|line| line.contains("failed")),
        "{counted:?}"
    );
}
