//! What is cached beyond completions and embeddings, and what beside the body tells requests apart.

use http::HeaderName;
use tower_llm_cache::{CacheBuilder, CacheLayer, Policy, Scope};
use tower_llm_core::{Call, Operation, Provider as Named};
use tower_llm_testkit::mock;

use crate::support::*;

fn counting() -> Sent {
    let body = r#"{"model":"claude-sonnet-5","messages":[{"role":"user","content":"Why?"}]}"#;
    described(post("/v1/messages/count_tokens"), body)
}

fn layer(set: impl FnOnce(CacheBuilder) -> CacheBuilder) -> CacheLayer {
    set(CacheLayer::builder(Scope::shared())).build().unwrap()
}

/// Sends a request whose answer is one document; returns whether it is found again.
fn is_found_again(layer: &CacheLayer, asks: impl Fn() -> Sent, body: &'static str) -> bool {
    let (cache, mut provider) = upstream(layer);
    let mut calling = start(&cache, asks());
    let (_, send) = mock::arrived(&mut provider);
    object(send, &[body]);
    assert_eq!(frames(answered(&mut calling)).concat(), body.as_bytes());
    match found(&cache, asks()) {
        Some(again) => {
            assert_eq!(frames(again).concat(), body.as_bytes());
            true
        }
        None => false,
    }
}

#[test]
fn counts_of_tokens_are_cached_if_there_is_a_policy() {
    let counts = layer(|builder| builder.operation(Operation::COUNT_TOKENS, Policy::completions()));
    assert!(is_found_again(&counts, counting, r#"{"input_tokens":14}"#));
    assert_eq!(counts.handle().stats().hits, 1);
    assert!(!is_found_again(
        &shared(),
        counting,
        r#"{"input_tokens":14}"#
    ));
}

#[test]
fn a_count_of_tokens_is_no_answer_to_the_messages() {
    let layer = layer(|builder| builder.operation(Operation::COUNT_TOKENS, Policy::completions()));
    let (cache, mut provider) = upstream(&layer);
    let mut calling = start(&cache, counting());
    let (_, send) = mock::arrived(&mut provider);
    object(send, &[r#"{"input_tokens":14}"#]);
    frames(answered(&mut calling));
    let body = r#"{"model":"claude-sonnet-5","messages":[{"role":"user","content":"Why?"}]}"#;
    assert!(found(&cache, described(post("/v1/messages"), body)).is_none());
}

#[test]
fn an_operation_of_the_services_own_is_cached_if_there_is_a_policy() {
    let rerank = || Operation::new("rerank");
    let asks = || {
        let mut request = described(post("/rerank"), r#"{"query":"a","texts":["b"]}"#);
        let call = Call::builder(Named::new("own"), rerank()).build();
        request.extensions_mut().insert(call);
        request
    };
    let body = r#"{"results":[]}"#;
    let cached = layer(|builder| builder.operation(rerank(), Policy::embeddings()));
    assert!(is_found_again(&cached, asks, body));
    assert!(!is_found_again(&shared(), asks, body));
}

#[test]
fn a_header_that_was_set_tells_requests_apart() {
    let upstream_header = HeaderName::from_static("x-upstream");
    for (name, value, is_found) in [
        ("x-upstream", "a", true),
        ("x-upstream", "b", false),
        ("x-other", "a", false),
    ] {
        let layer = layer(|builder| builder.key_header(upstream_header.clone()));
        let (cache, mut provider) = upstream(&layer);
        let asks = |name, value| described(post(CHAT).header(name, value), QUESTION);
        ask(&cache, &mut provider, asks("x-upstream", "a"), &WHOLE);
        let found = found(&cache, asks(name, value)).is_some();
        assert_eq!(found, is_found, "{name}: {value}");
    }
}

#[test]
fn headers_that_were_not_set_do_not() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let asks = |value| described(post(CHAT).header("x-upstream", value), QUESTION);
    ask(&cache, &mut provider, asks("a"), &WHOLE);
    assert!(found(&cache, asks("b")).is_some());
}
