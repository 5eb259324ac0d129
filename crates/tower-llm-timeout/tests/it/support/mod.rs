//! Upstreams that speak at set times, and witnesses of what happens to them.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]
use std::{
    collections::VecDeque,
    convert::Infallible,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_llm_core::{
    BoxError, Call, Completion, Deadline, Dialect, Guard, HttpBody, Operation, Provider, TimedOut,
    Watch, Watched,
};
use tower_llm_timeout::{TimeoutBody, TimeoutLayer};

pub(crate) const ROLE: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
pub(crate) const CONTENT: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hello\"}}]}\n\n";
pub(crate) const USAGE: &str =
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2}}\n\n";
pub(crate) const DONE: &str = "data: [DONE]\n\n";
pub(crate) const KEEP_ALIVE: &str = ": keep-alive\n\n";

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MILLISECOND: Duration = Duration::from_millis(1);

pub(crate) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

// === layers and calls ===

/// First token 10 s whatever signs of life there are, nothing else.
pub(crate) fn first_token() -> TimeoutLayer {
    TimeoutLayer::builder()
        .first_token(seconds(10))
        .first_token_max(seconds(10))
        .build()
        .unwrap()
}

/// Idle 10 s, nothing else.
pub(crate) fn idle() -> TimeoutLayer {
    TimeoutLayer::builder().idle(seconds(10)).build().unwrap()
}

/// Total 10 s, nothing else.
pub(crate) fn total() -> TimeoutLayer {
    TimeoutLayer::builder().total(seconds(10)).build().unwrap()
}

/// A request without a description.
pub(crate) fn undescribed() -> Request<()> {
    Request::new(())
}

pub(crate) fn streamed(dialect: Dialect) -> Request<()> {
    described(dialect, true)
}

pub(crate) fn described(dialect: Dialect, streamed: bool) -> Request<()> {
    let call = Call::builder(Provider::OTHER, Operation::CHAT)
        .dialect(dialect)
        .streamed(streamed)
        .build();
    let mut request = Request::new(());
    request.extensions_mut().insert(call);
    request
}

/// Calls a service that answers `request` with `response` at once.
pub(crate) async fn call<B: Body<Data = Bytes>>(
    layer: TimeoutLayer,
    request: Request<()>,
    response: Response<B>,
) -> Response<Pin<Box<TimeoutBody<B>>>> {
    let mut response = Some(response);
    let answer = service_fn(move |_: Request<()>| {
        std::future::ready(Ok::<_, Infallible>(response.take().unwrap()))
    });
    let response = layer.layer(answer).oneshot(request).await.unwrap();
    response.map(Box::pin)
}

pub(crate) fn response<B>(content_type: &str, body: B) -> Response<B> {
    Response::builder()
        .header("content-type", content_type)
        .body(body)
        .unwrap()
}

pub(crate) fn sse<B>(body: B) -> Response<B> {
    response("text/event-stream; charset=utf-8", body)
}

pub(crate) fn json<B>(body: B) -> Response<B> {
    response("application/json", body)
}

#[track_caller]
pub(crate) fn assert_timed_out(error: &BoxError, deadline: Deadline, after: Duration) {
    let timed_out = TimedOut::find(&**error).unwrap_or_else(|| panic!("not a time-out: {error}"));
    assert_eq!((timed_out.deadline(), timed_out.after()), (deadline, after));
}

// === the upstream's body ===

/// A body whose frames come at set times after it was made; then it ends, or is silent for ever.
#[derive(Debug)]
pub(crate) struct Upstream {
    made: Instant,
    steps: VecDeque<Step>,
    sleep: Option<Pin<Box<Sleep>>>,
    is_silent: bool,
    knows_end: bool,
    polls: usize,
    witness: Witness,
}

#[derive(Debug)]
struct Step {
    at: Duration,
    frame: Result<Frame<Bytes>, BoxError>,
}

impl Upstream {
    pub(crate) fn new() -> Self {
        Self {
            made: Instant::now(),
            steps: VecDeque::new(),
            sleep: None,
            is_silent: false,
            knows_end: false,
            polls: 0,
            witness: Witness::default(),
        }
    }

    /// Then gives `data`, `at` after it was made or as soon after that as it is asked.
    pub(crate) fn at(self, at: Duration, data: impl Into<Bytes>) -> Self {
        self.step(at, Ok(Frame::data(data.into())))
    }

    /// Then gives `data` with no wait.
    pub(crate) fn now(self, data: impl Into<Bytes>) -> Self {
        self.at(Duration::ZERO, data)
    }

    /// Then breaks off.
    pub(crate) fn error_at(self, at: Duration, error: impl Into<BoxError>) -> Self {
        self.step(at, Err(error.into()))
    }

    fn step(mut self, at: Duration, frame: Result<Frame<Bytes>, BoxError>) -> Self {
        self.steps.push_back(Step { at, frame });
        self
    }

    /// Then gives nothing more, and does not end.
    pub(crate) fn silent(mut self) -> Self {
        self.is_silent = true;
        self
    }

    /// Knows with the last frame that it is the last.
    pub(crate) fn knows_end(mut self) -> Self {
        self.knows_end = true;
        self
    }

    pub(crate) fn witnessed(mut self, witness: &Witness) -> Self {
        self.witness = witness.clone();
        self
    }
}

impl Body for Upstream {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.polls += 1;
        let Some(step) = self.steps.front() else {
            return match self.is_silent {
                true => Poll::Pending,
                false => Poll::Ready(None),
            };
        };
        let at = self.made + step.at;
        if Instant::now() < at {
            let sleep = self
                .sleep
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            ready!(sleep.as_mut().poll(cx));
        }
        self.sleep = None;
        Poll::Ready(self.steps.pop_front().map(|step| step.frame))
    }

    fn is_end_stream(&self) -> bool {
        self.knows_end && self.steps.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.witness.push("upstream dropped");
    }
}

// === what happened ===

/// What happened, in the order in which it did.
#[derive(Clone, Debug, Default)]
pub(crate) struct Witness {
    seen: Arc<Mutex<Vec<&'static str>>>,
    completions: Arc<Mutex<Vec<Completion>>>,
}

impl Witness {
    pub(crate) fn push(&self, event: &'static str) {
        self.seen.lock().unwrap().push(event);
    }

    pub(crate) fn seen(&self) -> Vec<&'static str> {
        self.seen.lock().unwrap().clone()
    }

    /// What guards were told.
    pub(crate) fn completions(&self) -> Vec<Completion> {
        self.completions.lock().unwrap().clone()
    }

    /// The one completion that a guard was told.
    #[track_caller]
    pub(crate) fn completion(&self) -> Completion {
        let completions = self.completions();
        let [completion] = &completions[..] else {
            panic!("told {} times", completions.len());
        };
        completion.clone()
    }

    /// A guard that tells all to this witness.
    pub(crate) fn guard(&self) -> Told {
        Told(self.clone())
    }

    /// Watches a response from outside of the time-out, as another layer would.
    pub(crate) fn watch<B: Body<Data = Bytes>>(
        &self,
        response: Response<B>,
    ) -> Response<Watched<B, Told>> {
        HttpBody.watch(None, response, self.guard())
    }
}

/// A guard that tells all to its witness.
#[derive(Debug)]
pub(crate) struct Told(Witness);

impl Guard for Told {
    fn end(&mut self, completion: &Completion) {
        self.0.push("guard told");
        self.0.completions.lock().unwrap().push(completion.clone());
    }
}

/// A future or service's part whose drop is witnessed.
#[derive(Debug)]
pub(crate) struct DropOf(pub(crate) &'static str, pub(crate) Witness);

impl Drop for DropOf {
    fn drop(&mut self) {
        self.1.push(self.0);
    }
}

// === reading ===

/// The next frame's data as text; `None` at the end.
pub(crate) async fn next<B>(body: &mut B) -> Option<Result<String, BoxError>>
where
    B: Body<Data = Bytes, Error = BoxError> + Unpin,
{
    let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
    Some(frame.map(|frame| String::from_utf8(frame.into_data().unwrap().into()).unwrap()))
}

/// All that comes, up to the end or an error.
pub(crate) async fn read<B>(body: &mut B) -> (String, Option<BoxError>)
where
    B: Body<Data = Bytes, Error = BoxError> + Unpin,
{
    let mut text = String::new();
    loop {
        match next(body).await {
            Some(Ok(data)) => text.push_str(&data),
            Some(Err(error)) => return (text, Some(error)),
            None => return (text, None),
        }
    }
}

/// The events of a stream as a reader sees them that follows the specification: name and data.
pub(crate) fn events(stream: &str) -> Vec<(String, String)> {
    let (mut name, mut data) = (String::new(), Vec::new());
    let mut events = Vec::new();
    // What stands after the last blank line is not an event.
    for line in stream.split_inclusive('\n') {
        let Some(line) = line.strip_suffix('\n') else {
            continue;
        };
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() {
            if !data.is_empty() {
                events.push((std::mem::take(&mut name), data.join("\n")));
            }
            name.clear();
            data.clear();
            continue;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => name = value.to_owned(),
            "data" => data.push(value.to_owned()),
            _ => {}
        }
    }
    events
}

/// The last event of `stream`, whose data is JSON.
#[track_caller]
pub(crate) fn last_event(stream: &str) -> (String, serde_json::Value) {
    let (name, data) = events(stream).pop().expect("an event");
    let data = serde_json::from_str(&data).unwrap_or_else(|error| panic!("{error}: {data}"));
    (name, data)
}

// === polling by hand ===

/// Counts how often it is woken.
#[derive(Debug, Default)]
pub(crate) struct Wakes(AtomicUsize);

impl Wakes {
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    pub(crate) fn count_on(self: &Arc<Self>, also: Waker) -> Waker {
        Waker::from(Arc::new(Counting(self.clone(), also)))
    }
}

struct Counting(Arc<Wakes>, Waker);

impl Wake for Counting {
    fn wake(self: Arc<Self>) {
        self.0.0.fetch_add(1, Ordering::SeqCst);
        self.1.wake_by_ref();
    }
}

/// Polls `future` once, outside of any task.
pub(crate) fn poll_once<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}
