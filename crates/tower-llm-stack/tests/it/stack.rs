//! `Stack`: the order of its layers, the state that its services share, and its refusals.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::channel::{Channel, Sender};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tokio::time::Instant;
use tower::limit::ConcurrencyLimitLayer;
use tower::util::{MapErrLayer, MapRequestLayer};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_llm_stack::{
    BreakerLayer, BulkheadFull, BulkheadLayer, Call, Deadline, DescribeLayer, Described, Guard,
    Key, KeyBy, Limit, RateLimitLayer, RateLimited, Refusal, RefusalKind, RefusalLayer,
    RequestBody, Stack, TimedOut, TimeoutLayer, Unary, Watch,
};

const PATHS: [&str; 4] = [
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1beta/models/gemini-2.5-pro:generateContent",
];

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn total(timeout: Duration) -> TimeoutLayer {
    TimeoutLayer::builder().total(timeout).build().unwrap()
}

/// One permit, and no queue.
fn one_permit() -> BulkheadLayer {
    BulkheadLayer::builder(1).max_waiting(0).build().unwrap()
}

fn post(path: &str) -> Request<Full<Bytes>> {
    Request::post(path).body("{}".into()).unwrap()
}

/// Readies a service for one request type: a service that describes accepts any body.
fn ready<S>(service: &mut S) -> tower::util::Ready<'_, S, Request<Full<Bytes>>>
where
    S: Service<Request<Full<Bytes>>>,
{
    service.ready()
}

/// The events, in order.
#[derive(Clone, Debug, Default)]
struct Record(Arc<Mutex<Vec<&'static str>>>);

impl Record {
    fn push(&self, event: &'static str) {
        self.0.lock().unwrap().push(event);
    }

    fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

async fn silence<R>(_: R) -> Result<Response<Full<Bytes>>, Infallible> {
    std::future::pending().await
}

async fn pong<R>(_: R) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new("pong".into()))
}

/// Answers with streams whose frames the test sends.
fn streams() -> (
    impl Service<
        Request<RequestBody>,
        Response = Response<Channel<Bytes, BoxError>>,
        Error = Infallible,
        Future: Send,
    > + Clone,
    tokio::sync::mpsc::UnboundedReceiver<Sender<Bytes, BoxError>>,
) {
    let (sent, senders) = tokio::sync::mpsc::unbounded_channel();
    let service = service_fn(move |_| {
        let (sender, body) = Channel::new(16);
        sent.send(sender).unwrap();
        let response = Response::builder().header("content-type", "text/event-stream");
        std::future::ready(Ok(response.body(body).unwrap()))
    });
    (service, senders)
}

// === order ===

/// Sets the layers in each order; all of them must result in the same type.
macro_rules! in_each_order {
    ($layers:ident: $([$($setter:ident)*])*) => {
        [$({
            let $layers = $layers.clone();
            Stack::builder()$(.$setter($layers.$setter))*.build()
        }),*]
    };
}

#[derive(Clone)]
struct Layers {
    refusal: RefusalLayer,
    describe: DescribeLayer,
    own: MapRequestLayer<fn(Request<RequestBody>) -> Request<RequestBody>>,
    caller_rate_limit: RateLimitLayer,
    provider_rate_limit: RateLimitLayer,
    bulkhead: BulkheadLayer,
    timeout: TimeoutLayer,
}

impl Layers {
    /// Layers that record when they are called; one permit, and limits that do not matter.
    fn new(record: &Record) -> Self {
        let describes = record.clone();
        let by = |name| {
            let record = record.clone();
            KeyBy::custom(move |request| {
                let is_described = request.call().is_some();
                record.push(if is_described { name } else { "too early" });
                Key::new("all")
            })
        };
        let limit = Limit::requests(100).per_minute();
        Self {
            refusal: RefusalLayer::new(),
            describe: DescribeLayer::new().caller_by(move |_| {
                describes.push("describe");
                None
            }),
            own: MapRequestLayer::new(|mut request: Request<RequestBody>| {
                let is_described = request.call().is_some();
                request.extensions_mut().insert(Own(is_described));
                request
            }),
            caller_rate_limit: RateLimitLayer::for_callers()
                .limit(limit.clone())
                .key_by(by("caller's limit"))
                .build()
                .unwrap(),
            provider_rate_limit: RateLimitLayer::for_providers()
                .limit(limit)
                .key_by(by("provider's limit"))
                .build()
                .unwrap(),
            bulkhead: BulkheadLayer::builder(1)
                .key_by(by("bulkhead"))
                .build()
                .unwrap(),
            timeout: total(seconds(10)),
        }
    }
}

/// Whether the user's own layer was called, and whether the request was described by then.
#[derive(Clone)]
struct Own(bool);

#[tokio::test(start_paused = true)]
async fn the_order_of_the_setters_is_not_the_order_of_the_layers() {
    let record = Record::default();
    let layers = Layers::new(&record);
    // Each setter is first and last in one of the orders, and comes before and after each other one.
    let stacks = in_each_order!(layers:
        [refusal describe own caller_rate_limit provider_rate_limit bulkhead timeout]
        [describe own caller_rate_limit provider_rate_limit bulkhead timeout refusal]
        [own caller_rate_limit provider_rate_limit bulkhead timeout refusal describe]
        [caller_rate_limit provider_rate_limit bulkhead timeout refusal describe own]
        [provider_rate_limit bulkhead timeout refusal describe own caller_rate_limit]
        [bulkhead timeout refusal describe own caller_rate_limit provider_rate_limit]
        [timeout refusal describe own caller_rate_limit provider_rate_limit bulkhead]
        [timeout bulkhead provider_rate_limit caller_rate_limit own describe refusal]
        [provider_rate_limit caller_rate_limit own describe refusal timeout bulkhead]
    );
    for stack in stacks {
        let client = record.clone();
        let service = stack.layer(service_fn(move |request: Request<RequestBody>| {
            let own = request.extensions().get::<Own>();
            assert!(own.is_some_and(|Own(is_described)| *is_described));
            client.push("client");
            silence(request)
        }));
        let started = Instant::now();
        let call = || async {
            let answer = service.clone().oneshot(post(PATHS[0])).await.unwrap();
            (answer.status(), started.elapsed())
        };
        let (first, second) = tokio::join!(call(), call());

        // Each call has ten seconds once it has its permit, so the timeout is inside the bulkhead. Both refusals are
        // responses, so the refusal layer is outside of all.
        assert_eq!(first, (StatusCode::GATEWAY_TIMEOUT, seconds(10)));
        assert_eq!(second, (StatusCode::GATEWAY_TIMEOUT, seconds(20)));
        let until_client = [
            "describe",
            "caller's limit",
            "provider's limit",
            "bulkhead",
            "client",
        ];
        assert_eq!(record.take(), [until_client, until_client].concat());
    }
}

#[tokio::test]
async fn the_last_of_two_settings_is_used() {
    let (first, last) = (one_permit(), one_permit());
    let stack = Stack::builder()
        .bulkhead(first.clone())
        .timeout(TimeoutLayer::new())
        .bulkhead(last.clone())
        .build();
    let service = stack.layer(service_fn(pong));
    service.oneshot(post(PATHS[0])).await.unwrap();
    assert_eq!(first.handle().stats().len(), 0);
    assert_eq!(last.handle().stats().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_for_the_providers_limit_holds_no_permit() {
    let bulkhead = BulkheadLayer::new(10).unwrap();
    let limit = Limit::requests(1).per_second().bucket(1);
    let providers = RateLimitLayer::for_providers()
        .limit(limit)
        .build()
        .unwrap();
    let (limiter, permits) = (providers.handle(), bulkhead.handle());
    let stack = Stack::builder()
        .provider_rate_limit(providers)
        .bulkhead(bulkhead)
        .build();
    let service = stack.layer(service_fn(silence));
    let mut calls = [(); 3].map(|()| Box::pin(service.clone().oneshot(post(PATHS[0]))));
    let started = Instant::now();
    for in_flight in 1..=3 {
        for call in &mut calls {
            assert!(futures_util::poll!(call).is_pending());
        }
        assert_eq!(permits.stats()[0].in_flight, in_flight);
        assert_eq!(limiter.stats()[0].waiting, 3 - in_flight);
        tokio::time::sleep_until(started + seconds(in_flight as u64)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn if_a_hundred_calls_race_for_the_last_slot_exactly_one_wins() {
    let limit = Limit::tokens(15).per_minute();
    let callers = RateLimitLayer::for_callers().limit(limit).build().unwrap();
    let limiter = callers.handle();
    let service = Stack::builder()
        .caller_rate_limit(callers)
        .build()
        .layer(service_fn(silence));
    let call = || {
        let body = r#"{"max_tokens":15,"messages":[]}"#;
        let request = post(PATHS[0]).map(|_| Full::<Bytes>::from(body));
        Box::pin(service.clone().oneshot(request))
    };
    let mut calls: Vec<_> = std::iter::repeat_with(call).take(100).collect();
    let mut let_through = 0;
    for call in &mut calls {
        let_through += usize::from(futures_util::poll!(call).is_pending());
    }
    assert_eq!(let_through, 1);
    let stats = &limiter.stats()[0];
    assert_eq!((stats.admitted, stats.refused, stats.consumed), (1, 99, 15));
}

#[tokio::test]
async fn an_own_layer_sees_the_refusals_of_those_inside_as_errors() {
    let seen = Record::default();
    let sees = seen.clone();
    let limit = Limit::requests(1).per_minute();
    let stack = Stack::builder()
        .refusal(RefusalLayer::new())
        .own(MapErrLayer::new(move |error: BoxError| {
            sees.push(Refusal::find(&*error).unwrap().layer());
            error
        }))
        .caller_rate_limit(RateLimitLayer::for_callers().limit(limit).build().unwrap())
        .build();
    let service = stack.layer(service_fn(pong));
    for status in [StatusCode::OK, StatusCode::TOO_MANY_REQUESTS] {
        let response = service.clone().oneshot(post(PATHS[0])).await.unwrap();
        assert_eq!(response.status(), status);
    }
    assert_eq!(seen.take(), ["ratelimit"]);
}

#[tokio::test]
async fn layers_that_are_not_set_are_absent() {
    let stack = Stack::builder().build();
    let service = ServiceBuilder::new().layer(stack).service(service_fn(
        async |request: Request<RequestBody>| {
            let call = request.call().expect("described by default");
            Ok::<_, Infallible>(Response::new(Full::from(
                call.provider().as_str().to_owned(),
            )))
        },
    ));
    let answer = service.oneshot(post(PATHS[2])).await.unwrap();
    // `Full` is the client's own body type: no layer wraps it.
    let body: Full<Bytes> = answer.into_body();
    assert_eq!(body.collect().await.unwrap().to_bytes(), "anthropic");
}

// === shared state ===

#[tokio::test]
async fn clones_and_services_of_a_stack_share_permits() {
    let bulkhead = one_permit();
    let stack = Stack::builder().bulkhead(bulkhead.clone()).build();
    let copy = stack.clone();
    let services = [
        stack.layer(service_fn(silence)),
        stack.layer(service_fn(silence)),
        copy.layer(service_fn(silence)),
    ];
    let holder = services[0].clone();
    let mut held = Box::pin(holder.oneshot(post(PATHS[0])));
    assert!(futures_util::poll!(&mut held).is_pending());

    for service in &services {
        let refused = service.clone().oneshot(post(PATHS[0])).await.unwrap_err();
        assert!(refused.is::<BulkheadFull>(), "{refused}");
    }
    let stats = bulkhead.handle().stats();
    assert_eq!((stats[0].in_flight, stats[0].refused), (1, 3));

    drop(held);
    assert_eq!(bulkhead.handle().stats()[0].in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_cut_releases_its_permit() {
    let bulkhead = one_permit();
    let stack = Stack::builder()
        .refusal(RefusalLayer::new())
        .bulkhead(bulkhead.clone())
        .timeout(TimeoutLayer::builder().idle(seconds(10)).build().unwrap())
        .build();
    let (client, mut senders) = streams();
    let service = stack.layer(client);

    let response = service.clone().oneshot(post(PATHS[2])).await.unwrap();
    let mut sender = senders.recv().await.unwrap();
    sender
        .send_data("event: ping\ndata: {}\n\n".into())
        .await
        .unwrap();
    assert_eq!(bulkhead.handle().stats()[0].in_flight, 1);
    let full = service.oneshot(post(PATHS[2])).await.unwrap();
    assert_eq!(full.status(), StatusCode::SERVICE_UNAVAILABLE);

    let text = response.into_body().collect().await.unwrap().to_bytes();
    assert!(text.starts_with(b"event: ping\n"));
    assert!(text.ends_with(b"\n\n"));
    let text = String::from_utf8(text.into()).unwrap();
    assert!(text.contains("timeout_error"), "{text}");
    assert_eq!(bulkhead.handle().stats()[0].in_flight, 0);
    assert!(sender.send_data("late".into()).await.is_err());
}

// === refusals ===

/// The status, and the kind of the error in each dialect.
async fn refusal<B>(response: Response<B>) -> (StatusCode, String)
where
    B: http_body::Body<Data = Bytes, Error: std::fmt::Debug>,
{
    let status = response.status();
    assert_eq!(response.headers()["content-type"], "application/json");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap();
    let kind = ["/error/status", "/error/type"];
    let kind = kind.iter().find_map(|at| body.pointer(at)?.as_str());
    (status, kind.unwrap().to_owned())
}

#[tokio::test(start_paused = true)]
async fn every_refusal_is_answered_in_the_dialect_of_its_request() {
    let expected = [
        ["request_too_large", "server_is_overloaded", "timeout"],
        ["request_too_large", "server_is_overloaded", "timeout"],
        ["request_too_large", "overloaded_error", "timeout_error"],
        ["INVALID_ARGUMENT", "UNAVAILABLE", "DEADLINE_EXCEEDED"],
    ];
    for (path, [too_large, unavailable, timed_out]) in PATHS.into_iter().zip(expected) {
        let stack = Stack::builder()
            .timeout(total(seconds(10)))
            .bulkhead(one_permit())
            .describe(DescribeLayer::new().max_body_bytes(100).unwrap())
            .refusal(RefusalLayer::new())
            .build();
        let service = stack.layer(service_fn(silence));

        let large = post(path).map(|_| Full::<Bytes>::from(vec![b' '; 101]));
        let response = service.clone().oneshot(large).await.unwrap();
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        assert_eq!(response.headers()["x-should-retry"], "false");
        assert_eq!(refusal(response).await, (status, too_large.to_owned()));

        let holder = service.clone();
        let mut held = Box::pin(holder.oneshot(post(path)));
        assert!(futures_util::poll!(&mut held).is_pending());
        let response = service.clone().oneshot(post(path)).await.unwrap();
        let status = StatusCode::SERVICE_UNAVAILABLE;
        assert_eq!(refusal(response).await, (status, unavailable.to_owned()));

        let response = held.await.unwrap();
        let status = StatusCode::GATEWAY_TIMEOUT;
        assert_eq!(refusal(response).await, (status, timed_out.to_owned()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_over_a_limit_gets_the_wait_in_its_dialect() {
    let expected = [
        "rate_limit_exceeded",
        "rate_limit_exceeded",
        "rate_limit_error",
        "RESOURCE_EXHAUSTED",
    ];
    for (path, limited) in PATHS.into_iter().zip(expected) {
        let limit = Limit::requests(1).per_minute();
        let callers = RateLimitLayer::for_callers().limit(limit).build().unwrap();
        let stack = Stack::builder()
            .refusal(RefusalLayer::new())
            .caller_rate_limit(callers)
            .build();
        let service = stack.layer(service_fn(pong));
        let first = service.clone().oneshot(post(path)).await.unwrap();
        assert_eq!(first.status(), StatusCode::OK);

        let response = service.clone().oneshot(post(path)).await.unwrap();
        let wait = response.headers()["retry-after"].to_str().unwrap();
        let wait = seconds(wait.parse().unwrap());
        let status = StatusCode::TOO_MANY_REQUESTS;
        assert_eq!(refusal(response).await, (status, limited.to_owned()));

        tokio::time::advance(wait).await;
        let again = service.oneshot(post(path)).await.unwrap();
        assert_eq!(again.status(), StatusCode::OK, "{wait:?} is enough");
    }
}

#[tokio::test(start_paused = true)]
async fn without_its_refusal_layer_a_stack_gives_typed_errors() {
    let stack = Stack::builder()
        .bulkhead(one_permit())
        .timeout(total(seconds(10)))
        .build();
    let service = stack.layer(service_fn(silence));
    let holder = service.clone();
    let mut held = Box::pin(holder.oneshot(post(PATHS[0])));
    assert!(futures_util::poll!(&mut held).is_pending());

    let full = service.oneshot(post(PATHS[0])).await.unwrap_err();
    assert_eq!(full.downcast_ref::<BulkheadFull>().unwrap().limit(), 1);
    let refusal = Refusal::find(&*full).unwrap();
    assert_eq!(refusal.kind(), RefusalKind::Unavailable);
    assert_eq!(refusal.layer(), "bulkhead");

    let late = held.await.unwrap_err();
    let timed_out = TimedOut::find(&*late).unwrap();
    assert_eq!(timed_out.deadline(), Deadline::Total);
    assert!(Refusal::find(&*late).is_none());
}

#[tokio::test]
async fn an_error_of_the_client_passes_the_whole_stack() {
    #[derive(Debug, thiserror::Error)]
    #[error("connection reset")]
    struct Reset;
    let stack = Stack::builder()
        .refusal(RefusalLayer::new())
        .bulkhead(one_permit())
        .timeout(TimeoutLayer::new())
        .build();
    let service = stack.layer(service_fn(async |_: Request<RequestBody>| {
        Err::<Response<Full<Bytes>>, _>(Reset)
    }));
    let error = service.oneshot(post(PATHS[0])).await.unwrap_err();
    assert!(error.is::<Reset>());
}

// === contract ===

#[tokio::test]
async fn a_stack_calls_the_service_that_was_readied() {
    let stack = Stack::builder()
        .refusal(RefusalLayer::new())
        .caller_rate_limit(
            RateLimitLayer::for_callers()
                .limit(Limit::requests(10).per_minute())
                .build()
                .unwrap(),
        )
        .provider_rate_limit(RateLimitLayer::for_providers().build().unwrap())
        .bulkhead(BulkheadLayer::new(10).unwrap())
        .timeout(TimeoutLayer::new())
        .build();
    let mut service = ServiceBuilder::new()
        .layer(stack)
        .layer(ConcurrencyLimitLayer::new(1))
        .service(service_fn(pong));
    for _ in 0..3 {
        let call = ready(&mut service).await.unwrap().call(post(PATHS[0]));
        assert_eq!(call.await.unwrap().status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn a_stack_that_describes_is_ready_and_waits_for_its_client_inside_the_call() {
    // The mock panics if it is called without having been readied.
    let (client, mut handle) = mock();
    let stack = Stack::builder().timeout(TimeoutLayer::new()).build();
    let mut service = stack.layer(client);
    handle.allow(0);
    let call = ready(&mut service).await.unwrap().call(post(PATHS[0]));
    let mut call = Box::pin(call);
    assert!(futures_util::poll!(&mut call).is_pending());
    handle.allow(1);
    answer(&mut handle, call).await;
}

#[tokio::test]
async fn a_stack_that_does_not_describe_is_ready_when_its_client_is() {
    let (client, mut handle) = mock();
    let stack = Stack::builder()
        .without_describe()
        .timeout(TimeoutLayer::new())
        .build();
    let mut service = stack.layer(client);
    handle.allow(0);
    assert!(futures_util::poll!(ready(&mut service)).is_pending());
    handle.allow(1);
    let call = ready(&mut service).await.unwrap().call(post(PATHS[0]));
    answer(&mut handle, call).await;
}

type Handle<B> = tower_test::mock::Handle<Request<B>, Response<Full<Bytes>>>;

fn mock<B>() -> (
    tower_test::mock::Mock<Request<B>, Response<Full<Bytes>>>,
    Handle<B>,
) {
    tower_test::mock::pair()
}

async fn answer<A, B, E: std::fmt::Debug>(
    handle: &mut Handle<A>,
    call: impl Future<Output = Result<Response<B>, E>>,
) {
    let (answer, ()) = tokio::join!(call, async {
        let (_, reply) = handle.next_request().await.unwrap();
        reply.send_response(Response::new("pong".into()));
    });
    assert_eq!(answer.unwrap().status(), StatusCode::OK);
}

// === types that are not HTTP ===

#[derive(Clone, Debug)]
struct Prompt(&'static str);

impl Described for Prompt {
    fn call(&self) -> Option<Cow<'_, Call>> {
        None
    }
}

#[tokio::test(start_paused = true)]
async fn a_typed_service_takes_a_stack_that_describes_nothing() {
    let limits = RateLimitLayer::for_callers()
        .limit(Limit::requests(3).per_minute())
        .watch(Unary)
        .build()
        .unwrap();
    let bulkhead = BulkheadLayer::builder(1)
        .max_waiting(0)
        .watch(Unary)
        .build()
        .unwrap();
    let timeout = TimeoutLayer::builder()
        .total(seconds(10))
        .watch(Unary)
        .build()
        .unwrap();
    let stack = Stack::builder()
        .without_describe()
        .caller_rate_limit(limits.clone())
        .bulkhead(bulkhead.clone())
        .timeout(timeout)
        .build();
    let service = stack.layer(service_fn(|Prompt(text)| async move {
        match text {
            "silence" => std::future::pending().await,
            _ => Ok::<_, Infallible>(text.len()),
        }
    }));

    let length: usize = service.clone().oneshot(Prompt("ping")).await.unwrap();
    assert_eq!(length, 4);

    let holder = service.clone();
    let mut held = Box::pin(holder.oneshot(Prompt("silence")));
    assert!(futures_util::poll!(&mut held).is_pending());
    let full = service.clone().oneshot(Prompt("ping")).await.unwrap_err();
    assert!(full.is::<BulkheadFull>());
    assert!(TimedOut::find(&*held.await.unwrap_err()).is_some());

    assert_eq!(service.clone().oneshot(Prompt("again")).await.unwrap(), 5);
    assert_eq!(bulkhead.handle().stats()[0].in_flight, 0);

    // Three were admitted; the call that found no permit was refunded.
    let limited = service.oneshot(Prompt("more")).await.unwrap_err();
    assert!(limited.is::<RateLimited>());
    assert_eq!(limits.handle().stats()[0].consumed, 3);
}

// === one gate ===

/// Counts how often responses are watched.
#[derive(Clone, Debug, Default)]
struct Counting(Arc<AtomicUsize>);

impl<R> Watch<R> for Counting {
    type Out<G: Guard> = R;

    fn watch<G: Guard>(&self, call: Option<&Call>, response: R, guard: G) -> R {
        self.0.fetch_add(1, Ordering::Relaxed);
        Unary.watch(call, response, guard)
    }
}

/// What all layers do, and that a permit is given back, is in `contract`.
#[tokio::test]
async fn layers_that_admit_calls_watch_a_response_once_together() {
    let (once, twice) = (Counting::default(), Counting::default());
    let requests = || Limit::requests(1).per_hour();
    let callers = |watch| {
        let callers = RateLimitLayer::for_callers().limit(requests());
        callers.watch(watch).build().unwrap()
    };
    let inside = |watch: &Counting| {
        let breaker = BreakerLayer::builder().watch(watch.clone());
        let limit = RateLimitLayer::for_providers().limit(requests());
        let bulkhead = BulkheadLayer::builder(1).watch(watch.clone());
        Stack::builder()
            .without_describe()
            .caller_rate_limit(callers(watch.clone()))
            .breaker(breaker.build().unwrap())
            .provider_rate_limit(limit.watch(watch.clone()).build().unwrap())
            .bulkhead(bulkhead.build().unwrap())
    };
    let together = inside(&once).build();
    let mut service = together.layer(service_fn(async |_: Prompt| Ok::<_, Infallible>(7)));
    assert_eq!(
        service
            .ready()
            .await
            .unwrap()
            .call(Prompt("ping"))
            .await
            .unwrap(),
        7
    );
    assert_eq!(once.0.load(Ordering::Relaxed), 1);

    // A limit outside of the stack is a service of its own.
    let alone = callers(twice.clone()).layer(
        inside(&twice)
            .build()
            .layer(service_fn(async |_: Prompt| Ok::<_, Infallible>(7))),
    );
    assert_eq!(alone.oneshot(Prompt("ping")).await.unwrap(), 7);
    assert_eq!(twice.0.load(Ordering::Relaxed), 2);
}

// === batch ===

/// Calls that come while one is in flight are sent together, through the layers inside.
#[cfg(all(feature = "batch", feature = "cache"))]
#[tokio::test(start_paused = true)]
async fn embeddings_are_merged_between_the_cache_and_the_providers_limits() {
    use tower_llm_stack::{BatchLayer, CacheLayer, Embeddings, Scope};
    use tower_llm_testkit::Behavior;

    use crate::contract::layers::{Client, Model, boxed};

    let providers = RateLimitLayer::for_providers().limit(Limit::requests(100).per_minute());
    let providers = providers.build().unwrap();
    let sent = providers.handle();
    let batches = BatchLayer::new(Embeddings::new()).unwrap();
    let stats = batches.handle();
    let stack = Stack::builder()
        .cache(CacheLayer::builder(Scope::shared()).build().unwrap())
        .batch(batches)
        .provider_rate_limit(providers)
        .build();
    let slow = Behavior::new().head_delay(seconds(1));
    let model = Model::new(vec![slow; 2]).service();
    let client: Client = boxed(stack.layer(model));
    let embed = async |number: usize| {
        let body = format!(r#"{{"model":"m","input":"text {number}"}}"#);
        let request = Request::post("/v1/embeddings").body(body.into()).unwrap();
        let response = client.clone().oneshot(request).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let vectors: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(vectors["data"].as_array().unwrap().len(), 1);
    };
    futures_util::future::join_all((0..10).map(embed)).await;
    assert_eq!((stats.stats().calls, stats.stats().batches), (10, 2));
    assert_eq!(sent.stats()[0].admitted, 2);
    // Each input is cached by itself.
    futures_util::future::join_all((0..10).map(embed)).await;
    assert_eq!(sent.stats()[0].admitted, 2);
}
