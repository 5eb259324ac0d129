//! Attempts of one call, and what the lost ones cost.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tower::{Service, ServiceExt, service_fn};
use tower_layer::Layer;
use tower_llm_core::{BoxError, Outcome, drop_as};
use tower_llm_monitor::MonitorLayer;

use crate::support::{
    CONTENT, COST, DONE, ROLE, STOP, USAGE, answer, assert_counts, json, open, request, snapshot,
    stats,
};

/// A service that retries a 500 once.
#[tokio::test(start_paused = true)]
async fn a_retried_call_is_one_call_and_two_attempts() {
    let monitor = MonitorLayer::new();
    let sent = AtomicUsize::new(0);
    let provider = monitor.attempts().layer(service_fn(|_: Request<()>| {
        let is_first = sent.fetch_add(1, Relaxed) == 0;
        async move {
            let response = if is_first { json(500, "{}") } else { answer() };
            Ok::<Response<Full<bytes::Bytes>>, BoxError>(response)
        }
    }));
    let retried = service_fn(|_: Request<()>| {
        let provider = provider.clone();
        async move {
            let first = provider.clone().oneshot(request()).await?;
            let status = first.status();
            first.into_body().collect().await?;
            assert_eq!(status, 500);
            provider.oneshot(request()).await
        }
    });
    let mut service = monitor.layer(retried);
    let response = service
        .ready()
        .await
        .unwrap()
        .call(request())
        .await
        .unwrap();
    response.into_body().collect().await.unwrap();

    let stats = stats(&monitor);
    assert_counts(&stats.outcomes, &[("success", 1)]);
    assert_counts(&stats.attempts, &[("success", 1), ("failed_status", 1)]);
    assert_eq!(stats.extra_attempts(), 1);
    assert_eq!((stats.tokens.input, stats.attempt_tokens.input), (9, 9));
    assert_eq!(
        (stats.wasted_tokens(), stats.wasted_cost().as_nanos()),
        (0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_lost_branch_wastes_what_was_seen_of_it() {
    let monitor = MonitorLayer::new();
    let attempts = MonitorLayer::clone(&monitor);
    // A stream is opened through the attempt layer, and another one is given up for it.
    let branch = || async {
        let (sender, body) = tower_llm_testkit::mock::Upstream::new();
        let body = std::sync::Mutex::new(Some(body));
        let service = attempts.attempts().layer(service_fn(|_: Request<()>| {
            let body = body.lock().unwrap().take().unwrap();
            async { Ok::<_, BoxError>(tower_llm_testkit::mock::stream(body)) }
        }));
        let mut service = service;
        let response = service
            .ready()
            .await
            .unwrap()
            .call(crate::support::streamed())
            .await;
        (sender, response.unwrap().into_body())
    };
    let (winning, winner) = branch().await;
    let (losing, mut loser) = branch().await;
    for frame in [ROLE, CONTENT] {
        losing.send(frame);
        loser.frame().await.unwrap().unwrap();
    }
    drop_as(Outcome::Superseded, || drop(loser));
    for frame in [ROLE, CONTENT, STOP, USAGE, DONE] {
        winning.send(frame);
    }
    drop(winning);
    winner.collect().await.unwrap();
    // The call itself, as its caller sees it.
    let (sender, body) = open(&monitor).await;
    for frame in [ROLE, CONTENT, STOP, USAGE, DONE] {
        sender.send(frame);
    }
    drop(sender);
    body.collect().await.unwrap();

    let stats = stats(&monitor);
    assert_counts(&stats.attempts, &[("success", 1), ("superseded", 1)]);
    assert_eq!((stats.calls, stats.extra_attempts()), (1, 1));
    // The estimate of the input, and two tokens that were seen.
    assert_eq!(
        (stats.wasted_tokens(), stats.attempt_tokens.output),
        (5 + 2, 3 + 2)
    );
    assert_eq!(stats.wasted_cost().as_nanos(), 5 * 250 + 2 * 2_000);
    assert_eq!(stats.cost.as_nanos(), COST);
    assert_eq!(snapshot(&monitor).total.in_flight, 0);
}
