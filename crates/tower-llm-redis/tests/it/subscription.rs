//! Messages between processes.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers below are part of the tests"
)]

use std::time::Duration;

use crate::support::{PATIENCE, connect, connect_patiently, count, until, until_served};
use tokio::time::timeout;
use tower_llm_redis::{Event, Redis, Subscription};
use tower_llm_testkit::redis::{RedisCluster, RedisServer};

async fn next(subscription: &mut Subscription) -> Event {
    timeout(PATIENCE, subscription.next()).await.unwrap()
}

async fn connections(server: &RedisServer) -> usize {
    let list = server.command(&["CLIENT", "LIST"]).await.unwrap();
    // The one that asks is not counted.
    list.lines().filter(|line| !line.is_empty()).count() - 1
}

fn message(text: &'static str) -> Event {
    Event::Message(text.into())
}

#[tokio::test]
async fn messages_arrive_in_order_and_of_one_channel() {
    let server = RedisServer::start().await.unwrap();
    let redis = connect_patiently(server.url()).await;
    let other = connect_patiently(server.url()).await;
    let mut subscription = redis.subscribe("a");
    assert_eq!(next(&mut subscription).await, Event::Lost);
    assert!(subscription.is_connected());
    for text in ["1", "\0\u{fffd}\r\n", ""] {
        other.publish("b", "other").await.unwrap();
        other.publish("a", text).await.unwrap();
        assert_eq!(next(&mut subscription).await, message(text));
    }
    let binary = vec![0xff_u8, 0, 0xfe];
    redis.publish("a", binary.clone()).await.unwrap();
    assert_eq!(next(&mut subscription).await, Event::Message(binary.into()));
}

#[tokio::test]
async fn a_restart_is_reported_as_a_gap_and_messages_arrive_again() {
    let mut server = RedisServer::start().await.unwrap();
    let redis = connect_patiently(server.url()).await;
    let mut subscription = redis.subscribe("a");
    assert_eq!(next(&mut subscription).await, Event::Lost);
    for _ in 0..3 {
        server.kill().unwrap();
        assert_eq!(next(&mut subscription).await, Event::Disconnected);
        assert!(!subscription.is_connected());
        server.restart().await.unwrap();
        assert_eq!(next(&mut subscription).await, Event::Lost);
        until_served(&redis, "n").await;
        redis.publish("a", "1").await.unwrap();
        assert_eq!(next(&mut subscription).await, message("1"));
    }
}

#[tokio::test]
async fn a_frozen_server_is_noticed_without_a_message() {
    let server = RedisServer::start().await.unwrap();
    let redis = Redis::builder(server.url()).connect_timeout(Duration::from_millis(500));
    let redis = redis.connect().await.unwrap();
    let mut subscription = redis.subscribe("a");
    assert_eq!(next(&mut subscription).await, Event::Lost);
    server.freeze().unwrap();
    assert_eq!(next(&mut subscription).await, Event::Disconnected);
    server.thaw().unwrap();
    assert_eq!(next(&mut subscription).await, Event::Lost);
    until_served(&redis, "n").await;
    redis.publish("a", "1").await.unwrap();
    assert_eq!(next(&mut subscription).await, message("1"));
}

#[tokio::test]
async fn messages_that_are_not_read_are_a_gap() {
    let server = RedisServer::start().await.unwrap();
    let redis = connect_patiently(server.url()).await;
    let mut subscription = redis.subscribe("a");
    assert_eq!(next(&mut subscription).await, Event::Lost);
    for n in 0..5_000 {
        redis.publish("a", n.to_string()).await.unwrap();
    }
    redis.publish("a", "last").await.unwrap();
    let (mut read, mut gaps) = (0, 0);
    // What was held is read; the gap is reported with it.
    while gaps == 0 {
        match next(&mut subscription).await {
            Event::Message(_) => read += 1,
            Event::Lost => gaps += 1,
            Event::Disconnected => panic!("it is connected"),
        }
        assert!(read <= 1_024 + 256, "more than is ever held");
    }
}

#[tokio::test]
async fn a_subscription_without_the_right_to_it_never_says_that_it_is_connected() {
    let server = RedisServer::start().await.unwrap();
    // Only the commands that are needed.
    let commands = [
        "+ping",
        "+subscribe",
        "+publish",
        "+eval",
        "+evalsha",
        "+incr",
    ];
    let user = ["ACL", "SETUSER", "me", "on", ">pw", "~*", "resetchannels"];
    let words = [&user[..], &commands].concat();
    server.command(&words).await.unwrap();
    let redis = connect(format!("redis://me:pw@{}", server.addr())).await;
    let mut subscription = redis.subscribe("a");
    let waited = timeout(Duration::from_millis(500), subscription.next()).await;
    assert!(waited.is_err() && !subscription.is_connected());
    assert!(redis.is_reachable());
    // Meanwhile everything else works, and a right that comes later is used.
    count(&redis, "n").await.unwrap();
    server
        .command(&["ACL", "SETUSER", "me", "&a"])
        .await
        .unwrap();
    assert_eq!(next(&mut subscription).await, Event::Lost);
    redis.publish("a", "1").await.unwrap();
    assert_eq!(next(&mut subscription).await, message("1"));
}

#[tokio::test]
async fn a_server_that_comes_late_is_found() {
    let mut server = RedisServer::start().await.unwrap();
    server.kill().unwrap();
    let redis = Redis::builder(server.url()).build().unwrap();
    let mut subscription = redis.subscribe("a");
    until(|| !redis.is_up()).await;
    assert!(!subscription.is_connected());
    server.restart().await.unwrap();
    assert_eq!(next(&mut subscription).await, Event::Lost);
}

#[tokio::test]
async fn its_connection_ends_when_it_is_dropped() {
    let server = RedisServer::start().await.unwrap();
    let redis = connect_patiently(server.url()).await;
    let mut subscription = redis.subscribe("a");
    assert_eq!(next(&mut subscription).await, Event::Lost);
    assert_eq!(connections(&server).await, 2);
    drop(subscription);
    while connections(&server).await > 1 {
        tokio::task::yield_now().await;
    }
    let subscription = redis.subscribe("a");
    until(|| subscription.is_connected()).await;
    // It holds the client.
    drop(redis);
    assert_eq!(connections(&server).await, 2);
    drop(subscription);
    while connections(&server).await > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn on_a_cluster_messages_reach_every_node_and_a_dead_one_is_replaced() {
    let mut cluster = RedisCluster::start(3).await.unwrap();
    let redis = connect_patiently(cluster.url()).await;
    let mut subscription = redis.subscribe("a");
    assert_eq!(next(&mut subscription).await, Event::Lost);
    for node in 0..3 {
        let words = ["PUBLISH", "a", "1"];
        cluster.command(node, &words).await.unwrap();
        assert_eq!(next(&mut subscription).await, message("1"), "node {node}");
    }
    // Its node is one of the two that die.
    for node in [0, 1] {
        cluster.kill(node).unwrap();
    }
    until(|| redis.health().outages >= 2).await;
    until(|| subscription.is_connected()).await;
    while !matches!(next(&mut subscription).await, Event::Message(_)) {
        let _ = cluster.command(2, &["PUBLISH", "a", "2"]).await;
    }
}
