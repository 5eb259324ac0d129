//! How it ends.

use std::time::Duration;

use tokio::{net::TcpStream, time::Instant};
use tower_llm_testkit::{Behavior, Fault, SimulatedProvider};

use crate::support::{Binary, Connection, Running, SOON, eventually, within};

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
async fn at_a_signal_streams_end_well_and_nobody_new_is_let_in() {
    for signal in ["TERM", "INT"] {
        let provider = SimulatedProvider::start().await.unwrap();
        provider.set(
            Behavior::new()
                .output_tokens(15)
                .gap(Duration::from_millis(200)),
        );
        let url = provider.url();
        let mut gateway = Binary::start(&[("OPENAI_BASE_URL", &url)], &[]).await;
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
async fn a_stream_longer_than_the_deadline_is_cut() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Fault::StallAfter(2));
    let url = provider.url();
    let flags = ["--shutdown-deadline", "0.5"];
    let mut gateway = Binary::start(&[("OPENAI_BASE_URL", &url)], &flags).await;
    let mut stream = streaming(gateway.addr).await;

    let began = Instant::now();
    gateway.signal("TERM").await;

    while let Ok(Some(_)) = within(SOON, stream.chunk()).await {}
    assert_eq!(gateway.exit(SOON).await.code(), Some(0));
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(500), "{took:?}");
    provider
        .wait_for(SOON, |counts| counts.closed_by_caller == 1)
        .await
        .unwrap();
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
async fn streams_of_http_2_are_cut_with_their_connection() {
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
    assert_eq!(gateway.stop().await.cut, 1);
    eventually("the place is free", async || {
        bulkhead.stats()[0].in_flight == 0
    })
    .await;
    assert!(within(SOON, body.collect()).await.is_err());
}
