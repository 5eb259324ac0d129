//! OpenAI responses.

use super::{
    answer::{Answer, CREATED},
    part::{Part, event},
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
    let place = format!(
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
        &format!(r#"{place},"part":{}"#, text_part("")),
    );
    for (word, tokens) in answer.words_and_tokens() {
        stream.push(
            |text| Part::content(text, tokens),
            "response.output_text.delta",
            &format!(r#"{place},"delta":"{word}","logprobs":[]"#),
        );
    }
    let text = answer.text();
    stream.push(
        Part::closing,
        "response.output_text.done",
        &format!(r#"{place},"text":"{text}","logprobs":[]"#),
    );
    stream.push(
        Part::closing,
        "response.content_part.done",
        &format!(r#"{place},"part":{}"#, text_part(&text)),
    );
    let item = message(answer, end(answer).0, &text);
    stream.push(
        Part::closing,
        "response.output_item.done",
        &format!(r#""output_index":{index},"item":{item}"#),
    );
    let name = if answer.limited {
        "response.incomplete"
    } else {
        "response.completed"
    };
    let whole = unary(answer);
    let unseen = if answer.visible() == 0 {
        answer.reasoning
    } else {
        0
    };
    stream.push(
        |text| Part {
            tokens: unseen,
            ..Part::terminal(text)
        },
        name,
        &format!(r#""response":{whole}"#),
    );
    stream.parts
}

/// The `response.failed` event after `sequence` others.
pub(crate) fn failed(answer: &Answer, sequence: usize, code: &str, message: &str) -> String {
    let error = format!(r#"{{"code":"{code}","message":"{message}"}}"#);
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
    let message = message(answer, end(answer).0, &answer.text());
    if answer.reasoning > 0 {
        format!("{},{message}", reasoning(answer))
    } else {
        message
    }
}

fn reasoning(answer: &Answer) -> String {
    format!(
        r#"{{"id":"rs_{}","type":"reasoning","summary":[]}}"#,
        answer.id
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
