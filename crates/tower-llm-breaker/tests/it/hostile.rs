//! Hostile callers, and unlucky ones.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::support::{
    CONTENT, DONE, MINUTE, ROLE, Request, SECOND, Says, Scripted, Staged, Tested, WELL, ask,
    ask_of, builder, model, stats, streaming,
};
use futures_util::FutureExt;
use http_body_util::BodyExt;
use tokio::time::advance;
use tokio_test::assert_ready_ok;
use tower::Service;
use tower_layer::Layer;
use tower_llm_breaker::{CircuitId, EventKind, Force, Reason, SlowCalls, State};
use tower_llm_core::{Call, Guard, Unary, Watch};
use tower_llm_testkit::mock::{poll_ready, start};

fn ask_of_caller(key: &str, says: Says) -> Request {
    ask_of("openai", key, "m", says)
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_after_a_pending_poll_makes_no_call_slow() {
    let slow = SlowCalls::at_ratio(0.1);
    let first_token: (_, &[_]) = (slow.first_token(10 * SECOND), &[ROLE]);
    // The frame arrives after a second, and its reader returns after a minute.
    for (slow, frames) in [first_token, (slow.gap(10 * SECOND), &[ROLE, CONTENT])] {
        let layer = builder().slow_calls(slow).minimum_calls(1).build().unwrap();
        let mut s = streaming(&layer);
        for frame in frames {
            s.pass(frame);
        }
        s.wait();
        advance(SECOND).await;
        s.send(CONTENT);
        advance(MINUTE).await;
        s.read();
        s.send(DONE);
        s.read();
        s.end();
        assert_eq!(layer.handle().state(&model()), State::Closed);
    }
}

#[tokio::test(start_paused = true)]
async fn an_unread_response_is_not_slow() {
    let slow = SlowCalls::at_ratio(0.5).total(10 * SECOND);
    let tested = Tested::new(builder().slow_calls(slow).minimum_calls(1));
    let mut service = tested.service.clone();
    assert_ready_ok!(poll_ready(&mut service));
    let response = service.call(ask(WELL)).now_or_never().unwrap().unwrap();
    advance(MINUTE).await;
    response.into_body().collect().await.unwrap();
    assert_eq!(tested.state(), State::Closed);
}

/// Each invented credential opens its own account, until there is no room for more.
#[tokio::test(start_paused = true)]
async fn invented_credentials_open_no_circuit_of_other_callers() {
    let tested = Tested::new(builder().max_keys(16));
    for n in 0..400 {
        let _ = tested.call(ask_of_caller(&format!("invented-{n}"), Says::Status(401)));
    }
    advance(MINUTE).await;
    let mut shut = 0;
    for n in 0..20 {
        if tested
            .call(ask_of_caller(&format!("innocent-{n}"), WELL))
            .is_err()
        {
            shut += 1;
        }
    }
    assert_eq!(shut, 0, "innocent callers refused");
}

#[tokio::test(start_paused = true)]
async fn an_overflowing_model_does_not_bypass_an_open_provider() {
    let mut staged = Staged::new(builder().max_keys(16));
    let mut running = Vec::new();
    for n in 0..100 {
        running.push(staged.begin_of(ask_of("openai", "", format!("model-{n}"), WELL)));
    }
    staged
        .handle
        .force(&CircuitId::provider("openai"), Force::Open);
    assert_eq!(
        staged.handle.state(&CircuitId::provider("openai")),
        State::ForcedOpen
    );
    let mut passed = 0;
    for n in 0..100 {
        let mut call = start(
            &staged.service,
            ask_of("openai", "", format!("new-{n}"), WELL),
        );
        if call.poll().is_pending() {
            passed += 1;
        }
    }
    drop(running);
    assert_eq!(passed, 0, "passed an open provider circuit");
}

/// The call was admitted before the account opened; the account has closed again since.
#[tokio::test(start_paused = true)]
async fn a_late_report_of_a_spent_account_does_not_open_it() {
    let mut staged = Staged::new(builder());
    let of = |says| ask_of("openai", "a", "m", says);
    let account = CircuitId::account("openai", "a");
    let old = staged.begin_of(of(WELL));
    staged.begin_of(of(WELL)).end(Says::Status(402));
    assert_eq!(staged.handle.state(&account), State::Open);
    advance(16 * MINUTE).await;
    staged.begin_of(of(WELL)).end(WELL);
    assert_eq!(staged.handle.state(&account), State::Closed);
    old.end(Says::Status(402));
    assert_eq!(staged.handle.state(&account), State::Closed);
}

/// Lease numbers repeat in each generation.
#[tokio::test(start_paused = true)]
async fn a_probe_of_an_earlier_generation_frees_no_lease_of_the_current_one() {
    let mut staged = Staged::new(
        builder()
            .probes(4095)
            .open_for(SECOND)
            .advanced(|set| set.open_factor(1.0).probe_lease(60 * MINUTE)),
    );
    staged.handle.trip(&model(), SECOND);
    advance(SECOND).await;
    let mut old = Vec::new();
    for _ in 0..4095 {
        tokio::task::yield_now().await;
        old.push(staged.begin());
    }
    old.pop().unwrap().end(Says::Status(500));
    assert_eq!(staged.state(), State::Open);
    advance(SECOND).await;
    let mut present = Vec::new();
    for _ in 0..4095 {
        tokio::task::yield_now().await;
        present.push(staged.begin());
    }
    old.pop().unwrap().end(WELL);
    let holding = stats(&staged.handle).probes;
    drop(present);
    assert_eq!(holding, 4095);
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_connection_breaks_counts_against_the_model() {
    let layer = builder().failure_threshold(1).build().unwrap();
    let mut s = streaming(&layer);
    s.pass(ROLE);
    s.pass(CONTENT);
    s.fail();
    let states = (
        layer.handle().state(&model()),
        layer.handle().state(&CircuitId::provider("openai")),
    );
    assert_eq!(states, (State::Open, State::Closed));
}

#[tokio::test(start_paused = true)]
async fn an_overflowing_model_gets_a_circuit_once_there_is_room() {
    let tested = Tested::new(builder().max_keys(16));
    // More models than there is room for, and their circuits are open.
    let models: Vec<String> = (0..200).map(|n| format!("bad-{n}")).collect();
    for model in &models {
        tested
            .handle
            .trip(&CircuitId::model("openai", model), SECOND);
    }
    let _ = tested.call(ask_of("openai", "", "good", WELL));
    assert!(
        tested
            .handle
            .stats_of(&CircuitId::model("openai", "good"))
            .is_none(),
        "ratios"
    );
    for _ in 0..100 {
        // The circuits closed long ago, and calls continue.
        advance(MINUTE).await;
        let _ = tested.call(ask_of("openai", "", "good", WELL));
    }
    let good = CircuitId::model("openai", "good");
    tested.handle.force(&good, Force::Open);
    assert_eq!(tested.handle.state(&good), State::ForcedOpen);
    tested.refuses(ask_of("openai", "", "good", WELL));
}

/// For a probe, a client error shows that the provider was reached.
#[tokio::test(start_paused = true)]
async fn any_answer_closes_the_provider() {
    let tested = Tested::new(builder());
    let provider = CircuitId::provider("openai");
    tested.handle.trip(&provider, SECOND);
    advance(SECOND).await;
    for _ in 0..100 {
        tested.tell(Says::Status(400));
    }
    assert_eq!(tested.handle.state(&provider), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_metrics_only_circuit_reports_spent_accounts_too() {
    let tested = Tested::new(builder().initial_state(Force::MetricsOnly));
    let mut events = tested.handle.subscribe();
    for (says, expected) in [
        (Says::Status(402), Reason::Exhausted),
        (Says::Later(429, 60), Reason::Throttled),
    ] {
        let _ = tested.call(ask_of("openai", "a", "m", says));
        let kind = events.try_recv().unwrap().kind;
        let reported = matches!(kind, EventKind::WouldOpen { reason, .. } if reason == expected);
        assert!(reported, "{kind:?}");
        assert!(events.try_recv().is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn invented_models_are_not_members_of_the_group() {
    let tested = Tested::new(
        builder()
            .advanced(|set| set.max_open_ratio(0.5))
            .failure_threshold(1),
    );
    for n in 0..10 {
        let _ = tested.call(ask_of(
            "openai",
            "",
            format!("invented-{n}"),
            Says::Status(404),
        ));
    }
    for model in ["a", "b", "c", "d"] {
        let _ = tested.call(ask_of("openai", "", model, WELL));
    }
    for model in ["a", "b", "c", "d"] {
        let _ = tested.call(ask_of("openai", "", model, Says::Status(500)));
    }
    let open = ["a", "b", "c", "d"]
        .iter()
        .filter(|m| tested.handle.state(&CircuitId::model("openai", m)) == State::Open)
        .count();
    assert!(open <= 2, "{open} of the 4 real models are open");
}

/// The circuit was evicted for another model; when it was created again, it had the initial state.
#[tokio::test(start_paused = true)]
async fn a_manually_closed_circuit_is_not_evicted_if_the_initial_state_differs() {
    for initial_state in [Force::Open, Force::MetricsOnly, Force::Disabled] {
        let tested = Tested::new(builder().initial_state(initial_state).max_keys(16));
        tested.handle.close(&model());
        advance(60 * MINUTE).await;
        for n in 0..2_000 {
            let _ = tested.call(ask_of("openai", "", format!("invented-{n}"), WELL));
        }
        assert_eq!(tested.state(), State::Closed, "{initial_state:?}");
    }
}

/// The circuit that calls beyond the maximum share has no name that a listener could use.
#[tokio::test(start_paused = true)]
async fn the_overflow_circuit_sends_no_events() {
    let tested = Tested::new(builder().max_keys(16));
    for n in 0..400 {
        let circuit = CircuitId::account_and_model("openai", "", format!("m-{n}"));
        tested.handle.trip(&circuit, 60 * MINUTE);
    }
    let mut events = tested.handle.subscribe();
    let fresh = ask_of("openai", "", "fresh", Says::Status(429));
    assert_eq!(tested.call(fresh).unwrap(), 429);
    assert!(events.try_recv().is_err());
}

/// Each call to an open model used a slot on its provider's ramp.
#[tokio::test(start_paused = true)]
async fn a_call_refused_by_another_circuit_uses_nothing_of_a_ramp() {
    let provider = CircuitId::provider("openai");
    let passed = async |is_bad_asked| {
        let tested = Tested::new(builder().advanced(|set| set.ramp(10 * MINUTE)));
        tested.handle.trip(&provider, SECOND);
        let bad = CircuitId::model("openai", "bad");
        tested.handle.trip(&bad, 60 * MINUTE);
        advance(SECOND).await;
        let of = |model| ask_of("openai", "", model, WELL);
        tested.call(of("good")).unwrap();
        let mut passed = 0;
        for _ in 0..600 {
            if is_bad_asked {
                tested.refuses(of("bad"));
            }
            passed += usize::from(tested.call(of("good")).is_ok());
            advance(SECOND).await;
        }
        passed
    };
    let (alone, beside_bad) = (passed(false).await, passed(true).await);
    assert!(alone > 300 && beside_bad >= alone, "{beside_bad}, {alone}");
}

/// The ramp admits these calls, and another circuit refuses them: they are given back.
#[tokio::test(start_paused = true)]
async fn calls_given_back_to_a_ramp_do_not_accumulate_to_a_burst() {
    let tested = Tested::new(builder().advanced(|set| set.ramp(60 * MINUTE)));
    tested.handle.trip(&CircuitId::provider("openai"), SECOND);
    let bad = CircuitId::model("openai", "bad");
    tested.handle.trip(&bad, 60 * MINUTE);
    advance(SECOND).await;
    let of = |model| ask_of("openai", "", model, WELL);
    tested.call(of("good")).unwrap();
    for _ in 0..1_000 {
        tested.refuses(of("bad"));
    }
    let passed = (0..10).filter(|_| tested.call(of("good")).is_ok()).count();
    assert!(passed <= 3, "{passed} of 10");
}

/// Panics when asked to hold a call.
#[derive(Clone)]
struct Panicking;

impl<R> Watch<R> for Panicking {
    type Out<G: Guard> = R;

    fn watch<G: Guard>(&self, call: Option<&Call>, response: R, guard: G) -> R {
        Unary.watch(call, response, guard)
    }

    fn keep(&self, _: Option<&Call>) -> Option<Call> {
        panic!("holds no call")
    }
}

/// The call held a lease by then, and nothing gave it back before it expired.
#[tokio::test(start_paused = true)]
async fn a_panic_in_the_description_of_a_call_costs_no_probe_lease() {
    let layer = builder().watch(Panicking).build().unwrap();
    layer.handle().trip(&model(), SECOND);
    advance(SECOND).await;
    let mut service = layer.layer(Scripted::default());
    assert_ready_ok!(poll_ready(&mut service));
    let called = catch_unwind(AssertUnwindSafe(|| drop(service.call(ask(WELL)))));
    assert!(called.is_err());
    let stats = stats(&layer.handle());
    assert_eq!((stats.state, stats.probes), (State::HalfOpen, 0));
}
