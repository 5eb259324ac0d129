//! Warming the cache from a file.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use gateway::{Gateway, Settings};
use tower_llm_testkit::{Behavior, Fault, SimulatedProvider};

use crate::support::{Binary, Running, eventually, get, post, sample};

const KEYS: [&str; 4] = [
    "--openai-api-key",
    "ours",
    "--keys",
    "alice-alice-alice,bob-bob-bob-bob-bob",
];

/// A file that is removed when it is dropped.
struct File(PathBuf);

impl File {
    fn new(text: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "gateway-warm-{}-{}.jsonl",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let file = Self(std::env::temp_dir().join(name));
        fs::write(&file.0, text).unwrap();
        file
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn body(question: &str) -> String {
    format!(
        r#"{{"model":"m","temperature":0,"messages":[{{"role":"user","content":"{question}"}}]}}"#
    )
}

fn line(caller: usize, question: &str) -> String {
    let body = body(question);
    format!("{{\"caller\":{caller},\"path\":\"/v1/chat/completions\",\"body\":{body}}}\n")
}

async fn is_hit(gateway: &Running, key: &str, question: &str) -> bool {
    let authorization = format!("authorization: Bearer {key}\r\n");
    let answer = post(
        gateway.addr,
        "/v1/chat/completions",
        &authorization,
        &body(question),
    )
    .await;
    assert_eq!(answer.status, 200);
    answer.headers["cache-status"]
        .to_str()
        .unwrap()
        .contains("; hit")
}

async fn stored(gateway: &Running) -> f64 {
    sample(gateway.addr, "cache_stored_total")
        .await
        .unwrap_or(0.0)
}

#[tokio::test]
async fn an_answer_is_there_before_its_caller_asks_and_for_no_other() {
    let provider = SimulatedProvider::start().await.unwrap();
    let file = File::new(
        &[
            line(1, "one"),
            "\n".to_owned(),
            line(2, "two"),
            line(1, "one"),
        ]
        .concat(),
    );
    let flags = [&KEYS[..], &["--cache-warm", file.path()]].concat();
    let gateway = Running::over(&provider, &flags).await;
    eventually("it is warm", async || stored(&gateway).await == 2.0).await;
    assert_eq!(provider.counts().requests, 2);
    assert!(is_hit(&gateway, "alice-alice-alice", "one").await);
    assert!(is_hit(&gateway, "bob-bob-bob-bob-bob", "two").await);
    assert_eq!(provider.counts().requests, 2);
    assert!(!is_hit(&gateway, "bob-bob-bob-bob-bob", "one").await);
}

#[tokio::test]
async fn on_a_gateway_without_keys_the_caller_is_the_credential_it_sends() {
    let provider = SimulatedProvider::start().await.unwrap();
    let body_of_line = body("one");
    let text = format!(
        r#"{{"path":"/v1/chat/completions","headers":{{"authorization":"Bearer alice"}},"body":{body_of_line}}}"#
    );
    let file = File::new(&text);
    let gateway = Running::over(&provider, &["--cache-warm", file.path()]).await;
    eventually("it is warm", async || stored(&gateway).await == 1.0).await;
    assert!(is_hit(&gateway, "alice", "one").await);
    assert!(!is_hit(&gateway, "bob", "one").await);
}

#[tokio::test]
async fn no_more_calls_run_at_once_than_are_set_and_the_gateway_serves_meanwhile() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Fault::NoAnswer);
    let lines: String = (0..10).map(|number| line(1, &number.to_string())).collect();
    let file = File::new(&lines);
    let flags = ["--cache-warm", file.path(), "--cache-warm-concurrency", "3"];
    let gateway = Running::over(&provider, &[&KEYS[..], &flags].concat()).await;
    eventually("three are sent", async || provider.counts().requests == 3).await;
    assert_eq!(gateway.held(), 3);
    assert_eq!(get(gateway.addr, "/readyz").await.status, 200);
    provider.set(Behavior::new());
    assert!(!is_hit(&gateway, "bob-bob-bob-bob-bob", "own").await);
    assert_eq!(provider.counts().requests, 4);
    // It does not wait for them when it stops.
    assert_eq!(gateway.stop().await.cut, 0);
}

#[tokio::test]
async fn progress_and_failures_are_logged_without_keys() {
    let provider = SimulatedProvider::start().await.unwrap();
    let url = provider.url();
    provider.push(Fault::Status(500));
    let lines: String = (0..20).map(|number| line(1, &number.to_string())).collect();
    let file = File::new(&lines);
    let envs = [
        ("OPENAI_BASE_URL", url.as_str()),
        ("OPENAI_API_KEY", "ours"),
        ("GATEWAY_KEYS", KEYS[3]),
        ("CACHE_WARM", file.path()),
        ("CACHE_WARM_CONCURRENCY", "1"),
    ];
    let mut gateway = Binary::start(&envs, &[]).await;
    let addr = gateway.addr;
    eventually("it is warm", async || {
        sample(addr, "cache_stored_total").await == Some(19.0)
    })
    .await;
    // The last line of the log follows the last answer.
    assert_eq!(get(addr, "/readyz").await.status, 200);
    let said = gateway.said().await;
    for part in ["line=1 ", "status 500", "ended=10 calls=20 failed=1"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(
        said.matches("a call to warm the cache failed").count(),
        1,
        "{said}"
    );
    assert!(!said.contains("alice"), "{said}");
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_named_with_its_line() {
    let bad = File::new(&[&line(1, "one"), "\n", &line(9, "hidden")].concat());
    for (file, flags, says) in [
        ("/nowhere/warm.jsonl", &KEYS[..], "/nowhere/warm.jsonl"),
        (bad.path(), &KEYS, "line 3 has a `caller`"),
        (bad.path(), &[], "line 1 has a `caller`, but"),
        (
            bad.path(),
            &["--cache-completions", "off", "--cache-embeddings", "off"],
            "off",
        ),
    ] {
        let flags = [&["--listen", "127.0.0.1:0", "--cache-warm", file], flags].concat();
        let settings = Settings::from_flags(flags).unwrap();
        let error = Gateway::bind(settings).await.unwrap_err();
        let text = error.to_string();
        assert!(
            error.is_setting() && text.starts_with("--cache-warm: "),
            "{text}"
        );
        assert!(text.contains(says) && !text.contains("hidden"), "{text}");
    }
    let error = Settings::from_flags(["--cache-warm-concurrency", "0"]).unwrap_err();
    assert!(error.to_string().contains("--cache-warm-concurrency"));
}
