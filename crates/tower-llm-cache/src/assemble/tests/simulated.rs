//! The simulated provider answers the same request with and without a stream.

use serde_json::{Value, json};
use tower_llm_core::Outcome;
use tower_llm_testkit::{Behavior, LineEnding, wire};

use super::{Judged, StreamForm, asked, events, events_at, whole, whole_at};

const UNICODE: &str = "Fluß \"日本\" \u{1f30a}\n\\u0000";

/// A path of a stream, the same without one, and a request with tools and text.
const PATHS: [[&str; 2]; 6] = [
    ["/v1/chat/completions"; 2],
    ["/openai/deployments/sim/chat/completions?api-version=2025-04-01-preview"; 2],
    ["/v1/completions"; 2],
    ["/v1/responses"; 2],
    ["/v1/messages"; 2],
    [
        "/v1beta/models/sim-1:streamGenerateContent?alt=sse",
        "/v1beta/models/sim-1:generateContent",
    ],
];

fn request(path: &str) -> Value {
    if path.contains("generateContent") || path.contains("GenerateContent") {
        return json!({"contents": [{"parts": [{"text": "hi"}]}]});
    }
    json!({"model": "sim-1", "messages": [{"role": "user", "content": "hi"}], "input": "hi", "prompt": "hi", "max_tokens": 500})
}

/// The request, with a tool that must be called.
fn with_tool(path: &str, name: &str) -> Value {
    let mut request = request(path);
    let schema = json!({"type": "object", "properties": {"place": {"type": "string", "enum": [UNICODE]}, "n": {"type": "integer"}}, "required": ["place", "n"]});
    request["tools"] = if path.contains("models/") {
        json!([{"functionDeclarations": [{"name": name, "parameters": schema}]}])
    } else if path.ends_with("/messages") {
        json!([{"name": name, "input_schema": schema}])
    } else if path.ends_with("/responses") {
        json!([{"type": "function", "name": name, "parameters": schema}])
    } else {
        json!([{"type": "function", "function": {"name": name, "parameters": schema}}])
    };
    request
}

/// A request for text with characters of all kinds.
fn with_schema(path: &str) -> Value {
    let mut request = request(path);
    let schema = json!({"type": "object", "properties": {"answer": {"type": "string", "enum": [UNICODE]}}, "required": ["answer"]});
    let format =
        json!({"type": "json_schema", "schema": schema, "json_schema": {"schema": schema}});
    request["response_format"] = format.clone();
    request["text"] = json!({"format": format});
    request["output_config"] = json!({"format": format});
    request["generationConfig"] =
        json!({"responseMimeType": "application/json", "responseJsonSchema": schema});
    request
}

/// Ids depend on the request's bytes.
fn without_ids(value: &mut Value) {
    match value {
        Value::String(text) => {
            let bytes = text.as_bytes();
            let from = bytes.len().saturating_sub(16);
            if bytes.len() >= 16 && bytes[from..].iter().all(u8::is_ascii_hexdigit) {
                text.truncate(from);
            }
        }
        Value::Array(values) => values.iter_mut().for_each(without_ids),
        Value::Object(members) => members.values_mut().for_each(without_ids),
        _ => {}
    }
}

/// The answer without a stream. What is said depends on the request's bytes: one that says the same is looked for.
fn unstreamed(path: &str, request: &Value, behavior: &Behavior, like: &Value) -> Value {
    let mut last = Value::Null;
    for nonce in 0..300 {
        let mut request = request.clone();
        request["nonce"] = nonce.into();
        let body = wire::body(path, request.to_string().as_bytes(), behavior).concat();
        last = serde_json::from_slice(&body).unwrap();
        without_ids(&mut last);
        if last == *like {
            break;
        }
    }
    last
}

fn streamed(path: &str, request: &Value, behavior: &Behavior) -> Vec<u8> {
    let mut request = request.clone();
    request["stream"] = true.into();
    request["stream_options"] = json!({"include_usage": true});
    wire::body(path, request.to_string().as_bytes(), behavior).concat()
}

#[track_caller]
fn assert_same(paths: [&str; 2], request: &Value, behavior: &Behavior) {
    let stream = streamed(paths[0], request, behavior);
    let Some(mut joined) = whole_at(paths[0], &stream) else {
        panic!("{}: {}", paths[0], String::from_utf8_lossy(&stream));
    };
    let body = joined.to_string();
    assert_eq!(
        Judged::whole(paths[1], body.as_bytes()),
        Judged::events(paths[0], &stream),
        "{}",
        paths[0]
    );
    let cut = events_at(paths[0], body.as_bytes()).unwrap().concat();
    assert_eq!(
        Judged::events(paths[0], &cut),
        Judged::events(paths[0], &stream),
        "{}",
        paths[0]
    );
    assert_eq!(
        whole_at(paths[0], &cut).as_ref(),
        Some(&joined),
        "{}",
        paths[0]
    );
    without_ids(&mut joined);
    if let Some(object) = joined.as_object_mut() {
        // Azure tells this of streams only, as it is simulated.
        object.remove("prompt_filter_results");
    }
    let expected = unstreamed(paths[1], request, behavior, &joined);
    assert_eq!(joined, expected, "{}", paths[0]);
}

fn behaviors() -> [Behavior; 5] {
    [
        Behavior::new(),
        Behavior::new()
            .output_tokens(40)
            .cached_input_tokens(4)
            .cache_write_tokens(2),
        Behavior::new().output_tokens(12).reasoning_tokens(5),
        Behavior::new().line_ending(LineEnding::CrLf),
        Behavior::new().output_tokens(1),
    ]
}

#[test]
fn text_is_the_same_in_both_forms() {
    for paths in PATHS {
        for behavior in behaviors() {
            assert_same(paths, &request(paths[0]), &behavior);
        }
    }
}

#[test]
fn text_that_a_limit_cuts_is_the_same_in_both_forms() {
    for paths in PATHS {
        let mut request = request(paths[0]);
        for name in ["max_tokens", "max_output_tokens"] {
            request[name] = 3.into();
        }
        request["generationConfig"] = json!({"maxOutputTokens": 3});
        assert_same(paths, &request, &Behavior::new().output_tokens(9));
    }
}

#[test]
fn tool_calls_are_the_same_in_both_forms() {
    for paths in PATHS
        .into_iter()
        .filter(|paths| paths[0] != "/v1/completions")
    {
        for behavior in behaviors() {
            let request = with_tool(paths[0], "fluss_日本");
            assert_same(paths, &request, &behavior);
            let stream = streamed(paths[0], &request, &behavior);
            let joined = whole_at(paths[0], &stream).unwrap().to_string();
            assert!(
                joined.contains("fluss_日本") && joined.contains("\u{1f30a}"),
                "{joined}"
            );
        }
    }
}

#[test]
fn escapes_are_the_same_in_both_forms() {
    for paths in PATHS
        .into_iter()
        .filter(|paths| paths[0] != "/v1/completions")
    {
        for behavior in behaviors() {
            assert_same(paths, &with_schema(paths[0]), &behavior);
        }
    }
}

#[test]
fn geminis_array_is_the_same_as_its_events() {
    let [events_path, path] = PATHS[5];
    let array_path = "/v1beta/models/sim-1:streamGenerateContent";
    for request in [request(path), with_tool(path, "log")] {
        let behavior = Behavior::new().reasoning_tokens(2);
        let array = streamed(array_path, &request, &behavior);
        assert_eq!(array[0], b'[');
        let joined = whole_at(array_path, &array);
        assert!(joined.is_some());
        assert_eq!(
            joined,
            whole_at(events_path, &streamed(events_path, &request, &behavior))
        );

        let (dialect, operation) = asked(array_path).unwrap();
        let whole_bytes = whole(dialect, &operation, &array).unwrap();
        let cut = events(dialect, &operation, &whole_bytes, StreamForm::JsonArray)
            .unwrap()
            .concat();
        assert_eq!(whole_at(array_path, &cut), joined);
        let judged = Judged::whole(array_path, &cut);
        assert_eq!(judged.outcome, Outcome::Success);
        assert_eq!(judged, Judged::whole(array_path, &array));
    }
}

#[test]
fn a_message_has_a_role_even_if_its_stream_names_none() {
    let path = PATHS[0][0];
    let behavior = Behavior::new().role_frame(false);
    let text = whole_at(path, &streamed(path, &request(path), &behavior)).unwrap();
    assert_eq!(text["choices"][0]["message"]["role"], "assistant");
    let call = whole_at(path, &streamed(path, &with_tool(path, "log"), &behavior)).unwrap();
    assert_eq!(call["choices"][0]["message"]["content"], Value::Null);
}

#[test]
fn a_caller_that_does_not_ask_for_usage_gets_none() {
    for path in ["/v1/chat/completions", "/v1/completions"] {
        let (dialect, operation) = asked(path).unwrap();
        let body =
            wire::body(path, request(path).to_string().as_bytes(), &Behavior::new()).concat();
        let form = |include_usage| StreamForm::Events { include_usage };
        let without = events(dialect, &operation, &body, form(false))
            .unwrap()
            .concat();
        assert!(!String::from_utf8(without).unwrap().contains("usage"));
        let mut object: Value = serde_json::from_slice(&body).unwrap();
        object.as_object_mut().unwrap().remove("usage");
        let body = object.to_string();
        assert!(events(dialect, &operation, body.as_bytes(), form(false)).is_some());
        assert_eq!(
            events(dialect, &operation, body.as_bytes(), form(true)),
            None
        );
    }
}
