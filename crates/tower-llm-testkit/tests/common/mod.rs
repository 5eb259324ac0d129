//! A client for the tests.

#![allow(dead_code, reason = "each test file uses its part")]

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{client::legacy, rt::TokioExecutor};
use tower_llm_testkit::SimulatedProvider;

/// More than any wait in these tests on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) type Client = legacy::Client<legacy::connect::HttpConnector, Full<Bytes>>;

pub(crate) fn client() -> Client {
    legacy::Client::builder(TokioExecutor::new()).build_http()
}

pub(crate) fn post(provider: &SimulatedProvider, path: &str, body: &str) -> Request<Full<Bytes>> {
    request(provider, Method::POST, path, body, HeaderMap::new())
}

pub(crate) fn request(
    provider: &SimulatedProvider,
    method: Method,
    path: &str,
    body: &str,
    headers: HeaderMap,
) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::from(body.to_owned()));
    *request.method_mut() = method;
    *request.uri_mut() = format!("{}{path}", provider.url()).parse().unwrap();
    *request.headers_mut() = headers;
    request
}

/// What arrived of a body, frame by frame, and whether it ended well.
pub(crate) struct Arrived {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) frames: Vec<Bytes>,
    pub(crate) error: Option<hyper::Error>,
}

impl Arrived {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.frames.concat()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.bytes()).unwrap()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.bytes()).unwrap()
    }

    /// The names and data of the events in an event stream.
    pub(crate) fn events(&self) -> Vec<(String, serde_json::Value)> {
        let text = self.text().replace("\r\n", "\n");
        let mut events = Vec::new();
        for block in text.split("\n\n") {
            let field = |name: &str| {
                block
                    .lines()
                    .find_map(|line| line.strip_prefix(name))
                    .map(str::trim)
            };
            match field("data:") {
                None | Some("[DONE]") => {}
                Some(json) => {
                    let name = field("event:").unwrap_or("").to_owned();
                    events.push((name, serde_json::from_str(json).unwrap()));
                }
            }
        }
        events
    }
}

pub(crate) async fn read(response: Response<Incoming>) -> Arrived {
    let (head, mut body) = response.into_parts();
    let mut arrived = Arrived {
        status: head.status.as_u16(),
        headers: head.headers,
        frames: Vec::new(),
        error: None,
    };
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => arrived.frames.extend(frame.into_data()),
            Err(error) => {
                arrived.error = Some(error);
                break;
            }
        }
    }
    arrived
}

/// Sends one request and reads its answer to the end.
pub(crate) async fn ask(provider: &SimulatedProvider, path: &str, body: &str) -> Arrived {
    let response = client().request(post(provider, path, body)).await.unwrap();
    tokio::time::timeout(PATIENCE, read(response))
        .await
        .unwrap()
}

/// Drops a call that is never answered, when it has arrived at the provider.
pub(crate) async fn give_up_once_arrived(provider: &SimulatedProvider, call: impl Future) {
    let arrived = provider.wait_for(PATIENCE, |counts| counts.requests == 1);
    tokio::select! {
        _ = call => panic!("it was answered"),
        counts = arrived => drop(counts.unwrap()),
    }
}

/// Every way to ask for a generated answer: path, body, streamed.
pub(crate) const GENERATING: [(&str, &str, bool); 12] = [
    (
        "/v1/chat/completions",
        r#"{"model":"sim-1","messages":[]}"#,
        false,
    ),
    (
        "/v1/chat/completions",
        r#"{"model":"sim-1","stream":true,"stream_options":{"include_usage":true}}"#,
        true,
    ),
    (
        "/v1/completions",
        r#"{"model":"sim-1","prompt":"x"}"#,
        false,
    ),
    (
        "/v1/completions",
        r#"{"model":"sim-1","stream":true,"stream_options":{"include_usage":true}}"#,
        true,
    ),
    ("/v1/responses", r#"{"model":"sim-1","input":"x"}"#, false),
    (
        "/v1/responses",
        r#"{"model":"sim-1","input":"x","stream":true}"#,
        true,
    ),
    (
        "/openai/deployments/east/chat/completions?api-version=2025-04-01-preview",
        r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
        true,
    ),
    ("/v1/messages", r#"{"model":"sim-1","messages":[]}"#, false),
    (
        "/v1/messages",
        r#"{"model":"sim-1","messages":[],"stream":true}"#,
        true,
    ),
    (
        "/v1beta/models/sim-1:generateContent",
        r#"{"contents":[]}"#,
        false,
    ),
    (
        "/v1beta/models/sim-1:streamGenerateContent?alt=sse",
        r#"{"contents":[]}"#,
        true,
    ),
    (
        "/v1beta/models/sim-1:streamGenerateContent",
        r#"{"contents":[]}"#,
        true,
    ),
];
