//! When a batch is closed.

use std::time::Duration;

use tokio::time::Instant;
use tokio_test::{assert_pending, assert_ready_ok};
use tower_llm_core::Priority;
use tower_llm_testkit::mock::{nothing_arrived, start};

use crate::support::{
    Ask, answer_all, arrived, ask, ask_all, assert_answered, builder, counts, model, pass,
    poll_woken,
};

#[tokio::test(start_paused = true)]
async fn the_first_call_goes_alone_and_those_that_come_meanwhile_make_one_batch() {
    let (model, mut upstream, handle) = model(builder());
    let mut first = ask(&model, Ask::new(0));
    let (ids, send_first) = arrived(&mut upstream);
    assert_eq!(ids, [0]);

    let mut others = ask_all(&model, 1..=9);
    nothing_arrived(&mut upstream);
    assert_eq!(counts(&handle), (1, 9, 1));

    answer_all(&[0], send_first);
    assert_answered(&mut first, 0);
    // The end of the first wakes one that waits, which sends for all.
    assert!(others[0].is_woken());
    assert_eq!(others.iter().filter(|call| call.is_woken()).count(), 1);
    assert_pending!(others[0].poll());
    let (ids, send_others) = arrived(&mut upstream);
    assert_eq!(ids, [1, 2, 3, 4, 5, 6, 7, 8, 9]);

    answer_all(&ids, send_others);
    // Whichever polls drives the call, and all have their answers.
    assert_eq!(others.iter().filter(|call| call.is_woken()).count(), 1);
    assert_answered(&mut others[5], 6);
    drop(others.remove(5));
    for (call, id) in others.iter_mut().zip([1, 2, 3, 4, 5, 7, 8, 9]) {
        assert!(call.is_woken());
        assert_answered(call, id);
    }
    nothing_arrived(&mut upstream);
    assert_eq!(counts(&handle), (0, 0, 0));
    let stats = handle.stats();
    assert_eq!((stats.calls, stats.batches, stats.items), (10, 2, 10));
    assert_eq!(stats.mean_calls(), Some(5.0));
}

#[tokio::test(start_paused = true)]
async fn calls_that_were_not_polled_yet_are_sent_with_the_first_that_is() {
    let (model, mut upstream, _) = model(builder());
    let mut unpolled = start(&model, Ask::new(0));
    let mut polled = ask(&model, Ask::new(1));
    let (ids, send) = arrived(&mut upstream);
    assert_eq!(ids, [0, 1]);
    answer_all(&ids, send);
    assert_answered(&mut polled, 1);
    assert_answered(&mut unpolled, 0);
}

#[tokio::test(start_paused = true)]
async fn calls_of_other_keys_wait_for_nothing() {
    let (model, mut upstream, handle) = model(builder());
    let keys = ["a", "b", "c"];
    let mut calls: Vec<_> = keys.map(|key| ask(&model, Ask::of(key, 1))).into();
    assert_eq!(counts(&handle), (3, 0, 3));
    for call in &mut calls {
        let (ids, send) = arrived(&mut upstream);
        answer_all(&ids, send);
        assert_answered(call, 1);
    }
    assert_eq!(counts(&handle), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn several_batches_of_a_key_may_be_in_flight() {
    let (model, mut upstream, handle) = model(builder().max_in_flight(2));
    let mut calls = ask_all(&model, 0..5);
    let (_, send_first) = arrived(&mut upstream);
    let (_, send_second) = arrived(&mut upstream);
    nothing_arrived(&mut upstream);
    assert_eq!(counts(&handle), (1, 3, 2));
    answer_all(&[1], send_second);
    assert_answered(&mut calls[1], 1);
    assert_pending!(calls[2].poll());
    let (ids, _rest) = arrived(&mut upstream);
    assert_eq!(ids, [2, 3, 4]);
    answer_all(&[0], send_first);
    assert_answered(&mut calls[0], 0);
}

#[tokio::test(start_paused = true)]
async fn a_window_closes_when_its_time_is_over() {
    let (model, mut upstream, handle) = model(builder().window(Duration::from_millis(50)));
    let mut first = ask(&model, Ask::new(0));
    pass(30).await;
    let mut second = ask(&model, Ask::new(1));
    pass(19).await;
    assert!(!first.is_woken());
    assert_pending!(first.poll());
    nothing_arrived(&mut upstream);

    pass(1).await;
    assert!(first.is_woken() && second.is_woken());
    // Either one sends.
    assert_pending!(second.poll());
    let (ids, send) = arrived(&mut upstream);
    assert_eq!(ids, [0, 1]);
    answer_all(&ids, send);
    assert_answered(&mut second, 1);
    assert_answered(&mut first, 0);
    assert_eq!(handle.stats().mean_wait(), Some(Duration::from_millis(35)));
}

#[tokio::test(start_paused = true)]
async fn a_window_that_is_open_when_a_batch_ends_closes_in_time() {
    let (model, mut upstream, _) = model(builder().window(Duration::from_millis(50)).max_items(2));
    let mut full = ask_all(&model, 0..2);
    let (ids, send) = arrived(&mut upstream);
    let mut waiting = ask(&model, Ask::new(2));
    pass(20).await;
    answer_all(&ids, send);
    poll_woken(&mut full);
    assert!(!waiting.is_woken());
    pass(30).await;
    assert!(waiting.is_woken());
    assert_pending!(waiting.poll());
    assert_eq!(arrived(&mut upstream).0, [2]);
}

#[tokio::test(start_paused = true)]
async fn a_full_batch_waits_for_no_time() {
    let builder = builder()
        .window(Duration::from_secs(3600))
        .max_items(3)
        .max_tokens(100);
    let (model, mut upstream, handle) = model(builder.max_in_flight(9));
    let mut calls = ask_all(&model, 0..2);
    nothing_arrived(&mut upstream);
    calls.push(ask(&model, Ask::new(2)));
    let (ids, _by_items) = arrived(&mut upstream);
    assert_eq!(ids, [0, 1, 2]);

    calls.push(ask(&model, Ask::weighing(3, 1, 60)));
    nothing_arrived(&mut upstream);
    // It does not fit, so the batch before it is closed.
    calls.push(ask(&model, Ask::weighing(4, 1, 41)));
    poll_woken(&mut calls);
    let (ids, _by_tokens) = arrived(&mut upstream);
    assert_eq!(ids, [3]);
    nothing_arrived(&mut upstream);
    calls.push(ask(&model, Ask::weighing(5, 1, 59)));
    poll_woken(&mut calls);
    let (ids, _exactly_full) = arrived(&mut upstream);
    assert_eq!(ids, [4, 5]);
    assert_eq!(counts(&handle), (1, 0, 3));
}

#[tokio::test(start_paused = true)]
async fn a_call_larger_than_any_batch_is_sent_alone() {
    let (model, mut upstream, _) = model(builder().max_items(10).max_tokens(100));
    let mut calls = ask_all(&model, [0]);
    let (_, send) = arrived(&mut upstream);
    calls.extend([
        ask(&model, Ask::weighing(1, 11, 5)),
        ask(&model, Ask::weighing(2, 1, u64::MAX)),
        ask(&model, Ask::weighing(3, 1, 1)),
    ]);
    let mut send = Some((vec![0], send));
    for expected in [[1], [2], [3]] {
        let (ids, sent) = send.take().expect("one is in flight");
        answer_all(&ids, sent);
        poll_woken(&mut calls);
        let (ids, sent) = arrived(&mut upstream);
        assert_eq!(ids, expected);
        send = Some((ids, sent));
    }
}

#[tokio::test(start_paused = true)]
async fn a_window_closes_early_enough_for_the_earliest_deadline() {
    let window = builder().window(Duration::from_secs(10));
    let (model, mut upstream, _) = model(window.expected_call_time(Duration::from_secs(2)));
    let mut patient = ask(&model, Ask::new(0));
    let mut hasty = Ask::new(1);
    hasty.deadline = Some(Instant::now() + Duration::from_secs(5));
    let mut hasty = ask(&model, hasty);
    pass(2_999).await;
    assert_pending!(hasty.poll());
    nothing_arrived(&mut upstream);
    pass(1).await;
    assert!(hasty.is_woken());
    assert_pending!(hasty.poll());
    let (ids, send) = arrived(&mut upstream);
    assert_eq!(ids, [0, 1]);
    pass(800).await;
    answer_all(&ids, send);
    assert_answered(&mut hasty, 1);
    assert_answered(&mut patient, 0);

    // Now calls are known to take 800 ms.
    let mut hasty = Ask::new(2);
    hasty.deadline = Some(Instant::now() + Duration::from_secs(5));
    let mut hasty = ask(&model, hasty);
    pass(4_199).await;
    assert_pending!(hasty.poll());
    nothing_arrived(&mut upstream);
    pass(1).await;
    assert_pending!(hasty.poll());
    assert_eq!(arrived(&mut upstream).0, [2]);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_of_a_call_that_left_closes_nothing() {
    let (model, mut upstream, _) = model(builder().window(Duration::from_secs(10)));
    let mut patient = ask(&model, Ask::new(0));
    let mut hasty = Ask::new(1);
    hasty.deadline = Some(Instant::now() + Duration::from_secs(3));
    drop(ask(&model, hasty));
    pass(9_999).await;
    assert_pending!(patient.poll());
    nothing_arrived(&mut upstream);
    pass(1).await;
    assert_pending!(patient.poll());
    assert_eq!(arrived(&mut upstream).0, [0]);
}

#[tokio::test(start_paused = true)]
async fn a_window_begins_with_the_oldest_call_of_any_priority() {
    let (model, mut upstream, _) = model(builder().window(Duration::from_millis(50)));
    let mut old = Ask::new(0);
    old.priority = Priority::Batch;
    let _old = ask(&model, old);
    pass(40).await;
    let mut new = Ask::new(1);
    new.priority = Priority::Interactive;
    let mut new = ask(&model, new);
    pass(10).await;
    assert_pending!(new.poll());
    assert_eq!(arrived(&mut upstream).0, [1, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_request_without_terms_is_sent_at_once() {
    let (model, mut upstream, handle) = model(builder());
    let _first = ask(&model, Ask::new(0));
    let (_, _in_flight) = arrived(&mut upstream);
    let mut alone = Ask::new(1);
    alone.is_alone = true;
    let mut alone = ask(&model, alone);
    let (ids, send) = arrived(&mut upstream);
    assert_eq!(ids, [1]);
    answer_all(&ids, send);
    assert_ready_ok!(alone.poll());
    assert_eq!(handle.stats().alone, 1);
}
