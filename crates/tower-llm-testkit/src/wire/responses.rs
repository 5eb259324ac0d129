//! OpenAI responses.

use serde_json::Value;

use super::{
    answer::{Answer, CREATED},
    escaped,
    part::{Part, event},
    tools::ToolCall,
};

pub(crate) fn unary(answer: &Answer) -> String {
    let (status, incomplete) = end(answer);
    response(
        answer,
        status,
        "null",
        incomplete,
        &format!("[{}]", items(answer)),
        &usage(answer),
    )
}

pub(crate) fn stream(answer: &Answer) -> Vec<Part> {
    let mut stream = Events {
        parts: Vec::new(),
        sequence: 0,
    };
    let started = response(answer, "in_progress", "null", "null", "[]", "null");
    stream.push(
        Part::opening,
        "response.created",
        &format!(r#""response":{started}"#),
    );
    stream.push(
        Part::opening,
        "response.in_progress",
        &format!(r#""response":{started}"#),
    );
    let mut index = 0;
    if answer.reasoning > 0 {
        let item = reasoning(answer);
        stream.push(
            Part::opening,
            "response.output_item.added",
            &format!(r#""output_index":0,"item":{item}"#),
        );
        stream.push(
            Part::opening,
            "response.output_item.done",
            &format!(r#""output_index":0,"item":{item}"#),
        );
        index = 1;
    }
    match &answer.call {
        Some(call) => stream_call(&mut stream, answer, call, index),
        None => stream_text(&mut stream, answer, index),
    }
    let name = if answer.limited {
        "response.incomplete"
    } else {
        "response.completed"
    };
    let whole = unary(answer);
    stream.push(
        |text| Part::terminal(text).carrying(answer.unsent()),
        name,
        &format!(r#""response":{whole}"#),
    );
    stream.parts
}

fn stream_text(stream: &mut Events, answer: &Answer, index: usize) {
    let at = format!(
        r#""item_id":"msg_{}","output_index":{index},"content_index":0"#,
        answer.id
    );
    let item = message(answer, "in_progress", "");
    stream.push(
        Part::opening,
        "response.output_item.added",
        &format!(r#""output_index":{index},"item":{item}"#),
    );
    stream.push(
        Part::opening,
        "response.content_part.added",
        &format!(r#"{at},"part":{}"#, text_part("")),
    );
    for (piece, tokens) in answer.pieces_after_reasoning() {
        stream.push(
            |text| Part::content(text, tokens),
            "response.output_text.delta",
            &format!(r#"{at},"delta":"{piece}","logprobs":[]"#),
        );
    }
    let text = answer.text();
    stream.push(
        Part::closing,
        "response.output_text.done",
        &format!(r#"{at},"text":"{text}","logprobs":[]"#),
    );
    stream.push(
        Part::closing,
        "response.content_part.done",
        &format!(r#"{at},"part":{}"#, text_part(&text)),
    );
    let item = message(answer, end(answer).0, &text);
    stream.push(
        Part::closing,
        "response.output_item.done",
        &format!(r#""output_index":{index},"item":{item}"#),
    );
}

fn stream_call(stream: &mut Events, answer: &Answer, call: &ToolCall, index: usize) {
    let (event, field) = if call.is_custom {
        ("response.custom_tool_call_input", "input")
    } else {
        ("response.function_call_arguments", "arguments")
    };
    let at = format!(r#""item_id":"fc_{}","output_index":{index}"#, answer.id);
    let item = tool_call(answer, call, "in_progress", "");
    let tokens = answer.name_tokens() * (1 + answer.reasoning);
    stream.push(
        |text| Part::content(text, tokens),
        "response.output_item.added",
        &format!(r#""output_index":{index},"item":{item}"#),
    );
    for (piece, tokens) in answer.pieces_after_reasoning() {
        stream.push(
            |text| Part::content(text, tokens),
            &format!("{event}.delta"),
            &format!(r#"{at},"delta":"{piece}""#),
        );
    }
    let arguments = answer.text();
    stream.push(
        Part::closing,
        &format!("{event}.done"),
        &format!(r#"{at},"{field}":"{arguments}""#),
    );
    let item = tool_call(answer, call, end(answer).0, &arguments);
    stream.push(
        Part::closing,
        "response.output_item.done",
        &format!(r#""output_index":{index},"item":{item}"#),
    );
}

/// The `response.failed` event after `sequence` others.
pub(crate) fn failed(answer: &Answer, sequence: usize, code: &str, message: &str) -> String {
    let error = format!(r#"{{"code":"{code}","message":"{}"}}"#, escaped(message));
    let failed = response(answer, "failed", &error, "null", "[]", "null");
    event(
        "response.failed",
        &format!(
            r#"{{"type":"response.failed","sequence_number":{sequence},"response":{failed}}}"#
        ),
    )
}

struct Events {
    parts: Vec<Part>,
    sequence: usize,
}

impl Events {
    fn push(&mut self, part: impl FnOnce(String) -> Part, name: &str, fields: &str) {
        let json = format!(
            r#"{{"type":"{name}","sequence_number":{},{fields}}}"#,
            self.sequence
        );
        self.parts.push(part(event(name, &json)));
        self.sequence += 1;
    }
}

fn end(answer: &Answer) -> (&'static str, &'static str) {
    if answer.limited {
        ("incomplete", r#"{"reason":"max_output_tokens"}"#)
    } else {
        ("completed", "null")
    }
}

fn items(answer: &Answer) -> String {
    let (status, text) = (end(answer).0, answer.text());
    let said = match &answer.call {
        Some(call) => tool_call(answer, call, status, &text),
        None => message(answer, status, &text),
    };
    if answer.reasoning > 0 {
        format!("{},{said}", reasoning(answer))
    } else {
        said
    }
}

fn reasoning(answer: &Answer) -> String {
    format!(
        r#"{{"id":"rs_{}","type":"reasoning","summary":[]}}"#,
        answer.id
    )
}

/// A call with these arguments, escaped already.
fn tool_call(answer: &Answer, call: &ToolCall, status: &str, arguments: &str) -> String {
    let name = Value::from(&*call.name);
    let (kind, field) = if call.is_custom {
        ("custom_tool_call", "input")
    } else {
        ("function_call", "arguments")
    };
    format!(
        r#"{{"id":"fc_{}","type":"{kind}","status":"{status}","{field}":"{arguments}","call_id":"call_{}","name":{name}}}"#,
        answer.id, answer.id
    )
}

fn message(answer: &Answer, status: &str, text: &str) -> String {
    let content = if status == "in_progress" {
        String::new()
    } else {
        text_part(text)
    };
    format!(
        r#"{{"id":"msg_{}","type":"message","status":"{status}","content":[{content}],"role":"assistant"}}"#,
        answer.id,
    )
}

fn text_part(text: &str) -> String {
    format!(r#"{{"type":"output_text","annotations":[],"logprobs":[],"text":"{text}"}}"#)
}

fn response(
    answer: &Answer,
    status: &str,
    error: &str,
    incomplete: &str,
    output: &str,
    usage: &str,
) -> String {
    format!(
        r#"{{"id":"resp_{}","object":"response","created_at":{CREATED},"status":"{status}","background":false,"error":{error},"incomplete_details":{incomplete},"instructions":null,"max_output_tokens":null,"model":{},"output":{output},"parallel_tool_calls":true,"previous_response_id":null,"store":true,"temperature":1.0,"tool_choice":"auto","tools":[],"top_p":1.0,"truncation":"disabled","usage":{usage},"metadata":{{}}}}"#,
        answer.id, answer.model,
    )
}

fn usage(answer: &Answer) -> String {
    format!(
        r#"{{"input_tokens":{},"input_tokens_details":{{"cached_tokens":{},"cache_write_tokens":{}}},"output_tokens":{},"output_tokens_details":{{"reasoning_tokens":{}}},"total_tokens":{}}}"#,
        answer.input,
        answer.cached,
        answer.cache_write,
        answer.output,
        answer.reasoning,
        answer.input.saturating_add(answer.output),
    )
}
