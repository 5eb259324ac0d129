//! Readiness: `call` uses the service that was readied, and no capacity is held from others.
//!
//! The mock panics if it is called without having been readied.

use std::borrow::Cow;
use std::convert::Infallible;

use crate::support::{
    FAILED, MINUTE, Request, SECOND, Says, Tested, WELL, ask, ask_of, builder, mocked, model, open,
    stats,
};
use http_body_util::Full;
use tokio::{
    task::JoinSet,
    time::{Instant, advance, sleep},
};
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok, task};
use tower::{Service, ServiceExt, limit::ConcurrencyLimit, service_fn};
use tower_layer::Layer;
use tower_llm_breaker::{BreakerLayer, CircuitId, Force, State};
use tower_llm_core::{
    Availability, BoxError, Call, Described, Entry, Gate, GateLayer, Operation, Provider, Refusal,
    Unary,
};
use tower_llm_testkit::mock::{arrived, nothing_arrived, poll_ready, start};
use tower_test::mock;

type Response = http::Response<Full<bytes::Bytes>>;

fn layer() -> BreakerLayer {
    builder()
        .failure_threshold(1)
        .build()
        .expect("good settings")
}

#[tokio::test(start_paused = true)]
async fn readiness_is_the_inner_services() {
    let layer = layer();
    let (mut service, mut upstream) = mocked::<Response>(&layer);
    upstream.allow(0);
    assert_pending!(poll_ready(&mut service));
    upstream.allow(1);
    assert_ready_ok!(poll_ready(&mut service));
    // An open circuit does not block readiness: which circuit applies is unknown before the call.
    layer.handle().trip(&model(), MINUTE);
    assert_ready_ok!(poll_ready(&mut service));

    let (mut service, mut upstream) = mocked::<Response>(&layer);
    upstream.send_error("gone");
    assert_eq!(
        assert_ready_err!(poll_ready(&mut service)).to_string(),
        "gone"
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_uses_the_service_that_was_readied_and_leaves_it_unready() {
    let layer = layer();
    let (mut service, mut upstream) = mocked::<Response>(&layer);
    upstream.allow(1);
    assert_ready_ok!(poll_ready(&mut service));
    // A clone would have to be readied first, which is impossible from here on.
    upstream.allow(0);
    let mut call = task::spawn(service.call(ask(WELL)));
    assert_pending!(call.poll());
    let (request, answer) = arrived(&mut upstream);
    assert_eq!(request.extensions().get::<Says>(), Some(&WELL));
    answer.send_response(WELL.answer().unwrap());
    assert_eq!(assert_ready_ok!(call.poll()).status(), 200);
    assert_pending!(poll_ready(&mut service));
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_ends_at_once_and_the_service_must_be_readied_again() {
    let layer = layer();
    let (mut service, mut upstream) = mocked::<Response>(&layer);
    layer.handle().trip(&model(), MINUTE);
    upstream.allow(1);
    assert_ready_ok!(poll_ready(&mut service));
    let mut call = task::spawn(service.call(ask(WELL)));
    open(&assert_ready_err!(call.poll()));
    nothing_arrived(&mut upstream);
    upstream.allow(0);
    assert_pending!(poll_ready(&mut service));
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_holds_no_inner_permit() {
    let layer = layer();
    let (mock, mut upstream) = mock::pair::<Request, Response>();
    let mut refused_service = layer.layer(ConcurrencyLimit::new(mock, 1));
    layer.handle().trip(&model(), MINUTE);
    assert_ready_ok!(poll_ready(&mut refused_service));
    // This call holds the only permit now.
    let other_service = refused_service.clone();
    assert_pending!(poll_ready(&mut other_service.clone()));
    let mut refused = task::spawn(refused_service.call(ask(WELL)));
    // Neither the service nor an unpolled future holds it.
    let mut other = start(&other_service, ask_of("openai", "", "other", WELL));
    assert_pending!(other.poll());
    arrived(&mut upstream)
        .1
        .send_response(WELL.answer().unwrap());
    assert_eq!(assert_ready_ok!(other.poll()).status(), 200);
    open(&assert_ready_err!(refused.poll()));
    drop(refused_service);
}

#[derive(Debug, PartialEq, Eq)]
struct Own(u32);

impl std::fmt::Display for Own {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "own error {}", self.0)
    }
}

impl std::error::Error for Own {}

#[tokio::test(start_paused = true)]
async fn an_inner_error_passes_as_it_is_and_is_no_refusal() {
    let layer = layer();
    let service = layer.layer(service_fn(|_: Request| async {
        Err::<Response, _>(Own(7))
    }));
    let error = assert_ready_err!(start(&service, ask(WELL)).poll());
    assert_eq!(error.downcast_ref(), Some(&Own(7)));
    assert!(Refusal::find(&*error).is_none());

    let service = layer.layer(service_fn(|_: Request| async {
        Err::<Response, BoxError>(Box::new(Own(8)))
    }));
    let error = assert_ready_err!(start(&service, ask_of("anthropic", "", "m", WELL)).poll());
    assert_eq!(error.downcast_ref(), Some(&Own(8)));
}

#[tokio::test(start_paused = true)]
async fn a_call_outlives_its_service_and_its_layer_and_is_counted() {
    let layer = builder().minimum_calls(10).build().unwrap();
    let handle = layer.handle();
    let (service, mut upstream) = mocked::<Response>(&layer);
    let mut call = start(&service, ask(WELL));
    assert_pending!(call.poll());
    drop((service, layer));
    let (_, answer) = arrived(&mut upstream);
    answer.send_response(Says::Status(500).answer().unwrap());
    drop(assert_ready_ok!(call.poll()));
    // The outcomes of calls before the drop were counted.
    assert_eq!((stats(&handle).calls, stats(&handle).failures), (1, 1));
}

// === typed services ===

#[derive(Clone, Debug)]
struct Prompt {
    call: Call,
    number: u32,
}

impl Described for Prompt {
    fn call(&self) -> Option<Cow<'_, Call>> {
        Some(Cow::Borrowed(&self.call))
    }
}

fn prompt(number: u32) -> Prompt {
    let call = Call::builder(Provider::OPENAI, Operation::CHAT)
        .model("m")
        .build();
    Prompt { call, number }
}

#[tokio::test(start_paused = true)]
async fn a_typed_services_response_is_a_success_and_its_error_a_failure() {
    let layer = builder().minimum_calls(10).watch(Unary).build().unwrap();
    let service = layer.layer(service_fn(|prompt: Prompt| async move {
        if prompt.number.is_multiple_of(2) {
            Ok(prompt.number)
        } else {
            Err(Own(prompt.number))
        }
    }));
    for number in 0..4 {
        let answer = start(&service, prompt(number)).await;
        match number % 2 {
            0 => assert_eq!(answer.unwrap(), number),
            _ => assert_eq!(answer.unwrap_err().downcast_ref(), Some(&Own(number))),
        }
    }
    let provider = tower_llm_breaker::CircuitId::provider("openai");
    let stats_of_provider = layer.handle().stats_of(&provider).unwrap();
    assert_eq!(
        (stats_of_provider.calls, stats_of_provider.failures),
        (4, 2)
    );
    // A broken connection says nothing about the model.
    assert_eq!(
        (
            stats(&layer.handle()).calls,
            stats(&layer.handle()).failures
        ),
        (2, 0)
    );
}

/// Sixty calls of a second each, through an inner service that admits one at a time.
#[tokio::test(start_paused = true)]
async fn no_deadlock_over_an_inner_service_that_admits_one_call_at_a_time() {
    let layer = builder()
        .advanced(|set| set.ramp(10 * SECOND))
        .probes(60)
        .watch(Unary)
        .build()
        .unwrap();
    layer.handle().trip(&model(), SECOND);
    advance(SECOND).await;
    let inner = service_fn(|prompt: Prompt| async move {
        sleep(SECOND).await;
        Ok::<_, Infallible>(prompt.number)
    });
    let service = layer.layer(ConcurrencyLimit::new(inner, 1));
    let began = Instant::now();
    let mut calls = JoinSet::new();
    for number in 0..60 {
        calls.spawn(service.clone().oneshot(prompt(number)));
    }
    let answered = calls.join_all().await;
    let answered = answered.iter().filter(|answer| answer.is_ok()).count();
    // Calls that the ramp refused used none of the inner service's time.
    assert_eq!(began.elapsed(), answered as u32 * SECOND);
    assert!((10..60).contains(&answered), "{answered}");
    assert_eq!(layer.handle().state(&model()), State::Closed);
    assert_eq!(stats(&layer.handle()).refused, 60 - answered as u64);
}

#[tokio::test(start_paused = true)]
async fn a_look_says_when_a_call_is_admitted_and_changes_nothing() {
    let layer = builder()
        .failure_threshold(1)
        .open_for(MINUTE)
        .probes(1)
        .build()
        .expect("good settings");
    let tested = Tested::of(&layer);
    let request = ask(WELL);
    let look = || layer.gate().would_admit(&Entry::new(&request, true));
    assert_eq!(look(), Availability::Now);
    tested.tell(FAILED);
    advance(SECOND).await;
    assert_eq!(look(), Availability::After(MINUTE - SECOND));
    advance(MINUTE - SECOND).await;
    assert_eq!(look(), Availability::Now);
    assert_eq!(
        stats(&layer.handle()).refused,
        0,
        "a look is no refused call"
    );

    let (mut service, mut upstream) = mocked::<Response>(&layer);
    upstream.allow(1);
    assert_ready_ok!(poll_ready(&mut service));
    let probe = service.call(ask(WELL));
    assert!(
        look() > Availability::Now,
        "the probe is taken, by the call"
    );
    drop(probe);
    assert_eq!(look(), Availability::Now);

    // The last of several refusing circuits counts, and one that was forced open closes by itself at no time.
    layer.handle().trip(&CircuitId::provider("openai"), SECOND);
    layer.handle().trip(&model(), MINUTE);
    assert_eq!(look(), Availability::After(MINUTE));
    layer.handle().force(&model(), Force::Open);
    assert_eq!(look(), Availability::Never);
}

#[tokio::test(start_paused = true)]
async fn a_look_on_a_ramp_takes_no_call_from_it() {
    let ramping = builder().advanced(|set| set.ramp(100 * SECOND));
    let layer = ramping.build().expect("good settings");
    let tested = Tested::of(&layer);
    layer.handle().trip(&model(), SECOND);
    advance(SECOND).await;
    tested.tell(WELL);
    let request = ask(WELL);
    let mut passed = 0;
    for _ in 0..101 {
        let look = layer.gate().would_admit(&Entry::new(&request, true));
        let passes = tested.call(ask(WELL)).is_ok();
        assert_eq!(look == Availability::Now, passes, "{look:?}");
        passed += usize::from(passes);
    }
    // As without looks: the first call, and a tenth of the others.
    assert_eq!(passed, 11);
}
