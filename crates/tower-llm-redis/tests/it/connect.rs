//! Connecting and disconnecting.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers below are part of the tests"
)]

use std::time::Duration;

use crate::support::{
    MARGIN, PATIENCE, RECOVERY, TIMEOUT, connect, count, timed, until, until_served,
};
use tokio::{
    net::TcpListener,
    runtime::Handle,
    time::{Instant, timeout},
};
use tower_llm_redis::Redis;
use tower_llm_testkit::redis::{RedisCluster, RedisServer};

#[tokio::test]
async fn an_unreachable_server_is_an_error_within_the_timeout() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr();
    let address = free.unwrap().to_string();
    let patience = Duration::from_millis(200);
    let connecting = Redis::builder(format!("redis://{address}")).connect_timeout(patience);
    let from = Instant::now();
    let (result, took) = timed(connecting.connect()).await;
    let error = result.unwrap_err();
    assert!(error.is_unreachable() && !error.is_refused());
    let text = error.to_string();
    assert!(
        text.contains(&address) && text.contains("refused"),
        "{text}"
    );
    assert!(from.elapsed() >= patience, "{:?}", from.elapsed());
    assert!(took < patience + MARGIN, "{took:?}");
}

#[tokio::test]
async fn a_server_that_accepts_connections_and_never_answers_is_an_error_too() {
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", mute.local_addr().unwrap());
    let patience = Duration::from_millis(200);
    let connecting = Redis::builder(url).connect_timeout(patience).connect();
    let (result, took) = timed(connecting).await;
    assert!(result.unwrap_err().is_unreachable());
    assert!(took < patience + MARGIN, "{took:?}");
}

#[tokio::test]
async fn wrong_credentials_are_refused_soon_and_right_ones_accepted() {
    let server = RedisServer::start().await.unwrap();
    // Only the rights that are needed.
    let rights = ["+ping", "+eval", "+evalsha", "+incr"];
    let user = ["ACL", "SETUSER", "me", "on", ">p@ss", "~*"];
    server
        .command(&[&user[..], &rights].concat())
        .await
        .unwrap();
    let set = ["CONFIG", "SET", "requirepass", "secret"];
    server.command(&set).await.unwrap();
    let addr = server.addr();
    for wrong in ["", ":wrong@", "me:secret@", "nobody:secret@"] {
        let connecting = Redis::builder(format!("redis://{wrong}{addr}"))
            .connect_timeout(PATIENCE)
            .connect();
        let (result, took) = timed(connecting).await;
        let error = result.unwrap_err();
        assert!(error.is_refused() && !error.is_unreachable(), "{error}");
        assert!(took < RECOVERY, "{took:?}");
    }
    for right in [":secret@", "default:secret@", "me:p%40ss@"] {
        let redis = connect(format!("redis://{right}{addr}")).await;
        count(&redis, "a").await.unwrap();
    }
}

#[tokio::test]
async fn the_first_database_needs_no_right_and_a_missing_right_is_reported_at_once() {
    let server = RedisServer::start().await.unwrap();
    let rights = ["+ping", "+eval", "+evalsha", "+incr"];
    for (user, more) in [("some", "-select"), ("all", "+select"), ("none", "-ping")] {
        let user = ["ACL", "SETUSER", user, "on", ">pw", "~*"];
        let words = [&user[..], &rights, &[more]].concat();
        server.command(&words).await.unwrap();
    }
    let addr = server.addr();
    for may in ["some:pw@", "all:pw@"] {
        for database in ["", "/", "/0"] {
            let redis = connect(format!("redis://{may}{addr}{database}")).await;
            count(&redis, "a").await.unwrap();
        }
    }
    let redis = connect(format!("redis://all:pw@{addr}/1")).await;
    count(&redis, "a").await.unwrap();

    for (url, right) in [
        (format!("redis://some:pw@{addr}/1"), "'select'"),
        (format!("redis://none:pw@{addr}"), "'ping'"),
    ] {
        let connecting = Redis::builder(url).connect_timeout(PATIENCE).connect();
        let (result, took) = timed(connecting).await;
        let error = result.unwrap_err();
        assert!(error.is_refused() && !error.is_unreachable(), "{error}");
        let text = error.to_string();
        assert!(text.contains("NOPERM") && text.contains(right), "{text}");
        assert!(took < RECOVERY, "{took:?}");
    }
}

#[tokio::test]
async fn a_server_is_no_cluster_and_a_node_of_a_cluster_is_no_server() {
    let server = RedisServer::start().await.unwrap();
    let url = format!("redis-cluster://{}", server.addr());
    let connecting = Redis::builder(url).connect_timeout(PATIENCE).connect();
    let (result, took) = timed(connecting).await;
    let error = result.unwrap_err();
    assert!(error.is_refused(), "{error}");
    assert!(
        error.to_string().contains("cluster support disabled"),
        "{error}"
    );
    assert!(took < RECOVERY, "{took:?}");

    let cluster = RedisCluster::start(3).await.unwrap();
    let redis = connect(format!("redis://{}", cluster.addr(0))).await;
    // `foo` is the last node's.
    let error = count(&redis, "foo").await.unwrap_err();
    assert!(error.is_script() && redis.is_up());
    assert!(error.to_string().contains("redis-cluster"), "{error}");
}

#[tokio::test]
async fn a_client_built_before_the_server_connects_once_it_is_up() {
    let mut server = RedisServer::start().await.unwrap();
    server.kill().unwrap();
    let redis = Redis::builder(server.url()).build().unwrap();
    let (result, took) = timed(count(&redis, "a")).await;
    result.unwrap_err();
    assert!(took < TIMEOUT + MARGIN, "{took:?}");
    until(|| !redis.is_up()).await;

    server.restart().await.unwrap();
    let took = until_served(&redis, "a").await;
    assert!(took < RECOVERY, "{took:?}");
    assert_eq!(redis.health().outages, 1);
}

#[tokio::test]
async fn the_first_calls_of_a_new_client_wait_for_the_connection() {
    let server = RedisServer::start().await.unwrap();
    let redis = Redis::builder(server.url())
        .command_timeout(RECOVERY)
        .build()
        .unwrap();
    for n in 1..=3 {
        assert_eq!(count(&redis, "a").await.unwrap(), n);
    }
}

#[tokio::test]
async fn the_database_of_the_url_is_used() {
    let server = RedisServer::start().await.unwrap();
    let redis = connect(format!("{}/7", server.url())).await;
    count(&redis, "a").await.unwrap();
    let keys = server.command(&["INFO", "keyspace"]).await.unwrap();
    assert!(
        keys.contains("db7:keys=1") && !keys.contains("db0"),
        "{keys}"
    );
}

/// Connections of clients besides the one that asks.
async fn clients(server: &RedisServer) -> usize {
    let list = server.command(&["CLIENT", "LIST"]).await.unwrap();
    list.lines().count() - 1
}

#[tokio::test]
async fn clones_share_one_connection_which_ends_with_the_last() {
    let server = RedisServer::start().await.unwrap();
    let tasks = Handle::current().metrics();
    let before = tasks.num_alive_tasks();
    let redis = connect(server.url()).await;
    let clones: Vec<_> = (0..10).map(|_| redis.clone()).collect();
    for clone in &clones {
        count(clone, "a").await.unwrap();
    }
    assert_eq!(clients(&server).await, 1);
    assert!(tasks.num_alive_tasks() > before);

    drop(redis);
    count(&clones[0], "a").await.unwrap();
    drop(clones);
    until(|| tasks.num_alive_tasks() == before).await;
    let gone = async {
        while clients(&server).await > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, gone).await.unwrap();
}

#[tokio::test]
async fn a_client_dropped_during_an_outage_leaves_nothing_behind() {
    let tasks = Handle::current().metrics();
    let before = tasks.num_alive_tasks();
    let mut server = RedisServer::start().await.unwrap();
    let redis = connect(server.url()).await;
    server.freeze().unwrap();
    count(&redis, "a").await.unwrap_err();
    drop(redis);
    until(|| tasks.num_alive_tasks() == before).await;

    server.kill().unwrap();
    let redis = Redis::builder(server.url()).build().unwrap();
    until(|| !redis.is_up()).await;
    drop(redis);
    until(|| tasks.num_alive_tasks() == before).await;
}

#[tokio::test]
async fn a_clusters_connections_end_too() {
    let cluster = RedisCluster::start(3).await.unwrap();
    let tasks = Handle::current().metrics();
    let before = tasks.num_alive_tasks();
    let redis = connect(cluster.url()).await;
    count(&redis, "foo").await.unwrap();
    drop(redis);
    until(|| tasks.num_alive_tasks() == before).await;
}
