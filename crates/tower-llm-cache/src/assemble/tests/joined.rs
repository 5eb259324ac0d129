//! What the simulated provider does not send: chat and text completions.

use serde_json::{Value, json};

use super::{asked, stream, whole, whole_at};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";
const GEMINI: &str = "/v1beta/models/m:streamGenerateContent?alt=sse";

/// Chunks of one choice, and their end.
fn chat(deltas: &[Value]) -> Option<Value> {
    let chunks = deltas
        .iter()
        .map(|delta| json!({"choices": [{"index": 0, "delta": delta}]}));
    let finish = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
    let chunks: Vec<Value> = chunks.chain([finish]).collect();
    whole_at(CHAT, (stream(&chunks) + "data: [DONE]\n\n").as_bytes())
}

fn message(deltas: &[Value]) -> Option<Value> {
    chat(deltas).map(|answer| answer["choices"][0]["message"].clone())
}

#[test]
fn choices_are_told_apart_by_index() {
    let chunks = [
        json!({"id": "a", "choices": [{"index": 1, "delta": {"role": "assistant", "content": "x"}, "finish_reason": null}]}),
        json!({"id": "a", "choices": [{"index": 0, "delta": {"role": "assistant", "content": "y"}}, {"index": 1, "delta": {"content": "z"}}]}),
        json!({"id": "a", "choices": [{"index": 1, "delta": {}, "finish_reason": "length"}]}),
        json!({"id": "a", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}),
    ];
    let joined = whole_at(CHAT, (stream(&chunks) + "data: [DONE]\n\n").as_bytes()).unwrap();
    let expected = json!([
        {"index": 0, "message": {"role": "assistant", "content": "y"}, "finish_reason": "stop"},
        {"index": 1, "message": {"role": "assistant", "content": "xz"}, "finish_reason": "length"},
    ]);
    assert_eq!(joined["choices"], expected);
    let one_open = stream(&chunks[..3]) + "data: [DONE]\n\n";
    assert_eq!(whole_at(CHAT, one_open.as_bytes()), None);
}

#[test]
fn reasoning_goes_on_where_type_and_index_are_the_same() {
    let message = message(&[
        json!({"reasoning": "a", "reasoning_details": [{"type": "reasoning.text", "index": 0, "text": "a", "format": "x"}]}),
        json!({"reasoning": "b", "reasoning_details": [{"type": "reasoning.text", "index": 0, "text": "b"}]}),
        json!({"reasoning_details": [{"type": "reasoning.text", "index": 0, "signature": "s"}, {"type": "reasoning.encrypted", "index": 1, "data": "q"}]}),
        json!({"reasoning_content": "c"}),
        json!({"reasoning_content": "d", "content": "e"}),
    ]);
    let expected = json!({
        "role": "assistant", "content": "e", "reasoning": "ab", "reasoning_content": "cd",
        "reasoning_details": [
            {"type": "reasoning.text", "index": 0, "text": "ab", "format": "x", "signature": "s"},
            {"type": "reasoning.encrypted", "index": 1, "data": "q"},
        ],
    });
    assert_eq!(message, Some(expected));
}

#[test]
fn of_one_delta_no_detail_goes_on_with_another() {
    let detail = |text| json!({"type": "reasoning.text", "text": text});
    let message = message(&[
        json!({"reasoning_details": [detail("a")]}),
        json!({"reasoning_details": [detail("b"), detail("c")]}),
    ])
    .unwrap();
    assert_eq!(
        message["reasoning_details"],
        json!([detail("ab"), detail("c")])
    );
}

#[test]
fn padding_of_chunks_is_left_out() {
    let chunk = json!({"obfuscation": "x7Q", "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]});
    let joined = whole_at(CHAT, (stream(&[chunk]) + "data: [DONE]\n\n").as_bytes()).unwrap();
    assert_eq!(joined.get("obfuscation"), None);
}

#[test]
fn tool_calls_and_the_older_function_call_are_joined() {
    let message = message(&[
        json!({"role": "assistant", "content": null, "tool_calls": [{"index": 1, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}]}),
        json!({"tool_calls": [{"index": 0, "id": "c0", "type": "custom", "custom": {"name": "g", "input": "x"}}, {"index": 1, "id": "c1", "function": {"arguments": "{}"}}]}),
        json!({"tool_calls": [{"index": 0, "custom": {"input": "y"}}], "function_call": {"name": "h", "arguments": "["}}),
        json!({"function_call": {"arguments": "]"}}),
    ])
    .unwrap();
    assert_eq!(
        message["tool_calls"],
        json!([
            {"id": "c0", "type": "custom", "custom": {"name": "g", "input": "xy"}},
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        ])
    );
    assert_eq!(
        message["function_call"],
        json!({"name": "h", "arguments": "[]"})
    );
}

#[test]
fn audio_annotations_and_refusals_are_joined() {
    let joined = message(&[
        json!({"refusal": null, "audio": {"id": "a", "transcript": "x"}}),
        json!({"refusal": "No", "audio": {"data": "QUJD"}, "annotations": [{"type": "url_citation", "n": 1}]}),
        json!({"refusal": ".", "audio": {"data": "QQ==", "transcript": "y", "expires_at": 5}, "annotations": [{"type": "url_citation", "n": 2}]}),
    ])
    .unwrap();
    assert_eq!(
        joined["audio"],
        json!({"id": "a", "transcript": "xy", "data": "QUJDQQ==", "expires_at": 5})
    );
    assert_eq!(joined["refusal"], "No.");
    assert_eq!(joined["annotations"].as_array().unwrap().len(), 2);
    let padded = json!({"audio": {"data": "QQ=="}});
    assert_eq!(message(&[padded.clone(), padded]), None);
}

#[test]
fn logprobs_are_joined() {
    let chunk = |logprobs: Value, finish: Value| json!({"choices": [{"index": 0, "text": "a", "logprobs": logprobs, "finish_reason": finish}]});
    let chunks = [
        chunk(
            json!({"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": null}),
            Value::Null,
        ),
        chunk(
            json!({"tokens": ["b"], "token_logprobs": [-0.25], "top_logprobs": null}),
            Value::Null,
        ),
        chunk(Value::Null, json!("stop")),
    ];
    let joined = whole_at(TEXT, (stream(&chunks) + "data: [DONE]\n\n").as_bytes()).unwrap();
    let expected =
        json!({"tokens": ["a", "b"], "token_logprobs": [-0.5, -0.25], "top_logprobs": null});
    assert_eq!(joined["choices"][0]["logprobs"], expected);
}

#[test]
fn what_cannot_be_joined_for_certain_is_not() {
    let cases = [
        // A text of a name that is not known, or another call under the same index.
        vec![json!({"musing": "a"}), json!({"musing": "b"})],
        vec![
            json!({"tool_calls": [{"index": 0, "id": "a"}]}),
            json!({"tool_calls": [{"index": 0, "id": "b"}]}),
        ],
        vec![json!({"tool_calls": [{"id": "a"}]})],
        vec![
            json!({"content": [{"type": "text"}]}),
            json!({"content": [{"type": "text", "text": "a"}]}),
        ],
        // An integer that a float would round.
        vec![
            json!({"content": "a"}),
            serde_json::from_str(r#"{"n":18446744073709551617}"#).unwrap(),
        ],
    ];
    for deltas in cases {
        assert_eq!(chat(&deltas), None, "{deltas:?}");
    }
    // But the same again is.
    let twice = json!({"musing": "a", "tool_calls": [{"index": 0, "id": "a"}], "n": 1});
    assert!(chat(&[twice.clone(), twice, json!({"n": 2, "musing": null})]).is_some());
}

#[test]
fn errors_and_what_follows_the_end_are_not_joined() {
    let good =
        json!({"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]});
    let end = "data: [DONE]\n\n";
    let good = stream(&[good]);
    assert!(whole_at(CHAT, format!("{good}{end}").as_bytes()).is_some());
    for stream in [
        format!("{good}{end}{good}"),
        format!("{good}{end}{good}{end}"),
        format!("{good}data: {{\"error\":{{}}}}\n\n{end}"),
        format!("{good}event: error\ndata: {{\"choices\":[]}}\n\n{end}"),
        format!("{good}data: {{\n\n{end}"),
        format!("{good}data: 7\n\n{end}"),
        end.to_owned(),
        String::new(),
    ] {
        assert_eq!(whole_at(CHAT, stream.as_bytes()), None, "{stream}");
    }
    for path in [TEXT, RESPONSES, MESSAGES, GEMINI] {
        assert_eq!(whole_at(path, b""), None, "{path}");
        assert_eq!(whole_at(path, good.as_bytes()), None, "{path}");
    }
}

/// An object of OpenAI's has usage, so one without is none that the provider would have sent.
#[test]
fn a_stream_without_usage_is_no_object() {
    let chunk =
        json!({"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]});
    let text = json!({"choices": [{"index": 0, "text": "a", "finish_reason": "stop"}]});
    let usage = json!({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}});
    let null = json!({"choices": [], "usage": null});
    for (path, chunk) in [(CHAT, &chunk), (TEXT, &text)] {
        let (dialect, operation) = asked(path).unwrap();
        let whole = |chunks: &[&Value]| {
            let chunks: Vec<Value> = chunks.iter().map(|&chunk| chunk.clone()).collect();
            let stream = stream(&chunks) + "data: [DONE]\n\n";
            whole(dialect, &operation, stream.as_bytes())
        };
        assert!(whole(&[chunk]).is_none(), "{path}");
        assert!(whole(&[chunk, &null]).is_none(), "{path}");
        let object: Value = serde_json::from_slice(&whole(&[chunk, &usage]).unwrap()).unwrap();
        assert_eq!(object["usage"]["completion_tokens"], 2, "{path}");
    }
}
