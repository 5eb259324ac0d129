//! What the monitor counts of each event.
//!
//! | event | monitor |
//! |---|---|
//! | cached answer | a hit; its usage is saved, and costs nothing |
//! | follower of a call in flight | a follower |
//! | call that its caller has left, and another one takes over | refused, while it waited; the other one pays |
//! | refusal by any layer | refused, by which layer |
//! | caller leaves, before or inside the body | abandoned; what was seen |
//! | caller leaves while an inner layer queues the call | refused, while it waited |
//! | 200 with an error inside the stream | by outcome |
//! | stream cut without terminal marker | truncated; what was seen |
//! | retry, failure of a branch before its content | one call, several attempts |
//! | losing branch | one call, two attempts, and what the loser wasted |
//!
//! A token costs a dollar here, so that costs and tokens must agree.

use std::time::UNIX_EPOCH;

use tower_llm_stack::{
    FanoutLayer,
    monitor::{Counts, Record, Sink, Stats},
};

use super::*;

impl Stand {
    /// All calls; none is in flight.
    fn counted(&self) -> Stats {
        let total = self.monitor.snapshot().total;
        assert_eq!(total.in_flight, 0);
        let stats = total.since_start;
        let Stats { tokens, cost, .. } = &stats;
        let dollars = tokens.input + tokens.output;
        assert_eq!(cost.as_nanos(), dollars * 1_000_000_000);
        stats
    }
}

/// The labels that have counts.
fn nonzero(counts: &Counts) -> Vec<(&'static str, u64)> {
    counts.iter().filter(|(_, count)| *count > 0).collect()
}

#[track_caller]
fn assert_ended(stats: &Stats, outcomes: &[(&str, u64)], used: u64) {
    assert_eq!(nonzero(&stats.outcomes), outcomes);
    assert_eq!(stats.tokens.input + stats.tokens.output, used);
}

/// Hits, followers and misses.
fn cached(stats: &Stats) -> [u64; 3] {
    [stats.cache_hits, stats.cache_followers, stats.cache_misses]
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_a_success_of_one_attempt() {
    let layers = Layers::new([]);
    read(&layers.stack()).await;
    let stats = layers.stand().counted();
    assert_ended(&stats, &[("success", 1)], USED.tokens);
    assert_eq!(nonzero(&stats.attempts), [("success", 1)]);
    assert_eq!((stats.extra_attempts(), stats.wasted_tokens()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_cached_answer_is_a_hit_and_no_attempt() {
    let layers = Layers::with_cache([]);
    let client = layers.stack();
    read(&client).await;
    read(&client).await;
    let stats = layers.stand().counted();
    assert_ended(&stats, &[("success", 2)], USED.tokens);
    assert_eq!(cached(&stats), [1, 0, 1]);
    let saved = stats.saved_tokens;
    assert_eq!(saved.input + saved.output, USED.tokens);
    assert_eq!(nonzero(&stats.attempts), [("success", 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_follower_is_no_attempt() {
    let layers = Layers::with_cache([answer().head_delay(Duration::from_secs(1))]);
    let client = layers.stack();
    future::join(read(&client), read(&client)).await;
    let stats = layers.stand().counted();
    assert_ended(&stats, &[("success", 2)], USED.tokens);
    assert_eq!(cached(&stats), [0, 1, 1]);
    assert_eq!(nonzero(&stats.attempts), [("success", 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_another_caller_takes_over_is_paid_for_once() {
    let layers = Layers::with_cache([answer().head_delay(Duration::from_secs(1))]);
    let client = layers.stack();
    let mut leader = client.clone().oneshot(request());
    assert!(poll!(&mut leader).is_pending());
    let mut follower = client.oneshot(request());
    assert!(poll!(&mut follower).is_pending());
    drop(leader);
    let followed = follower.await.unwrap();
    followed.into_body().collect().await.unwrap();
    let stats = layers.stand().counted();
    // The one that has left has cost nothing.
    assert_ended(&stats, &[("success", 1), ("refused", 1)], USED.tokens);
    assert_eq!(nonzero(&stats.refused_by), [("waiting", 1)]);
    assert_eq!(nonzero(&stats.attempts), [("success", 1)]);
    assert_eq!(stats.attempt_tokens, stats.tokens);
}

mod refusal {
    use super::*;

    /// A call that `layer` refuses, after or beside another one.
    #[track_caller]
    fn assert_refused(layers: &Layers, layer: &str) {
        let stats = layers.stand().counted();
        assert_eq!(nonzero(&stats.refused_by), [(layer, 1)]);
        assert_eq!((stats.calls, stats.outcomes.of("refused")), (2, 1));
        assert_eq!(stats.latency.count, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn by_the_callers_limit() {
        let layers = Layers::with_room(1, 100, 100, []);
        read(&layers.stack()).await;
        assert_eq!(refused_by(&layers.stack()).await, "ratelimit");
        assert_refused(&layers, "ratelimit");
    }

    #[tokio::test(start_paused = true)]
    async fn by_the_providers_limit() {
        let layers = Layers::with_room(100, 1, 100, []);
        read(&layers.stack()).await;
        assert_eq!(refused_by(&layers.stack()).await, "ratelimit");
        assert_refused(&layers, "ratelimit");
        let attempts = layers.stand().counted().attempts;
        assert_eq!(nonzero(&attempts), [("success", 1), ("refused", 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn by_the_bulkhead() {
        let layers = Layers::with_room(100, 100, 1, [Fault::NoAnswer.into()]);
        let mut held = layers.stack().oneshot(request());
        assert!(poll!(&mut held).is_pending());
        assert_eq!(refused_by(&layers.stack()).await, "bulkhead");
        drop(held);
        assert_refused(&layers, "bulkhead");
    }

    #[tokio::test(start_paused = true)]
    async fn by_the_breaker() {
        let layers = Layers::new([]);
        read(&layers.stack()).await;
        let minute = Duration::from_secs(60);
        layers.stand().breaker.trip(&model(), minute);
        assert_eq!(refused_by(&layers.stack()).await, "breaker");
        assert_refused(&layers, "breaker");
    }

    /// Its caller has left the queue.
    #[tokio::test(start_paused = true)]
    async fn by_none_while_it_waited() {
        let layers = Layers::with_queue([Fault::NoAnswer.into()]);
        let mut holder = layers.stack().oneshot(request());
        assert!(poll!(&mut holder).is_pending());
        let mut waiting = layers.stack().oneshot(request());
        assert!(poll!(&mut waiting).is_pending());
        drop(waiting);
        drop(holder);
        assert_refused(&layers, "waiting");
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_before_the_response_is_charged_its_input() {
    let layers = Layers::new([Fault::NoAnswer.into()]);
    let mut call = layers.stack().oneshot(request());
    assert!(poll!(&mut call).is_pending());
    assert_eq!(layers.stand().monitor.snapshot().total.in_flight, 1);
    drop(call);
    let stats = layers.stand().counted();
    assert_ended(&stats, &[("abandoned", 1)], ESTIMATED_INPUT);
}

mod in_the_body {
    use super::*;

    const EVENTS: usize = 4;

    fn seen() -> u64 {
        ESTIMATED_INPUT + output_seen(EVENTS)
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_leaves_is_charged_for_what_was_seen() {
        let layers = Layers::new([answer().fault(Fault::StallAfter(EVENTS))]);
        let response = layers.stack().oneshot(request()).await.unwrap();
        let mut body = response.into_body();
        for _ in 0..EVENTS {
            body.frame().await.unwrap().unwrap();
        }
        drop(body);
        let stats = layers.stand().counted();
        assert_ended(&stats, &[("abandoned", 1)], seen());
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_is_counted_by_its_outcome() {
        for (error, outcome, used) in [
            (InBand::Overloaded, "overloaded", 0),
            (InBand::RateLimited, "throttled", 0),
            (InBand::ServerError, "failed_in_band", seen()),
        ] {
            let layers = Layers::new([answer().fault(Fault::ErrorAfter(EVENTS, error))]);
            read(&layers.stack()).await;
            let stats = layers.stand().counted();
            assert_ended(&stats, &[(outcome, 1)], used);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_cut_is_truncated_and_charged_for_what_was_seen() {
        let layers = Layers::new([answer().fault(Fault::CutAfter(EVENTS))]);
        read(&layers.stack()).await;
        let stats = layers.stand().counted();
        assert_ended(&stats, &[("failed_truncated", 1)], seen());
        assert_eq!(stats.estimated_calls, 1);
    }
}

mod branch {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_retried_call_is_one_call_and_several_attempts() {
        let failure = || Behavior::from(Fault::Status(500));
        let layers = Layers::with_room(100, 100, 1, [failure(), failure()]);
        let layers = layers.fanout(FanoutLayer::retry(2));
        read(&layers.stack()).await;
        let stats = layers.stand().counted();
        assert_ended(&stats, &[("success", 1)], USED.tokens);
        let attempts = [("success", 1), ("failed_status", 2)];
        assert_eq!(nonzero(&stats.attempts), attempts);
        assert_eq!((stats.extra_attempts(), stats.wasted_tokens()), (2, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_losing_branch_wastes_what_it_is_charged() {
        let winner = answer().head_delay(Duration::from_secs(1));
        let layers = Layers::new([Fault::NoAnswer.into(), winner]);
        let layers = layers.fanout(FanoutLayer::race(2));
        read(&layers.stack()).await;
        let stats = layers.stand().counted();
        assert_ended(&stats, &[("success", 1)], USED.tokens);
        let attempts = [("success", 1), ("superseded", 1)];
        assert_eq!(nonzero(&stats.attempts), attempts);
        assert_eq!(stats.extra_attempts(), 1);
        assert_eq!(stats.wasted_tokens(), ESTIMATED_INPUT);
        assert_eq!(stats.wasted_cost().as_dollars(), ESTIMATED_INPUT as f64);
    }

    #[derive(Default)]
    struct Written(Vec<Record>);

    impl Sink for Written {
        async fn write(&mut self, batch: &[Record]) -> Result<(), BoxError> {
            self.0.extend_from_slice(batch);
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_record_of_a_call_lists_its_branches() {
        let winner = answer().head_delay(Duration::from_secs(1));
        let layers = Layers::new([Fault::NoAnswer.into(), winner]);
        let layers = layers.fanout(FanoutLayer::race(2));
        read(&layers.stack()).await;
        let handle = layers.stand().monitor;
        let recorder = handle.recorder(Written::default(), || UNIX_EPOCH);
        let records = recorder.unwrap().run(async {}).await.0;
        let [record] = &records[..] else {
            panic!("one record: {records:?}");
        };
        let [lost, won] = &record.attempts[..] else {
            panic!("two attempts: {record:?}");
        };
        assert_eq!(
            (record.outcome, lost.outcome),
            ("success", Some("superseded"))
        );
        assert_eq!(won.ended, Some(Duration::from_secs(1)));
        assert_eq!(lost.tokens.unwrap().input, ESTIMATED_INPUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_before_the_content_is_no_failure_of_the_call() {
        let broken = Fault::ErrorAfter(1, InBand::Overloaded).into();
        let layers = Layers::new([broken, answer()]);
        let layers = layers.fanout(FanoutLayer::failover(1));
        read(&layers.stack()).await;
        let stats = layers.stand().counted();
        assert_ended(&stats, &[("success", 1)], USED.tokens);
        let attempts = [("success", 1), ("overloaded", 1)];
        assert_eq!(nonzero(&stats.attempts), attempts);
    }
}
