//! Redis dies, freezes, restarts, forgets, or holds what is no answer.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio_test::task;
use tower::service_fn;
use tower_layer::Layer;
use tower_llm_cache::SharedCache;
use tower_llm_core::{OnEndLayer, Outcome};
use tower_llm_redis::Redis;
use tower_llm_testkit::{Stopwatch, redis::RedisServer};

use tower_service::Service;

use crate::support::*;

/// The command timeout unless set, and how much longer a call may take on a busy machine.
const TIMEOUT: Duration = Duration::from_millis(100);
const MARGIN: Duration = Duration::from_secs(1);

/// With the client's defaults.
async fn hasty(server: &RedisServer) -> Process {
    let redis = Redis::builder(server.url()).connect().await.unwrap();
    Process::of(builder(SharedCache::new(redis)))
}

#[tokio::test]
async fn a_frozen_server_costs_one_timeout_and_not_one_per_call() {
    let server = RedisServer::start().await.unwrap();
    let one = hasty(&server).await;
    one.ask_and_store().await;
    server.freeze().unwrap();
    let from = Stopwatch::start();
    for n in 0..100 {
        let got = one.send(question_to(&format!("m{n}")).await).await;
        assert!(!got.is_hit() && !got.frames.is_empty());
    }
    let took = from.elapsed();
    // A hundred calls, of which one has waited.
    assert!(took < TIMEOUT + MARGIN, "{took:?}");
    let stats = one.stats();
    assert_eq!((one.calls(), stats.shared_failures), (101, 100));
    one.until(|stats| stats.shared_not_stored == 100).await;
    // From memory meanwhile.
    assert!(one.send(question_to("m7").await).await.is_hit());

    server.thaw().unwrap();
    for n in 0.. {
        one.send(question_to(&format!("later{n}")).await).await;
        if one.stats().shared_stored > 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Else a token limit would keep what no call has used.
#[tokio::test]
async fn a_caller_that_leaves_during_a_look_up_has_cost_nothing() {
    let server = RedisServer::start().await.unwrap();
    let one = Process::start(&server).await;
    server.freeze().unwrap();
    let embeddings = r#"{"model":"m","input":["a","b"]}"#;
    for request in [
        question().await,
        described(
            post(CHAT).header("cache-control", "only-if-cached"),
            QUESTION,
        )
        .await,
        described(post("/v1/embeddings"), embeddings).await,
    ] {
        let outcome = Arc::new(Mutex::new(None));
        let note = Arc::clone(&outcome);
        let on_end = OnEndLayer::new(move |_, completion| {
            *note.lock().unwrap() = Some(completion.outcome);
        });
        let call = service_fn(|request| one.call(request));
        let mut calling = task::spawn(on_end.layer(call).call(request));
        assert!(calling.poll().is_pending());
        drop(calling);
        assert_eq!(*outcome.lock().unwrap(), Some(Outcome::Refused));
    }
    assert_eq!(one.calls(), 0);
}

#[tokio::test]
async fn calls_succeed_while_the_server_is_dead_and_share_again_after_a_restart() {
    let mut server = RedisServer::start().await.unwrap();
    let (one, two) = (Process::start(&server).await, Process::start(&server).await);
    one.ask_and_store().await;
    server.kill().unwrap();
    assert!(!two.ask().await.frames.is_empty());
    assert_eq!(two.calls(), 1);
    server.restart().await.unwrap();
    // It is empty, and what is stored now is shared.
    for n in 0.. {
        let model = format!("m{n}");
        one.send(question_to(&model).await).await;
        one.until(|stats| stats.shared_stored + stats.shared_not_stored >= n + 2)
            .await;
        if two.send(question_to(&model).await).await.is_hit() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_flush_is_a_miss() {
    let server = RedisServer::start().await.unwrap();
    let (one, two) = (Process::start(&server).await, Process::start(&server).await);
    one.ask_and_store().await;
    server.command(&["FLUSHALL"]).await.unwrap();
    assert!(!two.ask_and_store().await.is_hit());
    assert!(one.ask().await.is_hit());
}

#[tokio::test]
async fn what_is_no_answer_is_a_miss_and_is_replaced() {
    let server = RedisServer::start().await.unwrap();
    let one = Process::start(&server).await;
    let first = one.ask_and_store().await;
    let key = first.key().to_string();
    let other = one.send(question_to("other").await).await.key().to_string();
    one.until(|stats| stats.shared_stored == 2).await;
    let eval = async |script: &str| {
        let words = ["EVAL", script, "2", &key, &other];
        server.command(&words).await.unwrap();
    };
    for script in [
        "redis.call('SET', KEYS[1], 'garbage')",
        "redis.call('SET', KEYS[1], '')",
        // Of an older version.
        "redis.call('SETRANGE', KEYS[1], 4, '\\0')",
        // Another key's answer.
        "redis.call('SET', KEYS[1], redis.call('GET', KEYS[2]))",
        // Half of it.
        "local v = redis.call('GET', KEYS[1])
         redis.call('SET', KEYS[1], string.sub(v, 1, #v / 2))",
        // Cut in the middle, with the same length.
        "redis.call('SETRANGE', KEYS[1], 60, '\\0\\255\\0\\255')",
    ] {
        eval(script).await;
        let two = Process::start(&server).await;
        let got = two.ask_and_store().await;
        assert!(!got.is_hit(), "{script}: {got:?}");
        assert_eq!(got.frames, first.frames, "{script}");
        let stats = two.stats();
        assert_eq!((two.calls(), stats.shared_unreadable), (1, 1), "{script}");
        assert!(
            Process::start(&server).await.ask().await.is_hit(),
            "{script}"
        );
    }
    // A list is an error of the server, and as good as nothing; a SET replaces it.
    eval("redis.call('DEL', KEYS[1]); redis.call('LPUSH', KEYS[1], 'a')").await;
    let two = Process::start(&server).await;
    assert!(!two.ask_and_store().await.is_hit());
    assert_eq!(two.stats().shared_failures, 1);
}
