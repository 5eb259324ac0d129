//! Many threads at once: every count is exact at the end.

use std::{convert::Infallible, future::poll_fn, pin::Pin, task::Poll};

use http::Request;
use http_body_util::BodyExt;
use tokio::{runtime::Builder, task::yield_now};
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_llm_core::{Refusal, RefusalKind};
use tower_llm_monitor::MonitorLayer;

use crate::support::{Answer, COST, answer, assert_counts, json, request, request_to};

const TASKS: u64 = 8;
const CALLS: u64 = 2_000;

/// Calls of all kinds, while other threads read.
#[test]
fn what_threads_count_at_once_balances_at_the_end() {
    let runtime = Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .unwrap();
    let monitor = MonitorLayer::builder().records(100).build().unwrap();
    runtime.block_on(async {
        let reader = tokio::spawn(read(monitor.clone()));
        let tasks = (0..TASKS).map(|_| tokio::spawn(calls(monitor.clone())));
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
        reader.await.unwrap();
    });

    let snapshot = monitor.handle().snapshot();
    let all = TASKS * CALLS;
    for stats in [&snapshot.total.since_start, &snapshot.total.recent] {
        let each = all / 4;
        assert_counts(
            &stats.outcomes,
            &[
                ("success", each),
                ("failed_status", each),
                ("refused", each),
                ("abandoned", each),
            ],
        );
        assert_counts(&stats.refused_by, &[("breaker", each)]);
        assert_eq!((stats.calls, stats.latency.count), (all, all - each));
        // Abandoned calls are charged the estimate of their input.
        assert_eq!(
            (stats.tokens.input, stats.estimated_calls),
            (each * (9 + 5), each)
        );
        assert_eq!(stats.cost.as_nanos(), each / 2 * (COST + 5 * 250));
        assert_eq!(stats.unpriced_calls, each);
    }
    assert_eq!(snapshot.total.in_flight, 0);
    assert_eq!(snapshot.rows.len(), 2);
    let records = snapshot.records.unwrap();
    assert_eq!((records.queued, records.dropped), (100, all - 100));
}

/// Answers as the request asks for.
async fn respond(request: Request<()>) -> Answer {
    match request.headers()["kind"].as_bytes()[0] {
        b'0' => Ok(answer()),
        b'1' => Ok(json(500, "{}")),
        b'2' => Err(Refusal::new(RefusalKind::Unavailable, "breaker").into()),
        _ => {
            yield_now().await;
            Ok(answer())
        }
    }
}

/// Half of the successes are of a model without a price.
async fn calls(monitor: MonitorLayer) {
    let service = monitor.layer(service_fn(respond));
    for number in 0..CALLS {
        let mut request = if number % 8 < 4 {
            request()
        } else {
            request_to("unheard")
        };
        let kind = (number % 4).to_string().parse().unwrap();
        request.headers_mut().insert("kind", kind);
        let call = service.clone().oneshot(request);
        if number % 4 == 3 {
            let mut call = Box::pin(call);
            // Its caller leaves as soon as it has begun.
            assert!(poll_once(&mut call).await.is_pending());
            continue;
        }
        if let Ok(response) = call.await {
            response.into_body().collect().await.unwrap();
        }
    }
}

/// Polls a future once.
async fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx))).await
}

/// Reads until all calls are counted; their number never falls, and no more are in flight than there can be.
async fn read(monitor: MonitorLayer) {
    let handle = monitor.handle();
    let mut seen = 0;
    while seen < TASKS * CALLS {
        let total = handle.snapshot().total;
        let calls = total.since_start.calls;
        assert!(calls >= seen, "{calls} after {seen}");
        assert!(total.in_flight <= TASKS, "{} in flight", total.in_flight);
        seen = calls;
        yield_now().await;
    }
}

#[test]
fn a_call_may_begin_on_one_thread_and_end_on_another() {
    let runtime = Builder::new_current_thread().build().unwrap();
    let monitor = MonitorLayer::new();
    let service = service_fn(async |_: Request<()>| Ok::<_, Infallible>(answer()));
    let service = monitor.layer(service);
    for _ in 0..100 {
        let response = runtime
            .block_on(service.clone().oneshot(request()))
            .unwrap();
        let read = std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().build().unwrap();
            runtime.block_on(response.into_body().collect()).unwrap();
        });
        read.join().unwrap();
    }
    let total = monitor.handle().snapshot().total;
    assert_eq!((total.in_flight, total.since_start.calls), (0, 100));
    assert_eq!(total.since_start.tokens.output, 300);
}
