//! Faults at every event of every dialect: what was not whole is never found again.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::{future::join, stream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn, util::BoxCloneService};
use tower_llm_cache::{CacheHandle, Policy};
use tower_llm_core::{BoxError, DescribeLayer, RequestBody};
use tower_llm_testkit::{
    Behavior, Fault, InBand, RetryAfter,
    wire::{self, End},
};

use crate::support::caching;

/// A path, a body, and what its whole answer contains and a cut one does not.
type Question = (&'static str, &'static str, &'static str);

const QUESTIONS: [Question; 9] = [
    (
        "/v1/chat/completions",
        r#"{"model":"sim-1","messages":[],"stream":true}"#,
        r#""finish_reason":"stop""#,
    ),
    (
        "/v1/chat/completions",
        r#"{"model":"sim-1","messages":[]}"#,
        r#""finish_reason":"stop""#,
    ),
    (
        "/v1/completions",
        r#"{"model":"sim-1","prompt":"Why?","stream":true}"#,
        r#""finish_reason":"stop""#,
    ),
    (
        "/v1/responses",
        r#"{"model":"sim-1","input":"Why?","store":false,"stream":true}"#,
        "response.completed",
    ),
    (
        "/v1/responses",
        r#"{"model":"sim-1","input":"Why?","store":false}"#,
        r#""status":"completed""#,
    ),
    (
        "/v1/messages",
        r#"{"model":"sim-1","messages":[],"max_tokens":9,"stream":true}"#,
        r#""stop_reason":"end_turn""#,
    ),
    (
        "/v1/messages",
        r#"{"model":"sim-1","messages":[],"max_tokens":9}"#,
        r#""stop_reason":"end_turn""#,
    ),
    (
        "/v1beta/models/sim-1:streamGenerateContent?alt=sse",
        r#"{"contents":[]}"#,
        r#""finishReason":"STOP""#,
    ),
    (
        "/v1beta/models/sim-1:generateContent",
        r#"{"contents":[]}"#,
        r#""finishReason":"STOP""#,
    ),
];

type Frames = StreamBody<stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, BoxError>>>>;
type Service =
    BoxCloneService<Request<Full<Bytes>>, Response<tower_llm_cache::CacheBody<Frames>>, BoxError>;

/// A provider that answers each call as the next behavior says, and well once there are no more.
struct Scene {
    service: Service,
    calls: Arc<Mutex<usize>>,
    handle: CacheHandle,
    question: Question,
}

impl Scene {
    fn new(question: Question, first: Behavior) -> Self {
        let calls = Arc::new(Mutex::new(0));
        let count = Arc::clone(&calls);
        let provider = service_fn(move |request: Request<RequestBody>| {
            let mut calls = count.lock().unwrap_or_else(PoisonError::into_inner);
            *calls += 1;
            let behavior = if *calls == 1 {
                first.clone()
            } else {
                behavior()
            };
            let path = request.uri().path_and_query().unwrap().as_str();
            let answer = answer(path, request.body().as_bytes().unwrap(), &behavior);
            async {
                // Meanwhile the other caller joins.
                tokio::task::yield_now().await;
                answer
            }
        });
        let layer = caching(Policy::completions());
        Self {
            handle: layer.handle(),
            service: ServiceBuilder::new()
                .layer(DescribeLayer::new())
                .service(layer.layer(provider))
                .boxed_clone(),
            calls,
            question,
        }
    }

    fn calls(&self) -> usize {
        *self.calls.lock().unwrap()
    }

    async fn ask(&self) -> Result<Response<tower_llm_cache::CacheBody<Frames>>, BoxError> {
        let (path, body, _) = self.question;
        let request = Request::post(path).body(Full::from(body)).unwrap();
        self.service.clone().oneshot(request).await
    }

    /// The whole body, or nothing if it has no clean end.
    async fn read(&self) -> Option<Bytes> {
        let response = self.ask().await.ok()?;
        let is_ok = response.status().is_success();
        let body = response.into_body().collect().await.ok()?.to_bytes();
        is_ok.then_some(body)
    }

    /// Asks again: only the answer to the second call of the provider is found from then on.
    async fn asserts_that_nothing_was_stored(&self, what: &str) {
        assert_eq!(self.handle.stats().entries, 0, "{what}");
        assert_eq!(self.calls(), 1, "{what}");
        let whole = self.read().await.expect("the provider answers well");
        assert_eq!(self.calls(), 2, "{what}");
        assert_eq!(self.read().await, Some(whole), "{what}");
        assert_eq!(self.calls(), 2, "{what}");
    }
}

fn behavior() -> Behavior {
    Behavior::new().output_tokens(4)
}

fn answer(path: &str, body: &[u8], behavior: &Behavior) -> Result<Response<Frames>, BoxError> {
    let reply = wire::reply(path, body, behavior);
    let lost = BoxError::from("connection reset");
    let mut frames: Vec<_> = reply
        .frames
        .into_iter()
        .map(|frame| Ok(Frame::data(frame.bytes)))
        .collect();
    match reply.end {
        End::Clean => {}
        End::Reset | End::Silence => frames.push(Err(lost)),
        _ => return Err(lost),
    }
    let mut response = Response::new(StreamBody::new(stream::iter(frames)));
    *response.status_mut() = reply.status.try_into()?;
    *response.headers_mut() = reply.headers;
    Ok(response)
}

/// Faults at each event, in a stream of at most eight.
fn faults() -> Vec<Fault> {
    let kinds = [InBand::Overloaded, InBand::RateLimited, InBand::ServerError];
    let places = (0..9).chain([usize::MAX]);
    let at = places.flat_map(|at| {
        let in_band = kinds
            .into_iter()
            .flat_map(move |kind| [Fault::ErrorAfter(at, kind), Fault::FailedAfter(at, kind)]);
        [
            Fault::ResetAfter(at),
            Fault::CutAfter(at),
            Fault::StallAfter(at),
        ]
        .into_iter()
        .chain(in_band)
    });
    let whole = [
        Fault::Throttled(RetryAfter::Seconds(1)),
        Fault::QuotaExhausted,
        Fault::Overloaded,
        Fault::Status(500),
        Fault::ResetBeforeHead,
    ];
    at.chain(whole).collect()
}

#[tokio::test]
async fn no_fault_at_any_event_is_found_again() {
    for question in QUESTIONS {
        for fault in faults() {
            let what = format!("{} {} {fault:?}", question.0, question.1);
            let scene = Scene::new(question, behavior().fault(fault));
            let (leader, follower) = join(scene.read(), scene.read()).await;
            assert_eq!(leader, follower, "{what}");
            scene.asserts_that_nothing_was_stored(&what).await;
        }
    }
}

#[tokio::test]
async fn no_answer_whose_callers_leave_at_any_frame_is_found_again() {
    for question in QUESTIONS {
        let (path, body, marker) = question;
        let frames = wire::reply(path, body.as_bytes(), &behavior()).frames;
        let finish = frames
            .iter()
            .position(|frame| String::from_utf8_lossy(&frame.bytes).contains(marker));
        for read in 0..finish.expect("each whole answer says why it ended") {
            let what = format!("{path} {body} after {read} frames");
            let scene = Scene::new(question, behavior());
            let (leader, follower) = join(scene.ask(), scene.ask()).await;
            for response in [leader, follower] {
                let mut body = response.unwrap().into_body();
                for _ in 0..read {
                    body.frame().await.unwrap().unwrap();
                }
            }
            scene.asserts_that_nothing_was_stored(&what).await;
        }
    }
}
