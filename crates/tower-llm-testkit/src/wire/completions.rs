//! OpenAI's older completions API.

use super::{
    answer::{Answer, CREATED},
    chat::{finish_reason, usage},
    part::{Part, data},
};

pub(crate) fn unary(answer: &Answer) -> String {
    format!(
        r#"{}"choices":[{{"text":"{}","index":0,"logprobs":null,"finish_reason":"{}"}}],"usage":{}}}"#,
        head(answer),
        answer.text(),
        finish_reason(answer),
        usage(answer),
    )
}

pub(crate) fn stream(answer: &Answer) -> Vec<Part> {
    let null = if answer.include_usage {
        r#","usage":null"#
    } else {
        ""
    };
    let chunk = |text: &str, finish: &str| {
        data(&format!(
            r#"{}"choices":[{{"text":"{text}","index":0,"logprobs":null,"finish_reason":{finish}}}]{null}}}"#,
            head(answer),
        ))
    };
    let mut parts: Vec<Part> = answer
        .pieces_after_reasoning()
        .map(|(word, tokens)| Part::content(chunk(word, "null"), tokens))
        .collect();
    let finish = Part::terminal(chunk("", &format!(r#""{}""#, finish_reason(answer))));
    parts.push(finish.carrying(answer.unsent()));
    if answer.include_usage {
        parts.push(Part::closing(data(&format!(
            r#"{}"choices":[],"usage":{}}}"#,
            head(answer),
            usage(answer)
        ))));
    }
    parts.push(Part::terminal(data("[DONE]")));
    parts
}

fn head(answer: &Answer) -> String {
    format!(
        r#"{{"id":"cmpl-{}","object":"text_completion","created":{CREATED},"model":{},"system_fingerprint":"fp_sim","#,
        answer.id, answer.model,
    )
}
