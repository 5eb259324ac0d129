//! OpenAI's responses: the last event holds the object; the events before it spell out its items.

use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    Map,
    merge::{self, has, into_object},
    sse,
};

/// The object in the event that ends the stream.
pub(super) fn whole(stream: &[u8]) -> Option<Value> {
    let mut items = 0;
    let mut end = None;
    for data in sse::data(stream)? {
        if &*data == b"[DONE]" && end.is_some() {
            continue;
        }
        let mut event = merge::parse(&data)?;
        if end.is_some() {
            return None;
        }
        match event.get("type")?.as_str()? {
            "response.output_item.done" => items += 1,
            "response.completed" | "response.incomplete" => {
                end = Some(into_object(event.remove("response")?)?);
            }
            "response.failed" | "error" => return None,
            _ => {}
        }
    }
    let response = end.filter(|response| !has(response, "error"))?;
    // Some servers leave out of the object what they have streamed.
    let output = response.get("output")?.as_array()?;
    (output.len() >= items).then_some(Value::Object(response))
}

/// Numbered events.
#[derive(Debug, Default)]
struct Events {
    frames: Vec<Bytes>,
}

/// The events that lead to the object.
pub(super) fn events(response: Map) -> Option<Vec<Bytes>> {
    let end = match response.get("status")?.as_str()? {
        "completed" => "response.completed",
        "incomplete" => "response.incomplete",
        _ => return None,
    };
    if has(&response, "error") {
        return None;
    }
    let mut events = Events::default();
    let started = started(&response);
    events.push("response.created", &json!({}), json!({"response": started}));
    events.push(
        "response.in_progress",
        &json!({}),
        json!({"response": started}),
    );
    for (index, item) in response.get("output")?.as_array()?.iter().enumerate() {
        events.push_item(index, item.as_object()?)?;
    }
    events.push(end, &json!({}), json!({"response": response}));
    Some(events.frames)
}

/// The object before anything is said.
fn started(response: &Map) -> Map {
    let mut started = response.clone();
    started.insert("status".to_owned(), json!("in_progress"));
    started.insert("output".to_owned(), json!([]));
    for name in ["usage", "incomplete_details", "completed_at", "output_text"] {
        if let Some(value) = started.get_mut(name) {
            *value = Value::Null;
        }
    }
    started
}

// === impl Events ===

impl Events {
    fn push(&mut self, name: &str, place: &Value, members: Value) {
        let mut event = json!({"type": name, "sequence_number": self.frames.len()});
        for more in [place.clone(), members] {
            let (Value::Object(event), Value::Object(mut more)) = (&mut event, more) else {
                continue;
            };
            event.append(&mut more);
        }
        self.frames.push(sse::named(name, &event));
    }

    fn push_item(&mut self, index: usize, item: &Map) -> Option<()> {
        let output = json!({"output_index": index});
        let mut place = output.clone();
        place["item_id"] = item.get("id").cloned().unwrap_or_default();
        self.push(
            "response.output_item.added",
            &output,
            json!({"item": added(item)}),
        );
        for (name, index_name) in [("summary", "summary_index"), ("content", "content_index")] {
            let parts = item.get(name).and_then(Value::as_array);
            for (index, part) in parts.into_iter().flatten().enumerate() {
                let mut place = place.clone();
                place[index_name] = index.into();
                self.push_part(&place, part.as_object()?);
            }
        }
        let texts = match item.get("type").and_then(Value::as_str) {
            Some("function_call") => Some(("response.function_call_arguments", "arguments")),
            Some("custom_tool_call") => Some(("response.custom_tool_call_input", "input")),
            _ => None,
        };
        if let Some((event, member)) = texts {
            self.push_text(event, member, &place, item, json!({}));
        }
        self.push("response.output_item.done", &output, json!({"item": item}));
        Some(())
    }

    fn push_part(&mut self, place: &Value, part: &Map) {
        let (around, texts) = match part.get("type").and_then(Value::as_str) {
            Some("output_text") => (
                "response.content_part",
                Some(("response.output_text", "text")),
            ),
            Some("refusal") => (
                "response.content_part",
                Some(("response.refusal", "refusal")),
            ),
            Some("reasoning_text") => (
                "response.content_part",
                Some(("response.reasoning_text", "text")),
            ),
            Some("summary_text") => (
                "response.reasoning_summary_part",
                Some(("response.reasoning_summary_text", "text")),
            ),
            _ => ("response.content_part", None),
        };
        let mut empty = part.clone();
        if let Some((_, member)) = texts {
            empty.insert(member.to_owned(), json!(""));
        }
        for list in ["annotations", "logprobs"] {
            if let Some(list) = empty.get_mut(list).filter(|list| list.is_array()) {
                *list = json!([]);
            }
        }
        self.push(&format!("{around}.added"), place, json!({"part": empty}));
        if let Some((event, member)) = texts {
            let logprobs = match part.get("logprobs") {
                Some(logprobs) => json!({"logprobs": logprobs}),
                None => json!({}),
            };
            self.push_text(event, member, place, part, logprobs);
        }
        let annotations = part.get("annotations").and_then(Value::as_array);
        for (index, annotation) in annotations.into_iter().flatten().enumerate() {
            self.push(
                "response.output_text.annotation.added",
                place,
                json!({"annotation_index": index, "annotation": annotation}),
            );
        }
        self.push(&format!("{around}.done"), place, json!({"part": part}));
    }

    /// A text in one piece, and once more at its end.
    fn push_text(&mut self, event: &str, member: &str, place: &Value, of: &Map, logprobs: Value) {
        let text = of.get(member).cloned().unwrap_or_default();
        let mut members = logprobs;
        if text != "" {
            members["delta"] = text.clone();
            self.push(&format!("{event}.delta"), place, members.clone());
        }
        if let Value::Object(members) = &mut members {
            members.remove("delta");
            members.insert(member.to_owned(), text);
        }
        self.push(&format!("{event}.done"), place, members);
    }
}

/// An item before anything is said in it.
fn added(item: &Map) -> Map {
    let mut added = item.clone();
    if added.contains_key("status") {
        added.insert("status".to_owned(), json!("in_progress"));
    }
    for (member, empty) in [
        ("content", json!([])),
        ("summary", json!([])),
        ("arguments", json!("")),
        ("input", json!("")),
    ] {
        if let Some(value) = added.get_mut(member)
            && (value.is_array() && empty.is_array() || value.is_string() && empty.is_string())
        {
            *value = empty;
        }
    }
    added
}
