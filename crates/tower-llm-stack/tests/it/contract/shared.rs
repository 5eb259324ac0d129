//! Calls that several callers share: what is charged to all of them together is what the provider's limit was charged.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use futures_util::{future::BoxFuture, stream};
use http_body::{Body as _, Frame};
use http_body_util::StreamBody;
use proptest::{prelude::*, sample::Index};
use tokio::{
    sync::{mpsc, oneshot},
    task::yield_now,
};
use tower::{Layer as _, Service, layer::layer_fn};
use tower_llm_stack::{CacheLayer, ClassifiedError, Failure, Outcome, Policy, Scope, TimeoutLayer};

use super::*;

const SILENCE: Duration = Duration::from_secs(30);
const DEADLINE: Duration = Duration::from_secs(10);
const WORD: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"twelve bytes\"}}]}\n\n";
const FINISH: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
const USAGE: &str =
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":7}}\n\n";
const DONE: &str = "data: [DONE]\n\n";

/// A provider whose answers are written by hand.
#[derive(Clone, Default)]
struct Desk(Arc<Mutex<Vec<Option<Written>>>>);

/// One call at the provider.
struct Written {
    inputs: usize,
    head: Option<oneshot::Sender<Result<Response<Body>, BoxError>>>,
    frames: Option<mpsc::UnboundedSender<Result<Frame<Bytes>, BoxError>>>,
}

/// How a call fails before it is answered.
#[derive(Clone, Copy, Debug)]
enum Fails {
    Transport,
    Timeout,
    Overloaded,
    ServerError,
    Throttled,
}

impl Desk {
    fn service(&self) -> Attempts {
        let desk = self.clone();
        boxed(service_fn(move |request: Request<RequestBody>| {
            let body = request.body().as_bytes().unwrap();
            let body: serde_json::Value = serde_json::from_slice(body).unwrap();
            let inputs = body["input"].as_array().map_or(1, Vec::len);
            let (head, answer) = oneshot::channel();
            desk.0.lock().unwrap().push(Some(Written {
                inputs,
                head: Some(head),
                frames: None,
            }));
            async { answer.await.expect("each call is answered") }
        }))
    }

    fn calls(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Changes a call that has not ended.
    fn with(&self, call: usize, change: impl FnOnce(&mut Written)) {
        if let Some(Some(written)) = self.0.lock().unwrap().get_mut(call) {
            change(written);
        }
    }

    fn end(&self, call: usize) {
        self.0.lock().unwrap()[call] = None;
    }

    fn write(&self, call: usize, frame: &'static str) {
        self.with(call, |written| written.write(Ok(frame.into())));
    }

    /// The rest of a whole answer.
    fn finish(&self, call: usize) {
        for frame in [WORD, FINISH, USAGE, DONE] {
            self.write(call, frame);
        }
        self.end(call);
    }

    fn break_off(&self, call: usize) {
        self.with(call, |written| {
            written.write(Err("connection reset".into()))
        });
        self.end(call);
    }

    /// Fails a call that is not answered yet, and breaks off another.
    fn fail(&self, call: usize, how: Fails) {
        let answered = |written: &mut Written| match written.head.take() {
            Some(head) => drop(head.send(how.result())),
            None => written.write(Err("connection reset".into())),
        };
        self.with(call, answered);
        self.end(call);
    }
}

impl Written {
    fn write(&mut self, frame: Result<Bytes, BoxError>) {
        if let Some(head) = self.head.take() {
            let (frames, mut sent) = mpsc::unbounded_channel();
            let body = StreamBody::new(stream::poll_fn(move |cx| sent.poll_recv(cx)));
            let response = Response::new(body.boxed_unsync());
            // The call may have been dropped.
            let _ = head.send(Ok(response));
            self.frames = Some(frames);
        }
        let frames = self.frames.as_ref().expect("it was answered");
        let _ = frames.send(frame.map(Frame::data));
    }
}

impl Fails {
    fn result(self) -> Result<Response<Body>, BoxError> {
        let status = |status| {
            let body = Full::new(Bytes::from("{}")).map_err(|error| match error {});
            let mut response = Response::new(body.boxed_unsync());
            *response.status_mut() = status;
            Ok(response)
        };
        match self {
            Self::Transport => Err("connection refused".into()),
            Self::Timeout => {
                Err(ClassifiedError::new(Outcome::Failed(Failure::Timeout), "too late").into())
            }
            Self::Overloaded => {
                let outcome = Outcome::Overloaded { retry_after: None };
                Err(ClassifiedError::new(outcome, "overloaded").into())
            }
            Self::ServerError => status(StatusCode::INTERNAL_SERVER_ERROR),
            Self::Throttled => status(StatusCode::TOO_MANY_REQUESTS),
        }
    }
}

/// A timeout of a caller: this project's, and one that knows nothing of calls.
#[derive(Clone, Copy, Debug)]
enum Deadline {
    Ours,
    Tower,
}

const DEADLINES: [Deadline; 2] = [Deadline::Ours, Deadline::Tower];

/// A stack around such a provider, and its callers.
struct Scene {
    layers: Layers,
    client: Client,
    desk: Desk,
    callers: Vec<Option<Caller>>,
}

enum Caller {
    Calling(BoxFuture<'static, Result<Response<Body>, BoxError>>),
    Reading(Body),
}

impl Caller {
    /// Polls until nothing is there, at most so many times; returns false at the end.
    fn read(&mut self, most: usize) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..most {
            let polled = match self {
                Self::Calling(future) => match future.as_mut().poll(&mut cx) {
                    Poll::Pending => return true,
                    Poll::Ready(Ok(response)) => {
                        *self = Self::Reading(response.into_body());
                        continue;
                    }
                    Poll::Ready(Err(_)) => return false,
                },
                Self::Reading(body) => Pin::new(body).poll_frame(&mut cx),
            };
            match polled {
                Poll::Pending => return true,
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(_) => return false,
            }
        }
        true
    }
}

impl Scene {
    fn new(policy: Policy, permits: usize) -> Self {
        let cache = CacheLayer::builder(Scope::shared())
            .completions(policy)
            .embeddings(policy);
        let layers = Layers::around_cache(cache.build().unwrap(), permits);
        let desk = Desk::default();
        let client = layers.stack_over(desk.service());
        Self {
            layers,
            client,
            desk,
            callers: Vec::new(),
        }
    }

    /// The same, with a deadline for each caller between its limit and the cache.
    fn with_deadline(policy: Policy, permits: usize, deadline: Deadline) -> Self {
        let mut scene = Self::new(policy, permits);
        let client = scene.desk.service();
        scene.client = match deadline {
            Deadline::Ours => {
                let timeout = TimeoutLayer::builder().total(DEADLINE).build().unwrap();
                let boxing = layer_fn(move |inner| boxed(timeout.layer(inner)));
                scene.layers.stack_with(boxing, client)
            }
            Deadline::Tower => {
                let timeout = tower::timeout::TimeoutLayer::new(DEADLINE);
                scene.layers.stack_with(timeout, client)
            }
        };
        scene
    }

    /// The same, with a cache around the cache.
    fn with_outer_cache(outer: Policy, policy: Policy, permits: usize) -> Self {
        let mut scene = Self::new(policy, permits);
        let outer = CacheLayer::builder(Scope::shared())
            .completions(outer)
            .embeddings(outer)
            .build()
            .unwrap();
        let boxing = layer_fn(move |inner| boxed(outer.layer(inner)));
        let client = scene.desk.service();
        scene.client = scene.layers.stack_with(boxing, client);
        scene
    }

    fn ask(&mut self, request: Request<Full<Bytes>>) -> usize {
        let future = self.client.clone().oneshot(request);
        self.callers.push(Some(Caller::Calling(Box::pin(future))));
        self.read(self.callers.len() - 1, 1);
        self.callers.len() - 1
    }

    fn read(&mut self, caller: usize, most: usize) {
        if let Some(known) = &mut self.callers[caller]
            && !known.read(most)
        {
            self.callers[caller] = None;
        }
    }

    fn leave(&mut self, caller: usize) {
        self.callers[caller] = None;
    }

    /// Lets tasks run that read on for callers that have left.
    async fn settle(&self) {
        for _ in 0..20 {
            yield_now().await;
        }
    }

    fn charged(&self) -> [u64; 2] {
        let Stand {
            callers, providers, ..
        } = self.layers.stand();
        // Its second limit. Time passes, so it may have been filled up again.
        [callers, providers].map(|limit| limit.stats()[1].consumed)
    }
}

fn policy() -> Policy {
    Policy::completions().max_silence(SILENCE)
}

// === A caller that leaves a call that is finished ===

#[tokio::test(start_paused = true)]
async fn a_call_that_goes_on_without_its_caller_is_charged_to_it_when_it_ends() {
    // Before the response headers, after them, and in the middle.
    for written in 0..3 {
        for joins in [false, true] {
            let mut scene = Scene::new(policy().finish_abandoned(), 9);
            let leaver = scene.ask(request());
            for _ in 0..written {
                scene.desk.write(0, WORD);
                scene.read(leaver, 2);
            }
            scene.leave(leaver);
            assert_eq!(scene.layers.stand().of_caller(), RESERVED_OF_CALLER);
            let joiner = joins.then(|| scene.ask(request()));
            scene.settle().await;
            scene.desk.finish(0);
            scene.settle().await;
            joiner.into_iter().for_each(|joiner| scene.read(joiner, 99));
            let requests = 1 + u64::from(joins);
            assert_eq!(
                scene.layers.stand().of_caller(),
                taken(requests, USED.tokens)
            );
            assert_eq!(scene.layers.stand().of_provider(), USED);
            assert_eq!(scene.desk.calls(), 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_goes_on_and_is_given_up_is_charged_by_what_came_of_it() {
    let mut scene = Scene::new(policy().finish_abandoned(), 9);
    let leaver = scene.ask(request());
    scene.desk.write(0, WORD);
    scene.read(leaver, 2);
    scene.leave(leaver);
    scene.desk.write(0, WORD);
    scene.settle().await;
    tokio::time::sleep(2 * SILENCE).await;
    let [caller, provider] = scene.charged();
    // Twice twelve bytes.
    assert_eq!(
        (caller, provider),
        (ESTIMATED_INPUT + 6, ESTIMATED_INPUT + 6)
    );
}

/// A server in front of the provider may send comments for as long as the call is open.
#[tokio::test(start_paused = true)]
async fn a_call_that_goes_on_and_brings_comments_alone_is_given_up() {
    let mut scene = Scene::new(policy().finish_abandoned(), 9);
    let leaver = scene.ask(request());
    scene.desk.write(0, WORD);
    scene.read(leaver, 2);
    scene.leave(leaver);
    for _ in 0..4 {
        scene.desk.write(0, ": ping\n\n");
        tokio::time::sleep(SILENCE * 2 / 3).await;
    }
    assert_eq!(scene.layers.stand().places_held(), 0);
    assert_eq!(scene.charged(), [ESTIMATED_INPUT + 3; 2]);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_not_sent_when_its_caller_left_is_charged_when_it_ends() {
    for fails in [false, true] {
        let mut scene = Scene::new(policy().finish_abandoned(), 1);
        let other = scene.ask(other_request());
        let leaver = scene.ask(request());
        assert_eq!(scene.desk.calls(), 1);
        scene.leave(leaver);
        scene.settle().await;
        scene.desk.fail(0, Fails::ServerError);
        scene.read(other, 9);
        scene.settle().await;
        assert_eq!(scene.desk.calls(), 2);
        match fails {
            true => scene.desk.fail(1, Fails::Overloaded),
            false => scene.desk.finish(1),
        }
        scene.settle().await;
        let used = if fails { 0 } else { USED.tokens };
        assert_eq!(scene.charged(), [used, used]);
    }
}

// === Failures ===

#[tokio::test(start_paused = true)]
async fn a_call_that_fails_before_its_response_headers_is_charged_to_one_caller() {
    let mut scene = Scene::new(policy(), 9);
    let callers = [(); 3].map(|()| scene.ask(request()));
    scene.desk.fail(0, Fails::Timeout);
    // The one that pays comes last to hear of it.
    callers
        .into_iter()
        .rev()
        .for_each(|caller| scene.read(caller, 9));
    assert!(scene.callers.iter().all(Option::is_none));
    assert_eq!(scene.layers.stand().of_caller(), taken(3, INPUT.tokens));
    assert_eq!(scene.layers.stand().of_provider(), INPUT);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_fails_is_charged_to_a_caller_that_leaves_without_hearing_of_it() {
    let mut scene = Scene::new(policy(), 9);
    let callers = [(); 2].map(|()| scene.ask(request()));
    scene.desk.fail(0, Fails::Timeout);
    scene.read(callers[1], 9);
    scene.leave(callers[0]);
    assert_eq!(scene.charged(), [INPUT.tokens; 2]);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_breaks_off_is_charged_to_the_one_that_pays_whatever_it_has_read() {
    for read in 0..4 {
        let mut scene = Scene::new(policy(), 9);
        let [pays, other] = [(); 2].map(|()| scene.ask(request()));
        (0..3).for_each(|_| scene.desk.write(0, WORD));
        scene.read(pays, read);
        scene.desk.break_off(0);
        scene.read(other, 9);
        scene.leave(pays);
        // Three times twelve bytes.
        assert_eq!(scene.charged(), [ESTIMATED_INPUT + 9; 2], "{read}");
    }
}

/// It has no bill yet when it leaves.
#[tokio::test(start_paused = true)]
async fn a_caller_that_never_asks_for_its_response_headers_pays_for_what_another_has_read() {
    let mut scene = Scene::new(policy(), 9);
    let [pays, other] = [(); 2].map(|()| scene.ask(request()));
    scene.desk.finish(0);
    scene.read(other, 99);
    scene.leave(pays);
    assert_eq!(scene.layers.stand().of_caller(), taken(2, USED.tokens));
}

/// What the slow one has not read is no longer held.
#[tokio::test(start_paused = true)]
async fn a_caller_that_falls_behind_an_answer_pays_for_no_more_than_the_one_that_follows_it() {
    let mut scene = Scene::new(policy().max_answer_bytes(2 * WORD.len()), 9);
    let [slow, fast] = [(); 2].map(|()| scene.ask(request()));
    scene.read(slow, 1);
    for _ in 0..5 {
        scene.desk.write(0, WORD);
        scene.read(fast, 9);
    }
    scene.read(slow, 9);
    assert!(scene.callers[slow].is_none());
    scene.desk.finish(0);
    scene.read(fast, 99);
    assert_eq!(scene.layers.stand().of_caller(), taken(2, USED.tokens));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_fails_is_charged_though_a_stale_answer_is_served_instead() {
    for fails in [
        Fails::Timeout,
        Fails::Transport,
        Fails::Overloaded,
        Fails::ServerError,
        Fails::Throttled,
    ] {
        for reads in [2, 99] {
            let ttl = Duration::from_secs(1);
            let policy = policy().ttl(ttl).stale_if_error(100 * ttl);
            let mut scene = Scene::new(policy, 9);
            let first = scene.ask(request());
            scene.desk.finish(0);
            scene.read(first, 99);
            tokio::time::sleep(2 * ttl).await;
            let callers = [(); 2].map(|()| scene.ask(request()));
            scene.desk.fail(1, fails);
            for caller in callers {
                scene.read(caller, reads);
                scene.leave(caller);
            }
            assert_eq!(scene.desk.calls(), 2);
            let [of_callers, of_provider] = scene.charged();
            assert_eq!(of_callers, of_provider, "{fails:?} {reads}");
        }
    }
}

// === Calls that were not sent ===

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_an_inner_queue_is_charged_nothing() {
    let mut scene = Scene::new(policy(), 1);
    let other = scene.ask(other_request());
    let before = scene.layers.stand().of_caller();
    let waits = scene.ask(request());
    scene.leave(waits);
    assert_eq!(scene.layers.stand().of_caller(), before);
    scene.leave(other);
}

#[tokio::test(start_paused = true)]
async fn a_hit_that_is_never_polled_is_charged_nothing() {
    let mut scene = Scene::new(policy(), 9);
    let first = scene.ask(request());
    scene.desk.finish(0);
    scene.read(first, 99);
    drop(scene.client.clone().oneshot(request()));
    // The call is made with the first poll of a `Oneshot`.
    let hit = scene.client.call(request());
    drop(hit);
    assert_eq!(scene.layers.stand().of_caller(), USED);
    let hit = scene.ask(request());
    scene.read(hit, 99);
    assert_eq!(scene.layers.stand().of_caller(), taken(2, USED.tokens));
}

// === Deadlines between the caller's limit and the cache ===

#[tokio::test(start_paused = true)]
async fn a_call_whose_first_caller_runs_out_of_time_is_charged_to_the_one_that_follows() {
    for deadline in DEADLINES {
        for policy in [policy(), policy().finish_abandoned()] {
            let mut scene = Scene::with_deadline(policy, 9, deadline);
            let late = scene.ask(request());
            tokio::time::sleep(DEADLINE / 2).await;
            let follower = scene.ask(request());
            tokio::time::sleep(DEADLINE / 2).await;
            scene.read(late, 1);
            assert!(scene.callers[late].is_none());
            scene.desk.finish(0);
            scene.read(follower, 99);
            assert_eq!(scene.charged(), [USED.tokens; 2], "{deadline:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_goes_on_after_its_callers_deadline_is_charged_to_it_when_it_ends() {
    for deadline in DEADLINES {
        let mut scene = Scene::with_deadline(policy().finish_abandoned(), 9, deadline);
        let late = scene.ask(request());
        tokio::time::sleep(DEADLINE).await;
        scene.read(late, 1);
        assert!(scene.callers[late].is_none());
        assert_eq!(scene.layers.stand().of_caller(), RESERVED_OF_CALLER);
        scene.settle().await;
        scene.desk.finish(0);
        scene.settle().await;
        assert_eq!(scene.charged(), [USED.tokens; 2], "{deadline:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_ends_with_its_callers_deadline_is_charged_to_both_limits() {
    for deadline in DEADLINES {
        let mut scene = Scene::with_deadline(policy(), 9, deadline);
        let late = scene.ask(request());
        tokio::time::sleep(DEADLINE).await;
        scene.read(late, 1);
        assert!(scene.callers[late].is_none());
        assert_eq!(scene.charged(), [INPUT.tokens; 2], "{deadline:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_not_sent_at_its_callers_deadline_is_charged_to_none() {
    for deadline in DEADLINES {
        let mut scene = Scene::with_deadline(policy(), 1, deadline);
        let other = scene.ask(other_request());
        scene.desk.write(0, WORD);
        scene.read(other, 2);
        let before = scene.layers.stand().of_caller();
        let queued = scene.ask(request());
        tokio::time::sleep(DEADLINE).await;
        scene.read(queued, 1);
        assert!(scene.callers[queued].is_none());
        assert_eq!(scene.layers.stand().of_caller(), before, "{deadline:?}");
    }
}

// === A cache inside of a cache ===

#[tokio::test(start_paused = true)]
async fn a_call_through_two_caches_is_charged_once() {
    for written in 0..3 {
        let mut scene = Scene::with_outer_cache(policy(), policy(), 9);
        let callers = [(); 2].map(|()| scene.ask(request()));
        for _ in 0..written {
            scene.desk.write(0, WORD);
            callers.into_iter().for_each(|caller| scene.read(caller, 2));
        }
        callers.into_iter().for_each(|caller| scene.leave(caller));
        // Twelve bytes are three tokens.
        assert_eq!(scene.charged(), [ESTIMATED_INPUT + 3 * written; 2]);
    }
}

// === Batches of embeddings ===

fn batch(inputs: &[u8]) -> Request<Full<Bytes>> {
    let inputs: Vec<_> = inputs
        .iter()
        .map(|input| format!("{input}: forty bytes of text are ten tokens"))
        .collect();
    let body = serde_json::json!({"model": "m", "input": inputs}).to_string();
    let request = Request::post("/v1/embeddings");
    request.body(body.into()).unwrap()
}

impl Desk {
    /// Answers a call for embeddings with so many vectors, and seven tokens for each input.
    fn embed(&self, call: usize, vectors: usize) {
        self.with(call, |written| {
            let items =
                (0..vectors).map(|index| serde_json::json!({"index": index, "embedding": [1]}));
            let answer = serde_json::json!({
                "data": items.collect::<Vec<_>>(),
                "usage": {"prompt_tokens": 7 * written.inputs, "total_tokens": 7 * written.inputs},
            });
            written.write(Ok(answer.to_string().into()));
        });
        self.end(call);
    }

    fn inputs(&self, call: usize) -> usize {
        self.0.lock().unwrap()[call]
            .as_ref()
            .map_or(0, |written| written.inputs)
    }
}

/// Of two calls for one batch, the first was answered.
#[tokio::test(start_paused = true)]
async fn a_batch_is_charged_for_its_own_call_if_the_rest_fails() {
    for fails in [Fails::Overloaded, Fails::Throttled, Fails::Timeout] {
        let mut scene = Scene::new(policy(), 9);
        let other = scene.ask(batch(&[1]));
        let caller = scene.ask(batch(&[1, 2, 3]));
        scene.desk.embed(1, 2);
        scene.desk.fail(0, Fails::Overloaded);
        scene.read(other, 9);
        scene.read(caller, 9);
        assert_eq!(scene.desk.calls(), 3);
        scene.desk.fail(2, fails);
        scene.read(caller, 9);
        assert!(scene.callers[caller].is_none());
        let [of_callers, of_provider] = scene.charged();
        assert_eq!(of_callers, of_provider, "{fails:?}");
        assert!(of_callers >= 14);
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_charged_for_its_own_call_if_it_leaves_before_the_rest() {
    let mut scene = Scene::new(policy(), 9);
    let other = scene.ask(batch(&[1]));
    let caller = scene.ask(batch(&[1, 2, 3]));
    scene.desk.embed(1, 2);
    scene.read(caller, 9);
    scene.leave(caller);
    scene.desk.fail(0, Fails::Overloaded);
    scene.read(other, 9);
    assert_eq!(scene.charged(), [14, 14]);
}

/// It has taken over a call that goes on when its own has failed.
#[tokio::test(start_paused = true)]
async fn a_batch_that_fails_is_charged_for_a_call_that_goes_on_without_it() {
    let mut scene = Scene::new(policy().finish_abandoned(), 9);
    let other = scene.ask(batch(&[1]));
    let caller = scene.ask(batch(&[1, 2]));
    scene.leave(other);
    scene.desk.fail(1, Fails::Overloaded);
    scene.read(caller, 9);
    assert!(scene.callers[caller].is_none());
    scene.settle().await;
    scene.desk.embed(0, 1);
    scene.settle().await;
    assert_eq!(scene.charged(), [7, 7]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_charged_for_an_answer_that_cannot_be_used() {
    let mut scene = Scene::new(policy(), 9);
    let other = scene.ask(batch(&[1]));
    let caller = scene.ask(batch(&[1, 2, 3]));
    // A vector is missing.
    scene.desk.embed(1, 1);
    scene.read(caller, 9);
    assert_eq!(scene.desk.calls(), 3);
    scene.desk.embed(2, 3);
    scene.read(caller, 99);
    scene.desk.embed(0, 1);
    scene.read(other, 99);
    assert_eq!(scene.charged(), [14 + 21 + 7; 2]);
}

/// Of two inputs that are one item, the answer is put together; what it did not read in time is no longer held.
#[tokio::test(start_paused = true)]
async fn a_batch_that_falls_behind_is_charged_once_for_its_call() {
    let large: &str = "x".repeat(64 << 20).leak();
    let mut scene = Scene::new(policy(), 9);
    let slow = scene.ask(batch(&[1, 1]));
    let fast = scene.ask(batch(&[1]));
    scene.desk.write(0, "{\"data\":\"");
    scene.read(fast, 9);
    for _ in 0..5 {
        scene.desk.write(0, large);
        scene.read(fast, 9);
    }
    let end = "\",\"usage\":{\"prompt_tokens\":7,\"total_tokens\":7}}";
    scene.desk.write(0, end);
    scene.desk.end(0);
    scene.read(fast, 9);
    scene.read(slow, 9);
    assert!(scene.callers[slow].is_none());
    assert_eq!(scene.desk.calls(), 2);
    scene.desk.embed(1, 1);
    scene.read(fast, 9);
    assert_eq!(scene.charged(), [14, 14]);
}

// === At random ===

#[derive(Clone, Debug)]
enum Event {
    Ask(u8),
    Read(Index, usize),
    Leave(Index),
    Write(Index),
    Finish(Index),
    /// A call for embeddings: so many vectors are missing.
    Embed(Index, usize),
    Fail(Index, Fails),
    Silence,
    Settle,
}

fn event() -> impl Strategy<Value = Event> {
    let any = any::<Index>;
    let fails = prop::sample::select(vec![
        Fails::Transport,
        Fails::Timeout,
        Fails::Overloaded,
        Fails::ServerError,
        Fails::Throttled,
    ]);
    prop_oneof![
        5 => any_question().prop_map(Event::Ask),
        6 => (any(), 0..6usize).prop_map(|(caller, most)| Event::Read(caller, most)),
        4 => any().prop_map(Event::Leave),
        6 => any().prop_map(Event::Write),
        2 => any().prop_map(Event::Finish),
        3 => (any(), 0..3usize).prop_map(|(call, missing)| Event::Embed(call, missing / 2)),
        2 => (any(), fails).prop_map(|(call, fails)| Event::Fail(call, fails)),
        1 => Just(Event::Silence),
        2 => Just(Event::Settle),
    ]
}

fn any_question() -> impl Strategy<Value = u8> {
    0..16u8
}

impl Scene {
    async fn play(&mut self, events: &[Event], ask: impl Fn(u8) -> Request<Full<Bytes>>) {
        for event in events {
            let (calls, callers) = (self.desk.calls(), self.callers.len());
            match event {
                Event::Ask(question) => {
                    self.ask(ask(*question));
                }
                Event::Silence => tokio::time::sleep(SILENCE).await,
                Event::Settle => self.settle().await,
                _ if callers == 0 => {}
                Event::Read(caller, most) => self.read(caller.index(callers), *most),
                Event::Leave(caller) => self.leave(caller.index(callers)),
                _ if calls == 0 => {}
                Event::Write(call) => self.desk.write(call.index(calls), WORD),
                Event::Finish(call) => self.desk.finish(call.index(calls)),
                Event::Embed(call, missing) => {
                    let call = call.index(calls);
                    let inputs = self.desk.inputs(call);
                    self.desk.embed(call, inputs.saturating_sub(*missing));
                }
                Event::Fail(call, fails) => self.desk.fail(call.index(calls), *fails),
            }
        }
    }

    /// All callers leave; what goes on without them is answered, or given up.
    async fn end(&mut self) {
        (0..self.callers.len()).for_each(|caller| self.leave(caller));
        for _ in 0..3 {
            self.settle().await;
            tokio::time::sleep(2 * SILENCE).await;
        }
    }
}

fn play(
    policy: Policy,
    permits: usize,
    between: Option<Between>,
    events: &[Event],
    ask: impl Fn(u8) -> Request<Full<Bytes>>,
) -> Result<(), TestCaseError> {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut scene = match between {
            None => Scene::new(policy, permits),
            Some(Between::Deadline(deadline)) => Scene::with_deadline(policy, permits, deadline),
            Some(Between::Cache(inner)) => Scene::with_outer_cache(policy, inner, permits),
        };
        scene.play(events, ask).await;
        scene.end().await;
        let [of_callers, of_provider] = scene.charged();
        prop_assert_eq!(of_callers, of_provider);
        prop_assert_eq!(scene.layers.stand().places_held(), 0);
        Ok(())
    })
}

/// What stands between the caller's limit and the cache, or within it.
#[derive(Clone, Copy, Debug)]
enum Between {
    Deadline(Deadline),
    /// A cache inside of the cache, with this policy.
    Cache(Policy),
}

fn any_between() -> impl Strategy<Value = Option<Between>> {
    let deadline = any_deadline().prop_map(|deadline| deadline.map(Between::Deadline));
    prop_oneof![
        2 => deadline,
        1 => any_size().prop_map(|inner| Some(Between::Cache(inner))),
    ]
}

fn any_deadline() -> impl Strategy<Value = Option<Deadline>> {
    prop::option::of(prop::sample::select(&DEADLINES))
}

fn any_policy() -> impl Strategy<Value = Policy> {
    (any::<bool>(), any_size()).prop_map(|(finishes, policy)| match finishes {
        true => policy.finish_abandoned(),
        false => policy,
    })
}

fn any_size() -> impl Strategy<Value = Policy> {
    any::<bool>().prop_map(|is_small| match is_small {
        true => policy().max_answer_bytes(4 * WORD.len()),
        false => policy(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_shared_stream_is_charged_once_whoever_joins_leaves_or_fails_when(
        policy in any_policy(),
        permits in 1..4usize,
        between in any_between(),
        events in prop::collection::vec(event(), 1..60),
    ) {
        play(policy, permits, between, &events, |question| match question % 3 {
            0 => request(),
            _ => other_request(),
        })?;
    }

    #[test]
    fn a_shared_batch_is_charged_once_whoever_joins_leaves_or_fails_when(
        policy in any_policy(),
        permits in 1..4usize,
        deadline in any_deadline(),
        events in prop::collection::vec(event(), 1..60),
    ) {
        play(policy, permits, deadline.map(Between::Deadline), &events, |question| {
            let inputs: Vec<u8> = (0..4).filter(|bit| question & (1 << bit) != 0).collect();
            match &inputs[..] {
                [] => batch(&[1, 1]),
                inputs => batch(inputs),
            }
        })?;
    }
}

fn other_request() -> Request<Full<Bytes>> {
    let body = REQUEST.replace("forty", "other");
    let request = Request::post("/v1/chat/completions");
    request.body(body.into()).unwrap()
}
