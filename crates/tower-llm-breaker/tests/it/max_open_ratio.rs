//! The maximum open ratio: which circuits are members of the group, for how long an open one counts, and how many open.

use std::time::Duration;

use crate::support::{
    FAILED, MINUTE, MS, Request, SECOND, Says, Staged, Tested, WELL, ask_of, builder, kinds, model,
    touchy,
};
use tokio::time::advance;
use tower_llm_breaker::{BreakerBuilder, CircuitId, EventKind, Force, Reason, State};

// === which circuits count, and for how long ===

const OPEN_FOR: Duration = Duration::from_secs(30);
/// How long a circuit counts if it is not probed after its open time.
const QUIET: Duration = Duration::from_secs(300);

/// Opened by one failure, for 30 s, while at most half of the group is open.
fn pooled() -> BreakerBuilder {
    builder()
        .failure_threshold(1)
        .open_for(OPEN_FOR)
        .max_open_for(QUIET)
        .advanced(|set| set.max_open_ratio(0.5))
}

fn of(model: &str, says: Says) -> Request {
    ask_of("openai", "", model, says)
}

fn named(model: &str) -> CircuitId {
    CircuitId::model("openai", model)
}

/// A layer with a call to each of `models`.
fn pool(models: &[&str]) -> Tested {
    let tested = Tested::new(pooled());
    for model in models {
        tested.call(of(model, WELL)).expect("the call is admitted");
    }
    tested
}

/// The state of `model`'s circuit after a failed call.
fn after_failure(tested: &Tested, model: &str) -> State {
    tested
        .call(of(model, FAILED))
        .expect("the call is admitted");
    tested.handle.state(&named(model))
}

/// The circuit was open in name only, and no other could open any more.
#[tokio::test(start_paused = true)]
async fn an_unused_open_model_keeps_others_closed_only_for_a_time() {
    let tested = pool(&["old", "new"]);
    assert_eq!(after_failure(&tested, "old"), State::Open);
    advance(OPEN_FOR + QUIET - MS).await;
    assert_eq!(after_failure(&tested, "new"), State::Closed);
    advance(MS).await;
    assert_eq!(after_failure(&tested, "new"), State::Open);
}

#[tokio::test(start_paused = true)]
async fn a_model_that_is_probed_again_counts_again() {
    let mut staged = Staged::new(pooled());
    for model in ["old", "new"] {
        staged.begin_of(of(model, WELL)).end(WELL);
    }
    staged.begin_of(of("old", WELL)).end(FAILED);
    advance(OPEN_FOR + QUIET).await;
    let probe = staged.begin_of(of("old", WELL));
    staged.begin_of(of("new", WELL)).end(FAILED);
    assert_eq!(staged.handle.state(&named("new")), State::Closed);
    // The caller of the probe disconnects, and no call follows.
    probe.leave();
    advance(QUIET).await;
    staged.begin_of(of("new", WELL)).end(FAILED);
    assert_eq!(staged.handle.state(&named("new")), State::Open);
}

#[tokio::test(start_paused = true)]
async fn an_extended_opening_counts_for_longer() {
    let tested = pool(&["old", "new"]);
    assert_eq!(after_failure(&tested, "old"), State::Open);
    tested.handle.trip(&named("old"), MINUTE);
    advance(MINUTE + QUIET - MS).await;
    assert_eq!(after_failure(&tested, "new"), State::Closed);
    advance(MS).await;
    assert_eq!(after_failure(&tested, "new"), State::Open);
}

/// These circuits were not members of the group, but counted as open in it.
#[tokio::test(start_paused = true)]
async fn manually_opened_circuits_without_calls_do_not_count() {
    let tested = pool(&["a", "b", "c", "d"]);
    for model in ["x", "y"] {
        tested.handle.trip(&named(model), 60 * MINUTE);
    }
    let states = ["a", "b", "c"].map(|model| after_failure(&tested, model));
    assert_eq!(states, [State::Open, State::Open, State::Closed]);
}

#[tokio::test(start_paused = true)]
async fn a_manually_opened_circuit_counts_once_its_probe_fails() {
    let tested = pool(&["a", "b"]);
    tested.handle.trip(&named("x"), SECOND);
    advance(SECOND).await;
    assert_eq!(after_failure(&tested, "x"), State::Open);
    // That would be two of three.
    assert_eq!(after_failure(&tested, "a"), State::Closed);
    tested.handle.reset(&named("x"));
    assert_eq!(after_failure(&tested, "a"), State::Open);
}

// === how many open ===

fn fail(tested: &Tested, number: usize) {
    let failing = ask_of("openai", "", format!("m-{number}"), FAILED);
    tested.call(failing).expect("the call is admitted");
}

fn open_models(tested: &Tested, models: usize) -> usize {
    let is_open = |number: &usize| {
        let circuit = CircuitId::model("openai", format!("m-{number}"));
        tested.handle.state(&circuit) == State::Open
    };
    (0..models).filter(is_open).count()
}

/// A layer with calls to `models` models, which may open at most `ratio` of them.
fn pool_of(ratio: f64, models: usize) -> Tested {
    let tested = Tested::new(touchy().advanced(|set| set.max_open_ratio(ratio)));
    for number in 0..models {
        let well = ask_of("openai", "", format!("m-{number}"), WELL);
        tested.call(well).expect("the call is admitted");
    }
    tested
}

#[tokio::test(start_paused = true)]
async fn at_most_the_ratio_opens_and_the_others_continue() {
    for (ratio, models, most) in [
        (0.0, 10, 0),
        (0.3, 10, 3),
        (0.5, 3, 1),
        (0.99, 10, 9),
        (1.0, 10, 10),
        // Cases that a product would round down.
        (0.29, 100, 29),
        (0.57, 100, 57),
    ] {
        let tested = pool_of(ratio, models);
        let mut events = tested.handle.subscribe();
        for number in 0..models {
            fail(&tested, number);
        }
        assert_eq!(open_models(&tested, models), most, "{ratio} of {models}");
        let kinds: Vec<_> = kinds(&mut events);
        let kept_closed = EventKind::KeptClosed {
            reason: Reason::ConsecutiveFailures,
        };
        let kept = kinds.iter().filter(|&kind| *kind == kept_closed).count();
        assert_eq!(kept, models - most, "{ratio} of {models}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_circuit_kept_closed_is_reported_once_and_opens_when_it_may() {
    let tested = pool_of(0.5, 2);
    fail(&tested, 0);
    let mut events = tested.handle.subscribe();
    for _ in 0..5 {
        fail(&tested, 1);
    }
    assert_eq!(kinds(&mut events).len(), 1);
    assert_eq!(open_models(&tested, 2), 1);
    // A probe closes it; while it is probed it still counts.
    advance(30 * SECOND).await;
    fail(&tested, 1);
    assert_eq!(open_models(&tested, 2), 0);
    tested.call(ask_of("openai", "", "m-0", WELL)).unwrap();
    fail(&tested, 1);
    assert_eq!(
        tested.handle.state(&CircuitId::model("openai", "m-1")),
        State::Open
    );
    // Now the first has no room.
    fail(&tested, 0);
    assert_eq!(open_models(&tested, 2), 1);
    // A reset frees a slot too.
    tested.handle.reset(&CircuitId::model("openai", "m-1"));
    fail(&tested, 0);
    assert_eq!(
        tested.handle.state(&CircuitId::model("openai", "m-0")),
        State::Open
    );
}

#[tokio::test(start_paused = true)]
async fn manual_trips_throttling_and_spent_accounts_ignore_the_ratio() {
    let tested = Tested::new(touchy().advanced(|set| set.max_open_ratio(0.0)));
    tested.tell(Says::Later(429, 5));
    let clock = CircuitId::account_and_model("openai", "", "m");
    assert_eq!(tested.handle.state(&clock), State::Throttled);
    tested
        .call(ask_of("openai", "a", "m", Says::Status(402)))
        .unwrap();
    assert_eq!(
        tested.handle.state(&CircuitId::account("openai", "a")),
        State::Open
    );
    tested.handle.trip(&model(), MINUTE);
    assert_eq!(tested.state(), State::Open);
}

/// The slots of a group stay correct whatever happens to its circuits: at the end exactly one of two may open.
#[tokio::test(start_paused = true)]
async fn the_slots_stay_correct_through_all_transitions() {
    let tested = pool_of(0.5, 2);
    let named = [0, 1].map(|number| CircuitId::model("openai", format!("m-{number}")));
    for circuit in &named {
        let handle = &tested.handle;
        handle.trip(circuit, SECOND);
        handle.trip(circuit, MINUTE);
        handle.force(circuit, Force::Open);
        handle.trip(circuit, SECOND);
        advance(SECOND).await;
        // Forced during its probe.
        let _ = tested.call(ask_of("openai", "", circuit.key().parts()[1], FAILED));
        handle.force(circuit, Force::MetricsOnly);
        let _ = tested.call(ask_of("openai", "", circuit.key().parts()[1], FAILED));
        handle.force(circuit, Force::Disabled);
        handle.reset(circuit);
        handle.reset(circuit);
    }
    fail(&tested, 0);
    fail(&tested, 1);
    assert_eq!(open_models(&tested, 2), 1);
    for circuit in &named {
        tested.handle.reset(circuit);
    }
    fail(&tested, 1);
    fail(&tested, 0);
    assert_eq!(open_models(&tested, 2), 1);
}
