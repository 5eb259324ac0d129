//! Settings that cannot be.

use std::time::Duration;

use tower_llm_core::{ConfigError, Operation, Provider};
use tower_llm_monitor::{JsonLines, Measure, MonitorLayer, Price, PriceTable, Threshold};

use crate::support::SECOND;

#[track_caller]
fn assert_names<T: std::fmt::Debug>(built: Result<T, ConfigError>, field: &str, value: &str) {
    let error = built.expect_err("it cannot be");
    assert_eq!((error.field(), error.value()), (field, value), "{error}");
}

#[test]
fn settings_that_cannot_be_are_named_with_their_value() {
    let builder = MonitorLayer::builder;
    let models = |models: usize| (0..models).map(|model| model.to_string());
    assert_names(builder().max_rows(0).build(), "max_rows", "0");
    assert_names(builder().records(0).build(), "records", "0");
    assert_names(builder().records(1_000_001).build(), "records", "1000001");
    let empty = || builder().prices(PriceTable::empty());
    assert_names(empty().models(models(1_001)).build(), "models", "1001");
    assert!(empty().models(models(1_000)).build().is_ok());
    let providers = (0..51).fold(builder(), |builder, provider| {
        builder.provider(&Provider::new(provider.to_string()))
    });
    assert_names(providers.build(), "provider", "51");
    let operations = (0..51).fold(builder(), |builder, operation| {
        builder.operation(&Operation::new(operation.to_string()))
    });
    assert_names(operations.build(), "operation", "51");
}

#[test]
fn thresholds_that_cannot_be_are_named_with_their_value() {
    let above = || Threshold::above(Measure::LatencyP95, 1.0);
    let below = || Threshold::below(Measure::SuccessRatio, 0.95);
    let day = Duration::from_secs(86_400);
    for (threshold, field, value) in [
        (Threshold::above(Measure::LatencyP95, -1.0), "bound", "-1.0"),
        (
            Threshold::above(Measure::LatencyP95, f64::NAN),
            "bound",
            "NaN",
        ),
        (
            Threshold::below(Measure::SuccessRatio, 95.0),
            "bound",
            "95.0",
        ),
        (above().clears_at(1.1), "clears_at", "1.1"),
        (above().clears_at(f64::NAN), "clears_at", "NaN"),
        (below().clears_at(0.9), "clears_at", "0.9"),
        (above().lasting(day + SECOND), "lasting", "86401s"),
        (
            Threshold::above(Measure::Gauge("memory_ratio"), 0.9).each_row(),
            "each_row",
            "true",
        ),
    ] {
        assert_names(
            MonitorLayer::builder().alerts([threshold]).build(),
            field,
            value,
        );
    }
    let fine = [
        above().clears_at(1.0),
        below().clears_at(0.95),
        above().lasting(day),
    ];
    assert!(MonitorLayer::builder().alerts(fine).build().is_ok());
}

#[test]
fn prices_that_cannot_be_are_named_with_their_value() {
    assert_names(Price::per_million(-0.1, 1.0), "input", "-0.1");
    assert_names(Price::per_million(1.0, f64::NAN), "output", "NaN");
    let price = Price::per_million(1.0, 1.0).unwrap();
    assert_names(price.cached_input(2e9), "cached_input", "2000000000.0");
    assert_names(price.cache_write(f64::INFINITY), "cache_write", "inf");
}

#[test]
fn files_that_cannot_be_are_named_with_their_value() {
    let lines = || JsonLines::new("records.jsonl");
    assert_names(lines().rotate(999_999, 5), "max_bytes", "999999");
    assert_names(lines().rotate(1_000_000, 1_001), "keep", "1001");
}
