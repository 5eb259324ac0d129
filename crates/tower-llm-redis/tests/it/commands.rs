//! Plain commands on one server.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers below are part of the tests"
)]

use std::{collections::BTreeSet, time::Duration};

use crate::support::{MARGIN, TIMEOUT, connect, connect_patiently, timed, until, until_served};
use bytes::Bytes;
use tower_llm_redis::Redis;
use tower_llm_testkit::redis::RedisServer;

const MINUTE: Duration = Duration::from_secs(60);

async fn calls(server: &RedisServer, command: &str) -> u64 {
    let stats = server.command(&["INFO", "commandstats"]).await.unwrap();
    let line = stats.lines().find_map(|line| {
        let rest = line.strip_prefix(&format!("cmdstat_{command}:calls="))?;
        rest.split(',').next()?.parse().ok()
    });
    line.unwrap_or(0)
}

async fn found(redis: &Redis, pattern: &str) -> BTreeSet<String> {
    let (mut scan, mut all) = (redis.scan(pattern), BTreeSet::new());
    while let Some(keys) = scan.next().await {
        all.extend(keys.unwrap());
    }
    all
}

#[tokio::test]
async fn a_value_is_read_as_it_was_set_until_it_is_removed() {
    let server = RedisServer::start().await.unwrap();
    let redis = connect_patiently(server.url()).await;
    assert_eq!(redis.get("a").await.unwrap(), None);
    let binary: Bytes = (0..=255).cycle().take(100_000).collect::<Vec<u8>>().into();
    for value in [Bytes::new(), "message".into(), "\r\n-ERR".into(), binary] {
        redis.set("a", value.clone(), MINUTE).await.unwrap();
        assert_eq!(redis.get("a").await.unwrap(), Some(value));
    }
    let keys = || vec!["a".to_owned(), "b".to_owned()];
    assert_eq!(redis.remove(keys()).await.unwrap(), 1);
    assert_eq!(redis.remove(keys()).await.unwrap(), 0);
    assert_eq!(redis.remove(vec![]).await.unwrap(), 0);
    assert_eq!(redis.get("a").await.unwrap(), None);
}

#[tokio::test]
async fn a_value_expires_after_its_ttl_and_a_ttl_of_zero_is_one_millisecond() {
    let server = RedisServer::start().await.unwrap();
    let redis = connect_patiently(server.url()).await;
    redis.set("a", "1", MINUTE).await.unwrap();
    let left: u64 = server
        .command(&["PTTL", "a"])
        .await
        .unwrap()
        .parse()
        .unwrap();
    assert!((30_000..=60_000).contains(&left), "{left}");
    // Longer than the server can count.
    redis.set("a", "1", Duration::MAX).await.unwrap();
    for ttl in [Duration::ZERO, Duration::from_micros(1)] {
        redis.set("a", "1", ttl).await.unwrap();
        while redis.get("a").await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

#[tokio::test]
async fn a_scan_finds_every_key_that_matches_and_no_other() {
    let server = RedisServer::start().await.unwrap();
    let redis = connect_patiently(server.url()).await;
    assert_eq!(found(&redis, "*").await, BTreeSet::new());
    let names: BTreeSet<_> = (0..2_000).map(|n| format!("ai:completion:{n}")).collect();
    for name in &names {
        redis.set(name.as_str(), "1", MINUTE).await.unwrap();
    }
    for other in ["ai:embedding:1", "ai:completion", "x[y]"] {
        redis.set(other, "1", MINUTE).await.unwrap();
    }
    assert_eq!(found(&redis, "ai:completion:*").await, names);
    let one = BTreeSet::from(["x[y]".to_owned()]);
    assert_eq!(found(&redis, r"x\[y\]").await, one);
    // In pages, not at once.
    assert!(calls(&server, "scan").await >= 8);

    let removed = redis.remove(names.into_iter().collect()).await.unwrap();
    assert_eq!(removed, 2_000);
    assert_eq!(calls(&server, "unlink").await, 4);
    assert_eq!(found(&redis, "*").await.len(), 3);
}

#[tokio::test]
async fn a_key_of_another_type_is_an_error_and_the_server_stays_up() {
    let server = RedisServer::start().await.unwrap();
    let redis = connect_patiently(server.url()).await;
    server.command(&["LPUSH", "a", "1"]).await.unwrap();
    let error = redis.get("a").await.unwrap_err();
    assert!(error.is_script() && !error.is_down(), "{error:?}");
    assert!(error.to_string().contains("WRONGTYPE"), "{error}");
    assert!(redis.is_up());
}

#[tokio::test]
async fn commands_on_a_frozen_server_cost_one_timeout_in_all() {
    let server = RedisServer::start().await.unwrap();
    let redis = connect(server.url()).await;
    server.freeze().unwrap();
    let (result, took) = timed(redis.get("a")).await;
    assert!(result.unwrap_err().is_timeout());
    assert!(took < TIMEOUT + MARGIN, "{took:?}");
    let (_, took) = timed(async {
        for _ in 0..250 {
            assert!(redis.get("a").await.unwrap_err().is_down());
            assert!(redis.set("a", "1", MINUTE).await.unwrap_err().is_down());
            let removing = redis.remove(vec!["a".into()]);
            assert!(removing.await.unwrap_err().is_down());
            assert!(redis.publish("a", "1").await.unwrap_err().is_down());
            let mut scan = redis.scan("*");
            assert!(scan.next().await.unwrap().unwrap_err().is_down());
            assert!(scan.next().await.is_none());
        }
    })
    .await;
    assert!(took < MARGIN, "{took:?} for a thousand");
    assert_eq!(redis.health().failures, 1);
    server.thaw().unwrap();
    until_served(&redis, "n").await;
    redis.set("a", "1", MINUTE).await.unwrap();
}

#[tokio::test]
async fn commands_work_again_after_a_restart() {
    let mut server = RedisServer::start().await.unwrap();
    let redis = connect_patiently(server.url()).await;
    redis.set("a", "1", MINUTE).await.unwrap();
    server.kill().unwrap();
    until(|| !redis.is_up()).await;
    assert!(redis.get("a").await.unwrap_err().is_down());
    server.restart().await.unwrap();
    until_served(&redis, "n").await;
    // The server was empty.
    assert_eq!(redis.get("a").await.unwrap(), None);
}

#[tokio::test]
async fn a_scan_that_is_dropped_between_pages_goes_on_where_it_was() {
    let server = RedisServer::start().await.unwrap();
    let redis = connect_patiently(server.url()).await;
    for n in 0..1_500 {
        redis.set(n.to_string(), "1", MINUTE).await.unwrap();
    }
    let (mut scan, mut all) = (redis.scan("*"), BTreeSet::new());
    loop {
        // Polled once, and dropped.
        let polled = futures_util::future::poll_immediate(scan.next()).await;
        if let Some(Some(keys)) = polled {
            all.extend(keys.unwrap());
        }
        match scan.next().await {
            Some(keys) => all.extend(keys.unwrap()),
            None => break,
        }
    }
    assert_eq!(all.len(), 1_500);
}

#[tokio::test]
async fn every_command_can_be_spawned() {
    let server = RedisServer::start().await.unwrap();
    let redis = connect_patiently(server.url()).await;
    let all = tokio::spawn(async move {
        redis.set("a", "1", MINUTE).await?;
        redis.publish("a", "1").await?;
        let mut scan = redis.scan("*");
        while let Some(keys) = scan.next().await {
            redis.remove(keys?).await?;
        }
        redis.get("a").await
    });
    assert_eq!(all.await.unwrap().unwrap(), None);
}
