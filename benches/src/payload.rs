//! Requests and responses in the shapes that providers send and take.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};

/// What people and models write, with what JSON makes long: quotes, line ends, other alphabets.
const SENTENCES: [&str; 8] = [
    "Could you compare the two proposals and tell me which one is cheaper over three years?",
    "Here is what I tried so far:\n\n```rust\nlet total: u64 = items.iter().map(|item| item.price).sum();\nassert_eq!(total, 42);\n```\n",
    "The report says \"revenue grew by 12.5 % year over year\", but the table on page 4 shows 11.9 %.",
    "Pour l'équipe à Genève, c'est différent : le délai est de six semaines, déjà négocié.",
    "1. Check the invoice number.\n2. Look up the customer.\n3. If nothing is found, ask for the order date.\n",
    "Well, that depends on the jurisdiction; in most of them a written notice of thirty days is enough.",
    "<result id=\"17\">\n\t<status>ok</status>\n\t<path>C:\\data\\2025\\export.csv</path>\n</result>\n",
    "会议改到星期四下午三点，请提前十分钟到。",
];

/// How models cut their answers into tokens.
const TOKENS: [&str; 12] = [
    " the",
    " contract",
    " ends",
    ",",
    " unless",
    " either",
    " party",
    "\n\n",
    "**",
    " Note",
    ":",
    " é",
];

/// The headers of a streamed response that bear on a call; limits that no benchmark reaches.
const STREAM_HEADERS: [(&str, &str); 7] = [
    ("content-type", "text/event-stream; charset=utf-8"),
    ("x-ratelimit-limit-requests", "2000000000"),
    ("x-ratelimit-limit-tokens", "2000000000"),
    ("x-ratelimit-remaining-requests", "1999999999"),
    ("x-ratelimit-remaining-tokens", "1999999500"),
    ("x-ratelimit-reset-requests", "1ms"),
    ("x-ratelimit-reset-tokens", "1ms"),
];

const MODEL: &str = "gpt-5.1-2025-11-13";

/// The headers of OpenAI's streamed responses, with the limits that a rate limit learns from.
#[must_use]
pub fn stream_headers() -> HeaderMap {
    let headers = STREAM_HEADERS.iter().map(|(name, value)| {
        (
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )
    });
    headers.collect()
}

/// The body of a chat request of about `bytes`: a conversation, and two tools.
#[must_use]
pub fn chat_request(bytes: usize) -> Bytes {
    let role = ["user", "assistant"];
    let message = |i: usize| json!({"role": role[i % 2], "content": paragraph(i)});
    let rest = json!({
        "model": MODEL,
        "messages": [{"role": "system", "content": "You are a careful assistant. Answer briefly."}],
        "tools": [tool("lookup_order"), tool("search_documents")],
        "tool_choice": "auto",
        "temperature": 0.7,
        "max_completion_tokens": 1024,
        "stream": true,
        "stream_options": {"include_usage": true},
        "metadata": {"session": "8c0f6a52-1f1e-4a60-9a53-0f7c0c6d8a11"},
    });
    fill(rest, "messages", message, bytes)
}

/// The body of an Anthropic request of about `bytes`.
#[must_use]
pub fn anthropic_request(bytes: usize) -> Bytes {
    let role = ["user", "assistant"];
    let message = |i: usize| json!({"role": role[i % 2], "content": [{"type": "text", "text": paragraph(i)}]});
    let rest = json!({
        "model": "claude-sonnet-5",
        "max_tokens": 1024,
        "system": [{"type": "text", "text": "Answer briefly.", "cache_control": {"type": "ephemeral"}}],
        "messages": [],
        "stream": true,
    });
    fill(rest, "messages", message, bytes)
}

/// The body of a Gemini request of about `bytes`.
#[must_use]
pub fn gemini_request(bytes: usize) -> Bytes {
    let role = ["user", "model"];
    let content = |i: usize| json!({"role": role[i % 2], "parts": [{"text": paragraph(i)}]});
    let rest = json!({
        "systemInstruction": {"parts": [{"text": "Answer briefly."}]},
        "contents": [],
        "generationConfig": {"temperature": 0.7, "maxOutputTokens": 1024},
    });
    fill(rest, "contents", content, bytes)
}

/// An `OpenAI` chat stream of `tokens` tokens: one event each.
#[must_use]
pub fn chat_stream(tokens: usize) -> Vec<Bytes> {
    let head = format!(
        r#"{{"id":"chatcmpl-CkQ8d0Yd3f1eGm7hVbnq0a2sTzX5R","object":"chat.completion.chunk","created":1764000000,"model":"{MODEL}","service_tier":"default","system_fingerprint":"fp_3df7c2e1a9","#
    );
    let chunk = |delta: &str, finish: &str, i: usize| {
        data(&format!(
            r#"{head}"choices":[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish}}}],"usage":null,"obfuscation":"{}"}}"#,
            obfuscation(i)
        ))
    };
    let opening = r#"{"role":"assistant","content":"","refusal":null}"#;
    let mut events = vec![chunk(opening, "null", 0)];
    events.extend((0..tokens).map(|i| chunk(&format!(r#"{{"content":{}}}"#, token(i)), "null", i)));
    events.push(chunk("{}", r#""stop""#, tokens));
    events.push(data(&format!(
        r#"{head}"choices":[],"usage":{},"obfuscation":"{}"}}"#,
        chat_usage(tokens),
        obfuscation(1)
    )));
    events.push(data("[DONE]"));
    to_bytes(events)
}

/// A stream of `OpenAI`'s responses, of `tokens` tokens: one event each.
#[must_use]
pub fn responses_stream(tokens: usize) -> Vec<Bytes> {
    const ITEM: &str = "msg_0c1f7be1b2a54b6c006925c1e4a3c88190b6b9d9f0f6c3a1f7";
    let response = |status: &str, output: &str, usage: &str| {
        format!(
            r#"{{"id":"resp_0c1f7be1b2a54b6c006925c1e3","object":"response","created_at":1764000000,"status":"{status}","background":false,"error":null,"incomplete_details":null,"instructions":null,"max_output_tokens":null,"model":"{MODEL}","output":[{output}],"parallel_tool_calls":true,"previous_response_id":null,"reasoning":{{"effort":null,"summary":null}},"store":true,"temperature":1.0,"text":{{"format":{{"type":"text"}}}},"tool_choice":"auto","tools":[],"top_p":1.0,"truncation":"disabled","usage":{usage},"user":null,"metadata":{{}}}}"#
        )
    };
    let place = format!(r#""item_id":"{ITEM}","output_index":0,"content_index":0"#);
    let text: String = (0..tokens).map(word).collect();
    let text = json!(text);
    let part = format!(r#"{{"type":"output_text","annotations":[],"logprobs":[],"text":{text}}}"#);
    let item = |status: &str, content: &str| {
        format!(
            r#"{{"id":"{ITEM}","type":"message","status":"{status}","content":[{content}],"role":"assistant"}}"#
        )
    };
    let started = response("in_progress", "", "null");
    let empty = item("in_progress", "");
    let whole = item("completed", &part);
    let usage = format!(
        r#"{{"input_tokens":1024,"input_tokens_details":{{"cached_tokens":896}},"output_tokens":{tokens},"output_tokens_details":{{"reasoning_tokens":0}},"total_tokens":{}}}"#,
        1024 + tokens
    );

    let mut events = Vec::new();
    let mut push = |name: &str, fields: String| {
        let sequence = events.len();
        let json = format!(r#"{{"type":"{name}","sequence_number":{sequence},{fields}}}"#);
        events.push(named(name, &json));
    };
    push("response.created", format!(r#""response":{started}"#));
    push("response.in_progress", format!(r#""response":{started}"#));
    push(
        "response.output_item.added",
        format!(r#""output_index":0,"item":{empty}"#),
    );
    push(
        "response.content_part.added",
        format!(
            r#"{place},"part":{{"type":"output_text","annotations":[],"logprobs":[],"text":""}}"#
        ),
    );
    for i in 0..tokens {
        let (token, obfuscation) = (token(i), obfuscation(i));
        let delta =
            format!(r#"{place},"delta":{token},"logprobs":[],"obfuscation":"{obfuscation}""#);
        push("response.output_text.delta", delta);
    }
    push(
        "response.output_text.done",
        format!(r#"{place},"text":{text},"logprobs":[]"#),
    );
    push(
        "response.content_part.done",
        format!(r#"{place},"part":{part}"#),
    );
    push(
        "response.output_item.done",
        format!(r#""output_index":0,"item":{whole}"#),
    );
    push(
        "response.completed",
        format!(r#""response":{}"#, response("completed", &whole, &usage)),
    );
    to_bytes(events)
}

/// An Anthropic stream of `tokens` tokens: one event each.
#[must_use]
pub fn anthropic_stream(tokens: usize) -> Vec<Bytes> {
    let mut events = vec![
        named(
            "message_start",
            r#"{"type":"message_start","message":{"model":"claude-sonnet-5","id":"msg_01Uu8DQ5hZ7n3cXAhB1qk9sP","type":"message","role":"assistant","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":128,"cache_creation_input_tokens":0,"cache_read_input_tokens":896,"cache_creation":{"ephemeral_5m_input_tokens":0,"ephemeral_1h_input_tokens":0},"output_tokens":1,"service_tier":"standard"}}}"#,
        ),
        named(
            "content_block_start",
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
        ),
        named("ping", r#"{"type": "ping"}"#),
    ];
    events.extend((0..tokens).map(|i| {
        let delta = format!(r#"{{"type":"text_delta","text":{}}}"#, token(i));
        let json = format!(r#"{{"type":"content_block_delta","index":0,"delta":{delta}}}"#);
        named("content_block_delta", &json)
    }));
    events.push(named(
        "content_block_stop",
        r#"{"type":"content_block_stop","index":0}"#,
    ));
    events.push(named(
        "message_delta",
        &format!(
            r#"{{"type":"message_delta","delta":{{"stop_reason":"end_turn","stop_sequence":null}},"usage":{{"input_tokens":128,"cache_creation_input_tokens":0,"cache_read_input_tokens":896,"output_tokens":{tokens}}}}}"#
        ),
    ));
    events.push(named("message_stop", r#"{"type":"message_stop"}"#));
    to_bytes(events)
}

/// A Gemini stream of `tokens` tokens, in chunks of 40.
#[must_use]
pub fn gemini_stream(tokens: usize) -> Vec<Bytes> {
    const CHUNK: usize = 40;
    let chunk = |from: usize| {
        let to = tokens.min(from + CHUNK);
        let text: String = (from..to).map(word).collect();
        let finish = if to == tokens {
            r#","finishReason":"STOP""#
        } else {
            ""
        };
        format!(
            "data: {{\"candidates\": [{{\"content\": {{\"parts\": [{{\"text\": {}}}],\"role\": \"model\"}}{finish},\"index\": 0}}],\"usageMetadata\": {{\"promptTokenCount\": 1024,\"candidatesTokenCount\": {to},\"totalTokenCount\": {},\"promptTokensDetails\": [{{\"modality\": \"TEXT\",\"tokenCount\": 1024}}]}},\"modelVersion\": \"gemini-3-pro\",\"responseId\": \"Q8MlaZ-xLdfhz7IP5pPk6AU\"}}\r\n\r\n",
            json!(text),
            1024 + to,
        )
    };
    to_bytes((0..tokens).step_by(CHUNK).map(chunk).collect())
}

/// A chat completion of about `bytes`, as one body.
#[must_use]
pub fn chat_response(bytes: usize) -> Bytes {
    let mut text = String::new();
    for i in 0.. {
        text.push_str(SENTENCES[i % SENTENCES.len()]);
        if text.len() >= bytes {
            break;
        }
    }
    let text = json!(text);
    let usage = chat_usage(bytes / 4);
    Bytes::from(format!(
        r#"{{"id":"chatcmpl-CkQ8d0Yd3f1eGm7hVbnq0a2sTzX5R","object":"chat.completion","created":1764000000,"model":"{MODEL}","choices":[{{"index":0,"message":{{"role":"assistant","content":{text},"refusal":null,"annotations":[]}},"logprobs":null,"finish_reason":"stop"}}],"usage":{usage},"service_tier":"default","system_fingerprint":"fp_3df7c2e1a9"}}"#
    ))
}

/// Embeddings of about `bytes`, as one body: vectors of 1,536 numbers.
#[must_use]
pub fn embeddings_response(bytes: usize) -> Bytes {
    let mut state = 1_u32;
    let mut number = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        format!("{:.9}", f64::from(state) / f64::from(u32::MAX) * 0.1 - 0.05)
    };
    let mut vectors = Vec::new();
    let mut so_far = 0;
    while so_far < bytes {
        let numbers: Vec<String> = (0..1_536).map(|_| number()).collect();
        let index = vectors.len();
        let numbers = numbers.join(",");
        let vector = format!(r#"{{"object":"embedding","index":{index},"embedding":[{numbers}]}}"#);
        so_far += vector.len();
        vectors.push(vector);
    }
    Bytes::from(format!(
        r#"{{"object":"list","data":[{}],"model":"text-embedding-3-small","usage":{{"prompt_tokens":1024,"total_tokens":1024}}}}"#,
        vectors.join(",")
    ))
}

/// The same bytes in frames of `size`, as a busy connection delivers them.
#[must_use]
pub fn in_frames(body: &[Bytes], size: usize) -> Vec<Bytes> {
    body.concat()
        .chunks(size)
        .map(Bytes::copy_from_slice)
        .collect()
}

/// The same frames for ever, so that handing one out counts no reference.
#[must_use]
pub fn forever(frames: Vec<Bytes>) -> &'static [Bytes] {
    let fixed = |frame: Bytes| Bytes::from_static(frame.to_vec().leak());
    frames.into_iter().map(fixed).collect::<Vec<_>>().leak()
}

fn to_bytes(events: Vec<String>) -> Vec<Bytes> {
    events.into_iter().map(Bytes::from).collect()
}

fn data(json: &str) -> String {
    format!("data: {json}\n\n")
}

fn named(event: &str, json: &str) -> String {
    format!("event: {event}\ndata: {json}\n\n")
}

fn chat_usage(output: usize) -> String {
    format!(
        r#"{{"prompt_tokens":1024,"completion_tokens":{output},"total_tokens":{},"prompt_tokens_details":{{"cached_tokens":896,"audio_tokens":0}},"completion_tokens_details":{{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}}}"#,
        1024 + output
    )
}

/// Padding that hides the tokens' lengths, as `OpenAI` sends it.
fn obfuscation(i: usize) -> &'static str {
    &"bVq3kd0a1Zt7Wm"[i % 7..7 + i % 8]
}

fn word(i: usize) -> &'static str {
    TOKENS[i % TOKENS.len()]
}

fn token(i: usize) -> Value {
    json!(word(i))
}

fn paragraph(i: usize) -> String {
    let count = 1 + i % 4;
    let sentences = (0..count).map(|n| SENTENCES[(3 * i + n) % SENTENCES.len()]);
    sentences.collect::<Vec<_>>().join(" ")
}

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {
        "name": name,
        "description": "Finds what matches the query, newest first.",
        "parameters": {
            "type": "object",
            "properties": {
                "query": {"type": "string", "description": "What to look for."},
                "limit": {"type": "integer", "minimum": 1, "maximum": 50},
                "since": {"type": ["string", "null"], "format": "date"},
            },
            "required": ["query"],
            "additionalProperties": false,
        },
    }})
}

/// `rest` with items in its list `list`, until it has about `bytes`.
fn fill(mut rest: Value, list: &str, item: impl Fn(usize) -> Value, bytes: usize) -> Bytes {
    for i in 0.. {
        let text = rest.to_string();
        if text.len() >= bytes {
            return Bytes::from(text);
        }
        if let Some(items) = rest[list].as_array_mut() {
            items.push(item(i));
        }
    }
    unreachable!("it grows with every item")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_about_the_size_asked_for() {
        for size in [2_000, 10_000, 100_000] {
            for body in [
                chat_request(size),
                anthropic_request(size),
                gemini_request(size),
            ] {
                assert!(
                    (size..size + 600).contains(&body.len()),
                    "{} of {size}",
                    body.len()
                );
                serde_json::from_slice::<Value>(&body).unwrap();
            }
        }
    }

    #[test]
    fn events_hold_json() {
        for stream in [
            chat_stream(50),
            responses_stream(50),
            anthropic_stream(50),
            gemini_stream(50),
        ] {
            for event in stream {
                let text = std::str::from_utf8(&event).unwrap();
                let json = text.split_once("data: ").unwrap().1.trim_end();
                assert!(
                    json == "[DONE]" || serde_json::from_str::<Value>(json).is_ok(),
                    "{json}"
                );
            }
        }
    }

    #[test]
    fn chat_chunks_have_the_length_of_real_ones() {
        for event in &chat_stream(100)[1..100] {
            assert!((290..=340).contains(&event.len()), "{}", event.len());
        }
    }

    #[test]
    fn frames_hold_the_same_bytes() {
        let stream = chat_stream(100);
        let frames = in_frames(&stream, 8_192);
        assert!(frames.len() < stream.len());
        assert_eq!(frames.concat(), stream.concat());
    }
}
