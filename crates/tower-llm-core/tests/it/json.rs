//! The values read from a passing JSON body are those that a parser finds in all of it, and no body makes it panic.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};
use tower_llm_core::{Completion, FinishReason, Outcome, Usage};

use crate::support::{Script, Summary, json as unary, response, sse, watch_to_end};

/// Cuts `body` into pieces of the given lengths, and then the rest of it.
fn pieces(body: &[u8], lengths: &[usize]) -> Vec<Bytes> {
    let mut rest = Bytes::copy_from_slice(body);
    let mut pieces: Vec<_> = lengths
        .iter()
        .map(|&length| rest.split_to(length.min(rest.len())))
        .collect();
    pieces.push(rest);
    pieces
}

// === documents of the providers ===

/// The writer of a document.
#[derive(Clone, Copy, Debug)]
enum From {
    OpenAi,
    OpenAiResponses,
    Anthropic,
    Gemini,
}

/// The content of a document, apart from how it is written.
#[derive(Clone, Debug)]
struct Answer {
    from: From,
    texts: Vec<String>,
    input: u64,
    output: u64,
    cached: u64,
    cache_write: u64,
    reasoning: u64,
    is_error: bool,
    noise: Vec<(String, Value)>,
}

impl Answer {
    /// The document, with noise in every object where a provider may add members.
    fn document(&self) -> Value {
        let (input, output) = (self.input, self.output);
        let mut document = match self.from {
            From::OpenAi => json!({
                "id": "chatcmpl-1",
                "choices": self.texts.iter().enumerate().map(|(index, text)| self.noisy(json!({
                    "index": index,
                    "message": self.noisy(json!({ "role": "assistant", "content": text, "refusal": null })),
                    "finish_reason": "length",
                }))).collect::<Vec<_>>(),
                "usage": self.noisy(json!({
                    "prompt_tokens": input,
                    "completion_tokens": output,
                    "total_tokens": 1,
                    "prompt_tokens_details": { "audio_tokens": 3, "cached_tokens": self.cached },
                    "completion_tokens_details": { "reasoning_tokens": self.reasoning, "audio_tokens": 4 },
                })),
            }),
            From::OpenAiResponses => json!({
                "object": "response",
                "status": "completed",
                "error": null,
                "output": [self.noisy(json!({
                    "type": "message",
                    "content": self.texts.iter().map(|text| json!({
                        "type": "output_text", "text": text, "annotations": [{ "text": "not output" }],
                    })).collect::<Vec<_>>(),
                }))],
                "usage": self.noisy(json!({
                    "input_tokens": input,
                    "input_tokens_details": { "cached_tokens": self.cached },
                    "output_tokens": output,
                    "output_tokens_details": { "reasoning_tokens": self.reasoning },
                })),
            }),
            From::Anthropic => json!({
                "type": "message",
                "role": "assistant",
                "content": self.texts.iter().map(|text| self.noisy(json!({ "type": "text", "text": text }))).collect::<Vec<_>>(),
                "stop_reason": "max_tokens",
                "usage": self.noisy(json!({
                    "input_tokens": input,
                    "cache_read_input_tokens": self.cached,
                    "cache_creation_input_tokens": self.cache_write,
                    "cache_creation": { "input_tokens": 5 },
                    "output_tokens": output,
                })),
            }),
            From::Gemini => json!({
                "candidates": self.texts.iter().map(|text| self.noisy(json!({
                    "content": { "role": "model", "parts": [
                        { "text": text },
                        { "functionCall": { "name": "f", "args": misleading() } },
                    ] },
                    "finishReason": "MAX_TOKENS",
                }))).collect::<Vec<_>>(),
                "usageMetadata": self.noisy(json!({
                    "promptTokenCount": input,
                    "cachedContentTokenCount": self.cached,
                    "candidatesTokenCount": output,
                    "thoughtsTokenCount": self.reasoning,
                    "totalTokenCount": 2,
                })),
            }),
        };
        if self.is_error {
            document["error"] =
                self.noisy(json!({ "message": "no", "code": "rate_limit_exceeded" }));
        }
        self.noisy(document)
    }

    fn noisy(&self, mut object: Value) -> Value {
        let members = object.as_object_mut().unwrap();
        members.extend(self.noise.iter().cloned());
        object
    }

    fn usage(&self) -> Option<Usage> {
        let mut usage = Usage::new(self.input, self.output);
        usage.cached_input = self.cached;
        usage.reasoning = self.reasoning;
        match self.from {
            // More reasoning than output cannot be part of it.
            From::OpenAi | From::OpenAiResponses if self.reasoning > self.output => {
                usage.output += self.reasoning;
            }
            From::OpenAi | From::OpenAiResponses => {}
            From::Anthropic => {
                usage.cache_write = self.cache_write;
                usage.input += self.cached + self.cache_write;
                usage.reasoning = 0;
            }
            From::Gemini => usage.output += self.reasoning,
        }
        // A part is never more than the whole, whatever the provider reports.
        usage.cached_input = usage.cached_input.min(usage.input);
        usage.reasoning = usage.reasoning.min(usage.output);
        // Zeros report nothing if output was seen.
        let seen = self.output_seen();
        if usage.output == 0 && seen > 0 {
            usage.output = seen;
            return Some(usage).filter(|usage| usage.input > 0);
        }
        Some(usage)
    }

    fn finish(&self) -> Option<FinishReason> {
        match self.from {
            From::OpenAiResponses => Some(FinishReason::Stop),
            _ if self.texts.is_empty() && !matches!(self.from, From::Anthropic) => None,
            _ => Some(FinishReason::Length),
        }
    }

    fn output_seen(&self) -> u64 {
        let bytes = |text: &String| {
            text.bytes()
                .map(|byte| if is_long_escape(byte) { 3 } else { 1 })
                .sum::<u64>()
        };
        self.texts.iter().map(bytes).sum::<u64>().div_ceil(4)
    }

    fn outcome(&self) -> Outcome {
        match self.is_error {
            true => Outcome::Throttled { retry_after: None },
            false => Outcome::Success,
        }
    }
}

/// JSON writes these as `\u001f`, which is counted as three bytes.
fn is_long_escape(byte: u8) -> bool {
    byte < b' ' && !b"\x08\t\n\x0c\r".contains(&byte)
}

/// What the arguments of a tool may look like.
fn misleading() -> Value {
    json!({
        "usage": { "prompt_tokens": 999_999, "input_tokens": 999_999 },
        "usageMetadata": { "promptTokenCount": 999_999 },
        "error": { "code": 429, "type": "insufficient_quota" },
        "choices": [{ "finish_reason": "stop", "delta": { "content": "not output" } }],
        "text": "not output \" }]",
        "finishReason": "STOP",
        "type": "message_stop",
    })
}

fn tangled() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ -~]{0,40}",
        any::<String>(),
        "[\"\\\\{}\\[\\]:,\n\r\u{1}]{0,40}",
        "[😀你é𝄞]{0,20}",
        "[a-z]{60,140}",
    ]
}

/// Members that no provider's response is recognised by, whatever they contain.
fn noise() -> impl Strategy<Value = Vec<(String, Value)>> {
    let key = prop_oneof![
        "x_[a-z]{0,8}",
        "x_[a-z]{60,90}",
        // Would be recognised without the rest.
        Just("usage_and_something_more".to_owned()),
        "x_[\"\\\\😀]{1,6}",
    ];
    let value = prop_oneof![
        Just(misleading()),
        tangled().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop::num::f64::NORMAL.prop_map(Value::from),
        Just(Value::Null),
        (0_usize..40, tangled()).prop_map(|(depth, text)| {
            (0..depth).fold(Value::from(text), |inner, depth| match depth % 2 {
                0 => json!([inner, misleading()]),
                _ => json!({ "usage": inner, "error": 1 }),
            })
        }),
    ];
    prop::collection::vec((key, value), 0..4)
}

fn answer() -> impl Strategy<Value = Answer> {
    let from = prop::sample::select(vec![
        From::OpenAi,
        From::OpenAiResponses,
        From::Anthropic,
        From::Gemini,
    ]);
    let tokens = || 0_u64..1 << 40;
    (
        (
            from,
            prop::collection::vec(tangled(), 0..4),
            prop::bool::weighted(0.2),
        ),
        (tokens(), tokens(), tokens(), tokens(), tokens()),
        noise(),
    )
        .prop_map(
            |((from, texts, is_error), (input, output, cached, cache_write, reasoning), noise)| {
                Answer {
                    from,
                    texts,
                    input,
                    output,
                    cached,
                    cache_write,
                    reasoning,
                    is_error,
                    noise,
                }
            },
        )
}

fn assert_reads(completion: &Completion, answer: &Answer) {
    assert_eq!(completion.outcome, answer.outcome());
    assert_eq!(completion.usage, answer.usage());
    assert_eq!(completion.output_seen, answer.output_seen());
    assert_eq!(completion.finish, answer.finish());
    assert_eq!(completion.first_token_at, None);
}

proptest! {
    #[test]
    fn values_are_read_as_written(
        answer in answer(),
        is_pretty in any::<bool>(),
        lengths in prop::collection::vec(0_usize..60, 0..60),
    ) {
        let document = answer.document();
        let body = match is_pretty {
            true => serde_json::to_vec_pretty(&document).unwrap(),
            false => document.to_string().into_bytes(),
        };
        let (completion, _) = watch_to_end(None, unary(Script::data(pieces(&body, &lengths))));
        assert_reads(&completion, &answer);
    }

    #[test]
    fn members_may_come_in_any_order(answer in answer(), seed in any::<u64>()) {
        let document = shuffled(answer.document(), seed).to_string();
        let (completion, _) = watch_to_end(None, unary(Script::data([document])));
        assert_reads(&completion, &answer);
    }

    #[test]
    fn an_event_of_many_lines_is_one_document(answer in answer()) {
        let pretty = serde_json::to_string_pretty(&answer.document()).unwrap();
        let body = format!("data: {}\n\n", pretty.replace('\n', "\ndata: "));
        let (completion, _) = watch_to_end(None, sse(Script::data([body])));
        prop_assert_eq!(completion.usage, answer.usage());
        prop_assert_eq!(completion.output_seen, answer.output_seen());
        prop_assert_eq!(completion.finish, answer.finish());
    }
}

/// The same document with the members of its root in another order.
fn shuffled(document: Value, seed: u64) -> Raw {
    let Value::Object(members) = document else {
        panic!("not an object")
    };
    let mut members: Vec<_> = members.into_iter().collect();
    let length = members.len().max(1);
    members.rotate_left((seed % length as u64) as usize);
    if seed & (1 << 63) != 0 {
        members.reverse();
    }
    Raw(members)
}

/// An object in its own order.
struct Raw(Vec<(String, Value)>);

impl std::fmt::Display for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let member =
            |(key, value): &(String, Value)| format!("{}:{value}", Value::from(key.as_str()));
        let members: Vec<_> = self.0.iter().map(member).collect();
        write!(f, "{{{}}}", members.join(","))
    }
}

// === arbitrary bytes ===

const CONTENT_TYPES: [&str; 4] = [
    "application/json",
    "text/event-stream",
    "application/grpc",
    "application/octet-stream",
];

/// Bytes that look like JSON.
fn lookalike() -> impl Strategy<Value = Vec<u8>> {
    let word = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        "\"",
        ":",
        ",",
        "\\",
        "\\u",
        "0",
        "-1",
        "1e9",
        ".",
        "true",
        "null",
        " ",
        "\n",
        "\r",
        "\r\n",
        "\n\n",
        "data:",
        "data: ",
        "event: error",
        "event:",
        ": comment",
        "[DONE]",
        "\"usage\"",
        "\"error\"",
        "\"type\"",
        "\"choices\"",
        "\"delta\"",
        "\"content\"",
        "\"prompt_tokens\"",
        "\"message_stop\"",
        "\"candidates\"",
        "\"finishReason\"",
        "\"STOP\"",
        "\"retryDelay\"",
        "\"9s\"",
        "😀",
        "\u{feff}",
    ]);
    prop::collection::vec(word, 0..60).prop_map(|words| words.concat().into_bytes())
}

fn garbage() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![prop::collection::vec(any::<u8>(), 0..400), lookalike()]
}

/// The summary of a body, without the first token: when it passed may depend on the frames if the body is not JSON.
fn summary_of(status: u16, content_type: &str, body: Script) -> Summary {
    let mut summary = Summary::from(watch_to_end(None, response(status, content_type, body)).0);
    summary.has_first_token = false;
    summary
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_bytes_make_a_reader_panic_or_see_where_they_were_cut(
        content_type in prop::sample::select(&CONTENT_TYPES[..]),
        status in prop::sample::select(vec![200_u16, 204, 302, 400, 429, 500, 529]),
        body in garbage(),
        lengths in prop::collection::vec(0_usize..9, 0..80),
    ) {
        let whole = summary_of(status, content_type, Script::data([body.clone()]));
        let cut = summary_of(status, content_type, Script::data(pieces(&body, &lengths)));
        prop_assert_eq!(cut, whole);
    }
}

#[test]
fn an_empty_object_reports_nothing() {
    let (completion, _) = watch_to_end(None, unary(Script::data(["{}"])));
    assert_eq!(
        (completion.outcome, completion.usage, completion.output_seen),
        (Outcome::Success, None, 0)
    );
}
