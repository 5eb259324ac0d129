use bytes::Bytes;
use http::HeaderMap;
use tower_llm_core::{Call, Operation, Provider};

use super::*;
use crate::form::Form;

/// What an answer with a body of 100 bytes counts for.
const WEIGHT: u64 = 512 + 16 + 100;

fn digest(number: u8) -> [u8; 32] {
    let mut digest = [0; 32];
    digest[0] = number;
    digest
}

fn entry(number: u8) -> Entry {
    stored_at(number, Instant::now())
}

fn stored_at(number: u8, at: Instant) -> Entry {
    let call = Call::builder(Provider::OPENAI, Operation::CHAT).build();
    let body = [Bytes::from(vec![number; 100])];
    Entry(Arc::new(Stored::new(
        CacheKey::new(&call, digest(number)),
        Record::new(Form::Object, false, None, &HeaderMap::new(), &body).unwrap(),
        at,
        Duration::ZERO,
        &Policy::completions(),
    )))
}

fn held(store: &dyn Store) -> Vec<u8> {
    store.size();
    let mut held = Vec::new();
    for number in 0..=u8::MAX {
        // Not `get`, which is a use.
        let is_held = std::cell::Cell::new(false);
        store.remove_if(&|stored| {
            is_held.set(is_held.get() || *stored.key.digest() == digest(number));
            false
        });
        if is_held.get() {
            held.push(number);
        }
    }
    held
}

/// Room for four answers, of which the first is used before a fifth comes.
fn scripted(memory: Memory) -> Vec<u8> {
    let store = memory.max_bytes(4 * WEIGHT).build().unwrap();
    for number in 1..=4 {
        store.insert(entry(number));
        store.size();
    }
    for _ in 0..5 {
        assert!(store.get(&digest(1)).is_some());
        store.size();
    }
    store.insert(entry(5));
    held(&*store)
}

/// A weight of moka's has 32 bits.
#[test]
fn a_number_of_answers_holds_however_much_room_each_has() {
    for memory in [Memory::lru(), Memory::tiny_lfu(), Memory::fifo()] {
        for max_bytes in [10 << 32, 1 << 40, u64::MAX] {
            let store = memory.max_bytes(max_bytes).max_entries(10).build().unwrap();
            (0..30).for_each(|number| store.insert(entry(number)));
            let entries = held(&*store).len();
            assert_eq!(entries, 10, "{memory:?} of {max_bytes}");
        }
    }
}

#[test]
fn each_eviction_keeps_its_order() {
    assert_eq!(scripted(Memory::fifo()), [2, 3, 4, 5]);
    assert_eq!(scripted(Memory::lru()), [1, 3, 4, 5]);
    // What was never asked for displaces nothing.
    assert_eq!(scripted(Memory::tiny_lfu()), [1, 2, 3, 4]);
}

#[test]
fn what_is_asked_for_most_outlives_a_scan_in_an_lfu_and_not_in_a_fifo() {
    for (memory, is_kept) in [
        (Memory::tiny_lfu(), true),
        (Memory::lru(), false),
        (Memory::fifo(), false),
    ] {
        let store = memory.max_bytes(4 * WEIGHT).build().unwrap();
        for number in 1..=4 {
            store.insert(entry(number));
            store.size();
        }
        for _ in 0..8 {
            (1..=4).for_each(|number| assert!(store.get(&digest(number)).is_some()));
            store.size();
        }
        for number in 100..200 {
            store.get(&digest(number));
            store.insert(entry(number));
            store.size();
        }
        let hot = held(&*store)
            .into_iter()
            .filter(|number| *number <= 4)
            .count();
        assert_eq!(hot == 4, is_kept, "{memory:?}: {hot} of 4");
    }
}

#[test]
fn entries_are_limited_by_number_too() {
    for memory in [Memory::lru(), Memory::fifo()] {
        let store = memory.max_entries(3).build().unwrap();
        for number in 1..=9 {
            store.insert(entry(number));
            store.size();
        }
        assert_eq!(held(&*store), [7, 8, 9], "{memory:?}");
        assert_eq!(store.size().evicted, 6);
    }
}

#[test]
fn a_replaced_or_removed_entry_leaves_no_weight() {
    for memory in [Memory::lru(), Memory::fifo(), Memory::tiny_lfu()] {
        let store = memory.build().unwrap();
        for _ in 0..100 {
            store.insert(entry(1));
        }
        store.insert(entry(2));
        assert_eq!(store.size().bytes, 2 * WEIGHT, "{memory:?}");
        assert!(store.remove(&digest(1)));
        assert!(!store.remove(&digest(1)));
        assert_eq!(store.remove_if(&|_| true), 1);
        assert_eq!(store.size(), Size::default());
    }
}

#[test]
fn an_answer_larger_than_all_room_is_not_held() {
    for memory in [Memory::lru(), Memory::fifo(), Memory::tiny_lfu()] {
        let store = memory.max_bytes(WEIGHT - 1).build().unwrap();
        store.insert(entry(1));
        assert_eq!(held(&*store), [0; 0], "{memory:?}");
    }
}

#[test]
fn an_older_answer_does_not_replace_a_newer_one() {
    let now = Instant::now();
    let later = now + Duration::from_secs(1);
    for memory in [Memory::lru(), Memory::fifo(), Memory::tiny_lfu()] {
        let store = memory.max_bytes(4 * WEIGHT).build().unwrap();
        let held_at = || store.get(&digest(1)).map(|entry| entry.0.stored_at);
        store.insert_unless_newer(stored_at(1, now));
        assert_eq!(held_at(), Some(now), "{memory:?}: none was held");
        store.insert_unless_newer(stored_at(1, later));
        assert_eq!(held_at(), Some(later), "{memory:?}: an older one was held");
        store.insert_unless_newer(stored_at(1, now));
        assert_eq!(held_at(), Some(later), "{memory:?}: a newer one is held");
        store.insert(stored_at(1, now));
        assert_eq!(held_at(), Some(now), "{memory:?}: by the caller's word");
        assert_eq!((store.size().entries, store.size().bytes), (1, WEIGHT));
    }
    for memory in [Memory::lru(), Memory::fifo(), Memory::tiny_lfu()] {
        let store = memory.max_bytes(WEIGHT - 1).build().unwrap();
        store.insert_unless_newer(entry(1));
        assert_eq!(held(&*store), [0; 0], "{memory:?}");
    }
}
