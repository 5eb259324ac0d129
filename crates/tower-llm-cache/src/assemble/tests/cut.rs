//! Answers as streams, and back.

use serde_json::{Value, json};

use super::{events_at, whole_at};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";
const GEMINI: &str = "/v1beta/models/m:streamGenerateContent?alt=sse";

#[track_caller]
pub(super) fn assert_round_trip(path: &str, whole: &Value) {
    let frames = events_at(path, whole.to_string().as_bytes()).unwrap();
    assert_eq!(whole_at(path, &frames.concat()).as_ref(), Some(whole));
}

#[test]
fn all_members_survive_being_cut_and_joined() {
    assert_round_trip(
        CHAT,
        &json!({
            "id": "x", "object": "chat.completion", "created": 1, "model": "m", "provider": "p", "citations": ["u"],
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
            "choices": [
                {
                    "index": 0, "finish_reason": "stop", "native_finish_reason": "STOP",
                    "logprobs": {"content": [{"token": "a"}], "refusal": null},
                    "message": {
                        "role": "assistant", "content": "a\u{2028}", "refusal": null, "annotations": [{"type": "x"}],
                        "reasoning": "r", "reasoning_details": [{"type": "t", "text": "1"}, {"type": "t", "text": "2"}],
                        "audio": {"id": "a", "data": "QQ=="}, "function_call": {"name": "f", "arguments": "{}"},
                        "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}, {"id": "2", "function": {"name": "f", "arguments": "{}"}}],
                        "flag": true, "more": "text", "list": [1], "nested": {"a": null},
                    },
                },
                {"index": 1, "finish_reason": "content_filter", "logprobs": null, "message": {"role": "assistant", "content": "", "refusal": "No.", "annotations": [], "tool_calls": []}, "content_filter_results": {"hate": {"filtered": false}}},
                {"index": 2, "finish_reason": "stop", "message": {"role": "assistant", "content": [{"type": "text", "text": "a"}]}},
            ],
        }),
    );
    assert_round_trip(
        TEXT,
        &json!({
            "id": "x", "object": "text_completion", "usage": {"prompt_tokens": 1},
            "choices": [
                {"index": 0, "text": "a", "logprobs": {"tokens": ["a"]}, "finish_reason": "stop", "stop_reason": 7},
                {"index": 1, "text": "", "logprobs": null, "finish_reason": "length"},
            ],
        }),
    );
    assert_round_trip(
        RESPONSES,
        &json!({
            "status": "completed", "usage": {"input_tokens": 1, "output_tokens": 1}, "x": [1],
            "output": [
                {"id": "1", "type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}], "content": [{"type": "reasoning_text", "text": "t"}], "encrypted_content": "e"},
                {"id": "2", "type": "message", "status": "completed", "role": "assistant", "content": [
                    {"type": "output_text", "text": "a", "annotations": [{"type": "url_citation"}], "logprobs": [{"token": "a"}]},
                    {"type": "refusal", "refusal": "No."},
                ]},
                {"id": "3", "type": "function_call", "name": "f", "arguments": "{}", "call_id": "c", "status": "completed"},
                {"id": "4", "type": "custom_tool_call", "name": "f", "input": "x", "call_id": "c"},
                {"id": "5", "type": "web_search_call", "status": "completed", "action": {"query": "q"}},
            ],
        }),
    );
    assert_round_trip(
        MESSAGES,
        &json!({
            "id": "m", "type": "message", "role": "assistant", "model": "c", "container": {"id": "k"}, "stop_reason": "stop_sequence", "stop_sequence": "x",
            "context_management": {"applied_edits": [1]}, "usage": {"input_tokens": 3, "output_tokens": 0},
            "content": [
                {"type": "thinking", "thinking": "", "signature": "s"},
                {"type": "redacted_thinking", "data": "d"},
                {"type": "text", "text": "a", "citations": [{"n": 1}]},
                {"type": "text", "text": "", "citations": null},
                {"type": "server_tool_use", "id": "s", "name": "w", "input": {"query": "q"}},
                {"type": "web_search_tool_result", "tool_use_id": "s", "content": [{"title": "t"}]},
            ],
        }),
    );
}

#[test]
fn an_answer_that_is_not_finished_is_not_cut() {
    let cases = [
        (CHAT, json!({"choices": []})),
        (
            CHAT,
            json!({"choices": [{"index": 0, "message": {"content": "a"}}], "usage": {}}),
        ),
        (CHAT, json!({"error": {"message": "x"}})),
        (
            TEXT,
            json!({"choices": [{"index": 0, "finish_reason": "stop"}], "usage": {}}),
        ),
        (RESPONSES, json!({"status": "in_progress", "output": []})),
        (
            RESPONSES,
            json!({"status": "completed", "output": [], "error": {"code": "x"}}),
        ),
        (MESSAGES, json!({"content": [], "stop_reason": null})),
        (
            MESSAGES,
            json!({"type": "error", "error": {"type": "overloaded_error"}}),
        ),
        (GEMINI, json!({"candidates": [{"content": {}}]})),
        (GEMINI, json!({"error": {"code": 500}})),
    ];
    for (path, whole) in cases {
        assert_eq!(
            events_at(path, whole.to_string().as_bytes()),
            None,
            "{path} {whole}"
        );
    }
    assert_eq!(events_at(CHAT, b"{"), None);
}
