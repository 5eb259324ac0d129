//! What one admitted call costs over calling the inner service directly.
//!
//! A permit is free for every call: this is the price of the limit, not of waiting. A call is `poll_ready`, `call` and
//! polling its answer, which is there at once. The bare service is inlined to almost nothing, so what a subject adds in ns
//! is the figure to read, not its ratio to it.
//!
//! Of the peers, tower's and tower-resilience's give a permit back with the response headers: with a limit of two, 20
//! streams run at once. Ours holds it to the end of the body, which `admit-http` shows the price of.

use std::{
    borrow::Cow,
    convert::Infallible,
    fmt::Debug,
    future::{Ready, poll_fn, ready},
    hint::black_box,
};

use benches::{Case, Frames, Suite, drain, now, payload, peer};
use bytes::Bytes;
use http::{HeaderValue, Response, header::CONTENT_TYPE};
use tower::{Layer, Service, limit::ConcurrencyLimitLayer, service_fn};
use tower_llm_bulkhead::BulkheadLayer;
use tower_llm_core::{Call, Described, HttpBody, Key, KeyBy, Operation, Provider, Unary};

const LIMIT: usize = 1_000;
const OURS: &str = "tower-llm-bulkhead";

/// A request of a service's own type.
#[derive(Clone, Copy, Debug)]
struct Prompt<'a> {
    tokens: u64,
    call: Option<&'a Call>,
}

impl Described for Prompt<'_> {
    fn call(&self) -> Option<Cow<'_, Call>> {
        self.call.map(Cow::Borrowed)
    }
}

fn main() {
    let mut suite = Suite::new("bulkhead");
    admit(&mut suite);
    reserve(&mut suite);
    keyed(&mut suite);
    shipped(&mut suite);
    many_keys(&mut suite);
    http(&mut suite);
}

/// Around a typed service, with no call to choose a key by.
fn admit(suite: &mut Suite) {
    let case = Case::new("admit");
    let prompt = Prompt {
        tokens: 7,
        call: None,
    };
    let ours = bulkhead(KeyBy::provider(), 16).layer(service_fn(echo));
    let tower = ConcurrencyLimitLayer::new(LIMIT).layer(service_fn(echo));
    let resilience = resilience().build().expect("the limit is not zero");
    let resilience = resilience.layer(service_fn(echo));

    suite.subject(&case, "bare", || admitted(service_fn(echo), prompt));
    suite.subject(&case, OURS, || admitted(ours.clone(), prompt));
    suite.subject(&case, &peer("tower"), || admitted(tower.clone(), prompt));
    suite.subject(&case, &peer("tower-resilience-bulkhead"), || {
        admitted(resilience.clone(), prompt)
    });
}

/// The same where the permit is taken in `poll_ready`, as tower's always does.
fn reserve(suite: &mut Suite) {
    let case = Case::new("reserve");
    let prompt = Prompt {
        tokens: 7,
        call: None,
    };
    let layer = BulkheadLayer::builder(LIMIT).watch(Unary).build_reserve();
    let ours = layer
        .expect("the limit is not zero")
        .layer(service_fn(echo));
    let resilience = resilience().backpressure().build();
    let resilience = resilience
        .expect("the limit is not zero")
        .layer(service_fn(echo));

    suite.subject(&case, OURS, || admitted(ours.clone(), prompt));
    suite.subject(&case, &peer("tower-resilience-bulkhead"), || {
        admitted(resilience.clone(), prompt)
    });
}

/// Around a typed service, with a permit for each provider and model.
fn keyed(suite: &mut Suite) {
    let case = Case::new("admit-keyed");
    let call = call("gpt-5.1-2025-11-13");
    let prompt = Prompt {
        tokens: 7,
        call: Some(&call),
    };
    let ours = bulkhead(KeyBy::provider_and_model(), 16).layer(service_fn(echo));

    suite.subject(&case, "bare", || admitted(service_fn(echo), prompt));
    suite.subject(&case, OURS, || admitted(ours.clone(), prompt));
}

/// As it ships: permits by provider, around a call that has one.
fn shipped(suite: &mut Suite) {
    let case = Case::new("admit-as-it-ships");
    let call = call("gpt-5.1-2025-11-13");
    let prompt = Prompt {
        tokens: 7,
        call: Some(&call),
    };
    let layer = BulkheadLayer::builder(LIMIT).watch(Unary).build();
    let ours = layer
        .expect("the limit is not zero")
        .layer(service_fn(echo));
    let tower = ConcurrencyLimitLayer::new(LIMIT).layer(service_fn(echo));

    suite.subject(&case, "bare", || admitted(service_fn(echo), prompt));
    suite.subject(&case, OURS, || admitted(ours.clone(), prompt));
    suite.subject(&case, &peer("tower"), || admitted(tower.clone(), prompt));
}

/// The first of a million keys over and over, and all of them in turn.
///
/// What the second costs over the first are misses of the cache: each key's state is last touched a million calls ago.
fn many_keys(suite: &mut Suite) {
    const KEYS: usize = 1_000_000;
    let calls: Vec<Call> = (0..KEYS)
        .map(|i| call(&format!("ft:gpt-5.1:{i}")))
        .collect();
    let layer = bulkhead(KeyBy::provider_and_model(), 2 * KEYS);
    let ours = layer.layer(service_fn(echo));
    // Where keys lie must not follow the order in which they come.
    let order: Vec<usize> = (0..KEYS).map(|i| i * 611_953 % KEYS).collect();
    for &i in &order {
        let prompt = Prompt {
            tokens: 7,
            call: Some(&calls[i]),
        };
        admitted(ours.clone(), prompt)();
    }
    let last = Key::pair("openai", format!("ft:gpt-5.1:{}", KEYS - 1));
    assert!(
        layer.handle().stats_of(&last).is_some(),
        "all keys have a permit"
    );

    let case = Case::new("admit-one-of-a-million-keys");
    let prompt = Prompt {
        tokens: 7,
        call: Some(&calls[0]),
    };
    suite.subject(&case, OURS, || admitted(ours.clone(), prompt));

    let case = Case::new("admit-a-million-keys-in-turn");
    suite.subject(&case, "bare", || in_turn(service_fn(echo), &calls));
    suite.subject(&case, OURS, || in_turn(ours.clone(), &calls));
}

/// Around an HTTP service that answers with a stream, read to its end.
fn http(suite: &mut Suite) {
    let frames = payload::forever(payload::chat_stream(50));
    let bytes: usize = frames.iter().map(Bytes::len).sum();
    let case = Case::new("admit-http").bytes(bytes);
    let prompt = Prompt {
        tokens: 7,
        call: None,
    };
    let stream = move |_: Prompt<'_>| {
        let mut response = Response::new(Frames::new(frames));
        let content_type = HeaderValue::from_static("text/event-stream");
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        ready(Ok::<_, Infallible>(response))
    };
    let layer = BulkheadLayer::builder(LIMIT).watch(HttpBody).build();
    let ours = layer
        .expect("the limit is not zero")
        .layer(service_fn(stream));

    suite.subject(&case, "bare", || {
        let mut service = service_fn(stream);
        move || {
            let response = now(service.call(black_box(prompt))).expect("it never fails");
            assert_eq!(drain(response.into_body()), bytes);
        }
    });
    suite.subject(&case, OURS, || {
        let mut service = ours.clone();
        move || {
            let response = now(service.call(black_box(prompt))).expect("a permit is free");
            assert_eq!(drain(response.into_body()), bytes);
        }
    });
}

/// One call after another, with the same prompt.
fn admitted<'a, S>(mut service: S, prompt: Prompt<'a>) -> impl FnMut()
where
    S: Service<Prompt<'a>, Response = u64>,
    S::Error: Debug,
{
    move || {
        now(poll_fn(|cx| service.poll_ready(cx))).expect("it is ready at once");
        let response = now(service.call(black_box(prompt))).expect("a permit is free");
        assert_eq!(black_box(response), 7);
    }
}

/// One call after another, each the next of `calls`.
fn in_turn<'a, S>(service: S, calls: &'a [Call]) -> impl FnMut()
where
    S: Service<Prompt<'a>, Response = u64> + Clone,
    S::Error: Debug,
{
    let mut service = service;
    let mut turn = calls.iter().cycle();
    move || {
        let call = turn.next();
        // Read by all subjects alike: a request that is handled at all is in the cache.
        assert!(call.is_some_and(|call| {
            black_box(call)
                .model()
                .is_some_and(|model| !model.is_empty())
        }));
        now(poll_fn(|cx| service.poll_ready(cx))).expect("it is ready at once");
        let response =
            now(service.call(black_box(Prompt { tokens: 7, call }))).expect("a permit is free");
        assert_eq!(black_box(response), 7);
    }
}

fn echo(prompt: Prompt<'_>) -> Ready<Result<u64, Infallible>> {
    ready(Ok(prompt.tokens))
}

fn call(model: &str) -> Call {
    Call::builder(Provider::OPENAI, Operation::CHAT)
        .model(model)
        .build()
}

fn bulkhead(key_by: KeyBy, max_keys: usize) -> BulkheadLayer<Unary> {
    BulkheadLayer::builder(LIMIT)
        .key_by(key_by)
        .max_keys(max_keys)
        .watch(Unary)
        .build()
        .expect("no setting is zero")
}

fn resilience() -> tower_resilience_bulkhead::BulkheadConfigBuilder {
    tower_resilience_bulkhead::BulkheadLayer::builder().max_concurrent_calls(LIMIT)
}
