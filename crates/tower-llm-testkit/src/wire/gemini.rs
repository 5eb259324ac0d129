//! Gemini `generateContent` and its streams.

use super::{
    answer::Answer,
    part::{Part, data},
};

pub(crate) fn unary(answer: &Answer) -> String {
    chunk(answer, &answer.text(), answer.visible(), true)
}

/// The same chunks as events, or as the elements of one JSON array.
pub(crate) fn stream(answer: &Answer, sse: bool) -> Vec<Part> {
    let mut chunks = Vec::new();
    for (i, (word, tokens)) in (1..).zip(answer.words_and_tokens()) {
        chunks.push(Part::content(chunk(answer, word, i, false), tokens));
    }
    let mut last = Part::terminal(chunk(answer, "", answer.visible(), true));
    if answer.visible() == 0 {
        last.tokens = answer.reasoning;
    }
    chunks.push(last);
    let count = chunks.len();
    for (i, part) in chunks.iter_mut().enumerate() {
        part.text = if sse {
            data(&part.text)
        } else {
            element(&part.text, i)
        };
        if !sse && i + 1 == count {
            part.text.push(']');
        }
    }
    chunks
}

/// An element of the array with what stands before it.
pub(crate) fn element(json: &str, index: usize) -> String {
    format!("{}{json}", if index == 0 { "[" } else { ",\n" })
}

fn chunk(answer: &Answer, text: &str, candidates: u64, last: bool) -> String {
    let finish = match (last, answer.limited) {
        (false, _) => "",
        (true, false) => r#","finishReason":"STOP""#,
        (true, true) => r#","finishReason":"MAX_TOKENS""#,
    };
    let cached = optional("cachedContentTokenCount", answer.cached);
    let thoughts = optional("thoughtsTokenCount", answer.reasoning);
    let total = answer
        .input
        .saturating_add(candidates)
        .saturating_add(answer.reasoning);
    let input = answer.input;
    format!(
        r#"{{"candidates":[{{"content":{{"parts":[{{"text":"{text}"}}],"role":"model"}}{finish},"index":0}}],"usageMetadata":{{"promptTokenCount":{input},"candidatesTokenCount":{candidates},"totalTokenCount":{total}{cached},"promptTokensDetails":[{{"modality":"TEXT","tokenCount":{input}}}]{thoughts}}},"modelVersion":{},"responseId":"{}"}}"#,
        answer.model, answer.id,
    )
}

/// Gemini leaves out what is zero.
fn optional(name: &str, tokens: u64) -> String {
    if tokens == 0 {
        String::new()
    } else {
        format!(r#","{name}":{tokens}"#)
    }
}
