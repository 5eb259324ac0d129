//! What is sent of a batch, and what its answer says.

use serde_json::{Value, json};
use tower_llm_cache::{CacheKey, CacheLayer, NotCached, Policy, Scope, StatusHeader};
use tower_llm_core::{Call, Served};
use tower_llm_testkit::mock;

use super::support::*;
use crate::support::{described, post};

/// Asks for a batch, which the provider answers; returns what it was sent.
fn fill(
    cache: &tower_llm_cache::Cache<Inner>,
    provider: &mut Provider,
    input: Value,
) -> Vec<Value> {
    let mut calling = call(cache, batch(&input));
    let arrived = arrived(provider);
    let sent = arrived.inputs();
    arrived.answer();
    check(answered(&mut calling), &json!({"input": input}));
    sent
}

#[tokio::test(start_paused = true)]
async fn only_items_that_are_missing_are_sent_and_usage_is_theirs() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    assert_eq!(fill(&cache, &mut provider, json!(["a", "b"])), ["a", "b"]);

    let input = json!(["c", "a", "c", "d", "b"]);
    let mut calling = call(&cache, batch(&input));
    let arrived = arrived(&mut provider);
    assert_eq!(arrived.inputs(), ["c", "d"]);
    arrived.answer();
    let answer = answered(&mut calling);
    assert_eq!(status(&answer), "tower-llm-cache; fwd=partial");
    assert_eq!(answer.extensions().get::<Served>(), None);
    assert_eq!(answer.headers()["x-request-id"], "r-1");
    assert_eq!(check(answer, &json!({"input": input})), 2);

    let again = found(&cache, batch(&input)).unwrap();
    assert_eq!(status(&again), "tower-llm-cache; hit; ttl=86400");
    assert_eq!(again.headers()["age"], "0");
    assert_eq!(again.extensions().get(), Some(&Served::Hit));
    assert_eq!(again.headers().get("x-request-id"), None, "of another call");
    assert_eq!(check(again, &json!({"input": input})), 0);
    mock::nothing_arrived(&mut provider);

    let stats = layer.handle().stats();
    assert_eq!((stats.hits, stats.misses, stats.collapsed), (1, 2, 0));
    assert_eq!((stats.items_sent, stats.items_reused), (4, 8));
    assert_eq!((stats.stored, stats.entries, stats.in_flight), (4, 4, 0));
}

#[test]
fn the_rest_of_the_body_is_sent_as_it_is_written() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    fill(&cache, &mut provider, json!(["a", "e"]));
    let written = r#"{ "dimensions" : null, "model":"text-embedding-3-small",
        "\u0069nput" : [ "\u0061", "b\"\\,]" ,"c\n", "e" ]  , "user":"é"} "#;
    // `null` is a member of its own, so "a" is another item here than above.
    let request = described(post(PATH).header("content-length", written.len()), written);
    let tokens = request.extensions().get::<Call>().unwrap().input_tokens();
    let mut calling = call(&cache, request);
    let first = arrived(&mut provider);
    assert_eq!(first.request.body().as_bytes().unwrap(), written);
    first.answer();
    text(answered(&mut calling));

    let next = written.replace("\"e\" ]", "\"a\",\"new text\"]");
    let mut calling = call(
        &cache,
        described(post(PATH).header("content-length", next.len()), &next),
    );
    let second = arrived(&mut provider);
    let sent = written.replace(
        "[ \"\\u0061\", \"b\\\"\\\\,]\" ,\"c\\n\", \"e\" ]",
        "[\"new text\"]",
    );
    assert_eq!(second.request.body().as_bytes().unwrap(), &sent);
    assert_eq!(
        second.request.headers()["content-length"],
        sent.len().to_string()
    );
    let described = second.request.extensions().get::<Call>().unwrap();
    assert_eq!(described.items(), 1);
    assert!((2..=tokens).contains(&described.input_tokens()), "{tokens}");
    second.answer();
    let answer: Value = serde_json::from_str(&text(answered(&mut calling))).unwrap();
    assert_eq!(answer["data"].as_array().unwrap().len(), 5);
}

#[test]
fn a_text_is_the_same_alone_and_in_a_batch_and_is_not_a_list_of_tokens() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    fill(&cache, &mut provider, json!("a"));
    fill(&cache, &mut provider, json!([1, 2]));
    for input in [
        json!(["a"]),
        json!("a"),
        json!([[1, 2]]),
        json!([1, 2]),
        json!(["a", [1, 2], "a"]),
    ] {
        let answer = found(&cache, batch(&input)).unwrap();
        check(answer, &json!({"input": input}));
    }
    assert_eq!(fill(&cache, &mut provider, json!([[1], "a"])), [json!([1])]);
    assert_eq!(fill(&cache, &mut provider, json!("1")), ["1"]);
}

#[test]
fn encodings_and_dimensions_are_kept_apart() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let mut requests = Vec::new();
    for format in [None, Some("float"), Some("base64")] {
        for dimensions in [None, Some(256), Some(512)] {
            let mut request = json!({"model": "m", "input": ["a", "b"]});
            if let Some(format) = format {
                request["encoding_format"] = json!(format);
            }
            if let Some(dimensions) = dimensions {
                request["dimensions"] = json!(dimensions);
            }
            let mut calling = call(&cache, described(post(PATH), &request.to_string()));
            arrived(&mut provider).answer();
            check(answered(&mut calling), &request);
            requests.push(request);
        }
    }
    for request in requests {
        let answer = found(&cache, described(post(PATH), &request.to_string())).unwrap();
        check(answer, &request);
    }
}

#[test]
fn what_is_all_sent_is_passed_on_as_it_comes() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let request = batch(&json!(["a", "b"]));
    let mut calling = call(&cache, request);
    let first = arrived(&mut provider);
    // Members in an order of the provider's own, and some that are not known here.
    let written = concat!(
        r#"{"id":"x", "usage" : {"total_tokens":5,"prompt_tokens":5},"data":[ {"embedding":"AAA=","extra":[1.0], "index":1},"#,
        r#" {"index":0,"embedding":"BBB="}],"model":"m\u002f1"}"#
    );
    first.respond(200, written);
    let answer = answered(&mut calling);
    assert_eq!(status(&answer), "tower-llm-cache; fwd=miss");
    assert_eq!(text(answer), written);
    let found = found(&cache, batch(&json!(["b", "a", "b"]))).unwrap();
    assert_eq!(
        text(found),
        concat!(
            r#"{"id":"x","model":"m\u002f1","data":[{"index":0,"embedding":"AAA=","extra":[1.0]},"#,
            r#"{"index":1,"embedding":"BBB="},{"index":2,"embedding":"AAA=","extra":[1.0]}],"#,
            r#""usage":{"prompt_tokens":0,"total_tokens":0}}"#
        )
    );
}

#[test]
fn wrong_answers_are_passed_on_and_never_stored() {
    let item = |index: &str| format!(r#"{{"index":{index},"embedding":[1]}}"#);
    let list = |items: &[String]| format!(r#"{{"data":[{}]}}"#, items.join(","));
    let wrong = [
        list(&[item("0")]),
        list(&[item("0"), item("0")]),
        list(&[item("0"), item("2")]),
        list(&[item("0"), item("-1")]),
        list(&[item("0"), item("1.0")]),
        list(&[item("0"), item("\"1\"")]),
        list(&[item("0"), item("1"), item("2")]),
        list(&[item("0"), r#"{"embedding":[1]}"#.into()]),
        list(&[item("0"), r#"{"index":1}"#.into()]),
        list(&[item("0"), r#"{"index":1,"embedding":[ ]}"#.into()]),
        list(&[item("0"), r#"{"index":1,"embedding":null}"#.into()]),
        list(&[item("0"), r#"{"index":1,"index":1,"embedding":[1]}"#.into()]),
        list(&[item("0"), "7".into()]),
        r#"{"data":{}}"#.into(),
        r#"{"object":"list"}"#.into(),
        r#"{"error":{"message":"overloaded","type":"server_error"}}"#.into(),
        "not JSON".into(),
    ];
    for wrong in wrong {
        let layer = shared();
        let (cache, mut provider) = upstream(&layer);
        let mut calling = call(&cache, batch(&json!(["a", "b"])));
        arrived(&mut provider).respond(200, wrong.clone());
        assert_eq!(text(answered(&mut calling)), wrong);
        let stats = layer.handle().stats();
        assert_eq!(
            (stats.entries, stats.not_stored, stats.in_flight),
            (0, 2, 0),
            "{wrong}"
        );

        // With one of the items stored, it cannot be put together: the caller gets the answer to its own request.
        fill(&cache, &mut provider, json!(["a"]));
        let mut calling = call(&cache, batch(&json!(["a", "b", "c"])));
        let part = arrived(&mut provider);
        assert_eq!(part.inputs(), ["b", "c"]);
        part.respond(200, wrong.clone());
        if wrong.contains("error") || wrong == "not JSON" {
            // It has no vectors that could be taken for others.
            assert_eq!(text(answered(&mut calling)), wrong);
            continue;
        }
        assert!(calling.poll().is_pending());
        let whole = arrived(&mut provider);
        assert_eq!(whole.inputs(), ["a", "b", "c"]);
        let answer = embeddings(&whole.body());
        whole.respond(200, answer.clone());
        assert_eq!(text(answered(&mut calling)), answer);
        assert_eq!(layer.handle().stats().entries, 1);
    }
}

#[test]
fn an_error_is_passed_on_as_it_is_and_nothing_is_stored() {
    for status_code in [400, 429, 500, 503, 302, 202] {
        let layer = shared();
        let (cache, mut provider) = upstream(&layer);
        fill(&cache, &mut provider, json!(["a"]));
        let mut calling = call(&cache, batch(&json!(["a", "b"])));
        let part = arrived(&mut provider);
        assert_eq!(part.inputs(), ["b"]);
        part.respond(status_code, r#"{"error":{"message":"no"}}"#);
        let answer = answered(&mut calling);
        assert_eq!(answer.status(), status_code);
        assert_eq!(status(&answer), "tower-llm-cache; fwd=partial");
        assert_eq!(text(answer), r#"{"error":{"message":"no"}}"#);
        assert_eq!(layer.handle().stats().entries, 1);
        mock::nothing_arrived(&mut provider);

        let mut calling = call(&cache, batch(&json!(["a", "b"])));
        arrived(&mut provider).fail();
        let error = tokio_test::assert_ready!(calling.poll()).unwrap_err();
        assert_eq!(error.to_string(), "connection reset");
    }
}

#[tokio::test(start_paused = true)]
async fn directives_are_obeyed_item_by_item() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    fill(&cache, &mut provider, json!(["a"]));
    tokio::time::advance(std::time::Duration::from_secs(60)).await;
    fill(&cache, &mut provider, json!(["b"]));
    tokio::time::advance(std::time::Duration::from_secs(10)).await;
    let input = json!(["a", "b"]);
    let with =
        |control: &str| described(post(PATH).header("cache-control", control), &body(&input));

    // The age is that of the oldest item, and the ttl that of the first to expire.
    let answer = found(&cache, with("max-age=70")).unwrap();
    assert_eq!(answer.headers()["age"], "70");
    assert_eq!(status(&answer), "tower-llm-cache; hit; ttl=86330");

    let mut calling = call(&cache, with("max-age=69"));
    let sent = arrived(&mut provider);
    assert_eq!(sent.inputs(), ["a"]);
    sent.answer();
    let answer = answered(&mut calling);
    assert_eq!(status(&answer), "tower-llm-cache; fwd=partial");
    assert_eq!(check(answer, &json!({"input": input})), 1);

    let mut calling = call(&cache, with("no-cache"));
    // A call for new answers joins no other, and no other joins it.
    let mut other = call(&cache, with("no-cache"));
    for calling in [&mut calling, &mut other] {
        let sent = arrived(&mut provider);
        assert_eq!(sent.inputs(), ["a", "b"]);
        sent.answer();
        assert_eq!(status(&answered(calling)), "tower-llm-cache; fwd=request");
    }

    let refused = described(
        post(PATH).header("cache-control", "only-if-cached"),
        &body(&json!(["a", "c"])),
    );
    let mut calling = mock::start(&cache, refused);
    let error = tokio_test::assert_ready!(calling.poll()).unwrap_err();
    assert!(error.is::<NotCached>());
    assert!(found(&cache, with("only-if-cached")).is_some());

    let entries = layer.handle().stats().entries;
    let mut calling = call(
        &cache,
        described(
            post(PATH).header("cache-control", "no-store"),
            &body(&json!(["a", "c"])),
        ),
    );
    let sent = arrived(&mut provider);
    assert_eq!(sent.inputs(), ["a", "c"]);
    sent.answer();
    assert_eq!(
        status(&answered(&mut calling)),
        "tower-llm-cache; fwd=bypass; detail=no_store"
    );
    assert_eq!(layer.handle().stats().entries, entries);

    tokio::time::advance(std::time::Duration::from_secs(24 * 60 * 60)).await;
    fill(&cache, &mut provider, input);
}

#[tokio::test(start_paused = true)]
async fn a_single_item_names_its_key_and_a_batch_none() {
    let layer = CacheLayer::builder(Scope::shared())
        .status_header(StatusHeader::WithKey)
        .build()
        .unwrap();
    let (cache, mut provider) = upstream(&layer);
    fill(&cache, &mut provider, json!(["a", "b"]));
    let answer = found(&cache, batch(&json!(["a", "b"]))).unwrap();
    assert_eq!(status(&answer), "tower-llm-cache; hit; ttl=86400");
    let answer = found(&cache, batch(&json!("a"))).unwrap();
    let (_, key) = status(&answer).split_once("; key=").unwrap();
    let key: CacheKey = key.trim_matches('"').parse().unwrap();
    assert_eq!(key.group(), "ai:embedding:text-embedding-3-small");
    assert_eq!(layer.handle().invalidate(&key).await.unwrap().memory, 1);
    let mut calling = call(&cache, batch(&json!(["a", "b"])));
    let sent = arrived(&mut provider);
    assert_eq!(sent.inputs(), ["a"]);
    assert!(calling.poll().is_pending());
}

#[test]
fn items_over_the_maximum_are_served_and_not_stored() {
    let layer = CacheLayer::builder(Scope::shared())
        .embeddings(Policy::embeddings().max_answer_bytes(150))
        .build()
        .unwrap();
    let (cache, mut provider) = upstream(&layer);
    let mut calling = call(&cache, batch(&json!(["a", "b", "a"])));
    let sent = arrived(&mut provider);
    assert_eq!(sent.inputs(), ["a", "b"]);
    let long = "A".repeat(200);
    sent.respond(
        200,
        format!(
            r#"{{"data":[{{"index":0,"embedding":"AA=="}},{{"index":1,"embedding":"{long}"}}]}}"#
        ),
    );
    let answer: Value = serde_json::from_str(&text(answered(&mut calling))).unwrap();
    assert_eq!(answer["data"][0]["embedding"], "AA==");
    assert_eq!(answer["data"][1]["embedding"], long);
    assert_eq!(answer["data"][2]["embedding"], "AA==");
    let stats = layer.handle().stats();
    assert_eq!((stats.stored, stats.not_stored, stats.entries), (1, 1, 1));
}

#[test]
fn without_a_store_calls_in_flight_are_shared_all_the_same() {
    let layer = CacheLayer::builder(Scope::shared())
        .memory(None)
        .build()
        .unwrap();
    let (cache, mut provider) = upstream(&layer);
    let mut first = call(&cache, batch(&json!(["a", "b"])));
    let mut second = call(&cache, batch(&json!(["b"])));
    arrived(&mut provider).answer();
    assert_eq!(check(answered(&mut second), &json!({"input": ["b"]})), 0);
    check(answered(&mut first), &json!({"input": ["a", "b"]}));
    assert_eq!(fill(&cache, &mut provider, json!(["a"])), ["a"]);
}

#[test]
fn tenants_share_no_item() {
    let layer = CacheLayer::builder(Scope::header("x-tenant".parse().unwrap()))
        .build()
        .unwrap();
    let (cache, mut provider) = upstream(&layer);
    let of = |tenant: &str| described(post(PATH).header("x-tenant", tenant), &body(&json!(["a"])));
    let mut one = call(&cache, of("one"));
    let mut two = call(&cache, of("two"));
    for calling in [&mut one, &mut two] {
        arrived(&mut provider).answer();
        answered(calling);
    }
    // The answer is stored when its body was read.
    assert_eq!(layer.handle().stats().misses, 2);
}

#[tokio::test(start_paused = true)]
async fn bodies_that_are_no_batch_are_answered_as_a_whole() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    for input in [json!([]), json!(["a", 1]), json!({}), json!([["a"]])] {
        for expected in ["fwd=miss", "hit; ttl=86400"] {
            let mut calling = mock::start(&cache, batch(&input));
            if let std::task::Poll::Ready(answer) = calling.poll() {
                assert_eq!(
                    status(&answer.unwrap()),
                    format!("tower-llm-cache; {expected}")
                );
                continue;
            }
            arrived(&mut provider).respond(200, r#"{"data":[]}"#);
            let answer = answered(&mut calling);
            assert_eq!(status(&answer), format!("tower-llm-cache; {expected}"));
            text(answer);
        }
    }
}

/// With `late_chunking`, a vector depends on all inputs; what an unknown member does is not known.
#[tokio::test(start_paused = true)]
async fn vectors_that_may_depend_on_other_inputs_are_answered_as_a_whole() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let ask = |member: &str, input: &str| {
        let body = format!(r#"{{"model":"m","{member}":true,"input":{input}}}"#);
        mock::start(&cache, described(post(PATH), &body))
    };
    for (member, sent) in [
        ("late_chunking", json!(["a", "c"])),
        ("of_the_future", json!(["a", "c"])),
        ("normalized", json!(["c"])),
    ] {
        let mut calling = ask(member, r#"["a","b"]"#);
        assert!(calling.poll().is_pending());
        arrived(&mut provider).answer();
        text(answered(&mut calling));
        let mut calling = ask(member, r#"["a","c"]"#);
        assert!(calling.poll().is_pending());
        let second = arrived(&mut provider);
        assert_eq!(json!(second.inputs()), sent, "{member}");
        second.answer();
        text(answered(&mut calling));
    }
}
