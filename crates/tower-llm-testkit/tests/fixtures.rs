//! The documented fixtures against a second reading: slow, whole bodies, by the providers' documents.
//!
//! The others come from reports about servers that keep to no document; the tests of core judge them.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers below are part of the tests"
)]

use std::collections::HashSet;

use serde_json::Value;
use tower_llm_testkit::{
    Behavior,
    fixtures::{self, ExpectUsage, Fixture, Verdict},
    wire,
};

/// The JSON documents of a body in order; what can't be read is left out.
fn documents(fixture: &Fixture) -> Vec<Value> {
    let text = std::str::from_utf8(fixture.body).unwrap();
    if fixture.is_event_stream() {
        let lines = text.lines().filter_map(|line| line.strip_prefix("data:"));
        return lines
            .filter_map(|json| serde_json::from_str(json).ok())
            .collect();
    }
    match serde_json::from_str(text) {
        Ok(Value::Array(items)) => items,
        Ok(one) => vec![one],
        // The array that was cut.
        Err(_) => serde_json::from_str(&format!("{text}]")).unwrap_or_default(),
    }
}

fn tokens(value: &Value) -> u64 {
    value
        .as_u64()
        .or_else(|| value.as_f64().map(|float| float as u64))
        .unwrap_or(0)
}

/// Brings one usage object of any provider to common terms.
fn read_usage(usage: &Value) -> ExpectUsage {
    let at = |path: &str| usage.pointer(path).map_or(0, tokens);
    let has = |path: &str| usage.pointer(path).is_some();
    if has("/promptTokenCount") {
        ExpectUsage {
            input: at("/promptTokenCount") + at("/toolUsePromptTokenCount"),
            output: at("/candidatesTokenCount") + at("/thoughtsTokenCount"),
            cached_input: at("/cachedContentTokenCount"),
            cache_write: 0,
            reasoning: at("/thoughtsTokenCount"),
        }
    } else if has("/inputTokens") {
        let (read, write) = (at("/cacheReadInputTokens"), at("/cacheWriteInputTokens"));
        ExpectUsage {
            input: at("/inputTokens") + read + write,
            output: at("/outputTokens"),
            cached_input: read,
            cache_write: write,
            reasoning: 0,
        }
    } else if has("/tokens") {
        ExpectUsage {
            input: at("/tokens/input_tokens"),
            output: at("/tokens/output_tokens"),
            cached_input: at("/cached_tokens"),
            cache_write: 0,
            reasoning: 0,
        }
    } else if has("/prompt_tokens") {
        ExpectUsage {
            input: at("/prompt_tokens"),
            output: at("/completion_tokens"),
            cached_input: at("/prompt_tokens_details/cached_tokens"),
            cache_write: at("/prompt_tokens_details/cache_write_tokens"),
            reasoning: at("/completion_tokens_details/reasoning_tokens"),
        }
    } else if has("/input_tokens_details") {
        ExpectUsage {
            input: at("/input_tokens"),
            output: at("/output_tokens"),
            cached_input: at("/input_tokens_details/cached_tokens"),
            cache_write: at("/input_tokens_details/cache_write_tokens"),
            reasoning: at("/output_tokens_details/reasoning_tokens"),
        }
    } else {
        let (read, write) = (
            at("/cache_read_input_tokens"),
            at("/cache_creation_input_tokens"),
        );
        ExpectUsage {
            input: at("/input_tokens") + read + write,
            output: at("/output_tokens"),
            cached_input: read,
            cache_write: write,
            reasoning: at("/output_tokens_details/thinking_tokens"),
        }
    }
}

/// The last usage, each field from the last document that has it.
fn last_usage(documents: &[Value]) -> Option<ExpectUsage> {
    const PLACES: [&str; 6] = [
        "/usage",
        "/usageMetadata",
        "/response/usage",
        "/message/usage",
        "/delta/usage",
        "/x_groq/usage",
    ];
    let mut all: Option<Value> = None;
    for document in documents {
        for usage in PLACES
            .iter()
            .filter_map(|place| document.pointer(place))
            .filter_map(Value::as_object)
        {
            let known = all.get_or_insert_with(|| Value::Object(serde_json::Map::new()));
            for (name, value) in usage {
                known[name] = value.clone();
            }
        }
    }
    all.map(|usage| read_usage(&usage))
}

fn is_terminal(document: &Value) -> bool {
    let is = |place: &str, text: &str| document.pointer(place).is_some_and(|value| value == text);
    is("/type", "message_stop")
        || is("/type", "message-end")
        || is("/type", "response.completed")
        || is("/type", "response.incomplete")
        || document.pointer("/candidates/0/finishReason").is_some()
        || document.pointer("/promptFeedback/blockReason").is_some()
}

fn has_content(document: &Value) -> bool {
    [
        "/choices/0/delta/content",
        "/choices/0/delta/tool_calls/0/function/arguments",
        "/choices/0/text",
        "/delta",
        "/delta/text",
        "/delta/thinking",
        "/delta/partial_json",
        "/delta/message/content/text",
        "/candidates/0/content/parts/0/text",
    ]
    .iter()
    .filter_map(|place| document.pointer(place))
    .any(|value| value.as_str().is_some_and(|text| !text.is_empty()))
        || document
            .pointer("/candidates/0/content/parts/0/functionCall")
            .is_some()
}

fn is_streamed(fixture: &Fixture) -> bool {
    fixture.status == 200
        && (fixture.is_event_stream() || fixture.path.ends_with(":streamGenerateContent"))
}

#[test]
fn names_are_unique_and_lead_to_their_fixture() {
    let mut names = HashSet::new();
    for fixture in fixtures::all() {
        assert!(names.insert(fixture.name), "{} twice", fixture.name);
        assert_eq!(fixtures::named(fixture.name), fixture);
        assert!(
            fixture.path.starts_with('/') && !fixture.body.is_empty(),
            "{}",
            fixture.name
        );
        assert_eq!(
            fixture.header_map().len(),
            fixture.headers.len() + 1,
            "{}",
            fixture.name
        );
    }
    assert!(names.len() > 120, "{}", names.len());
}

#[test]
fn usage_is_the_last_one_in_the_body() {
    for fixture in fixtures::documented() {
        assert_eq!(
            fixture.expect.usage,
            last_usage(&documents(fixture)),
            "{}",
            fixture.name
        );
        if let Some(usage) = fixture.expect.usage {
            assert!(
                usage.cached_input + usage.cache_write <= usage.input,
                "{}",
                fixture.name
            );
            assert!(usage.reasoning <= usage.output, "{}", fixture.name);
        }
    }
}

#[test]
fn a_stream_succeeds_by_its_end_marker_and_by_nothing_else() {
    for fixture in fixtures::documented().filter(|fixture| is_streamed(fixture)) {
        let documents = documents(fixture);
        let text = std::str::from_utf8(fixture.body).unwrap();
        let done = text
            .lines()
            .any(|line| matches!(line, "data: [DONE]" | "data:[DONE]"));
        let failed = documents.iter().any(|json| {
            json["error"].is_object()
                || matches!(json["type"].as_str(), Some("error" | "response.failed"))
        });
        let ended = done || documents.iter().any(is_terminal);
        let seen = match (failed, ended) {
            (true, _) => !matches!(
                fixture.expect.verdict,
                Verdict::Success | Verdict::FailedTruncated
            ),
            (false, true) => fixture.expect.verdict == Verdict::Success,
            (false, false) => fixture.expect.verdict == Verdict::FailedTruncated,
        };
        assert!(seen, "{}: {:?}", fixture.name, fixture.expect.verdict);
        assert_eq!(
            fixture.expect.has_first_token,
            documents.iter().any(has_content),
            "{}",
            fixture.name
        );
    }
}

#[test]
fn a_status_has_a_verdict_that_fits_it() {
    for fixture in fixtures::documented().filter(|fixture| !is_streamed(fixture)) {
        let verdict = fixture.expect.verdict;
        let fits = match fixture.status {
            200 => verdict == Verdict::Success,
            402 => verdict == Verdict::Exhausted,
            403 | 429 => verdict != Verdict::Success && verdict != Verdict::FailedStatus,
            408 | 424 | 500..=599 => {
                matches!(verdict, Verdict::FailedStatus | Verdict::Overloaded { .. })
            }
            498 => matches!(verdict, Verdict::Overloaded { .. }),
            _ => matches!(verdict, Verdict::ClientError | Verdict::Exhausted),
        };
        assert!(fits, "{}: {} {verdict:?}", fixture.name, fixture.status);
        assert!(!fixture.expect.has_first_token, "{}", fixture.name);
        let told = match verdict {
            Verdict::Throttled { retry_after_ms } | Verdict::Overloaded { retry_after_ms } => {
                retry_after_ms
            }
            _ => None,
        };
        let header = fixture
            .headers
            .iter()
            .any(|(name, _)| name.starts_with("retry-after"));
        let text = String::from_utf8_lossy(fixture.body);
        let body = text.contains("retryDelay") || text.contains("try again in ");
        let exhausted = verdict == Verdict::Exhausted;
        assert_eq!(
            told.is_some(),
            (header || body) && !exhausted,
            "{}",
            fixture.name
        );
    }
}

#[test]
fn what_a_checkout_could_change_is_still_there() {
    let body = |name| std::str::from_utf8(fixtures::named(name).body).unwrap();
    assert!(body("openai_chat_stream_crlf").ends_with("\r\n\r\n"));
    assert!(body("gemini_stream").contains("}\r\n\r\ndata: "));
    assert!(body("openai_chat_stream_no_last_blank").ends_with("data: [DONE]"));
}

#[test]
fn a_replay_is_cut_behind_each_event() {
    let fixture = fixtures::named("openai_chat_stream_crlf");
    let frames = wire::body(fixture.path, b"", &Behavior::replay(fixture));
    assert_eq!(frames.len(), 8);
    assert!(frames.iter().all(|frame| frame.ends_with(b"\r\n\r\n")));
    assert_eq!(frames.concat(), fixture.body);
}

/// What the provider makes up reads by the same rules as what was recorded.
#[test]
fn the_simulated_answers_read_like_the_fixtures() {
    let behavior = Behavior::new()
        .input_tokens(100)
        .cached_input_tokens(40)
        .output_tokens(9)
        .reasoning_tokens(3);
    for (path, request) in [
        (
            "/v1/chat/completions",
            r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
        ),
        ("/v1/chat/completions", "{}"),
        (
            "/v1/completions",
            r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
        ),
        ("/v1/responses", r#"{"stream":true}"#),
        ("/v1/responses", "{}"),
        ("/v1/messages", r#"{"stream":true}"#),
        ("/v1beta/models/m:generateContent", "{}"),
        ("/v1beta/models/m:streamGenerateContent?alt=sse", "{}"),
        ("/v1beta/models/m:streamGenerateContent", "{}"),
    ] {
        let body = wire::body(path, request.as_bytes(), &behavior).concat();
        let content_type = if body.starts_with(b"data:") || body.starts_with(b"event:") {
            "text/event-stream"
        } else {
            "application/json"
        };
        let fixture = Fixture {
            body: body.leak(),
            content_type,
            ..*fixtures::named("openai_chat")
        };
        let usage = last_usage(&documents(&fixture)).unwrap();
        let reasoning = if path == "/v1/messages" {
            usage.reasoning
        } else {
            3
        };
        let expected = ExpectUsage {
            input: 100,
            output: 9,
            cached_input: 40,
            cache_write: 0,
            reasoning,
        };
        assert_eq!(usage, expected, "{path} {request}");
    }
}
