//! Refunds and charges in the store when calls end: every kind of end settles exactly once.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers below are part of the tests"
)]

use std::{
    convert::Infallible,
    future::{pending, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use crate::shared::support::{
    Dice, FRAMES, Mode, Prompt, Setup, USED, admits, answer, eventually, exactly_left, request,
    requests_left, unary,
};
use futures_util::FutureExt;
use http_body_util::BodyExt;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tower::{Layer, ServiceExt, service_fn};
use tower_llm_core::HttpBody;
use tower_llm_ratelimit::{CutShort, Limit, RateLimitBuilder, RateLimitLayer};
use tower_llm_redis::Redis;

scenarios!(
    a_call_dropped_while_the_script_runs_is_charged_nothing,
    a_call_settled_after_its_hold_ran_out_is_charged_what_it_used,
    a_leaked_amount_is_not_given_back_from_later_calls,
    calls_that_end_during_a_freeze_are_settled_afterwards,
    calls_that_end_while_the_store_is_down_are_charged_afterwards,
    every_call_is_settled_once_wherever_it_is_dropped,
    every_body_is_settled_once_wherever_it_is_dropped,
);

fn tokens(tokens: u64) -> RateLimitBuilder {
    RateLimitLayer::for_callers().limit(Limit::tokens(tokens).per_hour())
}

async fn a_call_dropped_while_the_script_runs_is_charged_nothing(setup: &mut Setup) {
    let limits = || tokens(1_000).limit(Limit::requests(50).per_hour());
    let (redis, others) = (setup.redis().await, setup.redis().await);
    let layer = unary(limits(), setup.shared(&redis, 2));
    let called = AtomicU64::new(0);
    let service = layer.layer(service_fn(|_: Prompt| {
        called.fetch_add(1, Ordering::Relaxed);
        pending::<Result<(), Infallible>>()
    }));
    for round in 0..100 {
        let mut call = pin!(service.clone().oneshot(Prompt::of(10)));
        // The first poll sends the script, and rarely has its response.
        for _ in 0..=round % 2 {
            if !poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx).is_pending())).await {
                break;
            }
        }
    }
    // Calls admitted meanwhile were sent; in this mode the very first poll may admit one.
    let called = called.load(Ordering::Relaxed);
    assert!(called < 50 || setup.mode == Mode::Leases, "{called}");
    let other = unary(limits(), setup.shared(&others, 2));
    exactly_left(&other, "somebody", 1_000 - 10 * called).await;
    // `exactly_left` made one request.
    let requests = RateLimitLayer::for_callers().limit(Limit::requests(50).per_hour());
    let requests = unary(requests, setup.shared(&others, 2));
    assert_eq!(requests_left(&requests).await, 50 - called - 1);
}

async fn a_call_settled_after_its_hold_ran_out_is_charged_what_it_used(setup: &mut Setup) {
    let hold_for = Duration::from_secs(1);
    let (redis, others) = (setup.redis().await, setup.redis().await);
    let layer = tokens(1_000)
        .shared(setup.shared(&redis, 2).hold_for(hold_for))
        .build()
        .unwrap();
    let other = unary(tokens(1_000), setup.shared(&others, 2).hold_for(hold_for));
    let response = layer
        .layer(service_fn(answer))
        .oneshot(request("looked at", 800));
    let looked_at = response.await.unwrap();
    let response = layer
        .layer(service_fn(answer))
        .oneshot(request("left alone", 800));
    let left_alone = response.await.unwrap();
    sleep(hold_for + Duration::from_millis(400)).await;
    // The store notices the expired hold when another call claims, and the other hold when that call is settled.
    assert!(admits(&other, Prompt::by("looked at", 100)).await);
    for response in [looked_at, left_alone] {
        response.into_body().collect().await.unwrap();
    }
    sleep(SETTLED).await;
    exactly_left(&other, "looked at", 900 - USED).await;
    exactly_left(&other, "left alone", 1_000 - USED).await;
}

async fn a_leaked_amount_is_not_given_back_from_later_calls(setup: &mut Setup) {
    if setup.mode == Mode::Leases {
        return;
    }
    let period = Duration::from_secs(3);
    let limits = || RateLimitLayer::for_callers().limit(Limit::tokens(800).per(period).bucket(800));
    let (redis, others) = (setup.redis().await, setup.redis().await);
    let layer = limits().shared(setup.shared(&redis, 2)).build().unwrap();
    let other = unary(limits(), setup.shared(&others, 2));
    let held = layer
        .layer(service_fn(answer))
        .oneshot(request("caller", 800));
    let held = held.await.unwrap();
    sleep(period + Duration::from_millis(200)).await;
    assert!(admits(&other, Prompt::by("caller", 800)).await);
    // All of its reservation has leaked: the unused part is not refunded.
    held.into_body().collect().await.unwrap();
    sleep(SETTLED).await;
    assert!(!admits(&other, Prompt::by("caller", 700)).await);
}

/// Extra charges may be late; refunds are awaited.
const SETTLED: Duration = Duration::from_millis(500);

/// Twenty calls that end while the store is unavailable.
///
/// Their layer must outlive them: settlements that remain when it is dropped do not wait for the store.
async fn held(
    setup: &Setup,
    redis: &Redis,
) -> (RateLimitLayer, Vec<impl Future<Output = ()> + use<>>) {
    let shared = setup.shared(redis, 2);
    let layer = tokens(10_000).shared(shared).build().unwrap();
    let mut calls = Vec::new();
    for _ in 0..20 {
        let service = layer.layer(service_fn(answer));
        let response = service.oneshot(request("somebody", 80)).await.unwrap();
        calls.push(async {
            response.into_body().collect().await.unwrap();
        });
    }
    (layer, calls)
}

async fn calls_that_end_during_a_freeze_are_settled_afterwards(setup: &mut Setup) {
    let (redis, others) = (setup.hasty_redis().await, setup.redis().await);
    let (_layer, calls) = held(setup, &redis).await;
    setup.freeze();
    for call in calls {
        call.await;
    }
    sleep(Duration::from_millis(400)).await;
    setup.thaw().await;
    let other = unary(tokens(10_000), setup.shared(&others, 2));
    exactly_left(&other, "somebody", 10_000 - 20 * USED).await;
}

async fn calls_that_end_while_the_store_is_down_are_charged_afterwards(setup: &mut Setup) {
    if setup.mode == Mode::Leases {
        // The store has lost its grants, and with them what was spent of them.
        return;
    }
    let (redis, others) = (setup.hasty_redis().await, setup.redis().await);
    let (_layer, calls) = held(setup, &redis).await;
    setup.kill();
    eventually("the outage is noticed", async || !redis.is_up()).await;
    for call in calls {
        call.await;
    }
    setup.restart().await;
    eventually("the store is back", async || redis.is_up()).await;
    sleep(SETTLED).await;
    // The store has lost the reservations and receives only the usage. The call whose settlement was in flight when the
    // store died has an unknown state.
    let other = unary(tokens(10_000), setup.shared(&others, 2));
    assert!(admits(&other, Prompt::of(10_000 - 20 * USED)).await);
    assert!(!admits(&other, Prompt::of(USED + 1)).await);
}

async fn every_call_is_settled_once_wherever_it_is_dropped(setup: &mut Setup) {
    // More than all calls ask for, so that even a fast machine leaves something to check.
    const LIMIT: u64 = 10_000;
    const CALLS: u64 = 900;
    let limits = || tokens(LIMIT).limit(Limit::requests(CALLS).per_hour());
    let clients = [setup.redis().await, setup.redis().await];
    let layers = clients
        .each_ref()
        .map(|redis| unary(limits(), setup.shared(redis, 2)));
    let sent = Arc::new(Sent::default());
    let mut tasks = JoinSet::new();
    for task in 0..20 {
        let (layer, sent) = (layers[task % 2].clone(), Arc::clone(&sent));
        tasks.spawn(async move {
            let mut dice = Dice::new(task);
            for _ in 0..50 {
                let tokens = dice.below(10);
                let (answers_in, stays) = (dice.below(10), dice.below(30));
                let sent = &sent;
                let service = layer.layer(service_fn(move |prompt: Prompt| {
                    sent.add(prompt.0.input_tokens());
                    async move {
                        sleep(Duration::from_millis(answers_in)).await;
                        Ok::<_, Infallible>(())
                    }
                }));
                let call = service.oneshot(Prompt::of(tokens));
                leave_after(stays, call).await;
            }
        });
    }
    tasks.join_all().await;
    let (requests, tokens) = sent.sums();
    println!("{requests} calls sent, with {tokens} tokens");
    assert!(requests > 100 && requests <= CALLS && tokens < LIMIT);
    sleep(SETTLED).await;
    let redis = setup.redis().await;
    let other = unary(self::tokens(LIMIT), setup.shared(&redis, 2));
    exactly_left(&other, "somebody", LIMIT - tokens).await;
    let other = RateLimitLayer::for_callers().limit(Limit::requests(CALLS).per_hour());
    let other = unary(other, setup.shared(&redis, 2));
    assert_eq!(requests_left(&other).await, CALLS - requests);
}

async fn every_body_is_settled_once_wherever_it_is_dropped(setup: &mut Setup) {
    const LIMIT: u64 = 200_000;
    let clients = [setup.redis().await, setup.redis().await];
    let layers = clients.each_ref().map(|redis| {
        // So that calls dropped early have a known cost.
        let builder = tokens(LIMIT).cut_short(CutShort::KeepReserved);
        builder.shared(setup.shared(redis, 2)).build().unwrap()
    });
    let sent = Arc::new(Sent::default());
    let mut tasks = JoinSet::new();
    for task in 0..20 {
        let (layer, sent) = (layers[task % 2].clone(), Arc::clone(&sent));
        tasks.spawn(async move { read_bodies(&layer, &sent, Dice::new(task)).await });
    }
    tasks.join_all().await;
    let (requests, tokens) = sent.sums();
    println!("{requests} calls sent, with {tokens} tokens");
    assert!(requests > 100 && tokens < LIMIT);
    sleep(SETTLED).await;
    let other = unary(self::tokens(LIMIT), setup.shared(&setup.redis().await, 2));
    exactly_left(&other, "somebody", LIMIT - tokens).await;
}

async fn read_bodies(layer: &RateLimitLayer<HttpBody>, sent: &Sent, mut dice: Dice) {
    for _ in 0..50 {
        let reserved = 60 + dice.below(100);
        let was_sent = AtomicU64::new(0);
        let service = layer.layer(service_fn(|request| {
            was_sent.store(1, Ordering::Relaxed);
            answer(request)
        }));
        let call = service.oneshot(request("somebody", reserved));
        let used = match leave_after(dice.below(30), call).await {
            None => reserved,
            // Refused: the others hold too much at this moment.
            Some(Err(_)) => 0,
            Some(Ok(response)) => {
                let mut body = pin!(response.into_body());
                // All frames, or at least two fewer: a call that lacks only the last frame may have seen the end.
                let frames = [0, 1, 3, FRAMES + 1][usize::try_from(dice.below(4)).unwrap()];
                for _ in 0..frames {
                    let _ = body.frame().await;
                }
                if frames > FRAMES { USED } else { reserved }
            }
        };
        if was_sent.into_inner() == 1 {
            sent.add(used);
        }
    }
}

/// Polls `future` for a few polls or milliseconds, or to its end in ten of thirty cases, and drops it.
async fn leave_after<F: Future>(stays: u64, future: F) -> Option<F::Output> {
    let mut future = Box::pin(future);
    match stays {
        0 => None,
        1 => future.as_mut().now_or_never(),
        2 => {
            tokio::select! {
                biased;
                output = &mut future => Some(output),
                () = tokio::task::yield_now() => None,
            }
        }
        20.. => Some(future.await),
        millis => timeout(Duration::from_millis(millis - 3), future)
            .await
            .ok(),
    }
}

/// The cost of the sent calls.
#[derive(Debug, Default)]
struct Sent {
    requests: AtomicU64,
    tokens: AtomicU64,
}

impl Sent {
    fn add(&self, tokens: u64) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.tokens.fetch_add(tokens, Ordering::Relaxed);
    }

    fn sums(&self) -> (u64, u64) {
        let sum = |sum: &AtomicU64| sum.load(Ordering::Relaxed);
        (sum(&self.requests), sum(&self.tokens))
    }
}
