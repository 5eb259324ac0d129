//! Callers that leave, at every stage.

use std::time::Duration;

use tokio_test::assert_pending;
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_llm_batch::Abandoned;
use tower_llm_core::{BoxError, Unsent};
use tower_llm_testkit::mock::{nothing_arrived, start};

use crate::support::{
    Ask, Provider, answer_all, arrived, ask, ask_all, assert_answered, builder, counts, in_flight,
    model, pass,
};

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_before_its_batch_is_left_out() {
    let (model, mut upstream, handle) = model(builder());
    let mut first = ask(&model, Ask::new(0));
    let (_, send) = arrived(&mut upstream);
    let mut calls = ask_all(&model, 1..=4);
    // One that was polled, and one that was not.
    drop(calls.remove(1));
    drop(start(&model, Ask::new(5)));
    answer_all(&[0], send);
    assert_answered(&mut first, 0);
    assert_pending!(calls[0].poll());
    assert_eq!(arrived(&mut upstream).0, [1, 3, 4]);
    assert_eq!(handle.stats().left, 2);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_before_its_batch_was_not_sent() {
    let (model, mut upstream, _) = model(builder());
    let _first = ask(&model, Ask::new(0));
    let (_, _in_flight) = arrived(&mut upstream);
    let waiting = ask(&model, Ask::new(1));
    assert!(Unsent::while_dropping(|| drop(waiting)));
    drop(_first);
    let in_flight = ask(&model, Ask::new(2));
    let (_, _send) = arrived(&mut upstream);
    assert!(!Unsent::while_dropping(|| drop(in_flight)));
}

#[tokio::test(start_paused = true)]
async fn the_caller_that_was_to_send_the_next_batch_leaves() {
    let (model, mut upstream, _) = model(builder());
    let mut first = ask(&model, Ask::new(0));
    let (_, send) = arrived(&mut upstream);
    let mut calls = ask_all(&model, 1..=3);
    answer_all(&[0], send);
    assert_answered(&mut first, 0);
    assert!(calls[0].is_woken());
    drop(calls.remove(0));
    assert!(calls[0].is_woken(), "the next one is woken in its stead");
    assert_pending!(calls[0].poll());
    assert_eq!(arrived(&mut upstream).0, [2, 3]);
}

#[tokio::test(start_paused = true)]
async fn the_leader_of_a_window_leaves() {
    let (model, mut upstream, _) = model(builder().window(Duration::from_millis(50)));
    let first = ask(&model, Ask::new(0));
    pass(30).await;
    let mut second = ask(&model, Ask::new(1));
    drop(first);
    // The window is that of the oldest call there is.
    pass(49).await;
    assert_pending!(second.poll());
    nothing_arrived(&mut upstream);
    pass(1).await;
    assert!(second.is_woken());
    assert_pending!(second.poll());
    assert_eq!(arrived(&mut upstream).0, [1]);
}

#[tokio::test(start_paused = true)]
async fn the_leader_of_a_batch_in_flight_leaves() {
    let (model, mut upstream, handle) = model(builder());
    let (mut calls, (ids, send)) = in_flight(&model, &mut upstream, 1..=3);
    calls
        .iter_mut()
        .skip(1)
        .for_each(|call| assert_pending!(call.poll()));

    // One after the other drives it, and the last one gets its answer.
    drop(calls.remove(0));
    assert!(calls[0].is_woken());
    drop(calls.remove(0));
    assert!(calls[0].is_woken());
    assert_pending!(calls[0].poll());
    answer_all(&ids, send);
    assert!(calls[0].is_woken());
    assert_answered(&mut calls[0], 3);
    assert_eq!(counts(&handle), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_leader_leaves_after_the_answer_came_and_before_it_polled() {
    let (model, mut upstream, _) = model(builder());
    let (mut calls, (ids, send)) = in_flight(&model, &mut upstream, 1..=2);
    assert_pending!(calls[1].poll());
    answer_all(&ids, send);
    drop(calls.remove(0));
    assert!(calls[0].is_woken());
    assert_answered(&mut calls[0], 2);
}

#[tokio::test(start_paused = true)]
async fn the_upstream_is_dropped_with_the_last_caller_and_the_next_batch_is_sent() {
    let (model, mut upstream, handle) = model(builder());
    let (mut calls, (_, send)) = in_flight(&model, &mut upstream, 1..=2);
    let mut next = ask(&model, Ask::new(3));
    calls.clear();
    assert_eq!(counts(&handle), (1, 1, 0));
    // tower_test shows it: no call waits for the response.
    send.send_response(vec![0, 0]);
    assert!(next.is_woken());
    assert_pending!(next.poll());
    assert_eq!(arrived(&mut upstream).0, [3]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_without_callers_is_closed_unless_it_is_told_otherwise() {
    for (abandoned, after_drop, after_end) in [(Abandoned::Drop, 0, 0), (Abandoned::Finish, 1, 0)] {
        let provider = Provider::default();
        let called = provider.clone();
        let layer = builder().abandoned(abandoned).build().unwrap();
        let model = layer.layer(service_fn(move |batch| called.clone().call(batch)));
        let mut call = start(&model, Ask::new(1));
        assert_pending!(call.poll());
        let in_flight = || provider.in_flight.load(std::sync::atomic::Ordering::SeqCst);
        assert_eq!(in_flight(), 1);
        drop(call);
        assert_eq!(in_flight(), after_drop);
        assert_eq!(counts(&layer.handle()).2, after_drop);
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert_eq!(in_flight(), after_end);
        assert_eq!(counts(&layer.handle()), (0, 0, 0));
        assert_eq!(model.oneshot(Ask::new(2)).await.unwrap(), 2_007);
    }
}

#[tokio::test(start_paused = true)]
async fn callers_that_leave_a_rejected_batch_are_left_out_of_its_halves() {
    let (model, mut upstream, handle) = model(builder());
    let (mut calls, (_, send)) = in_flight(&model, &mut upstream, 1..=4);
    drop(calls.remove(1));
    let rejected: BoxError =
        tower_llm_core::ClassifiedError::new(tower_llm_core::Outcome::ClientError, "bad").into();
    send.send_error(rejected);
    assert_pending!(calls[0].poll());
    let (ids, send) = arrived(&mut upstream);
    assert_eq!(ids, [1]);
    // The second half loses all its callers.
    let mut third = calls.remove(1);
    drop(calls.remove(1));
    assert_pending!(third.poll());
    drop(third);
    answer_all(&ids, send);
    assert_answered(&mut calls[0], 1);
    nothing_arrived(&mut upstream);
    assert_eq!(counts(&handle), (0, 0, 0));
}
