//! An outcome closes what it is about: a model, an account, or one caller's credential.

use std::time::Duration;

use crate::support::{MINUTE, MS, SECOND, builder, kinds, model};
use futures_util::FutureExt;
use tokio::time::advance;
use tokio_test::assert_ready_ok;
use tower::{Service, service_fn};
use tower_layer::Layer;
use tower_llm_breaker::{
    BreakerBuilder, BreakerHandle, CircuitId, CircuitOpen, EventKind, Reason, SlowCalls, State,
};
use tower_llm_core::{
    BoxError, Call, Caller, Completion, Described, Failure, Guard, Operation, Outcome, Provider,
    Subject, Watch,
};
use tower_llm_testkit::mock::poll_ready;

/// A call and its end.
#[derive(Clone, Debug)]
struct Ask {
    call: Call,
    end: Completion,
}

/// Ends each call with its response.
#[derive(Clone, Debug)]
struct Ends;

impl Described for Ask {
    fn call(&self) -> Option<std::borrow::Cow<'_, Call>> {
        Some(std::borrow::Cow::Borrowed(&self.call))
    }
}

impl Watch<Completion> for Ends {
    type Out<G: Guard> = ();

    fn watch<G: Guard>(&self, _: Option<&Call>, end: Completion, mut guard: G) {
        guard.end(&end);
    }
}

/// A breaker around a provider whose calls end as the requests specify.
struct Tested {
    call: Box<dyn Fn(Ask) -> Result<(), BoxError>>,
    handle: BreakerHandle,
}

impl Tested {
    fn new(builder: BreakerBuilder) -> Self {
        let layer = builder.watch(Ends).build().expect("good settings");
        let handle = layer.handle();
        let service = layer.layer(service_fn(
            |ask: Ask| async move { Ok::<_, BoxError>(ask.end) },
        ));
        let call = Box::new(move |ask| {
            let mut service = service.clone();
            assert_ready_ok!(poll_ready(&mut service));
            service
                .call(ask)
                .now_or_never()
                .expect("the call ends at once")
        });
        Self { call, handle }
    }

    #[track_caller]
    fn passes(&self, who: Who, end: Completion) {
        (self.call)(who.ask(end)).expect("no circuit refuses the call");
    }

    #[track_caller]
    fn passes_times(&self, times: usize, who: Who, end: &Completion) {
        for _ in 0..times {
            self.passes(who, end.clone());
        }
    }

    #[track_caller]
    fn refuses(&self, who: Who) -> CircuitOpen {
        let error = (self.call)(who.ask(well())).expect_err("a circuit refuses the call");
        error
            .downcast_ref::<CircuitOpen>()
            .expect("the circuit is open")
            .clone()
    }

    fn state(&self, circuit: &CircuitId) -> State {
        self.handle.state(circuit)
    }
}

/// What a call says of itself; empty fields are not set.
#[derive(Clone, Copy, Debug)]
struct Who {
    account: &'static str,
    caller: &'static str,
    model: &'static str,
    operation: fn() -> Operation,
}

fn chat() -> Operation {
    Operation::CHAT
}

/// A call with the service's own credential.
const OWN: Who = Who {
    account: "own",
    caller: "shared",
    model: "m",
    operation: chat,
};

/// A call with a caller's credential.
const ONE: Who = Who {
    account: "",
    caller: "one",
    ..OWN
};

const OTHER: Who = Who {
    caller: "other",
    ..ONE
};

/// A list, a file, a job state.
const LIST: Who = Who {
    model: "",
    operation: || Operation::OTHER,
    ..OWN
};

impl Who {
    fn ask(self, end: Completion) -> Ask {
        let mut call = Call::builder(Provider::OPENAI, (self.operation)()).streamed(true);
        if !self.account.is_empty() {
            call = call.account(self.account);
        }
        if !self.caller.is_empty() {
            call = call.caller(Caller::named(self.caller));
        }
        if !self.model.is_empty() {
            call = call.model(self.model);
        }
        Ask {
            call: call.build(),
            end,
        }
    }

    fn model(self, model: &'static str) -> Self {
        Self { model, ..self }
    }
}

fn end(outcome: Outcome, status: u16, subject: Option<Subject>) -> Completion {
    let mut end = Completion::new(outcome);
    end.status = Some(status);
    end.subject = subject;
    end
}

fn well() -> Completion {
    end(Outcome::Success, 200, None)
}

fn wrong_key() -> Completion {
    end(Outcome::ClientError, 401, Some(Subject::Credential))
}

fn bad_request() -> Completion {
    end(Outcome::ClientError, 400, None)
}

fn failed() -> Completion {
    end(Outcome::Failed(Failure::Status), 500, None)
}

fn account() -> CircuitId {
    CircuitId::account("openai", "own")
}

// === quotas ===

/// The quota closed the account, and with it every other model and the list of models, for 15 minutes.
#[tokio::test(start_paused = true)]
async fn a_quota_of_one_model_closes_that_model_for_that_account() {
    let tested = Tested::new(builder());
    let quota = end(Outcome::Exhausted, 429, Some(Subject::Model));
    tested.passes(OWN, quota.clone());
    let refused = tested.refuses(OWN);
    let of_model = CircuitId::account_and_model("openai", "own", "m");
    assert_eq!(refused.circuit(), &of_model);
    assert_eq!(refused.retry_after(), Some(15 * MINUTE));
    for passes in [OWN.model("n"), ONE, LIST] {
        tested.passes(passes, well());
    }
    assert_eq!(tested.state(&account()), State::Closed);

    // A quota of the account, or one without a subject, closes the account.
    for subject in [None, Some(Subject::Account)] {
        let tested = Tested::new(builder());
        tested.passes(OWN, end(Outcome::Exhausted, 429, subject));
        for refused in [OWN, OWN.model("n"), LIST] {
            assert_eq!(tested.refuses(refused).circuit(), &account());
        }
        tested.passes(ONE, well());
    }
    // With a custom key there is one circuit for all.
    let shared = tower_llm_core::KeyBy::provider();
    let tested = Tested::new(builder().key_by(shared));
    tested.passes(OWN, quota);
    tested.refuses(ONE);
}

// === credentials ===

/// A single 401 closed the account, and a 401 for a caller's own credential closed nothing.
#[tokio::test(start_paused = true)]
async fn three_credential_errors_in_a_row_open_only_that_credential() {
    let in_band = end(Outcome::ClientError, 200, Some(Subject::Credential));
    let as_bad_request = end(Outcome::ClientError, 400, Some(Subject::Credential));
    for error in [wrong_key(), in_band, as_bad_request] {
        for (who, name) in [(OWN, "own"), (ONE, "one")] {
            let tested = Tested::new(builder());
            let mut events = tested.handle.subscribe();
            let circuit = CircuitId::account("openai", name);
            tested.passes_times(2, who, &error);
            tested.passes(who, well());
            // Neutral outcomes in between change nothing.
            tested.passes(who, error.clone());
            tested.passes(who.model("n"), bad_request());
            tested.passes(who.model("n"), error.clone());
            assert_eq!(tested.state(&circuit), State::Closed, "{error:?}");
            tested.passes(who, error.clone());
            let refused = tested.refuses(who.model("n"));
            assert_eq!(refused.circuit(), &circuit, "{error:?}");
            assert_eq!(refused.retry_after(), Some(15 * MINUTE));
            let [opened] = &kinds(&mut events)[..] else {
                panic!("one circuit opened once");
            };
            let reason = match opened {
                EventKind::Transition { reason, .. } => *reason,
                _ => panic!("{opened:?}"),
            };
            assert_eq!(reason, Reason::Credential);
            tested.passes(OTHER, well());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_callers_with_wrong_keys_affect_no_others() {
    let tested = Tested::new(builder());
    for _ in 0..1_000 {
        // The owner of these credentials is unknown.
        tested.passes(Who { caller: "", ..ONE }, wrong_key());
    }
    tested.passes_times(3, ONE, &wrong_key());
    tested.refuses(ONE);
    for passes in [OTHER, OWN, Who { caller: "", ..ONE }] {
        tested.passes(passes, well());
    }
    for circuit in [CircuitId::provider("openai"), model()] {
        assert_eq!(tested.state(&circuit), State::Closed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_missing_permission_opens_only_what_it_concerns() {
    let tested = Tested::new(builder());
    let forbidden = end(Outcome::ClientError, 403, Some(Subject::Credential));
    tested.passes_times(3, OWN, &forbidden);
    let of_model = CircuitId::account_and_model("openai", "own", "m");
    assert_eq!(tested.refuses(OWN).circuit(), &of_model);
    for passes in [OWN.model("n"), LIST, ONE] {
        tested.passes(passes, well());
    }
    // For files it closes nothing, and neither does a 403 for another reason.
    tested.passes_times(10, LIST, &forbidden);
    tested.passes_times(10, OTHER, &end(Outcome::ClientError, 403, None));
    tested.passes(LIST, well());
    tested.passes(OTHER, well());
}

#[tokio::test(start_paused = true)]
async fn a_probe_with_a_rejected_credential_opens_and_an_accepted_one_closes() {
    let tested = Tested::new(builder().advanced(|set| set.exhausted_for(MINUTE)));
    tested.passes_times(3, OWN, &wrong_key());
    advance(MINUTE).await;
    tested.passes(OWN, wrong_key());
    assert_eq!(tested.refuses(OWN).retry_after(), Some(MINUTE));
    advance(MINUTE).await;
    // This does not show whether the credential was accepted.
    tested.passes(OWN, end(Outcome::ClientError, 403, None));
    assert_eq!(tested.state(&account()), State::HalfOpen);
    tested.passes(OWN, bad_request());
    assert_eq!(tested.state(&account()), State::Closed);
    let stats = tested.handle.stats_of(&account()).unwrap();
    assert_eq!((stats.probe_successes, stats.probe_failures), (1, 1));
    // Three in a row again.
    tested.passes_times(2, OWN, &wrong_key());
    tested.passes(OWN, well());
}

// === calls that are not inference ===

#[tokio::test(start_paused = true)]
async fn calls_other_than_inference_neither_open_a_models_circuit_nor_are_refused_by_it() {
    let count = Who {
        operation: || Operation::COUNT_TOKENS,
        ..OWN
    };
    let read = Who {
        operation: || Operation::RETRIEVE,
        ..LIST
    };
    let tested = Tested::new(builder().failure_threshold(1));
    for other in [LIST, count, read, read.model("m")] {
        tested.passes_times(100, other, &failed());
        tested.passes(
            other,
            end(Outcome::Overloaded { retry_after: None }, 529, None),
        );
    }
    for name in ["m", ""] {
        let circuit = CircuitId::model("openai", name);
        assert_eq!(tested.state(&circuit), State::Closed, "{name}");
    }
    // The state of the model does not affect these calls, and they do not decide its probe.
    tested.passes(OWN, failed());
    assert_eq!(tested.refuses(OWN).circuit(), &model());
    advance(30 * SECOND).await;
    tested.passes(count, well());
    tested.passes(LIST, well());
    assert_eq!(tested.state(&model()), State::HalfOpen);
    tested.handle.trip(&account(), MINUTE);
    assert_eq!(tested.refuses(LIST).circuit(), &account());
    // An unknown operation that names a model is inference.
    let unknown = Who {
        operation: || Operation::OTHER,
        ..ONE.model("images")
    };
    tested.passes(unknown, failed());
    tested.refuses(unknown);
}

// === slow ===

/// A deadline cut a stream that had sent content, and it counted as a failure.
#[tokio::test(start_paused = true)]
async fn a_stream_cut_after_content_is_slow_and_no_failure() {
    let cut = end(Outcome::Failed(Failure::Slow), 200, None);
    let tested = Tested::new(builder().failure_threshold(1));
    tested.passes_times(100, OWN, &cut);
    let stats = tested.handle.stats_of(&model()).unwrap();
    assert_eq!((stats.calls, stats.failures, stats.slow_calls), (0, 0, 0));
    tested.passes(OWN, well());

    let slow = SlowCalls::at_ratio(0.5).first_token(MINUTE);
    let tested = Tested::new(builder().failure_threshold(1).slow_calls(slow));
    tested.passes_times(9, OWN, &cut);
    let stats = tested.handle.stats_of(&model()).unwrap();
    assert_eq!((stats.calls, stats.failures, stats.slow_calls), (0, 0, 9));
    tested.passes(OWN, cut.clone());
    assert_eq!(tested.refuses(OWN).circuit(), &model());
    // A slow probe has failed.
    advance(30 * SECOND).await;
    tested.passes(OWN, cut);
    assert_eq!(tested.state(&model()), State::Open);
}

// === stalls ===

/// A deadline of an inner layer has cut the stream.
#[tokio::test(start_paused = true)]
async fn a_probe_that_stalls_has_failed_and_gives_all_leases_back() {
    let stalled = end(Outcome::Failed(Failure::Stalled), 200, None);
    let tested = Tested::new(builder().failure_threshold(1));
    let provider = CircuitId::provider("openai");
    for circuit in [&model(), &provider, &account()] {
        tested.handle.trip(circuit, SECOND);
    }
    advance(SECOND).await;
    tested.passes(OWN, stalled);
    let stats = |circuit: &CircuitId| {
        let stats = tested.handle.stats_of(circuit).unwrap();
        (stats.state, stats.probes, stats.stale)
    };
    assert_eq!(stats(&model()), (State::Open, 0, 0));
    // The provider answered, which is enough for its circuit. This says nothing about the account.
    assert_eq!(stats(&provider), (State::Closed, 0, 0));
    assert_eq!(stats(&account()), (State::HalfOpen, 0, 0));
}

// === refusals ===

/// The first refusing circuit reported its time, and a client that waited for it was refused again.
#[tokio::test(start_paused = true)]
async fn the_longer_time_of_two_refusing_circuits_is_reported() {
    let circuits = [
        CircuitId::provider("openai"),
        model(),
        account(),
        CircuitId::account_and_model("openai", "own", "m"),
    ];
    for longest in &circuits {
        let tested = Tested::new(builder());
        for circuit in &circuits {
            let time = if circuit == longest { 60 } else { 5 };
            tested.handle.trip(circuit, Duration::from_secs(time));
        }
        let refused = tested.refuses(OWN);
        assert_eq!(refused.circuit(), longest);
        assert_eq!(refused.retry_after(), Some(MINUTE));
        for circuit in &circuits {
            let stats = tested.handle.stats_of(circuit).unwrap();
            let expected = u64::from(circuit == longest);
            assert_eq!(stats.refused, expected, "{circuit}");
        }
        advance(MINUTE - MS).await;
        assert_eq!(tested.refuses(OWN).retry_after(), Some(MS));
        advance(MS).await;
        tested.passes(OWN, well());
    }
}

#[tokio::test(start_paused = true)]
async fn probes_show_in_the_statistics() {
    let tested = Tested::new(builder().failure_threshold(1).success_threshold(2));
    let probes = || {
        let stats = tested.handle.stats_of(&model()).unwrap();
        (stats.state, stats.probe_successes, stats.probe_failures)
    };
    tested.passes(OWN, failed());
    assert_eq!(probes(), (State::Open, 0, 0));
    advance(30 * SECOND).await;
    tested.passes(OWN, well());
    assert_eq!(probes(), (State::HalfOpen, 1, 0));
    tested.passes(OWN, failed());
    assert_eq!(probes(), (State::Open, 1, 1));
    advance(60 * SECOND).await;
    tested.passes_times(2, OWN, &well());
    assert_eq!(probes(), (State::Closed, 3, 1));
}
