//! Warming the cache, from a file or by the administrator.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use gateway::{Gateway, Settings};
use serde_json::{Value, json};
use tower_llm_testkit::{Behavior, Fault, SimulatedProvider};

use crate::support::{Answer, Binary, Running, eventually, get, post, request, sample};

const KEYS: [&str; 4] = [
    "--openai-api-key",
    "ours",
    "--keys",
    "alice-alice-alice,bob-bob-bob-bob-bob",
];

const TOKEN: &str = "an-admin-token-of-many-characters";
const ADMIN: [&str; 4] = ["--admin-token", TOKEN, "--admin-listen", "127.0.0.1:0"];
const WARM: &str = "/admin/cache/warm";

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

/// A gateway with the keys and an administrator's listener.
async fn administered(provider: &SimulatedProvider, flags: &[&str]) -> Running {
    Running::over(provider, &[&KEYS[..], &ADMIN, flags].concat()).await
}

async fn admin(gateway: &Running, method: &str, body: &str) -> Answer {
    let token = format!("authorization: Bearer {TOKEN}\r\n");
    request(gateway.admin.unwrap(), method, WARM, &token, body).await
}

async fn warm(gateway: &Running, lines: &str) -> Value {
    let answer = admin(gateway, "POST", lines).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer.json()
}

/// The report, once no call runs.
async fn warmed(gateway: &Running) -> Value {
    let mut report = Value::Null;
    eventually("the calls have ended", async || {
        let answer = admin(gateway, "GET", "").await;
        assert_eq!(answer.status, 200);
        report = answer.json();
        report["running"] == false
    })
    .await;
    report
}

#[tokio::test]
async fn an_administrator_warms_the_cache_for_the_callers_that_the_lines_name() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = administered(&provider, &["--cache-warm-concurrency", "1"]).await;
    let nothing = json!({
        "running": false, "calls": 0, "answered": 0, "cached": 0, "failed": 0, "failures": [],
    });
    assert_eq!(warmed(&gateway).await, nothing);
    provider.push(Behavior::new());
    provider.push(Fault::Status(500));
    let lines = [
        line(1, "one"),
        "\n".into(),
        line(1, "two"),
        line(2, "one"),
        line(1, "one"),
    ];
    assert_eq!(warm(&gateway, &lines.concat()).await, json!({ "calls": 4 }));
    let report = warmed(&gateway).await;
    let failures =
        json!([{ "line": 3, "reason": "the response has status 500 Internal Server Error" }]);
    assert_eq!(
        report,
        json!({
            "running": false, "calls": 4, "answered": 2, "cached": 1, "failed": 1,
            "failures": failures,
        })
    );
    assert_eq!(provider.counts().requests, 3);
    assert!(is_hit(&gateway, "alice-alice-alice", "one").await);
    assert!(is_hit(&gateway, "bob-bob-bob-bob-bob", "one").await);
    assert!(!is_hit(&gateway, "bob-bob-bob-bob-bob", "two").await);
}

#[tokio::test]
async fn a_thousand_calls_show_their_progress_and_survive_failures() {
    const CALLS: usize = 1_000;
    let provider = SimulatedProvider::start().await.unwrap();
    let flags = [
        "--cache-warm-concurrency",
        "20",
        "--breaker",
        "off",
        "--ratelimit-learn",
        "off",
    ];
    let gateway = administered(&provider, &flags).await;
    provider.set(Fault::NoAnswer);
    let lines: String = (0..CALLS)
        .map(|number| line(1, &number.to_string()))
        .collect();
    assert_eq!(warm(&gateway, &lines).await, json!({ "calls": CALLS }));
    eventually("twenty are sent", async || provider.counts().requests == 20).await;
    assert_eq!(gateway.held(), 20);
    let report = admin(&gateway, "GET", "").await.json();
    assert_eq!(
        (&report["running"], &report["answered"]),
        (&json!(true), &json!(0))
    );
    gateway.stop().await;

    let gateway = administered(&provider, &flags).await;
    provider.set(Behavior::new());
    for _ in 0..150 {
        provider.push(Fault::Status(500));
    }
    warm(&gateway, &lines).await;
    let report = warmed(&gateway).await;
    assert_eq!(
        (&report["answered"], &report["failed"]),
        (&json!(CALLS - 150), &json!(150))
    );
    assert_eq!(report["failures"].as_array().unwrap().len(), 100);
    assert_eq!(stored(&gateway).await, (CALLS - 150) as f64);
    // Once more, for those that failed.
    warm(&gateway, &lines).await;
    let report = warmed(&gateway).await;
    assert_eq!(
        (&report["answered"], &report["cached"]),
        (&json!(150), &json!(CALLS - 150))
    );
}

#[tokio::test]
async fn one_warming_runs_at_a_time_and_does_not_outlive_the_gateway() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Fault::NoAnswer);
    let file = File::new(&line(1, "from a file"));
    let flags = ["--cache-warm", file.path(), "--shutdown-deadline", "60"];
    let gateway = administered(&provider, &flags).await;
    eventually("it is sent", async || provider.counts().requests == 1).await;
    let answer = admin(&gateway, "POST", &line(1, "one")).await;
    assert_eq!(answer.status, 409);
    assert!(
        answer.text().contains("GET /admin/cache/warm"),
        "{}",
        answer.text()
    );
    assert_eq!(admin(&gateway, "GET", "").await.json()["calls"], 1);
    assert_eq!(provider.counts().requests, 1);
    assert_eq!(gateway.stop().await.cut, 0);
}

#[tokio::test]
async fn lines_that_cannot_be_used_are_refused_before_any_call() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = administered(&provider, &[]).await;
    let long = " ".repeat(16 * 1024 * 1024 + 1);
    for (method, lines, status, says) in [
        (
            "POST",
            [line(1, "one"), line(9, "hidden")].concat(),
            400,
            "line 2 has a `caller`",
        ),
        ("POST", "hidden".to_owned(), 400, "line 1 is no JSON object"),
        ("POST", "\n\n".to_owned(), 400, "no calls"),
        ("POST", long, 413, "16777216"),
        ("DELETE", String::new(), 405, "GET or POST"),
    ] {
        let answer = admin(&gateway, method, &lines).await;
        assert_eq!(answer.status, status, "{says}");
        let text = answer.text();
        assert!(text.contains(says) && !text.contains("hidden"), "{text}");
    }
    let url = gateway.admin.unwrap();
    let answer = request(url, "POST", WARM, "", &line(1, "one")).await;
    assert_eq!(answer.status, 401);
    assert_eq!(warmed(&gateway).await["calls"], 0);
    assert_eq!(provider.counts().requests, 0);

    let off = ["--cache-completions", "off", "--cache-embeddings", "off"];
    let gateway = administered(&provider, &off).await;
    assert_eq!(admin(&gateway, "POST", &line(1, "one")).await.status, 409);
}
