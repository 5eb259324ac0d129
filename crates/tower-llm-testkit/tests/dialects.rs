//! Each dialect over real HTTP, streamed and not.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers below are part of the tests"
)]

mod common;

use common::{GENERATING, ask, client, post, read, request};
use http::{HeaderMap, Method, Version};
use http_body_util::Full;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::Value;
use tower_llm_testkit::{Behavior, SimulatedProvider, wire};

fn behavior() -> Behavior {
    Behavior::new()
        .input_tokens(100)
        .cached_input_tokens(40)
        .cache_write_tokens(20)
        .output_tokens(9)
        .reasoning_tokens(3)
}

#[tokio::test]
async fn every_answer_equals_that_of_wire_and_counts_its_tokens() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(behavior());
    for (i, (path, body, streamed)) in (1..).zip(GENERATING) {
        let arrived = ask(&provider, path, body).await;
        assert_eq!(arrived.status, 200, "{path}");
        assert_eq!(
            arrived.bytes(),
            wire::body(path, body.as_bytes(), &behavior()).concat(),
            "{path}"
        );
        assert_eq!(
            wire::reply(path, body.as_bytes(), &behavior()).streamed,
            streamed
        );
        let counts = provider.counts();
        assert_eq!(
            (counts.finished, counts.input_tokens, counts.output_tokens),
            (i, i * 100, i * 9),
            "{path}"
        );
        assert_eq!((counts.in_flight, counts.open_streams), (0, 0));
    }
}

#[tokio::test]
async fn chat_streams_report_usage_only_on_request() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(behavior());
    let path = "/v1/chat/completions";
    let plain = ask(&provider, path, r#"{"model":"m","stream":true}"#).await;
    assert!(plain.text().ends_with("data: [DONE]\n\n"));
    assert!(!plain.text().contains("usage"));
    let events = plain.events();
    assert_eq!(events[0].1["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(events.len(), 1 + 6 + 1);
    assert_eq!(events[7].1["choices"][0]["finish_reason"], "stop");

    let asked = r#"{"model":"m","stream":true,"stream_options":{"include_usage":true}}"#;
    let events = ask(&provider, path, asked).await.events();
    assert!(
        events[..8]
            .iter()
            .all(|(_, chunk)| chunk["usage"] == Value::Null)
    );
    let usage = &events[8].1["usage"];
    assert_eq!(usage["prompt_tokens"], 100);
    assert_eq!(usage["completion_tokens"], 9);
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 40);
    assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], 3);

    provider.set(behavior().role_frame(false));
    let events = ask(&provider, path, asked).await.events();
    assert!(events[0].1["choices"][0]["delta"]["role"].is_null());
}

#[tokio::test]
async fn responses_stream_their_events_in_order() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Behavior::new().output_tokens(2));
    let events = ask(&provider, "/responses", r#"{"model":"m","stream":true}"#)
        .await
        .events();
    let names: Vec<&str> = events.iter().map(|(name, _)| &name[..]).collect();
    assert_eq!(
        names,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    for (i, (name, json)) in events.iter().enumerate() {
        assert_eq!(
            (json["type"].as_str(), json["sequence_number"].as_u64()),
            (Some(&name[..]), Some(i as u64))
        );
    }
    assert_eq!(events[9].1["response"]["usage"]["output_tokens"], 2);

    let limited = ask(
        &provider,
        "/responses",
        r#"{"model":"m","stream":true,"max_output_tokens":1}"#,
    )
    .await;
    let last = &limited.events().pop().unwrap().1;
    assert_eq!(last["type"], "response.incomplete");
    assert_eq!(
        last["response"]["incomplete_details"]["reason"],
        "max_output_tokens"
    );
}

#[tokio::test]
async fn anthropic_streams_think_first_and_report_usage_twice() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(behavior());
    let arrived = ask(&provider, "/v1/messages", r#"{"model":"m","stream":true}"#).await;
    assert!(
        arrived
            .headers
            .contains_key("anthropic-ratelimit-requests-limit")
    );
    let events = arrived.events();
    let usage = &events[0].1["message"]["usage"];
    assert_eq!(usage["input_tokens"], 40);
    assert_eq!(usage["cache_read_input_tokens"], 40);
    assert_eq!(usage["cache_creation_input_tokens"], 20);
    assert_eq!(usage["output_tokens"], 1);
    let deltas = |kind: &str| {
        events
            .iter()
            .filter(|(_, json)| json["delta"]["type"] == kind)
            .count()
    };
    assert_eq!((deltas("thinking_delta"), deltas("text_delta")), (3, 6));
    assert_eq!(events[events.len() - 2].1["usage"]["output_tokens"], 9);
    assert_eq!(events[events.len() - 1].0, "message_stop");
}

#[tokio::test]
async fn gemini_streams_as_events_or_as_an_array() {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(behavior());
    let path = "/v1beta/models/gem:streamGenerateContent";
    let events = ask(&provider, &format!("{path}?alt=sse"), "{}").await;
    let array = ask(&provider, path, "{}").await;
    assert_eq!(events.headers["content-type"], "text/event-stream");
    let chunks = array.json();
    let chunks = chunks.as_array().unwrap();
    let (_, last) = events.events().pop().unwrap();
    assert_eq!(chunks.len(), events.events().len());
    assert_eq!(chunks.last().unwrap(), &last);
    assert_eq!(last["candidates"][0]["finishReason"], "STOP");
    let usage = &last["usageMetadata"];
    assert_eq!(usage["candidatesTokenCount"], 6);
    assert_eq!(usage["thoughtsTokenCount"], 3);
    assert_eq!(usage["totalTokenCount"], 109);
    assert!(chunks[0]["candidates"][0]["finishReason"].is_null());
}

#[tokio::test]
async fn embeddings_have_one_vector_per_input() {
    let provider = SimulatedProvider::start().await.unwrap();
    let openai = ask(
        &provider,
        "/v1/embeddings",
        r#"{"model":"m","input":["a","b","c"]}"#,
    )
    .await
    .json();
    assert_eq!(openai["data"].as_array().unwrap().len(), 3);
    assert_eq!(openai["usage"]["prompt_tokens"], 10);
    let path = "/openai/deployments/d/embeddings?api-version=2024-10-21";
    assert_eq!(
        ask(&provider, path, r#"{"input":[1,2,3]}"#).await.json()["data"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    let one = ask(&provider, "/v1beta/models/e:embedContent", "{}")
        .await
        .json();
    assert!(one["embedding"]["values"][0].is_number());
    let batch = ask(
        &provider,
        "/models/e:batchEmbedContents",
        r#"{"requests":[{},{}]}"#,
    )
    .await
    .json();
    assert_eq!(batch["embeddings"].as_array().unwrap().len(), 2);
    assert_eq!(provider.counts().output_tokens, 0);
}

#[tokio::test]
async fn the_small_endpoints_and_the_unknown() {
    let provider = SimulatedProvider::start().await.unwrap();
    let counted = ask(&provider, "/v1/messages/count_tokens", "{}").await;
    assert_eq!(counted.json()["input_tokens"], 10);
    let get = |path| request(&provider, Method::GET, path, "", HeaderMap::new());
    let models = read(client().request(get("/v1/models")).await.unwrap()).await;
    assert_eq!(models.json()["data"][0]["id"], "sim-1");
    let wrong = read(client().request(get("/v1/messages")).await.unwrap()).await;
    assert_eq!(
        (wrong.status, &wrong.json()["type"]),
        (405, &Value::from("error"))
    );
    let unknown = ask(&provider, "/v1/images", "{}").await;
    assert_eq!(
        (unknown.status, &unknown.json()["error"]["code"]),
        (404, &Value::from("unknown_url"))
    );
    let not_json = ask(&provider, "/v1/chat/completions", "{").await;
    assert_eq!(
        (not_json.status, &not_json.json()["error"]["type"]),
        (400, &Value::from("invalid_request_error"))
    );
}

#[tokio::test]
async fn speaks_http2_to_those_that_know_beforehand() {
    let provider = SimulatedProvider::start().await.unwrap();
    let client = Client::builder(TokioExecutor::new())
        .http2_only(true)
        .build_http::<Full<bytes::Bytes>>();
    let (path, body, _) = GENERATING[1];
    let response = client.request(post(&provider, path, body)).await.unwrap();
    assert_eq!(response.version(), Version::HTTP_2);
    let arrived = read(response).await;
    assert_eq!(
        arrived.bytes(),
        wire::body(path, body.as_bytes(), &Behavior::new()).concat()
    );
    assert_eq!(provider.counts().finished, 1);
}

#[tokio::test]
async fn records_what_it_was_sent() {
    let provider = SimulatedProvider::start().await.unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("authorization", "Bearer sk-test".parse().unwrap());
    let body = r#"{"model":"m"}"#;
    let sent = request(&provider, Method::POST, "/v1/responses?x=1", body, headers);
    read(client().request(sent).await.unwrap()).await;
    let recorded = &provider.recorded()[0];
    assert_eq!(
        (&recorded.method, &recorded.path[..], &recorded.body[..]),
        (&Method::POST, "/v1/responses?x=1", body.as_bytes())
    );
    assert_eq!(recorded.headers["authorization"], "Bearer sk-test");
    provider.reset_counts();
    assert!(provider.recorded().is_empty());
    assert_eq!(provider.counts().requests, 0);
}
