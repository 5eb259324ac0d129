//! Manual changes to circuits, and what they report.

use std::time::Duration;

use crate::support::{
    FAILED, MINUTE, MS, SECOND, Says, Staged, Tested, WELL, ask, ask_of, builder, kinds, model,
    open, stats, touchy,
};
use tokio::time::{Instant, advance};
use tower_llm_breaker::{CircuitId, EventKind, Force, Reason, Scope, State};
use tower_llm_core::Refusal;

// === manual changes ===

#[tokio::test(start_paused = true)]
async fn a_trip_opens_for_its_time_and_the_later_end_wins() {
    let tested = Tested::new(touchy());
    tested.handle.trip(&model(), MINUTE);
    assert_eq!(tested.refused().retry_after(), Some(MINUTE));
    tested.handle.trip(&model(), SECOND);
    assert_eq!(tested.refused().retry_after(), Some(MINUTE));
    tested.handle.trip(&model(), 2 * MINUTE);
    assert_eq!(tested.refused().retry_after(), Some(2 * MINUTE));
    advance(2 * MINUTE).await;
    tested.tell(WELL);
    assert_eq!(tested.state(), State::Closed);
    // A manual trip does not affect how long failures open the circuit.
    tested.tell(FAILED);
    assert_eq!(tested.refused().retry_after(), Some(30 * SECOND));

    tested.handle.trip(&model(), Duration::MAX);
    let year = 365 * 24 * 60 * MINUTE;
    assert_eq!(tested.refused().retry_after(), Some(year));
}

#[tokio::test(start_paused = true)]
async fn a_forced_open_circuit_stays_open_until_reset() {
    let mut staged = Staged::new(touchy());
    let in_flight = staged.begin();
    staged.handle.force(&model(), Force::Open);
    let refused = staged.refused();
    assert_eq!(
        (refused.state(), refused.retry_after()),
        (State::ForcedOpen, None)
    );
    in_flight.end(WELL);
    advance(300 * 24 * 60 * MINUTE).await;
    assert_eq!(staged.refused().state(), State::ForcedOpen);
    staged.handle.reset(&model());
    staged.tell(FAILED);
    assert_eq!(staged.refused().retry_after(), Some(30 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_disabled_circuit_admits_all_calls_and_counts_none() {
    let tested = Tested::new(touchy());
    let all = [
        CircuitId::provider("openai"),
        model(),
        CircuitId::account("openai", "a"),
        CircuitId::account_and_model("openai", "a", "m"),
    ];
    for circuit in &all {
        tested.handle.force(circuit, Force::Disabled);
    }
    let mut events = tested.handle.subscribe();
    for says in [
        FAILED,
        Says::Broken,
        Says::Status(402),
        Says::Status(401),
        Says::Later(429, 60),
    ] {
        for _ in 0..20 {
            let _ = tested.call(ask_of("openai", "a", "m", says));
        }
    }
    assert_eq!(tested.reached(), 100);
    assert_eq!(kinds(&mut events), []);
    for circuit in &all {
        let stats = tested.handle.stats_of(circuit).unwrap();
        assert_eq!(
            (stats.state, stats.calls, stats.failures),
            (State::Disabled, 0, 0)
        );
    }
}

/// The opening was reported again after every few failures, though an open circuit would have refused those calls.
#[tokio::test(start_paused = true)]
async fn metrics_only_reports_a_would_be_opening_once_per_open_time() {
    let layer = builder()
        .window_calls(10)
        .failure_ratio(0.5)
        .minimum_calls(5)
        .open_for(30 * SECOND)
        .initial_state(Force::MetricsOnly);
    let tested = Tested::new(layer);
    assert_eq!(tested.state(), State::MetricsOnly);
    let mut events = tested.handle.subscribe();
    tested.tell_times(4, FAILED);
    assert_eq!((kinds(&mut events), tested.counts()), (vec![], (4, 4)));
    let would_open = [EventKind::WouldOpen {
        reason: Reason::FailureRatio,
        duration: 30 * SECOND,
    }];
    for _ in 0..3 {
        tested.tell(FAILED);
        assert_eq!(kinds(&mut events), would_open);
        advance(30 * SECOND - MS).await;
        tested.tell_times(20, FAILED);
        assert_eq!(kinds(&mut events), []);
        // Counting continues.
        assert_eq!(
            (tested.state(), tested.counts()),
            (State::MetricsOnly, (10, 10))
        );
        advance(MS).await;
    }
    assert_eq!(tested.reached(), 67);
}

#[tokio::test(start_paused = true)]
async fn metrics_only_reports_a_spent_account_once_per_open_time() {
    let layer = builder().advanced(|set| set.exhausted_for(MINUTE));
    let tested = Tested::new(layer.initial_state(Force::MetricsOnly));
    let mut events = tested.handle.subscribe();
    for _ in 0..2 {
        tested.tell_times(5, Says::Status(402));
        let would_open = EventKind::WouldOpen {
            reason: Reason::Exhausted,
            duration: MINUTE,
        };
        assert_eq!(kinds(&mut events), [would_open]);
        advance(MINUTE).await;
    }
}

/// Closing a closed circuit sent an event "from closed to closed".
#[tokio::test(start_paused = true)]
async fn no_event_reports_a_transition_to_the_same_state() {
    let tested = Tested::new(builder());
    tested.tell(FAILED);
    let mut events = tested.handle.subscribe();
    tested.handle.close(&model());
    tested.handle.reset(&model());
    assert_eq!((kinds(&mut events), tested.counts()), (vec![], (0, 0)));
    for force in [Force::MetricsOnly, Force::Disabled, Force::Open] {
        tested.handle.force(&model(), force);
        assert_eq!(kinds(&mut events).len(), 1, "{force:?}");
        tested.handle.force(&model(), force);
        assert_eq!(kinds(&mut events), [], "{force:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reset_returns_to_the_configured_initial_state() {
    let tested = Tested::new(touchy().initial_state(Force::Open));
    let provider = CircuitId::provider("openai");
    // None exists yet.
    assert_eq!(tested.state(), State::ForcedOpen);
    assert_eq!(tested.refused().circuit(), &provider);
    tested.handle.trip(&provider, SECOND);
    assert_eq!(tested.handle.state(&provider), State::Open);
    tested.handle.reset(&provider);
    assert_eq!(tested.handle.state(&provider), State::ForcedOpen);
    assert_eq!(
        tested.handle.state(&CircuitId::model("new", "new")),
        State::ForcedOpen
    );
}

#[tokio::test(start_paused = true)]
async fn a_reset_clears_all_but_the_refusal_count() {
    let tested = Tested::new(touchy());
    for _ in 0..3 {
        tested.tell(FAILED);
        advance(tested.refused().retry_after().unwrap()).await;
    }
    tested.handle.reset(&model());
    let stats_now = stats(&tested.handle);
    assert_eq!(
        (stats_now.state, stats_now.remaining, stats_now.probes),
        (State::Closed, None, 0)
    );
    assert_eq!(stats_now.refused, 3);
    tested.tell(FAILED);
    // As after the first opening.
    assert_eq!(tested.refused().retry_after(), Some(30 * SECOND));
}

// === events and statistics ===

#[tokio::test(start_paused = true)]
async fn events_have_order_reasons_times_and_generations() {
    let tested = Tested::new(touchy().advanced(|set| set.ramp(MINUTE)));
    let began = Instant::now();
    let mut events = tested.handle.subscribe();
    tested.tell(FAILED);
    advance(30 * SECOND).await;
    tested.tell(Says::Later(503, 100));
    advance(100 * SECOND).await;
    tested.tell(WELL);
    advance(MINUTE).await;
    tested.tell(WELL);
    tested.handle.trip(&model(), SECOND);
    tested.handle.force(&model(), Force::Open);
    tested.handle.reset(&model());

    use Reason::{ConsecutiveFailures, Elapsed, Manual, ProbeFailed, ProbesSucceeded};
    use State::{Closed, ForcedOpen, HalfOpen, Open, Ramping};
    let expected = [
        (0, Closed, Open, ConsecutiveFailures, Some(30), 1),
        (30, Open, HalfOpen, Elapsed, None, 2),
        (30, HalfOpen, Open, ProbeFailed, Some(100), 3),
        (130, Open, HalfOpen, Elapsed, None, 4),
        (130, HalfOpen, Ramping, ProbesSucceeded, Some(60), 5),
        // Counting continues: no generation begins.
        (190, Ramping, Closed, Elapsed, None, 5),
        (190, Closed, Open, Manual, Some(1), 6),
        (190, Open, ForcedOpen, Manual, None, 7),
        (190, ForcedOpen, Closed, Manual, None, 8),
    ];
    for (second, from, to, reason, duration, generation) in expected {
        let event = events.try_recv().unwrap();
        assert_eq!(event.circuit, model());
        assert_eq!(event.at - began, second * SECOND);
        let transition = EventKind::Transition {
            from,
            to,
            reason,
            duration: duration.map(Duration::from_secs),
            generation,
        };
        assert_eq!(event.kind, transition);
    }
    assert_eq!(kinds(&mut events), []);
}

#[tokio::test(start_paused = true)]
async fn stats_report_the_counts_of_each_circuit() {
    let tested = Tested::new(builder().window_calls(100).minimum_calls(100));
    assert_eq!(tested.handle.stats(), []);
    assert_eq!(tested.handle.stats_of(&model()), None);
    tested.tell_times(3, FAILED);
    tested.tell_times(4, WELL);
    tested.tell(Says::Status(404));
    tested.tell_times(2, Says::Broken);
    let stats_now = tested.handle.stats();
    assert_eq!(stats_now.len(), 4);
    let of = |circuit: &CircuitId| {
        let stats = stats_now
            .iter()
            .find(|stats| stats.circuit == *circuit)
            .unwrap();
        assert_eq!(tested.handle.stats_of(circuit).as_ref(), Some(stats));
        (
            stats.calls,
            stats.failures,
            stats.slow_calls,
            stats.refused,
            stats.stale,
        )
    };
    assert_eq!(of(&model()), (7, 3, 0, 0, 0));
    assert_eq!(of(&CircuitId::provider("openai")), (9, 2, 0, 0, 0));
    // These count no calls: a single call opens them.
    assert_eq!(of(&CircuitId::account("openai", "")), (0, 0, 0, 0, 0));
    assert_eq!(
        of(&CircuitId::account_and_model("openai", "", "m")),
        (0, 0, 0, 0, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn only_the_circuit_that_refuses_counts_it() {
    let tested = Tested::new(touchy());
    tested
        .handle
        .trip(&CircuitId::account("openai", ""), MINUTE);
    for _ in 0..7 {
        tested.refused();
    }
    let refused = tested
        .handle
        .stats()
        .into_iter()
        .map(|stats| (stats.circuit.scope(), stats.refused));
    let mut refused: Vec<_> = refused.collect();
    refused.sort_unstable();
    let expected = [
        (Scope::Provider, 0),
        (Scope::ProviderAndModel, 0),
        (Scope::Account, 7),
        (Scope::AccountAndModel, 0),
    ];
    assert_eq!(refused, expected);
}

#[tokio::test(start_paused = true)]
async fn the_error_names_the_circuit_and_its_state() {
    let tested = Tested::new(touchy());
    let text = |tested: &Tested| {
        let error = tested.call(ask(WELL)).unwrap_err();
        assert_eq!(Refusal::find(&*error).unwrap().layer(), "breaker");
        assert_eq!(
            Refusal::find(&*error).unwrap().retry_after(),
            open(&error).retry_after()
        );
        error.to_string()
    };
    tested.tell(FAILED);
    assert_eq!(text(&tested), "circuit open: model openai/m");
    tested.handle.force(&model(), Force::Open);
    assert_eq!(text(&tested), "circuit forced open: model openai/m");
    tested.handle.reset(&model());
    tested.tell(Says::Later(429, 5));
    let expected = "throttled by the provider: account and model openai//m";
    assert_eq!(text(&tested), expected);
}
