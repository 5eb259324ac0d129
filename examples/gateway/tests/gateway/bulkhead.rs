//! Places, from outside.

use std::time::Duration;

use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use tower_llm_testkit::{Behavior, Fault, SimulatedProvider};

use crate::support::{Answer, Binary, Running, SOON, eventually, get, post, within};

const CHAT: (&str, &str) = ("/v1/chat/completions", r#"{"stream":true}"#);
const MESSAGES: (&str, &str) = ("/v1/messages", r#"{"stream":true}"#);
const GENERATE: (&str, &str) = ("/v1beta/models/m:streamGenerateContent?alt=sse", "{}");
const AZURE: (&str, &str) = (
    "/openai/deployments/d/chat/completions",
    r#"{"stream":true}"#,
);

fn slow() -> Behavior {
    Behavior::new()
        .output_tokens(4)
        .gap(Duration::from_millis(5))
}

async fn many(addr: std::net::SocketAddr, count: usize, (path, body): (&str, &str)) -> Vec<Answer> {
    join_all((0..count).map(|_| post(addr, path, "", body))).await
}

#[tokio::test]
async fn two_permits_are_never_more_than_two_streams_by_environment() {
    for (name, call) in [
        ("BULKHEAD_OPENAI_CONCURRENT", CHAT),
        ("BULKHEAD_ANTHROPIC_CONCURRENT", MESSAGES),
        ("BULKHEAD_GEMINI_CONCURRENT", GENERATE),
        ("BULKHEAD_AZURE_CONCURRENT", AZURE),
        ("BULKHEAD_DEFAULT_CONCURRENT", CHAT),
    ] {
        let provider = SimulatedProvider::start().await.unwrap();
        provider.set(slow());
        let url = provider.url();
        let envs = [
            ("OPENAI_BASE_URL", url.as_str()),
            ("ANTHROPIC_BASE_URL", &url),
            ("GOOGLE_GEMINI_BASE_URL", &url),
            ("AZURE_OPENAI_ENDPOINT", &url),
            (name, "2"),
        ];
        let gateway = Binary::start(&envs, &[]).await;
        let answers = many(gateway.addr, 50, call).await;
        // All of them had room to wait.
        assert!(answers.iter().all(|answer| answer.status == 200), "{name}");
        let counts = provider.counts();
        assert_eq!((counts.requests, counts.finished), (50, 50), "{name}");
        assert_eq!(counts.max_open_streams, 2, "{name}");
        assert_eq!(counts.max_in_flight, 2, "{name}");
    }
}

#[tokio::test]
async fn the_permits_of_all_providers_together_are_never_more_than_are_set_by_environment() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(slow());
    let url = provider.url();
    let envs = [
        ("OPENAI_BASE_URL", url.as_str()),
        ("ANTHROPIC_BASE_URL", &url),
        ("BULKHEAD_GLOBAL_CONCURRENT", "3"),
        ("BULKHEAD_DEFAULT_CONCURRENT", "2"),
    ];
    let gateway = Binary::start(&envs, &[]).await;
    let both = [CHAT, MESSAGES].map(|call| many(gateway.addr, 25, call));
    for answers in join_all(both).await {
        assert!(answers.iter().all(|answer| answer.status == 200));
    }
    let counts = provider.counts();
    assert_eq!((counts.finished, counts.max_in_flight), (50, 3));
}

#[tokio::test]
async fn a_call_without_a_permit_is_refused_in_its_dialect() {
    let provider = SimulatedProvider::start().await.unwrap();
    let flags = [
        "--bulkhead-default-concurrent",
        "2",
        "--bulkhead-default-queue",
        "0",
    ];
    let gateway = Running::over(&provider, &flags).await;
    provider.set(Fault::NoAnswer);
    for (call, pointer, value) in [
        (CHAT, "/error/code", "server_is_overloaded"),
        (AZURE, "/error/code", "server_is_overloaded"),
        (MESSAGES, "/error/type", "overloaded_error"),
        (GENERATE, "/error/status", "UNAVAILABLE"),
    ] {
        provider.reset_counts();
        let calls = (0..50).map(|_| post(gateway.addr, call.0, "", call.1));
        // Two have a permit and never end.
        let mut calls: FuturesUnordered<_> = calls.collect();
        let refused = calls.by_ref().take(48).collect::<Vec<_>>();
        for answer in within(SOON, refused).await {
            assert_eq!(answer.status, 503);
            assert_eq!(answer.json().pointer(pointer).unwrap(), value, "{}", call.0);
        }
        provider
            .wait_for(SOON, |counts| counts.requests == 2)
            .await
            .unwrap();
        drop(calls);
        eventually("those two have left", async || gateway.held() == 0).await;
    }
}

#[tokio::test]
async fn the_queue_is_bounded_in_number_and_in_time() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Fault::StallAfter(1));
    let flags = [
        "--bulkhead-openai-concurrent",
        "1",
        "--bulkhead-default-queue",
        "3",
        "--bulkhead-default-timeout",
        "2",
    ];
    let gateway = Running::over(&provider, &flags).await;
    let mut holder = crate::support::Connection::open(gateway.addr).await;
    holder.send("POST", CHAT.0, "", CHAT.1).await;
    holder.head(false).await.unwrap();

    let answers = many(gateway.addr, 10, CHAT).await;

    let waited = |answer: &Answer| answer.text().contains("waited 2s");
    assert!(answers.iter().all(|answer| answer.status == 503));
    assert_eq!(answers.iter().filter(|answer| waited(answer)).count(), 3);
    // Another provider has permits of its own.
    provider.set(Behavior::new());
    assert_eq!(gateway.post(MESSAGES.0, MESSAGES.1).await.status, 200);
    let metrics = get(gateway.addr, "/metrics").await.text();
    assert!(
        metrics.contains("bulkhead_refused_total{provider=\"openai\"} 10\n"),
        "{metrics}"
    );
    drop(holder);
    eventually("the permit is free", async || gateway.held() == 0).await;
}
