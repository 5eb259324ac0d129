//! Random batches, answered in any order and in any way: each caller gets the vectors of its own inputs.

use std::task::Poll;

use futures_util::FutureExt;
use proptest::prelude::*;
use serde_json::{Value, json};
use tower_llm_cache::{CacheLayer, Memory, Scope};
use tower_llm_testkit::mock;

use super::support::*;

#[derive(Clone, Debug)]
enum Step {
    Ask(Value),
    /// How the provider answers one of the calls that are open.
    Respond(prop::sample::Index, Response),
    /// One of the callers leaves.
    Leave(prop::sample::Index),
    Forget,
}

#[derive(Clone, Copy, Debug)]
enum Response {
    Right,
    Status(u16),
    Fails,
    Short,
}

struct Caller {
    calling: Calling,
    request: Value,
}

fn input() -> impl Strategy<Value = Value> {
    let item = || {
        prop_oneof![
            "[a-e]".prop_map(Value::from),
            prop::collection::vec(0_u8..2, 1..3).prop_map(|tokens| json!(tokens)),
        ]
    };
    prop_oneof![
        item(),
        prop::collection::vec(item(), 1..6).prop_map(Value::from)
    ]
}

fn request() -> impl Strategy<Value = Value> {
    let rest = prop_oneof![
        4 => Just(json!({})),
        1 => Just(json!({"encoding_format": "base64"})),
        1 => Just(json!({"dimensions": 2})),
    ];
    (input(), rest).prop_map(|(input, mut request)| {
        request["model"] = json!("m");
        request["input"] = input;
        request
    })
}

fn step() -> impl Strategy<Value = Step> {
    let response = prop_oneof![
        5 => Just(Response::Right),
        1 => prop::sample::select(vec![400, 429, 500]).prop_map(Response::Status),
        1 => Just(Response::Fails),
        1 => Just(Response::Short),
    ];
    prop_oneof![
        5 => request().prop_map(Step::Ask),
        4 => (any::<prop::sample::Index>(), response).prop_map(|(at, how)| Step::Respond(at, how)),
        1 => any::<prop::sample::Index>().prop_map(Step::Leave),
        1 => Just(Step::Forget),
    ]
}

/// Polls the callers that are woken until none is, as a runtime would; checks the answers.
fn run(callers: &mut Vec<Caller>, provider: &mut Provider, open: &mut Vec<Arrived>) {
    let mut is_idle = false;
    while !is_idle {
        is_idle = true;
        callers.retain_mut(|Caller { calling, request }| {
            if !calling.is_woken() {
                return true;
            }
            is_idle = false;
            match calling.poll() {
                Poll::Pending => true,
                Poll::Ready(Ok(answer)) if answer.status() == 200 => {
                    // Its body may wait for the provider: it is there whole, or it is short.
                    let text = text(answer);
                    let answer: Value = serde_json::from_str(&text).unwrap();
                    if answer["model"] != "short" {
                        let inputs = inputs(&request["input"]);
                        let items = answer["data"].as_array().unwrap();
                        assert_eq!(items.len(), inputs.len());
                        for (index, (item, input)) in items.iter().zip(&inputs).enumerate() {
                            assert_eq!(item["index"], index);
                            let vector = vector(input, request);
                            assert_eq!(
                                item["embedding"],
                                serde_json::from_str::<Value>(&vector).unwrap()
                            );
                            assert!(text.contains(&vector));
                        }
                    }
                    false
                }
                Poll::Ready(_) => false,
            }
        });
        while let Poll::Ready(Some((request, send))) = provider.poll_request() {
            open.push(Arrived::new(request, send));
        }
    }
}

fn respond(call: Arrived, how: Response) {
    match how {
        Response::Right => call.answer(),
        Response::Status(status) => call.respond(status, r#"{"error":{"message":"no"}}"#),
        Response::Fails => call.fail(),
        Response::Short => {
            let mut answer: Value = serde_json::from_str(&embeddings(&call.body())).unwrap();
            answer["model"] = json!("short");
            answer["data"].as_array_mut().unwrap().pop();
            call.respond(200, answer.to_string());
        }
    }
}

proptest! {
    #[test]
    fn each_caller_gets_the_vectors_of_its_own_inputs(steps in prop::collection::vec(step(), 1..60)) {
        let layer = CacheLayer::builder(Scope::shared()).memory(Memory::fifo()).build().unwrap();
        let (cache, mut provider) = upstream(&layer);
        let (mut callers, mut open) = (Vec::<Caller>::new(), Vec::new());
        for step in steps {
            match step {
                Step::Ask(request) => {
                    let sent = described(post(PATH), &request.to_string());
                    let mut calling = mock::start(&cache, sent);
                    calling.enter(|cx, _| cx.waker().wake_by_ref());
                    callers.push(Caller { calling, request });
                }
                Step::Respond(at, how) if !open.is_empty() => {
                    respond(open.swap_remove(at.index(open.len())), how);
                }
                Step::Leave(at) if !callers.is_empty() => {
                    drop(callers.swap_remove(at.index(callers.len())));
                }
                Step::Forget => {
                    // Without Redis it waits for nothing.
                    let cleared = layer.handle().clear().now_or_never();
                    cleared.unwrap().unwrap();
                }
                _ => {}
            }
            run(&mut callers, &mut provider, &mut open);
        }
        // Nothing hangs, and nothing stays claimed.
        while let Some(call) = open.pop() {
            call.answer();
            run(&mut callers, &mut provider, &mut open);
        }
        prop_assert!(callers.is_empty());
        prop_assert_eq!(layer.handle().stats().in_flight, 0);
    }

    /// In the order in which they come, every batch sends what no earlier one had.
    #[test]
    fn each_item_is_sent_once(requests in prop::collection::vec(input(), 1..20), answers_at_once in any::<bool>()) {
        let layer = shared();
        let (cache, mut provider) = upstream(&layer);
        let (mut callers, mut open) = (Vec::new(), Vec::new());
        let mut known: Vec<Value> = Vec::new();
        for input in requests {
            let sent: Vec<_> = inputs(&input).into_iter().filter(|input| {
                let is_new = !known.contains(input);
                known.extend(is_new.then(|| input.clone()));
                is_new
            }).collect();
            let request = json!({"model": "m", "input": input});
            let calling = mock::start(&cache, described(post(PATH), &request.to_string()));
            callers.push(Caller { calling, request });
            callers.last_mut().unwrap().calling.enter(|cx, _| cx.waker().wake_by_ref());
            let before = open.len();
            run(&mut callers, &mut provider, &mut open);
            let arrived: Vec<_> = open[before..].iter().flat_map(Arrived::inputs).collect();
            prop_assert_eq!(arrived, sent);
            if answers_at_once {
                open.drain(..).for_each(Arrived::answer);
                run(&mut callers, &mut provider, &mut open);
            }
        }
        open.drain(..).for_each(Arrived::answer);
        run(&mut callers, &mut provider, &mut open);
        prop_assert!(callers.is_empty() && open.is_empty());
    }
}
