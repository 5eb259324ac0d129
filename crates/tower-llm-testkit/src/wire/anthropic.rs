//! Anthropic messages.

use serde_json::Value;

use super::{
    answer::Answer,
    part::{Part, event},
    tools::ToolCall,
};

/// What keeps a stream alive before its first token.
pub(crate) const PING: &str = "event: ping\ndata: {\"type\": \"ping\"}\n\n";

const SIGNATURE: &str = "EqQBCgIYAhIM1gbcDa9GJwZA2b3h";

pub(crate) fn unary(answer: &Answer) -> String {
    let said = match &answer.call {
        // Arguments that were cut off are no JSON; there is no other place for them.
        Some(call) if answer.limited => tool_use(answer, call, "{}"),
        Some(call) => tool_use(answer, call, &call.arguments),
        None => format!(r#"{{"type":"text","text":"{}"}}"#, answer.text()),
    };
    let content = if answer.reasoning > 0 {
        let thinking = thoughts(answer).collect::<String>();
        format!(r#"{{"type":"thinking","thinking":"{thinking}","signature":"{SIGNATURE}"}},{said}"#)
    } else {
        said
    };
    message(
        answer,
        &content,
        &format!(r#""{}""#, stop_reason(answer)),
        answer.output,
    )
}

fn tool_use(answer: &Answer, call: &ToolCall, input: &str) -> String {
    let name = Value::from(&*call.name);
    format!(
        r#"{{"type":"tool_use","id":"toolu_{}","name":{name},"input":{input}}}"#,
        answer.id
    )
}

pub(crate) fn count_tokens(answer: &Answer) -> String {
    format!(r#"{{"input_tokens":{}}}"#, answer.input)
}

pub(crate) fn stream(answer: &Answer) -> Vec<Part> {
    let start = message(answer, "", "null", answer.output.min(1));
    let mut parts = vec![Part::opening(event(
        "message_start",
        &format!(r#"{{"type":"message_start","message":{start}}}"#),
    ))];
    let mut index = 0;
    if answer.reasoning > 0 {
        parts.push(Part::opening(block_start(
            0,
            r#"{"type":"thinking","thinking":"","signature":""}"#,
        )));
        parts.push(Part::opening(PING.to_owned()));
        for word in thoughts(answer) {
            let delta = format!(r#"{{"type":"thinking_delta","thinking":"{word}"}}"#);
            parts.push(Part::content(block_delta(0, &delta), 1));
        }
        let delta = format!(r#"{{"type":"signature_delta","signature":"{SIGNATURE}"}}"#);
        // Between tokens, due with the one before.
        parts.push(Part::closing(block_delta(0, &delta)));
        parts.push(Part::closing(block_stop(0)));
        index = 1;
    }
    let (block, delta, field) = match &answer.call {
        Some(call) => (
            tool_use(answer, call, "{}"),
            "input_json_delta",
            "partial_json",
        ),
        None => (
            r#"{"type":"text","text":""}"#.to_owned(),
            "text_delta",
            "text",
        ),
    };
    let start = block_start(index, &block);
    match (&answer.call, index) {
        // It names the tool, which is output.
        (Some(_), _) => {
            if index == 0 {
                parts.push(Part::opening(PING.to_owned()));
            }
            parts.push(Part::content(start, answer.name_tokens()));
        }
        (None, 0) => {
            parts.push(Part::opening(start));
            parts.push(Part::opening(PING.to_owned()));
        }
        (None, _) => parts.push(Part::closing(start)),
    }
    for piece in answer.pieces() {
        let delta = format!(r#"{{"type":"{delta}","{field}":"{}"}}"#, piece.text);
        parts.push(Part::content(block_delta(index, &delta), piece.tokens));
    }
    parts.push(Part::closing(block_stop(index)));
    let end = Part::terminal(event(
        "message_delta",
        &format!(
            r#"{{"type":"message_delta","delta":{{"stop_reason":"{}","stop_sequence":null}},"usage":{{"output_tokens":{}}}}}"#,
            stop_reason(answer),
            answer.output,
        ),
    ));
    parts.push(end.carrying(answer.unsaid()));
    parts.push(Part::terminal(event(
        "message_stop",
        r#"{"type":"message_stop"}"#,
    )));
    parts
}

fn thoughts(answer: &Answer) -> impl Iterator<Item = &'static str> {
    (0..answer.reasoning).map(|i| if i % 2 == 0 { "Hmm" } else { ", so " })
}

fn block_start(index: u32, block: &str) -> String {
    event(
        "content_block_start",
        &format!(r#"{{"type":"content_block_start","index":{index},"content_block":{block}}}"#),
    )
}

fn block_delta(index: u32, delta: &str) -> String {
    event(
        "content_block_delta",
        &format!(r#"{{"type":"content_block_delta","index":{index},"delta":{delta}}}"#),
    )
}

fn block_stop(index: u32) -> String {
    event(
        "content_block_stop",
        &format!(r#"{{"type":"content_block_stop","index":{index}}}"#),
    )
}

fn stop_reason(answer: &Answer) -> &'static str {
    match (answer.limited, &answer.call) {
        (true, _) => "max_tokens",
        (false, Some(_)) => "tool_use",
        (false, None) => "end_turn",
    }
}

fn message(answer: &Answer, content: &str, stop_reason: &str, output: u64) -> String {
    format!(
        r#"{{"id":"msg_{}","type":"message","role":"assistant","model":{},"content":[{content}],"stop_reason":{stop_reason},"stop_sequence":null,"usage":{{"input_tokens":{},"cache_creation_input_tokens":{},"cache_read_input_tokens":{},"cache_creation":{{"ephemeral_5m_input_tokens":{},"ephemeral_1h_input_tokens":0}},"output_tokens":{output},"service_tier":"standard"}}}}"#,
        answer.id,
        answer.model,
        answer.input - answer.cached - answer.cache_write,
        answer.cache_write,
        answer.cached,
        answer.cache_write,
    )
}
