//! Requests that are many calls: batches of chats and of embeddings, and a list of items put into a template.
//!
//! Each call passes all layers as if its caller had made it alone: it counts against the caller's limit, may be cached, and fails
//! alone. The response lists what became of each, in order.

use std::{future::Future, pin::Pin, time::Duration};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{self, CONTENT_TYPE},
    request::Parts,
};
use http_body_util::{BodyExt, Full};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tower::{Layer, ServiceExt, util::BoxCloneService};
use tower_llm_stack::{
    BoxError, FanoutLayer,
    fanout::{self, Item, RipeBody},
};

use crate::{caller::PatientBody, warm::OwnBody};

/// The most items of one request.
const MAX_ITEMS: usize = 10_000;
/// The most calls of one request at once, and how many unless it says.
const MAX_CONCURRENT: usize = 100;
const CONCURRENT: usize = 10;
/// Texts of one embeddings call, unless the request says.
const BATCH_SIZE: usize = 100;
/// What the calls of one request may have in all, beyond what each may: so many times the size of one body.
const BODIES: usize = 16;
/// What the answers of one request may have in all, and each of them at least and at most.
const ANSWERS: usize = 512 << 20;
const ANSWER: [usize; 2] = [256 << 10, 32 << 20];
/// What no provider's call exceeds.
const MAX_BATCH_SIZE: usize = 2_048;

/// An endpoint whose requests are many calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Chats,
    Embeddings,
    FanOut,
}

/// The calls of one request.
#[derive(Debug)]
pub(crate) struct Plan {
    path: &'static str,
    bodies: Vec<Value>,
    max_concurrent: usize,
    /// The last call, into which the results are put.
    fan_in: Option<Value>,
    /// For embeddings: how many texts each call has.
    texts: Option<Vec<usize>>,
    bounds: Bounds,
}

/// Makes one call, through all layers.
pub(crate) type Calls = BoxCloneService<Request<PatientBody>, Response<OwnBody>, BoxError>;

/// The answer to one request.
pub(crate) type Answered = Pin<Box<dyn Future<Output = Response<Full<Bytes>>> + Send>>;

type Collected = fanout::Collected<Response<RipeBody<OwnBody>>>;

/// What a request may ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Of each call.
    pub(crate) max_body_bytes: usize,
    /// Of all calls together.
    pub(crate) deadline: Duration,
}

/// What became of one item.
type Outcome = Result<Value, (u16, Value)>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChatsRequest {
    requests: Vec<Map<String, Value>>,
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
struct EmbeddingsRequest {
    #[serde(alias = "input")]
    texts: Vec<Value>,
    batch_size: Option<usize>,
    max_concurrent: Option<usize>,
    #[serde(default)]
    batch_options: BatchOptions,
    /// What each call has besides: the model, dimensions.
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FanOutRequest {
    items: Vec<Value>,
    template: Value,
    max_concurrent: Option<usize>,
    fan_in: Option<Value>,
}

impl Endpoint {
    /// The endpoint that a request is for.
    pub(crate) fn of(method: &Method, path: &str) -> Option<Self> {
        match path {
            _ if method != Method::POST => None,
            "/v1/batch/chat" | "/v1/completions/batch" => Some(Self::Chats),
            "/v1/batch/embeddings" | "/v1/embeddings/batch" => Some(Self::Embeddings),
            "/v1/fan_out" => Some(Self::FanOut),
            _ => None,
        }
    }

    /// Where its calls go.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Chats | Self::FanOut => "/v1/chat/completions",
            Self::Embeddings => "/v1/embeddings",
        }
    }

    /// The calls of a request, or what is wrong with it.
    pub(crate) fn plan(self, body: &[u8], bounds: Bounds) -> Result<Plan, String> {
        match self {
            Self::Chats => read(body).and_then(|request| self.chats(request, bounds)),
            Self::Embeddings => read(body).and_then(|request| self.embeddings(request, bounds)),
            Self::FanOut => read(body).and_then(|request| self.fan_out(request, bounds)),
        }
    }

    fn chats(self, request: ChatsRequest, bounds: Bounds) -> Result<Plan, String> {
        let ChatsRequest {
            requests,
            model,
            max_concurrent,
            batch_options,
        } = request;
        check_items("requests", requests.len())?;
        let model_bytes = model.as_ref().map_or(0, String::len);
        bounds.check("model", requests.iter().map(|_| model_bytes))?;
        let bodies = requests.into_iter().map(|mut body| {
            if let Some(model) = &model {
                body.entry("model").or_insert_with(|| model.as_str().into());
            }
            // The short form: a prompt alone.
            if !body.contains_key("messages")
                && let Some(prompt) = body.remove("prompt")
            {
                let messages = json!([{"role": "user", "content": prompt}]);
                body.insert("messages".to_owned(), messages);
            }
            whole(body)
        });
        self.of_bodies(
            "requests",
            bodies.collect(),
            batch_options.concurrency(max_concurrent)?,
            bounds,
        )
    }

    fn embeddings(self, request: EmbeddingsRequest, bounds: Bounds) -> Result<Plan, String> {
        let size = request.batch_size.unwrap_or(BATCH_SIZE);
        if !(1..=MAX_BATCH_SIZE).contains(&size) {
            return Err(format!(
                "batch_size is {size}, and must be from 1 to {MAX_BATCH_SIZE}"
            ));
        }
        let max_concurrent = request.batch_options.concurrency(request.max_concurrent)?;
        check_items("texts", request.texts.len())?;
        let chunks = request.texts.chunks(size);
        let rest = Value::Object(request.rest.clone()).to_string().len();
        bounds.check("the request", chunks.clone().map(|_| rest))?;
        let texts = chunks.clone().map(<[Value]>::len).collect();
        let bodies = chunks.map(|texts| {
            let mut body = request.rest.clone();
            body.insert("input".to_owned(), Value::from(texts));
            Value::Object(body)
        });
        let plan = self.of_bodies("texts", bodies.collect(), max_concurrent, bounds)?;
        Ok(Plan {
            texts: Some(texts),
            ..plan
        })
    }

    fn fan_out(self, request: FanOutRequest, bounds: Bounds) -> Result<Plan, String> {
        let FanOutRequest {
            items,
            template,
            max_concurrent,
            fan_in,
        } = request;
        if !contains(&template, "{{item}}") {
            return Err("template has no {{item}} in it".to_owned());
        }
        if fan_in
            .as_ref()
            .is_some_and(|fan_in| !contains(fan_in, "{{results}}"))
        {
            return Err("fan_in has no {{results}} in it".to_owned());
        }
        check_items("items", items.len())?;
        // Before anything is put in: a short request can ask for more than there is memory.
        let (own, places) = (template.to_string().len(), places(&template, "{{item}}"));
        let sizes = items
            .iter()
            .map(|item| own.saturating_add(places.saturating_mul(text_of(item).len())));
        bounds.check("template", sizes)?;
        let bodies = items.iter().map(|item| {
            let body = replaced(&template, "{{item}}", &text_of(item));
            match body {
                Value::Object(body) => whole(body),
                other => other,
            }
        });
        let max_concurrent = BatchOptions::default().concurrency(max_concurrent)?;
        let plan = self.of_bodies("items", bodies.collect(), max_concurrent, bounds)?;
        Ok(Plan { fan_in, ..plan })
    }

    fn of_bodies(
        self,
        field: &str,
        bodies: Vec<Value>,
        max_concurrent: usize,
        bounds: Bounds,
    ) -> Result<Plan, String> {
        check_items(field, bodies.len())?;
        Ok(Plan {
            path: self.path(),
            bodies,
            max_concurrent,
            fan_in: None,
            texts: None,
            bounds,
        })
    }
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| format!("the body cannot be read: {error}"))
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

impl Bounds {
    /// Checks the sizes of the calls that `field` makes.
    fn check(&self, field: &str, sizes: impl Iterator<Item = usize>) -> Result<(), String> {
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

/// A call whose answer is read whole.
fn whole(mut body: Map<String, Value>) -> Value {
    body.remove("stream");
    body.remove("stream_options");
    Value::Object(body)
}

/// An item as text: a string as it is, anything else as JSON.
fn text_of(item: &Value) -> String {
    item.as_str()
        .map_or_else(|| item.to_string(), str::to_owned)
}

fn contains(value: &Value, place: &str) -> bool {
    places(value, place) > 0
}

/// How often `place` stands in a value.
fn places(value: &Value, place: &str) -> usize {
    match value {
        Value::String(text) => text.matches(place).count(),
        Value::Array(values) => values.iter().map(|value| places(value, place)).sum(),
        Value::Object(members) => members.values().map(|value| places(value, place)).sum(),
        _ => 0,
    }
}

/// The value with `text` in each `place`. What is put in is not looked at again.
fn replaced(value: &Value, place: &str, text: &str) -> Value {
    match value {
        Value::String(string) => Value::String(string.replace(place, text)),
        Value::Array(values) => {
            let values = values.iter().map(|value| replaced(value, place, text));
            values.collect()
        }
        Value::Object(members) => {
            let members = members.iter();
            let members = members.map(|(name, value)| (name.clone(), replaced(value, place, text)));
            Value::Object(members.collect())
        }
        other => other.clone(),
    }
}

impl Plan {
    /// Makes the calls on `service`, each with the headers of `parts`, and returns what became of them.
    pub(crate) async fn run(self, service: Calls, parts: &Parts) -> Response<Full<Bytes>> {
        let items = self.bodies.iter();
        let items = items.map(|body| request(parts, self.path, body)).collect();
        let max_held = (ANSWERS / self.bodies.len()).clamp(ANSWER[0], ANSWER[1]);
        let map = FanoutLayer::map(self.max_concurrent)
            .max_held_bytes(max_held)
            .deadline(self.bounds.deadline)
            .build();
        let map = map.expect("the number at once was checked, and the others are constants");
        // Boxed, so that the compiler need not prove of this function what it has proved of the call.
        let calling: Pin<Box<dyn Future<Output = Result<Collected, BoxError>> + Send>> =
            Box::pin(map.layer(service.clone()).oneshot(items));
        let answers: Vec<_> = match calling.await {
            Ok(collected) => collected.into_items().into_iter().map(answer).collect(),
            Err(error) => return respond(StatusCode::BAD_GATEWAY, &problem(&error.to_string())),
        };
        let mut outcomes = Vec::with_capacity(answers.len());
        for answer in answers {
            outcomes.push(match answer {
                Ok(response) => read_whole(response).await,
                Err(failed) => Err(failed),
            });
        }
        let outcomes = match &self.texts {
            Some(texts) => by_text(outcomes, texts),
            None => outcomes,
        };
        let fan_in = match &self.fan_in {
            Some(fan_in) => Some(self.fan_in(fan_in, &outcomes, service, parts).await),
            None => None,
        };
        respond(StatusCode::OK, &listed(outcomes, fan_in))
    }

    /// The last call, over what succeeded.
    async fn fan_in(
        &self,
        fan_in: &Value,
        outcomes: &[Outcome],
        service: Calls,
        parts: &Parts,
    ) -> Outcome {
        let good = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok());
        let good: Vec<Value> = good.map(answer_of).collect();
        if good.is_empty() {
            let none = problem("no item succeeded, so there is nothing to put into fan_in");
            return Err((StatusCode::FAILED_DEPENDENCY.as_u16(), none));
        }
        let good = Value::from(good).to_string();
        let size = places(fan_in, "{{results}}").saturating_mul(good.len());
        if let Err(what) = self.bounds.check("fan_in", [size].into_iter()) {
            return Err((StatusCode::PAYLOAD_TOO_LARGE.as_u16(), problem(&what)));
        }
        let body = replaced(fan_in, "{{results}}", &good);
        let body = match body {
            Value::Object(body) => whole(body),
            other => other,
        };
        match service.oneshot(request(parts, self.path, &body)).await {
            Ok(response) => read_whole(response).await,
            Err(error) => Err(failed(&error)),
        }
    }
}

/// What an answer says; all of it, if that is not a chat's.
fn answer_of(answer: &Value) -> Value {
    let said = answer.pointer("/choices/0/message/content");
    said.unwrap_or(answer).clone()
}

fn request(parts: &Parts, path: &'static str, body: &Value) -> Request<PatientBody> {
    let mut parts = parts.clone();
    parts.uri = Uri::from_static(path);
    for name in [
        header::CONTENT_LENGTH,
        header::EXPECT,
        header::TRANSFER_ENCODING,
    ] {
        parts.headers.remove(name);
    }
    let json = HeaderValue::from_static("application/json");
    parts.headers.insert(CONTENT_TYPE, json);
    Request::from_parts(parts, PatientBody::own(body.to_string().into()))
}

/// The answer to one call, if it has one. All of it has arrived.
fn answer(item: Item<Response<RipeBody<OwnBody>>>) -> Result<Response<OwnBody>, (u16, Value)> {
    match item {
        Item::Done(response) | Item::Rejected(response) => Ok(response.map(BodyExt::boxed_unsync)),
        Item::Failed(error) => Err(failed(&error)),
        Item::Cancelled | Item::NotStarted | Item::DeadlineExceeded => Err((
            StatusCode::GATEWAY_TIMEOUT.as_u16(),
            problem("it was not answered"),
        )),
    }
}

async fn read_whole(response: Response<OwnBody>) -> Outcome {
    let (head, body) = response.into_parts();
    let bytes = match body.collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) => return Err(failed(&error)),
    };
    let status = head.status.as_u16();
    match serde_json::from_slice::<Value>(&bytes) {
        Ok(value) if head.status.is_success() && error_of(&value).is_none() => Ok(value),
        Ok(value) => {
            let status = if head.status.is_success() {
                502
            } else {
                status
            };
            Err((status, error_of(&value).cloned().unwrap_or(value)))
        }
        Err(_) => Err((status, problem(&String::from_utf8_lossy(&bytes)))),
    }
}

/// Its error; some servers write a null into every answer.
fn error_of(value: &Value) -> Option<&Value> {
    value.get("error").filter(|error| !error.is_null())
}

fn failed(error: &BoxError) -> (u16, Value) {
    (
        StatusCode::BAD_GATEWAY.as_u16(),
        problem(&error.to_string()),
    )
}

fn problem(message: &str) -> Value {
    json!({"type": "api_error", "message": message})
}

/// The outcome of each text, of calls that had several.
fn by_text(outcomes: Vec<Outcome>, texts: &[usize]) -> Vec<Outcome> {
    let calls = outcomes.into_iter().zip(texts);
    let each = calls.flat_map(|(outcome, &texts)| {
        let vectors = outcome.and_then(|answer| vectors(&answer, texts));
        (0..texts).map(move |text| match &vectors {
            Ok(vectors) => Ok(vectors[text].clone()),
            Err(error) => Err(error.clone()),
        })
    });
    each.collect()
}

/// The vectors of an answer by their own positions; an answer without one for each text is a failure.
fn vectors(answer: &Value, texts: usize) -> Result<Vec<Value>, (u16, Value)> {
    let data = answer.get("data").and_then(Value::as_array);
    let mut vectors = vec![Value::Null; texts];
    for (position, entry) in data.into_iter().flatten().enumerate() {
        let index = entry.get("index").and_then(Value::as_u64);
        let index = index.map_or(position, |index| {
            usize::try_from(index).unwrap_or(usize::MAX)
        });
        if let (Some(vector), Some(embedding)) = (vectors.get_mut(index), entry.get("embedding")) {
            *vector = json!({"embedding": embedding});
        }
    }
    match vectors.iter().any(Value::is_null) {
        true => Err((
            502,
            problem("the provider's answer has not one vector for each text"),
        )),
        false => Ok(vectors),
    }
}

fn listed(outcomes: Vec<Outcome>, fan_in: Option<Outcome>) -> Value {
    let succeeded = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    let failed = outcomes.len() - succeeded;
    let results = outcomes.into_iter().enumerate().map(|(index, outcome)| {
        let mut result = told(outcome);
        result["index"] = index.into();
        result
    });
    let mut list = json!({
        "object": "list",
        "results": results.collect::<Vec<_>>(),
        "succeeded": succeeded,
        "failed": failed,
    });
    if let Some(fan_in) = fan_in {
        list["fan_in"] = told(fan_in);
    }
    list
}

fn told(outcome: Outcome) -> Value {
    match outcome {
        Ok(response) => json!({"status": 200, "response": response}),
        Err((status, error)) => json!({"status": status, "error": error}),
    }
}

/// The answer to a request that makes no sense.
pub(crate) fn refused(message: &str) -> Response<Full<Bytes>> {
    let error = json!({"error": {
        "type": "invalid_request_error",
        "code": "invalid_batch",
        "message": message,
    }});
    respond(StatusCode::BAD_REQUEST, &error)
}

fn respond(status: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}
