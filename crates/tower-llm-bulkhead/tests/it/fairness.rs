//! The order of the queue: priorities in strict order, and callers in turn.

use std::time::Duration;

use crate::support::{Ask, asked, full, openai};
use tokio::time::advance;
use tokio_test::{assert_pending, assert_ready_err, task::Spawn};
use tower::Service;
use tower_llm_bulkhead::{BulkheadBuilder, BulkheadLayer, Priority};
use tower_llm_core::{Call, Caller, Key, KeyBy, Operation, Provider, Unary};

use Priority::{Batch, Interactive, Normal};
use tower_llm_testkit::mock::{arrived, nothing_arrived, start};

fn bulkhead(limit: usize) -> BulkheadBuilder<Unary> {
    BulkheadLayer::builder(limit).watch(Unary)
}

/// With priorities from a header.
fn by_header(limit: usize) -> BulkheadBuilder<Unary> {
    bulkhead(limit).priority_by(|request| match request.header("class") {
        Some(b"interactive") => Interactive,
        Some(b"batch") => Batch,
        _ => Normal,
    })
}

fn of_class(id: usize, class: &'static str) -> Ask {
    Ask {
        headers: [("class", class)].into(),
        ..Ask::new(id)
    }
}

fn of_caller(id: usize, caller: &str) -> Ask {
    by_caller("openai", id, caller)
}

fn by_caller(provider: &'static str, id: usize, caller: &str) -> Ask {
    let call = Call::builder(Provider::new(provider), Operation::CHAT);
    Ask {
        call: Some(call.caller(Caller::named(caller)).build()),
        ..Ask::new(id)
    }
}

/// A call that waits or runs.
type Waiting = Spawn<<crate::support::Asked as Service<Ask>>::Future>;

/// Ends the running calls one after the other, and returns the order in which the others ran.
async fn order(
    running: Waiting,
    mut waiting: Vec<(usize, Waiting)>,
    upstream: &mut tower_test::mock::Handle<Ask, usize>,
) -> Vec<usize> {
    for (_, call) in &mut waiting {
        assert_pending!(call.poll());
    }
    let mut order = Vec::new();
    let mut running = Some(running);
    while running.take().is_some() {
        // The mock's channels use tokio's budget for a task before it yields.
        tokio::task::yield_now().await;
        let next = waiting.iter().position(|(_, call)| call.is_woken());
        running = next.map(|next| {
            let (id, mut call) = waiting.remove(next);
            assert_pending!(call.poll());
            assert_eq!(arrived(upstream).0.id, id);
            nothing_arrived(upstream);
            order.push(id);
            call
        });
    }
    assert!(waiting.is_empty(), "{} were forgotten", waiting.len());
    order
}

#[tokio::test(start_paused = true)]
async fn priorities_are_served_in_order_and_each_in_order_of_arrival() {
    let layer = by_header(1).build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let running = start(&service, of_class(0, "batch"));
    arrived(&mut upstream);
    let classes = ["batch", "normal", "interactive"];
    let waiting = (1..10)
        .map(|id| (id, start(&service, of_class(id, classes[id % 3]))))
        .collect();
    let stats = layer.handle().stats_of(&Key::new("openai")).unwrap();
    assert_eq!(stats.waiting, 9);
    for class in [Interactive, Normal, Batch] {
        assert_eq!(stats.waiting_of(class), 3);
    }
    let order = order(running, waiting, &mut upstream).await;
    assert_eq!(order, [2, 5, 8, 1, 4, 7, 3, 6, 9]);
}

#[tokio::test(start_paused = true)]
async fn each_priority_has_its_own_room_in_the_queue() {
    let layer = by_header(1)
        .max_waiting(1)
        .max_waiting_of(Batch, 2)
        .max_waiting_of(Interactive, 0)
        .build()
        .unwrap();
    let (service, _upstream) = asked(&layer);
    let _running = start(&service, Ask::new(0));
    let mut held = Vec::new();
    for (class, priority, room) in [
        ("batch", Batch, 2),
        ("normal", Normal, 1),
        ("interactive", Interactive, 0),
    ] {
        for id in 0..room {
            let mut call = start(&service, of_class(id, class));
            assert_pending!(call.poll());
            held.push(call);
        }
        let error = assert_ready_err!(start(&service, of_class(9, class)).poll());
        assert_eq!(full(&error).priority(), priority);
        assert_eq!(full(&error).waited_for(), None);
    }
    assert_eq!(openai(&layer.handle()), (1, 3, 3));
}

#[tokio::test(start_paused = true)]
async fn a_batch_waits_for_all_others_and_no_longer_than_max_wait() {
    let layer = by_header(1)
        .max_wait(Duration::from_secs(5))
        .build()
        .unwrap();
    let (service, mut upstream) = asked(&layer);
    let mut running = start(&service, Ask::new(0));
    arrived(&mut upstream);
    let mut batch = start(&service, of_class(1, "batch"));
    assert_pending!(batch.poll());
    for id in 0..5 {
        let mut next = start(&service, of_class(id, "interactive"));
        assert_pending!(next.poll());
        drop(std::mem::replace(&mut running, next));
        assert_pending!(running.poll());
        arrived(&mut upstream);
        assert!(!batch.is_woken());
        advance(Duration::from_secs(1)).await;
    }
    let error = assert_ready_err!(batch.poll());
    assert_eq!(full(&error).priority(), Batch);
}

#[tokio::test(start_paused = true)]
async fn the_priority_of_a_call_that_need_not_wait_is_not_computed() {
    let layer = bulkhead(1).priority_by(|_| panic!("scripted panic"));
    let layer = layer.build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let mut first = start(&service, Ask::new(0));
    assert_pending!(first.poll());
    arrived(&mut upstream);
    // Only its caller is affected: no permit is held, and later calls pass.
    let panics = std::panic::AssertUnwindSafe(|| start(&service, Ask::new(1)));
    assert!(std::panic::catch_unwind(panics).is_err());
    assert_eq!(openai(&layer.handle()), (1, 0, 0));
    drop(first);
    let _next = start(&service, Ask::new(2));
    assert_eq!(openai(&layer.handle()), (1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_thousand_calls_of_one_caller_do_not_delay_anothers_first() {
    let layer = bulkhead(1).max_waiting(2_000).build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let running = start(&service, of_caller(0, "busy"));
    arrived(&mut upstream);
    let mut waiting: Vec<_> = (1..=1_000)
        .map(|id| (id, start(&service, of_caller(id, "busy"))))
        .collect();
    for id in 1_001..=1_003 {
        waiting.push((id, start(&service, of_caller(id, "other"))));
    }
    let order = order(running, waiting, &mut upstream).await;
    // The next but one, and then every other.
    assert_eq!(order[..7], [1, 1_001, 2, 1_002, 3, 1_003, 4]);
    assert!(order[7..].iter().copied().eq(5..=1_000));
}

/// The first caller with many calls filled the queue and blocked all others.
#[tokio::test(start_paused = true)]
async fn a_queue_full_of_one_callers_calls_blocks_no_other_caller() {
    let layer = bulkhead(1).max_waiting(10).build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let running = start(&service, of_caller(0, "busy"));
    arrived(&mut upstream);
    let mut waiting = Vec::new();
    for id in 1..=10 {
        let mut call = start(&service, of_caller(id, "busy"));
        assert_pending!(call.poll());
        waiting.push((id, call));
    }
    full(&assert_ready_err!(
        start(&service, of_caller(11, "busy")).poll()
    ));
    // The other caller gets half of the queue: the newest calls of the busy caller are evicted.
    for (id, gone) in (101..=105).zip([10, 9, 8, 7, 6]) {
        let mut call = start(&service, of_caller(id, "other"));
        assert_pending!(call.poll());
        let (of, mut evicted) = waiting.remove(gone - 1);
        assert_eq!((of, evicted.is_woken()), (gone, true));
        if gone % 2 == 0 {
            let refused = full(&assert_ready_err!(evicted.poll())).to_string();
            assert!(refused.ends_with("1/1 in use, queue 10/10"), "{refused}");
        }
        waiting.push((id, call));
    }
    full(&assert_ready_err!(
        start(&service, of_caller(106, "other")).poll()
    ));
    assert_eq!(openai(&layer.handle()), (1, 10, 7));
    let order = order(running, waiting, &mut upstream).await;
    assert_eq!(order, [1, 101, 2, 102, 3, 103, 4, 104, 5, 105]);
    assert_eq!(openai(&layer.handle()), (0, 0, 7));
}

#[tokio::test(start_paused = true)]
async fn a_caller_with_many_calls_in_a_full_queue_evicts_none_of_another_priority() {
    let layer = by_header(1).max_waiting(1).build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let _running = start(&service, of_class(0, "batch"));
    arrived(&mut upstream);
    let mut waiting: Vec<_> = [(1, "batch"), (2, "normal"), (3, "interactive")]
        .map(|(id, class)| start(&service, of_class(id, class)))
        .into();
    for call in &mut waiting {
        assert_pending!(call.poll());
    }
    for (id, class) in [(4, "batch"), (5, "normal"), (6, "interactive")] {
        full(&assert_ready_err!(
            start(&service, of_class(id, class)).poll()
        ));
    }
    assert!(waiting.iter().all(|call| !call.is_woken()));
}

#[tokio::test(start_paused = true)]
async fn unknown_callers_count_as_one() {
    let layer = bulkhead(1).build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let running = start(&service, Ask::new(0));
    arrived(&mut upstream);
    let mut waiting: Vec<_> = (1..5)
        .map(|id| (id, start(&service, Ask::new(id))))
        .collect();
    for (id, caller) in [(5, "a"), (6, "b"), (7, "a"), (8, "b")] {
        waiting.push((id, start(&service, of_caller(id, caller))));
    }
    let order = order(running, waiting, &mut upstream).await;
    assert_eq!(order, [1, 5, 6, 2, 7, 8, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn a_caller_whose_first_calls_leave_goes_to_the_end() {
    let layer = bulkhead(1).build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let running = start(&service, Ask::new(0));
    arrived(&mut upstream);
    let mut waiting: Vec<_> = (1..=20)
        .map(|id| (id, start(&service, of_caller(id, "hasty"))))
        .collect();
    waiting.extend((21..=25).map(|id| (id, start(&service, of_caller(id, "patient")))));
    // All but the last three.
    waiting.drain(..17);
    let order = order(running, waiting, &mut upstream).await;
    assert_eq!(order, [21, 18, 22, 19, 23, 20, 24, 25]);
}

#[tokio::test(start_paused = true)]
async fn callers_take_turns_over_all_keys_that_share_a_limit() {
    let layer = bulkhead(1)
        .key_by(KeyBy::provider())
        .global_limit(1)
        .build()
        .unwrap();
    let (service, mut upstream) = asked(&layer);
    let running = start(&service, Ask::of("a", 0));
    arrived(&mut upstream);
    // One caller calls every provider before the other calls any.
    let providers = ["a", "b", "c", "d", "e", "f"];
    let mut waiting: Vec<_> = (1..=6)
        .map(|id| {
            (
                id,
                start(&service, by_caller(providers[id - 1], id, "busy")),
            )
        })
        .collect();
    for id in 7..=9 {
        waiting.push((id, start(&service, by_caller("g", id, "other"))));
    }
    let order = order(running, waiting, &mut upstream).await;
    assert_eq!(order, [1, 7, 2, 8, 3, 9, 4, 5, 6]);
}
