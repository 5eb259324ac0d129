//! Waiting calls: their order, their number, their deadlines, and how they leave.

use std::{collections::VecDeque, future::Future, pin::pin, sync::Arc, task, time::Duration};

use crate::support::{Ask, Wakes, asked, counts, counts_of, full, openai};
use http::HeaderName;
use tokio::time::{Instant, advance};
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok};
use tower_llm_bulkhead::{BulkheadBuilder, BulkheadLayer};
use tower_llm_core::{Call, Caller, Key, KeyBy, Operation, Provider, Refusal, RefusalKind, Unary};
use tower_llm_testkit::mock::{arrived, nothing_arrived, start};

const MS: Duration = Duration::from_millis(1);

fn bulkhead(limit: usize) -> BulkheadBuilder<Unary> {
    BulkheadLayer::builder(limit).watch(Unary)
}

#[tokio::test(start_paused = true)]
async fn permits_go_to_waiting_calls_in_order_of_arrival() {
    let layer = bulkhead(2).build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let mut calls: Vec<_> = (0..8).map(|id| start(&service, Ask::new(id))).collect();
    // Polled in another order than they were made.
    for call in calls.iter_mut().rev() {
        assert_pending!(call.poll());
    }
    assert_eq!(openai(&layer.handle()), (2, 6, 0));

    let mut running = VecDeque::from([arrived(&mut upstream), arrived(&mut upstream)]);
    for id in 0..8 {
        let (ask, answer) = running.pop_front().unwrap();
        assert_eq!(ask.id, id);
        nothing_arrived(&mut upstream);
        answer.send_response(id);
        assert_eq!(assert_ready_ok!(calls[id].poll()), id);
        // Only the next call in the queue is woken.
        for (waiting, call) in calls.iter().enumerate().skip(id + 2) {
            assert_eq!(call.is_woken(), waiting == id + 2, "call {waiting}");
        }
        if let Some(next) = calls.get_mut(id + 2) {
            assert_pending!(next.poll());
            running.push_back(arrived(&mut upstream));
        }
        let left = 8 - (id + 1);
        let expected = (left.min(2), left.saturating_sub(2), 0);
        assert_eq!(openai(&layer.handle()), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_may_not_queue_is_refused_where_others_wait() {
    let layer = bulkhead(1).max_waiting(3).build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let with_alternative = |id| {
        let mut ask = Ask::new(id);
        ask.call = ask
            .call
            .map(|call| call.to_builder().may_queue(false).build());
        ask
    };
    // A free permit is taken all the same.
    let mut first = start(&service, with_alternative(0));
    assert_pending!(first.poll());
    let (_, answer) = arrived(&mut upstream);
    let mut refused = start(&service, with_alternative(1));
    full(&assert_ready_err!(refused.poll()));
    let mut waits = start(&service, Ask::new(2));
    assert_pending!(waits.poll());
    assert_eq!(openai(&layer.handle()), (1, 1, 1));
    answer.send_response(0);
    assert_ready_ok!(first.poll());
    assert_pending!(waits.poll());
    assert_eq!(arrived(&mut upstream).0.id, 2);
}

#[tokio::test(start_paused = true)]
async fn exactly_max_waiting_calls_wait_and_the_next_is_refused() {
    let layer = bulkhead(1).max_waiting(3).build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let mut calls: Vec<_> = (0..4).map(|id| start(&service, Ask::new(id))).collect();
    for call in &mut calls {
        assert_pending!(call.poll());
    }
    let mut over = start(&service, Ask::new(4));
    let error = assert_ready_err!(over.poll());
    assert_eq!(
        error.to_string(),
        "bulkhead full for openai: 1/1 in use, queue 3/3"
    );
    let refused = full(&error);
    assert_eq!((refused.limit(), refused.waited_for()), (1, None));
    assert_eq!(refused.retry_after(), None);
    let refusal = Refusal::find(&*error).unwrap();
    assert_eq!(refusal.kind(), RefusalKind::Unavailable);
    assert_eq!(
        (refusal.layer(), refusal.is_retryable()),
        ("bulkhead", true)
    );
    assert_eq!(openai(&layer.handle()), (1, 3, 1));

    // One leaves, and there is room for one.
    drop(calls.remove(2));
    let mut room = start(&service, Ask::new(5));
    assert_pending!(room.poll());
    assert_ready_err!(start(&service, Ask::new(6)).poll());
    assert_eq!(openai(&layer.handle()), (1, 3, 2));
    arrived(&mut upstream);
    nothing_arrived(&mut upstream);
}

#[tokio::test(start_paused = true)]
async fn without_a_queue_a_call_is_refused_at_once() {
    let layer = bulkhead(1).max_waiting(0).build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let mut first = start(&service, Ask::new(0));
    let error = assert_ready_err!(start(&service, Ask::new(1)).poll());
    assert_eq!(full(&error).waited_for(), None);
    assert_eq!(openai(&layer.handle()), (1, 0, 1));

    arrived(&mut upstream).1.send_response(0);
    assert_ready_ok!(first.poll());
    let mut next = start(&service, Ask::new(2));
    assert_pending!(next.poll());
    assert_eq!(arrived(&mut upstream).0.id, 2);
    assert_eq!(openai(&layer.handle()), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_call_is_refused_when_it_has_waited_for_max_wait_and_not_before() {
    let max_wait = Duration::from_secs(7);
    let layer = bulkhead(1).max_wait(max_wait).build().unwrap();
    let (service, _upstream) = asked(&layer);
    let _running = start(&service, Ask::new(0));
    let began = Instant::now();
    let mut waiting = start(&service, Ask::new(1));
    assert_pending!(waiting.poll());

    advance(max_wait - MS).await;
    assert!(!waiting.is_woken());
    assert_pending!(waiting.poll());
    assert_eq!(openai(&layer.handle()), (1, 1, 0));

    advance(MS).await;
    assert!(waiting.is_woken());
    assert_eq!(began.elapsed(), max_wait);
    let error = assert_ready_err!(waiting.poll());
    let text = "bulkhead full for openai: 1/1 in use, waited 7s";
    assert_eq!(error.to_string(), text);
    let refused = full(&error);
    assert_eq!((refused.limit(), refused.waited_for()), (1, Some(max_wait)));
    assert!(Refusal::find(&*error).is_some());
    // It has left the queue, although its future is still held.
    assert_eq!(openai(&layer.handle()), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_call_runs_if_its_permit_comes_in_the_last_millisecond() {
    let max_wait = Duration::from_secs(7);
    let layer = bulkhead(1).max_wait(max_wait).build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let running = start(&service, Ask::new(0));
    let mut waiting = start(&service, Ask::new(1));
    assert_pending!(waiting.poll());
    arrived(&mut upstream);
    advance(max_wait - MS).await;
    drop(running);
    assert_pending!(waiting.poll());
    assert_eq!(arrived(&mut upstream).0.id, 1);
}

#[tokio::test(start_paused = true)]
async fn a_permit_at_the_very_end_of_the_wait_is_used() {
    for permit_first in [true, false] {
        let max_wait = Duration::from_secs(7);
        let layer = bulkhead(1).max_wait(max_wait).build().unwrap();
        let (service, mut upstream) = asked(&layer);
        let mut running = Some(start(&service, Ask::new(0)));
        let mut waiting = start(&service, Ask::new(1));
        assert_pending!(waiting.poll());
        arrived(&mut upstream);
        if permit_first {
            running.take();
        }
        advance(max_wait).await;
        running.take();
        assert!(waiting.is_woken());
        assert_pending!(waiting.poll());
        assert_eq!(arrived(&mut upstream).0.id, 1);
        assert_eq!(openai(&layer.handle()), (1, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn the_wait_is_counted_from_the_call_and_not_from_the_first_poll() {
    let max_wait = Duration::from_secs(7);
    let layer = bulkhead(1).max_wait(max_wait).build().unwrap();
    let (service, _upstream) = asked(&layer);
    let _running = start(&service, Ask::new(0));
    let mut late = start(&service, Ask::new(1));
    let mut too_late = start(&service, Ask::new(2));
    advance(max_wait - MS).await;
    assert_pending!(late.poll());
    advance(MS).await;
    assert_ready_err!(late.poll());
    let error = assert_ready_err!(too_late.poll());
    assert_eq!(full(&error).waited_for(), Some(max_wait));
    assert_eq!(openai(&layer.handle()), (1, 0, 2));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_leaves_the_queue_before_its_first_poll_and_after() {
    let layer = bulkhead(1).build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let mut running = start(&service, Ask::new(0));
    let never_polled = start(&service, Ask::new(1));
    let mut polled = start(&service, Ask::new(2));
    let mut last = start(&service, Ask::new(3));
    assert_pending!(polled.poll());
    assert_pending!(last.poll());
    assert_eq!(openai(&layer.handle()), (1, 3, 0));
    drop(never_polled);
    assert_eq!(openai(&layer.handle()), (1, 2, 0));
    drop(polled);
    assert_eq!(openai(&layer.handle()), (1, 1, 0));
    assert!(!last.is_woken());

    arrived(&mut upstream).1.send_response(0);
    assert_ready_ok!(running.poll());
    assert!(last.is_woken());
    assert_pending!(last.poll());
    assert_eq!(arrived(&mut upstream).0.id, 3);
    nothing_arrived(&mut upstream);
}

#[tokio::test(start_paused = true)]
async fn a_permit_given_to_a_call_that_is_dropped_goes_to_the_next() {
    let layer = bulkhead(1).build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let running = start(&service, Ask::new(0));
    let mut given = start(&service, Ask::new(1));
    let never_polled = start(&service, Ask::new(2));
    let mut last = start(&service, Ask::new(3));
    assert_pending!(given.poll());
    assert_pending!(last.poll());
    arrived(&mut upstream);

    drop(running);
    assert!(given.is_woken());
    assert_eq!(openai(&layer.handle()), (1, 2, 0));
    drop(given);
    assert!(!last.is_woken());
    assert_eq!(openai(&layer.handle()), (1, 1, 0));
    drop(never_polled);
    assert!(last.is_woken());
    assert_pending!(last.poll());
    assert_eq!(arrived(&mut upstream).0.id, 3);
    drop(last);
    assert_eq!(openai(&layer.handle()), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_new_call_never_overtakes_the_queue() {
    let layer = bulkhead(1).build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let running = start(&service, Ask::new(0));
    let mut waiting = start(&service, Ask::new(1));
    assert_pending!(waiting.poll());
    arrived(&mut upstream);
    drop(running);
    // The permit belongs to the waiting call, although that has not been polled since.
    let mut new = start(&service, Ask::new(2));
    assert_pending!(new.poll());
    nothing_arrived(&mut upstream);
    assert_eq!(openai(&layer.handle()), (1, 1, 0));
    assert_pending!(waiting.poll());
    assert_eq!(arrived(&mut upstream).0.id, 1);
    nothing_arrived(&mut upstream);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_call_is_woken_once_for_its_permit_or_its_time() {
    let layer = bulkhead(1).build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let mut running = start(&service, Ask::new(0));
    assert_pending!(running.poll());
    let wakes: [Arc<Wakes>; 4] = Default::default();
    let wakers = wakes.clone().map(task::Waker::from);
    let counts = || wakes.each_ref().map(|wakes| wakes.count());
    let mut waiting: Vec<_> = (1..=4)
        .map(|id| Box::pin(start(&service, Ask::new(id)).into_inner()))
        .collect();
    let mut poll = |i: usize| {
        waiting[i]
            .as_mut()
            .poll(&mut task::Context::from_waker(&wakers[i]))
    };
    for _ in 0..3 {
        for i in 0..4 {
            assert_pending!(poll(i));
        }
    }
    assert_eq!(counts(), [0, 0, 0, 0]);
    arrived(&mut upstream).1.send_response(0);
    assert_ready_ok!(running.poll());
    assert_eq!(counts(), [1, 0, 0, 0]);
    assert_pending!(poll(0));
    arrived(&mut upstream).1.send_response(1);
    // The mock has answered.
    assert_eq!(counts(), [2, 0, 0, 0]);
    assert_ready_ok!(poll(0));
    assert_eq!(counts(), [2, 1, 0, 0]);
    // From here on the second call holds its permit.
    advance(Duration::from_secs(30)).await;
    assert_eq!(counts()[2..], [1, 1]);
    assert_ready_err!(poll(2));
    assert_ready_err!(poll(3));
    advance(Duration::from_secs(3_600)).await;
    assert_eq!(counts()[2..], [1, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_waiting_call_that_moves_to_another_task_wakes_that_one() {
    let layer = bulkhead(1).build().unwrap();
    let (service, _upstream) = asked(&layer);
    let running = start(&service, Ask::new(0));
    let mut waiting = pin!(start(&service, Ask::new(1)).into_inner());
    let wakes: [Arc<Wakes>; 2] = Default::default();
    for wakes in &wakes {
        let waker = task::Waker::from(Arc::clone(wakes));
        assert_pending!(
            waiting
                .as_mut()
                .poll(&mut task::Context::from_waker(&waker))
        );
    }
    drop(running);
    assert_eq!(wakes.map(|wakes| wakes.count()), [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn the_queue_of_one_key_does_not_affect_another() {
    let layer = bulkhead(1)
        .max_waiting(1)
        .limit_for(Key::new("anthropic"), 2)
        .build()
        .unwrap();
    let (service, mut upstream) = asked(&layer);
    let handle = layer.handle();
    let mut openai: Vec<_> = (0..2)
        .map(|id| start(&service, Ask::of("openai", id)))
        .collect();
    for call in &mut openai {
        assert_pending!(call.poll());
    }
    assert_ready_err!(start(&service, Ask::of("openai", 2)).poll());
    // A key with its own limit has its own queue.
    let anthropic: Vec<_> = (3..6)
        .map(|id| start(&service, Ask::of("anthropic", id)))
        .collect();
    let error = assert_ready_err!(start(&service, Ask::of("anthropic", 6)).poll());
    assert_eq!(full(&error).limit(), 2);
    let ids: Vec<_> = (0..3).map(|_| arrived(&mut upstream).0.id).collect();
    assert_eq!(ids, [0, 3, 4]);
    nothing_arrived(&mut upstream);

    assert_eq!(counts_of(&handle, "openai"), (1, 1, 1));
    assert_eq!(counts_of(&handle, "anthropic"), (2, 1, 1));
    let stats = |key| handle.stats_of(&Key::new(key));
    assert_eq!(stats("openai").unwrap().limit, 1);
    assert_eq!(stats("anthropic").unwrap().limit, 2);
    assert_eq!(stats("gcp.gemini"), None);
    let mut all = handle.stats();
    all.sort_by_key(|stats| stats.limit);
    assert_eq!(all, [stats("openai").unwrap(), stats("anthropic").unwrap()]);

    drop(anthropic);
    assert!(!openai[1].is_woken());
    assert_eq!(counts_of(&handle, "anthropic"), (0, 0, 1));
    assert_eq!(counts_of(&handle, "openai"), (1, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn calls_are_grouped_by_the_configured_key() {
    let call = |provider: &Provider, model: &str, account: &str, caller: &str| {
        Call::builder(provider.clone(), Operation::CHAT)
            .model(model)
            .account(account)
            .caller(Caller::named(caller))
            .build()
    };
    let ask = |call, region| {
        let mut ask = Ask::new(0);
        ask.call = Some(call);
        ask.headers.insert("x-region", region);
        ask
    };
    let first = ask(call(&Provider::OPENAI, "m1", "a1", "c1"), "eu");
    // Each differs from the first in one part.
    let provider = ask(call(&Provider::ANTHROPIC, "m1", "a1", "c1"), "eu");
    let model = ask(call(&Provider::OPENAI, "m2", "a1", "c1"), "eu");
    let account = ask(call(&Provider::OPENAI, "m1", "a2", "c1"), "eu");
    let caller = ask(call(&Provider::OPENAI, "m1", "a1", "c2"), "eu");
    let region = ask(call(&Provider::OPENAI, "m1", "a1", "c1"), "us");
    let by_region = KeyBy::custom(|request| {
        let region = request.header("x-region").unwrap_or_default();
        Key::pair("region", String::from_utf8_lossy(region))
    });
    let x_region = HeaderName::from_static("x-region");
    let all = [&provider, &model, &account, &caller, &region];
    for (key_by, admitted, key) in [
        (KeyBy::shared(), [false; 5], Key::new("")),
        (
            KeyBy::provider(),
            [true, false, false, false, false],
            Key::new("openai"),
        ),
        (
            KeyBy::model(),
            [false, true, false, false, false],
            Key::new("m1"),
        ),
        (
            KeyBy::provider_and_model(),
            [true, true, false, false, false],
            Key::pair("openai", "m1"),
        ),
        (
            KeyBy::account(),
            [false, false, true, false, false],
            Key::new("a1"),
        ),
        (
            KeyBy::caller(),
            [false, false, false, true, false],
            Key::new("c1"),
        ),
        (
            KeyBy::header(x_region),
            [false, false, false, false, true],
            Key::new("eu"),
        ),
        (
            by_region,
            [false, false, false, false, true],
            Key::pair("region", "eu"),
        ),
    ] {
        let name = format!("{key_by:?}");
        let layer = bulkhead(1).max_waiting(0).key_by(key_by).build().unwrap();
        let (service, _upstream) = asked(&layer);
        let _running = start(&service, first.clone());
        let others = all.map(|ask| start(&service, ask.clone()).poll().is_pending());
        assert_eq!(others, admitted, "{name}");
        let refused = admitted.iter().filter(|admitted| !**admitted).count() as u64;
        let stats = layer.handle().stats_of(&key).expect(&name);
        assert_eq!(counts(&stats), (1, 0, refused), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn undescribed_calls_share_one_key() {
    let layer = bulkhead(1).max_waiting(0).build().unwrap();
    let (service, _upstream) = asked(&layer);
    let unknown = || {
        let mut ask = Ask::new(0);
        ask.call = None;
        ask
    };
    let _running = start(&service, unknown());
    assert_ready_err!(start(&service, unknown()).poll());
    assert_pending!(start(&service, Ask::new(0)).poll());
    assert_eq!(counts_of(&layer.handle(), ""), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn keys_beyond_the_maximum_share_one_limit() {
    let by_number = KeyBy::header(HeaderName::from_static("x-number"));
    let layer = bulkhead(1)
        .max_waiting(0)
        .max_keys(1)
        .key_by(by_number)
        .build()
        .unwrap();
    let (service, _upstream) = asked(&layer);
    let numbered = |number: usize| {
        let mut ask = Ask::new(number);
        let name: &'static str = Box::leak(number.to_string().into_boxed_str());
        ask.headers.insert("x-number", name);
        ask
    };
    // So many that each of the registry's 16 shards is full.
    let mut calls: Vec<_> = (0..1_000)
        .map(|number| start(&service, numbered(number)))
        .collect();
    calls.retain_mut(|call| call.poll().is_pending());
    assert_eq!(calls.len(), 17);

    let stats = layer.handle().stats();
    let (shared, own): (Vec<_>, Vec<_>) = stats.iter().partition(|stats| stats.key.is_none());
    assert_eq!(own.len(), 16);
    assert!(own.iter().all(|stats| counts(stats) == (1, 0, 0)));
    assert_eq!(shared.len(), 1);
    assert_eq!((shared[0].limit, counts(shared[0])), (1, (1, 0, 983)));

    // Once all of them have ended, a new key gets its own permit.
    drop(calls);
    let _own = start(&service, numbered(1_000));
    let _other = start(&service, numbered(1_000)).poll().is_ready();
    assert_eq!(counts_of(&layer.handle(), "1000"), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_key_closure_affects_only_its_caller() {
    let key_by = KeyBy::custom(|request| {
        assert!(request.call().is_some(), "scripted panic");
        Key::new("all")
    });
    let layer = bulkhead(1).key_by(key_by).build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let mut unknown = Ask::new(0);
    unknown.call = None;
    let panics = std::panic::AssertUnwindSafe(|| start(&service, unknown));
    assert!(std::panic::catch_unwind(panics).is_err());
    let mut next = start(&service, Ask::new(1));
    assert_pending!(next.poll());
    assert_eq!(arrived(&mut upstream).0.id, 1);
    assert_eq!(counts_of(&layer.handle(), "all"), (1, 0, 0));
}

#[test]
fn a_call_may_start_waiting_outside_of_a_runtime() {
    use tower::Service;
    use tower_layer::Layer;

    let layer = bulkhead(1).build().unwrap();
    let mut service = layer.layer(tower::service_fn(|_: Ask| {
        std::future::pending::<Result<(), std::convert::Infallible>>()
    }));
    let running = service.call(Ask::new(0));
    let waiting = service.call(Ask::new(1));
    assert_eq!(layer.handle().stats()[0].waiting, 1);
    drop((running, waiting));
    let stats = &layer.handle().stats()[0];
    assert_eq!((stats.in_flight, stats.waiting), (0, 0));
}
