//! Recorded bodies.

use serde_json::{Value, json};
use tower_llm_core::Outcome;
use tower_llm_testkit::fixtures::{self, Fixture, Verdict};

use super::{Judged, StreamForm, asked, events, events_at, whole, whole_at};

/// Streams that core takes for good, and why there is no object of them.
const NOT_JOINED: [(&str, &str); 16] = [
    ("chat_stream_no_done", "no [DONE]"),
    ("chat_stream_no_done_no_usage", "no [DONE]"),
    ("chat_stream_two_choices_no_done", "no [DONE]"),
    ("openai_chat_stream_no_usage", "no usage"),
    ("openai_completions_stream_no_usage", "no usage"),
    ("proxy_stream_error_code_zero", "no usage"),
    ("moonshot_stream_usage", "usage in a choice"),
    ("groq_chat_stream_x_groq", "usage in x_groq"),
    ("chat_stream_done_no_finish", "no finish reason"),
    ("chat_stream_done_as_text", "no finish reason"),
    ("completions_stream_no_done", "no [DONE]"),
    ("anthropic_stream_no_stop", "no message_stop"),
    ("anthropic_stream_zero_input", "a delta without its block"),
    (
        "anthropic_stream_less_input_at_the_end",
        "a delta without its block",
    ),
    ("anthropic_stream_iterations", "a delta without its block"),
    (
        "openai_responses_stream_interpreter_code",
        "no output in the object",
    ),
];

/// Answers that core takes for good, and why there is no stream of them.
const NOT_CUT: [(&str, &str); 1] = [("gemini_interaction", "an API of its own")];

fn is_stream(fixture: &Fixture) -> bool {
    fixture.is_event_stream() || fixture.path.contains(":streamGenerateContent")
}

fn is_good(fixture: &Fixture) -> bool {
    fixture.status == 200 && fixture.expect.verdict == Verdict::Success
}

fn is_listed(fixture: &Fixture, list: &[(&str, &str)]) -> bool {
    list.iter().any(|(name, _)| *name == fixture.name)
}

#[test]
fn every_good_stream_is_joined_and_judged_as_before() {
    let mut joined = 0;
    for fixture in fixtures::all().iter().filter(|fixture| is_stream(fixture)) {
        let Some((dialect, operation)) = asked(fixture.path) else {
            continue;
        };
        let name = fixture.name;
        let Some(whole) = whole(dialect, &operation, fixture.body) else {
            let is_expected = !is_good(fixture) || is_listed(fixture, &NOT_JOINED);
            assert!(is_expected, "{name} is not joined");
            continue;
        };
        assert!(!is_listed(fixture, &NOT_JOINED), "{name} is listed");
        let judged = Judged::whole(fixture.path, &whole);
        if !is_good(fixture) {
            // The only sign of the failure is the finish reason, and it is kept.
            assert_ne!(judged.outcome, Outcome::Success, "{name}");
            continue;
        }
        assert_eq!(
            judged,
            Judged::of(fixture.path, fixture.content_type, fixture.body),
            "{name}"
        );
        joined += 1;
    }
    assert!(joined >= 30, "only {joined}");
}

#[test]
fn every_good_answer_survives_being_cut_and_joined() {
    let mut cut = 0;
    for fixture in fixtures::all().iter().filter(|fixture| !is_stream(fixture)) {
        if asked(fixture.path).is_none() {
            continue;
        }
        let name = fixture.name;
        let form = StreamForm::Events {
            include_usage: serde_json::from_slice::<Value>(fixture.body)
                .is_ok_and(|body| body["usage"].is_object()),
        };
        let (dialect, operation) = asked(fixture.path).unwrap();
        let Some(frames) = events(dialect, &operation, fixture.body, form) else {
            let is_expected = !is_good(fixture) || is_listed(fixture, &NOT_CUT);
            assert!(is_expected, "{name} is not cut");
            continue;
        };
        assert!(!is_listed(fixture, &NOT_CUT), "{name} is listed");
        if !is_good(fixture) {
            // The only sign of the failure is the finish reason, and it is kept.
            let outcome = Judged::events(fixture.path, &frames.concat()).outcome;
            assert_ne!(outcome, Outcome::Success, "{name}");
            continue;
        }
        let stream = frames.concat();
        let before = with_role(serde_json::from_slice(fixture.body).unwrap());
        assert_eq!(whole_at(fixture.path, &stream), Some(before), "{name}");
        let judged = Judged::events(fixture.path, &stream);
        assert_eq!(judged.outcome, Outcome::Success, "{name}");
        assert_eq!(judged, Judged::whole(fixture.path, fixture.body), "{name}");
        cut += 1;
    }
    assert!(cut >= 20, "only {cut}");
}

/// Some recorded answers are shortened to what a test of core needed. A message that was joined has a role.
fn with_role(mut answer: Value) -> Value {
    let choices = answer.get_mut("choices").and_then(Value::as_array_mut);
    for choice in choices.into_iter().flatten() {
        if let Some(Value::Object(message)) = choice.get_mut("message") {
            message.entry("role").or_insert_with(|| json!("assistant"));
            message.entry("content").or_insert(Value::Null);
        }
    }
    answer
}

#[test]
fn recorded_text_is_joined_word_for_word() {
    let said = |name: &str, pointer: &str| {
        let fixture = fixtures::named(name);
        let whole = whole_at(fixture.path, fixture.body).unwrap();
        whole
            .pointer(pointer)
            .unwrap_or_else(|| panic!("{whole}"))
            .clone()
    };
    let cases = [
        (
            "openai_chat_stream",
            "/choices/0/message/content",
            json!("A river."),
        ),
        ("openai_chat_stream", "/object", json!("chat.completion")),
        (
            "openai_chat_stream",
            "/choices/0/message/annotations",
            json!([]),
        ),
        (
            "openai_chat_stream_crlf",
            "/choices/0/message/content",
            json!("A river"),
        ),
        ("azure_chat_stream", "/id", json!("chatcmpl-CkQ1xv2n")),
        ("azure_chat_stream", "/created", json!(1_790_000_000)),
        (
            "azure_chat_stream",
            "/prompt_filter_results/0/prompt_index",
            json!(0),
        ),
        ("groq_chat_stream_x_groq", "/x_groq/seed", json!(1)),
        (
            "moonshot_stream_usage",
            "/choices/0/usage/prompt_tokens",
            json!(1900),
        ),
        (
            "chat_stream_zero_at_the_end",
            "/usage/prompt_tokens",
            json!(1900),
        ),
        (
            "openai_chat_stream_tools",
            "/choices/0/message/tool_calls",
            json!([{"id": "call_1", "type": "function", "function": {"name": "log", "arguments": "{\"usage\":{\"prompt_tokens\":999999,\"completion_tokens\":888888},\"error\":{\"message\":\"none\",\"code\":\"rate_limit_exceeded\"}}"}}]),
        ),
        (
            "openai_completions_stream",
            "/choices",
            json!([{"text": "\n\nA river", "index": 0, "logprobs": null, "finish_reason": "stop"}]),
        ),
        (
            "anthropic_stream",
            "/content",
            json!([{"type": "text", "text": "A river"}]),
        ),
        ("anthropic_stream", "/stop_reason", json!("end_turn")),
        (
            "anthropic_stream_thinking",
            "/content/0",
            json!({"type": "thinking", "thinking": "Let me see. \"usage\":{\"output_tokens\":9}", "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3h"}),
        ),
        (
            "anthropic_stream_tools",
            "/content/0/input/usage/input_tokens",
            json!(999_999),
        ),
        (
            "anthropic_stream_two_deltas",
            "/usage/output_tokens",
            json!(510),
        ),
        (
            "anthropic_stream_two_deltas",
            "/usage/service_tier",
            json!("standard"),
        ),
        (
            "gemini_stream",
            "/candidates/0/content/parts",
            json!([{"text": "A river."}]),
        ),
        (
            "gemini_stream_thoughts",
            "/candidates/0/content/parts",
            json!([{"text": "Let me see.", "thought": true}, {"text": "It is 42."}]),
        ),
        (
            "gemini_stream_array_thoughts",
            "/candidates/0/content/parts/1/text",
            json!("It is 42."),
        ),
        (
            "gemini_stream_tools",
            "/candidates/0/content/parts/0/functionCall/name",
            json!("log"),
        ),
        (
            "gemini_stream_blocked",
            "/promptFeedback/blockReason",
            json!("PROHIBITED_CONTENT"),
        ),
    ];
    for (name, pointer, expected) in cases {
        assert_eq!(said(name, pointer), expected, "{name} {pointer}");
    }
}

#[test]
fn streams_of_recorded_answers_name_their_events() {
    let names = |name: &str| -> Vec<String> {
        let fixture = fixtures::named(name);
        let frames = events_at(fixture.path, fixture.body).unwrap();
        let frames = frames
            .iter()
            .map(|frame| std::str::from_utf8(frame).unwrap());
        frames
            .map(|frame| {
                assert!(
                    frame.ends_with("\n\n") && frame.trim_end().lines().count() == 2,
                    "{frame}"
                );
                frame.lines().next().unwrap()["event: ".len()..].to_owned()
            })
            .collect()
    };
    assert_eq!(
        names("anthropic_messages_thinking"),
        [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_delta",
            "content_block_stop",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
    );
    assert_eq!(
        names("openai_responses"),
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.output_item.done",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    assert_eq!(
        names("openai_responses_incomplete").last().unwrap(),
        "response.incomplete"
    );
}
