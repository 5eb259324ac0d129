//! Never all: which circuits a share is of, and for how long one that is open counts.

mod support;

use std::time::Duration;

use support::{MINUTE, MS, Request, SECOND, Says, Staged, Tested, ask_of, builder};
use tokio::time::advance;
use tower_llm_breaker::{BreakerBuilder, CircuitId, State};

const WELL: Says = Says::Well;
const FAILED: Says = Says::Status(500);
const OPEN_FOR: Duration = Duration::from_secs(30);
/// For how long a circuit counts that nobody probes when its time is over.
const QUIET: Duration = Duration::from_secs(300);

/// Opened by one failure, for 30 s, if half of them may be open then.
fn pooled() -> BreakerBuilder {
    builder()
        .consecutive_failures(1)
        .open_for(OPEN_FOR)
        .max_open_for(QUIET)
        .max_open_share(0.5)
}

fn of(model: &str, says: Says) -> Request {
    ask_of("openai", "", model, says)
}

fn named(model: &str) -> CircuitId {
    CircuitId::model("openai", model)
}

/// A layer that has asked `models`.
fn pool(models: &[&str]) -> Tested {
    let tested = Tested::new(pooled());
    for model in models {
        tested.call(of(model, WELL)).expect("it is let through");
    }
    tested
}

/// What the circuit of `model` does when a call has failed.
fn after_failure(tested: &Tested, model: &str) -> State {
    tested.call(of(model, FAILED)).expect("it is let through");
    tested.handle.state(&named(model))
}

/// It was open in name, and nothing else could open any more.
#[tokio::test(start_paused = true)]
async fn a_model_that_is_asked_no_more_keeps_another_closed_for_some_time_only() {
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
    // Its caller leaves, and nobody comes after him.
    probe.leave();
    advance(QUIET).await;
    staged.begin_of(of("new", WELL)).end(FAILED);
    assert_eq!(staged.handle.state(&named("new")), State::Open);
}

#[tokio::test(start_paused = true)]
async fn one_whose_time_was_prolonged_counts_for_longer() {
    let tested = pool(&["old", "new"]);
    assert_eq!(after_failure(&tested, "old"), State::Open);
    tested.handle.trip(&named("old"), MINUTE);
    advance(MINUTE + QUIET - MS).await;
    assert_eq!(after_failure(&tested, "new"), State::Closed);
    advance(MS).await;
    assert_eq!(after_failure(&tested, "new"), State::Open);
}

/// They were none of the group, and counted as open in it.
#[tokio::test(start_paused = true)]
async fn circuits_that_a_hand_has_opened_and_nobody_calls_take_no_room() {
    let tested = pool(&["a", "b", "c", "d"]);
    for model in ["x", "y"] {
        tested.handle.trip(&named(model), 60 * MINUTE);
    }
    let states = ["a", "b", "c"].map(|model| after_failure(&tested, model));
    assert_eq!(states, [State::Open, State::Open, State::Closed]);
}

#[tokio::test(start_paused = true)]
async fn one_that_a_hand_has_opened_counts_when_a_probe_of_it_has_failed() {
    let tested = pool(&["a", "b"]);
    tested.handle.trip(&named("x"), SECOND);
    advance(SECOND).await;
    assert_eq!(after_failure(&tested, "x"), State::Open);
    // It would be two of three.
    assert_eq!(after_failure(&tested, "a"), State::Closed);
    tested.handle.reset(&named("x"));
    assert_eq!(after_failure(&tested, "a"), State::Open);
}
