//! What became of many calls, as it is told.
//!
//! Answers stay as they are written: an embedding takes several times its bytes as a tree.

use std::{collections::BTreeMap, future::Future, pin::Pin};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Collected, Full, Limited};
use serde::{Deserialize, Serialize};
use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};
use tower_llm_stack::{
    BoxError,
    fanout::{Item, RipeBody},
};

use crate::warm::OwnBody;

/// The longest error that is passed on: one error may be told of many items.
const MAX_ERROR: usize = 64 << 10;

/// What became of one item: its answer, or its status and error.
pub(super) type Outcome = Result<Box<RawValue>, (u16, Box<RawValue>)>;

/// All outcomes, as a response says them.
#[derive(Debug, Serialize)]
struct List {
    object: &'static str,
    results: Vec<Told>,
    succeeded: usize,
    failed: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    fan_in: Option<Told>,
}

#[derive(Debug, Serialize)]
struct Told {
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Box<RawValue>>,
}

type Reading = Pin<Box<dyn Future<Output = Result<Collected<Bytes>, BoxError>> + Send>>;

/// What is read of an answer.
#[derive(Debug, Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

#[derive(Debug, Deserialize)]
struct Chat<'a> {
    #[serde(borrow)]
    choices: Vec<Choice<'a>>,
}

#[derive(Debug, Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    message: Message<'a>,
}

#[derive(Debug, Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    content: &'a RawValue,
}

#[derive(Debug, Deserialize)]
struct Embeddings<'a> {
    #[serde(borrow)]
    data: Vec<Vector<'a>>,
}

#[derive(Debug, Deserialize)]
struct Vector<'a> {
    index: Option<usize>,
    #[serde(borrow)]
    embedding: &'a RawValue,
}

/// The answer to one call, if it has one. All of it has arrived.
pub(super) fn answer(
    item: Item<Response<RipeBody<OwnBody>>>,
) -> Result<Response<OwnBody>, (u16, Box<RawValue>)> {
    match item {
        Item::Done(response) | Item::Rejected(response) => Ok(response.map(BodyExt::boxed_unsync)),
        Item::Failed(error) => Err(failed(&error)),
        Item::Cancelled | Item::NotStarted | Item::DeadlineExceeded => Err((
            StatusCode::GATEWAY_TIMEOUT.as_u16(),
            problem("it was not answered"),
        )),
    }
}

/// Reads an answer of at most so many bytes.
pub(super) async fn read_whole(response: Response<OwnBody>, max_bytes: usize) -> Outcome {
    let (head, body) = response.into_parts();
    // Boxed, so that the compiler need not prove of this function what it has proved of the body.
    let reading: Reading = Box::pin(Limited::new(body, max_bytes).collect());
    let bytes = match reading.await {
        Ok(collected) => collected.to_bytes(),
        Err(error) => return Err(failed(&error)),
    };
    let is_good = head.status.is_success();
    let whole = serde_json::from_slice::<Box<RawValue>>(&bytes);
    let error = whole.as_ref().ok().and_then(|whole| error_of(whole));
    let error = match (&whole, error) {
        (Ok(_), None) if is_good => return whole.map_err(|error| failed(&error.into())),
        (_, Some(error)) => Some(error),
        (Ok(whole), None) => Some(&**whole),
        (Err(_), None) => None,
    };
    let status = match is_good {
        true => StatusCode::BAD_GATEWAY,
        false => head.status,
    };
    let told = match error {
        _ if bytes.len() > MAX_ERROR => problem("it was answered with an error that is too long"),
        Some(error) => error.to_owned(),
        None => problem(&String::from_utf8_lossy(&bytes)),
    };
    Err((status.as_u16(), told))
}

/// Its error; some servers write a null into every answer.
fn error_of(answer: &RawValue) -> Option<&RawValue> {
    // A list would be read as the members in their order.
    let answer = Some(answer.get()).filter(|answer| answer.starts_with('{'))?;
    serde_json::from_str::<Answer<'_>>(answer).ok()?.error
}

/// What an answer says; all of it, if that is not a chat's.
pub(super) fn said(answer: &RawValue) -> &RawValue {
    let chat = serde_json::from_str::<Chat<'_>>(answer.get()).ok();
    let first = chat.and_then(|chat| chat.choices.into_iter().next());
    first.map_or(answer, |choice| choice.message.content)
}

/// The outcome of each text, of calls that had several.
pub(super) fn by_text(outcomes: Vec<Outcome>, texts: &[usize]) -> Vec<Outcome> {
    let calls = outcomes.into_iter().zip(texts);
    let each = calls.flat_map(|(outcome, &texts)| {
        match outcome.and_then(|answer| vectors(&answer, texts)) {
            Ok(vectors) => vectors.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error); texts],
        }
    });
    each.collect()
}

/// The vectors of an answer by their own positions; an answer without one for each text is a failure.
fn vectors(answer: &RawValue, texts: usize) -> Result<Vec<Box<RawValue>>, (u16, Box<RawValue>)> {
    let answer = serde_json::from_str::<Embeddings<'_>>(answer.get());
    let data = answer.map_or_else(|_| Vec::new(), |answer| answer.data);
    let mut vectors = vec![None; texts];
    for (position, Vector { index, embedding }) in data.into_iter().enumerate() {
        if let Some(vector) = vectors.get_mut(index.unwrap_or(position)) {
            *vector = Some(raw(&BTreeMap::from([("embedding", embedding)])));
        }
    }
    let vectors = vectors.into_iter().collect::<Option<_>>();
    vectors.ok_or_else(|| {
        let what = "the provider's answer has not one vector for each text";
        (StatusCode::BAD_GATEWAY.as_u16(), problem(what))
    })
}

pub(super) fn failed(error: &BoxError) -> (u16, Box<RawValue>) {
    (
        StatusCode::BAD_GATEWAY.as_u16(),
        problem(&error.to_string()),
    )
}

pub(super) fn problem(message: &str) -> Box<RawValue> {
    raw(&json!({"type": "api_error", "message": message}))
}

fn raw(value: &impl Serialize) -> Box<RawValue> {
    to_raw_value(value).expect("it is made of JSON")
}

pub(super) fn listed(outcomes: Vec<Outcome>, fan_in: Option<Outcome>) -> impl Serialize {
    let succeeded = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    let failed = outcomes.len() - succeeded;
    let results = outcomes.into_iter().enumerate();
    List {
        object: "list",
        results: results
            .map(|(index, outcome)| Told::new(Some(index), outcome))
            .collect(),
        succeeded,
        failed,
        fan_in: fan_in.map(|outcome| Told::new(None, outcome)),
    }
}

impl Told {
    fn new(index: Option<usize>, outcome: Outcome) -> Self {
        let (status, response, error) = match outcome {
            Ok(response) => (200, Some(response), None),
            Err((status, error)) => (status, None, Some(error)),
        };
        Self {
            index,
            status,
            response,
            error,
        }
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

pub(super) fn respond(status: StatusCode, body: &impl Serialize) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(body).expect("it is made of JSON");
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}
