//! Administration, from outside.

use gateway::{Gateway, Settings, StartError};
use serde_json::{Value, json};
use tower_llm_testkit::{Behavior, Fault, SimulatedProvider};

use crate::support::{Answer, Binary, Connection, Running, eventually, get, post, request};

const TOKEN: &str = "an-admin-token-of-many-characters";
const ADMIN: [&str; 4] = ["--admin-token", TOKEN, "--admin-listen", "127.0.0.1:0"];

/// A deterministic call for a model.
async fn ask(gateway: &Running, model: &str) -> Answer {
    let body = format!(
        r#"{{"model":"{model}","temperature":0,"messages":[{{"role":"user","content":"Why?"}}]}}"#
    );
    let answer = post(
        gateway.addr,
        "/v1/chat/completions",
        "authorization: Bearer alice\r\n",
        &body,
    )
    .await;
    assert_eq!(answer.status, 200);
    answer
}

fn is_hit(answer: &Answer) -> bool {
    let status = answer.headers["cache-status"].to_str().unwrap();
    status.contains("; hit")
}

async fn admin(gateway: &Running, method: &str, path: &str, body: &str) -> Answer {
    let token = format!("authorization: Bearer {TOKEN}\r\n");
    request(gateway.admin.unwrap(), method, path, &token, body).await
}

async fn removed(gateway: &Running, path: &str, body: &str) -> Value {
    let answer = admin(gateway, "POST", path, body).await;
    assert_eq!(answer.status, 200, "{path} {body}: {}", answer.text());
    answer.json()["removed"].clone()
}

async fn stats(gateway: &Running) -> Value {
    let answer = admin(gateway, "GET", "/admin/cache/stats", "").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(answer.headers["cache-control"], "no-store");
    answer.json()
}

async fn start(flags: &[&str]) -> (SimulatedProvider, Running) {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Behavior::new().output_tokens(5));
    let gateway = Running::over(&provider, &[&ADMIN[..], flags].concat()).await;
    (provider, gateway)
}

/// A call whose model has a price, one that is answered from the cache, and one that the provider refuses.
#[tokio::test]
async fn a_snapshot_shows_calls_and_the_state_of_the_layers() {
    let flags = ["--ratelimit-openai-rpm", "60"];
    let (provider, gateway) = start(&flags).await;
    ask(&gateway, "gpt-5-mini").await;
    ask(&gateway, "gpt-5-mini").await;
    provider.set(Behavior::new().fault(Fault::Status(500)));
    let headers = "authorization: Bearer alice\r\n";
    let path = "/v1/chat/completions";
    let answer = post(gateway.addr, path, headers, r#"{"model":"mine"}"#).await;
    assert_eq!(answer.status, 500);

    let answer = admin(&gateway, "GET", "/admin/snapshot", "").await;
    assert_eq!(answer.status, 200);
    for secret in [TOKEN, "alice"] {
        assert!(!answer.text().contains(secret), "{secret}");
    }
    let snapshot = answer.json();
    let total = &snapshot["calls"]["total"];
    assert_eq!(total["in_flight"], 0);
    let calls = &total["since_start"];
    assert_eq!(
        calls["outcomes"],
        json!({ "success": 2, "failed_status": 1 })
    );
    assert_eq!(calls["cache_hits"], 1);
    assert_eq!(calls["tokens"]["output"], 5);
    assert_eq!(calls["saved_tokens"]["output"], 5);
    // The cache made no attempt.
    assert_eq!(
        calls["attempts"],
        json!({ "success": 1, "failed_status": 1 })
    );
    let rows = snapshot["calls"]["rows"].as_array().unwrap();
    let names = |row: &Value| (row["provider"].clone(), row["model"].clone());
    let rows: Vec<_> = rows.iter().map(names).collect();
    assert_eq!(
        rows,
        [
            (json!("openai"), json!("gpt-5-mini")),
            (json!("openai"), json!("other"))
        ]
    );
    assert_eq!(snapshot["cache"]["hits"], 1);
    let limits = snapshot["limits"].as_array().unwrap();
    let openai = limits.iter().find(|limit| limit["of"] == "openai").unwrap();
    let of = |name: &str| openai[name].clone();
    assert_eq!((of("unit"), of("amount")), (json!("requests"), json!(60)));
    assert_eq!((of("admitted"), of("remaining")), (json!(2), json!(58)));
    let permits = &snapshot["permits"][0];
    assert_eq!(
        (&permits["of"], &permits["in_flight"]),
        (&json!("openai"), &json!(0))
    );
    let circuits = snapshot["circuits"].as_array().unwrap();
    let circuits: Vec<_> = circuits
        .iter()
        .map(|of| (of["scope"].as_str().unwrap(), of["states"].clone()))
        .collect();
    let closed = |number: u64| json!({ "closed": number });
    let expected = [
        ("provider", closed(1)),
        ("model", closed(2)),
        ("account", closed(1)),
        ("account_and_model", closed(2)),
    ];
    assert_eq!(circuits, expected);

    let answer = admin(&gateway, "POST", "/admin/snapshot", "").await;
    assert_eq!(
        (answer.status, &answer.headers["allow"]),
        (405, &"GET".parse().unwrap())
    );
    let answer = get(gateway.admin.unwrap(), "/admin/snapshot").await;
    assert_eq!(answer.status, 401);
}

#[tokio::test]
async fn the_statistics_are_exact() {
    let (_provider, gateway) = start(&[]).await;
    for model in ["m", "m", "n"] {
        ask(&gateway, model).await;
    }
    let embeddings = r#"{"model":"e","input":["one","two","one"]}"#;
    let headers = "authorization: Bearer alice\r\n";
    let answer = post(gateway.addr, "/v1/embeddings", headers, embeddings).await;
    assert_eq!(answer.status, 200);
    // Not deterministic, and without a caller.
    let path = "/v1/chat/completions";
    post(gateway.addr, path, headers, r#"{"model":"m"}"#).await;
    post(gateway.addr, path, "", r#"{"model":"m","temperature":0}"#).await;

    let mut stats = stats(&gateway).await;
    let bytes = stats["bytes"].take().as_u64().unwrap();
    assert!(bytes > 100, "{bytes}");
    let mut bypassed = stats["bypassed"].take();
    let bypassed = bypassed.as_object_mut().unwrap();
    bypassed.retain(|_, calls| *calls != 0);
    assert_eq!(
        Value::Object(bypassed.clone()),
        json!({ "no_caller": 1, "not_deterministic": 1 })
    );
    for (of, calls) in [("hit_latency_ms", 1), ("miss_latency_ms", 3)] {
        let latency = stats[of].take();
        assert_eq!(latency["count"], calls, "{of}");
        for value in ["mean", "p50", "p99"] {
            let ms = latency[value].as_f64().unwrap();
            assert!(ms > 0.0, "{of} {value}: {ms}");
        }
    }
    let expected = json!({
        "hit_latency_ms": null,
        "miss_latency_ms": null,
        "hits": 1,
        "misses": 3,
        "collapsed": 0,
        "hit_ratio": 0.25,
        "bypassed": null,
        "items_reused": 1,
        "items_sent": 2,
        "stored": 4,
        "not_stored": 0,
        "stale": 0,
        "revalidations": 0,
        "refreshes": 0,
        "evicted": 0,
        "shared_hits": 0,
        "shared_stored": 0,
        "shared_not_stored": 0,
        "shared_failures": 0,
        "shared_unreadable": 0,
        "entries": 4,
        "memory_suspended": false,
        "bytes": null,
        "value_hits": 0,
        "value_loads": 0,
        "values": 0,
        "in_flight": 0,
    });
    assert_eq!(stats, expected);
}

#[tokio::test]
async fn a_completion_that_is_asked_for_is_renewed_before_it_expires() {
    let flags = ["--cache-ttl", "1", "--cache-refresh-per-minute", "60000"];
    let (provider, gateway) = start(&flags).await;
    eventually("it is renewed", async || {
        ask(&gateway, "m").await;
        stats(&gateway).await["refreshes"] != 0
    })
    .await;
    eventually("the new answer is stored", async || {
        stats(&gateway).await["in_flight"] == 0
    })
    .await;
    let stats = stats(&gateway).await;
    let of = |name: &str| stats[name].as_u64().unwrap();
    assert_eq!(of("misses") + of("refreshes"), provider.counts().requests);
}

#[tokio::test]
async fn answers_are_removed_by_key_by_pattern_and_all() {
    let (provider, gateway) = start(&["--cache-status", "key"]).await;
    let mut asked = ["claude-1", "claude-2", "gpt"];
    let status = ask(&gateway, asked[0]).await.headers["cache-status"].clone();
    let status = status.to_str().unwrap();
    let key = status
        .split('"')
        .find(|part| part.starts_with("ai:"))
        .unwrap();
    for model in &asked[1..] {
        ask(&gateway, model).await;
    }

    let by_key = json!({ "key": key }).to_string();
    assert_eq!(
        removed(&gateway, "/admin/cache/invalidate", &by_key).await,
        1
    );
    assert_eq!(
        removed(&gateway, "/admin/cache/invalidate", &by_key).await,
        0
    );
    assert!(!is_hit(&ask(&gateway, asked[0]).await));
    assert!(is_hit(&ask(&gateway, asked[1]).await));

    let claude = r#"{"pattern":"ai:completion:claude*"}"#;
    assert_eq!(
        removed(&gateway, "/admin/cache/invalidate", claude).await,
        2
    );
    assert!(is_hit(&ask(&gateway, asked[2]).await));
    // As guides write it.
    ask(&gateway, asked[0]).await;
    assert_eq!(removed(&gateway, "/v1/admin/cache/clear", claude).await, 1);
    assert_eq!(removed(&gateway, "/v1/admin/cache/cleanup", "").await, 0);
    assert_eq!(removed(&gateway, "/admin/cache/purge", "{}").await, 0);
    assert_eq!(removed(&gateway, "/admin/cache/clear", "").await, 1);
    asked.reverse();
    let before = provider.counts().requests;
    for model in asked {
        assert!(!is_hit(&ask(&gateway, model).await), "{model}");
    }
    assert_eq!(provider.counts().requests - before, 3);
}

#[tokio::test]
async fn without_the_token_nothing_is_told_or_done() {
    let (_provider, gateway) = start(&[]).await;
    ask(&gateway, "m").await;
    let almost = &TOKEN[1..];
    for (method, path) in [
        ("GET", "/admin/cache/stats"),
        ("POST", "/admin/cache/clear"),
        ("POST", "/v1/admin/cache/clear"),
        ("POST", "/admin/cache/purge"),
        // Which endpoints there are is not told either.
        ("POST", "/admin/cache/stats"),
        ("GET", "/"),
    ] {
        for headers in [
            String::new(),
            format!("authorization: Bearer {almost}\r\n"),
            format!("authorization: Bearer {TOKEN}x\r\n"),
            format!("authorization: Basic {almost}\r\n"),
            format!("x-api-key: {TOKEN}\r\n"),
            "authorization: Bearer alice\r\n".to_owned(),
        ] {
            let answer = request(gateway.admin.unwrap(), method, path, &headers, "").await;
            assert_eq!(answer.status, 401, "{method} {path} {headers}");
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
            assert_eq!(answer.headers["content-type"], "application/problem+json");
            let problem = answer.json();
            assert_eq!(problem["status"], 401);
            assert!(!problem.to_string().contains(TOKEN), "{problem}");
        }
    }
    assert!(is_hit(&ask(&gateway, "m").await));
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_and_changes_nothing() {
    let (_provider, gateway) = start(&[]).await;
    ask(&gateway, "m").await;
    let long = format!(r#"{{"pattern":"{}"}}"#, "x".repeat(64 * 1024));
    for (method, path, body, status, says) in [
        ("POST", "/admin/cache/stats", "", 405, "GET"),
        ("GET", "/admin/cache/clear", "", 405, "POST"),
        ("DELETE", "/admin/cache/invalidate", "", 405, "POST"),
        ("POST", "/admin/cache", "", 404, "endpoint"),
        ("GET", "/", "", 404, "endpoint"),
        ("GET", "/metrics", "", 404, "endpoint"),
        ("POST", "/admin/cache/clear", "{", 400, "JSON"),
        ("POST", "/admin/cache/clear", "[]", 400, "JSON"),
        (
            "POST",
            "/admin/cache/clear",
            r#"{"patern":"*"}"#,
            400,
            "patern",
        ),
        (
            "POST",
            "/admin/cache/clear",
            r#"{"pattern":null}"#,
            400,
            "pattern",
        ),
        (
            "POST",
            "/admin/cache/clear",
            r#"{"pattern":["*"]}"#,
            400,
            "pattern",
        ),
        ("POST", "/admin/cache/invalidate", "", 400, "pattern"),
        ("POST", "/admin/cache/invalidate", "{}", 400, "pattern"),
        (
            "POST",
            "/admin/cache/invalidate",
            r#"{"key":"ai:completion:m"}"#,
            400,
            "DIGEST",
        ),
        (
            "POST",
            "/admin/cache/invalidate",
            r#"{"pattern":"*","key":"ai:completion:m"}"#,
            400,
            "key",
        ),
        (
            "POST",
            "/admin/cache/purge",
            r#"{"pattern":"*"}"#,
            400,
            "expired",
        ),
        ("POST", "/admin/cache/clear", &long, 413, "65536"),
    ] {
        let answer = admin(&gateway, method, path, body).await;
        assert_eq!(answer.status, status, "{method} {path} {body}");
        assert_eq!(answer.headers["content-type"], "application/problem+json");
        let problem = answer.json();
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(says), "{method} {path} {body}: {problem}");
        if status == 405 {
            assert_eq!(answer.headers["allow"], says);
        }
    }
    assert!(is_hit(&ask(&gateway, "m").await));

    let off = ["--cache-completions", "off", "--cache-embeddings", "off"];
    let (_provider, gateway) = start(&off).await;
    let answer = admin(&gateway, "GET", "/admin/cache/stats", "").await;
    assert_eq!(answer.status, 409);
}

#[tokio::test]
async fn callers_find_no_administration_on_their_listener() {
    let (provider, gateway) = start(&[]).await;
    for path in [
        "/admin",
        "/admin/cache/stats",
        "//admin/cache/stats",
        "/v1/admin/cache/clear",
    ] {
        for method in ["GET", "POST"] {
            let headers = format!("authorization: Bearer {TOKEN}\r\n");
            let answer = request(gateway.addr, method, path, &headers, "").await;
            assert_eq!(answer.status, 404, "{method} {path}");
        }
    }
    // A token that is sent to the wrong port reaches no provider.
    assert_eq!(provider.counts().requests, 0);
    // And no call is served on the administrator's.
    let answer = admin(&gateway, "POST", "/v1/chat/completions", "{}").await;
    assert_eq!(answer.status, 404);
}

#[tokio::test]
async fn a_request_under_way_ends_before_the_gateway_has_stopped() {
    let (_provider, gateway) = start(&["--shutdown-deadline", "10"]).await;
    let addr = gateway.admin.unwrap();
    let mut slow = Connection::open(addr).await;
    let head = format!(
        "POST /admin/cache/clear HTTP/1.1\r\nhost: g\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n"
    );
    slow.write(head.as_bytes()).await;
    // It is in the handler, which has asked for the body.
    assert!(slow.more().await > 0);
    let mut idle = Connection::open(addr).await;
    idle.send("GET", "/", "", "").await;
    assert_eq!(idle.answer(false).await.unwrap().status, 401);

    let stopping = tokio::spawn(gateway.stop());
    // Idle connections are closed.
    assert_eq!(idle.more().await, 0);
    slow.write(b"{}").await;
    assert_eq!(slow.head(false).await.unwrap().0, 100);
    assert_eq!(slow.answer(false).await.unwrap().status, 200);
    assert_eq!(stopping.await.unwrap().cut, 0);
    assert!(tokio::net::TcpStream::connect(addr).await.is_err());
}

#[tokio::test]
async fn it_is_off_without_a_token_and_on_loopback_with_one() {
    let gateway = Running::start(&[]).await;
    assert_eq!(gateway.admin, None);

    let envs = [
        ("GATEWAY_ADMIN_TOKEN", TOKEN),
        ("GATEWAY_ADMIN_LISTEN", "0.0.0.0:0"),
        ("RUST_LOG", "trace"),
    ];
    let mut gateway = Binary::start(&envs, &[]).await;
    assert_eq!(get(gateway.addr, "/readyz").await.status, 200);
    let said = gateway.said().await;
    assert!(said.contains("administration on http://0.0.0.0:"), "{said}");
    assert!(
        said.contains("warning: GATEWAY_ADMIN_LISTEN: 0.0.0.0:"),
        "{said}"
    );
    assert!(!said.contains(TOKEN), "{said}");
    let output = Binary::command(&envs, &["--help"]).output().await.unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(
        help.contains("127.0.0.1:8081") && !help.contains(TOKEN),
        "{help}"
    );
}

#[tokio::test]
async fn settings_that_cannot_work_are_named_and_not_shown() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (flags, name, is_setting) in [
        (vec!["--admin-listen", "127.0.0.1:0"], "--admin-token", true),
        (
            vec!["--admin-token", "hidden"],
            "--admin-token: has fewer",
            true,
        ),
        (
            vec!["--admin-token", "hidden hidden hidden"],
            "--admin-token: has char",
            true,
        ),
        (
            vec![
                "--admin-token",
                "hidden-hidden-hidden",
                "--keys",
                "hidden-hidden-hidden",
            ],
            "--admin-token: is one of",
            true,
        ),
        (
            vec!["--admin-token", TOKEN, "--admin-listen", &taken],
            "choose another with --admin-listen",
            false,
        ),
    ] {
        let error = bind(&flags).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(name), "{flags:?}: {text}");
        assert_eq!(error.is_setting(), is_setting, "{text}");
        assert!(!text.contains("hidden") && !text.contains(TOKEN), "{text}");
    }
}

async fn bind(flags: &[&str]) -> Result<Gateway, StartError> {
    let flags = [&["--listen", "127.0.0.1:0"], flags].concat();
    Gateway::bind(Settings::from_flags(flags).unwrap()).await
}

#[tokio::test]
async fn the_token_is_not_in_debug_output() {
    let (_provider, gateway) = start(&[]).await;
    assert!(!gateway.debug.contains(TOKEN), "{}", gateway.debug);
}
