//! Circuits, from outside.

use tower_llm_testkit::{Behavior, Fault, InBand, SimulatedProvider};

use crate::support::{Binary, Running, eventually, get, post};

const CHAT: (&str, &str) = ("/v1/chat/completions", r#"{"model":"m","stream":true}"#);
const OTHER_MODEL: (&str, &str) = ("/v1/chat/completions", r#"{"model":"n","stream":true}"#);
const MESSAGES: (&str, &str) = ("/v1/messages", r#"{"model":"m","stream":true}"#);

#[tokio::test]
async fn a_model_that_fails_is_not_called_any_more_and_all_others_are() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, &[]).await;
    // Errors inside of a 200: five of the ten that are the minimum.
    provider.set(Fault::ErrorAfter(2, InBand::Overloaded));
    for _ in 0..5 {
        assert_eq!(gateway.post(CHAT.0, CHAT.1).await.status, 200);
    }
    let refused = gateway.post(CHAT.0, CHAT.1).await;
    assert_eq!(refused.status, 503);
    assert!(refused.text().contains("circuit"), "{}", refused.text());
    let retry_after = refused.headers["retry-after"].to_str().unwrap();
    let retry_after: u64 = retry_after.parse().unwrap();
    assert!((25..=33).contains(&retry_after), "{retry_after}");
    assert_eq!(provider.counts().requests, 5);

    provider.set(Behavior::new());
    for (path, body) in [OTHER_MODEL, MESSAGES] {
        assert_eq!(gateway.post(path, body).await.status, 200, "{path}");
    }
    let metrics = get(gateway.addr, "/metrics").await.text();
    for line in [
        r#"breaker_circuits{provider="openai",of="model",state="open"} 1"#,
        r#"breaker_circuits{provider="openai",of="model",state="closed"} 1"#,
        r#"breaker_circuits{provider="openai",of="provider",state="closed"} 1"#,
        r#"breaker_refused_total{provider="openai",of="model"} 1"#,
    ] {
        assert!(
            metrics.lines().any(|other| other == line),
            "{line}\n{metrics}"
        );
    }
}

#[tokio::test]
async fn it_is_probed_back_by_environment() {
    let provider = SimulatedProvider::start().await.unwrap();
    let url = provider.url();
    let envs = [
        ("OPENAI_BASE_URL", url.as_str()),
        ("BREAKER_FAILURE_THRESHOLD", "2"),
        ("BREAKER_SUCCESS_THRESHOLD", "2"),
        ("BREAKER_TIMEOUT", "1.5"),
    ];
    let gateway = Binary::start(&envs, &[]).await;
    provider.set(Fault::Status(500));
    let status = async || post(gateway.addr, CHAT.0, "", CHAT.1).await.status;
    assert_eq!(
        (status().await, status().await, status().await),
        (500, 500, 503)
    );
    provider.set(Behavior::new());
    eventually("it is probed", async || status().await == 200).await;
    assert_eq!((status().await, status().await), (200, 200));
    let metrics = get(gateway.addr, "/metrics").await.text();
    let closed = r#"breaker_circuits{provider="openai",of="model",state="closed"} 1"#;
    assert!(metrics.contains(closed), "{metrics}");
}

#[tokio::test]
async fn five_failures_in_a_row_open_a_circuit_unless_that_is_switched_off() {
    for (flags, expected) in [
        (&[][..], [500, 500, 500, 500, 500, 503]),
        (&["--breaker-failure-threshold", "0"], [500; 6]),
    ] {
        let provider = SimulatedProvider::start().await.unwrap();
        let gateway = Running::over(&provider, flags).await;
        provider.set(Fault::Status(500));
        let mut statuses = Vec::new();
        for _ in 0..6 {
            statuses.push(gateway.post(CHAT.0, CHAT.1).await.status);
        }
        assert_eq!(statuses, expected, "{flags:?}");
    }
}

/// The credential of the gateway's owner closed nothing however often it was refused, since its account had no name.
#[tokio::test]
async fn a_configured_credential_that_is_refused_three_times_closes_its_account() {
    let provider = SimulatedProvider::start().await.unwrap();
    let url = provider.url();
    let envs = [
        ("OPENAI_BASE_URL", url.as_str()),
        ("OPENAI_API_KEY", "sk-revoked"),
        ("GATEWAY_KEYS", "none"),
    ];
    let gateway = Binary::start(&envs, &[]).await;
    provider.set(Fault::Status(401));
    let mut statuses = Vec::new();
    for model in 0..5 {
        let body = format!(r#"{{"model":"{model}"}}"#);
        statuses.push(post(gateway.addr, CHAT.0, "", &body).await.status);
    }
    assert_eq!(statuses, [401, 401, 401, 503, 503]);
    assert_eq!(provider.counts().requests, 3);
}

#[tokio::test]
async fn with_metrics_only_or_off_nothing_is_refused() {
    for mode in ["metrics-only", "off"] {
        let provider = SimulatedProvider::start().await.unwrap();
        let flags = ["--breaker", mode, "--breaker-failure-threshold", "1"];
        let gateway = Running::over(&provider, &flags).await;
        provider.set(Fault::Status(500));
        for _ in 0..20 {
            assert_eq!(gateway.post(CHAT.0, CHAT.1).await.status, 500, "{mode}");
        }
        let metrics = get(gateway.addr, "/metrics").await.text();
        let state = mode.replace('-', "_").replace("off", "disabled");
        let line = format!(r#"breaker_circuits{{provider="openai",of="model",state="{state}"}} 1"#);
        assert!(metrics.contains(&line), "{line}\n{metrics}");
    }
}

#[tokio::test]
async fn a_caller_without_money_opens_no_circuit_of_others() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, &[]).await;
    let call = async |key: &str| {
        let headers = format!("authorization: Bearer {key}\r\n");
        post(gateway.addr, CHAT.0, &headers, CHAT.1).await.status
    };
    provider.push(Fault::QuotaExhausted);
    assert_eq!(call("spent").await, 429);
    assert_eq!(call("spent").await, 503);
    assert_eq!(call("other").await, 200);
    assert_eq!(provider.counts().requests, 2);
}

#[tokio::test]
async fn a_missing_upstream_is_no_longer_called() {
    let gone = {
        let provider = SimulatedProvider::start().await.unwrap();
        let url = provider.url();
        provider.shutdown().await;
        url
    };
    let envs = [("OPENAI_BASE_URL", gone.as_str())];
    let gateway = Binary::start(&envs, &[]).await;
    let mut statuses = Vec::new();
    for model in 0..7 {
        let body = format!(r#"{{"model":"{model}"}}"#);
        statuses.push(post(gateway.addr, CHAT.0, "", &body).await.status);
    }
    // Whatever the model: it is the way to the provider.
    assert_eq!(statuses, [502, 502, 502, 502, 502, 503, 503]);
}
