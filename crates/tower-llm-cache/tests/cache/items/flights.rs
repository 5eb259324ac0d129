//! Items that several callers ask for at the same time.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio_test::assert_ready;
use tower::{ServiceExt, service_fn};
use tower_layer::Layer;
use tower_llm_core::{BoxError, Served};
use tower_llm_testkit::mock;

use super::support::*;

#[test]
fn batches_that_overlap_send_each_item_once() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let mut first = call(&cache, batch(&json!(["a", "b", "c"])));
    let mut second = call(&cache, batch(&json!(["c", "d", "b"])));
    let mut third = call(&cache, batch(&json!(["d", "a", "d"])));
    let sent = [arrived(&mut provider), arrived(&mut provider)];
    assert_eq!(sent[0].inputs(), ["a", "b", "c"]);
    assert_eq!(sent[1].inputs(), ["d"]);
    mock::nothing_arrived(&mut provider);
    assert_eq!(layer.handle().stats().in_flight, 2);
    let [one, two] = sent;
    two.answer();
    assert!(second.poll().is_pending(), "it waits for the first");
    one.answer();
    let third = answered(&mut third);
    assert_eq!(status(&third), "tower-llm-cache; fwd=miss; collapsed");
    assert_eq!(third.extensions().get(), Some(&Served::Follower));
    assert_eq!(check(third, &json!({"input": ["d", "a", "d"]})), 0);
    let second = answered(&mut second);
    assert_eq!(status(&second), "tower-llm-cache; fwd=partial");
    assert_eq!(second.extensions().get::<Served>(), None);
    assert_eq!(check(second, &json!({"input": ["c", "d", "b"]})), 1);
    assert_eq!(
        check(answered(&mut first), &json!({"input": ["a", "b", "c"]})),
        3
    );
    let stats = layer.handle().stats();
    assert_eq!((stats.misses, stats.collapsed, stats.in_flight), (2, 1, 0));
    assert_eq!((stats.items_sent, stats.items_reused), (4, 5));
}

#[test]
fn a_caller_that_leaves_harms_no_other() {
    for joins_after in [false, true] {
        let layer = shared();
        let (cache, mut provider) = upstream(&layer);
        let first = call(&cache, batch(&json!(["a", "b"])));
        let mut second = call(&cache, batch(&json!(["b", "c"])));
        let sent = [arrived(&mut provider), arrived(&mut provider)];
        drop(first);
        let mut third = joins_after.then(|| call(&cache, batch(&json!(["a"]))));
        mock::nothing_arrived(&mut provider);
        sent.into_iter().for_each(Arrived::answer);
        check(answered(&mut second), &json!({"input": ["b", "c"]}));
        if let Some(third) = &mut third {
            check(answered(third), &json!({"input": ["a"]}));
        }
        assert_eq!(layer.handle().stats().entries, 3);
    }
}

#[test]
fn what_the_last_to_leave_has_claimed_is_free() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let first = call(&cache, batch(&json!(["a", "b"])));
    let second = call(&cache, batch(&json!(["a"])));
    arrived(&mut provider);
    drop(first);
    drop(second);
    assert_eq!(layer.handle().stats().in_flight, 0);
    let mut third = call(&cache, batch(&json!(["b", "a"])));
    let sent = arrived(&mut provider);
    assert_eq!(sent.inputs(), ["b", "a"]);
    sent.answer();
    check(answered(&mut third), &json!({"input": ["b", "a"]}));
}

#[test]
fn an_error_is_that_of_callers_who_asked_for_the_same_and_of_no_others() {
    for fails in [true, false] {
        let layer = shared();
        let (cache, mut provider) = upstream(&layer);
        let mut first = call(&cache, batch(&json!(["a", "bad"])));
        let mut same = call(&cache, batch(&json!(["bad", "a"])));
        let mut others = [(); 3].map(|()| call(&cache, batch(&json!(["a"]))));
        let sent = arrived(&mut provider);
        mock::nothing_arrived(&mut provider);
        match fails {
            true => sent.fail(),
            false => sent.respond(400, r#"{"error":{"message":"bad"}}"#),
        }
        for calling in [&mut first, &mut same] {
            match assert_ready!(calling.poll()) {
                Ok(answer) => {
                    assert_eq!(answer.status(), 400);
                    assert_eq!(text(answer), r#"{"error":{"message":"bad"}}"#);
                }
                Err(error) => assert_eq!(error.to_string(), "connection reset"),
            }
        }
        // Another's input was wrong. They send their own at once, and do not queue up behind each other.
        for calling in &mut others {
            assert!(calling.is_woken());
            assert!(calling.poll().is_pending());
        }
        // A newcomer joins one of those.
        let mut late = call(&cache, batch(&json!(["a"])));
        for _ in 0..3 {
            let sent = arrived(&mut provider);
            assert_eq!(sent.inputs(), ["a"]);
            sent.answer();
        }
        mock::nothing_arrived(&mut provider);
        for calling in &mut others {
            let answer = answered(calling);
            assert_eq!(status(&answer), "tower-llm-cache; fwd=miss");
            assert_eq!(check(answer, &json!({"input": ["a"]})), 1);
        }
        assert_eq!(check(answered(&mut late), &json!({"input": ["a"]})), 0);
        assert_eq!(layer.handle().stats().in_flight, 0);
    }
}

#[test]
fn usage_is_that_of_both_calls_if_one_had_to_be_made_later() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let mut first = call(&cache, batch(&json!(["a", "bad"])));
    let mut second = call(&cache, batch(&json!(["a", "b", "c"])));
    let [bad, good] = [arrived(&mut provider), arrived(&mut provider)];
    good.answer();
    bad.respond(500, "");
    answered(&mut first);
    assert!(second.poll().is_pending());
    let rest = arrived(&mut provider);
    assert_eq!(rest.inputs(), ["a"]);
    rest.answer();
    assert_eq!(
        check(answered(&mut second), &json!({"input": ["a", "b", "c"]})),
        3
    );
}

#[test]
fn an_answer_without_a_vector_for_each_item_leaves_waiters_to_send_theirs() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let mut first = call(&cache, batch(&json!(["a", "b"])));
    let mut second = call(&cache, batch(&json!(["b"])));
    arrived(&mut provider).respond(200, r#"{"data":[{"index":1,"embedding":[1]}]}"#);
    answered(&mut first);
    assert!(second.poll().is_pending());
    let sent = arrived(&mut provider);
    assert_eq!(sent.inputs(), ["b"]);
    sent.answer();
    check(answered(&mut second), &json!({"input": ["b"]}));
}

#[test]
fn a_request_joins_a_bounded_number_of_calls() {
    let layer = shared();
    let (cache, mut provider) = upstream(&layer);
    let input: Vec<_> = (0..70).map(|index| index.to_string()).collect();
    let mut alone: Vec<_> = input
        .iter()
        .map(|text| call(&cache, batch(&json!(text))))
        .collect();
    let alone_sent: Vec<_> = input.iter().map(|_| arrived(&mut provider)).collect();
    let mut all = call(&cache, batch(&json!(input)));
    let sent = arrived(&mut provider);
    assert_eq!(sent.inputs(), input[64..]);
    sent.answer();
    alone_sent.into_iter().for_each(Arrived::answer);
    check(answered(&mut all), &json!({"input": input}));
    alone.iter_mut().for_each(|calling| drop(answered(calling)));
}

/// Overlapping batches on real threads, in some rounds with callers that leave.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn callers_on_many_threads_send_each_item_once_and_all_are_answered() {
    let sent = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&sent);
    let provider = service_fn(move |request: Sent| {
        let seen = Arc::clone(&seen);
        async move {
            tokio::task::yield_now().await;
            let request: Value =
                serde_json::from_slice(request.body().as_bytes().unwrap()).unwrap();
            let answer = embeddings(&request);
            seen.lock().unwrap().extend(inputs(&request["input"]));
            Ok::<_, BoxError>(http::Response::new(Full::new(Bytes::from(answer))))
        }
    });
    let layer = shared();
    let cache = layer.layer(provider);
    for round in 0..300 {
        let callers: Vec<_> = (0..8)
            .map(|caller| {
                let cache = cache.clone();
                let input: Vec<_> = (0..6)
                    .map(|item| format!("{round}-{}", (caller * item) % 11))
                    .collect();
                let request = json!({"input": input});
                let calling = cache.oneshot(batch(&request["input"])).boxed();
                tokio::spawn(async move {
                    let answer = calling.await.unwrap().into_body().collect().await.unwrap();
                    let answer: Value = serde_json::from_slice(&answer.to_bytes()).unwrap();
                    for (index, input) in inputs(&request["input"]).iter().enumerate() {
                        let vector = vector(input, &request);
                        let vector: Value = serde_json::from_str(&vector).unwrap();
                        assert_eq!(answer["data"][index]["embedding"], vector);
                    }
                })
            })
            .collect();
        let leave = round % 2 == 1;
        if leave {
            callers
                .iter()
                .step_by(3)
                .for_each(tokio::task::JoinHandle::abort);
        }
        for caller in callers {
            match caller.await {
                Err(error) if leave && error.is_cancelled() => {}
                caller => caller.unwrap(),
            }
        }
        let mut sent = std::mem::take(&mut *sent.lock().unwrap());
        let all = sent.len();
        sent.sort_by_key(Value::to_string);
        sent.dedup();
        if !leave {
            assert_eq!((sent.len(), all), (11, 11), "in round {round}");
        }
    }
    assert_eq!(layer.handle().stats().in_flight, 0);
}
