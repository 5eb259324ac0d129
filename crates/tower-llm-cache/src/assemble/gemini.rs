//! Gemini's content generation: chunks that each look like the whole.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    Map, StreamForm,
    merge::{self, Repeated, has, into_object, is_exact, set, set_all, take_array},
    sse,
};

/// Joins the chunks of a stream, which may also come as one JSON array.
pub(super) fn whole(stream: &[u8]) -> Option<Value> {
    let mut chunks = chunks(stream)?;
    let answer = if chunks.len() == 1 {
        chunks.remove(0)
    } else {
        join(chunks)?
    };
    is_finished(&answer).then_some(Value::Object(answer))
}

fn chunks(stream: &[u8]) -> Option<Vec<Map>> {
    let text = stream.strip_prefix("\u{feff}".as_bytes()).unwrap_or(stream);
    if text.trim_ascii_start().starts_with(b"[") {
        let chunks: Value = serde_json::from_slice(text).ok().filter(is_exact)?;
        let Value::Array(chunks) = chunks else {
            return None;
        };
        return chunks.into_iter().map(into_object).collect();
    }
    sse::data(stream)?
        .iter()
        .map(|data| merge::parse(data))
        .collect()
}

/// Whether a finish reason for every candidate, or for there being none, has come, and no error.
fn is_finished(answer: &Map) -> bool {
    let candidates = answer.get("candidates").and_then(Value::as_array);
    let is_blocked =
        has(answer, "promptFeedback") && answer["promptFeedback"]["blockReason"].is_string();
    !has(answer, "error")
        && match candidates {
            Some(candidates) if !candidates.is_empty() => candidates
                .iter()
                .all(|candidate| candidate["finishReason"].is_string()),
            _ => is_blocked,
        }
}

fn join(chunks: Vec<Map>) -> Option<Map> {
    let mut answer = Map::new();
    let mut candidates = BTreeMap::<u64, Map>::new();
    for mut chunk in chunks {
        let candidates_here = match chunk.remove("candidates") {
            None => Vec::new(),
            Some(Value::Array(here)) => here,
            Some(_) => return None,
        };
        for candidate in candidates_here {
            let candidate = into_object(candidate)?;
            // Zeros are left out.
            let index = candidate.get("index").map_or(Some(0), Value::as_u64)?;
            add(candidates.entry(index).or_default(), candidate)?;
        }
        set_all(&mut answer, chunk, Repeated::Last)?;
    }
    if !candidates.is_empty() {
        let candidates = candidates.into_values().map(without_empty_text);
        answer.insert("candidates".to_owned(), candidates.collect());
    }
    Some(answer)
}

fn add(known: &mut Map, candidate: Map) -> Option<()> {
    for (name, value) in candidate {
        match (&*name, value) {
            ("content", Value::Object(mut content)) => {
                let content_known = known.entry(name).or_insert_with(|| json!({}));
                let content_known = content_known.as_object_mut()?;
                if let Some(parts) = take_array(&mut content, "parts") {
                    let parts_known = content_known.entry("parts").or_insert_with(|| json!([]));
                    let parts_known = parts_known.as_array_mut()?;
                    for part in parts {
                        add_part(parts_known, into_object(part)?)?;
                    }
                }
                set_all(content_known, content, Repeated::Same)?;
            }
            // Each chunk says it of all that came.
            ("safetyRatings", value) => set(known, name, value, Repeated::Last)?,
            (_, value) => set(known, name, value, Repeated::Same)?,
        }
    }
    Some(())
}

/// Text goes on in the part before if that is plain text too, and both are thoughts or both are not. A signature belongs to
/// its part alone.
fn add_part(parts: &mut Vec<Value>, part: Map) -> Option<()> {
    let call = part.get("functionCall");
    if call.is_some_and(|call| !call["willContinue"].is_null() || !call["partialArgs"].is_null()) {
        // Arguments in pieces.
        return None;
    }
    let last = parts.last_mut().and_then(Value::as_object_mut);
    match last.filter(|last| {
        is_text(last) && is_text(&part) && last.get("thought") == part.get("thought")
    }) {
        Some(last) => merge::append(last, "text".to_owned(), part["text"].clone()),
        None => {
            parts.push(Value::Object(part));
            Some(())
        }
    }
}

/// Whether a part is text, maybe a thought, and nothing else.
fn is_text(part: &Map) -> bool {
    part.get("text").is_some_and(Value::is_string)
        && part.keys().all(|name| name == "text" || name == "thought")
}

/// The last chunk has a part without text where the answer without streaming has none.
fn without_empty_text(mut candidate: Map) -> Value {
    if let Some(parts) = candidate
        .get_mut("content")
        .and_then(|content| content.get_mut("parts"))
        .and_then(Value::as_array_mut)
        && parts.len() > 1
    {
        let is_empty = |part: &Value| part["text"] == "" && part.as_object().is_some_and(is_text);
        if !parts.iter().all(is_empty) {
            parts.retain(|part| !is_empty(part));
        }
    }
    Value::Object(candidate)
}

/// The whole as the only chunk of a stream.
pub(super) fn events(object: &Map, whole: &[u8], form: StreamForm) -> Option<Vec<Bytes>> {
    if !is_finished(object) {
        return None;
    }
    let frame = match form {
        StreamForm::JsonArray => [b"[", whole, b"]"].concat(),
        StreamForm::Events { .. } => {
            // Line breaks stand between tokens only; those in strings are escaped.
            let line = whole
                .iter()
                .copied()
                .filter(|byte| !matches!(byte, b'\r' | b'\n'));
            let line: Vec<u8> = line.collect();
            [b"data: ", &*line, b"\n\n"].concat()
        }
    };
    Some(vec![Bytes::from(frame)])
}
