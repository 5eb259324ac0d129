//! Answers that are renewed before they expire.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::{sync::Semaphore, time::advance};
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn, util::BoxCloneService};
use tower_llm_cache::{CacheBody, CacheHandle, CacheLayer, Policy, RefreshAhead, Scope};
use tower_llm_core::{BoxError, DescribeLayer, RequestBody};

type Answer = Response<CacheBody<Full<Bytes>>>;

const TTL: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

struct Scene {
    service: BoxCloneService<Request<Full<Bytes>>, Answer, BoxError>,
    handle: CacheHandle,
    calls: Arc<AtomicUsize>,
    fails: Arc<AtomicBool>,
    /// Each call takes one before it is answered.
    permits: Arc<Semaphore>,
}

impl Scene {
    fn new(refresh: Option<RefreshAhead>, ttl: Duration) -> Self {
        let calls = Arc::new(AtomicUsize::new(0));
        let fails = Arc::new(AtomicBool::new(false));
        let permits = Arc::new(Semaphore::new(1_000));
        let (count, failing, held) = (Arc::clone(&calls), Arc::clone(&fails), Arc::clone(&permits));
        let provider = service_fn(move |_: Request<RequestBody>| {
            let number = count.fetch_add(1, SeqCst) + 1;
            let (failing, held) = (Arc::clone(&failing), Arc::clone(&held));
            async move {
                held.acquire().await.unwrap().forget();
                let body = r#"{"choices":[{"finish_reason":"stop"}]}"#;
                let mut response = Response::new(Full::from(body));
                response.headers_mut().insert("x-number", number.into());
                if failing.load(SeqCst) {
                    *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
                }
                Ok::<_, BoxError>(response)
            }
        });
        let layer = CacheLayer::builder(Scope::shared())
            .completions(Policy::completions().ttl(ttl))
            .refresh_ahead(refresh)
            .build()
            .unwrap();
        Self {
            handle: layer.handle(),
            service: ServiceBuilder::new()
                .layer(DescribeLayer::new())
                .service(layer.layer(provider))
                .boxed_clone(),
            calls,
            fails,
            permits,
        }
    }

    async fn send(&self, question: usize, control: &'static str) -> Result<Answer, BoxError> {
        let body = format!(r#"{{"model":"gpt-5.4","messages":[{question}]}}"#);
        let request = Request::post("/v1/chat/completions").header("cache-control", control);
        let request = request.body(Full::from(body)).unwrap();
        self.service.clone().oneshot(request).await
    }

    /// Asks, and returns the number of the call that the answer is of.
    async fn ask(&self, question: usize) -> usize {
        number(self.send(question, "").await.unwrap()).await
    }

    /// Asks as a caller that does not wait.
    async fn hit(&self, question: usize) -> usize {
        let answer = self.send(question, "").now_or_never();
        number(answer.expect("a hit waits for nothing").unwrap()).await
    }

    /// Lets renewals end.
    async fn settle(&self) {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    fn calls(&self) -> usize {
        self.calls.load(SeqCst)
    }
}

async fn number(answer: Answer) -> usize {
    let number = answer.headers()["x-number"].to_str().unwrap().parse();
    answer.into_body().collect().await.unwrap();
    number.unwrap()
}

fn a_minute(calls: u32) -> RefreshAhead {
    RefreshAhead::per_minute(NonZeroU32::new(calls).unwrap())
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_for_is_renewed_before_it_expires_and_no_caller_waits() {
    let scene = Scene::new(Some(a_minute(60)), TTL);
    assert_eq!(scene.ask(0).await, 1);
    scene.permits.forget_permits(999);
    advance(10 * SECOND).await;
    assert_eq!(scene.hit(0).await, 1);
    advance(44 * SECOND - Duration::from_nanos(1)).await;
    for _ in 0..5 {
        // Not before the last tenth, however often it is asked for.
        assert_eq!(scene.hit(0).await, 1);
    }
    scene.settle().await;
    assert_eq!((scene.calls(), scene.handle.stats().refreshes), (1, 0));

    advance(Duration::from_nanos(1)).await;
    for _ in 0..5 {
        assert_eq!(scene.hit(0).await, 1);
        scene.settle().await;
        // One call, which is not answered yet.
        assert_eq!((scene.calls(), scene.handle.stats().refreshes), (2, 1));
    }
    scene.permits.add_permits(1);
    scene.settle().await;
    assert_eq!(scene.hit(0).await, 2);
    // It has a whole life from here on.
    advance(TTL - SECOND).await;
    assert_eq!(scene.hit(0).await, 2);
    let stats = scene.handle.stats();
    assert_eq!((stats.misses, stats.hits, stats.stored), (1, 13, 2));
    assert_eq!((stats.refreshes, stats.in_flight), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_asked_for_enough_or_not_near_its_end_is_not_renewed() {
    let scene = Scene::new(Some(a_minute(60)), TTL);
    for question in 0..2 {
        scene.ask(question).await;
    }
    // One is hit often and early, the other late and twice.
    for _ in 0..10 {
        scene.hit(0).await;
    }
    advance(59 * SECOND).await;
    scene.hit(1).await;
    scene.hit(1).await;
    scene.settle().await;
    assert_eq!((scene.calls(), scene.handle.stats().refreshes), (2, 0));
    scene.hit(1).await;
    scene.settle().await;
    assert_eq!((scene.calls(), scene.handle.stats().refreshes), (3, 1));
    advance(SECOND).await;
    assert_eq!(scene.ask(0).await, 4);
}

#[tokio::test(start_paused = true)]
async fn the_hits_that_are_needed_can_be_set() {
    let scene = Scene::new(Some(a_minute(60).min_hits(1)), TTL);
    scene.ask(0).await;
    advance(55 * SECOND).await;
    scene.hit(0).await;
    scene.settle().await;
    assert_eq!(scene.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn no_more_calls_are_made_than_the_budget_has() {
    const QUESTIONS: usize = 100;
    let scene = Scene::new(Some(a_minute(6)), 10 * TTL);
    for question in 0..QUESTIONS {
        scene.ask(question).await;
    }
    advance(9 * TTL).await;
    for second in 0..60 {
        for question in 0..QUESTIONS {
            scene.hit(question).await;
        }
        scene.settle().await;
        // The answer needs three hits: from the third second, one in ten seconds.
        let renewed = match second {
            0 | 1 => 0,
            _ => (second - 2) / 10 + 1,
        };
        assert_eq!(scene.calls(), QUESTIONS + renewed, "after {second} s");
        advance(SECOND).await;
    }
    assert_eq!(scene.handle.stats().refreshes, 6);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_fails_leaves_the_answer_and_is_not_repeated() {
    let scene = Scene::new(Some(a_minute(60)), TTL);
    scene.ask(0).await;
    scene.fails.store(true, SeqCst);
    advance(54 * SECOND).await;
    for _ in 0..6 {
        for _ in 0..3 {
            assert_eq!(scene.hit(0).await, 1);
        }
        scene.settle().await;
        assert!(scene.calls() <= 2);
        advance(SECOND).await;
    }
    let stats = scene.handle.stats();
    assert_eq!(
        (scene.calls(), stats.refreshes, stats.not_stored),
        (2, 1, 1)
    );
    scene.fails.store(false, SeqCst);
    assert_eq!(scene.ask(0).await, 3);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_wants_no_call_renews_nothing() {
    let scene = Scene::new(Some(a_minute(60)), TTL);
    scene.ask(0).await;
    advance(55 * SECOND).await;
    for _ in 0..5 {
        assert_eq!(
            number(scene.send(0, "only-if-cached").await.unwrap()).await,
            1
        );
    }
    scene.settle().await;
    assert_eq!(scene.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn unless_set_nothing_is_renewed() {
    let scene = Scene::new(None, TTL);
    scene.ask(0).await;
    advance(59 * SECOND).await;
    for _ in 0..100 {
        assert_eq!(scene.hit(0).await, 1);
    }
    scene.settle().await;
    assert_eq!((scene.calls(), scene.handle.stats().refreshes), (1, 0));
}
