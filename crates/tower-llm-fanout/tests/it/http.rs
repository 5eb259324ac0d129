//! HTTP responses: when they count, and what of them is passed on.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::{Ready, ready},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use tokio::time::{Instant, Sleep, sleep};
use tower_layer::Layer;
use tower_llm_core::{BoxError, Call, Completion, Failure, Operation, Outcome, Provider, Usage};
use tower_llm_fanout::{Delay, FanoutBuilder, FanoutLayer, Report, RipeAt};
use tower_service::Service;

use crate::support::MS;

const ROLE: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\"}}]}\n\n";
const CONTENT: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Because\"}}]}\n\n";
const STOP: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
const DONE: &str = "data: [DONE]\n\n";
const COMMENT: &str = ": keep-alive\n\n";
const ERROR: &str =
    "data: {\"error\":{\"type\":\"server_error\",\"message\":\"The server had an error\"}}\n\n";

/// A response of the provider: a status, and frames that arrive one after another.
#[derive(Clone)]
struct Answer {
    status: u16,
    content_type: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    frames: VecDeque<(Duration, Result<&'static str, &'static str>)>,
}

/// A provider that gives its answers in turn.
#[derive(Clone, Default)]
struct Upstream(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    answers: VecDeque<Answer>,
    sent: usize,
    open: usize,
}

struct Frames {
    frames: VecDeque<(Duration, Result<&'static str, &'static str>)>,
    sleep: Option<Pin<Box<Sleep>>>,
    upstream: Upstream,
}

fn sse(frames: impl IntoIterator<Item = &'static str>) -> Answer {
    Answer {
        status: 200,
        content_type: "text/event-stream",
        headers: Vec::new(),
        frames: frames.into_iter().map(|frame| (MS, Ok(frame))).collect(),
    }
}

fn good() -> Answer {
    sse([ROLE, CONTENT, STOP, DONE])
}

fn json(status: u16, body: &'static str) -> Answer {
    Answer {
        status,
        content_type: "application/json",
        ..sse([body])
    }
}

impl Answer {
    fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }

    fn then(mut self, after: Duration, frame: Result<&'static str, &'static str>) -> Self {
        self.frames.push_back((after, frame));
        self
    }
}

impl Upstream {
    fn new(answers: impl IntoIterator<Item = Answer>) -> Self {
        let upstream = Self::default();
        upstream.0.lock().unwrap().answers.extend(answers);
        upstream
    }

    fn sent(&self) -> usize {
        self.0.lock().unwrap().sent
    }

    /// How many response bodies are open.
    fn open(&self) -> usize {
        self.0.lock().unwrap().open
    }
}

impl Service<Request<Full<Bytes>>> for Upstream {
    type Response = Response<Frames>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Frames>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Full<Bytes>>) -> Self::Future {
        let mut state = self.0.lock().unwrap();
        let answer = state.answers.pop_front().expect("a call too many");
        state.sent += 1;
        state.open += 1;
        let mut response = Response::builder()
            .status(answer.status)
            .header("content-type", answer.content_type);
        for (name, value) in answer.headers {
            response = response.header(name, value);
        }
        let frames = Frames {
            frames: answer.frames,
            sleep: None,
            upstream: self.clone(),
        };
        ready(Ok(response.body(frames).unwrap()))
    }
}

impl Body for Frames {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(&(after, frame)) = self.frames.front() else {
            return Poll::Ready(None);
        };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep(after)));
        std::task::ready!(sleep.as_mut().poll(cx));
        self.sleep = None;
        self.frames.pop_front();
        Poll::Ready(Some(match frame {
            Ok(data) => Ok(Frame::data(Bytes::from(data))),
            Err(error) => Err(error.into()),
        }))
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.upstream.0.lock().unwrap().open -= 1;
    }
}

fn request() -> Request<Full<Bytes>> {
    let call = Call::builder(Provider::OPENAI, Operation::CHAT)
        .streamed(true)
        .input_tokens(40)
        .build();
    let mut request = Request::new(Full::new(Bytes::from("{}")));
    request.extensions_mut().insert(call);
    request
}

async fn call(
    builder: FanoutBuilder,
    answers: impl IntoIterator<Item = Answer>,
) -> (
    Result<Response<tower_llm_fanout::RipeBody<Frames>>, BoxError>,
    Upstream,
) {
    let upstream = Upstream::new(answers);
    let layer = builder.build().unwrap();
    let answer = layer.layer(upstream.clone()).call(request()).await;
    (answer, upstream)
}

async fn text<B: Body<Data = Bytes>>(response: Response<B>) -> String
where
    B::Error: std::fmt::Debug,
{
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn what_is_no_answer_before_its_first_content_fails_over_unseen() {
    let empty = "data: {\"choices\":[]}\n\n";
    let bad = [
        sse([ROLE, ERROR]),
        sse([ERROR]),
        sse([COMMENT, ROLE]),
        sse([]),
        sse([COMMENT]),
        sse([DONE]),
        sse([ROLE, empty, DONE]),
        sse([ROLE]).then(MS, Err("reset")),
        json(500, "{\"error\":{\"message\":\"no\"}}"),
        json(503, "busy"),
        json(
            200,
            "{\"error\":{\"type\":\"server_error\",\"message\":\"no\"}}",
        ),
    ];
    for (case, bad) in bad.into_iter().enumerate() {
        let (answer, upstream) = call(FanoutLayer::failover(1), [bad, good()]).await;
        let response = answer.unwrap();
        assert_eq!(upstream.open(), 1, "{case}: the loser is closed");
        let report = response.extensions().get::<Report>();
        let report = report.unwrap_or_else(|| panic!("{case}: one attempt"));
        assert_eq!(report.attempts().len(), 2, "{case}");
        assert_eq!(report.winner().unwrap().outcome, Some(Outcome::Success));
        let all = [ROLE, CONTENT, STOP, DONE].concat();
        assert_eq!(text(response).await, all, "{case}: every frame, as it was");
        assert_eq!(upstream.open(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_breaks_after_its_first_content_is_the_callers() {
    let broken = sse([ROLE, CONTENT]).then(5 * MS, Err("reset"));
    let (answer, upstream) = call(FanoutLayer::failover(3), [broken]).await;
    let error = answer.unwrap().into_body().collect().await.unwrap_err();
    assert_eq!(error.to_string(), "reset");
    assert_eq!(upstream.sent(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_first_content_wins_and_not_the_first_headers() {
    let mut slow = good();
    slow.frames[1].0 = Duration::from_secs(50);
    let upstream = Upstream::new([slow, good()]);
    let layer = FanoutLayer::race(2).build().unwrap();
    let began_at = Instant::now();
    let response = layer.layer(upstream.clone()).call(request()).await.unwrap();
    assert_eq!(began_at.elapsed(), 2 * MS);
    assert_eq!(upstream.open(), 1);
    assert_eq!(layer.stats().superseded, 1);
    let report = response.extensions().get::<Report>().unwrap();
    let outcomes: Vec<_> = report
        .attempts()
        .iter()
        .map(|attempt| attempt.outcome)
        .collect();
    assert_eq!(
        outcomes,
        [Some(Outcome::Superseded), Some(Outcome::Success)]
    );
    text(response).await;
}

#[tokio::test(start_paused = true)]
async fn what_losing_branches_have_used_is_reported() {
    let slow = sse([ROLE, CONTENT]).then(Duration::from_secs(50), Ok(STOP));
    let usage =
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":38,\"completion_tokens\":9}}\n\n";
    let whole = sse([ROLE, CONTENT, STOP, usage, DONE]);
    let broken = json(500, "{}");
    let upstream = Upstream::new([slow, broken, whole]);
    let builder = FanoutLayer::race(3).ripe_at(RipeAt::Whole);
    let layer = builder.build().unwrap();
    let response = layer.layer(upstream).call(request()).await.unwrap();
    let report = response.extensions().get::<Report>().unwrap();
    let used: Vec<_> = report.attempts().iter().map(|one| one.usage).collect();
    let lost = Usage::new(40, 2);
    assert_eq!(
        used,
        [Some(lost), Some(Usage::default()), Some(Usage::new(38, 9))]
    );
    assert_eq!(layer.stats().wasted_tokens, lost.total());
    assert_eq!(layer.stats().wasted, 5 * MS);
}

#[tokio::test(start_paused = true)]
async fn legitimate_answers_without_content_count() {
    for answer in [
        sse([ROLE, STOP, DONE]),
        json(
            200,
            "{\"choices\":[{\"finish_reason\":\"stop\",\"message\":{\"content\":\"\"}}]}",
        ),
        json(
            404,
            "{\"error\":{\"code\":\"model_not_found\",\"message\":\"no\"}}",
        ),
        json(400, "{\"error\":{\"message\":\"bad\"}}"),
    ] {
        let status = answer.status;
        let (answer, upstream) = call(FanoutLayer::failover(1), [answer]).await;
        let response = answer.unwrap();
        assert_eq!((response.status().as_u16(), upstream.sent()), (status, 1));
        assert!(response.extensions().get::<Report>().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn if_all_fail_the_caller_gets_the_first_response_whole() {
    let body = "{\"error\":{\"message\":\"first\"}}";
    let (answer, upstream) = call(
        FanoutLayer::failover(1),
        [json(500, body), json(502, "second")],
    )
    .await;
    let response = answer.unwrap();
    assert_eq!((response.status().as_u16(), upstream.open()), (500, 0));
    assert_eq!(text(response).await, body);
    assert_eq!((upstream.sent(), upstream.open()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn x_should_retry_decides_against_the_status() {
    let never = json(500, "{}").header("x-should-retry", "false");
    let (answer, upstream) = call(FanoutLayer::retry(2), [never]).await;
    assert_eq!(
        (answer.unwrap().status().as_u16(), upstream.sent()),
        (500, 1)
    );

    let again = json(409, "{}").header("x-should-retry", "true");
    let (answer, upstream) = call(FanoutLayer::retry(2), [again, good()]).await;
    assert_eq!(
        (answer.unwrap().status().as_u16(), upstream.sent()),
        (200, 2)
    );
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_read_in_all_its_spellings() {
    for (name, value, wait) in [
        ("retry-after", "3", Duration::from_secs(3)),
        ("retry-after", "1.5", Duration::from_millis(1_500)),
        ("retry-after-ms", "250", 250 * MS),
        ("x-ms-retry-after-ms", "250", 250 * MS),
    ] {
        let throttled = json(429, "{\"error\":{\"message\":\"slow\"}}").header(name, value);
        let upstream = Upstream::new([throttled, good()]);
        let layer = FanoutLayer::retry(1).build().unwrap();
        let began_at = Instant::now();
        let response = layer.layer(upstream).call(request()).await.unwrap();
        let attempts = response
            .extensions()
            .get::<Report>()
            .unwrap()
            .attempts()
            .to_vec();
        assert!(attempts[1].started >= wait, "{name}: {value}: {attempts:?}");
        assert!(
            began_at.elapsed() <= wait + wait / 10 + 10 * MS,
            "{name}: {value}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_held_is_capped() {
    let long = "x".repeat(1_000).leak();
    let many = std::iter::repeat_n(&*long, 20);
    // An error response is cut, and still fails over.
    let mut error = json(500, long);
    error.frames = many.clone().map(|frame| (MS, Ok(frame))).collect();
    let error = error.header("content-length", "20000");
    let builder = FanoutLayer::failover(1).max_held_bytes(2_500);
    let (answer, upstream) = call(builder.clone(), [error.clone(), error]).await;
    let response = answer.unwrap();
    assert!(response.headers().get("content-length").is_none());
    assert_eq!(upstream.open(), 0, "what is cut holds no connection");
    assert_eq!(text(response).await.len(), 3_000);

    // A good response counts there.
    let mut whole = json(200, long);
    whole.frames = many.map(|frame| (MS, Ok(frame))).collect();
    let (answer, _) = call(builder.clone(), [whole.clone()]).await;
    assert_eq!(text(answer.unwrap()).await.len(), 20_000);

    // One that is needed whole is a failure.
    let (answer, upstream) = call(builder.ripe_at(RipeAt::Whole), [whole, good()]).await;
    assert_eq!(upstream.sent(), 2);
    text(answer.unwrap()).await;
}

#[tokio::test(start_paused = true)]
async fn calls_that_store_or_read_have_one_branch() {
    let upstream = Upstream::new([json(500, "{}")]);
    let layer = FanoutLayer::race(3).build().unwrap();
    let mut request = request();
    let call = Call::builder(Provider::OPENAI, Operation::RETRIEVE).build();
    request.extensions_mut().insert(call);
    let response = layer.layer(upstream.clone()).call(request).await.unwrap();
    assert_eq!((response.status().as_u16(), upstream.sent()), (500, 1));
}

#[tokio::test(start_paused = true)]
async fn a_hedged_stream_is_timed_at_its_first_content() {
    let mut slow = good();
    slow.frames[1].0 = Duration::from_secs(50);
    let builder = FanoutLayer::hedge(Delay::fixed(100 * MS));
    let (answer, upstream) = call(builder, [slow, good()]).await;
    let response = answer.unwrap();
    assert_eq!((upstream.sent(), upstream.open()), (2, 1));
    let report = response.extensions().get::<Report>().unwrap().clone();
    assert_eq!(report.attempts()[1].started, 100 * MS);
    assert_eq!(text(response).await, [ROLE, CONTENT, STOP, DONE].concat());
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_times_out_is_a_failure_and_not_a_departure() {
    let mut hangs = good();
    hangs.frames[1].0 = Duration::from_secs(5_000);
    let builder = FanoutLayer::failover(1).attempt_timeout(Duration::from_secs(1));
    let (answer, _) = call(builder, [hangs.clone(), hangs]).await;
    let error = answer.map(drop).unwrap_err();
    let outcome = Completion::of_error(&*error).outcome;
    assert_eq!(outcome, Outcome::Failed(Failure::Timeout));
}

#[tokio::test(start_paused = true)]
async fn what_is_neither_text_nor_json_counts_with_its_headers() {
    let mut audio = json(200, "RIFF");
    audio.content_type = "audio/mpeg";
    audio.frames[0].0 = Duration::from_secs(50);
    let began_at = Instant::now();
    let (answer, _) = call(FanoutLayer::failover(1), [audio]).await;
    assert_eq!(began_at.elapsed(), Duration::ZERO);
    assert_eq!(text(answer.unwrap()).await, "RIFF");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_has_told_all_is_not_waited_for() {
    let hour = Duration::from_secs(3_600);
    for frame in [ERROR, DONE] {
        let open = sse([frame]).then(hour, Err("reset"));
        let (answer, upstream) = call(FanoutLayer::failover(1), [open, good()]).await;
        let response = answer.unwrap();
        let attempts = response
            .extensions()
            .get::<Report>()
            .unwrap()
            .attempts()
            .to_vec();
        assert_eq!(attempts[0].ended, Some(MS), "{frame}");
        assert_eq!(upstream.open(), 1);
        text(response).await;
    }
}
