//! Calls that wait: how many, how long, in which order.

use std::time::Duration;

use tokio::time::Instant;
use tokio_test::assert_pending;
use tower_llm_core::{Completion, Outcome, Priority, Refusal, RefusalKind};
use tower_llm_testkit::mock::{nothing_arrived, start};

use crate::support::{
    Ask, answer_all, arrived, ask, ask_all, assert_answered, builder, counts, error_of, full,
    model, pass,
};

fn of(priority: Priority, id: u64) -> Ask {
    Ask {
        priority,
        ..Ask::new(id)
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_refuses_with_a_typed_error() {
    let (model, mut upstream, handle) = model(builder().max_waiting(2));
    let _first = ask(&model, Ask::new(0));
    let (_, send) = arrived(&mut upstream);
    let mut waiting = ask_all(&model, 1..=2);
    let error = error_of(&mut start(&model, Ask::new(3)));
    assert_eq!(
        error.to_string(),
        "batch queue full: 1 in flight, queue 2/2"
    );
    let refused = full(&error);
    assert_eq!(
        (refused.queued(), refused.in_flight(), refused.waited_for()),
        (2, 1, None)
    );
    assert_eq!(
        (refused.priority(), refused.retry_after()),
        (Priority::Normal, None)
    );
    let refusal = Refusal::find(&*error).expect("it is a refusal");
    assert_eq!(
        (refusal.kind(), refusal.layer()),
        (RefusalKind::Unavailable, "batch")
    );
    assert_eq!(Completion::of_error(&*error).outcome, Outcome::Refused);

    // Other priorities and keys have queues of their own.
    let _urgent = ask(&model, of(Priority::Interactive, 4));
    let _other = ask(&model, Ask::of("other", 5));
    assert_eq!(arrived(&mut upstream).0, [5]);
    assert_eq!(handle.stats().refused, 1);

    // There is room again when the batch is sent.
    answer_all(&[0], send);
    drop(_first);
    assert_pending!(waiting[0].poll());
    let _next = ask(&model, Ask::new(6));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_makes_room() {
    let (model, mut upstream, handle) = model(builder().max_waiting(1));
    let _first = ask(&model, Ask::new(0));
    let (_, _in_flight) = arrived(&mut upstream);
    let waiting = ask(&model, Ask::new(1));
    error_of(&mut start(&model, Ask::new(2)));
    drop(waiting);
    let _waiting = ask(&model, Ask::new(3));
    assert_eq!(counts(&handle), (1, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn higher_priorities_go_first_and_within_one_the_first() {
    let (model, mut upstream, _) = model(builder().max_items(3));
    let _first = ask(&model, Ask::new(0));
    let (_, send) = arrived(&mut upstream);
    let mut calls: Vec<_> = [
        (Priority::Batch, 1),
        (Priority::Normal, 2),
        (Priority::Interactive, 3),
        (Priority::Normal, 4),
        (Priority::Interactive, 5),
    ]
    .map(|(priority, id)| ask(&model, of(priority, id)))
    .into();
    answer_all(&[0], send);
    drop(_first);
    calls.iter_mut().for_each(|call| drop(call.poll()));
    let (ids, send) = arrived(&mut upstream);
    assert_eq!(ids, [3, 5, 2]);
    answer_all(&ids, send);
    calls.iter_mut().for_each(|call| drop(call.poll()));
    assert_eq!(arrived(&mut upstream).0, [4, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_call_of_low_priority_sends_for_others_and_its_own_later() {
    let (model, mut upstream, _) = model(builder().max_items(1));
    let _first = ask(&model, Ask::new(0));
    let (_, send) = arrived(&mut upstream);
    let mut low = ask(&model, of(Priority::Batch, 1));
    let mut high = ask(&model, of(Priority::Interactive, 2));
    answer_all(&[0], send);
    drop(_first);
    // The high one is first to be woken, but the low one polls first.
    assert_pending!(low.poll());
    assert!(high.is_woken());
    assert_pending!(high.poll());
    let (ids, send) = arrived(&mut upstream);
    assert_eq!(ids, [2]);
    answer_all(&ids, send);
    assert_answered(&mut high, 2);
    assert!(low.is_woken());
    assert_pending!(low.poll());
    assert_eq!(arrived(&mut upstream).0, [1]);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_too_long_is_refused() {
    let (model, mut upstream, handle) = model(builder().max_wait(Duration::from_secs(5)));
    let mut first = ask(&model, Ask::new(0));
    let (_, send) = arrived(&mut upstream);
    let mut late = ask(&model, Ask::new(1));
    pass(4_999).await;
    assert_pending!(late.poll());
    pass(1).await;
    assert!(late.is_woken());
    let error = error_of(&mut late);
    assert_eq!(full(&error).waited_for(), Some(Duration::from_secs(5)));
    assert_eq!(
        error.to_string(),
        "not sent in a batch within 5s: 1 in flight, queue 0/1000"
    );
    // The one in flight may take as long as it takes.
    answer_all(&[0], send);
    assert_answered(&mut first, 0);
    nothing_arrived(&mut upstream);
    assert_eq!(counts(&handle), (0, 0, 0));
    assert_eq!((handle.stats().refused, handle.stats().left), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_deadline_has_passed_is_not_sent() {
    let (model, mut upstream, handle) = model(builder());
    let mut first = ask(&model, Ask::new(0));
    let (_, send) = arrived(&mut upstream);
    let mut hasty = Ask::new(1);
    hasty.deadline = Some(Instant::now() + Duration::from_secs(2));
    let mut hasty = ask(&model, hasty);
    let mut patient = ask(&model, Ask::new(2));
    pass(2_000).await;
    answer_all(&[0], send);
    assert_answered(&mut first, 0);
    // The patient one polls first, and leaves the other out.
    assert_pending!(patient.poll());
    let (ids, _send) = arrived(&mut upstream);
    assert_eq!(ids, [2]);
    let error = error_of(&mut hasty);
    assert_eq!(full(&error).waited_for(), Some(Duration::from_secs(2)));
    assert_eq!(handle.stats().refused, 1);
}
