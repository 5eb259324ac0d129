//! For how long a circuit is open: by its own settings, because the provider asks to wait, and for an account that is
//! spent or unknown.

use std::time::Duration;

use crate::support::{
    FAILED, HOUR, MINUTE, MS, SECOND, Says, Staged, Tested, WELL, ask, ask_of, builder, model,
    stats, touchy,
};
use tokio::time::advance;
use tower_llm_breaker::{BreakerBuilder, CircuitId, EventKind, Reason, State};
use tower_llm_core::{Key, KeyBy};

fn account_and_model() -> CircuitId {
    CircuitId::account_and_model("openai", "", "m")
}

// === by its own settings ===

#[tokio::test(start_paused = true)]
async fn a_circuit_is_open_up_to_its_last_millisecond() {
    let tested = Tested::new(touchy());
    tested.tell(FAILED);
    assert_eq!(tested.refused().retry_after(), Some(30 * SECOND));
    advance(30 * SECOND - MS).await;
    assert_eq!(tested.state(), State::Open);
    assert_eq!(tested.refused().retry_after(), Some(MS));
    assert_eq!(stats(&tested.handle).remaining, Some(MS));
    advance(MS).await;
    assert_eq!(tested.state(), State::HalfOpen);
    tested.tell(WELL);
    assert_eq!(tested.state(), State::Closed);
    assert_eq!(stats(&tested.handle).refused, 2);
}

#[tokio::test(start_paused = true)]
async fn opening_between_two_milliseconds_does_not_shorten_the_time() {
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

/// Opens the circuit and waits for the probe; returns how long it was open.
async fn open_once(tested: &Tested) -> Duration {
    tested.tell(FAILED);
    let open_for = tested.refused().retry_after().expect("it is open");
    advance(open_for).await;
    open_for
}

#[tokio::test(start_paused = true)]
async fn each_failed_probe_opens_for_longer_up_to_the_maximum() {
    let tested = Tested::new(touchy().max_open_for(5 * MINUTE));
    let mut times = Vec::new();
    for _ in 0..7 {
        times.push(open_once(&tested).await.as_secs());
    }
    assert_eq!(times, [30, 60, 120, 240, 300, 300, 300]);

    let tested = Tested::new(touchy().advanced(|set| set.open_factor(1.0)));
    for _ in 0..4 {
        assert_eq!(open_once(&tested).await, 30 * SECOND);
    }
    // More openings than the exponent of a float can hold.
    let tested = Tested::new(
        touchy()
            .advanced(|set| set.open_factor(1_000.0))
            .max_open_for(MINUTE),
    );
    for number in 0..400 {
        let expected = if number == 0 { 30 } else { 60 };
        assert_eq!(open_once(&tested).await.as_secs(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn the_open_time_starts_again_after_staying_closed() {
    let tested = Tested::new(touchy());
    for expected in [30, 60] {
        assert_eq!(open_once(&tested).await.as_secs(), expected);
    }
    tested.tell(WELL);
    // One millisecond short of the time.
    advance(30 * SECOND - MS).await;
    assert_eq!(open_once(&tested).await.as_secs(), 120);
    tested.tell(WELL);
    advance(30 * SECOND).await;
    for expected in [30, 60] {
        assert_eq!(open_once(&tested).await.as_secs(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn time_open_manually_does_not_count_as_closed() {
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
async fn jitter_extends_the_open_time_by_up_to_its_ratio() {
    let mut times = Vec::new();
    for _ in 0..300 {
        let tested = Tested::new(touchy().advanced(|set| set.jitter(0.5)));
        tested.tell(FAILED);
        times.push(tested.refused().retry_after().unwrap());
    }
    // Rounded up to whole milliseconds.
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

// === the provider's retry-after ===

#[tokio::test(start_paused = true)]
async fn retry_after_of_an_overload_is_the_minimum_open_time_up_to_a_limit() {
    for (asked, expected) in [(100, 100), (30, 30), (10, 30), (10_000, 1_000)] {
        let tested = Tested::new(touchy().advanced(|set| set.max_retry_after(1_000 * SECOND)));
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

/// The longest retry-after of the counted failures applies, whichever of them opens the circuit.
#[tokio::test(start_paused = true)]
async fn a_circuit_opens_for_the_longest_retry_after_of_its_failures() {
    let builder = builder().failure_threshold(2);
    let mut staged = Staged::new(builder.advanced(|set| set.jitter(0.0)));
    staged.tell(Says::Later(529, 600));
    assert_eq!(staged.state(), State::Closed);
    advance(100 * SECOND).await;
    staged.tell(FAILED);
    assert_eq!(staged.refused().retry_after(), Some(500 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_429_with_retry_after_refuses_until_then_and_is_no_failure() {
    let tested = Tested::new(touchy());
    let mut events = tested.handle.subscribe();
    tested.tell(Says::Later(429, 20));
    assert_eq!(tested.state(), State::Closed);
    assert_eq!(tested.counts(), (0, 0));
    assert_eq!(tested.handle.state(&account_and_model()), State::Throttled);
    let refused = tested.refused();
    assert_eq!(
        (refused.state(), refused.circuit()),
        (State::Throttled, &account_and_model())
    );
    advance(20 * SECOND - MS).await;
    assert_eq!(tested.refused().retry_after(), Some(MS));
    advance(MS).await;
    assert_eq!(tested.handle.state(&account_and_model()), State::Closed);
    tested.tell(WELL);

    let transition = |from, to, reason, duration, generation| EventKind::Transition {
        from,
        to,
        reason,
        duration,
        generation,
    };
    use State::{Closed, Throttled};
    let expected = [
        // No call counted before is stale.
        transition(Closed, Throttled, Reason::Throttled, Some(20 * SECOND), 0),
        transition(Throttled, Closed, Reason::Elapsed, None, 0),
    ];
    for expected in expected {
        let event = events.try_recv().unwrap();
        assert_eq!((event.circuit, event.kind), (account_and_model(), expected));
    }
    assert!(events.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn after_retry_after_all_calls_pass_without_probing() {
    let mut staged = Staged::new(touchy());
    staged.tell(Says::Later(429, 20));
    advance(20 * SECOND).await;
    let calls: Vec<_> = (0..10).map(|_| staged.begin()).collect();
    let stats = staged.handle.stats_of(&account_and_model()).unwrap();
    assert_eq!((stats.state, stats.probes), (State::Closed, 0));
    for call in calls {
        call.end(WELL);
    }
}

#[tokio::test(start_paused = true)]
async fn retry_after_of_a_429_is_capped_and_jittered() {
    let tested = Tested::new(builder().advanced(|set| set.max_retry_after(MINUTE)));
    tested.tell(Says::Later(429, 3_600));
    assert_eq!(tested.refused().retry_after(), Some(MINUTE));

    for _ in 0..50 {
        let tested = Tested::new(builder().advanced(|set| set.jitter(0.5)));
        tested.tell(Says::Later(429, 20));
        let waits = tested.refused().retry_after().unwrap();
        assert!(
            waits >= 20 * SECOND && waits <= 30 * SECOND + MS,
            "{waits:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_429_without_retry_after_changes_nothing_and_is_reported() {
    let tested = Tested::new(touchy());
    let mut events = tested.handle.subscribe();
    tested.tell_times(100, Says::Status(429));
    tested.tell(Says::Later(429, 0));
    assert_eq!(tested.state(), State::Closed);
    assert_eq!(tested.handle.state(&account_and_model()), State::Closed);
    assert_eq!(tested.counts(), (0, 0));
    for _ in 0..101 {
        let event = events.try_recv().unwrap();
        assert_eq!(
            (event.circuit, event.kind),
            (account_and_model(), EventKind::Throttled)
        );
    }
    assert!(events.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn the_later_of_two_retry_afters_wins() {
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
        let stats = staged.handle.stats_of(&account_and_model()).unwrap();
        assert_eq!(stats.state, State::Throttled);
    }
}

fn by_one_key(builder: BreakerBuilder) -> (Staged, CircuitId) {
    let staged = Staged::new(builder.key_by(KeyBy::provider()));
    (staged, CircuitId::key_only(Key::new("openai")))
}

/// One circuit for everything handles both retry-after and failures.
#[tokio::test(start_paused = true)]
async fn the_later_of_an_open_time_and_a_retry_after_wins() {
    for asked in [10, 100] {
        let (mut staged, key) = by_one_key(touchy());
        let calls = [staged.begin(), staged.begin()];
        for (call, says) in calls.into_iter().zip([FAILED, Says::Later(429, asked)]) {
            call.end(says);
        }
        let expected = Duration::from_secs(u64::from(asked.max(30)));
        assert_eq!(staged.refused().retry_after(), Some(expected));
        // The circuit must be probed.
        assert_eq!(staged.handle.state(&key), State::Open);
        advance(expected).await;
        let _probe = staged.begin();
        assert_eq!(staged.refused().state(), State::HalfOpen);
    }
}

/// Each 429 emptied the window, so failures between two of them never reached the threshold.
#[tokio::test(start_paused = true)]
async fn failures_between_two_429s_open_one_shared_circuit() {
    let (mut staged, key) = by_one_key(builder().window_calls(100).minimum_calls(50));
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
async fn a_429_does_not_end_a_run_of_failures_and_calls_in_flight_count_meanwhile() {
    let (mut staged, key) = by_one_key(builder().failure_threshold(3).open_for(30 * SECOND));
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

/// The retry-after ended the ramp.
#[tokio::test(start_paused = true)]
async fn retry_after_on_a_ramp_does_not_end_the_ramp() {
    let key = CircuitId::key_only(Key::new("openai"));
    let ramping = touchy()
        .key_by(KeyBy::provider())
        .advanced(|set| set.ramp(100 * SECOND));
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
        (stats.state, stats.remaining),
        (State::Ramping, Some(90 * SECOND))
    );
    let passed = (0..100).filter(|_| tested.call(ask(WELL)).is_ok()).count();
    assert!((10..=11).contains(&passed), "{passed}");
    // The ramp ends while the next retry-after runs.
    advance(90 * SECOND - MS).await;
    while tested.call(ask(Says::Later(429, 10))).is_err() {}
    assert_eq!(tested.handle.state(&key), State::Throttled);
    advance(10 * SECOND).await;
    assert_eq!(tested.handle.state(&key), State::Closed);
    tested.tell_times(10, WELL);
}

#[tokio::test(start_paused = true)]
async fn a_probe_answered_429_with_retry_after_opens_until_then() {
    let (mut staged, key) = by_one_key(touchy());
    staged.tell(FAILED);
    advance(30 * SECOND).await;
    staged.tell(Says::Later(429, 7));
    assert_eq!(staged.handle.state(&key), State::Open);
    assert_eq!(staged.refused().retry_after(), Some(7 * SECOND));
    advance(7 * SECOND).await;
    // The 429 was no failure: the next failure opens for twice the first time.
    staged.tell(FAILED);
    assert_eq!(staged.refused().retry_after(), Some(60 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn the_later_of_a_retry_after_and_a_spent_account_wins() {
    for asked in [60, 3_600] {
        let (mut staged, _) = by_one_key(touchy().advanced(|set| set.exhausted_for(15 * MINUTE)));
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
async fn a_short_manual_trip_does_not_shorten_retry_after() {
    let tested = Tested::new(builder());
    tested.tell(Says::Later(429, 60));
    tested.handle.trip(&account_and_model(), SECOND);
    assert_eq!(tested.refused().retry_after(), Some(MINUTE));
}

// === accounts ===

#[tokio::test(start_paused = true)]
async fn a_spent_account_is_open_for_long() {
    let tested = Tested::new(touchy().advanced(|set| set.exhausted_for(15 * MINUTE)));
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
    // Still spent: the same time again.
    tested
        .call(ask_of("openai", "a", "m", Says::Status(402)))
        .unwrap();
    let refused = tested.refuses(ask_of("openai", "a", "m", WELL));
    assert_eq!(refused.retry_after(), Some(15 * MINUTE));
    advance(15 * MINUTE).await;
    tested.call(ask_of("openai", "a", "m", WELL)).unwrap();
    assert_eq!(tested.handle.state(&account), State::Closed);
}
