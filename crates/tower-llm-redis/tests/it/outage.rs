//! Sequential calls while the server dies, freezes, recovers, or cannot serve.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers below are part of the tests"
)]

use std::time::Duration;

use crate::support::{
    MARGIN, PATIENCE, RECOVERY, TIMEOUT, connect, connect_patiently, count, most_tries, run, timed,
    until, until_served,
};
use tokio::time::{Instant, sleep, timeout};
use tower_llm_redis::Redis;
use tower_llm_testkit::redis::RedisServer;

/// A thousand refused calls take no longer than a pause of a busy machine: none of them waits.
async fn refused_at_once(redis: &Redis) {
    let (_, took) = timed(async {
        for _ in 0..1_000 {
            let error = count(redis, "a").await.unwrap_err();
            assert!(error.is_down() && !error.may_have_run(), "{error:?}");
        }
    })
    .await;
    assert!(took < MARGIN, "{took:?} for a thousand");
}

#[tokio::test]
async fn a_frozen_server_costs_one_timeout_and_is_used_again_once_it_thaws() {
    let server = RedisServer::start().await.unwrap();
    let redis = connect(server.url()).await;
    server.freeze().unwrap();
    let from = Instant::now();
    let (result, took) = timed(count(&redis, "a")).await;
    let error = result.unwrap_err();
    assert!(from.elapsed() >= TIMEOUT, "{:?}", from.elapsed());
    assert!(error.is_timeout() && error.may_have_run() && !error.is_script());
    assert!(took < TIMEOUT + MARGIN, "{took:?}");
    refused_at_once(&redis).await;
    // Long enough for the old connection to be dropped and others to be tried.
    sleep(Duration::from_millis(1_500)).await;
    refused_at_once(&redis).await;
    let health = redis.health();
    assert!(!health.up && health.down_for.unwrap() > Duration::from_secs(1));
    assert_eq!((health.failures, health.outages), (1, 1));

    server.thaw().unwrap();
    let took = until_served(&redis, "b").await;
    assert!(took < RECOVERY, "{took:?}");
    assert!(redis.is_up());
    assert_eq!(redis.health().down_for, None);
    println!("frozen: served {took:?} after it went on");
}

#[tokio::test]
async fn a_killed_server_is_noticed_without_a_call_and_used_again_after_a_restart() {
    let mut server = RedisServer::start().await.unwrap();
    let redis = connect_patiently(server.url()).await;
    server.kill().unwrap();
    let took = until(|| !redis.is_up()).await;
    assert!(took < MARGIN, "{took:?}");
    refused_at_once(&redis).await;
    sleep(Duration::from_millis(500)).await;
    refused_at_once(&redis).await;

    server.restart().await.unwrap();
    let took = until_served(&redis, "a").await;
    assert!(took < RECOVERY, "{took:?}");
    let health = redis.health();
    // No call was lost: none was in flight.
    assert_eq!((health.failures, health.outages), (0, 1));
    println!("killed: served {took:?} after it was back");
}

#[tokio::test]
async fn calls_in_flight_when_the_server_dies_fail_together_and_early() {
    let mut server = RedisServer::start().await.unwrap();
    let redis = Redis::builder(server.url()).command_timeout(PATIENCE);
    let redis = redis.connect().await.unwrap();
    server.freeze().unwrap();
    let calls = (0..64).map(|_| {
        let redis = redis.clone();
        tokio::spawn(async move { count(&redis, "a").await })
    });
    let calls: Vec<_> = calls.collect();
    sleep(Duration::from_millis(50)).await;
    server.kill().unwrap();
    let (_, took) = timed(async {
        for call in calls {
            let error = call.await.unwrap().unwrap_err();
            assert!(error.may_have_run() && !error.is_timeout(), "{error:?}");
        }
    })
    .await;
    assert!(took < TIMEOUT + MARGIN, "{took:?}");
    let health = redis.health();
    assert_eq!((health.failures, health.outages), (64, 1));
}

#[tokio::test]
async fn one_slow_script_costs_the_others_next_to_nothing() {
    let server = RedisServer::start().await.unwrap();
    let redis = connect(server.url()).await;
    count(&redis, "a").await.unwrap();
    // Redis runs one script at a time: it is as good as frozen for 150 ms.
    let busy = "local t = redis.call('TIME')
        local till = t[1] * 1000000 + t[2] + 150000
        repeat t = redis.call('TIME') until t[1] * 1000000 + t[2] > till";
    let error = run(&redis, busy).await.unwrap_err();
    assert!(error.is_timeout());
    let took = until_served(&redis, "a").await;
    assert!(took < TIMEOUT + MARGIN, "{took:?}");
    // The connection was kept for calls whose responses were only late.
    let list = server.command(&["CLIENT", "LIST"]).await.unwrap();
    assert!(list.contains("cmd=evalsha"), "{list}");
    assert_eq!(redis.health().outages, 1);
}

#[tokio::test]
async fn no_more_than_max_pending_calls_wait() {
    let server = RedisServer::start().await.unwrap();
    let redis = Redis::builder(server.url()).max_pending(10);
    let redis = redis.connect().await.unwrap();
    server.freeze().unwrap();
    let calls = (0..64).map(|_| {
        let redis = redis.clone();
        tokio::spawn(async move { count(&redis, "a").await.unwrap_err() })
    });
    let calls: Vec<_> = calls.collect();
    let (mut waited, mut refused) = (0, 0);
    for call in calls {
        let error = timeout(PATIENCE, call).await.unwrap().unwrap();
        waited += u32::from(error.is_timeout());
        refused += u32::from(error.is_down());
    }
    assert_eq!((waited, refused), (10, 54));
    server.thaw().unwrap();
    // Every permit was given back.
    until_served(&redis, "a").await;
    for _ in 0..20 {
        count(&redis, "a").await.unwrap();
    }
}

#[tokio::test]
async fn a_read_only_server_is_unavailable_until_it_is_a_primary_again() {
    let server = RedisServer::start().await.unwrap();
    let redis = connect(server.url()).await;
    // Its primary does not exist, so that it remains a replica.
    let replica = ["REPLICAOF", "127.0.0.1", "1"];
    server.command(&replica).await.unwrap();
    let error = count(&redis, "a").await.unwrap_err();
    assert!(error.is_down() && !error.is_script() && !error.may_have_run());
    assert!(error.to_string().contains("READONLY"), "{error}");
    // It answers PINGs, so it is tried on a new connection, but only occasionally.
    let before = redis.health().outages;
    let mut refused = 0;
    let from = Instant::now();
    while from.elapsed() < Duration::from_millis(500) || refused < 100 {
        let error = count(&redis, "a").await.unwrap_err();
        refused += u32::from(error.is_down());
        tokio::task::yield_now().await;
    }
    let tried = redis.health().outages - before;
    let most = most_tries(from.elapsed());
    assert!((1..=most).contains(&tried), "{tried} and {refused}");

    server.command(&["REPLICAOF", "NO", "ONE"]).await.unwrap();
    let took = until_served(&redis, "a").await;
    assert!(took < RECOVERY, "{took:?}");
}

#[tokio::test]
async fn a_server_that_refuses_writes_serves_scripts_that_only_read() {
    let server = RedisServer::start().await.unwrap();
    let redis = connect_patiently(server.url()).await;
    let replicas = async |number| {
        let words = ["CONFIG", "SET", "min-replicas-to-write", number];
        server.command(&words).await.unwrap();
    };
    replicas("1").await;
    let error = count(&redis, "a").await.unwrap_err();
    assert!(error.is_down() && !error.is_script() && !error.may_have_run());
    assert!(error.to_string().contains("NOREPLICAS"), "{error}");
    // The error of a server whose disk is full.
    let error = run(&redis, "return redis.error_reply('MISCONF no disk')").await;
    let error = error.unwrap_err();
    assert!(error.is_down() && !error.is_script(), "{error}");
    run(&redis, "return redis.call('GET', 'a')").await.unwrap();
    let health = redis.health();
    assert_eq!((health.up, health.failures, health.outages), (true, 2, 0));
    replicas("0").await;
    count(&redis, "a").await.unwrap();
}

#[tokio::test]
async fn a_server_stuck_in_a_script_is_unavailable_until_the_script_is_killed() {
    let server = RedisServer::start_with(&["--busy-reply-threshold", "20"])
        .await
        .unwrap();
    let redis = connect(server.url()).await;
    let error = run(&redis, "while true do end").await.unwrap_err();
    assert!(error.is_timeout());
    sleep(Duration::from_millis(300)).await;
    refused_at_once(&redis).await;
    server.command(&["SCRIPT", "KILL"]).await.unwrap();
    let took = until_served(&redis, "a").await;
    assert!(took < RECOVERY, "{took:?}");
}
