//! Waiting calls: their order, their number, their deadlines, and how they leave.

mod groups;
mod settlements;
mod turns;

use std::collections::VecDeque;

use crate::support::{
    Ask, HOUR, MS, NS, Open, SECOND, admitted, asked, consumed, exceeds, limited, open, refusal,
    refused, stats, waiting,
};
use tokio::time::{Instant, advance};
use tokio_test::{assert_pending, assert_ready, assert_ready_ok};
use tower_llm_core::Refusal;
use tower_llm_ratelimit::{Limit, RateLimitBuilder};
use tower_llm_testkit::mock::{arrived, nothing_arrived, start};

/// One token each second, and up to sixty at once.
fn a_token_a_second() -> RateLimitBuilder<Open> {
    open()
        .limit(Limit::tokens(60).per_minute().bucket(60))
        .max_waiting(100)
        .max_wait(HOUR)
}

#[tokio::test(start_paused = true)]
async fn a_call_that_may_not_queue_is_refused_with_the_time_that_others_wait() {
    let layer = a_token_a_second().build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let with_alternative = |tokens| {
        let mut ask = Ask::tokens(tokens);
        ask.call = ask
            .call
            .map(|call| call.to_builder().may_queue(false).build());
        ask
    };
    // What is there is taken all the same.
    admitted(&service, &mut upstream, with_alternative(60)).used(60, 0);
    let mut call = start(&service, with_alternative(30));
    let error = tokio_test::assert_ready_err!(call.poll());
    let refusal = Refusal::find(&*error).unwrap();
    assert_eq!(refusal.retry_after(), Some(30 * SECOND));
    let mut waits = start(&service, Ask::tokens(30));
    assert_pending!(waits.poll());
    assert_eq!(waiting(&layer.handle()), [1]);
    advance(30 * SECOND).await;
    assert_pending!(waits.poll());
    arrived(&mut upstream);
}

#[tokio::test(start_paused = true)]
async fn calls_are_admitted_in_order_each_as_soon_as_it_fits() {
    let layer = a_token_a_second().build().unwrap();
    let (service, mut upstream) = asked(&layer);
    admitted(&service, &mut upstream, Ask::tokens(60)).used(60, 0);
    // Small calls behind large ones, which they do not overtake.
    let sizes = [30, 1, 20, 5, 1, 1, 40];
    let mut calls = VecDeque::new();
    for (id, size) in sizes.into_iter().enumerate() {
        let mut call = start(&service, Ask::tokens(size).id(id));
        assert_pending!(call.poll());
        calls.push_back(call);
    }
    assert_eq!(waiting(&layer.handle()), [7]);
    for (id, size) in sizes.into_iter().enumerate() {
        advance(size as u32 * SECOND - MS).await;
        for call in &mut calls {
            assert_pending!(call.poll());
        }
        nothing_arrived(&mut upstream);
        advance(MS).await;
        let mut call = calls.pop_front().unwrap();
        assert!(call.is_woken());
        assert_pending!(call.poll());
        let (ask, answer) = arrived(&mut upstream);
        assert_eq!(ask.id, id);
        nothing_arrived(&mut upstream);
        assert_eq!(waiting(&layer.handle()), [6 - id]);
        answer.send_response(id);
        assert_ready_ok!(call.poll()).used(size, 0);
        if let Some(next) = calls.front_mut() {
            assert_pending!(next.poll());
        }
    }
    assert_eq!(consumed(&layer.handle()), [60 + 98]);
}

#[tokio::test(start_paused = true)]
async fn a_large_call_is_not_starved_by_a_flow_of_small_ones() {
    for limit in [
        Limit::tokens(60).per_minute(),
        Limit::tokens(60).per_minute().bucket(60),
    ] {
        let layer = open().limit(limit).max_waiting(1_000).max_wait(HOUR);
        let layer = layer.build().unwrap();
        let (service, mut upstream) = asked(&layer);
        admitted(&service, &mut upstream, Ask::tokens(10)).used(10, 0);
        let mut large = start(&service, Ask::tokens(60).id(60));
        assert_pending!(large.poll());
        let mut small = Vec::new();
        let began = Instant::now();
        // Each of them would fit.
        while !large.is_woken() {
            let mut call = start(&service, Ask::tokens(1).id(1));
            assert_pending!(call.poll());
            small.push(call);
            nothing_arrived(&mut upstream);
            advance(SECOND).await;
        }
        assert!(began.elapsed() <= crate::support::MINUTE_FORGOTTEN);
        assert_pending!(large.poll());
        assert_eq!(arrived(&mut upstream).0.id, 60);
        nothing_arrived(&mut upstream);
        drop((large, small));
        assert_eq!(waiting(&layer.handle()), [0]);
    }
}

#[tokio::test(start_paused = true)]
async fn exactly_max_waiting_calls_wait_and_the_next_is_refused() {
    let layer = a_token_a_second().max_waiting(3).build().unwrap();
    let (service, mut upstream) = asked(&layer);
    admitted(&service, &mut upstream, Ask::tokens(60)).used(60, 0);
    let mut calls: Vec<_> = (0..3)
        .map(|id| start(&service, Ask::tokens(5).id(id)))
        .collect();
    for call in &mut calls {
        assert_pending!(call.poll());
    }
    let error = refusal(&service, Ask::tokens(5));
    assert_eq!(
        error.to_string(),
        "too many calls wait for the rate limit; retry after 5.000s"
    );
    assert_eq!(limited(&error).limit(), None);
    let refusal = Refusal::find(&*error).unwrap();
    assert!(refusal.is_retryable());
    assert_eq!(refusal.retry_after(), Some(5 * SECOND));
    // Other keys have their own queues.
    admitted(&service, &mut upstream, Ask::of("bob", 60, 0)).used(60, 0);
    let mut bob = start(&service, Ask::of("bob", 1, 0));
    assert_pending!(bob.poll());
    assert_eq!(waiting(&layer.handle()), [4]);
    drop(bob);
    assert_eq!(
        (waiting(&layer.handle()), stats(&layer.handle()).refused),
        (vec![3], 1)
    );
    drop(calls.pop());
    let mut fourth = start(&service, Ask::tokens(5));
    assert_pending!(fourth.poll());
    assert_eq!(refused(&service, Ask::tokens(5)), 5 * SECOND);
    drop((calls, fourth));
    assert_eq!(waiting(&layer.handle()), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_cannot_be_admitted_in_time_is_refused_at_once() {
    let layer = a_token_a_second().max_wait(30 * SECOND).build().unwrap();
    let (service, mut upstream) = asked(&layer);
    admitted(&service, &mut upstream, Ask::tokens(60)).used(60, 0);
    assert_eq!(refused(&service, Ask::tokens(31)), 31 * SECOND);
    let mut first = start(&service, Ask::tokens(20));
    assert_pending!(first.poll());
    // It would be late if the call ahead used all of its tokens, which is not known.
    let mut late = start(&service, Ask::tokens(11));
    assert_pending!(late.poll());
    drop(late);
    let mut second = start(&service, Ask::tokens(10));
    assert_pending!(second.poll());
    // Larger than the limit: waiting does not help.
    let error = refusal(&service, Ask::tokens(61));
    assert_eq!(exceeds(&error).amount(), 61);
    assert!(!Refusal::find(&*error).unwrap().is_retryable());
    assert_eq!(waiting(&layer.handle()), [2]);

    // Both are admitted, the second at the last moment.
    advance(20 * SECOND).await;
    assert_pending!(first.poll());
    assert_pending!(second.poll());
    advance(10 * SECOND).await;
    assert_pending!(second.poll());
    arrived(&mut upstream);
    arrived(&mut upstream);
}

#[tokio::test(start_paused = true)]
async fn a_wait_has_a_deadline_and_is_counted_from_the_call() {
    let limit = Limit::tokens(60).per_day_in("UTC");
    let layer = open().limit(limit).max_waiting(9).max_wait(30 * SECOND);
    let layer = layer.build().unwrap();
    let (service, mut upstream) = asked(&layer);
    // It may end at any time.
    let _running = admitted(&service, &mut upstream, Ask::tokens(60));
    let mut first = start(&service, Ask::tokens(20));
    advance(5 * SECOND).await;
    let mut second = start(&service, Ask::tokens(5));
    let mut third = start(&service, Ask::tokens(5));
    for call in [&mut first, &mut second, &mut third] {
        assert_pending!(call.poll());
    }
    for (call, after) in [(&mut first, 25), (&mut second, 5)] {
        // The second call becomes the head when the first leaves.
        assert_eq!(call.is_woken(), after == 5);
        assert_pending!(call.poll());
        advance(after * SECOND - MS).await;
        assert!(!call.is_woken());
        assert_pending!(call.poll());
        advance(MS).await;
        assert!(call.is_woken());
        let error = assert_ready!(call.poll()).map(drop).unwrap_err();
        assert!(limited(&error).limit().is_some());
        assert_eq!(limited(&error).retry_after(), Some(SECOND));
    }
    assert_eq!(waiting(&layer.handle()), [1]);
    drop(third);
    assert_eq!(stats(&layer.handle()).refused, 2);
    nothing_arrived(&mut upstream);
}

#[tokio::test(start_paused = true)]
async fn a_call_behind_others_is_refused_at_its_deadline() {
    let limit = Limit::tokens(60).per_day_in("UTC");
    let layer = open().limit(limit).max_waiting(9).max_wait(30 * SECOND);
    let layer = layer.build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let _running = admitted(&service, &mut upstream, Ask::tokens(50));
    let mut small = start(&service, Ask::of("ann", 5, 0));
    arrived(&mut upstream);
    assert_ready!(small.poll()).map(drop).unwrap_err();
    let mut large = start(&service, Ask::tokens(60));
    assert_pending!(large.poll());
    advance(SECOND).await;
    let mut small = start(&service, Ask::tokens(5));
    assert_pending!(small.poll());
    advance(28 * SECOND).await;
    // The tasks of the large call and of this one are not polled until the deadline has passed.
    advance(2 * SECOND).await;
    let error = assert_ready!(large.poll()).map(drop).unwrap_err();
    assert!(limited(&error).limit().is_some());
    assert_eq!(limited(&error).retry_after(), Some(SECOND));
    drop(large);
    assert!(small.is_woken());
    assert_pending!(small.poll());
    arrived(&mut upstream);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_call_is_refused_once_it_cannot_be_admitted_in_time() {
    let layer = a_token_a_second().max_wait(30 * SECOND).build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let running = admitted(&service, &mut upstream, Ask::tokens(60));
    let mut first = start(&service, Ask::tokens(25));
    let mut second = start(&service, Ask::tokens(1).id(2));
    assert_pending!(first.poll());
    assert_pending!(second.poll());
    // It used more than was known when the others joined.
    running.used(88, 0);
    assert!(first.is_woken() && !second.is_woken());
    let error = assert_ready!(first.poll()).map(drop).unwrap_err();
    assert_eq!(limited(&error).retry_after(), Some(53 * SECOND));
    drop(first);
    // The next call is in time.
    assert!(second.is_woken());
    assert_pending!(second.poll());
    advance(29 * SECOND).await;
    assert!(second.is_woken());
    assert_pending!(second.poll());
    assert_eq!(arrived(&mut upstream).0.id, 2);
}

#[tokio::test(start_paused = true)]
async fn the_next_call_replaces_a_head_that_leaves_at_once() {
    let layer = a_token_a_second().build().unwrap();
    let (service, mut upstream) = asked(&layer);
    admitted(&service, &mut upstream, Ask::tokens(50)).used(50, 0);
    let mut large = start(&service, Ask::tokens(60));
    let never_polled = start(&service, Ask::tokens(60));
    let mut middle = start(&service, Ask::tokens(60));
    let mut small = start(&service, Ask::tokens(10).id(3));
    for call in [&mut large, &mut middle, &mut small] {
        assert_pending!(call.poll());
    }
    assert_eq!(waiting(&layer.handle()), [4]);
    drop(middle);
    drop(never_polled);
    assert!(!small.is_woken());
    assert_eq!(waiting(&layer.handle()), [2]);
    drop(large);
    assert!(small.is_woken());
    assert_pending!(small.poll());
    assert_eq!(arrived(&mut upstream).0.id, 3);
    assert_eq!(waiting(&layer.handle()), [0]);
    // The queue is empty: a call that fits is admitted at once, before its first poll.
    advance(SECOND).await;
    let _straight_on = start(&service, Ask::tokens(1).id(4));
    assert_eq!(arrived(&mut upstream).0.id, 4);
}

#[tokio::test(start_paused = true)]
async fn the_wake_up_of_a_dropped_call_passes_to_the_next() {
    let layer = a_token_a_second().build().unwrap();
    let (service, mut upstream) = asked(&layer);
    admitted(&service, &mut upstream, Ask::tokens(60)).used(60, 0);
    let mut calls = [0, 1, 2].map(|id| start(&service, Ask::tokens(10).id(id)));
    for call in &mut calls {
        assert_pending!(call.poll());
    }
    let [first, second, mut third] = calls;
    drop(first);
    assert!(second.is_woken());
    assert!(!third.is_woken());
    // The call was woken as head and has not been polled since.
    drop(second);
    assert!(third.is_woken());
    advance(10 * SECOND).await;
    assert_pending!(third.poll());
    assert_eq!(arrived(&mut upstream).0.id, 2);
}

#[tokio::test(start_paused = true)]
async fn a_refund_wakes_the_head_at_once() {
    for limit in [
        Limit::tokens(60).per_minute(),
        Limit::tokens(60).per_minute().bucket(60),
        Limit::tokens(60).per_day_in("UTC"),
    ] {
        let layer = open().limit(limit).max_waiting(9).max_wait(24 * HOUR);
        let layer = layer.build().unwrap();
        let (service, mut upstream) = asked(&layer);
        let running = admitted(&service, &mut upstream, Ask::of("ann", 10, 50));
        let mut first = start(&service, Ask::tokens(30).id(1));
        let mut second = start(&service, Ask::tokens(10).id(2));
        let mut third = start(&service, Ask::tokens(20).id(3));
        for call in [&mut first, &mut second, &mut third] {
            assert_pending!(call.poll());
        }
        running.used(10, 10);
        assert!(first.is_woken());
        assert!(!second.is_woken() && !third.is_woken());
        assert_pending!(first.poll());
        assert_eq!(arrived(&mut upstream).0.id, 1);
        // The rest is enough for the next call, but not for the one after it.
        assert!(second.is_woken());
        assert_pending!(second.poll());
        assert_eq!(arrived(&mut upstream).0.id, 2);
        assert!(third.is_woken());
        assert_pending!(third.poll());
        nothing_arrived(&mut upstream);
        // A call dropped midway through its response is refunded too.
        drop(first);
        drop(second);
        assert_eq!(waiting(&layer.handle()), [1]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_later_call_never_overtakes() {
    let layer = a_token_a_second().build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let running = admitted(&service, &mut upstream, Ask::tokens(60));
    let mut first = start(&service, Ask::tokens(30).id(1));
    assert_pending!(first.poll());
    running.used(0, 0);
    // There is room for both, and the first has not been polled since.
    let mut second = start(&service, Ask::tokens(30).id(2));
    assert_pending!(second.poll());
    nothing_arrived(&mut upstream);
    assert_pending!(first.poll());
    assert_eq!(arrived(&mut upstream).0.id, 1);
    assert!(second.is_woken());
    assert_pending!(second.poll());
    assert_eq!(arrived(&mut upstream).0.id, 2);
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_exact_once_the_queue_is_empty() {
    let layer = a_token_a_second().max_waiting(1).build().unwrap();
    let (service, mut upstream) = asked(&layer);
    admitted(&service, &mut upstream, Ask::tokens(60)).used(60, 0);
    let mut first = start(&service, Ask::tokens(10));
    assert_pending!(first.poll());
    assert_eq!(refused(&service, Ask::tokens(7)), 7 * SECOND);
    drop(first);
    advance(7 * SECOND - NS).await;
    let mut early = start(&service, Ask::tokens(7));
    assert_pending!(early.poll());
    nothing_arrived(&mut upstream);
    drop(early);
    advance(NS).await;
    admitted(&service, &mut upstream, Ask::tokens(7)).used(7, 0);
}
