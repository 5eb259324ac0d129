//! Settings that cannot be.

use std::time::Duration;

use tower_llm_batch::{BatchBuilder, BatchLayer};

use crate::support::{Asks, builder};

#[track_caller]
fn assert_refused(builder: BatchBuilder<Asks>, message: &str) {
    let error = builder.build().expect_err("the setting is invalid");
    assert_eq!(error.to_string(), message);
}

#[test]
fn settings_of_zero_are_errors_that_name_them() {
    let none = Duration::ZERO;
    assert_refused(
        builder().max_items(0),
        "max_items is 0: it must be at least one",
    );
    assert_refused(
        builder().max_tokens(0),
        "max_tokens is 0: it must be at least one",
    );
    assert_refused(
        builder().max_in_flight(0),
        "max_in_flight is 0: it must be at least one",
    );
    assert_refused(
        builder().max_waiting(0),
        "max_waiting is 0: it must be at least one",
    );
    assert_refused(
        builder().max_wait(none),
        "max_wait is 0ns: it must be longer than zero",
    );
    assert_refused(
        builder().expected_call_time(none),
        "expected_call_time is 0ns: it must be longer than zero",
    );
}

#[test]
fn times_are_at_most_a_day() {
    let day = Duration::from_secs(86_400);
    let longer = day + Duration::from_nanos(1);
    assert!(builder().window(day).max_wait(day).build().is_ok());
    let error = builder().window(longer).build().unwrap_err();
    assert_eq!(error.field(), "window");
    let error = builder().max_wait(longer).build().unwrap_err();
    assert_eq!(error.field(), "max_wait");
}

#[test]
fn defaults_are_valid_and_need_no_runtime() {
    let layer = BatchLayer::new(Asks).unwrap();
    assert_eq!(layer.handle().stats(), layer.clone().handle().stats());
    assert_eq!(layer.handle().stats().fill_ratio(), None);
    assert_eq!(layer.handle().stats().mean_wait(), None);
}
