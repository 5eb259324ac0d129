//! The response headers of each provider.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::route::Dialect;

const OPENAI: &[(&str, &str)] = &[
    ("openai-processing-ms", "412"),
    ("openai-version", "2020-10-01"),
    ("x-ratelimit-limit-requests", "10000"),
    ("x-ratelimit-limit-tokens", "2000000"),
    ("x-ratelimit-remaining-requests", "9999"),
    ("x-ratelimit-remaining-tokens", "1999500"),
    ("x-ratelimit-reset-requests", "6ms"),
    ("x-ratelimit-reset-tokens", "15ms"),
];

const AZURE: &[(&str, &str)] = &[
    ("x-ms-region", "East US 2"),
    ("x-ratelimit-limit-requests", "600"),
    ("x-ratelimit-limit-tokens", "100000"),
    ("x-ratelimit-remaining-requests", "599"),
    ("x-ratelimit-remaining-tokens", "99500"),
    ("x-ratelimit-renewalperiod-tokens", "60"),
    ("x-ratelimit-reset-requests", "0"),
    ("x-ratelimit-reset-tokens", "0"),
];

const ANTHROPIC: &[(&str, &str)] = &[
    ("anthropic-ratelimit-requests-limit", "4000"),
    ("anthropic-ratelimit-requests-remaining", "3999"),
    ("anthropic-ratelimit-requests-reset", "2026-09-21T14:13:20Z"),
    ("anthropic-ratelimit-input-tokens-limit", "400000"),
    ("anthropic-ratelimit-input-tokens-remaining", "399000"),
    (
        "anthropic-ratelimit-input-tokens-reset",
        "2026-09-21T14:13:20Z",
    ),
    ("anthropic-ratelimit-output-tokens-limit", "80000"),
    ("anthropic-ratelimit-output-tokens-remaining", "80000"),
    (
        "anthropic-ratelimit-output-tokens-reset",
        "2026-09-21T14:13:20Z",
    ),
    ("anthropic-ratelimit-tokens-limit", "480000"),
    ("anthropic-ratelimit-tokens-remaining", "479000"),
    ("anthropic-ratelimit-tokens-reset", "2026-09-21T14:13:20Z"),
];

const GEMINI: &[(&str, &str)] = &[
    ("server-timing", "gfet4t7; dur=412"),
    ("vary", "Origin, X-Origin, Referer"),
];

pub(crate) fn of(dialect: Dialect, id: &str) -> HeaderMap {
    let (headers, id_header) = match dialect {
        Dialect::OpenAi => (OPENAI, Some("x-request-id")),
        Dialect::Azure => (AZURE, Some("apim-request-id")),
        Dialect::Anthropic => (ANTHROPIC, Some("request-id")),
        Dialect::Gemini => (GEMINI, None),
    };
    let mut map: HeaderMap = headers
        .iter()
        .map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        })
        .collect();
    if let Some(name) = id_header
        && let Ok(value) = HeaderValue::try_from(format!("req_{id}"))
    {
        map.insert(name, value);
    }
    map
}

pub(crate) fn content_type(dialect: Dialect, events: bool) -> HeaderValue {
    HeaderValue::from_static(match (events, dialect) {
        (true, Dialect::Gemini) => "text/event-stream",
        (true, _) => "text/event-stream; charset=utf-8",
        (false, Dialect::Gemini) => "application/json; charset=UTF-8",
        (false, _) => "application/json",
    })
}
