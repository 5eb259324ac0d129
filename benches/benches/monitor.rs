//! What counting one call costs over calling the inner service directly.
//!
//! A call is `poll_ready`, `call` and polling its answer, which is there at once. The bare service is inlined to almost nothing, so
//! what a subject adds in ns is the figure to read. `count-http` reads a stream to its end, which any layer that watches it does:
//! `on-end` is one that does nothing else.

use std::{
    borrow::Cow,
    convert::Infallible,
    fmt::Debug,
    future::{Ready, poll_fn, ready},
    hint::black_box,
};

use benches::{Case, Frames, Suite, drain, now, payload};
use bytes::Bytes;
use http::{HeaderValue, Response, header::CONTENT_TYPE};
use tower::{Layer, Service, service_fn};
use tower_llm_core::{Call, Described, OnEndLayer, Operation, Provider, Unary};
use tower_llm_monitor::MonitorLayer;

const OURS: &str = "tower-llm-monitor";
const MODEL: &str = "gpt-5-mini";

/// A request of a service's own type.
#[derive(Clone, Copy, Debug)]
struct Prompt<'a> {
    tokens: u64,
    call: &'a Call,
}

impl Described for Prompt<'_> {
    fn call(&self) -> Option<Cow<'_, Call>> {
        Some(Cow::Borrowed(self.call))
    }
}

fn main() {
    let mut suite = Suite::new("monitor");
    count(&mut suite);
    after_a_million(&mut suite);
    http(&mut suite);
    snapshot(&mut suite);
}

fn count(suite: &mut Suite) {
    for (case, model) in [
        ("count", MODEL),
        ("count-dated", "gpt-5-mini-2025-08-07"),
        ("count-unknown", "a-model-of-our-own"),
    ] {
        let case = Case::new(case);
        let call = call(model);
        let ours = typed(None).layer(service_fn(echo));
        suite.subject(&case, "bare", || counted(service_fn(echo), &call));
        suite.subject(&case, OURS, || counted(ours.clone(), &call));
    }
    // With a record of each call, for which there is no room: a queue that is emptied in between costs as much.
    let case = Case::new("count-and-record");
    let call = call(MODEL);
    let ours = typed(Some(1_000)).layer(service_fn(echo));
    suite.subject(&case, OURS, || counted(ours.clone(), &call));
}

/// The same after a million calls: the time of a call must not depend on how many there were.
fn after_a_million(suite: &mut Suite) {
    let case = Case::new("count-after-a-million");
    let call = call(MODEL);
    let ours = typed(None).layer(service_fn(echo));
    let mut before = counted(ours.clone(), &call);
    (0..1_000_000).for_each(|_| before());
    suite.subject(&case, OURS, || counted(ours.clone(), &call));
}

/// Around an HTTP service that answers with a stream, read to its end.
fn http(suite: &mut Suite) {
    let frames = payload::forever(payload::chat_stream(50));
    let bytes: usize = frames.iter().map(Bytes::len).sum();
    let case = Case::new("count-http").bytes(bytes);
    let call = call(MODEL);
    let stream = move |_: Prompt<'_>| {
        let mut response = Response::new(Frames::new(frames));
        let content_type = HeaderValue::from_static("text/event-stream");
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        ready(Ok::<_, Infallible>(response))
    };
    let ours = MonitorLayer::new().layer(service_fn(stream));
    let on_end = OnEndLayer::new(|_, _| ()).layer(service_fn(stream));

    suite.subject(&case, "bare", || read(service_fn(stream), &call, bytes));
    suite.subject(&case, "on-end", || read(on_end, &call, bytes));
    suite.subject(&case, OURS, || read(ours.clone(), &call, bytes));
}

/// What a reading costs, of 50 rows with calls in them.
fn snapshot(suite: &mut Suite) {
    const ROWS: usize = 50;
    let models: Vec<String> = (0..ROWS).map(|model| format!("model-{model}")).collect();
    let layer = MonitorLayer::builder().models(models.clone()).watch(Unary);
    let monitor = layer.build().expect("the settings are valid");
    for model in &models {
        let call = call(model);
        let mut count = counted(monitor.layer(service_fn(echo)), &call);
        (0..1_000).for_each(|_| count());
    }
    let case = Case::new("snapshot-50-rows");
    suite.subject(&case, OURS, || {
        let handle = monitor.handle();
        move || assert_eq!(handle.snapshot().rows.len(), ROWS)
    });
}

fn typed(records: Option<usize>) -> MonitorLayer<Unary> {
    let builder = MonitorLayer::builder().watch(Unary);
    let builder = match records {
        Some(capacity) => builder.records(capacity),
        None => builder,
    };
    builder.build().expect("the settings are valid")
}

/// One call after another.
fn counted<'a, S>(mut service: S, call: &'a Call) -> impl FnMut()
where
    S: Service<Prompt<'a>, Response = u64>,
    S::Error: Debug,
{
    let prompt = Prompt { tokens: 7, call };
    move || {
        now(poll_fn(|cx| service.poll_ready(cx))).expect("it is ready at once");
        let response = now(service.call(black_box(prompt))).expect("it never fails");
        assert_eq!(black_box(response), 7);
    }
}

/// One stream after another.
fn read<'a, S, B>(mut service: S, call: &'a Call, bytes: usize) -> impl FnMut()
where
    S: Service<Prompt<'a>, Response = Response<B>>,
    S::Error: Debug,
    B: http_body::Body<Data = Bytes>,
    B::Error: Debug,
{
    let prompt = Prompt { tokens: 7, call };
    move || {
        let response = now(service.call(black_box(prompt))).expect("it never fails");
        assert_eq!(drain(response.into_body()), bytes);
    }
}

fn echo(prompt: Prompt<'_>) -> Ready<Result<u64, Infallible>> {
    ready(Ok(prompt.tokens))
}

fn call(model: &str) -> Call {
    let call = Call::builder(Provider::OPENAI, Operation::CHAT).model(model);
    call.streamed(true).build()
}
