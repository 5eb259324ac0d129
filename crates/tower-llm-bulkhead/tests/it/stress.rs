//! Thousands of calls on several threads, dropped at any stage.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use crate::support::{chat, chat_to, counts_of, full};
use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::task::{JoinSet, yield_now};
use tower::{Service, ServiceExt, service_fn};
use tower_layer::Layer;
use tower_llm_bulkhead::{BulkheadBuilder, BulkheadHandle, BulkheadLayer, Priority, ReleaseAt};
use tower_llm_core::{BoxError, Call, Caller, Dialect, Key, Operation, Provider};
use tower_llm_testkit::mock::stream;

const LIMIT: usize = 3;
const TASKS: u64 = 48;
const CALLS: u64 = 150;

/// Pseudo-random numbers, the same in each run.
struct Numbers(u64);

impl Numbers {
    /// A number below `end` (splitmix64).
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % end
    }
}

/// How many calls are inside now, and the maximum so far.
#[derive(Default)]
struct Inside {
    now: AtomicUsize,
    most: AtomicUsize,
    entered: AtomicUsize,
}

/// A call that is inside until this is dropped.
struct Entered(Arc<Inside>);

impl Inside {
    fn enter(self: &Arc<Self>) -> Entered {
        let now = self.now.fetch_add(1, Relaxed) + 1;
        self.most.fetch_max(now, Relaxed);
        self.entered.fetch_add(1, Relaxed);
        Entered(Arc::clone(self))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Relaxed);
    }
}

/// A body of some frames; some of them are pending first.
struct Frames {
    left: u64,
    numbers: Numbers,
    _inside: Entered,
    _also_inside: Option<Entered>,
}

impl Body for Frames {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.numbers.below(2) == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left -= 1;
        Poll::Ready(Some(match self.numbers.below(20) {
            0 => Err("cut off".into()),
            _ => Ok(Frame::data(Bytes::from_static(
                crate::support::CONTENT.as_bytes(),
            ))),
        }))
    }
}

/// Drops `future` after the given number of polls, if any.
struct GiveUp<F> {
    future: Pin<Box<F>>,
    polls: Option<u64>,
}

impl<F: Future> Future for GiveUp<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(polls) = &mut self.polls {
            if *polls == 0 {
                return Poll::Ready(None);
            }
            *polls -= 1;
            // Polled again at once, so that it can be dropped wherever it waits. The others must be woken.
            cx.waker().wake_by_ref();
        }
        self.future.as_mut().poll(cx).map(Some)
    }
}

async fn read_to_end<B: Body + Unpin>(mut body: B) {
    use http_body_util::BodyExt;
    while let Some(Ok(_)) = body.frame().await {}
}

async fn inner(inside: Arc<Inside>, seed: u64) -> Result<http::Response<Frames>, BoxError> {
    let entered = inside.enter();
    let mut numbers = Numbers(seed);
    for _ in 0..numbers.below(4) {
        yield_now().await;
    }
    match numbers.below(10) {
        0 => Err("the provider failed".into()),
        _ => Ok(stream(Frames {
            left: numbers.below(5),
            numbers,
            _inside: entered,
            _also_inside: None,
        })),
    }
}

/// The same, counted for all keys and for one key.
async fn inner_of_key(
    (in_all, in_key): (Entered, Entered),
    seed: u64,
) -> Result<http::Response<Frames>, BoxError> {
    let response = inner(Arc::default(), seed).await?;
    Ok(response.map(|frames| Frames {
        _inside: in_all,
        _also_inside: Some(in_key),
        ..frames
    }))
}

/// Runs all calls; returns how many were refused.
async fn thousands<S>(service: S) -> u64
where
    S: Service<http::Request<()>, Error = BoxError> + Clone + Send + 'static,
    S::Response: Send + IntoBody,
    S::Future: Send,
{
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let service = service.clone();
        tasks.spawn(async move {
            let mut numbers = Numbers(task);
            let mut refused = 0;
            for _ in 0..CALLS {
                let call = service.clone().oneshot(chat());
                // Dropped in the queue, in the call or in the body; some run to their end.
                let polls = match numbers.below(3) {
                    0 => None,
                    1 => Some(numbers.below(8)),
                    _ => Some(numbers.below(200)),
                };
                let run = GiveUp {
                    future: Box::pin(async {
                        match call.await {
                            Ok(response) => read_to_end(response.into_body()).await,
                            Err(error) if error.to_string().contains("provider") => {}
                            Err(error) => {
                                full(&error);
                                refused += 1;
                            }
                        }
                    }),
                    polls,
                };
                run.await;
            }
            refused
        });
    }
    let all = tokio::time::timeout(Duration::from_secs(60), tasks.join_all());
    all.await.expect("no call hangs").into_iter().sum()
}

trait IntoBody {
    type Body: Body + Unpin + Send;

    fn into_body(self) -> Self::Body;
}

impl<B: Body + Unpin + Send> IntoBody for http::Response<B> {
    type Body = B;

    fn into_body(self) -> B {
        self.into_body()
    }
}

/// Raises and lowers the limit until it is stopped.
async fn change_the_limit(handle: BulkheadHandle, stop: Arc<AtomicUsize>) -> usize {
    let mut numbers = Numbers(99);
    let mut times = 0;
    while stop.load(Relaxed) == 0 {
        let limit = 1 + usize::try_from(numbers.below(6)).expect("the number is small");
        let set = handle.set_limit(&Key::new("openai"), limit);
        set.expect("a valid limit");
        times += 1;
        yield_now().await;
    }
    times
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn never_exceeds_the_highest_limit_during_changes_nor_the_last_one_after() {
    let layer = BulkheadLayer::builder(LIMIT).max_waiting(1_000);
    let layer = layer.build().unwrap();
    let handle = layer.handle();
    let inside = Arc::<Inside>::default();
    let seeds = Arc::new(AtomicUsize::new(0));
    let service = layer.layer(service_fn({
        let inside = Arc::clone(&inside);
        move |_| inner(Arc::clone(&inside), seeds.fetch_add(1, Relaxed) as u64)
    }));
    let stop = Arc::<AtomicUsize>::default();
    let knob = tokio::spawn(change_the_limit(handle.clone(), Arc::clone(&stop)));
    assert_eq!(thousands(service.clone()).await, 0);
    stop.store(1, Relaxed);
    let times = knob.await.unwrap();
    assert!(times > 50, "{times} times");
    assert_eq!(inside.most.load(Relaxed), 6);
    assert_eq!(counts_of(&handle, "openai"), (0, 0, 0));

    handle.set_limit(&Key::new("openai"), 2).unwrap();
    inside.most.store(0, Relaxed);
    assert_eq!(thousands(service).await, 0);
    assert_eq!(inside.most.load(Relaxed), 2);
    assert_eq!(counts_of(&handle, "openai"), (0, 0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn never_exceeds_a_keys_limit_nor_the_global_one() {
    const KEYS: usize = 4;
    const IN_ALL: usize = 5;
    let layer = BulkheadLayer::builder(2)
        .global_limit(IN_ALL)
        .max_waiting(1_000)
        .priority_by(|request| match request.header("class") {
            Some(b"batch") => Priority::Batch,
            _ => Priority::Normal,
        })
        .build()
        .unwrap();
    let handle = layer.handle();
    let all = Arc::<Inside>::default();
    let keys: Arc<[Arc<Inside>; KEYS]> = Arc::default();
    let seeds = Arc::new(AtomicUsize::new(0));
    let service = layer.layer(service_fn({
        let (all, keys) = (Arc::clone(&all), Arc::clone(&keys));
        move |request: http::Request<()>| {
            let key: &usize = request.extensions().get().expect("the extension is set");
            let entered = (all.enter(), keys[*key].enter());
            inner_of_key(entered, seeds.fetch_add(1, Relaxed) as u64)
        }
    }));
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let service = service.clone();
        tasks.spawn(async move {
            let mut numbers = Numbers(task);
            for _ in 0..CALLS {
                let key = usize::try_from(numbers.below(KEYS as u64)).unwrap();
                let call = Call::builder(Provider::new(format!("{key}")), Operation::CHAT)
                    .dialect(Dialect::OpenAi)
                    .streamed(true)
                    .caller(Caller::named(format!("{}", numbers.below(3))))
                    .build();
                let mut request = http::Request::new(());
                request.extensions_mut().insert(call);
                request.extensions_mut().insert(key);
                if numbers.below(3) == 0 {
                    let batch = http::HeaderValue::from_static("batch");
                    request.headers_mut().insert("class", batch);
                }
                let polls = (numbers.below(2) == 0).then(|| numbers.below(100));
                let run = GiveUp {
                    polls,
                    future: Box::pin(async {
                        match service.clone().oneshot(request).await {
                            Ok(response) => read_to_end(response.into_body()).await,
                            Err(error) => assert!(error.to_string().contains("provider")),
                        }
                    }),
                };
                run.await;
            }
        });
    }
    let done = tokio::time::timeout(Duration::from_secs(60), tasks.join_all());
    done.await.expect("no call hangs");
    assert_eq!(all.most.load(Relaxed), IN_ALL);
    assert_eq!(all.now.load(Relaxed), 0);
    assert!(all.entered.load(Relaxed) > 1_000);
    for (key, inside) in keys.iter().enumerate() {
        assert_eq!(inside.most.load(Relaxed), 2, "key {key}");
        assert_eq!(counts_of(&handle, &key.to_string()), (0, 0, 0));
    }
    let stats = handle.global_stats().unwrap();
    assert_eq!(
        (stats.in_flight, stats.permits_in_use, stats.waiting),
        (0, 0, 0)
    );
}

async fn stress(builder: BulkheadBuilder) -> u64 {
    let layer = builder.build().expect("good settings");
    let handle = layer.handle();
    let inside = Arc::<Inside>::default();
    let seeds = Arc::new(AtomicUsize::new(0));
    let service = layer.layer(service_fn({
        let inside = Arc::clone(&inside);
        move |_| inner(Arc::clone(&inside), seeds.fetch_add(1, Relaxed) as u64)
    }));
    let refused = thousands(service.clone()).await;
    assert_eq!(inside.most.load(Relaxed), LIMIT);
    assert_eq!(inside.now.load(Relaxed), 0);
    assert_eq!(counts_of(&handle, "openai"), (0, 0, refused));
    // Enough calls ran to make the test meaningful.
    let entered = inside.entered.load(Relaxed);
    assert!(entered > 100, "{entered} calls");
    refused
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn never_exceeds_the_limit_whenever_calls_are_dropped() {
    let refused = stress(BulkheadLayer::builder(LIMIT).max_waiting(1_000)).await;
    assert_eq!(refused, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn never_exceeds_the_limit_while_calls_are_refused() {
    let refused = stress(BulkheadLayer::builder(LIMIT).max_waiting(2)).await;
    assert!(refused > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn never_exceeds_the_limit_while_waits_time_out() {
    let wait = Duration::from_millis(1);
    let builder = BulkheadLayer::builder(LIMIT).max_waiting(1_000);
    let refused = stress(builder.max_wait(wait)).await;
    assert!(refused > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn never_exceeds_the_limit_of_permits_acquired_in_poll_ready() {
    let layer = BulkheadLayer::builder(LIMIT).build_reserve().unwrap();
    let inside = Arc::<Inside>::default();
    let seeds = Arc::new(AtomicUsize::new(0));
    let service = layer.layer(service_fn({
        let inside = Arc::clone(&inside);
        move |_| inner(Arc::clone(&inside), seeds.fetch_add(1, Relaxed) as u64)
    }));
    assert_eq!(thousands(service).await, 0);
    assert_eq!(inside.most.load(Relaxed), LIMIT);
    assert_eq!(inside.now.load(Relaxed), 0);
    assert_eq!(layer.in_flight(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn permits_of_many_keys_come_and_go_with_their_calls() {
    let layer = BulkheadLayer::builder(1)
        .max_keys(32)
        .release_at(ReleaseAt::FirstToken)
        .build()
        .unwrap();
    let handle = layer.handle();
    let inside = Arc::<Inside>::default();
    let service = layer.layer(service_fn({
        let inside = Arc::clone(&inside);
        move |_| inner(Arc::clone(&inside), 1)
    }));
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let service = service.clone();
        tasks.spawn(async move {
            let mut numbers = Numbers(task);
            for _ in 0..CALLS {
                let provider = Provider::new(format!("provider {}", numbers.below(500)));
                let run = GiveUp {
                    polls: Some(numbers.below(40)),
                    future: Box::pin(async {
                        let response = service.clone().oneshot(chat_to(provider)).await;
                        if let Ok(response) = response {
                            read_to_end(response.into_body()).await;
                        }
                    }),
                };
                run.await;
            }
        });
    }
    let all = tokio::time::timeout(Duration::from_secs(60), tasks.join_all());
    all.await.expect("no call hangs");
    assert_eq!(inside.now.load(Relaxed), 0);
    let stats = handle.stats();
    assert!(stats.iter().filter(|stats| stats.key.is_some()).count() <= 32);
    for stats in stats {
        assert_eq!((stats.in_flight, stats.waiting), (0, 0), "{:?}", stats.key);
    }
}
