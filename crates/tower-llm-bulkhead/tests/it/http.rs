//! Real HTTP, to a provider that misbehaves.

use std::{fmt, time::Duration};

use bytes::Bytes;
use http_body::Body;
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::{
    runtime::Handle,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tower::{Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer};
use tower_llm_bulkhead::{BulkheadBuilder, BulkheadHandle, BulkheadLayer};
use tower_llm_core::{BoxError, DescribeLayer, KeyBy};
use tower_llm_testkit::{Behavior, Cut, Fault, InBand, RetryAfter, SimulatedProvider};

/// More than any wait in these tests on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
const MS: Duration = Duration::from_millis(1);

type Request = http::Request<Full<Bytes>>;

const STREAMS: [(&str, &str); 4] = [
    ("/v1/chat/completions", r#"{"model":"m","stream":true}"#),
    (
        "/v1/responses",
        r#"{"model":"m","input":"x","stream":true}"#,
    ),
    (
        "/v1/messages",
        r#"{"model":"m","messages":[],"stream":true}"#,
    ),
    ("/v1beta/models/m:streamGenerateContent?alt=sse", "{}"),
];

/// A streamed request; its number selects the dialect.
fn request(provider: &SimulatedProvider, number: usize) -> Request {
    let (path, body) = STREAMS[number % STREAMS.len()];
    http::Request::post(format!("{}{path}", provider.url()))
        .body(Full::from(body))
        .expect("a legal request")
}

fn client<B>() -> Client<hyper_util::client::legacy::connect::HttpConnector, B>
where
    B: Body<Data = Bytes> + Send,
{
    Client::builder(TokioExecutor::new()).build_http()
}

/// One key for all providers: the tests count at the server that plays them all.
fn bulkhead(limit: usize) -> BulkheadBuilder {
    BulkheadLayer::builder(limit)
        .key_by(KeyBy::shared())
        .max_waiting(1_000)
        .max_wait(PATIENCE)
}

/// Permits in use, waiting calls and refused calls.
fn counts(handle: &BulkheadHandle) -> (usize, usize, u64) {
    let [stats] = &handle.stats()[..] else {
        panic!("one key is shared by all");
    };
    (stats.in_flight, stats.waiting, stats.refused)
}

/// Waits until `condition` holds.
async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "not in time: {what}");
        sleep(MS).await;
    }
}

/// The faults that the simulator can be scripted with, and none.
fn misbehaviors() -> [Behavior; 12] {
    [
        Behavior::new(),
        Fault::ResetAfter(2).into(),
        Fault::CutAfter(2).into(),
        Fault::ErrorAfter(2, InBand::ServerError).into(),
        Fault::Throttled(RetryAfter::Seconds(1)).into(),
        Fault::StallAfter(2).into(),
        Behavior::new().cut(Cut::Every(7)),
        Fault::ResetBeforeHead.into(),
        Fault::FailedAfter(1, InBand::Overloaded).into(),
        Fault::Status(500).into(),
        Fault::NoAnswer.into(),
        Fault::ResetAfter(0).into(),
    ]
    .map(|behavior| behavior.head_delay(MS).first_token(2 * MS).gap(2 * MS))
}

/// Reads until the body ends, fails, or is silent for too long.
async fn read<B>(body: B)
where
    B: Body + Unpin,
{
    let mut body = body;
    while let Ok(Some(Ok(_))) = timeout(50 * MS, body.frame()).await {}
}

#[tokio::test]
async fn never_more_than_two_streams_are_open_at_the_provider_despite_faults() {
    let provider = SimulatedProvider::start().await.unwrap();
    let layer = bulkhead(2).build().unwrap();
    let service = ServiceBuilder::new()
        .layer(DescribeLayer::new())
        .layer(layer.clone())
        .service(client());
    let script = misbehaviors();
    let calls = 5 * script.len();
    provider.script((0..5).flat_map(|_| script.clone()));
    let mut tasks = JoinSet::new();
    for task in 0..20 {
        let service = service.clone();
        let requests: Vec<_> = (0..calls / 20)
            .map(|call| request(&provider, task + call))
            .collect();
        tasks.spawn(async move {
            for request in requests {
                // Waits in the queue count too, so that some calls are dropped there.
                let call = service.clone().oneshot(request);
                if let Ok(Ok(response)) = timeout(400 * MS, call).await {
                    read(response.into_body()).await;
                }
            }
        });
    }
    timeout(PATIENCE, tasks.join_all()).await.unwrap();

    assert_eq!(counts(&layer.handle()), (0, 0, 0));
    let idle = provider.wait_for(PATIENCE, |counts| counts.in_flight == 0);
    let seen = idle.await.unwrap();
    assert_eq!(seen.max_open_streams, 2);
    // There were enough calls to open more.
    assert!(seen.requests >= 30 && seen.faults >= 20, "{seen:?}");
}

/// Starts 20 calls to a provider that begins to stream and falls silent, and holds the bodies.
fn twenty_streams<S, B>(
    provider: &SimulatedProvider,
    service: S,
) -> JoinSet<Result<http::Response<B>, S::Error>>
where
    S: Service<Request, Response = http::Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: Send + 'static,
{
    provider.set(Fault::StallAfter(2));
    let mut calls = JoinSet::new();
    for number in 0..20 {
        calls.spawn(service.clone().oneshot(request(provider, number)));
    }
    calls
}

/// The maximum number of streams that were open while the bodies of 20 calls were held.
async fn open_at_once<S, B>(service: S) -> u64
where
    S: Service<Request, Response = http::Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send + fmt::Debug,
    B: Send + 'static,
{
    let provider = SimulatedProvider::start().await.expect("a free port");
    let calls = twenty_streams(&provider, service);
    let responses = timeout(PATIENCE, calls.join_all())
        .await
        .expect("no call hangs");
    assert_eq!(
        responses.iter().filter(|response| response.is_ok()).count(),
        20
    );
    provider.counts().max_open_streams
}

#[tokio::test]
async fn permits_released_at_the_headers_admit_all_streams() {
    let tower = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(2))
        .service(client());
    assert_eq!(open_at_once(tower).await, 20);

    let peer = tower_resilience_bulkhead::BulkheadLayer::builder()
        .max_concurrent_calls(2)
        .build()
        .unwrap();
    let peer = ServiceBuilder::new().layer(peer).service(client());
    assert_eq!(open_at_once(peer).await, 20);

    // A bulkhead with the same setting.
    let at_head = bulkhead(2)
        .release_at(tower_llm_bulkhead::ReleaseAt::ResponseHeaders)
        .build()
        .unwrap();
    let service = ServiceBuilder::new()
        .layer(DescribeLayer::new())
        .layer(at_head)
        .service(client());
    assert_eq!(open_at_once(service).await, 20);
}

#[tokio::test]
async fn permits_held_to_the_end_of_the_body_admit_two_streams() {
    let provider = SimulatedProvider::start().await.unwrap();
    let layer = bulkhead(2).build().unwrap();
    let service = ServiceBuilder::new()
        .layer(DescribeLayer::new())
        .layer(layer.clone())
        .service(client());
    let mut calls = twenty_streams(&provider, service);
    for gone in 0..20 {
        // One of the two streams ends by being dropped.
        let response = timeout(PATIENCE, calls.join_next()).await.unwrap();
        let response = response.unwrap().unwrap().unwrap();
        assert_eq!(response.status(), 200);
        let handle = layer.handle();
        eventually("all other calls wait", || {
            counts(&handle) == (2.min(20 - gone), 18_usize.saturating_sub(gone), 0)
        })
        .await;
        drop(response);
    }
    let idle = provider.wait_for(PATIENCE, |counts| counts.in_flight == 0);
    let seen = idle.await.unwrap();
    assert_eq!((seen.requests, seen.max_open_streams), (20, 2));
    assert_eq!(counts(&layer.handle()), (0, 0, 0));
}

/// The same for reserved permits.
#[tokio::test]
async fn reserved_permits_admit_two_streams() {
    let provider = SimulatedProvider::start().await.unwrap();
    let layer = bulkhead(2).build_reserve().unwrap();
    let service = ServiceBuilder::new()
        .layer(DescribeLayer::new())
        .layer(layer.clone())
        .service(client());
    let mut calls = twenty_streams(&provider, service);
    for _ in 0..20 {
        let response = timeout(PATIENCE, calls.join_next()).await.unwrap();
        drop(response.unwrap().unwrap().unwrap());
    }
    let idle = provider.wait_for(PATIENCE, |counts| counts.in_flight == 0);
    let seen = idle.await.unwrap();
    assert_eq!((seen.requests, seen.max_open_streams), (20, 2));
    assert_eq!(layer.in_flight(), 0);
}

// === a thousand streams ===

/// The stage at which a stream was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dropped {
    BeforeHeaders,
    BetweenEvents,
    InsideEvent,
    AfterLast,
    /// It failed before that.
    Failed,
}

/// Calls, and drops the stream at the stage that `number` selects, unless it fails before.
async fn drop_midway<S, B>(service: S, mut request: Request, number: usize) -> Dropped
where
    S: Service<Request, Response = http::Response<B>, Error = BoxError>,
    B: Body<Data = Bytes> + Unpin,
{
    const FAULTS: [&str; 8] = [
        "reset",
        "cut",
        "error",
        "429",
        "stall",
        "silence",
        "reset-head",
        "500",
    ];
    let mut set = |name, value: &str| {
        let value = value.parse().expect("a legal value");
        request.headers_mut().insert(name, value);
    };
    if number % 2 == 1 {
        set("x-sim-fault", FAULTS[number / 8 % FAULTS.len()]);
        set("x-sim-fault-after", &(number / 64 % 5).to_string());
    }
    let (point, frames) = (number / 2 % 4, number / 8 % 6);
    // Dropped before the request is sent, around the arrival of the response headers, or while it waits in the queue.
    let patience = match point {
        0 => number / 8 % 6,
        _ => 2_000,
    };
    let call = timeout(
        Duration::from_millis(patience as u64),
        service.oneshot(request),
    );
    let response = match call.await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => return Dropped::Failed,
        Err(_) => return Dropped::BeforeHeaders,
    };
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    for read in 0.. {
        let patience = match point {
            1 if read == frames => break,
            // The next frame has been polled once.
            2 if read == frames => Duration::ZERO,
            _ => 50 * MS,
        };
        match timeout(patience, body.frame()).await {
            Ok(Some(Ok(frame))) => bytes.extend(frame.into_data().unwrap_or_default()),
            Ok(None) => return Dropped::AfterLast,
            Ok(Some(Err(_))) => return Dropped::Failed,
            Err(_) => break,
        }
    }
    if bytes.is_empty() || bytes.ends_with(b"\n\n") {
        Dropped::BetweenEvents
    } else {
        Dropped::InsideEvent
    }
}

#[tokio::test]
async fn a_thousand_streams_dropped_anywhere_leave_nothing_behind() {
    let provider = SimulatedProvider::start().await.unwrap();
    let behavior = Behavior::new().head_delay(MS).first_token(MS).gap(3 * MS);
    let behaviors = [behavior.clone(), behavior.cut(Cut::Every(100))];
    provider.script(behaviors.into_iter().cycle().take(1_000));
    let tasks_before = Handle::current().metrics().num_alive_tasks();

    let layer = bulkhead(50).build().unwrap();
    let service = ServiceBuilder::new()
        .layer(DescribeLayer::new())
        .layer(layer.clone())
        .service(client());
    let mut calls = JoinSet::new();
    for number in 0..1_000 {
        let request = request(&provider, number / 3);
        calls.spawn(drop_midway(service.clone(), request, number));
    }
    let given_up = timeout(PATIENCE, calls.join_all()).await.unwrap();
    let how_often = [
        Dropped::BeforeHeaders,
        Dropped::BetweenEvents,
        Dropped::InsideEvent,
        Dropped::AfterLast,
        Dropped::Failed,
    ]
    .map(|point| {
        given_up
            .iter()
            .filter(|&&given_up| given_up == point)
            .count()
    });
    assert!(how_often.iter().all(|&often| often >= 20), "{how_often:?}");

    assert_eq!(counts(&layer.handle()), (0, 0, 0));
    let idle = provider.wait_for(PATIENCE, |counts| counts.in_flight == 0);
    let seen = idle.await.unwrap();
    assert_eq!((seen.in_flight, seen.open_streams), (0, 0));
    assert!(
        seen.max_open_streams > 10 && seen.closed_by_caller >= 20,
        "{seen:?}"
    );
    // The client keeps idle connections, each with a task here and one at the provider.
    drop(service);
    let alive = || Handle::current().metrics().num_alive_tasks();
    eventually("all tasks have ended", || alive() == tasks_before).await;
}
