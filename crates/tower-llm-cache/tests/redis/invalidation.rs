//! What one process removes is gone in all.

use std::time::Duration;

use futures_util::FutureExt;
use tokio::join;
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

/// Since Redis 7, a new user has a right to no channel.
#[tokio::test]
async fn a_process_without_the_right_to_hear_of_removals_serves_nothing_from_memory() {
    let server = RedisServer::start().await.unwrap();
    let user = ["ACL", "SETUSER", "me", "on", ">pw", "~*", "+@all"];
    let words = [&user[..], &["resetchannels"]].concat();
    server.command(&words).await.unwrap();
    let two = Process::start(&server).await;
    let url = format!("redis://me:pw@{}", server.addr());
    let one = Process::of(builder(SharedCache::new(client(url).await)));

    // What it reads from Redis, and what it stores itself.
    let read = two.ask_and_store().await.key();
    assert!(one.ask().await.is_hit());
    let before = one.stats().shared_stored;
    let stored = one.send(question_to("m").await).await.key();
    one.until(|stats| stats.shared_stored > before).await;
    assert!(one.send(question_to("m").await).await.is_hit());
    let stats = one.stats();
    assert!(stats.memory_suspended && !two.stats().memory_suspended);
    assert_eq!((stats.entries, stats.hits, stats.shared_hits), (0, 2, 2));

    two.handle().invalidate(&read).await.unwrap();
    two.handle().invalidate(&stored).await.unwrap();
    assert!(one.cached().await.is_none());
    assert!(!one.send(question_to("m").await).await.is_hit());

    // A right that comes later is used.
    let words = ["ACL", "SETUSER", "me", "&tower-llm-cache"];
    server.command(&words).await.unwrap();
    one.until(|stats| !stats.memory_suspended).await;
    one.hold().await;
}

#[tokio::test]
async fn a_process_that_no_longer_hears_of_removals_serves_nothing_from_memory() {
    let server = RedisServer::start().await.unwrap();
    let user = ["ACL", "SETUSER", "me", "on", ">pw", "~*", "&*", "+@all"];
    server.command(&user).await.unwrap();
    let two = Process::start(&server).await;
    let url = format!("redis://me:pw@{}", server.addr());
    let one = builder(SharedCache::new(client(url).await));
    let one = Process::subscribed(&server, one).await;
    let key = two.ask_and_store().await.key();
    one.hold().await;
    // It ends the subscriptions of the user, too.
    let words = ["ACL", "SETUSER", "me", "resetchannels"];
    server.command(&words).await.unwrap();
    one.until(|stats| stats.memory_suspended).await;
    assert!(one.ask().await.is_hit());
    two.handle().invalidate(&key).await.unwrap();
    assert!(one.cached().await.is_none());
}

/// Nothing is shared then, so nothing can be removed by others.
#[tokio::test]
async fn without_redis_a_process_works_from_its_memory() {
    let mut server = RedisServer::start().await.unwrap();
    let redis = Redis::builder(server.url()).connect().await.unwrap();
    let one = Process::subscribed(&server, builder(SharedCache::new(redis))).await;
    one.ask_and_store().await;
    one.hold().await;
    server.kill().unwrap();
    // The connection for messages is lost; a call notices that Redis is unavailable.
    let before = one.stats();
    while one.stats().shared_failures == before.shared_failures {
        one.send(question_to("other").await).await;
    }
    one.hold().await;
    assert!(!one.stats().memory_suspended);
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

async fn in_namespace(server: &RedisServer, namespace: &str) -> Process {
    let builder = builder(shared(server).await).namespace(namespace);
    Process::of(builder)
}

#[tokio::test]
async fn removals_concern_one_namespace_alone() {
    let server = RedisServer::start().await.unwrap();
    let names = ["", "a", "ai", "a:b*{c}"];
    for namespace in names {
        let one = in_namespace(&server, namespace).await;
        assert!(!one.ask_and_store().await.is_hit(), "{namespace}");
    }
    let keys = async || {
        let keys = server.command(&["KEYS", "*"]).await.unwrap();
        let group = |key: &str| key.rsplit_once(':').unwrap().0.to_owned();
        let mut keys: Vec<_> = keys.lines().map(group).collect();
        keys.sort_unstable();
        keys
    };
    let all = [
        "a%3Ab%2A%7Bc%7D:ai:completion:gpt-5.4",
        "a:ai:completion:gpt-5.4",
        "ai:ai:completion:gpt-5.4",
        "ai:completion:gpt-5.4",
    ];
    assert_eq!(keys().await, all);

    let none = in_namespace(&server, "").await;
    assert_eq!(
        none.handle().invalidate_matching("*").await.unwrap().shared,
        1
    );
    assert_eq!(keys().await, all[..3]);
    none.ask_and_store().await;
    assert_eq!(none.handle().clear().await.unwrap().shared, 1);
    assert_eq!(keys().await, all[..3]);
    // Patterns leave the namespace out.
    let a = in_namespace(&server, "a").await;
    for (pattern, removed) in [("a:*", 0), ("*gpt?5*", 1)] {
        let all = a.handle().invalidate_matching(pattern).await.unwrap();
        assert_eq!(all.shared, removed, "{pattern}");
    }
    let odd = in_namespace(&server, names[3]).await;
    let key = odd.ask().await.key();
    assert_eq!(odd.handle().invalidate(&key).await.unwrap().shared, 1);
    assert_eq!(keys().await, ["ai:ai:completion:gpt-5.4"]);
    let named_ai = in_namespace(&server, "ai").await;
    assert_eq!(named_ai.handle().clear().await.unwrap().shared, 1);
}

#[tokio::test]
async fn the_memory_of_another_namespace_keeps_its_answers() {
    let server = RedisServer::start().await.unwrap();
    let process = async |namespace: &str| {
        let channel = format!("tower-llm-cache:{namespace}");
        let builder = builder(shared(&server).await).namespace(namespace);
        Process::subscribed_to(&server, &channel, builder).await
    };
    let (a, other_a, b) = (process("a").await, process("a").await, process("b").await);
    a.ask_and_store().await;
    a.send(question_to("fence").await).await;
    assert_eq!(a.stats().entries, 2);
    b.handle().clear().await.unwrap();
    // Messages arrive in their order.
    other_a
        .handle()
        .invalidate_matching("*fence*")
        .await
        .unwrap();
    let from = Stopwatch::start();
    while a.stats().entries > 1 {
        assert!(from.elapsed() < PATIENCE, "it does not hear");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let before = a.stats().shared_hits;
    assert!(a.ask().await.is_hit());
    assert_eq!(a.stats().shared_hits, before);
}

#[tokio::test]
async fn an_answer_that_is_read_during_its_removal_does_not_stay_in_memory() {
    let server = RedisServer::start().await.unwrap();
    let one = Process::start(&server).await;
    let two = Process::start(&server).await;
    let key = one.ask_and_store().await.key();
    // The removal has begun when the look-up is sent, which arrives in Redis first.
    let mut removing = Box::pin(two.handle().invalidate(&key));
    assert!(removing.as_mut().now_or_never().is_none());
    let mut asking = Box::pin(two.call(question().await));
    assert!(asking.as_mut().now_or_never().is_none());
    let (removed, answered) = join!(removing, asking);
    assert_eq!(removed.unwrap().shared, 1);
    // It was there when the caller asked.
    assert!(read(answered.unwrap()).await.unwrap().is_hit());
    assert_eq!(two.stats().entries, 0);
    assert!(two.cached().await.is_none());
}
