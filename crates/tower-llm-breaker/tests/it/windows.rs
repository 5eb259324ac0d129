//! When a circuit opens: what its window holds, and how much of that is too much.

use std::collections::VecDeque;

use crate::support::{FAILED, HOUR, MINUTE, MS, SECOND, Says, Tested, WELL, builder, model};
use tokio::time::advance;
use tower_llm_breaker::{BreakerBuilder, BreakerLayer, EventKind, Reason, State};

/// Counts all calls, and no failures open it.
fn patient() -> BreakerBuilder {
    builder().advanced(|set| set.max_open_ratio(0.0))
}

// === the defaults ===

fn defaults() -> Tested {
    Tested::new(BreakerLayer::builder().advanced(|set| set.jitter(0.0)))
}

/// Five failures opened by the ratio alone.
#[tokio::test(start_paused = true)]
async fn five_failures_in_a_row_open_and_two_probes_close() {
    let tested = defaults();
    tested.tell_times(10, WELL);
    for _ in 0..3 {
        tested.tell_times(4, FAILED);
        tested.tell_times(5, WELL);
    }
    // Not half of the calls, and never five in a row.
    assert_eq!((tested.state(), tested.counts()), (State::Closed, (37, 12)));
    tested.tell_times(4, FAILED);
    tested.tell(Says::Status(400));
    tested.tell(Says::Status(429));
    assert_eq!(tested.state(), State::Closed);
    tested.tell(FAILED);
    assert_eq!(tested.state(), State::Open);

    advance(30 * SECOND).await;
    tested.tell(WELL);
    assert_eq!(tested.state(), State::HalfOpen);
    tested.tell(WELL);
    assert_eq!(tested.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn half_of_ten_calls_open_and_of_nine_do_not() {
    let tested = defaults();
    for _ in 0..4 {
        tested.tell(FAILED);
        tested.tell(WELL);
    }
    tested.tell(FAILED);
    assert_eq!((tested.state(), tested.counts()), (State::Closed, (9, 5)));
    tested.tell(FAILED);
    assert_eq!(tested.state(), State::Open);
}

// === the window by count ===

#[tokio::test(start_paused = true)]
async fn after_any_number_of_successes_exactly_50_failures_open_a_window_of_100() {
    for successes in [100, 1_000, 100_000] {
        let tested = Tested::new(
            builder()
                .window_calls(100)
                .failure_ratio(0.5)
                .minimum_calls(100),
        );
        tested.tell_times(successes, WELL);
        tested.tell_times(49, FAILED);
        assert_eq!(tested.state(), State::Closed, "{successes}");
        assert_eq!(tested.counts(), (100, 49));
        tested.tell(FAILED);
        assert_eq!(tested.state(), State::Open, "{successes}");
        let refused = tested.refused();
        assert_eq!(refused.state(), State::Open);
        assert_eq!(refused.circuit(), &model());
        assert_eq!(tested.reached(), successes + 50);
    }
}

#[tokio::test(start_paused = true)]
async fn a_window_by_count_holds_the_last_calls_and_no_others() {
    for calls in [1, 2, 63, 64, 65, 100, 129] {
        let tested = Tested::new(patient().window_calls(calls));
        let mut last = VecDeque::new();
        for number in 0..3 * calls + 7 {
            // No period divides the window.
            let failed = number % 5 == 0 || number % 7 < 3;
            tested.tell(if failed { FAILED } else { WELL });
            last.push_back(failed);
            if last.len() > calls {
                last.pop_front();
            }
            let failures = last.iter().filter(|&&failed| failed).count();
            let expected = (last.len() as u64, failures as u64);
            assert_eq!(tested.counts(), expected, "{number} of {calls}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn failures_that_have_left_the_window_open_nothing() {
    let tested = Tested::new(builder().window_calls(10).failure_ratio(0.5));
    tested.tell_times(4, FAILED);
    tested.tell_times(9, WELL);
    // The first three have left the window.
    tested.tell_times(3, FAILED);
    assert_eq!(tested.counts(), (10, 3));
    tested.tell_times(1, FAILED);
    assert_eq!((tested.counts(), tested.state()), ((10, 4), State::Closed));
    tested.tell_times(1, FAILED);
    assert_eq!(tested.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn time_removes_nothing_from_a_window_by_count() {
    let settings = builder().window_calls(10).minimum_calls(5);
    let tested = Tested::new(settings.failure_ratio(0.5));
    tested.tell_times(4, FAILED);
    advance(24 * HOUR).await;
    assert_eq!(tested.counts(), (4, 4));
    tested.tell(FAILED);
    assert_eq!(tested.state(), State::Open);
}

// === the window by time ===

#[tokio::test(start_paused = true)]
async fn calls_of_one_tenth_of_the_window_leave_together() {
    let tested = Tested::new(patient().window(10 * SECOND));
    tested.tell(FAILED);
    advance(999 * MS).await;
    tested.tell(WELL);
    advance(MS).await;
    tested.tell(FAILED);
    assert_eq!(tested.counts(), (3, 2));
    // 9.999 s after the first, 9.0 s after the second.
    advance(8_999 * MS).await;
    assert_eq!(tested.counts(), (3, 2));
    advance(MS).await;
    assert_eq!(tested.counts(), (1, 1));
    advance(999 * MS).await;
    assert_eq!(tested.counts(), (1, 1));
    advance(MS).await;
    assert_eq!(tested.counts(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn failures_that_are_too_old_open_nothing() {
    let tested = Tested::new(builder().window(MINUTE).failure_ratio(0.5).minimum_calls(5));
    for _ in 0..100 {
        tested.tell_times(4, FAILED);
        advance(MINUTE).await;
    }
    assert_eq!(tested.state(), State::Closed);
    tested.tell_times(4, FAILED);
    advance(MINUTE - MS).await;
    tested.tell(FAILED);
    assert_eq!(tested.state(), State::Open);
}

/// A bucket holds twelve bits of its time: one that is 4,096 tenths old must not count as new.
#[tokio::test(start_paused = true)]
async fn a_very_old_bucket_never_counts_again() {
    for rest in [10, 100, 4_086, 4_087, 4_095, 4_096, 4_097, 4_105, 8_192] {
        let tested = Tested::new(patient().window(10 * SECOND));
        tested.tell(FAILED);
        advance(rest * SECOND).await;
        assert_eq!(tested.counts(), (0, 0), "{rest}");
        tested.tell(WELL);
        assert_eq!(tested.counts(), (1, 0), "{rest}");
        advance(9 * SECOND).await;
        assert_eq!(tested.counts(), (1, 0), "{rest}");
        advance(SECOND).await;
        assert_eq!(tested.counts(), (0, 0), "{rest}");
    }
}

/// The same if calls continue, and none of them ends in the tenth that would overwrite the bucket.
#[tokio::test(start_paused = true)]
async fn a_bucket_that_was_never_overwritten_does_not_count_again() {
    let tested = Tested::new(patient().window(10 * SECOND));
    tested.tell(FAILED);
    advance(3 * SECOND).await;
    for number in 0..1_700 {
        tested.tell(WELL);
        let expected = match number {
            0 => (2, 1),
            1 => (3, 1),
            _ => (2, 0),
        };
        assert_eq!(tested.counts(), expected, "{number}");
        advance(5 * SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_window_by_time_agrees_with_a_list_of_all_calls() {
    for step in [1, 3, 4, 7, 9, 11] {
        let tested = Tested::new(patient().window(10 * SECOND));
        let mut ended: Vec<(u32, bool)> = Vec::new();
        for second in (0..9_000_u32).step_by(step) {
            let failed = second % 3 == 0;
            tested.tell(if failed { FAILED } else { WELL });
            ended.push((second, failed));
            ended.retain(|&(at, _)| at + 10 > second);
            let failures = ended.iter().filter(|(_, failed)| *failed).count();
            let expected = (ended.len() as u64, failures as u64);
            assert_eq!(tested.counts(), expected, "{step} {second}");
            advance(step as u32 * SECOND).await;
        }
    }
}

// === thresholds ===

#[tokio::test(start_paused = true)]
async fn a_ratio_that_is_reached_exactly_opens() {
    for (ratio, failures) in [
        (0.07, 7),
        (0.1, 10),
        (0.29, 29),
        (0.3, 30),
        (0.57, 57),
        (1.0, 100),
    ] {
        let tested = Tested::new(
            builder()
                .window_calls(100)
                .failure_ratio(ratio)
                .minimum_calls(100),
        );
        tested.tell_times(100 - failures, WELL);
        tested.tell_times(failures - 1, FAILED);
        assert_eq!(tested.state(), State::Closed, "{ratio}");
        tested.tell(FAILED);
        assert_eq!(tested.state(), State::Open, "{ratio}");
    }
}

#[tokio::test(start_paused = true)]
async fn below_the_minimum_calls_no_ratio_is_judged() {
    let tested = Tested::new(builder().failure_ratio(0.5).minimum_calls(10));
    tested.tell_times(9, FAILED);
    assert_eq!(tested.state(), State::Closed);
    tested.tell(FAILED);
    assert_eq!(tested.state(), State::Open);

    // A success that completes the minimum opens nothing; the next failure does.
    let tested = Tested::new(builder().failure_ratio(0.5).minimum_calls(10));
    tested.tell_times(9, FAILED);
    tested.tell(WELL);
    assert_eq!(tested.state(), State::Closed);
    tested.tell(FAILED);
    assert_eq!(tested.state(), State::Open);

    // Above the window's minimum, all calls count: 19 of 39 are not half, 20 of 40 are.
    let tested = Tested::new(builder().failure_ratio(0.5).minimum_calls(10));
    tested.tell_times(20, WELL);
    tested.tell_times(19, FAILED);
    assert_eq!(tested.state(), State::Closed);
    tested.tell(FAILED);
    assert_eq!(tested.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_ratio_of_zero_opens_at_the_first_failure() {
    let tested = Tested::new(builder().failure_ratio(0.0));
    tested.tell_times(1_000, WELL);
    assert_eq!(tested.state(), State::Closed);
    tested.tell(FAILED);
    assert_eq!(tested.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn consecutive_failures_open_and_a_success_restarts_the_count() {
    let tested = Tested::new(builder().without_failure_ratio().failure_threshold(5));
    let mut events = tested.handle.subscribe();
    tested.tell_times(4, FAILED);
    tested.tell(WELL);
    tested.tell_times(4, FAILED);
    assert_eq!(tested.state(), State::Closed);
    // Neither a client error nor a 429 without retry-after ends the run, or is part of it.
    for says in [Says::Status(400), Says::Status(404), Says::Status(429)] {
        tested.tell(says);
    }
    assert_eq!(tested.state(), State::Closed);
    assert!(matches!(
        events.try_recv().unwrap().kind,
        EventKind::Throttled
    ));
    tested.tell(FAILED);
    assert_eq!(tested.state(), State::Open);
    let kind = events.try_recv().unwrap().kind;
    let expected = EventKind::Transition {
        from: State::Closed,
        to: State::Open,
        reason: Reason::ConsecutiveFailures,
        duration: Some(30 * SECOND),
        generation: 1,
    };
    assert_eq!(kind, expected);
}

#[tokio::test(start_paused = true)]
async fn a_window_begins_empty_after_each_change() {
    let tested = Tested::new(
        builder()
            .window_calls(10)
            .failure_ratio(0.5)
            .minimum_calls(5)
            .failure_threshold(9),
    );
    tested.tell_times(5, FAILED);
    assert_eq!((tested.state(), tested.counts()), (State::Open, (0, 0)));
    advance(30 * SECOND).await;
    tested.tell(WELL);
    // The probe itself does not count.
    assert_eq!((tested.state(), tested.counts()), (State::Closed, (0, 0)));
    tested.tell_times(4, FAILED);
    assert_eq!((tested.state(), tested.counts()), (State::Closed, (4, 4)));
    tested.tell(FAILED);
    assert_eq!(tested.state(), State::Open);
}
