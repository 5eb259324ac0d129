//! What one decision of the store costs over loopback: prints the figure, and checks a bound that holds on any machine.

use std::time::Duration;

use crate::shared::support::{Mode, Prompt, Setup, admits, timed, unary};
use tower_llm_ratelimit::{Limit, RateLimitLayer};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decision_over_two_limits_takes_little_more_than_a_round_trip() {
    for mode in Mode::ALL {
        let setup = Setup::server(mode, "latency").await;
        let redis = setup.redis().await;
        let builder = RateLimitLayer::for_callers()
            .limit(Limit::requests(1_000_000).per_hour())
            .limit(Limit::tokens(100_000_000).per_hour());
        let layer = unary(builder, setup.shared(&redis, 2));
        let mut took = Vec::new();
        for _ in 0..3_000 {
            let (admitted, one) = timed(admits(&layer, Prompt::of(100))).await;
            assert!(admitted);
            took.push(one);
        }
        // Warm up: connect, compile and grow.
        took.drain(..200);
        took.sort();
        let [p50, p99] = [50, 99].map(|percent| took[took.len() * percent / 100]);
        println!("{mode}: p50 {p50:?}, p99 {p99:?} for one decision over two limits");
        assert!(p50 < Duration::from_millis(20), "{p50:?}");
    }
}
