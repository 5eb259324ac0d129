//! Limits that change, limits in tokens, and the limit that all keys share.

use std::time::Duration;

use crate::support::{Ask, asked, counts_of, full, openai};
use tokio::time::advance;
use tokio_test::{assert_pending, assert_ready_err, assert_ready_ok};
use tower_llm_bulkhead::{BulkheadBuilder, BulkheadHandle, BulkheadLayer, LimitOf, Weigh};
use tower_llm_core::{Call, Key, Operation, Provider, Unary};
use tower_llm_testkit::mock::{arrived, nothing_arrived, start};

fn bulkhead(limit: usize) -> BulkheadBuilder<Unary> {
    BulkheadLayer::builder(limit).watch(Unary)
}

fn key() -> Key {
    Key::new("openai")
}

// === limits that change ===

#[tokio::test(start_paused = true)]
async fn a_raised_limit_admits_one_call_per_new_permit_at_once() {
    let layer = bulkhead(1).build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let mut calls: Vec<_> = (0..6).map(|id| start(&service, Ask::new(id))).collect();
    for call in &mut calls {
        assert_pending!(call.poll());
    }
    arrived(&mut upstream);
    layer.handle().set_limit(&key(), 4).unwrap();
    let woken: Vec<_> = calls[1..].iter().map(|call| call.is_woken()).collect();
    assert_eq!(woken, [true, true, true, false, false]);
    assert_eq!(openai(&layer.handle()), (4, 2, 0));
    for (id, call) in calls.iter_mut().enumerate().take(4).skip(1) {
        assert_pending!(call.poll());
        assert_eq!(arrived(&mut upstream).0.id, id);
    }
    assert_eq!(layer.handle().stats_of(&key()).unwrap().limit, 4);
}

#[tokio::test(start_paused = true)]
async fn a_lowered_limit_ends_no_call_and_admits_none_until_enough_have_ended() {
    let layer = bulkhead(3).build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let mut running: Vec<_> = (0..3).map(|id| start(&service, Ask::new(id))).collect();
    let mut answers: Vec<_> = (0..3).map(|_| arrived(&mut upstream).1).collect();
    let mut waiting = start(&service, Ask::new(3));
    assert_pending!(waiting.poll());
    layer.handle().set_limit(&key(), 1).unwrap();
    assert_eq!(openai(&layer.handle()), (3, 1, 0));

    for left in [2, 1] {
        answers.pop().unwrap().send_response(0);
        assert_ready_ok!(running.pop().unwrap().poll());
        assert!(!waiting.is_woken());
        assert_eq!(openai(&layer.handle()), (left, 1, 0));
    }
    answers.pop().unwrap().send_response(0);
    assert_ready_ok!(running.pop().unwrap().poll());
    assert!(waiting.is_woken());
    assert_pending!(waiting.poll());
    assert_eq!(arrived(&mut upstream).0.id, 3);
    assert_pending!(start(&service, Ask::new(4)).poll());
    nothing_arrived(&mut upstream);
}

#[tokio::test(start_paused = true)]
async fn the_limit_of_an_unused_key_can_be_set() {
    let layer = bulkhead(1).max_waiting(0).build().unwrap();
    let handle = layer.handle();
    assert_eq!(handle.stats_of(&key()), None);
    handle.set_limit(&key(), 2).unwrap();
    assert_eq!(handle.stats_of(&key()).unwrap().limit, 2);
    let (service, _upstream) = asked(&layer);
    let _calls: Vec<_> = (0..2).map(|id| start(&service, Ask::new(id))).collect();
    let error = assert_ready_err!(start(&service, Ask::new(2)).poll());
    assert_eq!(full(&error).limit(), 2);
    let _other = start(&service, Ask::of("anthropic", 0));
    let error = assert_ready_err!(start(&service, Ask::of("anthropic", 1)).poll());
    assert_eq!(full(&error).limit(), 1);
}

/// Uses more keys than the maximum.
fn see_others(service: &crate::support::Asked) {
    for other in 0..1_000 {
        let other: &'static str = Box::leak(format!("provider {other}").into_boxed_str());
        drop(start(service, Ask::of(other, 0)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_with_a_changed_limit_is_not_evicted_until_it_is_set_back() {
    let layer = bulkhead(1).max_keys(16).build().unwrap();
    let (service, _upstream) = asked(&layer);
    let handle = layer.handle();
    handle.set_limit(&key(), 7).unwrap();
    see_others(&service);
    assert_eq!(handle.stats_of(&key()).unwrap().limit, 7);
    handle.set_limit(&key(), 1).unwrap();
    see_others(&service);
    assert_eq!(handle.stats_of(&key()), None);
}

#[tokio::test(start_paused = true)]
async fn a_key_beyond_the_maximum_cannot_be_set() {
    let layer = bulkhead(1).max_keys(1).build().unwrap();
    let handle = layer.handle();
    // Sixteen shards of one key each.
    let keys: Vec<_> = (0..200).map(|key| Key::new(key.to_string())).collect();
    let is_set = |key: &&Key| handle.set_limit(key, 9).is_ok();
    let set: Vec<_> = keys.iter().filter(is_set).collect();
    assert_eq!(set.len(), 16);
    let stats = handle.stats();
    assert_eq!(stats.len(), 16);
    assert!(stats.iter().all(|stats| stats.limit == 9));
    let refused = keys.iter().find(|key| !set.contains(key)).unwrap();
    let error = handle.set_limit(refused, 9).unwrap_err();
    assert_eq!(error.field(), "key");
    assert_eq!(error.value(), format!("{refused:?}"));
}

// === limits in tokens ===

fn tokens(id: usize, input: u64) -> Ask {
    let call = Call::builder(Provider::OPENAI, Operation::CHAT).input_tokens(input);
    Ask {
        call: Some(call.max_output_tokens(0).build()),
        ..Ask::new(id)
    }
}

fn weight(handle: &BulkheadHandle) -> (usize, u64, usize) {
    let stats = handle.stats_of(&key()).expect("the key exists");
    (stats.in_flight, stats.permits_in_use, stats.waiting)
}

fn by_tokens(limit: usize) -> BulkheadBuilder<Unary> {
    bulkhead(limit).weigh_by(Weigh::Tokens { default_output: 30 })
}

#[tokio::test(start_paused = true)]
async fn permits_are_counted_in_tokens() {
    let layer = by_tokens(100).build().unwrap();
    let (service, _upstream) = asked(&layer);
    let handle = layer.handle();
    let sixty = start(&service, tokens(0, 60));
    // Neither input nor output is known: thirty.
    let unknown = start(&service, Ask::new(1));
    assert_eq!(weight(&handle), (2, 90, 0));
    let mut eleven = start(&service, tokens(2, 11));
    assert_pending!(eleven.poll());
    assert_eq!(weight(&handle), (2, 90, 1));
    drop(unknown);
    assert!(eleven.is_woken());
    assert_eq!(weight(&handle), (2, 71, 0));
    // To the last token.
    let rest = start(&service, tokens(3, 29));
    assert_eq!(weight(&handle), (3, 100, 0));
    drop((sixty, eleven, rest));
    assert_eq!(weight(&handle), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_call_heavier_than_the_limit_runs_alone_and_no_more_than_the_limit_overtakes_it() {
    let layer = by_tokens(100).build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let mut running: Vec<_> = (0..4).map(|id| start(&service, tokens(id, 25))).collect();
    for _ in 0..4 {
        arrived(&mut upstream);
    }
    let mut heavy = start(&service, tokens(4, 500_000));
    assert_pending!(heavy.poll());
    let mut overtaking = Vec::new();
    for id in 5..9 {
        drop(running.pop());
        overtaking.push(start(&service, tokens(id, 25)));
        assert_eq!(arrived(&mut upstream).0.id, id);
    }
    // There is room for the next call, but the batch is complete.
    drop(overtaking.pop());
    let mut next = start(&service, tokens(9, 1));
    assert_pending!(next.poll());
    assert!(!heavy.is_woken());
    assert_eq!(weight(&layer.handle()), (3, 75, 2));
    drop(overtaking);
    assert_eq!((heavy.is_woken(), next.is_woken()), (true, false));
    assert_eq!(weight(&layer.handle()), (1, 500_000, 1));
    assert_pending!(heavy.poll());
    assert_eq!(arrived(&mut upstream).0.id, 4);
    nothing_arrived(&mut upstream);
    drop(heavy);
    assert!(next.is_woken());
    assert_eq!(weight(&layer.handle()), (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_heavy_call_unblocks_lighter_calls_behind_it() {
    let layer = by_tokens(100)
        .max_wait(Duration::from_secs(5))
        .build()
        .unwrap();
    let (service, mut upstream) = asked(&layer);
    let _running = start(&service, tokens(0, 20));
    arrived(&mut upstream);
    for by_time in [true, false] {
        let mut heavy = start(&service, tokens(1, 81));
        assert_pending!(heavy.poll());
        // A complete batch, of which one call has ended.
        let mut overtaking = [2, 3].map(|id| Some(start(&service, tokens(id, 40))));
        for id in [2, 3] {
            assert_eq!(arrived(&mut upstream).0.id, id);
        }
        overtaking[0] = None;
        advance(Duration::from_secs(2)).await;
        let mut light = start(&service, tokens(4, 40));
        assert_pending!(light.poll());
        if by_time {
            advance(Duration::from_secs(3)).await;
            let error = assert_ready_err!(heavy.poll());
            assert_eq!(full(&error).limit(), 100);
            let text = "bulkhead full for openai: 60/100 in use, 81 needed, waited 5s";
            assert_eq!(error.to_string(), text);
        } else {
            drop(heavy);
        }
        assert!(light.is_woken());
        assert_pending!(light.poll());
        assert_eq!(arrived(&mut upstream).0.id, 4);
    }
}

// === the global limit ===

fn ten_total_three_each() -> BulkheadBuilder<Unary> {
    bulkhead(3).global_limit(10)
}

const PROVIDERS: [&str; 5] = ["a", "b", "c", "d", "e"];

fn all(handle: &BulkheadHandle) -> (usize, usize, u64) {
    let stats = handle.global_stats().expect("there is a limit");
    (stats.in_flight, stats.waiting, stats.refused)
}

#[tokio::test(start_paused = true)]
async fn ten_calls_run_in_total_and_three_per_provider() {
    let layer = ten_total_three_each().build().unwrap();
    let (service, mut upstream) = asked(&layer);
    let mut calls: Vec<_> = (0..20)
        .map(|id| start(&service, Ask::of(PROVIDERS[id % 5], id)))
        .collect();
    for call in &mut calls {
        assert_pending!(call.poll());
    }
    let handle = layer.handle();
    assert_eq!(all(&handle), (10, 10, 0));
    for provider in PROVIDERS {
        assert_eq!(counts_of(&handle, provider), (2, 2, 0));
    }
    // Each call of any key that ends frees one permit of the global limit.
    for id in 0..10 {
        let (ask, _) = arrived(&mut upstream);
        assert_eq!(ask.id, id);
    }
    nothing_arrived(&mut upstream);
    for call in calls.drain(..2) {
        drop(call);
    }
    assert_eq!(all(&handle), (10, 8, 0));
    drop(calls);
    assert_eq!(all(&handle), (0, 0, 0));
    for provider in PROVIDERS {
        assert_eq!(counts_of(&handle, provider), (0, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_key_does_not_block_calls_of_another() {
    let layer = ten_total_three_each().build().unwrap();
    let (service, _upstream) = asked(&layer);
    let calls: Vec<_> = (0..50)
        .map(|id| start(&service, Ask::of("a", id)))
        .collect();
    let handle = layer.handle();
    // Waiting calls hold nothing.
    assert_eq!(counts_of(&handle, "a"), (3, 47, 0));
    assert_eq!(all(&handle), (3, 47, 0));
    let others: Vec<_> = ["b", "c"]
        .iter()
        .flat_map(|provider| (0..3).map(|id| start(&service, Ask::of(provider, id))))
        .collect();
    assert_eq!(counts_of(&handle, "b"), (3, 0, 0));
    assert_eq!(counts_of(&handle, "c"), (3, 0, 0));
    assert_eq!(all(&handle), (9, 47, 0));
    drop(calls);
    assert_eq!(all(&handle), (6, 0, 0));
    drop(others);
    assert_eq!(all(&handle), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_names_the_limit_and_leaves_no_trace() {
    let layer = bulkhead(2).global_limit(3).max_waiting(0).build().unwrap();
    let (service, _upstream) = asked(&layer);
    let handle = layer.handle();
    let mut running: Vec<_> = (0..2).map(|id| start(&service, Ask::of("a", id))).collect();

    let error = assert_ready_err!(start(&service, Ask::of("a", 2)).poll());
    assert_eq!(full(&error).limit_of(), LimitOf::Key);
    assert_eq!(full(&error).limit(), 2);
    assert_eq!(all(&handle), (2, 0, 1));

    running.push(start(&service, Ask::of("b", 3)));
    let error = assert_ready_err!(start(&service, Ask::of("b", 4)).poll());
    assert_eq!(full(&error).limit_of(), LimitOf::Global);
    assert_eq!(full(&error).limit(), 3);
    let text = "bulkhead full for all keys: 3/3 in use, queue 0/0";
    assert_eq!(error.to_string(), text);
    assert_eq!(counts_of(&handle, "a"), (2, 0, 1));
    assert_eq!(counts_of(&handle, "b"), (1, 0, 1));
    assert_eq!(all(&handle), (3, 0, 2));
    drop(running);
    assert_eq!(all(&handle), (0, 0, 2));
    let _next = start(&service, Ask::of("b", 5));
    assert_eq!(all(&handle), (1, 0, 2));
}

#[tokio::test(start_paused = true)]
async fn the_global_limit_can_be_changed() {
    let layer = bulkhead(3).global_limit(2).build().unwrap();
    let (service, _upstream) = asked(&layer);
    let handle = layer.handle();
    let mut calls: Vec<_> = (0..9)
        .map(|id| start(&service, Ask::of(PROVIDERS[id % 2], id)))
        .collect();
    assert_eq!(all(&handle), (2, 7, 0));
    handle.set_global_limit(5).unwrap();
    assert_eq!(all(&handle), (5, 4, 0));
    // The keys' own limits are the lower ones now.
    handle.set_global_limit(100).unwrap();
    assert_eq!(all(&handle), (6, 3, 0));
    handle.set_limit(&Key::new("a"), 4).unwrap();
    assert_eq!(counts_of(&handle, "a"), (4, 1, 0));
    handle.set_global_limit(1).unwrap();
    assert_eq!(handle.global_stats().unwrap().limit, 1);
    calls.drain(..4);
    assert_eq!(all(&handle), (3, 2, 0));
    calls.clear();
    assert_eq!(all(&handle), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn calls_dropped_anywhere_release_all_permits() {
    let layer = by_tokens(40)
        .global_limit(60)
        .max_wait(Duration::from_secs(5))
        .build()
        .unwrap();
    let (service, _upstream) = asked(&layer);
    let handle = layer.handle();
    let ask = |id: usize| Ask {
        call: Ask::of(PROVIDERS[id % 3], id).call,
        ..Ask::new(id)
    };
    // Thirty tokens each: one call per key, two in total.
    let mut calls: Vec<_> = (0..12).map(|id| start(&service, ask(id))).collect();
    assert_eq!(all(&handle), (2, 10, 0));
    // One that waits and was never polled, one that was, one that has been granted a permit, and one whose deadline has
    // passed.
    drop(calls.remove(11));
    assert_pending!(calls[10].poll());
    drop(calls.remove(10));
    assert_pending!(calls[2].poll());
    drop(calls.remove(0));
    assert!(calls[1].is_woken());
    drop(calls.remove(1));
    assert_eq!(all(&handle), (2, 6, 0));
    advance(Duration::from_secs(5)).await;
    for call in &mut calls {
        let _ = call.poll();
    }
    let refused = handle.global_stats().unwrap().refused;
    assert_eq!(all(&handle), (2, 0, refused));
    assert!(refused >= 4, "{refused}");
    drop(calls);
    assert_eq!(handle.global_stats().unwrap().permits_in_use, 0);
    for provider in &PROVIDERS[..3] {
        let stats = handle.stats_of(&Key::new(provider)).unwrap();
        assert_eq!(
            (stats.in_flight, stats.permits_in_use, stats.waiting),
            (0, 0, 0)
        );
    }
}
