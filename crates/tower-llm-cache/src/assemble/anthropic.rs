//! Anthropic's messages: a message that is built block by block.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    Map,
    merge::{self, Repeated, append, extend, has, into_object, is_exact, set, set_all},
    sse,
};

/// Members of a message that are known at its end, and come in `message_delta`.
const LATE: [&str; 4] = ["stop_reason", "stop_sequence", "stop_details", "container"];

#[derive(Debug, Default)]
struct Block {
    members: Map,
    /// The JSON of `input`, as far as it came.
    input: String,
    is_stopped: bool,
}

/// Joins the events of a message.
pub(super) fn whole(stream: &[u8]) -> Option<Value> {
    let mut message = None;
    let mut blocks = BTreeMap::<u64, Block>::new();
    let mut is_stopped = false;
    for data in sse::data(stream)? {
        let mut event = merge::parse(&data)?;
        let kind = event.remove("type")?;
        if kind == "ping" {
            continue;
        }
        if is_stopped {
            return None;
        }
        match (kind.as_str()?, &mut message) {
            ("message_start", None) => message = Some(into_object(take_last(event, "message")?)?),
            ("content_block_start", Some(_)) => {
                let index = event.remove("index")?.as_u64()?;
                let members = into_object(take_last(event, "content_block")?)?;
                let is_new = blocks
                    .insert(
                        index,
                        Block {
                            members,
                            ..Block::default()
                        },
                    )
                    .is_none();
                is_new.then_some(())?;
            }
            ("content_block_delta", Some(_)) => {
                let index = event.remove("index")?.as_u64()?;
                let delta = into_object(take_last(event, "delta")?)?;
                blocks
                    .get_mut(&index)
                    .filter(|block| !block.is_stopped)?
                    .add(delta)?;
            }
            ("content_block_stop", Some(_)) => {
                let index = take_last(event, "index")?.as_u64()?;
                blocks.get_mut(&index)?.is_stopped = true;
            }
            ("message_delta", Some(message)) => {
                let delta = event
                    .remove("delta")
                    .map_or(Some(Map::new()), into_object)?;
                if let Some(usage) = event.remove("usage") {
                    let known = message.entry("usage").or_insert_with(|| json!({}));
                    add_usage(known, usage);
                }
                set_all(message, delta, Repeated::Last)?;
                set_all(message, event, Repeated::Last)?;
            }
            ("message_stop", Some(message)) => {
                is_stopped = true;
                set_all(message, event, Repeated::Last)?;
            }
            _ => return None,
        }
    }
    let mut message = message.filter(|message| is_stopped && has(message, "stop_reason"))?;
    let content: Option<Vec<Value>> = blocks.into_values().map(Block::finish).collect();
    message.insert("content".to_owned(), Value::Array(content?));
    Some(Value::Object(message))
}

/// The member, if it is the only one that is left.
fn take_last(mut event: Map, name: &str) -> Option<Value> {
    let member = event.remove(name)?;
    event.is_empty().then_some(member)
}

/// Figures are running totals. A lower one corrects nothing: gateways send zeros for what they do not know.
fn add_usage(known: &mut Value, new: Value) {
    match (known, new) {
        (_, Value::Null) => {}
        (Value::Object(known), Value::Object(new)) => {
            for (name, value) in new {
                add_usage(known.entry(name).or_insert(Value::Null), value);
            }
        }
        (Value::Number(known), Value::Number(new)) if known.as_f64() > new.as_f64() => {}
        (known, new) => *known = new,
    }
}

// === impl Block ===

impl Block {
    fn add(&mut self, mut delta: Map) -> Option<()> {
        let kind = delta.remove("type")?;
        let name = match kind.as_str()? {
            "text_delta" => "text",
            "thinking_delta" => "thinking",
            "signature_delta" => "signature",
            "compaction_delta" => "content",
            "input_json_delta" => {
                self.input
                    .push_str(take_last(delta, "partial_json")?.as_str()?);
                return Some(());
            }
            "citations_delta" => {
                let citation = take_last(delta, "citation")?;
                return extend(&mut self.members, "citations".to_owned(), json!([citation]));
            }
            _ => return None,
        };
        let piece = take_last(delta, name)?;
        if name == "signature" {
            // It comes whole.
            return set(&mut self.members, name.to_owned(), piece, Repeated::Same);
        }
        append(&mut self.members, name.to_owned(), piece)
    }

    fn finish(mut self) -> Option<Value> {
        if !self.is_stopped {
            return None;
        }
        if !self.input.is_empty() {
            let input = serde_json::from_str(&self.input).ok().filter(is_exact)?;
            self.members.insert("input".to_owned(), input);
        }
        Some(Value::Object(self.members))
    }
}

/// Cuts a message into events.
pub(super) fn events(mut message: Map) -> Option<Vec<Bytes>> {
    if has(&message, "error") || !has(&message, "stop_reason") {
        return None;
    }
    let content = merge::take_array(&mut message, "content")?;
    let mut last = json!({"type": "message_delta", "delta": {}});
    for name in LATE {
        if let Some(member) = message.get_mut(name) {
            last["delta"][name] = member.take();
        }
    }
    if let Some(management) = message.remove("context_management") {
        last["context_management"] = management;
    }
    if let Some(usage) = message.get_mut("usage") {
        last["usage"] = usage.clone();
        if let Some(output) = usage.get_mut("output_tokens") {
            *output = output.as_u64()?.min(1).into();
        }
    }
    message.insert("content".to_owned(), json!([]));
    let mut frames = vec![event(&json!({"type": "message_start", "message": message}))];
    for (index, block) in content.into_iter().enumerate() {
        let (start, deltas) = cut(into_object(block)?)?;
        frames.push(event(
            &json!({"type": "content_block_start", "index": index, "content_block": start}),
        ));
        frames.extend(deltas.into_iter().map(|delta| {
            event(&json!({"type": "content_block_delta", "index": index, "delta": delta}))
        }));
        frames.push(event(
            &json!({"type": "content_block_stop", "index": index}),
        ));
    }
    frames.push(event(&last));
    frames.push(event(&json!({"type": "message_stop"})));
    Some(frames)
}

/// A block as it starts, and the deltas that make it whole.
fn cut(mut block: Map) -> Option<(Map, Vec<Value>)> {
    let mut deltas = Vec::new();
    let kind = block.get("type")?.as_str()?.to_owned();
    let texts: &[(&str, &str)] = match &*kind {
        "text" => &[("text", "text_delta")],
        "thinking" => &[
            ("thinking", "thinking_delta"),
            ("signature", "signature_delta"),
        ],
        _ => &[],
    };
    if kind == "text"
        && let Some(Value::Array(citations)) = block.get_mut("citations")
    {
        deltas.extend(
            citations
                .drain(..)
                .map(|citation| json!({"type": "citations_delta", "citation": citation})),
        );
    }
    for (name, delta) in texts {
        if let Some(text) = block
            .get_mut(*name)
            .filter(|text| text.is_string() && **text != "")
        {
            deltas.push(json!({"type": delta, *name: text.take()}));
            *text = json!("");
        }
    }
    if kind.ends_with("tool_use")
        && let Some(input) = block.get_mut("input").filter(|input| input.is_object())
    {
        deltas.push(json!({"type": "input_json_delta", "partial_json": input.to_string()}));
        *input = json!({});
    }
    Some((block, deltas))
}

fn event(data: &Value) -> Bytes {
    sse::named(data["type"].as_str().unwrap_or_default(), data)
}
