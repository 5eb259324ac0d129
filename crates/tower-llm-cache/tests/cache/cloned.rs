//! The cache of a typed service.

use std::{
    borrow::Cow,
    collections::HashMap,
    error::Error,
    future::{pending, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Poll, Waker},
    time::Duration,
};

use http::HeaderName;
use serde::Serialize;
use tokio::time::advance;
use tokio_test::{assert_ready, assert_ready_ok, task};
use tower::{limit::ConcurrencyLimitLayer, service_fn};
use tower_layer::Layer;
use tower_llm_cache::{
    Bypass, CacheBuilder, CacheHandle, CacheLayer, Cloned, ClonedLayer, FlightFailed, KeyContent,
    Memory, Policy, Scope,
};
use tower_llm_core::{Answer, BoxError, Call, Caller, Described, Operation, Provider, Served};
use tower_llm_testkit::mock::{self, arrived, nothing_arrived};
use tower_service::Service;
use tower_test::mock::{Handle, Mock};

#[derive(Clone, Debug, Serialize)]
struct Prompt {
    text: &'static str,
    #[serde(skip)]
    call: Option<Call>,
    #[serde(skip)]
    tenant: &'static str,
}

impl Described for Prompt {
    fn call(&self) -> Option<Cow<'_, Call>> {
        self.call.as_ref().map(Cow::Borrowed)
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        (name == "x-tenant").then_some(self.tenant.as_bytes())
    }
}

type Completion = Arc<str>;
type Model = Mock<Prompt, Completion>;
type Provided = Handle<Prompt, Completion>;
type Cache = Cloned<Model, Prompt, Completion>;
type Calling = task::Spawn<<Cache as Service<Prompt>>::Future>;

fn call_of(provider: Provider, operation: Operation, model: &str) -> Prompt {
    Prompt {
        text: "Why?",
        call: Some(Call::builder(provider, operation).model(model).build()),
        tenant: "",
    }
}

fn prompt() -> Prompt {
    call_of(Provider::OPENAI, Operation::CHAT, "gpt-5.4")
}

fn by(caller: &str) -> Prompt {
    let call = prompt().call.unwrap().to_builder();
    Prompt {
        call: Some(call.caller(Caller::named(caller)).build()),
        ..prompt()
    }
}

fn shared() -> CacheBuilder {
    CacheLayer::builder(Scope::shared())
}

fn all_of_it(cache: &CacheLayer) -> ClonedLayer<Prompt, Completion> {
    cache.cloned(|prompt: &Prompt| KeyContent::json(prompt))
}

fn model(layer: &ClonedLayer<Prompt, Completion>) -> (Cache, Provided) {
    let (inner, provider) = tower_test::mock::pair();
    (layer.layer(inner), provider)
}

/// A cache with these settings, and its handle.
fn cached(builder: CacheBuilder) -> (Cache, Provided, CacheHandle) {
    let layer = builder.build().unwrap();
    let (cache, provider) = model(&all_of_it(&layer));
    (cache, provider, layer.handle())
}

/// Calls and polls once; the provider has not answered.
fn start(cache: &Cache, prompt: Prompt) -> Calling {
    let mut calling = mock::start(cache, prompt);
    assert!(calling.poll().is_pending());
    calling
}

fn answer(provider: &mut Provided, text: &str) {
    arrived(provider).1.send_response(text.into());
}

fn answered(calling: &mut Calling) -> Answer<Completion> {
    assert_ready_ok!(calling.poll())
}

/// Asks, and has the call answered, which is sent.
fn sent(cache: &Cache, provider: &mut Provided, prompt: Prompt, text: &str) {
    let mut calling = start(cache, prompt);
    answer(provider, text);
    assert_eq!(answered(&mut calling), Answer::new(text.into(), None));
}

/// The stored response.
fn hit(cache: &Cache, prompt: Prompt) -> Option<String> {
    match mock::start(cache, prompt).poll() {
        Poll::Ready(answer) => {
            let answer = answer.unwrap();
            assert_eq!(answer.served(), Some(Served::Hit));
            Some(answer.to_string())
        }
        Poll::Pending => None,
    }
}

fn bypasses(handle: &CacheHandle, reason: Bypass) -> u64 {
    let stats = handle.stats();
    let mut counts = stats.bypassed();
    counts.find(|(known, _)| *known == reason).unwrap().1
}

// === What is found again ===

#[tokio::test(start_paused = true)]
async fn a_response_is_sent_once_and_found_for_its_time() {
    let ttl = Duration::from_secs(60);
    let (cache, mut provider, handle) =
        cached(shared().completions(Policy::completions().ttl(ttl)));
    sent(&cache, &mut provider, prompt(), "Because.");
    advance(ttl - Duration::from_millis(1)).await;
    assert_eq!(hit(&cache, prompt()).as_deref(), Some("Because."));
    advance(Duration::from_millis(1)).await;
    sent(&cache, &mut provider, prompt(), "It is so.");
    assert_eq!(hit(&cache, prompt()).as_deref(), Some("It is so."));
    nothing_arrived(&mut provider);
    let stats = handle.stats();
    assert_eq!((stats.hits, stats.misses, stats.stored), (2, 2, 2));
    assert_eq!((stats.hit_latency.count, stats.miss_latency.count), (2, 2));
    assert_eq!((stats.entries, stats.in_flight), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn clones_and_layers_for_the_same_types_share_what_is_stored() {
    let layer = shared().build().unwrap();
    let (cache, mut provider) = model(&all_of_it(&layer));
    sent(&cache, &mut provider, prompt(), "Because.");
    let (other, _provider) = model(&all_of_it(&layer.clone()));
    assert!(hit(&other, prompt()).is_some());

    // Another response type has answers of its own.
    let (inner, mut lengths) = tower_test::mock::pair::<Prompt, usize>();
    let other = layer
        .cloned(|prompt: &Prompt| KeyContent::json(prompt))
        .layer(inner);
    let mut calling = mock::start(&other, prompt());
    assert!(calling.poll().is_pending());
    arrived(&mut lengths).1.send_response(8);
    assert_eq!(assert_ready_ok!(calling.poll()), Answer::new(8, None));
    assert_eq!(layer.handle().stats().entries, 2);
}

#[test]
fn what_changes_the_answer_splits_it() {
    let (cache, mut provider, handle) =
        cached(shared().operation(Operation::new("rerank"), Policy::completions()));
    let prompts = [
        prompt(),
        Prompt {
            text: "Why not?",
            ..prompt()
        },
        call_of(Provider::ANTHROPIC, Operation::CHAT, "gpt-5.4"),
        call_of(Provider::OPENAI, Operation::new("rerank"), "gpt-5.4"),
        call_of(Provider::OPENAI, Operation::CHAT, "gpt-5.5"),
    ];
    for (number, prompt) in prompts.iter().enumerate() {
        sent(&cache, &mut provider, prompt.clone(), &number.to_string());
    }
    for (number, prompt) in prompts.into_iter().enumerate() {
        assert_eq!(hit(&cache, prompt), Some(number.to_string()));
    }
    assert_eq!(handle.stats().entries, 5);
}

#[test]
fn callers_have_answers_of_their_own_and_calls_without_one_bypass() {
    let (cache, mut provider, handle) = cached(CacheLayer::builder(Scope::caller()));
    sent(&cache, &mut provider, by("ann"), "for Ann");
    sent(&cache, &mut provider, by("bob"), "for Bob");
    assert_eq!(hit(&cache, by("ann")).as_deref(), Some("for Ann"));
    for _ in 0..2 {
        sent(&cache, &mut provider, prompt(), "for no one");
    }
    assert_eq!(bypasses(&handle, Bypass::NoCaller), 2);
    assert_eq!(handle.stats().stored, 2);
}

#[test]
fn tenants_are_told_apart_by_the_header_that_a_request_describes() {
    let scope = Scope::header(HeaderName::from_static("x-tenant"));
    let (cache, mut provider, handle) = cached(CacheLayer::builder(scope));
    let of = |tenant| Prompt { tenant, ..prompt() };
    sent(&cache, &mut provider, of("a"), "for a");
    sent(&cache, &mut provider, of("b"), "for b");
    assert_eq!(hit(&cache, of("a")).as_deref(), Some("for a"));
    sent(&cache, &mut provider, of(""), "for no one");
    assert_eq!(bypasses(&handle, Bypass::NoCaller), 1);
}

#[test]
fn a_header_of_the_services_own_splits_answers_of_all_callers() {
    let name = HeaderName::from_static("x-tenant");
    let (cache, mut provider, _) = cached(shared().key_header(name));
    for tenant in ["a", "b", ""] {
        let prompt = || Prompt { tenant, ..prompt() };
        sent(&cache, &mut provider, prompt(), tenant);
        assert_eq!(hit(&cache, prompt()).as_deref(), Some(tenant));
    }
}

#[test]
fn keys_depend_on_namespace_and_secret() {
    let key = |builder: CacheBuilder| {
        let layer = builder.build().unwrap();
        *all_of_it(&layer).key(&prompt()).unwrap().digest()
    };
    let keys = [
        key(shared()),
        key(shared().namespace("other")),
        key(shared().secret([7; 32])),
        key(shared().secret([8; 32])),
    ];
    for (index, one) in keys.iter().enumerate() {
        assert!(!keys[..index].contains(one), "{index}");
    }
    assert_eq!(key(shared()), keys[0]);
}

#[test]
fn requests_that_are_not_to_be_cached_are_passed_on() {
    let no_call = Prompt {
        call: None,
        ..prompt()
    };
    let other = call_of(Provider::OPENAI, Operation::new("rerank"), "m");
    for (builder, prompt, reason) in [
        (shared(), no_call, Bypass::Operation),
        (shared(), other, Bypass::Operation),
        (shared().completions(None), prompt(), Bypass::Operation),
        (
            shared().completions(Policy::completions().deterministic_only()),
            prompt(),
            Bypass::NotDeterministic,
        ),
    ] {
        let (cache, mut provider, handle) = cached(builder);
        for _ in 0..2 {
            sent(&cache, &mut provider, prompt.clone(), "Because.");
        }
        assert_eq!(bypasses(&handle, reason), 2);
        let stats = handle.stats();
        assert_eq!((stats.misses, stats.stored), (0, 0));
    }
}

// === Content ===

/// The digest of a request with this content.
fn digest(content: KeyContent) -> Result<[u8; 32], Bypass> {
    let layer = shared().build().unwrap();
    let content = move |_: &Prompt| content.clone();
    let layer: ClonedLayer<_, Completion> = layer.cloned(content);
    layer.key(&prompt()).map(|key| *key.digest())
}

#[test]
fn content_is_equal_if_its_json_is() {
    // A hash map's order differs from one to the next.
    let map = |_| {
        (0..100)
            .map(|number| (format!("{number}"), number))
            .collect::<HashMap<_, _>>()
    };
    let maps = [0, 1].map(map).map(|map| digest(KeyContent::json(&map)));
    assert_eq!(maps[0], maps[1]);

    let contents = [
        KeyContent::json("a"),
        KeyContent::json("b"),
        KeyContent::json(&["a"]),
        KeyContent::json(&("a", 1)),
        KeyContent::json(&("a", None::<u64>)),
        KeyContent::json(&u64::MAX),
        KeyContent::json(&(u64::MAX - 1)),
        // The bytes that are hashed of the first.
        KeyContent::bytes("s\u{1}a"),
        KeyContent::bytes("a"),
        KeyContent::bytes(""),
    ];
    let digests: Vec<_> = contents.map(|content| digest(content).unwrap()).into();
    for (index, one) in digests.iter().enumerate() {
        assert!(!digests[..index].contains(one), "{index}");
    }
}

#[test]
fn content_that_is_no_json_bypasses() {
    let no_names = HashMap::from([(("a", 1), 2)]);
    assert_eq!(digest(KeyContent::json(&no_names)), Err(Bypass::NotJson));
    assert_eq!(digest(KeyContent::uncached()), Err(Bypass::NoStore));

    #[derive(Serialize)]
    struct Twice {
        a: u64,
        #[serde(rename = "a")]
        b: u64,
    }
    assert_eq!(
        digest(KeyContent::json(&Twice { a: 1, b: 2 })),
        Err(Bypass::DuplicateMember)
    );
}

// === What is stored ===

#[test]
fn a_response_that_is_not_to_be_stored_is_given_to_all_that_wait() {
    let layer = shared().build().unwrap();
    let no_errors = all_of_it(&layer).store_if(|text: &Completion| !text.contains("error"));
    let (cache, mut provider) = model(&no_errors);
    let mut leader = start(&cache, prompt());
    let mut follower = start(&cache, prompt());
    answer(&mut provider, "error");
    assert_eq!(answered(&mut leader), Answer::new("error".into(), None));
    assert_eq!(
        answered(&mut follower),
        Answer::new("error".into(), Some(Served::Follower))
    );
    sent(&cache, &mut provider, prompt(), "Because.");
    assert!(hit(&cache, prompt()).is_some());
    let stats = layer.handle().stats();
    assert_eq!((stats.stored, stats.not_stored), (1, 1));
}

#[test]
fn responses_count_for_what_they_weigh() {
    let policy = Policy::completions().max_answer_bytes(1_000);
    // Each counts 512 bytes for what holds it.
    let memory = Memory::fifo().max_bytes(2 * (512 + 1_000));
    let layer = shared().completions(policy).memory(memory).build().unwrap();
    let (cache, mut provider) = model(&all_of_it(&layer).weigh(|text: &Completion| text.len()));
    let ask = |text| Prompt { text, ..prompt() };
    let handle = layer.handle();
    let large = "x".repeat(1_000);
    sent(
        &cache,
        &mut provider,
        ask("too large"),
        &format!("{large}x"),
    );
    assert_eq!(handle.stats().not_stored, 1);
    for text in ["1", "2", "3"] {
        sent(&cache, &mut provider, ask(text), &large);
    }
    let stats = handle.stats();
    assert_eq!((stats.entries, stats.bytes, stats.evicted), (2, 3_024, 1));
    assert!(hit(&cache, ask("3")).is_some());
    assert!(hit(&cache, ask("1")).is_none());
}

#[test]
fn without_a_memory_calls_in_flight_are_shared_all_the_same() {
    let (cache, mut provider, handle) = cached(shared().memory(None));
    let mut leader = start(&cache, prompt());
    let mut follower = start(&cache, prompt());
    answer(&mut provider, "Because.");
    answered(&mut leader);
    answered(&mut follower);
    nothing_arrived(&mut provider);
    assert!(hit(&cache, prompt()).is_none());
    let stats = handle.stats();
    assert_eq!((stats.collapsed, stats.stored, stats.not_stored), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn the_handle_removes_responses() {
    // They are of no use when their time is over.
    let policy = Policy::completions().stale_if_error(Duration::from_secs(60 * 60));
    let layer = shared().completions(policy).build().unwrap();
    let layers = all_of_it(&layer);
    let (cache, mut provider) = model(&layers);
    let handle = layer.handle();
    let mut store = || sent(&cache, &mut provider, prompt(), "Because.");

    store();
    let key = layers.key(&prompt()).unwrap();
    assert_eq!(handle.invalidate(&key).await.unwrap().memory, 1);
    store();
    assert_eq!(
        handle
            .invalidate_matching("ai:completion:gpt*")
            .await
            .unwrap()
            .memory,
        1
    );
    store();
    assert_eq!(handle.clear().await.unwrap().memory, 1);
    store();
    advance(Duration::from_secs(30 * 60)).await;
    assert_eq!(handle.purge_expired(), 1);
    assert_eq!(handle.stats().entries, 0);
}

// === In flight ===

#[test]
fn a_thousand_identical_calls_are_one_and_poll_it_as_often_as_it_wakes() {
    /// Answers with the third poll.
    #[derive(Default)]
    struct State {
        calls: AtomicUsize,
        polls: AtomicUsize,
        waker: Mutex<Option<Waker>>,
    }

    let state = Arc::new(State::default());
    let inner = service_fn({
        let state = Arc::clone(&state);
        move |_: Prompt| {
            let state = Arc::clone(&state);
            state.calls.fetch_add(1, Ordering::Relaxed);
            poll_fn(move |cx| {
                *state.waker.lock().unwrap() = Some(cx.waker().clone());
                match state.polls.fetch_add(1, Ordering::Relaxed) {
                    0 | 1 => Poll::Pending,
                    _ => Poll::Ready(Ok::<_, BoxError>(Completion::from("Because."))),
                }
            })
        }
    });
    let layer = shared().build().unwrap();
    let cache = all_of_it(&layer).layer(inner);
    let mut calls: Vec<_> = (0..1_000).map(|_| mock::start(&cache, prompt())).collect();
    for call in &mut calls {
        assert!(call.poll().is_pending());
    }
    for polls in 1..=2 {
        assert_eq!(state.polls.load(Ordering::Relaxed), polls);
        let waker = state.waker.lock().unwrap().take().unwrap();
        waker.wake();
        assert!(calls.iter().all(task::Spawn::is_woken));
        if polls == 1 {
            assert!(calls.iter_mut().all(|call| call.poll().is_pending()));
        }
    }
    let answers = calls.iter_mut().map(|call| assert_ready_ok!(call.poll()));
    let leaders = answers.filter(|answer| answer.served().is_none()).count();
    assert_eq!(leaders, 1);
    assert_eq!(state.polls.load(Ordering::Relaxed), 3);
    assert_eq!(state.calls.load(Ordering::Relaxed), 1);
    let stats = layer.handle().stats();
    assert_eq!(
        (stats.misses, stats.collapsed, stats.in_flight),
        (1, 999, 0)
    );
}

#[test]
fn a_follower_outlives_a_leader_that_leaves_at_any_stage() {
    // It takes the call over, and pays for it.
    let paid = Answer::new(Completion::from("Because."), None);
    // Before the inner service is ready.
    let (mut cache, mut provider, handle) = cached(shared());
    provider.allow(0);
    let leader = start(&cache, prompt());
    let mut follower = start(&cache, prompt());
    drop(leader);
    provider.allow(1);
    assert!(follower.poll().is_pending());
    answer(&mut provider, "Because.");
    assert_eq!(answered(&mut follower), paid.clone());
    assert_eq!(handle.stats().stored, 1);

    // While it works.
    (cache, provider, _) = cached(shared());
    let leader = start(&cache, prompt());
    let mut follower = start(&cache, prompt());
    let (_, send) = arrived(&mut provider);
    drop(leader);
    send.send_response("Because.".into());
    assert_eq!(answered(&mut follower), paid.clone());
    nothing_arrived(&mut provider);

    // When the response is there, and has not been read.
    (cache, provider, _) = cached(shared());
    let leader = start(&cache, prompt());
    let mut follower = start(&cache, prompt());
    answer(&mut provider, "Because.");
    drop(leader);
    assert_eq!(answered(&mut follower), paid.clone());
    assert!(hit(&cache, prompt()).is_some());
    nothing_arrived(&mut provider);
}

#[test]
fn a_call_ends_with_its_last_caller_and_the_next_one_starts_afresh() {
    let (cache, mut provider, handle) = cached(shared());
    let callers = [start(&cache, prompt()), start(&cache, prompt())];
    let (_, send) = arrived(&mut provider);
    drop(callers);
    assert_eq!(handle.stats().in_flight, 0);
    // No caller is left to take it.
    send.send_response("Because.".into());
    assert!(hit(&cache, prompt()).is_none());
    assert_eq!(handle.stats().stored, 0);

    let dropped = Arc::new(());
    let inner = service_fn({
        let held = Arc::clone(&dropped);
        move |_: Prompt| {
            let held = Arc::clone(&held);
            async move {
                pending::<()>().await;
                drop(held);
                Ok::<_, BoxError>(Completion::from(""))
            }
        }
    });
    let cache = all_of_it(&shared().build().unwrap()).layer(inner);
    let mut callers = [mock::start(&cache, prompt()), mock::start(&cache, prompt())];
    for caller in &mut callers {
        assert!(caller.poll().is_pending());
    }
    let while_called = Arc::strong_count(&dropped);
    drop(callers);
    assert_eq!(Arc::strong_count(&dropped), while_called - 1);
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_call_is_finished_if_the_policy_says_so() {
    let policy = Policy::completions().finish_abandoned();
    let (cache, mut provider, handle) = cached(shared().completions(policy));
    let caller = start(&cache, prompt());
    drop(caller);
    answer(&mut provider, "Because.");
    // The task that has taken the call over runs meanwhile.
    tokio::task::yield_now().await;
    assert_eq!(hit(&cache, prompt()).as_deref(), Some("Because."));
    assert_eq!(handle.stats().in_flight, 0);
}

#[derive(Debug, PartialEq, Eq)]
struct Overloaded;

impl std::fmt::Display for Overloaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("overloaded")
    }
}

impl Error for Overloaded {}

#[test]
fn an_error_is_that_of_all_that_wait_and_is_not_stored() {
    let (cache, mut provider, handle) = cached(shared());
    let mut calls = [start(&cache, prompt()), start(&cache, prompt())];
    arrived(&mut provider).1.send_error(Overloaded);
    for call in &mut calls {
        let error = assert_ready!(call.poll()).unwrap_err();
        assert_eq!(error.to_string(), "overloaded");
        assert!(error.source().unwrap().is::<Overloaded>());
    }
    nothing_arrived(&mut provider);
    sent(&cache, &mut provider, prompt(), "Because.");
    let stats = handle.stats();
    assert_eq!((stats.misses, stats.collapsed, stats.stored), (2, 1, 1));
}

#[test]
fn a_panic_of_the_users_code_fails_one_call() {
    let layer = shared().build().unwrap();
    let panics = all_of_it(&layer).store_if(|text: &Completion| {
        assert_ne!(&**text, "bad");
        true
    });
    let (cache, mut provider) = model(&panics);
    let mut leader = start(&cache, prompt());
    let mut follower = start(&cache, prompt());
    answer(&mut provider, "bad");
    catch_unwind(AssertUnwindSafe(|| leader.poll())).unwrap_err();
    let error = assert_ready!(follower.poll()).unwrap_err();
    assert!(error.source().unwrap().is::<FlightFailed>());
    sent(&cache, &mut provider, prompt(), "Because.");
    assert_eq!(layer.handle().stats().in_flight, 0);
}

// === tower's contract ===

#[test]
fn a_hit_does_not_wait_for_a_saturated_service() {
    let layer = shared().build().unwrap();
    let (inner, mut provider) = tower_test::mock::pair::<Prompt, Completion>();
    let cache = all_of_it(&layer).layer(ConcurrencyLimitLayer::new(1).layer(inner));
    let other = || Prompt {
        text: "Other?",
        ..prompt()
    };
    let mut first = mock::start(&cache, prompt());
    assert!(first.poll().is_pending());
    answer(&mut provider, "Because.");
    assert_ready_ok!(first.poll());

    let mut holder = mock::start(&cache, other());
    assert!(holder.poll().is_pending());
    let mut waits = mock::start(&cache, by("ann"));
    assert_eq!(assert_ready_ok!(waits.poll()).served(), Some(Served::Hit));
    let mut waits = mock::start(
        &cache,
        Prompt {
            text: "Third?",
            ..prompt()
        },
    );
    assert!(waits.poll().is_pending());
    answer(&mut provider, "first");
    nothing_arrived(&mut provider);
    assert_ready_ok!(holder.poll());
    assert!(waits.is_woken());
    assert!(waits.poll().is_pending());
    answer(&mut provider, "second");
    assert_eq!(&**assert_ready_ok!(waits.poll()), "second");
}

#[test]
fn a_service_that_fails_to_get_ready_fails_the_call() {
    let (cache, mut provider, _) = cached(shared());
    provider.send_error(Overloaded);
    let error = assert_ready!(mock::start(&cache, prompt()).poll()).unwrap_err();
    assert_eq!(error.to_string(), "overloaded");
}
