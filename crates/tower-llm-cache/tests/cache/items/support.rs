//! A mock provider of embeddings, and callers that send it batches.

use std::hash::{DefaultHasher, Hasher};

use bytes::Bytes;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio_test::{assert_ready, task};
use tower_test::mock::SendResponse;

pub(super) use crate::support::{start as call, *};
use tower_llm_testkit::mock::{self, Upstream};

pub(super) const PATH: &str = "/v1/embeddings";

/// A call that has arrived at the provider.
pub(super) struct Arrived {
    pub(super) request: Sent,
    send: SendResponse<http::Response<Upstream>>,
}

pub(super) fn body(input: &Value) -> String {
    json!({"model": "text-embedding-3-small", "input": input}).to_string()
}

pub(super) fn batch(input: &Value) -> Sent {
    described(post(PATH), &body(input))
}

pub(super) fn arrived(provider: &mut Provider) -> Arrived {
    let (request, send) = mock::arrived(provider);
    Arrived::new(request, send)
}

impl Arrived {
    pub(super) fn new(request: Sent, send: SendResponse<http::Response<Upstream>>) -> Self {
        Self { request, send }
    }

    pub(super) fn body(&self) -> Value {
        serde_json::from_slice(self.request.body().as_bytes().unwrap()).unwrap()
    }

    pub(super) fn inputs(&self) -> Vec<Value> {
        inputs(&self.body()["input"])
    }

    /// Answers as an embeddings model does.
    pub(super) fn answer(self) {
        let answer = embeddings(&self.body());
        self.respond(200, answer);
    }

    /// Answers in frames of a few bytes each.
    pub(super) fn respond(self, status: u16, body: impl Into<Bytes>) {
        let (sender, upstream) = Upstream::new();
        let mut body = body.into();
        let response = http::Response::builder()
            .status(status)
            .header("content-type", "application/json")
            .header("content-length", body.len())
            .header("x-request-id", "r-1");
        self.send.send_response(response.body(upstream).unwrap());
        while !body.is_empty() {
            sender.send_bytes(body.split_to(body.len().min(61)));
        }
    }

    pub(super) fn fail(self) {
        self.send.send_error("connection reset");
    }
}

/// An array of numbers is one input.
pub(super) fn inputs(input: &Value) -> Vec<Value> {
    match input {
        Value::Array(all) if !all.iter().all(Value::is_number) => all.clone(),
        one => vec![one.clone()],
    }
}

/// What the provider writes for an input: it depends on the input, and on how it is asked for, alone. Its numbers would not
/// survive a detour by doubles.
pub(super) fn vector(input: &Value, request: &Value) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(input.to_string().as_bytes());
    hasher.write(request["dimensions"].to_string().as_bytes());
    let hash = hasher.finish();
    if request["encoding_format"] == "base64" {
        format!("\"{hash:x}+/==\"")
    } else {
        format!("[0.{hash}{hash}, 1e-7,-0.50]")
    }
}

/// One token for each input.
pub(super) fn embeddings(request: &Value) -> String {
    let inputs = inputs(&request["input"]);
    let items = inputs.iter().enumerate().map(|(index, input)| {
        let vector = vector(input, request);
        format!(r#"{{"object":"embedding","index":{index},"embedding":{vector}}}"#)
    });
    let items: Vec<_> = items.collect();
    let tokens = inputs.len();
    format!(
        r#"{{"object":"list","data":[{}],"model":"small","usage":{{"prompt_tokens":{tokens},"total_tokens":{tokens}}}}}"#,
        items.join(",")
    )
}

/// The body of an answer that is there.
pub(super) fn text(answer: Answer) -> String {
    let collected = assert_ready!(task::spawn(answer.into_body().collect()).poll());
    String::from_utf8(collected.unwrap().to_bytes().into()).unwrap()
}

/// Asserts that an answer has the right vector for each input, as the provider wrote it; returns what it says was used.
#[track_caller]
pub(super) fn check(answer: Answer, request: &Value) -> u64 {
    let length = answer.headers().get("content-length").cloned();
    let text = text(answer);
    assert_eq!(length.unwrap().to_str().unwrap(), text.len().to_string());
    let answer: Value = serde_json::from_str(&text).unwrap();
    let inputs = inputs(&request["input"]);
    let items = answer["data"].as_array().unwrap();
    assert_eq!(items.len(), inputs.len(), "{text}");
    let mut rest = &text[..];
    for (index, (item, input)) in items.iter().zip(&inputs).enumerate() {
        assert_eq!(item["index"], index);
        assert_eq!(item["object"], "embedding");
        let vector = vector(input, request);
        let at = rest
            .find(&vector)
            .expect("the vector as it was written, in its order");
        rest = &rest[at + vector.len()..];
        assert_eq!(
            item["embedding"],
            serde_json::from_str::<Value>(&vector).unwrap()
        );
    }
    assert_eq!(
        (&answer["object"], &answer["model"]),
        (&json!("list"), &json!("small"))
    );
    assert_eq!(
        answer["usage"]["prompt_tokens"],
        answer["usage"]["total_tokens"]
    );
    answer["usage"]["total_tokens"].as_u64().unwrap()
}
