//! What is read is bounded, whatever the bytes of the headers.

use http::HeaderName;
use proptest::prelude::*;

use super::*;

mod headers;
mod times;

const DATE: &str = "Sun, 22 Nov 2026 10:00:00 GMT";

fn read(pairs: &[(&'static str, &str)]) -> ProviderHeaders {
    let headers = pairs
        .iter()
        .map(|(name, value)| {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            (HeaderName::from_static(name), value)
        })
        .collect();
    ProviderHeaders::read(&headers)
}

fn secs(seconds: u64) -> Option<Duration> {
    Some(Duration::from_secs(seconds))
}

const FIELDS: [&str; 10] = [
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-renewalperiod-requests",
    "x-ratelimit-limit-project-tokens",
    "x-ratelimit-remaining-project-tokens",
    "x-ratelimit-reset-project-tokens",
    "anthropic-ratelimit-input-tokens-limit",
    "anthropic-ratelimit-input-tokens-remaining",
    "anthropic-ratelimit-input-tokens-reset",
];

/// Any bytes, and bytes that come close to an amount or a time.
fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..48),
        "[0-9]{1,21}".prop_map(String::into_bytes),
        "[0-9.hmsnu\u{b5}+ -]{0,24}".prop_map(String::into_bytes),
        "([0-9]{0,7}(\\.[0-9]{0,12})?(h|m|s|ms|us|\u{b5}s|ns)){1,4}".prop_map(String::into_bytes),
        "[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9:.]{0,18}(Z|[+-][0-9:]{0,6})?"
            .prop_map(String::into_bytes),
        "(Sun|Mon), [0-9]{2} (Jan|Feb|Nov) [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT"
            .prop_map(String::into_bytes),
    ]
}

proptest! {
    #[test]
    fn whatever_the_bytes_what_is_told_is_bounded(
        values in proptest::collection::vec(value(), FIELDS.len() + 1),
    ) {
        let names = FIELDS.into_iter().chain(["date"]);
        let headers = names
            .zip(values)
            .filter_map(|(name, value)| {
                Some((HeaderName::from_static(name), HeaderValue::from_bytes(&value).ok()?))
            })
            .collect();
        let reported = ProviderHeaders::read(&headers);
        for status in [reported.requests, reported.tokens, reported.input_tokens].into_iter().flatten() {
            prop_assert!(status.limit > 0);
            prop_assert!(status.remaining <= status.limit);
            prop_assert!(status.full_in.is_none_or(|wait| wait <= MAX_WAIT));
            prop_assert!(status.period.is_none_or(|period| !period.is_zero() && period <= MAX_WAIT));
        }
    }

    #[test]
    fn whatever_the_bytes_a_reset_is_bounded(reset in value(), date in value()) {
        let pairs = [
            ("x-ratelimit-limit-requests", &b"10"[..]),
            ("x-ratelimit-remaining-requests", b"1"),
            ("x-ratelimit-reset-requests", &reset),
            ("x-ratelimit-renewalperiod-requests", &reset),
            ("date", &date),
        ];
        let headers = pairs
            .into_iter()
            .filter_map(|(name, value)| {
                Some((HeaderName::from_static(name), HeaderValue::from_bytes(value).ok()?))
            })
            .collect();
        let reported = ProviderHeaders::read(&headers).requests.unwrap();
        prop_assert!(reported.full_in.is_none_or(|wait| wait <= MAX_WAIT));
        prop_assert!(reported.period.is_none_or(|period| !period.is_zero() && period <= MAX_WAIT));
    }

    #[test]
    fn whatever_the_name_nothing_panics(name in "(x|anthropic)-ratelimit-[a-z0-9_-]{0,24}") {
        let mut headers = HeaderMap::new();
        headers.insert(name.parse::<HeaderName>().unwrap(), HeaderValue::from_static("1"));
        prop_assert_eq!(ProviderHeaders::read(&headers), ProviderHeaders::default());
    }
}
