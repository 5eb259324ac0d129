//! What a hostile caller, or a sceptical reader, would try.

use std::task::Poll;

use serde_json::Value;
use tower::{Layer, ServiceExt};
use tower_llm_cache::{CacheLayer, Policy, Scope};
use tower_llm_core::{Call, Operation, Served};
use tower_llm_testkit::mock;

use crate::support::*;

#[test]
fn debug_shows_no_answers() {
    for memory in [
        tower_llm_cache::Memory::lru(),
        tower_llm_cache::Memory::fifo(),
    ] {
        let layer = CacheLayer::builder(Scope::shared())
            .memory(memory)
            .build()
            .unwrap();
        let (cache, mut provider) = upstream(&layer);
        ask(&cache, &mut provider, question(), &WHOLE);
        // As bytes or as text.
        let shows = |text: String| text.contains("Because") || text.contains("66, 101, 99, 97");
        assert!(
            !shows(format!("{:?}", layer.handle())),
            "{memory:?}: the handle"
        );
        let answer = found(&cache, question()).unwrap();
        assert!(
            !shows(format!("{:?}", answer.body())),
            "{memory:?}: the body"
        );
    }
}

/// Models write structured output in the order of the schema's properties: an answer before its reasons is another answer.
#[test]
fn the_order_of_a_schemas_properties_is_part_of_the_question() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let asks = |properties: &str| {
        let body = format!(
            r#"{{"model":"m","messages":[],"stream":true,"response_format":{{"type":"json_schema","json_schema":{{"name":"a",
            "strict":true,"schema":{{"type":"object","properties":{{{properties}}}}}}}}}}}"#
        );
        described(post(CHAT), &body)
    };
    let (reasons, answer) = (
        r#""reasons":{"type":"string"}"#,
        r#""answer":{"type":"string"}"#,
    );
    let reasons_first = || asks(&format!("{reasons},{answer}"));
    ask(&cache, &mut provider, reasons_first(), &WHOLE);
    assert!(found(&cache, asks(&format!("{answer},{reasons}"))).is_none());
    assert!(found(&cache, reasons_first()).is_some());
}

#[test]
fn what_bypasses_the_cache_is_not_sent_if_only_the_cache_may_answer() {
    let layer = CacheLayer::builder(Scope::caller()).build().unwrap();
    let (cache, mut provider) = upstream(&layer);
    let request = described(
        post(CHAT).header("cache-control", "only-if-cached"),
        QUESTION,
    );
    let polled = mock::start(&cache, request).poll();
    mock::nothing_arrived(&mut provider);
    assert!(matches!(polled, Poll::Ready(Err(_))));
}

#[test]
fn dollar_alt_asks_for_events_too() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let path = "/v1beta/models/gemini-3-pro:streamGenerateContent";
    let body = r#"{"contents":[]}"#;
    let mut list = start(&cache, described(post(path), body));
    let (_, send) = mock::arrived(&mut provider);
    object(
        send,
        &[r#"[{"candidates":[{"content":{"parts":[{"text":"Hi"}]},"finishReason":"STOP"}]}]"#],
    );
    frames(answered(&mut list));
    let events = found(&cache, described(post(&format!("{path}?$alt=sse")), body));
    if let Some(events) = events {
        let text = String::from_utf8(frames(events).concat()).unwrap();
        assert!(text.starts_with("data: "), "{text}");
    }
}

#[test]
fn a_list_is_one_even_if_its_first_frame_is_empty() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let path = "/v1beta/models/gemini-3-pro:streamGenerateContent";
    let body = r#"{"contents":[]}"#;
    let mut list = start(&cache, described(post(path), body));
    let (_, send) = mock::arrived(&mut provider);
    object(
        send,
        &[
            "\n",
            r#"[{"candidates":[{"content":{"parts":[{"text":"Hi"}]},"finishReason":"STOP"}]}]"#,
        ],
    );
    frames(answered(&mut list));
    let whole = "/v1beta/models/gemini-3-pro:generateContent";
    if let Some(object) = found(&cache, described(post(whole), body)) {
        let object: Value = serde_json::from_slice(&frames(object).concat()).unwrap();
        assert!(object.is_object(), "{object}");
    }
}

#[test]
fn an_operation_whose_answers_are_arrays_is_cached_if_there_is_a_policy() {
    for (name, answer) in [
        ("rerank", r#"[{"index":0,"score":0.5}]"#),
        ("rerank", r#"{"results":[]}"#),
    ] {
        let layer = CacheLayer::builder(Scope::shared())
            .operation(Operation::new(name), Policy::embeddings())
            .build()
            .unwrap();
        let (cache, mut provider) = upstream(&layer);
        let asks = || {
            let mut request = described(post("/rerank"), r#"{"query":"a","texts":["b"]}"#);
            let provider = tower_llm_core::Provider::OPENAI;
            let call = Call::builder(provider, Operation::new(name)).build();
            request.extensions_mut().insert(call);
            request
        };
        let mut calling = start(&cache, asks());
        let (_, send) = mock::arrived(&mut provider);
        object(send, &[answer]);
        frames(answered(&mut calling));
        assert!(found(&cache, asks()).is_some(), "{name} {answer}");
    }
}

#[tokio::test]
async fn a_hit_of_an_inner_cache_is_one_outside() {
    let (inner, outer) = (shared(), shared());
    let (cache, mut provider) = upstream(&inner);
    ask(&cache, &mut provider, question(), &WHOLE);
    let answer = outer.layer(cache).oneshot(question()).await.unwrap();
    assert_eq!(answer.extensions().get(), Some(&Served::Hit));
}

#[test]
fn a_batch_of_more_than_any_provider_takes_is_not_taken_apart() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let mut body = String::from(r#"{"model":"m","input":[""#);
    body.push_str(&"\",\"".repeat(10_000));
    body.push_str(r#""]}"#);
    let request = described(post("/v1/embeddings"), &body);
    let calling = mock::start(&cache, request);
    let stats = layer.handle().stats();
    assert_eq!((stats.misses, stats.items_sent), (1, 0));
    drop(calling);
    mock::nothing_arrived(&mut provider);
}
