//! Invalid settings are refused when the layer is built, by name and value.

use std::{fmt::Debug, time::Duration};

use tower_llm_breaker::{BreakerBuilder, BreakerLayer, SlowCalls};

const DAY: Duration = Duration::from_secs(86_400);
const LONGER_THAN_A_DAY: Duration = Duration::from_secs(86_401);

#[track_caller]
fn refused(builder: BreakerBuilder, field: &str, value: impl Debug) {
    let error = builder.build().expect_err(field);
    assert_eq!(
        (error.field(), error.value()),
        (field, &*format!("{value:?}"))
    );
    assert!(error.to_string().contains(field), "{error}");
}

fn accepted(builder: BreakerBuilder) {
    builder.build().expect("the settings are valid");
}

fn builder() -> BreakerBuilder {
    BreakerLayer::builder()
}

#[test]
fn ratios_are_from_zero_to_one() {
    for ratio in [-0.1, 1.1, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        refused(builder().failure_ratio(ratio), "failure_ratio", ratio);
        let jitter = builder().advanced(|set| set.jitter(ratio));
        refused(jitter, "jitter", ratio);
        let max_open_ratio = builder().advanced(|set| set.max_open_ratio(ratio));
        refused(max_open_ratio, "max_open_ratio", ratio);
        let slow = SlowCalls::at_ratio(ratio);
        refused(builder().slow_calls(slow), "slow_calls", ratio);
    }
    for ratio in [0.0, 1.0] {
        accepted(
            builder()
                .failure_ratio(ratio)
                .advanced(|set| set.jitter(ratio).max_open_ratio(ratio)),
        );
        accepted(builder().slow_calls(SlowCalls::at_ratio(ratio)));
    }
}

#[test]
fn times_are_over_zero_and_at_most_a_day() {
    type Set = fn(BreakerBuilder, Duration) -> BreakerBuilder;
    let all: [(&str, Set); 10] = [
        ("window", BreakerBuilder::window),
        ("open_for", BreakerBuilder::open_for),
        ("max_open_for", BreakerBuilder::max_open_for),
        ("max_retry_after", |builder, time| {
            builder.advanced(|set| set.max_retry_after(time))
        }),
        ("exhausted_for", |builder, time| {
            builder.advanced(|set| set.exhausted_for(time))
        }),
        ("probe_lease", |builder, time| {
            builder.advanced(|set| set.probe_lease(time))
        }),
        ("ramp", |builder, time| {
            builder.advanced(|set| set.ramp(time))
        }),
        ("slow_calls.first_token", |builder, time| {
            builder.slow_calls(SlowCalls::at_ratio(0.5).first_token(time))
        }),
        ("slow_calls.gap", |builder, time| {
            builder.slow_calls(SlowCalls::at_ratio(0.5).gap(time))
        }),
        ("slow_calls.total", |builder, time| {
            builder.slow_calls(SlowCalls::at_ratio(0.5).total(time))
        }),
    ];
    for (field, set) in all {
        for time in [Duration::ZERO, LONGER_THAN_A_DAY] {
            refused(set(builder(), time), field, time);
        }
        accepted(set(builder().max_open_for(DAY), DAY));
    }
}

#[test]
fn windows_are_neither_empty_nor_shorter_than_their_minimum() {
    refused(builder().window_calls(0), "window_calls", 0);
    refused(
        builder().window_calls((1 << 24) + 1),
        "window_calls",
        (1 << 24) + 1,
    );
    let short = Duration::from_micros(9_999);
    refused(builder().window(short), "window", short);
    refused(
        builder().window_calls(100).minimum_calls(101),
        "minimum_calls",
        101,
    );
    refused(builder().minimum_calls(0), "minimum_calls", 0);
    accepted(builder().window_calls(100).minimum_calls(100));
    // The default minimum does not make a short window invalid.
    accepted(builder().window_calls(1));
    accepted(builder().window(Duration::from_millis(10)));
}

#[test]
fn numbers_are_at_least_one() {
    refused(builder().failure_threshold(0), "failure_threshold", 0);
    refused(builder().success_threshold(0), "success_threshold", 0);
    refused(builder().probes(0), "probes", 0);
    refused(builder().probes(4_096), "probes", 4_096);
    refused(builder().max_keys(0), "max_keys", 0);
    accepted(
        builder()
            .failure_threshold(1)
            .success_threshold(1)
            .probes(4_095)
            .max_keys(1),
    );
}

#[test]
fn open_for_is_at_most_max_open_for() {
    let minute = Duration::from_secs(60);
    let contradiction = builder().open_for(2 * minute).max_open_for(minute);
    refused(contradiction, "max_open_for", minute);
    accepted(builder().open_for(minute).max_open_for(minute));
    for factor in [0.9, -1.0, 1_000.1, f64::NAN] {
        let open_factor = builder().advanced(|set| set.open_factor(factor));
        refused(open_factor, "open_factor", factor);
    }
    accepted(builder().advanced(|set| set.open_factor(1.0)));
}

#[test]
fn the_defaults_are_valid() {
    let _ = (BreakerLayer::new(), BreakerLayer::default());
}
