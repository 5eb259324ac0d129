//! What an operator reads in the log.

use std::time::Duration;

use tower_llm_testkit::{Behavior, Fault, RetryAfter, SimulatedProvider};

use crate::support::{Binary, COMPLETE, Connection, SOON, closed_port, eventually, post, within};

const CHAT: &str = "/v1/chat/completions";

const BODY: &str = r#"{"model":"m-1","stream":true}"#;

/// The lines of the log that have all of `parts`.
fn lines<'a>(said: &'a str, parts: &[&str]) -> Vec<&'a str> {
    let has_all = |line: &&str| parts.iter().all(|part| line.contains(part));
    said.lines().filter(has_all).collect()
}

#[tokio::test]
async fn failures_are_logged_with_reason_provider_model_and_path() {
    let provider = SimulatedProvider::start().await.unwrap();
    let url = provider.url();
    let dead = format!("http://{}", closed_port().await);
    let envs = [
        ("OPENAI_BASE_URL", url.as_str()),
        ("ANTHROPIC_BASE_URL", &dead),
        ("BULKHEAD_OPENAI_CONCURRENT", "1"),
        ("BULKHEAD_DEFAULT_QUEUE", "0"),
        ("RATELIMIT_ANTHROPIC_RPM", "2"),
        ("RATELIMIT_QUEUE", "0"),
        ("RATELIMIT_LEARN", "off"),
        ("BREAKER_FAILURE_THRESHOLD", "6"),
        ("TIMEOUT_IDLE", "0.3"),
        ("GATEWAY_MAX_BODY_BYTES", "1000"),
    ];
    let mut gateway = Binary::start(&envs, &[]).await;
    let ask = async |path: &str, body: &str| post(gateway.addr, path, "", body).await;
    for fault in [
        Fault::Status(500),
        Fault::Throttled(RetryAfter::Seconds(20)),
        Fault::CutAfter(3),
        Fault::StallAfter(2),
    ] {
        provider.push(fault);
        ask(CHAT, BODY).await;
    }
    for status in [502, 502, 429] {
        let answer = ask("/v1/messages", r#"{"model":"m-2"}"#).await;
        assert_eq!(answer.status, status);
    }
    ask(CHAT, &"x".repeat(2_000)).await;
    ask("/nowhere", "").await;
    ask("/v1/../x?key=hidden", "").await;
    // One holds the only permit, and the next finds none.
    provider.set(
        Behavior::new()
            .output_tokens(50)
            .gap(Duration::from_millis(100)),
    );
    let mut holder = Connection::open(gateway.addr).await;
    holder.send("POST", CHAT, "", BODY).await;
    within(SOON, holder.head(false)).await.unwrap();
    assert_eq!(ask(CHAT, BODY).await.status, 503);
    drop(holder);
    provider.set(Fault::Status(500));
    eventually("the circuit is open", async || {
        ask(CHAT, BODY).await.text().contains("circuit")
    })
    .await;

    let said = gateway.said().await;
    let of_openai = |parts: &[&str]| {
        let all = [&["WARN", "openai", "m-1", CHAT, "POST"], parts].concat();
        assert!(!lines(&said, &all).is_empty(), "{parts:?} in {said}");
    };
    of_openai(&["call failed", "failed_status", "status=500"]);
    of_openai(&["call throttled by the provider", "retry_after=20.000s"]);
    of_openai(&["call failed", "failed_truncated"]);
    of_openai(&["call timed out", "failed_stalled"]);
    of_openai(&["call refused", "bulkhead full"]);
    of_openai(&["call refused", "circuit", "retry_after="]);
    let of_anthropic = ["WARN", "anthropic", "m-2", "/v1/messages"];
    let failed = [
        &of_anthropic[..],
        &["call failed", "failed_transport", "Connection refused"],
    ];
    assert_eq!(lines(&said, &failed.concat()).len(), 2, "{said}");
    let refused = [
        &of_anthropic[..],
        &["call refused", "ratelimit", "retry_after="],
    ];
    assert_eq!(lines(&said, &refused.concat()).len(), 1, "{said}");
    for parts in [
        ["request refused", "request_too_large", "1000", CHAT],
        ["request refused", "not_found", "404", "/nowhere"],
        ["request refused", "invalid_path", "400", "/v1/../x"],
        ["circuit opened", "openai", "m-1", "reason="],
    ] {
        assert_eq!(lines(&said, &parts).len(), 1, "{parts:?} in {said}");
    }
    assert!(!said.contains("hidden"), "{said}");
}

#[tokio::test]
async fn of_many_equal_lines_ten_are_written_and_the_others_counted() {
    let url = format!("http://{}", closed_port().await);
    let envs = [("OPENAI_API_KEY", "owner"), ("OPENAI_BASE_URL", &url)];
    let mut gateway = Binary::start(&envs, &[]).await;
    for _ in 0..200 {
        assert_eq!(post(gateway.addr, CHAT, "", "{}").await.status, 401);
    }
    assert_eq!(post(gateway.addr, "/v1/../x", "", "").await.status, 400);
    gateway.signal("INT").await;
    gateway.exit(SOON).await;
    let said = gateway.said().await;
    let written = lines(&said, &["request refused", "invalid_api_key"]);
    let left_out: usize = lines(&said, &["lines were left out"])
        .iter()
        .map(|line| {
            let (_, rest) = line.split_once("lines=").unwrap();
            rest.split(' ').next().unwrap().parse::<usize>().unwrap()
        })
        .sum();
    // The report's own line has the kind in it, and is none of it.
    let written = written
        .iter()
        .filter(|line| !line.contains("left out"))
        .count();
    assert!(written >= 10 && left_out > 0, "{said}");
    assert_eq!(written + left_out, 200, "{said}");
    // Another kind is not left out for it.
    assert_eq!(lines(&said, &["request refused", "invalid_path"]).len(), 1);
}

#[tokio::test]
async fn rust_log_sets_the_level() {
    for (level, warns, debugs) in [
        ("", true, false),
        ("info", true, false),
        ("debug", true, true),
        ("error", false, false),
        ("off", false, false),
        ("error,gateway=debug", true, true),
        ("gateway=off,info", false, false),
        // Not understood; it says so.
        ("gateway=loud", true, false),
    ] {
        let mut gateway = Binary::start(&[("RUST_LOG", level)], &[]).await;
        assert_eq!(post(gateway.addr, CHAT, "", COMPLETE).await.status, 200);
        assert_eq!(post(gateway.addr, "/nowhere", "", "").await.status, 404);
        let said = gateway.said().await;
        assert_eq!(said.contains("request refused"), warns, "{level}: {said}");
        let ended = lines(&said, &["DEBUG", "call ended", "success", "model=\"m\""]);
        assert_eq!(ended.len(), usize::from(debugs), "{level}: {said}");
        assert_eq!(said.contains("RUST_LOG"), level == "gateway=loud", "{said}");
    }
}
