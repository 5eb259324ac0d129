//! When a circuit opens, for how long, and when it closes.

mod support;

use std::{collections::VecDeque, time::Duration};

use support::{MINUTE, MS, SECOND, Says, Staged, Tested, ask, ask_of, builder, model, stats};
use tokio::time::{Instant, advance};
use tower_llm_breaker::{BreakerBuilder, CircuitId, EventKind, Reason, State};
use tower_llm_core::{Key, KeyBy};

const WELL: Says = Says::Well;
const FAILED: Says = Says::Status(500);
const HOUR: Duration = Duration::from_secs(3_600);

fn clock() -> CircuitId {
    CircuitId::account_and_model("openai", "", "m")
}

/// Opened by one failure, for 30 s.
fn touchy() -> BreakerBuilder {
    builder().consecutive_failures(1).open_for(30 * SECOND)
}

/// Counts all, and no failures open it.
fn patient() -> BreakerBuilder {
    builder().max_open_share(0.0)
}

// === the window by count ===

#[tokio::test(start_paused = true)]
async fn after_any_number_of_successes_exactly_50_failures_open_a_window_of_100() {
    for successes in [0, 10, 100, 1_000, 100_000] {
        let tested = Tested::new(
            builder()
                .over_calls(100)
                .failure_ratio(0.5)
                .minimum_calls(100),
        );
        tested.tell_times(successes, WELL);
        tested.tell_times(49, FAILED);
        assert_eq!(tested.state(), State::Closed, "{successes}");
        assert_eq!(tested.counts(), ((successes as u64 + 49).min(100), 49));
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
        let tested = Tested::new(patient().over_calls(calls));
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
    let tested = Tested::new(builder().over_calls(10).failure_ratio(0.5));
    tested.tell_times(4, FAILED);
    tested.tell_times(9, WELL);
    // The first three are gone.
    tested.tell_times(3, FAILED);
    assert_eq!(tested.counts(), (10, 3));
    tested.tell_times(1, FAILED);
    assert_eq!((tested.counts(), tested.state()), ((10, 4), State::Closed));
    tested.tell_times(1, FAILED);
    assert_eq!(tested.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn time_takes_nothing_from_a_window_by_count() {
    let tested = Tested::new(builder().over_calls(10).failure_ratio(0.5));
    tested.tell_times(4, FAILED);
    advance(24 * HOUR).await;
    assert_eq!(tested.counts(), (4, 4));
    tested.tell(FAILED);
    assert_eq!(tested.state(), State::Open);
}

// === the window by time ===

#[tokio::test(start_paused = true)]
async fn what_ended_in_a_tenth_of_the_window_leaves_it_together() {
    let tested = Tested::new(patient().over_time(10 * SECOND));
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
    let tested = Tested::new(
        builder()
            .over_time(MINUTE)
            .failure_ratio(0.5)
            .minimum_calls(10),
    );
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

/// A bucket keeps twelve bits of its time: what is 4,096 tenths old must not be taken for new.
#[tokio::test(start_paused = true)]
async fn what_is_very_old_never_comes_back() {
    for rest in [10, 100, 4_086, 4_087, 4_095, 4_096, 4_097, 4_105, 8_192] {
        let tested = Tested::new(patient().over_time(10 * SECOND));
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

/// Nor where calls go on coming, and none of them ends in a tenth that would have written over it.
#[tokio::test(start_paused = true)]
async fn what_nothing_was_written_over_never_comes_back() {
    let tested = Tested::new(patient().over_time(10 * SECOND));
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
        let tested = Tested::new(patient().over_time(10 * SECOND));
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
                .over_calls(100)
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
async fn of_fewer_calls_than_the_minimum_those_that_are_missing_count_as_good() {
    let tested = Tested::new(builder().failure_ratio(0.5).minimum_calls(10));
    tested.tell_times(4, FAILED);
    assert_eq!(tested.state(), State::Closed);
    tested.tell(FAILED);
    assert_eq!(tested.state(), State::Open);

    // Above it, all that were made: 19 of 39 are not half, 20 of 40 are.
    let tested = Tested::new(builder().failure_ratio(0.5).minimum_calls(10));
    tested.tell_times(20, WELL);
    tested.tell_times(19, FAILED);
    assert_eq!(tested.state(), State::Closed);
    tested.tell(FAILED);
    assert_eq!(tested.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_ratio_of_zero_is_the_first_failure() {
    let tested = Tested::new(builder().failure_ratio(0.0));
    tested.tell_times(1_000, WELL);
    assert_eq!(tested.state(), State::Closed);
    tested.tell(FAILED);
    assert_eq!(tested.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn so_many_failures_one_after_the_other_open_and_a_success_begins_anew() {
    let tested = Tested::new(builder().without_failure_ratio().consecutive_failures(5));
    let mut events = tested.handle.subscribe();
    tested.tell_times(4, FAILED);
    tested.tell(WELL);
    tested.tell_times(4, FAILED);
    assert_eq!(tested.state(), State::Closed);
    // Neither a caller's fault nor a clock without a time ends the row, or is one of it.
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
        lasts: Some(30 * SECOND),
        generation: 1,
    };
    assert_eq!(kind, expected);
}

#[tokio::test(start_paused = true)]
async fn a_window_begins_empty_after_each_change() {
    let tested = Tested::new(
        builder()
            .over_calls(10)
            .failure_ratio(0.5)
            .consecutive_failures(9),
    );
    tested.tell_times(5, FAILED);
    assert_eq!((tested.state(), tested.counts()), (State::Open, (0, 0)));
    advance(30 * SECOND).await;
    tested.tell(WELL);
    // The probe itself is not counted.
    assert_eq!((tested.state(), tested.counts()), (State::Closed, (0, 0)));
    tested.tell_times(4, FAILED);
    assert_eq!((tested.state(), tested.counts()), (State::Closed, (4, 4)));
    tested.tell(FAILED);
    assert_eq!(tested.state(), State::Open);
}

// === open, and for how long ===

#[tokio::test(start_paused = true)]
async fn it_is_open_up_to_its_last_millisecond() {
    let tested = Tested::new(touchy());
    tested.tell(FAILED);
    assert_eq!(tested.refused().retry_after(), Some(30 * SECOND));
    advance(30 * SECOND - MS).await;
    assert_eq!(tested.state(), State::Open);
    assert_eq!(tested.refused().retry_after(), Some(MS));
    assert_eq!(stats(&tested.handle).lasts, Some(MS));
    advance(MS).await;
    assert_eq!(tested.state(), State::HalfOpen);
    tested.tell(WELL);
    assert_eq!(tested.state(), State::Closed);
    assert_eq!(stats(&tested.handle).refused, 2);
}

#[tokio::test(start_paused = true)]
async fn what_opens_between_two_milliseconds_is_not_open_too_briefly() {
    let tested = Tested::new(touchy());
    advance(Duration::from_micros(500)).await;
    tested.tell(FAILED);
    let waits = tested.refused().retry_after().unwrap();
    assert_eq!(waits, 30 * SECOND + Duration::from_micros(500));
    advance(waits - Duration::from_nanos(1)).await;
    tested.refused();
    advance(Duration::from_nanos(1)).await;
    tested.tell(WELL);
}

/// Opens it, which is for as long as is returned, and waits for the probe.
async fn open_once(tested: &Tested) -> Duration {
    tested.tell(FAILED);
    let open_for = tested.refused().retry_after().expect("it is open");
    advance(open_for).await;
    open_for
}

#[tokio::test(start_paused = true)]
async fn each_probe_that_fails_opens_it_for_longer_up_to_the_longest() {
    let tested = Tested::new(touchy().max_open_for(5 * MINUTE));
    let mut times = Vec::new();
    for _ in 0..7 {
        times.push(open_once(&tested).await.as_secs());
    }
    assert_eq!(times, [30, 60, 120, 240, 300, 300, 300]);

    let tested = Tested::new(touchy().open_factor(1.0));
    for _ in 0..4 {
        assert_eq!(open_once(&tested).await, 30 * SECOND);
    }
    // More of them than a float's exponent has room for.
    let tested = Tested::new(touchy().open_factor(1_000.0).max_open_for(MINUTE));
    for number in 0..400 {
        let expected = if number == 0 { 30 } else { 60 };
        assert_eq!(open_once(&tested).await.as_secs(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_open_as_briefly_as_at_first_once_it_has_stayed_closed_for_so_long() {
    let tested = Tested::new(touchy());
    for expected in [30, 60] {
        assert_eq!(open_once(&tested).await.as_secs(), expected);
    }
    tested.tell(WELL);
    // It has not stayed closed for long enough by a millisecond.
    advance(30 * SECOND - MS).await;
    assert_eq!(open_once(&tested).await.as_secs(), 120);
    tested.tell(WELL);
    advance(30 * SECOND).await;
    for expected in [30, 60] {
        assert_eq!(open_once(&tested).await.as_secs(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn time_that_it_was_open_by_hand_is_no_time_that_it_stayed_closed() {
    let tested = Tested::new(touchy());
    for expected in [30, 60] {
        assert_eq!(open_once(&tested).await.as_secs(), expected);
    }
    tested.tell(WELL);
    advance(SECOND).await;
    tested.handle.trip(&model(), HOUR);
    advance(HOUR).await;
    assert_eq!(open_once(&tested).await.as_secs(), 120);
}

#[tokio::test(start_paused = true)]
async fn jitter_lengthens_the_open_time_by_up_to_its_share() {
    let mut times = Vec::new();
    for _ in 0..300 {
        let tested = Tested::new(touchy().jitter(0.5));
        tested.tell(FAILED);
        times.push(tested.refused().retry_after().unwrap());
    }
    // To whole milliseconds, rounded up.
    let (first, last) = (*times.iter().min().unwrap(), *times.iter().max().unwrap());
    assert!(
        first >= 30 * SECOND && last <= 45 * SECOND + MS,
        "{first:?} {last:?}"
    );
    // One in 10^34 that 300 draws miss a quarter of the range.
    assert!(
        first < 34 * SECOND && last > 41 * SECOND,
        "{first:?} {last:?}"
    );
}

// === what the provider asks for ===

#[tokio::test(start_paused = true)]
async fn retry_after_of_an_overload_that_opens_is_the_least_and_is_believed_up_to_a_limit() {
    for (asked, expected) in [(100, 100), (30, 30), (10, 30), (10_000, 1_000)] {
        let tested = Tested::new(touchy().max_retry_after(1_000 * SECOND));
        tested.tell(Says::Later(503, asked));
        let waits = tested.refused().retry_after().unwrap();
        assert_eq!(waits.as_secs(), expected, "{asked}");
        assert_eq!(tested.state(), State::Open);
    }
}

#[tokio::test(start_paused = true)]
async fn retry_after_of_a_probe_counts_too() {
    let tested = Tested::new(touchy());
    open_once(&tested).await;
    tested.tell(Says::Later(529, 500));
    assert_eq!(tested.refused().retry_after(), Some(500 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_429_with_a_time_shuts_until_then_and_is_no_failure() {
    let tested = Tested::new(touchy());
    let mut events = tested.handle.subscribe();
    tested.tell(Says::Later(429, 20));
    assert_eq!(tested.state(), State::Closed);
    assert_eq!(tested.counts(), (0, 0));
    assert_eq!(tested.handle.state(&clock()), State::Throttled);
    let refused = tested.refused();
    assert_eq!(
        (refused.state(), refused.circuit()),
        (State::Throttled, &clock())
    );
    advance(20 * SECOND - MS).await;
    assert_eq!(tested.refused().retry_after(), Some(MS));
    advance(MS).await;
    assert_eq!(tested.handle.state(&clock()), State::Closed);
    tested.tell(WELL);

    let transition = |from, to, reason, lasts, generation| EventKind::Transition {
        from,
        to,
        reason,
        lasts,
        generation,
    };
    use State::{Closed, Throttled};
    let expected = [
        // Nothing that was counted before is late.
        transition(Closed, Throttled, Reason::Throttled, Some(20 * SECOND), 0),
        transition(Throttled, Closed, Reason::TimeOver, None, 0),
    ];
    for expected in expected {
        let event = events.try_recv().unwrap();
        assert_eq!((event.circuit, event.kind), (clock(), expected));
    }
    assert!(events.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn after_the_providers_clock_all_come_back_without_probing() {
    let mut staged = Staged::new(touchy());
    staged.tell(Says::Later(429, 20));
    advance(20 * SECOND).await;
    let calls: Vec<_> = (0..10).map(|_| staged.begin()).collect();
    let stats = staged.handle.stats_of(&clock()).unwrap();
    assert_eq!((stats.state, stats.probes), (State::Closed, 0));
    for call in calls {
        call.end(WELL);
    }
}

#[tokio::test(start_paused = true)]
async fn a_429_is_believed_up_to_a_limit_and_jittered() {
    let tested = Tested::new(builder().max_retry_after(MINUTE));
    tested.tell(Says::Later(429, 3_600));
    assert_eq!(tested.refused().retry_after(), Some(MINUTE));

    for _ in 0..50 {
        let tested = Tested::new(builder().jitter(0.5));
        tested.tell(Says::Later(429, 20));
        let waits = tested.refused().retry_after().unwrap();
        assert!(
            waits >= 20 * SECOND && waits <= 30 * SECOND + MS,
            "{waits:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_429_without_a_time_changes_nothing_and_is_told() {
    let tested = Tested::new(touchy());
    let mut events = tested.handle.subscribe();
    tested.tell_times(100, Says::Status(429));
    tested.tell(Says::Later(429, 0));
    assert_eq!(tested.state(), State::Closed);
    assert_eq!(tested.handle.state(&clock()), State::Closed);
    assert_eq!(tested.counts(), (0, 0));
    for _ in 0..101 {
        let event = events.try_recv().unwrap();
        assert_eq!((event.circuit, event.kind), (clock(), EventKind::Throttled));
    }
    assert!(events.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn of_two_clocks_the_later_wins() {
    for asked in [[20, 60], [60, 20]] {
        let mut staged = Staged::new(builder());
        let calls = [staged.begin(), staged.begin()];
        for (call, seconds) in calls.into_iter().zip(asked) {
            call.end(Says::Later(429, seconds));
        }
        assert_eq!(
            staged.refused().retry_after(),
            Some(60 * SECOND),
            "{asked:?}"
        );
        let stats = staged.handle.stats_of(&clock()).unwrap();
        assert_eq!(stats.state, State::Throttled);
    }
}

fn by_one_key(builder: BreakerBuilder) -> (Staged, CircuitId) {
    let staged = Staged::new(builder.key_by(KeyBy::provider()));
    (staged, CircuitId::key_only(Key::new("openai")))
}

/// The one circuit of all knows both clocks and failures.
#[tokio::test(start_paused = true)]
async fn of_failures_and_a_clock_the_later_wins() {
    for asked in [10, 100] {
        let (mut staged, key) = by_one_key(touchy());
        let calls = [staged.begin(), staged.begin()];
        for (call, says) in calls.into_iter().zip([FAILED, Says::Later(429, asked)]) {
            call.end(says);
        }
        let expected = Duration::from_secs(u64::from(asked.max(30)));
        assert_eq!(staged.refused().retry_after(), Some(expected));
        // And it must be probed.
        assert_eq!(staged.handle.state(&key), State::Open);
        advance(expected).await;
        let _probe = staged.begin();
        assert_eq!(staged.refused().state(), State::HalfOpen);
    }
}

/// Each 429 emptied the window, and no failures between two of them were ever enough.
#[tokio::test(start_paused = true)]
async fn failures_between_the_clocks_of_one_circuit_open_it() {
    let (mut staged, key) = by_one_key(builder().over_calls(100).minimum_calls(100));
    let mut failures = 0;
    for number in 1.. {
        assert_eq!(staged.handle.state(&key), State::Closed, "{failures}");
        if number % 5 == 0 {
            staged.tell(Says::Later(429, 1));
            assert_eq!(staged.handle.state(&key), State::Throttled);
        } else {
            staged.tell(FAILED);
            failures += 1;
        }
        if failures == 50 {
            break;
        }
        advance(SECOND).await;
    }
    assert_eq!(staged.handle.state(&key), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_clock_breaks_no_row_of_failures_and_what_was_under_way_counts_while_it_runs() {
    let (mut staged, key) = by_one_key(builder().consecutive_failures(3).open_for(30 * SECOND));
    staged.tell(FAILED);
    let calls = [staged.begin(), staged.begin()];
    staged.tell(Says::Later(429, 60));
    let [second, third] = calls;
    second.end(FAILED);
    assert_eq!(staged.handle.state(&key), State::Throttled);
    advance(20 * SECOND).await;
    third.end(FAILED);
    // Until the later of both ends.
    assert_eq!(staged.handle.state(&key), State::Open);
    assert_eq!(staged.refused().retry_after(), Some(40 * SECOND));
    assert_eq!(staged.handle.stats_of(&key).unwrap().stale, 0);
}

/// It ended the ramp.
#[tokio::test(start_paused = true)]
async fn a_clock_that_runs_on_a_ramp_does_not_end_it() {
    let key = CircuitId::key_only(Key::new("openai"));
    let ramping = touchy().key_by(KeyBy::provider()).ramp(100 * SECOND);
    let tested = Tested::new(ramping);
    tested.handle.trip(&key, SECOND);
    advance(SECOND).await;
    tested.tell(WELL);
    assert_eq!(tested.handle.state(&key), State::Ramping);
    tested.tell(Says::Later(429, 10));
    assert_eq!(tested.refused().state(), State::Throttled);
    advance(10 * SECOND).await;
    let stats = tested.handle.stats_of(&key).unwrap();
    assert_eq!(
        (stats.state, stats.lasts),
        (State::Ramping, Some(90 * SECOND))
    );
    let passed = (0..100).filter(|_| tested.call(ask(WELL)).is_ok()).count();
    assert!((10..=11).contains(&passed), "{passed}");
    // The ramp ends while the next one runs.
    advance(90 * SECOND - MS).await;
    while tested.call(ask(Says::Later(429, 10))).is_err() {}
    assert_eq!(tested.handle.state(&key), State::Throttled);
    advance(10 * SECOND).await;
    assert_eq!(tested.handle.state(&key), State::Closed);
    tested.tell_times(10, WELL);
}

#[tokio::test(start_paused = true)]
async fn a_clock_in_place_of_a_probes_answer_opens_until_then() {
    let (mut staged, key) = by_one_key(touchy());
    staged.tell(FAILED);
    advance(30 * SECOND).await;
    staged.tell(Says::Later(429, 7));
    assert_eq!(staged.handle.state(&key), State::Open);
    assert_eq!(staged.refused().retry_after(), Some(7 * SECOND));
    advance(7 * SECOND).await;
    // It was no failure: the next one opens for twice the first time.
    staged.tell(FAILED);
    assert_eq!(staged.refused().retry_after(), Some(60 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn of_a_clock_and_a_spent_account_the_later_wins() {
    for asked in [60, 3_600] {
        let (mut staged, _) = by_one_key(touchy().exhausted_for(15 * MINUTE));
        let calls = [staged.begin(), staged.begin()];
        for (call, says) in calls
            .into_iter()
            .zip([Says::Later(429, asked), Says::Status(402)])
        {
            call.end(says);
        }
        let expected = Duration::from_secs(u64::from(asked)).max(15 * MINUTE);
        assert_eq!(staged.refused().retry_after(), Some(expected));
    }
}

#[tokio::test(start_paused = true)]
async fn a_hand_that_opens_for_a_moment_does_not_cut_the_providers_clock_short() {
    let tested = Tested::new(builder());
    tested.tell(Says::Later(429, 60));
    tested.handle.trip(&clock(), SECOND);
    assert_eq!(tested.refused().retry_after(), Some(MINUTE));
}

// === accounts ===

#[tokio::test(start_paused = true)]
async fn a_spent_account_is_open_for_long() {
    let tested = Tested::new(touchy().exhausted_for(15 * MINUTE));
    tested
        .call(ask_of("openai", "a", "m", Says::Status(402)))
        .unwrap();
    let account = CircuitId::account("openai", "a");
    let refused = tested.refuses(ask_of("openai", "a", "other", WELL));
    assert_eq!(
        (refused.circuit(), refused.state()),
        (&account, State::Open)
    );
    assert_eq!(refused.retry_after(), Some(15 * MINUTE));
    assert_eq!(tested.counts(), (0, 0));
    advance(15 * MINUTE - MS).await;
    tested.refuses(ask_of("openai", "a", "m", WELL));
    advance(MS).await;
    assert_eq!(tested.handle.state(&account), State::HalfOpen);
    // Still spent: the same time once more.
    tested
        .call(ask_of("openai", "a", "m", Says::Status(402)))
        .unwrap();
    let refused = tested.refuses(ask_of("openai", "a", "m", WELL));
    assert_eq!(refused.retry_after(), Some(15 * MINUTE));
    advance(15 * MINUTE).await;
    tested.call(ask_of("openai", "a", "m", WELL)).unwrap();
    assert_eq!(tested.handle.state(&account), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_401_opens_a_named_account_alone_and_without_a_name_nothing() {
    let tested = Tested::new(touchy());
    let began = Instant::now();
    tested.tell_times(1_000, Says::Status(401));
    assert_eq!(tested.call(ask(WELL)).unwrap(), 200);
    assert_eq!(
        tested.handle.state(&CircuitId::account("openai", "")),
        State::Closed
    );

    tested
        .call(ask_of("openai", "a", "m", Says::Status(401)))
        .unwrap();
    let account = CircuitId::account("openai", "a");
    let refused = tested.refuses(ask_of("openai", "a", "m", WELL));
    assert_eq!(refused.circuit(), &account);
    assert_eq!(refused.retry_after(), Some(15 * MINUTE));
    for other in [
        ask_of("openai", "b", "m", WELL),
        ask_of("anthropic", "a", "m", WELL),
        ask(WELL),
    ] {
        assert_eq!(tested.call(other).unwrap(), 200);
    }
    // 403 is about this one request.
    tested
        .call(ask_of("openai", "b", "m", Says::Status(403)))
        .unwrap();
    assert_eq!(tested.call(ask_of("openai", "b", "m", WELL)).unwrap(), 200);
    assert_eq!(began.elapsed(), Duration::ZERO);
}
