//! tower's contract.

use std::{task::Poll, time::Duration};

use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task};
use tower::limit::ConcurrencyLimitLayer;
use tower_layer::Layer;
use tower_llm_core::{BoxError, Failure, Outcome, Unary, Unsent};
use tower_llm_fanout::{Delay, FanoutLayer};
use tower_llm_testkit::mock::{arrived, nothing_arrived, poll_ready};
use tower_service::Service;
use tower_test::mock::{self, Mock};

use crate::support::{Ask, MS, Numbered, ask, fails, never, ok};

fn race(branches: usize) -> FanoutLayer<Unary> {
    FanoutLayer::race(branches).watch(Unary).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn each_branch_is_called_only_when_its_service_is_ready() {
    let (service, mut upstream): (Mock<Ask, u32>, _) = mock::pair();
    upstream.allow(0);
    let mut service = race(2).layer(service);
    assert_pending!(poll_ready(&mut service));
    upstream.allow(1);
    assert_ready_ok!(poll_ready(&mut service));
    let mut call = task::spawn(service.call(ask()));
    let (_, first) = arrived(&mut upstream);
    assert_pending!(call.poll());
    // The second one waits for itself, and holds up nothing.
    nothing_arrived(&mut upstream);
    upstream.allow(1);
    assert!(call.is_woken());
    assert_pending!(call.poll());
    let (_, second) = arrived(&mut upstream);
    first.send_error("broken");
    assert_pending!(call.poll());
    second.send_response(2);
    assert_eq!(assert_ready_ok!(call.poll()), 2);
}

#[tokio::test(start_paused = true)]
async fn branches_share_one_permit_one_after_another() {
    let provider = Numbered::new(|_| ok(1, 10 * MS));
    let limited = ConcurrencyLimitLayer::new(1).layer(provider.clone());
    let layer = FanoutLayer::map(4).watch(Unary).build().unwrap();
    let mut service = layer.layer(limited);
    std::future::poll_fn(|cx| service.poll_ready(cx))
        .await
        .unwrap();
    let items = (0..8).map(Ask::numbered).collect::<Vec<_>>();
    assert_eq!(service.call(items).await.unwrap().good(), 8);
    assert_eq!((provider.sent(), provider.most_at_once()), (8, 1));
}

#[tokio::test(start_paused = true)]
async fn a_race_around_one_permit_is_won_without_the_branch_that_waits() {
    let provider = Numbered::new(|_| ok(1, 10 * MS));
    let limited = ConcurrencyLimitLayer::new(1).layer(provider.clone());
    let mut service = race(2).layer(limited);
    for call in 1..=3 {
        std::future::poll_fn(|cx| service.poll_ready(cx))
            .await
            .unwrap();
        assert_eq!(service.call(ask()).await.unwrap(), 1);
        assert_eq!((provider.sent(), provider.in_flight()), (call, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_dropped_call_had_sent_is_reported() {
    let run = |step: fn(usize) -> crate::support::Step| {
        let provider = Numbered::new(step);
        // The first branch takes the permit, which a failure gives back; the second one waits for it.
        let limited = ConcurrencyLimitLayer::new(1).layer(provider.clone());
        (race(2).layer(limited), provider)
    };
    let (mut service, provider) = run(|_| never());
    std::future::poll_fn(|cx| service.poll_ready(cx))
        .await
        .unwrap();
    let mut call = Box::pin(service.call(ask()));
    assert!(poll_once(call.as_mut()).is_pending());
    assert!(!Unsent::while_dropping(|| drop(call)));
    assert_eq!(provider.in_flight(), 0);
}

fn poll_once<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
}

#[tokio::test(start_paused = true)]
async fn the_winner_does_not_wait_for_what_a_loser_has_to_do() {
    let (service, mut upstream): (Mock<Ask, u32>, _) = mock::pair();
    let mut service = race(2).layer(service);
    assert_ready_ok!(poll_ready(&mut service));
    let mut call = task::spawn(service.call(ask()));
    assert_pending!(call.poll());
    let (_, _loser) = arrived(&mut upstream);
    let (_, winner) = arrived(&mut upstream);
    winner.send_response(1);
    // In the same poll.
    assert_eq!(assert_ready_ok!(call.poll()), 1);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_fails_to_become_ready_fails_its_branch_alone() {
    let (service, mut upstream): (Mock<Ask, u32>, _) = mock::pair();
    let mut service = race(2).layer(service);
    assert_ready_ok!(poll_ready(&mut service));
    let mut call = task::spawn(service.call(ask()));
    let (_, first) = arrived(&mut upstream);
    upstream.send_error(BoxError::from("closed"));
    assert_pending!(call.poll());
    first.send_response(1);
    assert_eq!(assert_ready_ok!(call.poll()), 1);
}

#[tokio::test(start_paused = true)]
async fn no_timer_runs_when_there_is_nothing_to_wait_for() {
    let provider = Numbered::new(|_| fails(Outcome::Failed(Failure::Status), 10 * MS));
    let hedge = FanoutLayer::hedge(Delay::fixed(Duration::from_secs(3_600)));
    let layer = hedge.watch(Unary).build().unwrap();
    let mut service = layer.layer(provider.clone());
    let began_at = tokio::time::Instant::now();
    let mut call = task::spawn(service.call(ask()));
    assert_pending!(call.poll());
    tokio::time::advance(10 * MS).await;
    assert_pending!(call.poll());
    tokio::time::advance(10 * MS).await;
    // Both have failed: the call does not wait for the delay.
    assert_ready!(call.poll()).unwrap_err();
    assert_eq!(began_at.elapsed(), 20 * MS);
    assert_eq!(provider.sent(), 2);
}
