//! Repeated answers, from outside.

use std::time::Duration;

use gateway::{Gateway, Settings};
use tower_llm_testkit::{Behavior, Fault, SimulatedProvider};

use crate::support::{Answer, Connection, Running, eventually, get, post};

const CHAT: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"model":"m","temperature":0,"stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"Why?"}]}"#;
const EMBEDDINGS: &str = r#"{"model":"e","input":["Why?"]}"#;

/// Answers that differ unless one is repeated.
async fn provider() -> SimulatedProvider {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Behavior::new().output_tokens(20));
    provider
}

async fn ask(gateway: &Running, caller: &str, path: &str, body: &str) -> Answer {
    let authorization = format!("authorization: Bearer {caller}\r\n");
    let answer = post(gateway.addr, path, &authorization, body).await;
    assert_eq!(answer.status, 200);
    assert!(answer.complete);
    answer
}

fn status(answer: &Answer) -> &str {
    answer.headers["cache-status"].to_str().unwrap()
}

#[tokio::test]
async fn what_asks_for_determinism_is_repeated_to_its_caller_alone() {
    let provider = provider().await;
    let gateway = Running::over(&provider, &[]).await;
    for (path, body) in [
        (CHAT, STREAM.to_owned()),
        (
            "/v1/messages",
            STREAM.replacen('{', r#"{"max_tokens":99,"#, 1),
        ),
        ("/v1/embeddings", EMBEDDINGS.to_owned()),
    ] {
        let before = provider.counts().requests;
        let first = ask(&gateway, "alice", path, &body).await;
        assert_eq!(status(&first), "tower-llm-cache; fwd=miss", "{path}");
        let again = ask(&gateway, "alice", path, &body).await;
        assert!(status(&again).starts_with("tower-llm-cache; hit"), "{path}");
        if path == "/v1/embeddings" {
            let (again, first) = (again.json(), first.json());
            assert_eq!(again["data"], first["data"]);
            // What was sent for it.
            assert_eq!(again["usage"]["total_tokens"], 0);
        } else {
            assert_eq!(again.body(), first.body(), "{path}");
            // The same answer in the other form.
            let unstreamed = body.replace(r#""stream":true"#, r#""stream":false"#);
            let object = ask(&gateway, "alice", path, &unstreamed).await;
            assert!(
                status(&object).starts_with("tower-llm-cache; hit"),
                "{path}"
            );
            assert!(object.json()["usage"].is_object(), "{path}");
        }
        assert_eq!(provider.counts().requests - before, 1, "{path}");

        ask(&gateway, "bob", path, &body).await;
        assert_eq!(provider.counts().requests - before, 2, "{path}");
    }
    let metrics = get(gateway.addr, "/metrics").await.text();
    for line in [
        r#"cache_calls_total{result="hit"} 5"#,
        r#"cache_calls_total{result="miss"} 6"#,
        r#"cache_stored_total 6"#,
        r#"cache_entries 6"#,
        r#"cache_memory_suspended 0"#,
        r#"cache_renewed_total{when="ahead"} 0"#,
        r#"cache_renewed_total{when="stale"} 0"#,
    ] {
        assert!(
            metrics.lines().any(|other| other == line),
            "{line}\n{metrics}"
        );
    }
    for labels in [
        r#"{result="hit",quantile="0.5"}"#,
        r#"{result="miss",quantile="0.99"}"#,
    ] {
        let name = format!("cache_seconds{labels} ");
        let sample = metrics.lines().find_map(|line| line.strip_prefix(&name));
        let seconds: f64 = sample.expect(&name).parse().unwrap();
        assert!(seconds > 0.0, "{name}{seconds}");
    }
}

#[tokio::test]
async fn an_answer_is_repeated_whatever_the_gateway_is_called() {
    let provider = provider().await;
    let gateway = Running::over(&provider, &[]).await;
    let request = |target: &str, host: &str| {
        format!(
            "POST {target}{CHAT} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer alice\r\ncontent-length: {}\r\n\r\n{STREAM}",
            STREAM.len()
        )
    };
    for (index, (target, host)) in [
        ("", "one.test"),
        ("", "two.test:8080"),
        ("http://three.test", "three.test"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut connection = Connection::open(gateway.addr).await;
        connection.write(request(target, host).as_bytes()).await;
        let answer = connection.answer(false).await.unwrap();
        assert_eq!(status(&answer).contains("; hit"), index > 0, "{host}");
    }
    assert_eq!(provider.counts().requests, 1);
}

#[tokio::test]
async fn a_question_that_is_asked_again_for_another_answer_gets_one() {
    let provider = provider().await;
    let gateway = Running::over(&provider, &[]).await;
    let body = STREAM.replace(r#""temperature":0,"#, "");
    for _ in 0..2 {
        let answer = ask(&gateway, "alice", CHAT, &body).await;
        assert_eq!(
            status(&answer),
            "tower-llm-cache; fwd=bypass; detail=not_deterministic"
        );
    }
    assert_eq!(provider.counts().requests, 2);

    let all = Running::over(&provider, &["--cache-completions", "all"]).await;
    for _ in 0..2 {
        ask(&all, "alice", CHAT, &body).await;
    }
    assert_eq!(provider.counts().requests, 3);
}

#[tokio::test]
async fn calls_without_a_credential_are_not_cached() {
    let provider = provider().await;
    let gateway = Running::over(&provider, &[]).await;
    for _ in 0..2 {
        assert_eq!(gateway.post(CHAT, STREAM).await.status, 200);
    }
    assert_eq!(provider.counts().requests, 2);
}

#[tokio::test]
async fn a_stale_answer_is_served_if_the_provider_fails() {
    let provider = provider().await;
    let flags = ["--cache-ttl", "1", "--cache-stale-if-error", "600"];
    let gateway = Running::over(&provider, &flags).await;
    let first = ask(&gateway, "alice", CHAT, STREAM).await;
    provider.set(Behavior::new().fault(Fault::Overloaded));
    // The provider is asked again once the second is over: until then each call is a hit.
    let stale = loop {
        let answer = ask(&gateway, "alice", CHAT, STREAM).await;
        assert_eq!((answer.status, answer.body()), (200, first.body()));
        if provider.counts().requests > 1 {
            break answer;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(status(&stale).starts_with("tower-llm-cache; hit; ttl=-"));
}

#[tokio::test]
async fn an_answer_that_its_caller_has_left_is_finished_if_set() {
    let provider = provider().await;
    let behavior = Behavior::new().output_tokens(20);
    provider.set(behavior.gap(Duration::from_millis(20)));
    let gateway = Running::over(&provider, &["--cache-finish-abandoned", "on"]).await;
    let mut caller = Connection::open(gateway.addr).await;
    let headers = "authorization: Bearer alice\r\n";
    caller.send("POST", CHAT, headers, STREAM).await;
    caller.head(false).await.unwrap();
    drop(caller);
    eventually("the answer is whole", async || {
        provider.counts().finished == 1
    })
    .await;
    eventually("it is stored", async || {
        status(&ask(&gateway, "alice", CHAT, STREAM).await).starts_with("tower-llm-cache; hit")
    })
    .await;
    let counts = provider.counts();
    assert_eq!((counts.requests, counts.closed_by_caller), (1, 0));
}

#[tokio::test]
async fn it_can_be_switched_off() {
    let provider = provider().await;
    let off = ["--cache-completions", "off", "--cache-embeddings", "off"];
    let gateway = Running::over(&provider, &off).await;
    for _ in 0..2 {
        let answer = ask(&gateway, "alice", CHAT, STREAM).await;
        assert!(!answer.headers.contains_key("cache-status"));
    }
    assert_eq!(provider.counts().requests, 2);
}

#[tokio::test]
async fn settings_that_cannot_work_are_named() {
    for (flags, name) in [
        (["--cache-completions", "some"], "--cache-completions"),
        (["--cache-ttl", "0"], "--cache-ttl"),
        (["--cache-max-bytes", "0"], "--cache-max-bytes"),
    ] {
        let error = Settings::from_flags(flags).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    let settings = Settings::from_flags(["--listen", "127.0.0.1:0", "--cache-ttl", "1000000000"]);
    let error = Gateway::bind(settings.unwrap()).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("--cache-ttl") && text.contains("ten years"),
        "{text}"
    );
}
