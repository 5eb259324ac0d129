//! Invalid deadlines are refused when the layer is built.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::time::Duration;

use tower_llm_core::ConfigError;
use tower_llm_timeout::{TimeoutBuilder, TimeoutLayer};

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

/// Sets one deadline.
type Setter = fn(TimeoutBuilder, Duration) -> TimeoutBuilder;

const SETTERS: [(&str, Setter); 3] = [
    ("first_token", TimeoutBuilder::first_token),
    ("idle", TimeoutBuilder::idle),
    ("total", TimeoutBuilder::total),
];

#[track_caller]
fn refused(builder: TimeoutBuilder) -> ConfigError {
    builder.build().unwrap_err()
}

#[test]
fn a_deadline_of_zero_is_refused() {
    for (field, set) in SETTERS {
        let error = refused(set(TimeoutLayer::builder(), Duration::ZERO));
        assert_eq!((error.field(), error.value()), (field, "0ns"));
        let shortest = Duration::from_nanos(1);
        assert!(set(TimeoutLayer::builder(), shortest).build().is_ok());
    }
}

#[test]
fn a_deadline_over_a_day_is_refused() {
    for (field, set) in SETTERS {
        for absurd in [DAY + Duration::from_nanos(1), Duration::MAX] {
            let error = refused(set(TimeoutLayer::builder(), absurd));
            assert_eq!(error.field(), field);
            assert_eq!(error.value(), format!("{absurd:?}"));
        }
        assert!(set(TimeoutLayer::builder(), DAY).build().is_ok());
    }
}

#[test]
fn no_part_may_take_longer_than_the_whole() {
    for (field, set) in &SETTERS[..2] {
        let whole = TimeoutLayer::builder().total(SECOND);
        let error = refused(set(whole, SECOND + Duration::from_nanos(1)));
        assert_eq!((error.field(), error.value()), (*field, "1.000000001s"));
        assert!(set(whole, SECOND).build().is_ok());
    }
}

#[test]
fn the_bound_of_the_first_token_extends_it() {
    let builder = || TimeoutLayer::builder().total(60 * SECOND);
    let error = refused(builder().first_token_max(SECOND));
    assert_eq!((error.field(), error.value()), ("first_token_max", "1s"));
    let shorter = builder().first_token(2 * SECOND).first_token_max(SECOND);
    let error = refused(shorter);
    assert_eq!((error.field(), error.value()), ("first_token_max", "1s"));
    let longer = builder().first_token(SECOND).first_token_max(61 * SECOND);
    assert_eq!(refused(longer).field(), "first_token_max");
    let equal = builder().first_token(SECOND).first_token_max(SECOND);
    assert!(equal.build().is_ok());
}

#[test]
fn a_layer_without_a_deadline_is_refused() {
    let error = refused(TimeoutLayer::builder());
    assert_eq!((error.field(), error.value()), ("total", "None"));
    assert_eq!(
        error.to_string(),
        "total is None: at least one deadline must be set"
    );
}

#[test]
fn the_preset_is_one_that_could_be_built() {
    let preset = TimeoutLayer::new();
    let built = TimeoutLayer::builder()
        .first_token(120 * SECOND)
        .idle(60 * SECOND)
        .total(600 * SECOND)
        .build()
        .unwrap();
    assert_eq!(format!("{preset:?}"), format!("{built:?}"));
    assert_eq!(
        format!("{:?}", TimeoutLayer::default()),
        format!("{built:?}")
    );
}
