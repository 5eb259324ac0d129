//! Settings that make no sense fail when a layer is built, and say which one.

use tower_llm_stack::{ConfigError, Limit, Policy, Scope, fanout::Delay, fanout::Pace};

use super::*;

#[test]
fn a_wrong_setting_is_named() {
    let preset = Preset::Chat;
    let zero = Duration::ZERO;
    let errors: [(&str, ConfigError); 8] = [
        ("idle", preset.timeout().idle(zero).build().unwrap_err()),
        (
            "idle",
            preset.timeout().idle(3_600 * SECOND).build().unwrap_err(),
        ),
        ("branches", preset.fanout().branches(0).build().unwrap_err()),
        ("delay", {
            let hedge = Pace::after(Delay::slowest(1.5));
            preset.fanout().pace(hedge).build().unwrap_err()
        }),
        ("ttl", {
            let never = Policy::completions().ttl(zero);
            let cache = preset.cache(Scope::caller()).completions(never);
            cache.build().unwrap_err()
        }),
        (
            "failure_ratio",
            preset.breaker().failure_ratio(2.0).build().unwrap_err(),
        ),
        (
            "max_wait",
            preset.bulkhead().max_wait(zero).build().unwrap_err(),
        ),
        ("limit", {
            let none = Limit::requests(0).per_minute();
            preset
                .provider_rate_limit()
                .limit(none)
                .build()
                .unwrap_err()
        }),
    ];
    for (setting, error) in errors {
        assert!(error.to_string().contains(setting), "{setting}: {error}");
    }
}
