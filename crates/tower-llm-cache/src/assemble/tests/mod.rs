//! What the simulated providers and the recorded bodies say of both directions.

mod cut;
mod fixtures;
mod joined;
mod parts;
mod properties;
mod simulated;
mod usage;

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Method, Response, Uri};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tower_llm_core::{
    Call, Completion, Dialect, FinishReason, Guard, HttpBody, Operation, Outcome, Provider, Usage,
    Watch,
};

use super::{StreamForm, events, join, whole};

const EVENTS: StreamForm = StreamForm::Events {
    include_usage: true,
};

/// What a request to this path asks for; `None` if it has no other form.
fn asked(path: &str) -> Option<(Dialect, Operation)> {
    let uri: Uri = path.parse().unwrap();
    let dialect = Dialect::of(&Method::POST, &uri, &HeaderMap::new())?;
    let path = uri.path();
    let operation = match dialect {
        Dialect::OpenAi if path.ends_with("/chat/completions") => Operation::CHAT,
        Dialect::OpenAi if path.ends_with("/completions") => Operation::TEXT_COMPLETION,
        Dialect::OpenAiResponses => Operation::CHAT,
        Dialect::Anthropic if path.ends_with("/messages") => Operation::CHAT,
        Dialect::Gemini if path.to_lowercase().ends_with("generatecontent") => {
            Operation::GENERATE_CONTENT
        }
        _ => return None,
    };
    Some((dialect, operation))
}

/// What is joined, as it is written; with or without usage.
fn whole_at(path: &str, stream: &[u8]) -> Option<Value> {
    let (dialect, operation) = asked(path)?;
    let joined = join(dialect, &operation, stream)?;
    let written = whole(dialect, &operation, stream);
    assert!(written.is_some() || joined.get("usage").is_none());
    let written = written.unwrap_or_else(|| joined.to_string().into());
    Some(serde_json::from_slice(&written).unwrap())
}

fn events_at(path: &str, whole: &[u8]) -> Option<Vec<Bytes>> {
    let (dialect, operation) = asked(path)?;
    events(dialect, &operation, whole, EVENTS)
}

/// An event stream without names.
fn stream(events: &[Value]) -> String {
    events
        .iter()
        .map(|event| format!("data: {event}\n\n"))
        .collect()
}

/// How core judges a body.
#[derive(Debug, PartialEq, Eq)]
struct Judged {
    outcome: Outcome,
    usage: Option<Usage>,
    finish: Option<FinishReason>,
}

impl Judged {
    fn events(path: &str, body: &[u8]) -> Self {
        Self::of(path, "text/event-stream", body)
    }

    fn whole(path: &str, body: &[u8]) -> Self {
        Self::of(path, "application/json", body)
    }

    fn of(path: &str, content_type: &str, body: &[u8]) -> Self {
        let (dialect, operation) = asked(path).unwrap();
        let call = Call::builder(Provider::OTHER, operation)
            .dialect(dialect)
            .streamed(content_type == "text/event-stream" || body.starts_with(b"["))
            .build();
        let response = Response::builder()
            .header("content-type", content_type)
            .body(Full::new(Bytes::copy_from_slice(body)))
            .unwrap();
        let told = Told::default();
        let response = HttpBody.watch(Some(&call), response, told.clone());
        tokio_test::block_on(response.into_body().collect()).unwrap();
        let completion = told.0.lock().unwrap().take().unwrap();
        Self {
            outcome: completion.outcome,
            usage: completion.usage,
            // Core reads no reason in a stream of responses that was completed.
            finish: completion.finish.filter(|finish| {
                dialect != Dialect::OpenAiResponses || *finish != FinishReason::Stop
            }),
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Told(Arc<Mutex<Option<Completion>>>);

impl Guard for Told {
    fn end(&mut self, completion: &Completion) {
        *self.0.lock().unwrap() = Some(completion.clone());
    }
}
