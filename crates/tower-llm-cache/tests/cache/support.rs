//! A described call, a mock upstream, and a cache between them.

use std::task::Poll;

use bytes::Bytes;
use http::{Method, Request, Response, request};
use http_body::Body;
use http_body_util::Full;
use tokio_test::{assert_ready, task};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_llm_cache::{Cache, CacheBody, CacheLayer, Policy, Scope};
use tower_llm_core::{BoxError, DescribeLayer, RequestBody};
use tower_llm_testkit::mock::{self, Upstream};
use tower_test::mock::{Handle, Mock, SendResponse};

pub(crate) type Sent = Request<RequestBody>;
pub(crate) type Inner = Mock<Sent, Response<Upstream>>;
pub(crate) type Provider = Handle<Sent, Response<Upstream>>;
pub(crate) type Answer = Response<CacheBody<Upstream>>;
pub(crate) type Calling = task::Spawn<<Cache<Inner> as tower_service::Service<Sent>>::Future>;

pub(crate) const CHAT: &str = "/v1/chat/completions";
pub(crate) const QUESTION: &str =
    r#"{"model":"gpt-5.4","messages":[{"role":"user","content":"Why?"}],"stream":true}"#;

pub(crate) const ROLE: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\"}}]}\n\n";
pub(crate) const TOKEN: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Because.\"}}]}\n\n";
pub(crate) const FINISH: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
pub(crate) const DONE: &str = "data: [DONE]\n\n";
pub(crate) const WHOLE: [&str; 4] = [ROLE, TOKEN, FINISH, DONE];

/// A layer whose answers all callers share.
pub(crate) fn shared() -> CacheLayer {
    CacheLayer::builder(Scope::shared()).build().unwrap()
}

/// The same, with a policy for completions.
pub(crate) fn caching(completions: impl Into<Option<Policy>>) -> CacheLayer {
    let builder = CacheLayer::builder(Scope::shared()).completions(completions);
    builder.build().unwrap()
}

pub(crate) fn upstream(layer: &CacheLayer) -> (Cache<Inner>, Provider) {
    let (inner, provider) = tower_test::mock::pair();
    (layer.layer(inner), provider)
}

/// The request as the layers inside of the description see it.
pub(crate) fn described(request: request::Builder, body: &str) -> Sent {
    let keep = service_fn(|request: Sent| async { Ok::<_, BoxError>(request) });
    let request = request
        .body(Full::new(Bytes::from(body.to_owned())))
        .unwrap();
    let describing = DescribeLayer::new().layer(keep).oneshot(request);
    assert_ready!(task::spawn(describing).poll()).unwrap()
}

pub(crate) fn post(path: &str) -> request::Builder {
    Request::builder().method(Method::POST).uri(path)
}

pub(crate) fn question() -> Sent {
    described(post(CHAT), QUESTION)
}

/// Calls the cache and polls once.
pub(crate) fn start(cache: &Cache<Inner>, request: Sent) -> Calling {
    let mut calling = mock::start(cache, request);
    assert!(
        calling.poll().is_pending(),
        "the upstream has not answered yet"
    );
    calling
}

/// The response headers, which are there.
pub(crate) fn answered(calling: &mut Calling) -> Answer {
    assert_ready!(calling.poll()).unwrap()
}

/// Answers a call with an event stream; returns the sender of its frames.
pub(crate) fn stream(send: SendResponse<Response<Upstream>>) -> mock::Sender {
    let (frames, body) = Upstream::new();
    send.send_response(mock::stream(body));
    frames
}

/// Answers a call with a document, in parts.
pub(crate) fn object(send: SendResponse<Response<Upstream>>, parts: &[&'static str]) {
    let (sender, body) = Upstream::new();
    let response = Response::builder().header("content-type", "application/json");
    send.send_response(response.body(body).unwrap());
    parts.iter().for_each(|part| sender.send(part));
}

/// Answers the call that has arrived with all of `frames`, and ends.
pub(crate) fn answer(provider: &mut Provider, frames: &[&'static str]) {
    let (_, send) = mock::arrived(provider);
    let sender = stream(send);
    for frame in frames {
        sender.send(frame);
    }
}

/// The next frame; `None` at the end.
pub(crate) fn next<B>(body: &mut B) -> Option<Result<Bytes, B::Error>>
where
    B: Body<Data = Bytes> + Unpin,
{
    let frame = assert_ready!(mock::poll_frame(body))?;
    Some(frame.map(|frame| frame.into_data().unwrap_or_default()))
}

pub(crate) fn is_waiting<B>(body: &mut B) -> bool
where
    B: Body<Data = Bytes> + Unpin,
{
    mock::poll_frame(body).is_pending()
}

/// All frames to a clean end.
pub(crate) fn frames(mut answer: Answer) -> Vec<Bytes> {
    let mut frames = Vec::new();
    while let Some(frame) = next(answer.body_mut()) {
        frames.push(frame.unwrap());
    }
    frames
}

/// Sends a question, has it answered with `answer_frames`, and reads the answer.
pub(crate) fn ask(
    cache: &Cache<Inner>,
    provider: &mut Provider,
    request: Sent,
    answer_frames: &[&'static str],
) -> Vec<Bytes> {
    let mut calling = start(cache, request);
    answer(provider, answer_frames);
    frames(answered(&mut calling))
}

/// The stored answer to `request`, if there is one.
pub(crate) fn found(cache: &Cache<Inner>, request: Sent) -> Option<Answer> {
    let mut calling = mock::start(cache, request);
    match calling.poll() {
        Poll::Ready(answer) => Some(answer.unwrap()),
        Poll::Pending => None,
    }
}

pub(crate) fn status(answer: &Answer) -> &str {
    answer.headers()["cache-status"].to_str().unwrap()
}
