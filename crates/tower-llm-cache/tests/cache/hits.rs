//! What is found again, for whom, and for how long.

use std::{task::Poll, time::Duration};

use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::time::{Instant, advance};
use tower_llm_cache::{
    Bypass, CacheKey, CacheLayer, Latency, NotCached, Policy, Scope, StatusHeader,
};
use tower_llm_core::{Refusal, Served};
use tower_llm_testkit::mock;

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn a_recorded_stream_is_replayed_frame_for_frame() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let first = ask(&cache, &mut provider, question(), &WHOLE);
    assert_eq!(first, WHOLE);

    advance(Duration::from_secs(90)).await;
    let again = found(&cache, question()).expect("it was stored");
    assert_eq!(again.headers()["content-type"], "text/event-stream");
    assert_eq!(again.headers()["age"], "90");
    assert_eq!(status(&again), "tower-llm-cache; hit; ttl=1710");
    assert_eq!(again.extensions().get(), Some(&Served::Hit));
    assert_eq!(frames(again), WHOLE);
    mock::nothing_arrived(&mut provider);

    let stats = layer.handle().stats();
    assert_eq!((stats.hits, stats.misses, stats.stored), (1, 1, 1));
    assert_eq!(stats.hit_ratio(), 0.5);
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_stale_when_its_ttl_is_over() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    ask(&cache, &mut provider, question(), &WHOLE);
    advance(Duration::from_millis(1_799_999)).await;
    assert!(found(&cache, question()).is_some());
    advance(Duration::from_millis(1)).await;
    assert!(found(&cache, question()).is_none());
    assert_eq!(layer.handle().purge_expired(), 1);
    assert_eq!(layer.handle().stats().entries, 0);
}

#[test]
fn the_same_prompt_of_another_tenant_is_another_call() {
    let scope = Scope::header("x-tenant".parse().unwrap());
    let layer = CacheLayer::builder(scope).build().unwrap();
    let (cache, mut provider) = upstream(&layer);
    let of = |tenant| described(post(CHAT).header("x-tenant", tenant), QUESTION);
    ask(&cache, &mut provider, of("a"), &WHOLE);
    assert!(found(&cache, of("a")).is_some());
    ask(&cache, &mut provider, of("b"), &WHOLE);

    // Without a tenant nothing is found and nothing is stored.
    for _ in 0..2 {
        ask(&cache, &mut provider, question(), &WHOLE);
    }
    let stats = layer.handle().stats();
    assert_eq!((stats.misses, stats.stored), (2, 2));
    assert!(
        stats
            .bypassed()
            .any(|bypassed| bypassed == (Bypass::NoCaller, 2))
    );
}

#[test]
fn calls_of_unknown_callers_bypass_the_scope_of_callers() {
    let layer = CacheLayer::builder(Scope::caller()).build().unwrap();
    let (cache, mut provider) = upstream(&layer);
    let mut calling = start(&cache, question());
    answer(&mut provider, &WHOLE);
    let answer = answered(&mut calling);
    assert_eq!(
        status(&answer),
        "tower-llm-cache; fwd=bypass; detail=no_caller"
    );
    assert_eq!(answer.extensions().get::<Served>(), None);
}

#[test]
fn directives_of_the_request_are_heeded() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let says = |directive| described(post(CHAT).header("cache-control", directive), QUESTION);

    let Poll::Ready(Err(error)) = mock::start(&cache, says("only-if-cached")).poll() else {
        panic!("nothing is cached");
    };
    assert!(error.is::<NotCached>());
    assert!(!Refusal::find(&*error).unwrap().is_retryable());

    ask(&cache, &mut provider, says("no-store"), &WHOLE);
    let refused = mock::start(&cache, says("only-if-cached")).poll();
    assert!(matches!(refused, Poll::Ready(Err(_))));
    mock::nothing_arrived(&mut provider);
}

#[tokio::test(start_paused = true)]
async fn a_request_can_ask_for_an_answer_that_is_new() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let says = |directive| described(post(CHAT).header("cache-control", directive), QUESTION);
    ask(&cache, &mut provider, question(), &WHOLE);
    advance(Duration::from_secs(5)).await;
    assert!(found(&cache, says("max-age=5")).is_some());

    // The new answer replaces the old one.
    for directive in ["max-age=4", "no-cache"] {
        let mut calling = start(&cache, says(directive));
        answer(&mut provider, &[ROLE, FINISH, DONE]);
        let answer = answered(&mut calling);
        assert_eq!(status(&answer), "tower-llm-cache; fwd=request");
        frames(answer);
        let again = found(&cache, says("only-if-cached")).unwrap();
        assert_eq!(frames(again), [ROLE, FINISH, DONE]);
        ask(&cache, &mut provider, says("no-cache"), &WHOLE);
    }
}

#[tokio::test]
async fn an_answer_is_invalidated_by_the_key_that_its_header_names() {
    let layer = CacheLayer::builder(Scope::shared())
        .status_header(StatusHeader::WithKey)
        .build()
        .unwrap();
    let (cache, mut provider) = upstream(&layer);
    ask(&cache, &mut provider, question(), &WHOLE);
    let hit = found(&cache, question()).unwrap();
    let (_, key) = status(&hit).split_once("; key=\"").unwrap();
    let key: CacheKey = key.trim_end_matches('"').parse().unwrap();
    assert!(key.to_string().starts_with("ai:completion:gpt-5.4:"));

    let handle = layer.handle();
    assert_eq!(handle.invalidate(&key).await.unwrap().memory, 1);
    assert_eq!(handle.invalidate(&key).await.unwrap().memory, 0);
    assert!(found(&cache, question()).is_none());
}

#[tokio::test]
async fn answers_are_invalidated_by_a_pattern_of_their_keys() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let model = |name: &str| described(post(CHAT), &QUESTION.replace("gpt-5.4", name));
    for name in ["claude-a", "claude-b", "gpt-5"] {
        ask(&cache, &mut provider, model(name), &WHOLE);
    }
    let handle = layer.handle();
    let removed = handle.invalidate_matching("ai:completion:claude*").await;
    assert_eq!(removed.unwrap().memory, 2);
    assert!(found(&cache, model("gpt-5")).is_some());
    assert_eq!(handle.clear().await.unwrap().memory, 1);
    assert_eq!(handle.stats().entries, 0);
}

#[tokio::test]
async fn the_policy_can_ask_for_determinism() {
    let policy = Policy::completions().deterministic_only();
    let layer = caching(policy);
    let (cache, mut provider) = upstream(&layer);
    let with = |member: &str| described(post(CHAT), &QUESTION.replacen('{', member, 1));
    for (member, is_cached) in [
        (r#"{"temperature":0,"#, true),
        (r#"{"temperature":0.0,"#, true),
        (r#"{"seed":7,"#, true),
        (r#"{"temperature":0.1,"#, false),
        (r#"{"seed":null,"#, false),
        ("{", false),
    ] {
        // Two spellings of one number are one request.
        layer.handle().clear().await.unwrap();
        ask(&cache, &mut provider, with(member), &WHOLE);
        assert_eq!(found(&cache, with(member)).is_some(), is_cached, "{member}");
        if !is_cached {
            answer(&mut provider, &WHOLE);
        }
    }
}

#[test]
fn repeated_layers_and_clones_share_what_is_stored() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    ask(&cache, &mut provider, question(), &WHOLE);
    let (other, _provider) = upstream(&layer.clone());
    assert!(found(&other, question()).is_some());
}

#[test]
fn settings_that_cannot_work_are_refused_when_the_layer_is_built() {
    use tower_llm_cache::Memory;
    let builder = || CacheLayer::builder(Scope::shared());
    let errors = [
        builder()
            .completions(Policy::completions().ttl(Duration::ZERO))
            .build(),
        builder()
            .embeddings(Policy::embeddings().max_answer_bytes(0))
            .build(),
        builder().memory(Memory::lru().max_bytes(0)).build(),
        builder().memory(Memory::fifo().max_entries(0)).build(),
    ];
    let fields = errors.map(|error| error.unwrap_err().field());
    assert_eq!(
        fields,
        ["ttl", "max_answer_bytes", "max_bytes", "max_entries"]
    );
}

#[tokio::test(start_paused = true)]
async fn the_statistics_say_how_long_hits_and_misses_took() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    for seconds in [1, 3] {
        let request = described(
            post(CHAT),
            &QUESTION.replace("Why?", &format!("Why {seconds}?")),
        );
        let mut calling = start(&cache, request);
        let mut following = start(
            &cache,
            described(
                post(CHAT),
                &QUESTION.replace("Why?", &format!("Why {seconds}?")),
            ),
        );
        advance(Duration::from_secs(seconds)).await;
        let (_, send) = mock::arrived(&mut provider);
        let sender = stream(send);
        let response = answered(&mut calling);
        drop(answered(&mut following));
        // What comes after the headers does not count.
        advance(Duration::from_secs(60)).await;
        WHOLE.iter().for_each(|frame| sender.send(frame));
        drop(sender);
        assert_eq!(frames(response).len(), WHOLE.len());
    }
    let miss = layer.handle().stats().miss_latency;
    assert_eq!((miss.count, miss.mean), (2, Duration::from_secs(2)));
    for (percentile, seconds) in [(miss.p50, 1), (miss.p99, 3)] {
        let exact = Duration::from_secs(seconds);
        assert!((exact..exact + exact / 8).contains(&percentile), "{miss:?}");
    }
    assert_eq!(layer.handle().stats().hit_latency, Latency::default());

    let request = described(post(CHAT), &QUESTION.replace("Why?", "Why 3?"));
    assert!(found(&cache, request).is_some());
    let hit = layer.handle().stats().hit_latency;
    assert_eq!((hit.count, hit.p99), (1, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_replayed_with_pauses_if_the_policy_says_so() {
    let pause = Duration::from_millis(20);
    let layer = caching(Policy::completions().pause(pause));
    let (cache, mut provider) = upstream(&layer);
    ask(&cache, &mut provider, question(), &WHOLE);
    let begun = Instant::now();
    let mut answer = found(&cache, question()).unwrap();
    for (number, frame) in (0..).zip(WHOLE) {
        let read = answer.body_mut().frame().await.unwrap().unwrap();
        assert_eq!(read.into_data().unwrap(), frame);
        assert_eq!(begun.elapsed(), pause * number);
    }
    assert!(answer.body().is_end_stream());
}

/// No task can fetch a new one.
#[test]
fn outside_of_a_runtime_a_stale_answer_is_neither_served_nor_counted() {
    let policy = Policy::completions()
        .ttl(Duration::from_nanos(1))
        .stale_while_revalidate(Duration::from_secs(3_600));
    let layer = caching(policy);
    let (cache, mut provider) = upstream(&layer);
    ask(&cache, &mut provider, question(), &WHOLE);
    ask(&cache, &mut provider, question(), &WHOLE);
    let stats = layer.handle().stats();
    assert_eq!((stats.misses, stats.stale, stats.hits), (2, 0, 0));
}
