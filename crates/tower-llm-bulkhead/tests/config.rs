//! What cannot work is refused when it is built, by name.

use std::time::Duration;

use tower_llm_bulkhead::{BulkheadBuilder, BulkheadLayer};
use tower_llm_core::{ConfigError, Key};

const DAY: Duration = Duration::from_secs(86_400);

fn refused(builder: BulkheadBuilder) -> (&'static str, String) {
    named(builder.build().err())
}

fn named(error: Option<ConfigError>) -> (&'static str, String) {
    let error = error.expect("it was built");
    (error.field(), error.value().to_owned())
}

#[test]
fn a_limit_of_zero_is_refused() {
    assert_eq!(refused(BulkheadLayer::builder(0)), ("limit", "0".into()));
    assert_eq!(named(BulkheadLayer::new(0).err()), ("limit", "0".into()));
    let reserve = BulkheadLayer::builder(0).build_reserve();
    assert_eq!(named(reserve.err()), ("limit", "0".into()));
}

#[test]
fn a_key_s_own_limit_of_zero_is_refused() {
    let builder = BulkheadLayer::builder(1).limit_for(Key::new("openai"), 0);
    assert_eq!(refused(builder), ("limit_for", "0".into()));
}

#[test]
#[cfg(target_pointer_width = "64")]
fn limits_are_counted_in_32_bits() {
    let (most, over) = (4_294_967_295, 4_294_967_296);
    let value = "4294967296".to_owned();
    assert!(BulkheadLayer::new(most).is_ok());
    assert!(BulkheadLayer::builder(most).build_reserve().is_ok());
    assert_eq!(
        refused(BulkheadLayer::builder(over)),
        ("limit", value.clone())
    );
    let reserve = BulkheadLayer::builder(over).build_reserve();
    assert_eq!(named(reserve.err()), ("limit", value.clone()));

    let own = |limit| BulkheadLayer::builder(1).limit_for(Key::new("openai"), limit);
    assert!(own(most).build().is_ok());
    assert_eq!(refused(own(over)), ("limit_for", value));
}

#[test]
fn no_keys_at_all_are_refused() {
    let builder = BulkheadLayer::builder(1).max_keys(0);
    assert_eq!(refused(builder), ("max_keys", "0".into()));
    assert!(BulkheadLayer::builder(1).max_keys(1).build().is_ok());
}

#[test]
fn a_wait_is_over_zero_and_at_most_a_day() {
    let waits = |wait| BulkheadLayer::builder(1).max_wait(wait);
    assert_eq!(refused(waits(Duration::ZERO)), ("max_wait", "0ns".into()));
    assert!(waits(Duration::from_nanos(1)).build().is_ok());
    assert!(waits(DAY).build().is_ok());
    assert_eq!(refused(waits(2 * DAY)), ("max_wait", "172800s".into()));
    assert_eq!(
        refused(waits(Duration::MAX)),
        ("max_wait", format!("{:?}", Duration::MAX))
    );
}

#[test]
fn what_bears_on_no_queue_may_be_anything_for_places_taken_in_poll_ready() {
    let builder = BulkheadLayer::builder(1)
        .max_wait(Duration::ZERO)
        .max_keys(0);
    assert!(builder.build_reserve().is_ok());
}
