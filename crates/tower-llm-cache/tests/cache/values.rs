//! Plain values, through the handle.

use std::{
    future::{pending, ready},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tokio::time::{advance, sleep};
use tokio_test::{assert_pending, assert_ready, task};
use tower_llm_cache::{CacheHandle, CacheLayer, Scope};

use crate::support::shared;

const MINUTE: Duration = Duration::from_secs(60);

/// Loads after a second, and counts.
async fn load(loads: &AtomicU64) -> Result<u64, String> {
    let number = loads.fetch_add(1, Ordering::Relaxed);
    sleep(Duration::from_secs(1)).await;
    Ok(number)
}

fn counts(cache: &CacheHandle) -> (u64, u64, u64) {
    let stats = cache.stats();
    (stats.value_hits, stats.value_loads, stats.values)
}

#[tokio::test(start_paused = true)]
async fn callers_at_the_same_time_share_one_load_and_later_ones_its_value() {
    let cache = shared().handle();
    let loads = AtomicU64::new(0);
    let ask = || cache.value("dialog", "1", MINUTE, || load(&loads));
    let all = join_all((0..100).map(|_| ask())).await;
    assert!(all.iter().all(|value| *value == Ok(0)));
    assert_eq!(counts(&cache), (0, 1, 1));

    advance(MINUTE - Duration::from_millis(1)).await;
    assert_eq!(ask().await, Ok(0));
    advance(Duration::from_millis(1)).await;
    // Stale for all at once: one of them loads.
    let all = join_all((0..100).map(|_| ask())).await;
    assert!(all.iter().all(|value| *value == Ok(1)));
    assert_eq!(counts(&cache), (1, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn an_error_is_that_of_all_that_wait_and_is_not_stored() {
    let cache = shared().handle();
    let loads = AtomicU64::new(0);
    let ask = || {
        cache.value("dialog", "1", MINUTE, async || {
            let number = load(&loads).await?;
            if number == 0 {
                Err("down".to_owned())
            } else {
                Ok(number)
            }
        })
    };
    let all = join_all((0..100).map(|_| ask())).await;
    assert!(
        all.iter()
            .all(|value| *value == Err(Arc::new("down".to_owned())))
    );
    assert_eq!(counts(&cache), (0, 1, 0));
    assert_eq!(ask().await, Ok(1));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_is_followed_by_one_that_waits_with_its_own_loader() {
    let cache = shared().handle();
    let mut first = task::spawn(cache.value("dialog", "1", MINUTE, pending::<Result<u64, String>>));
    assert_pending!(first.poll());
    let mut waits = task::spawn(cache.value("dialog", "1", MINUTE, || ready(Ok::<u64, String>(7))));
    assert_pending!(waits.poll());
    drop(first);
    assert!(waits.is_woken());
    assert_eq!(assert_ready!(waits.poll()), Ok(7));
    assert_eq!(counts(&cache), (0, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn names_and_types_are_kept_apart() {
    let cache = shared().handle();
    for (namespace, id, value) in [("a", "1", 1), ("a", "2", 2), ("b", "1", 3), ("a1", "", 4)] {
        let loaded = cache
            .value(namespace, id, MINUTE, || ready(Ok::<u64, String>(value)))
            .await;
        assert_eq!(loaded, Ok(value));
    }
    let text = cache
        .value("a", "1", MINUTE, || ready(Ok::<_, String>("one")))
        .await;
    assert_eq!(text, Ok("one"));
    let number = cache
        .value("a", "1", MINUTE, || ready(Ok::<u64, String>(9)))
        .await;
    assert_eq!(number, Ok(1));
    assert_eq!(counts(&cache), (1, 5, 5));

    // Of all types.
    assert!(cache.remove_value("a", "1").await);
    assert!(!cache.remove_value("a", "1").await);
    assert_eq!(counts(&cache).2, 3);
}

#[tokio::test(start_paused = true)]
async fn their_number_is_bounded() {
    let layer = CacheLayer::builder(Scope::shared())
        .max_values(10)
        .build()
        .unwrap();
    let cache = layer.handle();
    for id in 0..1_000 {
        let value = cache
            .value("a", &id.to_string(), MINUTE, || ready(Ok::<_, String>(id)))
            .await;
        assert_eq!(value, Ok(id));
        assert!(cache.stats().values <= 10);
    }
    let error = CacheLayer::builder(Scope::shared())
        .max_values(0)
        .build()
        .unwrap_err();
    assert_eq!(error.field(), "max_values");
}

#[tokio::test(start_paused = true)]
async fn without_a_ttl_a_value_is_shared_in_flight_alone() {
    let cache = shared().handle();
    let loads = AtomicU64::new(0);
    let ask = || cache.value("dialog", "1", Duration::ZERO, || load(&loads));
    assert_eq!(join_all((0..3).map(|_| ask())).await, [Ok(0), Ok(0), Ok(0)]);
    assert_eq!(ask().await, Ok(1));
    let for_ever = || cache.value("dialog", "2", Duration::MAX, || load(&loads));
    assert_eq!(for_ever().await, Ok(2));
    assert_eq!(for_ever().await, Ok(2));
}
