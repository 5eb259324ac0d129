//! The ramp: the ratio of admitted calls grows until all pass.

use super::*;

async fn ramping(ramp: Duration) -> Tested {
    let tested = Tested::new(touchy().advanced(|set| set.ramp(ramp)));
    tested.handle.trip(&model(), SECOND);
    advance(SECOND).await;
    tested.tell(WELL);
    assert_eq!(tested.state(), State::Ramping);
    tested
}

#[tokio::test(start_paused = true)]
async fn the_ramp_starts_at_a_tenth_and_ends_at_all() {
    let tested = ramping(100 * SECOND).await;
    let passed = |times: usize| {
        (0..times)
            .filter(|_| tested.call(ask(WELL)).is_ok())
            .count()
    };
    assert_eq!(passed(1_001), 101);
    let refused = tested.refused();
    assert_eq!(
        (refused.state(), refused.retry_after()),
        (State::Ramping, Some(SECOND))
    );
    assert_eq!(stats(&tested.handle).remaining, Some(100 * SECOND));
    advance(100 * SECOND - MS).await;
    assert_eq!(tested.state(), State::Ramping);
    advance(MS).await;
    assert_eq!(tested.state(), State::Closed);
    assert_eq!(passed(1_000), 1_000);
    assert_eq!(tested.state(), State::Closed);
}

/// The ratio was taken of the calls so far, so from the middle of the ramp on no call was refused.
#[tokio::test(start_paused = true)]
async fn the_admitted_ratio_grows_with_time_to_all_calls() {
    let tested = ramping(100 * SECOND).await;
    let mut ratios = Vec::new();
    for _ in 0..10 {
        let mut passed = 0;
        for _ in 0..1_000 {
            passed += usize::from(tested.call(ask(WELL)).is_ok());
            advance(10 * MS).await;
        }
        ratios.push(passed);
    }
    // In the tenth that starts at a ratio of `n` tenths, half a tenth more on average; at least a tenth.
    let expected = [100, 150, 250, 350, 450, 550, 650, 750, 850, 950];
    let is_near = |(&passed, expected): (&usize, usize)| passed.abs_diff(expected) <= 2;
    assert!(ratios.iter().zip(expected).all(is_near), "{ratios:?}");
}

#[tokio::test(start_paused = true)]
async fn failures_on_the_ramp_open_and_its_counts_stay_when_it_ends() {
    let tested = ramping(100 * SECOND).await;
    tested.tell(FAILED);
    assert_eq!(tested.state(), State::Open);

    let tested = Tested::new(
        builder()
            .advanced(|set| set.ramp(10 * SECOND))
            .window_calls(10)
            .minimum_calls(2),
    );
    tested.handle.trip(&model(), SECOND);
    advance(SECOND).await;
    tested.tell(WELL);
    tested.tell(WELL);
    assert_eq!((tested.state(), tested.counts()), (State::Ramping, (1, 0)));
    let mut events = tested.handle.subscribe();
    advance(10 * SECOND).await;
    tested.tell(WELL);
    assert_eq!((tested.state(), tested.counts()), (State::Closed, (2, 0)));
    let event = events.try_recv().unwrap();
    let tower_llm_breaker::EventKind::Transition {
        from, to, reason, ..
    } = event.kind
    else {
        panic!("{event:?}");
    };
    assert_eq!(
        (from, to, reason),
        (State::Ramping, State::Closed, Reason::Elapsed)
    );
}
