//! Calls that wait for a limit that other processes use too.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers below are part of the tests"
)]

use std::{
    convert::Infallible,
    future::{Pending, pending},
    task::{Context, Poll},
    time::Duration,
};

use crate::shared::support::{
    Mode, PATIENCE, Prompt, RECOVERY, Setup, admits, call, eventually, stuck, timed, unary,
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tower::{Layer, Service, ServiceExt};
use tower_llm_core::{Key, Unary};
use tower_llm_ratelimit::{Limit, RateLimitBuilder, RateLimitLayer, RateLimited, StoreFallback};
use tower_llm_testkit::Stopwatch;

scenarios!(
    calls_of_one_process_are_admitted_in_order,
    a_call_waits_for_the_stores_time_and_not_much_longer,
    a_call_that_cannot_be_admitted_in_time_is_refused_without_waiting,
    a_dropped_waiting_call_frees_its_slot,
    a_refund_by_another_process_admits_a_waiting_call,
    with_fail_closed_a_call_waits_until_the_store_recovers,
);

fn waiting(limit: Limit) -> RateLimitBuilder {
    RateLimitLayer::for_providers()
        .max_waiting(100)
        .max_wait(PATIENCE)
        .limit(limit)
}

async fn layer(setup: &Setup, builder: RateLimitBuilder) -> RateLimitLayer<Unary> {
    let redis = setup.redis().await;
    unary(builder, setup.shared(&redis, 2))
}

fn a_model() -> Key {
    Key::pair("openai", "a-model")
}

async fn until_waiting(layer: &RateLimitLayer<Unary>, calls: usize) {
    let handle = layer.handle();
    eventually("the calls wait", async || {
        let stats = handle.stats_of(&a_model());
        stats.first().is_some_and(|limit| limit.waiting == calls)
    })
    .await;
}

async fn calls_of_one_process_are_admitted_in_order(setup: &mut Setup) {
    // One after the other; small calls do not overtake large ones.
    let limit = || Limit::tokens(40).per(Duration::from_secs(1)).bucket(100);
    let (one, other) = (
        layer(setup, waiting(limit())).await,
        layer(setup, waiting(limit()).max_waiting(0)).await,
    );
    while admits(&other, Prompt::of(5)).await {}
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let first = tokio::spawn({
        let one = one.clone();
        async move { call(&one, Prompt::of(80)).await.unwrap() }
    });
    // For two seconds, in which the others arrive.
    until_waiting(&one, 1).await;
    for number in 0..10_usize {
        let (waiter, sender) = (one.clone(), sender.clone());
        let tokens = if number % 3 == 0 { 30 } else { 3 };
        tokio::spawn(async move {
            call(&waiter, Prompt::of(tokens)).await.unwrap();
            sender.send(number).unwrap();
        });
        until_waiting(&one, number + 2).await;
    }
    drop(sender);
    first.await.unwrap();
    let mut order = Vec::new();
    while let Some(number) = timeout(PATIENCE, receiver.recv()).await.unwrap() {
        order.push(number);
    }
    assert_eq!(order, (0..10).collect::<Vec<_>>());
}

async fn a_call_waits_for_the_stores_time_and_not_much_longer(setup: &mut Setup) {
    let limit = || Limit::requests(20).per(Duration::from_secs(2));
    let (one, other) = (
        layer(setup, waiting(limit())).await,
        layer(setup, waiting(limit()).max_waiting(0)).await,
    );
    let (from, watch) = (Instant::now(), Stopwatch::start());
    while admits(&other, Prompt::of(0)).await {}
    let all_taken_after = from.elapsed();
    let admitted = timeout(PATIENCE, call(&one, Prompt::of(0))).await;
    admitted.unwrap().unwrap();
    let took = from.elapsed();
    println!("{}: waited {took:?} for a window of 2 s", setup.mode);
    // A window refills after 12 slices at the earliest, and 13 at the latest.
    assert!(
        took >= Duration::from_secs(2) || setup.mode == Mode::Leases,
        "{took:?}"
    );
    let latest = Duration::from_millis(2_200) + all_taken_after + RECOVERY;
    let took = watch.elapsed();
    assert!(took < latest, "{took:?}");
}

async fn a_call_that_cannot_be_admitted_in_time_is_refused_without_waiting(setup: &mut Setup) {
    let limit = || Limit::tokens(100).per_hour();
    let in_time = waiting(limit()).max_wait(Duration::from_secs(10));
    let (one, other) = (
        layer(setup, in_time).await,
        layer(setup, waiting(limit())).await,
    );
    call(&other, Prompt::of(100)).await.unwrap();
    let (refused, took) = timed(call(&one, Prompt::of(50))).await;
    let error = refused.unwrap_err();
    let wait = error
        .downcast_ref::<RateLimited>()
        .unwrap()
        .retry_after()
        .unwrap();
    // Its slices are five minutes long.
    let hour = Duration::from_secs(3_600);
    assert!(
        wait >= hour && wait <= hour + Duration::from_secs(600),
        "{wait:?}"
    );
    assert!(took < crate::shared::support::MARGIN, "{took:?}");
}

async fn a_dropped_waiting_call_frees_its_slot(setup: &mut Setup) {
    let limit = || Limit::tokens(100).per(Duration::from_secs(1));
    let builder = waiting(limit()).max_waiting(3);
    let one = layer(setup, builder).await;
    let held = tokio::spawn({
        let one = one.clone();
        async move { stuck(&one, Prompt::of(100)).await }
    });
    let wait = || {
        let one = one.clone();
        tokio::spawn(async move { call(&one, Prompt::of(100)).await })
    };
    sleep(Duration::from_millis(50)).await;
    let waiters = [wait(), wait(), wait()];
    until_waiting(&one, 3).await;
    let refused = call(&one, Prompt::of(100)).await.unwrap_err();
    assert!(refused.is::<RateLimited>(), "{refused}");
    for waiter in &waiters {
        waiter.abort();
    }
    // The queue is gone, and what is held counts for no longer than a window.
    let handle = one.handle();
    eventually("no call waits", async || {
        let stats = handle.stats_of(&a_model());
        stats.first().is_none_or(|limit| limit.waiting == 0)
    })
    .await;
    held.abort();
    timeout(PATIENCE, call(&one, Prompt::of(100)))
        .await
        .unwrap()
        .unwrap();
}

async fn a_refund_by_another_process_admits_a_waiting_call(setup: &mut Setup) {
    // An hour and more, if nothing were refunded.
    let limit = || Limit::tokens(100).per_hour();
    let day = Duration::from_secs(86_400);
    let (one, other) = (
        layer(setup, waiting(limit()).max_wait(day)).await,
        layer(setup, waiting(limit()).max_wait(day)).await,
    );
    // Held by a call that is not sent yet: dropping it refunds everything.
    let unsent = other.layer(ReadyOnce { ready: true });
    let held = tokio::spawn(unsent.oneshot(Prompt::of(80)));
    let handle = other.handle();
    eventually("the first call is admitted", async || {
        handle.stats()[0].admitted == 1
    })
    .await;
    let waiter = tokio::spawn({
        let one = one.clone();
        async move { call(&one, Prompt::of(60)).await }
    });
    until_waiting(&one, 1).await;
    held.abort();
    let (admitted, took) = timed(timeout(PATIENCE, waiter)).await;
    admitted.unwrap().unwrap().unwrap();
    println!("{}: admitted {took:?} after the refund", setup.mode);
    // A quarter of a second, plus the length of a lease that was partly spent.
    let most = match setup.mode {
        Mode::Script => Duration::from_millis(300),
        Mode::Leases => crate::shared::support::LEASE + Duration::from_millis(300),
    };
    assert!(took < most + RECOVERY, "{took:?}");
}

async fn with_fail_closed_a_call_waits_until_the_store_recovers(setup: &mut Setup) {
    let redis = setup.hasty_redis().await;
    let shared = setup
        .shared(&redis, 2)
        .store_fallback(StoreFallback::FailClosed);
    let one = unary(waiting(Limit::tokens(1_000).per_hour()), shared);
    setup.freeze();
    let waiter = tokio::spawn({
        let one = one.clone();
        async move { call(&one, Prompt::of(60)).await }
    });
    until_waiting(&one, 1).await;
    sleep(Duration::from_millis(300)).await;
    assert!(!waiter.is_finished());
    setup.thaw().await;
    let (admitted, took) = timed(timeout(PATIENCE, waiter)).await;
    admitted.unwrap().unwrap().unwrap();
    assert!(took < crate::shared::support::RECOVERY, "{took:?}");
}

/// A service whose clones are never ready: a call that the layer admits late is not sent.
#[derive(Debug)]
struct ReadyOnce {
    ready: bool,
}

impl Clone for ReadyOnce {
    fn clone(&self) -> Self {
        Self { ready: false }
    }
}

impl Service<Prompt> for ReadyOnce {
    type Response = ();
    type Error = Infallible;
    type Future = Pending<Result<(), Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if self.ready {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }

    fn call(&mut self, _: Prompt) -> Self::Future {
        pending()
    }
}
