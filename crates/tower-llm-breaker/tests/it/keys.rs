//! Which circuit counts which outcome, how many circuits there may be, and which calls share them.

use std::future::ready;

use crate::support::{
    FAILED, MINUTE, MS, Request, SECOND, Says, Staged, Tested, WELL, ask, ask_of, builder, model,
    stats, touchy,
};
use bytes::Bytes;
use http::HeaderName;
use http_body_util::Empty;
use tokio::time::advance;
use tokio_test::assert_ready_err;
use tower::service_fn;
use tower_layer::Layer;
use tower_llm_breaker::{BreakerHandle, BreakerLayer, CircuitId, Force, Scope, State};
use tower_llm_core::{BoxError, Deadline, Key, KeyBy, TimedOut, TooLarge};
use tower_llm_testkit::mock::start;

// === which circuit counts an outcome ===

/// The four circuits of the account `a` and the model `m`.
fn circuits() -> [CircuitId; 4] {
    [
        CircuitId::provider("openai"),
        model(),
        CircuitId::account("openai", "a"),
        CircuitId::account_and_model("openai", "a", "m"),
    ]
}

fn states(handle: &BreakerHandle) -> [State; 4] {
    circuits().map(|circuit| handle.state(&circuit))
}

/// Whether calls pass: the same, another model, another account, another provider.
fn passes(tested: &Tested) -> [bool; 4] {
    let others = [
        ("openai", "a", "m"),
        ("openai", "a", "n"),
        ("openai", "b", "m"),
        ("anthropic", "a", "m"),
    ];
    others.map(|(provider, account, model)| {
        tested.call(ask_of(provider, account, model, WELL)).is_ok()
    })
}

#[tokio::test(start_paused = true)]
async fn each_outcome_opens_the_circuit_of_what_failed() {
    use State::{Closed, Open, Throttled};
    let provider = ([Open, Closed, Closed, Closed], [false, false, false, true]);
    let of_model = ([Closed, Open, Closed, Closed], [false, true, false, true]);
    let account = ([Closed, Closed, Open, Closed], [false, false, true, true]);
    let clock = (
        [Closed, Closed, Closed, Throttled],
        [false, true, true, true],
    );
    let no_circuit = ([Closed; 4], [true; 4]);
    let cases = [
        (Says::Broken, provider),
        (Says::Status(500), of_model),
        (Says::Status(502), of_model),
        (Says::Status(408), of_model),
        (Says::Status(529), of_model),
        (Says::Later(503, 5), of_model),
        (Says::Status(402), account),
        (Says::Later(429, 5), clock),
        (Says::Status(429), no_circuit),
        (Says::Status(400), no_circuit),
        (Says::Status(401), no_circuit),
        (Says::Status(403), no_circuit),
        (Says::Status(404), no_circuit),
        (Says::Status(413), no_circuit),
        (Says::Status(422), no_circuit),
        (Says::Well, no_circuit),
    ];
    for (says, (expected, let_through)) in cases {
        let tested = Tested::new(touchy());
        let _ = tested.call(ask_of("openai", "a", "m", says));
        assert_eq!(states(&tested.handle), expected, "{says:?}");
        assert_eq!(passes(&tested), let_through, "{says:?}");
    }
}

/// A breaker around a service that fails with `error`, called once.
fn failing_with<E>(error: E) -> BreakerHandle
where
    E: Into<BoxError> + Clone,
{
    let layer = touchy().build().expect("good settings");
    let service = layer.layer(service_fn(|_: Request| {
        ready(Err::<http::Response<Empty<Bytes>>, BoxError>(
            error.clone().into(),
        ))
    }));
    let request = ask_of("openai", "a", "m", WELL);
    drop(assert_ready_err!(start(&service, request).poll()));
    layer.handle()
}

#[tokio::test(start_paused = true)]
async fn refusals_of_inner_layers_are_neutral_and_deadlines_count_against_the_model() {
    use State::{Closed, Open};
    let handle = failing_with(TooLarge::new(10));
    assert_eq!(states(&handle), [Closed; 4]);
    assert_eq!(stats(&handle).calls, 0);

    let handle = failing_with(TimedOut::new(Deadline::Idle, SECOND));
    assert_eq!(states(&handle), [Closed, Open, Closed, Closed]);
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_was_reached_counts_as_a_success_and_ends_the_run() {
    let tested = Tested::new(builder().failure_ratio(1.0).failure_threshold(3));
    let provider = CircuitId::provider("openai");
    for says in [WELL, FAILED, Says::Later(503, 1), Says::Status(402)] {
        tested.tell_times(2, Says::Broken);
        // A broken connection says nothing about the model.
        let account = ask_of("openai", "spent", "n", says);
        tested.call(account).unwrap();
        tested.handle.reset(&CircuitId::account("openai", "spent"));
    }
    let stats_of_provider = tested.handle.stats_of(&provider).unwrap();
    assert_eq!(
        (
            stats_of_provider.state,
            stats_of_provider.calls,
            stats_of_provider.failures
        ),
        (State::Closed, 12, 8)
    );
    assert_eq!(tested.counts(), (0, 0));
    // A client error does not.
    tested.tell_times(2, Says::Broken);
    tested.tell(Says::Status(400));
    tested.tell(Says::Broken);
    assert_eq!(tested.handle.state(&provider), State::Open);
}

#[tokio::test(start_paused = true)]
async fn undescribed_calls_share_circuits_with_an_empty_key() {
    let tested = Tested::new(touchy());
    let nameless = || Request::new(());
    tested.call(nameless()).unwrap();
    let mut failing = nameless();
    failing.extensions_mut().insert(FAILED);
    tested.call(failing).unwrap();
    let refused = tested.refuses(nameless());
    assert_eq!(refused.circuit(), &CircuitId::model("", ""));
    assert_eq!(tested.call(ask(WELL)).unwrap(), 200);
}

#[tokio::test(start_paused = true)]
async fn one_circuit_per_key_counts_every_failure() {
    use State::{Closed, Open, Throttled};
    let cases = [
        (Says::Broken, Open),
        (FAILED, Open),
        (Says::Later(503, 1), Open),
        (Says::Status(402), Open),
        (Says::Later(429, 1), Throttled),
        (Says::Status(401), Closed),
        (Says::Status(400), Closed),
        (Says::Status(429), Closed),
    ];
    for (says, expected) in cases {
        let tested = Tested::new(touchy().key_by(KeyBy::provider()));
        let _ = tested.call(ask_of("openai", "a", "m", says));
        let key = CircuitId::key_only(Key::new("openai"));
        assert_eq!(tested.handle.state(&key), expected, "{says:?}");
        let passes_now = expected == Closed;
        assert_eq!(
            passes(&tested),
            [passes_now, passes_now, passes_now, true],
            "{says:?}"
        );
        assert_eq!(tested.handle.stats().len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_manual_change_to_a_circuit_of_another_kind_does_nothing() {
    let tested = Tested::new(touchy().key_by(KeyBy::provider()));
    tested.tell(WELL);
    tested.handle.trip(&model(), MINUTE);
    tested.handle.force(&model(), Force::Open);
    tested.handle.reset(&model());
    tested.tell(WELL);
    assert_eq!(tested.handle.stats_of(&model()), None);
    assert_eq!(tested.handle.state(&model()), State::Closed);
    assert_eq!(tested.handle.stats().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn accounts_are_distinguished_by_their_configured_key() {
    let by_header = KeyBy::header(HeaderName::from_static("x-account"));
    let tested = Tested::new(touchy().account_by(by_header));
    let of = |account: &'static str, says| {
        let mut request = ask_of("openai", "the same", "m", says);
        request
            .headers_mut()
            .insert("x-account", account.parse().unwrap());
        request
    };
    tested.call(of("a", Says::Status(402))).unwrap();
    tested.call(of("b", Says::Later(429, 9))).unwrap();
    let refused = tested.refuses(of("a", WELL));
    assert_eq!(refused.circuit(), &CircuitId::account("openai", "a"));
    let refused = tested.refuses(of("b", WELL));
    assert_eq!(
        refused.circuit(),
        &CircuitId::account_and_model("openai", "b", "m")
    );
    assert_eq!(tested.call(of("c", WELL)).unwrap(), 200);
}

// === how many circuits ===

fn of_scope(handle: &BreakerHandle, scope: Scope) -> usize {
    let stats = handle.stats();
    let of_scope = stats.iter().filter(|stats| stats.circuit.scope() == scope);
    of_scope.count()
}

#[tokio::test(start_paused = true)]
async fn fifty_thousand_invented_models_are_bounded_and_open_or_forced_circuits_stay() {
    let tested = Tested::new(touchy().max_keys(64));
    let named = |name: &str| CircuitId::model("openai", name);
    let of = |name: &str, says| ask_of("openai", "", name, says);
    advance(SECOND).await;
    tested.call(of("failing", FAILED)).unwrap();
    tested.handle.force(&named("forced"), Force::Open);
    tested.handle.force(&named("watched"), Force::MetricsOnly);
    tested.handle.force(&named("free"), Force::Disabled);
    tested.handle.trip(&named("tripped"), 60 * MINUTE);
    tested
        .call(of("throttled", Says::Later(429, 3_000)))
        .unwrap();
    advance(SECOND).await;

    let mut served = 0;
    for number in 0..50_000 {
        let invented = of(&format!("invented-{number}"), Says::Status(404));
        served += usize::from(tested.call(invented).is_ok());
        if number % 1_000 == 0 {
            // The shared state of all further keys is one more.
            let kinds = [Scope::ProviderAndModel, Scope::AccountAndModel];
            let most = kinds.map(|scope| of_scope(&tested.handle, scope));
            assert!(most.iter().all(|&circuits| circuits <= 65), "{most:?}");
        }
    }
    assert_eq!(served, 50_000);
    assert_eq!(of_scope(&tested.handle, Scope::Provider), 1);
    let expected = [
        ("failing", State::Open),
        ("forced", State::ForcedOpen),
        ("watched", State::MetricsOnly),
        ("free", State::Disabled),
        ("tripped", State::Open),
    ];
    for (name, state) in expected {
        assert_eq!(tested.handle.state(&named(name)), state, "{name}");
        let passes = !matches!(state, State::Open | State::ForcedOpen);
        assert_eq!(tested.call(of(name, WELL)).is_ok(), passes, "{name}");
    }
    let clock = CircuitId::account_and_model("openai", "", "throttled");
    assert_eq!(tested.handle.state(&clock), State::Throttled);
    assert_eq!(tested.refuses(of("throttled", WELL)).circuit(), &clock);
}

#[tokio::test(start_paused = true)]
async fn quiet_circuits_are_evicted() {
    let tested = Tested::new(touchy().max_keys(16).max_open_for(MINUTE));
    let named = |number: usize| CircuitId::model("openai", format!("m-{number}"));
    advance(SECOND).await;
    for number in 0..1_000 {
        let of = ask_of(
            "openai",
            "",
            format!("m-{number}"),
            if number < 16 { FAILED } else { WELL },
        );
        let _ = tested.call(of);
    }
    let known = |handle: &BreakerHandle| {
        (0..16)
            .filter(|&number| handle.stats_of(&named(number)).is_some())
            .count()
    };
    let known_while_open = known(&tested.handle);
    assert!(known_while_open > 0);
    // Until the circuit's end, and for at most the maximum open time after that.
    advance(30 * SECOND + MINUTE - MS).await;
    for number in 1_000..2_000 {
        let _ = tested.call(ask_of("openai", "", format!("m-{number}"), WELL));
    }
    assert_eq!(known(&tested.handle), known_while_open);
    advance(MS).await;
    for number in 2_000..4_000 {
        let _ = tested.call(ask_of("openai", "", format!("m-{number}"), WELL));
    }
    assert_eq!(known(&tested.handle), 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_in_flight_keeps_its_circuit() {
    let mut staged = Staged::new(touchy().max_keys(16));
    let in_flight = staged.begin();
    for number in 0..200 {
        staged
            .begin_of(ask_of("openai", "", format!("m-{number}"), WELL))
            .end(WELL);
        tokio::task::yield_now().await;
    }
    in_flight.end(FAILED);
    assert_eq!(staged.state(), State::Open);
}

// === which calls share circuits ===

#[tokio::test(start_paused = true)]
async fn services_of_a_layer_and_its_clones_share_circuits() {
    let layer = touchy().build().unwrap();
    let [first, second] = [Tested::of(&layer), Tested::of(&layer.clone())];
    let third = Tested {
        service: first.service.clone(),
        ..first.clone()
    };
    first.tell(FAILED);
    for tested in [&first, &second, &third] {
        tested.refused();
        assert_eq!(tested.state(), State::Open);
    }
    assert_eq!(stats(&layer.handle()).refused, 3);
    // Another layer with the same settings is another breaker.
    Tested::new(touchy()).tell(WELL);
    let apart: BreakerLayer = touchy().build().unwrap();
    assert_eq!(apart.handle().state(&model()), State::Closed);
}
