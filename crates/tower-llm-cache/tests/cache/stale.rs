//! Answers past their time: served while a new one is fetched, instead of a failure, or renewed by hits.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, stream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::{sync::Notify, time::advance};
use tokio_test::{assert_pending, task};
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn, util::BoxCloneService};
use tower_llm_cache::{CacheBody, CacheHandle, CacheLayer, Policy, Scope};
use tower_llm_core::{BoxError, DescribeLayer, RequestBody, Served};

use crate::support::{WHOLE, caching};

type Frames = StreamBody<stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, BoxError>>>>;
type Answer = Response<CacheBody<Frames>>;

const TTL: Duration = Duration::from_secs(60);

/// What the provider does with each call.
#[derive(Clone, Copy, Debug)]
enum Reply {
    Answer,
    Status(u16),
    Error,
    /// The headers, a frame, and then a reset.
    BrokenOff,
}

struct Scene {
    service: BoxCloneService<Request<Full<Bytes>>, Answer, BoxError>,
    handle: CacheHandle,
    calls: Arc<AtomicUsize>,
    reply: Arc<Mutex<Reply>>,
    /// The provider answers once it is notified, if it holds its answers.
    release: Option<Arc<Notify>>,
}

impl Scene {
    fn new(policy: Policy, is_held: bool) -> Self {
        let calls = Arc::new(AtomicUsize::new(0));
        let reply = Arc::new(Mutex::new(Reply::Answer));
        let release = is_held.then(|| Arc::new(Notify::new()));
        let (count, replies, held) = (Arc::clone(&calls), Arc::clone(&reply), release.clone());
        let provider = service_fn(move |_: Request<RequestBody>| {
            let number = count.fetch_add(1, SeqCst) + 1;
            let reply = *replies.lock().unwrap();
            let held = held.clone().filter(|_| number > 1);
            async move {
                if let Some(held) = held {
                    held.notified().await;
                }
                answer(reply, number)
            }
        });
        let layer = caching(policy);
        Self {
            handle: layer.handle(),
            service: ServiceBuilder::new()
                .layer(DescribeLayer::new())
                .service(layer.layer(provider))
                .boxed_clone(),
            calls,
            reply,
            release,
        }
    }

    async fn ask(&self, control: &'static str) -> Result<Answer, BoxError> {
        let body = r#"{"model":"gpt-5.4","messages":[],"stream":true}"#;
        let request = Request::post("/v1/chat/completions").header("cache-control", control);
        let request = request.body(Full::from(body)).unwrap();
        self.service.clone().oneshot(request).await
    }

    /// The number of the call that the answer is of, and what the cache says.
    async fn read(&self) -> (usize, String) {
        let response = self.ask("").await.unwrap();
        let number = response.headers()["x-number"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        let status = response.headers()["cache-status"]
            .to_str()
            .unwrap()
            .to_owned();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, WHOLE.concat());
        (number, status)
    }

    fn calls(&self) -> usize {
        self.calls.load(SeqCst)
    }

    /// Lets the call that is held go on.
    fn release(&self) {
        let release = self.release.as_ref();
        release.expect("it holds its answers").notify_one();
    }

    fn set(&self, reply: Reply) {
        *self.reply.lock().unwrap() = reply;
    }
}

fn answer(reply: Reply, number: usize) -> Result<Response<Frames>, BoxError> {
    let whole = WHOLE
        .iter()
        .map(|frame| Ok(Frame::data(Bytes::from(*frame))));
    let frames: Vec<_> = match reply {
        Reply::Error => return Err("connection refused".into()),
        Reply::BrokenOff => whole.take(1).chain([Err("reset".into())]).collect(),
        Reply::Answer | Reply::Status(_) => whole.collect(),
    };
    let mut response = Response::new(StreamBody::new(stream::iter(frames)));
    response.headers_mut().insert("x-number", number.into());
    if let Reply::Status(status) = reply {
        *response.status_mut() = status.try_into().unwrap();
    }
    Ok(response)
}

fn hit(ttl: i64) -> String {
    format!("tower-llm-cache; hit; ttl={ttl}")
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_is_served_while_one_call_fetches_a_new_one() {
    let policy = Policy::completions().ttl(TTL).stale_while_revalidate(TTL);
    let scene = Scene::new(policy, true);
    assert_eq!(scene.read().await.0, 1);
    advance(TTL + Duration::from_secs(5)).await;

    // Ten callers get the old answer at once; one call is on its way.
    for _ in 0..10 {
        let response = scene
            .ask("")
            .now_or_never()
            .expect("it waits for nothing")
            .unwrap();
        assert_eq!(response.headers()["cache-status"], hit(-5));
        assert_eq!(response.headers()["age"], "65");
        assert!(matches!(response.extensions().get(), Some(Served::Hit)));
        tokio::task::yield_now().await;
    }
    assert_eq!((scene.calls(), scene.handle.stats().revalidations), (2, 1));

    scene.release();
    while scene.handle.stats().stored < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(scene.read().await, (2, hit(60)));
    let stats = scene.handle.stats();
    assert_eq!(
        (scene.calls(), stats.stale, stats.hits, stats.misses),
        (2, 10, 11, 1)
    );
    assert_eq!(stats.in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_fails_leaves_the_old_answer_until_its_time_is_over() {
    let policy = Policy::completions().ttl(TTL).stale_while_revalidate(TTL);
    let scene = Scene::new(policy, false);
    scene.read().await;
    scene.set(Reply::Status(500));
    advance(TTL).await;
    for call in 2..5 {
        assert_eq!(scene.read().await.0, 1);
        while scene.handle.stats().in_flight > 0 || scene.calls() < call {
            tokio::task::yield_now().await;
        }
    }
    scene.set(Reply::Answer);
    advance(TTL).await;
    assert_eq!(
        scene.read().await,
        (5, "tower-llm-cache; fwd=miss".to_owned())
    );
}

#[tokio::test(start_paused = true)]
async fn requests_that_want_a_new_answer_get_no_stale_one() {
    let policy = Policy::completions()
        .ttl(TTL)
        .stale_while_revalidate(TTL)
        .stale_if_error(TTL);
    let scene = Scene::new(policy, false);
    scene.read().await;
    advance(TTL).await;
    scene.ask("only-if-cached").await.unwrap_err();
    scene.set(Reply::Error);
    scene.ask("no-cache").await.unwrap_err();
    scene.ask("max-age=10").await.unwrap_err();
    assert_eq!(scene.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_is_served_instead_of_a_failure() {
    let policy = Policy::completions().ttl(TTL).stale_if_error(2 * TTL);
    for reply in [
        Reply::Error,
        Reply::Status(503),
        Reply::Status(529),
        Reply::Status(429),
    ] {
        let scene = Scene::new(policy, false);
        scene.read().await;
        advance(TTL + Duration::from_secs(5)).await;
        scene.set(reply);
        assert_eq!(scene.read().await, (1, hit(-5)), "{reply:?}");
        // Each caller's call was sent, and nothing was stored in place of the old answer.
        assert_eq!(scene.read().await, (1, hit(-5)), "{reply:?}");
        let stats = scene.handle.stats();
        assert_eq!(
            (scene.calls(), stats.stale, stats.hits, stats.misses),
            (3, 2, 2, 1)
        );
        assert_eq!((stats.stored, stats.in_flight), (1, 0));

        scene.set(Reply::Answer);
        assert_eq!(scene.read().await.0, 4, "{reply:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_is_told_of_what_another_try_does_not_mend_and_of_a_stream_that_breaks_off() {
    let policy = Policy::completions().ttl(TTL).stale_if_error(TTL);
    let scene = Scene::new(policy, false);
    scene.read().await;
    advance(TTL).await;
    scene.set(Reply::Status(400));
    assert_eq!(scene.ask("").await.unwrap().status(), 400);
    scene.set(Reply::BrokenOff);
    let response = scene.ask("").await.unwrap();
    response.into_body().collect().await.unwrap_err();

    scene.set(Reply::Error);
    advance(TTL).await;
    scene.ask("").await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn hits_renew_an_answer_up_to_its_longest_time() {
    let scene = Scene::new(Policy::completions().ttl(TTL).max_ttl(3 * TTL), false);
    scene.read().await;
    for (after, ttl) in [(50, 60), (50, 60), (50, 30), (29, 1)] {
        advance(Duration::from_secs(after)).await;
        assert_eq!(scene.read().await, (1, hit(ttl)));
    }
    advance(Duration::from_secs(1)).await;
    assert_eq!(scene.read().await.0, 2);
    // Without hits it goes after its time.
    advance(TTL).await;
    assert_eq!(scene.read().await.0, 3);
}

#[tokio::test(start_paused = true)]
async fn what_is_past_its_time_is_purged_once_it_is_of_no_more_use() {
    let scene = Scene::new(Policy::completions().ttl(TTL).stale_if_error(TTL), false);
    scene.read().await;
    advance(TTL).await;
    assert_eq!(scene.handle.purge_expired(), 0);
    advance(TTL).await;
    assert_eq!(scene.handle.purge_expired(), 1);
}

#[test]
fn times_that_cannot_work_are_refused() {
    let years = Duration::from_secs(11 * 365 * 24 * 60 * 60);
    let base = Policy::completions().ttl(TTL);
    for (policy, field) in [
        (base.max_ttl(TTL - Duration::from_secs(1)), "max_ttl"),
        (base.max_ttl(years), "max_ttl"),
        (base.stale_while_revalidate(years), "stale_while_revalidate"),
        (base.stale_if_error(years), "stale_if_error"),
    ] {
        let error = CacheLayer::builder(Scope::shared())
            .completions(policy)
            .build()
            .unwrap_err();
        assert_eq!(error.field(), field);
    }
}

/// An answer past its time, of which it is known only after a wait that the call for a new one has failed.
async fn scene_of_a_slow_failure() -> Scene {
    let scene = Scene::new(Policy::completions().ttl(TTL).stale_if_error(TTL), true);
    assert_eq!(scene.read().await.0, 1);
    advance(TTL + Duration::from_secs(10)).await;
    scene.set(Reply::Status(503));
    scene
}

#[tokio::test(start_paused = true)]
async fn a_removed_answer_is_not_served_instead_of_a_failure() {
    let scene = scene_of_a_slow_failure().await;
    let mut leader = task::spawn(scene.ask(""));
    assert_pending!(leader.poll());
    assert_eq!(scene.handle.clear().await.unwrap().memory, 1);
    let mut later = task::spawn(scene.ask(""));
    assert_pending!(later.poll());
    scene.release();
    drop(leader.await);
    let later = later.await.unwrap();
    assert_eq!(later.status(), 503, "{:?}", later.headers());
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_not_served_for_longer_than_it_may_be_stale() {
    let scene = scene_of_a_slow_failure().await;
    let mut leader = task::spawn(scene.ask(""));
    assert_pending!(leader.poll());
    advance(Duration::from_secs(600)).await;
    scene.release();
    let answer = leader.await.unwrap();
    assert_eq!(answer.status(), 503, "{:?}", answer.headers());
}
