//! Several gateways that share limits and circuits through Redis.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use gateway::{Gateway, Settings, StartError};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};
use tower_llm_testkit::{
    Behavior, Fault, InBand, SimulatedProvider, Stopwatch, redis::RedisServer,
};

use crate::support::{Answer, Binary, Running, closed_port, eventually, get, post, sample};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const CHAT: (&str, &str) = (
    "/v1/chat/completions",
    r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"Why?"}]}"#,
);

/// Longer than a busy machine makes Redis wait.
const PATIENT: [&str; 2] = ["--redis-timeout", "10"];

/// Starts a gateway that shares through `redis`.
async fn sharing(provider: &SimulatedProvider, redis: &RedisServer, flags: &[&str]) -> Running {
    let url = redis.url();
    let mut all = vec!["--redis-url", url.as_str(), "--caller-secret", SECRET];
    all.extend(PATIENT);
    all.extend(flags);
    Running::over(provider, &all).await
}

/// Makes `calls` at once at each gateway as the same caller; returns how many of each were admitted, the others being
/// refused with 429.
async fn admitted<const N: usize>(gateways: [&Running; N], key: &str, calls: usize) -> [u64; N] {
    let authorization = format!("authorization: Bearer {key}\r\n");
    let of = async |gateway: &Running| {
        let calls = (0..calls).map(|_| post(gateway.addr, CHAT.0, &authorization, CHAT.1));
        let statuses = join_all(calls)
            .await
            .into_iter()
            .map(|answer| answer.status);
        let statuses: Vec<_> = statuses.collect();
        assert!(
            statuses.iter().all(|status| [200, 429].contains(status)),
            "{statuses:?}"
        );
        statuses
            .iter()
            .map(|status| u64::from(*status == 200))
            .sum()
    };
    let admitted = join_all(gateways.map(of)).await;
    admitted.try_into().unwrap()
}

// === limits ===

#[tokio::test]
async fn a_caller_has_one_limit_over_two_gateways() {
    let (provider, redis) = start().await;
    let limit = ["--ratelimit-caller-rpm", "10"];
    let one = sharing(&provider, &redis, &limit).await;
    let other = sharing(&provider, &redis, &limit).await;
    for caller in ["alice", "bob"] {
        let admitted = admitted([&one, &other], caller, 20).await;
        assert_eq!(admitted.iter().sum::<u64>(), 10, "{admitted:?}");
    }
    assert_eq!(provider.counts().requests, 20);
}

#[tokio::test]
async fn a_gateway_key_is_one_caller_wherever_it_stands_in_the_list() {
    let (provider, redis) = start().await;
    let flags = |keys| {
        let flags = [
            "--ratelimit-caller-rpm",
            "10",
            "--openai-api-key",
            "ours",
            "--keys",
        ];
        [&flags[..], &[keys]].concat()
    };
    let one = sharing(&provider, &redis, &flags("alice,bob")).await;
    let other = sharing(&provider, &redis, &flags("bob,alice")).await;
    assert_eq!(admitted([&one], "alice", 7).await, [7]);
    assert_eq!(admitted([&other], "alice", 7).await, [3]);
    assert_eq!(admitted([&other], "bob", 7).await, [7]);
}

#[tokio::test]
async fn a_provider_has_one_limit_over_two_gateways() {
    let (provider, redis) = start().await;
    let flags = ["--ratelimit-openai-rpm", "10", "--ratelimit-queue", "0"];
    let one = sharing(&provider, &redis, &flags).await;
    let other = sharing(&provider, &redis, &flags).await;
    let admitted = admitted([&one, &other], "alice", 20).await;
    assert_eq!(admitted.iter().sum::<u64>(), 10, "{admitted:?}");
    assert_eq!(provider.counts().requests, 10);
    // Other providers have limits of their own.
    assert_eq!(one.post("/v1/messages", CHAT.1).await.status, 200);
}

#[tokio::test]
async fn with_leases_two_gateways_never_exceed_a_limit_and_use_most_of_it() {
    let (provider, redis) = start().await;
    let flags = [
        "--ratelimit-caller-rpm",
        "160",
        "--ratelimit-shared",
        "lease",
    ];
    let one = sharing(&provider, &redis, &flags).await;
    let other = sharing(&provider, &redis, &flags).await;
    let mut sum = 0;
    for _ in 0..10 {
        sum += admitted([&one, &other], "alice", 20)
            .await
            .iter()
            .sum::<u64>();
    }
    // A lease is an eighth of a gateway's half; each of them may hold one.
    assert!((140..=160).contains(&sum), "{sum}");
    assert_eq!(provider.counts().requests, sum);
}

#[tokio::test]
async fn gateways_with_other_secrets_do_not_share() {
    let (provider, redis) = start().await;
    let url = redis.url();
    let flags = |secret| {
        [
            "--redis-url",
            &url,
            "--ratelimit-caller-rpm",
            "10",
            "--caller-secret",
            secret,
            "--redis-timeout",
            "10",
        ]
    };
    let one = Running::over(&provider, &flags(SECRET)).await;
    let other = Running::over(&provider, &flags(&SECRET.replace('a', "b"))).await;
    assert_eq!(admitted([&one, &other], "alice", 20).await, [10, 10]);
}

// === circuits ===

#[tokio::test]
async fn a_circuit_that_one_gateway_opens_is_open_in_the_other_within_a_second() {
    let (provider, redis) = start().await;
    let one = sharing(&provider, &redis, &[]).await;
    let other = sharing(&provider, &redis, &[]).await;
    provider.set(Fault::ErrorAfter(2, InBand::Overloaded));
    for _ in 0..5 {
        assert_eq!(one.post(CHAT.0, CHAT.1).await.status, 200);
    }
    assert_eq!(one.post(CHAT.0, CHAT.1).await.status, 503);

    let watch = Stopwatch::start();
    let open = r#"breaker_circuits{provider="openai",of="model",state="open"}"#;
    eventually("the other gateway has it", async || {
        sample(other.addr, open).await == Some(1.0)
    })
    .await;
    let took = watch.elapsed();
    // The maximum age of a copy, and the time of a script.
    assert!(took < Duration::from_millis(1_200), "{took:?}");

    assert_eq!(other.post(CHAT.0, CHAT.1).await.status, 503);
    assert_eq!(provider.counts().requests, 5);
}

#[tokio::test]
async fn a_credential_of_the_owner_s_is_an_account_of_its_own_in_shared_circuits() {
    let (provider, redis) = start().await;
    let flags = |key| ["--keys", "none", "--openai-api-key", key];
    let one = sharing(&provider, &redis, &flags("revoked")).await;
    provider.set(Fault::Status(401));
    for _ in 0..3 {
        assert_eq!(one.post(CHAT.0, CHAT.1).await.status, 401);
    }
    assert_eq!(one.post(CHAT.0, CHAT.1).await.status, 503);
    provider.set(Behavior::new());
    let accounts = r#"breaker_circuits{provider="openai",of="account",state="open"}"#;

    let same = sharing(&provider, &redis, &flags("revoked")).await;
    eventually("it is shared", async || {
        sample(same.addr, accounts).await == Some(1.0)
    })
    .await;
    assert_eq!(same.post(CHAT.0, CHAT.1).await.status, 503);
    // A gateway with the credential that replaces it.
    let replaced = sharing(&provider, &redis, &flags("new")).await;
    eventually("it is shared", async || {
        sample(replaced.addr, accounts).await == Some(1.0)
    })
    .await;
    assert_eq!(replaced.post(CHAT.0, CHAT.1).await.status, 200);
}

// === cached answers ===

const QUESTION: (&str, &str) = (
    "/v1/chat/completions",
    r#"{"model":"m","temperature":0,"stream":true,"messages":[{"role":"user","content":"Why?"}]}"#,
);
const SEALED: [&str; 2] = ["--cache-secret", SECRET];
const STORED: &str = r#"cache_shared_total{result="stored"}"#;

async fn ask(gateway: &Running, key: &str) -> Answer {
    let authorization = format!("authorization: Bearer {key}\r\n");
    let answer = post(gateway.addr, QUESTION.0, &authorization, QUESTION.1).await;
    assert_eq!(answer.status, 200);
    answer
}

fn is_hit(answer: &Answer) -> bool {
    answer.headers["cache-status"]
        .to_str()
        .unwrap()
        .contains("; hit")
}

async fn is_stored(gateway: &Running, answers: f64) {
    eventually("it is stored in Redis", async || {
        sample(gateway.addr, STORED).await == Some(answers)
    })
    .await;
}

/// The keys of all answers in Redis.
async fn keys(redis: &RedisServer) -> Vec<String> {
    let keys = redis.command(&["KEYS", "ai:*"]).await.unwrap();
    keys.lines()
        .filter(|key| !key.is_empty())
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn an_answer_that_one_gateway_cached_is_a_hit_in_the_other_for_the_same_caller() {
    let (provider, redis) = start().await;
    provider.set(Behavior::new().output_tokens(20));
    let flags = |keys| [&SEALED[..], &["--openai-api-key", "ours", "--keys", keys]].concat();
    let one = sharing(&provider, &redis, &flags("alice,bob")).await;
    let other = sharing(&provider, &redis, &flags("bob,alice")).await;
    let first = ask(&one, "alice").await;
    assert!(!is_hit(&first));
    is_stored(&one, 1.0).await;
    let again = ask(&other, "alice").await;
    assert!(is_hit(&again));
    assert_eq!(again.body(), first.body());
    assert_eq!(provider.counts().requests, 1);
    let hits = sample(other.addr, r#"cache_shared_total{result="hit"}"#).await;
    assert_eq!(hits, Some(1.0));
    // Bob is the first key there.
    assert!(!is_hit(&ask(&other, "bob").await));
    assert_eq!(provider.counts().requests, 2);
    // It outlives its gateway.
    one.stop().await;
    let restarted = sharing(&provider, &redis, &flags("alice,bob")).await;
    assert!(is_hit(&ask(&restarted, "alice").await));
}

#[tokio::test]
async fn an_answer_that_is_invalidated_at_one_gateway_is_gone_in_the_other() {
    let (provider, redis) = start().await;
    let admin = ["--admin-token", SECRET, "--admin-listen", "127.0.0.1:0"];
    let one = sharing(&provider, &redis, &admin).await;
    let other = sharing(&provider, &redis, &[]).await;
    ask(&one, "alice").await;
    is_stored(&one, 1.0).await;
    assert!(is_hit(&ask(&other, "alice").await));
    assert!(is_hit(&ask(&other, "alice").await));

    let authorization = format!("authorization: Bearer {SECRET}\r\n");
    let body = r#"{"pattern":"ai:completion:*"}"#;
    let admin = one.admin.unwrap();
    let answer = post(admin, "/admin/cache/invalidate", &authorization, body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["removed_from_redis"], 1);
    assert_eq!(keys(&redis).await, <[String; 0]>::default());
    eventually("the other has heard of it", async || {
        sample(other.addr, "cache_entries").await == Some(0.0)
    })
    .await;
    assert!(!is_hit(&ask(&other, "alice").await));
}

#[tokio::test]
async fn answers_in_redis_are_sealed_if_there_is_a_secret() {
    for (flags, is_readable) in [(&[][..], true), (&SEALED, false)] {
        let (provider, redis) = start().await;
        let gateway = sharing(&provider, &redis, flags).await;
        ask(&gateway, "alice").await;
        is_stored(&gateway, 1.0).await;
        let keys = keys(&redis).await;
        assert_eq!(keys.len(), 1);
        let find =
            "return string.find(redis.call('GET', KEYS[1]), 'chat.completion', 1, true) and 1 or 0";
        let found = redis.command(&["EVAL", find, "1", &keys[0]]).await.unwrap();
        assert_eq!(found.trim() == "1", is_readable, "{flags:?} {found}");

        // What is sealed otherwise is not used.
        let other = sharing(
            &provider,
            &redis,
            &["--cache-secret", &SECRET.replace('a', "b")],
        )
        .await;
        assert!(!is_hit(&ask(&other, "alice").await));
        let unreadable = r#"cache_shared_total{result="unreadable"}"#;
        assert_eq!(sample(other.addr, unreadable).await, Some(1.0));
    }
}

#[tokio::test]
async fn answers_stay_in_memory_if_they_are_not_to_be_shared() {
    let (provider, redis) = start().await;
    let off = ["--cache-shared", "off"];
    let one = sharing(&provider, &redis, &off).await;
    let other = sharing(&provider, &redis, &off).await;
    assert!(!is_hit(&ask(&one, "alice").await));
    assert!(is_hit(&ask(&one, "alice").await));
    assert!(!is_hit(&ask(&other, "alice").await));
    assert_eq!(keys(&redis).await, <[String; 0]>::default());
}

#[tokio::test]
async fn while_redis_is_down_each_gateway_answers_from_memory() {
    let (provider, mut redis) = start().await;
    let gateway = sharing(&provider, &redis, &[]).await;
    // When it begins to hear of removals, it empties its memory.
    eventually("it listens", async || {
        let listeners = ["PUBSUB", "NUMSUB", "tower-llm-cache"];
        redis
            .command(&listeners)
            .await
            .unwrap()
            .trim_end()
            .ends_with('1')
    })
    .await;
    ask(&gateway, "alice").await;
    is_stored(&gateway, 1.0).await;
    redis.kill().unwrap();
    assert!(is_hit(&ask(&gateway, "alice").await));
    assert!(!is_hit(&ask(&gateway, "bob").await));
    assert!(is_hit(&ask(&gateway, "bob").await));
    assert_eq!(provider.counts().requests, 2);
}

// === outages ===

#[tokio::test]
async fn while_redis_is_down_each_gateway_serves_its_part_of_the_limit() {
    let (provider, mut redis) = start().await;
    let flags = ["--ratelimit-caller-rpm", "10", "--replicas", "2"];
    let one = sharing(&provider, &redis, &flags).await;
    let other = sharing(&provider, &redis, &flags).await;
    assert_eq!(sample(one.addr, "redis_up").await, Some(1.0));

    redis.kill().unwrap();
    assert_eq!(admitted([&one, &other], "alice", 20).await, [5, 5]);
    for gateway in [&one, &other] {
        assert_eq!(sample(gateway.addr, "redis_up").await, Some(0.0));
        assert_eq!(sample(gateway.addr, "redis_outages_total").await, Some(1.0));
        let decided = sample(
            gateway.addr,
            r#"ratelimit_without_redis_total{of="caller"}"#,
        )
        .await;
        assert_eq!(decided, Some(20.0));
        // Another gateway would do no better.
        for path in ["/healthz", "/readyz"] {
            assert_eq!(get(gateway.addr, path).await.status, 200, "{path}");
        }
    }

    redis.restart().await.unwrap();
    for gateway in [&one, &other] {
        eventually("it is back", async || {
            sample(gateway.addr, "redis_up").await == Some(1.0)
        })
        .await;
    }
    let admitted = admitted([&one, &other], "bob", 20).await;
    assert_eq!(admitted.iter().sum::<u64>(), 10, "{admitted:?}");
}

#[tokio::test]
async fn the_limit_holds_while_gateways_are_killed_and_restarted_in_turn() {
    const LIMIT: u64 = 400;
    const WORKERS: u64 = 8;
    let (provider, redis) = start().await;
    let (redis_url, provider_url) = (redis.url(), provider.url());
    let limit = LIMIT.to_string();
    let envs = [
        ("REDIS_URL", redis_url.as_str()),
        ("GATEWAY_CALLER_SECRET", SECRET),
        ("REDIS_TIMEOUT", "10"),
        ("OPENAI_BASE_URL", &provider_url),
        ("RATELIMIT_CALLER_RPM", &limit),
        ("RUST_LOG", "off"),
    ];
    let mut gateways = [
        Binary::start(&envs, &[]).await,
        Binary::start(&envs, &[]).await,
    ];
    let addrs = Arc::new(Mutex::new([gateways[0].addr, gateways[1].addr]));
    let admitted = Arc::new(AtomicU64::new(0));
    let mut workers = JoinSet::new();
    for worker in 0..WORKERS as usize {
        let (addrs, admitted) = (Arc::clone(&addrs), Arc::clone(&admitted));
        workers.spawn(async move {
            // Until both refuse; an attempt at a gateway that is being killed has no status.
            let mut refused = [false; 2];
            for turn in worker.. {
                let addr = addrs.lock().unwrap()[turn % 2];
                let status = attempt(addr).await;
                if status == Some(200) {
                    admitted.fetch_add(1, Ordering::Relaxed);
                }
                refused[turn % 2] = status == Some(429);
                if refused == [true; 2] {
                    return;
                }
                if status.is_none() {
                    tokio::task::yield_now().await;
                }
            }
        });
    }

    for (turn, requests) in (0..6).zip((50..).step_by(50)) {
        eventually("the load goes on", async || {
            provider.counts().requests >= requests
        })
        .await;
        let gateway = &mut gateways[turn % 2];
        gateway.child.kill().await.unwrap();
        *gateway = Binary::start(&envs, &[]).await;
        addrs.lock().unwrap()[turn % 2] = gateway.addr;
    }
    while let Some(worker) = workers.join_next().await {
        worker.unwrap();
    }
    // A call that was charged when its gateway was killed has used a request, although it may not have been sent.
    let (sent, admitted) = (provider.counts().requests, admitted.load(Ordering::Relaxed));
    println!("{sent} calls of {LIMIT} sent, {admitted} answered");
    assert!((LIMIT - 6 * WORKERS..=LIMIT).contains(&sent), "{sent}");
    assert!(admitted <= sent, "{admitted} {sent}");
}

/// The status of the response; `None` if there is none, or only the beginning of one.
async fn attempt(addr: SocketAddr) -> Option<u16> {
    let (path, body) = CHAT;
    let mut stream = TcpStream::connect(addr).await.ok()?;
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: gateway.test\r\nauthorization: Bearer alice\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await.ok()?;
    let is_whole = response.ends_with("0\r\n\r\n") || !response.contains("chunked");
    is_whole
        .then(|| response.split(' ').nth(1)?.parse().ok())
        .flatten()
}

// === start ===

#[tokio::test]
async fn it_says_what_it_shares_and_no_secret() {
    let redis = RedisServer::start().await.unwrap();
    let password = ["CONFIG", "SET", "requirepass", "hidden-password"];
    redis.command(&password).await.unwrap();
    let url = redis.url().replace("redis://", "redis://:hidden-password@");
    let secret = format!("hidden-{SECRET}");
    let envs = [
        ("REDIS_URL", url.as_str()),
        ("GATEWAY_CALLER_SECRET", &secret),
        ("GATEWAY_CACHE_SECRET", &secret),
    ];
    let mut gateway = Binary::start(&envs, &[]).await;
    // It serves when it has said everything.
    assert_eq!(get(gateway.addr, "/readyz").await.status, 200);
    let said = gateway.said().await;
    let shared = "shared through Redis: limits (by script), circuits (at most 1s old), cached answers (sealed), as gateway-";
    assert!(
        said.contains(shared) && said.contains("among 2 gateways"),
        "{said}"
    );
    assert!(!said.contains("hidden") && !said.contains(SECRET), "{said}");

    let output = Binary::command(&envs, &["--help"]).output().await.unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(
        help.contains("REDIS_URL") && !help.contains("hidden"),
        "{help}"
    );
    let flags = ["--redis-url", url.as_str(), "--caller-secret", &secret];
    let gateway = Running::start(&flags).await;
    assert!(!gateway.debug.contains("hidden"), "{}", gateway.debug);
}

#[tokio::test]
async fn settings_that_cannot_work_are_named_and_not_shown() {
    let url = format!("redis://user:hidden@{}", closed_port().await);
    let long = SECRET;
    for (flags, names, is_setting) in [
        // A caller would be a different one in each gateway.
        (
            vec!["--redis-url", &url],
            vec!["--caller-secret: ", "--redis-url"],
            true,
        ),
        (
            vec!["--caller-secret", "hidden"],
            vec!["--caller-secret: ", "32"],
            true,
        ),
        (
            vec![
                "--caller-secret",
                long,
                "--redis-url",
                "http://user:hidden@store",
            ],
            vec!["--redis-url: ", "redis://"],
            true,
        ),
        (
            vec!["--caller-secret", long, "--redis-url", &url],
            vec!["could not be reached", "REDIS_REQUIRED"],
            false,
        ),
    ] {
        let error = bind(&flags).await.unwrap_err();
        let text = error.to_string();
        for name in names {
            assert!(text.contains(name), "{flags:?}: {text}");
        }
        assert_eq!(error.is_setting(), is_setting, "{text}");
        assert!(!text.contains("hidden") && !text.contains(SECRET), "{text}");
    }
    let redis = RedisServer::start().await.unwrap();
    let password = ["CONFIG", "SET", "requirepass", "right"];
    redis.command(&password).await.unwrap();
    let url = redis.url().replace("redis://", "redis://:hidden@");
    let error = bind(&["--caller-secret", long, "--redis-url", &url])
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        error.is_setting() && text.contains("refused") && !text.contains("hidden"),
        "{text}"
    );

    let envs = [("REDIS_URL", "redis://store"), ("RUST_LOG", "off")];
    let output = Binary::command(&envs, &[]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    let both = "error: GATEWAY_CALLER_SECRET: must be set, because REDIS_URL is";
    assert!(said.contains(both), "{said}");

    for (flag, value) in [
        ("--replicas", "0"),
        ("--replicas", "10001"),
        ("--ratelimit-shared", "perhaps"),
        ("--redis-required", "perhaps"),
        ("--redis-timeout", "0"),
    ] {
        let error = Settings::from_flags([flag, value]).unwrap_err().to_string();
        assert!(error.contains(flag) && error.contains(value), "{error}");
    }
}

async fn bind(flags: &[&str]) -> Result<Gateway, StartError> {
    let flags = [&["--listen", "127.0.0.1:0"], flags].concat();
    Gateway::bind(Settings::from_flags(flags).unwrap()).await
}

#[tokio::test]
async fn it_can_start_without_redis_and_connect_later() {
    let (provider, mut redis) = start().await;
    redis.kill().unwrap();
    let url = redis.url();
    // The first calls take that long.
    let timeout = ["--redis-timeout", "2", "--redis-required", "off"];
    let flags = ["--redis-url", &url, "--caller-secret", SECRET];
    let limit = ["--ratelimit-caller-rpm", "10"];
    let flags = [&flags[..], &timeout, &limit].concat();
    let notices = bind(&flags).await.unwrap().notices().concat();
    assert!(
        notices.contains("could not be reached") && notices.contains("connects later"),
        "{notices}"
    );
    let gateway = Running::over(&provider, &flags).await;
    assert_eq!(admitted([&gateway], "alice", 20).await, [5]);

    redis.restart().await.unwrap();
    eventually("it has connected", async || {
        sample(gateway.addr, "redis_up").await == Some(1.0)
    })
    .await;
    assert_eq!(admitted([&gateway], "bob", 20).await, [10]);
}

async fn start() -> (SimulatedProvider, RedisServer) {
    let provider = SimulatedProvider::start().await.unwrap();
    (provider, RedisServer::start().await.unwrap())
}
