//! What every layer here promises: it calls what it has readied, and passes readiness, responses and errors on.

use std::{convert::Infallible, future::pending};

use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio_test::{assert_pending, assert_ready_ok, task};
use tower::{Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};
use tower_layer::Layer;
use tower_llm_core::{Bill, Completion, Outcome, Unary, Usage};
use tower_llm_monitor::MonitorLayer;
use tower_llm_testkit::mock::{arrived, poll_ready};
use tower_test::mock;

use crate::support::{assert_counts, request, snapshot, stats};

#[tokio::test(start_paused = true)]
async fn a_call_uses_the_service_that_was_readied() {
    let monitor = MonitorLayer::builder().watch(Unary).build().unwrap();
    let (inner, mut upstream) = mock::pair::<Request<()>, u32>();
    let mut service = monitor.layer(inner);
    upstream.allow(0);
    assert_pending!(poll_ready(&mut service));
    upstream.allow(1);
    assert_ready_ok!(poll_ready(&mut service));
    upstream.allow(0);
    let mut call = task::spawn(service.call(request()));
    arrived(&mut upstream).1.send_response(7);
    assert_eq!(assert_ready_ok!(call.poll()), 7);
    assert_eq!(monitor.handle().snapshot().total.since_start.calls, 1);
}

#[tokio::test(start_paused = true)]
async fn a_typed_call_has_an_outcome_and_a_time_and_no_known_cost() {
    let monitor = MonitorLayer::builder().watch(Unary).build().unwrap();
    let service = service_fn(async |_: Request<()>| Ok::<_, Infallible>("answer"));
    assert_eq!(
        monitor.layer(service).oneshot(request()).await.unwrap(),
        "answer"
    );
    let stats = monitor.handle().snapshot().total.since_start;
    assert_counts(&stats.outcomes, &[("success", 1)]);
    assert_eq!((stats.latency.count, stats.tokens.input), (1, 0));
    assert_eq!((stats.unpriced_calls, stats.calls_without_usage), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn it_holds_nothing_of_a_service_with_one_permit() {
    let monitor = MonitorLayer::new();
    let mut service = ServiceBuilder::new()
        .layer(monitor.clone())
        .layer(ConcurrencyLimitLayer::new(1))
        .service(service_fn(async |_: Request<()>| {
            Ok::<_, Infallible>(Response::new(Full::new("{}".into())))
        }));
    for _ in 0..3 {
        let response = service
            .ready()
            .await
            .unwrap()
            .call(request())
            .await
            .unwrap();
        response.into_body().collect().await.unwrap();
    }
    assert_eq!(stats(&monitor).calls, 3);
}

#[tokio::test(start_paused = true)]
async fn an_error_in_readiness_passes_and_is_no_call() {
    let monitor = MonitorLayer::builder().watch(Unary).build().unwrap();
    let (inner, mut upstream) = mock::pair::<Request<()>, u32>();
    let mut service = monitor.layer(inner);
    upstream.send_error("down");
    assert_eq!(service.ready().await.err().unwrap().to_string(), "down");
    assert_eq!(monitor.handle().snapshot().total.since_start.calls, 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_before_its_response_is_abandoned() {
    let monitor = MonitorLayer::new();
    let service = monitor.layer(service_fn(|_: Request<()>| {
        pending::<Result<Response<Full<bytes::Bytes>>, Infallible>>()
    }));
    let mut call = task::spawn(service.oneshot(request()));
    assert_pending!(call.poll());
    assert_eq!(snapshot(&monitor).total.in_flight, 1);
    drop(call);
    assert_counts(&stats(&monitor).outcomes, &[("abandoned", 1)]);
    assert_eq!(snapshot(&monitor).total.in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn the_clones_and_layers_of_one_monitor_count_together() {
    let monitor = MonitorLayer::builder().watch(Unary).build().unwrap();
    let service = service_fn(async |_: Request<()>| Ok::<_, Infallible>(()));
    let (one, other) = (monitor.layer(service), monitor.clone().layer(service));
    for service in [one.clone(), one, other] {
        service.oneshot(request()).await.unwrap();
    }
    assert_eq!(monitor.handle().snapshot().total.since_start.calls, 3);
}

/// A caller that leaves while a cache reads its answer to the end.
#[tokio::test(start_paused = true)]
async fn a_call_that_goes_on_without_its_caller_is_counted_at_once_and_its_tokens_at_its_end() {
    let monitor = MonitorLayer::builder().records(10).build().unwrap();
    let bill = Bill::new();
    let unfinished = bill.outlive();
    let reported = bill.clone();
    let service = monitor.layer(service_fn(move |_: Request<()>| {
        let reported = ReportsWhenDropped(reported.clone());
        async move {
            pending::<()>().await;
            drop(reported);
            Ok::<_, Infallible>(Response::new(Full::new(bytes::Bytes::new())))
        }
    }));
    let mut call = task::spawn(service.oneshot(request()));
    assert_pending!(call.poll());
    drop(call);
    let left = stats(&monitor);
    assert_counts(&left.outcomes, &[("abandoned", 1)]);
    assert_eq!(left.tokens.input, 0);
    assert_eq!(snapshot(&monitor).records.unwrap().queued, 0);

    let mut whole = Completion::new(Outcome::Success);
    whole.usage = Some(Usage::new(9, 3));
    bill.charge(&whole);
    drop(unfinished);
    let ended = stats(&monitor);
    assert_counts(&ended.outcomes, &[("abandoned", 1)]);
    assert_eq!(
        (ended.calls, ended.tokens.input, ended.tokens.output),
        (1, 9, 3)
    );
    assert_eq!(snapshot(&monitor).records.unwrap().queued, 1);
    assert_eq!(snapshot(&monitor).total.in_flight, 0);
}

struct ReportsWhenDropped(Bill);

impl Drop for ReportsWhenDropped {
    fn drop(&mut self) {
        self.0.report();
    }
}
