//! OpenAI chat completions, and Azure's.

use super::{
    answer::{Answer, CREATED},
    part::{Part, data},
    route::Dialect,
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
    if answer.limited { "length" } else { "stop" }
}

pub(crate) fn unary(answer: &Answer) -> String {
    format!(
        r#"{{"id":"chatcmpl-{}","object":"chat.completion","created":{CREATED},"model":{},"choices":[{{"index":0,"message":{{"role":"assistant","content":"{}","refusal":null,"annotations":[]}},"logprobs":null,"finish_reason":"{}"}}],"usage":{},"service_tier":"default","system_fingerprint":"fp_sim"}}"#,
        answer.id,
        answer.model,
        answer.text(),
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
        parts.push(Part::opening(chunk(
            answer,
            r#"{"role":"assistant","content":"","refusal":null}"#,
            None,
        )));
    }
    for (word, tokens) in answer.words_and_tokens() {
        parts.push(Part::content(
            chunk(answer, &format!(r#"{{"content":"{word}"}}"#), None),
            tokens,
        ));
    }
    let mut finish = Part::terminal(chunk(answer, "{}", Some(finish_reason(answer))));
    if answer.visible() == 0 {
        finish.tokens = answer.reasoning;
    }
    parts.push(finish);
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
