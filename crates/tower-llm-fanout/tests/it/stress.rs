//! Many calls at once on two threads, of which some leave.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Barrier, task::JoinSet, time::timeout};
use tower_layer::Layer;
use tower_llm_core::{Failure, Outcome, Unary};
use tower_llm_fanout::{Backoff, Delay, FanoutLayer};
use tower_service::Service;

use crate::support::{Ask, MS, Numbered, ask, fails, ok};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_branch_is_left_when_all_calls_have_ended_or_left() {
    let provider = Numbered::new(|_| {
        let after = Duration::from_micros(fastrand::u64(0..3_000));
        match fastrand::u8(0..4) {
            0 => fails(Outcome::Failed(Failure::Status), after),
            _ => ok(1, after),
        }
    });
    let backoff = Backoff::exponential(MS, 2 * MS).unwrap();
    let first = [
        FanoutLayer::race(3),
        FanoutLayer::hedge(Delay::fixed(MS)),
        FanoutLayer::retry(3).backoff(backoff),
    ]
    .map(|builder| builder.watch(Unary).build().unwrap());
    let map = FanoutLayer::map(4).watch(Unary).build().unwrap();
    // Its judge is a call to the same provider.
    let again = |ask: &Ask, _: &[u32]| Ok(ask.clone());
    let ensemble = FanoutLayer::ensemble(3, provider.clone(), again).watch(Unary);
    let ensemble = ensemble.build().unwrap();
    let start = Arc::new(Barrier::new(8));
    let mut tasks = JoinSet::new();
    for task in 0..8 {
        let (provider, start) = (provider.clone(), Arc::clone(&start));
        let mut ensemble = ensemble.layer(provider.clone());
        let (mut one, mut map) = (first[task % 3].layer(provider.clone()), map.layer(provider));
        tasks.spawn(async move {
            start.wait().await;
            for call in 0..100 {
                let patience = Duration::from_micros(fastrand::u64(0..6_000));
                if call % 4 == 0 {
                    let items = (0..10).map(Ask::numbered).collect();
                    let _ = timeout(patience, map.call(items)).await;
                } else if call % 4 == 1 {
                    let _ = timeout(patience, ensemble.call(ask())).await;
                } else {
                    let _ = timeout(patience, one.call(ask())).await;
                }
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(provider.in_flight(), 0);
    assert!(provider.sent() >= 800, "{}", provider.sent());
    let judged = ensemble.stats();
    assert!(judged.judged > judged.judge_failed, "{judged:?}");
    for layer in &first {
        let stats = layer.stats();
        assert!(stats.calls > 0 && stats.branches > stats.calls, "{stats:?}");
    }
}
