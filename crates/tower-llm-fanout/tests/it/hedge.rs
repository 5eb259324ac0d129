//! Hedges that aim at a ratio of calls.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinSet;
use tower::{ServiceExt, limit::ConcurrencyLimit};
use tower_layer::Layer;
use tower_llm_core::Unary;
use tower_llm_fanout::{Delay, FanoutLayer};
use tower_service::Service;

use crate::support::{MS, Provider, Script, ask, never, ok};

#[tokio::test(start_paused = true)]
async fn a_branch_that_lost_has_wasted_its_input_if_it_was_sent() {
    let hedge = FanoutLayer::hedge(Delay::fixed(100 * MS)).watch(Unary);
    let layer = hedge.build().unwrap();
    let provider = Script::new([never(), ok(1, 50 * MS)]);
    layer.layer(provider).call(ask()).await.unwrap();
    let stats = layer.stats();
    assert_eq!((stats.wasted, stats.wasted_tokens), (150 * MS, 25));

    // The hedge waits for the only permit.
    let one = ConcurrencyLimit::new(Script::new([ok(1, 200 * MS)]), 1);
    layer.layer(one).oneshot(ask()).await.unwrap();
    assert_eq!(layer.stats().superseded, 2);
    assert_eq!(layer.stats().wasted_tokens, 25);
}

/// Latencies with a heavy tail: a log-normal body with a median of 1.2 s, and 5 % that take 4 to 12 times as long.
pub(crate) fn heavy_tail(rng: &mut fastrand::Rng) -> Duration {
    let normal = (-2.0 * rng.f64().max(f64::MIN_POSITIVE).ln()).sqrt()
        * (std::f64::consts::TAU * rng.f64()).cos();
    let body = 1.2 * (0.5 * normal).exp();
    let slow = if rng.f64() < 0.05 {
        4.0 + 8.0 * rng.f64()
    } else {
        1.0
    };
    Duration::from_secs_f64(body * slow)
}

/// The latencies of calls around a provider with a heavy tail, in order, and the ratio of extra calls.
async fn latencies(layer: &FanoutLayer<Unary>, calls: u64) -> (Vec<Duration>, f64) {
    let rng = Arc::new(std::sync::Mutex::new(fastrand::Rng::with_seed(7)));
    let provider = Provider::new(move || heavy_tail(&mut rng.lock().unwrap()));
    let before = layer.stats();
    let mut running = JoinSet::new();
    let mut took = Vec::new();
    for _ in 0..calls {
        let mut service = layer.layer(provider.clone());
        running.spawn(async move {
            let began_at = tokio::time::Instant::now();
            service.call(ask()).await.unwrap();
            began_at.elapsed()
        });
        tokio::time::sleep(20 * MS).await;
        while let Some(done) = running.try_join_next() {
            took.push(done.unwrap());
        }
    }
    took.extend(running.join_all().await);
    took.sort_unstable();
    let extra = layer.stats().extra - before.extra;
    (took, extra as f64 / calls as f64)
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[sorted.len() * percent / 100]
}

#[tokio::test(start_paused = true)]
async fn a_hedge_at_5_percent_sends_5_percent_and_cuts_the_tail() {
    let plain = FanoutLayer::retry(0).watch(Unary).build().unwrap();
    let (plain, extra) = latencies(&plain, 10_000).await;
    assert_eq!(extra, 0.0);
    let hedge = FanoutLayer::hedge(Delay::slowest(0.05))
        .watch(Unary)
        .build()
        .unwrap();
    // The record begins empty.
    latencies(&hedge, 2_000).await;
    let (hedged, extra) = latencies(&hedge, 20_000).await;
    assert!((extra - 0.05).abs() < 0.005, "{extra}");
    let (before, after) = (percentile(&plain, 99), percentile(&hedged, 99));
    assert!(after < before.mul_f64(0.6), "{after:?} of {before:?}");
}
