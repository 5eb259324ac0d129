//! What a strict provider says of requests that lack something, and what it lists and counts.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod common;

use common::{Arrived, ask, client, read, request};
use http::{HeaderMap, Method};
use serde_json::{Value, json};
use tower_llm_testkit::{Behavior, SimulatedProvider};

async fn strict() -> SimulatedProvider {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Behavior::new().strict().counted_input_tokens());
    provider
}

async fn get(provider: &SimulatedProvider, path: &str, headers: HeaderMap) -> Arrived {
    let sent = request(provider, Method::GET, path, "", headers);
    read(client().request(sent).await.unwrap()).await
}

fn anthropic() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("anthropic-version", "2023-06-01".parse().unwrap());
    headers
}

#[tokio::test]
async fn a_request_that_lacks_something_is_a_400_in_the_providers_shape() {
    let provider = strict().await;
    let azure = "/openai/deployments/d/chat/completions?api-version=2025-04-01";
    for (path, body, says) in [
        (
            "/v1/chat/completions",
            r#"{"messages":[{"role":"user","content":"x"}]}"#,
            "model",
        ),
        (
            "/v1/chat/completions",
            r#"{"model":"","messages":[{"role":"user","content":"x"}]}"#,
            "model",
        ),
        (
            "/v1/chat/completions",
            r#"{"model":"m","messages":[]}"#,
            "empty array",
        ),
        ("/v1/chat/completions", r#"{"model":"m"}"#, "'messages'"),
        ("/v1/chat/completions", "[]", "JSON object"),
        (azure, r#"{"messages":[]}"#, "empty array"),
        ("/v1/completions", r#"{"prompt":"x"}"#, "model"),
        ("/v1/responses", r#"{"input":"x"}"#, "'model'"),
        ("/v1/responses", r#"{"model":"m"}"#, "'input'"),
        ("/v1/responses", r#"{"model":"m","input":[]}"#, "'input'"),
        ("/v1/embeddings", r#"{"input":"x"}"#, "model"),
        ("/v1/embeddings", r#"{"model":"m"}"#, "'input'"),
        ("/v1/embeddings", r#"{"model":"m","input":""}"#, "input"),
        ("/v1/embeddings", r#"{"model":"m","input":[]}"#, "input"),
        (
            "/v1/embeddings",
            r#"{"model":"m","input":["x",""]}"#,
            "input",
        ),
    ] {
        let answer = ask(&provider, path, body).await;
        let error = &answer.json()["error"];
        assert_eq!(answer.status, 400, "{path} {body}");
        assert_eq!(error["type"], "invalid_request_error", "{path} {body}");
        assert!(
            error["message"].as_str().unwrap().contains(says),
            "{path} {error}"
        );
    }
    for (path, body, says) in [
        (
            "/v1/messages",
            r#"{"max_tokens":9,"messages":[{"role":"user","content":"x"}]}"#,
            "model",
        ),
        (
            "/v1/messages",
            r#"{"model":"m","max_tokens":9,"messages":[]}"#,
            "at least one",
        ),
        (
            "/v1/messages",
            r#"{"model":"m","max_tokens":9}"#,
            "messages: Field",
        ),
        (
            "/v1/messages",
            r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#,
            "max_tokens",
        ),
        (
            "/v1/messages/count_tokens",
            r#"{"model":"m","messages":[]}"#,
            "at least one",
        ),
    ] {
        let answer = ask(&provider, path, body).await;
        let json = answer.json();
        assert_eq!(
            (answer.status, &json["type"]),
            (400, &json!("error")),
            "{path} {body}"
        );
        assert_eq!(json["error"]["type"], "invalid_request_error");
        assert!(
            json["error"]["message"].as_str().unwrap().contains(says),
            "{path} {json}"
        );
    }
    for (path, body) in [
        ("/v1beta/models/m:generateContent", r#"{"contents":[]}"#),
        ("/v1beta/models/m:streamGenerateContent?alt=sse", "{}"),
        ("/v1beta/models/m:countTokens", "{}"),
        (
            "/v1beta/models/m:embedContent",
            r#"{"content":{"parts":[]}}"#,
        ),
        ("/v1beta/models/m:batchEmbedContents", r#"{"requests":[]}"#),
        (
            "/v1/models/m:generateContent",
            r#"{"contents":[{"parts":[{"text":""}]}]}"#,
        ),
    ] {
        let answer = ask(&provider, path, body).await;
        let error = &answer.json()["error"];
        assert_eq!(
            (answer.status, &error["code"]),
            (400, &json!(400)),
            "{path} {body}"
        );
        assert_eq!(error["status"], "INVALID_ARGUMENT", "{path} {body}");
    }
    assert_eq!(provider.counts().input_tokens, 0);
    assert_eq!(provider.counts().output_tokens, 0);
}

#[tokio::test]
async fn a_tool_that_is_not_offered_cannot_be_chosen() {
    let provider = strict().await;
    let body = r#"{"model":"m","messages":[{"role":"user","content":"x"}],"tool_choice":{"type":"function","function":{"name":"gone"}}}"#;
    let answer = ask(&provider, "/v1/chat/completions", body).await;
    assert_eq!(
        (answer.status, &answer.json()["error"]["param"]),
        (400, &json!("tool_choice"))
    );
}

#[tokio::test]
async fn requests_that_go_on_from_a_stored_one_need_no_input() {
    let provider = strict().await;
    for body in [
        r#"{"model":"m","previous_response_id":"resp_1"}"#,
        r#"{"model":"m","prompt":{"id":"pmpt_1"}}"#,
    ] {
        assert_eq!(
            ask(&provider, "/v1/responses", body).await.status,
            200,
            "{body}"
        );
    }
}

#[tokio::test]
async fn a_provider_that_is_not_strict_answers_any_json() {
    let provider = SimulatedProvider::start().await.unwrap();
    for path in [
        "/v1/chat/completions",
        "/v1/messages",
        "/v1beta/models/m:generateContent",
    ] {
        assert_eq!(ask(&provider, path, "{}").await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn lists_of_models_have_the_shape_of_their_provider() {
    let provider = strict().await;
    let openai = get(&provider, "/v1/models", HeaderMap::new()).await.json();
    assert_eq!(
        (&openai["object"], &openai["data"][0]["object"]),
        (&json!("list"), &json!("model"))
    );
    let anthropic_list = get(&provider, "/v1/models", anthropic()).await;
    assert!(anthropic_list.headers.contains_key("request-id"));
    let list = anthropic_list.json();
    assert_eq!(
        (&list["has_more"], &list["first_id"]),
        (&json!(false), &list["data"][0]["id"])
    );
    assert_eq!(list["data"][0]["type"], "model");
    let gemini = get(&provider, "/v1beta/models", HeaderMap::new())
        .await
        .json();
    let name = gemini["models"][0]["name"].as_str().unwrap();
    assert!(name.starts_with("models/"), "{name}");
    // Google's clients ask the same path as OpenAI's.
    let mut google = HeaderMap::new();
    google.insert("x-goog-api-client", "google-genai-sdk/3".parse().unwrap());
    let same = get(&provider, "/v1/models", google).await.json();
    assert_eq!(same, gemini);

    for (path, headers, field, value) in [
        ("/v1/models/sim-1", HeaderMap::new(), "id", "sim-1"),
        (
            "/v1/models/sim-1",
            anthropic(),
            "display_name",
            "Simulated 1",
        ),
        (
            "/v1beta/models/sim-1",
            HeaderMap::new(),
            "name",
            "models/sim-1",
        ),
    ] {
        let one = get(&provider, path, headers).await;
        assert_eq!(
            (one.status, &one.json()[field]),
            (200, &json!(value)),
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_404_has_the_shape_of_its_provider() {
    let provider = strict().await;
    let openai = get(&provider, "/v1/models/none", HeaderMap::new()).await;
    let error = &openai.json()["error"];
    assert_eq!(
        (openai.status, &error["code"]),
        (404, &json!("model_not_found"))
    );
    assert_eq!(error["message"], "The model 'none' does not exist");
    let unknown = get(&provider, "/v1/nothing?x=1", HeaderMap::new())
        .await
        .json();
    let message = unknown["error"]["message"].as_str().unwrap();
    assert!(message.contains("GET /v1/nothing."), "{message}");

    for path in ["/v1/models/none", "/v1/nothing"] {
        let answer = get(&provider, path, anthropic()).await;
        let json = answer.json();
        assert_eq!(
            (answer.status, &json["type"]),
            (404, &json!("error")),
            "{path}"
        );
        assert_eq!(json["error"]["type"], "not_found_error", "{path}");
        assert!(json["request_id"].is_string(), "{path}");
    }
    for path in [
        "/v1beta/models/none",
        "/v1beta/nothing",
        "/v1beta/models/m:nothing",
    ] {
        let answer = get(&provider, path, HeaderMap::new()).await;
        let error = &answer.json()["error"];
        assert_eq!(
            (answer.status, &error["code"]),
            (404, &json!(404)),
            "{path}"
        );
        assert_eq!(error["status"], "NOT_FOUND", "{path}");
    }
    let azure = get(&provider, "/openai/deployments/d/nothing", HeaderMap::new()).await;
    assert_eq!(
        (azure.status, &azure.json()["error"]["code"]),
        (404, &json!("404"))
    );
    // What was asked for is told back, and must not break the JSON.
    let quoted = get(&provider, "/v1/models/%22a\"b", HeaderMap::new());
    assert_eq!(quoted.await.json()["error"]["param"], "model");
}

#[tokio::test]
async fn what_is_counted_is_what_is_used() {
    let provider = strict().await;
    let turns = r#""messages":[{"role":"user","content":"How high is the river at the second mill?"}],"system":"Be brief.""#;
    let counted = ask(
        &provider,
        "/v1/messages/count_tokens",
        &format!(r#"{{"model":"m",{turns}}}"#),
    )
    .await;
    let used = ask(
        &provider,
        "/v1/messages",
        &format!(r#"{{"model":"m","max_tokens":9,{turns}}}"#),
    )
    .await;
    let tokens = &counted.json()["input_tokens"];
    assert_eq!(tokens, &used.json()["usage"]["input_tokens"]);
    assert_eq!(tokens, 11 + 3 + 3 + 3);

    let contents =
        r#""contents":[{"parts":[{"text":"How high is the river at the second mill?"}]}]"#;
    let path = "/v1beta/models/m:countTokens";
    let counted = ask(&provider, path, &format!("{{{contents}}}"))
        .await
        .json();
    let wrapped = format!(r#"{{"generateContentRequest":{{"model":"models/m",{contents}}}}}"#);
    assert_eq!(ask(&provider, path, &wrapped).await.json(), counted);
    let used = ask(
        &provider,
        "/v1beta/models/m:generateContent",
        &format!("{{{contents}}}"),
    )
    .await;
    assert_eq!(
        counted["totalTokens"],
        used.json()["usageMetadata"]["promptTokenCount"]
    );
    assert_eq!(counted["totalTokens"], 14);
}

#[tokio::test]
async fn an_answer_that_is_cut_is_the_beginning_of_the_whole_one() {
    let provider = SimulatedProvider::start().await.unwrap();
    let text = |maximum: Value| {
        let body = json!({"model": "m", "input": "x", "max_output_tokens": maximum});
        let provider = &provider;
        async move {
            let answer = ask(provider, "/v1/responses", &body.to_string())
                .await
                .json();
            answer["output"][0]["content"][0]["text"]
                .as_str()
                .unwrap()
                .to_owned()
        }
    };
    for tokens in [1, 2, 7, 20, 100] {
        provider.set(Behavior::new().output_tokens(tokens));
        let whole = text(Value::Null).await;
        assert_eq!(whole.split(' ').count() as u64, tokens);
        assert!(
            whole.ends_with('.') && whole.starts_with(char::is_uppercase),
            "{whole}"
        );
        if tokens > 2 {
            let cut = text(json!(tokens - 1)).await;
            assert_eq!(cut.split(' ').count() as u64, tokens - 1);
            assert!(
                cut.starts_with(char::is_uppercase) && !cut.ends_with('.'),
                "{cut}"
            );
        }
    }
}

#[tokio::test]
async fn an_embedding_is_the_same_in_base64_as_in_numbers() {
    let provider = strict().await;
    for (model, wanted, dimensions) in [
        ("sim-1", Value::Null, 8),
        ("text-embedding-3-small", Value::Null, 1_536),
        ("text-embedding-3-large", Value::Null, 3_072),
        ("text-embedding-3-large", json!(256), 256),
    ] {
        let request = |format: &str| json!({"model": model, "input": ["river", "mill"], "dimensions": wanted, "encoding_format": format});
        let numbers = ask(&provider, "/v1/embeddings", &request("float").to_string())
            .await
            .json();
        let encoded = ask(&provider, "/v1/embeddings", &request("base64").to_string())
            .await
            .json();
        for i in 0..2 {
            let numbers: Vec<f32> =
                serde_json::from_value(numbers["data"][i]["embedding"].clone()).unwrap();
            assert_eq!(numbers.len(), dimensions, "{model}");
            assert_eq!(
                decoded(encoded["data"][i]["embedding"].as_str().unwrap()),
                numbers
            );
            let length: f32 = numbers.iter().map(|n| n * n).sum();
            assert!((length - 1.0).abs() < 1e-3, "{length}");
        }
        assert_ne!(
            numbers["data"][0]["embedding"],
            numbers["data"][1]["embedding"]
        );
    }
    let gemini = r#"{"requests":[{"content":{"parts":[{"text":"a"}]},"outputDimensionality":5},{"content":{"parts":[{"text":"a"}]}}]}"#;
    let path = "/v1beta/models/gemini-embedding-001:batchEmbedContents";
    let batch = ask(&provider, path, gemini).await.json();
    let lengths = [0, 1].map(|i| batch["embeddings"][i]["values"].as_array().unwrap().len());
    assert_eq!(lengths, [5, 3_072]);
}

/// Little-endian `f32`s out of base64, without a library that both sides would share.
fn decoded(text: &str) -> Vec<f32> {
    const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bits = 0_u32;
    let mut bytes = Vec::new();
    for (i, letter) in text.trim_end_matches('=').chars().enumerate() {
        bits = bits << 6 | ALPHABET.find(letter).unwrap() as u32;
        if i % 4 != 0 {
            let unused = 6 - 2 * (i % 4);
            bytes.push((bits >> unused) as u8);
        }
    }
    let numbers = bytes.chunks_exact(4);
    numbers
        .map(|four| f32::from_le_bytes(four.try_into().unwrap()))
        .collect()
}
