//! Invalid settings are refused when the layer is built, by name.

use std::time::Duration;

use tower_llm_core::{HttpBody, KeyBy};
use tower_llm_ratelimit::{Limit, RateLimitBuilder, RateLimitLayer};

const DAY: Duration = Duration::from_secs(86_400);

fn callers() -> RateLimitBuilder<HttpBody> {
    RateLimitLayer::for_callers()
}

/// With a valid limit.
fn one() -> RateLimitBuilder<HttpBody> {
    callers().limit(Limit::requests(1).per_second())
}

#[track_caller]
fn refused(builder: RateLimitBuilder<HttpBody>) -> (&'static str, String) {
    let error = builder.build().expect_err("the settings are invalid");
    let text = format!("{} is {}: ", error.field(), error.value());
    assert!(error.to_string().starts_with(&text), "{error}");
    (error.field(), error.value().to_owned())
}

#[track_caller]
fn refuses(limit: Limit, field: &'static str, value: &str) {
    assert_eq!(
        refused(callers().limit(limit.clone())),
        (field, value.to_owned())
    );
    // With several limits, too.
    assert_eq!(refused(one().limit(limit)), (field, value.to_owned()));
}

#[track_caller]
fn accepts(limit: Limit) {
    let built = callers().limit(limit).build();
    built.expect("the limit is valid");
}

#[test]
fn an_amount_is_at_least_one_and_at_most_two_to_the_53rd() {
    for of in [
        Limit::requests,
        Limit::input_tokens,
        Limit::output_tokens,
        Limit::tokens,
    ] {
        refuses(of(0).per_minute(), "limit", "0");
        accepts(of(1).per_minute());
        accepts(of(1 << 53).per_minute());
        refuses(of((1 << 53) + 1).per_minute(), "limit", "9007199254740993");
        refuses(of(u64::MAX).per_minute(), "limit", "18446744073709551615");
        refuses(
            of(u64::MAX).per_day_in("UTC"),
            "limit",
            "18446744073709551615",
        );
    }
}

#[test]
fn a_burst_is_at_least_one_and_at_most_two_to_the_53rd() {
    let bucket = |burst| Limit::tokens(10).per_minute().bucket(burst);
    refuses(bucket(0), "burst", "0");
    accepts(bucket(1));
    accepts(bucket(1 << 53));
    refuses(bucket((1 << 53) + 1), "burst", "9007199254740993");
    refuses(bucket(u64::MAX), "burst", "18446744073709551615");
    refuses(Limit::tokens(0).per_minute().bucket(5), "limit", "0");
}

#[test]
fn a_period_is_at_least_a_second_and_at_most_31_days() {
    let per = |period| Limit::tokens(10).per(period);
    refuses(per(Duration::ZERO), "period", "0ns");
    refuses(
        per(Duration::from_nanos(999_999_999)),
        "period",
        "999.999999ms",
    );
    accepts(per(Duration::from_secs(1)));
    accepts(per(31 * DAY));
    refuses(
        per(31 * DAY + Duration::from_nanos(1)),
        "period",
        "2678400.000000001s",
    );
    refuses(
        per(Duration::MAX),
        "period",
        &format!("{:?}", Duration::MAX),
    );
    refuses(per(Duration::ZERO).bucket(5), "period", "0ns");
}

#[test]
fn a_time_zone_must_be_known() {
    accepts(Limit::tokens(10).per_day_in("America/Los_Angeles"));
    refuses(
        Limit::tokens(10).per_day_in("Mars/Olympus"),
        "zone",
        "\"Mars/Olympus\"",
    );
    refuses(Limit::tokens(10).per_day_in(""), "zone", "\"\"");
}

#[test]
fn a_tier_has_a_name_of_its_own_and_an_amount() {
    let tiered = || Limit::requests(100).per_hour().tier("pro", 1_000);
    let build = |limit: Limit| callers().limit(limit).tier_by(|_| "pro".into());
    build(tiered()).build().unwrap();
    let twice = refused(build(tiered().tier("pro", 2_000)));
    assert_eq!(twice, ("tier", "\"pro: 2000\"".to_owned()));
    // Even with the same amount.
    let twice = refused(build(tiered().tier("pro", 1_000)));
    assert_eq!(twice, ("tier", "\"pro: 1000\"".to_owned()));
    assert_eq!(
        refused(build(tiered().tier("", 5))),
        ("tier", "\"\"".to_owned())
    );
    assert_eq!(
        refused(build(tiered().tier("free", 0))),
        ("tier", "\"free: 0\"".to_owned())
    );
    let most = refused(build(tiered().tier("free", u64::MAX)));
    assert_eq!(most, ("tier", "\"free: 18446744073709551615\"".to_owned()));
    // Two limits may name the same tier.
    let both = build(tiered()).limit(Limit::tokens(5).per_second().tier("pro", 50));
    both.build().unwrap();
}

#[test]
fn tiers_and_their_policy_require_each_other() {
    let tiered = Limit::requests(100)
        .per_hour()
        .tier("pro", 1_000)
        .tier("enterprise", 10_000);
    let nobody_chooses = refused(callers().limit(tiered));
    assert_eq!(
        nobody_chooses,
        ("tier_by", "[\"pro\", \"enterprise\"]".to_owned())
    );
    let nothing_to_choose = refused(one().tier_by(|_| "pro".into()));
    assert_eq!(nothing_to_choose.0, "tier_by");
}

#[test]
fn a_percentile_is_over_zero_and_at_most_one() {
    for (ratio, value) in [
        (0.0, "0.0"),
        (-0.5, "-0.5"),
        (1.000_1, "1.0001"),
        (f64::NAN, "NaN"),
        (f64::INFINITY, "inf"),
    ] {
        let refused = refused(one().output_percentile(ratio));
        assert_eq!(refused, ("output_percentile", value.to_owned()));
    }
    one().output_percentile(f64::MIN_POSITIVE).build().unwrap();
    one().output_percentile(1.0).build().unwrap();
}

#[test]
fn counts_are_at_least_one() {
    assert_eq!(
        refused(one().output_weight(0)),
        ("output_weight", "0".to_owned())
    );
    assert_eq!(
        refused(one().output_weight(1_001)),
        ("output_weight", "1001".to_owned())
    );
    one().output_weight(1_000).build().unwrap();
    assert_eq!(refused(one().max_keys(0)), ("max_keys", "0".to_owned()));
    one().max_keys(1).build().unwrap();
    // No call may wait, or any number.
    one().max_waiting(0).build().unwrap();
    one().max_waiting(usize::MAX).build().unwrap();
}

#[test]
fn a_wait_is_over_zero_and_at_most_a_day() {
    assert_eq!(
        refused(one().max_wait(Duration::ZERO)),
        ("max_wait", "0ns".to_owned())
    );
    one().max_wait(Duration::from_nanos(1)).build().unwrap();
    one().max_wait(DAY).build().unwrap();
    assert_eq!(
        refused(one().max_wait(2 * DAY)),
        ("max_wait", "172800s".to_owned())
    );
    let most = refused(one().max_wait(Duration::MAX));
    assert_eq!(most, ("max_wait", format!("{:?}", Duration::MAX)));
}

#[test]
fn a_layer_has_a_limit_or_observes_a_provider() {
    assert_eq!(refused(callers()), ("limit", "0".to_owned()));
    callers().enforce_reported_limits(true).build().unwrap();
    let providers = RateLimitLayer::for_providers;
    providers().build().unwrap();
    assert_eq!(
        refused(providers().enforce_reported_limits(false)),
        ("limit", "0".to_owned())
    );
}

#[test]
fn a_limit_displays_in_plain_words() {
    let cases = [
        (Limit::requests(60).per_minute(), "60 requests per minute"),
        (
            Limit::tokens(90_000).per_second(),
            "90000 tokens per second",
        ),
        (Limit::input_tokens(5).per_hour(), "5 input tokens per hour"),
        (Limit::output_tokens(5).per_day(), "5 output tokens per day"),
        (Limit::tokens(5).per_day_in("UTC"), "5 tokens per day"),
        (
            Limit::tokens(5).per(Duration::from_millis(60_500)),
            "5 tokens per 60.5s",
        ),
        (
            Limit::tokens(5).per(Duration::from_millis(3_600_001)),
            "5 tokens per 3600.001s",
        ),
    ];
    for (limit, text) in cases {
        assert_eq!(limit.to_string(), text);
    }
}

#[test]
fn limits_are_values() {
    let limit = || {
        Limit::tokens(5)
            .per_minute()
            .by(KeyBy::model())
            .bucket(7)
            .tier("pro", 9)
    };
    assert_eq!(limit(), limit());
    assert_ne!(limit(), limit().bucket(8));
    assert_eq!(
        (limit().amount(), limit().period()),
        (5, Duration::from_secs(60))
    );
}
