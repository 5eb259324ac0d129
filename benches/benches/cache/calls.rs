//! The calls that are made, and the services that answer them at once.

use std::{
    convert::Infallible,
    fmt::Debug,
    future::{Ready, ready},
    pin::pin,
    task::{Context, Poll, Waker},
};

use benches::{Frames, now};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body::Body;
use http_body_util::Full;
use tower::{Layer, Service};
use tower_llm_cache::{Cache, CacheBuilder, CacheLayer, Scope};
use tower_llm_core::{Describe, DescribeLayer, RequestBody};

pub(crate) const OURS: &str = "tower-llm-cache";
pub(crate) const CHAT: &str = "/v1/chat/completions";
pub(crate) const EVENTS: &str = "text/event-stream; charset=utf-8";
pub(crate) const JSON: &str = "application/json";

/// What a service is called with once the call is described.
pub(crate) type Described = Request<RequestBody>;

/// A service behind a description and a cache.
pub(crate) type Cached<S> = Describe<Cache<S>>;

pub(crate) fn builder() -> CacheBuilder {
    CacheLayer::builder(Scope::shared())
}

/// Builds the layer and puts it, and a description, around `inner`.
pub(crate) fn cached<S>(builder: CacheBuilder, inner: S) -> (Cached<S>, CacheLayer) {
    let layer = builder.build().expect("no setting is zero");
    let service = DescribeLayer::new().layer(layer.layer(inner));
    (service, layer)
}

/// A request as a client sends it.
pub(crate) fn request(body: Bytes) -> Request<Full<Bytes>> {
    let mut request = Request::post(CHAT)
        .body(Full::new(body))
        .expect("the path is one");
    let headers = request.headers_mut();
    for (name, value) in [
        (
            header::AUTHORIZATION,
            "Bearer sk-proj-0123456789abcdefghijklmnopqrstuvwxyz",
        ),
        (header::CONTENT_TYPE, JSON),
        (header::ACCEPT, "text/event-stream"),
        (header::USER_AGENT, "OpenAI/Python 2.8.0"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    request
}

pub(crate) fn response<B>(content_type: &'static str, body: B) -> Response<B> {
    let mut response = Response::new(body);
    let content_type = HeaderValue::from_static(content_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}

/// What answers a described call with these frames.
pub(crate) fn answer(
    content_type: &'static str,
    frames: &'static [Bytes],
) -> impl Fn(Described) -> Ready<Result<Response<Frames>, Infallible>> + Clone {
    move |_| ready(Ok(response(content_type, Frames::new(frames))))
}

/// Makes a call that waits for nothing.
pub(crate) fn call<S, B>(service: &mut S, body: Bytes) -> Response<B>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>>,
    S::Error: Debug,
{
    now(service.call(request(body))).expect("the call is answered")
}

/// The length of the first frame of a body that waits for nothing.
pub(crate) fn first_frame<B>(body: B) -> usize
where
    B: Body<Data = Bytes>,
    B::Error: Debug,
{
    let mut body = pin!(body);
    match body
        .as_mut()
        .poll_frame(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(Some(frame)) => {
            let frame = frame.expect("the body does not fail");
            frame.data_ref().map_or(0, Bytes::len)
        }
        _ => panic!("the first frame is there"),
    }
}

/// A body that `payload` has written, for a caller that does not stream and asks for determinism.
pub(crate) fn unstreamed(body: &[u8]) -> Bytes {
    let mut json: serde_json::Value = serde_json::from_slice(body).expect("the body is JSON");
    json["stream"] = false.into();
    json["temperature"] = 0.into();
    json.to_string().into()
}

/// A body with a place for a number, so that each call can have a key of its own.
#[derive(Clone)]
pub(crate) struct Numbered {
    body: Vec<u8>,
    at: usize,
}

impl Numbered {
    const PLACE: &str = "#00000000000";

    /// Makes a place for the number in a body that `payload` has written.
    pub(crate) fn new(body: &[u8]) -> Self {
        let text = std::str::from_utf8(body).expect("JSON is UTF-8");
        let text = text.replacen("You are", &format!("{} You are", Self::PLACE), 1);
        let at = text
            .find(Self::PLACE)
            .expect("the system's message is there")
            + 1;
        Self {
            body: text.into_bytes(),
            at,
        }
    }

    pub(crate) fn with(&mut self, number: u64) -> Bytes {
        let digits = format!("{number:011}");
        self.body[self.at..self.at + digits.len()].copy_from_slice(digits.as_bytes());
        Bytes::copy_from_slice(&self.body)
    }
}
