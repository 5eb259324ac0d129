//! Which circuit hears of what, how many there may be, and what a hand does to them.

mod support;

use std::{future::ready, time::Duration};

use bytes::Bytes;
use http::HeaderName;
use http_body_util::Empty;
use support::{MINUTE, MS, SECOND, Says, Staged, Tested, ask, ask_of, builder, model, open, stats};
use tokio::{
    sync::broadcast::error::TryRecvError,
    time::{Instant, advance},
};
use tokio_test::assert_ready_err;
use tower::service_fn;
use tower_layer::Layer;
use tower_llm_breaker::{
    BreakerBuilder, BreakerHandle, BreakerLayer, CircuitId, EventKind, EventReceiver, Force,
    Reason, Scope, State,
};
use tower_llm_core::{BoxError, Deadline, Key, KeyBy, Refusal, TimedOut, TooLarge};
use tower_llm_testkit::mock::start;

const WELL: Says = Says::Well;
const FAILED: Says = Says::Status(500);

/// Opened by one failure, for 30 s.
fn touchy() -> BreakerBuilder {
    builder().consecutive_failures(1).open_for(30 * SECOND)
}

// === by whose fault it is ===

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

/// Who passes: the same, another model, another account, another provider.
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
async fn each_outcome_opens_the_circuit_of_those_whose_fault_it_is() {
    use State::{Closed, Open, Throttled};
    let way = ([Open, Closed, Closed, Closed], [false, false, false, true]);
    let of_model = ([Closed, Open, Closed, Closed], [false, true, false, true]);
    let account = ([Closed, Closed, Open, Closed], [false, false, true, true]);
    let clock = (
        [Closed, Closed, Closed, Throttled],
        [false, true, true, true],
    );
    let nobody = ([Closed; 4], [true; 4]);
    let cases = [
        (Says::Broken, way),
        (Says::Status(500), of_model),
        (Says::Status(502), of_model),
        (Says::Status(408), of_model),
        (Says::Status(529), of_model),
        (Says::Later(503, 5), of_model),
        (Says::Status(402), account),
        (Says::Status(401), account),
        (Says::Later(429, 5), clock),
        (Says::Status(429), nobody),
        (Says::Status(400), nobody),
        (Says::Status(403), nobody),
        (Says::Status(404), nobody),
        (Says::Status(413), nobody),
        (Says::Status(422), nobody),
        (Says::Well, nobody),
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
    let service = layer.layer(service_fn(|_: support::Request| {
        ready(Err::<http::Response<Empty<Bytes>>, BoxError>(
            error.clone().into(),
        ))
    }));
    let request = ask_of("openai", "a", "m", WELL);
    drop(assert_ready_err!(start(&service, request).poll()));
    layer.handle()
}

#[tokio::test(start_paused = true)]
async fn what_a_layer_within_refused_says_nothing_and_a_deadline_of_ours_blames_the_model() {
    use State::{Closed, Open};
    let handle = failing_with(TooLarge::new(10));
    assert_eq!(states(&handle), [Closed; 4]);
    assert_eq!(stats(&handle).calls, 0);

    let handle = failing_with(TimedOut::new(Deadline::Idle, SECOND));
    assert_eq!(states(&handle), [Closed, Open, Closed, Closed]);
}

#[tokio::test(start_paused = true)]
async fn what_was_reached_is_no_fault_of_the_way_and_ends_a_row_of_them() {
    let tested = Tested::new(builder().failure_ratio(1.0).consecutive_failures(3));
    let way = CircuitId::provider("openai");
    for says in [WELL, FAILED, Says::Later(503, 1), Says::Status(402)] {
        tested.tell_times(2, Says::Broken);
        // To the model it says nothing that the way was broken.
        let account = ask_of("openai", "spent", "n", says);
        tested.call(account).unwrap();
        tested.handle.reset(&CircuitId::account("openai", "spent"));
    }
    let stats_of_way = tested.handle.stats_of(&way).unwrap();
    assert_eq!(
        (
            stats_of_way.state,
            stats_of_way.calls,
            stats_of_way.failures
        ),
        (State::Closed, 12, 8)
    );
    assert_eq!(tested.counts(), (0, 0));
    // A caller's fault does not.
    tested.tell_times(2, Says::Broken);
    tested.tell(Says::Status(400));
    tested.tell(Says::Broken);
    assert_eq!(tested.handle.state(&way), State::Open);
}

#[tokio::test(start_paused = true)]
async fn calls_that_nobody_describes_share_circuits_without_a_name() {
    let tested = Tested::new(touchy());
    let nameless = || support::Request::new(());
    tested.call(nameless()).unwrap();
    let mut failing = nameless();
    failing.extensions_mut().insert(FAILED);
    tested.call(failing).unwrap();
    let refused = tested.refuses(nameless());
    assert_eq!(refused.circuit(), &CircuitId::model("", ""));
    assert_eq!(tested.call(ask(WELL)).unwrap(), 200);
}

#[tokio::test(start_paused = true)]
async fn one_circuit_for_each_key_hears_of_all() {
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
async fn a_hand_on_a_circuit_of_another_kind_does_nothing() {
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
async fn accounts_are_told_apart_by_what_they_are_said_to_be() {
    let by_header = KeyBy::header(HeaderName::from_static("x-account"));
    let tested = Tested::new(touchy().account_by(by_header));
    let of = |account: &'static str, says| {
        let mut request = ask_of("openai", "the same", "m", says);
        request
            .headers_mut()
            .insert("x-account", account.parse().unwrap());
        request
    };
    tested.call(of("a", Says::Status(401))).unwrap();
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

// === how many ===

fn of_scope(handle: &BreakerHandle, scope: Scope) -> usize {
    let stats = handle.stats();
    let of_scope = stats.iter().filter(|stats| stats.circuit.scope() == scope);
    of_scope.count()
}

#[tokio::test(start_paused = true)]
async fn fifty_thousand_invented_models_are_bounded_and_what_is_open_or_forced_is_remembered() {
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
            // The state of all that found no place is one more.
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
async fn what_is_quiet_gives_way() {
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
    // Until its end, and for as long as a circuit is open at most after that.
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
async fn a_call_under_way_keeps_its_circuit() {
    let mut staged = Staged::new(touchy().max_keys(16));
    let under_way = staged.begin();
    for number in 0..200 {
        staged
            .begin_of(ask_of("openai", "", format!("m-{number}"), WELL))
            .end(WELL);
        tokio::task::yield_now().await;
    }
    under_way.end(FAILED);
    assert_eq!(staged.state(), State::Open);
}

// === never all ===

fn fail(tested: &Tested, number: usize) {
    let failing = ask_of("openai", "", format!("m-{number}"), FAILED);
    tested.call(failing).expect("it is let through");
}

fn open_models(tested: &Tested, models: usize) -> usize {
    let is_open = |number: &usize| {
        let circuit = CircuitId::model("openai", format!("m-{number}"));
        tested.handle.state(&circuit) == State::Open
    };
    (0..models).filter(is_open).count()
}

/// So many models that have been asked, of a layer that keeps all but this share of them closed.
fn pool(share: f64, models: usize) -> Tested {
    let tested = Tested::new(touchy().max_open_share(share));
    for number in 0..models {
        let well = ask_of("openai", "", format!("m-{number}"), WELL);
        tested.call(well).expect("it is let through");
    }
    tested
}

#[tokio::test(start_paused = true)]
async fn no_more_than_the_share_opens_and_the_others_go_on() {
    for (share, models, most) in [
        (0.0, 10, 0),
        (0.3, 10, 3),
        (0.5, 3, 1),
        (0.99, 10, 9),
        (1.0, 10, 10),
        // What a product would round down.
        (0.29, 100, 29),
        (0.57, 100, 57),
    ] {
        let tested = pool(share, models);
        let mut events = tested.handle.subscribe();
        for number in 0..models {
            fail(&tested, number);
        }
        assert_eq!(open_models(&tested, models), most, "{share} of {models}");
        let kinds: Vec<_> = kinds(&mut events);
        let kept_closed = EventKind::KeptClosed {
            reason: Reason::ConsecutiveFailures,
        };
        let kept = kinds.iter().filter(|&kind| *kind == kept_closed).count();
        assert_eq!(kept, models - most, "{share} of {models}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_was_kept_closed_opens_when_there_is_room_and_is_told_of_once() {
    let tested = pool(0.5, 2);
    fail(&tested, 0);
    let mut events = tested.handle.subscribe();
    for _ in 0..5 {
        fail(&tested, 1);
    }
    assert_eq!(kinds(&mut events).len(), 1);
    assert_eq!(open_models(&tested, 2), 1);
    // It closes by a probe, and while it is probed it still counts.
    advance(30 * SECOND).await;
    fail(&tested, 1);
    assert_eq!(open_models(&tested, 2), 0);
    tested.call(ask_of("openai", "", "m-0", WELL)).unwrap();
    fail(&tested, 1);
    assert_eq!(
        tested.handle.state(&CircuitId::model("openai", "m-1")),
        State::Open
    );
    // And the first has no room now.
    fail(&tested, 0);
    assert_eq!(open_models(&tested, 2), 1);
    // A reset makes room as well.
    tested.handle.reset(&CircuitId::model("openai", "m-1"));
    fail(&tested, 0);
    assert_eq!(
        tested.handle.state(&CircuitId::model("openai", "m-0")),
        State::Open
    );
}

#[tokio::test(start_paused = true)]
async fn neither_a_hand_nor_a_clock_nor_want_of_money_asks_for_room() {
    let tested = Tested::new(touchy().max_open_share(0.0));
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

/// The rooms of a group are counted right whatever its circuits go through: in the end exactly one of two may open.
#[tokio::test(start_paused = true)]
async fn after_all_that_can_happen_there_is_room_for_one_of_two() {
    let tested = pool(0.5, 2);
    let named = [0, 1].map(|number| CircuitId::model("openai", format!("m-{number}")));
    for circuit in &named {
        let handle = &tested.handle;
        handle.trip(circuit, SECOND);
        handle.trip(circuit, MINUTE);
        handle.force(circuit, Force::Open);
        handle.trip(circuit, SECOND);
        advance(SECOND).await;
        // It is probed, and forced meanwhile.
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

// === by hand ===

#[tokio::test(start_paused = true)]
async fn a_hand_opens_for_so_long_and_the_later_end_wins() {
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
    // It says nothing of how long failures open it.
    tested.tell(FAILED);
    assert_eq!(tested.refused().retry_after(), Some(30 * SECOND));

    tested.handle.trip(&model(), Duration::MAX);
    let year = 365 * 24 * 60 * MINUTE;
    assert_eq!(tested.refused().retry_after(), Some(year));
}

#[tokio::test(start_paused = true)]
async fn what_is_forced_open_stays_so_until_it_is_reset() {
    let mut staged = Staged::new(touchy());
    let under_way = staged.begin();
    staged.handle.force(&model(), Force::Open);
    let refused = staged.refused();
    assert_eq!(
        (refused.state(), refused.retry_after()),
        (State::ForcedOpen, None)
    );
    under_way.end(WELL);
    advance(300 * 24 * 60 * MINUTE).await;
    assert_eq!(staged.refused().state(), State::ForcedOpen);
    staged.handle.reset(&model());
    staged.tell(FAILED);
    assert_eq!(staged.refused().retry_after(), Some(30 * SECOND));
}

#[tokio::test(start_paused = true)]
async fn what_is_disabled_lets_all_through_and_counts_nothing() {
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

#[tokio::test(start_paused = true)]
async fn what_only_measures_tells_when_it_would_have_opened_and_goes_on() {
    let layer = builder()
        .over_calls(10)
        .failure_ratio(0.5)
        .at_first(Force::MetricsOnly);
    let tested = Tested::new(layer);
    assert_eq!(tested.state(), State::MetricsOnly);
    let mut events = tested.handle.subscribe();
    tested.tell_times(4, FAILED);
    assert_eq!((kinds(&mut events), tested.counts()), (vec![], (4, 4)));
    let would_open = [EventKind::WouldOpen {
        reason: Reason::FailureRatio,
    }];
    for _ in 0..3 {
        tested.tell(FAILED);
        assert_eq!(kinds(&mut events), would_open);
        // It begins to count anew, as it would have.
        assert_eq!(
            (tested.state(), tested.counts()),
            (State::MetricsOnly, (0, 0))
        );
        tested.tell_times(4, FAILED);
        assert_eq!(kinds(&mut events), []);
    }
    tested.tell(Says::Later(429, 60));
    tested.tell(WELL);
    assert_eq!(tested.reached(), 21);
}

#[tokio::test(start_paused = true)]
async fn what_was_chosen_for_all_is_what_a_reset_goes_back_to() {
    let tested = Tested::new(touchy().at_first(Force::Open));
    let way = CircuitId::provider("openai");
    // None has been seen.
    assert_eq!(tested.state(), State::ForcedOpen);
    assert_eq!(tested.refused().circuit(), &way);
    tested.handle.trip(&way, SECOND);
    assert_eq!(tested.handle.state(&way), State::Open);
    tested.handle.reset(&way);
    assert_eq!(tested.handle.state(&way), State::ForcedOpen);
    assert_eq!(
        tested.handle.state(&CircuitId::model("new", "new")),
        State::ForcedOpen
    );
}

#[tokio::test(start_paused = true)]
async fn a_reset_forgets_all_but_how_often_it_has_refused() {
    let tested = Tested::new(touchy());
    for _ in 0..3 {
        tested.tell(FAILED);
        advance(tested.refused().retry_after().unwrap()).await;
    }
    tested.handle.reset(&model());
    let stats_now = stats(&tested.handle);
    assert_eq!(
        (stats_now.state, stats_now.lasts, stats_now.probes),
        (State::Closed, None, 0)
    );
    assert_eq!(stats_now.refused, 3);
    tested.tell(FAILED);
    // As the first time.
    assert_eq!(tested.refused().retry_after(), Some(30 * SECOND));
}

// === what is told ===

/// What has happened since it was asked last.
fn kinds(events: &mut EventReceiver) -> Vec<EventKind> {
    let mut kinds = Vec::new();
    loop {
        match events.try_recv() {
            Ok(event) => kinds.push(event.kind),
            Err(TryRecvError::Empty) => return kinds,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn events_tell_all_in_order_with_reasons_times_and_generations() {
    let tested = Tested::new(touchy().ramp(MINUTE));
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

    use Reason::{ByHand, ConsecutiveFailures, ProbeFailed, ProbesSucceeded, TimeOver};
    use State::{Closed, ForcedOpen, HalfOpen, Open, Ramping};
    let expected = [
        (0, Closed, Open, ConsecutiveFailures, Some(30), 1),
        (30, Open, HalfOpen, TimeOver, None, 2),
        (30, HalfOpen, Open, ProbeFailed, Some(100), 3),
        (130, Open, HalfOpen, TimeOver, None, 4),
        (130, HalfOpen, Ramping, ProbesSucceeded, Some(60), 5),
        // What is counted goes on counting: no generation begins.
        (190, Ramping, Closed, TimeOver, None, 5),
        (190, Closed, Open, ByHand, Some(1), 6),
        (190, Open, ForcedOpen, ByHand, None, 7),
        (190, ForcedOpen, Closed, ByHand, None, 8),
    ];
    for (second, from, to, reason, lasts, generation) in expected {
        let event = events.try_recv().unwrap();
        assert_eq!(event.circuit, model());
        assert_eq!(event.at - began, second * SECOND);
        let transition = EventKind::Transition {
            from,
            to,
            reason,
            lasts: lasts.map(Duration::from_secs),
            generation,
        };
        assert_eq!(event.kind, transition);
    }
    assert_eq!(kinds(&mut events), []);
}

#[tokio::test(start_paused = true)]
async fn stats_tell_of_each_circuit_what_was_counted() {
    let tested = Tested::new(builder().over_calls(100).minimum_calls(100));
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
    // Nothing is counted of these: single calls open them.
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

// === who shares ===

#[tokio::test(start_paused = true)]
async fn all_that_a_layer_and_its_clones_make_share_their_circuits() {
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
    // Another layer of the same settings is another breaker.
    Tested::new(touchy()).tell(WELL);
    let apart: BreakerLayer = touchy().build().unwrap();
    assert_eq!(apart.handle().state(&model()), State::Closed);
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
    assert_eq!(text(&tested), "the circuit is open: model openai/m");
    tested.handle.force(&model(), Force::Open);
    assert_eq!(
        text(&tested),
        "the circuit was opened by hand: model openai/m"
    );
    tested.handle.reset(&model());
    tested.tell(Says::Later(429, 5));
    let expected = "the provider has asked to wait: account and model openai//m";
    assert_eq!(text(&tested), expected);
}
