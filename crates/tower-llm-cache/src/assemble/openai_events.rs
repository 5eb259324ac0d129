//! OpenAI's chat and text completions: one object to chunks.

use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    Map,
    merge::{has, into_object, take_array},
    openai::TEXTS,
    sse,
};

/// Members of the object that each chunk repeats; the others come with the first.
const REPEATED: [&str; 6] = [
    "id",
    "object",
    "created",
    "model",
    "service_tier",
    "system_fingerprint",
];

/// What is the same in all chunks of a stream.
#[derive(Debug)]
struct Chunks {
    head: Map,
    /// Members that the first chunk takes with it.
    once: Map,
    include_usage: bool,
    frames: Vec<Bytes>,
}

/// Cuts a chat completion into chunks.
pub(super) fn chat(object: Map, include_usage: bool) -> Option<Vec<Bytes>> {
    stream(
        object,
        "chat.completion.chunk",
        include_usage,
        |choice, chunks| {
            let message = into_object(choice.remove("message")?)?;
            let index = choice.get("index").cloned();
            let logprobs = choice.remove("logprobs");
            let mut deltas = deltas(message)?;
            // They are about the tokens of the text, or of what comes last.
            let is_text = |delta: &Map| {
                delta
                    .keys()
                    .any(|name| name == "content" || name == "refusal")
            };
            let said = &deltas[1..];
            let of_tokens = said
                .iter()
                .position(is_text)
                .map_or(deltas.len() - 1, |at| at + 1);
            for (at, delta) in deltas.drain(..).enumerate() {
                let logprobs = logprobs.as_ref().map(|logprobs| match at == of_tokens {
                    true => logprobs.clone(),
                    false => Value::Null,
                });
                chunks.push(choice_chunk(index.as_ref(), delta, logprobs));
            }
            let logprobs = logprobs.map(|_| Value::Null);
            let mut last = choice_chunk(index.as_ref(), Map::new(), logprobs);
            last.append(choice);
            chunks.push(last);
            Some(())
        },
    )
}

/// Cuts a text completion into chunks.
pub(super) fn text(object: Map, include_usage: bool) -> Option<Vec<Bytes>> {
    stream(
        object,
        "text_completion",
        include_usage,
        |choice, chunks| {
            let mut last = choice.clone();
            last.insert("text".to_owned(), json!(""));
            if last.contains_key("logprobs") {
                last.insert("logprobs".to_owned(), Value::Null);
            }
            choice.retain(|name, _| ["index", "text", "logprobs"].contains(&&**name));
            choice.insert("finish_reason".to_owned(), Value::Null);
            if !choice.get("text")?.is_string() {
                return None;
            }
            chunks.push(choice.clone());
            chunks.push(last);
            Some(())
        },
    )
}

fn stream(
    mut object: Map,
    name: &str,
    include_usage: bool,
    cut: impl Fn(&mut Map, &mut Chunks) -> Option<()>,
) -> Option<Vec<Bytes>> {
    let choices = take_array(&mut object, "choices")?;
    let usage = object.remove("usage");
    if has(&object, "error") || choices.is_empty() {
        return None;
    }
    if let Some(object) = object.get_mut("object") {
        *object = name.into();
    }
    let (head, once) = object
        .into_iter()
        .partition(|(name, _)| REPEATED.contains(&&**name));
    let mut chunks = Chunks {
        head,
        once,
        include_usage,
        frames: Vec::new(),
    };
    for choice in choices {
        let mut choice = into_object(choice)?;
        if has(&choice, "error") || !has(&choice, "finish_reason") {
            return None;
        }
        cut(&mut choice, &mut chunks)?;
    }
    if include_usage {
        let usage = usage.filter(Value::is_object)?;
        chunks.push_with(json!([]), usage);
    }
    chunks.frames.push(Bytes::from_static(b"data: [DONE]\n\n"));
    Some(chunks.frames)
}

impl Chunks {
    fn push(&mut self, choice: Map) {
        self.push_with(json!([choice]), Value::Null);
    }

    fn push_with(&mut self, choices: Value, usage: Value) {
        let mut chunk = self.head.clone();
        chunk.append(&mut self.once);
        chunk.insert("choices".to_owned(), choices);
        if self.include_usage {
            chunk.insert("usage".to_owned(), usage);
        }
        self.frames.push(sse::unnamed(&Value::Object(chunk)));
    }
}

fn choice_chunk(index: Option<&Value>, delta: Map, logprobs: Option<Value>) -> Map {
    let mut choice = Map::new();
    if let Some(index) = index {
        choice.insert("index".to_owned(), index.clone());
    }
    choice.insert("delta".to_owned(), Value::Object(delta));
    if let Some(logprobs) = logprobs {
        choice.insert("logprobs".to_owned(), logprobs);
    }
    choice.insert("finish_reason".to_owned(), Value::Null);
    choice
}

/// A message as deltas: first the role with what is empty, then each member on its own.
fn deltas(mut message: Map) -> Option<Vec<Map>> {
    let mut first = Map::new();
    // OpenAI's deltas have no empty list of annotations.
    if message.contains_key("refusal") && message.get("annotations") == Some(&json!([])) {
        message.remove("annotations");
    }
    let mut said = Vec::new();
    for name in TEXTS {
        match message.remove(name) {
            Some(text @ Value::String(_)) if text != "" => {
                if name == "content" {
                    first.insert(name.to_owned(), json!(""));
                }
                said.push(delta(name, text));
            }
            // Mistral's lists of parts.
            Some(parts @ Value::Array(_)) => said.push(delta(name, parts)),
            Some(nothing) => drop(first.insert(name.to_owned(), nothing)),
            None => {}
        }
    }
    for (name, value) in message {
        match value {
            Value::Array(calls) if name == "tool_calls" && !calls.is_empty() => {
                for (index, call) in calls.into_iter().enumerate() {
                    let mut call = into_object(call)?;
                    call.insert("index".to_owned(), index.into());
                    said.push(delta(&name, json!([call])));
                }
            }
            Value::Object(_) | Value::Array(_) => said.push(delta(&name, value)),
            _ => drop(first.insert(name, value)),
        }
    }
    said.insert(0, first);
    Some(said)
}

fn delta(name: &str, value: Value) -> Map {
    Map::from_iter([(name.to_owned(), value)])
}
