//! Settings that make no sense are errors when the layer is built.

use std::time::Duration;

use tower_llm_core::ConfigError;
use tower_llm_fanout::{Backoff, Budget, Delay, FanoutLayer, Pace};

#[track_caller]
fn names<T>(built: Result<T, ConfigError>, field: &str, value: &str) {
    let error = built.map(drop).unwrap_err();
    assert_eq!(error.field(), field);
    assert!(error.to_string().contains(value), "{error}");
}

#[test]
fn bad_settings_name_the_field_and_the_value() {
    let day = Duration::from_secs(86_400);
    let retry = || FanoutLayer::retry(1);
    names(FanoutLayer::race(0).build(), "branches", "0");
    names(FanoutLayer::race(1_001).build(), "branches", "1001");
    names(FanoutLayer::quorum(3, 4, u32::clone).build(), "votes", "4");
    names(FanoutLayer::quorum(3, 0, u32::clone).build(), "votes", "0");
    names(FanoutLayer::several(2).min_ok(3).build(), "min_ok", "3");
    let ensemble = |candidates| FanoutLayer::ensemble(candidates, (), ());
    names(ensemble(0).build(), "max_providers", "0");
    names(ensemble(1).build(), "max_providers", "1");
    names(ensemble(2).min_ok(0).build(), "min_ok", "0");
    names(ensemble(2).min_ok(3).build(), "min_ok", "3");
    let no_time = ensemble(2).judge_timeout(Duration::ZERO).build();
    names(no_time, "judge_timeout", "0");
    names(FanoutLayer::map(0).build(), "branches in flight", "0");
    names(
        FanoutLayer::hedge(Delay::slowest(1.0)).build(),
        "delay",
        "1",
    );
    names(
        FanoutLayer::hedge(Delay::slowest(f64::NAN)).build(),
        "delay",
        "NaN",
    );
    names(
        FanoutLayer::hedge(Delay::fixed(Duration::ZERO)).build(),
        "delay",
        "0",
    );
    names(
        retry().pace(Pace::after_failure(0)).build(),
        "branches at once",
        "0",
    );
    names(retry().deadline(Duration::ZERO).build(), "deadline", "0");
    names(
        retry().attempt_timeout(2 * day).build(),
        "attempt_timeout",
        "172800",
    );
    names(retry().max_held_bytes(0).build(), "max_held_bytes", "0");
    for ratio in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
        names(Budget::new(ratio), "budget", &format!("{ratio:?}"));
    }
    names(Budget::with_reserve(0.1, -1.0), "budget reserve", "-1");
    names(
        Backoff::exponential(Duration::ZERO, day),
        "backoff base",
        "0",
    );
    names(Backoff::exponential(day, day / 2), "backoff max", "43200");
}
