//! Clients can invent keys: their number is bounded, and no key in use is evicted.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use http::{HeaderName, HeaderValue, Request};
use proptest::prelude::*;
use tower_llm_core::{
    Call, Caller, Described, Evictable, Key, KeyBy, Operation, Provider, Registry,
};

/// State with a switch for whether it is evictable.
#[derive(Debug, Default)]
struct State {
    key: Option<Key>,
    is_needed: AtomicBool,
}

impl State {
    fn need(&self) {
        self.is_needed.store(true, Ordering::Relaxed);
    }
}

impl Evictable for State {
    fn is_evictable(&self) -> bool {
        !self.is_needed.load(Ordering::Relaxed)
    }
}

/// A request with its own key.
struct Asks(String);

impl Described for Asks {
    fn call(&self) -> Option<Cow<'_, Call>> {
        None
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        (name == "x-key").then_some(self.0.as_bytes())
    }
}

fn asks(key: impl ToString) -> Asks {
    Asks(key.to_string())
}

fn by_header() -> KeyBy {
    KeyBy::header(HeaderName::from_static("x-key"))
}

fn registry(max_keys: usize) -> Registry<State> {
    let make = |key: Option<&Key>| State {
        key: key.cloned(),
        ..State::default()
    };
    Registry::new(by_header(), make).max_keys(max_keys).unwrap()
}

fn is_overflow(state: &State) -> bool {
    state.key.is_none()
}

// === the bound ===

#[test]
fn a_million_invented_keys_stay_within_the_bound() {
    let registry = registry(1_000);
    for key in 0..1_000_000 {
        let state = registry.get(&asks(key));
        assert!(
            !is_overflow(&state),
            "no room for key {key}, though none is in use"
        );
        if key % 10_000 == 0 {
            assert!(registry.len() <= 1_008);
        }
    }
    // 1,000 is rounded up to a multiple of the 16 shards, and all of those are full.
    assert_eq!(registry.len(), 1_008);
}

#[test]
fn the_bound_is_ten_thousand_unless_set() {
    let registry = Registry::new(by_header(), |_| State::default());
    for key in 0..50_000 {
        registry.get(&asks(key));
    }
    assert_eq!(registry.len(), 10_000);
}

#[test]
fn a_maximum_of_zero_is_rejected() {
    let error = Registry::new(KeyBy::shared(), |_| State::default())
        .max_keys(0)
        .unwrap_err();
    assert_eq!((error.field(), error.value()), ("max_keys", "0"));
}

#[test]
fn a_key_that_is_held_is_never_evicted() {
    let registry = registry(160);
    let held: Vec<_> = (0..16).map(|key| (key, registry.get(&asks(key)))).collect();
    assert!(held.iter().all(|(_, state)| !is_overflow(state)));
    for key in 1_000..20_000 {
        registry.get(&asks(key));
    }
    for (key, state) in &held {
        assert!(Arc::ptr_eq(state, &registry.get(&asks(key))), "key {key}");
    }
}

#[test]
fn a_key_whose_state_is_not_evictable_is_never_evicted() {
    let registry = registry(160);
    for key in 0..16 {
        registry.get(&asks(key)).need();
    }
    for key in 1_000..20_000 {
        registry.get(&asks(key));
    }
    for key in 0..16 {
        assert!(!registry.get(&asks(key)).is_evictable(), "key {key}");
    }
    // The same keys are evicted once they are not needed any more.
    for key in 0..16 {
        registry
            .get(&asks(key))
            .is_needed
            .store(false, Ordering::Relaxed);
    }
    for key in 20_000..40_000 {
        registry.get(&asks(key));
    }
    for key in 0..16 {
        assert!(
            registry.peek(&Key::new(key.to_string())).is_none(),
            "key {key}"
        );
    }
}

/// New keys counted as used: the first one that met a full shard could evict any other.
#[test]
fn a_used_key_outlives_unused_ones() {
    for _ in 0..50 {
        check_favourite(&registry(1_600));
    }
}

fn check_favourite(registry: &Registry<State>) {
    let favourite = Arc::downgrade(&registry.get(&asks("favourite")));
    for key in 0..5_000 {
        registry.get(&asks(key));
        if key % 20 == 0 {
            let same = favourite.upgrade().expect("the favourite was evicted");
            assert!(Arc::ptr_eq(&same, &registry.get(&asks("favourite"))));
        }
    }
}

#[test]
fn keys_that_do_not_fit_share_one_state() {
    let registry = registry(16);
    let held: Vec<_> = (0..1_000).map(|key| registry.get(&asks(key))).collect();
    let (without, with): (Vec<_>, Vec<_>) = held.iter().partition(|state| is_overflow(state));
    // Room for one key in each shard.
    assert_eq!((with.len(), registry.len()), (16, 16));
    assert!(without.iter().all(|state| Arc::ptr_eq(state, without[0])));
    drop(held);
    for key in 2_000..3_000 {
        assert!(
            !is_overflow(&registry.get(&asks(key))),
            "no room for key {key} after others were evicted"
        );
    }
    assert_eq!(registry.len(), 16);
}

proptest! {
    /// Against the simplest model: a held key keeps its state, and the maximum holds.
    #[test]
    fn the_bound_holds_and_no_key_in_use_is_lost_for_any_sequence_of_lookups_and_drops(
        steps in prop::collection::vec((0_u32..60, any::<bool>()), 0..300),
    ) {
        let registry = registry(32);
        let mut held: HashMap<u32, Arc<tower_llm_core::Keyed<State>>> = HashMap::new();
        for (key, holds) in steps {
            let state = registry.get(&asks(key));
            if let Some(before) = held.get(&key) {
                prop_assert!(is_overflow(before) || Arc::ptr_eq(before, &state));
            }
            let own = Key::new(key.to_string());
            prop_assert!(is_overflow(&state) || state.key == Some(own), "the state of another key");
            if holds {
                held.insert(key, state);
            } else {
                held.remove(&key);
            }
            prop_assert!(registry.len() <= 32);
        }
    }
}

// === sharing ===

#[test]
fn threads_that_look_up_a_key_at_once_get_the_same_state() {
    for _ in 0..50 {
        let registry = registry(1_000);
        let barrier = Barrier::new(4);
        let states: Vec<Vec<_>> = thread::scope(|scope| {
            let ask = || {
                barrier.wait();
                (0..20).map(|key| registry.get(&asks(key))).collect()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        for other in &states[1..] {
            for (one, other) in states[0].iter().zip(other) {
                assert!(Arc::ptr_eq(one, other));
            }
        }
        assert_eq!(registry.len(), 20);
    }
}

#[test]
fn threads_that_invent_keys_stay_within_the_bound_and_keep_what_they_hold() {
    let registry = registry(320);
    thread::scope(|scope| {
        for thread in 0..4 {
            let registry = &registry;
            scope.spawn(move || {
                let own = registry.get(&asks(format!("own {thread}")));
                for key in 0..20_000 {
                    registry.get(&asks(format!("{thread} {key}")));
                    assert!(Arc::ptr_eq(
                        &own,
                        &registry.get(&asks(format!("own {thread}")))
                    ));
                }
            });
        }
    });
    assert!(registry.len() <= 320);
}

#[test]
fn state_is_created_once_for_a_key_that_stays() {
    let made = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&made);
    let registry = Registry::new(by_header(), move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
        State::default()
    });
    // The state that is shared when the registry is full.
    assert_eq!(made.load(Ordering::Relaxed), 1);
    for _ in 0..100 {
        registry.get(&asks("a"));
        registry.get(&asks("b"));
    }
    assert_eq!(made.load(Ordering::Relaxed), 3);
}

#[test]
fn a_state_can_be_looked_up_by_its_key() {
    let registry = registry(100);
    let state = registry.by_key(&Key::new("a"));
    assert!(Arc::ptr_eq(&state, &registry.get(&asks("a"))));
    assert_eq!(registry.len(), 1);
}

#[test]
fn peeking_does_not_create_a_key() {
    let registry = registry(100);
    assert!(registry.is_empty());
    assert!(registry.peek(&Key::new("a")).is_none());
    assert!(registry.is_empty());
    let state = registry.get(&asks("a"));
    assert!(Arc::ptr_eq(&state, &registry.peek(&Key::new("a")).unwrap()));
    assert_eq!(registry.len(), 1);
}

#[test]
fn every_key_is_shown_once_and_the_shared_state_last() {
    let registry = registry(1_000);
    for key in 0..100 {
        registry.get(&asks(key));
    }
    let mut seen = Vec::new();
    registry.for_each(|key, state| {
        assert_eq!(key, state.key.as_ref());
        seen.push(key.cloned());
    });
    assert_eq!(seen.pop(), Some(None));
    let keys: HashSet<_> = seen
        .into_iter()
        .map(|key| key.unwrap().to_string())
        .collect();
    assert_eq!(keys, (0..100).map(|key| key.to_string()).collect());
}

// === panics in code of the user's ===

#[test]
fn a_panic_in_a_key_closure_affects_only_its_own_call() {
    let by = KeyBy::custom(|request| {
        let key = request.header("x-key").unwrap_or_default();
        assert!(key != b"bad", "the user's closure panics");
        Key::new(String::from_utf8_lossy(key))
    });
    let registry = Registry::new(by, |_| State::default());
    let before = registry.get(&asks("good"));
    for _ in 0..100 {
        let panicked = catch_unwind(AssertUnwindSafe(|| registry.get(&asks("bad"))));
        assert!(panicked.is_err());
    }
    assert!(Arc::ptr_eq(&before, &registry.get(&asks("good"))));
    assert_eq!(registry.len(), 1);
}

#[test]
fn a_panic_where_state_is_created_or_evicted_leaves_the_registry_intact() {
    struct Touchy;
    impl Evictable for Touchy {
        fn is_evictable(&self) -> bool {
            panic!("the state panics")
        }
    }
    let make = |key: Option<&Key>| {
        assert!(
            key.is_none_or(|key| key.to_string() != "bad"),
            "making panics"
        );
        Touchy
    };
    let registry = Registry::new(by_header(), make).max_keys(16).unwrap();
    let ask = |key: String| catch_unwind(AssertUnwindSafe(|| registry.get(&asks(key)))).ok();
    assert!(ask("bad".to_owned()).is_none());
    let panics = (0..1_000)
        .filter(|key| ask(key.to_string()).is_none())
        .count();
    assert!(panics > 0, "no key was ever evicted");
    assert_eq!(registry.len(), 16);
    let mut keys = 0;
    registry.for_each(|_, _| keys += 1);
    assert_eq!(keys, 17);
}

// === keys ===

#[test]
fn a_key_is_what_its_policy_chooses() {
    let call = Call::builder(Provider::OPENAI, Operation::CHAT)
        .model("gpt-5")
        .account("team-a")
        .caller(Caller::named("acme"))
        .build();
    let mut request = Request::new(());
    request.extensions_mut().insert(call);
    request
        .headers_mut()
        .insert("x-key", HeaderValue::from_static("eu"));
    let mut odd = Request::new(());
    odd.headers_mut()
        .insert("x-key", HeaderValue::from_bytes(b"\xff").unwrap());

    for (by, key) in [
        (KeyBy::shared(), Key::new("")),
        (KeyBy::provider(), Key::new("openai")),
        (KeyBy::model(), Key::new("gpt-5")),
        (KeyBy::provider_and_model(), Key::pair("openai", "gpt-5")),
        (KeyBy::account(), Key::new("team-a")),
        (KeyBy::caller(), Key::new("acme")),
        (by_header(), Key::new("eu")),
        (
            KeyBy::route(KeyBy::caller()),
            Key::triple("openai", "acme", "gpt-5"),
        ),
        (
            KeyBy::route(by_header()),
            Key::triple("openai", "eu", "gpt-5"),
        ),
        (KeyBy::custom(|_| Key::pair("a", "b")), Key::pair("a", "b")),
    ] {
        let name = format!("{by:?}");
        let is_custom = name == "custom";
        let make = |key: Option<&Key>| State {
            key: key.cloned(),
            ..State::default()
        };
        let registry = Registry::new(by, make);
        assert_eq!(registry.get(&request).key, Some(key), "{name}");
        // Requests without the part that the policy needs share one key.
        let without = registry.get(&Request::new(()));
        assert!(Arc::ptr_eq(&without, &registry.get(&odd)), "{name}");
        if !is_custom {
            assert_eq!(without.key, Some(Key::new("")), "{name}");
        }
    }
}

#[test]
fn keys_of_several_parts_are_not_mistaken_for_others() {
    let keys = [
        Key::pair("a", "b"),
        Key::pair("ab", ""),
        Key::pair("", "ab"),
        Key::pair("a/b", ""),
        Key::triple("a", "", "b"),
        Key::triple("", "a", "b"),
    ];
    let registry = Registry::new(
        KeyBy::custom({
            let keys = keys.clone();
            move |request| keys[usize::from(request.header("x-key").unwrap()[0] - b'0')].clone()
        }),
        |_| State::default(),
    );
    let states: Vec<_> = (0..keys.len())
        .map(|index| registry.get(&asks(index)))
        .collect();
    assert_eq!(registry.len(), keys.len());
    for (index, state) in states.iter().enumerate() {
        assert!(Arc::ptr_eq(state, &registry.peek(&keys[index]).unwrap()));
    }
    assert_eq!(keys[0].to_string(), "a/b");
    assert_eq!(keys[4].to_string(), "a//b");
    assert_eq!(keys[4].parts(), ["a", "", "b"]);
    assert_eq!(Key::new("a"), Key::pair("a", ""));
}

#[test]
fn a_key_longer_than_the_maximum_counts_as_missing() {
    let registry = registry(100);
    let longest = registry.get(&asks("x".repeat(256)));
    assert_eq!(longest.key, Some(Key::new("x".repeat(256))));
    let longer = registry.get(&asks("x".repeat(257)));
    assert_eq!(longer.key, Some(Key::new("")));
    assert!(Arc::ptr_eq(
        &longer,
        &registry.get(&asks("y".repeat(100_000)))
    ));
}
