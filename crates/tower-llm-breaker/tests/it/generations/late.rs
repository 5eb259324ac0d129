//! Results of calls that were admitted in an earlier generation.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_success_of_an_earlier_generation_closes_nothing() {
    let mut staged = Staged::new(touchy());
    let [while_open, while_half_open, while_probed] = [(); 3].map(|()| staged.begin());
    staged.tell(FAILED);
    while_open.end(WELL);
    assert_eq!((staged.state(), staged.stale()), (State::Open, 1));
    advance(OPEN_FOR).await;
    while_half_open.end(WELL);
    assert_eq!((staged.state(), staged.stale()), (State::HalfOpen, 2));
    let probe = staged.begin();
    while_probed.end(WELL);
    assert_eq!((staged.state(), staged.stale()), (State::HalfOpen, 3));
    staged.refused();
    probe.end(WELL);
    assert_eq!((staged.state(), staged.stale()), (State::Closed, 3));
}

/// The result is about the past, but its retry-after is not.
#[tokio::test(start_paused = true)]
async fn retry_after_of_an_earlier_call_extends_an_opening_and_opens_nothing() {
    let mut staged = Staged::new(touchy().advanced(|set| set.max_retry_after(1_000 * SECOND)));
    let [while_open, while_half_open, once_closed] = [(); 3].map(|()| staged.begin());
    staged.tell(FAILED);
    while_open.end(Says::Later(529, 3_000));
    assert_eq!(staged.refused().retry_after(), Some(1_000 * SECOND));
    advance(1_000 * SECOND).await;
    let probe = staged.begin();
    while_half_open.end(Says::Later(529, 3_000));
    assert_eq!(staged.state(), State::HalfOpen);
    probe.end(WELL);
    once_closed.end(Says::Later(429, 3_000));
    assert_eq!(staged.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_an_earlier_generation_neither_opens_nor_counts() {
    let mut staged = Staged::new(touchy());
    let [while_open, while_probed, once_closed] = [(); 3].map(|()| staged.begin());
    staged.tell(FAILED);
    advance(SECOND).await;
    while_open.end(FAILED);
    assert_eq!(staged.refused().retry_after(), Some(OPEN_FOR - SECOND));
    advance(OPEN_FOR - SECOND).await;
    let probe = staged.begin();
    while_probed.end(FAILED);
    assert_eq!((staged.state(), staged.stale()), (State::HalfOpen, 2));
    probe.end(WELL);
    once_closed.end(FAILED);
    assert_eq!((staged.state(), staged.stale()), (State::Closed, 3));
    assert_eq!(staged.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_hundred_failures_at_once_open_it_once() {
    let mut staged = Staged::new(touchy().advanced(|set| set.open_factor(2.0)));
    let mut events = staged.handle.subscribe();
    let calls: Vec<_> = (0..100).map(|_| staged.begin()).collect();
    for call in calls {
        call.end(FAILED);
        yield_now().await;
    }
    assert_eq!(staged.stale(), 99);
    assert_eq!(staged.refused().retry_after(), Some(OPEN_FOR));
    let transitions = std::iter::from_fn(|| events.try_recv().ok()).count();
    assert_eq!(transitions, 1);
}

#[tokio::test(start_paused = true)]
async fn a_result_from_before_a_manual_change_does_not_count() {
    let mut staged = Staged::new(touchy());
    let calls = [(); 3].map(|()| staged.begin());
    staged.handle.force(&model(), Force::Disabled);
    let while_disabled = staged.begin();
    staged.handle.reset(&model());
    let [failed, well, neutral] = calls;
    failed.end(FAILED);
    well.end(WELL);
    neutral.end(NEUTRAL);
    while_disabled.end(FAILED);
    assert_eq!((staged.state(), staged.counts()), (State::Closed, (0, 0)));
    assert_eq!(staged.stale(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_slow_call_of_an_earlier_generation_does_not_count() {
    let slow = tower_llm_breaker::SlowCalls::at_ratio(0.5).total(SECOND);
    let mut staged = Staged::new(touchy().slow_calls(slow).minimum_calls(1));
    let call = staged.begin();
    staged.tell(FAILED);
    advance(OPEN_FOR).await;
    staged.tell(WELL);
    call.end(WELL);
    assert_eq!((staged.state(), staged.counts()), (State::Closed, (0, 0)));
    assert_eq!(stats(&staged.handle).slow_calls, 0);
}
