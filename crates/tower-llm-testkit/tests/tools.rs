//! Tools that a request offers are called, in every dialect.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod common;

use common::ask;
use serde_json::{Value, json};
use tower_llm_testkit::{Behavior, SimulatedProvider};

const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";
const GENERATE: &str = "/v1beta/models/sim-1:generateContent";
const STREAM_GENERATE: &str = "/v1beta/models/sim-1:streamGenerateContent?alt=sse";

const USAGE: u64 = 12;

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "place": {"type": "string"},
            "unit": {"type": "string", "enum": ["metres", "feet"]},
        },
        "required": ["place"],
    })
}

fn arguments() -> Value {
    json!({"place": "river", "unit": "metres"})
}

/// A request of each dialect that offers the tools `level` and `flow`.
fn request(path: &str) -> Value {
    let question = json!([{"role": "user", "content": "How high is the river?"}]);
    match path {
        CHAT => json!({"model": "m", "messages": question, "tools": [
            {"type": "function", "function": {"name": "level", "parameters": schema()}},
            {"type": "function", "function": {"name": "flow"}},
        ]}),
        RESPONSES => json!({"model": "m", "input": question, "tools": [
            {"type": "web_search"},
            {"type": "function", "name": "level", "parameters": schema()},
            {"type": "function", "name": "flow", "parameters": {}},
        ]}),
        MESSAGES => json!({"model": "m", "max_tokens": 99, "messages": question, "tools": [
            {"type": "web_search_20250305", "name": "web_search"},
            {"name": "level", "input_schema": schema()},
            {"name": "flow", "input_schema": {"type": "object"}},
        ]}),
        _ => json!({
            "contents": [{"role": "user", "parts": [{"text": "How high is the river?"}]}],
            "tools": [{"functionDeclarations": [
                {"name": "level", "parameters": schema()},
                {"name": "flow", "parametersJsonSchema": {"type": "object"}},
            ]}],
        }),
    }
}

/// The name and the arguments of the call in an answer; `None` if it is text.
fn call_in(path: &str, answer: &Value) -> Option<(String, Value)> {
    let (name, arguments) = match path {
        CHAT => {
            let choice = &answer["choices"][0];
            let call = &choice["message"]["tool_calls"][0]["function"];
            let is_call = call.is_object();
            assert_eq!(choice["finish_reason"] == "tool_calls", is_call);
            assert_eq!(choice["message"]["content"].is_null(), is_call);
            (&call["name"], parsed(&call["arguments"]))
        }
        RESPONSES => {
            let item = &answer["output"][0];
            assert_eq!(answer["status"], "completed");
            assert_eq!(item["type"] == "function_call", item["call_id"].is_string());
            (&item["name"], parsed(&item["arguments"]))
        }
        MESSAGES => {
            let block = &answer["content"][0];
            let is_call = block["type"] == "tool_use";
            assert_eq!(answer["stop_reason"] == "tool_use", is_call);
            (&block["name"], block["input"].clone())
        }
        _ => {
            let call = &answer["candidates"][0]["content"]["parts"][0]["functionCall"];
            (&call["name"], call["args"].clone())
        }
    };
    Some((name.as_str()?.to_owned(), arguments))
}

fn parsed(text: &Value) -> Value {
    text.as_str()
        .map_or(Value::Null, |text| serde_json::from_str(text).unwrap())
}

async fn provider() -> SimulatedProvider {
    let provider = SimulatedProvider::start().await.unwrap();
    provider.set(Behavior::new().strict().output_tokens(USAGE));
    provider
}

async fn call(
    provider: &SimulatedProvider,
    path: &str,
    request: &Value,
) -> Option<(String, Value)> {
    let answer = ask(provider, path, &request.to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    call_in(path, &answer.json())
}

#[tokio::test]
async fn an_offered_tool_is_called_with_arguments_by_its_schema() {
    let provider = provider().await;
    for path in [CHAT, RESPONSES, MESSAGES, GENERATE] {
        let called = call(&provider, path, &request(path)).await;
        assert_eq!(called, Some(("level".into(), arguments())), "{path}");
    }
    assert_eq!(provider.counts().output_tokens, 4 * USAGE);
}

#[tokio::test]
async fn the_choice_of_tools_is_kept_to() {
    let provider = provider().await;
    let config = |config| json!({"functionCallingConfig": config});
    for (path, field, none, any, named) in [
        (
            CHAT,
            "tool_choice",
            json!("none"),
            json!("required"),
            json!({"type": "function", "function": {"name": "flow"}}),
        ),
        (
            CHAT,
            "tool_choice",
            json!("none"),
            json!("auto"),
            json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [
                {"type": "function", "function": {"name": "flow"}},
            ]}}),
        ),
        (
            RESPONSES,
            "tool_choice",
            json!("none"),
            json!("required"),
            json!({"type": "function", "name": "flow"}),
        ),
        (
            MESSAGES,
            "tool_choice",
            json!({"type": "none"}),
            json!({"type": "any"}),
            json!({"type": "tool", "name": "flow"}),
        ),
        (
            GENERATE,
            "toolConfig",
            config(json!({"mode": "NONE"})),
            config(json!({"mode": "ANY"})),
            config(json!({"mode": "ANY", "allowedFunctionNames": ["flow"]})),
        ),
    ] {
        let asked = |choice: Value| {
            let mut request = request(path);
            request[field] = choice;
            request
        };
        assert_eq!(call(&provider, path, &asked(none)).await, None, "{path}");
        let (name, _) = call(&provider, path, &asked(any)).await.unwrap();
        assert_eq!(name, "level", "{path}");
        let called = call(&provider, path, &asked(named)).await;
        assert_eq!(called, Some(("flow".into(), json!({}))), "{path}");
    }
}

#[tokio::test]
async fn a_tools_result_is_answered_by_text_unless_a_call_is_required() {
    let provider = provider().await;
    let result = |path: &str| match path {
        CHAT => json!({"role": "tool", "tool_call_id": "call_1", "content": "2.1"}),
        RESPONSES => json!({"type": "function_call_output", "call_id": "call_1", "output": "2.1"}),
        MESSAGES => json!({"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": "2.1"},
        ]}),
        _ => json!({"role": "user", "parts": [
            {"functionResponse": {"name": "level", "response": {"metres": 2.1}}},
        ]}),
    };
    for (path, turns) in [
        (CHAT, "messages"),
        (RESPONSES, "input"),
        (MESSAGES, "messages"),
        (GENERATE, "contents"),
    ] {
        let mut request = request(path);
        request[turns].as_array_mut().unwrap().push(result(path));
        assert_eq!(call(&provider, path, &request).await, None, "{path}");

        if path == CHAT {
            request["tool_choice"] = json!("required");
            let called = call(&provider, path, &request).await;
            assert!(called.is_some());
        }
        let again = match path {
            RESPONSES | CHAT | MESSAGES => json!({"role": "user", "content": "And now?"}),
            _ => json!({"role": "user", "parts": [{"text": "And now?"}]}),
        };
        request[turns].as_array_mut().unwrap().push(again);
        assert!(call(&provider, path, &request).await.is_some(), "{path}");
    }
}

#[tokio::test]
async fn a_streamed_call_comes_in_pieces_that_make_up_its_arguments() {
    let provider = provider().await;
    let expected = serde_json::to_string(&arguments()).unwrap();
    for path in [CHAT, RESPONSES, MESSAGES] {
        provider.reset_counts();
        let mut request = request(path);
        request["stream"] = json!(true);
        let events = ask(&provider, path, &request.to_string()).await.events();
        let pieces: Vec<&str> = events
            .iter()
            .filter_map(|(_, event)| {
                let call = &event["choices"][0]["delta"]["tool_calls"][0]["function"];
                let pieces = [&call["arguments"], &event["delta"]["partial_json"]];
                let is_arguments = event["type"] == "response.function_call_arguments.delta";
                let delta = &event["delta"];
                pieces
                    .into_iter()
                    .chain(is_arguments.then_some(delta))
                    .find_map(Value::as_str)
            })
            .collect();
        assert_eq!(pieces.concat(), expected, "{path}");
        assert!(pieces.len() > 8, "{path}");
        assert_eq!(provider.counts().output_tokens, USAGE, "{path}");

        let named = events.iter().any(|(_, event)| {
            let names = [
                &event["choices"][0]["delta"]["tool_calls"][0]["function"]["name"],
                &event["item"]["name"],
                &event["content_block"]["name"],
            ];
            names.contains(&&json!("level"))
        });
        assert!(named, "{path}");
        let ends = events.iter().any(|(_, event)| {
            event["choices"][0]["finish_reason"] == "tool_calls"
                || event["delta"]["stop_reason"] == "tool_use"
                || event["response"]["output"][0]["arguments"] == *expected
        });
        assert!(ends, "{path}");
    }
}

#[tokio::test]
async fn gemini_streams_a_call_whole() {
    let provider = provider().await;
    let request = request(STREAM_GENERATE);
    let events = ask(&provider, STREAM_GENERATE, &request.to_string())
        .await
        .events();
    let call = &events[0].1["candidates"][0]["content"]["parts"][0]["functionCall"];
    assert_eq!(call, &json!({"name": "level", "args": arguments()}));
    let last = &events[1].1;
    assert_eq!(last["candidates"][0]["finishReason"], "STOP");
    assert_eq!(last["usageMetadata"]["candidatesTokenCount"], USAGE);
    assert_eq!(provider.counts().output_tokens, USAGE);
}

#[tokio::test]
async fn a_maximum_cuts_a_call_off() {
    let provider = provider().await;
    let mut chat = request(CHAT);
    chat["max_tokens"] = json!(4);
    let answer = ask(&provider, CHAT, &chat.to_string()).await.json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    let cut = choice["message"]["tool_calls"][0]["function"]["arguments"]
        .as_str()
        .unwrap();
    let whole = arguments().to_string();
    assert!(whole.starts_with(cut) && cut.len() < whole.len(), "{cut}");
    assert_eq!(answer["usage"]["completion_tokens"], 4);

    let mut generate = request(GENERATE);
    generate["generationConfig"] = json!({"maxOutputTokens": 4});
    let answer = ask(&provider, GENERATE, &generate.to_string()).await.json();
    assert_eq!(answer["candidates"][0]["finishReason"], "MAX_TOKENS");
    assert_eq!(call_in(GENERATE, &answer), None);
    assert_eq!(provider.counts().output_tokens, 8);
}

#[tokio::test]
async fn custom_tools_of_openai_take_text() {
    let provider = provider().await;
    let chat = json!({"model": "m", "messages": [{"role": "user", "content": "Look it up."}], "tools": [
        {"type": "custom", "custom": {"name": "look_up"}},
    ]});
    let answer = ask(&provider, CHAT, &chat.to_string()).await.json();
    let call = &answer["choices"][0]["message"]["tool_calls"][0];
    assert_eq!(call["custom"], json!({"name": "look_up", "input": "river"}));
    let responses = json!({"model": "m", "input": "Look it up.", "tools": [
        {"type": "custom", "name": "look_up"},
    ]});
    let answer = ask(&provider, RESPONSES, &responses.to_string())
        .await
        .json();
    let item = &answer["output"][0];
    assert_eq!(
        (&item["type"], &item["input"]),
        (&json!("custom_tool_call"), &json!("river"))
    );
}

#[tokio::test]
async fn structured_output_follows_the_schema() {
    let provider = provider().await;
    let turns = json!([{"role": "user", "content": "How high is the river?"}]);
    for (path, request, pointer) in [
        (
            CHAT,
            json!({"model": "m", "messages": turns, "response_format":
                {"type": "json_schema", "json_schema": {"name": "x", "schema": schema()}}}),
            "/choices/0/message/content",
        ),
        (
            RESPONSES,
            json!({"model": "m", "input": turns, "text": {"format":
                {"type": "json_schema", "name": "x", "schema": schema()}}}),
            "/output/0/content/0/text",
        ),
        (
            MESSAGES,
            json!({"model": "m", "max_tokens": 99, "messages": turns, "output_config": {"format":
                {"type": "json_schema", "schema": schema()}}}),
            "/content/0/text",
        ),
        (
            GENERATE,
            json!({"contents": [{"parts": [{"text": "How high is the river?"}]}], "generationConfig":
                {"responseMimeType": "application/json", "responseJsonSchema": schema()}}),
            "/candidates/0/content/parts/0/text",
        ),
    ] {
        let answer = ask(&provider, path, &request.to_string()).await.json();
        let text = answer.pointer(pointer).unwrap();
        assert_eq!(parsed(text), arguments(), "{path}");
    }
    assert_eq!(provider.counts().output_tokens, 4 * USAGE);
}
