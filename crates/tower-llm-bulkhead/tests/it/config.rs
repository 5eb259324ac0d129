//! Invalid settings are refused when the layer is built, by name.

use std::time::Duration;

use tower_llm_bulkhead::{Adaptive, BulkheadBuilder, BulkheadLayer, Weigh};
use tower_llm_core::{ConfigError, Key};

const DAY: Duration = Duration::from_secs(86_400);

fn refused(builder: BulkheadBuilder) -> (&'static str, String) {
    named(builder.build().err())
}

fn named(error: Option<ConfigError>) -> (&'static str, String) {
    let error = error.expect("the settings are invalid");
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
fn zero_keys_are_refused() {
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
fn queue_settings_are_ignored_for_permits_acquired_in_poll_ready() {
    let builder = BulkheadLayer::builder(1)
        .max_wait(Duration::ZERO)
        .max_keys(0);
    assert!(builder.build_reserve().is_ok());
}

#[test]
fn the_global_limit_is_checked_like_any() {
    let global = |limit| BulkheadLayer::builder(1).global_limit(limit);
    assert_eq!(refused(global(0)), ("global_limit", "0".into()));
    // Above or below a key's own limit.
    assert!(global(1).build().is_ok());
    assert!(global(1_000).build().is_ok());
}

#[test]
#[cfg(target_pointer_width = "64")]
fn the_global_limit_is_counted_in_32_bits() {
    let global = |limit| BulkheadLayer::builder(1).global_limit(limit);
    assert!(global(4_294_967_295).build().is_ok());
    let value = "4294967296".to_owned();
    assert_eq!(refused(global(4_294_967_296)), ("global_limit", value));
}

#[test]
fn limits_set_later_are_checked_like_built_ones() {
    let key = Key::new("openai");
    let handle = BulkheadLayer::builder(3).build().unwrap().handle();
    let error = named(handle.set_limit(&key, 0).err());
    assert_eq!(error, ("limit", "0".into()));
    assert_eq!(handle.stats_of(&key), None);
    assert!(handle.set_limit(&key, 1).is_ok());

    // There is no global limit that could be changed.
    let error = named(handle.set_global_limit(5).err());
    assert_eq!(error, ("global_limit", "5".into()));
    assert_eq!(handle.global_stats(), None);
    let global = BulkheadLayer::builder(3).global_limit(10).build().unwrap();
    let error = named(global.handle().set_global_limit(0).err());
    assert_eq!(error, ("global_limit", "0".into()));
    assert!(global.handle().set_global_limit(1).is_ok());
}

fn adaptive(rules: Adaptive) -> BulkheadBuilder {
    BulkheadLayer::builder(10).adaptive(rules)
}

#[test]
fn an_adaptive_limit_has_a_floor_over_zero_and_at_most_its_ceiling() {
    let throttling = Adaptive::on_throttling();
    assert_eq!(
        refused(adaptive(throttling.floor(0))),
        ("floor", "0".into())
    );
    let over = throttling.floor(11).ceiling(10);
    assert_eq!(refused(adaptive(over)), ("floor", "11".into()));
    assert!(adaptive(throttling.floor(10).ceiling(10)).build().is_ok());
}

#[test]
fn an_adaptive_limit_starts_between_its_bounds_for_every_key() {
    let rules = Adaptive::on_throttling().floor(5).ceiling(20);
    let built = |limit| BulkheadLayer::builder(limit).adaptive(rules);
    for limit in [5, 20] {
        assert!(built(limit).build().is_ok());
    }
    for limit in [4, 21] {
        assert_eq!(refused(built(limit)), ("limit", limit.to_string()));
        let own = built(10).limit_for(Key::new("openai"), limit);
        assert_eq!(refused(own), ("limit_for", limit.to_string()));
        let handle = built(10).build().unwrap().handle();
        let error = named(handle.set_limit(&Key::new("openai"), limit).err());
        assert_eq!(error, ("limit", limit.to_string()));
    }
    // The default maximum.
    let high = BulkheadLayer::builder(1_001).adaptive(Adaptive::on_throttling());
    assert_eq!(refused(high), ("limit", "1001".into()));
}

#[test]
fn a_cut_lowers_the_limit_and_leaves_something() {
    let throttling = Adaptive::on_throttling();
    for (factor, value) in [
        (0.0, "0.0"),
        (1.0, "1.0"),
        (-0.5, "-0.5"),
        (f64::NAN, "NaN"),
        (f64::INFINITY, "inf"),
    ] {
        let rules = throttling.cut_factor(factor);
        assert_eq!(refused(adaptive(rules)), ("cut_factor", value.into()));
    }
    assert!(adaptive(throttling.cut_factor(0.5)).build().is_ok());
}

#[test]
fn intervals_and_targets_are_over_zero_and_at_most_a_day() {
    let rules = |interval, target| Adaptive::on_first_token(target).cut_interval(interval);
    for (wrong, value) in [(Duration::ZERO, "0ns"), (2 * DAY, "172800s")] {
        let error = refused(adaptive(rules(wrong, DAY)));
        assert_eq!(error, ("cut_interval", value.into()));
        let error = refused(adaptive(rules(DAY, wrong)));
        assert_eq!(error, ("target", value.into()));
    }
    assert!(adaptive(rules(DAY, DAY)).build().is_ok());
}

#[test]
fn an_adaptive_limit_counts_no_tokens() {
    let weigh = Weigh::Tokens { default_output: 1 };
    let (field, value) = refused(adaptive(Adaptive::on_throttling()).weigh_by(weigh));
    assert_eq!(field, "weigh_by");
    assert!(value.contains("Tokens"), "{value}");
}
