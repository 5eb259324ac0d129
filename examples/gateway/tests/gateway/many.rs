//! Requests that are many calls.

use serde_json::{Value, json};
use tower_llm_testkit::{Behavior, Fault, SimulatedProvider};

use crate::{
    raw::{Raw, response},
    support::{Answer, Binary, Running, post},
};

async fn gateway() -> (SimulatedProvider, Running) {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, &["--bulkhead-default-concurrent", "200"]).await;
    (provider, gateway)
}

async fn ask(gateway: &Running, path: &str, body: &Value) -> Answer {
    post(gateway.addr, path, "", &body.to_string()).await
}

#[tokio::test]
async fn a_fan_out_over_200_items_keeps_their_order_and_its_fan_in_sees_what_succeeded() {
    let (provider, gateway) = gateway().await;
    // One call of twenty fails. A caller's fault opens no circuit.
    for call in 0..200 {
        match call % 20 {
            7 => provider.push(Fault::Status(400)),
            _ => provider.push(Behavior::new()),
        }
    }
    let items: Vec<_> = (0..200).map(|item| format!("item {item}")).collect();
    let body = json!({
        "items": items,
        "template": {"model": "m", "messages": [{"role": "user", "content": "Say {{item}}."}]},
        "max_concurrent": 20,
        "fan_in": {"model": "m", "messages": [{"role": "user", "content": "Merge: {{results}}"}]},
    });
    let answer = ask(&gateway, "/v1/fan_out", &body).await.json();
    assert_eq!(
        (&answer["succeeded"], &answer["failed"]),
        (&json!(190), &json!(10))
    );
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results.len(), 200);
    for (index, result) in results.iter().enumerate() {
        assert_eq!(result["index"], index);
        let is_good = result["status"] == 200;
        assert_eq!(
            is_good,
            result["response"]["choices"].is_array(),
            "{result}"
        );
        assert_eq!(!is_good, result["error"]["message"].is_string(), "{result}");
    }
    assert_eq!(answer["fan_in"]["status"], 200);
    let recorded = provider.recorded();
    assert_eq!(recorded.len(), 201);
    let texts = recorded.iter().map(|request| {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        body["messages"][0]["content"].as_str().unwrap().to_owned()
    });
    let mut texts: Vec<_> = texts.collect();
    let merged = texts.pop().unwrap();
    let results: Vec<String> =
        serde_json::from_str(merged.strip_prefix("Merge: ").unwrap()).unwrap();
    assert_eq!(results.len(), 190);
    texts.sort_unstable();
    let mut wanted: Vec<_> = items.iter().map(|item| format!("Say {item}.")).collect();
    wanted.sort_unstable();
    assert_eq!(texts, wanted);
}

#[tokio::test]
async fn a_batch_of_chats_takes_prompts_and_fails_item_by_item() {
    let (provider, gateway) = gateway().await;
    provider.push(Behavior::new());
    provider.push(Fault::Status(400));
    for path in ["/v1/batch/chat", "/v1/completions/batch"] {
        let body = json!({
            "model": "m",
            "requests": [{"prompt": "one"}, {"prompt": "two"}, {"model": "n", "messages": []}],
            "batch_options": {"parallel": false},
        });
        let answer = ask(&gateway, path, &body).await.json();
        let statuses = answer["results"].as_array().unwrap().iter();
        let statuses: Vec<_> = statuses.map(|result| result["status"].as_u64()).collect();
        let second = if path == "/v1/batch/chat" { 400 } else { 200 };
        assert_eq!(statuses, [Some(200), Some(second), Some(200)], "{answer}");
    }
    let body: Value = serde_json::from_slice(&provider.recorded()[2].body).unwrap();
    assert_eq!(body["model"], "n");
}

#[tokio::test]
async fn a_batch_of_embeddings_is_cut_and_each_text_has_its_own_vector() {
    let (provider, gateway) = gateway().await;
    let texts: Vec<_> = (0..25).map(|text| format!("text {text}")).collect();
    let body = json!({"model": "e", "texts": texts, "batch_size": 10, "max_concurrent": 2});
    let answer = ask(&gateway, "/v1/embeddings/batch", &body).await.json();
    assert_eq!(
        (&answer["succeeded"], &answer["failed"]),
        (&json!(25), &json!(0))
    );
    let sizes = provider.recorded().into_iter().map(|request| {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        body["input"].as_array().unwrap().len()
    });
    let mut sizes: Vec<_> = sizes.collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [5, 10, 10]);
    // The same as one by one.
    for text in [0, 13, 24] {
        let one = json!({"model": "e", "input": [texts[text]]});
        let one = ask(&gateway, "/v1/embeddings", &one).await.json();
        let together = &answer["results"][text]["response"]["embedding"];
        assert_eq!(&one["data"][0]["embedding"], together, "{text}");
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_the_reason() {
    let (provider, gateway) = gateway().await;
    let template = json!({"model": "m", "messages": [{"role": "user", "content": "{{item}}"}]});
    for (path, body, said) in [
        (
            "/v1/fan_out",
            json!({"items": [], "template": template}),
            "items is empty",
        ),
        (
            "/v1/fan_out",
            json!({"items": [1], "template": {}}),
            "{{item}}",
        ),
        (
            "/v1/fan_out",
            json!({"items": [1], "template": template, "fan_in": {}}),
            "{{results}}",
        ),
        (
            "/v1/fan_out",
            json!({"items": [1], "template": template, "max_concurrent": 0}),
            "max_concurrent is 0",
        ),
        (
            "/v1/fan_out",
            // 3 MB, which would be 3 TB.
            json!({"items": ["x".repeat(1 << 20)], "template": {"a": "{{item}}".repeat(1 << 18)}}),
            "too large",
        ),
        (
            "/v1/fan_out",
            // Each call is small enough, and all of them are not.
            json!({"items": vec![0; 10_000], "template": {"a": "{{item}}", "b": "x".repeat(1 << 18)}}),
            "too large",
        ),
        ("/v1/batch/chat", json!({"request": []}), "unknown field"),
        (
            "/v1/batch/embeddings",
            json!({"texts": ["a"], "batch_size": 4_000}),
            "batch_size is 4000",
        ),
    ] {
        let answer = ask(&gateway, path, &body).await;
        assert_eq!(answer.status, 400, "{path}");
        let error = answer.json();
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains(said), "{message}");
    }
    assert_eq!(provider.counts().requests, 0);
}

#[tokio::test]
async fn a_batch_needs_a_key_as_each_of_its_calls_does() {
    let provider = SimulatedProvider::start().await.unwrap();
    let gateway = Running::over(&provider, &["--keys", "ours"]).await;
    let body = json!({"requests": [{"prompt": "one"}], "model": "m"});
    let answer = ask(&gateway, "/v1/batch/chat", &body).await;
    assert_eq!(answer.status, 401, "{}", answer.text());
    assert_eq!(provider.counts().requests, 0);
}

#[tokio::test]
async fn each_call_has_an_idempotency_key_of_its_own() {
    let (provider, gateway) = gateway().await;
    let body = json!({
        "items": ["a", "b"],
        "template": {"model": "m", "messages": [{"role": "user", "content": "{{item}}"}]},
        "max_concurrent": 1,
        "fan_in": {"model": "m", "messages": [{"role": "user", "content": "{{results}}"}]},
    });
    let header = "idempotency-key: k\r\n";
    let answer = post(gateway.addr, "/v1/fan_out", header, &body.to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let recorded = provider.recorded().into_iter();
    let keys: Vec<_> = recorded
        .map(|request| request.headers["idempotency-key"].clone())
        .collect();
    assert_eq!(keys, ["k-0", "k-1", "k-fan-in"]);
}

#[tokio::test]
async fn what_is_no_answer_is_a_failure_and_told_as_one() {
    let upstream = Raw::start([response("200 OK", "content-type: text/html\r\n", b"<html>")]).await;
    let gateway = upstream.gateway(&[]).await;
    let body = json!({"requests": [{"prompt": "one"}], "model": "m"});
    let answer = ask(&gateway, "/v1/batch/chat", &body).await.json();
    assert_eq!(answer["failed"], 1, "{answer}");
    assert_eq!(answer["results"][0]["status"], 502, "{answer}");
}

/// How much memory the gateway's peak grows by, for a request to an upstream that answers so.
async fn growth_kb(answer: &[u8], path: &str, body: &str) -> Option<u64> {
    let replies = [b"{}", answer].map(|answer| response("200 OK", "", answer));
    let upstream = Raw::start(replies).await;
    let url = format!("http://{}/v1", upstream.addr);
    let gateway = Binary::start(&[("OPENAI_BASE_URL", &url)], &[]).await;
    let small = r#"{"texts":["a"],"model":"m"}"#;
    post(gateway.addr, path, "", small).await;
    let before = gateway.peak_kb()?;
    let answer = post(gateway.addr, path, "", body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    Some(gateway.peak_kb()? - before)
}

#[tokio::test]
async fn what_each_call_has_in_common_takes_no_more_memory_than_its_bytes() {
    // 1 MB of small objects, in each of 15 calls.
    let members = [r#"{"":0}"#; 150_000].join(",");
    let texts = serde_json::to_string(&[0; 15].map(|_| "text")).unwrap();
    let body = format!(r#"{{"texts":{texts},"batch_size":1,"model":"m","x":[{members}]}}"#);
    let path = "/v1/batch/embeddings";
    let Some(grown) = growth_kb(b"{}", path, &body).await else {
        return;
    };
    assert!(grown < 128 * 1024, "the gateway's peak grew by {grown} kB");
}

#[tokio::test]
async fn an_answer_takes_no_more_memory_than_a_few_times_its_bytes() {
    let vector = vec!["0"; 4 << 20].join(",");
    let answer = format!(r#"{{"data":[{{"index":0,"embedding":[{vector}]}}]}}"#);
    let (path, body) = ("/v1/batch/embeddings", r#"{"texts":["b"],"model":"m"}"#);
    let Some(grown) = growth_kb(answer.as_bytes(), path, body).await else {
        return;
    };
    assert!(grown < 64 * 1024, "the gateway's peak grew by {grown} kB");
}
