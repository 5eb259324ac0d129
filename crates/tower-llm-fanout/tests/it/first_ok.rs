//! Races, hedges and retries: which answer wins, and what happens to the others.

use std::time::Duration;

use tower_llm_core::{Failure, Outcome};
use tower_llm_fanout::{AllFailed, Budget, Delay, FanoutLayer};

use crate::support::{MS, fails, never, ok, run};

const FAILED: Outcome = Outcome::Failed(Failure::Status);

#[tokio::test(start_paused = true)]
async fn an_error_does_not_beat_a_later_success() {
    let steps = [fails(FAILED, 50 * MS), ok(2, 60 * MS), never()];
    let (answer, took, provider) = run(FanoutLayer::race(3), steps).await;
    assert_eq!(answer.unwrap(), 2);
    assert_eq!(took, 60 * MS);
    assert_eq!(provider.sent_at(), [Duration::ZERO; 3]);
    assert_eq!(
        provider.ends(),
        [FAILED, Outcome::Success, Outcome::Superseded]
    );
}

#[tokio::test(start_paused = true)]
async fn a_hedge_starts_after_its_delay_and_the_loser_is_superseded() {
    let hedge = || FanoutLayer::hedge(Delay::fixed(100 * MS));
    let (answer, took, provider) = run(hedge(), [never(), ok(2, 30 * MS)]).await;
    assert_eq!((answer.unwrap(), took), (2, 130 * MS));
    assert_eq!(provider.sent_at(), [Duration::ZERO, 100 * MS]);
    assert_eq!(provider.ends(), [Outcome::Success, Outcome::Superseded]);

    // An answer in time is not hedged.
    let (answer, took, provider) = run(hedge(), [ok(1, 99 * MS)]).await;
    assert_eq!((answer.unwrap(), took, provider.sent()), (1, 99 * MS, 1));
}

#[tokio::test(start_paused = true)]
async fn a_failure_starts_the_hedge_at_once() {
    let hedge = FanoutLayer::hedge(Delay::fixed(100 * MS));
    let steps = [fails(FAILED, 20 * MS), ok(2, 30 * MS)];
    let (answer, took, _) = run(hedge, steps).await;
    assert_eq!((answer.unwrap(), took), (2, 50 * MS));
}

#[tokio::test(start_paused = true)]
async fn if_all_fail_the_error_is_the_first_ones_with_all_attempts() {
    let throttled = Outcome::Throttled {
        retry_after: Some(Duration::from_secs(9)),
    };
    let steps = [fails(throttled, 80 * MS), fails(FAILED, 20 * MS)];
    let (answer, took, _) = run(FanoutLayer::race(2), steps).await;
    let error = answer.unwrap_err();
    assert_eq!(took, 80 * MS);
    assert_eq!(
        tower_llm_core::Completion::of_error(&*error).outcome,
        throttled
    );
    let failed: &AllFailed = error.downcast_ref().unwrap();
    let outcomes = failed
        .report()
        .attempts()
        .iter()
        .map(|attempt| attempt.outcome);
    assert!(outcomes.eq([Some(throttled), Some(FAILED)]));
}

#[tokio::test(start_paused = true)]
async fn a_hedge_that_is_not_paid_for_leaves_the_call_its_failover() {
    let budget = Budget::with_reserve(0.0, 0.001).unwrap();
    let hedge = || FanoutLayer::hedge(Delay::fixed(100 * MS)).budget(budget.clone());
    // Uses up what is saved at first, and the reserve.
    for _ in 0..11 {
        run(hedge(), [never(), ok(2, MS)]).await.0.unwrap();
    }
    // The hedge is refused; by the time that the first branch fails, one is saved again.
    let second = Duration::from_secs(1);
    let steps = [fails(FAILED, 1_100 * second), ok(2, MS)];
    let (answer, _, provider) = run(hedge(), steps).await;
    assert_eq!((answer.unwrap(), provider.sent()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn branches_that_the_deadline_ends_have_timed_out() {
    let race = FanoutLayer::race(2).deadline(200 * MS);
    let (answer, took, provider) = run(race, [never(), never()]).await;
    let timed_out = Outcome::Failed(Failure::Timeout);
    let outcome = tower_llm_core::Completion::of_error(&*answer.unwrap_err()).outcome;
    assert_eq!(outcome, timed_out);
    assert!((200 * MS..=202 * MS).contains(&took), "{took:?}");
    assert_eq!(provider.ends(), [timed_out; 2]);
}
