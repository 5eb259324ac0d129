//! Readiness: `call` uses the service that was readied, no capacity is held from others, and state is shared.
//!
//! The mock panics if it is called without having been readied.

use std::{convert::Infallible, time::Duration};

use crate::support::{Ask, asked, chat, chat_to, full, openai};
use tokio::{task::JoinSet, time::Instant};
use tokio_test::{assert_pending, assert_ready, assert_ready_err, assert_ready_ok, task};
use tower::{Service, ServiceExt, limit::ConcurrencyLimit, service_fn};
use tower_layer::Layer;
use tower_llm_bulkhead::BulkheadLayer;
use tower_llm_core::{Availability, Entry, Gate, GateLayer, Provider, Unary};
use tower_llm_testkit::mock::{Upstream, arrived, nothing_arrived, poll_ready, start, stream};
use tower_test::mock;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_call_with_a_free_permit_uses_the_service_that_was_readied() {
    let layer = BulkheadLayer::builder(1).watch(Unary).build().unwrap();
    let (mut service, mut upstream) = asked(&layer);
    upstream.allow(0);
    assert_pending!(poll_ready(&mut service));
    upstream.allow(1);
    assert_ready_ok!(poll_ready(&mut service));
    // A clone would have to be readied first, which is impossible from here on.
    upstream.allow(0);
    let mut call = task::spawn(service.call(Ask::new(7)));
    let (ask, answer) = arrived(&mut upstream);
    assert_eq!(ask.id, 7);
    answer.send_response(70);
    assert_eq!(assert_ready_ok!(call.poll()), 70);
    assert_pending!(poll_ready(&mut service));
}

#[tokio::test(start_paused = true)]
async fn a_waiting_call_readies_a_service_before_calling_it() {
    let layer = BulkheadLayer::builder(1).watch(Unary).build().unwrap();
    let (mut service, mut upstream) = asked(&layer);
    let running = start(&service, Ask::new(0));
    assert_ready_ok!(poll_ready(&mut service));
    let mut waiting = task::spawn(service.call(Ask::new(1)));
    assert_pending!(waiting.poll());
    arrived(&mut upstream);

    upstream.allow(0);
    drop(running);
    assert!(waiting.is_woken());
    assert_pending!(waiting.poll());
    nothing_arrived(&mut upstream);
    // It holds its permit while it waits for the inner service.
    assert_eq!(openai(&layer.handle()), (1, 0, 0));
    assert!(!waiting.is_woken());
    upstream.allow(1);
    assert!(waiting.is_woken());
    assert_pending!(waiting.poll());
    let (ask, answer) = arrived(&mut upstream);
    assert_eq!(ask.id, 1);
    answer.send_response(10);
    assert_eq!(assert_ready_ok!(waiting.poll()), 10);
    assert_eq!(openai(&layer.handle()), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_service_whose_call_waits_must_be_readied_again() {
    let layer = BulkheadLayer::builder(1).watch(Unary).build().unwrap();
    let (mut service, mut upstream) = asked(&layer);
    let running = start(&service, Ask::new(0));
    arrived(&mut upstream);
    assert_ready_ok!(poll_ready(&mut service));
    let _waiting = service.call(Ask::new(1));
    upstream.allow(0);
    assert_pending!(poll_ready(&mut service));
    drop(running);
}

#[tokio::test(start_paused = true)]
async fn an_inner_service_that_fails_to_become_ready_gives_the_permit_back() {
    let layer = BulkheadLayer::builder(1).watch(Unary).build().unwrap();
    let (mut service, mut upstream) = asked(&layer);
    let running = start(&service, Ask::new(0));
    let mut waiting = start(&service, Ask::new(1));
    assert_pending!(waiting.poll());
    drop(running);
    upstream.send_error("gone");
    assert_eq!(assert_ready_err!(waiting.poll()).to_string(), "gone");
    assert_eq!(openai(&layer.handle()), (0, 0, 0));

    upstream.send_error("gone again");
    let error = assert_ready_err!(poll_ready(&mut service));
    assert_eq!(error.to_string(), "gone again");
}

#[tokio::test(start_paused = true)]
async fn readiness_never_waits_for_the_permits_of_a_key() {
    let layer = BulkheadLayer::builder(1)
        .max_waiting(1)
        .watch(Unary)
        .build()
        .unwrap();
    let (mut service, _upstream) = asked(&layer);
    let _calls = [Ask::new(0), Ask::new(1)].map(|ask| start(&service, ask));
    assert_eq!(openai(&layer.handle()), (1, 1, 0));
    assert_ready_ok!(poll_ready(&mut service));
    assert_ready_err!(task::spawn(service.call(Ask::new(2))).poll());
    assert_ready_ok!(poll_ready(&mut service));
}

#[tokio::test(start_paused = true)]
async fn a_waiting_call_holds_no_inner_permit_from_a_call_of_another_key() {
    let layer = BulkheadLayer::new(1).unwrap();
    let (mock, mut upstream) = mock::pair();
    let service = layer.layer(ConcurrencyLimit::new(mock, 1));
    // The first call's response headers have arrived: the inner permit is free, the bulkhead's is not.
    let mut first = start(&service, chat());
    let (end, body) = Upstream::new();
    arrived(&mut upstream).1.send_response(stream(body));
    let response = assert_ready_ok!(first.poll());
    drop(first);
    assert_eq!(openai(&layer.handle()), (1, 0, 0));

    let mut queued_service = service.clone();
    assert_ready_ok!(poll_ready(&mut queued_service));
    let mut queued = task::spawn(queued_service.call(chat()));
    assert_pending!(queued.poll());
    // The service stays, as on an idle connection, and a call of another key is admitted anyway.
    let mut other = start(&service, chat_to(Provider::ANTHROPIC));
    assert_pending!(other.poll());
    let (request, answer) = arrived(&mut upstream);
    let call = request.extensions().get::<tower_llm_core::Call>().unwrap();
    assert_eq!(call.provider(), &Provider::ANTHROPIC);

    // The bulkhead's permit is free before the inner one, and the call gets both.
    drop((end, response));
    assert_pending!(queued.poll());
    assert_eq!(openai(&layer.handle()), (1, 0, 0));
    nothing_arrived(&mut upstream);
    answer.send_response(stream(Upstream::new().1));
    let response = assert_ready_ok!(other.poll());
    drop((other, response));
    assert!(queued.is_woken());
    assert_pending!(queued.poll());
    arrived(&mut upstream);
    drop(queued_service);
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_holds_no_inner_permit() {
    let layer = BulkheadLayer::builder(1)
        .max_waiting(0)
        .watch(Unary)
        .build()
        .unwrap();
    let (mock, mut upstream) = mock::pair::<Ask, usize>();
    let service = layer.layer(ConcurrencyLimit::new(mock, 2));
    let _running = start(&service, Ask::new(0));
    let mut refused_service = service.clone();
    assert_ready_ok!(poll_ready(&mut refused_service));
    let error = assert_ready_err!(task::spawn(refused_service.call(Ask::new(1))).poll());
    full(&error);
    let mut other = start(&service, Ask::of("anthropic", 2));
    assert_pending!(other.poll());
    assert_eq!(arrived(&mut upstream).0.id, 0);
    assert_eq!(arrived(&mut upstream).0.id, 2);
    drop(refused_service);
}

/// Sixty calls to three providers, each a second long, through an inner service that admits one at a time.
async fn sixty_seconds_of_calls<S>(service: S)
where
    S: Service<Ask, Response = usize> + Clone + Send + 'static,
    S::Error: Send + std::fmt::Debug,
    S::Future: Send,
{
    let began = Instant::now();
    let mut calls = JoinSet::new();
    for id in 0..60 {
        let provider = ["openai", "anthropic", "gcp.gemini"][id % 3];
        calls.spawn(service.clone().oneshot(Ask::of(provider, id)));
    }
    let answered = calls.join_all().await;
    let mut answered: Vec<_> = answered
        .into_iter()
        .map(|answer| answer.expect("it answers"))
        .collect();
    answered.sort_unstable();
    assert_eq!(answered, Vec::from_iter(0..60));
    assert_eq!(began.elapsed(), 60 * SECOND);
}

async fn a_second_long(ask: Ask) -> Result<usize, Infallible> {
    tokio::time::sleep(SECOND).await;
    Ok(ask.id)
}

#[tokio::test(start_paused = true)]
async fn no_deadlock_over_an_inner_service_that_admits_one_call_at_a_time() {
    let builder = BulkheadLayer::builder(1)
        .watch(Unary)
        .max_wait(Duration::from_secs(3_600));
    let layer = builder.clone().build().unwrap();
    let inner = ConcurrencyLimit::new(service_fn(a_second_long), 1);
    sixty_seconds_of_calls(layer.layer(inner)).await;
    for stats in layer.handle().stats() {
        assert_eq!((stats.in_flight, stats.waiting, stats.refused), (0, 0, 0));
    }

    for limit in [1, 2] {
        let builder = BulkheadLayer::builder(limit).watch(Unary);
        let reserve = builder.build_reserve().unwrap();
        let inner = ConcurrencyLimit::new(service_fn(a_second_long), 1);
        sixty_seconds_of_calls(reserve.layer(inner)).await;
        assert_eq!(reserve.in_flight(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn services_of_a_layer_and_its_clones_share_permits() {
    let layer = BulkheadLayer::builder(1)
        .max_waiting(1)
        .watch(Unary)
        .build()
        .unwrap();
    let handle = layer.handle();
    let (first, mut upstream) = asked(&layer);
    let (second, mut second_upstream) = asked(&layer.clone());
    let mut running = start(&first, Ask::new(0));
    let mut waiting = start(&second, Ask::new(1));
    assert_pending!(waiting.poll());
    assert_ready_err!(start(&first.clone(), Ask::new(2)).poll());
    assert_eq!(openai(&handle), (1, 1, 1));
    assert_eq!(openai(&layer.handle()), (1, 1, 1));

    arrived(&mut upstream).1.send_response(0);
    assert_ready_ok!(running.poll());
    assert_pending!(waiting.poll());
    assert_eq!(arrived(&mut second_upstream).0.id, 1);
    // Another layer with the same settings is another bulkhead.
    let apart = BulkheadLayer::builder(1).watch(Unary).build().unwrap();
    let (service, mut upstream) = asked(&apart);
    let _running = start(&service, Ask::new(3));
    assert_eq!(arrived(&mut upstream).0.id, 3);
    assert_eq!(openai(&handle), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_waiting_call_outlives_its_service_and_its_layer() {
    let layer = BulkheadLayer::builder(1).watch(Unary).build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let running = start(&service, Ask::new(0));
    let mut waiting = start(&service, Ask::new(1));
    drop((service, layer));
    arrived(&mut upstream);
    drop(running);
    assert_pending!(waiting.poll());
    arrived(&mut upstream).1.send_response(1);
    assert_eq!(assert_ready!(waiting.poll()).unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_look_says_whether_a_permit_is_free_and_takes_none() {
    let builder = BulkheadLayer::builder(1).global_limit(2).watch(Unary);
    let layer = builder.build().unwrap();
    let look = |ask: &Ask| layer.gate().would_admit(&Entry::new(ask, false));
    let (own, other) = (Ask::new(0), Ask::of("anthropic", 1));
    let (service, _upstream) = asked(&layer);
    assert_eq!(look(&own), Availability::Now);
    assert_eq!(openai(&layer.handle()), (0, 0, 0));
    let running = start(&service, own.clone());
    assert_eq!(look(&own), Availability::Unknown);
    assert_eq!(look(&other), Availability::Now, "of another key");
    let running_too = start(&service, other.clone());
    let third = Ask::of("gemini", 2);
    assert_eq!(look(&third), Availability::Unknown, "no permit of all keys");
    assert_eq!(
        openai(&layer.handle()),
        (1, 0, 0),
        "no look waits or is refused"
    );
    drop((running, running_too));
    assert_eq!([look(&own), look(&third)], [Availability::Now; 2]);
}
