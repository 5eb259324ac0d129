//! Which headers are read, by provider, and which amounts are accepted.

use super::*;

/// A status with times in milliseconds.
fn status(
    limit: u64,
    remaining: u64,
    full_in: Option<u64>,
    period: Option<u64>,
) -> Option<LimitStatus> {
    Some(LimitStatus {
        limit,
        remaining,
        full_in: full_in.map(Duration::from_millis),
        period: period.map(Duration::from_millis),
    })
}

// === providers ===

#[test]
fn reads_openai() {
    let reported = read(&[
        ("date", DATE),
        ("content-type", "application/json"),
        ("openai-processing-ms", "812"),
        ("x-ratelimit-limit-requests", "10000"),
        ("x-ratelimit-limit-tokens", "30000000"),
        ("x-ratelimit-remaining-requests", "9999"),
        ("x-ratelimit-remaining-tokens", "29999984"),
        ("x-ratelimit-reset-requests", "6ms"),
        ("x-ratelimit-reset-tokens", "6m0s"),
        ("x-request-id", "req_0123456789abcdef"),
    ]);
    assert_eq!(
        reported,
        ProviderHeaders {
            requests: status(10_000, 9_999, Some(6), None),
            tokens: status(30_000_000, 29_999_984, Some(360_000), None),
            ..ProviderHeaders::default()
        }
    );
}

#[test]
fn the_tighter_of_project_and_organisation_applies() {
    let organisation = [
        ("x-ratelimit-limit-tokens", "200000"),
        ("x-ratelimit-remaining-tokens", "9000"),
        ("x-ratelimit-reset-tokens", "57.3s"),
    ];
    let reported = |remaining| {
        let project = [
            ("x-ratelimit-limit-project-tokens", "10000"),
            ("x-ratelimit-remaining-project-tokens", remaining),
            ("x-ratelimit-reset-project-tokens", "250ms"),
        ];
        let in_order = read(&[organisation, project].concat());
        assert_eq!(in_order, read(&[project, organisation].concat()));
        in_order.tokens
    };
    // The project has nine tenths left and the organisation a twentieth: the amount decides.
    assert_eq!(reported("8999"), status(10_000, 8_999, Some(250), None));
    assert_eq!(reported("9001"), status(200_000, 9_000, Some(57_300), None));
    // Of equal amounts, the limit that is full again later.
    assert_eq!(reported("9000"), status(200_000, 9_000, Some(57_300), None));
    // A limit that is not understood does not apply.
    assert_eq!(reported("few"), status(200_000, 9_000, Some(57_300), None));
}

#[test]
fn of_equal_amounts_the_one_with_a_known_reset_applies() {
    let reported = read(&[
        ("x-ratelimit-limit-requests", "10"),
        ("x-ratelimit-remaining-requests", "0"),
        ("x-ratelimit-limit-project-requests", "3"),
        ("x-ratelimit-remaining-project-requests", "0"),
        ("x-ratelimit-reset-project-requests", "20s"),
    ]);
    assert_eq!(reported.requests, status(3, 0, Some(20_000), None));
}

#[test]
fn reads_openai_usage_based_tokens() {
    let reported = read(&[
        ("x-ratelimit-limit-requests", "5000"),
        ("x-ratelimit-remaining-requests", "4999"),
        ("x-ratelimit-reset-requests", "12ms"),
        ("x-ratelimit-limit-tokens", "160000"),
        ("x-ratelimit-remaining-tokens", "158866"),
        ("x-ratelimit-reset-tokens", "425ms"),
        ("x-ratelimit-limit-tokens_usage_based", "150000"),
        ("x-ratelimit-remaining-tokens_usage_based", "148866"),
        ("x-ratelimit-reset-tokens_usage_based", "453ms"),
    ]);
    assert_eq!(reported.requests, status(5_000, 4_999, Some(12), None));
    assert_eq!(reported.tokens, status(150_000, 148_866, Some(453), None));
}

#[test]
fn reads_groq() {
    let reported = read(&[
        ("x-ratelimit-limit-requests", "14400"),
        ("x-ratelimit-limit-tokens", "18000"),
        ("x-ratelimit-remaining-requests", "14370"),
        ("x-ratelimit-remaining-tokens", "17997"),
        ("x-ratelimit-reset-requests", "2m59.56s"),
        ("x-ratelimit-reset-tokens", "7.66s"),
        ("x-ratelimit-limit-audio-seconds", "7200"),
        ("x-ratelimit-remaining-audio-seconds", "0"),
        ("x-ratelimit-reset-audio-seconds", "1h0m0s"),
    ]);
    assert_eq!(
        reported,
        ProviderHeaders {
            requests: status(14_400, 14_370, Some(179_560), None),
            tokens: status(18_000, 17_997, Some(7_660), None),
            ..ProviderHeaders::default()
        }
    );
}

#[test]
fn reads_anthropic() {
    let reported = read(&[
        ("date", DATE),
        ("anthropic-ratelimit-requests-limit", "4000"),
        ("anthropic-ratelimit-requests-remaining", "3999"),
        ("anthropic-ratelimit-requests-reset", "2026-11-22T10:00:00Z"),
        ("anthropic-ratelimit-tokens-limit", "480000"),
        ("anthropic-ratelimit-tokens-remaining", "468000"),
        ("anthropic-ratelimit-tokens-reset", "2026-11-22T10:00:02Z"),
        ("anthropic-ratelimit-input-tokens-limit", "400000"),
        ("anthropic-ratelimit-input-tokens-remaining", "390000"),
        (
            "anthropic-ratelimit-input-tokens-reset",
            "2026-11-22T10:00:02Z",
        ),
        ("anthropic-ratelimit-output-tokens-limit", "80000"),
        ("anthropic-ratelimit-output-tokens-remaining", "78000"),
        (
            "anthropic-ratelimit-output-tokens-reset",
            "2026-11-22T10:01:00Z",
        ),
    ]);
    assert_eq!(
        reported,
        ProviderHeaders {
            requests: status(4_000, 3_999, Some(0), None),
            tokens: status(480_000, 468_000, Some(2_000), None),
            input_tokens: status(400_000, 390_000, Some(2_000), None),
            output_tokens: status(80_000, 78_000, Some(60_000), None),
        }
    );
}

#[test]
fn anthropic_limits_of_other_calls_are_not_read() {
    let reported = read(&[
        ("date", DATE),
        ("anthropic-priority-input-tokens-limit", "10000"),
        ("anthropic-priority-input-tokens-remaining", "0"),
        (
            "anthropic-priority-input-tokens-reset",
            "2026-11-22T10:01:00Z",
        ),
        ("anthropic-fast-output-tokens-limit", "10000"),
        ("anthropic-fast-output-tokens-remaining", "0"),
        ("anthropic-ratelimit-unified-status", "allowed"),
        ("anthropic-ratelimit-unified-reset", "1795345200"),
        ("anthropic-ratelimit-unified-5h-utilization", "0.43"),
        ("anthropic-ratelimit-unified-5h-reset", "1795345200"),
        (
            "anthropic-ratelimit-unified-overage-disabled-reason",
            "out_of_credits",
        ),
    ]);
    assert_eq!(reported, ProviderHeaders::default());
}

#[test]
fn reads_azure() {
    let reported = read(&[
        ("x-ratelimit-abusepenalty-active", "False"),
        ("x-ratelimit-key", "gpt-5.4"),
        ("x-ratelimit-limit-requests", "2500"),
        ("x-ratelimit-limit-tokens", "250000"),
        ("x-ratelimit-remaining-requests", "2499"),
        ("x-ratelimit-remaining-tokens", "249993"),
        ("x-ratelimit-renewalperiod-requests", "60"),
        ("x-ratelimit-renewalperiod-tokens", "86400"),
        ("x-ratelimit-reset-requests", "24"),
        ("x-ratelimit-reset-tokens", "0"),
    ]);
    assert_eq!(
        reported,
        ProviderHeaders {
            requests: status(2_500, 2_499, Some(24_000), Some(60_000)),
            tokens: status(250_000, 249_993, Some(0), Some(86_400_000)),
            ..ProviderHeaders::default()
        }
    );
}

#[test]
fn azures_limits_of_minus_one_are_ignored() {
    let reported = read(&[
        ("x-ratelimit-limit-requests", "-1"),
        ("x-ratelimit-remaining-requests", "-1"),
        ("x-ratelimit-reset-requests", "0"),
        ("x-ratelimit-limit-tokens", "250000"),
        ("x-ratelimit-remaining-tokens", "-1"),
        ("x-ratelimit-reset-tokens", "0"),
    ]);
    assert_eq!(reported, ProviderHeaders::default());
}

#[test]
fn reads_mistral() {
    let reported = read(&[
        ("x-ratelimit-limit-req-minute", "50"),
        ("x-ratelimit-remaining-req-minute", "49"),
        ("x-ratelimit-limit-tokens-minute", "50000"),
        ("x-ratelimit-remaining-tokens-minute", "47300"),
        ("x-ratelimit-tokens-query-cost", "1300"),
        ("x-max-retry-attempts-reached", "false"),
    ]);
    assert_eq!(
        reported,
        ProviderHeaders {
            requests: status(50, 49, None, Some(60_000)),
            tokens: status(50_000, 47_300, None, Some(60_000)),
            ..ProviderHeaders::default()
        }
    );
}

#[test]
fn reads_cerebras() {
    let reported = read(&[
        ("x-ratelimit-limit-requests-day", "14400"),
        ("x-ratelimit-remaining-requests-day", "14399"),
        ("x-ratelimit-reset-requests-day", "33011.382867086411"),
        ("x-ratelimit-limit-tokens-minute", "60000"),
        ("x-ratelimit-remaining-tokens-minute", "59000"),
        ("x-ratelimit-reset-tokens-minute", "11.5"),
    ]);
    assert_eq!(
        reported.tokens,
        status(60_000, 59_000, Some(11_500), Some(60_000))
    );
    let requests = reported.requests.unwrap();
    assert_eq!((requests.limit, requests.remaining), (14_400, 14_399));
    assert_eq!(
        requests.full_in,
        Some(Duration::from_nanos(33_011_382_867_086))
    );
    assert_eq!(requests.period, secs(86_400));
}

#[test]
fn the_tighter_of_day_and_minute_applies() {
    let reported = |day| {
        read(&[
            ("x-ratelimit-limit-requests-day", "10000"),
            ("x-ratelimit-remaining-requests-day", day),
            ("x-ratelimit-reset-requests-day", "33011.5"),
            ("x-ratelimit-limit-requests-minute", "120"),
            ("x-ratelimit-remaining-requests-minute", "115"),
            ("x-ratelimit-reset-requests-minute", "45.5"),
            ("x-ratelimit-limit-requests-hour", "900"),
            ("x-ratelimit-remaining-requests-hour", "899"),
            ("x-ratelimit-reset-requests-hour", "1000"),
        ])
        .requests
    };
    let minute = status(120, 115, Some(45_500), Some(60_000));
    let day = |left| status(10_000, left, Some(33_011_500), Some(86_400_000));
    assert_eq!(reported("116"), minute);
    assert_eq!(reported("115"), day(115));
    assert_eq!(reported("114"), day(114));
}

#[test]
fn a_reset_without_a_limit_is_ignored() {
    // Cohere's, and OpenRouter's on free models, in milliseconds.
    for bare in [
        &[("x-ratelimit-reset", "1795341660")][..],
        &[
            ("x-ratelimit-limit", "20"),
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", "1795341660000"),
        ],
        &[
            ("x-ratelimit-remaining-requests", "0"),
            ("x-ratelimit-reset-requests", "1s"),
        ],
        &[
            ("x-ratelimit-limit-requests", "10"),
            ("x-ratelimit-reset-requests", "1s"),
        ],
        &[],
    ] {
        assert_eq!(read(bare), ProviderHeaders::default(), "{bare:?}");
    }
}

#[test]
fn a_gateways_headers_and_those_behind_it_are_not_mixed() {
    let reported = read(&[
        ("x-ratelimit-limit-requests", "10"),
        ("anthropic-ratelimit-requests-remaining", "5"),
    ]);
    assert_eq!(reported, ProviderHeaders::default());
    let reported = read(&[
        ("x-ratelimit-limit-requests", "10"),
        ("x-ratelimit-remaining-requests", "6"),
        ("anthropic-ratelimit-requests-limit", "4000"),
        ("anthropic-ratelimit-requests-remaining", "5"),
    ]);
    assert_eq!(reported.requests, status(4_000, 5, None, None));
}

// === amounts ===

#[test]
fn what_remains_is_at_most_the_limit() {
    let remaining = |remaining| {
        read(&[
            ("x-ratelimit-limit-tokens", "100"),
            ("x-ratelimit-remaining-tokens", remaining),
        ])
        .tokens
        .map(|tokens| tokens.remaining)
    };
    assert_eq!(remaining("0"), Some(0));
    assert_eq!(remaining(" 99 "), Some(99));
    assert_eq!(remaining("100"), Some(100));
    assert_eq!(remaining("101"), Some(100));
    assert_eq!(remaining("18446744073709551615"), Some(100));
    for odd in [
        "18446744073709551616",
        "-1",
        "",
        " ",
        "nan",
        "inf",
        "1e3",
        "0x10",
        "9.5",
        "1,000",
        "1 000",
        "unlimited",
        "\u{0661}",
    ] {
        assert_eq!(remaining(odd), None, "{odd:?}");
    }
}

#[test]
fn a_limit_of_nothing_is_no_limit() {
    let limit = |limit| {
        read(&[
            ("x-ratelimit-limit-tokens", limit),
            ("x-ratelimit-remaining-tokens", "5"),
        ])
        .tokens
        .map(|tokens| (tokens.limit, tokens.remaining))
    };
    assert_eq!(limit("1"), Some((1, 1)));
    assert_eq!(limit("18446744073709551615"), Some((u64::MAX, 5)));
    for odd in ["0", "-1", "18446744073709551616", "many", ""] {
        assert_eq!(limit(odd), None, "{odd:?}");
    }
}

#[test]
fn bytes_that_are_not_text_are_no_amount() {
    let mut headers = HeaderMap::new();
    headers.insert(
        "x-ratelimit-limit-tokens",
        HeaderValue::from_bytes(b"10\xff").unwrap(),
    );
    headers.insert(
        "x-ratelimit-remaining-tokens",
        HeaderValue::from_static("5"),
    );
    assert_eq!(ProviderHeaders::read(&headers), ProviderHeaders::default());
}

#[test]
fn the_first_of_several_values_counts() {
    let read = |values: [&'static str; 2]| {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("x-ratelimit-limit-tokens", HeaderValue::from_static(value));
        }
        headers.insert(
            "x-ratelimit-remaining-tokens",
            HeaderValue::from_static("5"),
        );
        ProviderHeaders::read(&headers)
            .tokens
            .map(|tokens| tokens.limit)
    };
    assert_eq!(read(["10", "20"]), Some(10));
    assert_eq!(read(["20", "10"]), Some(20));
    assert_eq!(read(["many", "10"]), None);
}

#[test]
fn unknown_families_take_no_room_from_known_ones() {
    let mut headers = HeaderMap::new();
    for nth in 0..100 {
        let name = format!("x-ratelimit-limit-images-{nth}");
        headers.insert(
            name.parse::<HeaderName>().unwrap(),
            HeaderValue::from_static("1"),
        );
    }
    headers.insert("x-ratelimit-limit-tokens", HeaderValue::from_static("10"));
    headers.insert(
        "x-ratelimit-remaining-tokens",
        HeaderValue::from_static("5"),
    );
    assert_eq!(
        ProviderHeaders::read(&headers).tokens,
        status(10, 5, None, None)
    );
}

#[test]
fn families_beyond_the_maximum_are_ignored() {
    let mut headers = HeaderMap::new();
    let mut remaining = 100;
    for group in ["", "project-"] {
        for period in ["", "-second", "-minute", "-hour", "-day"] {
            remaining -= 1;
            for (field, value) in [("limit", 100), ("remaining", remaining)] {
                let name = format!("x-ratelimit-{field}-{group}requests{period}");
                headers.insert(name.parse::<HeaderName>().unwrap(), value.into());
            }
        }
    }
    // The eighth is the tightest that was read; the ninth and tenth have 91 and 90 left.
    assert_eq!(
        ProviderHeaders::read(&headers)
            .requests
            .map(|reported| reported.remaining),
        Some(92)
    );
}
