//! Scripted bodies, and guards that record how they end.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]
use std::{
    collections::VecDeque,
    future::Future,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use tokio::time::Instant;
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_llm_core::{
    BoxError, Call, Completion, DescribeLayer, Described, Failure, FinishReason, Guard, HttpBody,
    Outcome, RequestBody, Usage, Watch, Watched,
};
use tower_llm_testkit::fixtures::{Fixture, Verdict};

// === events in order ===

/// The events, in the order in which they happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<Event>>>);

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    FirstToken(&'static str, Instant),
    Ended(&'static str, Completion),
    /// The upstream's body or future was dropped.
    UpstreamDropped,
}

/// A named guard that records everything in a log.
#[derive(Debug)]
pub(crate) struct Probe {
    name: &'static str,
    log: Log,
}

impl Log {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn probe(&self, name: &'static str) -> Probe {
        let log = self.clone();
        Probe { name, log }
    }

    pub(crate) fn push(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.0.lock().unwrap().clone()
    }

    /// The events without their values.
    pub(crate) fn order(&self) -> Vec<String> {
        let name = |event: &Event| match event {
            Event::FirstToken(name, _) => format!("{name} first token"),
            Event::Ended(name, _) => format!("{name} end"),
            Event::UpstreamDropped => "upstream dropped".to_owned(),
        };
        self.events().iter().map(name).collect()
    }

    pub(crate) fn completions(&self) -> Vec<Completion> {
        let completion = |event| match event {
            Event::Ended(_, completion) => Some(completion),
            _ => None,
        };
        self.events().into_iter().filter_map(completion).collect()
    }

    pub(crate) fn first_tokens(&self) -> Vec<Instant> {
        let at = |event| match event {
            Event::FirstToken(_, at) => Some(at),
            _ => None,
        };
        self.events().into_iter().filter_map(at).collect()
    }

    /// The completion of the only end.
    #[track_caller]
    pub(crate) fn completion(&self) -> Completion {
        let [completion] = <[Completion; 1]>::try_from(self.completions())
            .unwrap_or_else(|all| panic!("ended {} times: {all:?}", all.len()));
        completion
    }

    #[track_caller]
    pub(crate) fn outcome(&self) -> Outcome {
        self.completion().outcome
    }
}

impl Guard for Probe {
    fn first_token(&mut self, at: Instant) {
        self.log.push(Event::FirstToken(self.name, at));
    }

    fn end(&mut self, completion: &Completion) {
        self.log.push(Event::Ended(self.name, completion.clone()));
    }
}

// === bodies ===

/// What a scripted body does at a poll.
#[derive(Debug)]
pub(crate) enum Step {
    Data(Bytes),
    Trailers(HeaderMap),
    Error(BoxError),
    /// Nothing arrives, now or later.
    Hang,
    Panic,
}

/// A body that does one step at each poll and then ends.
#[derive(Debug)]
pub(crate) struct Script {
    steps: VecDeque<Step>,
    polls: Arc<AtomicUsize>,
    log: Option<Log>,
    /// The body reports its length, and with its last frame its end.
    known_length: bool,
}

impl Script {
    pub(crate) fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self {
            steps: steps.into_iter().collect(),
            polls: Arc::default(),
            log: None,
            known_length: false,
        }
    }

    pub(crate) fn data<D: Into<Bytes>>(pieces: impl IntoIterator<Item = D>) -> Self {
        Self::new(pieces.into_iter().map(|piece| Step::Data(piece.into())))
    }

    pub(crate) fn then(mut self, step: Step) -> Self {
        self.steps.push_back(step);
        self
    }

    /// Records in `log` when it is dropped.
    pub(crate) fn logged(mut self, log: &Log) -> Self {
        self.log = Some(log.clone());
        self
    }

    pub(crate) fn with_known_length(mut self) -> Self {
        self.known_length = true;
        self
    }

    /// Counts its polls.
    pub(crate) fn polls(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.polls)
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.polls.fetch_add(1, Ordering::Relaxed);
        match self.steps.pop_front() {
            None => Poll::Ready(None),
            Some(Step::Data(data)) => Poll::Ready(Some(Ok(Frame::data(data)))),
            Some(Step::Trailers(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Some(Step::Error(error)) => Poll::Ready(Some(Err(error))),
            Some(Step::Hang) => {
                self.steps.push_front(Step::Hang);
                Poll::Pending
            }
            Some(Step::Panic) => panic!("the upstream's body panics"),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.known_length && self.steps.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        if !self.known_length {
            return SizeHint::default();
        }
        let length = |step: &Step| match step {
            Step::Data(data) => data.len() as u64,
            _ => 0,
        };
        SizeHint::with_exact(self.steps.iter().map(length).sum())
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        if let Some(log) = &self.log {
            log.push(Event::UpstreamDropped);
        }
    }
}

// === responses ===

/// The end of a response, apart from its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) outcome: Outcome,
    pub(crate) usage: Option<Usage>,
    pub(crate) output_seen: u64,
    pub(crate) finish: Option<FinishReason>,
    pub(crate) has_first_token: bool,
}

impl From<Completion> for Summary {
    fn from(completion: Completion) -> Self {
        Self {
            outcome: completion.outcome,
            usage: completion.usage,
            output_seen: completion.output_seen,
            finish: completion.finish,
            has_first_token: completion.first_token_at.is_some(),
        }
    }
}

pub(crate) fn response<B>(status: u16, content_type: &str, body: B) -> Response<B> {
    Response::builder()
        .status(status)
        .header("content-type", content_type)
        .body(body)
        .unwrap()
}

pub(crate) fn sse<B>(body: B) -> Response<B> {
    response(200, "text/event-stream", body)
}

pub(crate) fn json<B>(body: B) -> Response<B> {
    response(200, "application/json", body)
}

/// The next frame, which must be ready; `None` at the end.
pub(crate) fn next_frame<B: Body + Unpin>(
    body: &mut B,
) -> Option<Result<Frame<B::Data>, B::Error>> {
    match poll_frame(body) {
        Poll::Ready(frame) => frame,
        Poll::Pending => panic!("the body is pending"),
    }
}

pub(crate) fn poll_frame<B: Body + Unpin>(
    body: &mut B,
) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
    pin!(body).poll_frame(&mut Context::from_waker(Waker::noop()))
}

/// Reads `response` through a watch to its end; returns the completion and the frames that came out.
#[track_caller]
pub(crate) fn watch_to_end(
    call: Option<&Call>,
    response: Response<Script>,
) -> (Completion, Vec<Bytes>) {
    let log = Log::new();
    let response: Response<Watched<Script, Probe>> =
        HttpBody.watch(call, response, log.probe("only"));
    let mut body = response.into_body();
    let mut frames = Vec::new();
    while let Some(frame) = next_frame(&mut body) {
        frames.extend(frame.unwrap().into_data());
    }
    drop(body);
    assert!(log.first_tokens().len() <= 1, "{:?}", log.order());
    let completion = log.completion();
    let first_token = log.first_tokens().first().copied();
    assert_eq!(
        first_token, completion.first_token_at,
        "another first token was reported"
    );
    (completion, frames)
}

// === fixtures ===

/// The call of a request that `fixture` answers.
pub(crate) fn call_of(fixture: &Fixture) -> Call {
    let body = match fixture.is_event_stream() {
        true => r#"{"model":"some-model","stream":true}"#,
        false => r#"{"model":"some-model"}"#,
    };
    let request = Request::post(fixture.path)
        .body(Full::<Bytes>::from(body))
        .unwrap();
    let service = DescribeLayer::new().layer(service_fn(async |request: Request<RequestBody>| {
        Ok::<_, BoxError>(request.call().unwrap().into_owned())
    }));
    let described = pin!(service.oneshot(request)).poll(&mut Context::from_waker(Waker::noop()));
    match described {
        Poll::Ready(call) => call.unwrap(),
        Poll::Pending => panic!("describing waits"),
    }
}

/// The response of `fixture`, with its body in these pieces.
pub(crate) fn answer<D: Into<Bytes>>(
    fixture: &Fixture,
    pieces: impl IntoIterator<Item = D>,
) -> Response<Script> {
    let mut response = Response::new(Script::data(pieces));
    *response.status_mut() = fixture.status.try_into().unwrap();
    *response.headers_mut() = fixture.header_map();
    response
}

/// The completion that the fixture's table expects.
pub(crate) fn expected(fixture: &Fixture) -> Outcome {
    let wait = |millis: Option<u64>| millis.map(Duration::from_millis);
    match fixture.expect.verdict {
        Verdict::Success => Outcome::Success,
        Verdict::Throttled { retry_after_ms } => Outcome::Throttled {
            retry_after: wait(retry_after_ms),
        },
        Verdict::Exhausted => Outcome::Exhausted,
        Verdict::Overloaded { retry_after_ms } => Outcome::Overloaded {
            retry_after: wait(retry_after_ms),
        },
        Verdict::FailedStatus => Outcome::Failed(Failure::Status),
        Verdict::FailedInBand => Outcome::Failed(Failure::InBand),
        Verdict::FailedTruncated => Outcome::Failed(Failure::Truncated),
        Verdict::ClientError => Outcome::ClientError,
    }
}
