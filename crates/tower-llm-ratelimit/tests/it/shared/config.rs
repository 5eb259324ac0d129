//! Invalid shared limits are refused when they are built; the error names the setting and its value.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers below are part of the tests"
)]

use std::time::Duration;

use crate::shared::support::{MARGIN, Setup, timed};
use tokio::runtime::Handle;
use tower_llm_core::ConfigError;
use tower_llm_ratelimit::{Limit, RateLimitLayer, SharedLimits};
use tower_llm_redis::Redis;

/// A client of a server that does not exist.
fn redis() -> Redis {
    Redis::builder("redis://127.0.0.1:1").build().unwrap()
}

fn refused(shared: SharedLimits) -> ConfigError {
    let builder = RateLimitLayer::for_callers().limit(Limit::requests(10).per_minute());
    builder.shared(shared).build().unwrap_err()
}

#[tokio::test]
async fn a_missing_server_is_reported_when_connecting_and_in_time() {
    let within = Duration::from_millis(300);
    let connect = Redis::builder("redis://127.0.0.1:1").connect_timeout(within);
    let (connected, took) = timed(connect.connect()).await;
    let error = connected.unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    assert!(took < within + MARGIN, "{took:?}");
}

#[tokio::test]
async fn a_silent_server_is_reported_like_a_missing_one() {
    let setup = Setup::server(crate::shared::support::Mode::Script, "frozen").await;
    setup.freeze();
    let within = Duration::from_millis(300);
    let connect = Redis::builder(setup.url()).connect_timeout(within);
    let (connected, took) = timed(connect.connect()).await;
    assert!(connected.unwrap_err().is_unreachable());
    assert!(took < within + MARGIN, "{took:?}");
}

#[tokio::test]
async fn a_name_without_a_character_or_with_a_brace_is_refused() {
    for name in ["", "{", "}", "a{b}c", "{}"] {
        let error = refused(SharedLimits::new(redis(), name, 2));
        assert_eq!(error.field(), "name");
        assert_eq!(error.value(), format!("{name:?}"));
    }
}

#[tokio::test]
async fn no_replicas_are_refused() {
    let error = refused(SharedLimits::new(redis(), "a name", 0));
    assert_eq!((error.field(), error.value()), ("replicas", "0"));
}

#[tokio::test]
async fn a_hold_below_a_second_or_over_a_day_is_invalid() {
    let day = Duration::from_secs(86_400);
    let held = |time| SharedLimits::new(redis(), "a name", 2).hold_for(time);
    let nearly = Duration::from_nanos(999_999_999);
    for time in [
        Duration::ZERO,
        nearly,
        day + Duration::from_nanos(1),
        Duration::MAX,
    ] {
        let error = refused(held(time));
        assert_eq!(error.field(), "hold_for");
        assert_eq!(error.value(), format!("{time:?}"));
    }
    for time in [Duration::from_secs(1), day] {
        let builder = RateLimitLayer::for_callers().limit(Limit::requests(10).per_minute());
        builder.shared(held(time)).build().unwrap();
    }
}

#[tokio::test]
async fn a_lease_of_zero_or_over_a_day_is_invalid() {
    for time in [Duration::ZERO, Duration::from_secs(86_401), Duration::MAX] {
        let error = refused(SharedLimits::new(redis(), "a name", 2).lease_for(time));
        assert_eq!(error.field(), "lease_for");
        assert_eq!(error.value(), format!("{time:?}"));
    }
}

#[tokio::test]
async fn the_setter_starts_nothing_and_build_starts_one_task() {
    let redis = redis();
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let shared = SharedLimits::new(redis, "a name", 2);
    let builder = RateLimitLayer::for_callers().shared(shared);
    let clone = builder.clone();
    assert_eq!(tasks(), before);

    // Without a limit.
    clone.build().unwrap_err();
    assert_eq!(tasks(), before);

    let limit = Limit::requests(10).per_minute();
    let layer = builder.limit(limit).build().unwrap();
    assert_eq!(tasks(), before + 1);

    drop(layer);
    while tasks() > before {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_invalid_limit_leaves_no_task() {
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let (redis, before) = (redis(), tasks());
    let builder = || {
        let shared = SharedLimits::new(redis.clone(), "a name", 2);
        RateLimitLayer::for_callers().shared(shared)
    };
    let impossible = builder().limit(Limit::requests(0).per_minute());
    impossible.build().unwrap_err();
    let no_keys = builder().limit(Limit::requests(1).per_minute()).max_keys(0);
    no_keys.build().unwrap_err();
    while tasks() > before {
        tokio::task::yield_now().await;
    }
}

#[test]
fn outside_a_runtime_building_fails_without_a_panic() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let redis = runtime.block_on(async { redis() });
    let error = refused(SharedLimits::new(redis, "a name", 2));
    assert_eq!(error.field(), "shared");
    let error = Redis::builder("redis://127.0.0.1:1").build().unwrap_err();
    assert_eq!(error.field(), "runtime");
}

#[tokio::test]
async fn a_layer_starts_without_its_server() {
    let shared = SharedLimits::new(redis(), "a name", 2);
    let limit = RateLimitLayer::for_callers().limit(Limit::requests(10).per_minute());
    let layer = crate::shared::support::unary(limit, shared);
    // Its share is five.
    assert_eq!(crate::shared::support::requests_left(&layer).await, 5);
}
