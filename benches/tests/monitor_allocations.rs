//! What a monitor allocates: nothing on the way of a call.

use std::{
    borrow::Cow,
    convert::Infallible,
    fmt::Debug,
    future::{Ready, poll_fn, ready},
};

use benches::{Frames, allocated_by, drain, held_by, now, payload};
use bytes::Bytes;
use http::{HeaderValue, Response, header::CONTENT_TYPE};
use tower::{Layer, Service, service_fn};
use tower_llm_core::{Call, Described, OnEndLayer, Operation, Provider, Unary};
use tower_llm_monitor::MonitorLayer;

#[derive(Clone)]
struct Prompt(Call);

impl Described for Prompt {
    fn call(&self) -> Option<Cow<'_, Call>> {
        Some(Cow::Borrowed(&self.0))
    }
}

fn prompt(model: &str) -> Prompt {
    let call = Call::builder(Provider::OPENAI, Operation::CHAT).model(model);
    Prompt(call.streamed(true).build())
}

fn typed(_: Prompt) -> Ready<Result<(), Infallible>> {
    ready(Ok(()))
}

fn stream(frames: &'static [Bytes]) -> Response<Frames> {
    let mut response = Response::new(Frames::new(frames));
    let content_type = HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// Makes a call that is answered at once, and reads the answer with `read`.
fn call<S, R>(service: &mut S, prompt: &Prompt, read: impl FnOnce(R))
where
    S: Service<Prompt, Response = R>,
    S::Error: Debug,
{
    now(poll_fn(|cx| service.poll_ready(cx))).expect("it is ready");
    read(now(service.call(prompt.clone())).expect("it never fails"));
}

#[test]
fn a_call_allocates_nothing_recorded_or_not() {
    for records in [None, Some(100)] {
        let builder = MonitorLayer::builder().watch(Unary);
        let builder = match records {
            Some(capacity) => builder.records(capacity),
            None => builder,
        };
        let monitor = builder.build().expect("the settings are valid");
        let mut service = monitor.layer(service_fn(typed));
        let prompts = ["gpt-5-mini", "gpt-5-mini-2025-08-07", "unheard"].map(prompt);
        let calls = |service: &mut _| {
            for _ in 0..1_000 {
                prompts
                    .iter()
                    .for_each(|prompt| call(service, prompt, |()| ()));
            }
        };
        // The rows are made by the first calls.
        calls(&mut service);
        let allocated = allocated_by(|| calls(&mut service));
        assert_eq!(allocated.times, 0, "records: {records:?}");
        let counted = monitor.handle().snapshot().total.since_start;
        assert_eq!(counted.calls, 6_000);
    }
}

/// A watched stream allocates for what its layers share of it; a monitor adds nothing to that.
#[test]
fn a_stream_allocates_as_much_as_with_any_layer_that_watches_it() {
    let frames = payload::forever(payload::chat_stream(50));
    let answer = service_fn(move |_: Prompt| ready(Ok::<_, Infallible>(stream(frames))));
    let prompt = prompt("gpt-5-mini");
    let monitor = MonitorLayer::new();
    let (mut counted, mut watched) = (
        monitor.layer(answer),
        OnEndLayer::new(|_, _| ()).layer(answer),
    );
    let mut streams = |is_counted: bool| {
        for _ in 0..100 {
            match is_counted {
                true => call(&mut counted, &prompt, |response: Response<_>| {
                    drain(response.into_body());
                }),
                false => call(&mut watched, &prompt, |response: Response<_>| {
                    drain(response.into_body());
                }),
            }
        }
    };
    streams(true);
    let with_monitor = allocated_by(|| streams(true)).times;
    assert_eq!(with_monitor, allocated_by(|| streams(false)).times);
    assert_eq!(
        monitor
            .handle()
            .snapshot()
            .total
            .since_start
            .first_token
            .count,
        200
    );
}

/// The bound that `MonitorBuilder::max_rows` states, for one thread.
#[test]
fn a_row_holds_what_is_said_of_it_and_no_more_with_more_calls() {
    const ROWS: u64 = 50;
    let prompts: Vec<Prompt> = (0..ROWS)
        .map(|model| prompt(&format!("model-{model}")))
        .collect();
    let models = (0..ROWS).map(|model| format!("model-{model}"));
    let builder = MonitorLayer::builder().models(models).watch(Unary);
    let monitor = builder.build().expect("the settings are valid");
    let mut service = monitor.layer(service_fn(typed));
    let mut calls = |calls: usize| {
        for prompt in prompts.iter().cycle().take(calls * prompts.len()) {
            call(&mut service, prompt, |()| ());
        }
        drop(monitor.handle().snapshot());
    };
    let ((), bytes) = held_by(|| calls(1));
    let per_row = bytes / ROWS;
    assert!((36_000..42_000).contains(&per_row), "{per_row} bytes a row");
    let ((), more) = held_by(|| calls(1_000));
    // The counts of the last seconds, by the times that differ.
    assert!(more < 20_000 * ROWS, "{more} bytes more after 50,000 calls");
}
