//! Gemini `generateContent` and its streams.

use serde_json::Value;

use super::{
    answer::Answer,
    part::{Part, data},
};

pub(crate) fn unary(answer: &Answer) -> String {
    chunk(answer, &whole_part(answer), answer.visible(), true)
}

pub(crate) fn count_tokens(answer: &Answer) -> String {
    let input = answer.input;
    format!(
        r#"{{"totalTokens":{input},"promptTokensDetails":[{{"modality":"TEXT","tokenCount":{input}}}]}}"#
    )
}

/// The same chunks as events, or as the elements of one JSON array.
pub(crate) fn stream(answer: &Answer, sse: bool) -> Vec<Part> {
    let mut chunks = Vec::new();
    let mut sent = 0;
    if answer.call.is_some() && !answer.limited {
        // A call comes whole.
        sent = answer.visible();
        let call = chunk(answer, &whole_part(answer), sent, false);
        chunks.push(Part::content(call, answer.output));
    } else if answer.call.is_none() {
        let said = answer.pieces().iter().zip(answer.pieces_after_reasoning());
        for (piece, (text, tokens)) in said {
            sent += piece.tokens;
            chunks.push(Part::content(
                chunk(answer, &text_part(text), sent, false),
                tokens,
            ));
        }
    }
    let unsent = if chunks.is_empty() {
        answer.output
    } else {
        answer.visible() - sent
    };
    let last = Part::terminal(chunk(answer, &text_part(""), answer.visible(), true));
    chunks.push(last.carrying(unsent));
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

/// All of the answer in one part; a call that the maximum cut off is lost.
fn whole_part(answer: &Answer) -> String {
    match &answer.call {
        Some(call) if !answer.limited => format!(
            r#"{{"functionCall":{{"name":{},"args":{}}}}}"#,
            Value::from(&*call.name),
            call.arguments
        ),
        Some(_) => text_part(""),
        None => text_part(&answer.text()),
    }
}

fn text_part(text: &str) -> String {
    format!(r#"{{"text":"{text}"}}"#)
}

fn chunk(answer: &Answer, part: &str, candidates: u64, last: bool) -> String {
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
        r#"{{"candidates":[{{"content":{{"parts":[{part}],"role":"model"}}{finish},"index":0}}],"usageMetadata":{{"promptTokenCount":{input},"candidatesTokenCount":{candidates},"totalTokenCount":{total}{cached},"promptTokensDetails":[{{"modality":"TEXT","tokenCount":{input}}}]{thoughts}}},"modelVersion":{},"responseId":"{}"}}"#,
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
