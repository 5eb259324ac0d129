//! What one process removes is gone in all.

use std::time::Duration;

use tower_llm_cache::SharedCache;
use tower_llm_redis::Redis;
use tower_llm_testkit::{Stopwatch, redis::RedisServer};

use crate::support::*;

/// Waits until the question is cached nowhere that the process can see.
async fn until_gone(process: &Process) {
    let from = Stopwatch::start();
    while process.cached().await.is_some() {
        assert!(from.elapsed() < PATIENCE, "it is still there");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn an_answer_is_removed_from_redis_and_from_the_memory_of_every_process() {
    let server = RedisServer::start().await.unwrap();
    let (one, two) = (Process::start(&server).await, Process::start(&server).await);
    let key = one.ask_and_store().await.key();
    one.hold().await;
    two.hold().await;
    let removed = one.handle().invalidate(&key).await.unwrap();
    assert_eq!((removed.memory, removed.shared), (1, 1));
    assert_eq!(server.command(&["DBSIZE"]).await.unwrap(), "0");
    assert!(one.cached().await.is_none());
    until_gone(&two).await;
    let removed = one.handle().invalidate(&key).await.unwrap();
    assert_eq!((removed.memory, removed.shared), (0, 0));
}

#[tokio::test]
async fn a_pattern_removes_what_matches_in_every_process_and_leaves_the_rest() {
    let server = RedisServer::start().await.unwrap();
    let (one, two) = (Process::start(&server).await, Process::start(&server).await);
    for n in 0..600 {
        one.send(question_to(&format!("claude-{n}")).await).await;
    }
    one.ask().await;
    one.until(|stats| stats.shared_stored == 601).await;
    // Keys of others that look like ours.
    for foreign in ["ai:completion:claude:x", "other"] {
        server.command(&["SET", foreign, "1"]).await.unwrap();
    }
    two.hold().await;
    let removed = two.handle().invalidate_matching("ai:completion:claude*");
    assert_eq!(removed.await.unwrap().shared, 600);
    assert_eq!(server.command(&["DBSIZE"]).await.unwrap(), "3");
    assert!(two.cached().await.is_some());
    // A bracket means nothing special.
    let removed = two.handle().invalidate_matching("ai:[a-z]*").await.unwrap();
    assert_eq!((removed.memory, removed.shared), (0, 0));
    let removed = two.handle().clear().await.unwrap();
    assert_eq!(removed.shared, 1);
    assert_eq!(server.command(&["DBSIZE"]).await.unwrap(), "2");
    until_gone(&one).await;
}

#[tokio::test]
async fn an_answer_that_waits_to_be_stored_does_not_outlive_its_removal() {
    let server = RedisServer::start().await.unwrap();
    let one = Process::start(&server).await;
    one.ask_and_store().await;
    for round in 0..20 {
        // The answer has just been passed on; nothing waits for Redis.
        for n in 0..50 {
            one.send(question_to(&format!("m{round}-{n}")).await).await;
        }
        one.handle().clear().await.unwrap();
        assert_eq!(server.command(&["DBSIZE"]).await.unwrap(), "0", "{round}");
    }
}

#[tokio::test]
async fn a_process_that_may_have_missed_a_removal_empties_its_memory() {
    let mut server = RedisServer::start().await.unwrap();
    let one = Process::start(&server).await;
    one.ask_and_store().await;
    one.hold().await;
    server.restart().await.unwrap();
    // The server is empty, so it was the memory's.
    until_gone(&one).await;
}

#[tokio::test]
async fn without_redis_the_memory_is_emptied_and_the_error_says_so() {
    let mut server = RedisServer::start().await.unwrap();
    let redis = Redis::builder(server.url()).connect().await.unwrap();
    let one = Process::subscribed(&server, builder(SharedCache::new(redis))).await;
    let key = one.ask_and_store().await.key();
    one.hold().await;
    server.kill().unwrap();
    let error = one.handle().invalidate(&key).await.unwrap_err();
    assert_eq!(error.memory(), 1);
    assert!(std::error::Error::source(&error).is_some());
    assert!(one.cached().await.is_none());
}

#[tokio::test]
async fn a_message_that_cannot_be_read_empties_the_memory() {
    let server = RedisServer::start().await.unwrap();
    let one = Process::start(&server).await;
    let key = one.ask_and_store().await.key().to_string();
    one.hold().await;
    server.command(&["DEL", &key]).await.unwrap();
    assert!(one.cached().await.is_some());
    let words = ["PUBLISH", "tower-llm-cache", "2 of a later version"];
    server.command(&words).await.unwrap();
    until_gone(&one).await;
}

#[tokio::test]
async fn a_removal_can_be_spawned() {
    let server = RedisServer::start().await.unwrap();
    let one = Process::start(&server).await;
    let key = one.ask_and_store().await.key();
    let handle = one.handle().clone();
    let removing = tokio::spawn(async move {
        handle.invalidate(&key).await?;
        handle.invalidate_matching("ai:*").await?;
        handle.clear().await
    });
    assert_eq!(removing.await.unwrap().unwrap().shared, 0);
}
