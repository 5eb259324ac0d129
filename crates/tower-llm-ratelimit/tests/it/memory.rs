//! However many keys callers invent, the number of stored keys is bounded, and no caller gets a fresh budget.
//!
//! `benches/tests/ratelimit_memory.rs` measures the bytes per key, with an allocator that counts.

use crate::support::{Ask, MINUTE_FORGOTTEN, SECOND, asked, passes, ready, refused, stats, unary};
use tokio::time::advance;
use tower_layer::Layer;
use tower_llm_core::Key;
use tower_llm_ratelimit::Limit;
use tower_llm_testkit::mock::start;

const MAX_KEYS: usize = 10_000;
const FEW_KEYS: usize = 800;

/// A million, except in unoptimised builds, where that takes minutes: each new key searches for one to evict.
const FLOOD: u64 = if cfg!(debug_assertions) {
    13_000
} else {
    1_000_000
};

fn both() -> [Limit; 2] {
    let limit = || Limit::tokens(10).per_minute();
    [limit(), limit().bucket(10)]
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_invented_keys_is_bounded_and_evicts_no_key_over_its_limit() {
    for limit in both() {
        let layer = unary().limit(limit).max_keys(MAX_KEYS).build().unwrap();
        let (handle, service) = (layer.handle(), layer.layer(ready()));
        // Ten callers are over their limits, spread over the parts of the registry.
        let over: Vec<_> = (0..10).map(|id| format!("over-{id}")).collect();
        for caller in &over {
            assert!(passes(&service, Ask::of(caller, 10, 0)));
        }
        let mut passed = 0;
        for id in 0..FLOOD {
            let caller = format!("invented-{id}");
            passed += u64::from(passes(&service, Ask::of(&caller, 10, 0)));
            if id % 10_000 == 0 {
                assert!(stats(&handle).keys <= MAX_KEYS);
            }
        }
        let stats = stats(&handle);
        assert_eq!(stats.keys, MAX_KEYS);
        // Each stored key, and the one limit that all others share.
        assert_eq!(passed + 10, MAX_KEYS as u64 + 1);
        assert_eq!(
            (stats.admitted, stats.consumed),
            (passed + 10, 10 * (passed + 10))
        );
        assert_eq!(stats.refused, FLOOD - passed);
        for caller in &over {
            assert!(
                !passes(&service, Ask::of(caller, 1, 0)),
                "{caller} has a fresh budget"
            );
            assert_eq!(handle.stats_of(&Key::new(caller))[0].remaining, 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn idle_keys_are_evicted_for_new_ones() {
    for limit in both() {
        let layer = unary().limit(limit).max_keys(FEW_KEYS).build().unwrap();
        let (handle, service) = (layer.handle(), layer.layer(ready()));
        let flood = |name: &'static str| {
            let caller = move |id| format!("{name}-{id}");
            (0..2 * FEW_KEYS)
                .filter(|&id| passes(&service, Ask::of(&caller(id), 10, 0)))
                .count()
        };
        assert_eq!(flood("first"), FEW_KEYS + 1);
        advance(MINUTE_FORGOTTEN - SECOND * 6).await;
        assert_eq!(flood("early"), 0);
        advance(SECOND * 6).await;
        // All of them are idle, and so is the limit that the others shared.
        assert_eq!(flood("second"), FEW_KEYS + 1);
        assert_eq!(stats(&handle).keys, FEW_KEYS);
        // The counts of evicted keys are not lost.
        assert_eq!(stats(&handle).consumed, 20 * (FEW_KEYS as u64 + 1));
        assert_eq!(stats(&handle).admitted, 2 * (FEW_KEYS as u64 + 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_with_debts_is_kept_until_they_are_paid() {
    for limit in both() {
        let layer = crate::support::open()
            .limit(limit)
            .max_keys(16)
            .build()
            .unwrap();
        let (handle, (service, mut upstream)) = (layer.handle(), asked(&layer));
        crate::support::admitted(&service, &mut upstream, Ask::of("debtor", 1, 0)).used(15, 0);
        for id in 0..1_000 {
            drop(start(&service, Ask::of(&format!("other-{id}"), 1, 0)));
        }
        refused(&service, Ask::of("debtor", 1, 0));
        assert!(!handle.stats_of(&Key::new("debtor")).is_empty());
        assert!(stats(&handle).keys <= 16);
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_with_a_call_in_flight_is_not_evicted() {
    let layer = crate::support::open()
        .limit(Limit::tokens(10).per_minute())
        .max_keys(16);
    let layer = layer.build().unwrap();
    let (handle, (service, mut upstream)) = (layer.handle(), asked(&layer));
    let long = crate::support::admitted(&service, &mut upstream, Ask::of("long", 5, 5));
    advance(MINUTE_FORGOTTEN * 2).await;
    for id in 0..1_000 {
        drop(start(&service, Ask::of(&format!("other-{id}"), 1, 0)));
    }
    // The admission is long forgotten; usage beyond it is still charged to its key.
    long.used(10, 10);
    assert_eq!(handle.stats_of(&Key::new("long"))[0].remaining, 0);
}
