//! OpenAI chat completions, and Azure's.

use serde_json::Value;

use super::{
    answer::{Answer, CREATED},
    part::{Part, data},
    route::Dialect,
    tools::ToolCall,
};

pub(crate) fn usage(answer: &Answer) -> String {
    format!(
        r#"{{"prompt_tokens":{},"completion_tokens":{},"total_tokens":{},"prompt_tokens_details":{{"cached_tokens":{},"cache_write_tokens":{},"audio_tokens":0}},"completion_tokens_details":{{"reasoning_tokens":{},"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}}}"#,
        answer.input,
        answer.output,
        answer.input.saturating_add(answer.output),
        answer.cached,
        answer.cache_write,
        answer.reasoning,
    )
}

pub(crate) fn finish_reason(answer: &Answer) -> &'static str {
    match (answer.limited, &answer.call) {
        (true, _) => "length",
        (false, Some(_)) => "tool_calls",
        (false, None) => "stop",
    }
}

pub(crate) fn unary(answer: &Answer) -> String {
    let content = match answer.call {
        Some(_) => "null".to_owned(),
        None => format!(r#""{}""#, answer.text()),
    };
    let calls = match &answer.call {
        Some(call) => format!(
            r#","tool_calls":[{}]"#,
            tool_call(answer, call, &answer.text())
        ),
        None => String::new(),
    };
    format!(
        r#"{{"id":"chatcmpl-{}","object":"chat.completion","created":{CREATED},"model":{},"choices":[{{"index":0,"message":{{"role":"assistant","content":{content},"refusal":null,"annotations":[]{calls}}},"logprobs":null,"finish_reason":"{}"}}],"usage":{},"service_tier":"default","system_fingerprint":"fp_sim"}}"#,
        answer.id,
        answer.model,
        finish_reason(answer),
        usage(answer),
    )
}

pub(crate) fn stream(answer: &Answer, dialect: Dialect) -> Vec<Part> {
    let mut parts = Vec::new();
    if dialect == Dialect::Azure {
        parts.push(Part::opening(data(
            r#"{"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[{"prompt_index":0,"content_filter_results":{"hate":{"filtered":false,"severity":"safe"}}}]}"#,
        )));
    }
    if answer.role_frame {
        let content = if answer.call.is_some() {
            "null"
        } else {
            r#""""#
        };
        let delta = format!(r#"{{"role":"assistant","content":{content},"refusal":null}}"#);
        parts.push(Part::opening(chunk(answer, &delta, None)));
    }
    if let Some(call) = &answer.call {
        let call = tool_call(answer, call, "");
        let delta = format!(r#"{{"tool_calls":[{{"index":0,{}]}}"#, &call[1..]);
        let tokens = answer.name_tokens() * (1 + answer.reasoning);
        parts.push(Part::content(chunk(answer, &delta, None), tokens));
    }
    for (piece, tokens) in answer.pieces_after_reasoning() {
        let delta = match &answer.call {
            None => format!(r#"{{"content":"{piece}"}}"#),
            Some(call) if call.is_custom => {
                format!(r#"{{"tool_calls":[{{"index":0,"custom":{{"input":"{piece}"}}}}]}}"#)
            }
            Some(_) => {
                format!(r#"{{"tool_calls":[{{"index":0,"function":{{"arguments":"{piece}"}}}}]}}"#)
            }
        };
        parts.push(Part::content(chunk(answer, &delta, None), tokens));
    }
    let finish = Part::terminal(chunk(answer, "{}", Some(finish_reason(answer))));
    parts.push(finish.carrying(answer.unsent()));
    if answer.include_usage {
        parts.push(Part::closing(data(&format!(
            r#"{}"choices":[],"usage":{}}}"#,
            chunk_head(answer),
            usage(answer)
        ))));
    }
    parts.push(Part::terminal(data("[DONE]")));
    parts
}

/// A call with these arguments, escaped already.
fn tool_call(answer: &Answer, call: &ToolCall, arguments: &str) -> String {
    let name = Value::from(&*call.name);
    let (kind, takes) = if call.is_custom {
        ("custom", "input")
    } else {
        ("function", "arguments")
    };
    format!(
        r#"{{"id":"call_{}","type":"{kind}","{kind}":{{"name":{name},"{takes}":"{arguments}"}}}}"#,
        answer.id
    )
}

fn chunk(answer: &Answer, delta: &str, finish: Option<&str>) -> String {
    let finish = finish.map_or_else(|| "null".to_owned(), |reason| format!(r#""{reason}""#));
    let usage = if answer.include_usage {
        r#","usage":null"#
    } else {
        ""
    };
    data(&format!(
        r#"{}"choices":[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish}}}]{usage}}}"#,
        chunk_head(answer),
    ))
}

fn chunk_head(answer: &Answer) -> String {
    format!(
        r#"{{"id":"chatcmpl-{}","object":"chat.completion.chunk","created":{CREATED},"model":{},"service_tier":"default","system_fingerprint":"fp_sim","#,
        answer.id, answer.model,
    )
}
