//! What can be seen of it.

use std::collections::BTreeMap;

use tower_llm_testkit::{Behavior, Fault, SimulatedProvider};

use crate::support::{Running, get, post, request};

/// The samples by name and labels. Panics at a line that is none.
fn samples(text: &str) -> BTreeMap<String, f64> {
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

#[tokio::test]
async fn it_reports_that_it_is_alive_and_ready() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, &[]).await;
    let answer = get(gateway.addr, "/healthz").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok\n"));
    let answer = get(gateway.addr, "/readyz").await;
    assert_eq!((answer.status, answer.text().as_str()), (200, "ready\n"));
    let answer = request(gateway.addr, "HEAD", "/healthz", "", "").await;
    assert_eq!(answer.status, 200);
    assert_eq!(gateway.post("/healthz", "").await.status, 404);
    // The provider has no part in it.
    assert_eq!(provider.counts().requests, 0);
}

#[tokio::test]
async fn it_counts_calls_tokens_and_times_by_provider() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Behavior::new().input_tokens(11).output_tokens(7));
    let gateway = Running::over(&provider, &[]).await;
    for _ in 0..3 {
        gateway.post("/v1/messages", r#"{"stream":true}"#).await;
    }
    gateway.post("/v1/embeddings", r#"{"input":"x"}"#).await;
    provider.push(Fault::Status(500));
    gateway.post("/v1/chat/completions", "{}").await;
    provider.push(Fault::CutAfter(3));
    gateway
        .post("/v1/chat/completions", r#"{"stream":true}"#)
        .await;

    let answer = get(gateway.addr, "/metrics").await;

    assert_eq!(answer.status, 200);
    assert!(
        answer.headers["content-type"]
            .to_str()
            .unwrap()
            .starts_with("text/plain; version=0.0.4")
    );
    let samples = samples(&answer.text());
    let count = |name: &str, labels: &str| samples[&format!("{name}{{{labels}}}")];
    let calls = |labels: &str| count("llm_calls_total", labels);
    let chat = |provider: &str, outcome: &str| {
        calls(&format!(
            r#"provider="{provider}",operation="chat",outcome="{outcome}""#
        ))
    };
    assert_eq!(chat("anthropic", "success"), 3.0);
    assert_eq!(chat("openai", "failed_status"), 1.0);
    assert_eq!(chat("openai", "failed_truncated"), 1.0);
    assert_eq!(
        calls(r#"provider="openai",operation="embeddings",outcome="success""#),
        1.0
    );
    let tokens = |direction: &str| {
        count(
            "llm_tokens_total",
            &format!(r#"provider="anthropic",direction="{direction}""#),
        )
    };
    assert_eq!((tokens("input"), tokens("output")), (33.0, 21.0));
    let anthropic = r#"provider="anthropic""#;
    assert_eq!(
        count("llm_time_to_first_token_seconds_count", anthropic),
        3.0
    );
    assert_eq!(count("llm_call_duration_seconds_count", anthropic), 3.0);
    assert_eq!(count("bulkhead_in_flight", anthropic), 0.0);
    assert_eq!(count("bulkhead_waiting", anthropic), 0.0);
    assert_eq!(count("bulkhead_limit", anthropic), 100.0);
}

#[tokio::test]
async fn no_input_of_a_caller_becomes_a_label() {
    let provider = SimulatedProvider::start().await.unwrap();
    let flags = [
        "--ratelimit-caller-rpm",
        "100",
        "--ratelimit-openai-rpm",
        "1000",
        "--ratelimit-tiers",
        "free:100",
        "--ratelimit-caller-tiers",
        "secret-1:free",
    ];
    let gateway = Running::over(&provider, &flags).await;
    for i in 0..50 {
        let secret = format!("authorization: Bearer secret-{i}\r\nx-api-key: secret-{i}\r\n");
        let body = format!(r#"{{"model":"mine-{i}","messages":[]}}"#);
        post(gateway.addr, "/v1/chat/completions", &secret, &body).await;
        let path = format!("/v1/mine-{i}/other?key=secret-{i}");
        post(gateway.addr, &path, &secret, &body).await;
    }
    let text = get(gateway.addr, "/metrics").await.text();
    assert!(!text.contains("secret") && !text.contains("mine"), "{text}");
    let calls = samples(&text)
        .into_iter()
        .filter(|(name, _)| name.starts_with("llm_calls_total"));
    assert_eq!(calls.count(), 2);
}

#[tokio::test]
async fn two_gateways_count_apart() {
    let provider = SimulatedProvider::start().await.unwrap();
    let one = Running::over(&provider, &[]).await;
    let other = Running::over(&provider, &[]).await;
    one.post("/v1/messages", "{}").await;
    assert!(
        get(one.addr, "/metrics")
            .await
            .text()
            .contains("llm_calls_total{")
    );
    assert!(
        !get(other.addr, "/metrics")
            .await
            .text()
            .contains("llm_calls_total{")
    );
}
