//! OpenAI's chat and text completions: chunks to one object.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    Map,
    merge::{self, Repeated, append, extend, has, into_object, set, set_all, take_array},
    sse,
};

/// The members of a delta whose pieces are one text.
pub(super) const TEXTS: [&str; 4] = ["reasoning", "reasoning_content", "content", "refusal"];

/// The chunks joined so far.
#[derive(Debug, Default)]
struct Answer {
    /// All members but the choices.
    root: Map,
    choices: BTreeMap<u64, Choice>,
}

#[derive(Debug, Default)]
struct Choice {
    /// All members but the message.
    root: Map,
    message: Option<Message>,
}

#[derive(Debug, Default)]
struct Message {
    /// All members but the tool calls.
    root: Map,
    calls: BTreeMap<u64, Map>,
}

/// Joins the chunks of a chat completion.
pub(super) fn chat(stream: &[u8]) -> Option<Value> {
    let mut answer = Answer::read(stream)?;
    answer.name_object("chat.completion.chunk", "chat.completion");
    answer.finish(|choice| {
        let mut message = choice.message?.finish();
        // Each message has these; some servers leave them out of their deltas.
        message.entry("role").or_insert_with(|| json!("assistant"));
        message.entry("content").or_insert(Value::Null);
        // OpenAI's messages have both, its deltas leave annotations out where there are none.
        if message.contains_key("refusal") {
            message.entry("annotations").or_insert_with(|| json!([]));
        }
        let mut root = choice.root;
        root.insert("message".to_owned(), Value::Object(message));
        Some(root)
    })
}

/// Joins the chunks of a text completion.
pub(super) fn text(stream: &[u8]) -> Option<Value> {
    let mut answer = Answer::read(stream)?;
    answer.name_object("text_completion.chunk", "text_completion");
    answer.finish(|choice| choice.message.is_none().then_some(choice.root))
}

// === impl Answer ===

impl Answer {
    fn read(stream: &[u8]) -> Option<Self> {
        let mut answer = Self::default();
        let mut is_done = false;
        for data in sse::data(stream)? {
            if is_done {
                return None;
            }
            is_done = matches!(&*data, b"[DONE]" | b"\"[DONE]\"");
            if !is_done {
                answer.add(merge::parse(&data)?)?;
            }
        }
        is_done.then_some(answer)
    }

    fn add(&mut self, mut chunk: Map) -> Option<()> {
        if has(&chunk, "error") {
            return None;
        }
        for choice in take_array(&mut chunk, "choices")? {
            let choice = into_object(choice)?;
            // One choice needs no index.
            let index = choice.get("index").map_or(Some(0), Value::as_u64)?;
            self.choices.entry(index).or_default().add(choice)?;
        }
        chunk.remove("obfuscation");
        // Azure's chunks about filters have zero for a date.
        if chunk.get("created") == Some(&json!(0)) && self.root.contains_key("created") {
            chunk.remove("created");
        }
        // Chunks before the last have null, and some servers send zeros after the figures.
        if let Some(usage) = chunk.remove("usage").filter(|usage| !usage.is_null())
            && (!is_zero(&usage) || !self.root.contains_key("usage"))
        {
            self.root.insert("usage".to_owned(), usage);
        }
        set_all(&mut self.root, chunk, Repeated::Last)
    }

    fn name_object(&mut self, chunk: &str, whole: &str) {
        if let Some(object) = self
            .root
            .get_mut("object")
            .filter(|object| **object == chunk)
        {
            *object = whole.into();
        }
    }

    fn finish(mut self, finish: impl Fn(Choice) -> Option<Map>) -> Option<Value> {
        let choices: Option<Vec<Value>> = self
            .choices
            .into_values()
            .map(|choice| {
                let is_finished = has(&choice.root, "finish_reason");
                finish(choice).filter(|_| is_finished).map(Value::Object)
            })
            .collect();
        let choices = choices.filter(|choices| !choices.is_empty())?;
        self.root
            .insert("choices".to_owned(), Value::Array(choices));
        Some(Value::Object(self.root))
    }
}

/// Whether there is no number in it but zeros.
fn is_zero(usage: &Value) -> bool {
    match usage {
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Object(members) => members.values().all(is_zero),
        _ => true,
    }
}

// === impl Choice ===

impl Choice {
    fn add(&mut self, choice: Map) -> Option<()> {
        if has(&choice, "error") {
            return None;
        }
        for (name, value) in choice {
            match &*name {
                "delta" => {
                    let message = self.message.get_or_insert_default();
                    message.add(into_object(value)?)?;
                }
                "text" => append(&mut self.root, name, value)?,
                "logprobs" => self.add_logprobs(name, value)?,
                // Azure judges each chunk.
                "content_filter_results" => set(&mut self.root, name, value, Repeated::Last)?,
                _ => set(&mut self.root, name, value, Repeated::Same)?,
            }
        }
        Some(())
    }

    /// Lists of tokens: in one object, or in one member each of it.
    fn add_logprobs(&mut self, name: String, logprobs: Value) -> Option<()> {
        match (self.root.get_mut(&name), logprobs) {
            (Some(Value::Object(known)), Value::Object(new)) => new
                .into_iter()
                .try_for_each(|(name, tokens)| extend(known, name, tokens)),
            (_, logprobs) => set(&mut self.root, name, logprobs, Repeated::Same),
        }
    }
}

// === impl Message ===

impl Message {
    fn add(&mut self, delta: Map) -> Option<()> {
        for (name, value) in delta {
            match (&*name, value) {
                (text, value) if TEXTS.contains(&text) => append(&mut self.root, name, value)?,
                ("tool_calls", Value::Array(calls)) => {
                    for call in calls {
                        self.add_call(into_object(call)?)?;
                    }
                    // Known to be there, even if it is empty.
                    self.root.insert(name, json!([]));
                }
                ("function_call", Value::Object(call)) => {
                    add_texts(object_in(&mut self.root, name)?, call, &["arguments"])?;
                }
                ("audio", Value::Object(audio)) => self.add_audio(name, audio)?,
                ("annotations", value) => extend(&mut self.root, name, value)?,
                ("reasoning_details", Value::Array(details)) => self.add_details(name, details)?,
                (_, value) => set(&mut self.root, name, value, Repeated::Same)?,
            }
        }
        Some(())
    }

    fn add_call(&mut self, mut call: Map) -> Option<()> {
        let index = call.remove("index")?.as_u64()?;
        let known = self.calls.entry(index).or_default();
        for (kind, text) in [("function", "arguments"), ("custom", "input")] {
            if let Some(Value::Object(members)) = call.get_mut(kind).map(Value::take) {
                call.remove(kind);
                add_texts(object_in(known, kind.to_owned())?, members, &[text])?;
            }
        }
        set_all(known, call, Repeated::Same)
    }

    fn add_audio(&mut self, name: String, audio: Map) -> Option<()> {
        let known = object_in(&mut self.root, name)?;
        // Padded base64 is at its end: what follows cannot be appended.
        let is_padded = known
            .get("data")
            .and_then(Value::as_str)
            .is_some_and(|data| data.ends_with('='));
        if is_padded && has(&audio, "data") {
            return None;
        }
        add_texts(known, audio, &["data", "transcript"])
    }

    /// OpenRouter's list: an element goes on where type and index are the same.
    fn add_details(&mut self, name: String, details: Vec<Value>) -> Option<()> {
        let known = self.root.entry(name).or_insert_with(|| json!([]));
        if known.is_null() {
            *known = json!([]);
        }
        let known = known.as_array_mut()?;
        // Of one delta, no element goes on with another.
        let mut open = known.len().checked_sub(1);
        for detail in details {
            let goes_on = open.take().filter(|&last| {
                let same = |name| known[last].get(name) == detail.get(name);
                same("type") && same("index")
            });
            match goes_on {
                Some(last) => {
                    let known = known[last].as_object_mut()?;
                    add_texts(known, into_object(detail)?, &["text", "summary"])?;
                }
                None => known.push(detail),
            }
        }
        Some(())
    }

    fn finish(mut self) -> Map {
        if !self.calls.is_empty() {
            let calls = self.calls.into_values().map(Value::Object).collect();
            self.root.insert("tool_calls".to_owned(), calls);
        }
        self.root
    }
}

/// The member as an object, which is made if there is none.
fn object_in(known: &mut Map, name: String) -> Option<&mut Map> {
    let member = known.entry(name).or_insert(Value::Null);
    if member.is_null() {
        *member = json!({});
    }
    member.as_object_mut()
}

/// Adds members of which some are texts.
fn add_texts(known: &mut Map, new: Map, texts: &[&str]) -> Option<()> {
    for (name, value) in new {
        if texts.contains(&&*name) {
            append(known, name, value)?;
        } else {
            set(known, name, value, Repeated::Same)?;
        }
    }
    Some(())
}
