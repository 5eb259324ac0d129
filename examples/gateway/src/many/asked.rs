//! What a request for many calls asks for.
//!
//! Values stay as they are written: as trees they would take many times their bytes, and a request can ask for more of them
//! than there is memory.

use std::{borrow::Cow, collections::BTreeMap};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use super::{Bounds, Endpoint, Plan};

/// The most items of one request.
const MAX_ITEMS: usize = 10_000;
/// The most calls of one request at once, and how many unless it says.
const MAX_CONCURRENT: usize = 100;
const CONCURRENT: usize = 10;
/// Texts of one embeddings call, unless the request says.
const BATCH_SIZE: usize = 100;
/// What no provider's call exceeds.
const MAX_BATCH_SIZE: usize = 2_048;
/// What the calls of one request may have in all, beyond what each may: so many times the size of one body.
const BODIES: usize = 16;

/// The members of an object.
type Members<'a> = BTreeMap<String, &'a RawValue>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChatsRequest<'a> {
    #[serde(borrow)]
    requests: Vec<&'a RawValue>,
    model: Option<String>,
    max_concurrent: Option<usize>,
    #[serde(default)]
    batch_options: BatchOptions,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchOptions {
    parallel: Option<bool>,
    max_concurrent: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FanOutRequest<'a> {
    #[serde(borrow)]
    items: Vec<&'a RawValue>,
    #[serde(borrow)]
    template: &'a RawValue,
    max_concurrent: Option<usize>,
    #[serde(borrow)]
    fan_in: Option<&'a RawValue>,
}

/// The body of a call, with places for text.
#[derive(Debug)]
pub(super) struct Template {
    body: String,
    place: &'static str,
}

impl Endpoint {
    /// The calls of a request, or what is wrong with it.
    pub(crate) fn plan(self, body: &[u8], bounds: Bounds) -> Result<Plan, String> {
        match self {
            Self::Chats => self.chats(read(body)?, bounds),
            Self::Embeddings => self.embeddings(read(body)?, bounds),
            Self::FanOut => self.fan_out(&read(body)?, bounds),
        }
    }

    fn chats(self, request: ChatsRequest<'_>, bounds: Bounds) -> Result<Plan, String> {
        let ChatsRequest {
            requests,
            model,
            max_concurrent,
            batch_options,
        } = request;
        check_items("requests", requests.len())?;
        let model_bytes = model.as_ref().map_or(0, String::len);
        bounds.check("model", requests.iter().map(|_| model_bytes))?;
        let model = raw(&model);
        let bodies = requests.into_iter().map(|request| chat(request, &model));
        let bodies = bodies.collect::<Result<_, _>>()?;
        let max_concurrent = batch_options.concurrency(max_concurrent)?;
        Ok(self.of_bodies(bodies, max_concurrent, bounds))
    }

    fn embeddings(self, mut request: Members<'_>, bounds: Bounds) -> Result<Plan, String> {
        let texts = match (request.remove("texts"), request.remove("input")) {
            (Some(texts), None) | (None, Some(texts)) => texts,
            (None, None) => return Err(unreadable("missing field `texts`")),
            (Some(_), Some(_)) => return Err(unreadable("`texts` and `input` are the same")),
        };
        let texts: Vec<&RawValue> = read(texts.get().as_bytes())?;
        let size = take(&mut request, "batch_size")?.unwrap_or(BATCH_SIZE);
        if !(1..=MAX_BATCH_SIZE).contains(&size) {
            return Err(format!(
                "batch_size is {size}, and must be from 1 to {MAX_BATCH_SIZE}"
            ));
        }
        let own = take(&mut request, "max_concurrent")?;
        let options: Option<BatchOptions> = take(&mut request, "batch_options")?;
        let max_concurrent = options.unwrap_or_default().concurrency(own)?;
        check_items("texts", texts.len())?;
        // What each call has besides: the model, dimensions.
        let rest = json(&request).len();
        let chunks = texts.chunks(size);
        bounds.check("the request", chunks.clone().map(|_| rest))?;
        let bodies = chunks.clone().map(|texts| {
            let input = raw(&texts);
            let mut body = request.clone();
            body.insert("input".to_owned(), &input);
            json(&body).into()
        });
        Ok(Plan {
            texts: Some(chunks.map(<[_]>::len).collect()),
            ..self.of_bodies(bodies.collect(), max_concurrent, bounds)
        })
    }

    fn fan_out(self, request: &FanOutRequest<'_>, bounds: Bounds) -> Result<Plan, String> {
        let template = Template::read("template", request.template, "{{item}}")?;
        let fan_in = request.fan_in;
        let fan_in = fan_in.map(|fan_in| Template::read("fan_in", fan_in, "{{results}}"));
        let fan_in = fan_in.transpose()?;
        check_items("items", request.items.len())?;
        let texts: Vec<_> = request.items.iter().map(|item| text_of(item)).collect();
        // Before anything is put in: a short request can ask for more than there is memory.
        let sizes = texts.iter().map(|text| template.size_with(text));
        bounds.check("template", sizes)?;
        let bodies = texts.iter().map(|text| template.with(text));
        let max_concurrent = BatchOptions::default().concurrency(request.max_concurrent)?;
        Ok(Plan {
            fan_in,
            ..self.of_bodies(bodies.collect(), max_concurrent, bounds)
        })
    }

    fn of_bodies(self, bodies: Vec<Bytes>, max_concurrent: usize, bounds: Bounds) -> Plan {
        Plan {
            path: self.path(),
            bodies,
            max_concurrent,
            fan_in: None,
            texts: None,
            bounds,
        }
    }
}

/// The body of a chat, with this `model` unless it has one.
fn chat(request: &RawValue, model: &RawValue) -> Result<Bytes, String> {
    let mut body: Members<'_> = read(request.get().as_bytes())?;
    if model.get() != "null" {
        body.entry("model".to_owned()).or_insert(model);
    }
    // The short form: a prompt alone.
    let prompt = match body.contains_key("messages") {
        true => None,
        false => body.remove("prompt"),
    };
    let messages = prompt.map(|prompt| {
        let message = [("role", &*raw(&"user")), ("content", prompt)];
        raw(&[BTreeMap::from(message)])
    });
    if let Some(messages) = &messages {
        body.insert("messages".to_owned(), messages);
    }
    Ok(whole(body).into())
}

/// A call whose answer is read whole.
fn whole(mut body: Members<'_>) -> String {
    body.remove("stream");
    body.remove("stream_options");
    json(&body)
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| unreadable(&error.to_string()))
}

fn unreadable(what: &str) -> String {
    format!("the body cannot be read: {what}")
}

/// Takes a member that may be null.
fn take<'a, T: Deserialize<'a>>(
    members: &mut Members<'a>,
    name: &str,
) -> Result<Option<T>, String> {
    match members.remove(name) {
        Some(value) => read(value.get().as_bytes()),
        None => Ok(None),
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("texts and what was read are JSON")
}

fn raw(value: &impl Serialize) -> Box<RawValue> {
    to_raw_value(value).expect("texts and what was read are JSON")
}

/// An item as text, as it stands in a JSON string: a string as it is, anything else as JSON.
fn text_of(item: &RawValue) -> Cow<'_, str> {
    let json = item.get();
    let text = json.strip_prefix('"');
    match text.and_then(|text| text.strip_suffix('"')) {
        Some(text) => text.into(),
        None => escaped(json).into(),
    }
}

/// A text as it stands in a JSON string.
fn escaped(text: &str) -> String {
    let mut quoted = json(&text);
    quoted.pop();
    quoted.remove(0);
    quoted
}

fn check_items(field: &str, items: usize) -> Result<(), String> {
    match items {
        0 => Err(format!("{field} is empty")),
        1..=MAX_ITEMS => Ok(()),
        _ => Err(format!(
            "{field} has {items} entries, and may have {MAX_ITEMS}"
        )),
    }
}

// === impl Template ===

impl Template {
    fn read(field: &str, body: &RawValue, place: &'static str) -> Result<Self, String> {
        let body = whole(read(body.get().as_bytes())?);
        match body.contains(place) {
            true => Ok(Self { body, place }),
            false => Err(format!("{field} has no {place} in it")),
        }
    }

    /// How long the body is with this text in it.
    fn size_with(&self, text: &str) -> usize {
        let places = self.body.matches(self.place).count();
        let more = places.saturating_mul(text.len());
        self.body.len().saturating_add(more)
    }

    /// The body with a text in each place, which stands there as in a JSON string. What is put in is not looked at again.
    fn with(&self, text: &str) -> Bytes {
        self.body.replace(self.place, text).into()
    }

    /// The body with a list of values in each place, as JSON.
    pub(super) fn with_list(&self, list: &[&RawValue], bounds: Bounds) -> Result<Bytes, String> {
        bounds.check("fan_in", [list.iter().map(|value| value.get().len()).sum()])?;
        let text = escaped(&json(&list));
        bounds.check("fan_in", [self.size_with(&text)])?;
        Ok(self.with(&text))
    }
}

// === impl Bounds ===

impl Bounds {
    /// Checks the sizes of the calls that `field` makes.
    fn check(&self, field: &str, sizes: impl IntoIterator<Item = usize>) -> Result<(), String> {
        let mut all = 0_usize;
        for size in sizes {
            all = all.saturating_add(size);
            if size > self.max_body_bytes || all > self.max_body_bytes.saturating_mul(BODIES) {
                return Err(format!("{field} makes calls that are too large"));
            }
        }
        Ok(())
    }
}

impl BatchOptions {
    fn concurrency(&self, own: Option<usize>) -> Result<usize, String> {
        if self.parallel == Some(false) {
            return Ok(1);
        }
        let most = own.or(self.max_concurrent).unwrap_or(CONCURRENT);
        match most {
            1..=MAX_CONCURRENT => Ok(most),
            _ => Err(format!(
                "max_concurrent is {most}, and must be from 1 to {MAX_CONCURRENT}"
            )),
        }
    }
}
