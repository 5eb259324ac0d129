//! What the simulated provider does not send: the dialects that have parts.

use serde_json::{Value, json};

use super::{cut::assert_round_trip, stream, whole_at};

const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";
const GEMINI: &str = "/v1beta/models/m:streamGenerateContent?alt=sse";

fn gemini(parts: &[Value]) -> Option<Value> {
    let chunks = parts
        .iter()
        .map(|part| json!({"candidates": [{"content": {"parts": [part], "role": "model"}}]}));
    let finish = json!({"candidates": [{"finishReason": "STOP"}]});
    let chunks: Vec<Value> = chunks.chain([finish]).collect();
    let answer = whole_at(GEMINI, stream(&chunks).as_bytes())?;
    Some(answer["candidates"][0]["content"]["parts"].clone())
}

fn anthropic(start: Value, deltas: &[Value]) -> Option<Value> {
    let mut events = vec![
        json!({"type": "message_start", "message": {"content": [], "stop_reason": null, "usage": {"output_tokens": 1}}}),
        json!({"type": "content_block_start", "index": 0, "content_block": start}),
    ];
    events.extend(
        deltas
            .iter()
            .map(|delta| json!({"type": "content_block_delta", "index": 0, "delta": delta})),
    );
    events.extend([
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}, "context_management": {"applied_edits": []}}),
        json!({"type": "message_stop"}),
    ]);
    whole_at(MESSAGES, stream(&events).as_bytes())
}

#[test]
fn blocks_of_a_message_are_joined() {
    let cited = anthropic(
        json!({"type": "text", "text": ""}),
        &[
            json!({"type": "citations_delta", "citation": {"n": 1}}),
            json!({"type": "text_delta", "text": "a"}),
            json!({"type": "citations_delta", "citation": {"n": 2}}),
        ],
    )
    .unwrap();
    assert_eq!(
        cited["content"][0],
        json!({"type": "text", "text": "a", "citations": [{"n": 1}, {"n": 2}]})
    );
    assert_eq!(cited["context_management"], json!({"applied_edits": []}));
    assert_eq!(cited["usage"], json!({"output_tokens": 9}));
    assert_round_trip(MESSAGES, &cited);

    let tool = |json: &str| {
        let delta = json!({"type": "input_json_delta", "partial_json": json});
        anthropic(
            json!({"type": "tool_use", "id": "t", "input": {}}),
            &[delta],
        )
    };
    assert_eq!(tool("").unwrap()["content"][0]["input"], json!({}));
    assert_eq!(
        tool(r#"{"a":1}"#).unwrap()["content"][0]["input"],
        json!({"a": 1})
    );
    assert_round_trip(MESSAGES, &tool(r#"{"a":1}"#).unwrap());
    // Cut by the limit, or too large a number.
    assert_eq!(tool(r#"{"a":"#), None);
    assert_eq!(tool(r#"{"a":18446744073709551617}"#), None);
    assert_eq!(
        anthropic(
            json!({"type": "text", "text": ""}),
            &[json!({"type": "new_delta", "x": 1})]
        ),
        None
    );
    assert_eq!(
        anthropic(
            json!({"type": "text", "text": ""}),
            &[json!({"type": "text_delta", "text": "a", "x": 1})]
        ),
        None
    );
}

#[test]
fn a_message_without_its_end_is_not_joined() {
    let events = [
        json!({"type": "message_start", "message": {"stop_reason": null, "usage": {"input_tokens": 70, "output_tokens": 1}}}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "a"}}),
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"input_tokens": 0, "output_tokens": 4}}),
        json!({"type": "message_stop"}),
    ];
    let joined = whole_at(MESSAGES, stream(&events).as_bytes()).unwrap();
    assert_eq!(
        joined["usage"],
        json!({"input_tokens": 70, "output_tokens": 4})
    );
    // The block's end, the reason and the last event are all needed.
    for missing in [0, 1, 2, 3, 4] {
        let mut events = events.to_vec();
        events.remove(missing);
        assert_eq!(
            whole_at(MESSAGES, stream(&events).as_bytes()),
            None,
            "{missing}"
        );
    }
}

#[test]
fn a_response_that_lacks_its_items_is_not_joined() {
    let stream_of = |response: Value| {
        let item = json!({"type": "response.output_item.done", "item": {}});
        stream(&[
            item,
            json!({"type": "response.completed", "response": response}),
        ])
    };
    let good = json!({"status": "completed", "output": [{}], "error": null});
    let joined = |response: &Value| whole_at(RESPONSES, stream_of(response.clone()).as_bytes());
    assert_eq!(joined(&good), Some(good.clone()));
    assert_eq!(joined(&json!({"status": "completed", "output": []})), None);
    assert_eq!(
        joined(&json!({"status": "completed", "output": [{}], "error": {"code": "x"}})),
        None
    );
}

#[test]
fn parts_of_a_candidate_are_joined() {
    let parts = gemini(&[
        json!({"text": "a", "thought": true}),
        json!({"text": "b", "thought": true}),
        json!({"text": "c"}),
        json!({"text": "d"}),
        json!({"functionCall": {"name": "f", "args": {}}, "thoughtSignature": "s"}),
        json!({"text": "e"}),
        json!({"text": "", "thoughtSignature": "t"}),
        json!({"text": ""}),
    ]);
    let expected = json!([
        {"text": "ab", "thought": true},
        {"text": "cd"},
        {"functionCall": {"name": "f", "args": {}}, "thoughtSignature": "s"},
        {"text": "e"},
        {"text": "", "thoughtSignature": "t"},
    ]);
    assert_eq!(parts, Some(expected));
    assert_eq!(
        gemini(&[json!({"functionCall": {"name": "f", "willContinue": true}})]),
        None
    );
}

#[test]
fn candidates_are_told_apart_by_index() {
    let chunks = [
        json!({"candidates": [{"content": {"parts": [{"text": "a"}]}}, {"index": 1, "content": {"parts": [{"text": "b"}]}}], "usageMetadata": {"promptTokenCount": 1, "thoughtsTokenCount": 2}}),
        json!({"candidates": [{"index": 1, "content": {"parts": [{"text": "c"}]}, "finishReason": "STOP", "safetyRatings": [{"x": 1}]}]}),
        json!({"candidates": [{"finishReason": "STOP", "groundingMetadata": {"chunks": [1]}}], "usageMetadata": {"promptTokenCount": 5}}),
    ];
    let joined = whole_at(GEMINI, stream(&chunks).as_bytes()).unwrap();
    let expected = json!({
        "candidates": [
            {"content": {"parts": [{"text": "a"}]}, "finishReason": "STOP", "groundingMetadata": {"chunks": [1]}},
            {"index": 1, "content": {"parts": [{"text": "bc"}]}, "finishReason": "STOP", "safetyRatings": [{"x": 1}]},
        ],
        "usageMetadata": {"promptTokenCount": 5, "thoughtsTokenCount": 2},
    });
    assert_eq!(joined, expected);
    assert_eq!(whole_at(GEMINI, stream(&chunks[..2]).as_bytes()), None);
    let mut two = chunks.to_vec();
    two.push(json!({"candidates": [{"groundingMetadata": {"chunks": [2]}}]}));
    assert_eq!(whole_at(GEMINI, stream(&two).as_bytes()), None);
}
