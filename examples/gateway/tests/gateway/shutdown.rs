//! How it ends.

use std::time::Duration;

use tokio::{net::TcpStream, time::Instant};
use tower_llm_testkit::{Behavior, Fault, SimulatedProvider};

use crate::{
    raw::{Raw, Reply},
    support::{Binary, COMPLETE, Connection, Running, SOON, eventually, get, post, within},
};

const BODY: &str = r#"{"stream":true}"#;

async fn streaming(addr: std::net::SocketAddr) -> Connection {
    let mut connection = Connection::open(addr).await;
    connection
        .send("POST", "/v1/chat/completions", "", BODY)
        .await;
    within(SOON, connection.head(false)).await.unwrap();
    connection.chunk().await.unwrap().unwrap();
    connection
}

#[tokio::test]
async fn at_a_signal_streams_end_well_and_no_new_call_is_admitted() {
    for signal in ["TERM", "INT"] {
        let provider = SimulatedProvider::start().await.unwrap();
        provider.set(
            Behavior::new()
                .output_tokens(15)
                .gap(Duration::from_millis(200)),
        );
        let url = provider.url();
        let envs = [
            ("OPENAI_BASE_URL", url.as_str()),
            ("GATEWAY_DRAIN_DELAY", "0.2"),
        ];
        let mut gateway = Binary::start(&envs, &[]).await;
        let mut stream = streaming(gateway.addr).await;

        gateway.signal(signal).await;

        let addr = gateway.addr;
        eventually("it refuses", async || {
            TcpStream::connect(addr).await.is_err()
        })
        .await;
        assert!(gateway.child.try_wait().unwrap().is_none());
        let mut last = Vec::new();
        while let Some(chunk) = within(SOON, stream.chunk()).await.expect("not cut") {
            last = chunk;
        }
        assert!(last.ends_with(b"data: [DONE]\n\n"));
        assert_eq!(gateway.exit(SOON).await.code(), Some(0));
        assert_eq!(provider.counts().finished, 1);
    }
}

#[tokio::test]
async fn a_stream_longer_than_the_deadline_is_cut_with_an_error_event() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Fault::StallAfter(2));
    let url = provider.url();
    let flags = ["--shutdown-deadline", "0.5", "--drain-delay", "0"];
    let mut gateway = Binary::start(&[("OPENAI_BASE_URL", &url)], &flags).await;
    let mut stream = streaming(gateway.addr).await;

    let began = Instant::now();
    gateway.signal("TERM").await;

    let mut rest = Vec::new();
    while let Some(chunk) = within(SOON, stream.chunk()).await.expect("ended well") {
        rest.extend(chunk);
    }
    let rest = String::from_utf8(rest).unwrap();
    assert!(rest.contains(r#""code":"shutting_down""#), "{rest}");
    assert_eq!(gateway.exit(SOON).await.code(), Some(0));
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(500), "{took:?}");
    provider
        .wait_for(SOON, |counts| counts.closed_by_caller == 1)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_cut_stream_ends_with_an_error_in_its_dialect() {
    for (path, event) in [
        (
            "/v1/chat/completions",
            r#"data: {"error":{"code":"shutting_down","#,
        ),
        (
            "/v1/responses",
            "event: error\ndata: {\"code\":\"shutting_down\",",
        ),
        (
            "/v1/messages",
            "event: error\ndata: {\"error\":{\"message\":",
        ),
        (
            "/v1beta/models/m:streamGenerateContent?alt=sse",
            r#"data: {"error":{"code":503,"#,
        ),
    ] {
        let provider = SimulatedProvider::start().await.unwrap();
        provider.set(Fault::StallAfter(2));
        let gateway = Running::over(&provider, &["--shutdown-deadline", "0"]).await;
        let mut stream = Connection::open(gateway.addr).await;
        stream.send("POST", path, "", BODY).await;
        within(SOON, stream.head(false)).await.unwrap();
        stream.chunk().await.unwrap().unwrap();

        let (stopped, rest) = tokio::join!(gateway.stop(), async {
            let mut rest = Vec::new();
            while let Some(chunk) = within(SOON, stream.chunk()).await.expect("ended well") {
                rest.extend(chunk);
            }
            String::from_utf8(rest).unwrap()
        });

        assert_eq!(stopped.cut, 1, "{path}");
        // After blank lines, which end what the upstream had begun.
        let last = rest.rsplit_once(event).map(|(before, _)| before);
        assert!(
            last.is_some_and(|before| before.ends_with("\n\n")),
            "{path}: {rest}"
        );
        assert!(rest.ends_with("\n\n"), "{path}: {rest}");
        provider
            .wait_for(SOON, |counts| counts.closed_by_caller == 1)
            .await
            .unwrap();
    }
}

/// What a caller gets of a body that had begun with `begun`, and whether that ends as HTTP says.
async fn cut(headers: &str, begun: &str) -> (String, bool) {
    let head = format!("HTTP/1.1 200 OK\r\n{headers}transfer-encoding: chunked\r\n\r\n");
    let chunk = format!("{:x}\r\n{begun}\r\n", begun.len());
    let upstream = Raw::start([Reply::Bytes((head + &chunk).into())]).await;
    let gateway = upstream.gateway(&["--shutdown-deadline", "0"]).await;
    let mut stream = Connection::open(gateway.addr).await;
    stream.send("POST", "/v1/chat/completions", "", BODY).await;
    within(SOON, stream.head(false)).await.unwrap();
    let mut text = stream.chunk().await.unwrap().unwrap();
    let (_, ended) = tokio::join!(gateway.stop(), async {
        loop {
            match within(SOON, stream.chunk()).await {
                Ok(Some(chunk)) => text.extend(chunk),
                Ok(None) => return true,
                Err(()) => return false,
            }
        }
    });
    (String::from_utf8(text).unwrap(), ended)
}

#[tokio::test]
async fn a_stream_is_cut_with_an_event_by_what_it_is_and_not_by_its_label() {
    for label in [
        "",
        "content-type: text/event-stream\r\n",
        "content-type: application/json\r\n",
        "content-type: text/plain; charset=utf-8\r\n",
        "content-type: application/octet-stream\r\ncontent-encoding: identity\r\n",
    ] {
        for begun in [
            "data: {\"choices\":[]}\n\n",
            ": comment\n\n",
            "event: x\ndata: {\"cho",
        ] {
            let (text, ended) = cut(label, begun).await;
            assert!(ended, "{label} {begun}");
            let event = text.strip_prefix(begun).unwrap();
            assert!(
                event.starts_with("\n\ndata: {\"error\":"),
                "{label}: {text}"
            );
            assert!(event.contains("shutting_down"), "{label}: {text}");
        }
    }
    // What is no stream of events is broken off.
    for (label, begun) in [
        ("", "{\"choices\":["),
        ("content-type: text/event-stream\r\n", "[{\"candidates\":"),
    ] {
        let got = cut(label, begun).await;
        assert_eq!(got, (begun.to_owned(), false), "{label}");
    }
}

#[tokio::test]
async fn a_call_without_a_response_at_the_deadline_gets_an_error() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Fault::NoAnswer);
    let gateway = Running::over(&provider, &["--shutdown-deadline", "0"]).await;
    let mut waiting = Connection::open(gateway.addr).await;
    waiting.send("POST", "/v1/messages", "", "{}").await;
    eventually("it is sent", async || gateway.held() == 1).await;
    let (stopped, answer) = tokio::join!(gateway.stop(), within(SOON, waiting.answer(false)));
    assert_eq!(stopped.cut, 1);
    let answer = answer.unwrap();
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json()["error"]["type"], "overloaded_error");
    assert!(!answer.headers.contains_key("x-should-retry"));
}

#[tokio::test]
async fn it_is_unready_some_time_before_it_stops_listening() {
    let envs = [("GATEWAY_DRAIN_DELAY", "600")];
    let mut gateway = Binary::start(&envs, &[]).await;
    let addr = gateway.addr;
    let status = async |path: &str| get(addr, path).await.status;
    assert_eq!(
        (status("/readyz").await, status("/healthz").await),
        (200, 200)
    );

    gateway.signal("TERM").await;

    eventually("it is unready", async || status("/readyz").await == 503).await;
    assert_eq!(status("/healthz").await, 200);
    // Load balancers have not noticed yet.
    let answer = post(addr, "/v1/messages", "", COMPLETE).await;
    assert_eq!(answer.status, 200);
    assert!(gateway.child.try_wait().unwrap().is_none());
    gateway.signal("TERM").await;
    assert_eq!(gateway.exit(SOON).await.code(), Some(0));
}

#[tokio::test]
async fn the_drain_delay_ends_by_itself_and_a_person_does_not_wait_for_it() {
    for (signal, delay) in [("TERM", "0.5"), ("INT", "600")] {
        let mut gateway = Binary::start(&[("GATEWAY_DRAIN_DELAY", delay)], &[]).await;
        let began = Instant::now();
        gateway.signal(signal).await;
        assert_eq!(gateway.exit(SOON).await.code(), Some(0));
        if signal == "TERM" {
            assert!(began.elapsed() >= Duration::from_millis(500));
        }
    }
}

#[tokio::test]
async fn a_second_signal_does_not_wait() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Fault::StallAfter(2));
    let url = provider.url();
    let mut gateway = Binary::start(&[("OPENAI_BASE_URL", &url)], &[]).await;
    let _stream = streaming(gateway.addr).await;
    gateway.signal("INT").await;
    let addr = gateway.addr;
    eventually("it has heard the first", async || {
        TcpStream::connect(addr).await.is_err()
    })
    .await;
    gateway.signal("INT").await;
    assert_eq!(gateway.exit(SOON).await.code(), Some(0));
}

#[tokio::test]
async fn an_idle_connection_holds_nothing_up() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, &[]).await;
    let _silent = Connection::open(gateway.addr).await;
    let mut idle = Connection::open(gateway.addr).await;
    idle.send("GET", "/healthz", "", "").await;
    assert_eq!(idle.answer(false).await.unwrap().status, 200);
    let stopped = within(SOON, gateway.stop()).await;
    assert_eq!(stopped.cut, 0);
    assert_eq!(idle.more().await, 0);
}

#[tokio::test]
async fn what_is_cut_is_counted_and_closes_its_upstream() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Fault::StallAfter(2));
    let gateway = Running::over(&provider, &["--shutdown-deadline", "0"]).await;
    let bulkhead = gateway.bulkhead.clone();
    let _one = streaming(gateway.addr).await;
    let _other = streaming(gateway.addr).await;
    assert_eq!(gateway.stop().await.cut, 2);
    assert_eq!(bulkhead.stats()[0].in_flight, 0);
    provider
        .wait_for(SOON, |counts| counts.closed_by_caller == 2)
        .await
        .unwrap();
}

#[tokio::test]
async fn streams_of_http_2_are_cut_with_an_event_too() {
    use http_body_util::{BodyExt, Full};
    use hyper_util::{client::legacy::Client, rt::TokioExecutor};

    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Fault::StallAfter(2));
    let gateway = Running::over(&provider, &["--shutdown-deadline", "0.2"]).await;
    let bulkhead = gateway.bulkhead.clone();
    let client = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http::<Full<bytes::Bytes>>();
    let request = http::Request::post(format!("http://{}/v1/messages", gateway.addr))
        .body(Full::from(BODY))
        .unwrap();
    let body = client.request(request).await.unwrap().into_body();
    let (stopped, body) = tokio::join!(gateway.stop(), within(SOON, body.collect()));
    assert_eq!(stopped.cut, 1);
    eventually("the permit is free", async || {
        bulkhead.stats()[0].in_flight == 0
    })
    .await;
    let body = body.expect("ended well").to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    assert!(body.contains("overloaded_error"), "{body}");
}
