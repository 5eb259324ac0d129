//! A million decisions and thousands of calls on several threads, dropped at any stage.
//!
//! On real time. Each decision lies between two readings of the clock; what was certainly admitted within an interval
//! must not exceed its limit.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use crate::support::{Ask, Numbers, Open, consumed, open, passes, ready, unary, waiting};
use futures_util::FutureExt;
use tokio::{
    task::{JoinSet, yield_now},
    time::{Instant, timeout},
};
use tower::{Service, ServiceExt};
use tower_layer::Layer;
use tower_llm_core::{Key, KeyBy, Unary};
use tower_llm_ratelimit::{CutShort, Limit, RateLimit, RateLimitLayer};

const TASKS: u64 = 10;
/// Two times that number: for a window and for a bucket.
const HALF_A_MILLION: u64 = 500_000;
/// Long enough for windows to slide.
const AT_LEAST: Duration = Duration::from_millis(2_600);

/// An admitted amount, which was admitted between the two times.
#[derive(Clone, Copy)]
struct Admitted {
    after: Duration,
    before: Duration,
    amount: u64,
}

/// Ten tasks decide `times` times, and for a minimum time; returns what they admitted and how often they decided.
async fn decide(times: u64, layer: &RateLimitLayer<Unary>) -> (Vec<Admitted>, u64) {
    let (began, decisions) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let (mut service, decisions) = (layer.layer(ready()), Arc::clone(&decisions));
        tasks.spawn(async move {
            let mut numbers = Numbers(task);
            let asks: Vec<_> = (1..=20).map(Ask::tokens).collect();
            let mut admitted = Vec::new();
            while decisions.load(Relaxed) < times || began.elapsed() < AT_LEAST {
                for _ in 0..100 {
                    let amount = 1 + numbers.below(20);
                    let ask = asks[amount as usize - 1].clone();
                    let after = began.elapsed();
                    if service
                        .call(ask)
                        .now_or_never()
                        .expect("no call waits")
                        .is_ok()
                    {
                        let before = began.elapsed();
                        admitted.push(Admitted {
                            after,
                            before,
                            amount,
                        });
                    }
                }
                decisions.fetch_add(100, Relaxed);
                yield_now().await;
            }
            admitted
        });
    }
    let all = timeout(Duration::from_secs(60), tasks.join_all());
    let mut admitted = all.await.expect("no call hangs").concat();
    admitted.sort_by_key(|one| one.before);
    (admitted, decisions.load(Relaxed))
}

/// Checks that no interval admitted more than `most` allows for its length.
fn check_every_stretch(admitted: &[Admitted], most: impl Fn(Duration) -> f64) {
    for first in admitted {
        let mut sum = 0;
        for one in admitted.iter().filter(|one| one.after >= first.after) {
            sum += one.amount;
            let length = one.before - first.after;
            assert!(sum as f64 <= most(length), "{sum} in {length:?}");
        }
    }
}

/// The totals agree, and refusals have left no trace.
fn check_totals(layer: &RateLimitLayer<Unary>, admitted: &[Admitted], decisions: u64) {
    let sum = admitted.iter().map(|one| one.amount).sum::<u64>();
    let (stats, count) = (layer.handle().stats(), admitted.len() as u64);
    for stats in &stats {
        assert_eq!((stats.admitted, stats.waiting), (count, 0));
        assert_eq!((stats.overrun, stats.refunded, stats.violations), (0, 0, 0));
    }
    let refused: u64 = stats.iter().map(|one| one.refused).sum();
    assert_eq!(refused, decisions - count);
    let of_unit = stats.iter().map(|one| match one.limit.unit() {
        tower_llm_ratelimit::Unit::Requests => count,
        _ => sum,
    });
    assert_eq!(consumed(&layer.handle()), Vec::from_iter(of_unit));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_million_decisions_never_exceed_a_windows_limit() {
    const LIMIT: u64 = 1_300;
    let period = Duration::from_secs(1);
    let layer = unary()
        .limit(Limit::tokens(LIMIT).per_second())
        .build()
        .unwrap();
    let (admitted, decisions) = decide(HALF_A_MILLION, &layer).await;
    check_every_stretch(&admitted, |length| match length <= period {
        true => LIMIT as f64,
        false => f64::INFINITY,
    });
    check_totals(&layer, &admitted, decisions);
    // The limit was used up again each time that it refilled.
    let sum: u64 = admitted.iter().map(|one| one.amount).sum();
    assert!(sum >= 3 * (LIMIT - 20), "{sum}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_million_decisions_never_exceed_a_buckets_burst_and_rate() {
    let layer = unary().limit(Limit::tokens(1_300).per_second().bucket(200));
    let layer = layer.build().unwrap();
    let (admitted, decisions) = decide(HALF_A_MILLION, &layer).await;
    check_every_stretch(&admitted, |length| 200.0 + 1_300.0 * length.as_secs_f64());
    check_totals(&layer, &admitted, decisions);
    // The bucket's whole rate was used, except while the machine ran none of the tasks.
    let sum = admitted.iter().map(|one| one.amount).sum::<u64>();
    let gaps = admitted.windows(2).map(|two| two[1].before - two[0].before);
    let asked_for: Duration = gaps.filter(|gap| gap < &Duration::from_millis(50)).sum();
    assert!(
        sum as f64 >= 0.9 * 1_300.0 * asked_for.as_secs_f64(),
        "{sum} in {asked_for:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_decision_charges_all_limits_or_none() {
    let layer = unary()
        .limit(Limit::tokens(1_000).per_second().bucket(300))
        .limit(Limit::requests(90).per_second().by(KeyBy::shared()))
        .limit(Limit::input_tokens(900).per_second())
        .build()
        .unwrap();
    let (admitted, decisions) = decide(HALF_A_MILLION / 10, &layer).await;
    check_totals(&layer, &admitted, decisions);
    let second = |most: u64| {
        move |length: Duration| {
            if length.as_secs() < 1 {
                most as f64
            } else {
                f64::INFINITY
            }
        }
    };
    check_every_stretch(&admitted, second(900));
    let requests = admitted.iter().map(|one| Admitted { amount: 1, ..*one });
    check_every_stretch(&Vec::from_iter(requests), second(90));
    check_every_stretch(&admitted, |length| 300.0 + 1_000.0 * length.as_secs_f64());
}

/// Limits by caller, by header and for all: calls of two callers and two regions lock them in pairs that cross.
fn crossing() -> [Limit; 4] {
    let region = || KeyBy::header(http::HeaderName::from_static("x-region"));
    [
        Limit::tokens(500).per_second(),
        Limit::requests(3_000).per_second().bucket(30).by(region()),
        Limit::tokens(900).per_second().by(region()),
        Limit::tokens(1_500).per_second().by(KeyBy::shared()),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn calls_with_crossing_keys_charge_all_or_nothing_and_never_deadlock() {
    let layer = unary().limits(crossing()).build().unwrap();
    // The admitted amounts by caller and by region.
    let totals: Arc<[AtomicU64; 4]> = Arc::default();
    let mut tasks = JoinSet::new();
    for task in 0..TASKS as usize {
        let (service, totals) = (layer.layer(ready()), Arc::clone(&totals));
        tasks.spawn(async move {
            let mut numbers = Numbers(task as u64);
            for decision in 0..20_000 {
                let (caller, region) = (numbers.below(2) as usize, numbers.below(2) as usize);
                let amount = 1 + numbers.below(20);
                let ask = Ask::of(["ann", "bob"][caller], amount, 0);
                let ask = ask.header("x-region", ["eu", "us"][region]);
                if passes(&service, ask) {
                    totals[caller].fetch_add(amount, Relaxed);
                    totals[2 + region].fetch_add(amount, Relaxed);
                }
                if decision % 100 == 0 {
                    yield_now().await;
                }
            }
        });
    }
    let all = timeout(Duration::from_secs(60), tasks.join_all());
    all.await.expect("no deadlock");
    let handle = layer.handle();
    let totals = totals.each_ref().map(|sum| sum.load(Relaxed));
    let sum = totals[0] + totals[1];
    assert_eq!(totals[2] + totals[3], sum);
    let requests = handle.stats()[0].admitted;
    assert_eq!(consumed(&handle), [sum, requests, sum, sum]);
    let seen = |key| handle.stats_of(&Key::new(key)).len();
    assert_eq!(["ann", "bob", "eu", "us"].map(seen), [1, 1, 2, 2]);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn thousands_of_waiting_and_dropped_calls_leave_the_totals_even() {
    let layer = open()
        .limits(crossing())
        .max_waiting(8)
        .max_wait(Duration::from_millis(500))
        .cut_short(CutShort::Refund)
        .build()
        .unwrap();
    let used = Arc::new(AtomicU64::new(0));
    let inner = tower::service_fn(|ask: Ask| async move {
        yield_now().await;
        Ok::<_, Infallible>(ask.id)
    });
    let mut tasks = JoinSet::new();
    for task in 0..48 {
        let (service, used) = (layer.layer(inner), Arc::clone(&used));
        tasks.spawn(async move {
            let mut numbers = Numbers(task);
            for _ in 0..60 {
                one_call(&service, &mut numbers, &used).await;
            }
        });
    }
    let all = timeout(Duration::from_secs(60), tasks.join_all());
    all.await.expect("no call hangs");
    let handle = layer.handle();
    assert_eq!(waiting(&handle), [0; 4]);
    let requests = handle.stats()[0].admitted;
    let used = used.load(Relaxed);
    assert!(used > 500, "{used}");
    assert_eq!(consumed(&handle), [used, requests, used, used]);
    // No queue is left in which a call would wait.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    for caller in ["ann", "bob"] {
        for region in ["eu", "us"] {
            let ask = Ask::of(caller, 1, 0).header("x-region", region);
            let call = layer.layer(inner).oneshot(ask);
            let call = timeout(Duration::from_millis(50), call).await;
            call.expect("no call is ahead of it").unwrap().used(1, 0);
        }
    }
}

/// Makes a call, which may be dropped while it waits, runs or streams, and adds its expected cost to `used`.
async fn one_call<S>(service: &RateLimit<S, Open>, numbers: &mut Numbers, used: &AtomicU64)
where
    S: Service<Ask, Response = usize, Error = Infallible> + Clone,
{
    let (caller, region) = (numbers.below(2) as usize, numbers.below(2) as usize);
    let amount = 1 + numbers.below(20);
    let ask = Ask::of(["ann", "bob"][caller], amount, 0);
    let ask = ask.header("x-region", ["eu", "us"][region]);
    let run = GiveUp {
        future: Box::pin(service.clone().oneshot(ask)),
        polls: Some(numbers.below(200)).filter(|polls| polls % 3 > 0),
    };
    let Some(Ok(response)) = run.await else {
        return;
    };
    for _ in 0..numbers.below(4) {
        yield_now().await;
    }
    // Every fourth caller disconnects midway.
    if numbers.below(4) > 0 {
        let output = numbers.below(amount);
        used.fetch_add(output, Relaxed);
        response.used(0, output);
    }
}
