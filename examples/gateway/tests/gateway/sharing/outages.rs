//! Redis is killed or frozen, or a gateway is killed.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};
use tower_llm_testkit::Stopwatch;

use super::{CHAT, SECRET, admitted, sharing, start};
use crate::support::{Binary, Running, eventually, get, post, sample};

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
async fn a_frozen_redis_costs_its_timeout_once_and_not_for_each_call() {
    const TIMEOUT: Duration = Duration::from_secs(1);
    /// For a hundred calls on a busy machine.
    const MARGIN: Duration = Duration::from_secs(5);
    let (provider, redis) = start().await;
    let url = redis.url();
    let flags = [
        ["--redis-url", &url],
        ["--redis-timeout", "1"],
        ["--caller-secret", SECRET],
        ["--ratelimit-caller-rpm", "1000"],
        ["--ratelimit-openai-rpm", "1000"],
        ["--cache-completions", "all"],
    ]
    .concat();
    let gateway = Running::over(&provider, &flags).await;
    let ask = async |number: usize| {
        let body =
            format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{number}"}}]}}"#);
        let authorization = "authorization: Bearer alice\r\n";
        let answer = post(gateway.addr, CHAT.0, authorization, &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.headers["cache-status"]
            .to_str()
            .unwrap()
            .contains("; hit")
    };
    let shared = |result| format!(r#"cache_shared_total{{result="{result}"}}"#);
    ask(0).await;
    eventually("it is stored", async || {
        sample(gateway.addr, &shared("stored")).await == Some(1.0)
    })
    .await;

    redis.freeze().unwrap();
    let from = Stopwatch::start();
    let hits = join_all((1..=50).map(ask)).await;
    assert!(!hits.contains(&true));
    for number in 51..=100 {
        assert!(!ask(number).await);
    }
    let took = from.elapsed();
    assert!(took < TIMEOUT + MARGIN, "{took:?}");
    assert_eq!(provider.counts().requests, 101);
    // From memory meanwhile.
    assert!(ask(100).await);
    assert_eq!(sample(gateway.addr, "redis_outages_total").await, Some(1.0));

    redis.thaw().unwrap();
    eventually("it is back", async || {
        sample(gateway.addr, "redis_up").await == Some(1.0)
    })
    .await;
    ask(101).await;
    eventually("answers are stored again", async || {
        sample(gateway.addr, &shared("stored")).await >= Some(2.0)
    })
    .await;
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
