//! Permits that are acquired in `poll_ready`.

use std::{
    future::Ready,
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::support::{Ask, chat, read};
use tokio_test::{assert_pending, assert_ready, assert_ready_err, assert_ready_ok, task};
use tower::{Service, limit::ConcurrencyLimit, service_fn};
use tower_layer::Layer;
use tower_llm_bulkhead::{BulkheadLayer, ReleaseAt, Reserve, ReserveLayer};
use tower_llm_core::{BoxError, Unary};
use tower_llm_testkit::mock::{
    Upstream, arrived, nothing_arrived, poll_frame, poll_ready, start, stream,
};
use tower_test::mock::{self, Handle, Mock};

fn permits(limit: usize) -> ReserveLayer<Unary> {
    let builder = BulkheadLayer::builder(limit).watch(Unary);
    builder.build_reserve().expect("good settings")
}

type Reserved = Reserve<Mock<Ask, usize>, Unary>;

fn reserved(layer: &ReserveLayer<Unary>) -> (Reserved, Handle<Ask, usize>) {
    let (mock, upstream) = mock::pair();
    (layer.layer(mock), upstream)
}

#[tokio::test(start_paused = true)]
async fn a_ready_service_holds_a_permit_and_its_call_releases_it() {
    let layer = permits(1);
    let (mut service, mut upstream) = reserved(&layer);
    assert_eq!(layer.in_flight(), 0);
    assert_ready_ok!(poll_ready(&mut service));
    assert_ready_ok!(poll_ready(&mut service));
    assert_eq!(layer.in_flight(), 1);
    let mut call = task::spawn(service.call(Ask::new(0)));
    assert_pending!(poll_ready(&mut service));
    assert_eq!(layer.in_flight(), 1);
    arrived(&mut upstream).1.send_response(5);
    assert_eq!(assert_ready_ok!(call.poll()), 5);
    assert_ready_ok!(poll_ready(&mut service));
    assert_eq!(layer.in_flight(), 1);
    drop(service);
    assert_eq!(layer.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "poll_ready must be called first")]
async fn calling_a_service_that_was_not_readied_panics() {
    let (mut service, _upstream) = reserved(&permits(1));
    let _call = service.call(Ask::new(0));
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "poll_ready must be called first")]
async fn a_ready_service_is_ready_for_one_call() {
    let (mut service, _upstream) = reserved(&permits(2));
    assert_ready_ok!(poll_ready(&mut service));
    let _first = service.call(Ask::new(0));
    let _second = service.call(Ask::new(1));
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "poll_ready must be called first")]
async fn a_clone_of_a_ready_service_is_not_ready() {
    let (mut service, _upstream) = reserved(&permits(2));
    assert_ready_ok!(poll_ready(&mut service));
    let _call = service.clone().call(Ask::new(0));
}

#[tokio::test(start_paused = true)]
async fn a_clone_of_a_ready_service_has_no_permit() {
    let layer = permits(1);
    let (mut service, _upstream) = reserved(&layer);
    assert_ready_ok!(poll_ready(&mut service));
    let mut clone = service.clone();
    assert_eq!(layer.in_flight(), 1);
    assert_pending!(poll_ready(&mut clone));
    drop(clone);
    assert_eq!(layer.in_flight(), 1);
    assert_ready_ok!(poll_ready(&mut service));
}

#[tokio::test(start_paused = true)]
async fn a_ready_service_that_is_dropped_gives_its_permit_to_the_next() {
    let layer = permits(1);
    let (mut service, mut upstream) = reserved(&layer);
    let mut next = service.clone();
    assert_ready_ok!(poll_ready(&mut service));
    let mut waiting = task::spawn(());
    assert_pending!(waiting.enter(|cx, _| next.poll_ready(cx)));
    assert!(!waiting.is_woken());
    drop(service);
    assert!(waiting.is_woken());
    assert_ready_ok!(waiting.enter(|cx, _| next.poll_ready(cx)));
    let _call = next.call(Ask::new(4));
    assert_eq!(arrived(&mut upstream).0.id, 4);
}

#[tokio::test(start_paused = true)]
async fn services_become_ready_in_the_order_they_asked_in() {
    let layer = permits(1);
    let (mut service, _upstream) = reserved(&layer);
    assert_ready_ok!(poll_ready(&mut service));
    let mut held = Some(service);
    let mut waiting: Vec<_> = (0..4)
        .map(|_| (held.clone().unwrap(), task::spawn(())))
        .collect();
    for (service, task) in &mut waiting {
        assert_pending!(task.enter(|cx, _| service.poll_ready(cx)));
    }
    // One leaves the queue by being dropped; one is not polled, and keeps its turn.
    drop(waiting.remove(1));
    for round in 0..3 {
        held.take();
        for (i, (service, task)) in waiting.iter_mut().enumerate().rev() {
            assert_eq!(task.is_woken(), i == 0, "round {round}, waiting {i}");
            if i > 0 {
                assert_pending!(task.enter(|cx, _| service.poll_ready(cx)));
            }
        }
        let (mut service, mut task) = waiting.remove(0);
        assert_ready_ok!(task.enter(|cx, _| service.poll_ready(cx)));
        held = Some(service);
        assert_eq!(layer.in_flight(), 1);
    }
    held.take();
    assert_eq!(layer.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_service_dropped_with_an_unseen_grant_passes_its_permit_on() {
    let layer = permits(1);
    let (mut service, _upstream) = reserved(&layer);
    let [mut first, mut second] = [service.clone(), service.clone()];
    assert_ready_ok!(poll_ready(&mut service));
    assert_pending!(poll_ready(&mut first));
    assert_pending!(poll_ready(&mut second));
    drop(service);
    assert_pending!(poll_ready(&mut second));
    drop(first);
    assert_ready_ok!(poll_ready(&mut second));
    assert_eq!(layer.in_flight(), 1);
}

#[tokio::test(start_paused = true)]
async fn services_of_a_layer_and_its_clones_share_permits() {
    let layer = permits(1);
    let (mut first, _upstream) = reserved(&layer);
    let (mut second, _upstream) = reserved(&layer.clone());
    assert_ready_ok!(poll_ready(&mut first));
    assert_pending!(poll_ready(&mut second));
    drop(first);
    assert_ready_ok!(poll_ready(&mut second));
    assert_eq!(layer.in_flight(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_permit_is_kept_while_the_inner_service_becomes_ready() {
    let layer = permits(1);
    let (mut service, mut upstream) = reserved(&layer);
    upstream.allow(0);
    let mut task = task::spawn(());
    assert_pending!(task.enter(|cx, _| service.poll_ready(cx)));
    assert_eq!(layer.in_flight(), 1);
    upstream.allow(1);
    assert!(task.is_woken());
    assert_ready_ok!(task.enter(|cx, _| service.poll_ready(cx)));
    let _call = service.call(Ask::new(3));
    assert_eq!(arrived(&mut upstream).0.id, 3);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_fails_to_become_ready_gives_its_permit_back_when_dropped() {
    let layer = permits(1);
    let (mut service, mut upstream) = reserved(&layer);
    upstream.send_error("gone");
    assert_eq!(
        assert_ready_err!(poll_ready(&mut service)).to_string(),
        "gone"
    );
    drop(service);
    assert_eq!(layer.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn over_an_inner_limit_the_service_that_was_readied_is_called() {
    let layer = permits(2);
    let (mock, mut upstream) = mock::pair::<Ask, usize>();
    let service = layer.layer(ConcurrencyLimit::new(mock, 1));
    let mut first = start(&service, Ask::new(0));
    let mut second = service.clone();
    let mut task = task::spawn(());
    assert_pending!(task.enter(|cx, _| second.poll_ready(cx)));
    arrived(&mut upstream).1.send_response(0);
    assert_ready_ok!(first.poll());
    drop(first);
    assert!(task.is_woken());
    assert_ready_ok!(task.enter(|cx, _| second.poll_ready(cx)));
    let mut call = task::spawn(second.call(Ask::new(1)));
    assert_pending!(call.poll());
    assert_eq!(arrived(&mut upstream).0.id, 1);
    nothing_arrived(&mut upstream);
    assert_eq!(layer.in_flight(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_permit_is_held_to_the_end_of_the_body() {
    for (release_at, held) in [(ReleaseAt::ResponseHeaders, 0), (ReleaseAt::End, 1)] {
        let builder = BulkheadLayer::builder(1).release_at(release_at);
        let layer = builder.build_reserve().unwrap();
        let (mock, mut upstream) = mock::pair();
        let service = layer.layer(mock);
        let mut call = start(&service, chat());
        let (sender, body) = Upstream::new();
        arrived(&mut upstream).1.send_response(stream(body));
        let mut body = assert_ready_ok!(call.poll()).into_body();
        sender.send(crate::support::DONE);
        assert_eq!(read(&mut body), crate::support::DONE);
        assert_eq!(layer.in_flight(), held);
        drop(sender);
        assert!(assert_ready!(poll_frame(&mut body)).is_none());
        assert_eq!(layer.in_flight(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_permit_is_given_back_when_the_call_panics_fails_or_is_dropped() {
    let layer = permits(1);
    let panics = |_: Ask| -> Ready<Result<usize, BoxError>> { panic!("scripted panic") };
    let panics = layer.layer(service_fn(panics));
    let call = AssertUnwindSafe(|| start(&panics, Ask::new(0)));
    assert!(catch_unwind(call).is_err());
    assert_eq!(layer.in_flight(), 0);

    let (service, mut upstream) = reserved(&layer);
    let mut fails = start(&service, Ask::new(1));
    arrived(&mut upstream).1.send_error("gone");
    assert_ready_err!(fails.poll());
    assert_eq!(layer.in_flight(), 0);

    let mut dropped = start(&service, Ask::new(2));
    assert_pending!(dropped.poll());
    assert_eq!(layer.in_flight(), 1);
    drop(dropped);
    assert_eq!(layer.in_flight(), 0);
}

#[test]
fn a_service_that_fails_to_become_ready_holds_no_permit() {
    struct Broken;

    impl Service<Ask> for Broken {
        type Response = usize;
        type Error = BoxError;
        type Future = Ready<Result<usize, BoxError>>;

        fn poll_ready(
            &mut self,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Result<(), BoxError>> {
            std::task::Poll::Ready(Err("broken".into()))
        }

        fn call(&mut self, _: Ask) -> Self::Future {
            unreachable!("never ready")
        }
    }

    let layer = permits(1);
    let mut service = layer.layer(Broken);
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert_ready_err!(service.poll_ready(&mut cx));
    assert_eq!(layer.in_flight(), 0);
}
