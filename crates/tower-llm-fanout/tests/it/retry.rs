//! Retries: when they are sent, and how many.

use std::time::Duration;

use tokio::time::Instant;
use tower_layer::Layer;
use tower_llm_core::{Completion, Failure, Outcome, Refusal, Unary};
use tower_llm_fanout::{Backoff, Budget, Delay, FanoutLayer};
use tower_llm_ratelimit::{Limit, RateLimitLayer};
use tower_service::Service;

use crate::support::{MS, Script, ask, fails, never, ok, run};

const FAILED: Outcome = Outcome::Failed(Failure::Status);
const SECOND: Duration = Duration::from_secs(1);

fn throttled(after: Duration) -> Outcome {
    Outcome::Throttled {
        retry_after: Some(after),
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_waits_at_most_its_backoff() {
    let backoff = Backoff::exponential(100 * MS, 300 * MS).unwrap();
    let retry = FanoutLayer::retry(3).backoff(backoff);
    let steps = [
        fails(FAILED, 10 * MS),
        fails(FAILED, 10 * MS),
        fails(FAILED, 10 * MS),
        ok(4, 10 * MS),
    ];
    let (answer, took, provider) = run(retry, steps).await;
    assert_eq!((answer.unwrap(), provider.sent()), (4, 4));
    // 100, 200 and then 300 ms, of which each may be any part.
    let sent_at = provider.sent_at();
    let waits = sent_at.windows(2).map(|two| two[1] - two[0] - 10 * MS);
    for (wait, most) in waits.zip([100 * MS, 200 * MS, 300 * MS]) {
        assert!(wait <= most + MS, "{wait:?} of {most:?}");
    }
    assert!(took >= 40 * MS);
}

#[tokio::test(start_paused = true)]
async fn a_time_that_the_provider_asks_for_is_never_cut_short() {
    for wait in [Duration::ZERO, SECOND, 59 * SECOND, 60 * SECOND] {
        let steps = [fails(throttled(wait), 10 * MS), ok(2, 10 * MS)];
        let (answer, _, provider) = run(FanoutLayer::retry(1), steps).await;
        assert_eq!(answer.unwrap(), 2);
        let second = provider.sent_at()[1];
        // Calls that wait for the same time do not come back together.
        let most = 10 * MS + wait + (wait / 10).min(SECOND) + MS;
        assert!((10 * MS + wait..=most).contains(&second), "{second:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_time_beyond_the_maximum_fails_at_once() {
    let wait = 60 * SECOND + MS;
    let steps = [fails(throttled(wait), 10 * MS), ok(2, 10 * MS)];
    let (answer, took, provider) = run(FanoutLayer::retry(5), steps).await;
    let error = answer.unwrap_err();
    assert_eq!(Completion::of_error(&*error).outcome, throttled(wait));
    assert_eq!((took, provider.sent()), (10 * MS, 1));
}

#[tokio::test(start_paused = true)]
async fn what_a_layer_inside_refuses_is_not_waited_for() {
    let limit = RateLimitLayer::for_providers()
        .limits([Limit::requests(1).per_minute()])
        .max_waiting(0)
        .watch(Unary)
        .build()
        .unwrap();
    let retry = FanoutLayer::retry(3).watch(Unary).build().unwrap();
    let provider = Script::new([ok(1, MS), ok(2, MS)]);
    let service = retry.layer(limit.layer(provider.clone()));
    assert_eq!(service.clone().call(ask()).await.unwrap(), 1);
    let began_at = Instant::now();
    let error = service.clone().call(ask()).await.unwrap_err();
    assert!(Refusal::find(&*error).unwrap().retry_after() > Some(50 * SECOND));
    assert_eq!((began_at.elapsed(), provider.sent()), (Duration::ZERO, 1));
}

#[tokio::test(start_paused = true)]
async fn no_retry_follows_the_callers_fault_or_an_exhausted_account() {
    for outcome in [Outcome::ClientError, Outcome::Exhausted] {
        let steps = [fails(outcome, 10 * MS), ok(2, 10 * MS)];
        let (answer, _, provider) = run(FanoutLayer::retry(5), steps).await;
        assert_eq!(Completion::of_error(&*answer.unwrap_err()).outcome, outcome);
        assert_eq!(provider.sent(), 1, "{outcome:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_attempt_starts_that_the_deadline_leaves_no_time_for() {
    let retry = FanoutLayer::retry(1)
        .deadline(SECOND)
        .backoff(Backoff::exponential(MS, MS).unwrap());
    // Each of two attempts has half of the time.
    let (answer, took, provider) = run(retry.clone(), [never(), ok(2, 10 * MS)]).await;
    assert_eq!(answer.unwrap(), 2);
    assert!((510 * MS..=513 * MS).contains(&took), "{took:?}");
    assert_eq!(
        provider.ends(),
        [Outcome::Failed(Failure::Timeout), Outcome::Success]
    );

    // With less than the least time of an attempt left, the failure stands.
    let steps = [fails(FAILED, 480 * MS), ok(2, MS)];
    let (answer, took, provider) = run(retry.min_attempt(600 * MS), steps).await;
    assert_eq!(Completion::of_error(&*answer.unwrap_err()).outcome, FAILED);
    assert_eq!((took, provider.sent()), (480 * MS, 1));
}

/// Calls that reach a provider that is down, for each call of a caller.
async fn calls_each(layers: &[FanoutLayer<Unary>], calls: usize) -> f64 {
    let provider = Script::new(std::iter::repeat_n(fails(FAILED, MS), 10 * calls));
    for call in 0..calls {
        let layer = &layers[call % layers.len()];
        layer.layer(provider.clone()).call(ask()).await.unwrap_err();
    }
    provider.sent() as f64 / calls as f64
}

#[tokio::test(start_paused = true)]
async fn extra_calls_of_all_kinds_stay_within_one_budget_during_an_outage() {
    for ratio in [0.0, 0.1, 0.3, 0.4, 0.6, 0.75, 0.9, 1.0] {
        let budget = Budget::with_reserve(ratio, 0.0).unwrap();
        let backoff = Backoff::exponential(MS, MS).unwrap();
        let layers = [
            FanoutLayer::retry(4).backoff(backoff),
            FanoutLayer::hedge(Delay::fixed(MS / 2)),
            FanoutLayer::failover(4).backoff(backoff),
        ]
        .map(|builder| builder.budget(budget.clone()).watch(Unary).build().unwrap());
        let each = calls_each(&layers, 3_000).await;
        // Ten are saved up at first.
        let most = 1.0 + ratio + 10.0 / 3_000.0;
        assert!(each <= most + 1e-9, "{each} of {most}");
        assert!(each >= 1.0 + ratio - 0.01, "{each} of {most}");
    }
}

#[tokio::test(start_paused = true)]
async fn slow_traffic_may_retry_from_the_reserve() {
    let budget = Budget::with_reserve(0.0, 1.0).unwrap();
    let layer: FanoutLayer<Unary> = FanoutLayer::retry(1)
        .backoff(Backoff::exponential(MS, MS).unwrap())
        .budget(budget)
        .watch(Unary)
        .build()
        .unwrap();
    // Uses up what is saved at first.
    calls_each(std::slice::from_ref(&layer), 20).await;
    let before = layer.stats();
    for _ in 0..5 {
        tokio::time::sleep(2 * SECOND).await;
        assert_eq!(calls_each(std::slice::from_ref(&layer), 1).await, 2.0);
    }
    assert_eq!(layer.stats().refused_by_budget, before.refused_by_budget);
}

#[tokio::test(start_paused = true)]
async fn a_retry_ends_when_its_caller_leaves() {
    let provider = Script::new([fails(FAILED, 10 * MS), never()]);
    let layer: FanoutLayer<Unary> = FanoutLayer::retry(3).watch(Unary).build().unwrap();
    let began_at = Instant::now();
    let call = layer.layer(provider.clone()).call(ask());
    let left = tokio::time::timeout(100 * SECOND, call).await;
    assert!(left.is_err() && began_at.elapsed() == 100 * SECOND);
    assert_eq!(provider.ends(), [FAILED, Outcome::Abandoned]);
}
