//! What one process has stored is a hit in another.

use std::{num::NonZeroU32, time::Duration};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tower_llm_cache::{CacheLayer, Memory, Policy, RefreshAhead, Scope, SharedCache};
use tower_llm_core::Served;
use tower_llm_testkit::{Stopwatch, redis::RedisServer};

use crate::support::*;

#[tokio::test]
async fn an_answer_of_one_process_is_a_hit_in_another_frame_for_frame() {
    let server = RedisServer::start().await.unwrap();
    let (one, two) = (Process::start(&server).await, Process::start(&server).await);
    let first = one.ask_and_store().await;
    assert!(
        first.status.starts_with("tower-llm-cache; fwd=miss"),
        "{first:?}"
    );
    let again = two.ask().await;
    assert!(again.is_hit() && again.age.is_some(), "{again:?}");
    assert_eq!(again.served, Some(Served::Hit));
    assert_eq!(again.frames, first.frames);
    assert!(again.frames.len() > 10);
    assert_eq!((one.calls(), two.calls()), (1, 0));

    let stats = two.stats();
    assert_eq!((stats.hits, stats.shared_hits, stats.misses), (1, 1, 0));
    // Nothing is stored a second time.
    assert_eq!(
        (stats.stored, stats.not_stored, stats.shared_stored),
        (0, 0, 0)
    );
    let stats = one.stats();
    assert_eq!((stats.misses, stats.stored, stats.shared_stored), (1, 1, 1));
    // From memory from then on.
    two.hold().await;
    assert_eq!(two.calls(), 0);
}

#[tokio::test]
async fn a_value_stands_under_its_key_and_expires_a_little_early() {
    let server = RedisServer::start().await.unwrap();
    let one = Process::start(&server).await;
    let key = one.ask_and_store().await.key().to_string();
    assert!(key.starts_with("ai:completion:gpt-5.4:"), "{key}");
    assert_eq!(server.command(&["KEYS", "*"]).await.unwrap(), key);
    let left = server.command(&["PTTL", &key]).await.unwrap();
    let left: u64 = left.parse().unwrap();
    assert!((1_600_000..=1_800_000).contains(&left), "{left}");
}

/// A path of a stream, the same without one, and a request.
fn dialects() -> [([&'static str; 2], Value); 4] {
    let messages = json!([{"role": "user", "content": "hi"}]);
    let gemini = "/v1beta/models/sim-1:streamGenerateContent?alt=sse";
    [
        (
            ["/v1/chat/completions"; 2],
            // A stream without usage serves no caller that does not stream.
            json!({"model": "sim-1", "messages": messages, "stream_options": {"include_usage": true}}),
        ),
        (
            ["/v1/responses"; 2],
            json!({"model": "sim-1", "input": "hi", "store": false}),
        ),
        (
            ["/v1/messages"; 2],
            json!({"model": "sim-1", "messages": messages, "max_tokens": 500}),
        ),
        (
            [gemini, "/v1beta/models/sim-1:generateContent"],
            json!({"contents": [{"parts": [{"text": "hi"}]}]}),
        ),
    ]
}

async fn request(path: &str, mut body: Value, is_streamed: bool) -> Sent {
    if !path.contains("models/") {
        body["stream"] = is_streamed.into();
    }
    described(post(path), &body.to_string()).await
}

#[tokio::test]
async fn in_every_dialect_either_form_serves_both_in_another_process() {
    let server = RedisServer::start().await.unwrap();
    for (paths, body) in dialects() {
        for is_streamed in [true, false] {
            let one = Process::start(&server).await;
            let two = Process::start(&server).await;
            let (stored, other) = if is_streamed { (0, 1) } else { (1, 0) };
            let first = request(paths[stored], body.clone(), is_streamed).await;
            let first = one.send(first).await;
            one.until(|stats| stats.shared_stored == 1).await;
            let same = request(paths[stored], body.clone(), is_streamed).await;
            let same = two.send(same).await;
            assert_eq!(same.body(), first.body(), "{}", paths[0]);
            let converted = request(paths[other], body.clone(), !is_streamed).await;
            let converted = two.send(converted).await;
            assert!(converted.is_hit(), "{}: {converted:?}", paths[0]);
            let is_stream = converted.content_type.starts_with("text/event-stream");
            assert_eq!(is_stream, !is_streamed, "{}", paths[0]);
            assert_eq!((one.calls(), two.calls()), (1, 0), "{}", paths[0]);
            one.handle().clear().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_thousand_identical_callers_make_one_lookup_and_no_call() {
    let server = RedisServer::start().await.unwrap();
    let (one, two) = (Process::start(&server).await, Process::start(&server).await);
    let first = one.ask_and_store().await;
    let before = commands(&server, "get").await;
    let mut calls = Vec::new();
    for _ in 0..1_000 {
        calls.push(two.call(question().await));
    }
    let responses = join_all(calls).await;
    assert_eq!(commands(&server, "get").await - before, 1);
    for response in responses {
        let got = read(response.unwrap()).await.unwrap();
        assert!(got.is_hit() && got.frames == first.frames, "{got:?}");
        assert_eq!(got.served, Some(Served::Hit));
    }
    assert_eq!(two.calls(), 0);
    let stats = two.stats();
    assert_eq!((stats.hits, stats.shared_hits), (1_000, 1_000));
    assert_eq!((stats.misses, stats.collapsed), (0, 0));
    assert_eq!(
        (stats.hit_latency.count, stats.miss_latency.count),
        (1_000, 0)
    );
}

#[tokio::test]
async fn a_thousand_identical_callers_of_what_is_not_stored_make_one_lookup_and_one_call() {
    let server = RedisServer::start().await.unwrap();
    let one = Process::start(&server).await;
    let mut calls = Vec::new();
    for _ in 0..1_000 {
        calls.push(one.call(question().await));
    }
    for response in join_all(calls).await {
        read(response.unwrap()).await.unwrap();
    }
    assert_eq!((commands(&server, "get").await, one.calls()), (1, 1));
    let stats = one.stats();
    assert_eq!((stats.misses, stats.collapsed, stats.hits), (1, 999, 0));
}

#[tokio::test]
async fn directives_hold_for_redis_too() {
    let server = RedisServer::start().await.unwrap();
    let (one, two) = (Process::start(&server).await, Process::start(&server).await);
    let says =
        async |directive| described(post(CHAT).header("cache-control", directive), QUESTION).await;
    assert!(two.cached().await.is_none());
    one.ask_and_store().await;
    let cached = two.cached().await.expect("it is in Redis");
    assert!(cached.is_hit() && cached.served == Some(Served::Hit));
    let before = commands(&server, "get").await;
    let new = two.send(says("no-cache").await).await;
    assert!(
        new.status.starts_with("tower-llm-cache; fwd=request"),
        "{new:?}"
    );
    two.send(says("no-store").await).await;
    assert_eq!((commands(&server, "get").await, two.calls()), (before, 2));

    let three = Process::start(&server).await;
    // Older than that by now, or as old as that at most.
    assert!(three.send(says("max-age=60").await).await.is_hit());
    tokio::time::sleep(Duration::from_millis(2)).await;
    let four = Process::start(&server).await;
    let young = four.send(says("max-age=0").await).await;
    assert!(
        young.status.starts_with("tower-llm-cache; fwd=request"),
        "{young:?}"
    );
}

#[tokio::test]
async fn a_process_that_wants_younger_answers_does_not_serve_older_ones() {
    let server = RedisServer::start().await.unwrap();
    let one = Process::start(&server).await;
    one.ask_and_store().await;
    let policy = Policy::completions().ttl(Duration::from_millis(1));
    let two = Process::of(builder(shared(&server).await).completions(policy));
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert!(!two.ask().await.is_hit());
}

/// Whether answers that call tools may be repeated is for each process to say.
#[tokio::test]
async fn a_process_whose_policy_allows_no_tool_calls_does_not_serve_those_of_another() {
    let server = RedisServer::start().await.unwrap();
    let allows = Policy::completions().tool_calls();
    let one = Process::of(builder(shared(&server).await).completions(allows));
    let two = Process::start(&server).await;
    let three = Process::of(builder(shared(&server).await).completions(allows));
    let asks = async || {
        let body = json!({
            "model": "sim-1",
            "messages": [{"role": "user", "content": "hi"}],
            "tools": [{"type": "function", "function": {"name": "log", "parameters": {"type": "object"}}}],
        });
        described(post(CHAT), &body.to_string()).await
    };
    let first = one.send(asks().await).await;
    let said: Value = serde_json::from_slice(&first.body()).unwrap();
    assert_eq!(said["choices"][0]["finish_reason"], "tool_calls");
    one.until(|stats| stats.shared_stored == 1).await;
    for _ in 0..2 {
        assert!(!two.send(asks().await).await.is_hit());
    }
    assert_eq!((two.calls(), two.stats().entries), (2, 0));
    assert!(three.send(asks().await).await.is_hit());
    assert_eq!(three.calls(), 0);
}

/// A look-up in Redis takes its time; a call that did not wait for one may be faster.
#[tokio::test]
async fn an_answer_from_redis_does_not_replace_a_newer_one_in_memory() {
    let server = RedisServer::start().await.unwrap();
    let (one, two) = (Process::start(&server).await, Process::start(&server).await);
    let old = one.ask_and_store().await;
    server.freeze().unwrap();
    let looking = tokio::spawn(two.call(question().await));
    tokio::task::yield_now().await;
    // The simulated provider says something else for another user; the key is the same.
    let body = QUESTION.replacen('{', r#"{"user":"u-2","#, 1);
    let request = post(CHAT).header("cache-control", "no-cache");
    let new = two.send(described(request, &body).await).await;
    assert_ne!(new.frames, old.frames);
    server.thaw().unwrap();
    let found = read(looking.await.unwrap().unwrap()).await.unwrap();
    assert_eq!(found.frames, old.frames);
    assert_eq!(two.cached().await.unwrap().frames, new.frames);
    assert_eq!(two.calls(), 1);
}

#[tokio::test]
async fn without_a_memory_answers_are_in_redis_alone() {
    let server = RedisServer::start().await.unwrap();
    let builder = builder(shared(&server).await).memory(None::<Memory>);
    let one = Process::of(builder);
    one.ask_and_store().await;
    for _ in 0..3 {
        assert!(one.ask().await.is_hit());
    }
    let stats = one.stats();
    assert_eq!((stats.shared_hits, stats.entries, one.calls()), (3, 0, 1));
}

#[tokio::test]
async fn a_sealed_answer_cannot_be_read_in_redis_and_not_with_another_secret() {
    let server = RedisServer::start().await.unwrap();
    let with = async |secret: Option<u8>| {
        let shared = shared(&server).await.compress_above(None);
        let shared = match secret {
            Some(byte) => shared.secret([byte; 32]),
            None => shared,
        };
        Process::of(builder(shared))
    };
    let one = with(Some(1)).await;
    let first = one.ask_and_store().await;
    let key = first.key().to_string();
    let script = "return string.find(redis.call('GET', KEYS[1]), 'chat.completion', 1, true)";
    let find = ["EVAL", script, "1", &key];
    assert_eq!(server.command(&find).await.unwrap(), "");
    assert_eq!(with(Some(1)).await.ask().await.frames, first.frames);
    for secret in [Some(2), None] {
        let other = with(secret).await;
        // Read once, and then replaced by what it can read itself.
        assert!(!other.ask_and_store().await.is_hit());
        let stats = other.stats();
        assert_eq!((stats.shared_unreadable, other.calls()), (1, 1));
    }
    // The last one was not sealed: that the words can be found at all.
    assert_ne!(server.command(&find).await.unwrap(), "");
    let sealed = with(Some(1)).await;
    assert!(!sealed.ask().await.is_hit());
    assert_eq!(sealed.stats().shared_unreadable, 1);
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused() {
    let server = RedisServer::start().await.unwrap();
    let shared = shared(&server).await;
    let error = builder(shared.clone().secret([0; 32])).build().unwrap_err();
    assert_eq!(error.field(), "shared.secret");
    let outside = std::thread::spawn(|| builder(shared).build().unwrap_err());
    assert_eq!(outside.join().unwrap().field(), "shared");
}

#[tokio::test]
async fn its_connections_and_tasks_end_with_the_layer() {
    let server = RedisServer::start().await.unwrap();
    let connections = async || {
        let list = server.command(&["CLIENT", "LIST"]).await.unwrap();
        list.lines().filter(|line| !line.is_empty()).count() - 1
    };
    let one = Process::start(&server).await;
    one.ask_and_store().await;
    while connections().await < 2 {
        tokio::task::yield_now().await;
    }
    drop(one);
    while connections().await > 0 {
        tokio::task::yield_now().await;
    }
    let _ = CacheLayer::builder(Scope::shared()).shared(None::<SharedCache>);
}

#[tokio::test]
async fn embeddings_are_shared_item_by_item() {
    let server = RedisServer::start().await.unwrap();
    let (one, two) = (Process::start(&server).await, Process::start(&server).await);
    let batch = async |inputs: Value| {
        let body = json!({"model": "sim-1", "input": inputs});
        described(post("/v1/embeddings"), &body.to_string()).await
    };
    let vector = |got: &Got, at: usize| {
        let body: Value = serde_json::from_slice(&got.body()).unwrap();
        assert_eq!(body["data"][at]["index"], at);
        body["data"][at]["embedding"].clone()
    };
    let first = one.send(batch(json!(["a", "b"])).await).await;
    one.until(|stats| stats.shared_stored == 2).await;
    let again = two.send(batch(json!(["b", "a", "b"])).await).await;
    assert!(
        again.is_hit() && again.served == Some(Served::Hit),
        "{again:?}"
    );
    for (at, of) in [(0, 1), (1, 0), (2, 1)] {
        assert_eq!(vector(&again, at), vector(&first, of));
    }
    let stats = two.stats();
    assert_eq!((two.calls(), stats.hits, stats.shared_hits), (0, 1, 1));
    // What is missing is sent, and nothing else.
    let three = Process::start(&server).await;
    let partial = three.send(batch(json!(["c", "a"])).await).await;
    assert!(!partial.is_hit());
    assert_eq!(vector(&partial, 1), vector(&first, 0));
    let stats = three.stats();
    assert_eq!(
        (three.calls(), stats.items_sent, stats.items_reused),
        (1, 1, 1)
    );
}

#[tokio::test]
async fn an_answer_that_another_process_has_renewed_is_taken_from_redis() {
    let server = RedisServer::start().await.unwrap();
    let process = async |ttl| {
        let builder = builder(shared(&server).await)
            .completions(Policy::completions().ttl(Duration::from_secs(ttl)))
            .refresh_ahead(RefreshAhead::per_minute(NonZeroU32::MAX).min_hits(1));
        Process::subscribed(&server, builder).await
    };
    // In the second, what lives for a minute is always near its end.
    let (one, two) = (process(60).await, process(1_000).await);
    one.ask_and_store().await;
    assert!(two.ask().await.is_hit());
    let no_cache = post(CHAT).header("cache-control", "no-cache");
    one.send(described(no_cache, QUESTION).await).await;
    one.until(|stats| stats.shared_stored == 2).await;

    let before = commands(&server, "get").await;
    two.ask().await;
    let from = Stopwatch::start();
    while commands(&server, "get").await == before || two.stats().in_flight > 0 {
        assert!(from.elapsed() < PATIENCE, "it does not look");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!((two.stats().refreshes, two.calls()), (1, 0));
}

#[tokio::test]
async fn an_old_answer_in_redis_renews_nothing() {
    let server = RedisServer::start().await.unwrap();
    let builder = builder(shared(&server).await)
        .completions(Policy::completions().ttl(Duration::from_secs(1)))
        .refresh_ahead(RefreshAhead::per_minute(NonZeroU32::MAX).min_hits(1));
    let one = Process::subscribed(&server, builder).await;
    let from = Stopwatch::start();
    while one.stats().refreshes == 0 {
        assert!(from.elapsed() < PATIENCE, "it is not renewed");
        one.ask().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    one.until(|stats| stats.in_flight == 0).await;
    let stats = one.stats();
    assert_eq!(one.calls(), stats.misses + stats.refreshes);
}

#[tokio::test]
async fn callers_of_the_same_items_at_the_same_time_make_one_lookup_for_each() {
    const CALLERS: usize = 50;
    const ITEMS: usize = 20;
    let server = RedisServer::start().await.unwrap();
    let (one, two) = (Process::start(&server).await, Process::start(&server).await);
    let batch = async |from: usize, to: usize| {
        let inputs: Vec<_> = (from..to).map(|n| format!("text {n}")).collect();
        let body = json!({"model": "sim-1", "input": inputs});
        described(post("/v1/embeddings"), &body.to_string()).await
    };
    let first = one.send(batch(0, ITEMS).await).await;
    one.until(|stats| stats.shared_stored == ITEMS as u64).await;
    let before = commands(&server, "get").await;
    let mut calls = Vec::new();
    for _ in 0..CALLERS {
        calls.push(two.call(batch(0, ITEMS).await));
    }
    // Some of the items, and some that are not stored.
    calls.push(two.call(batch(ITEMS / 2, 2 * ITEMS).await));
    let mut responses = join_all(calls).await;
    assert_eq!(commands(&server, "get").await - before, 2 * ITEMS as u64);
    assert_eq!(two.calls(), 1);
    responses.pop().unwrap().unwrap();
    for response in responses {
        let got = read(response.unwrap()).await.unwrap();
        assert!(got.is_hit(), "{got:?}");
        let vectors = |got: &Got| {
            let body: Value = serde_json::from_slice(&got.body()).unwrap();
            body["data"].clone()
        };
        assert_eq!(vectors(&got), vectors(&first));
    }
    assert_eq!(two.stats().hits, CALLERS as u64);
}
