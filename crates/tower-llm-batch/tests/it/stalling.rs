//! Callers that stay and are not polled any more.

use tokio_test::assert_pending;
use tower_layer::Layer;
use tower_llm_testkit::mock::{nothing_arrived, start};

use crate::support::{
    Ask, answer_all, arrived, ask, assert_answered, builder, counts, in_flight, model, pass,
};

#[tokio::test(start_paused = true)]
async fn a_caller_that_drives_a_batch_and_stops_delays_the_others_by_a_second() {
    let (model, mut upstream, handle) = model(builder());
    let (mut calls, (ids, send)) = in_flight(&model, &mut upstream, 1..=3);
    assert_pending!(calls[1].poll());
    answer_all(&ids, send);
    // Only the driver is woken, and it does not poll.
    assert!(calls[0].is_woken() && !calls[1].is_woken());
    pass(1_000).await;
    assert!(calls[1].is_woken());
    assert_answered(&mut calls[1], 2);
    assert_answered(&mut calls[2], 3);
    assert_answered(&mut calls[0], 1);
    assert_eq!(handle.stats().takeovers, 1);
}

#[tokio::test(start_paused = true)]
async fn a_whole_batch_that_stops_delays_the_queue_by_a_second() {
    let (model, mut upstream, handle) = model(builder());
    let mut stopped = ask(&model, Ask::new(0));
    let (_, send) = arrived(&mut upstream);
    let mut waiting = ask(&model, Ask::new(1));
    answer_all(&[0], send);
    pass(999).await;
    assert_pending!(waiting.poll());
    nothing_arrived(&mut upstream);
    pass(1).await;
    assert!(waiting.is_woken());
    assert_pending!(waiting.poll());
    let (ids, send) = arrived(&mut upstream);
    assert_eq!(ids, [1]);
    answer_all(&ids, send);
    assert_answered(&mut waiting, 1);
    assert_answered(&mut stopped, 0);
    assert_eq!(counts(&handle), (0, 0, 0));
    assert_eq!(handle.stats().takeovers, 1);
}

#[tokio::test(start_paused = true)]
async fn two_calls_of_one_task_do_not_wait_for_each_other() {
    let (model, mut upstream, _) = model(builder());
    let mut one = start(&model, Ask::new(1));
    let mut two = ask(&model, Ask::new(2));
    let (ids, send) = arrived(&mut upstream);
    answer_all(&ids, send);
    // The second is awaited to its end, and then the first.
    assert_answered(&mut two, 2);
    assert_answered(&mut one, 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_drives_a_stopped_batch_to_its_end() {
    // The provider needs many polls.
    let layer = builder().build().unwrap();
    let steps = tokio::sync::Semaphore::new(0);
    let steps = std::sync::Arc::new(steps);
    let model = {
        let steps = std::sync::Arc::clone(&steps);
        layer.layer(tower::service_fn(move |asks: Vec<Ask>| {
            let steps = std::sync::Arc::clone(&steps);
            async move {
                for _ in 0..5 {
                    steps.acquire().await.unwrap().forget();
                }
                Ok::<_, tower_llm_core::BoxError>(crate::support::answers(&asks))
            }
        }))
    };
    let mut stopped = start(&model, Ask::new(0));
    assert_pending!(stopped.poll());
    let mut waiting = start(&model, Ask::new(1));
    assert_pending!(waiting.poll());
    steps.add_permits(1);
    pass(1_000).await;
    assert_pending!(waiting.poll());
    // From now on it is woken at once.
    for _ in 1..5 {
        steps.add_permits(1);
        assert!(waiting.is_woken());
        assert_pending!(waiting.poll());
    }
    steps.add_permits(5);
    assert!(waiting.is_woken());
    assert_eq!(tokio_test::assert_ready_ok!(waiting.poll()), 1_007);
    assert_eq!(tokio_test::assert_ready_ok!(stopped.poll()), 7);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_wakes_itself_holds_up_no_thread() {
    let layer = builder().build().unwrap();
    let model = layer.layer(tower::service_fn(|_: Vec<Ask>| {
        std::future::poll_fn(|cx| {
            cx.waker().wake_by_ref();
            std::task::Poll::<Result<Vec<u64>, tower_llm_core::BoxError>>::Pending
        })
    }));
    let mut call = start(&model, Ask::new(0));
    for _ in 0..3 {
        assert_pending!(call.poll());
        assert!(call.is_woken());
    }
}
